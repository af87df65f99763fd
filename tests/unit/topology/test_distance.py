"""Distances, case by case: each tree is a real server's shape."""

from __future__ import annotations

import typing
from dataclasses import replace

import pytest

from kubeflash.api.v1alpha1 import Distance, PathHop
from kubeflash.topology.distance import distance
from kubeflash.topology.tree import Hop, HopKind, PciDevice

KINDS: dict[str, HopKind] = {"R": "RootPort", "U": "SwitchUpstream", "D": "SwitchDownstream", "B": "Bridge"}


def device(text: str, *, numa: int | None = 0) -> PciDevice:
    """`4a R4a:01.0 U4b:00.0 4e:00.0`: host bridge, bridges (`?` is an unknown kind), device; domain 0000 if none."""
    bridge, *hops, address = text.split()

    def full(short: str) -> str:
        return short if short.count(":") == 2 else f"0000:{short}"

    return PciDevice(
        address=full(address),
        vendor="10de",
        device="2330",
        class_code="030200",
        numa_node=numa,
        root_complex=f"pci0000:{bridge}",
        path=tuple(Hop(full(hop[1:]), KINDS.get(hop[0], "Unknown")) for hop in hops),
    )


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        pytest.param(
            "4a R4a:01.0 U4b:00.0 D4c:00.0 4d:00.0", "4a R4a:01.0 U4b:00.0 D4c:01.0 4e:00.0", "PIX", id="one switch"
        ),
        pytest.param(
            "4a R4a:01.0 U4b:00.0 D4c:00.0 4d:00.0",
            "4a R4a:01.0 U4b:00.0 D4c:01.0 U4e:00.0 D4f:00.0 50:00.0",
            "PXB",
            id="a switch below the switch",
        ),
        pytest.param(
            "4a R4a:01.0 U4b:00.0 D4c:01.0 U4e:00.0 D4f:00.0 50:00.0",
            "4a R4a:01.0 U4b:00.0 D4c:01.0 U4e:00.0 D4f:01.0 51:00.0",
            "PIX",
            id="both below the lower switch",
        ),
        pytest.param(
            "4a R4a:01.0 U4b:00.0 D4c:00.0 U4d:00.0 D4e:00.0 4f:00.0",
            "4a R4a:01.0 U4b:00.0 D4c:01.0 U50:00.0 D51:00.0 52:00.0",
            "PXB",
            id="two switches below one",
        ),
        pytest.param("4a R4a:01.0 4b:00.0", "4a R4a:01.0 4b:00.1", "PIX", id="two functions under a root port"),
        pytest.param("4a R4a:01.0 4b:00.0", "4a R4a:01.0 4b:01.0", "PIX", id="ARI: functions beyond seven"),
        pytest.param("4a R4a:01.0 U4b:00.0 D4c:00.0 4d:00.0", "4a R4a:01.0 4b:00.1", "PIX", id="beside the upstream"),
        pytest.param(
            "4a R4a:01.0 U4b:00.0 D4c:00.0 4d:00.0",
            "4a R4a:01.0 U4b:00.1 D50:00.0 51:00.0",
            "PIX",
            id="two functions of one switch's upstream port",
        ),
        pytest.param("4a R4a:01.0 4b:00.0", "4a R4a:02.0 4c:00.0", "PHB", id="two root ports of a host bridge"),
        pytest.param("4a R4a:01.0 4b:00.0", "4a R4a:01.0 4b:00.4", "PIX", id="a device and its virtual function"),
        pytest.param(
            "4a R4a:01.0 U4b:00.0 D4c:00.0 4d:00.0", "4a R4a:02.0 5b:00.0", "PHB", id="switch and another root port"
        ),
        pytest.param("00 00:05.0", "00 00:06.0", "PHB", id="on the root bus"),
        pytest.param("00 00:05.0", "00 00:05.1", "PIX", id="functions of one device on the root bus"),
        pytest.param("00 00:05.0", "00 R00:06.0 01:00.0", "PHB", id="on the root bus and behind a port"),
        pytest.param("4a R4a:01.0 4b:00.0", "5a R5a:01.0 5b:00.0", "NODE", id="two host bridges of a node"),
        pytest.param("00 B00:1e.0 01:01.0", "00 B00:1e.0 01:02.0", "PIX", id="on one conventional bus"),
        pytest.param("00 D01:00.0 02:00.0", "00 D01:01.0 03:00.0", "PHB", id="nothing known to be shared"),
        pytest.param("00 R00:01.0 D01:00.0 02:00.0", "00 R00:01.0 D01:01.0 03:00.0", "PIX", id="upstream port hidden"),
        pytest.param(
            "e0 ?e0:05.5 R10000:e0:02.0 10000:e1:00.0",
            "e0 ?e0:05.5 R10000:e0:03.0 10000:e2:00.0",
            "PHB",
            id="two root ports of one VMD",
        ),
        pytest.param(
            "e0 ?e0:05.5 R10000:e0:02.0 U10000:e1:00.0 D10000:e2:00.0 10000:e3:00.0",
            "e0 ?e0:05.5 R10000:e0:02.0 U10000:e1:00.0 D10000:e2:01.0 10000:e4:00.0",
            "PIX",
            id="one switch behind a VMD",
        ),
        pytest.param("e0 ?e0:05.5 R10000:e0:02.0 10000:e1:00.0", "e0 Re0:01.0 e1:00.0", "PHB", id="VMD and not"),
    ],
)
def test_distance(one: str, other: str, expected: str):
    assert distance(device(one), device(other)) is Distance(expected)
    assert distance(device(other), device(one)) is Distance(expected)


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (None, None, "unknown"),
        (0, None, "unknown"),
        (None, 0, "unknown"),
        (0, 1, "SYS"),
        (1, 1, "NODE"),
    ],
)
def test_between_host_bridges_numa_nodes_stand_for_sockets_and_what_nobody_says_is_unknown(
    one: int | None, other: int | None, expected: str
):
    assert distance(device("4a R4a:01.0 4b:00.0", numa=one), device("5a R5a:01.0 5b:00.0", numa=other)) == expected


@pytest.mark.parametrize(
    ("numa", "sockets", "expected"),
    [
        pytest.param((0, 1), (0, 0), "NODE", id="one socket in several NUMA nodes"),
        pytest.param((0, 4), (0, 1), "SYS", id="across sockets"),
        pytest.param((None, None), (0, 0), "NODE", id="a machine with one socket"),
        pytest.param((0, 0), (None, 0), "NODE", id="a NUMA node of which one device does not say the socket"),
        pytest.param((0, None), (None, 0), "unknown", id="nothing that can be compared"),
    ],
)
def test_sockets_decide_where_they_are_known(numa, sockets, expected: str):
    one = replace(device("4a R4a:01.0 4b:00.0", numa=numa[0]), socket=sockets[0])
    other = replace(device("5a R5a:01.0 5b:00.0", numa=numa[1]), socket=sockets[1])
    assert distance(one, other) == expected


WAYLESS = PciDevice("0000:4b:00.0", "", "", "", 0, "pci0000:4a", path=None)


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        pytest.param(replace(WAYLESS, address="0000:4b:00.1"), "PIX", id="a function of the same device"),
        pytest.param(replace(WAYLESS, address="0000:4c:00.0"), "unknown", id="the same host bridge, no way"),
        pytest.param(device("4a R4a:01.0 4c:00.0"), "unknown", id="the way of the other alone is known"),
        pytest.param(device("5a R5a:01.0 5b:00.0"), "NODE", id="another host bridge of the node"),
        pytest.param(device("5a R5a:01.0 5b:00.0", numa=1), "SYS", id="another node"),
        pytest.param(device("5a R5a:01.0 5b:00.0", numa=None), "unknown", id="another host bridge, no node"),
        pytest.param(replace(WAYLESS, address="0000:4c:00.0", root_complex=""), "unknown", id="no host bridge"),
        pytest.param(
            replace(WAYLESS, address="0000:4c:00.0", root_complex="", numa_node=1),
            "SYS",
            id="no host bridge, other node",
        ),
    ],
)
def test_a_way_that_nobody_says_is_unknown_unless_something_else_decides(other: PciDevice, expected: str):
    assert distance(WAYLESS, other) == expected
    assert distance(other, WAYLESS) == expected


def test_a_domain_of_which_nobody_says_where_it_hangs():
    """An Intel VMD in hwloc or lspci: its devices know each other, and may be on any host bridge of their node."""
    inside = [
        replace(device(f"e0 R10000:e0:0{n}.0 10000:e{n}:00.0"), root_complex="pci10000:e0", detached=True)
        for n in (1, 2)
    ]
    outside = device("4a R4a:01.0 4b:00.0")
    assert distance(*inside) is Distance.PHB
    assert distance(inside[0], outside) is Distance.UNKNOWN
    assert distance(inside[0], replace(outside, numa_node=1)) is Distance.SYS


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("4a R4a:01.0 U4b:00.0 D4c:00.0 4d:00.0", "4a R4a:01.0 U4b:00.0 D4c:01.0 4e:00.0"),
        ("4a R4a:01.0 U4b:00.0 D4c:00.0 4d:00.0", "4a R4a:01.0 U4b:00.0 D4c:01.0 U4e:00.0 D4f:00.0 50:00.0"),
        ("4a R4a:01.0 4b:00.0", "4a R4a:02.0 4c:00.0"),
        ("4a R4a:01.0 4b:00.0", "4a R4a:01.0 4b:00.1"),
    ],
)
@pytest.mark.parametrize("hidden", ["R", "U", "D", "RUD"])
def test_unknown_bridges_are_known_by_their_place(one: str, other: str, hidden: str):
    """Whatever kind is not readable, the answer is the one of a server where all are."""
    blind_one, blind_other = one, other
    for letter in hidden:
        blind_one, blind_other = blind_one.replace(letter, "?"), blind_other.replace(letter, "?")
    assert distance(device(blind_one), device(blind_other)) is distance(device(one), device(other))


def test_kinds_are_those_of_the_api():
    annotation = PathHop.model_fields["kind"].annotation
    assert typing.get_args(HopKind) == typing.get_args(annotation)
