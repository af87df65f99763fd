"""The pairs of this server as its FlashNode tells of them: what is, what was better, what is wrong. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from kubeflash.api.v1alpha1 import BestPair, FlashNode, NodePair, PairFault, PeerToPeerStatus, Ssd
from kubeflash.domain.conditions import Finding, false, true
from kubeflash.domain.pairs import became_worse, remember
from kubeflash.host.inventory import Inventory
from kubeflash.topology.analysis import Analysis, PairView, analyse
from kubeflash.topology.faults import Fault, short
from kubeflash.topology.server import Facts, Server
from kubeflash.topology.tree import PciTree

SOUND = "TopologySound"
_MOST = 8
"""Sentences in a condition's message; more are counted."""


@dataclass(frozen=True)
class Pairs:
    """What a FlashNode's status says of pairs, and the condition for what is wrong."""

    pairs: list[NodePair]
    best: list[BestPair]
    sound: Finding


def report_pairs(node: FlashNode, inventory: Inventory, ssds: Sequence[Ssd], now: datetime) -> Pairs:
    """The pairs over the SSDs that are not somebody else's; earlier pairs stay where they are as good."""
    status = node.status
    usable = {ssd.address: ssd.id for ssd in reversed(ssds) if ssd.state != "Foreign"}
    addresses = {ssd.id: ssd.address for ssd in ssds}
    previous = [(item.gpu, addresses[item.id]) for item in status.pairs if item.id in addresses]
    analysis = analyse(_server(inventory, usable), previous=previous)
    pairs = [_pair(view, usable[view.ssd]) for view in analysis.pairs]
    best = remember(status.best, pairs, now, node.spec.pairs_accepted_at)
    worse = became_worse(best, pairs, (gpu.address for gpu in inventory.gpus))
    return Pairs(pairs, best, _sound(analysis, worse))


def _server(inventory: Inventory, usable: dict[str, str]) -> Server:
    by_address = {ssd.pci.address: ssd.pci for ssd in inventory.ssds}
    return Server(
        name="",
        source="sysfs",
        tree=PciTree.of([*inventory.gpus, *by_address.values()]),
        gpus=tuple(gpu.address for gpu in inventory.gpus),
        ssds=tuple(by_address),
        facts={address: Facts(reason="foreign") for address in by_address if address not in usable},
        switched=inventory.switched,
    )


def _pair(view: PairView, ssd_id: str) -> NodePair:
    return NodePair(
        gpu=view.gpu,
        ssd=view.ssd,
        id=ssd_id,
        distance=view.distance,
        megabytes_per_second=_megabytes(view.gbps),
        alone=_megabytes(view.alone),
        p2p=PeerToPeerStatus(possible=view.peer_to_peer.possible, why=view.peer_to_peer.why),
        why=view.why,
        faults=[
            PairFault(kind=fault.kind, address=fault.address, message=fault.message, remedy=fault.remedy)
            for fault in view.faults
            if fault.serious  # what passes by itself would make a status that changes all the time
        ],
    )


def _megabytes(gbps: float | None) -> int | None:
    return None if gbps is None else round(1000 * gbps)


def _sound(analysis: Analysis, worse: Sequence[str]) -> Finding:
    """Whether GPUs have what they had, and what the hardware could give."""
    faults = [fault for fault in analysis.faults if fault.serious]
    if worse:
        again = "if it shall stay so, set spec.pairsAcceptedAt to now"
        return false(SOUND, "PairsWorse", _joined([*worse, again, *map(_sentence, faults)]))
    if faults:
        return false(SOUND, faults[0].kind, _joined([*map(_sentence, faults)]))
    if any(not how_far.is_known for how_far in (view.distance for view in analysis.pairs)):
        words = "the server does not say on which NUMA nodes its host bridges are: which SSD is near is not known"
        return Finding(SOUND, "Unknown", "PlaceUnknown", words)
    if not analysis.pairs:
        return true(SOUND, "NoPairs", "there is no GPU, or no SSD that KubeFlash may use")
    return true(SOUND, "Sound", f"{len(analysis.pairs)} pairs, nothing is wrong on the way")


def _sentence(fault: Fault) -> str:
    return f"{short(fault.address)}: {fault.message} ({fault.remedy})"


def _joined(sentences: Sequence[str]) -> str:
    more = len(sentences) - _MOST
    return "; ".join(sentences[:_MOST]) + (f"; and {more} more: kubectl flash topology" if more > 0 else "")
