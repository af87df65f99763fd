"""The two copies of a GPT, byte by byte; UEFI Specification 2.10, chapter 5.

For what sfdisk does not do: it sees no table at all where the protective MBR is missing, and does not say whether what
it repaired is whole.
"""

from __future__ import annotations

import fcntl
import os
import struct
import sys
import zlib
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from kubeflash.domain.disk import TABLE_ENTRIES, Partition, PartitionTable
from kubeflash.host.blockdev import DirectDevice, all_zero

_EDGE = 1 << 20  # bytes at each end of a disk that hold its copy: far more than entries can take
_HEADER = struct.Struct("<8s4sIIIQQQQ16sQIII")
_ENTRY = struct.Struct("<16s16sQQQ72s")
_REVISION = b"\0\0\1\0"
_MOST_ENTRIES = 4 * TABLE_ENTRIES
_MBR_BYTES, _MBR_ENTRIES, _MBR_MARK = 512, 446, b"\x55\xaa"
_BLKSSZGET = 0x1268  # _IO(0x12, 104) of <linux/fs.h>
_ALL_OF_IT = 0xFFFFFFFF  # of an MBR's counts of blocks: the disk has more


@dataclass(frozen=True)
class Copies:
    """What each end of a disk holds; None where it holds no whole copy.

    Attributes:
        protected: whether the first block is an MBR; the kernel and sfdisk read no GPT without.
    """

    primary: PartitionTable | None
    backup: PartitionTable | None
    protected: bool

    @property
    def whole(self) -> PartitionTable | None:
        """The copy that can be trusted: the primary one, which is the kernel's, if it is whole."""
        return self.primary or self.backup

    @property
    def damaged(self) -> str:
        """`primary` (the kernel reads nothing), `backup`, or empty; says nothing of a disk without any copy."""
        if self.primary is None or not self.protected:
            return "primary"
        return "backup" if self.backup is None else ""


def read_copies(device: Path) -> Copies:
    """Reads both ends of a disk past the page cache.

    Raises:
        ReadFailed: when the disk cannot be read.
    """
    with DirectDevice(device) as disk:
        size, sector = disk.size(), logical_block(disk)
        edge = min(_EDGE, size)
        head, tail = disk.read(0, edge), disk.read(size - edge, edge)
    last = size // sector - 1
    return Copies(
        primary=_copy(head, 0, 1, last, sector),
        backup=_copy(tail, size - edge, last, last, sector),
        protected=head[_MBR_BYTES - 2 : _MBR_BYTES] == _MBR_MARK,
    )


def _copy(edge: bytes, base: int, place: int, last: int, sector: int) -> PartitionTable | None:
    """The copy whose header is at block `place`; `edge` is the disk's content from byte `base`. None if it is damaged.

    Both checksums must be right, as the kernel wants it (block/partitions/efi.c).
    """
    header = edge[place * sector - base :][:sector]
    if len(header) < _HEADER.size:
        return None
    fields = _HEADER.unpack_from(header)
    signature, revision, length, checksum, _, here, _, first, end, guid, entries_at, count, entry, entries_sum = fields
    if (signature, revision, here) != (b"EFI PART", _REVISION, place) or not _HEADER.size <= length <= sector:
        return None
    if zlib.crc32(header[:16] + bytes(4) + header[20:length]) != checksum:
        return None
    if entry != _ENTRY.size or count > _MOST_ENTRIES or not first <= end <= last:
        return None
    start = entries_at * sector - base
    entries = edge[start : start + count * entry] if start >= 0 else b""
    if len(entries) != count * entry or zlib.crc32(entries) != entries_sum:
        return None
    found = tuple(_partitions(entries, sector))
    return PartitionTable("gpt", str(UUID(bytes_le=guid)), first * sector, (end + 1) * sector, found)


def _partitions(entries: bytes, sector: int) -> list[Partition]:
    found = []
    for number, (kind, unique, first, last, _, name) in enumerate(_ENTRY.iter_unpack(entries), 1):
        if not all_zero(kind):
            text = name.decode("utf-16-le", errors="replace").partition("\0")[0]
            place = first * sector, (last + 1 - first) * sector
            found.append(Partition(number, *place, text, str(UUID(bytes_le=unique)), str(UUID(bytes_le=kind))))
    return found


def logical_block(disk: DirectDevice) -> int:
    """The unit in which a disk counts, in bytes."""
    answer: bytes = fcntl.ioctl(disk.fd, _BLKSSZGET, bytes(4))
    return int.from_bytes(answer, sys.byteorder)


def write_protective_mbr(device: Path) -> None:
    """Writes what sfdisk writes over a GPT: one entry of type 0xEE over all of the disk. Boot code before it stays.

    Raises:
        ReadFailed: when the disk cannot be read.
        OSError: as the kernel gave it.
    """
    with DirectDevice(device, os.O_RDWR) as disk:
        sector = logical_block(disk)
        blocks = min(disk.size() // sector - 1, _ALL_OF_IT)
        entry = struct.pack("<B3sB3sII", 0, b"\0\x02\0", 0xEE, b"\xff\xff\xff", 1, blocks)
        block = disk.read(0, sector)
        disk.write(0, block[:_MBR_ENTRIES] + entry + bytes(48) + _MBR_MARK + block[_MBR_BYTES:])
