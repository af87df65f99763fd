"""Volumes on the SSDs of one server: what to carve, grow and release, what to leave alone and why. Pure.

`observe` has read every local SSD; this decides. An SSD is written only when a pool selects it *and* it is blank, or
already this cluster's and this server's own; the step itself proves it again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from kubeflash.api.quantity import human_bytes
from kubeflash.domain.allocation import Span, align_up, best_fit, free_number, free_spans, room
from kubeflash.domain.disk import LABEL_TYPE, LAYOUT_VERSION, VOLUME_TYPE, Label, Partition, PartitionTable
from kubeflash.domain.steps import (
    CarvePartition,
    ClaimSsd,
    GrowPartition,
    RemovePartition,
    RepairTable,
    ShowPartition,
    Step,
    TakeOver,
    WipeMode,
    WipePartition,
    WipeSsd,
)

WAY_OUT = "if nothing on it is needed: kubectl flash wipe shows what is there, and wipes it"


class SsdState(StrEnum):
    """What an SSD is to KubeFlash."""

    BLANK = "Blank"
    CLAIMED = "Claimed"
    FOREIGN = "Foreign"


@dataclass(frozen=True)
class DiskView:
    """One local SSD as observed.

    Attributes:
        ssd: its durable id.
        bytes: its size.
        table: its partition table, None without one; of a damaged one its whole copy.
        label: KubeFlash's label, None where there is none or the claim stopped before it was written.
        half_claimed: a claim of its owner was interrupted before the label was written.
        shown: numbers of the partitions in the table that the kernel shows at their place.
        findings: why it is not blank; empty for a blank one. Not looked at for a claimed one.
        trouble: why it cannot be used whatever is on it, such as two SSDs with one id.
        thorough: how it was found blank: by more samples and longer ends, as of an SSD that nobody named.
        fingerprint: stands for what is on it; empty of a blank one, and of what cannot be read.
        read_only: whether the kernel lets nobody write to it.
        held: who uses it, of one that is not blank; empty for nobody, and when nobody looked.
    """

    ssd: str
    bytes: int
    table: PartitionTable | None = None
    label: Label | None = None
    half_claimed: bool = False
    shown: frozenset[int] = frozenset()
    findings: tuple[str, ...] = ()
    trouble: str = ""
    thorough: bool = False
    fingerprint: str = ""
    read_only: bool = False
    held: str = ""


@dataclass(frozen=True)
class Verdict:
    """What an SSD is, and why it is left alone when it is."""

    state: SsdState
    reason: str = ""


@dataclass(frozen=True)
class Selection:
    """A pool that selects an SSD.

    Attributes:
        pool: its name.
        reserve: percent of the SSD that no volume takes.
        thorough: nobody named the SSD: it must be proven blank more thoroughly.
    """

    pool: str
    reserve: int = 0
    thorough: bool = False


@dataclass(frozen=True)
class VolumeWish:
    """One volume that the controller placed on this server.

    Attributes:
        bytes: what it may take.
        released: it is deleted, and nothing is attached to it any more: its bytes are to be wiped.
        exported: an export of it is wanted or recorded still.
        fresh: it was never carved: it may be made. Of any other the bytes exist, or are lost.
        confirmed: the controller that leads says so: new bytes may be given to it.
        wipe: how its bytes are wiped.
        given_up: why it is no use trying to carve it here any more.
        pool: the pool that it is of; empty where that does not matter.
    """

    key: str
    id: str
    ssd: str
    bytes: int
    released: bool
    exported: bool
    fresh: bool = True
    confirmed: bool = True
    wipe: WipeMode = "Zero"
    given_up: str = ""
    pool: str = ""


@dataclass(frozen=True)
class Requests:
    """What an admin asks of this server by name.

    Attributes:
        wipe_ssds: by SSD id, the fingerprint of what the admin was shown.
        wipe_orphans: by volume id, the id of the SSD that the admin was shown it on.
        moved: by SSD id, the system UUID of the server that it may be taken over from.
    """

    wipe_ssds: Mapping[str, str] = field(default_factory=dict)
    wipe_orphans: Mapping[str, str] = field(default_factory=dict)
    moved: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class CarvePlan:
    """Steps in order, and for each volume that cannot be had, why.

    Attributes:
        refused: by volume key: the agent's last word on this placement; the controller places it elsewhere.
        missing: by volume key: its bytes were there and are not any more.
        waiting: by volume key: why nothing happens now though it will.
        cramped: by volume key: why it cannot grow.
        denied: by SSD or volume id: why what an admin asked for is not done.
    """

    steps: tuple[Step, ...] = ()
    refused: Mapping[str, str] = field(default_factory=dict)
    missing: Mapping[str, str] = field(default_factory=dict)
    waiting: Mapping[str, str] = field(default_factory=dict)
    cramped: Mapping[str, str] = field(default_factory=dict)
    denied: Mapping[str, str] = field(default_factory=dict)


def volumes_of(table: PartitionTable | None) -> tuple[Partition, ...]:
    """KubeFlash's volumes in a partition table."""
    return tuple(part for part in table.partitions if part.type_guid == VOLUME_TYPE) if table else ()


def own_volumes(disk: DiskView, owner: Label) -> tuple[Partition, ...]:
    """The volumes on an SSD that are this cluster's, on this server or not yet: an SSD that has just moved in."""
    return volumes_of(disk.table) if is_ours(disk, owner) or labelled(disk, owner) is not None else ()


def is_ours(disk: DiskView, owner: Label) -> bool:
    """Whether the volumes on it are this cluster's on this server, even where a stranger's partition stands beside."""
    return disk.label is not None and disk.label == owner and not disk.trouble


def labelled(disk: DiskView, owner: Label) -> str | None:
    """The system UUID of the server whose label of this cluster, and of this very SSD, it carries; None for our own."""
    label = disk.label
    if disk.trouble or label is None or label == owner or replace(label, system_uuid=owner.system_uuid) != owner:
        return None
    return label.system_uuid


def judge(disk: DiskView, owner: Label) -> Verdict:
    """What the SSD is to KubeFlash in this cluster on this server (`owner` is the label that it would carry here)."""
    if disk.trouble:
        return Verdict(SsdState.FOREIGN, disk.trouble)
    if disk.half_claimed:
        return Verdict(SsdState.BLANK, "a claim of it was interrupted: it goes on with the first volume")
    table = disk.table
    labels = (
        [part for part in table.partitions if part.type_guid == LABEL_TYPE] if table and table.kind == "gpt" else []
    )
    if table is None or not labels:
        if disk.findings:
            way = "it is in use: left alone" if disk.held else WAY_OUT
            return Verdict(SsdState.FOREIGN, f"not blank: {'; '.join(disk.findings)} ({way})")
        return Verdict(SsdState.BLANK)
    if disk.label is None:
        return Verdict(
            SsdState.FOREIGN,
            "it has KubeFlash's partition table but no label, and is not what an interrupted claim here leaves "
            f"({WAY_OUT})",
        )
    if disk.label.layout != LAYOUT_VERSION:
        return Verdict(
            SsdState.FOREIGN,
            f"its KubeFlash layout is version {disk.label.layout}, this agent knows {LAYOUT_VERSION}: "
            "run the release that wrote it",
        )
    stranger = _whose(disk.label, owner)
    if stranger:
        return Verdict(SsdState.FOREIGN, stranger)
    if table.damaged:
        words = f"the {table.damaged} copy of its partition table is damaged, and is written anew from the other one"
        return Verdict(SsdState.CLAIMED, words)
    strangers = [part for part in table.partitions if part.type_guid not in (LABEL_TYPE, VOLUME_TYPE)]
    if strangers:
        numbers = ", ".join(str(part.number) for part in strangers)
        return Verdict(
            SsdState.FOREIGN,
            f"somebody added partition {numbers} that is not KubeFlash's: no new volumes until it is gone",
        )
    return Verdict(SsdState.CLAIMED)


def _whose(label: Label, owner: Label) -> str:
    """Whose SSD it is when it is not this cluster's, on this server; and the way out."""
    if label.cluster_id != owner.cluster_id:
        return (
            f"it is KubeFlash's, but of cluster {label.cluster_id}, not of {owner.cluster_id}: left alone. A cluster "
            f"that takes the place of that one has its id (--cluster-id); {WAY_OUT}"
        )
    if label.ssd != owner.ssd:
        return (
            f"it carries the label of SSD {label.ssd}: it is a copy of that one, and its volumes are that one's. Left "
            f"alone; {WAY_OUT}"
        )
    if label.system_uuid != owner.system_uuid:
        return (
            f"it is KubeFlash's, but of server {label.system_uuid}, not of {owner.system_uuid}: it is taken over with "
            "its volumes once that server's agent says that it has it no more. If that server is off for good: "
            "kubectl flash adopt"
        )
    return ""


def plan_volumes(
    disks: Mapping[str, DiskView],
    owners: Mapping[str, Label],
    selected: Mapping[str, Selection],
    wishes: Sequence[VolumeWish],
    requests: Requests | None = None,
) -> CarvePlan:
    """The steps that bring the partitions of this server to what its volumes want, and admins ask for.

    Args:
        disks: the local SSDs by id.
        owners: by SSD id, the label that it carries, or would carry, here.
        selected: by SSD id, the pool that selects it on this server.
        wishes: the volumes placed on this server; the list must be complete: what is not in it counts as orphaned.
        requests: what admins ask for.
    """
    asked = requests or Requests()
    plan = _Plan()
    counts = Counter(wish.id for wish in wishes)
    for wish in wishes:
        if counts[wish.id] > 1:
            plan.waiting[wish.key] = f"several volumes say that they are {wish.id}: none is touched"
        elif wish.ssd not in disks:
            plan.waiting[wish.key] = (
                f"SSD {wish.ssd} is not in this server now; if it is lost for good: kubectl flash purge NODE {wish.ssd}"
            )
    known = {wish.id: wish.key for wish in wishes}
    for ssd in sorted(disks):
        mine = [wish for wish in wishes if wish.ssd == ssd and counts[wish.id] == 1]
        _Disk(disks[ssd], owners[ssd], selected.get(ssd), mine, plan).plan(asked, known)
    for ssd in asked.wipe_ssds:
        if ssd not in disks:
            plan.denied[ssd] = f"SSD {ssd} is not in this server now"
    for volume, ssd in asked.wipe_orphans.items():
        if ssd not in disks:
            plan.denied[volume] = f"SSD {ssd} is not in this server now"
    return plan.done()


class _Plan:
    """A plan while it is made."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.refused: dict[str, str] = {}
        self.missing: dict[str, str] = {}
        self.waiting: dict[str, str] = {}
        self.cramped: dict[str, str] = {}
        self.denied: dict[str, str] = {}

    def done(self) -> CarvePlan:
        return CarvePlan(tuple(self.steps), self.refused, self.missing, self.waiting, self.cramped, self.denied)


class _Disk:
    """One SSD: what is to be done on it."""

    def __init__(
        self, disk: DiskView, owner: Label, selected: Selection | None, wishes: Sequence[VolumeWish], plan: _Plan
    ) -> None:
        self._disk, self._owner, self._selected, self._wishes, self._to = disk, owner, selected, wishes, plan
        self._verdict = judge(disk, owner)
        self._ours = is_ours(disk, owner)
        self._guid = disk.table.disk_guid if self._ours and disk.table is not None else owner.disk_guid
        self._present = {part.uuid: part for part in volumes_of(disk.table)} if self._ours else {}

    def plan(self, asked: Requests, known: Mapping[str, str]) -> None:
        """Plans everything on this SSD. `known`: the volumes of this server by id."""
        disk = self._disk
        if self._wipe_request(asked, known):
            return
        other = labelled(disk, self._owner)
        moves_in = other is not None and asked.moved.get(disk.ssd) == other
        if (self._ours or moves_in) and disk.table is not None and disk.table.damaged:
            came = f"SSD {disk.ssd} came from server {other}, and its partition table is repaired first"
            self._to.steps.append(RepairTable(disk.ssd, disk.table.disk_guid))
            self._wait(self._verdict.reason if self._ours else came)
            return
        if moves_in and disk.label is not None:
            self._to.steps.append(TakeOver(disk.ssd, disk.label, self._owner))
            self._wait(f"SSD {disk.ssd} came from server {other} and is taken over")
            return
        self._show()
        self._grow()
        self._carve()
        self._release()
        self._wipe_orphans(asked, known)

    def _wait(self, words: str) -> None:
        self._to.waiting.update({wish.key: words for wish in self._wishes})

    def _show(self) -> None:
        """Partitions that only the table knows; also orphans', so that whoever adopts one finds its device."""
        self._to.steps += [
            ShowPartition(self._disk.ssd, self._guid, part)
            for part in self._present.values()
            if part.number not in self._disk.shown
        ]

    def _taken(self) -> list[Span]:
        """What is taken, by whomever."""
        table = self._disk.table
        parts = table.partitions if table is not None and self._ours else ()
        return [Span(part.start, part.bytes) for part in parts]

    def _grow(self) -> None:
        for wish in self._wishes:
            part = self._present.get(wish.id)
            if part is None or wish.released or align_up(wish.bytes) <= part.bytes:
                continue
            others = [span for span in self._taken() if span.start != part.start]
            most = room(self._disk.bytes, others, part.start, self._selected.reserve if self._selected else 0)
            if align_up(wish.bytes) > most:
                words = f"behind it is {self._behind(part)}: it can have at most {human_bytes(most)} where it is"
                self._to.cramped[wish.key] = words
            elif not wish.confirmed:
                self._to.cramped[wish.key] = _UNCONFIRMED
            else:
                self._to.steps.append(GrowPartition(self._disk.ssd, self._guid, part, align_up(wish.bytes)))

    def _behind(self, part: Partition) -> str:
        parts = self._disk.table.partitions if self._disk.table is not None else ()
        behind = min((item for item in parts if item.start > part.start), key=lambda item: item.start, default=None)
        if behind is None:
            return "the end of the SSD, or of what the pool's reserve leaves of it"
        return f"partition {behind.number} ({behind.name or 'without a name'})"

    def _carve(self) -> None:
        """Volumes that are not there: made when they are new, else missing."""
        disk, verdict = self._disk, self._verdict
        wanted = [wish for wish in self._wishes if not wish.released and wish.id not in self._present]
        if not wanted:
            return
        if disk.trouble or (disk.label is not None and disk.label != self._owner):
            # What is on it cannot be told, or is another's: the volumes may be there. Nothing is decided from that.
            self._to.waiting.update({wish.key: verdict.reason for wish in wanted})
            return
        there = {part.uuid for part in volumes_of(disk.table)}  # in a table that lost its label: neither new nor gone
        self._to.waiting.update({wish.key: verdict.reason for wish in wanted if wish.id in there})
        wanted = [wish for wish in wanted if wish.id not in there]
        for wish in wanted:
            if not wish.fresh:
                self._to.missing[wish.key] = self._gone()
        fresh = sorted((wish for wish in wanted if wish.fresh), key=lambda wish: (-wish.bytes, wish.id))
        objection = verdict.reason if verdict.state is SsdState.FOREIGN else ""
        if self._selected is None:
            objection = f"no pool selects SSD {disk.ssd} on this server"
        for wish in fresh:
            why = objection or self._of_another_pool(wish) or wish.given_up
            if why:
                self._to.refused[wish.key] = why
        fresh = [wish for wish in fresh if wish.key not in self._to.refused]
        if not fresh:
            return
        thorough = self._selected is not None and self._selected.thorough
        if verdict.state is SsdState.BLANK and thorough and not (disk.thorough or disk.half_claimed):
            self._to.waiting.update({wish.key: "its SSD is read more thoroughly first" for wish in fresh})
            return
        steps = self._carve_fresh(fresh)
        if steps and verdict.state is SsdState.BLANK:
            steps = [ClaimSsd(disk.ssd, self._owner, thorough), *steps]
        self._to.steps += steps

    def _of_another_pool(self, wish: VolumeWish) -> str:
        if self._selected is None or wish.pool in ("", self._selected.pool):
            return ""
        return f"SSD {self._disk.ssd} is of pool {self._selected.pool} now, no longer of {wish.pool}"

    def _gone(self) -> str:
        if self._ours:
            return f"SSD {self._disk.ssd} is KubeFlash's, but its partition is not there: somebody deleted it"
        what = "blank" if self._verdict.state is SsdState.BLANK else self._verdict.reason
        return f"SSD {self._disk.ssd} has no KubeFlash table any more, somebody wiped it: it is {what}"

    def _carve_fresh(self, wishes: Sequence[VolumeWish]) -> list[Step]:
        steps: list[Step] = []
        may = {wish.id: align_up(wish.bytes) for wish in self._wishes if not wish.released}
        # What is to grow has its place already, as in the controller's ledger: a new one must not take it.
        taken = [*self._taken(), *(Span(part.start, may.get(part.uuid, 0)) for part in self._present.values())]
        numbers = {part.number for part in self._disk.table.partitions} if self._ours and self._disk.table else {1}
        reserve = self._selected.reserve if self._selected is not None else 0
        for wish in wishes:
            free = free_spans(self._disk.bytes, taken, reserve)
            span, number = best_fit(free, wish.bytes), free_number(numbers)
            if span is None:
                largest = max((item.bytes for item in free), default=0)
                self._to.refused[wish.key] = (
                    f"largest free extent {human_bytes(largest)} < {human_bytes(align_up(wish.bytes))}"
                )
            elif number is None:
                self._to.refused[wish.key] = "its partition table is full"
            elif not wish.confirmed:
                self._to.waiting[wish.key] = _UNCONFIRMED
            else:
                part = Partition(number, span.start, span.bytes, wish.id, wish.id, VOLUME_TYPE)
                steps.append(CarvePartition(self._disk.ssd, self._guid, part))
                numbers.add(number)
            if span is not None:
                taken.append(span)
        return steps

    def _release(self) -> None:
        for wish in self._wishes:
            part = self._present.get(wish.id)
            if part is None or not wish.released:
                continue
            if wish.exported:
                self._to.waiting[wish.key] = "an export of it is being taken down"
            else:
                self._to.steps += self._wipe(part, wish.wipe)

    def _wipe(self, part: Partition, mode: WipeMode) -> list[Step]:
        wipe = [WipePartition(self._disk.ssd, self._guid, part, mode)] if mode != "None" else []
        return [*wipe, RemovePartition(self._disk.ssd, self._guid, part)]

    def _wipe_orphans(self, asked: Requests, known: Mapping[str, str]) -> None:
        for volume, ssd in asked.wipe_orphans.items():
            part = self._present.get(volume)
            if ssd != self._disk.ssd or part is None:
                continue
            if volume in known:
                self._to.denied[volume] = f"it is volume {known[volume]}, no orphan: delete that"
            else:
                self._to.steps += self._wipe(part, "Zero")

    def _wipe_request(self, asked: Requests, known: Mapping[str, str]) -> bool:
        """Whether the whole SSD is wiped: nothing else is done on it then."""
        disk = self._disk
        shown = asked.wipe_ssds.get(disk.ssd)
        if shown is None:
            return False
        volumes = sorted(known[part.uuid] for part in volumes_of(disk.table) if part.uuid in known)
        volumes += [wish.key for wish in self._wishes if wish.key not in volumes]
        if self._verdict.state is SsdState.BLANK and not disk.half_claimed:
            return False  # it is done, or there was nothing to do
        if volumes:
            self._to.denied[disk.ssd] = f"it holds volumes {', '.join(volumes)}: delete them first"
        elif disk.held:
            self._to.denied[disk.ssd] = f"it is {disk.held}: end that first"
        elif not disk.fingerprint:
            self._to.denied[disk.ssd] = f"it cannot be told what is on it: {self._verdict.reason}"
        elif disk.fingerprint != shown:
            self._to.denied[disk.ssd] = (
                "what is on it is not what was shown any more: run kubectl flash wipe again, and look again"
            )
        else:
            self._to.steps.append(WipeSsd(disk.ssd, disk.fingerprint, disk.bytes))
            return True
        return False


_UNCONFIRMED = "the controller that placed it leads no longer: the one that does must confirm it"
