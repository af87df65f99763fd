"""Pairs: properties over random trees, and agreement with trying every assignment."""

from __future__ import annotations

import itertools
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from kubeflash.api.v1alpha1 import Distance
from kubeflash.topology.assignment import assign
from kubeflash.topology.distance import distance
from kubeflash.topology.pairing import Pair, pair
from kubeflash.topology.tree import Hop, PciDevice

unhurried = settings(deadline=None)  # the machine may do other things too


@st.composite
def places(draw: st.DrawFn) -> tuple[str, int | None, tuple[Hop, ...]]:
    """A host bridge, its NUMA node, and bridges: few of each, so that devices meet at every distance."""
    number = draw(st.integers(0, 2))
    complex_ = f"pci0000:{number}0"
    numa = draw(st.sampled_from([(0, 0, 1), (None, 0, 1)]))[number]
    port, depth = draw(st.integers(0, 1)), draw(st.integers(0, 2))
    hops = [Hop(f"0000:{number}0:{port:02x}.0", "RootPort")]
    bus = number * 0x10 + port * 0x8 + 1
    for _ in range(depth):
        downstream = draw(st.integers(0, 1))
        hops.append(Hop(f"0000:{bus:02x}:00.0", "SwitchUpstream"))
        hops.append(Hop(f"0000:{bus + 1:02x}:{downstream:02x}.0", "SwitchDownstream"))
        bus += 2 + downstream * 2
    return complex_, numa, tuple(hops)


@st.composite
def servers(draw: st.DrawFn, most: int = 6) -> tuple[list[PciDevice], list[PciDevice]]:
    gpus = draw(st.lists(places(), max_size=most))
    ssds = draw(st.lists(places(), max_size=most))
    made = [
        PciDevice(f"0000:{0x40 + index:02x}:00.0", "", "", "", numa, complex_, path)
        for index, (complex_, numa, path) in enumerate([*gpus, *ssds])
    ]
    shuffled = draw(st.permutations(made))
    return list(shuffled[: len(gpus)]), list(shuffled[len(gpus) :])


def on_root_bus(numbers: range, complex_: str = "pci0000:00", numa: int | None = 0) -> list[PciDevice]:
    """Devices that are equally far from each other."""
    return [PciDevice(f"0000:00:{number:02x}.0", "", "", "", numa, complex_) for number in numbers]


@unhurried
@given(servers(), st.randoms(use_true_random=False))
def test_the_order_of_the_arguments_does_not_matter(server: tuple[list[PciDevice], list[PciDevice]], random):
    gpus, ssds = server
    expected = pair(gpus, ssds)
    random.shuffle(gpus)
    random.shuffle(ssds)
    assert pair(gpus, ssds) == expected


@unhurried
@given(servers(most=10))
def test_every_gpu_gets_an_ssd_at_its_least_distance(server: tuple[list[PciDevice], list[PciDevice]]):
    gpus, ssds = server
    pairs = pair(gpus, ssds)
    if not ssds:
        assert pairs == ()
        return
    by_address = {device.address: device for device in (*gpus, *ssds)}
    assert [item.gpu for item in pairs] == sorted(gpu.address for gpu in gpus)
    for item in pairs:
        gpu = by_address[item.gpu]
        assert item.distance is distance(gpu, by_address[item.ssd])
        assert item.distance == min(distance(gpu, ssd) for ssd in ssds)


@unhurried
@given(servers(), places())
def test_one_more_ssd_takes_no_gpu_farther_away(
    server: tuple[list[PciDevice], list[PciDevice]], place: tuple[str, int | None, tuple[Hop, ...]]
):
    gpus, ssds = server
    complex_, numa, path = place
    before = {item.gpu: item.distance for item in pair(gpus, ssds)}
    more = PciDevice("0000:30:00.0", "", "", "", numa, complex_, path)
    after = {item.gpu: item.distance for item in pair(gpus, [*ssds, more])}
    assert all(after[gpu] <= before[gpu] for gpu in before)


@unhurried
@given(servers(most=4))
def test_nothing_is_better_by_the_criteria(server: tuple[list[PciDevice], list[PciDevice]]):
    gpus, ssds = (sorted(devices, key=lambda item: item.order) for devices in server)
    if not gpus or not ssds:
        return

    def worth(chosen: tuple[PciDevice, ...]) -> tuple[list[int], int, list[tuple[int, ...]]]:
        distances = Counter(distance(gpu, ssd) for gpu, ssd in zip(gpus, chosen, strict=True))
        squares = sum(count**2 for count in Counter(ssd.address for ssd in chosen).values())
        return [-distances[item] for item in Distance], squares, [ssd.order for ssd in chosen]

    best = min(itertools.product(ssds, repeat=len(gpus)), key=worth)
    assert [item.ssd for item in pair(gpus, ssds)] == [ssd.address for ssd in best]


@unhurried
@given(st.integers(1, 16), st.integers(1, 20))
def test_equally_near_ssds_serve_equally_many_gpus(gpus: int, ssds: int):
    pairs = pair(on_root_bus(range(gpus)), on_root_bus(range(ssds), "pci0000:80"))
    count = Counter(item.ssd for item in pairs)
    numbers = [count[ssd.address] for ssd in on_root_bus(range(ssds))]
    assert max(numbers) - min(numbers) <= 1


def test_a_gpu_that_can_choose_leaves_the_ssd_to_one_that_cannot():
    free, bound = on_root_bus(range(2), "pci0000:00")
    bound = PciDevice("0000:90:00.0", "", "", "", 0, "pci0000:80", (Hop("0000:80:01.0", "RootPort"),))
    beside = PciDevice("0000:90:00.1", "", "", "", 0, "pci0000:80", (Hop("0000:80:01.0", "RootPort"),))
    away = PciDevice("0000:91:00.0", "", "", "", 0, "pci0000:88", (Hop("0000:88:01.0", "RootPort"),))
    assert pair([free, bound], [beside, away]) == (
        Pair(free.address, away.address, Distance.NODE),
        Pair(bound.address, beside.address, Distance.PIX),
    )


def test_four_gpus_share_two_ssds_in_the_order_of_addresses():
    pairs = pair(on_root_bus(range(4)), on_root_bus(range(8, 10)))
    assert [item.ssd for item in pairs] == ["0000:00:08.0", "0000:00:08.0", "0000:00:09.0", "0000:00:09.0"]


def test_no_ssds_no_pairs_and_no_gpus_no_pairs():
    assert pair(on_root_bus(range(2)), []) == ()
    assert pair([], on_root_bus(range(2))) == ()


@unhurried
@given(
    st.integers(1, 4).flatmap(
        lambda rows: st.integers(rows, 5).flatmap(
            lambda columns: st.lists(
                st.lists(st.integers(0, 20), min_size=columns, max_size=columns), min_size=rows, max_size=rows
            )
        )
    )
)
def test_assignment_is_the_cheapest(costs: list[list[int]]):
    chosen = assign(costs)
    assert len(set(chosen)) == len(costs)
    every = itertools.permutations(range(len(costs[0])), len(costs))
    cheapest = min(sum(row[column] for row, column in zip(costs, columns, strict=True)) for columns in every)
    assert sum(row[column] for row, column in zip(costs, chosen, strict=True)) == cheapest
