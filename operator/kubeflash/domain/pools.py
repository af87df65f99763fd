"""What a pool has: the SSDs that it selects, those that it can use, and why not the others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from kubeflash.api.quantity import Quantity, human_bytes
from kubeflash.api.v1alpha1 import (
    DrainingSsd,
    FlashNode,
    FlashPool,
    FlashPoolStatus,
    FlashVolume,
    LabelSelector,
    NamespaceUse,
    PoolNode,
    PoolSummary,
    RefusedSsd,
    Ssd,
)
from kubeflash.domain.allocation import Span, usable
from kubeflash.domain.ledger import Ledger, Place
from kubeflash.domain.neighbours import Neighbours
from kubeflash.domain.selectors import matches, names, selects_node, selects_ssd, why_not_selected

SHOWN = 1000
"""Entries of each list of a pool's status at the most: an object of the API has at most a megabyte and a half."""
NAMED = 10
"""Volumes that are named of one SSD at the most."""


@dataclass(frozen=True)
class PoolSsd:
    """One usable SSD of a pool, with what is free once all placed volumes are carved."""

    node: str
    ssd: Ssd
    reserve: int
    ledger: Ledger = field(repr=False, compare=False)

    @property
    def free(self) -> tuple[Span, ...]:
        """The free extents, at this moment."""
        return self.ledger.free((self.node, self.ssd.id), self.reserve)

    @property
    def free_bytes(self) -> int:
        """Bytes in all free extents."""
        return sum(span.bytes for span in self.free)

    @property
    def largest(self) -> int:
        """Bytes in the largest free extent: the largest volume that fits."""
        return max((span.bytes for span in self.free), default=0)

    @property
    def capacity(self) -> int:
        """Bytes for volumes."""
        return usable(self.ssd.bytes, self.reserve).bytes


@dataclass(frozen=True)
class PoolView:
    """A pool evaluated against all servers.

    Attributes:
        ssds: what it can use.
        refused: what it selects, or names, and cannot use.
        draining: what holds volumes of it, and gets no new ones.
        own: all SSDs that belong to it, by server and id; also those that it cannot use.
    """

    pool: FlashPool
    ssds: tuple[PoolSsd, ...]
    refused: tuple[RefusedSsd, ...]
    draining: tuple[DrainingSsd, ...]
    own: frozenset[Place] = frozenset()


def owner_of(
    ssd: Ssd, pools: Iterable[FlashPool], node_labels: Mapping[str, str] | None, *, neighbour: bool
) -> FlashPool | None:
    """The pool that an SSD belongs to: of those that select it the oldest, then the first by name."""
    selecting = [
        pool
        for pool in pools
        if not pool.deleting and selects_node(pool, node_labels) and selects_ssd(pool, ssd, neighbour=neighbour)
    ]
    return min(selecting, key=lambda pool: (pool.created, pool.metadata.name), default=None)


def needs_thorough(pool: FlashPool, ssd: Ssd) -> bool:
    """Whether the pool selects the SSD without anybody having named it: it must be proven blank more thoroughly."""
    return pool.spec.ssds.all and not names(pool.spec.ssds, ssd)


def evaluate(
    pools: Iterable[FlashPool],
    *,
    nodes: Iterable[FlashNode],
    node_labels: Mapping[str, Mapping[str, str]],
    ledger: Ledger,
    neighbours: Neighbours,
) -> dict[str, PoolView]:
    """For each pool what it can use, each SSD that it selects and cannot use, and each that it must keep, with reasons.

    Args:
        pools: all pools: an SSD that several select belongs to the oldest.
        nodes: all servers.
        node_labels: labels of the Nodes, by name.
        ledger: what is taken.
        neighbours: which SSDs are neighbours of GPUs.
    """
    everything = list(pools)
    found: dict[str, _Pool] = {pool.metadata.name: _Pool(pool) for pool in everything}
    for node in sorted(nodes, key=lambda item: item.metadata.name):
        labels = node_labels.get(node.metadata.name)
        near = neighbours.of(node)
        for ssd in sorted(node.status.ssds, key=lambda item: item.address):
            owner = owner_of(ssd, everything, labels, neighbour=near.get(ssd.id, 0) > 0)
            for one in found.values():
                one.look(node.metadata.name, labels, ssd, owner, ledger, neighbour=near.get(ssd.id, 0) > 0)
    return {name: one.view() for name, one in found.items()}


class _Pool:
    """One pool while it is evaluated."""

    def __init__(self, pool: FlashPool) -> None:
        self._pool = pool
        self._usable: list[PoolSsd] = []
        self._refused: list[RefusedSsd] = []
        self._draining: list[DrainingSsd] = []
        self._own: set[Place] = set()
        self._seen: set[str] = set()
        self._ids: dict[str, str] = {}
        self._serials: dict[str, str] = {}

    def look(
        self,
        node: str,
        labels: Mapping[str, str] | None,
        ssd: Ssd,
        owner: FlashPool | None,
        ledger: Ledger,
        *,
        neighbour: bool,
    ) -> None:
        """Looks at one SSD of one server; `owner` is the pool that it belongs to."""
        pool, name = self._pool, self._pool.metadata.name
        named = names(pool.spec.ssds, ssd)
        self._ids[ssd.id], self._serials[ssd.serial] = ssd.serial, ssd.id
        self._seen.update((ssd.serial, ssd.id) if named else ())
        own = owner is not None and owner.metadata.name == name
        if own:
            self._own.add((node, ssd.id))
        if own and ssd.state != "Foreign":
            self._usable.append(PoolSsd(node, ssd, pool.spec.reserve_percent, ledger))
            return
        why = ssd.reason if own else self._why_not(node, labels, ssd, owner, neighbour=neighbour)
        mine = sorted(volume.key for volume in ledger.placed_on((node, ssd.id)) if volume.spec.pool == name)
        if mine:
            self._draining.append(DrainingSsd(node=node, ssd=ssd.id, reason=why, volumes=mine[:NAMED], count=len(mine)))
        selected = named or (selects_node(pool, labels) and selects_ssd(pool, ssd, neighbour=neighbour))
        if own or (selected and not mine and not pool.deleting):
            self._refuse(node, ssd, why)

    def _why_not(
        self,
        node: str,
        labels: Mapping[str, str] | None,
        ssd: Ssd,
        owner: FlashPool | None,
        *,
        neighbour: bool,
    ) -> str:
        if self._pool.deleting:
            return "the pool is being deleted"
        if not selects_node(self._pool, labels):
            return f"spec.nodes does not select server {node}"
        why = why_not_selected(self._pool, ssd, neighbour=neighbour)
        if why is not None:
            return why
        other = owner.metadata.name if owner is not None else "another"
        why = f"pool {other} selects it too and is older; take it out of one of them"
        return f"{why}; and {ssd.reason}" if ssd.state == "Foreign" else why

    def _refuse(self, node: str, ssd: Ssd, reason: str) -> None:
        self._refused.append(RefusedSsd(node=node, ssd=ssd.id, reason=reason))

    def _unknown(self, name: str) -> str:
        """Why a serial or an id that the pool names selects nothing."""
        if name in self._ids:
            return f"it is an SSD's id: name it in spec.ssds.ids, or by its serial, {self._ids[name]}"
        if name in self._serials:
            return f"it is an SSD's serial: name it in spec.ssds.serials, or by its id, {self._serials[name]}"
        return "no server has such an SSD: compare with kubectl get flashnodes -o yaml, status.ssds"

    def view(self) -> PoolView:
        """What was found."""
        wanted = self._pool.spec.ssds
        missing = [name for name in (*wanted.serials, *wanted.ids) if name not in self._seen]
        self._refused += [RefusedSsd(node="", ssd=name, reason=self._unknown(name)) for name in dict.fromkeys(missing)]
        return PoolView(
            self._pool, tuple(self._usable), tuple(self._refused), tuple(self._draining), frozenset(self._own)
        )


def pool_status(view: PoolView, ledger: Ledger) -> FlashPoolStatus:
    """What `kubectl get` and `describe` show of a pool, without its conditions and generation."""
    by_node: dict[str, list[PoolSsd]] = {}
    for item in view.ssds:
        by_node.setdefault(item.node, []).append(item)
    return FlashPoolStatus(
        summary=PoolSummary(
            ssds=len(view.ssds),
            nodes=len(by_node),
            capacity=human_bytes(sum(item.capacity for item in view.ssds)),
            free=human_bytes(sum(item.free_bytes for item in view.ssds)),
            largest=human_bytes(max((item.largest for item in view.ssds), default=0)),
            refused=len(view.refused),
            draining=len(view.draining),
        ),
        nodes=[
            PoolNode(
                name=name,
                ssds=len(items),
                free=human_bytes(sum(item.free_bytes for item in items)),
                largest=human_bytes(max(item.largest for item in items)),
            )
            for name, items in sorted(by_node.items())[:SHOWN]
        ],
        refused=list(view.refused[:SHOWN]),
        draining=list(view.draining[:SHOWN]),
        namespaces=[
            NamespaceUse(name=name, volumes=count, bytes=Quantity(total))
            for name, (count, total) in list(ledger.use_of(view.pool.metadata.name).items())[:SHOWN]
        ],
    )


def holding(pool: FlashPool, volumes: Iterable[FlashVolume]) -> list[str]:
    """The volumes that keep a pool from going, as namespace/name: those that have bytes of it."""
    name = pool.metadata.name
    return sorted(item.key for item in volumes if item.spec.pool == name and item.status.node_name is not None)


def allows(pool: FlashPool, namespace: str, labels: Mapping[str, str], own_namespace: str) -> bool:
    """Whether a namespace may have volumes of a pool. KubeFlash's own always may."""
    selector: LabelSelector | None = pool.spec.allowed_namespaces
    return namespace == own_namespace or (selector is not None and matches(selector, labels))
