"""After every single step of every plan the process may end: the next one goes on, nothing is lost, nothing is left."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from uuid import UUID

import pytest

from kubeflash.domain import steps
from kubeflash.domain.carving import (
    CarvePlan,
    DiskView,
    Requests,
    Selection,
    SsdState,
    VolumeWish,
    judge,
    plan_volumes,
    volumes_of,
)
from kubeflash.domain.disk import LABEL_TYPE, MIB, VOLUME_TYPE, Label, Partition, PartitionTable
from support.simulated import Network, SimulatedServer, ssd

SSD = "S-1"
STRANGER = Label("c", "uuid-of-b", SSD)


class Host(SimulatedServer):
    """A server that loses power after so many steps, or within one; it knows what was wiped."""

    def __init__(self) -> None:
        super().__init__("a", "10.0.0.1", Network(), [], [ssd("S", 1, size=100 * MIB)])
        self.cluster_id = "c"
        self.wiped: set[str] = set()
        self.written = 0

    @property
    def disk(self) -> DiskView:
        return self.disks[SSD]

    @disk.setter
    def disk(self, disk: DiskView) -> None:
        self.disks[SSD] = disk

    def apply(self, step, progress=None) -> None:
        self.written += 1
        if isinstance(step, steps.RemovePartition) and step.partition.uuid != uuid(30):
            assert step.partition.uuid in self.wiped, "removed before it was wiped"
        if isinstance(step, steps.GrowPartition | steps.CarvePartition | steps.RemovePartition):
            assert self.disk.table is not None
            assert self.disk.table.disk_guid == step.disk_guid
        super().apply(step, progress)
        if isinstance(step, steps.WipePartition):
            self.wiped.add(step.partition.uuid)

    def tear(self, step: steps.Step) -> None:
        """Half of a step: a claim without its label, a partition that the kernel does not show."""
        if isinstance(step, steps.ClaimSsd):
            self.disk = replace(self.disk, half_claimed=True)
        elif isinstance(step, steps.CarvePartition | steps.GrowPartition):
            self.apply(step)
            self.disk = replace(self.disk, shown=self.disk.shown - {step.partition.number})
        elif isinstance(step, steps.RemovePartition):
            self.disk = replace(self.disk, shown=self.disk.shown - {step.partition.number})


@dataclass
class Case:
    """A disk, what is wanted of it, and how it is to be in the end: bytes in MiB by volume, and its label."""

    disk: DiskView
    wishes: list[VolumeWish]
    end: Mapping[int, int]
    requests: Requests = field(default_factory=Requests)
    label: Label | None = None
    selection: Selection | None = field(default_factory=lambda: Selection("fast"))

    def plan(self, host: Host) -> CarvePlan:
        selected = {SSD: self.selection} if self.selection is not None else {}
        return plan_volumes(host.disks, {SSD: host.owner(SSD)}, selected, self.wishes, self.requests)


def uuid(number: int) -> str:
    return str(UUID(int=number))


def wish(number: int, mib: int, **more) -> VolumeWish:
    more = {"released": False, "exported": False, **more}
    return VolumeWish(f"ns/v{number}", uuid(number), SSD, mib * MIB, **more)


def part(number: int, start: int, mib: int, volume: int) -> Partition:
    return Partition(number, start * MIB, mib * MIB, uuid(volume), uuid(volume), VOLUME_TYPE)


def disk(*parts: Partition, label: Label | None = None, damaged: str = "") -> DiskView:
    label = label or Host().owner(SSD)
    first = Partition(1, MIB, MIB, "kubeflash", label.disk_guid, LABEL_TYPE)
    table = PartitionTable("gpt", label.disk_guid, MIB, 99 * MIB, (first, *parts), damaged)
    return DiskView(SSD, 100 * MIB, table, label, shown=frozenset({1, *(p.number for p in parts)}), fingerprint="shown")


BLANK = DiskView(SSD, 100 * MIB)
CASES: dict[str, Callable[[], Case]] = {
    "claim and carve three": lambda: Case(BLANK, [wish(1, 10), wish(2, 40), wish(3, 5)], {1: 10, 2: 40, 3: 5}),
    "claim what nobody named": lambda: Case(
        replace(BLANK, thorough=True), [wish(1, 10)], {1: 10}, selection=Selection("fast", 10, thorough=True)
    ),
    "grow two": lambda: Case(
        disk(part(2, 2, 10, 1), part(3, 40, 10, 2)),
        [wish(1, 38, fresh=False), wish(2, 30, fresh=False)],
        {1: 38, 2: 30},
    ),
    "grow and carve": lambda: Case(
        disk(part(2, 2, 10, 1), part(3, 40, 59, 2)),
        [wish(1, 20, fresh=False), wish(2, 59, fresh=False), wish(4, 15)],
        {1: 20, 2: 59, 4: 15},
    ),
    "release, zeroed": lambda: Case(
        disk(part(2, 2, 10, 1), part(3, 40, 10, 2)), [wish(1, 10, released=True), wish(2, 10, fresh=False)], {2: 10}
    ),
    "release, discarded": lambda: Case(disk(part(2, 2, 10, 1)), [wish(1, 10, released=True, wipe="Discard")], {}),
    "release, as it is": lambda: Case(disk(part(2, 2, 10, 30)), [wish(30, 10, released=True, wipe="None")], {}),
    "release and carve in its place": lambda: Case(
        disk(part(2, 2, 90, 1)), [wish(1, 90, released=True), wish(2, 6)], {2: 6}
    ),
    "repair, then carve": lambda: Case(
        disk(part(2, 2, 10, 1), damaged="primary"), [wish(1, 10, fresh=False), wish(2, 20)], {1: 10, 2: 20}
    ),
    "take over": lambda: Case(
        disk(part(2, 2, 10, 1), part(3, 20, 10, 9), label=STRANGER),
        [wish(1, 12, fresh=False)],
        {1: 12, 9: 10},
        Requests(moved={SSD: STRANGER.system_uuid}),
        label=Host().owner(SSD),
    ),
    "wipe an SSD": lambda: Case(
        replace(BLANK, findings=("ext4",), fingerprint="shown"), [], {}, Requests(wipe_ssds={SSD: "shown"}), label=None
    ),
    "wipe an SSD with orphans": lambda: Case(
        disk(part(2, 2, 10, 1)), [], {}, Requests(wipe_ssds={SSD: "shown"}, wipe_orphans={uuid(1): SSD})
    ),
    "wipe an orphan": lambda: Case(
        disk(part(2, 2, 10, 1), part(3, 20, 10, 2)),
        [wish(2, 10, fresh=False)],
        {2: 10},
        Requests(wipe_orphans={uuid(1): SSD}),
    ),
}


def finish(case: Case, host: Host) -> None:
    for _ in range(6):
        plan = case.plan(host)
        if not plan.steps:
            return
        for step in plan.steps:
            host.apply(step)
    raise AssertionError(f"it never ends: {[step.describe() for step in plan.steps]}")


def all_steps(name: str) -> int:
    """How many steps it takes without a crash."""
    case, host = CASES[name](), Host()
    host.disk = case.disk
    finish(case, host)
    return host.written


@pytest.mark.parametrize("name", CASES)
def test_a_crash_after_any_step_or_within_it_loses_nothing_and_leaves_nothing(name: str):
    total = all_steps(name)
    assert total
    for count in range(total + 1):
        for torn in (False, True):
            case, host = CASES[name](), Host()
            host.disk = case.disk
            run(case, host, count, torn=torn)
            finish(case, host)
            present = {item.uuid: item.bytes // MIB for item in volumes_of(host.disk.table)}
            assert present == {uuid(number): mib for number, mib in case.end.items()}, (count, torn)
            if case.label is not None:
                assert host.disk.label == case.label
            assert judge(host.disk, host.owner(SSD)).state is not SsdState.FOREIGN
            assert all(item.number in host.disk.shown for item in volumes_of(host.disk.table))
            plan = case.plan(host)
            assert plan == CarvePlan(), "when all is done nothing is said any more"


def run(case: Case, host: Host, count: int, *, torn: bool) -> None:
    """So many steps, over as many plans as they take, and then half of one more."""
    while True:
        plan = case.plan(host).steps
        if not plan:
            return
        for step in plan:
            if not count:
                if torn:
                    host.tear(step)
                return
            host.apply(step)
            count -= 1


@pytest.mark.parametrize("name", CASES)
def test_no_step_of_a_plan_is_in_another_one_s_way(name: str):
    """Each plan can be carried out as it stands: none of its steps fails for what an earlier one did."""
    case, host = CASES[name](), Host()
    host.disk = case.disk
    for _ in range(6):
        for step in case.plan(host).steps:
            before = {item.uuid for item in volumes_of(host.disk.table)}
            if isinstance(step, steps.VolumeStep) and not isinstance(step, steps.CarvePartition):
                assert step.partition.uuid in before, step.describe()
            host.apply(step)
