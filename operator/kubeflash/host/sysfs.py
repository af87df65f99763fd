"""Reading small files of the kernel. Devices come and go while they are read: what cannot be read is None.

Paths are texts and files are read by number: a server has hundreds of devices, each with several attributes, and with
`pathlib` most of the time of a discovery would go into the paths.
"""

from __future__ import annotations

import os
import posixpath

StrPath = str | os.PathLike[str]

_LIMIT = 1 << 16  # bytes; an attribute is at most a page, and the few files of /proc that are read so are short


def read_text(path: StrPath) -> str | None:
    """The file's text without white space and NULs around it; None when it cannot be read.

    A device that has gone answers ENOENT, ENODEV, ENXIO or EIO, an attribute that it does not have ENOENT or EINVAL,
    one that is root's EACCES: a caller can do nothing else about any of them. Bytes that are no UTF-8 become U+FFFD.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        content = os.read(fd, _LIMIT)
    except OSError:
        return None
    finally:
        os.close(fd)
    return content.decode(errors="replace").strip("\0 \t\r\n")


def read_int(path: StrPath, base: int = 10) -> int | None:
    """The whole number that the file holds; None when it cannot be read or holds something else."""
    text = read_text(path)
    try:
        return int(text, base) if text else None
    except ValueError:
        return None


def list_names(folder: StrPath) -> list[str]:
    """Names in a folder, sorted; none when it cannot be read."""
    try:
        return sorted(os.listdir(folder))  # noqa: PTH208  see above
    except OSError:
        return []


def device_path(sys: StrPath, link: str) -> str | None:
    """Where a link of /sys/class or /sys/bus leads: the path below /sys, such as `devices/pci0000:00/0000:00:01.0`.

    The kernel's links are relative and lead straight to folders below /sys/devices, so the target follows from the
    link's text alone: one system call, and nothing that could leave the root.

    Args:
        sys: where sysfs is.
        link: path of the link below it, such as `class/nvme/nvme0`.

    Returns:
        None when it is no link, or one that leads elsewhere.
    """
    try:
        text = os.readlink(f"{os.fspath(sys)}/{link}")  # noqa: PTH115  see above
    except OSError:
        return None
    inside = posixpath.normpath(posixpath.join(posixpath.dirname(link), text))
    return inside if inside.startswith("devices/") else None
