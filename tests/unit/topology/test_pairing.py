"""Pairs: properties over random trees, and agreement with trying every assignment."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kubeflash.api.v1alpha1 import Distance
from kubeflash.topology.cover import cheapest_cover
from kubeflash.topology.distance import distance
from kubeflash.topology.links import narrowest
from kubeflash.topology.pairing import Pair, pair
from kubeflash.topology.tree import Hop, Link, PciDevice

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
    widths = draw(st.lists(st.sampled_from([4, 4, 4, 2]), min_size=len(gpus + ssds), max_size=len(gpus + ssds)))
    made = [
        PciDevice(f"0000:{0x40 + index:02x}:00.0", "", "", "", numa, complex_, path, link=Link(16.0, width))
        for index, ((complex_, numa, path), width) in enumerate(zip([*gpus, *ssds], widths, strict=True))
    ]
    shuffled = draw(st.permutations(made))
    return list(shuffled[: len(gpus)]), list(shuffled[len(gpus) :])


def on_root_bus(numbers: range, complex_: str = "pci0000:00", numa: int | None = 0) -> list[PciDevice]:
    """Devices that are equally far from each other."""
    return [PciDevice(f"0000:{complex_[-2:]}:{number:02x}.0", "", "", "", numa, complex_) for number in numbers]


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
def test_every_gpu_has_ssds_at_its_least_distance_and_no_such_ssd_is_nobody_s(
    server: tuple[list[PciDevice], list[PciDevice]],
):
    gpus, ssds = server
    pairs = pair(gpus, ssds)
    if not ssds:
        assert pairs == ()
        return
    by_address = {device.address: device for device in (*gpus, *ssds)}
    assert list(dict.fromkeys(item.gpu for item in pairs)) == sorted(gpu.address for gpu in gpus)
    least = {gpu.address: min(distance(gpu, ssd) for ssd in ssds) for gpu in gpus}
    for item in pairs:
        assert item.distance is distance(by_address[item.gpu], by_address[item.ssd])
        assert item.distance == least[item.gpu]
    nearest = {ssd.address for gpu in gpus for ssd in ssds if distance(gpu, ssd) == least[gpu.address]}
    assert {item.ssd for item in pairs} == nearest


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


def best_by_trying(
    gpus: list[PciDevice], ssds: list[PciDevice], previous: set[tuple[str, str]]
) -> set[tuple[str, str]]:
    """The best of all sets of pairs, by the criteria as they are written."""
    gpus, ssds = (sorted(devices, key=lambda item: item.order) for devices in (gpus, ssds))
    allowed = [
        (gpu, ssd) for gpu in gpus for ssd in ssds if distance(gpu, ssd) == min(distance(gpu, other) for other in ssds)
    ]
    everybody = {device.address for item in allowed for device in item}

    def worth(chosen: tuple[tuple[PciDevice, PciDevice], ...]) -> tuple:
        numbers = Counter(device.address for item in chosen for device in item)
        return (
            sum(number**2 for number in numbers.values()),
            -sum((gpu.address, ssd.address) in previous for gpu, ssd in chosen),
            -sum(round(1000 * (narrowest(gpu, ssd) or 0)) for gpu, ssd in chosen),
            [(gpu.order, ssd.order) for gpu, ssd in chosen],
        )

    every = (chosen for size in range(len(allowed) + 1) for chosen in itertools.combinations(allowed, size))
    covering = (chosen for chosen in every if {device.address for item in chosen for device in item} == everybody)
    return {(gpu.address, ssd.address) for gpu, ssd in min(covering, key=worth)}


@unhurried
@given(servers(most=3), st.data())
def test_nothing_is_better_by_the_criteria(server: tuple[list[PciDevice], list[PciDevice]], data: st.DataObject):
    gpus, ssds = server
    if not gpus or not ssds:
        return
    possible = [(gpu.address, ssd.address) for gpu in gpus for ssd in ssds]
    previous = data.draw(st.sets(st.sampled_from(possible)))
    found = pair(gpus, ssds, previous=previous)
    assert {(item.gpu, item.ssd) for item in found} == best_by_trying(gpus, ssds, previous)


@unhurried
@given(servers(most=10))
def test_pairs_stay_when_nothing_changes(server: tuple[list[PciDevice], list[PciDevice]]):
    pairs = pair(*server)
    assert pair(*server, previous=[(item.gpu, item.ssd) for item in pairs]) == pairs


def test_another_ssd_moves_no_pair_that_can_stay():
    """It has the lowest address: dealt out anew, all pairs would move."""
    gpus, ssds = on_root_bus(range(2)), on_root_bus(range(9, 12))
    before = pair(gpus, ssds)
    after = pair(gpus, [*ssds, *on_root_bus(range(8, 9))], previous=[(item.gpu, item.ssd) for item in before])
    assert set(before) < set(after)
    assert set(before) - set(pair(gpus, [*ssds, *on_root_bus(range(8, 9))])), "the test would tell nothing"


def test_an_ssd_that_is_gone_moves_no_other_pair():
    gpus, ssds = on_root_bus(range(3)), on_root_bus(range(8, 11))
    before = pair(gpus, ssds)
    after = pair(gpus, ssds[1:], previous=[(item.gpu, item.ssd) for item in before])
    assert set(before[1:]) < set(after)


@unhurried
@given(st.integers(1, 16), st.integers(1, 20))
def test_equally_near_ssds_serve_equally_many_gpus(gpus: int, ssds: int):
    pairs = pair(on_root_bus(range(gpus)), on_root_bus(range(ssds), "pci0000:80"))
    count = Counter(item.ssd for item in pairs)
    numbers = [count[ssd.address] for ssd in on_root_bus(range(ssds))]
    assert max(numbers) - min(numbers) <= 1
    owned = Counter(item.gpu for item in pairs)
    assert max(owned.values()) - min(owned.values()) <= 1
    assert len(pairs) == max(gpus, ssds)


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


def test_eight_ssds_are_shared_out_to_three_gpus_in_the_order_of_addresses():
    pairs = pair(on_root_bus(range(3)), on_root_bus(range(8, 16)))
    assert [item.gpu[-4:] for item in pairs] == ["00.0", "00.0", "00.0", "01.0", "01.0", "01.0", "02.0", "02.0"]
    assert [item.ssd for item in pairs] == [f"0000:00:{number:02x}.0" for number in range(8, 16)]


def test_the_widest_ssd_serves_one_gpu_more():
    narrow, wide = (
        replace(ssd, link=Link(16.0, width)) for ssd, width in zip(on_root_bus(range(8, 10)), (2, 4), strict=True)
    )
    pairs = pair(on_root_bus(range(3)), [narrow, wide])
    assert Counter(item.ssd for item in pairs) == {narrow.address: 1, wide.address: 2}


def test_no_ssds_no_pairs_and_no_gpus_no_pairs():
    assert pair(on_root_bus(range(2)), []) == ()
    assert pair([], on_root_bus(range(2))) == ()


@unhurried
@given(st.integers(1, 3), st.integers(1, 3), st.data())
def test_a_cover_is_the_fairest_then_the_cheapest(left: int, right: int, data: st.DataObject):
    every = [(a, b) for a in range(left) for b in range(right)]
    edges = data.draw(
        st.sets(st.sampled_from(every)).filter(
            lambda edges: {a for a, _ in edges} == set(range(left)) and {b for _, b in edges} == set(range(right))
        )
    )
    costs = {edge: (data.draw(st.integers(-3, 3)), data.draw(st.integers(-3, 3))) for edge in sorted(edges)}

    def worth(chosen: Iterable[tuple[int, int]]) -> tuple[int, int, int]:
        chosen = list(chosen)
        numbers = [*Counter(a for a, _ in chosen).values(), *Counter(b for _, b in chosen).values()]
        return sum(n**2 for n in numbers), sum(costs[e][0] for e in chosen), sum(costs[e][1] for e in chosen)

    found = cheapest_cover(left, right, costs)
    covering = (
        chosen
        for size in range(len(edges) + 1)
        for chosen in itertools.combinations(sorted(edges), size)
        if {a for a, _ in chosen} == set(range(left)) and {b for _, b in chosen} == set(range(right))
    )
    assert worth(found) == min(map(worth, covering))


def test_a_node_without_an_edge_is_refused():
    with pytest.raises(ValueError, match="without an edge"):
        cheapest_cover(2, 1, {(0, 0): (0,)})
