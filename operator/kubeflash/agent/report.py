"""What was achieved, from read-back: the statuses that this server's agent writes. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from kubeflash import __version__
from kubeflash.agent.jobs import Jobs
from kubeflash.agent.observation import Observation
from kubeflash.agent.pairs import report_pairs
from kubeflash.agent.wishes import is_fresh, is_released
from kubeflash.api.quantity import Quantity, human_bytes
from kubeflash.api.v1alpha1 import (
    AgentInfo,
    Exported,
    Extent,
    FlashAttachment,
    FlashAttachmentStatus,
    FlashNode,
    FlashNodeStatus,
    FlashVolume,
    FlashVolumeStatus,
    Gpu,
    Nearest,
    NodePair,
    NodeSummary,
    PlannedStep,
    Ssd,
)
from kubeflash.domain.allocation import Span, align_up, free_spans
from kubeflash.domain.carving import Selection, SsdState, is_ours, judge, labelled, own_volumes, volumes_of
from kubeflash.domain.conditions import Finding, false, true
from kubeflash.domain.connecting import Consumer, view_attachment
from kubeflash.domain.disk import Partition
from kubeflash.domain.ledger import granted
from kubeflash.domain.names import partition_link
from kubeflash.domain.pairs import best_of
from kubeflash.domain.steps import Step, WipeSsd
from kubeflash.host.gpus import NO_GPU_FACTS, GpuFacts
from kubeflash.host.inventory import Inventory
from kubeflash.host.nvme import NvmeSsd
from kubeflash.kube.writes import Apply, say
from kubeflash.topology.analysis import is_neighbour
from kubeflash.topology.flashnode import to_location
from kubeflash.topology.tree import PciDevice

MANAGER = "kubeflash-agent"
NODE_FIELDS = (
    "observedGeneration",
    "systemUUID",
    "agent",
    "linux",
    "publicKey",
    "internalAddress",
    "addresses",
    "gpus",
    "ssds",
    "pairs",
    "best",
    "switched",
    "plan",
    "summary",
)
VOLUME_FIELDS = ("bytes", "device", "refused", "exported")
ATTACHMENT_FIELDS = ("device", "connection")
PLAN_STEPS = 1024
"""Steps that a FlashNode lists at the most."""


def report_ssds(observation: Observation, selected: Mapping[str, Selection], known: Mapping[str, str]) -> list[Ssd]:
    """The local SSDs with what is on them.

    Args:
        observation: what is.
        selected: the pool of each selected SSD, by SSD id.
        known: the volumes of this server: namespace/name by volume id.
    """
    return [_ssd(ssd, observation, selected.get(ssd.id), known) for ssd in observation.inventory.ssds]


def _ssd(ssd: NvmeSsd, observation: Observation, selection: Selection | None, known: Mapping[str, str]) -> Ssd:
    disk, owner = observation.disks[ssd.id], observation.owners[ssd.id]
    verdict = judge(disk, owner)
    volumes = own_volumes(disk, owner)
    free = free_spans(
        ssd.bytes, [Span(part.start, part.bytes) for part in volumes], selection.reserve if selection else 0
    )
    usable = selection is not None and verdict.state is not SsdState.FOREIGN
    health = observation.health.get(ssd.id)
    return Ssd(
        **to_location(ssd.pci).model_dump(),
        id=ssd.id,
        serial=ssd.serial,
        model=ssd.model,
        firmware=ssd.firmware,
        bytes=ssd.bytes,
        namespace_id=ssd.namespace_id,
        state=verdict.state.value,
        reason=verdict.reason,
        labelled=labelled(disk, owner),
        failing="; ".join(_failing(ssd.id, observation)),
        held=disk.held,
        fingerprint=disk.fingerprint or None,
        pool=selection.pool if selection is not None else None,
        health=health.lasting if health is not None else None,
        free=Quantity(sum(span.bytes for span in free)) if usable else None,
        largest=Quantity(max((span.bytes for span in free), default=0)) if usable else None,
        volumes=[
            Extent(id=part.uuid, number=part.number, start=part.start, bytes=part.bytes, volume=known.get(part.uuid))
            for part in volumes
        ],
    )


def _failing(ssd: str, observation: Observation) -> Iterator[str]:
    """Why an SSD should get no new volumes, though it works."""
    health, errors = observation.health.get(ssd), observation.errors.get(ssd, 0)
    if health is not None:
        yield from (f"SMART: {words}" for words in health.critical)
    if observation.disks[ssd].read_only:
        yield "the kernel has it read-only: it is worn out, or write-protected"
    if errors:
        yield f"{errors} I/O error{'s' if errors > 1 else ''} since it was plugged in or the server booted: see dmesg"


def report_gpus(inventory: Inventory, pairs: Sequence[NodePair]) -> list[Gpu]:
    """The GPUs, each with the nearest SSD that is not somebody else's."""
    nearest = {
        gpu: Nearest(ssd=item.id, address=item.ssd, distance=item.distance) for gpu, item in best_of(pairs).items()
    }
    return [_gpu(gpu, inventory.gpu_facts.get(gpu.address, NO_GPU_FACTS), nearest) for gpu in inventory.gpus]


def _gpu(gpu: PciDevice, facts: GpuFacts, nearest: Mapping[str, Nearest]) -> Gpu:
    return Gpu(
        **to_location(gpu, gpu=True).model_dump(),
        vendor=gpu.vendor,
        device=gpu.device,
        device_class=gpu.class_code,
        model=facts.model,
        uuid=facts.uuid,
        minor=facts.minor,
        nearest=nearest.get(gpu.address),
    )


def report_plan(steps: Sequence[Step], denied: Mapping[str, str], jobs: Jobs) -> list[PlannedStep]:
    """What is still to be done, what runs first; and what an admin asked for and is not done.

    Args:
        steps: what the plan says.
        denied: by SSD or volume id, why what an admin asked for is not done.
        jobs: what runs, and what failed.
    """
    found: list[PlannedStep] = []
    under_way = jobs.under_way()
    for step in (*under_way, *(step for step in steps if step not in under_way)):
        running = jobs.running(step.subject)
        if running is not None and running.step == step:
            found.append(_planned(step, "Running", running.words))
        elif step not in under_way and jobs.words(step.subject, step.group):
            found.append(_planned(step, "Failed", jobs.words(step.subject, step.group)))
        else:
            found.append(_planned(step, "Pending", ""))
    found += [
        PlannedStep(step=WipeSsd.__name__, what=f"wipe {name}", state="Failed", message=words)
        for name, words in denied.items()
    ]
    return found[:PLAN_STEPS]


def _planned(step: Step, state: Literal["Pending", "Running", "Failed"], words: str) -> PlannedStep:
    return PlannedStep(step=type(step).__name__, what=step.describe(), expects=step.expects, state=state, message=words)


@dataclass(frozen=True)
class Voice:
    """What an agent says of itself.

    Attributes:
        public_key: keys meant for it are sealed to this one.
        namespace: the one that KubeFlash runs in.
        doubt: why it takes nothing down; empty when it does.
        heard: whether it renews its Lease, so that others take it for one that answers.
    """

    public_key: str
    namespace: str
    doubt: str = ""
    heard: bool = True


def report_node(
    node: FlashNode,
    observation: Observation,
    selected: Mapping[str, Selection],
    known: Mapping[str, str],
    *,
    plan: Sequence[PlannedStep],
    voice: Voice,
    now: datetime,
) -> Apply | None:
    """The server's own status; None when it says so already.

    Args:
        node: its FlashNode.
        observation: what is.
        selected: the pool of each selected SSD, by SSD id.
        known: the volumes of this server: namespace/name by volume id.
        plan: what `report_plan` made.
        voice: what the agent says of itself.
        now: the time.
    """
    inventory = observation.inventory
    ssds = report_ssds(observation, selected, known)
    pairs = report_pairs(node, inventory, ssds, now)
    gpus = report_gpus(inventory, pairs.pairs)
    status = FlashNodeStatus(
        system_uuid=inventory.system_uuid,
        agent=AgentInfo(version=__version__, namespace=voice.namespace),
        linux=inventory.kernel,
        public_key=voice.public_key,
        internal_address=observation.internal,
        addresses=list(observation.addresses),
        gpus=gpus,
        ssds=ssds,
        pairs=pairs.pairs,
        best=pairs.best,
        switched=inventory.switched,
        plan=list(plan),
        summary=_summary(gpus, ssds, inventory),
    )
    # An agent that cannot renew its Lease leaves Ready to the controller, which says that it is silent.
    findings = [_ready(node, inventory, ssds, voice.doubt), pairs.sound] if voice.heard else [pairs.sound]
    return say(node, status, findings, NODE_FIELDS, manager=MANAGER, now=now)


def _ready(node: FlashNode, inventory: Inventory, ssds: Sequence[Ssd], doubt: str) -> Finding:
    if doubt:
        return true("Ready", "InDoubt", f"nothing is taken down or released: {doubt}")
    if node.spec.paused:
        return true("Ready", "Paused", "spec.paused: the agent observes and reports, and changes nothing")
    problems = [*inventory.problems, *(f"SSD {ssd.id}: {ssd.failing}" for ssd in ssds if ssd.failing)]
    if problems:
        return true("Ready", "Problems", "; ".join(problems))
    if node.spec.maintenance:
        return true("Ready", "Maintenance", "spec.maintenance: nothing new is placed here; what is there works on")
    return true("Ready", "AgentRunning")


def _summary(gpus: list[Gpu], ssds: list[Ssd], inventory: Inventory) -> NodeSummary:
    every = [gpu.nearest.distance for gpu in gpus if gpu.nearest is not None]
    distances = [item for item in every if is_neighbour(item, switches=inventory.switched)]
    farthest = f" {max(distances, key=lambda item: item.rank)}" if distances else ""
    return NodeSummary(
        gpus=len(gpus),
        ssds=len(ssds),
        neighbours=f"{len(distances)}/{len(gpus)}{farthest}",
        free=human_bytes(sum(ssd.free or 0 for ssd in ssds)),
        pools=",".join(sorted({ssd.pool for ssd in ssds if ssd.pool})) or "-",
        orphans=sum(extent.volume is None for ssd in ssds if ssd.labelled is None for extent in ssd.volumes),
    )


@dataclass(frozen=True)
class VolumeState:
    """What the plan and the jobs say of one volume; each is empty when there is nothing to say.

    Attributes:
        refused: why this server will not carve it.
        missing: its bytes were there, and are not any more.
        waiting: what it waits for.
        cramped: why it cannot grow.
        failure: what the last try said.
        progress: how far what runs is.
        unseen: it has grown, and an export does not show that yet: its size is not reported before.
        contested: another volume says that it is this one: nothing is said of the bytes to either.
        touched: a step of it was under way, or yet to come, when the server was looked at: it may be carved since.
    """

    refused: str = ""
    missing: str = ""
    waiting: str = ""
    cramped: str = ""
    failure: str = ""
    progress: str = ""
    unseen: bool = False
    contested: bool = False
    touched: bool = False


def report_volume(
    volume: FlashVolume,
    observation: Observation,
    state: VolumeState,
    *,
    exported: Mapping[str, Exported],
    now: datetime,
) -> Apply | None:
    """One volume placed on this server; None when its status says so already.

    Args:
        volume: the volume.
        observation: what is.
        state: what the plan and the jobs say of it.
        exported: the exports that this server has of it, by attachment.
        now: the time.
    """
    part = None if state.contested else _partition(volume, observation)
    shown = volume.spec.id in observation.partitions
    status = FlashVolumeStatus(exported=dict(exported))
    before = volume.status.bytes
    if part is not None and shown:
        count = before if state.unseen and before is not None else part.bytes
        status = status.model_copy(update={"bytes": count, "device": partition_link(part.uuid)})
    elif before is not None and not (is_released(volume) and is_gone(volume, observation, state)):
        status = status.model_copy(update={"bytes": before})  # what was once carved is never made anew
    if state.refused and volume.status.ssd:
        status = status.model_copy(update={"refused": {volume.status.ssd: state.refused}})
    carved = _carved(volume, observation, state, part if shown else None)
    return say(volume, status, [carved], VOLUME_FIELDS, manager=MANAGER, now=now)


def _partition(volume: FlashVolume, observation: Observation) -> Partition | None:
    """The volume's partition, on an SSD that is this cluster's and this server's."""
    ssd = volume.status.ssd or ""
    disk = observation.disks.get(ssd)
    if disk is None or not is_ours(disk, observation.owners[ssd]):
        return None
    return next((item for item in volumes_of(disk.table) if item.uuid == volume.spec.id), None)


def _carved(volume: FlashVolume, observation: Observation, state: VolumeState, part: Partition | None) -> Finding:
    """What is so about the volume's bytes."""
    # What failed may be long past; what it waits for is so now.
    words = "; ".join(filter(None, (state.waiting, state.failure, state.progress)))
    if is_released(volume):
        if is_gone(volume, observation, state):
            return false("Carved", "Released", "its bytes are wiped and free")
        return false("Carved", "Releasing", words or "it is wiped and removed")
    if part is not None:
        where = f"partition {part.number}, {part.bytes} bytes at {part.start}"
        if align_up(granted(volume)) > part.bytes:
            why = state.cramped or state.failure
            reason = "CannotGrow" if why else "Growing"
            return true("Carved", reason, f"{where}; {why or 'it is growing'}")
        return true("Carved", "Carved", where)
    if state.missing:
        return false("Carved", "Missing", f"{state.missing}. Its data is gone: delete the volume and make another")
    if state.refused:
        return false("Carved", "Refused", state.refused)
    if not is_fresh(volume):  # its bytes exist, and cannot be reached now
        return false("Carved", "Unreachable", words or "its SSD is looked at")
    return false("Carved", "CarveFailed" if state.failure else "Carving", words or "it is being carved")


def is_gone(volume: FlashVolume, observation: Observation, state: VolumeState) -> bool:
    """Whether the volume's bytes are free again for certain: its SSD was read, holds no such partition, and gets none.

    An SSD that is not there, cannot be read, or is another's says nothing about the volume.
    """
    ssd = volume.status.ssd or ""
    disk = observation.disks.get(ssd)
    if (
        state.touched
        or disk is None
        or disk.trouble
        or any(part.uuid == volume.spec.id for part in volumes_of(disk.table))
    ):
        return False
    return disk.label is None or disk.label == observation.owners[ssd]


def report_attachment(
    attachment: FlashAttachment, here: Consumer, held: str | None, failure: str, now: datetime
) -> Apply | None:
    """One attachment at this server; None when its status says so already. The arguments are `view_attachment`'s."""
    view = view_attachment(attachment, here, held, failure, now)
    connected = (
        true("Connected", view.reason, view.message)
        if view.reason == "Connected"
        else false("Connected", view.reason, view.message)
    )
    status = FlashAttachmentStatus(device=view.device, connection=view.connection)
    return say(attachment, status, [connected], ATTACHMENT_FIELDS, manager=MANAGER, now=now)
