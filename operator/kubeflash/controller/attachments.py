"""One FlashAttachment: local or over the fabric, keys, what it waits for, the end."""

from __future__ import annotations

from kubeflash.api.v1alpha1 import (
    FINALIZER,
    Fabric,
    FlashAttachment,
    FlashAttachmentStatus,
    FlashNode,
    FlashPool,
    FlashVolume,
    SealedKeys,
)
from kubeflash.controller.status import status_writes
from kubeflash.controller.volumes import consumer_is_gone
from kubeflash.domain import dhchap
from kubeflash.domain.cluster import Cluster
from kubeflash.domain.conditions import Finding, false, find, holds, true
from kubeflash.domain.dhchap import DhchapKeys
from kubeflash.domain.names import export_identity
from kubeflash.domain.sealing import SealBroken, seal
from kubeflash.kube.writes import Write, hold, let_go

FIELDS = ("observedGeneration", "path", "volumeId", "fabric", "keys")
CONDITIONS = ("Ready", "Exported")


def reconcile_attachment(attachment: FlashAttachment, cluster: Cluster) -> list[Write]:
    """What to write for one attachment."""
    if FINALIZER not in attachment.metadata.finalizers:
        return [] if attachment.deleting else [hold(attachment)]
    volume = cluster.volumes.get(f"{attachment.metadata.namespace}/{attachment.spec.volume}")
    if attachment.deleting and _is_over(attachment, volume, cluster):
        return [let_go(attachment)]
    status, findings = _decide(attachment, volume, cluster)
    # Keys are made once: guarded, so that of two controllers only one's keys are ever used.
    return status_writes(attachment, status, findings, FIELDS, cluster, at_times=CONDITIONS, guarded=True)


def _is_over(attachment: FlashAttachment, volume: FlashVolume | None, cluster: Cluster) -> bool:
    if attachment.status.path is None:
        return True
    if attachment.status.path == "Local":
        node = attachment.spec.node_name
        if node in cluster.purged or (volume is not None and volume.status.lost is not None):
            return True
        if volume is None and node not in cluster.nodes:  # a FlashNode with volumes is only gone once it was purged
            return True
        connected = find(attachment.status.conditions, "Connected")
        return connected is not None and connected.reason == "Disconnected"
    if volume is None or volume.status.lost is not None:  # a server that is lost for good exports nothing
        return consumer_is_gone(attachment, cluster)
    name = attachment.metadata.name
    exported = volume.status.exported.get(name)
    mine = exported is not None and exported.uid == attachment.metadata.uid
    return consumer_is_gone(attachment, cluster) and name not in volume.status.wanted and not mine


def _decide(
    attachment: FlashAttachment, volume: FlashVolume | None, cluster: Cluster
) -> tuple[FlashAttachmentStatus, list[Finding]]:
    before = FlashAttachmentStatus(
        path=attachment.status.path,
        volume_id=attachment.status.volume_id,
        fabric=attachment.status.fabric,
        keys=attachment.status.keys,
    )
    waiting = _obstacle(attachment, volume, cluster)
    if waiting is not None:
        return before, [waiting]
    assert volume is not None
    assert volume.status.node_name is not None
    consumer, storage = cluster.nodes[attachment.spec.node_name], cluster.nodes[volume.status.node_name]
    if volume.status.node_name == attachment.spec.node_name:
        local = FlashAttachmentStatus(path="Local", volume_id=volume.spec.id)
        return local, [_ready(attachment, cluster)]
    try:
        keys = attachment.status.keys or _make_keys(storage, consumer)
    except SealBroken as error:
        return before, [false("Ready", "KeysMissing", str(error))]
    lost = [
        node.metadata.name
        for node, public in ((storage, keys.storage_key), (consumer, keys.consumer_key))
        if node.status.public_key != public
    ]
    pool = cluster.pools.get(volume.spec.pool)
    fabric = _fabric(attachment, volume, pool)
    status = FlashAttachmentStatus(path="Fabric", volume_id=volume.spec.id, fabric=fabric, keys=keys)
    exported = volume.status.exported.get(attachment.metadata.name)
    if lost:
        message = f"server {', '.join(lost)} has another private key now and cannot read the keys: make it anew"
        return status, [false("Ready", "KeysLost", message)]
    if not fabric.portals:
        words = exported.message if exported and exported.message else "the volume's server builds the export"
        return status, [false("Ready", "NotExported", words), false("Exported", "Exporting", words)]
    return status, [_ready(attachment, cluster), true("Exported", "Exported", ", ".join(fabric.portals))]


def _obstacle(attachment: FlashAttachment, volume: FlashVolume | None, cluster: Cluster) -> Finding | None:
    """What keeps the attachment from being made at all."""
    if attachment.deleting:
        connected = find(attachment.status.conditions, "Connected")
        words = connected.message if connected is not None else ""
        reason = "InUse" if connected is not None and connected.reason == "InUse" else "Detaching"
        return false("Ready", reason, words or "it is being detached")
    name = attachment.spec.volume
    if volume is None:
        return false("Ready", "VolumeNotFound", f"there is no FlashVolume {name} in this namespace")
    if attachment.spec.node_name not in cluster.nodes:
        known = ", ".join(sorted(cluster.nodes)) or "none"
        return false("Ready", "NodeNotFound", f"there is no FlashNode {attachment.spec.node_name}; there are: {known}")
    if volume.status.lost is not None:
        message = f"FlashVolume {name} is lost with server {volume.status.lost.node_name}: delete both"
        return false("Ready", "VolumeLost", message)
    if volume.deleting:
        return false("Ready", "VolumeDeleting", f"FlashVolume {name} is being deleted")
    first = cluster.attachments_by_volume[volume.key][0]
    if first.metadata.uid != attachment.metadata.uid:
        message = (
            f"FlashVolume {name} is attached at server {first.spec.node_name} by {first.metadata.name}; "
            "one server at a time: delete that attachment first"
        )
        return false("Ready", "VolumeInUse", message)
    if not holds(volume.status.conditions, "Carved") or volume.status.node_name not in cluster.nodes:
        ready = find(volume.status.conditions, "Ready")
        words = ready.message if ready is not None else "the controller has not looked at it yet"
        return false("Ready", "VolumeNotReady", f"FlashVolume {name} is not Ready: {words}")
    return None


def _ready(attachment: FlashAttachment, cluster: Cluster) -> Finding:
    connected = find(attachment.status.conditions, "Connected")
    if connected is not None and connected.status == "True":
        return true("Ready", "Connected")
    if attachment.spec.node_name not in cluster.answering:
        message = f"the agent on server {attachment.spec.node_name} does not answer"
        return false("Ready", "AgentSilent", message)
    if connected is None:
        return false("Ready", "Connecting", "its server has not brought the device yet")
    return false("Ready", connected.reason, connected.message)


def _make_keys(storage: FlashNode, consumer: FlashNode) -> SealedKeys:
    keys = DhchapKeys(host=dhchap.generate(), controller=dhchap.generate())
    return SealedKeys(
        storage=seal(keys, storage.status.public_key),
        storage_key=storage.status.public_key,
        consumer=seal(keys, consumer.status.public_key),
        consumer_key=consumer.status.public_key,
    )


def _fabric(attachment: FlashAttachment, volume: FlashVolume, pool: FlashPool | None) -> Fabric:
    identity = export_identity(attachment.metadata.uid)
    exported = volume.status.exported.get(attachment.metadata.name)
    ready = exported is not None and exported.ready and exported.uid == attachment.metadata.uid
    before = attachment.status.fabric
    portals = list(exported.portals) if exported is not None and ready else list(before.portals) if before else []
    timing = pool.spec.export if pool is not None else before
    return Fabric(
        volume_id=volume.spec.id or "",
        nqn=identity.nqn,
        host_nqn=identity.host_nqn,
        host_id=identity.host_id,
        portals=portals,
        reconnect_seconds=timing.reconnect_seconds if timing else 2,
        loss_seconds=timing.loss_seconds if timing else 600,
    )
