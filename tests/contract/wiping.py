"""Contracts of discarding, and of wiping whole disks."""

from __future__ import annotations

import fcntl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

from contract.common import (
    GUID,
    OWNER,
    Refused,
    Skipped,
    claimed,
    findings,
    mounted,
    no,
    nothing_written,
    on_disk,
    opener,
    poke,
    raises,
    settle,
    volume,
    yes,
)
from contract.mending import carved, content
from kubeflash.domain.disk import MIB, Partition
from kubeflash.host import blank, claim, gpt, wipe
from kubeflash.host.blockdev import size_bytes
from kubeflash.host.errors import HostError
from kubeflash.host.partitions import kernel_partitions
from kubeflash.host.root import HostRoot
from support import strangers

_DISCARD = 0x1277
ENDS = 3 * MIB  # what goes last: the first 2 MiB with KubeFlash's label, and the last one


def _used(root: HostRoot, disk: Path) -> tuple[Path, Partition]:
    """A volume's partition with something at its start and end, and a neighbour with something."""
    claimed(root, disk)
    part, neighbour = volume(2, 2 * MIB, 100 * MIB), volume(3, 102 * MIB, 8 * MIB)
    node = root.dev / gpt.add_partition(root, disk, part, disk_guid=GUID).device
    gpt.add_partition(root, disk, neighbour, disk_guid=GUID)
    settle()
    for offset in (part.start, part.start + MIB, part.end - 4096, neighbour.start, neighbour.end - 4096):
        poke(disk, offset, b"secret" * 600)
    settle()  # udev makes the partitions anew after a write to their disk
    return node, neighbour


@contextmanager
def _ioctls(answer: object) -> Iterator[list[int]]:
    """What `answer` does instead of a discard; yields the requests that were made."""
    asked: list[int] = []

    def ioctl(fd: int, request: int, argument: bytes) -> object:
        asked.append(request)
        return answer() if request == _DISCARD and callable(answer) else fcntl.ioctl(fd, request, argument)

    wipe.fcntl = SimpleNamespace(ioctl=ioctl)  # type: ignore[assignment]
    try:
        yield asked
    finally:
        wipe.fcntl = fcntl


def contract_a_discard_is_proven(root: HostRoot, disk: Path) -> None:
    node, neighbour = _used(root, disk)
    beside = content(disk, [neighbour])
    with nothing_written(root, disk):
        raises(Refused, lambda: wipe.discard(root, node, check=no))
    said: list[tuple[int, int]] = []
    with _ioctls(None) as asked:
        how = wipe.discard(root, node, check=yes, progress=lambda done, total: said.append((done, total)))
    assert asked[0] == _DISCARD
    assert how == ("Discard" if set(asked) == {_DISCARD} else "Zero")  # a loop device's file may have no holes
    assert said[-1] == (100 * MIB, 100 * MIB)
    wipe.prove_zero(node)
    assert content(disk, [neighbour]) == beside


def contract_a_discard_that_leaves_data_is_followed_by_zeroes(root: HostRoot, disk: Path) -> None:
    node, neighbour = _used(root, disk)
    beside = content(disk, [neighbour])
    with _ioctls(lambda: 0) as asked:
        assert wipe.discard(root, node, check=yes) == "Zero"
    assert set(asked) == {_DISCARD, 0x127F}
    wipe.prove_zero(node)
    assert content(disk, [neighbour]) == beside


def contract_a_device_without_discard_is_zeroed(root: HostRoot, disk: Path) -> None:
    node, _ = _used(root, disk)
    queue = root.sys / "class" / "block" / disk.name / "queue"
    most = queue / "discard_max_bytes"
    before = int(most.read_text())
    try:
        most.write_text("0")
    except OSError as error:
        raise Skipped(f"discards cannot be switched off: {error}") from error
    try:
        with _ioctls(None) as asked:
            assert wipe.discard(root, node, check=yes) == "Zero"
    finally:
        step = int((queue / "discard_granularity").read_text())
        if step:  # a loop device whose file cannot be discarded has found out by now
            most.write_text(str(before // step * step))
    assert asked[:2] == [_DISCARD, 0x127F]
    wipe.prove_zero(node)


def contract_a_held_partition_is_not_discarded(root: HostRoot, disk: Path) -> None:
    node, _ = _used(root, disk)
    with opener(node) as pid, nothing_written(root, disk):
        error = raises(wipe.WipeHeld, lambda: wipe.discard(root, node, check=yes))
        assert f"(pid {pid})" in str(error)
    raises(wipe.NotZero, lambda: wipe.prove_zero(node))


def contract_a_whole_disk_is_wiped(root: HostRoot, disk: Path) -> None:
    carved(root, disk)
    size = size_bytes(root, disk)
    print_of_it = blank.fingerprint(disk)
    with nothing_written(root, disk):
        raises(Refused, lambda: wipe.wipe_disk(root, disk, check=no))
        assert len(kernel_partitions(root, disk.name)) == 3
    said: list[tuple[int, str]] = []

    def progress(done: int, total: int) -> None:
        assert total == size
        said.append((done, blank.fingerprint(disk)))

    wipe.wipe_disk(root, disk, check=yes, progress=progress)
    assert said[-1][0] == size
    assert {mark for done, mark in said if done <= size - ENDS} == {print_of_it}
    assert on_disk(disk, 2 * MIB, 4096) == bytes(4096)
    assert kernel_partitions(root, disk.name) == ()
    settle()
    assert findings(root, disk) == ""
    claimed(root, disk)


def contract_an_interrupted_wipe_is_still_recognised(root: HostRoot, disk: Path) -> None:
    carved(root, disk)
    size, print_of_it = size_bytes(root, disk), blank.fingerprint(disk)

    def stop(done: int, _total: int) -> None:
        if done >= size - ENDS:
            raise Refused

    for _ in range(2):
        raises(Refused, lambda: wipe.wipe_disk(root, disk, check=yes, progress=stop))
        settle()
        assert blank.fingerprint(disk) == print_of_it
        assert claim.claim_state(disk, OWNER) is claim.Claim.DONE, "it must not look like a claim that may go on"
    wipe.wipe_disk(root, disk, check=yes)
    assert findings(root, disk) == ""


def contract_every_stranger_can_be_wiped(root: HostRoot, disk: Path) -> None:
    size = size_bytes(root, disk)
    for name in strangers.STRANGERS:
        strangers.write(str(disk), name, size)
        settle()
        wipe.wipe_disk(root, disk, check=yes)
        settle()
        assert findings(root, disk) == "", name


def contract_a_disk_in_use_is_not_wiped(root: HostRoot, disk: Path) -> None:
    parts = carved(root, disk)
    inside = content(disk, parts)
    node = root.dev / f"{disk.name}p200"

    def refused(word: str) -> None:
        with nothing_written(root, disk):
            error = raises(HostError, lambda: wipe.wipe_disk(root, disk, check=yes))
        assert isinstance(error, wipe.WipeHeld), error
        assert word in str(error)
        assert len(kernel_partitions(root, disk.name)) == 3

    for path in (disk, node):
        with opener(path) as pid:
            refused(f"(pid {pid})")
    with opener(disk, "os.O_RDONLY | os.O_EXCL"):
        refused("held exclusively")
    assert content(disk, parts) == inside
    with mounted(node) as folder:
        refused(f"mounted at {folder}")
    made = subprocess.run(["losetup", "-f", "--show", str(node)], capture_output=True, text=True, check=False)
    if made.returncode == 0:
        try:
            refused(f"behind loop device {made.stdout.strip()}")
        finally:
            subprocess.run(["losetup", "-d", made.stdout.strip()], check=True)


def contract_a_generic_device_in_use_stops_a_wipe(root: HostRoot, disk: Path) -> None:
    node = root.dev / disk.name.replace("nvme", "ng", 1)
    if not disk.name.startswith("nvme") or not node.exists():
        raise Skipped("not an NVMe namespace")
    with opener(node) as pid, nothing_written(root, disk):
        assert f"(pid {pid})" in str(raises(wipe.WipeHeld, lambda: wipe.wipe_disk(root, disk, check=yes)))


def contract_a_wipe_has_a_limit(root: HostRoot, disk: Path) -> None:
    poke(disk, 0, b"x")
    error = raises(wipe.WipeFailed, lambda: wipe.wipe_disk(root, disk, check=yes, limit=0))
    assert "too slow" in str(error)
    assert findings(root, disk)


CONTRACTS = [value for name, value in list(globals().items()) if name.startswith("contract_")]
