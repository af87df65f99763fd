"""Contracts of claiming, carving and wiping."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

from contract.common import (
    GUID,
    OWNER,
    Refused,
    claimed,
    entries,
    forget,
    head,
    mounted,
    no,
    opener,
    poke,
    raises,
    reset,
    settle,
    volume,
    yes,
)
from kubeflash.domain.disk import LABEL_TYPE, MIB
from kubeflash.host import claim, gpt, partitions, wipe
from kubeflash.host.blockdev import DeviceBusy, disk_lock, size_bytes
from kubeflash.host.partitions import PartitionHeld, kernel_partitions
from kubeflash.host.root import HostRoot


def contract_claim_writes_table_and_label(root: HostRoot, disk: Path) -> None:
    table = claim.create_table(root, disk, OWNER, check=yes)
    assert (table.kind, table.disk_guid) == ("gpt", GUID)
    assert table.first_usable <= MIB
    (entry,) = table.partitions
    assert (entry.number, entry.start, entry.bytes, entry.name) == (1, MIB, MIB, "kubeflash")
    assert entry.type_guid == LABEL_TYPE
    assert claim.read_label(disk, entry) == OWNER
    assert claim.claim_state(disk, OWNER) is claim.Claim.DONE
    (known,) = kernel_partitions(root, disk.name)
    assert known.is_(entry)
    before = head(disk)
    assert claim.create_table(root, disk, OWNER, check=no) == table
    assert head(disk) == before


def contract_claim_checks_right_before_writing(root: HostRoot, disk: Path) -> None:
    raises(Refused, lambda: claim.create_table(root, disk, OWNER, check=no))
    assert not any(head(disk))


def contract_claim_refuses_what_is_not_blank(root: HostRoot, disk: Path) -> None:
    poke(disk, 12345, b"precious")
    raises(claim.NotBlank, lambda: claim.create_table(root, disk, OWNER, check=yes))
    reset(root, disk)
    with opener(disk):
        raises(claim.NotBlank, lambda: claim.create_table(root, disk, OWNER, check=yes))
    assert not any(head(disk))


def contract_claim_refuses_another_owners_disk(root: HostRoot, disk: Path) -> None:
    claimed(root, disk)
    before = head(disk)
    for other in (replace(OWNER, cluster_id="x"), replace(OWNER, system_uuid="x"), replace(OWNER, ssd="x")):
        assert claim.claim_state(disk, other) is claim.Claim.FOREIGN
        raises(gpt.NotOurTable, lambda other=other: claim.create_table(root, disk, other, check=yes))
    assert head(disk) == before


def contract_interrupted_claims_are_finished(root: HostRoot, disk: Path) -> None:
    sector = int((root.sys / "class" / "block" / disk.name / "queue" / "logical_block_size").read_text())
    size = size_bytes(root, disk)
    label_block, primary, rest = MIB, (0, MIB), (size - sector, sector)
    stops = {
        "before the label": [(label_block, 4096)],
        "before the protective MBR": [(label_block, 4096), (0, 512)],
        "before the primary header": [(label_block, 4096), (0, 2 * sector)],
        "before the primary entries": [(label_block, 4096), primary],
        "before the backup header": [(label_block, 4096), primary, rest],
    }
    for when, erased in stops.items():
        claimed(root, disk)
        for part in kernel_partitions(root, disk.name):
            forget(disk, part.number)
        for offset, length in erased:
            poke(disk, offset, bytes(length))
        state = claim.claim_state(disk, OWNER)
        assert state in (claim.Claim.HALF_TABLE, claim.Claim.UNLABELLED), (when, state)
        assert claim.claim_state(disk, replace(OWNER, ssd="other")) is not claim.Claim.HALF_TABLE, when
        claimed(root, disk)
        assert claim.claim_state(disk, OWNER) is claim.Claim.DONE, when
        assert len(kernel_partitions(root, disk.name)) == 1, when
        reset(root, disk)


def contract_claim_never_drops_a_volume(root: HostRoot, disk: Path) -> None:
    sector = int((root.sys / "class" / "block" / disk.name / "queue" / "logical_block_size").read_text())
    claimed(root, disk)
    part = volume()
    gpt.add_partition(root, disk, part, disk_guid=GUID)
    poke(disk, sector + 24, b"damaged")  # the primary header
    table = gpt.read_table(disk)
    assert table is not None
    assert table.damaged == "primary"
    assert part in table.partitions
    assert claim.claim_state(disk, OWNER) is claim.Claim.DONE
    error = raises(gpt.TableDamaged, lambda: claim.create_table(root, disk, OWNER, check=yes))
    assert isinstance(error, gpt.TableDamaged)
    assert part in error.table.partitions
    poke(disk, MIB, bytes(4096))  # looks like half a claim, but for the volume
    assert claim.claim_state(disk, OWNER) is claim.Claim.FOREIGN
    raises(gpt.NotOurTable, lambda: claim.create_table(root, disk, OWNER, check=yes))
    poke(disk, 0, bytes(MIB))
    assert claim.claim_state(disk, OWNER) is claim.Claim.FOREIGN
    raises(gpt.NotOurTable, lambda: claim.create_table(root, disk, OWNER, check=yes))
    assert part in entries(disk)


def contract_partitions_come_and_go(root: HostRoot, disk: Path) -> None:
    claimed(root, disk)
    parts = [volume(2), volume(255, 40 * MIB), volume(7, 60 * MIB, MIB)]
    for part in parts:
        known = gpt.add_partition(root, disk, part, disk_guid=GUID)
        assert known.is_(part)
        assert size_bytes(root, root.dev / known.device) == part.bytes
        assert gpt.add_partition(root, disk, part, disk_guid=GUID) == known
    table = gpt.read_table(disk)
    assert table is not None
    assert set(parts) < set(table.partitions)
    for part in parts:
        gpt.delete_partition(root, disk, part, disk_guid=GUID)
        gpt.delete_partition(root, disk, part, disk_guid=GUID)
        assert part not in entries(disk)
        assert partitions.find(root, disk.name, part) is None
    assert [item.number for item in kernel_partitions(root, disk.name)] == [1]


def contract_udev_leaves_the_others_alone(root: HostRoot, disk: Path) -> None:
    claimed(root, disk)
    first = volume(2)
    known = gpt.add_partition(root, disk, first, disk_guid=GUID)
    settle()
    node = root.dev / known.device
    with opener(node):
        born = node.stat().st_ino
        for number in range(3, 8):
            other = volume(number, (number * 10 + 10) * MIB, 8 * MIB)
            gpt.add_partition(root, disk, other, disk_guid=GUID)
            gpt.delete_partition(root, disk, other, disk_guid=GUID)
        settle()
        assert node.stat().st_ino == born
        assert partitions.find(root, disk.name, first) == known


def contract_carving_refuses_what_is_taken(root: HostRoot, disk: Path) -> None:
    claimed(root, disk)
    part = volume()
    gpt.add_partition(root, disk, part, disk_guid=GUID)
    before = gpt.read_table(disk)
    size = size_bytes(root, disk)
    for wrong in (
        replace(volume(), start=40 * MIB),  # number
        replace(part, number=3, start=40 * MIB),  # UUID
        replace(part, bytes=8 * MIB),
        volume(3, 10 * MIB),  # place
        volume(3, MIB),
        volume(3, size - 4 * MIB, 4 * MIB),  # the backup table's
        volume(3, 40 * MIB + 512, MIB),  # not on whole MiB
        volume(256, 40 * MIB),  # the kernel's DISK_MAX_PARTS counts the disk itself
    ):
        raises(gpt.PartitionDiffers, lambda wrong=wrong: gpt.add_partition(root, disk, wrong, disk_guid=GUID))
    free = volume(3, 40 * MIB)
    raises(gpt.NotOurTable, lambda: gpt.add_partition(root, disk, free, disk_guid=str(uuid4())))
    for wrong in (replace(part, number=9), replace(part, start=40 * MIB), replace(part, name="other")):
        raises(gpt.PartitionDiffers, lambda wrong=wrong: gpt.delete_partition(root, disk, wrong, disk_guid=GUID))
    raises(gpt.NotOurTable, lambda: gpt.delete_partition(root, disk, part, disk_guid=str(uuid4())))
    assert gpt.read_table(disk) == before
    assert partitions.find(root, disk.name, part) is not None


def contract_deleting_leaves_a_reused_number_alone(root: HostRoot, disk: Path) -> None:
    claimed(root, disk)
    old = volume()
    gpt.add_partition(root, disk, old, disk_guid=GUID)
    gpt.delete_partition(root, disk, old, disk_guid=GUID)
    new = volume()
    known = gpt.add_partition(root, disk, new, disk_guid=GUID)
    gpt.delete_partition(root, disk, old, disk_guid=GUID)
    assert partitions.find(root, disk.name, new) == known
    assert new in entries(disk)


def contract_crash_between_table_and_kernel(root: HostRoot, disk: Path) -> None:
    claimed(root, disk)
    part = volume()
    known = gpt.add_partition(root, disk, part, disk_guid=GUID)
    for again in (gpt.add_partition, gpt.show_partition):
        forget(disk, 2)
        assert partitions.find(root, disk.name, part) is None
        assert again(root, disk, part, disk_guid=GUID).device == known.device
    forget(disk, 2)
    gpt.delete_partition(root, disk, part, disk_guid=GUID)  # crashed between its two steps
    assert len(entries(disk)) == 1
    raises(gpt.PartitionDiffers, lambda: gpt.show_partition(root, disk, part, disk_guid=GUID))


def contract_a_held_partition_is_not_deleted(root: HostRoot, disk: Path) -> None:
    claimed(root, disk)
    part = volume()
    known = gpt.add_partition(root, disk, part, disk_guid=GUID)
    settle()
    with opener(root.dev / known.device) as pid:
        error = raises(PartitionHeld, lambda: gpt.delete_partition(root, disk, part, disk_guid=GUID))
        assert f"(pid {pid})" in str(error)
        assert part in entries(disk)
        assert partitions.find(root, disk.name, part) is not None
    gpt.delete_partition(root, disk, part, disk_guid=GUID)


def contract_a_mounted_partition_grows(root: HostRoot, disk: Path) -> None:
    claimed(root, disk)
    part, other = volume(), volume(3, 100 * MIB, MIB)
    known = gpt.add_partition(root, disk, part, disk_guid=GUID)
    gpt.add_partition(root, disk, other, disk_guid=GUID)
    settle()
    node = root.dev / known.device
    with mounted(node):
        too_far = 99 * MIB
        error = raises(
            gpt.PartitionDiffers,
            lambda: gpt.grow_partition(root, disk, part, disk_guid=GUID, new_bytes=too_far),
        )
        assert other.name in str(error)
        for _ in range(2):
            gpt.grow_partition(root, disk, part, disk_guid=GUID, new_bytes=64 * MIB)
            assert size_bytes(root, node) == 64 * MIB
        grown = replace(part, bytes=64 * MIB)
        assert grown in entries(disk)
        raises(
            gpt.PartitionDiffers,
            lambda: gpt.grow_partition(root, disk, grown, disk_guid=GUID, new_bytes=32 * MIB),
        )


def contract_the_lock_is_waited_for_and_limited(root: HostRoot, disk: Path) -> None:
    del root
    code = f"import fcntl,os\nfd=os.open({str(disk)!r},0)\nfcntl.flock(fd,2)\nprint('locked',flush=True)\ninput()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"locked\n"
        began = time.monotonic()

        def wait() -> None:
            with disk_lock(disk, timeout=0.3):
                pass

        raises(DeviceBusy, wait)
        assert time.monotonic() - began < 5
        process.kill()
    with disk_lock(disk, timeout=5):
        pass


def contract_wipe_zeroes_and_proves(root: HostRoot, disk: Path) -> None:
    claimed(root, disk)
    part = volume(2, 2 * MIB, 100 * MIB)
    node = root.dev / gpt.add_partition(root, disk, part, disk_guid=GUID).device
    neighbour = volume(3, 102 * MIB, 8 * MIB)
    beside = root.dev / gpt.add_partition(root, disk, neighbour, disk_guid=GUID).device
    settle()
    poke(node, 0, b"secret" * (10 * MIB // 6))
    poke(node, 99 * MIB, b"s" * MIB)
    poke(beside, 0, b"keep" * 1024)
    raises(wipe.NotZero, lambda: wipe.prove_zero(node))
    raises(Refused, lambda: wipe.zero(root, node, check=no))
    raises(wipe.NotZero, lambda: wipe.prove_zero(node))
    said: list[tuple[int, int]] = []
    wipe.zero(root, node, check=yes, progress=lambda done, total: said.append((done, total)))
    assert said[-1] == (100 * MIB, 100 * MIB)
    wipe.prove_zero(node)
    fd = os.open(node, os.O_RDONLY)
    try:
        assert not any(os.pread(fd, 10 * MIB, 0))
    finally:
        os.close(fd)
    fd = os.open(beside, os.O_RDONLY)
    try:
        assert os.pread(fd, 4096, 0) == b"keep" * 1024
    finally:
        os.close(fd)


def contract_wipe_is_refused_while_held(root: HostRoot, disk: Path) -> None:
    claimed(root, disk)
    node = root.dev / gpt.add_partition(root, disk, volume(), disk_guid=GUID).device
    settle()
    poke(node, 0, b"x")
    with opener(node) as pid:
        error = raises(wipe.WipeHeld, lambda: wipe.zero(root, node, check=yes))
        assert "open in python" in str(error)
        assert f"(pid {pid})" in str(error)
    with opener(node, "os.O_RDONLY | os.O_EXCL"):
        raises(wipe.WipeHeld, lambda: wipe.zero(root, node, check=yes))
    raises(wipe.NotZero, lambda: wipe.prove_zero(node))


CONTRACTS = [value for name, value in list(globals().items()) if name.startswith("contract_")]
