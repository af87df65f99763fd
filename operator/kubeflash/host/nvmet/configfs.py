"""The edge to configfs: the eight calls that nvmet's tree needs, so that a test can give a kernel of its own.

Plain folders will not do as a fake: configfs makes attribute files by itself on `mkdir`, removes them on `rmdir`, and
says no to many a write. Paths are relative to nvmet's own folder. All calls raise OSError as the kernel gave it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol

from kubeflash.host.root import HostRoot


class Configfs(Protocol):
    """What nvmet.py needs of the file system."""

    def available(self) -> bool:
        """Whether nvmet's tree is there."""

    def exists(self, path: str) -> bool:
        """Whether a folder or link is there."""

    def listdir(self, path: str) -> list[str]:
        """Names in a folder."""

    def mkdir(self, path: str) -> None:
        """Makes an object."""

    def rmdir(self, path: str) -> None:
        """Removes an object."""

    def read(self, path: str) -> str:
        """An attribute, without the newline at its end."""

    def write(self, path: str, value: str) -> None:
        """Writes an attribute, by one call of `write`."""

    def chmod(self, path: str, mode: int) -> None:
        """Changes who may read an attribute."""

    def mode(self, path: str) -> int:
        """The permission bits of an attribute."""

    def symlink(self, target: str, link: str) -> None:
        """Links an object; both paths are relative to nvmet's folder."""

    def unlink(self, path: str) -> None:
        """Removes a link."""


class KernelConfigfs:
    """The kernel's configfs."""

    def __init__(self, root: HostRoot) -> None:
        self._folder = root.nvmet

    def _path(self, path: str) -> Path:
        return self._folder / path

    def available(self) -> bool:
        """Whether nvmet's tree is there."""
        return (self._folder / "subsystems").is_dir()

    def exists(self, path: str) -> bool:
        """Whether a folder or link is there."""
        return os.path.lexists(self._path(path))

    def listdir(self, path: str) -> list[str]:
        """Names in a folder."""
        return sorted(item.name for item in self._path(path).iterdir())

    def mkdir(self, path: str) -> None:
        """Makes an object."""
        self._path(path).mkdir()

    def rmdir(self, path: str) -> None:
        """Removes an object."""
        self._path(path).rmdir()

    def read(self, path: str) -> str:
        """An attribute, without the newline at its end."""
        return self._path(path).read_text().removesuffix("\n")

    def write(self, path: str, value: str) -> None:
        """Writes an attribute, by one call of `write`."""
        # unbuffered: one write is one store in the kernel, and its error is that of the call
        fd = os.open(self._path(path), os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, value.encode())
        finally:
            os.close(fd)

    def chmod(self, path: str, mode: int) -> None:
        """Changes who may read an attribute."""
        self._path(path).chmod(mode)

    def mode(self, path: str) -> int:
        """The permission bits of an attribute."""
        return self._path(path).stat().st_mode & 0o777

    def symlink(self, target: str, link: str) -> None:
        """Links an object; both paths are relative to nvmet's folder."""
        # configfs resolves a relative target from the caller's working directory, so it gets an absolute one
        self._path(link).symlink_to(self._path(target).absolute())

    def unlink(self, path: str) -> None:
        """Removes a link."""
        self._path(path).unlink()
