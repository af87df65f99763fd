"""Who has a device open, by looking at every process: O_EXCL does not see a bare open, nor what nvmet opens.

A device may have many nodes (`mknod` in a container), so device numbers are compared, not names. `statx` is called with
AT_STATX_DONT_SYNC: a plain `stat` of a file on a dead NFS or FUSE mount would hang for ever.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from kubeflash.host.errors import HostError
from kubeflash.host.root import HostRoot
from kubeflash.host.statx import TYPE, statx

_GONE = (errno.ENOENT, errno.ESRCH, errno.ENOTDIR)


class ProcessesUnreadable(HostError):
    """Not every process could be looked at, so nobody can say that a device is free."""


@dataclass(frozen=True)
class OpenFile:
    """A process that has a device open."""

    pid: int
    command: str
    device: tuple[str, int]


def _device_of(path: Path) -> tuple[str, int] | None:
    """`("b" or "c", device number)` of what a link leads to; None when it is no device."""
    buffer = statx(path, TYPE)
    device = os.makedev(buffer.rdev_major, buffer.rdev_minor)
    if stat.S_ISBLK(buffer.mode):
        return "b", device
    return ("c", device) if stat.S_ISCHR(buffer.mode) else None


def open_in(root: HostRoot, blocks: frozenset[int], characters: frozenset[int]) -> tuple[OpenFile, ...]:
    """The processes, other than this one, that have one of the devices open.

    Args:
        root: the machine; its /proc must be that of the host's PID namespace.
        blocks: numbers of block devices.
        characters: numbers of character devices, such as that of /dev/ng0n1.

    Raises:
        ProcessesUnreadable: when a process could not be looked at (needs root and CAP_SYS_PTRACE).
    """
    wanted = {("b", number) for number in blocks} | {("c", number) for number in characters}
    own = (root.proc / "self").readlink().name if (root.proc / "self").is_symlink() else ""
    found: dict[tuple[int, tuple[str, int]], OpenFile] = {}
    for process in _processes(root):
        if process.name == own:
            continue
        for descriptor in _descriptors(process):
            try:
                device = _device_of(descriptor)
            except OSError as error:
                if error.errno in _GONE:
                    continue
                raise ProcessesUnreadable(f"cannot see what {descriptor} is: {error.strerror}") from error
            if device in wanted and device is not None:
                pid = int(process.name)
                found.setdefault((pid, device), OpenFile(pid, command_of(root, pid), device))
    return tuple(found.values())


def _processes(root: HostRoot) -> Iterator[Path]:
    return (path for path in root.proc.iterdir() if path.name.isdigit())


def _descriptors(process: Path) -> Iterator[Path]:
    """The descriptors of a process; those of its threads when its first thread has ended before the others."""
    descriptors = _list(process / "fd")
    if not descriptors:
        descriptors = [item for thread in _list(process / "task") for item in _list(thread / "fd")]
    return iter(descriptors)


def _list(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError as error:
        if error.errno in _GONE:
            return []
        raise ProcessesUnreadable(
            f"cannot look into {folder}: {error.strerror}; "
            "run as root, with CAP_SYS_PTRACE, in the host's PID namespace"
        ) from error


def command_of(root: HostRoot, pid: int) -> str:
    """The name of a process, `?` when it is gone."""
    try:
        return (root.proc / str(pid) / "comm").read_text(errors="replace").strip() or "?"
    except OSError:
        return "?"
