"""Contracts of what strangers left on a disk; needs `support.strangers` beside the contracts."""

from __future__ import annotations

from pathlib import Path

from contract.common import (
    OWNER,
    claimed,
    entries,
    findings,
    nothing_written,
    on_disk,
    poke,
    raises,
    reset,
    settle,
    yes,
)
from kubeflash.domain.disk import MIB
from kubeflash.host import blank, claim, commands
from kubeflash.host.blockdev import size_bytes
from kubeflash.host.errors import HostError
from kubeflash.host.root import HostRoot
from support import strangers


def contract_every_stranger_is_found_and_left_alone(root: HostRoot, disk: Path) -> None:
    size = size_bytes(root, disk)
    for name in strangers.STRANGERS:
        strangers.write(str(disk), name, size)
        for edge, samples in ((MIB, blank.SAMPLES), (blank.THOROUGH_EDGE, blank.THOROUGH_SAMPLES)):
            with nothing_written(root, disk):
                found = "; ".join(blank.examine(root, disk, edge=edge, samples=samples).findings)
                assert found, name
            word = strangers.WORDS.get(name, "data without a known signature")
            header = name == "gpt's backup" and "a header of a GPT is left" in found  # of blocks of another size
            assert word in found or header, (name, found)
        if word in strangers.WORDS.values() and not header:
            # blkid verifies checksums, wipefs does not
            probed = commands.run(["blkid", "--probe", "--output", "export", str(disk)], timeout=60, ok=(0, 2))
            assert blank.parse_blkid(probed.stdout).startswith("unknown" if name == "gpt's backup" else word), name
        with nothing_written(root, disk):
            raises(HostError, lambda: claim.create_table(root, disk, OWNER, check=yes))
        for offset, content in strangers.STRANGERS[name](size).items():
            start = offset // 4096 * 4096
            there = on_disk(disk, start, -(-(offset + len(content) - start) // 4096) * 4096)
            assert there[offset - start :][: len(content)] == content, name
        reset(root, disk)
        settle()
    assert findings(root, disk) == ""


def contract_thorough_reading_finds_what_sampling_misses(root: HostRoot, disk: Path) -> None:
    size = size_bytes(root, disk)
    thorough = {"edge": blank.THOROUGH_EDGE, "samples": blank.THOROUGH_SAMPLES}
    assert blank.examine(root, disk, **thorough).blank
    for offset in (blank.THOROUGH_EDGE - 1, size - blank.THOROUGH_EDGE):
        poke(disk, offset, b"x")
        (found,) = blank.examine(root, disk, **thorough).findings
        assert f"data without a known signature in the MiB from byte {offset // MIB * MIB}" == found
        assert blank.examine(root, disk, samples=0).blank
        poke(disk, offset, b"\0")
    poke(disk, size // 2, b"x")
    assert not blank.examine(root, disk, edge=size, samples=0).blank  # edges that meet: all of it is read
    assert not blank.examine(root, disk, edge=4 * size, samples=9).blank


def contract_a_claim_is_as_thorough_as_it_is_told(root: HostRoot, disk: Path) -> None:
    poke(disk, 40 * MIB, b"x")
    thorough = {"edge": blank.THOROUGH_EDGE, "samples": blank.THOROUGH_SAMPLES}
    with nothing_written(root, disk):
        raises(claim.NotBlank, lambda: claim.create_table(root, disk, OWNER, check=yes, **thorough))
    claim.create_table(root, disk, OWNER, check=yes, samples=0)
    assert len(entries(disk)) == 1


def contract_a_fingerprint_is_of_both_ends(root: HostRoot, disk: Path) -> None:
    size = size_bytes(root, disk)
    blank_one = blank.fingerprint(disk)
    assert len(blank_one) == 16
    assert int(blank_one, 16)
    seen = {blank_one}
    for offset in (0, MIB - 1, size - MIB, size - 1):
        poke(disk, offset, b"x")
        seen.add(blank.fingerprint(disk))
    assert len(seen) == 5
    now = blank.fingerprint(disk)
    poke(disk, MIB, b"x")
    poke(disk, size - MIB - 1, b"x")
    assert blank.fingerprint(disk) == now
    reset(root, disk)
    assert blank.fingerprint(disk) == blank_one
    claimed(root, disk)
    assert blank.fingerprint(disk) not in seen


CONTRACTS = [value for name, value in list(globals().items()) if name.startswith("contract_")]
