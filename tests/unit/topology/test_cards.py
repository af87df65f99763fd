"""Switches on GPUs' own cards: no switches of the server."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kubeflash.topology.devices import GpuRules
from kubeflash.topology.server import Listing
from kubeflash.topology.tree import Hop, PciDevice


def bridge(address: str, vendor: str, above: tuple[Hop, ...]) -> PciDevice:
    return PciDevice(address, vendor, "14a0", "060400", 0, "pci0000:20", above)


def server(*, switch: str = "1002", companions: tuple[PciDevice, ...] = ()):
    """A GPU of AMD's behind a switch of this maker, and an SSD on another root port of its host bridge."""
    hops = tuple(Hop(f"0000:{address}") for address in ("20:03.1", "25:00.0", "26:00.0"))
    ssd_port = Hop("0000:20:01.1")
    devices = [
        bridge("0000:20:03.1", "1022", ()),
        bridge("0000:25:00.0", switch, hops[:1]),
        bridge("0000:26:00.0", switch, hops[:2]),
        bridge("0000:20:01.1", "1022", ()),
        PciDevice("0000:27:00.0", "1002", "66a1", "038000", 0, "pci0000:20", hops),
        PciDevice("0000:21:00.0", "144d", "a808", "010802", 0, "pci0000:20", (ssd_port,)),
        *companions,
    ]
    return Listing("a test", tuple(devices)).server(GpuRules())


def beside(vendor: str, class_code: str) -> tuple[PciDevice, ...]:
    """Another device behind a second downstream port of the switch."""
    hops = (Hop("0000:20:03.1"), Hop("0000:25:00.0"), Hop("0000:26:01.0"))
    return (
        bridge("0000:26:01.0", vendor, hops[:2]),
        PciDevice("0000:28:00.0", vendor, "ab28", class_code, 0, "pci0000:20", hops),
    )


@pytest.mark.parametrize(
    ("made", "on_card"),
    [
        pytest.param(server(), True, id="AMD's own switch with its GPU alone"),
        pytest.param(server(companions=beside("1002", "040300")), True, id="and its audio function"),
        pytest.param(server(companions=beside("15b3", "020700")), False, id="a network card beside it"),
        pytest.param(server(companions=beside("144d", "010802")), False, id="an SSD beside it"),
        pytest.param(server(companions=beside("1002", "038000")), False, id="a second GPU"),
        pytest.param(server(switch="1000"), False, id="a switch of another maker"),
    ],
)
def test_what_is_a_card_s_own(made, on_card: bool):
    marked = {hop.address for hop in made.device("0000:27:00.0").path if hop.on_card}
    assert marked == ({"0000:25:00.0", "0000:26:00.0"} if on_card else set())


def test_a_card_s_own_switch_is_no_switch_of_the_server():
    assert not server(companions=beside("1002", "040300")).has_switches
    assert server(companions=beside("15b3", "020700")).has_switches


def test_makers_that_nobody_says_make_no_card():
    there = server()
    blind = [
        replace(device, vendor="", path=tuple(Hop(hop.address) for hop in device.bridges)) for device in there.tree
    ]
    assert not any(hop.on_card for device in Listing("x", tuple(blind)).server().tree for hop in device.bridges)
