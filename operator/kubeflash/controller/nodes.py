"""One FlashNode: the agent says everything about it, but what it cannot know: that it is silent, lost, or renamed."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from kubeflash.api.v1alpha1 import FINALIZER, FlashNode
from kubeflash.controller.status import status_writes
from kubeflash.domain.cluster import Cluster, is_purged
from kubeflash.domain.conditions import Finding, false, find, true
from kubeflash.kube.writes import Patch, Write, hold, let_go

FIELDS = ("moved",)
SILENT = "AgentSilent"
RENAMED = "Renamed"
PURGED = "Purged"
DELETING = "Deleting"
KEYS = "KeysIntact"


def reconcile_node(node: FlashNode, cluster: Cluster) -> list[Write]:
    """Its finalizer, SSDs that moved in, whether its agent is silent, and how far a purge is.

    The finalizer keeps a FlashNode that volumes are placed on: its deletion says nothing about the server.
    """
    name = node.metadata.name
    holds = [volume.key for volume in cluster.placed_on.get(name, [])]
    wanted = bool(holds) and not node.deleting
    if wanted != (FINALIZER in node.metadata.finalizers) and not (holds and node.deleting):
        return [hold(node) if wanted else let_go(node)]
    adopted = [item for item in (node.spec.wipe.orphans if node.spec.wipe else ()) if _has_owner(item, cluster)]
    if adopted:  # an admin's word about an orphan says nothing of the volume that it has become
        return [Patch(node, {"spec": {"wipe": {"orphans": dict.fromkeys(adopted)}}})]
    findings = [*_ready(node, cluster), *_deleting(node, holds), *_purged(node, cluster, holds), *_keys(node, cluster)]
    status = node.status.model_copy(update={"moved": moved_in(node, cluster)})
    return status_writes(node, status, findings, FIELDS, cluster, at_times=(PURGED, DELETING, KEYS))


def _ready(node: FlashNode, cluster: Cluster) -> list[Finding]:
    """Ready becomes Unknown when the agent's Lease goes stale; the agent itself makes it True again."""
    name = node.metadata.name
    if name in cluster.answering:
        return []
    others = [
        other.metadata.name
        for other in cluster.by_uuid.get(node.status.system_uuid, [])
        if other.metadata.name in cluster.answering
    ]
    if others:
        words = f"this server is FlashNode {others[0]} now, and its volumes follow: delete this one then"
        return [Finding("Ready", "Unknown", RENAMED, words)]
    words = "the agent does not renew its Lease: look at the agent and the server; I/O does not depend on it"
    return [Finding("Ready", "Unknown", SILENT, words)]


def _has_owner(volume_id: str, cluster: Cluster) -> bool:
    return any(volume.status.lost is None for volume in cluster.ledger.with_id(volume_id))


def _deleting(node: FlashNode, holds: list[str]) -> list[Finding]:
    """What the deletion of a FlashNode waits for."""
    if not node.deleting or not holds:
        return []
    words = (
        f"deletion waits for {len(holds)} volumes that are placed here, such as {min(holds)}: delete them; or if the "
        f"server is lost for good: kubectl flash purge {node.metadata.name}"
    )
    return [Finding(DELETING, "True", "HoldsVolumes", words)]


def _purged(node: FlashNode, cluster: Cluster, holds: list[str]) -> list[Finding]:
    """How far an admin's word that the server is lost for good is carried out."""
    if not is_purged(node):
        return []
    if node.metadata.name in cluster.answering:
        words = "spec.purge says that this server is lost for good, and its agent answers: take it away again"
        return [false(PURGED, "AgentAnswers", words)]
    if holds:
        return [false(PURGED, "Purging", f"{len(holds)} volumes are still placed here")]
    return [true(PURGED, PURGED, "no volume is placed here any more: delete this FlashNode")]


def _keys(node: FlashNode, cluster: Cluster) -> list[Finding]:
    """Which attachments cannot be used any more since the server lost its private key."""
    lost = cluster.keyless.get(node.metadata.name)
    if not lost:
        return []
    words = f"it lost its private key: delete these attachments, and make them anew: {', '.join(sorted(lost))}"
    return [false(KEYS, "KeysLost", words)]


def is_new_of(nodes: Iterable[FlashNode], answering: Collection[str]) -> bool:
    """Whether a server tells something while its Lease has not been seen: it has just come up, or come back."""
    for node in nodes:
        ready = find(node.status.conditions, "Ready")
        if node.metadata.name not in answering and ready is not None and ready.reason not in (SILENT, RENAMED):
            return True
    return False


def moved_in(node: FlashNode, cluster: Cluster) -> dict[str, str]:
    """SSDs of the server that carry another one's label, and that it may take over; by id, whose label it is."""
    found: dict[str, str] = {}
    for ssd in node.status.ssds:
        if ssd.labelled is None:
            continue
        others = cluster.by_uuid.get(ssd.labelled, [])
        answering = [other for other in others if other.metadata.name in cluster.answering]
        if any(cluster.ledger.has((other.metadata.name, ssd.id)) for other in answering):
            continue
        by_admin = node.spec.adopt.get(ssd.id) == ssd.labelled
        purged = bool(others) and all(other.metadata.name in cluster.purged for other in others)
        if answering or by_admin or purged:
            found[ssd.id] = ssd.labelled
    return found
