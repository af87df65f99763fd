"""One FlashPool: what it has, and what it refuses and why."""

from __future__ import annotations

from kubeflash.api.v1alpha1 import FlashPool
from kubeflash.controller.snapshot import Snapshot
from kubeflash.controller.volumes import MANAGER
from kubeflash.domain.conditions import false, merge, true
from kubeflash.domain.pools import pool_status
from kubeflash.kube.writes import Apply, Write, differs, status_json

FIELDS = ("observedGeneration", "summary", "nodes", "refused")
CONDITIONS = ("Ready",)


def reconcile_pool(pool: FlashPool, snapshot: Snapshot) -> list[Write]:
    """What to write for one pool."""
    view = snapshot.views[pool.metadata.name]
    first = f"{view.refused[0].ssd}: {view.refused[0].reason}" if view.refused else ""
    more = f" (and {len(view.refused) - 1} more in status.refused)" if len(view.refused) > 1 else ""
    if not view.ssds:
        ready = false("Ready", "NoUsableSSD", first + more or "no SSD is selected: check spec.ssds and spec.nodes")
    elif view.refused:
        ready = true("Ready", "SomeRefused", f"{len(view.refused)} selected SSDs are not used: {first}{more}")
    else:
        ready = true("Ready", "Usable")
    generation = pool.metadata.generation
    conditions = merge(pool.status.conditions, [ready], generation=generation, now=snapshot.now)
    intent = status_json(pool_status(view, generation), FIELDS, conditions)
    return [Apply(pool, intent, MANAGER)] if differs(pool.status, intent, FIELDS, CONDITIONS) else []
