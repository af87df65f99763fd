"""One FlashPool: what it has, what it refuses and why, what it must keep; and its end, which waits for its volumes."""

from __future__ import annotations

from kubeflash.api.v1alpha1 import FINALIZER, FlashPool
from kubeflash.controller.status import status_writes
from kubeflash.domain.cluster import Cluster
from kubeflash.domain.conditions import Finding, false, true
from kubeflash.domain.pools import PoolView, holding, pool_status
from kubeflash.kube.writes import Write, hold, let_go

FIELDS = ("observedGeneration", "summary", "nodes", "refused", "draining", "namespaces")
NAMED = 10
"""Volumes that a sentence names at the most."""


def reconcile_pool(pool: FlashPool, cluster: Cluster) -> list[Write]:
    """What to write for one pool."""
    volumes = holding(pool, cluster.volumes.values())
    if pool.deleting and not volumes:
        return [let_go(pool)] if FINALIZER in pool.metadata.finalizers else []
    if not pool.deleting and FINALIZER not in pool.metadata.finalizers:
        return [hold(pool)]
    view = cluster.views[pool.metadata.name]
    return status_writes(pool, pool_status(view, cluster.ledger), [_ready(view, volumes)], FIELDS, cluster)


def _ready(view: PoolView, volumes: list[str]) -> Finding:
    if view.pool.deleting:
        return false("Ready", "Deleting", f"deletion waits for its volumes: {_named(volumes)}; delete them")
    first = f"{view.refused[0].ssd}: {view.refused[0].reason}" if view.refused else ""
    more = f" (and {len(view.refused) - 1} more in status.refused)" if len(view.refused) > 1 else ""
    if not view.ssds:
        return false("Ready", "NoUsableSSD", first + more or "no SSD is selected: check spec.ssds and spec.nodes")
    if view.draining:
        item = view.draining[0]
        held = f"SSD {item.ssd} of server {item.node} ({item.reason}) by {_named(item.volumes)}"
        words = f"{len(view.draining)} SSDs are kept only until their volumes are gone: {held}"
        return true("Ready", "Draining", words)
    if view.refused:
        many = f"{len(view.refused)} selected SSDs are" if len(view.refused) > 1 else "1 selected SSD is"
        return true("Ready", "SomeRefused", f"{many} not used: {first}{more}")
    return true("Ready", "Usable")


def _named(volumes: list[str]) -> str:
    more = f" and {len(volumes) - NAMED} more" if len(volumes) > NAMED else ""
    return ", ".join(volumes[:NAMED]) + more
