"""Volumes on the SSDs of one server: what to carve, what to release, what to leave alone and why. Pure.

`observe` has read every local SSD; this decides. An SSD is written only when a pool selects it *and* it is blank, or
already this cluster's and this server's own; the step itself proves it again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from kubeflash.api.quantity import human_bytes
from kubeflash.domain.allocation import Span, align_up, best_fit, free_number, free_spans
from kubeflash.domain.disk import LABEL_TYPE, LAYOUT_VERSION, VOLUME_TYPE, Label, Partition, PartitionTable
from kubeflash.domain.steps import CarvePartition, ClaimSsd, RemovePartition, ShowPartition, Step, WipePartition

WAY_OUT = "if nothing on it is needed: end what uses it, then wipefs --all and blkdiscard --zeroout it"


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
        table: its partition table, None without one.
        label: KubeFlash's label, None where there is none or the claim stopped before it was written.
        half_claimed: a claim of its owner was interrupted before the label was written.
        shown: numbers of the partitions in the table that the kernel shows at their place.
        findings: why it is not blank; empty for a blank one. Not looked at for a claimed one.
        trouble: why it cannot be used whatever is on it, such as two SSDs with one id.
    """

    ssd: str
    bytes: int
    table: PartitionTable | None = None
    label: Label | None = None
    half_claimed: bool = False
    shown: frozenset[int] = frozenset()
    findings: tuple[str, ...] = ()
    trouble: str = ""


@dataclass(frozen=True)
class Verdict:
    """What an SSD is, and why it is left alone when it is."""

    state: SsdState
    reason: str = ""


@dataclass(frozen=True)
class VolumeWish:
    """One volume that the controller placed on this server.

    Attributes:
        released: it is deleted, and nothing is attached to it any more: its bytes are to be wiped.
        exported: an export of it is wanted or recorded still.
    """

    key: str
    id: str
    ssd: str
    bytes: int
    released: bool
    exported: bool


@dataclass(frozen=True)
class CarvePlan:
    """Steps in order, and for each volume that cannot be had, why.

    Attributes:
        refused: by volume key: the agent's last word on this placement; the controller places it elsewhere.
        waiting: by volume key: why nothing happens now though it will.
    """

    steps: tuple[Step, ...]
    refused: Mapping[str, str]
    waiting: Mapping[str, str]


def volumes_of(table: PartitionTable | None) -> tuple[Partition, ...]:
    """KubeFlash's volumes in a partition table."""
    return tuple(part for part in table.partitions if part.type_guid == VOLUME_TYPE) if table else ()


def judge(disk: DiskView, owner: Label) -> Verdict:
    """What the SSD is to KubeFlash in this cluster on this server (`owner` is the label that it would carry here)."""
    if disk.trouble:
        return Verdict(SsdState.FOREIGN, disk.trouble)
    if disk.half_claimed:
        return Verdict(SsdState.BLANK)  # nothing but the beginning of our own claim is on it: the claim goes on
    table = disk.table
    labels = (
        [part for part in table.partitions if part.type_guid == LABEL_TYPE] if table and table.kind == "gpt" else []
    )
    if table is None or not labels:
        if disk.findings:
            return Verdict(SsdState.FOREIGN, f"not blank: {'; '.join(disk.findings)} ({WAY_OUT})")
        return Verdict(SsdState.BLANK)
    if disk.label is None:
        return Verdict(
            SsdState.FOREIGN,
            "it has KubeFlash's partition table but no label, and is not what an interrupted claim here leaves",
        )
    if disk.label.layout != LAYOUT_VERSION:
        return Verdict(
            SsdState.FOREIGN,
            f"its KubeFlash layout is version {disk.label.layout}, this agent knows {LAYOUT_VERSION}: "
            "run the release that wrote it",
        )
    for mine, its, what in (
        (owner.cluster_id, disk.label.cluster_id, "cluster"),
        (owner.system_uuid, disk.label.system_uuid, "server"),
        (owner.ssd, disk.label.ssd, "SSD"),
    ):
        if mine != its:
            return Verdict(SsdState.FOREIGN, f"it is KubeFlash's, but of {what} {its}, not of {mine}: left alone")
    strangers = [part for part in table.partitions if part.type_guid not in (LABEL_TYPE, VOLUME_TYPE)]
    if strangers:
        numbers = ", ".join(str(part.number) for part in strangers)
        return Verdict(SsdState.FOREIGN, f"somebody added partition {numbers} that is not KubeFlash's: no new volumes")
    return Verdict(SsdState.CLAIMED)


def plan_volumes(
    disks: Mapping[str, DiskView], owners: Mapping[str, Label], selected: Iterable[str], wishes: Sequence[VolumeWish]
) -> CarvePlan:
    """The steps that bring the partitions of this server to what its volumes want.

    Args:
        disks: the local SSDs by id.
        owners: by SSD id, the label that it carries, or would carry, here.
        selected: ids of the SSDs that a pool selects on this server.
        wishes: the volumes placed on this server.
    """
    steps: list[Step] = []
    refused: dict[str, str] = {}
    waiting: dict[str, str] = {}
    may_use = set(selected)
    counts = Counter(wish.id for wish in wishes)
    twice = [wish for wish in wishes if counts[wish.id] > 1]
    waiting.update({wish.key: f"several volumes say that they are {wish.id}: none is touched" for wish in twice})
    wishes = [wish for wish in wishes if counts[wish.id] == 1]
    for ssd in sorted({wish.ssd for wish in wishes}):
        mine = [wish for wish in wishes if wish.ssd == ssd]
        disk = disks.get(ssd)
        if disk is None:
            waiting.update({wish.key: f"SSD {ssd} is not in this server now" for wish in mine})
            continue
        steps += _plan_disk(disk, owners[ssd], ssd in may_use, mine, refused, waiting)
    return CarvePlan(tuple(steps), refused, waiting)


def _plan_disk(
    disk: DiskView,
    owner: Label,
    selected: bool,
    wishes: Sequence[VolumeWish],
    refused: dict[str, str],
    waiting: dict[str, str],
) -> list[Step]:
    steps: list[Step] = []
    verdict = judge(disk, owner)
    present = {part.uuid: part for part in volumes_of(disk.table)} if _is_ours(disk, owner) else {}
    for wish in wishes:
        part = present.get(wish.id)
        if part is None or not wish.released:
            continue
        if wish.exported:
            waiting[wish.key] = "an export of it is being taken down"
        else:
            steps += [
                WipePartition(disk.ssd, owner.disk_guid, part),
                RemovePartition(disk.ssd, owner.disk_guid, part),
            ]
    wanted = sorted((w for w in wishes if not w.released), key=lambda wish: (-wish.bytes, wish.id))
    steps += [
        ShowPartition(disk.ssd, owner.disk_guid, present[wish.id])
        for wish in wanted
        if wish.id in present and present[wish.id].number not in disk.shown
    ]
    missing = [wish for wish in wanted if wish.id not in present]
    if not missing:
        return steps
    if disk.trouble or (disk.label is not None and disk.label != owner):
        # What is on it cannot be told, or is another's: the volumes may well be there. Nothing is decided from that.
        waiting.update({wish.key: verdict.reason for wish in missing})
        return steps
    objection = verdict.reason if verdict.state is SsdState.FOREIGN else ""
    if not selected:
        objection = f"no pool selects SSD {disk.ssd} on this server"
    if objection:
        refused.update({wish.key: objection for wish in missing})
        return steps
    if verdict.state is SsdState.BLANK:
        steps.append(ClaimSsd(disk.ssd, owner))
    taken = [Span(part.start, part.bytes) for part in present.values()]
    numbers = {part.number for part in disk.table.partitions} if disk.table else {1}
    for wish in missing:
        span = best_fit(free_spans(disk.bytes, taken), wish.bytes)
        number = free_number(numbers)
        if span is None or number is None:
            largest = max((free.bytes for free in free_spans(disk.bytes, taken)), default=0)
            what = f"largest free extent {human_bytes(largest)} < {human_bytes(align_up(wish.bytes))}"
            refused[wish.key] = what if span is None else "its partition table is full"
            continue
        taken.append(span)
        numbers.add(number)
        part = Partition(number, span.start, span.bytes, wish.id, wish.id, VOLUME_TYPE)
        steps.append(CarvePartition(disk.ssd, owner.disk_guid, part))
    return steps


def _is_ours(disk: DiskView, owner: Label) -> bool:
    """Whether the volumes on it are this cluster's on this server, even where a stranger's partition stands beside."""
    return disk.label is not None and disk.label == owner and not disk.trouble
