"""One FlashVolume: finalizer and id, placement, the exports wanted, release."""

from __future__ import annotations

from uuid import uuid4

from kubeflash.api.v1alpha1 import (
    FINALIZER,
    FlashAttachment,
    FlashNode,
    FlashPool,
    FlashVolume,
    FlashVolumeStatus,
    WantedExport,
)
from kubeflash.controller.snapshot import Snapshot
from kubeflash.domain.conditions import Finding, false, find, holds, merge, true
from kubeflash.domain.names import export_identity
from kubeflash.domain.placement import Placement, Refusal, place
from kubeflash.domain.pools import allows
from kubeflash.kube.writes import Apply, Patch, Write, differs, status_json

MANAGER = "kubeflash-controller"
FIELDS = ("observedGeneration", "nodeName", "ssd", "distance", "release", "wanted")
CONDITIONS = ("Ready", "Placed", "Neighbour")
DISCONNECT_GRACE = 30.0
"""Seconds that a consumer has for disconnecting before its export is fenced without its word."""


def reconcile_volume(volume: FlashVolume, snapshot: Snapshot) -> tuple[list[Write], FlashVolume]:
    """What to write for one volume, and the volume as it will be, so that the next one sees the bytes as taken."""
    if volume.deleting:
        return _release(volume, snapshot), volume
    if FINALIZER not in volume.metadata.finalizers or volume.spec.id is None:
        body = {
            "metadata": {"finalizers": sorted({*volume.metadata.finalizers, FINALIZER})},
            "spec": {"id": volume.spec.id or str(uuid4())},
        }
        return [Patch(volume, body)], volume
    status, findings = _place(volume, snapshot)
    carved = find(volume.status.conditions, "Carved")
    wanted = _wanted(volume, snapshot)
    placed = status.node_name is not None
    if not placed:
        ready = false("Ready", findings[0].reason, findings[0].message)
    elif carved is None or carved.status != "True" or status.node_name != volume.status.node_name:
        offline = status.node_name in snapshot.offline
        reason = "AgentOffline" if offline else carved.reason if carved is not None else "Carving"
        words = carved.message if carved is not None and carved.message else "its server has not carved it yet"
        message = f"the agent on server {status.node_name} does not answer" if offline else words
        ready = false("Ready", reason, message)
    else:
        ready = true("Ready", "Carved")
    merged = _status(volume, status.model_copy(update={"wanted": wanted}), [ready, *findings], snapshot)
    return merged, volume.model_copy(update={"status": volume.status.model_copy(update=_placement(status))})


def _placement(status: FlashVolumeStatus) -> dict[str, object]:
    return {"node_name": status.node_name, "ssd": status.ssd, "distance": status.distance}


def _status(volume: FlashVolume, status: FlashVolumeStatus, findings: list[Finding], snapshot: Snapshot) -> list[Write]:
    generation = volume.metadata.generation
    conditions = merge(volume.status.conditions, findings, generation=generation, now=snapshot.now)
    intent = status_json(status.model_copy(update={"observed_generation": generation}), FIELDS, conditions)
    if not differs(volume.status, intent, FIELDS, CONDITIONS):
        return []
    # A placement is decided from what was read: guarded, so that a controller that slept cannot write a stale one.
    return [Apply(volume, intent, MANAGER, guarded=True)]


def _place(volume: FlashVolume, snapshot: Snapshot) -> tuple[FlashVolumeStatus, list[Finding]]:
    """The placement that is or shall be, and the conditions about it."""
    current = volume.status
    refusals = snapshot.refusals.get(volume.metadata.uid, {})
    if current.node_name is not None and current.ssd is not None and current.ssd not in refusals:
        kept = FlashVolumeStatus(node_name=current.node_name, ssd=current.ssd, distance=current.distance)
        return kept, _placed(volume, Placement(current.node_name, current.ssd, current.distance))
    pool = snapshot.pools.get(volume.spec.pool)
    verdict = _may_use(volume, pool, snapshot)
    if verdict is None and pool is not None:
        others = {key: other for key, other in snapshot.volumes.items() if key != volume.key}
        found = place(
            volume,
            snapshot.view(pool, others),
            snapshot.nodes,
            refused_by_agent=refusals,
            offline=snapshot.offline,
        )
        if isinstance(found, Placement):
            placed = FlashVolumeStatus(node_name=found.node, ssd=found.ssd, distance=found.distance)
            return placed, _placed(volume, found)
        verdict = found
    assert verdict is not None
    return FlashVolumeStatus(), [false("Placed", verdict.reason, verdict.message)]


def _may_use(volume: FlashVolume, pool: FlashPool | None, snapshot: Snapshot) -> Refusal | None:
    if pool is None:
        known = ", ".join(sorted(snapshot.pools)) or "none"
        return Refusal("PoolNotFound", f"there is no FlashPool {volume.spec.pool}; there are: {known}")
    if pool.deleting:
        return Refusal("PoolDeleting", f"FlashPool {pool.metadata.name} is being deleted")
    namespace = volume.metadata.namespace or ""
    labels = snapshot.namespace_labels.get(namespace, {})
    if not allows(pool, namespace, labels, snapshot.own_namespace):
        return Refusal(
            "NamespaceNotAllowed",
            f"FlashPool {pool.metadata.name} does not allow namespace {namespace}: an admin can add it by a label that "
            "spec.allowedNamespaces selects",
        )
    return None


def _placed(volume: FlashVolume, placement: Placement) -> list[Finding]:
    findings = [true("Placed", "Placed", f"on SSD {placement.ssd} of server {placement.node}")]
    if placement.distance is not None and volume.spec.near is not None:
        words = f"SSD {placement.ssd} is {placement.distance} from GPU {volume.spec.near.gpu}"
        near = placement.distance.is_neighbour
        findings.append(
            true("Neighbour", "Neighbour", words)
            if near
            else false("Neighbour", "NearestOnly", words + ": the nearest in the pool, but no neighbour")
        )
    return findings


def _wanted(volume: FlashVolume, snapshot: Snapshot) -> dict[str, WantedExport]:
    """The exports that the storage server shall have: the one attachment that has the volume, on another server."""
    pool = snapshot.pools.get(volume.spec.pool)
    attachments = snapshot.attachments_by_volume.get(volume.key, [])
    if not attachments or pool is None:
        return {name: wanted for name, wanted in volume.status.wanted.items() if pool is None and attachments}
    first = attachments[0]
    keys = first.status.keys
    if first.status.path != "Fabric" or keys is None or not holds(volume.status.conditions, "Carved"):
        return {}
    if first.deleting and consumer_is_gone(first, snapshot):
        return {}
    identity = export_identity(first.metadata.uid)
    before = volume.status.wanted.get(first.metadata.name)
    return {
        first.metadata.name: before
        if before is not None and before.uid == first.metadata.uid
        else WantedExport(
            uid=first.metadata.uid,
            nqn=identity.nqn,
            host_nqn=identity.host_nqn,
            host_id=identity.host_id,
            sealed_keys=keys.storage,
            networks=pool.spec.export.networks,
            ports=pool.spec.export.ports,
        )
    }


def consumer_is_gone(attachment: FlashAttachment, snapshot: Snapshot) -> bool:
    """Whether the export of a deleted attachment can be fenced: the consumer says so, is dead, or had its time."""
    connected = find(attachment.status.conditions, "Connected")
    if connected is None or connected.reason == "Disconnected":
        return True
    node = attachment.spec.node_name
    if node not in snapshot.nodes or node in snapshot.offline:
        return True
    if connected.reason == "InUse":
        return False  # somebody has it mounted: the data is worth more than our patience
    since = attachment.metadata.deletion_timestamp
    return since is not None and (snapshot.now - since).total_seconds() > DISCONNECT_GRACE


def _release(volume: FlashVolume, snapshot: Snapshot) -> list[Write]:
    """Deletion: first its attachments, then its exports, then its bytes, then the finalizer."""
    if FINALIZER not in volume.metadata.finalizers:
        return []
    attachments = snapshot.attachments_by_volume.get(volume.key, [])
    node_name = volume.status.node_name
    node: FlashNode | None = snapshot.nodes.get(node_name) if node_name else None
    carved = find(volume.status.conditions, "Carved")
    never_placed = node_name is None
    released = carved is not None and carved.reason == "Released"
    if not attachments and (never_placed or (released and not volume.status.exported)):
        finalizers = [name for name in volume.metadata.finalizers if name != FINALIZER]
        return [Patch(volume, {"metadata": {"finalizers": finalizers}})]
    if attachments:
        who = ", ".join(f"{item.metadata.name} on server {item.spec.node_name}" for item in attachments)
        ready = false("Ready", "Attached", f"deletion waits for its attachments: {who}; delete them")
    elif node is None or node_name in snapshot.offline:
        message = (
            f"deletion waits for the agent on server {node_name}, which does not answer: its bytes are still taken"
        )
        ready = false("Ready", "AgentOffline", message)
    else:
        words = carved.message if carved is not None and carved.message else "its server wipes and removes it"
        ready = false("Ready", "Releasing", words)
    status = FlashVolumeStatus(
        node_name=node_name,
        ssd=volume.status.ssd,
        distance=volume.status.distance,
        release=True if not attachments else None,
        wanted=_wanted(volume, snapshot) if attachments else {},
    )
    placed = [true("Placed", "Placed", f"on SSD {volume.status.ssd} of server {node_name}")] if node_name else []
    return _status(volume, status, [ready, *placed], snapshot)
