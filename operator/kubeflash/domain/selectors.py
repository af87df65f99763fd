"""Label selectors, and which SSDs a pool selects."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase

from kubeflash.api.v1alpha1 import FlashPool, LabelSelector, Ssd


def matches(selector: LabelSelector, labels: Mapping[str, str]) -> bool:
    """Whether labels fit a label selector, by the rules of Kubernetes: NotIn holds for a label that is not there."""
    if any(labels.get(key) != value for key, value in selector.match_labels.items()):
        return False
    for requirement in selector.match_expressions:
        present = requirement.key in labels
        within = present and labels[requirement.key] in requirement.values
        holds = {"In": within, "NotIn": not within, "Exists": present, "DoesNotExist": not present}
        if not holds[requirement.operator]:
            return False
    return True


def selects_node(pool: FlashPool, node_labels: Mapping[str, str] | None) -> bool:
    """Whether a pool selects a server. `node_labels` is None where the FlashNode has no Node: only {} selects that."""
    selector = pool.spec.nodes
    if not selector.match_labels and not selector.match_expressions:
        return True
    return node_labels is not None and matches(selector, node_labels)


def selects_ssd(pool: FlashPool, ssd: Ssd) -> bool:
    """Whether a pool selects an SSD, by serial, id or model."""
    wanted = pool.spec.ssds
    return (
        ssd.serial in wanted.serials
        or ssd.id in wanted.ids
        or any(fnmatchcase(ssd.model, pattern) for pattern in wanted.models)
    )
