from __future__ import annotations

import hashlib
import json
import tarfile
from pathlib import Path

from lab import node


def test_the_pause_image_is_an_archive_that_names_its_layer_and_what_to_run(tmp_path: Path):
    program = tmp_path / "usr" / "bin" / "catatonit"
    program.parent.mkdir(parents=True)
    program.write_bytes(b"ELF")
    node._pause_image(tmp_path, tmp_path / "pause.tar")
    with tarfile.open(tmp_path / "pause.tar") as archive:
        read = lambda name: archive.extractfile(name).read()  # noqa: E731
        (manifest,) = json.loads(read("manifest.json"))
        config = json.loads(read(manifest["Config"]))
        layer = read(manifest["Layers"][0])
    assert manifest["RepoTags"] == [node.PAUSE_IMAGE]
    assert config["rootfs"]["diff_ids"] == [f"sha256:{hashlib.sha256(layer).hexdigest()}"]
    assert config["config"]["Entrypoint"] == ["/pause", "-P"]


def test_containerd_is_told_of_the_pause_image():
    config = Path(node.__file__).parent / "guest" / "root" / "etc" / "containerd" / "config.toml"
    assert f'sandbox_image = "{node.PAUSE_IMAGE}"' in config.read_text()
