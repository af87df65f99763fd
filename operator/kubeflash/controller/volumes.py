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
from kubeflash.topology.analysis import is_neighbour

MANAGER = "kubeflash-controller"
FIELDS = ("observedGeneration", "nodeName", "ssd", "distance", "release", "wanted")
CONDITIONS = ("Ready", "Placed", "Neighbour")
DISCONNECT_GRACE = 60.0
"""Seconds that a consumer has for disconnecting, once it tries, before its export is fenced without its word."""
SILENCE_GRACE = 90.0
"""Seconds after which the export of a deleted attachment is fenced though its consumer does not answer at all."""


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
        silent = status.node_name not in snapshot.answering
        reason = "AgentSilent" if silent else carved.reason if carved is not None else "Carving"
        words = carved.message if carved is not None and carved.message else "its server has not carved it yet"
        message = f"the agent on server {status.node_name} does not answer" if silent else words
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
    stays = current.ssd not in refusals or was_carved(volume)
    if current.node_name is not None and current.ssd is not None and stays:
        kept = FlashVolumeStatus(node_name=current.node_name, ssd=current.ssd, distance=current.distance)
        return kept, _placed(volume, Placement(current.node_name, current.ssd, current.distance), snapshot)
    pool = snapshot.pools.get(volume.spec.pool)
    verdict = _may_use(volume, pool, snapshot) or _id_taken(volume, snapshot)
    found_again = _found_again(volume, snapshot)
    if verdict is None and found_again is not None:
        placed = FlashVolumeStatus(node_name=found_again.node, ssd=found_again.ssd)
        return placed, _placed(volume, found_again, snapshot)
    if verdict is None and pool is not None:
        others = {key: other for key, other in snapshot.volumes.items() if key != volume.key}
        found = place(
            volume,
            snapshot.view(pool, others),
            snapshot.nodes,
            refused_by_agent=refusals,
            answering=snapshot.answering,
        )
        if isinstance(found, Placement):
            placed = FlashVolumeStatus(node_name=found.node, ssd=found.ssd, distance=found.distance)
            return placed, _placed(volume, found, snapshot)
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


def was_carved(volume: FlashVolume) -> bool:
    """Whether bytes of it are, or were, on the SSD where it is placed. Such a volume is never placed elsewhere."""
    placed = find(volume.status.conditions, "Placed")
    return holds(volume.status.conditions, "Carved") or (placed is not None and placed.reason == "Settled")


def _id_taken(volume: FlashVolume, snapshot: Snapshot) -> Refusal | None:
    """A copy of another volume's object, id and all, must not get that volume's bytes."""
    others = [
        other
        for other in snapshot.volumes.values()
        if other.spec.id == volume.spec.id and other.metadata.uid != volume.metadata.uid
    ]
    first = min((*others, volume), key=lambda item: (item.status.node_name is None, _age(item)))
    if first is volume:
        return None
    return Refusal("IdTaken", f"FlashVolume {first.key} has spec.id {volume.spec.id}: make this one without an id")


def _age(volume: FlashVolume) -> tuple[str, str]:
    created = volume.metadata.creation_timestamp
    return (created.isoformat() if created else "", volume.metadata.uid)


def _found_again(volume: FlashVolume, snapshot: Snapshot) -> Placement | None:
    """The SSD that holds the volume already: its object was restored from a backup, without its status."""
    where = [
        Placement(node.metadata.name, ssd.id, None)
        for node in snapshot.nodes.values()
        for ssd in node.status.ssds
        if any(extent.id == volume.spec.id for extent in ssd.volumes)
    ]
    return where[0] if len(where) == 1 else None


def _placed(volume: FlashVolume, placement: Placement, snapshot: Snapshot) -> list[Finding]:
    reason = "Settled" if was_carved(volume) and volume.status.ssd == placement.ssd else "Placed"
    findings = [true("Placed", reason, f"on SSD {placement.ssd} of server {placement.node}")]
    if placement.distance is not None and volume.spec.near is not None:
        words = f"SSD {placement.ssd} is {placement.distance} from GPU {volume.spec.near.gpu}"
        server = snapshot.nodes.get(placement.node)
        switches = server is None or server.status.switched is not False
        near = is_neighbour(placement.distance, switches=switches)
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
    if not attachments:
        return {}
    first = attachments[0]
    name, keys = first.metadata.name, first.status.keys
    if first.deleting and consumer_is_gone(first, snapshot):
        return {}
    before = volume.status.wanted.get(name)
    if before is not None and before.uid == first.metadata.uid:
        return {name: before}  # an export once wanted stays, with its port, until its attachment ends
    if first.status.path != "Fabric" or keys is None or pool is None or not holds(volume.status.conditions, "Carved"):
        return {}
    identity = export_identity(first.metadata.uid)
    return {
        name: WantedExport(
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
    """Whether the export of a deleted attachment can be fenced.

    A consumer that answers is asked: it says Disconnected, or has tried for a while. A busy one that has not
    acknowledged the deletion yet is waited for. A silent one is fenced without its word, but one that said that
    somebody uses the device only when an admin has deleted its FlashNode: silence is no consent.
    """
    connected = find(attachment.status.conditions, "Connected")
    reason = connected.reason if connected is not None else ""
    if reason == "Disconnected":
        return True
    since = attachment.metadata.deletion_timestamp
    waited = (snapshot.now - since).total_seconds() if since is not None else 0.0
    node = attachment.spec.node_name
    if node in snapshot.answering:
        return reason == "Disconnecting" and waited > DISCONNECT_GRACE
    if reason == "InUse":
        return node not in snapshot.nodes
    return waited > SILENCE_GRACE


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
    if (not attachments or volume.status.release) and (never_placed or (released and not volume.status.exported)):
        finalizers = [name for name in volume.metadata.finalizers if name != FINALIZER]
        return [Patch(volume, {"metadata": {"finalizers": finalizers}})]
    if attachments and not volume.status.release:
        who = ", ".join(f"{item.metadata.name} on server {item.spec.node_name}" for item in attachments)
        ready = false("Ready", "Attached", f"deletion waits for its attachments: {who}; delete them")
    elif node is None or node_name not in snapshot.answering:
        message = (
            f"deletion waits for the agent on server {node_name}, which does not answer: its bytes are still taken"
        )
        ready = false("Ready", "AgentSilent", message)
    else:
        words = carved.message if carved is not None and carved.message else "its server wipes and removes it"
        ready = false("Ready", "Releasing", words)
    status = FlashVolumeStatus(
        node_name=node_name,
        ssd=volume.status.ssd,
        distance=volume.status.distance,
        release=True if volume.status.release or not attachments else None,
        wanted=_wanted(volume, snapshot) if attachments else {},
    )
    placed = _placed(volume, Placement(node_name, volume.status.ssd or "", None), snapshot)[:1] if node_name else []
    return _status(volume, status, [ready, *placed], snapshot)
