"""Contracts of damaged tables, and of labels that move with their SSD."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

from contract.common import (
    GUID,
    OWNER,
    Refused,
    agree,
    claimed,
    entries,
    forget,
    no,
    nothing_written,
    on_disk,
    poke,
    raises,
    reset,
    sector_of,
    settle,
    volume,
    yes,
)
from kubeflash.domain.disk import MIB, TABLE_ENTRIES, Label, Partition
from kubeflash.host import claim, gpt
from kubeflash.host.blockdev import size_bytes
from kubeflash.host.gptbytes import read_copies
from kubeflash.host.partitions import kernel_partitions
from kubeflash.host.root import HostRoot
from support import strangers

_ENTRIES = TABLE_ENTRIES * 128
Tear = Sequence[tuple[int, bytes]]


def tears(size: int, sector: int) -> Mapping[str, tuple[str, Tear]]:
    """By name: which copy is damaged then, and what is written where."""
    found: dict[str, tuple[str, Tear]] = {}
    for copy, header, entries_at in (
        ("primary", sector, 2 * sector),
        ("backup", size - sector, size - sector - _ENTRIES),
    ):
        spots: dict[str, Tear] = {
            "signature": [(header, b"X")],
            "checksum of the header": [(header + 16, b"\xff\xff")],
            "disk GUID": [(header + 56, b"XX")],
            "header": [(header, bytes(sector))],
            "a bit of an entry": [(entries_at + 128 + 60, b"X")],
            "half of the entries": [(entries_at + 128, bytes(_ENTRIES - 128))],
            "half of an entry": [(entries_at + 128 + 64, bytes(64))],
            "entries": [(entries_at, bytes(_ENTRIES))],
            "header and entries": [(header, bytes(sector)), (entries_at, bytes(_ENTRIES))],
        }
        found |= {f"{copy}: {spot}": (copy, tear) for spot, tear in spots.items()}
        mbr = [(0, bytes(512)), *spots["header"]]
        found[f"protective MBR and {copy} header"] = "primary", mbr
    found["protective MBR"] = "primary", [(0, bytes(512))]
    found["mark of the protective MBR"] = "primary", [(510, bytes(2))]
    return found


def carved(root: HostRoot, disk: Path) -> tuple[Partition, Partition]:
    """A claimed disk with two volumes that have content."""
    claimed(root, disk)
    parts = volume(2), volume(200, 40 * MIB, 8 * MIB)
    for part in parts:
        gpt.add_partition(root, disk, part, disk_guid=GUID)
        poke(disk, part.start, part.uuid.encode() * 100)
        poke(disk, part.end - 4096, part.uuid.encode() * 100)
    settle()
    return parts


def content(disk: Path, parts: Sequence[Partition]) -> list[bytes]:
    """What their first and last blocks hold."""
    return [on_disk(disk, offset, 4096) for part in parts for offset in (part.start, part.end - 4096)]


def ends(root: HostRoot, disk: Path) -> tuple[bytes, bytes]:
    """Both copies of the table."""
    return on_disk(disk, 0, MIB), on_disk(disk, size_bytes(root, disk) - MIB, MIB)


def tear(root: HostRoot, disk: Path, spots: Tear) -> None:
    """Damages the table as a power loss would; the kernel knows no partitions after it."""
    settle()  # udev makes the partitions anew after a write to their disk
    for known in kernel_partitions(root, disk.name):
        forget(disk, known.number)
    for offset, damage in spots:
        poke(disk, offset, damage)
    settle()


def contract_every_tear_is_seen_and_mended(root: HostRoot, disk: Path) -> None:
    parts = carved(root, disk)
    whole, table, inside = ends(root, disk), gpt.read_table(disk), content(disk, parts)
    assert table is not None
    assert table.damaged == ""
    for name, (damaged, spots) in tears(size_bytes(root, disk), sector_of(root, disk)).items():
        tear(root, disk, spots)
        torn = gpt.read_table(disk)
        assert torn == table, name
        assert torn is not None
        assert torn.damaged == damaged, (name, torn.damaged)
        assert claim.claim_state(disk, OWNER) is claim.Claim.DONE, name
        with nothing_written(root, disk):
            raises(Refused, lambda: gpt.repair_table(root, disk, disk_guid=GUID, check=no))
            raises(gpt.NotOurTable, lambda: gpt.repair_table(root, disk, disk_guid=str(uuid4()), check=yes))
        mended = gpt.repair_table(root, disk, disk_guid=GUID, check=yes)
        assert mended == table, name
        assert mended.damaged == "", name
        assert ends(root, disk) == whole, name
        assert content(disk, parts) == inside, name
        agree(root, disk)
        with nothing_written(root, disk):
            assert gpt.repair_table(root, disk, disk_guid=GUID, check=no) == table


def contract_without_a_whole_copy_nothing_is_written(root: HostRoot, disk: Path) -> None:
    carved(root, disk)
    size, sector = size_bytes(root, disk), sector_of(root, disk)
    both = [(sector + 24, b"XXXX"), (size - sector - _ENTRIES + 200, b"XXXX")]
    tear(root, disk, both)
    with nothing_written(root, disk):
        error = raises(gpt.TableLost, lambda: gpt.repair_table(root, disk, disk_guid=GUID, check=yes))
        assert "gdisk" in str(error)
        raises(gpt.TableLost, lambda: gpt.add_partition(root, disk, volume(9), disk_guid=GUID))
        raises(gpt.NotOurTable, lambda: claim.create_table(root, disk, OWNER, check=yes))
    poke(disk, 0, bytes(512))
    with nothing_written(root, disk):
        raises(gpt.NotOurTable, lambda: gpt.repair_table(root, disk, disk_guid=GUID, check=yes))
        raises(claim.NotBlank, lambda: claim.create_table(root, disk, OWNER, check=yes))


def contract_what_somebody_wrote_over_a_table_is_left_alone(root: HostRoot, disk: Path) -> None:
    for name in ("luks2", "swap", "bcache", "md 1.0", "mbr"):
        carved(root, disk)
        strangers.write(str(disk), name, size_bytes(root, disk))
        tear(root, disk, [])
        with nothing_written(root, disk):
            table = gpt.read_table(disk)
            if table is not None and table.kind == "gpt" and not table.damaged:
                continue  # it lies where a table of this block size has nothing
            error = raises(gpt.NotOurTable, lambda: gpt.repair_table(root, disk, disk_guid=GUID, check=yes))
            assert strangers.WORDS[name] in str(error), (name, error)
        reset(root, disk)


def contract_no_change_while_the_primary_is_damaged(root: HostRoot, disk: Path) -> None:
    part, other = carved(root, disk)
    tear(root, disk, [(sector_of(root, disk), b"X")])
    changes = (
        lambda: gpt.add_partition(root, disk, volume(9, 60 * MIB), disk_guid=GUID),
        lambda: gpt.grow_partition(root, disk, part, disk_guid=GUID, new_bytes=20 * MIB),
        lambda: gpt.delete_partition(root, disk, other, disk_guid=GUID),
        lambda: gpt.show_partition(root, disk, part, disk_guid=GUID),
        lambda: claim.rewrite_label(root, disk, OWNER, replace(OWNER, ssd="new"), check=yes),
    )
    with nothing_written(root, disk):
        for change in changes:
            error = raises(gpt.TableDamaged, change)
            assert "KubeFlash repairs its own" in str(error)
    assert kernel_partitions(root, disk.name) == ()


def contract_a_change_mends_a_damaged_backup(root: HostRoot, disk: Path) -> None:
    part, other = carved(root, disk)
    backup = size_bytes(root, disk) - sector_of(root, disk)
    added = volume(9, 60 * MIB)
    grown = replace(part, bytes=20 * MIB)
    changes = (
        lambda: gpt.add_partition(root, disk, added, disk_guid=GUID),
        lambda: gpt.grow_partition(root, disk, part, disk_guid=GUID, new_bytes=20 * MIB),
        lambda: gpt.delete_partition(root, disk, other, disk_guid=GUID),
    )
    for change in changes:
        poke(disk, backup, b"X")
        assert read_copies(disk).damaged == "backup"
        change()
        agree(root, disk)
    assert set(entries(disk)[1:]) == {added, grown}


def contract_the_order_of_a_change_leaves_one_copy(root: HostRoot, disk: Path) -> None:
    """What the two contracts above rest on: the backup is on the medium before the primary is touched."""
    part, _ = carved(root, disk)
    before = ends(root, disk)
    gpt.grow_partition(root, disk, part, disk_guid=GUID, new_bytes=20 * MIB)
    after = ends(root, disk)
    size, sector = size_bytes(root, disk), sector_of(root, disk)
    backup_header, primary_header = size - sector, sector
    steps = [
        (size - sector - _ENTRIES, _ENTRIES),
        (backup_header, sector),
        (2 * sector, _ENTRIES),
        (primary_header, sector),
    ]
    poke(disk, 0, before[0])
    poke(disk, size - MIB, before[1])
    tables = []
    for offset, length in steps:  # as `sfdisk` does it, seen by strace; each with an fsync
        start = offset if offset < MIB else offset - (size - MIB)
        poke(disk, offset, after[0 if offset < MIB else 1][start : start + length])
        table = gpt.read_table(disk)
        assert table is not None, offset
        tables.append((table.damaged, replace(part, bytes=20 * MIB) in table.partitions))
    assert tables == [("backup", False), ("", False), ("primary", True), ("", True)]


def contract_a_label_moves_with_its_ssd(root: HostRoot, disk: Path) -> None:
    parts = carved(root, disk)
    inside, table = content(disk, parts), gpt.read_table(disk)
    new = replace(OWNER, system_uuid="4c4c4544-0042-3510-8052-000000000000")
    assert claim.claim_state(disk, new) is claim.Claim.FOREIGN
    with nothing_written(root, disk):
        raises(Refused, lambda: claim.rewrite_label(root, disk, OWNER, new, check=no))
        for other in (replace(OWNER, ssd="x"), replace(OWNER, cluster_id="x"), replace(OWNER, layout=2)):
            raises(gpt.NotOurTable, lambda other=other: claim.rewrite_label(root, disk, other, new, check=yes))
    claim.rewrite_label(root, disk, OWNER, new, check=yes)
    assert claim.claim_state(disk, new) is claim.Claim.DONE
    assert claim.claim_state(disk, OWNER) is claim.Claim.FOREIGN
    assert claim.read_label(disk, entries(disk)[0]) == new
    with nothing_written(root, disk):
        claim.rewrite_label(root, disk, OWNER, new, check=no)
        assert claim.create_table(root, disk, new, check=no) == table
    assert content(disk, parts) == inside
    agree(root, disk)
    poke(disk, MIB, b"{")
    poke(disk, MIB + 1, os.urandom(64))
    raises(claim.LabelUnreadable, lambda: claim.rewrite_label(root, disk, new, OWNER, check=yes))
    poke(disk, MIB, bytes(4096))
    raises(gpt.NotOurTable, lambda: claim.rewrite_label(root, disk, new, OWNER, check=yes))


def contract_a_label_is_one_block_or_refused(root: HostRoot, disk: Path) -> None:
    long = Label("c" * 200, "s" * 200, "x" * 200)
    with nothing_written(root, disk):
        raises(claim.LabelTooLong, lambda: claim.create_table(root, disk, long, check=yes))
    claimed(root, disk)
    with nothing_written(root, disk):
        raises(claim.LabelTooLong, lambda: claim.rewrite_label(root, disk, OWNER, long, check=yes))


CONTRACTS = [value for name, value in list(globals().items()) if name.startswith("contract_")]
