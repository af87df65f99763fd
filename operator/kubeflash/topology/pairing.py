"""Which SSDs are a GPU's own: the nearest, shared out fairly among equally near ones. Pure; the same on every boot."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from kubeflash.api.v1alpha1 import Distance
from kubeflash.topology.cover import cheapest_cover
from kubeflash.topology.distance import distance
from kubeflash.topology.links import widths
from kubeflash.topology.tree import PciDevice, PciTree


@dataclass(frozen=True, order=True)
class Pair:
    """A GPU and an SSD of its own, by PCI address."""

    gpu: str
    ssd: str
    distance: Distance


def pair(
    gpus: Iterable[PciDevice], ssds: Iterable[PciDevice], *, previous: Collection[tuple[str, str]] = ()
) -> tuple[Pair, ...]:
    """The pairs of a server, in the order of the GPUs' addresses, then the SSDs'; none when it has no SSDs.

    A GPU's SSDs are all at the least distance that there is for it: as many GPUs as possible have one at PIX, then at
    PXB, and so on, since an SSD can serve several. Every GPU has at least one, and every SSD that is nearest to some
    GPU is somebody's. Of all sets of pairs for which that is so, the first of these criteria that differs decides:

    1. fair: the sum of the squares of the numbers of SSDs that a GPU has, and of GPUs that an SSD serves, is least.
       Among SSDs equally near to the same GPUs these numbers differ by at most one, and no pair is superfluous;
    2. as many of the previous pairs as possible stay;
    3. wide: the sum of the bandwidths of the narrowest links is greatest;
    4. the first GPU by address has the first SSD by address that the others allow, and so on.

    The order of the arguments does not matter, and a device that is named twice counts once.

    Args:
        gpus: the GPUs.
        ssds: the NVMe controllers.
        previous: GPU and SSD of the pairs that there were before something changed.
    """
    all_gpus, all_ssds = PciTree.of(gpus).devices, PciTree.of(ssds).devices
    if not all_gpus or not all_ssds:
        return ()
    nearest, least = _nearest(all_gpus, all_ssds)
    found: list[Pair] = []
    for group in _groups(nearest):
        group_ssds = sorted({ssd for gpu in group for ssd in nearest[gpu]})
        problem = _Group(
            [all_gpus[gpu] for gpu in group],
            [all_ssds[ssd] for ssd in group_ssds],
            [[group_ssds.index(ssd) for ssd in nearest[gpu]] for gpu in group],
        )
        found += [
            Pair(all_gpus[group[gpu]].address, all_ssds[group_ssds[ssd]].address, least[group[gpu]])
            for gpu, ssd in problem.solve(set(previous))
        ]
    places = {device.address: number for number, device in enumerate((*all_gpus, *all_ssds))}
    return tuple(sorted(found, key=lambda item: (places[item.gpu], places[item.ssd])))


def _nearest(gpus: Sequence[PciDevice], ssds: Sequence[PciDevice]) -> tuple[list[list[int]], list[Distance]]:
    """For each GPU the numbers of its nearest SSDs, and how near they are.

    SSDs that hang on one switch are equally far from everything else, so that one of them speaks for all.
    """
    slots = {ssd.slot for ssd in ssds}
    passed = {step.hop.address for device in (*gpus, *ssds) for step in device.way[:-1]}
    kinds: defaultdict[object, list[int]] = defaultdict(list)
    for number, ssd in enumerate(ssds):
        kinds[_place(ssd, passed)].append(number)
    spokesmen = [(ssds[numbers[0]], numbers) for numbers in kinds.values()]
    known: dict[object, tuple[list[int], Distance]] = {}
    nearest: list[list[int]] = []
    least: list[Distance] = []
    for gpu in gpus:
        place = gpu.address if gpu.slot in slots else _place(gpu, passed)
        if place not in known:
            known[place] = _nearest_of(gpu, ssds if gpu.slot in slots else None, spokesmen)
        numbers, how_near = known[place]
        nearest.append(numbers)
        least.append(how_near)
    return nearest, least


def _nearest_of(
    gpu: PciDevice, one_by_one: Sequence[PciDevice] | None, spokesmen: Sequence[tuple[PciDevice, list[int]]]
) -> tuple[list[int], Distance]:
    if one_by_one is not None:  # another function of the GPU's own device is among them
        spokesmen = [(ssd, [number]) for number, ssd in enumerate(one_by_one)]
    best, numbers = Distance.UNKNOWN, list[int]()
    rank = best.rank + 1
    for ssd, same in spokesmen:
        how_far = distance(gpu, ssd)
        if how_far.rank < rank:
            best, rank, numbers = how_far, how_far.rank, list(same)
        elif how_far is best:
            numbers += same
    return sorted(numbers), best


def _place(device: PciDevice, passed: Collection[str]) -> object:
    """What a device's distances from the devices of other slots depend on.

    Behind which downstream port of a switch it is makes no difference, unless others are beyond that port (`passed`).
    """
    if device.path is None:
        return (device.root_complex, device.numa_node, device.socket, device.detached, None)
    steps = device.way
    if len(steps) > 1 and steps[-1].kind == "SwitchDownstream" and steps[-1].hop.address not in passed:
        return (device.root_complex, device.numa_node, device.socket, device.detached, steps[-2].hop.address)
    return (device.root_complex, device.numa_node, device.socket, device.detached, device.slot)


def _groups(nearest: Sequence[Sequence[int]]) -> list[list[int]]:
    """GPUs that compete for SSDs, directly or by way of others; each group can be solved by itself."""
    group_of_ssd: dict[int, list[int]] = {}
    for gpu, ssds in enumerate(nearest):
        joined = [gpu]
        for group in {id(group): group for ssd in ssds if (group := group_of_ssd.get(ssd)) is not None}.values():
            joined += group
        for ssd in {*ssds, *(ssd for member in joined for ssd in nearest[member])}:
            group_of_ssd[ssd] = joined
    return [sorted(group) for group in {id(group): group for group in group_of_ssd.values()}.values()]


@dataclass(frozen=True)
class _Group:
    """GPUs that compete for SSDs; `allowed` has for each GPU the numbers of the SSDs that it may have."""

    gpus: Sequence[PciDevice]
    ssds: Sequence[PciDevice]
    allowed: Sequence[Sequence[int]]

    def solve(self, previous: set[tuple[str, str]]) -> list[tuple[int, int]]:
        """Numbers of GPU and SSD of each pair."""
        kept = {
            (gpu, ssd)
            for gpu, ssds in enumerate(self.allowed)
            for ssd in ssds
            if (self.gpus[gpu].address, self.ssds[ssd].address) in previous
        }
        all_alike = all(len(ssds) == len(self.ssds) for ssds in self.allowed)
        if all_alike and kept and self._is_fair(kept):
            return sorted(kept)
        if len(self.gpus) == 1 or len(self.ssds) == 1:
            return [(gpu, ssd) for gpu, ssds in enumerate(self.allowed) for ssd in ssds]
        megabytes = widths(self.gpus, self.ssds)
        if all_alike and not kept and all(row == megabytes[0] for row in megabytes):
            return self._in_blocks(megabytes[0])
        return cheapest_cover(len(self.gpus), len(self.ssds), self._costs(megabytes, kept))

    def _is_fair(self, pairs: set[tuple[int, int]]) -> bool:
        """Whether all of them have what criterion 1 gives where every GPU may have every SSD."""
        gpus, ssds = len(self.gpus), len(self.ssds)
        served, owned = Counter(ssd for _, ssd in pairs), Counter(gpu for gpu, _ in pairs)
        if len(served) < ssds or len(owned) < gpus or len(pairs) != max(gpus, ssds):
            return False
        many = served if gpus > ssds else owned
        return max(many.values()) - min(many.values()) <= 1

    def _in_blocks(self, megabytes: Sequence[int]) -> list[tuple[int, int]]:
        """Where every GPU may have every SSD, and an SSD is as wide for one as for another: equal runs by address.

        Of more GPUs than SSDs the widest SSDs serve one more. Of more SSDs than GPUs each is used once, however wide.
        """
        gpus, ssds = len(self.gpus), len(self.ssds)
        if gpus < ssds:
            size, rest = divmod(ssds, gpus)
            owners = [gpu for gpu in range(gpus) for _ in range(size + (gpu < rest))]
            return [(gpu, ssd) for ssd, gpu in enumerate(owners)]
        size, rest = divmod(gpus, ssds)
        widest = sorted(range(ssds), key=lambda ssd: (-megabytes[ssd], ssd))[:rest]
        return list(enumerate(ssd for ssd in range(ssds) for _ in range(size + (ssd in widest))))

    def _costs(
        self, megabytes: Sequence[Sequence[int]], kept: set[tuple[int, int]]
    ) -> dict[tuple[int, int], tuple[int, int, int]]:
        """Criteria 2 to 4 of each pair that may be, least best: kept or not, bandwidth, one binary digit."""
        last = len(self.gpus) * len(self.ssds) - 1
        return {
            (gpu, ssd): (-((gpu, ssd) in kept), -megabytes[gpu][ssd], -(1 << (last - gpu * len(self.ssds) - ssd)))
            for gpu, allowed in enumerate(self.allowed)
            for ssd in allowed
        }
