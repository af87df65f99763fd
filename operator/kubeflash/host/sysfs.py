"""Reading small files of the kernel. Devices come and go while they are read: what cannot be read is None."""

from __future__ import annotations

import os
import posixpath
from pathlib import Path

_LIMIT = 1 << 16  # an attribute is at most one page; this leaves room for the few files of /proc that are lists


def read_text(path: Path, limit: int = _LIMIT) -> str | None:
    """The file's text without white space and NULs around it; None when it cannot be read.

    A device that has gone answers ENOENT, ENODEV, ENXIO or EIO, an attribute that it does not have ENOENT or EINVAL,
    one that is root's EACCES: a caller can do nothing else about any of them. Bytes that are no UTF-8 become U+FFFD.
    """
    try:
        with path.open("rb") as file:
            content = file.read(limit)
    except OSError:
        return None
    return content.decode(errors="replace").strip("\0 \t\r\n")


def read_int(path: Path, base: int = 10) -> int | None:
    """The whole number that the file holds; None when it cannot be read or holds something else."""
    text = read_text(path)
    try:
        return int(text, base) if text else None
    except ValueError:
        return None


def list_names(folder: Path) -> list[str]:
    """Names in a folder, sorted; none when it cannot be read."""
    try:
        return sorted(os.listdir(folder))  # noqa: PTH208  names are wanted, without a Path for each
    except OSError:
        return []


def device_path(sys: Path, link: Path) -> str | None:
    """Where a link of /sys/class or /sys/bus leads: the path below /sys, such as `devices/pci0000:00/0000:00:01.0`.

    The kernel's links are relative and lead straight to folders below /sys/devices, so the target follows from the
    link's text alone: one system call, and nothing that could leave the root.

    Returns:
        None when it is no link, or one that leads elsewhere.
    """
    try:
        text = os.readlink(link)  # noqa: PTH115  the text is wanted, without a Path of it
    except OSError:
        return None
    inside = posixpath.normpath(posixpath.join(*link.parent.relative_to(sys).parts, text))
    return inside if inside.startswith("devices/") else None
