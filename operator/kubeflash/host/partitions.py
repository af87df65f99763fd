"""Partitions as the kernel shows them in sysfs, and the two ways of telling it: `partx -a` and `partx -d`.

Facts (Linux 6.12, util-linux 2.41): a partition that the kernel learnt from partx has no PARTNAME in sysfs until the
table is read anew (a reboot, the SSD pulled and put back), so start and size identify it beside its number; the kernel
refuses to forget a partition that *anybody* has open, exclusively or not, nvmet included: the one guard without a race.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from kubeflash.domain.disk import Partition
from kubeflash.host.blockdev import SECTOR, LockedDisk, NotABlockDevice
from kubeflash.host.commands import CommandFailed, run
from kubeflash.host.errors import HostError
from kubeflash.host.holders import holders, in_words
from kubeflash.host.root import HostRoot

TOOL_LIMIT = 60.0  # seconds for sfdisk or partx: 16 ms on a real machine, 1.4 s on an emulated one
KERNEL_LIMIT = 10.0  # seconds for sysfs to follow
BUSY_LIMIT = 5.0  # seconds for a short look at the partition (blkid of udev) to end


class PartitionHeld(HostError):
    """The kernel will not forget a partition that somebody has open."""


class KernelDisagrees(HostError):
    """The kernel does not show what is in the partition table."""


@dataclass(frozen=True)
class KernelPartition:
    """A partition that the kernel knows.

    Attributes:
        number: PARTN.
        device: kernel name such as `nvme0n1p3`.
        dev_number: `major:minor`.
        name: PARTNAME; empty when the kernel learnt of the partition from partx, or it has none.
        start: first byte on the disk.
        bytes: size in bytes.
    """

    number: int
    device: str
    dev_number: str
    name: str
    start: int
    bytes: int

    def is_(self, partition: Partition) -> bool:
        """Whether it is this entry of the table: number, place and, where the kernel knows one, name."""
        place = (self.number, self.start, self.bytes) == (partition.number, partition.start, partition.bytes)
        return place and self.name in ("", partition.name)


def kernel_partitions(root: HostRoot, disk: str) -> tuple[KernelPartition, ...]:
    """The partitions of a disk such as `nvme0n1`, by number.

    Raises:
        NotABlockDevice: when the kernel has no such disk.
    """
    folder = root.sys / "class" / "block" / disk
    if not folder.is_dir():
        raise NotABlockDevice(f"the kernel has no block device {disk}: was it pulled out?")
    return tuple(sorted(_read(folder), key=lambda part: part.number))


def _read(folder: Path) -> Iterator[KernelPartition]:
    for child in folder.iterdir():
        try:
            number = int((child / "partition").read_text())
            event = (child / "uevent").read_text()
            start, size = (int((child / item).read_text()) * SECTOR for item in ("start", "size"))
            dev_number = (child / "dev").read_text().strip()
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ENODEV):
                continue  # no partition, or one that is being removed
            raise
        lines = dict(line.partition("=")[::2] for line in event.splitlines())
        yield KernelPartition(number, child.name, dev_number, lines.get("PARTNAME", ""), start, size)


def find(root: HostRoot, disk: str, partition: Partition) -> KernelPartition | None:
    """The kernel's idea of an entry of the table; None when it shows none, or something else at that number."""
    return next((item for item in kernel_partitions(root, disk) if item.is_(partition)), None)


def show(root: HostRoot, disk: LockedDisk, partition: Partition, *, grown: bool = False) -> KernelPartition:
    """Tells the kernel of an entry of the table, unless it knows, and reads back. The disk's lock is held.

    Args:
        root: the machine.
        disk: the whole disk.
        partition: the entry.
        grown: whether what the kernel shows shorter at its place is the same partition, as a crash while it grew leaves
            it: it may be in use, so that the kernel will not forget it, and is made longer instead.

    Raises:
        KernelDisagrees: when sysfs does not show it in time.
        PartitionHeld: when the kernel has something else at that number, and it is open.
    """
    known = _at(root, disk, partition.number)
    if known is not None and not known.is_(partition):
        if grown and known.start == partition.start and known.bytes < partition.bytes:
            return resize(root, disk, partition)
        hide(root, disk, known)
        known = None
    if known is None:
        try:
            run(["partx", "-a", "--nr", str(partition.number), str(disk.device)], timeout=TOOL_LIMIT, holds=[disk.fd])
        except CommandFailed:
            if find(root, disk.device.name, partition) is None:  # else udev was faster
                raise
    return _await(root, disk, partition)


def resize(root: HostRoot, disk: LockedDisk, partition: Partition) -> KernelPartition:
    """Tells the kernel of the new size of a partition, which may be in use, and reads back. The lock is held.

    Raises:
        KernelDisagrees: when sysfs does not show it in time.
    """
    run(["partx", "-u", "--nr", str(partition.number), str(disk.device)], timeout=TOOL_LIMIT, holds=[disk.fd])
    return _await(root, disk, partition)


def hide(root: HostRoot, disk: LockedDisk, known: KernelPartition) -> None:
    """Makes the kernel forget a partition; its bytes and the table stay. The lock is held.

    Raises:
        PartitionHeld: when somebody has it open, for longer than a look takes.
    """
    device = root.dev / known.device
    deadline = time.monotonic() + BUSY_LIMIT
    while (now := _at(root, disk, known.number)) is not None:
        if now != known:
            raise KernelDisagrees(f"partition {known.number} of {disk.device} changed in the kernel meanwhile")
        try:
            run(["partx", "-d", "--nr", str(known.number), str(disk.device)], timeout=TOOL_LIMIT, holds=[disk.fd])
        except CommandFailed as error:
            if time.monotonic() < deadline:
                time.sleep(0.1)
                continue
            who = in_words(holders(root, device)) or "somebody"
            raise PartitionHeld(f"{device} is held: {who}. End that first ({error.stderr})") from error


def _at(root: HostRoot, disk: LockedDisk, number: int) -> KernelPartition | None:
    return next((item for item in kernel_partitions(root, disk.device.name) if item.number == number), None)


def _await(root: HostRoot, disk: LockedDisk, partition: Partition) -> KernelPartition:
    """Waits until sysfs and /dev show the partition."""
    deadline = time.monotonic() + KERNEL_LIMIT
    while True:
        known = find(root, disk.device.name, partition)
        if known is not None and (root.dev / known.device).exists():
            return known
        if time.monotonic() >= deadline:
            raise KernelDisagrees(
                f"partition {partition.number} is in the table of {disk.device}, but the kernel shows "
                f"{known or _at(root, disk, partition.number) or 'none'} after {KERNEL_LIMIT:g} s"
            )
        time.sleep(0.02)
