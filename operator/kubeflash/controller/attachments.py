"""One FlashAttachment: local or over the fabric, keys, what it waits for, the end.

An attachment ends when its consumer cannot write any more: by the consumer's word, or by a fence that the storage
server reads back. Neither is waited for without a limit. A consumer that does not answer is fenced without its word; a
storage server that does not answer is dead, and then nobody writes, or it is only its agent that is, and that one takes
down what is not wanted before it exports, or gives out, the volume to anybody else.
"""

from __future__ import annotations

from kubeflash.api.v1alpha1 import (
    FINALIZER,
    Fabric,
    FlashAttachment,
    FlashAttachmentStatus,
    FlashNode,
    FlashPool,
    FlashVolume,
    Kernel,
    SealedKeys,
    Security,
)
from kubeflash.controller.status import status_writes
from kubeflash.controller.volumes import SILENCE_GRACE, consumer_is_gone, waited_for
from kubeflash.domain import dhchap, tlspsk
from kubeflash.domain.cluster import Cluster, servers_without_keys
from kubeflash.domain.conditions import Finding, false, find, holds, true
from kubeflash.domain.dhchap import DhchapKeys
from kubeflash.domain.names import export_identity
from kubeflash.domain.sealing import ExportKeys, SealBroken, seal
from kubeflash.kube.writes import Write, hold, let_go

FIELDS = ("observedGeneration", "path", "volumeId", "fabric", "keys")
CONDITIONS = ("Ready", "Exported", "Secured")


def reconcile_attachment(attachment: FlashAttachment, cluster: Cluster) -> list[Write]:
    """What to write for one attachment."""
    if FINALIZER not in attachment.metadata.finalizers:
        return [] if attachment.deleting else [hold(attachment)]
    volume = cluster.volumes.get(attachment.volume_key)
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
        if connected is not None and connected.reason == "Disconnected":
            return True
        # Its agent exports a volume, when it is back, only if nobody on its own server has it open.
        return node not in cluster.answering and waited_for(node, attachment, cluster) > SILENCE_GRACE
    if not consumer_is_gone(attachment, cluster):
        return False
    if volume is None or volume.status.lost is not None:  # a server that is lost for good exports nothing
        return True
    name = attachment.metadata.name
    if name not in volume.status.wanted and volume.status.export_of(attachment.metadata) is None:
        return True
    storage = volume.status.node_name
    silent = storage not in cluster.answering and waited_for(storage, attachment, cluster) > SILENCE_GRACE
    return silent and name not in volume.status.wanted


def _decide(
    attachment: FlashAttachment, volume: FlashVolume | None, cluster: Cluster
) -> tuple[FlashAttachmentStatus, list[Finding]]:
    before = FlashAttachmentStatus(
        path=attachment.status.path,
        volume_id=attachment.status.volume_id,
        fabric=attachment.status.fabric,
        keys=attachment.status.keys,
    )
    secured = _secured(before.fabric)
    waiting = _obstacle(attachment, volume, cluster)
    if waiting is not None:
        return before, [waiting, *secured]
    assert volume is not None
    assert volume.status.node_name is not None
    consumer, storage = cluster.nodes[attachment.spec.node_name], cluster.nodes[volume.status.node_name]
    if volume.status.node_name == attachment.spec.node_name:
        if attachment.spec.read_only and volume.spec.sharing == "Shared":
            words = (
                "the local device of a Shared volume cannot be read-only while others write to it: attach it read-only "
                "at another server, or without readOnly here"
            )
            return before, [false("Ready", "ReadOnlyRefused", words)]
        local = FlashAttachmentStatus(path="Local", volume_id=volume.spec.id)
        return local, [_ready(attachment, cluster)]
    pool = cluster.pools.get(volume.spec.pool)
    fabric = _fabric(attachment, volume, pool)
    secured = _secured(fabric)
    transport = pool.spec.export.transport if pool is not None else "tcp"
    lacking = _lacking(storage, consumer, fabric, transport) if before.fabric is None else ""
    if lacking:
        return before, [false("Ready", "KernelLacks", lacking), *secured]
    keys = attachment.status.keys
    try:
        keys = keys or _make_keys(storage, consumer, fabric)
    except SealBroken as error:
        return before, [false("Ready", "KeysMissing", str(error)), *secured]
    status = FlashAttachmentStatus(path="Fabric", volume_id=volume.spec.id, fabric=fabric, keys=keys)
    lost = servers_without_keys(status, storage, consumer)
    exported = volume.status.exported.get(attachment.metadata.name)
    if keys is not None and keys.storage_node not in ("", storage.metadata.name) and storage.metadata.name in lost:
        message = (
            f"the volume's SSD moved from server {keys.storage_node} to {storage.metadata.name}, which cannot read the "
            "keys: delete the attachment and make it anew"
        )
        return status, [false("Ready", "VolumeMoved", message), *secured]
    if lost:
        message = f"server {', '.join(lost)} has another private key now and cannot read the keys: make it anew"
        return status, [false("Ready", "KeysLost", message), *secured]
    if not fabric.portals:
        words = exported.message if exported and exported.message else "the volume's server builds the export"
        return status, [false("Ready", "NotExported", words), false("Exported", "Exporting", words), *secured]
    if exported is not None and exported.message and not exported.ready:
        broken = false("Exported", "NotExported", exported.message)
        return status, [false("Ready", broken.reason, broken.message), broken, *secured]
    where = ", ".join(fabric.portals)
    words = f"{where}; {exported.message}" if exported is not None and exported.message else where
    return status, [_ready(attachment, cluster), true("Exported", "Exported", words), *secured]


def _secured(fabric: Fabric | None) -> list[Finding]:
    """How an export is guarded, said aloud where it is not."""
    if fabric is None:
        return []
    if fabric.authentication != "None":
        tls = "; TLS 1.3" if fabric.tls == "Required" else ""
        return [true("Secured", "Bidirectional", f"DH-HMAC-CHAP in both directions{tls}")]
    words = (
        "security.authentication of its pool is None: whoever reaches the port and knows the host NQN, which is no "
        "secret, reads and writes the volume"
    )
    return [false("Secured", "NoAuthentication", words)]


def _lacking(storage: FlashNode, consumer: FlashNode, fabric: Fabric, transport: str) -> str:
    """What the kernels of the two servers cannot do of what the attachment needs; empty when they can."""
    needs = {"tcp": ("nvmet", "nvmet_tcp"), "rdma": ("nvmet", "nvmet_rdma")}[transport]
    wants = {"tcp": ("nvme_tcp",), "rdma": ("nvme_rdma",)}[transport]
    both = (
        *(("authentication",) if fabric.authentication != "None" else ()),
        *(("tls",) if fabric.tls == "Required" else ()),
    )
    lacks = [
        f"server {node.metadata.name} lacks {name.replace('_', '-')}: {ability.how or 'its agent has not said yet'}"
        for node, names in ((storage, (*needs, *both)), (consumer, (*wants, *both)))
        for name in names
        for ability in [getattr(node.status.linux or Kernel(), name)]
        if not ability.available
    ]
    return "; ".join(lacks)


def _obstacle(attachment: FlashAttachment, volume: FlashVolume | None, cluster: Cluster) -> Finding | None:
    """What keeps the attachment from being made at all."""
    if attachment.deleting:
        return _detaching(attachment, volume, cluster)
    name = attachment.spec.volume
    if volume is None:
        return false("Ready", "VolumeNotFound", f"there is no FlashVolume {name} in this namespace")
    if attachment.spec.node_name not in cluster.nodes:
        known = ", ".join(sorted(cluster.nodes)) or "none"
        return false("Ready", "NodeNotFound", f"there is no FlashNode {attachment.spec.node_name}; there are: {known}")
    if attachment.status.volume_id is not None and attachment.status.volume_id != volume.spec.id:
        message = (
            f"FlashVolume {name} is another one than the one that was attached: delete the attachment, make it anew"
        )
        return false("Ready", "VolumeReplaced", message)
    if volume.status.lost is not None:
        message = f"FlashVolume {name} is lost with server {volume.status.lost.node_name}: delete both"
        return false("Ready", "VolumeLost", message)
    if volume.deleting:
        return false("Ready", "VolumeDeleting", f"FlashVolume {name} is being deleted")
    attachments = cluster.attachments_by_volume[volume.key]
    if volume.spec.sharing == "Shared":
        same = [item for item in attachments if item.spec.node_name == attachment.spec.node_name]
        if same[0].metadata.uid != attachment.metadata.uid:
            message = (
                f"server {attachment.spec.node_name} has the volume already, by attachment {same[0].metadata.name}"
            )
            return false("Ready", "AlreadyAttached", message)
    elif (first := attachments[0]).metadata.uid != attachment.metadata.uid:
        message = (
            f"FlashVolume {name} is attached at server {first.spec.node_name} by {first.metadata.name}; "
            "one server at a time: delete that attachment first"
        )
        return false("Ready", "VolumeInUse", message)
    if attachment.status.path is None and (before := _not_fenced(attachment, volume)):
        message = f"the export of attachment {before}, which is gone, is not taken down yet"
        return false("Ready", "Fencing", message)
    if not holds(volume.status.conditions, "Carved") or volume.status.node_name not in cluster.nodes:
        ready = find(volume.status.conditions, "Ready")
        words = ready.message if ready is not None else "the controller has not looked at it yet"
        return false("Ready", "VolumeNotReady", f"FlashVolume {name} is not Ready: {words}")
    return None


def _not_fenced(attachment: FlashAttachment, volume: FlashVolume) -> str:
    """The attachment that had an exclusive volume before, while its export may still be there."""
    if volume.spec.sharing == "Shared":
        return ""
    left = [name for name, item in volume.status.exported.items() if item.uid != attachment.metadata.uid]
    return ", ".join(sorted(left))


def _detaching(attachment: FlashAttachment, volume: FlashVolume | None, cluster: Cluster) -> Finding:
    """What the end of an attachment waits for."""
    connected = find(attachment.status.conditions, "Connected")
    exported = volume.status.exported.get(attachment.metadata.name) if volume is not None else None
    storage = cluster.nodes.get(volume.status.node_name or "") if volume is not None else None
    halted = _halted(storage) if exported is not None and exported.fencing else None
    if halted is not None:
        return halted
    if exported is not None and exported.fencing:
        words = exported.message or "its export is taken down"
        return false("Ready", "FenceStuck" if exported.message else "Fencing", words)
    if connected is not None and connected.reason == "InUse" and attachment.spec.node_name in cluster.answering:
        return false("Ready", "InUse", connected.message)
    if attachment.status.path == "Fabric" and attachment.spec.node_name not in cluster.answering:
        words = (
            f"the agent on server {attachment.spec.node_name} does not answer: {SILENCE_GRACE:g} s after the deletion "
            "its export is fenced without its word"
        )
        return false("Ready", "Detaching", words)
    words = connected.message if connected is not None else ""
    return false("Ready", "Detaching", words or "it is being detached")


def _halted(storage: FlashNode | None) -> Finding | None:
    """Why the storage server takes no export down now; None when it does."""
    if storage is None:
        return None
    if storage.spec.paused:
        words = f"server {storage.metadata.name} is paused (spec.paused of its FlashNode): its export stays"
        return false("Ready", "Paused", words)
    ready = find(storage.status.conditions, "Ready")
    if ready is not None and ready.reason == "InDoubt":
        return false("Ready", "InDoubt", f"server {storage.metadata.name}: {ready.message}")
    return None


def _ready(attachment: FlashAttachment, cluster: Cluster) -> Finding:
    connected = find(attachment.status.conditions, "Connected")
    answers = attachment.spec.node_name in cluster.answering
    if connected is not None and connected.status == "True" and not answers:
        words = f"the agent on server {attachment.spec.node_name} does not answer; it said last that it is connected"
        return Finding("Ready", "Unknown", "AgentSilent", words)
    if connected is not None and connected.status == "True":
        return true("Ready", "Connected")
    if not answers:
        message = f"the agent on server {attachment.spec.node_name} does not answer"
        return false("Ready", "AgentSilent", message)
    if connected is None:
        return false("Ready", "Connecting", "its server has not brought the device yet")
    return false("Ready", connected.reason, connected.message)


def _make_keys(storage: FlashNode, consumer: FlashNode, fabric: Fabric) -> SealedKeys | None:
    """Fresh keys for what the attachment uses, sealed to both servers; None when it uses none."""
    authenticated, tls = fabric.authentication != "None", fabric.tls == "Required"
    if not authenticated and not tls:
        return None
    keys = ExportKeys(
        dhchap=DhchapKeys(host=dhchap.generate(), controller=dhchap.generate()) if authenticated else None,
        psk=tlspsk.generate() if tls else None,
    )
    return SealedKeys(
        storage=seal(keys, storage.status.public_key),
        storage_key=storage.status.public_key,
        storage_node=storage.metadata.name,
        consumer=seal(keys, consumer.status.public_key),
        consumer_key=consumer.status.public_key,
    )


def _fabric(attachment: FlashAttachment, volume: FlashVolume, pool: FlashPool | None) -> Fabric:
    identity = export_identity(attachment.metadata.uid)
    exported = volume.status.export_of(attachment.metadata)
    before = attachment.status.fabric
    ready = exported if exported is not None and exported.ready else before
    portals = list(ready.portals) if ready is not None else []
    timing = pool.spec.export if pool is not None else before
    security = before or (pool.spec.security if pool is not None else Security())  # never changed under a consumer
    return Fabric(
        volume_id=volume.spec.id or "",
        nqn=identity.nqn,
        host_nqn=identity.host_nqn,
        host_id=identity.host_id,
        portals=portals,
        reconnect_seconds=timing.reconnect_seconds if timing else 2,
        loss_seconds=timing.loss_seconds if timing else 600,
        authentication=security.authentication,
        tls=security.tls,
    )
