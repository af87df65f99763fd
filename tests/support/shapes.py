"""Servers of many shapes for pictures, and what is to be found in a picture."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from xml.etree import ElementTree as ET

from kubeflash.topology.analysis import Analysis, analyse
from kubeflash.topology.faults import Fault
from kubeflash.topology.server import Facts, Listing
from kubeflash.topology.tree import UNSAID, Hop, HopKind, Link, PciDevice

SVG = "{http://www.w3.org/2000/svg}"
KINDS: dict[str, HopKind] = {"R": "RootPort", "U": "SwitchUpstream", "D": "SwitchDownstream"}
WIDE = Link(32, 16, 32, 16)
NARROW = Link(32, 4, 32, 4)
HOSTILE = '"><script>alert(1)</script> & ]]> <!-- \x00\x1b[31m\u202eevil \ud800\n\n'


class Shelf:
    """A server in the making: `4a R4a:01.0 U4b:00.0 D4c:00.0 4d:00.0` is host bridge, bridges, device."""

    def __init__(self, name: str = "gpu-a", **more) -> None:
        self.name, self.more = name, more
        self.devices: list[PciDevice] = []
        self.facts: dict[str, Facts] = {}

    def add(self, what: str, way: str, *, numa: int | None = 0, link: Link | None = None, facts=None, **more) -> None:
        bridge, *hops, address = way.split()

        def full(short: str) -> str:
            return short if short.count(":") == 2 else f"0000:{short}"

        gpu = what == "gpu"
        device = PciDevice(
            full(address),
            "10de" if gpu else "144d",
            "2330" if gpu else "a824",
            "030200" if gpu else "010802",
            numa,
            "" if bridge == "-" else f"pci{bridge}" if ":" in bridge else f"pci0000:{bridge}",
            tuple(Hop(full(hop[1:]), KINDS.get(hop[0], "Unknown"), WIDE) for hop in hops),
            link=link if link is not None else WIDE if gpu else NARROW,
        )
        self.devices.append(dataclasses.replace(device, **more))
        model = "NVIDIA H100 80GB HBM3" if gpu else "SAMSUNG MZWLO3T8HCLS-00A07"
        self.facts[device.address] = facts or Facts(model=model, free=None if gpu else 3 << 40)

    def analysis(self) -> Analysis:
        return analyse(Listing("sysfs", tuple(self.devices), self.name, self.facts, **self.more).server())


def switch(bus: int, port: int) -> str:
    return f"{bus:02x} R{bus:02x}:01.0 U{bus + 1:02x}:00.0 D{bus + 2:02x}:{port:02x}.0"


def two() -> Analysis:
    shelf = Shelf(kernel="6.12: tcp rdma auth tls")
    for numa, bus in enumerate((0x4A, 0xCA)):
        shelf.add("gpu", f"{switch(bus, 0)} {bus + 4:02x}:00.0", numa=numa, socket=numa)
        link = Link(16, 4, 32, 4) if numa else NARROW
        shelf.add("ssd", f"{switch(bus, 1)} {bus + 5:02x}:00.0", numa=numa, socket=numa, link=link)
    reason = "partition table (gpt), partition 1 mounted at /"
    shelf.add("ssd", "00 R00:01.0 01:00.0", facts=Facts(model="SAMSUNG MZQL2", reason=reason, bytes=1 << 40))
    return shelf.analysis()


def single() -> Analysis:
    shelf = Shelf()
    shelf.add("gpu", "64 R64:00.0 65:00.0", link=Link(2.5, 16, 16, 16))
    shelf.add("ssd", "64 R64:02.0 66:00.0")
    return shelf.analysis()


def eight_with_32() -> Analysis:
    shelf = Shelf("dgx")
    for gpu in range(8):
        bus = 0x10 + 0x1C * gpu
        shelf.add("gpu", f"{switch(bus, 0)} {bus + 4:02x}:00.0", numa=gpu // 4)
        for port in range(4):
            shelf.add("ssd", f"{switch(bus, port + 2)} {bus + 6 + port:02x}:00.0", numa=gpu // 4)
    return shelf.analysis()


def nested() -> Analysis:
    """Like a DGX-2: below each of four switches two with two GPUs each and one with four SSDs."""
    shelf = Shelf("nested (synthetic)")
    for quarter in range(4):
        bus = 0x10 + 0x38 * quarter
        for lower in range(3):
            low = bus + 4 + 12 * lower
            way = f"{switch(bus, lower)} U{low:02x}:00.0"
            for number in range(4 if lower == 2 else 2):
                what = "ssd" if lower == 2 else "gpu"
                shelf.add(what, f"{way} D{low + 1:02x}:{number:02x}.0 {low + 2 + number:02x}:00.0", numa=quarter // 2)
    return shelf.analysis()


def eight_with_one() -> Analysis:
    shelf = Shelf()
    for gpu in range(8):
        shelf.add("gpu", f"00 R00:{gpu + 1:02x}.1 {0x11 + gpu:02x}:00.0")
    shelf.add("ssd", "00 R00:0c.1 f1:00.0")
    return shelf.analysis()


def no_neighbours() -> Analysis:
    shelf = Shelf()
    for gpu in range(4):
        bus = 0x10 + 0x20 * (gpu // 2)
        shelf.add("gpu", f"{switch(bus, gpu % 2)} {bus + 4 + gpu % 2:02x}:00.0", numa=gpu // 2)
    shelf.add("ssd", "b0 Rb0:01.0 b1:00.0")
    return shelf.analysis()


def vmd() -> Analysis:
    shelf = Shelf()
    shelf.add("gpu", "26 R26:01.0 27:00.0")
    for number in range(1, 4):
        shelf.add("ssd", f"26 ?26:00.5 R10000:00:{number:02x}.0 10000:{number:02x}:00.0")
    shelf.add("ssd", "10002:00 R10002:00:01.0 10002:01:00.0", detached=True)
    return shelf.analysis()


def unplaced() -> Analysis:
    shelf = Shelf(unsaid=("This lspci lists no bridges.",))
    shelf.add("gpu", "- 10:00.0", numa=None, path=None)
    shelf.add("ssd", "- 11:00.0", numa=None, path=None, link=UNSAID, facts=Facts())
    shelf.add("gpu", "8a 8d:00.0", numa=1, path=None)
    return shelf.analysis()


def on_root_bus() -> Analysis:
    shelf = Shelf()
    for number in range(4):
        shelf.add("gpu", f"00 00:{number + 4:02x}.0", numa=None, link=UNSAID)
    shelf.add("ssd", "00 00:1f.0", numa=None, link=UNSAID)
    return shelf.analysis()


def shared_switch() -> Analysis:
    shelf = Shelf()
    for gpu in range(2):
        shelf.add("gpu", f"{switch(0x4A, gpu)} {0x4D + gpu:02x}:00.0")
    shelf.add("ssd", f"{switch(0x4A, 4)} 50:00.0")
    return shelf.analysis()


def functions_of_one_device() -> Analysis:
    shelf = Shelf()
    shelf.add("gpu", "4a R4a:01.0 4d:00.0")
    shelf.add("ssd", "4a R4a:01.0 4d:00.1")
    return shelf.analysis()


def divided_sockets() -> Analysis:
    shelf = Shelf()
    for node in range(4):
        bus = 0x10 + 0x30 * node
        shelf.add("gpu", f"{switch(bus, 0)} {bus + 4:02x}:00.0", numa=node, socket=node // 2)
        shelf.add("ssd", f"{switch(bus, 1)} {bus + 5:02x}:00.0", numa=node, socket=node // 2)
    return shelf.analysis()


def hostile() -> Analysis:
    shelf = Shelf(HOSTILE * 4, kernel=HOSTILE * 4, unsaid=(HOSTILE * 20,))
    shelf.add("gpu", f"{switch(0x4A, 0)} 4d:00.0", facts=Facts(model=HOSTILE * 3))
    shelf.add("ssd", f"{switch(0x4A, 1)} 4e:00.0", facts=Facts(model="漢字" * 40))
    shelf.add("ssd", f"{switch(0x4A, 2)} 4f:00.0", facts=Facts(model="W" * 99, reason=HOSTILE * 3))
    found = shelf.analysis()
    return dataclasses.replace(found, faults=(Fault("Bad<Kind>", "0000:4e:00.0", HOSTILE * 9, HOSTILE * 9),))


def many_faults() -> Analysis:
    found = two()
    faults = [Fault(f"Kind{n}", a, f"message {n}", f"remedy {n}") for n in range(10) for a in found.server.ssds]
    return dataclasses.replace(found, faults=tuple(faults))


def deep() -> Analysis:
    """More switches below each other than are drawn as boxes."""
    shelf = Shelf()
    hops = " ".join(f"U{bus:02x}:00.0 D{bus + 1:02x}:00.0" for bus in range(2, 100, 2))
    shelf.add("gpu", f"00 R00:01.0 {hops} c0:00.0")
    shelf.add("ssd", f"00 R00:01.0 {hops} c1:00.0")
    return shelf.analysis()


def many() -> Analysis:
    shelf = Shelf()
    for bus in range(2, 250):
        shelf.add("ssd" if bus % 5 else "gpu", f"{bus // 32:02x} R{bus // 32:02x}:{bus % 32:02x}.0 {bus:02x}:00.0")
    return shelf.analysis()


SHAPES: list[Callable[[], Analysis]] = [
    two,
    single,
    eight_with_32,
    nested,
    eight_with_one,
    no_neighbours,
    vmd,
    unplaced,
    on_root_bus,
    shared_switch,
    functions_of_one_device,
    divided_sockets,
    hostile,
    many_faults,
    deep,
    many,
]


def texts(root: ET.Element) -> list[str]:
    return [element.text or "" for element in root.iter(f"{SVG}text")]


def cards(root: ET.Element) -> dict[str, tuple[float, float, float, float]]:
    """Address, and left, top, right, bottom."""
    found = {}
    for element in root.iter(f"{SVG}rect"):
        if "card" in element.get("class", "").split():
            x, y, w, h = (float(element.attrib[name]) for name in ("x", "y", "width", "height"))
            found[element.attrib["data-address"]] = (x, y, x + w, y + h)
    return found


def box_of(element: ET.Element) -> tuple[float, float, float, float]:
    """Of a line of text: characters about as wide as in DejaVu Sans, the widest of the fonts in use."""
    size, text = float(element.attrib["font-size"]), element.text or ""
    bold = 1.1 if element.get("font-weight") == "bold" else 1
    width = sum(1.05 if not c.isascii() else 0.33 if c in " .,:;|'/ijlI" else 0.6 for c in text) * size * bold
    x, y = float(element.attrib["x"]), float(element.attrib["y"])
    left = x - width / 2 if element.get("text-anchor") == "middle" else x
    return left, y - size, left + width, y + size * 0.25
