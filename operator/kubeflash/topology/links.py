"""PCIe links: how much one carries, and which ones the way between two devices takes. Pure.

A link has two ends: a port above (of a root complex or a switch) and what is plugged into it (a device, or the upstream
port of a switch). Both say how the link is trained and what they themselves can do. Inside of a switch there is none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from kubeflash.topology.distance import common
from kubeflash.topology.tree import UNSAID, Link, PciDevice

_PORTS = ("RootPort", "SwitchDownstream")


def lane_gbps(speed: float) -> float:
    """GB/s (10^9 bytes, a direction) of one lane at `speed` GT/s, without what the encoding takes.

    8b/10b up to 5 GT/s, 128b/130b up to 32 GT/s (PCI Express Base Specification 5.0, 4.2); from 64 GT/s on 242 of the
    256 bytes of a flit (Base Specification 6.0, 4.2.3), the count that hwloc takes too.
    """
    if speed <= 5:
        return speed / 8 * 8 / 10
    if speed <= 32:
        return speed / 8 * 128 / 130
    return speed / 8 * 242 / 256


@dataclass(frozen=True)
class Edge:
    """One link.

    Attributes:
        upper: address of the port above; where that is not a port, of what is below: the link's name.
        lower: address of what is plugged in.
        port: what the port above says of it.
        end: what the end below says of it.
        is_uplink: a switch is plugged in, not a device.
    """

    upper: str
    lower: str
    port: Link
    end: Link
    is_uplink: bool

    @property
    def speed(self) -> float | None:
        """GT/s a lane, as trained."""
        return _least(self.end.speed, self.port.speed)

    @property
    def width(self) -> int | None:
        """Lanes in use."""
        return _least(self.end.width, self.port.width)

    @property
    def best_speed(self) -> float | None:
        """GT/s a lane that both ends can do, as far as they say it."""
        return _least(self.end.max_speed, self.port.max_speed)

    @property
    def best_width(self) -> int | None:
        """Lanes that both ends have, as far as they say it."""
        return _least(self.end.max_width, self.port.max_width)

    def gbps(self, *, gpu: bool = False) -> float | None:
        """GB/s (a direction) as trained; None when nobody says.

        Args:
            gpu: a GPU is plugged in. It lowers its link's speed while it idles, and raises it within microseconds: what
                counts is the best speed of both ends, so that the answer does not depend on whether it works just now.
        """
        speed, width = self.speed, self.width
        if gpu and self.best_speed is not None:
            speed = self.best_speed
        if speed is None or width is None:
            # of a GPU hwloc says what its maker's library says it can do here, of the port above what it does just now
            both = [value for value in (self.end.gbps, self.port.gbps) if value is not None]
            return (max if gpu else min)(both, default=None)
        return lane_gbps(speed) * width


_Number = TypeVar("_Number", int, float)


def _least(*values: _Number | None) -> _Number | None:
    """The least of what is known."""
    return min((value for value in values if value is not None), default=None)


def edges(device: PciDevice) -> tuple[tuple[int, Edge], ...]:
    """The links between the host bridge and a device, from the top.

    Each with a number: how many bridges of the device's way are above it. A GPU's link is the one above its card,
    whatever bridges are on it.
    """
    steps = device.way
    found: list[tuple[int, Edge]] = []
    for index in range(len(steps) + 1):
        above = steps[index - 1] if index else None
        below = steps[index] if index < len(steps) else None
        if above is not None and below is not None and below.kind == "SwitchDownstream":
            if above.kind == "SwitchUpstream":
                continue  # inside of a switch
        elif above is None and (below is not None or device.link == UNSAID):
            continue  # a root port, or a device of the root complex itself, is plugged into nothing
        card = below is not None and below.hop.on_card
        port = above.hop.link if above is not None and above.kind in _PORTS else UNSAID
        end = device.link if below is None else UNSAID if below.kind == "SwitchDownstream" else below.hop.link
        lower = device.address if below is None or card else below.hop.address
        upper = above.hop.address if above is not None and above.kind in _PORTS else lower
        found.append((index, Edge(upper, lower, port, end, is_uplink=below is not None and not card)))
        if card:
            break
    return tuple(found)


def between(one: PciDevice, other: PciDevice) -> tuple[Edge, ...]:
    """The links that the way between two devices of one server takes, each once; not those between sockets."""
    shared = common(one.way, other.way) if one.root_complex == other.root_complex else 0
    taken = {edge.upper: edge for device in (one, other) for index, edge in edges(device) if index >= shared}
    return tuple(taken.values())


def narrowest(gpu: PciDevice, ssd: PciDevice) -> float | None:
    """GB/s of the narrowest link between a GPU and an SSD that have the way for themselves; None when nobody says."""
    return _least(*(edge.gbps(gpu=edge.lower == gpu.address) for edge in between(gpu, ssd)))


def narrowest_above(device: PciDevice, *, gpu: bool) -> float | None:
    """GB/s of the narrowest link between a device and its host bridge; None when nobody says."""
    return _least(*(edge.gbps(gpu=gpu and edge.lower == device.address) for _, edge in edges(device)))


def widths(gpus: Sequence[PciDevice], ssds: Sequence[PciDevice]) -> list[list[int]]:
    """For each GPU and SSD MB/s of the narrowest link between them, 0 when nobody says."""
    above_gpu = [_megabytes(narrowest_above(gpu, gpu=True)) for gpu in gpus]
    above_ssd = [(ssd, _megabytes(narrowest_above(ssd, gpu=False))) for ssd in ssds]
    return [
        [
            # on different host bridges the whole ways count; nobody's word (0) is no narrow link
            (min(top, wide) or top or wide) if gpu.root_complex != ssd.root_complex else _megabytes(narrowest(gpu, ssd))
            for ssd, wide in above_ssd
        ]
        for gpu, top in zip(gpus, above_gpu, strict=True)
    ]


def _megabytes(gbps: float | None) -> int:
    return round(1000 * (gbps or 0))
