"""Bandwidth: what a lane carries, which links a way takes, what each of them gives."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kubeflash.topology.links import between, edges, lane_gbps, narrowest
from kubeflash.topology.tree import UNSAID, Link
from support.trees import GEN4_X4, GEN5_X4, GEN5_X16, gpu, place


@pytest.mark.parametrize(
    ("speed", "lanes", "gbps"),
    [
        (2.5, 16, 4.0),
        (5, 16, 8.0),
        (8, 16, 15.75),
        (16, 4, 7.88),
        (16, 16, 31.51),
        (32, 4, 15.75),
        (32, 16, 63.02),
        (64, 16, 121.0),
    ],
)
def test_what_a_link_carries(speed: float, lanes: int, gbps: float):
    """The figures of hwloc's pci_link_speed, and of the workloads' arithmetic (a Gen5 x16 link carries ~63 GB/s)."""
    assert round(lane_gbps(speed) * lanes, 2) == gbps


GPU = gpu("4a R4a:01.0 U4b:00.0 D4c:00.0 4d:00.0")
SSD = place("4a R4a:01.0 U4b:00.0 D4c:01.0 4e:00.0")
FAR = place("5a R5a:01.0 U5b:00.0 D5c:00.0 5d:00.0")


def test_a_way_below_one_switch_takes_the_two_devices_links_alone():
    assert [(edge.upper, edge.lower) for edge in between(GPU, SSD)] == [
        ("0000:4c:00.0", "0000:4d:00.0"),
        ("0000:4c:01.0", "0000:4e:00.0"),
    ]
    assert round(narrowest(GPU, SSD), 2) == 15.75


def test_a_way_through_host_bridges_takes_the_uplinks_too():
    assert [edge.upper for edge in between(GPU, FAR) if edge.is_uplink] == ["0000:4a:01.0", "0000:5a:01.0"]
    slow = place("5a R5a:01.0 U5b:00.0 D5c:00.0 5d:00.0", ports={"5b:00.0": Link(8.0, 4, 32.0, 16)})
    assert round(narrowest(GPU, slow), 2) == 3.94


def test_both_ends_have_a_say():
    [(_, _), (_, edge)] = edges(
        place("4a R4a:01.0 U4b:00.0 D4c:01.0 4e:00.0", ports={"4c:01.0": Link(16.0, 2, 16.0, 2)})
    )
    assert (edge.speed, edge.width, edge.best_speed, edge.best_width) == (16.0, 2, 16.0, 2)


@pytest.mark.parametrize(
    ("text", "uppers"),
    [
        pytest.param("4a R4a:01.0 4b:00.0", ["0000:4a:01.0"], id="behind a root port"),
        pytest.param("4a 4a:05.0", ["0000:4a:05.0"], id="passed through to a virtual machine's root bus"),
        pytest.param("4a R4a:01.0 D4c:00.0 4d:00.0", ["0000:4a:01.0", "0000:4c:00.0"], id="upstream port hidden"),
        pytest.param(
            "4a R4a:01.0 U4b:00.0 D4c:00.0 U4d:00.0 D4e:00.0 4f:00.0",
            ["0000:4a:01.0", "0000:4c:00.0", "0000:4e:00.0"],
            id="nested switches",
        ),
    ],
)
def test_which_links_are_above_a_device(text: str, uppers: list[str]):
    assert [edge.upper for _, edge in edges(place(text))] == uppers


def test_a_device_of_the_root_complex_without_a_link_has_none():
    assert edges(place("4a 4a:05.0", link=UNSAID)) == ()


def test_a_gpu_that_idles_counts_as_one_that_works():
    asleep = Link(2.5, 16, 32.0, 16)
    sleeping = gpu("4a R4a:01.0 U4b:00.0 D4c:00.0 4d:00.0", link=asleep, ports={"4c:00.0": replace(asleep)})
    assert narrowest(sleeping, FAR) == narrowest(GPU, FAR)
    ssd = place("4a R4a:01.0 U4b:00.0 D4c:01.0 4e:00.0", link=Link(2.5, 4, 32.0, 4))
    assert narrowest(GPU, ssd) == 1.0, "an SSD does not sleep: it is slow"


def test_what_hwloc_says_in_gigabytes_is_believed():
    ssd = place("4a R4a:01.0 U4b:00.0 D4c:01.0 4e:00.0", link=Link(gbps=7.88), ports={"4c:01.0": Link(gbps=7.9)})
    gpu_ = gpu("4a R4a:01.0 U4b:00.0 D4c:00.0 4d:00.0", link=UNSAID, ports={"4c:00.0": UNSAID})
    assert narrowest(gpu_, ssd) == 7.88


def test_a_gpu_that_idles_is_no_narrow_link_for_hwloc_either():
    asleep = gpu("4a R4a:01.0 U4b:00.0 D4c:00.0 4d:00.0", link=Link(gbps=15.75), ports={"4c:00.0": Link(gbps=2.0)})
    ssd = place("4a R4a:01.0 U4b:00.0 D4c:01.0 4e:00.0", link=Link(gbps=7.88), ports={"4c:01.0": Link(gbps=7.9)})
    assert narrowest(asleep, ssd) == 7.88


def test_nobody_says_anything():
    silent = {"4c:00.0": UNSAID, "4c:01.0": UNSAID}
    one = gpu("4a R4a:01.0 U4b:00.0 D4c:00.0 4d:00.0", link=UNSAID, ports=silent)
    other = place("4a R4a:01.0 U4b:00.0 D4c:01.0 4e:00.0", link=UNSAID, ports=silent)
    assert narrowest(one, other) is None


def test_links_have_their_names():
    assert lane_gbps(GEN5_X16.speed) * 4 == lane_gbps(GEN5_X4.speed) * 4 > lane_gbps(GEN4_X4.speed) * 4
