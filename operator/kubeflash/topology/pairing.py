"""Which SSD is a GPU's: the nearest, and among equally near ones shared out fairly. Pure; the same on every boot."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from kubeflash.api.v1alpha1 import Distance
from kubeflash.topology.assignment import assign
from kubeflash.topology.distance import distance
from kubeflash.topology.tree import PciDevice, PciTree


@dataclass(frozen=True)
class Pair:
    """A GPU and its SSD, by PCI address."""

    gpu: str
    ssd: str
    distance: Distance


def pair(gpus: Iterable[PciDevice], ssds: Iterable[PciDevice]) -> tuple[Pair, ...]:
    """Each GPU with its SSD, in the order of the GPUs' addresses; empty when there are no SSDs.

    The first of these criteria that differs decides:

    1. as many GPUs as possible have an SSD at PIX, then at PXB, and so on: since an SSD can serve several, each GPU
       gets the least distance that there is for it;
    2. the GPUs are spread: the sum of the squares of the numbers of GPUs that an SSD serves is least, so that these
       numbers differ by at most one among SSDs that are equally near to the same GPUs;
    3. the first GPU by address has the first SSD by address that the others allow, then the second GPU, and so on.

    The order of the arguments does not matter, and a device that is named twice counts once.
    """
    all_gpus, all_ssds = PciTree.of(gpus).devices, PciTree.of(ssds).devices
    if not all_gpus or not all_ssds:
        return ()
    matrix = [[distance(gpu, ssd) for ssd in all_ssds] for gpu in all_gpus]
    nearest = [
        [column for column, item in enumerate(row) if item is least]
        for row, least in ((row, min(row, key=lambda item: item.rank)) for row in matrix)
    ]
    return tuple(
        Pair(gpu.address, all_ssds[column].address, row[column])
        for gpu, row, column in zip(all_gpus, matrix, _spread(nearest, len(all_ssds)), strict=True)
    )


def _spread(nearest: Sequence[Sequence[int]], ssds: int) -> list[int]:
    """For each GPU the number of the SSD that it gets, of those (in `nearest`) that it may have.

    An assignment of GPUs to seats: an SSD's n-th seat costs 2n - 1, so that n GPUs on it cost n squared. Criteria 2 and
    3 become one whole number: the cost of the seats, followed by one digit a GPU, the first GPU's foremost, that is the
    number of its SSD. So there is exactly one best assignment.
    """
    gpus = len(nearest)
    unit = ssds**gpus  # one more than all the digits can say
    never = 2 * gpus**2 * unit  # more than the dearest permitted assignment in all
    seats = [(ssd, place) for ssd in sorted(set().union(*nearest)) for place in range(_most(nearest, ssds))]
    costs = [
        [(2 * place + 1) * unit + ssd * ssds ** (gpus - 1 - gpu) if ssd in allowed else never for ssd, place in seats]
        for gpu, allowed in enumerate(nearest)
    ]
    return [seats[seat][0] for seat in assign(costs)]


def _most(nearest: Sequence[Sequence[int]], ssds: int) -> int:
    """As many GPUs as an SSD serves at most when each takes the idlest in turn; the best spread needs no more."""
    load = [0] * ssds
    for allowed in nearest:
        load[min(allowed, key=load.__getitem__)] += 1
    return max(load)
