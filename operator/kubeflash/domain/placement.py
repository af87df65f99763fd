"""Which SSD a volume goes on. A placement is a reservation: the server's agent is the last judge of bytes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

from kubeflash.api.quantity import human_bytes
from kubeflash.api.v1alpha1 import Distance, FlashNode, FlashVolume
from kubeflash.domain.allocation import align_up
from kubeflash.domain.pools import PoolSsd, PoolView
from kubeflash.topology.distance import distance
from kubeflash.topology.flashnode import from_location


@dataclass(frozen=True)
class Placement:
    """The SSD that a volume goes on; `distance` from the GPU in spec.near, when there is one."""

    node: str
    ssd: str
    distance: Distance | None


@dataclass(frozen=True)
class Refusal:
    """Why a volume cannot be placed: `reason` for programs, `message` says what would have to change."""

    reason: str
    message: str


@dataclass(frozen=True)
class _Candidate:
    item: PoolSsd
    distance: Distance | None

    def order(self) -> tuple[int, int, str, str]:
        """Nearest first, then the emptiest, then by name: the same on every run."""
        rank = self.distance.rank if self.distance is not None else 0
        return (rank, -self.item.free_bytes, self.item.node, self.item.ssd.id)


def place(
    volume: FlashVolume,
    view: PoolView,
    nodes: Mapping[str, FlashNode],
    *,
    refused_by_agent: Mapping[str, str] | None = None,
    answering: Collection[str],
) -> Placement | Refusal:
    """Where the volume goes, or why nowhere.

    Args:
        volume: one that is not placed yet.
        view: its pool.
        nodes: all servers by name.
        refused_by_agent: ids of SSDs whose server refused this volume, with its words.
        answering: servers whose agent answers.
    """
    near = volume.spec.near
    pool = view.pool.metadata.name
    chosen = nodes.get(near.node) if near and near.node else None
    if near and near.node and chosen is None:
        known = ", ".join(sorted(nodes)) or "none"
        return Refusal("NodeNotFound", f"there is no FlashNode {near.node}; there are: {known}")
    if near and near.gpu and chosen is not None and all(gpu.address != near.gpu for gpu in chosen.status.gpus):
        known = ", ".join(gpu.address for gpu in chosen.status.gpus) or "none"
        return Refusal("GPUNotFound", f"server {near.node} has no GPU at {near.gpu}; it has: {known}")
    if not view.ssds:
        return Refusal("PoolEmpty", f"pool {pool} has no usable SSD: kubectl describe flashpool {pool} says why")
    measure = _measure(near.gpu if near else None, chosen)
    said: list[str] = [f"{len(view.ssds)} SSDs in pool {pool}"]
    candidates = [_Candidate(item, measure(item)) for item in view.ssds]

    def narrow(keep: Callable[[_Candidate], bool], what: str) -> None:
        nonlocal candidates
        candidates = [candidate for candidate in candidates if keep(candidate)]
        said.append(f"{len(candidates)} {what}")

    if near and near.node:
        narrow(lambda c: c.item.node == near.node, f"on server {near.node}")
    if near and near.ssd:
        narrow(lambda c: c.item.ssd.id == near.ssd, f"with id {near.ssd}")
    limit = near.max_distance if near else None
    if near and limit is not None:
        within = _within(Distance(limit))
        narrow(lambda c: c.distance is not None and within(c.distance), f"within {limit} of GPU {near.gpu}")
    if any(candidate.item.node not in answering for candidate in candidates):
        narrow(lambda c: c.item.node in answering, "on servers whose agent answers")
    turned_down = refused_by_agent or {}
    if any(candidate.item.ssd.id in turned_down for candidate in candidates):
        words = "; ".join(sorted({turned_down[c.item.ssd.id] for c in candidates if c.item.ssd.id in turned_down}))
        narrow(lambda c: c.item.ssd.id not in turned_down, f"not refused by their server ({words})")
    if not candidates:
        return Refusal("NoSuitableSSD", "; ".join(said))
    needed = align_up(volume.spec.size)
    largest = max(candidate.item.largest for candidate in candidates)
    if needed > largest:
        said.append(f"largest free extent {human_bytes(largest)} < {volume.spec.size}")
        return Refusal("NoSpace", "; ".join(said))
    fitting: Iterable[_Candidate] = (c for c in candidates if c.item.largest >= needed)
    best = min(fitting, key=_Candidate.order)
    return Placement(best.item.node, best.item.ssd.id, best.distance)


def _within(limit: Distance) -> Callable[[Distance], bool]:
    """Whether a distance is within a limit. An unknown one is so only where everything is."""
    return lambda how_far: limit is Distance.SYS or how_far <= limit


def _measure(gpu_address: str | None, node: FlashNode | None) -> Callable[[PoolSsd], Distance | None]:
    """How far each SSD is from the GPU; None for SSDs of other servers, and where no GPU was asked for."""
    gpu = next((gpu for gpu in node.status.gpus if gpu.address == gpu_address), None) if node and gpu_address else None
    if gpu is None or node is None:
        return lambda _: None
    name, origin = node.metadata.name, from_location(gpu)
    return lambda item: distance(origin, from_location(item.ssd)) if item.node == name else None
