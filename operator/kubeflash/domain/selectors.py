"""Label selectors, and which SSDs a pool selects."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase

from kubeflash.api.v1alpha1 import FlashPool, LabelSelector, Ssd, SsdNames


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


def names(wanted: SsdNames, ssd: Ssd) -> bool:
    """Whether an SSD is meant by serial, id or model."""
    return (
        ssd.serial in wanted.serials
        or ssd.id in wanted.ids
        or any(fnmatchcase(ssd.model, pattern) for pattern in wanted.models)
    )


def why_not_selected(pool: FlashPool, ssd: Ssd, *, neighbour: bool) -> str | None:
    """Why a pool does not select an SSD; None when it does. `neighbour`: it is one of some GPU of its server."""
    wanted = pool.spec.ssds
    if not (wanted.all or names(wanted, ssd)):
        return "spec.ssds names neither its serial, nor its id, nor its model"
    if wanted.exclude is not None and names(wanted.exclude, ssd):
        return "spec.ssds.exclude names it"
    if wanted.exclude is not None and wanted.exclude.min_size is not None and ssd.bytes >= wanted.exclude.min_size:
        return f"spec.ssds.exclude.minSize is {wanted.exclude.min_size}, and it is not smaller"
    if wanted.min_size is not None and ssd.bytes < wanted.min_size:
        return f"it is smaller than spec.ssds.minSize, {wanted.min_size}"
    if wanted.neighbours_only and not neighbour:
        return "spec.ssds.neighboursOnly, and it is no neighbour of a GPU"
    return None


def selects_ssd(pool: FlashPool, ssd: Ssd, *, neighbour: bool) -> bool:
    """Whether a pool selects an SSD."""
    return why_not_selected(pool, ssd, neighbour=neighbour) is None
