"""Partition tables: read, made, changed on a disk in use, by sfdisk; the kernel is told by partx (`partitions.py`).

Every change holds the disk's BSD lock over both (sfdisk and partx inherit it, for they outlive an agent that is
killed), looks at the table again under the lock right before it, and reads
back from the table and from sysfs. A crash between any two steps leaves a state that the same call brings to its end:

    add_partition   table, partition shown
    delete_partition    partition hidden (the kernel refuses while anybody has it open), table

sfdisk's own traps (2.38, 2.41): `-N 7` where there is no partition 7 takes the first free number, so the number
stands before the colon of a line given to `--append`; without a protective MBR it sees no table at all (nor does the
kernel), and an MBR where both copies are damaged.

Every change writes, each with an fsync: the backup's entries, its header, the primary's entries, its header, the
protective MBR. So a power loss leaves one whole copy, of which the kernel reads only the primary one. A change while
the backup is damaged is safe, and mends it: the primary stays whole until the backup is. A change while the primary is
damaged would for a moment leave none, and is refused: `repair_table` writes the backup's own bytes over the backup.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from uuid import UUID

from kubeflash.domain.disk import ALIGNMENT, TABLE_ENTRIES, Partition, PartitionTable
from kubeflash.host import blank, partitions
from kubeflash.host.blockdev import LockedDisk, disk_lock
from kubeflash.host.commands import CommandFailed, run
from kubeflash.host.errors import HostError
from kubeflash.host.gptbytes import read_copies, write_protective_mbr
from kubeflash.host.partitions import TOOL_LIMIT, KernelPartition
from kubeflash.host.root import HostRoot

QUIET = ["--quiet", "--no-reread", "--no-tell-kernel", "--wipe", "never", "--wipe-partitions", "never"]
LAST_NUMBER = TABLE_ENTRIES - 1  # DISK_MAX_PARTS of the kernel counts the disk itself: it refuses number 256
_NUMBER = re.compile(r"[0-9]+$")
_NAME = re.compile(r"[A-Za-z0-9 ._-]{0,36}")


class TableUnreadable(HostError):
    """A partition table could not be read: the disk fails, or sfdisk says something unknown."""


class TableDamaged(HostError):
    """The primary copy of a GPT is damaged and the backup is whole (`table`): the kernel shows no partitions."""

    def __init__(self, device: Path, table: PartitionTable) -> None:
        self.table = table
        super().__init__(
            f"the primary partition table of {device} is damaged, its backup is whole (disk GUID {table.disk_guid}): "
            "left alone until it is repaired; KubeFlash repairs its own, for any other run gdisk"
        )


class NotOurTable(HostError):
    """The table on the disk is not the one that the step expects: another disk, or somebody rewrote it."""


class TableLost(NotOurTable):
    """Both copies of a GPT are damaged: nothing whole is left to repair them from."""

    def __init__(self, device: Path) -> None:
        super().__init__(
            f"both copies of the partition table of {device} are damaged: left alone. The volumes' bytes may be whole: "
            "look with gdisk or testdisk, or give the SSD up with kubectl flash wipe"
        )


class PartitionDiffers(HostError):
    """What is at a number or place in the table is not what the step expects."""


class ReadBackFailed(HostError):
    """A change was made, and reading back does not show it."""


def read_table(device: Path) -> PartitionTable | None:
    """The partition table of a disk; None when it has none. Of a damaged GPT the whole copy, and which one is damaged.

    Raises:
        TableUnreadable, ReadFailed: when the disk cannot be read.
        DeviceBusy: when the table looks damaged, and somebody is at it.
    """
    table = read_unlocked(device)
    if table is None or not table.damaged:
        return table
    with disk_lock(device):  # perhaps somebody was writing it
        return read_unlocked(device)


def read_unlocked(device: Path) -> PartitionTable | None:
    """`read_table` for who holds the disk's lock."""
    try:
        output = run(["sfdisk", "--json", str(device)], timeout=TOOL_LIMIT)
    except CommandFailed as error:
        if "does not contain a recognized partition table" in error.stderr:
            return _unprotected(device)
        raise TableUnreadable(f"the partition table of {device} cannot be read: {error.stderr}") from error
    table = parse_table(output.stdout)
    for copy in ("primary", "backup"):
        if f"{copy} GPT table is corrupt" in output.stderr:
            return replace(table, damaged=copy)
    return table


def _unprotected(device: Path) -> PartitionTable | None:
    """A GPT without its protective MBR; None when there is none either."""
    copies = read_copies(device)
    if copies.protected or copies.whole is None:
        return None
    return replace(copies.whole, damaged="primary")


def parse_table(text: str) -> PartitionTable:
    """Reads what `sfdisk --json` printed.

    Raises:
        TableUnreadable: when it is something else.
    """
    try:
        content = json.loads(text)["partitiontable"]
        sector = int(content["sectorsize"])
        return PartitionTable(
            kind=str(content["label"]),
            disk_guid=str(content["id"]).lower(),
            first_usable=int(content.get("firstlba", 0)) * sector,
            end_usable=(int(content["lastlba"]) + 1) * sector if "lastlba" in content else 0,
            partitions=tuple(_partition(entry, sector) for entry in content.get("partitions", ())),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise TableUnreadable(f"sfdisk --json said something unexpected: {error!r}") from error


def _partition(entry: dict[str, object], sector: int) -> Partition:
    number = _NUMBER.search(str(entry["node"]))
    if number is None:
        raise ValueError(f"no partition number in {entry['node']}")
    return Partition(
        number=int(number[0]),
        start=int(str(entry["start"])) * sector,
        bytes=int(str(entry["size"])) * sector,
        name=str(entry.get("name", "")),
        uuid=str(entry.get("uuid", "")).lower(),
        type_guid=str(entry.get("type", "")).lower(),
    )


def sector_bytes(root: HostRoot, device: Path) -> int:
    """The unit of an sfdisk script in bytes: the disk's logical block."""
    link = root.sys / "class" / "block" / device.name / "queue" / "logical_block_size"
    return int(link.read_text())


def script_line(partition: Partition, sector: int) -> str:
    """One line of an sfdisk script, which names the partition's number."""
    if partition.start % ALIGNMENT or partition.bytes % ALIGNMENT or partition.bytes <= 0:
        raise PartitionDiffers(f"partition {partition.number} is not on whole MiB: {partition}")
    if not _NAME.fullmatch(partition.name):
        raise PartitionDiffers(f"{partition.name!r} cannot be the name of a partition")
    return (
        f"{partition.number} : start={partition.start // sector}, size={partition.bytes // sector}, "
        f'type={UUID(partition.type_guid)}, uuid={UUID(partition.uuid)}, name="{partition.name}"\n'
    )


def expect(device: Path, disk_guid: str) -> PartitionTable:
    """The table, proven to be the expected one, and one that may be changed.

    Raises:
        NotOurTable: when it is another one; TableLost when both copies are damaged.
        TableDamaged: when its primary copy is. A damaged backup is written anew by any change.
    """
    table = _expect_any(device, disk_guid)
    if table.damaged == "primary":
        raise TableDamaged(device, table)
    return table


def _expect_any(device: Path, disk_guid: str) -> PartitionTable:
    """The expected table, one copy of which may be damaged."""
    table = read_unlocked(device)
    if table is not None and table.kind == "dos" and [part.type_guid for part in table.partitions] == ["ee"]:
        raise TableLost(device)
    if table is None or table.kind != "gpt" or table.disk_guid != disk_guid:
        found = f"a {table.kind} table with id {table.disk_guid}" if table else "no partition table"
        raise NotOurTable(f"{device} has {found}, expected a GPT with disk GUID {disk_guid}: left alone")
    return table


def add_partition(root: HostRoot, device: Path, partition: Partition, *, disk_guid: str) -> KernelPartition:
    """Adds a partition to the table of a disk that may be in use, and shows it to the kernel. Idempotent.

    Raises:
        NotOurTable: when the disk does not have the table with that GUID.
        PartitionDiffers: when the number, the UUID or the place is taken.
        ReadBackFailed, KernelDisagrees: when it does not show afterwards.
    """
    with disk_lock(device) as disk:
        table = expect(device, disk_guid)
        if partition not in table.partitions:
            _must_be_free(device, table, partition)
            line = script_line(partition, sector_bytes(root, device))
            run(["sfdisk", *QUIET, "--append", str(device)], input=line, timeout=TOOL_LIMIT, holds=[disk.fd])
            _read_back(device, disk_guid, partition)
        return partitions.show(root, disk, partition)


def _must_be_free(device: Path, table: PartitionTable, partition: Partition) -> None:
    for other in table.partitions:
        if other.number == partition.number or other.uuid == partition.uuid:
            raise PartitionDiffers(f"{device} has {other} already, wanted {partition}")
        if other.start < partition.end and partition.start < other.end:
            raise PartitionDiffers(f"the place of {partition} on {device} is taken by {other}")
    if partition.start < table.first_usable or partition.end > table.end_usable:
        raise PartitionDiffers(f"{partition} does not fit on {device}: usable to byte {table.end_usable}")
    if not 1 <= partition.number <= LAST_NUMBER:
        raise PartitionDiffers(f"the kernel shows partitions 1 to {LAST_NUMBER}, not {partition.number}")


def _read_back(device: Path, disk_guid: str, partition: Partition) -> None:
    if partition not in expect(device, disk_guid).partitions:
        raise ReadBackFailed(f"{partition} was written to the table of {device} and does not read back")


def show_partition(root: HostRoot, device: Path, partition: Partition, *, disk_guid: str) -> KernelPartition:
    """Tells the kernel of a partition that is in the table only, as a crash between the two leaves it. Idempotent.

    Raises:
        NotOurTable, PartitionDiffers: when the table does not have it.
        KernelDisagrees, PartitionHeld: when the kernel does not show it.
    """
    with disk_lock(device) as disk:
        if partition not in expect(device, disk_guid).partitions:
            raise PartitionDiffers(f"the table of {device} does not have {partition}")
        return partitions.show(root, disk, partition, grown=True)


def grow_partition(
    root: HostRoot, device: Path, partition: Partition, *, disk_guid: str, new_bytes: int
) -> KernelPartition:
    """Grows a partition, which may be mounted or exported, into the free space behind it. Idempotent.

    Args:
        root: the machine.
        device: the whole disk.
        partition: the partition as it is, or as it shall be (after a crash).
        disk_guid: the table's GUID.
        new_bytes: its size afterwards; never less than now.

    Raises:
        PartitionDiffers: when it is not there so, or the space behind it is taken; says by what.
    """
    grown = replace(partition, bytes=new_bytes)
    with disk_lock(device) as disk:
        table = expect(device, disk_guid)
        if grown not in table.partitions:
            if partition not in table.partitions or new_bytes < partition.bytes:
                raise PartitionDiffers(f"the table of {device} does not have {partition} to grow to {new_bytes} bytes")
            others = replace(table, partitions=tuple(item for item in table.partitions if item != partition))
            _must_be_free(device, others, grown)
            line = script_line(grown, sector_bytes(root, device)).partition(" : ")[2]
            number = str(partition.number)
            run(["sfdisk", *QUIET, "-N", number, str(device)], input=line, timeout=TOOL_LIMIT, holds=[disk.fd])
            _read_back(device, disk_guid, grown)
        return partitions.resize(root, disk, grown)


def delete_partition(root: HostRoot, device: Path, partition: Partition, *, disk_guid: str) -> None:
    """Removes a partition from the kernel and then from the table. Its bytes stay: wipe before. Idempotent.

    Raises:
        NotOurTable: when the disk does not have the table with that GUID.
        PartitionDiffers: when number, UUID and place do not belong together in the table.
        PartitionHeld: when anybody has it open.
        ReadBackFailed: when it is still there afterwards.
    """
    with disk_lock(device) as disk:
        table = expect(device, disk_guid)
        here = next((item for item in table.partitions if item.uuid == partition.uuid), None)
        if here is not None and here != partition:
            raise PartitionDiffers(f"{device} has {here}, expected {partition}: left alone")
        known = partitions.find(root, device.name, partition)
        reused = any(item.number == partition.number for item in table.partitions if item is not here)
        if known is not None and not reused:
            partitions.hide(root, disk, known)
        if here is not None:
            number = str(partition.number)
            run(["sfdisk", *QUIET, "--delete", str(device), number], timeout=TOOL_LIMIT, holds=[disk.fd])
        _read_back_gone(root, disk, partition, disk_guid)


def _read_back_gone(root: HostRoot, disk: LockedDisk, partition: Partition, disk_guid: str) -> None:
    table = expect(disk.device, disk_guid)
    if any(item.uuid == partition.uuid for item in table.partitions):
        raise ReadBackFailed(f"{partition} was deleted from the table of {disk.device} and is still there")
    numbers = {item.number for item in table.partitions}
    if partition.number not in numbers and partitions.find(root, disk.device.name, partition) is not None:
        raise ReadBackFailed(f"{partition} was removed from {disk.device} and the kernel still shows it")


def repair_table(root: HostRoot, device: Path, *, disk_guid: str, check: Callable[[], None]) -> PartitionTable:
    """Writes the damaged copy of a table, or its protective MBR, anew from the whole copy. Idempotent.

    Shows all partitions to the kernel as well, which shows none while the primary is damaged.

    Args:
        root: the machine.
        device: the whole disk.
        disk_guid: the GUID that the whole copy must have.
        check: proves that the device still is the expected SSD; called under the lock, right before writing.

    Raises:
        NotOurTable: when the table has another GUID, or something else was written over its primary copy.
        TableLost: when both copies are damaged.
        ReadBackFailed, KernelDisagrees: when it does not show afterwards.
    """
    with disk_lock(device) as disk:
        table = _expect_any(device, disk_guid)
        if table.damaged:
            _no_stranger(device)
            check()
            table = _repair(disk, table)
        for partition in table.partitions:
            partitions.show(root, disk, partition, grown=True)
        return table


def _no_stranger(device: Path) -> None:
    """Refuses where the damage is what somebody put there: a file system made on the whole disk, say."""
    found = [item for item in blank.signatures(device) if item not in ("gpt", "PMBR")]
    if found:
        raise NotOurTable(f"{', '.join(found)} was written over a partition table of {device}: left alone")


def _repair(disk: LockedDisk, table: PartitionTable) -> PartitionTable:
    device = disk.device
    try:
        if not read_copies(device).protected:
            write_protective_mbr(device)  # first: sfdisk sees nothing without
    except OSError as error:
        raise ReadBackFailed(f"the protective MBR cannot be written to {device}: {error.strerror}") from error
    if read_copies(device).damaged:
        argv = ["sfdisk", *QUIET, "--disk-id", str(device), table.disk_guid]
        run(argv, timeout=TOOL_LIMIT, holds=[disk.fd])  # writes all anew
    copies = read_copies(device)
    if copies.damaged or copies.primary is None or not copies.primary == copies.backup == table:
        raise ReadBackFailed(f"the partition table of {device} was repaired and does not read back: the SSD is broken")
    return copies.primary
