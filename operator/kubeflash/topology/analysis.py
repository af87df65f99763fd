"""What is to be said of a server: distances, pairs with their bandwidth, what is wrong, what to do about it. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from kubeflash.api.v1alpha1 import Distance
from kubeflash.topology.distance import common, distance
from kubeflash.topology.faults import Fault, acs_fault, link_faults, short, uplink_fault
from kubeflash.topology.links import Edge, between, edges
from kubeflash.topology.pairing import Pair, pair
from kubeflash.topology.server import Server
from kubeflash.topology.tree import PciDevice, Step

_NAMED = 2
"""How many GPUs are named in a sentence; more are counted."""


@dataclass(frozen=True)
class PeerToPeer:
    """Whether a GPU and an SSD can exchange data without main memory between them. None: it cannot be said."""

    possible: bool | None
    why: str


@dataclass(frozen=True)
class PairView:
    """A GPU and an SSD of its own.

    Attributes:
        gbps: GB/s (10^9 bytes, a direction) of the narrowest link of the way, uplinks of switches divided by the number
            of pairs that cross them. Not divided are the links of the two devices themselves, which their other pairs
            use too: `shared_with` says which GPUs. None when nobody says.
        alone: the same with nothing divided.
        shared_with: other GPUs that have this SSD.
        why: why it is this SSD, in one line.
        faults: what is wrong on the way.
    """

    gpu: str
    ssd: str
    distance: Distance
    gbps: float | None
    alone: float | None
    shared_with: tuple[str, ...]
    peer_to_peer: PeerToPeer
    why: str
    faults: tuple[Fault, ...] = ()


@dataclass(frozen=True)
class RootView:
    """What `resource.kubernetes.io/pcieRoot` alone would say of a GPU: which SSDs have the same one.

    Attributes:
        root: the attribute's value, such as pci0000:4a; empty when nobody says.
        same_root: the SSDs with the same value, each with its distance.
        verdict: in one line: whether it names the GPU's nearest SSDs.
        tells: whether the SSDs with the same value are exactly the nearest ones.
    """

    gpu: str
    root: str
    same_root: tuple[tuple[str, Distance], ...]
    verdict: str
    tells: bool


@dataclass(frozen=True)
class Analysis:
    """A server with all that follows from it.

    Attributes:
        pairs: sorted by the GPU's address, then the SSD's.
        distances: by GPU and SSD.
        faults: of the whole server, each once, the serious ones first.
        roots: the comparison with pcieRoot, a GPU each.
    """

    server: Server
    pairs: tuple[PairView, ...]
    distances: Mapping[tuple[str, str], Distance]
    faults: tuple[Fault, ...]
    roots: tuple[RootView, ...]

    def is_neighbour(self, how_far: Distance) -> bool:
        """Whether an SSD at this distance is a neighbour: no host bridge between, or nothing nearer can be had."""
        return is_neighbour(how_far, switches=self.server.has_switches)


def is_neighbour(how_far: Distance, *, switches: bool) -> bool:
    """PIX and PXB are neighbours, and PHB on a platform without switches, where nothing nearer can be had."""
    return how_far.is_neighbour or (how_far is Distance.PHB and not switches)


def analyse(server: Server, *, previous: Collection[tuple[str, str]] = ()) -> Analysis:
    """Works out everything about a server.

    Args:
        server: as some source describes it. SSDs that KubeFlash leaves alone (with a reason) get no pairs.
        previous: GPU and SSD of the pairs that there were before something changed: they stay where they can.
    """
    gpus, ssds = server.gpu_devices, server.ssd_devices
    usable = [ssd for ssd in ssds if not server.fact(ssd.address).reason]
    pairs = pair(gpus, usable, previous=previous)
    distances = {(gpu.address, ssd.address): distance(gpu, ssd) for gpu in gpus for ssd in ssds}
    ways = {item: between(server.device(item.gpu), server.device(item.ssd)) for item in pairs}
    crossing = Counter(edge.upper for way in ways.values() for edge in way if edge.is_uplink)
    owners = {item.ssd: [other.gpu for other in pairs if other.ssd == item.ssd] for item in pairs}
    faults_of = _device_faults(server)
    unsure = {gpu for (gpu, _), how_far in distances.items() if not how_far.is_known}
    views = tuple(
        _view(server, item, ways[item], crossing, owners[item.ssd], faults_of, unsure=item.gpu in unsure)
        for item in pairs
    )
    every = [fault for faults in faults_of.values() for fault in faults]
    every += [fault for view in views for fault in view.faults]
    faults = sorted(dict.fromkeys(every), key=lambda fault: not fault.serious)
    roots = tuple(_root_view(server, gpu, distances) for gpu in gpus)
    return Analysis(server, views, distances, tuple(faults), roots)


def _device_faults(server: Server) -> dict[str, list[Fault]]:
    """Faults of the links on the way to GPUs and SSDs, by the name of the link (`Edge.upper`)."""
    found: dict[str, list[Fault]] = {}
    gpus = set(server.gpus)
    for device in (*server.gpu_devices, *server.ssd_devices):
        for _, edge in edges(device):
            if edge.upper in found:
                continue  # an uplink is above several
            gpu = edge.lower in gpus
            what = "switch" if edge.is_uplink else "GPU" if gpu else "SSD"
            found[edge.upper] = list(link_faults(edge, what, gpu=gpu))
    return found


def _view(
    server: Server,
    item: Pair,
    way: tuple[Edge, ...],
    crossing: Mapping[str, int],
    owners: list[str],
    faults_of: Mapping[str, list[Fault]],
    *,
    unsure: bool,
) -> PairView:
    """One pair. `unsure`: of some SSD nobody says how far it is from the GPU."""
    gpu, ssd = server.device(item.gpu), server.device(item.ssd)
    whole = {edge.upper: edge.gbps(gpu=edge.lower == item.gpu) for edge in way}
    shares = {
        edge.upper: value / crossing[edge.upper] if edge.is_uplink else value
        for edge in way
        if (value := whole[edge.upper]) is not None
    }
    gbps = min(shares.values(), default=None)
    others = tuple(other for other in owners if other != item.gpu)
    ports = _ports_between(gpu, ssd)
    faults = [fault for edge in way for fault in faults_of.get(edge.upper, ())]
    faults += [acs_fault(step) for step in ports if step.hop.acs == "Redirect" and item.distance.is_neighbour]
    alone = min((value for value in whole.values() if value is not None), default=None)
    faults += [
        uplink_fault(edge, crossing[edge.upper], shares[edge.upper])
        for edge in way
        if edge.is_uplink and alone is not None and gbps is not None and shares.get(edge.upper) == gbps < alone
    ]
    near = is_neighbour(item.distance, switches=server.has_switches)
    if not near and not unsure:
        faults.append(_relaxed(server, item))
    why = _why(server, gpu, ssd, item.distance, others)
    if not near and unsure and item.distance.is_known:
        why += "; how far others are is not known"
    return PairView(
        gpu=item.gpu,
        ssd=item.ssd,
        distance=item.distance,
        gbps=gbps,
        alone=alone,
        shared_with=others,
        peer_to_peer=_peer_to_peer(item.distance, ports),
        why=why,
        faults=tuple(faults),
    )


def _where_to(server: Server, gpu: PciDevice, how_far: Distance) -> str:
    """What to move to make neighbours of a GPU and its nearest SSD."""
    if any(step.is_switch and not step.hop.on_card for step in gpu.way):
        return "move an SSD to a slot of the GPU's own switch"
    if server.has_switches:
        at_least = "" if how_far is Distance.PHB else "; a slot of the GPU's host bridge is nearer than now, too"
        return f"move the GPU to a switch that has SSDs{at_least}"
    return "move an SSD to a slot of the GPU's own host bridge"


def _relaxed(server: Server, item: Pair) -> Fault:
    gpu = server.device(item.gpu)
    left = [
        short(ssd.address)
        for ssd in server.ssd_devices
        if server.fact(ssd.address).reason and distance(gpu, ssd) < item.distance
    ]
    remedy = f"{_where_to(server, gpu, item.distance)}; until then all data crosses the processor"
    if left:
        remedy += f"; or free a nearer one that is left alone ({', '.join(left)}: kubectl flash why)"
    return Fault("NoNeighbour", item.gpu, f"no neighbour SSD: the nearest is at {item.distance}", remedy)


def _ports_between(one: PciDevice, other: PciDevice) -> tuple[Step, ...]:
    """The bridges on the way between two devices, without the one at which the ways part."""
    shared = common(one.way, other.way) if one.root_complex == other.root_complex else 0
    return (*one.way[shared:], *other.way[shared:])


def _peer_to_peer(how_far: Distance, ports: tuple[Step, ...]) -> PeerToPeer:
    """Peers talk directly below a common switch, unless a port on the way redirects them to the root complex.

    What goes through host bridges is not direct, though Linux allows it on the platforms in drivers/pci/p2pdma.c.
    """
    if how_far is Distance.UNKNOWN:
        return PeerToPeer(None, "the way between them is not known")
    if how_far in (Distance.NODE, Distance.SYS):
        return PeerToPeer(False, "not directly: their way leads through two host bridges")
    if how_far is Distance.PHB:
        return PeerToPeer(None, "through a host bridge: where the kernel lists the platform as able to (pci_p2pdma)")
    switch_ports = [step for step in ports if step.kind != "RootPort"]
    redirecting = [short(step.hop.address) for step in switch_ports if step.hop.acs == "Redirect"]
    if redirecting:
        return PeerToPeer(False, f"not directly: ACS redirects at {', '.join(redirecting)}")
    if any(step.hop.acs is None and step.kind == "SwitchDownstream" for step in switch_ports):
        return PeerToPeer(None, "whether ACS redirects it is not known")
    return PeerToPeer(True, "below a common switch, and no port redirects" if ports else "on one link")


def _why(server: Server, gpu: PciDevice, ssd: PciDevice, how_far: Distance, others: tuple[str, ...]) -> str:
    words = _way_in_words(server, gpu, ssd, how_far)
    if not others:
        return words
    named = ", ".join(map(short, others)) if len(others) <= _NAMED else f"{len(others)} other GPUs"
    return f"{words}; shared with {named}"


def _way_in_words(server: Server, gpu: PciDevice, ssd: PciDevice, how_far: Distance) -> str:
    roots = f"{gpu.root_complex} and {ssd.root_complex}"
    match how_far:
        case Distance.PIX if gpu.slot == ssd.slot:
            return "functions of one device"
        case Distance.PIX | Distance.PXB:
            shared = common(gpu.way, ssd.way)
            steps = (*gpu.way[max(0, shared - 1) :], *ssd.way[max(0, shared - 1) :])
            upstreams = [step.hop.address for step in steps if step.kind == "SwitchUpstream"]
            switches = list(dict.fromkeys(upstreams or [step.switch for step in steps if step.kind != "RootPort"]))
            if not switches:
                return f"same root port {short(gpu.way[shared - 1].hop.address)}"
            named = ", ".join(map(short, switches))
            return f"same switch {named}" if len(switches) == 1 else f"no SSD on its own switch; through {named}"
        case Distance.PHB if not server.has_switches:
            return f"no shared switches here: same host bridge {gpu.root_complex}"
        case Distance.PHB:
            switched = any(step.kind == "SwitchUpstream" for step in gpu.way)
            return f"{'no SSD on its switch; ' if switched else ''}through host bridge {gpu.root_complex}"
        case Distance.NODE:
            return f"no SSD below its host bridge; through {roots}"
        case Distance.SYS:
            return f"no SSD on its socket; from {roots}" if gpu.root_complex else "no SSD on its socket"
        case _:
            return "the source does not say enough to tell which SSD is near"


def _root_view(server: Server, gpu: PciDevice, distances: Mapping[tuple[str, str], Distance]) -> RootView:
    mine = {ssd: distances[gpu.address, ssd] for ssd in server.ssds}
    nearest = min(mine.values(), default=Distance.UNKNOWN, key=lambda item: item.rank)
    best = {ssd for ssd, how_far in mine.items() if how_far is nearest}
    root = "" if gpu.detached else gpu.root_complex
    same = {
        ssd: how_far
        for ssd, how_far in mine.items()
        if root and server.device(ssd).root_complex == root and not server.device(ssd).detached
    }
    sure = nearest is Distance.PIX or all(how_far.is_known for how_far in mine.values())
    tells = bool(same) and set(same) == best and sure
    if not mine:
        verdict = "there is no SSD"
    elif not root:
        verdict = "the source does not say it"
    elif not sure:
        verdict = "whether it is right cannot be told from this source"
    elif not same:
        verdict = f"matches no SSD; the nearest is {nearest}"
    elif tells:
        verdict = f"names just the nearest: {len(same)} at {nearest}"
    else:
        verdict = f"cannot tell {_counted(same)} apart"
    return RootView(gpu.address, root, tuple(sorted(same.items())), verdict, tells)


def _counted(same: Mapping[str, Distance]) -> str:
    """Such as "1 at PIX from 3 at PHB"."""
    counts = Counter(same.values())
    return " from ".join(f"{counts[item]} at {item}" for item in sorted(counts, key=lambda item: item.rank))
