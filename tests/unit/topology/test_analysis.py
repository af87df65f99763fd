"""What is said of a server: bandwidth shared, faults with remedies, peer-to-peer, pcieRoot."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kubeflash.api.v1alpha1 import Distance
from kubeflash.topology.analysis import analyse
from kubeflash.topology.server import Facts
from kubeflash.topology.tree import Link
from support.trees import GEN4_X4, GEN5_X4, analysed, gpu, place, server

G0 = gpu("4a R4a:01.0 U4b:00.0 D4c:00.0 4d:00.0")
S0 = place("4a R4a:01.0 U4b:00.0 D4c:01.0 4e:00.0")
G1 = gpu("5a R5a:01.0 U5b:00.0 D5c:00.0 5d:00.0")


def kinds(analysis) -> dict[str, str]:
    return {fault.address.removeprefix("0000:"): fault.kind for fault in analysis.faults if fault.serious}


def test_a_pair_below_one_switch():
    [pair] = analysed(G0, S0).pairs
    assert (pair.gpu, pair.ssd, pair.distance) == (G0.address, S0.address, Distance.PIX)
    assert round(pair.gbps, 1) == 15.8
    assert pair.peer_to_peer.possible is True
    assert pair.why == "same switch 4b:00.0"
    assert pair.faults == ()


def test_uplinks_are_divided_among_the_pairs_that_cross_them():
    """Four GPUs of other host bridges share four SSDs behind one Gen4 x4 uplink: a quarter each."""
    others = [gpu(f"{n}a R{n}a:01.0 {n}b:00.0") for n in range(5, 9)]
    uplink = {"4a:01.0": Link(32.0, 16, 32.0, 16), "4b:00.0": GEN4_X4}
    ssds = [place(f"4a R4a:01.0 U4b:00.0 D4c:0{n}.0 4{'ef'[n // 2]}:0{n % 2}.0", ports=uplink) for n in range(4)]
    analysis = analysed(*others, *ssds)
    assert [round(pair.gbps, 2) for pair in analysis.pairs] == [1.97] * 4
    assert [pair.distance for pair in analysis.pairs] == [Distance.NODE] * 4
    [fault] = [fault for fault in analysis.faults if fault.kind == "SharedUplink"]
    assert (fault.address, fault.message) == (
        "0000:4a:01.0",
        "4 pairs share this uplink: 2.0 GB/s each when all work",
    )


def test_one_ssd_for_several_gpus_is_said_and_its_own_link_is_not_divided():
    analysis = analysed(G0, G1, gpu("6a R6a:01.0 6b:00.0"), gpu("7a R7a:01.0 7b:00.0"), S0)
    assert {round(pair.gbps, 1) for pair in analysis.pairs} == {15.8}
    first, second = analysis.pairs[:2]
    assert first.shared_with == (G1.address, "0000:6b:00.0", "0000:7b:00.0")
    assert second.why == "no SSD below its host bridge; through pci0000:5a and pci0000:4a; shared with 3 other GPUs"
    assert "shared with 5d:00.0" in analysed(G0, G1, S0).pairs[0].why


@pytest.mark.parametrize(
    ("end", "port", "kind", "words"),
    [
        (Link(16.0, 4, 32.0, 4), Link(16.0, 4, 32.0, 4), "LinkSlow", "trained at 16 GT/s, can do 32 GT/s: half the"),
        (Link(8.0, 4, 32.0, 4), GEN5_X4, "LinkSlow", "three quarters of the bandwidth are lost"),
        (Link(32.0, 2, 32.0, 4), Link(32.0, 2, 32.0, 16), "LinkNarrow", "trained at x2, can do x4: half the"),
        (Link(32.0, 2, 32.0, 4), Link(32.0, 2, 32.0, 2), "SlotNarrow", "its slot 4c:01.0 has x2, it could use x4"),
    ],
)
def test_a_link_below_its_maximum(end: Link, port: Link, kind: str, words: str):
    ssd = place("4a R4a:01.0 U4b:00.0 D4c:01.0 4e:00.0", link=end, ports={"4c:01.0": port})
    analysis = analysed(G0, ssd)
    assert kinds(analysis) == {"4e:00.0": kind}
    [fault] = analysis.faults
    assert words in fault.message
    assert fault.remedy
    assert analysis.pairs[0].faults == (fault,)


@pytest.mark.parametrize(
    ("end", "port"),
    [
        pytest.param(GEN4_X4, Link(16.0, 4, 32.0, 16), id="an x4 SSD of an older generation in an x16 slot"),
        pytest.param(Link(), Link(), id="nobody says"),
        pytest.param(Link(16.0, 4), Link(16.0, 4), id="nobody says what could be"),
    ],
)
def test_what_is_no_fault(end: Link, port: Link):
    ssd = place("4a R4a:01.0 U4b:00.0 D4c:01.0 4e:00.0", link=end, ports={"4c:01.0": port})
    assert analysed(G0, ssd).faults == ()


def test_a_slower_slot_and_a_gpu_that_idles_are_remarks():
    ssd = place(
        "4a R4a:01.0 U4b:00.0 D4c:01.0 4e:00.0", link=Link(16.0, 4, 32.0, 4), ports={"4c:01.0": Link(16.0, 4, 16.0, 16)}
    )
    idle = Link(2.5, 16, 32.0, 16)
    sleeping = gpu("4a R4a:01.0 U4b:00.0 D4c:00.0 4d:00.0", link=idle, ports={"4c:00.0": idle})
    analysis = analysed(sleeping, ssd)
    assert [(fault.kind, fault.serious) for fault in analysis.faults] == [("LinkIdle", False), ("SlotSlow", False)]


def test_a_slow_uplink_is_the_switch_s_fault():
    uplink = {"4a:01.0": Link(8.0, 16, 32.0, 16), "4b:00.0": Link(8.0, 16, 32.0, 16)}
    analysis = analysed(replace(G0, path=place("4a R4a:01.0 U4b:00.0 D4c:00.0 4d:00.0", ports=uplink).path), S0)
    assert kinds(analysis) == {"4b:00.0": "LinkSlow"}


def test_acs_redirects_peers_and_the_fault_names_the_port():
    ssd = place("4a R4a:01.0 U4b:00.0 D4c:01.0 4e:00.0", acs={"4c:01.0": "Redirect"})
    analysis = analysed(G0, ssd)
    [pair] = analysis.pairs
    assert (pair.peer_to_peer.possible, pair.peer_to_peer.why) == (False, "not directly: ACS redirects at 4c:01.0")
    [fault] = analysis.faults
    assert (fault.kind, fault.address) == ("AcsRedirect", "0000:4c:01.0")
    assert "pci=disable_acs_redir=" in fault.remedy


def test_acs_at_the_root_port_does_not_concern_peers_below_one_switch():
    acs = {"4a:01.0": "Redirect"}
    one = gpu("4a R4a:01.0 U4b:00.0 D4c:00.0 4d:00.0", acs=acs)
    assert analysed(one, place("4a R4a:01.0 U4b:00.0 D4c:01.0 4e:00.0", acs=acs)).pairs[0].peer_to_peer.possible is True


@pytest.mark.parametrize(
    ("ssd", "possible"),
    [
        pytest.param("4a R4a:02.0 5b:00.0", None, id="PHB: the kernel's list decides"),
        pytest.param("5a R5a:01.0 5b:00.0", False, id="two host bridges"),
    ],
)
def test_peer_to_peer_beyond_switches(ssd: str, possible: bool | None):
    assert analysed(G0, place(ssd)).pairs[0].peer_to_peer.possible is possible


def test_where_nobody_says_acs_peer_to_peer_is_unknown():
    blind = [replace(device, path=tuple(replace(hop, acs=None) for hop in device.path)) for device in (G0, S0)]
    assert analysed(*blind).pairs[0].peer_to_peer.possible is None


def test_no_neighbour_is_said_loudly_with_what_is_left_alone():
    foreign = {S0.address: Facts(reason="it is mounted")}
    analysis = analysed(G0, S0, place("5a R5a:01.0 5b:00.0", numa=1), facts=foreign)
    [pair] = analysis.pairs
    assert (pair.ssd, pair.distance) == ("0000:5b:00.0", Distance.SYS)
    assert kinds(analysis) == {"4d:00.0": "NoNeighbour"}
    assert "4e:00.0" in analysis.faults[0].remedy


@pytest.mark.parametrize(
    ("devices", "remedy"),
    [
        pytest.param((G0, "4a R4a:02.0 5f:00.0"), "move an SSD to a slot of the GPU's own switch;", id="on a switch"),
        pytest.param(
            (gpu("4a R4a:02.0 5f:00.0"), "4a R4a:01.0 U4b:00.0 D4c:01.0 4e:00.0"),
            "move the GPU to a switch that has SSDs; until",
            id="beside a switch, on one host bridge",
        ),
        pytest.param(
            (gpu("5a R5a:02.0 5f:00.0"), "4a R4a:01.0 U4b:00.0 D4c:01.0 4e:00.0"),
            "move the GPU to a switch that has SSDs; a slot of the GPU's host bridge",
            id="on another host bridge",
        ),
        pytest.param(
            (gpu("5a R5a:02.0 5f:00.0"), "4a R4a:01.0 4e:00.0"),
            "move an SSD to a slot of the GPU's own host bridge;",
            id="no switches",
        ),
    ],
)
def test_what_to_move_depends_on_where_gpu_and_ssd_are(devices, remedy):
    only, ssd = devices
    below = place("4a R4a:01.0 U4b:00.0 D4c:02.0 4f:00.0", kind="0200")
    others = [below] if "U4b" in ssd or only is G0 else []
    [fault] = [fault for fault in analysed(only, place(ssd), *others).faults if fault.kind == "NoNeighbour"]
    assert fault.remedy.startswith(remedy)


def test_a_switch_on_the_gpu_s_card_has_no_slot_to_move_an_ssd_to():
    carried = gpu("20 R20:03.1 U25:00.0 D26:00.0 27:00.0")
    hops = tuple(replace(hop, on_card=not hop.address.endswith("03.1")) for hop in carried.bridges)
    [fault] = analysed(replace(carried, path=hops), place("40 R40:01.1 41:00.0")).faults
    assert fault.remedy.startswith("move an SSD to a slot of the GPU's own host bridge;")


def test_without_switches_the_same_host_bridge_is_a_neighbour():
    analysis = analysed(gpu("4a R4a:01.0 4b:00.0"), place("4a R4a:02.0 4c:00.0"))
    assert not analysis.server.has_switches
    assert analysis.is_neighbour(analysis.pairs[0].distance)
    assert analysis.faults == ()
    assert analysis.pairs[0].why == "no shared switches here: same host bridge pci0000:4a"
    with_switch = analysed(
        G0, place("4a R4a:02.0 5f:00.0"), place("4a R4a:01.0 U4b:00.0 D4c:01.0 4e:00.0", kind="0200")
    )
    assert kinds(with_switch) == {"4d:00.0": "NoNeighbour"}


def test_a_switch_on_a_card_for_its_one_gpu_does_not_count():
    """An MI50's own bridge: nothing can be beside the GPU."""
    on_card = gpu("20 R20:03.1 U25:00.0 D26:00.0 27:00.0")
    assert not server(on_card, place("20 R20:01.1 21:00.0")).has_switches


@pytest.mark.parametrize(
    ("ssds", "tells", "verdict"),
    [
        (["4a R4a:01.0 U4b:00.0 D4c:01.0 4e:00.0"], True, "names just the nearest: 1 at PIX"),
        (
            ["4a R4a:01.0 U4b:00.0 D4c:01.0 4e:00.0", "4a R4a:02.0 50:00.0", "4a R4a:03.0 51:00.0"],
            False,
            "cannot tell 1 at PIX from 2 at PHB apart",
        ),
        (["5a R5a:01.0 5b:00.0"], False, "matches no SSD; the nearest is NODE"),
        ([], False, "there is no SSD"),
    ],
)
def test_what_pcie_root_alone_would_say(ssds: list[str], tells: bool, verdict: str):
    [view] = analysed(G0, *map(place, ssds)).roots
    assert (view.root, view.tells, view.verdict) == ("pci0000:4a", tells, verdict)


def test_an_ssd_that_may_be_nearer_makes_nothing_certain():
    """SSDs behind an Intel VMD of which nobody says where it hangs."""
    lost = replace(
        place("e0 R10000:e0:02.0 10000:e1:00.0"), address="10000:e1:00.0", root_complex="pci10000:e0", detached=True
    )
    analysis = analysed(G0, lost, place("5a R5a:01.0 5b:00.0", numa=1))
    [pair] = analysis.pairs
    assert pair.distance is Distance.SYS
    assert pair.why.endswith("how far others are is not known")
    assert analysis.faults == ()
    assert analysis.roots[0].verdict == "whether it is right cannot be told from this source"
    [pair] = analysed(G0, S0, lost).pairs
    assert (pair.why, pair.faults) == ("same switch 4b:00.0", ())


def test_one_more_ssd_makes_no_pair_narrower_alone():
    """What is remembered of a GPU's best is compared with what it has alone: more SSDs are no damage."""
    uplink = {"5a:01.0": GEN4_X4, "5b:00.0": GEN4_X4}
    ssds = [place(f"5a R5a:01.0 U5b:00.0 D5c:0{n}.0 5{'de'[n]}:00.0", ports=uplink) for n in range(2)]
    one, two = analysed(G0, ssds[0]).pairs[0], analysed(G0, *ssds).pairs[0]
    assert one.gbps > two.gbps
    assert one.alone == two.alone


def test_pairs_that_were_stay():
    twins = [gpu("4a R4a:01.0 U4b:00.0 D4c:00.0 4d:00.0"), gpu("4a R4a:01.0 U4b:00.0 D4c:02.0 4f:00.0")]
    ssds = [S0, place("4a R4a:01.0 U4b:00.0 D4c:03.0 50:00.0")]
    crosswise = [(twins[0].address, ssds[1].address), (twins[1].address, ssds[0].address)]
    there = server(*twins, *ssds)
    assert [(pair.gpu, pair.ssd) for pair in analyse(there, previous=crosswise).pairs] == crosswise
    assert [(pair.gpu, pair.ssd) for pair in analyse(there).pairs] != crosswise
