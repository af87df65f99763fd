"""What is to be said of a server: distances, pairs with their bandwidth, what is wrong and what to do about it. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from kubeflash.api.v1alpha1 import Distance
from kubeflash.topology.server import Server


@dataclass(frozen=True)
class Fault:
    """Something that costs bandwidth, or keeps peers from talking directly.

    Attributes:
        kind: one CamelCase word, for programs.
        address: the device or bridge that it is about; empty for the whole server.
        message: what is so, in one line.
        remedy: what to do about it, in one line.
    """

    kind: str
    address: str
    message: str
    remedy: str


@dataclass(frozen=True)
class PeerToPeer:
    """Whether a GPU and an SSD can exchange data without main memory between them. None: the source does not say."""

    possible: bool | None
    why: str


@dataclass(frozen=True)
class PairView:
    """A GPU and an SSD of its own.

    Attributes:
        gbps: GB/s (10^9 bytes, a direction) when all pairs of the server work at once: the narrowest link of the way,
            links above the devices divided by the number of pairs whose way crosses them. None when nobody says.
        shared_with: other GPUs that have this SSD.
        why: why it is this SSD, in one line.
        faults: what is wrong on the way.
    """

    gpu: str
    ssd: str
    distance: Distance
    gbps: float | None
    shared_with: tuple[str, ...]
    peer_to_peer: PeerToPeer
    why: str
    faults: tuple[Fault, ...] = ()


@dataclass(frozen=True)
class RootView:
    """What `resource.kubernetes.io/pcieRoot` alone would say of a GPU: which SSDs have the same one.

    Attributes:
        root: the attribute's value, such as pci0000:4a.
        same_root: the SSDs with the same value, each with its distance.
        verdict: in one line: whether it tells the GPU's neighbours from strangers.
        tells: whether it does.
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
        faults: of the whole server, each once.
        roots: the comparison with pcieRoot, a GPU each.
    """

    server: Server
    pairs: tuple[PairView, ...]
    distances: Mapping[tuple[str, str], Distance]
    faults: tuple[Fault, ...]
    roots: tuple[RootView, ...]
