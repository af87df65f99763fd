"""Which SSD is a GPU's: the nearest, and among equally near ones shared out fairly. The same from boot to boot.

Every GPU gets an SSD at the least distance that there is for it; SSDs may be shared. Among equally near SSDs the GPUs
are spread so that no other choice is more even: an optimal semi-matching (Harvey, Ladner, Lovász, Tamir, "Semi-matchings
for bipartite graphs and load balancing", 2003): it is optimal when no chain of moves leads from an SSD to one that serves
at least two GPUs less.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from kubeflash.api.v1alpha1 import Distance
from kubeflash.topology.distance import distance
from kubeflash.topology.tree import PciDevice


@dataclass(frozen=True)
class Pair:
    """A GPU and its SSD, by PCI address."""

    gpu: str
    ssd: str
    distance: Distance


def pair(gpus: Iterable[PciDevice], ssds: Iterable[PciDevice]) -> tuple[Pair, ...]:
    """Each GPU with its SSD, in the order of the GPUs' addresses; empty when there are no SSDs.

    The result does not depend on the order of the arguments.
    """
    devices = sorted(ssds, key=_address)
    choices: dict[str, tuple[str, ...]] = {}
    least: dict[str, Distance] = {}
    for gpu in sorted(gpus, key=_address):
        measured = [(distance(gpu, ssd), ssd.address) for ssd in devices]
        if not measured:
            return ()
        least[gpu.address] = min((found for found, _ in measured), key=lambda item: item.rank)
        choices[gpu.address] = tuple(address for found, address in measured if found == least[gpu.address])
    chosen = _spread(choices)
    return tuple(Pair(gpu, chosen[gpu], least[gpu]) for gpu in choices)


def _address(device: PciDevice) -> tuple[int, ...]:
    """Numeric order of addresses, whatever the width of the domain."""
    domain, bus, rest = device.address.split(":")
    slot, _, function = rest.partition(".")
    return tuple(int(part, 16) for part in (domain, bus, slot, function))


def _spread(choices: dict[str, tuple[str, ...]]) -> dict[str, str]:
    """One of its choices for each GPU, as even as can be."""
    chosen: dict[str, str] = {}
    load = dict.fromkeys((ssd for options in choices.values() for ssd in options), 0)
    for gpu, options in choices.items():
        chosen[gpu] = min(options, key=lambda ssd: load[ssd])  # min keeps the first of equals: the lowest address
        load[chosen[gpu]] += 1
    while chain := next((found for ssd in load if (found := _relieving(ssd, choices, chosen, load))), None):
        load[chosen[chain[0][0]]] -= 1
        load[chain[-1][1]] += 1
        for gpu, ssd in chain:
            chosen[gpu] = ssd
    return chosen


def _relieving(
    start: str, choices: dict[str, tuple[str, ...]], chosen: dict[str, str], load: dict[str, int]
) -> list[tuple[str, str]]:
    """Moves (GPU, new SSD) that take one GPU off `start` and end at an SSD with at least two less; empty for none."""
    came: dict[str, tuple[str, str]] = {}
    queue = deque([start])
    while queue:
        ssd = queue.popleft()
        if load[ssd] <= load[start] - 2:
            chain = []
            while ssd != start:
                gpu, before = came[ssd]
                chain.append((gpu, ssd))
                ssd = before
            return chain[::-1]
        for gpu in (gpu for gpu, current in chosen.items() if current == ssd):
            for option in choices[gpu]:
                if option != start and option not in came:
                    came[option] = (gpu, ssd)
                    queue.append(option)
    return []
