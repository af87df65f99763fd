"""Where a volume goes, and why not elsewhere. A placement is a reservation: the agent is the last judge of bytes.

The questions, in this order: is it somewhere already, may it be had at all, which SSDs could take it, and which of
those does best. The same function that places also explains (`consider`): there is one answer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from kubeflash.api.quantity import format_quantity, human_bytes
from kubeflash.api.v1alpha1 import Distance, FlashNode, FlashPool, FlashVolume, Gpu, PeerToPeerStatus
from kubeflash.domain.allocation import align_up
from kubeflash.domain.cluster import Cluster
from kubeflash.domain.conditions import find, holds
from kubeflash.domain.ledger import Place, granted, identity
from kubeflash.domain.pools import PoolSsd, allows


@dataclass(frozen=True)
class Placement:
    """The SSD that a volume goes on.

    Attributes:
        bytes: what it may take there.
        distance: from the GPU in spec.near, when there is one.
        reason: `Placed` anew; `Settled`: it has bytes there; `Found`: its bytes were found there; `Moved`: its SSD is
            in another server now.
        words: what an admin should know of it beside where it is.
    """

    node: str
    ssd: str
    bytes: int
    distance: Distance | None = None
    p2p: PeerToPeerStatus | None = None
    reason: str = "Placed"
    words: str = ""


@dataclass(frozen=True)
class Refusal:
    """Why a volume cannot be placed: `reason` for programs, `message` says what would have to change."""

    reason: str
    message: str


@dataclass
class Candidate:
    """One SSD of the pool, as a volume sees it.

    Attributes:
        item: the SSD.
        distance: from the GPU that the volume shall be near.
        own: whether it is one of that GPU's own SSDs.
        gpus: of how many GPUs it is a neighbour: what is wasted on a volume that asks for none.
        here: the volume is placed there already; it may even be carved there, without anybody having said so yet.
        why_not: why it is not taken; empty for one that could be.
    """

    item: PoolSsd
    distance: Distance | None
    own: bool
    gpus: int
    here: bool = False
    why_not: str = ""


@dataclass(frozen=True)
class Consideration:
    """All SSDs of the pool with what speaks against them, in the order of preference, and the outcome."""

    outcome: Placement | Refusal
    candidates: tuple[Candidate, ...] = ()


def settle(volume: FlashVolume, cluster: Cluster) -> Placement | Refusal:
    """Where the volume is to be: where it is, where its bytes were found, or the best SSD for it."""
    if volume.status.lost is not None:
        lost = volume.status.lost
        return Refusal(
            "Lost",
            f"SSD {lost.ssd} of server {lost.node_name} was declared lost for good at {lost.since:%Y-%m-%d %H:%M} "
            "UTC; delete this volume, or if the SSD comes back after all, kubectl flash adopt its orphan",
        )
    stays = _stays(volume, cluster)
    if stays is not None:
        return stays
    cluster.ledger.take(volume)  # what it was promised so far does not stand in its own way
    return consider(volume, cluster).outcome


def was_carved(volume: FlashVolume) -> bool:
    """Whether bytes of it are, or were, on the SSD where it is placed. Such a volume is never placed elsewhere."""
    placed = find(volume.status.conditions, "Placed")
    return (
        volume.status.bytes is not None
        or holds(volume.status.conditions, "Carved")
        or (placed is not None and placed.reason in ("Settled", "Found", "Moved"))
    )


def is_restored(volume: FlashVolume) -> bool:
    """Whether its id came with the object: its bytes exist somewhere, or did.

    It is never made anew: that would look like data that became empty.
    """
    return volume.spec.id is not None and volume.spec.id != volume.status.id and volume.status.bytes is None


def whereabouts(volume: FlashVolume, cluster: Cluster) -> Placement | None:
    """Where a volume that has a place is now: there, or where its SSD has gone since. None for one that has none."""
    status = volume.status
    if status.node_name is None or status.ssd is None:
        return None
    carved = was_carved(volume)
    moved = _followed(volume, cluster) if carved else None
    if moved is not None:
        return moved
    placed = find(status.conditions, "Placed")
    before = placed.message.partition("; ")[2] if placed is not None and placed.reason == "Moved" else ""
    reason = "Moved" if before else "Settled" if carved else "Placed"
    p2p = _peer_to_peer(volume, status.node_name, status.ssd, cluster)
    return Placement(status.node_name, status.ssd, granted(volume), status.distance, p2p, reason, before)


def _stays(volume: FlashVolume, cluster: Cluster) -> Placement | None:
    """The place that it has, when that stands: it has bytes there, or this controller gave it and nobody refused."""
    if was_carved(volume):
        return whereabouts(volume, cluster)
    if is_restored(volume):
        return None  # the placement was made for another id
    refused = volume.status.ssd in cluster.refusals.get(volume.metadata.uid, {})
    if volume.status.granted_by == cluster.leader and not refused:
        return whereabouts(volume, cluster)
    return None


def _followed(volume: FlashVolume, cluster: Cluster) -> Placement | None:
    """The other server that its SSD is in by now, with its bytes, when the one it was in does not have it any more.

    That is said by the former server itself, or by an admin. The other server's word alone would let root there have
    the volumes of any server that is silent for a moment.
    """
    status = volume.status
    here = (status.node_name or "", status.ssd or "")
    for (node, ssd), extent in cluster.ledger.extents(volume.spec.id or ""):
        if node == status.node_name or ssd != status.ssd or node not in cluster.answering:
            continue
        before, now = cluster.nodes.get(here[0]), cluster.nodes[node]
        whose = before.status.system_uuid if before is not None else ""
        silent = here[0] not in cluster.answering
        renamed = silent and before is not None and whose == now.status.system_uuid
        by_admin = silent and (here[0] in cluster.purged or now.spec.adopt.get(ssd) == whose)
        if cluster.ledger.has(here) and not (renamed or by_admin):
            return None
        words = f"server {here[0]} is called {node} now" if renamed else f"SSD {ssd} came from server {here[0]}"
        near, p2p = (status.distance, status.p2p) if renamed else (None, None)
        return Placement(node, ssd, max(granted(volume), extent.bytes), near, p2p, "Moved", words)
    return None


def consider(volume: FlashVolume, cluster: Cluster) -> Consideration:
    """Where a volume that has no place would go, with every SSD of its pool and what speaks against it."""
    pool = cluster.pools.get(volume.spec.pool)
    verdict = _may_use(volume, pool, cluster) or _id_taken(volume, cluster)
    if verdict is not None or pool is None:
        assert verdict is not None
        return Consideration(verdict)
    found = _found(volume, cluster)
    if found is not None:
        over = _over_quota(volume, pool, cluster, found.bytes) if isinstance(found, Placement) else None
        return Consideration(over or found)
    if is_restored(volume):
        return Consideration(_not_found(volume, cluster))
    candidates, refusal = _candidates(volume, pool, cluster)
    over = _over_quota(volume, pool, cluster, align_up(volume.spec.size))
    taken = [candidate for candidate in candidates if not candidate.why_not]
    if over is not None or refusal is not None or not taken:
        return Consideration(over or refusal or Refusal("NoSuitableSSD", "no SSD is suitable"), candidates)
    best = taken[0]
    node, ssd = best.item.node, best.item.ssd.id
    outcome = Placement(node, ssd, align_up(volume.spec.size), best.distance, _peer_to_peer(volume, node, ssd, cluster))
    return Consideration(outcome, candidates)


# --- may it be had at all? ---


def _may_use(volume: FlashVolume, pool: FlashPool | None, cluster: Cluster) -> Refusal | None:
    if pool is None:
        known = ", ".join(sorted(cluster.pools)) or "none"
        return Refusal("PoolNotFound", f"there is no FlashPool {volume.spec.pool}; there are: {known}")
    if pool.deleting:
        return Refusal("PoolDeleting", f"FlashPool {pool.metadata.name} is being deleted: take another")
    namespace = volume.metadata.namespace or ""
    labels = cluster.namespace_labels.get(namespace, {})
    if not allows(pool, namespace, labels, cluster.own_namespace):
        if pool.spec.allowed_namespaces is None:
            return Refusal(
                "NamespaceNotAllowed",
                f"FlashPool {pool.metadata.name} has no spec.allowedNamespaces: only namespace {cluster.own_namespace} "
                "may have volumes of it; an admin sets that, and {} is all namespaces",
            )
        return Refusal(
            "NamespaceNotAllowed",
            f"FlashPool {pool.metadata.name} does not allow namespace {namespace}: an admin can add it by a label that "
            "spec.allowedNamespaces selects",
        )
    return None


def _over_quota(volume: FlashVolume, pool: FlashPool, cluster: Cluster, wanted: int) -> Refusal | None:
    """Why the namespace cannot have that many bytes for this volume; None when it can."""
    if pool.spec.quota is None:
        return None
    namespace, limit = volume.metadata.namespace or "", pool.spec.quota.per_namespace
    used = cluster.ledger.used(pool.metadata.name, namespace, without=volume)
    if used + wanted <= limit:
        return None
    return Refusal(
        "QuotaExceeded",
        f"other volumes of namespace {namespace} have {format_quantity(used)} of pool {pool.metadata.name}, and all "
        f"may have {limit}: {format_quantity(wanted)} for this volume is too much; delete volumes (their bytes count "
        "until they are wiped), or have an admin raise spec.quota.perNamespace",
    )


def _id_taken(volume: FlashVolume, cluster: Cluster) -> Refusal | None:
    """A copy of another volume's object, id and all, must not get that volume's bytes.

    The id is that of who has a place, else of who was given it by the controller. Where nobody is, as after all objects
    were restored, copies among them, nobody gets it: whose the bytes are an admin must say.
    """
    others = cluster.ledger.namesakes(volume)
    rivals = [other for other in others if _claim(other) <= _claim(volume)]
    if not rivals:
        return None
    first = min(rivals, key=lambda item: (_claim(item), _age(item)))
    if _claim(first) == _claim(volume) < _HAS_NONE and _age(volume) < _age(first):
        return None
    is_lost = first.status.lost is not None
    way = "it is lost: delete it first" if is_lost else "make this one without an id, or delete that one"
    return Refusal("IdTaken", f"FlashVolume {first.key} has id {identity(volume)} too: {way}")


_HAS_NONE = 2


def _claim(volume: FlashVolume) -> int:
    """How good a volume's claim on its id is: it has a place, the controller gave it, it came with the object."""
    if volume.status.node_name is not None and (was_carved(volume) or not is_restored(volume)):
        return 0
    return 1 if volume.spec.id is None or volume.spec.id == volume.status.id else _HAS_NONE


def _age(volume: FlashVolume) -> tuple[str, str]:
    return (volume.created, volume.metadata.uid)


# --- is it somewhere already? ---


def _found(volume: FlashVolume, cluster: Cluster) -> Placement | Refusal | None:
    """The SSD that holds its bytes already: its object lost its status, or was restored from a backup."""
    where = cluster.ledger.extents(identity(volume) or "")
    answering = [item for item in where if item[0][0] in cluster.answering]
    where = answering or where
    if not where:
        return None
    if len(where) > 1:
        places = ", ".join(f"SSD {ssd} of server {node}" for (node, ssd), _ in where)
        return Refusal("FoundTwice", f"its bytes are on {places}: take all but the right SSD out, nothing is touched")
    (place, extent), *_ = where
    if not _is_of_pool(place, volume.spec.pool, cluster):
        return Refusal(
            "FoundElsewhere",
            f"its bytes are on SSD {place[1]} of server {place[0]}, which is not of pool {volume.spec.pool}: an admin "
            "can make the pool select it",
        )
    distance = _distance(volume, *place, cluster)
    p2p = _peer_to_peer(volume, *place, cluster)
    return Placement(*place, extent.bytes, distance, p2p, "Found", "its bytes were found there")


def _is_of_pool(place: Place, pool: str, cluster: Cluster) -> bool:
    """Whether an SSD belongs to the pool, or did: also one that gets nothing new, for what else is on it."""
    view = cluster.views[pool]
    return place in view.own or any((item.node, item.ssd) == place for item in view.draining)


def _not_found(volume: FlashVolume, cluster: Cluster) -> Refusal:
    silent = sorted(set(cluster.nodes) - cluster.answering)
    maybe = f"; it may be on a server that does not answer now: {', '.join(silent)}" if silent else ""
    return Refusal(
        "NotFound",
        f"spec.id {volume.spec.id} came with the object, and no SSD holds it{maybe}. It is waited for; if its bytes "
        "are gone for good, delete this object and make one without spec.id",
    )


# --- which SSDs could take it, and which is best? ---


def _candidates(volume: FlashVolume, pool: FlashPool, cluster: Cluster) -> tuple[tuple[Candidate, ...], Refusal | None]:
    """The SSDs of the pool, best first, each with what speaks against it; and why none is taken when none is."""
    view = cluster.views[pool.metadata.name]
    name = pool.metadata.name
    if not view.ssds:
        return (), Refusal("PoolEmpty", f"pool {name} has no usable SSD: kubectl describe flashpool {name} says why")
    near = volume.spec.near
    server, gpu = None, None
    if near is not None and (near.node or near.gpu):
        found = _asked(volume, cluster)
        if isinstance(found, Refusal):
            return (), found
        server, gpu = found
    candidates = [_candidate(item, volume, server, gpu, cluster) for item in view.ssds]
    sieve = _Sieve(candidates, f"{len(candidates)} SSDs in pool {name}")
    if server is not None:
        where = server.metadata.name
        sieve.keep(lambda c: "" if c.item.node == where else f"it is not in server {where}", f"on server {where}")
    if near is not None and near.ssd:
        sieve.keep(lambda c: "" if c.item.ssd.id == near.ssd else f"spec.near.ssd is {near.ssd}", f"with id {near.ssd}")
    if near is not None and near.max_distance is not None and server is not None and gpu is not None:
        limit = Distance(near.max_distance)
        place = f"{server.metadata.name}/{gpu.address}"
        sieve.keep(lambda c: _too_far(c.distance, limit), f"within {limit} of GPU {place}")
    exact = near is not None and server is not None and near.node == server.metadata.name
    _keep_servers(sieve, cluster, exact=exact)
    sieve.keep_if_any(
        lambda c: f"it is failing: {c.item.ssd.failing}" if c.item.ssd.failing and not c.here else "",
        "that do not fail",
    )
    turned_down = cluster.refusals.get(volume.metadata.uid, {})
    words = "; ".join(sorted(set(turned_down.values())))
    sieve.keep_if_any(
        lambda c: f"its server refused: {turned_down[c.item.ssd.id]}" if c.item.ssd.id in turned_down else "",
        f"not refused by their server ({words})",
    )
    refusal = _no_room(volume, sieve)
    servers = _fullness(candidates)
    candidates.sort(key=lambda c: (c.why_not != "", not c.here, *_order(c, gpu, servers)))
    return tuple(candidates), refusal


def _asked(volume: FlashVolume, cluster: Cluster) -> tuple[FlashNode, Gpu | None] | Refusal:
    """The server and the GPU that spec.near names."""
    near = volume.spec.near
    assert near is not None
    if near.gpu and not near.node:
        found = [(server, item) for server in cluster.nodes.values() for item in server.status.gpus]
        found = [(server, item) for server, item in found if item.uuid == near.gpu]
        if not found:
            words = f"no server has a GPU {near.gpu}: compare with kubectl flash topology -o json"
            return Refusal("GPUNotFound", words)
        # A server that was renamed, or whose GPU went into another one, may still tell of it by what it said last.
        return min(found, key=lambda one: (one[0].metadata.name not in cluster.answering, one[0].metadata.name))
    node = cluster.nodes.get(near.node or "")
    if node is None:
        known = ", ".join(sorted(cluster.nodes)) or "none"
        return Refusal("NodeNotFound", f"there is no FlashNode {near.node}; there are: {known}")
    if not near.gpu:
        return node, None
    gpu = next((item for item in node.status.gpus if near.gpu in (item.address, item.uuid)), None)
    if gpu is None:
        known = ", ".join(item.address for item in node.status.gpus) or "none"
        return Refusal("GPUNotFound", f"server {near.node} has no GPU at {near.gpu}; it has: {known}")
    return node, gpu


def _candidate(
    item: PoolSsd, volume: FlashVolume, server: FlashNode | None, gpu: Gpu | None, cluster: Cluster
) -> Candidate:
    home = cluster.nodes[item.node]
    distance, own = None, False
    if server is not None and gpu is not None and item.node == server.metadata.name:
        distance = cluster.neighbours.distances(home).between.get((gpu.address, item.ssd.id))
        own = any(pair.gpu == gpu.address and pair.id == item.ssd.id for pair in home.status.pairs)
    here = (item.node, item.ssd.id) == (volume.status.node_name, volume.status.ssd)
    return Candidate(item, distance, own, cluster.neighbours.of(home).get(item.ssd.id, 0), here)


class _Sieve:
    """Candidates, fewer with each question, and the sentence that tells how many each one left."""

    def __init__(self, candidates: list[Candidate], said: str) -> None:
        self._all = candidates
        self.said = [said]

    @property
    def left(self) -> list[Candidate]:
        """Those that nothing speaks against yet."""
        return [candidate for candidate in self._all if not candidate.why_not]

    def keep(self, why_not: Callable[[Candidate], str], what: str) -> None:
        """Takes out those that have a reason against them."""
        for candidate in self.left:
            candidate.why_not = why_not(candidate)
        self.said.append(f"{len(self.left)} {what}")

    def keep_if_any(self, why_not: Callable[[Candidate], str], what: str) -> None:
        """The same, without a word where it takes out none."""
        before = len(self.left)
        self.keep(why_not, what)
        if len(self.left) == before:
            self.said.pop()


def _keep_servers(sieve: _Sieve, cluster: Cluster, *, exact: bool) -> None:
    """Only servers that take new volumes. A cordoned one does for a volume that names it (`exact`), as with pods.

    Where the volume is placed already it is nothing new: another controller leads, and confirms it.
    """

    def silent(candidate: Candidate) -> str:
        name = candidate.item.node
        return "" if candidate.here or name in cluster.answering else f"the agent on server {name} does not answer"

    def maintained(candidate: Candidate) -> str:
        name = candidate.item.node
        if candidate.here:
            return ""
        if cluster.nodes[name].deleting:
            return f"FlashNode {name} is being deleted"
        if cluster.nodes[name].spec.maintenance:
            return f"server {name} is in maintenance (spec.maintenance of its FlashNode)"
        if name in cluster.cordoned and not exact:
            return f"Node {name} is cordoned: kubectl uncordon {name}, or name it in spec.near.node"
        return ""

    sieve.keep_if_any(silent, "on servers whose agent answers")
    sieve.keep_if_any(maintained, "on servers that take new volumes")


def _no_room(volume: FlashVolume, sieve: _Sieve) -> Refusal | None:
    """Marks the SSDs that are too full; why none is taken when none is left."""
    if not sieve.left:
        return Refusal("NoSuitableSSD", f"{'; '.join(sieve.said)}; kubectl flash why volume says it for each SSD")
    needed, fitting = align_up(volume.spec.size), sieve.left
    largest = max(candidate.item.largest for candidate in fitting)
    for candidate in fitting:
        if candidate.item.largest < needed:
            candidate.why_not = f"its largest free extent is {human_bytes(candidate.item.largest)} < {volume.spec.size}"
    if sieve.left:
        return None
    said = [*sieve.said, f"largest free extent {human_bytes(largest)} < {volume.spec.size}"]
    if needed > (whole := max(candidate.item.capacity for candidate in fitting)):
        said.append(f"none of these SSDs can hold more than {human_bytes(whole)}, even when it is empty")
        return Refusal("NoSpace", f"{'; '.join(said)}; delete it and make a smaller one, or give the pool larger SSDs")
    return Refusal(
        "NoSpace", f"{'; '.join(said)}; make a smaller one in its place, release volumes, or give the pool more SSDs"
    )


def _too_far(how_far: Distance | None, limit: Distance) -> str:
    """Why an SSD is not within a limit. An unknown distance is so only where everything is."""
    if how_far is not None and (limit is Distance.SYS or how_far <= limit):
        return ""
    return f"it is {how_far or 'not in that server'}, farther than {limit}"


def _fullness(candidates: list[Candidate]) -> dict[str, int]:
    """By server, how much of what the pool has on it is taken, in millionths."""
    free: dict[str, int] = {}
    whole: dict[str, int] = {}
    for candidate in candidates:
        item = candidate.item
        free[item.node] = free.get(item.node, 0) + item.free_bytes
        whole[item.node] = whole.get(item.node, 0) + item.capacity
    return {node: _taken(free[node], whole[node]) for node in free}


def _taken(free: int, whole: int) -> int:
    """Millionths that are taken: whole numbers, so that the order is the same on every machine."""
    return 1_000_000 - free * 1_000_000 // whole if whole else 1_000_000


def _order(candidate: Candidate, gpu: Gpu | None, servers: dict[str, int]) -> tuple[int, int, int, int, int, str, str]:
    """Best first, the same on every run.

    Near a GPU: the nearest; of those the GPU's own, so that others keep theirs; then the emptiest. Anywhere: SSDs that
    are no GPU's neighbour, so that neighbours are left for those who ask for one; then the emptiest SSD, in the
    emptiest server.
    """
    item = candidate.item
    name = (item.node, item.ssd.id)
    taken = _taken(item.free_bytes, item.capacity)
    if gpu is not None:
        rank = candidate.distance.rank if candidate.distance is not None else len(Distance)
        return (rank, 0 if candidate.own else 1, taken, candidate.gpus, 0, *name)
    return (candidate.gpus, taken, servers[item.node], 0, 0, *name)


# --- how near is what was found? ---


def near_gpu(volume: FlashVolume, node: FlashNode) -> Gpu | None:
    """The GPU of this server that the volume shall be near."""
    wanted = volume.spec.near.gpu if volume.spec.near is not None else None
    return next((gpu for gpu in node.status.gpus if wanted and wanted in (gpu.address, gpu.uuid)), None)


def _gpu_meant(volume: FlashVolume, node: FlashNode) -> Gpu | None:
    """The GPU that the volume shall be near, unless spec.near names another server: its address is that one's."""
    near = volume.spec.near
    return near_gpu(volume, node) if near is not None and near.node in (None, node.metadata.name) else None


def _distance(volume: FlashVolume, node: str, ssd: str, cluster: Cluster) -> Distance | None:
    home = cluster.nodes[node]
    gpu = _gpu_meant(volume, home)
    return cluster.neighbours.distances(home).between.get((gpu.address, ssd)) if gpu is not None else None


def _peer_to_peer(volume: FlashVolume, node: str, ssd: str, cluster: Cluster) -> PeerToPeerStatus | None:
    """What the pair of the GPU and the SSD says, when they are one."""
    home = cluster.nodes.get(node)
    gpu = _gpu_meant(volume, home) if home is not None else None
    if home is None or gpu is None:
        return volume.status.p2p
    return next((pair.p2p for pair in home.status.pairs if pair.gpu == gpu.address and pair.id == ssd), None)


# --- may it grow? ---


@dataclass(frozen=True)
class Growth:
    """How large a volume may be now, and why not as large as it wants; `why_not` is empty when it may."""

    bytes: int
    reason: str = ""
    why_not: str = field(default="")


def grow(volume: FlashVolume, cluster: Cluster) -> Growth:
    """How large a carved volume may be: what it has been granted, or what it asks for when quota and place allow."""
    now, wanted = granted(volume), align_up(volume.spec.size)
    if volume.status.granted_by != cluster.leader and volume.status.bytes is not None:
        now = volume.status.bytes  # what another controller granted and is not there yet is decided anew
    if wanted <= now:
        return Growth(now)
    pool = cluster.pools.get(volume.spec.pool)
    if pool is None or pool.deleting:
        return Growth(now, "PoolGone", f"FlashPool {volume.spec.pool} is gone, or being deleted")
    refusal = _may_use(volume, pool, cluster) or _over_quota(volume, pool, cluster, wanted)
    if refusal is not None:
        return Growth(now, refusal.reason, refusal.message)
    place = (volume.status.node_name or "", volume.status.ssd or "")
    if not any((item.node, item.ssd.id) == place for item in cluster.views[pool.metadata.name].ssds):
        return Growth(now, "Draining", f"pool {pool.metadata.name} does not have SSD {place[1]} for new bytes now")
    most, behind = cluster.ledger.room(place, identity(volume) or "", pool.spec.reserve_percent)
    if wanted > most:
        words = f"behind it is {behind}: it can have at most {human_bytes(most)} where it is"
        return Growth(now, "NoSpace", f"{words}; release what is behind it, or make another volume and copy the data")
    return Growth(wanted)
