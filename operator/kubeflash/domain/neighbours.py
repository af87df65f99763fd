"""How far a server's SSDs are from its GPUs, worked out once for each state of a server. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from kubeflash.api.v1alpha1 import Distance, FlashNode
from kubeflash.topology.analysis import is_neighbour
from kubeflash.topology.distance import distance
from kubeflash.topology.flashnode import from_location


@dataclass(frozen=True)
class Distances:
    """Of one server.

    Attributes:
        between: by GPU's address and SSD's id.
        near: by SSD's id, of how many GPUs it is a neighbour; those that are none are left out.
    """

    between: Mapping[tuple[str, str], Distance]
    near: Mapping[str, int]


class Neighbours:
    """Distances by server. A server whose FlashNode did not change is not worked out anew."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[str, Distances]] = {}

    def distances(self, node: FlashNode) -> Distances:
        """All distances of a server."""
        meta = node.metadata
        known = self._known.get(meta.uid)
        if known is None or known[0] != meta.resource_version or not meta.resource_version:
            known = (meta.resource_version, _work_out(node))
            self._known[meta.uid] = known
        return known[1]

    def of(self, node: FlashNode) -> Mapping[str, int]:
        """By SSD's id, of how many GPUs of its server it is a neighbour; those that are none are left out."""
        return self.distances(node).near

    def forget_all_but(self, uids: frozenset[str]) -> None:
        """Forgets servers that are gone."""
        self._known = {uid: known for uid, known in self._known.items() if uid in uids}


def _work_out(node: FlashNode) -> Distances:
    gpus = [(gpu.address, from_location(gpu)) for gpu in node.status.gpus]
    switches = node.status.switched is not False
    between: dict[tuple[str, str], Distance] = {}
    near: dict[str, int] = {}
    for ssd in node.status.ssds:
        there = from_location(ssd)
        for address, gpu in gpus:
            between[address, ssd.id] = distance(gpu, there)
            if is_neighbour(between[address, ssd.id], switches=switches):
                near[ssd.id] = near.get(ssd.id, 0) + 1
    return Distances(between, near)
