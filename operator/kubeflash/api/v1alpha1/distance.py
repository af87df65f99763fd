"""How far apart two PCIe devices are, in the words of `nvidia-smi topo -m`."""

from __future__ import annotations

from enum import StrEnum


class Distance(StrEnum):
    """Nearest first. The members compare by distance: `Distance.PIX < Distance.SYS`."""

    PIX = "PIX"
    """At most one PCIe switch between them."""
    PXB = "PXB"
    """Several PCIe switches, no host bridge."""
    PHB = "PHB"
    """Through one PCIe host bridge."""
    NODE = "NODE"
    """Different host bridges of one NUMA node, or of one processor socket that is divided into several."""
    SYS = "SYS"
    """Across the link between processor sockets."""
    UNKNOWN = "unknown"
    """What is known of the server does not say; it may be any of them that the rest leaves open."""

    @property
    def rank(self) -> int:
        """0 for the nearest; what is unknown comes last."""
        return _RANKS[self]

    @property
    def is_known(self) -> bool:
        """Whether it can be told at all."""
        return self is not Distance.UNKNOWN

    @property
    def is_neighbour(self) -> bool:
        """Whether no host bridge lies between. PHB counts only where a platform has no switches: the caller says so."""
        return self.rank <= Distance.PXB.rank

    def __lt__(self, other: str) -> bool:
        return self.rank < Distance(other).rank

    def __le__(self, other: str) -> bool:
        return self.rank <= Distance(other).rank

    def __gt__(self, other: str) -> bool:
        return self.rank > Distance(other).rank

    def __ge__(self, other: str) -> bool:
        return self.rank >= Distance(other).rank


_RANKS = {distance: rank for rank, distance in enumerate(Distance)}
