"""One FlashVolume: finalizer and id, placement, growth, the exports wanted, release."""

from __future__ import annotations

from uuid import uuid4

from kubeflash.api.quantity import Quantity, format_quantity
from kubeflash.api.v1alpha1 import (
    FINALIZER,
    Condition,
    FlashAttachment,
    FlashNode,
    FlashVolume,
    FlashVolumeStatus,
    Lost,
    WantedExport,
)
from kubeflash.controller.status import status_writes
from kubeflash.domain.allocation import align_up
from kubeflash.domain.cluster import Cluster
from kubeflash.domain.conditions import Finding, false, find, holds, true
from kubeflash.domain.names import export_identity
from kubeflash.domain.placement import Placement, Refusal, grow, near_gpu, settle, was_carved, whereabouts
from kubeflash.kube.writes import Write, hold, let_go
from kubeflash.topology.analysis import is_neighbour

FIELDS = (
    "observedGeneration",
    "id",
    "nodeName",
    "ssd",
    "distance",
    "p2p",
    "granted",
    "grantedBy",
    "lost",
    "release",
    "wanted",
)
CONDITIONS = ("Ready", "Placed", "Neighbour", "Resized", "Healthy")
DISCONNECT_GRACE = 60.0
"""Seconds that a consumer has for disconnecting, once it tries, before its export is fenced without its word."""
SILENCE_GRACE = 90.0
"""Seconds of silence after which the export of a deleted attachment is fenced without its consumer's word."""
LEAVING = "Disconnecting"
"""What a consumer says of a deleted attachment that nobody uses there, and that it has not got rid of yet."""


def reconcile_volume(volume: FlashVolume, cluster: Cluster) -> list[Write]:
    """What to write for one volume. What is decided is written into the ledger, so that the next one sees it.

    A new volume is placed before it gets its id: `status.id` first, then `spec.id` with the finalizer. So a spec.id
    without the same status.id always came with the object, and is looked for on the disks instead of being made.
    """
    if cluster.is_lost(volume):
        return _lose(volume, cluster)
    if volume.deleting:
        return _release(volume, cluster)
    known = volume.spec.id or volume.status.id
    if known is not None and (FINALIZER not in volume.metadata.finalizers or volume.spec.id is None):
        return [hold(volume, spec={"id": known})]
    if known is None:
        volume = volume.model_copy(update={"status": volume.status.model_copy(update={"id": str(uuid4())})})
    status, findings = _place(volume, cluster)
    status = status.model_copy(update={"id": volume.status.id, "wanted": _wanted(volume, cluster)})
    cluster.ledger.put(volume.model_copy(update={"status": status.model_copy(update={"bytes": volume.status.bytes})}))
    return _status(volume, status, [_ready(volume, status, findings, cluster), *findings], cluster)


def _ready(volume: FlashVolume, status: FlashVolumeStatus, findings: list[Finding], cluster: Cluster) -> Finding:
    """Whether the volume can be used, and if not what it waits for."""
    carved = find(volume.status.conditions, "Carved")
    if status.node_name is None:
        return false("Ready", findings[0].reason, findings[0].message)
    if carved is not None and carved.status == "True" and status.node_name == volume.status.node_name:
        return true("Ready", "Carved")
    if status.node_name not in cluster.answering:
        return false("Ready", "AgentSilent", f"the agent on server {status.node_name} does not answer")
    node = cluster.nodes.get(status.node_name)
    if node is not None and node.spec.paused:
        words = f"server {status.node_name} is paused (spec.paused of its FlashNode): nothing is changed on it"
        return false("Ready", "Paused", words)
    if carved is None or status.node_name != volume.status.node_name or carved.reason == "Released":
        return false("Ready", "Carving", "its server has not carved it yet")
    return false("Ready", carved.reason, carved.message)


def _status(volume: FlashVolume, status: FlashVolumeStatus, findings: list[Finding], cluster: Cluster) -> list[Write]:
    # A placement is decided from what was read: guarded, so that a controller that slept cannot write a stale one.
    return status_writes(volume, status, findings, FIELDS, cluster, at_times=CONDITIONS, guarded=True)


def _place(volume: FlashVolume, cluster: Cluster) -> tuple[FlashVolumeStatus, list[Finding]]:
    """The placement that is or shall be, and the conditions about it."""
    found = settle(volume, cluster)
    if isinstance(found, Refusal):
        lost = FlashVolumeStatus(lost=volume.status.lost)
        return lost, [false("Placed", found.reason, found.message)]
    current = volume.status
    findings = _placed(volume, found, cluster)
    size, by = found.bytes, cluster.leader
    if (found.node, found.ssd) == (current.node_name, current.ssd):
        if was_carved(volume):
            growth = grow(volume, cluster)
            size = growth.bytes
            findings += _resized(volume, growth.reason, growth.why_not)
        if was_carved(volume) and size <= (current.bytes or 0):
            by = current.granted_by or by  # nothing new is to be given: no need to write each volume for each leader
    placed = FlashVolumeStatus(
        node_name=found.node,
        ssd=found.ssd,
        distance=found.distance,
        p2p=found.p2p,
        granted=Quantity(size),
        granted_by=by,
    )
    return placed, [*findings, *_healthy(volume, found, cluster)]


def _placed(volume: FlashVolume, placement: Placement, cluster: Cluster) -> list[Finding]:
    more = f"; {placement.words}" if placement.words else ""
    findings = [true("Placed", placement.reason, f"on SSD {placement.ssd} of server {placement.node}{more}")]
    server = cluster.nodes.get(placement.node)
    gpu = near_gpu(volume, server) if server is not None else None
    if placement.distance is not None and gpu is not None:
        words = f"SSD {placement.ssd} is {placement.distance} from GPU {gpu.address}"
        switches = server is None or server.status.switched is not False
        near = is_neighbour(placement.distance, switches=switches)
        findings.append(
            true("Neighbour", "Neighbour", words)
            if near
            else false("Neighbour", "NearestOnly", words + ": the nearest in the pool, but no neighbour")
        )
    elif volume.spec.near is not None and volume.spec.near.gpu and placement.reason == "Moved":
        words = f"its SSD is not in the server of GPU {volume.spec.near.gpu} any more"
        findings.append(false("Neighbour", "Moved", words))
    return findings


def _resized(volume: FlashVolume, reason: str, why_not: str) -> list[Finding]:
    """Whether a volume that was to grow has grown; nothing of one that never was."""
    has, wants = volume.status.bytes or 0, align_up(volume.spec.size)
    carved = find(volume.status.conditions, "Carved")
    if has >= wants:
        grown = find(volume.status.conditions, "Resized") is not None
        return [true("Resized", "Resized", f"{format_quantity(has)} are there")] if grown else []
    if why_not:
        return [false("Resized", reason, why_not)]
    if carved is not None and carved.reason == "CannotGrow":
        return [false("Resized", carved.reason, carved.message)]
    return [false("Resized", "Growing", f"it grows from {format_quantity(has)} to {format_quantity(wants)}")]


def _healthy(volume: FlashVolume, placement: Placement, cluster: Cluster) -> list[Finding]:
    """What is wrong with the SSD that it is on; and that nothing is any more."""
    node = cluster.nodes.get(placement.node)
    ssd = node.ssd(placement.ssd) if node is not None else None
    if ssd is not None and ssd.failing:
        words = f"SSD {ssd.id} is failing: {ssd.failing}; copy what is needed to another volume"
        return [false("Healthy", "SSDFailing", words)]
    if find(volume.status.conditions, "Healthy") is None:
        return []
    return [true("Healthy", "Healthy", "nothing is known to be wrong with its SSD")] if ssd is not None else []


def _lose(volume: FlashVolume, cluster: Cluster) -> list[Write]:
    """Its server is lost for good, by an admin's word: so is the volume. Nobody is told that its bytes were wiped."""
    node, ssd = volume.status.node_name or "", volume.status.ssd or ""
    lost = Lost(node_name=node, ssd=ssd, since=cluster.now.replace(microsecond=0))
    status = FlashVolumeStatus(id=volume.status.id, lost=lost)
    cluster.ledger.put(volume.model_copy(update={"status": status}))
    found = settle(volume.model_copy(update={"status": status}), cluster)
    assert isinstance(found, Refusal)
    findings = [false("Ready", found.reason, found.message), false("Placed", found.reason, found.message)]
    return _status(volume, status, findings, cluster)


def _wanted(volume: FlashVolume, cluster: Cluster) -> dict[str, WantedExport]:
    """The exports that the storage server shall have, by attachment: of an exclusive volume one at the most."""
    attachments = cluster.attachments_by_volume.get(volume.key, [])
    if volume.spec.sharing != "Shared":
        attachments = attachments[:1]  # the one that has the volume
    found = {item.metadata.name: _wanted_by(item, volume, cluster) for item in attachments}
    return {name: export for name, export in found.items() if export is not None}


def _wanted_by(attachment: FlashAttachment, volume: FlashVolume, cluster: Cluster) -> WantedExport | None:
    """The export for one attachment that has the volume; None where it is on the same server, or ends."""
    pool = cluster.pools.get(volume.spec.pool)
    fabric, keys = attachment.status.fabric, attachment.status.keys
    if attachment.deleting and consumer_is_gone(attachment, cluster):
        return None
    if attachment.status.path != "Fabric" or fabric is None:  # Local: also after the SSD was put into this very server
        return None
    before = volume.status.wanted_of(attachment.metadata)
    if before is not None:
        return before  # an export once wanted stays, with its ports, until its attachment ends
    if pool is None:
        return None
    if attachment.deleting or not holds(volume.status.conditions, "Carved"):
        return None
    identity = export_identity(attachment.metadata.uid)
    return WantedExport(
        uid=attachment.metadata.uid,
        nqn=identity.nqn,
        host_nqn=identity.host_nqn,
        host_id=identity.host_id,
        sealed_keys=keys.storage if keys is not None else "",
        authentication=fabric.authentication,
        tls=fabric.tls,
        transport=pool.spec.export.transport,
        shared=volume.spec.sharing == "Shared",
        networks=pool.spec.export.networks,
        ports=pool.spec.export.ports,
    )


def waited_for(node: str | None, attachment: FlashAttachment, cluster: Cluster) -> float:
    """Seconds that a server has been silent since an attachment's deletion was asked for."""
    since = attachment.metadata.deletion_timestamp
    deleting = (cluster.now - since).total_seconds() if since is not None else 0.0
    return min(deleting, cluster.silence.get(node or "", deleting))


def consumer_is_gone(attachment: FlashAttachment, cluster: Cluster) -> bool:
    """Whether the export of a deleted attachment can be fenced.

    A consumer that answers is asked: it says Disconnected, or has tried for a while; it refuses while somebody uses the
    device. A busy one that has not acknowledged the deletion yet is waited for. One that is silent is fenced without
    its word, whatever it said last: the fence makes the volume safe for its next owner, and a consumer that is dead,
    frozen or cut off would be waited for in vain.
    """
    connected = find(attachment.status.conditions, "Connected")
    reason = connected.reason if connected is not None else ""
    if reason == "Disconnected":
        return True
    node = attachment.spec.node_name
    if node in cluster.purged:
        return True
    if node in cluster.answering:
        return reason == LEAVING and cluster.leaving.get(attachment.metadata.uid, 0.0) > DISCONNECT_GRACE
    return waited_for(node, attachment, cluster) > SILENCE_GRACE


def _release(volume: FlashVolume, cluster: Cluster) -> list[Write]:
    """Deletion: first its attachments, then its exports, then its bytes, then the finalizer."""
    if FINALIZER not in volume.metadata.finalizers:
        return []
    current = volume.status
    attachments = cluster.attachments_by_volume.get(volume.key, [])
    carved = find(current.conditions, "Carved")
    over = current.node_name is None or (_is_released(carved) and not current.exported)
    if over and (not attachments or current.release or current.lost is not None):
        return [let_go(volume)]
    # The SSD may have moved, or its server been renamed, while the deletion waits.
    placement = whereabouts(volume, cluster)
    node_name = placement.node if placement is not None else current.node_name
    status = FlashVolumeStatus(
        id=current.id,
        node_name=node_name,
        ssd=placement.ssd if placement is not None else current.ssd,
        distance=current.distance,
        p2p=current.p2p,
        granted=current.granted,
        granted_by=current.granted_by,
        lost=current.lost,
        release=True if current.release or not attachments else None,
        wanted=_wanted(volume, cluster) if attachments else {},
    )
    ready = _releasing(volume, node_name, carved, attachments, cluster)
    placed = _placed(volume, placement, cluster)[:1] if placement is not None else []
    return _status(volume, status, [ready, *placed], cluster)


def _is_released(carved: Condition | None) -> bool:
    return carved is not None and carved.reason == "Released"


def _releasing(
    volume: FlashVolume,
    node_name: str | None,
    carved: Condition | None,
    attachments: list[FlashAttachment],
    cluster: Cluster,
) -> Finding:
    """What the deletion waits for."""
    node: FlashNode | None = cluster.nodes.get(node_name) if node_name else None
    if attachments and not volume.status.release:
        who = ", ".join(f"{item.metadata.name} on server {item.spec.node_name}" for item in attachments)
        return false("Ready", "Attached", f"deletion waits for its attachments: {who}; delete them")
    if node is None or node_name not in cluster.answering:
        message = (
            f"deletion waits for the agent on server {node_name}, which does not answer: its bytes are still taken; if "
            f"that server is lost for good: kubectl flash purge {node_name}"
        )
        return false("Ready", "AgentSilent", message)
    words = carved.message if carved is not None and carved.message else "its server wipes and removes it"
    return false("Ready", "Releasing", words)
