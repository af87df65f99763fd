"""hwloc's XML, as `lstopo topo.xml` writes it, versions 1 to 3, read into a `Listing`. Pure.

Format: hwloc's own DTD (hwloc.dtd, hwloc2.dtd) and `topology-xml.c`. I/O objects hang below the part of the machine
that they are near to::

    Machine, Package, Group ...          their nodeset says the NUMA nodes
    └─ Bridge 0-1                        a host bridge: bridge_pci="0000:[48-4e]", its root bus first
       └─ Bridge 1-1                     a PCI-to-PCI bridge: pci_busid is itself, bridge_pci the buses below it
          └─ PCIDev                      with OSDev children: what the kernel and the makers' libraries call it

A dump may come from anywhere: it is read as a stream, nothing outside it is fetched, and nothing is declared in it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from xml.parsers import expat

from kubeflash.topology.errors import BadDump
from kubeflash.topology.reading import (
    MOST_DEVICES,
    address_of,
    behind_vmd,
    is_vmd,
    join_vmd_domains,
    plain,
    root_complex_of,
)
from kubeflash.topology.server import Facts, Listing
from kubeflash.topology.tree import UNSAID, Hop, Link, PciDevice

_MOST_ELEMENTS = 1_000_000  # a server with 1000 processors has 30,000
_DEEPEST = 256
_LONGEST_TAG = 1 << 20

_BUSID = re.compile(r"([0-9a-f]{1,8}):([0-9a-f]{1,2}):([01]?[0-9a-f])\.([0-7])")
_BUSES = re.compile(r"([0-9a-f]{1,8}):\[([0-9a-f]{2})-([0-9a-f]{2})\]")
_IDS = re.compile(
    r"([0-9a-f]{4}) \[([0-9a-f]{4}):([0-9a-f]{4})\] \[[0-9a-f]{4}:[0-9a-f]{4}\] [0-9a-f]{2}(?: ([0-9a-f]{2}))?"
)
_NAMESPACE = re.compile(r"nvme[0-9]{1,9}(?:c[0-9]{1,9})?n([0-9]{1,9})")  # nvme0n1; a path of it: nvme0c0n1

_INFOS = frozenset(
    {"HostName", "PCIDevice", "GPUModel", "NVIDIAUUID", "AMDUUID", "Model", "SerialNumber", "Size"},
)


def parse(content: bytes) -> Listing:
    """The server that a file of hwloc's describes.

    Raises:
        BadDump: when it is no XML of hwloc's, damaged, incomplete, hostile, or lists no PCI devices.
    """
    # expat holds a tag in memory as a whole, and looks at it again with each further piece: bound it beforehand
    for start in range(0, len(content) - _LONGEST_TAG, _LONGEST_TAG):
        if content.find(b">", start, start + _LONGEST_TAG) < 0:
            raise BadDump(f"it has a tag of more than {_LONGEST_TAG >> 20} MiB: it is no hwloc XML")
    reader = _Reader()
    try:
        reader.parser.Parse(content, True)
    except expat.ExpatError as error:
        if error.code == expat.errors.codes[expat.errors.XML_ERROR_JUNK_AFTER_DOC_ELEMENT]:
            raise BadDump(f"something follows its end in line {error.lineno}: make one file a machine") from error
        raise BadDump(
            f"the XML is damaged or incomplete in line {error.lineno}: {expat.ErrorString(error.code)}"
        ) from error
    return reader.listing()


@dataclass
class _Place:
    """A part of the machine: what is attached to it is there.

    Attributes:
        node: its NUMA node; None when it has several or nobody says.
        package: which package it is in, counted from 0.
        inside: packages that are in it; two stand for any number.
    """

    node: int | None = None
    package: int | None = None
    inside: frozenset[int] = frozenset()

    @property
    def only_package(self) -> int | None:
        """The package that all of it is in, or that is all of it."""
        if self.package is None and len(self.inside) == 1:
            return next(iter(self.inside))
        return self.package


@dataclass
class _Object:
    """An object that is open.

    Attributes:
        depth: of its element.
        place: its own or, of I/O objects, that of the part of the machine they are attached to.
        root_complex: the host bridge above it; empty outside of any.
        bus: domain and number of the bus below it.
        path: the bridges from the host bridge down to that bus; None when some are not listed.
        address: of the PCI device that it is or is part of.
        infos: those of `_INFOS` that it has.
    """

    kind: str
    depth: int
    place: _Place
    root_complex: str = ""
    bus: tuple[int, int] | None = None
    path: tuple[Hop, ...] | None = None
    address: str = ""
    name: str = ""
    infos: dict[str, str] = field(default_factory=dict)


@dataclass
class _Words:
    """What is said of one device beside its place; sizes are in bytes, by namespace."""

    listed_as: str = ""
    model: str = ""
    uuid: str = ""
    serial: str = ""
    sizes: dict[int, int] = field(default_factory=dict)

    def facts(self) -> Facts:
        size = sum(self.sizes.values()) if self.sizes else None
        return Facts(model=self.model or self.listed_as, uuid=self.uuid, serial=self.serial, bytes=size)


class _Reader:
    """Takes the elements of a file as they come."""

    def __init__(self) -> None:
        # hwloc writes UTF-8 whatever it says; the encodings that Python knows are not to be tried on a stranger's file
        self.parser = expat.ParserCreate("utf-8")
        self.parser.XmlDeclHandler = self._declared
        self.parser.StartDoctypeDeclHandler = self._doctype
        self.parser.StartElementHandler = self._start
        self.parser.EndElementHandler = self._end
        self.version = ""
        self.name = ""
        self.depth = 0
        self.elements = 0
        self.machines = 0
        self.stack: list[_Object] = []
        self.sockets: list[int | None] = []
        self.nodes: set[int] = set()
        self.found: dict[str, tuple[PciDevice, _Place]] = {}
        self.words: dict[str, _Words] = {}

    def listing(self) -> Listing:
        """What the whole file says."""
        if not self.found:
            raise BadDump("it lists no PCI devices: make it with lstopo --whole-io topo.xml")
        settled = [self._settle(device, place) for device, place in self.found.values()]
        vmds = [device for device in settled if is_vmd(device)]
        devices, unjoined = join_vmd_domains(settled, vmds)
        facts = {address: words.facts() for address, words in self.words.items()}
        return Listing(
            source=f"hwloc XML {self.version}",
            devices=devices,
            name=self.name,
            facts={address: fact for address, fact in facts.items() if fact != Facts()},
            unsaid=(*self._unsaid(devices, vmds), *unjoined),
        )

    def _settle(self, device: PciDevice, place: _Place) -> PciDevice:
        package = place.only_package
        node = place.node
        if node is None and len(self.nodes) == 1 and len(self.sockets) <= 1:
            node = next(iter(self.nodes))
        return replace(device, numa_node=node, socket=None if package is None else self.sockets[package])

    def _unsaid(self, devices: Sequence[PciDevice], vmds: Sequence[PciDevice]) -> list[str]:
        said = [
            "hwloc does not say what kind of port a bridge is: its place tells.",
            "hwloc does not say whether ports redirect peer-to-peer requests (ACS).",
            "hwloc says how fast a link is, not how fast it could be.",
            "hwloc does not say which devices are shares of others (SR-IOV).",
        ]
        lost = sum(device.path is None for device in devices)
        if lost:
            said.append(f"The bridges above {lost} of {len(devices)} PCI devices are left out: use lstopo --whole-io.")
        homeless = sum(device.socket is None for device in devices)
        if homeless:
            said.append(f"Which processor socket {homeless} of {len(devices)} PCI devices are attached to is not said.")
        if vmds and not any(behind_vmd(device.address.partition(":")[0]) for device in devices):
            said.append(
                f"What is behind the Intel VMD {vmds[0].address} may be left out: most builds of hwloc cannot list it."
            )
        return said

    def _fail(self, what: str) -> BadDump:
        return BadDump(f"line {self.parser.CurrentLineNumber}: {what}")

    def _declared(self, _version: str, encoding: str | None, _standalone: int) -> None:
        if encoding is not None and encoding.lower() not in ("utf-8", "us-ascii"):
            raise self._fail(f"the encoding {plain(encoding)!r} is not UTF-8, which hwloc writes")

    def _doctype(self, _name: str, _system: str | None, _public: str | None, has_declarations: int) -> None:
        # entities that grow, entities that are files, attributes by default: all need declarations, hwloc has none
        if has_declarations:
            raise self._fail("the document declares entities or the like, which hwloc never does")

    def _start(self, element: str, attributes: dict[str, str]) -> None:
        self.depth += 1
        self.elements += 1
        if self.depth > _DEEPEST:
            raise self._fail(f"elements are nested more than {_DEEPEST} deep, which hwloc never does")
        if self.elements > _MOST_ELEMENTS:
            raise self._fail(f"more than {_MOST_ELEMENTS} elements: that is no server")
        if self.depth == 1:
            self._start_topology(element, attributes)
        elif element == "object":
            self._start_object(attributes)
        elif element == "info":
            self._info(attributes.get("name", ""), attributes.get("value", ""))

    def _end(self, _element: str) -> None:
        if self.stack and self.stack[-1].depth == self.depth:
            closed = self.stack.pop()
            if closed.kind == "OSDev" and closed.address:
                self._end_os_device(closed)
            elif closed.kind == "PCIDev" and "PCIDevice" in closed.infos:
                self._words(closed.address).listed_as = closed.infos["PCIDevice"]
            if self.stack:
                outer = self.stack[-1].place
                outer.inside = _some(outer.inside | closed.place.inside)
        self.depth -= 1

    def _start_topology(self, element: str, attributes: dict[str, str]) -> None:
        if element != "topology":
            raise self._fail(f"it is XML, but not hwloc's: it starts with <{plain(element)[:40]}>, not <topology>")
        self.version = plain(attributes.get("version", "1"))[:40]
        if self.version.partition(".")[0] not in ("1", "2", "3"):
            raise self._fail(f"hwloc XML version {self.version!r} is not known: versions 1, 2 and 3 are")

    def _start_object(self, attributes: dict[str, str]) -> None:
        kind = attributes.get("type", "")
        outer = self.stack[-1] if self.stack else _Object("", 0, _Place())
        if kind in ("Bridge", "PCIDev"):
            opened = self._start_pci(kind, attributes, outer)
        elif kind in ("OSDev", "Misc"):
            opened = replace(outer, kind=kind, depth=self.depth, name=attributes.get("name", ""), infos={})
        else:
            opened = _Object(kind, self.depth, self._place(kind, attributes, outer.place))
        self.stack.append(opened)

    def _place(self, kind: str, attributes: dict[str, str], outer: _Place) -> _Place:
        nodeset = attributes.get("nodeset")
        node = outer.node if nodeset is None else _only_bit(nodeset)
        place = _Place(node, outer.package)
        index = attributes.get("os_index", "")
        number = int(index) if index.isascii() and index.isdecimal() and len(index) < 10 else None  # -1 is 4294967295
        if kind == "Machine":
            self.machines += 1
            if self.machines > 1:
                raise self._fail("it describes several machines: make one file a machine, with lstopo")
        elif kind in ("Package", "Socket"):
            place.package = len(self.sockets)
            place.inside = frozenset({place.package})
            self.sockets.append(number)
        elif kind == "NUMANode" and number is not None:
            self.nodes.add(number)
        return place

    def _start_pci(self, kind: str, attributes: dict[str, str], outer: _Object) -> _Object:
        bridge = attributes.get("bridge_type", "") if kind == "Bridge" else ""
        below = self._buses(attributes) if kind == "Bridge" else None
        if bridge == "0-1":
            assert below is not None
            return _Object(kind, self.depth, outer.place, root_complex_of(*below), below, ())
        if kind == "Bridge" and bridge != "1-1":
            raise self._fail(f"a bridge of type {plain(bridge)[:40]!r}, not 0-1 (host bridge) or 1-1 (PCI bridge)")
        busid, ids = attributes.get("pci_busid", ""), attributes.get("pci_type", "")
        place, what = _BUSID.fullmatch(busid.lower()), _IDS.fullmatch(ids.lower())
        if place is None:
            raise self._fail(f"pci_busid {plain(busid)[:40]!r} is no PCI address such as 0000:4e:00.0")
        if what is None:
            raise self._fail(f"pci_type {plain(ids)[:60]!r} is not of the form '0302 [10de:2330] [10de:16c0] a1'")
        domain, bus, device, function = (int(part, 16) for part in place.groups())
        address = address_of(domain, bus, device, function)
        if address in self.found:
            raise self._fail(f"two PCI devices have the address {address}: it is not one server's")
        if len(self.found) >= MOST_DEVICES:
            raise self._fail(f"more than {MOST_DEVICES} PCI devices: that is no server")
        # where bridges are left out, a device is listed on a bus that is not the one below what is above it
        path = outer.path if outer.bus == (domain, bus) else None
        link = _link(attributes.get("pci_link_speed", ""))
        found = PciDevice(
            address=address,
            vendor=what[2],
            device=what[3],
            class_code=_class_code(what[1], what[4] or ""),
            numa_node=None,
            root_complex=outer.root_complex,
            path=path,
            link=UNSAID if bridge else link,
        )
        self.found[address] = found, outer.place
        inner = None if path is None else (*path, Hop(address, link=link))
        return _Object(kind, self.depth, outer.place, outer.root_complex, below, inner, "" if bridge else address)

    def _buses(self, attributes: dict[str, str]) -> tuple[int, int]:
        """Domain and number of the first bus below a bridge."""
        text = attributes.get("bridge_pci", "")
        match = _BUSES.fullmatch(text.lower())
        if match is None:
            raise self._fail(f"bridge_pci {plain(text)[:40]!r} is not of the form 0000:[48-4e]")
        return int(match[1], 16), int(match[2], 16)

    def _info(self, name: str, value: str) -> None:
        if name == "HostName" and (not self.stack or self.stack[-1].kind == "Machine"):
            self.name = plain(value)
        elif name in _INFOS and self.stack:
            self.stack[-1].infos[name] = plain(value)

    def _words(self, address: str) -> _Words:
        return self.words.setdefault(address, _Words())

    def _end_os_device(self, closed: _Object) -> None:
        words, infos = self._words(closed.address), closed.infos
        if "GPUModel" in infos and (not words.model or not closed.name.startswith("opencl")):
            words.model = infos["GPUModel"]  # OpenCL names the chip of an AMD GPU, not the card
        words.uuid = infos.get("NVIDIAUUID") or infos.get("AMDUUID") or words.uuid
        namespace = _NAMESPACE.fullmatch(closed.name)
        if namespace is None:
            return
        words.model = infos.get("Model") or words.model
        words.serial = infos.get("SerialNumber") or words.serial
        size = infos.get("Size", "")
        if size.isascii() and size.isdecimal() and len(size) < 16:
            words.sizes[int(namespace[1])] = int(size) << 10  # KiB; a namespace and a path to it are one


def _some(packages: frozenset[int]) -> frozenset[int]:
    """At most two of them: whether there is one or several is what counts."""
    return packages if len(packages) <= 2 else frozenset(sorted(packages)[:2])


@lru_cache(maxsize=256)
def _only_bit(text: str) -> int | None:
    """The number of the only bit that is set in a bitmap of hwloc's, such as 0x00000001,,0x0; else None.

    Words of 32 bits, the highest first; an empty word is zero, `0xf...f` stands for all further bits.
    """
    found: int | None = None
    for position, word in enumerate(reversed(text.split(","))):
        if not word:
            continue
        try:
            bits = int(word, 16) if len(word) <= 10 else -1
        except ValueError:
            return None
        if bits == 0:
            continue
        if found is not None or bits < 0 or bits.bit_count() != 1:
            return None
        found = 32 * position + bits.bit_length() - 1
    return found


def _class_code(kind: str, interface: str) -> str:
    # Version 3 also writes 00 where it read a file of version 2, which does not say it: for an SSD, believe 02 alone.
    return kind if kind == "0108" and interface == "00" else kind + interface


def _link(text: str) -> Link:
    """A link by its speed in GB/s; 0 is: not known."""
    try:
        speed = float(text)
    except ValueError:
        return UNSAID
    return Link(gbps=speed) if math.isfinite(speed) and speed > 0 else UNSAID
