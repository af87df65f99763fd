"""One FlashNode: the agent says everything about it but that the agent itself is silent."""

from __future__ import annotations

from kubeflash.api.v1alpha1 import FlashNode
from kubeflash.controller.snapshot import Snapshot
from kubeflash.controller.volumes import MANAGER
from kubeflash.domain.conditions import Finding, find, merge
from kubeflash.kube.writes import Apply, Write

REASON = "AgentSilent"


def reconcile_node(node: FlashNode, snapshot: Snapshot) -> list[Write]:
    """Ready becomes Unknown when the agent's Lease goes stale; the agent itself makes it True again."""
    if node.metadata.name in snapshot.answering:
        return []
    ready = find(node.status.conditions, "Ready")
    if ready is not None and ready.reason == REASON:
        return []
    words = "the agent does not renew its Lease: look at the agent and the server; I/O does not depend on it"
    finding = Finding("Ready", "Unknown", REASON, words)
    conditions = merge(node.status.conditions, [finding], generation=node.metadata.generation, now=snapshot.now)
    return [Apply(node, {"conditions": [item.to_json() for item in conditions]}, MANAGER)]
