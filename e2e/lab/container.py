"""The container image as it ships: built by ``scripts/build-image`` from the project's own Dockerfile, and kept.

An image is kept by what goes into it: the Dockerfile, what ``.dockerignore`` lets in, the script. Debian's updates are
none of it: ``FRESH=1 scripts/build-image`` fetches those.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from lab import cache
from lab.errors import BuildError, LabError
from lab.processes import run

ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
"""The kernel's names of machines, and those of images. Others have one name."""
BILL_OF_MATERIALS = "usr/share/sbom/kubeflash.cdx.json"
NOBODY = 65532
"""The user that the controller is in a cluster; it has no name in the image."""

_ABOUT = "3 min; half a minute when only KubeFlash's code is new"
_TIMEOUT = 1800.0  # seconds
_UNUSED_DAYS = 2.0  # every state of the code is 150 MB
_WHITEOUT = ".wh."
_OPAQUE = ".wh..wh..opq"

# As a container runtime does it: a file system that cannot be written, the usual devices, nothing of this machine's.
_ENTER = """
set -eu
root=$1 user=$2 mounts=$3; shift 3
mount --bind "$root" "$root"
cd "$root"
mount -t proc proc proc
mount -t sysfs -o ro sysfs sys
mount -t tmpfs -o mode=0755 tmpfs dev
for device in null zero full random urandom; do : >dev/$device; mount --bind /dev/$device dev/$device; done
mkdir dev/shm
mount -t tmpfs -o mode=1777 tmpfs dev/shm
ln -s /proc/self/fd dev/fd
for pair in $mounts; do
  target=$(chroot . realpath --canonicalize-missing "${pair#*:}")  # /var/run is a link, and not to ours
  mkdir -p ".$target"
  mount --bind "${pair%%:*}" ".$target"
done
mount -o remount,bind,ro "$root"
exec setpriv --no-new-privs chroot --userspec="$user:$user" --groups= . "$@"
"""

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Unpacked:
    """An image's root file system as a folder.

    Attributes:
        root: The folder.
        config: The image's configuration: ``architecture``, ``config.Env`` and so on.
    """

    root: Path
    config: Mapping[str, Any]

    def command(
        self,
        *words: str,
        user: int = NOBODY,
        mounts: Mapping[str, Path] | None = None,
        env: Mapping[str, str] | None = None,
    ) -> list[str]:
        """What runs a command in the image, nearly as a container would: root and all else read-only.

        It needs root, and stays in the caller's network.

        Args:
            words: The command.
            user: User and group id.
            mounts: Folders of this machine by the absolute path that they have there; without spaces or colons.
            env: Environment, beside the image's own.
        """
        settings = dict(word.partition("=")[::2] for word in self.config["config"]["Env"]) | dict(env or {})
        enter = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", _ENTER, "sh"]
        variables = [f"{key}={value}" for key, value in settings.items()]
        inside = ["env", "-i", *variables, *words]
        bound = " ".join(f"{source}:{target}" for target, source in (mounts or {}).items())
        return [*enter, str(self.root), str(user), bound, *inside]


def operator_image(repo: Path) -> Path:
    """Build, or find in the cache, the archive of the image, in docker's format: ``kubeflash:VERSION``, see `name`.

    ``ctr images import`` and ``docker load`` take it. The bill of materials lies beside it, with suffix ``.cdx.json``.

    Raises:
        BuildError: It could not be built, or is for another kind of machine.
        LabTimeout: Another process has been building it for an hour.
    """

    def build(out: Path) -> None:
        archive = out / "kubeflash.tar"
        try:
            run([repo / "scripts" / "build-image", "--output", archive, name(repo)], timeout=_TIMEOUT)
        except LabError as error:
            raise BuildError(str(error)) from error
        check_architecture(configuration(archive))

    key = inputs_hash(repo)
    made = cache.artifact("operator-image", key, build, about=_ABOUT, unused_days=_UNUSED_DAYS)
    return made / "kubeflash.tar"


def name(repo: Path) -> str:
    """What the image is called in its archive, and so in a pod: ``kubeflash:VERSION``.

    Raises:
        BuildError: The package has no version.
    """
    text = (repo / "operator" / "kubeflash" / "__init__.py").read_text()
    for line in text.splitlines():
        left, _, right = line.partition(" = ")
        if left == "__version__":
            return "kubeflash:" + right.strip('"')
    raise BuildError(f"{repo}/operator/kubeflash/__init__.py has no __version__")


def inputs(repo: Path) -> Iterator[Path]:
    """The files that an image is made of, sorted."""
    admitted = [line[1:] for line in (repo / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    for entry in sorted({"Dockerfile", ".dockerignore", "scripts/build-image", *admitted}):
        path = repo / entry
        found = sorted(path.rglob("*")) if path.is_dir() else [path]
        yield from (file for file in found if file.is_file() and "__pycache__" not in file.parts)


def inputs_hash(repo: Path) -> str:
    """Names an image by its `inputs` and the kind of machine."""
    digest = hashlib.sha256(platform.machine().encode())
    for path in inputs(repo):
        content = path.read_bytes()
        digest.update(f"\0{path.relative_to(repo)}\0{path.stat().st_mode & 0o111}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()[:16]


def check_architecture(config: Mapping[str, Any]) -> None:
    """Refuses an image that this machine cannot run: what a pod says of it is "exec format error".

    Raises:
        BuildError: It is such a one.
    """
    machine = ARCHITECTURES.get(platform.machine(), platform.machine())
    if (made := config.get("architecture")) != machine:
        raise BuildError(
            f"the image is for {made}, this machine is {machine}: scripts/build-image --platform linux/{machine}"
        )


def configuration(archive: Path) -> dict[str, Any]:
    """The configuration of the image in an archive of docker's.

    Raises:
        BuildError: It is no such archive.
    """
    return _read(archive, lambda _, config, __: config)


def unpack(archive: Path, folder: Path) -> Unpacked:
    """Unpacks the image of an archive of docker's into a folder. Needs root, and takes some 3 seconds.

    Raises:
        BuildError: It is no such archive.
    """

    def layers(tar: tarfile.TarFile, config: dict[str, Any], names: Sequence[str]) -> Unpacked:
        for layer in names:
            with tarfile.open(fileobj=tar.extractfile(layer)) as content:
                _add_layer(content, folder)
        return Unpacked(folder, config)

    folder.mkdir(parents=True, exist_ok=True)
    return _read(archive, layers)


def _read(archive: Path, use: Callable[[tarfile.TarFile, dict[str, Any], Sequence[str]], _Result]) -> _Result:
    try:
        with tarfile.open(archive) as tar:
            (manifest,) = json.loads(_member(tar, "manifest.json"))
            return use(tar, json.loads(_member(tar, manifest["Config"])), manifest["Layers"])
    except (OSError, tarfile.TarError, KeyError, ValueError) as error:
        raise BuildError(f"{archive} is no archive of one image, as docker save makes it: {error!r}") from error


def _member(tar: tarfile.TarFile, path: str) -> bytes:
    file = tar.extractfile(path)
    if file is None:
        raise ValueError(f"{path} is no file")
    with file:
        return file.read()


def _add_layer(layer: tarfile.TarFile, folder: Path) -> None:
    layer.extraction_filter = getattr(tarfile, "fully_trusted_filter", None)  # early Pythons 3.11 know no other
    for member in layer:
        path = folder / member.name
        if path.name == _OPAQUE:
            for other in path.parent.iterdir():
                _remove(other)
        elif path.name.startswith(_WHITEOUT):
            _remove(path.with_name(path.name.removeprefix(_WHITEOUT)))
        else:
            if not member.isdir() or path.is_symlink():
                _remove(path)
            layer.extract(member, folder)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif os.path.lexists(path):
        path.unlink()
