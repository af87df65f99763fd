"""What a pool has: the SSDs that it selects, those that it can use, and why not the others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from kubeflash.api.quantity import human_bytes
from kubeflash.api.v1alpha1 import (
    FlashNode,
    FlashPool,
    FlashPoolStatus,
    FlashVolume,
    LabelSelector,
    PoolNode,
    PoolSummary,
    RefusedSsd,
    Ssd,
)
from kubeflash.domain.allocation import Span, align_up, usable, with_reservations
from kubeflash.domain.selectors import matches, selects_node, selects_ssd


@dataclass(frozen=True)
class PoolSsd:
    """One usable SSD of a pool, with what is free once all placed volumes are carved."""

    node: str
    ssd: Ssd
    free: tuple[Span, ...]

    @property
    def free_bytes(self) -> int:
        """Bytes in all free extents."""
        return sum(span.bytes for span in self.free)

    @property
    def largest(self) -> int:
        """Bytes in the largest free extent: the largest volume that fits."""
        return max((span.bytes for span in self.free), default=0)


@dataclass(frozen=True)
class PoolView:
    """A pool evaluated against all servers."""

    pool: FlashPool
    ssds: tuple[PoolSsd, ...]
    refused: tuple[RefusedSsd, ...]


def owner_of(ssd: Ssd, pools: Iterable[FlashPool], node_labels: Mapping[str, str] | None) -> FlashPool | None:
    """The pool that an SSD belongs to: of those that select it the oldest, then the first by name."""
    selecting = [
        pool for pool in pools if not pool.deleting and selects_node(pool, node_labels) and selects_ssd(pool, ssd)
    ]
    return min(selecting, key=_age, default=None)


def _age(pool: FlashPool) -> tuple[str, str]:
    created = pool.metadata.creation_timestamp
    return (created.isoformat() if created else "", pool.metadata.name)


def evaluate(
    pool: FlashPool,
    *,
    pools: Iterable[FlashPool],
    nodes: Iterable[FlashNode],
    node_labels: Mapping[str, Mapping[str, str]],
    volumes: Iterable[FlashVolume],
) -> PoolView:
    """What the pool can use, and each selected SSD that it cannot, with the reason.

    Args:
        pool: the pool.
        pools: all pools: an SSD that several select belongs to the oldest.
        nodes: all servers.
        node_labels: labels of the Nodes, by name.
        volumes: all volumes, for those that are placed on an SSD and not carved yet.
    """
    all_pools, all_volumes = list(pools), list(volumes)
    usable_ssds: list[PoolSsd] = []
    refused: list[RefusedSsd] = []
    seen: set[str] = set()
    for node in sorted(nodes, key=lambda item: item.metadata.name):
        name = node.metadata.name
        labels = node_labels.get(name)
        for ssd in sorted(node.status.ssds, key=lambda item: item.address):
            if not selects_ssd(pool, ssd):
                continue
            seen.update((ssd.serial, ssd.id))
            if not selects_node(pool, labels):
                refused.append(RefusedSsd(node=name, ssd=ssd.id, reason=f"spec.nodes does not select server {name}"))
                continue
            owner = owner_of(ssd, all_pools, labels)
            if owner is not None and owner.metadata.name != pool.metadata.name:
                reason = f"pool {owner.metadata.name} selects it too and is older; take it out of one of them"
                refused.append(RefusedSsd(node=name, ssd=ssd.id, reason=reason))
            elif ssd.state == "Foreign":
                refused.append(RefusedSsd(node=name, ssd=ssd.id, reason=ssd.reason))
            else:
                usable_ssds.append(_with_free(name, ssd, all_volumes))
    missing = [name for name in (*pool.spec.ssds.serials, *pool.spec.ssds.ids) if name not in seen]
    refused += [
        RefusedSsd(
            node="",
            ssd=name,
            reason="no server has such an SSD: compare with kubectl get flashnodes -o yaml, status.ssds",
        )
        for name in missing
    ]
    return PoolView(pool, tuple(usable_ssds), tuple(refused))


def _with_free(node: str, ssd: Ssd, volumes: Iterable[FlashVolume]) -> PoolSsd:
    carved_ids = {extent.id for extent in ssd.volumes}
    reserved = [
        align_up(volume.spec.size)
        for volume in volumes
        if volume.status.node_name == node and volume.status.ssd == ssd.id and volume.spec.id not in carved_ids
    ]
    carved = [Span(extent.start, extent.bytes) for extent in ssd.volumes]
    return PoolSsd(node, ssd, with_reservations(ssd.bytes, carved, reserved))


def pool_status(view: PoolView, generation: int) -> FlashPoolStatus:
    """What `kubectl get` and `describe` show of a pool, without its conditions."""
    by_node: dict[str, list[PoolSsd]] = {}
    for item in view.ssds:
        by_node.setdefault(item.node, []).append(item)
    return FlashPoolStatus(
        observed_generation=generation,
        summary=PoolSummary(
            ssds=len(view.ssds),
            nodes=len(by_node),
            capacity=human_bytes(sum(usable(item.ssd.bytes).bytes for item in view.ssds)),
            free=human_bytes(sum(item.free_bytes for item in view.ssds)),
            largest=human_bytes(max((item.largest for item in view.ssds), default=0)),
            refused=len(view.refused),
        ),
        nodes=[
            PoolNode(
                name=name,
                ssds=len(items),
                free=human_bytes(sum(item.free_bytes for item in items)),
                largest=human_bytes(max(item.largest for item in items)),
            )
            for name, items in sorted(by_node.items())
        ],
        refused=list(view.refused),
    )


def allows(pool: FlashPool, namespace: str, labels: Mapping[str, str], own_namespace: str) -> bool:
    """Whether a namespace may have volumes of a pool. KubeFlash's own always may."""
    selector: LabelSelector | None = pool.spec.allowed_namespaces
    return namespace == own_namespace or (selector is not None and matches(selector, labels))
