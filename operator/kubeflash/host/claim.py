"""Claiming a blank SSD: KubeFlash's partition table, and the label that says whose it is.

sfdisk writes the backup table, then the primary table, each its entries before its header, then the protective MBR;
then the kernel is shown partition 1; then the label is written. `claim_state` knows every state that a crash leaves in
between, and `create_table` goes on from there.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from uuid import UUID, uuid5

from kubeflash.domain.disk import (
    LABEL_BLOCK,
    LABEL_BYTES,
    LABEL_NAME,
    LABEL_START,
    LABEL_TYPE,
    MIB,
    TABLE_ENTRIES,
    Label,
    Partition,
    PartitionTable,
)
from kubeflash.host import blank, partitions
from kubeflash.host.blockdev import DirectDevice, LockedDisk, all_zero, disk_lock
from kubeflash.host.commands import run
from kubeflash.host.errors import HostError
from kubeflash.host.gpt import (
    QUIET,
    NotOurTable,
    ReadBackFailed,
    expect,
    read_unlocked,
    script_line,
    sector_bytes,
)
from kubeflash.host.partitions import TOOL_LIMIT
from kubeflash.host.root import HostRoot

_ENTRY_BYTES = 128  # of one entry of a GPT; UEFI specification, 5.3
_ENTRIES_BYTES = TABLE_ENTRIES * _ENTRY_BYTES
_ATOMIC = 512  # bytes: an SSD writes its logical block wholly or not at all, and none has a smaller one


class NotBlank(HostError):
    """A disk that was to be claimed is not blank."""


class LabelUnreadable(HostError):
    """KubeFlash's partition holds something that is no label."""


class LabelTooLong(HostError):
    """A label does not fit into one logical block."""


class Claim(StrEnum):
    """How far a claim by one owner has got on a disk."""

    NONE = "None"
    HALF_TABLE = "HalfTable"
    UNLABELLED = "Unlabelled"
    DONE = "Done"
    FOREIGN = "Foreign"


def label_partition(label: Label) -> Partition:
    """The partition that holds the label. Its PARTUUID says whose a table is of which only entries were written."""
    uuid = str(uuid5(UUID(label.disk_guid), "label"))
    return Partition(1, LABEL_START, LABEL_BYTES, LABEL_NAME, uuid, LABEL_TYPE)


def read_label(device: Path, partition: Partition) -> Label | None:
    """The label in KubeFlash's partition, read past the page cache; None when its block is zero.

    Raises:
        LabelUnreadable: when it holds something else.
        ReadFailed: when the disk cannot be read.
    """
    with DirectDevice(device) as disk:
        block = disk.read(partition.start, LABEL_BLOCK)
    try:
        return Label.decode(block)
    except ValueError as error:
        raise LabelUnreadable(f"{device}: {error}") from error


def claim_state(device: Path, label: Label) -> Claim:
    """How far a claim of the disk by `label` has got.

    Done is what carries the label, whatever its disk GUID: an SSD that moved to another server keeps that of its first
    claim. Half of a claim is known by what is derived from the label alone.

    Raises:
        TableUnreadable, ReadFailed: when the disk cannot be read.
    """
    table = read_unlocked(device)
    entry = _label_entry(table)
    if entry is not None:
        try:
            present = read_label(device, entry)
        except LabelUnreadable:
            return Claim.FOREIGN
        if present == label:
            return Claim.DONE
        if present is not None:
            return Claim.FOREIGN
    if table is None or table.damaged == "primary":
        if _only_our_marks(device, label):
            return Claim.HALF_TABLE
        return Claim.NONE if table is None else Claim.FOREIGN
    if table.disk_guid == label.disk_guid and table.partitions == (label_partition(label),):
        return Claim.UNLABELLED
    return Claim.FOREIGN


def _label_entry(table: PartitionTable | None) -> Partition | None:
    """The partition that holds somebody's label: by type, number, place and name. Its PARTUUID is the first owner's."""
    if table is None or table.kind != "gpt":
        return None
    wanted = (1, LABEL_START, LABEL_BYTES, LABEL_NAME, LABEL_TYPE)
    for part in table.partitions:
        if (part.number, part.start, part.bytes, part.name, part.type_guid) == wanted:
            return part
    return None


def _only_our_marks(device: Path, label: Label) -> bool:
    """Whether the disk's ends hold nothing but this owner's table, or the beginning of it, without any volume.

    Entries are written before headers, so each copy that was begun has the label's entry.
    """
    with DirectDevice(device) as disk:
        head, tail = disk.read(0, MIB), disk.read(disk.size() - MIB, MIB)
    copies = [edge for edge in (head, tail) if not all_zero(edge)]
    places = [_lone_entry(edge, label) for edge in copies]
    if not copies or None in places:
        return False
    rest = head[places[0] + _ENTRIES_BYTES :] if places[0] is not None and copies[0] is head else b""
    before = tail[: places[-1]] if places[-1] is not None and copies[-1] is tail else b""
    return all_zero(rest) and all_zero(before)


def _lone_entry(edge: bytes, label: Label) -> int | None:
    """Where in an end of the disk the label's entry is, when all other entries behind it are empty; else None."""
    mine = UUID(LABEL_TYPE).bytes_le + UUID(label_partition(label).uuid).bytes_le
    place = edge.find(mine)
    if place < 0 or not all_zero(edge[place + _ENTRY_BYTES : place + _ENTRIES_BYTES]):
        return None
    return place


def create_table(
    root: HostRoot,
    device: Path,
    label: Label,
    *,
    check: Callable[[], None],
    edge: int = blank.MIB,
    samples: int = blank.SAMPLES,
) -> PartitionTable:
    """Claims a blank disk: a GPT of 256 entries with the owner's disk GUID, and the label in its partition 1.

    Goes on where an earlier claim by the same owner was interrupted, and does nothing where it is done.

    Args:
        root: the machine.
        device: the whole disk.
        label: whose it shall be.
        check: proves that the device still is the SSD of that label; called under the lock, right before writing.
        edge: bytes at each end that must be zero; see `blank.examine`.
        samples: blocks in between that must be zero; see `blank.examine`.

    Raises:
        NotBlank: when anything is on it, or anybody holds it.
        NotOurTable: when it has another table or label.
        TableDamaged: when it is the label's, and the table's primary copy is damaged.
        LabelTooLong: when the label does not fit into one logical block.
        ReadBackFailed, KernelDisagrees: when what was written does not show.
    """
    content = _content(label)
    with disk_lock(device) as disk:
        state = claim_state(device, label)
        if state is Claim.FOREIGN:
            raise NotOurTable(f"{device} has a partition table or label that is not this owner's: left alone")
        if state in (Claim.NONE, Claim.HALF_TABLE):
            untouched = state is Claim.NONE
            reasons = (
                blank.examine(root, device, edge=edge, samples=samples).findings
                if untouched
                else blank.held_findings(root, device)
            )
            if reasons:
                raise NotBlank(f"{device} is not blank: {'; '.join(reasons)}")
            check()
            _write_table(root, disk, label)
        table, entry = _labelled(device)
        partitions.show(root, disk, entry)
        if state is not Claim.DONE:
            if entry != label_partition(label):
                raise ReadBackFailed(f"{device} has {entry} where KubeFlash's partition was written")
            present = read_label(device, entry)
            if present not in (None, label):
                raise NotOurTable(f"{device} carries the label of {present}: left alone")
            check()
            _write_label(device, entry, label, content)
        return expect(device, table.disk_guid)


def _write_table(root: HostRoot, disk: LockedDisk, label: Label) -> None:
    sector = sector_bytes(root, disk.device)
    script = f"label: gpt\nlabel-id: {label.disk_guid}\ntable-length: {TABLE_ENTRIES}\nunit: sectors\n\n"
    script += script_line(label_partition(label), sector)
    run(["sfdisk", *QUIET, str(disk.device)], input=script, timeout=TOOL_LIMIT, holds=[disk.fd])


def rewrite_label(root: HostRoot, device: Path, old: Label, new: Label, *, check: Callable[[], None]) -> None:
    """Gives an SSD with its volumes to another owner: its label is replaced, its table stays. Idempotent.

    It is one write of one logical block, which an SSD does wholly or not at all, power loss or not (AWUPF; NVM Express
    NVM Command Set Specification 1.0, 2.1.4): the rest of the label's block is zero before and after.

    Args:
        root: the machine.
        device: the whole disk.
        old: whose it is: exactly what its label says.
        new: whose it shall be.
        check: proves that the device still is the SSD meant; called under the lock, right before writing.

    Raises:
        NotOurTable: when it carries neither label.
        TableDamaged: when the table's primary copy is damaged: repair it first.
        LabelUnreadable: when its label's place holds something else.
        LabelTooLong: when the new label does not fit into one logical block.
        ReadBackFailed: when what was written does not show.
    """
    del root
    content = _content(new)
    with disk_lock(device):
        _, entry = _labelled(device)
        present = read_label(device, entry)
        if present == new:
            return
        if present is None or present != old:
            raise NotOurTable(f"{device} carries the label of {present or 'nobody'}, expected {old}: left alone")
        check()
        _write_label(device, entry, new, content)


def _labelled(device: Path) -> tuple[PartitionTable, Partition]:
    """The table of a disk that has a label's partition, and that partition; a table that may be changed."""
    table = read_unlocked(device)
    entry = _label_entry(table)
    if table is None or entry is None:
        raise NotOurTable(f"{device} has no partition of KubeFlash's label: left alone")
    return expect(device, table.disk_guid), entry


def _content(label: Label) -> bytes:
    content = label.encode()
    if len(content) != LABEL_BLOCK or not all_zero(content[_ATOMIC:]):
        raise LabelTooLong(f"the label {label} takes more than {_ATOMIC} bytes: a power loss could halve it")
    return content


def _write_label(device: Path, partition: Partition, label: Label, content: bytes) -> None:
    with DirectDevice(device, os.O_RDWR) as disk:
        try:
            disk.write(partition.start, content)
        except OSError as error:
            raise ReadBackFailed(f"the label cannot be written to {device}: {error.strerror}") from error
    if read_label(device, partition) != label:
        raise ReadBackFailed(f"the label was written to {device} and does not read back: the SSD is broken")
