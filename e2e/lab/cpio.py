"""Writes the archive format of an initramfs ("newc" cpio), so that no packing tool is needed on the host."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath

_DIRECTORY = 0o040755
_REGULAR = 0o100000


def write_newc(archive: Path, files: Mapping[str, tuple[int, bytes]]) -> None:
    """Write an uncompressed archive; folders are made as needed, everything belongs to root, times are zero.

    Args:
        archive: The file to write.
        files: Relative path → (permission bits, content).
    """
    folders: dict[str, None] = {}
    for name in files:
        for parent in reversed(PurePosixPath(name).parents[:-1]):
            folders[str(parent)] = None
    with archive.open("wb") as out:
        number = 1
        for folder in folders:
            out.write(_entry(number, folder, _DIRECTORY, b""))
            number += 1
        for name, (permissions, content) in files.items():
            out.write(_entry(number, name, _REGULAR | permissions, content))
            number += 1
        out.write(_entry(0, "TRAILER!!!", 0, b""))


def _entry(inode: int, name: str, mode: int, content: bytes) -> bytes:
    encoded = name.encode() + b"\0"
    fields = (inode, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(encoded), 0)
    header = b"070701" + b"".join(b"%08X" % field for field in fields)
    return _padded(header + encoded) + _padded(content)


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)
