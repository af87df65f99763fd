"""What was achieved, from read-back: the statuses that this server's agent writes. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

from kubeflash.agent.observation import Observation
from kubeflash.agent.pairs import SOUND, report_pairs
from kubeflash.agent.wishes import is_released
from kubeflash.api.quantity import Quantity, human_bytes
from kubeflash.api.v1alpha1 import (
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
    Ssd,
)
from kubeflash.domain.allocation import Span, free_spans
from kubeflash.domain.carving import SsdState, judge, volumes_of
from kubeflash.domain.conditions import Finding, false, merge, true
from kubeflash.domain.connecting import view_attachment
from kubeflash.domain.names import partition_link
from kubeflash.domain.pairs import best_of
from kubeflash.host.gpus import NO_GPU_FACTS, GpuFacts
from kubeflash.host.inventory import Inventory
from kubeflash.host.nvme import NvmeSsd
from kubeflash.kube.writes import Apply, differs, status_json
from kubeflash.topology.analysis import is_neighbour
from kubeflash.topology.flashnode import to_location
from kubeflash.topology.tree import PciDevice

MANAGER = "kubeflash-agent"
NODE_FIELDS = (
    "observedGeneration",
    "systemUUID",
    "linux",
    "publicKey",
    "internalAddress",
    "addresses",
    "gpus",
    "ssds",
    "pairs",
    "best",
    "switched",
    "summary",
)
VOLUME_FIELDS = ("bytes", "device", "refused", "exported")
ATTACHMENT_FIELDS = ("device",)


def report_ssds(observation: Observation, pools: Mapping[str, str]) -> list[Ssd]:
    """The local SSDs with what is on them. `pools` names the pool of each selected SSD."""
    return [_ssd(ssd, observation, pools.get(ssd.id)) for ssd in observation.inventory.ssds]


def _ssd(ssd: NvmeSsd, observation: Observation, pool: str | None) -> Ssd:
    disk = observation.disks[ssd.id]
    verdict = judge(disk, observation.owners[ssd.id])
    volumes = volumes_of(disk.table)
    free = free_spans(ssd.bytes, [Span(part.start, part.bytes) for part in volumes])
    usable = pool is not None and verdict.state is not SsdState.FOREIGN
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
        pool=pool,
        health=health.lasting if health is not None else None,
        free=Quantity(sum(span.bytes for span in free)) if usable else None,
        largest=Quantity(max((span.bytes for span in free), default=0)) if usable else None,
        volumes=[Extent(id=part.uuid, number=part.number, start=part.start, bytes=part.bytes) for part in volumes],
    )


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


def report_node(
    node: FlashNode, observation: Observation, pools: Mapping[str, str], public_key: str, now: datetime
) -> Apply | None:
    """The server's own status; None when it says so already."""
    inventory = observation.inventory
    ssds = report_ssds(observation, pools)
    pairs = report_pairs(node, inventory, ssds, now)
    gpus = report_gpus(inventory, pairs.pairs)
    generation = node.metadata.generation
    status = FlashNodeStatus(
        observed_generation=generation,
        system_uuid=inventory.system_uuid,
        linux=inventory.kernel,
        public_key=public_key,
        internal_address=observation.internal,
        addresses=list(observation.addresses),
        gpus=gpus,
        ssds=ssds,
        pairs=pairs.pairs,
        best=pairs.best,
        switched=inventory.switched,
        summary=_summary(gpus, ssds, inventory),
    )
    findings = [_ready(node, observation), pairs.sound]
    conditions = merge(node.status.conditions, findings, generation=generation, now=now)
    intent = status_json(status, NODE_FIELDS, conditions)
    return Apply(node, intent, MANAGER) if differs(node.status, intent, NODE_FIELDS, ("Ready", SOUND)) else None


def _ready(node: FlashNode, observation: Observation) -> Finding:
    if node.spec.paused:
        return true("Ready", "Paused", "spec.paused: the agent observes and reports, and changes nothing")
    worn = [f"SSD {ssd}: {'; '.join(said.critical)}" for ssd, said in observation.health.items() if said.critical]
    problems = [*observation.inventory.problems, *worn]
    if problems:
        return true("Ready", "Problems", "; ".join(problems))
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
    )


def report_volume(
    volume: FlashVolume,
    observation: Observation,
    *,
    exported: Mapping[str, Exported],
    refused: str,
    waiting: str,
    failure: str,
    now: datetime,
) -> Apply | None:
    """One volume placed on this server; None when its status says so already.

    Args:
        volume: the volume.
        observation: what is.
        exported: the exports that this server has of it, by attachment.
        refused: why this server will not carve it; empty when it will.
        waiting: what it waits for.
        failure: what the last try said.
        now: the time.
    """
    disk = observation.disks.get(volume.status.ssd or "")
    part = next((item for item in volumes_of(disk.table) if item.uuid == volume.spec.id), None) if disk else None
    shown = volume.spec.id in observation.partitions
    status = FlashVolumeStatus(exported=dict(exported))
    if part is not None and shown:
        update = {"bytes": part.bytes, "device": partition_link(part.uuid)}
        status = status.model_copy(update=update)
    if refused and volume.status.ssd:
        status = status.model_copy(update={"refused": {volume.status.ssd: refused}})
    if is_released(volume):
        words = failure or waiting or "it is wiped and removed"
        gone = is_gone(volume, observation)
        carved = (
            false("Carved", "Released", "its bytes are wiped and free") if gone else false("Carved", "Releasing", words)
        )
    elif part is not None and shown:
        carved = true("Carved", "Carved", f"partition {part.number}, {part.bytes} bytes at {part.start}")
    elif refused:
        carved = false("Carved", "Refused", refused)
    else:
        carved = false("Carved", "CarveFailed" if failure else "Carving", failure or waiting or "it is being carved")
    conditions = merge(volume.status.conditions, [carved], generation=volume.metadata.generation, now=now)
    intent = status_json(status, VOLUME_FIELDS, conditions)
    return Apply(volume, intent, MANAGER) if differs(volume.status, intent, VOLUME_FIELDS, ("Carved",)) else None


def is_gone(volume: FlashVolume, observation: Observation) -> bool:
    """Whether the volume's bytes are free again for certain: its SSD was read, and holds no such partition.

    An SSD that is not there, cannot be read, or is another's says nothing about the volume.
    """
    ssd = volume.status.ssd or ""
    disk = observation.disks.get(ssd)
    if disk is None or disk.trouble or any(part.uuid == volume.spec.id for part in volumes_of(disk.table)):
        return False
    return disk.label is None or disk.label == observation.owners[ssd]


def report_attachment(
    attachment: FlashAttachment, observation: Observation, failure: str, now: datetime
) -> Apply | None:
    """One attachment at this server; None when its status says so already."""
    view = view_attachment(
        attachment,
        observation.connections,
        observation.partitions,
        observation.held.get(attachment.status.volume_id or ""),
        failure,
    )
    connected = (
        true("Connected", view.reason) if view.reason == "Connected" else false("Connected", view.reason, view.message)
    )
    status = FlashAttachmentStatus(device=view.device)
    conditions = merge(attachment.status.conditions, [connected], generation=attachment.metadata.generation, now=now)
    intent = status_json(status, ATTACHMENT_FIELDS, conditions)
    if not differs(attachment.status, intent, ATTACHMENT_FIELDS, ("Connected",)):
        return None
    return Apply(attachment, intent, MANAGER)
