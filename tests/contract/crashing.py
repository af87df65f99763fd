"""Contracts of crashes: killed right after every single command, the same call brings it to its end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from contract.common import (
    GUID,
    OWNER,
    Killed,
    Refused,
    agree,
    claimed,
    entries,
    findings,
    killed_after,
    poke,
    raises,
    reset,
    sector_of,
    settle,
    volume,
    yes,
)
from contract.mending import carved, content, tear
from kubeflash.domain.disk import MIB, Partition
from kubeflash.host import blank, claim, gpt, wipe
from kubeflash.host.blockdev import size_bytes
from kubeflash.host.partitions import kernel_partitions
from kubeflash.host.root import HostRoot

Prepared = tuple[Partition, Partition]


def _every_kill(
    root: HostRoot,
    disk: Path,
    prepare: Callable[[], Prepared],
    call: Callable[[Prepared], object],
    ended: Callable[[Prepared], None],
    *,
    least: int,
) -> None:
    """Kills the call after its first command, its second, ...; each time, calling it again brings it to its end."""
    count = 0
    while True:
        count += 1
        reset(root, disk)
        settle()
        parts = prepare()
        inside = content(disk, parts)
        killed = False
        with killed_after(count) as ran:
            try:
                call(parts)
            except Killed:
                killed = True
        settle()
        assert content(disk, parts) == inside, (count, ran)
        call(parts)
        settle()
        ended(parts)
        assert content(disk, parts) == inside, (count, ran)
        if not killed:
            break
    assert count > least, f"only {count - 1} commands were run: {ran}"


def contract_killed_while_claiming(root: HostRoot, disk: Path) -> None:
    count = 0
    killed = True
    while killed:
        count, killed = count + 1, False
        reset(root, disk)
        settle()
        with killed_after(count):
            try:
                claimed(root, disk)
            except Killed:
                killed = True
        assert claim.claim_state(disk, replace(OWNER, ssd="another")) in (claim.Claim.NONE, claim.Claim.FOREIGN)
        claimed(root, disk)
        settle()
        assert claim.claim_state(disk, OWNER) is claim.Claim.DONE
        agree(root, disk)
    assert count > 5


def contract_killed_while_adding(root: HostRoot, disk: Path) -> None:
    new = volume(9, 60 * MIB)

    def ended(parts: Prepared) -> None:
        assert entries(disk)[1:] == tuple(sorted((*parts, new), key=lambda part: part.number))
        agree(root, disk)

    def add(_: Prepared) -> object:
        return gpt.add_partition(root, disk, new, disk_guid=GUID)

    _every_kill(root, disk, lambda: carved(root, disk), add, ended, least=4)


def contract_killed_while_adding_to_a_table_with_a_damaged_backup(root: HostRoot, disk: Path) -> None:
    new = volume(9, 60 * MIB)

    def prepare() -> Prepared:
        parts = carved(root, disk)
        poke(disk, size_bytes(root, disk) - sector_of(root, disk), b"X")
        return parts

    def ended(parts: Prepared) -> None:
        assert {*parts, new} < set(entries(disk))
        agree(root, disk)

    def add(_: Prepared) -> object:
        return gpt.add_partition(root, disk, new, disk_guid=GUID)

    _every_kill(root, disk, prepare, add, ended, least=4)


def contract_killed_while_growing(root: HostRoot, disk: Path) -> None:
    def grow(parts: Prepared) -> object:
        return gpt.grow_partition(root, disk, parts[0], disk_guid=GUID, new_bytes=24 * MIB)

    def ended(parts: Prepared) -> None:
        assert entries(disk)[1:] == (replace(parts[0], bytes=24 * MIB), parts[1])
        agree(root, disk)

    _every_kill(root, disk, lambda: carved(root, disk), grow, ended, least=4)


def contract_killed_while_deleting(root: HostRoot, disk: Path) -> None:
    def delete(parts: Prepared) -> object:
        return gpt.delete_partition(root, disk, parts[0], disk_guid=GUID)

    def ended(parts: Prepared) -> None:
        assert entries(disk)[1:] == parts[1:]
        agree(root, disk)

    _every_kill(root, disk, lambda: carved(root, disk), delete, ended, least=4)


def contract_killed_while_repairing(root: HostRoot, disk: Path) -> None:
    size, sector = size_bytes(root, disk), sector_of(root, disk)
    for spots in ([(sector, b"X")], [(size - sector, b"X")], [(0, bytes(512))], [(0, bytes(2 * sector))]):

        def prepare(spots: list[tuple[int, bytes]] = spots) -> Prepared:
            parts = carved(root, disk)
            tear(root, disk, spots)
            return parts

        def ended(parts: Prepared) -> None:
            assert entries(disk)[1:] == parts
            agree(root, disk)

        def repair(_: Prepared) -> object:
            return gpt.repair_table(root, disk, disk_guid=GUID, check=yes)

        _every_kill(root, disk, prepare, repair, ended, least=4)


def contract_killed_while_a_label_is_rewritten(root: HostRoot, disk: Path) -> None:
    new = replace(OWNER, system_uuid="another")

    def rewrite(_: Prepared) -> object:
        return claim.rewrite_label(root, disk, OWNER, new, check=yes)

    def ended(parts: Prepared) -> None:
        assert claim.claim_state(disk, new) is claim.Claim.DONE
        assert entries(disk)[1:] == parts
        agree(root, disk)

    _every_kill(root, disk, lambda: carved(root, disk), rewrite, ended, least=2)


def contract_killed_while_a_disk_is_wiped(root: HostRoot, disk: Path) -> None:
    count, killed = 0, True
    while killed:  # while its partitions are hidden
        count, killed = count + 1, False
        carved(root, disk)
        before = blank.fingerprint(disk)
        with killed_after(count):
            try:
                wipe.wipe_disk(root, disk, check=yes)
            except Killed:
                killed = True
        if killed:
            assert blank.fingerprint(disk) == before
        wipe.wipe_disk(root, disk, check=yes)
        settle()
        assert findings(root, disk) == ""
        assert kernel_partitions(root, disk.name) == ()
    assert count > 3
    size = size_bytes(root, disk)
    for stop in range(1, 100):  # after every piece
        carved(root, disk)
        before = blank.fingerprint(disk)
        pieces: list[int] = []

        def progress(done: int, _total: int, stop: int = stop, pieces: list[int] = pieces) -> None:
            pieces.append(done)
            if len(pieces) == stop:
                raise Refused

        try:
            wipe.wipe_disk(root, disk, check=yes, progress=progress)
        except Refused:
            assert (blank.fingerprint(disk) == before) is (pieces[-1] <= size - 2 * MIB)
        wipe.wipe_disk(root, disk, check=yes)
        settle()
        assert findings(root, disk) == ""
        if len(pieces) < stop:
            break
    assert stop > 4


def contract_a_killed_command_is_one(root: HostRoot, disk: Path) -> None:
    """That the contracts above kill at all."""
    with killed_after(1) as ran:
        raises(Killed, lambda: claimed(root, disk))  # type: ignore[arg-type]
    assert len(ran) == 1


CONTRACTS = [value for name, value in list(globals().items()) if name.startswith("contract_")]
