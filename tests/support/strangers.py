"""What strangers leave on a disk, byte by byte, made without their tools. Standard library only.

Each entry of `STRANGERS` is a function of a disk's size in bytes (a multiple of 64 KiB, at least 16 MiB) that gives
what is to be written, by offset. Superblocks have the checksums that libblkid verifies. The format's own documentation
or header is named at each.
"""

from __future__ import annotations

import struct
import uuid
import zlib
from collections.abc import Callable, Mapping

KIB, MIB = 1 << 10, 1 << 20
NAMESPACE = uuid.UUID("5ca1ab1e-0000-4000-8000-000000000000")
Content = Mapping[int, bytes]


def _uuid(name: str) -> uuid.UUID:
    return uuid.uuid5(NAMESPACE, name)


def _put(size: int, *fields: tuple[int, bytes]) -> bytes:
    """A block of zeroes with fields in it."""
    block = bytearray(size)
    for offset, content in fields:
        block[offset : offset + len(content)] = content
    return bytes(block)


def _le(kind: str, *values: int) -> bytes:
    return struct.pack(f"<{kind}", *values)


def _reflected(polynomial: int) -> list[int]:
    table = []
    for byte in range(256):
        value = byte
        for _ in range(8):
            value = value >> 1 ^ (polynomial if value & 1 else 0)
        table.append(value)
    return table


_CRC32C = _reflected(0x82F63B78)


def crc32c(content: bytes) -> int:
    """CRC-32C (Castagnoli), as btrfs has it."""
    value = 0xFFFFFFFF
    for byte in content:
        value = value >> 8 ^ _CRC32C[(value ^ byte) & 0xFF]
    return value ^ 0xFFFFFFFF


def crc64(content: bytes) -> int:
    """CRC-64/WE, as bcache has it."""
    value = (1 << 64) - 1
    for byte in content:
        value ^= byte << 56
        for _ in range(8):
            value = (value << 1 ^ 0x42F0E1EBA9EA3693 if value >> 63 else value << 1) & ((1 << 64) - 1)
    return value ^ ((1 << 64) - 1)


def luks1(size: int) -> Content:
    """LUKS On-Disk Format Specification 1.2.3, 2: numbers are big-endian."""
    del size
    head = struct.pack(">6sH32s32s32sII", b"LUKS\xba\xbe", 1, b"aes", b"xts-plain64", b"sha256", 4096, 64)
    return {0: _put(592, (0, head), (168, str(_uuid("luks1")).encode()))}


def luks2(size: int) -> Content:
    """LUKS2 On-Disk Format Specification, 2.1: the binary header, twice."""
    del size
    found = {}
    for offset, magic in ((0, b"LUKS\xba\xbe"), (16 * KIB, b"SKUL\xba\xbe")):
        head = struct.pack(">6sHQQ48s32s64s40s48sQ", magic, 2, 16 * KIB, 3, b"stranger", b"sha256", bytes(64),
                           str(_uuid("luks2")).encode(), b"", offset)  # fmt: skip
        found[offset] = _put(4096, (0, head)) + b'{"keyslots":{},"tokens":{},"segments":{}}'
    return found


def lvm2(size: int) -> Content:
    """A physical volume: lib/format_text/layout.h of LVM2. Its CRC begins with a value of its own."""
    name = _uuid("lvm2").hex.encode()
    body = _put(512 - 20, (0, _le("I", 32)), (4, b"LVM2 001"), (12, name), (44, _le("QQQ", size, MIB, 0)))
    checksum = zlib.crc32(body, 0xF597A6CF ^ 0xFFFFFFFF) ^ 0xFFFFFFFF
    return {512: b"LABELONE" + _le("QI", 1, checksum) + body}


def btrfs(size: int) -> Content:
    """The first superblock: fs/btrfs/accessors.h, uapi/linux/btrfs_tree.h."""
    block = _put(
        4096 - 32,
        (0x00, _uuid("btrfs").bytes + _le("QQ", 64 * KIB, 1) + b"_BHRfS_M" + _le("Q", 7)),
        (0x50, _le("QQQQ", size, 1 * MIB, 6, 1) + _le("IIII", 4096, 16384, 16384, 4096)),
        (0xC9 - 32, _le("QQQ", 1, size, MIB) + _le("III", 4096, 4096, 4096)),
    )
    return {64 * KIB: _le("I", crc32c(block)) + bytes(28) + block}


def oracleasm(size: int) -> Content:
    """include/linux/oracleasm/disk.h."""
    del size
    return {0: _put(512, (32, b"ORCLDISK"), (40, b"VOL1"), (72, b"DATA01"))}


def vdo(size: int) -> Content:
    """The volume's geometry: vdo/base/volume-geometry.h."""
    del size
    return {0: _put(4096, (0, b"dmvdo001"), (8, _le("III", 5, 4, 4 << 10)), (40, _uuid("vdo").bytes))}


def bluestore(size: int) -> Content:
    """os/bluestore/bluestore_types.h of Ceph: text, then a binary label."""
    del size
    return {0: _put(4096, (0, f"bluestore block device\n{_uuid('bluestore')}\n".encode()))}


def _md_old(size: int) -> Content:
    """uapi/linux/raid/md_p.h: version 0.90, 64 KiB before the last whole 64 KiB."""
    one, two, three, four = struct.unpack("<IIII", _uuid("md").bytes)
    words = [0xA92B4EFC, 0, 90, 3, 0, one, 1_700_000_000, 1, size // KIB - 64, 2, 2, 0, 0, two, three, four]
    return {
        (size & ~0xFFFF) - 64 * KIB: _put(4096, (0, _le("16I", *words)), (128, _le("5I", 1_700_000_000, 1, 0, 2, 2)))
    }


def _md(minor: int) -> Callable[[int], Content]:
    """uapi/linux/raid/md_p.h: version 1, at the end (1.0), the start (1.1) or 4 KiB (1.2)."""

    def make(size: int) -> Content:
        sectors = size // 512
        place = {0: (sectors - 16) & ~7, 1: 0, 2: 8}[minor]
        data = 0 if minor == 0 else 2048
        block = bytearray(
            _put(
                256 + 2 * 128,
                (0, _le("IIII", 0xA92B4EFC, 1, 0, 0) + _uuid(f"md1.{minor}").bytes + f"host:{minor}".encode()),
                (64, _le("QIIQIII", 1_700_000_000, 1, 0, sectors - 4096, 0, 2, 0)),
                (128, _le("QQQQII", data, sectors - 4096, place, 0, 0, 0) + _uuid("device").bytes),
                (192, _le("QQQII", 1_700_000_000, 1, 0, 0, 128)),
                (256, _le("128H", 0, 1, *[0xFFFE] * 126)),
            )
        )
        total = sum(struct.unpack(f"<{len(block) // 4}I", block))
        block[216:220] = _le("I", ((total & 0xFFFFFFFF) + (total >> 32)) & 0xFFFFFFFF)
        return {place * 512: bytes(block)}

    return make


def swap(size: int) -> Content:
    """mm/swapfile.c: the header of pages of 4 KiB."""
    return {
        0: _put(4096, (1024, _le("III", 1, size // 4096 - 1, 0)), (1036, _uuid("swap").bytes), (4086, b"SWAPSPACE2"))
    }


def bcache(size: int) -> Content:
    """A backing device: drivers/md/bcache/bcache_ondisk.h."""
    del size
    magic = bytes.fromhex("c68573f64e1a45ca8265f57f48ba6d81")
    body = _put(
        208 - 8,
        (0, _le("QQ", 8, 1) + magic + _uuid("bcache").bytes + _uuid("set").bytes + b"stranger"),
        (176, _le("Q", 16)),
        (184, _le("HHHHIHH", 8, 1024, 1, 0, 0, 1, 0)),
    )
    return {4 * KIB: _le("Q", crc64(body)) + body}


def zfs_half_label(size: int) -> Content:
    """One of four labels, with one uberblock: libblkid wants several. ZFS On-Disk Specification, 1.3."""
    del size
    pairs = b"\x01\x01\0\0" + struct.pack(">II", 0, 1) + struct.pack(">III", 36, 32, 4) + b"name" + b"tank"
    uberblock = struct.pack("<QQQQQ", 0x00BAB10C, 5000, 42, 0, 1_700_000_000)
    return {16 * KIB: pairs, 128 * KIB: uberblock}


def _mbr(kind: int, first: int, blocks: int, disk_id: int = 0) -> bytes:
    """A master boot record with one partition."""
    entry = struct.pack("<B3sB3sII", 0, b"\0\x02\0", kind, b"\xff\xff\xff", first, blocks)
    return _put(512, (440, _le("I", disk_id)), (446, entry), (510, b"\x55\xaa"))


def protective_mbr(size: int) -> Content:
    """What is left of a GPT when both headers were lost; UEFI Specification 2.10, 5.2.3."""
    return {0: _mbr(0xEE, 1, min(size // 512 - 1, 0xFFFFFFFF))}


def mbr(size: int) -> Content:
    """A partition table of the old kind, with one partition of Linux that nothing is in."""
    return {0: _mbr(0x83, 2048, min(size // 512 - 2048, 0xFFFFFFFF), disk_id=0x5CA1AB1E)}


def gpt_backup(size: int) -> Content:
    """A GPT of 512-byte blocks whose first MiB was zeroed; UEFI Specification 2.10, 5.3."""
    last = size // 512 - 1
    name = "stranger".encode("utf-16-le")
    entry = uuid.UUID("0fc63daf-8483-4772-8e79-3d69d8477de4").bytes_le + _uuid("partition").bytes_le
    entries = _put(128 * 128, (0, entry + _le("QQQ", 2048, last - 2048, 0) + name))
    fields = _le("QQQQ", last, 1, 34, last - 33) + _uuid("gpt").bytes_le
    rest = fields + _le("QIII", last - 32, 128, 128, zlib.crc32(entries))
    head = b"EFI PART" + _le("II", 0x10000, 92)
    return {
        (last - 32) * 512: entries,
        last * 512: _put(512, (0, head + _le("II", zlib.crc32(head + bytes(8) + rest), 0) + rest)),
    }


def data(size: int) -> Content:
    """Bytes that nothing knows, a little from the start."""
    del size
    return {12345: b"precious" * 64}


STRANGERS: Mapping[str, Callable[[int], Content]] = {
    "luks1": luks1,
    "luks2": luks2,
    "lvm2": lvm2,
    "btrfs": btrfs,
    "oracleasm": oracleasm,
    "vdo": vdo,
    "ceph bluestore": bluestore,
    "md 0.90": _md_old,
    "md 1.0": _md(0),
    "md 1.1": _md(1),
    "md 1.2": _md(2),
    "swap": swap,
    "bcache": bcache,
    "half a zfs label": zfs_half_label,
    "protective mbr": protective_mbr,
    "mbr": mbr,
    "gpt's backup": gpt_backup,
    "data": data,
}
"""By name: a function of the disk's size in bytes that gives what is on the disk, by offset."""

WORDS: Mapping[str, str] = {
    "luks1": "crypto_LUKS",
    "luks2": "crypto_LUKS",
    "lvm2": "LVM2_member",
    "btrfs": "btrfs",
    "oracleasm": "oracleasm",
    "vdo": "vdo",
    "ceph bluestore": "ceph_bluestore",
    "md 0.90": "linux_raid_member",
    "md 1.0": "linux_raid_member",
    "md 1.1": "linux_raid_member",
    "md 1.2": "linux_raid_member",
    "swap": "swap",
    "bcache": "bcache",
    "protective mbr": "PMBR",
    "mbr": "dos",
    "gpt's backup": "gpt",
}
"""What libblkid calls them; it knows nothing of the others."""


def write(path: str, name: str, size: int) -> None:
    """Puts a stranger on a disk, or into the image of one."""
    with open(path, "r+b", buffering=0) as disk:  # noqa: PTH123  a path may be a device's
        for offset, content in STRANGERS[name](size).items():
            start, end = offset // 4096 * 4096, -(-(offset + len(content)) // 4096) * 4096
            disk.seek(start)
            around = bytearray(disk.read(end - start))
            around[offset - start : offset - start + len(content)] = content
            disk.seek(start)
            disk.write(around)
