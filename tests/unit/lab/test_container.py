"""Which image is built when, and what becomes of its layers. The image itself: tests/image."""

from __future__ import annotations

import io
import json
import platform
import tarfile
from pathlib import Path

import pytest

import kubeflash
from lab import container
from lab.errors import BuildError

REPO = Path(__file__).resolve().parents[3]


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    """A small repository."""
    files = {
        ".dockerignore": "*\n!operator\n!requirements\n!README.md\n**/__pycache__\n",
        "Dockerfile": "FROM debian:trixie-slim\n",
        "README.md": "KubeFlash\n",
        "CHANGELOG.md": "new\n",
        "scripts/build-image": "#!/bin/sh\n",
        "operator/kubeflash/__init__.py": '"""KubeFlash."""\n\n__version__ = "1.2.3"\n',
        "operator/kubeflash/__pycache__/__init__.pyc": "",
        "requirements/runtime.txt": "kopf==1\n",
    }
    for name, text in files.items():
        path = tmp_path / "repo" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "repo"


@pytest.mark.parametrize(
    "name", ["Dockerfile", ".dockerignore", "README.md", "scripts/build-image", "operator/kubeflash/__init__.py"]
)
def test_what_goes_into_the_image_makes_a_new_one(repo, name):
    before = container.inputs_hash(repo)
    assert container.inputs_hash(repo) == before
    path = repo / name
    path.write_text(path.read_text() + "\n")
    assert container.inputs_hash(repo) != before


@pytest.mark.parametrize("name", ["CHANGELOG.md", "operator/kubeflash/__pycache__/__init__.pyc"])
def test_what_does_not_makes_none(repo, name):
    before = container.inputs_hash(repo)
    (repo / name).write_text("changed\n")
    assert container.inputs_hash(repo) == before


def test_a_script_that_became_executable_makes_a_new_one(repo):
    before = container.inputs_hash(repo)
    (repo / "scripts/build-image").chmod(0o755)
    assert container.inputs_hash(repo) != before


def test_every_input_of_the_real_one_is_there():
    names = {str(path.relative_to(REPO)) for path in container.inputs(REPO)}
    copied = {
        word
        for line in (REPO / "Dockerfile").read_text().splitlines()
        if line.startswith("COPY ") and "--from" not in line
        for word in line.split()[1:-1]
    }
    assert copied
    assert [word for word in copied if not any(name == word or name.startswith(f"{word}/") for name in names)] == []


def test_its_name_has_the_version(repo):
    assert container.name(repo) == "kubeflash:1.2.3"
    assert container.name(REPO) == f"kubeflash:{kubeflash.__version__}"
    (repo / "operator/kubeflash/__init__.py").write_text("")
    with pytest.raises(BuildError, match="has no __version__"):
        container.name(repo)


def test_an_image_of_another_architecture_is_refused():
    machine = container.ARCHITECTURES.get(platform.machine(), platform.machine())
    container.check_architecture({"architecture": machine})
    with pytest.raises(BuildError, match=rf"the image is for s390x, this machine is {machine}: scripts/build-image"):
        container.check_architecture({"architecture": "s390x"})


def layer(**files: str | None) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name.replace("__", "/"))
            if content is None:
                info.type, info.mode = tarfile.DIRTYPE, 0o755
            info.size = len(content or "")
            tar.addfile(info, io.BytesIO((content or "").encode()))
    return buffer.getvalue()


def archive(path: Path, *layers: bytes) -> Path:
    manifest = [{"Config": "config.json", "Layers": [f"{number}.tar" for number in range(len(layers))]}]
    members = {"manifest.json": json.dumps(manifest).encode(), "config.json": b'{"architecture": "amd64"}'}
    members |= {f"{number}.tar": content for number, content in enumerate(layers)}
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def test_layers_are_laid_upon_each_other(tmp_path):
    made = archive(
        tmp_path / "image.tar",
        layer(etc=None, etc__kept="1", etc__changed="1", etc__gone="1", log=None, log__old="1", link="1"),
        layer(**{"etc__changed": "2", "etc__.wh.gone": "", "log__.wh..wh..opq": "", "log__new": "2", ".wh.link": ""}),
    )
    unpacked = container.unpack(made, tmp_path / "root")
    files = {
        str(path.relative_to(unpacked.root)): path.read_text() for path in unpacked.root.rglob("*") if path.is_file()
    }
    assert files == {"etc/kept": "1", "etc/changed": "2", "log/new": "2"}
    assert unpacked.config == container.configuration(made) == {"architecture": "amd64"}


@pytest.mark.parametrize("content", [b"", b"no archive", layer(file="no image")])
def test_another_file_is_no_archive_of_an_image(tmp_path, content):
    (tmp_path / "image.tar").write_bytes(content)
    with pytest.raises(BuildError, match=r"image\.tar is no archive of one image"):
        container.configuration(tmp_path / "image.tar")
