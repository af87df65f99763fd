"""lspci's text (`lspci -vvv`, with or without -nn, -n, -D, -PP, as root or not; `lspci -vmm`) as a `Listing`. Pure.

Format: pciutils' `lspci.c`, `ls-caps.c` and `ls-ecaps.c`. A block a device, of which these lines count::

    0000:4a:03.0 PCI bridge [0604]: Broadcom / LSI PEX890xx [1000:c030] (rev b0) (prog-if 00 [Normal decode])
            NUMA node: 0
            Bus: primary=4a, secondary=4e, subordinate=4e, sec-latency=0
            Capabilities: [68] Express (v2) Downstream Port (Slot+), MSI 00
                    LnkCap: Port #3, Speed 32GT/s, Width x16, ASPM not supported
                    LnkSta: Speed 32GT/s, Width x16
            Capabilities: [148 v1] Access Control Services
                    ACSCtl: SrcValid+ TransBlk- ReqRedir- CmpltRedir- UpstreamFwd+ EgressCtrl- DirectTrans-

The tree is in the bus numbers: a device hangs on the bridge whose secondary bus it is on. Which buses are the roots is
not said: a bus that no bridge leads to is one when what is on it proves it, else the dump lacks bridges.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

from kubeflash.topology.devices import GpuRules, is_nvme
from kubeflash.topology.errors import BadDump
from kubeflash.topology.pasted import unpasted
from kubeflash.topology.pciids import BMC_GRAPHICS, CLASSES, MAKERS, MAKERS_BY_LENGTH
from kubeflash.topology.reading import MOST_DEVICES, address_of, is_vmd, join_vmd_domains, plain, root_complex_of
from kubeflash.topology.server import Facts, Listing
from kubeflash.topology.tree import UNSAID, Acs, Hop, HopKind, Link, PciDevice

_LONGEST_LINE = 16384
_MOST_VIRTUAL_FUNCTIONS = 1 << 20
_REMEDY = "make the dump with lspci -vvv of all devices, as root"

_RECOGNISED = re.compile(
    rb"^(?:Slot:[ \t]*|Device:[ \t]*)?(?:[0-9a-f]{4,8}:)?[0-9a-f]{2}:[0-9a-f]{2}\.[0-7](?:[ /\r]|$)", re.MULTILINE
)
_HEADER = re.compile(r"(?:([0-9a-f]{4,8}):)?([0-9a-f]{2}:[0-9a-f]{2}\.[0-7](?:/[0-9a-f:.]+)*) +(\S.*)")
_SLOT = re.compile(r"(?:([0-9a-f]{4,8}):)?([0-9a-f]{2}:[0-9a-f]{2}\.[0-7](?:/[0-9a-f:.]+)*)")
_STEP = re.compile(r"([0-9a-f]{2}):([01][0-9a-f])\.([0-7])")
_ADDRESS = re.compile(r"[0-9A-Fa-f:]{4,16}\.[0-7]\b")
_AFTER_NAME = re.compile(r" ?\((?:rev|prog-if) [0-9a-f]{2}[) ]")  # some web pages lose the space
_PROG_IF = re.compile(r"\(prog-if ([0-9a-f]{2})[) ]")
_SILENT = "ff"
_NUMBER = re.compile(r"(.*?) ?\[([0-9a-f]{4})\]")
_NUMBERS = re.compile(r"(.*?) ?\[([0-9a-f]{4}):([0-9a-f]{4})\]")
_BARE = re.compile(r"(?:Device )?([0-9a-f]{4}):([0-9a-f]{4})")
_UNNAMED = re.compile(r"(?:Device |Vendor )?([0-9a-f]{4})")
_NODE = re.compile(rb"\bNUMA node ([0-9]{1,9})\b")
_BUSES = re.compile(rb"primary=[0-9a-f]{2}, secondary=([0-9a-f]{2}), subordinate=([0-9a-f]{2})")
_CAPABILITY = re.compile(rb"\[([0-9a-f]{2,3})(?: v[0-9]+)?\] (.*)")
_EXPRESS = re.compile(rb"Express (?:\(v[0-9]+\) )?(.*)")
_SPEED = re.compile(rb"Speed ([0-9]{1,3}(?:\.[0-9])?)GT/s")
_WIDTH = re.compile(rb"Width x([0-9]{1,2})\b")
_VIRTUAL = re.compile(rb"Number of VFs: ([0-9]{1,5})\b")
_SPACING = re.compile(rb"VF offset: ([0-9]{1,5}), stride: ([0-9]{1,5})\b")
_REDIRECTS = re.compile(rb"(?:ReqRedir|CmpltRedir|EgressCtrl)\+")

_PORTS: tuple[tuple[bytes, HopKind], ...] = (
    (b"Root Port", "RootPort"),
    (b"Upstream Port", "SwitchUpstream"),
    (b"Downstream Port", "SwitchDownstream"),
    (b"PCI-Express to PCI/PCI-X Bridge", "Bridge"),
    (b"PCI/PCI-X to PCI-Express Bridge", "Bridge"),
)
_ON_ROOT_BUSES = (b"Root Port", b"Root Complex Integrated Endpoint", b"Root Complex Event Collector")
_NEVER_ON_ROOT_BUSES = (b"Upstream Port", b"Downstream Port", b"PCI-Express to PCI/PCI-X Bridge")

_Bus = tuple[int, int]
"""Domain and bus."""
_Address = tuple[int, int, int, int]


@dataclass(slots=True)
class _Function:
    """One block of the text, as it reads.

    Attributes:
        line: where it starts.
        above: what -PP says is above it, from the top; None without -PP.
        silent: whether it does not answer: all that lspci reads of it is ones.
        details: how many lines it has that are understood.
        secondary: the bus below, of a bridge; 0 when nobody configured it.
        role: what its PCI Express capability says that it is.
        listed: whether any capability is listed, or it is said that there is none.
        unread: whether lspci could not read all of them.
        extended: whether extended capabilities are listed: without root or in a virtual machine they may be hidden.
        has_acs: whether it has Access Control Services, whatever they are set to.
        virtual_functions: how many are switched on, and where: number, offset, stride.
    """

    address: _Address
    line: int
    above: tuple[_Address, ...] | None = None
    vendor: str = ""
    device: str = ""
    kind: str = ""
    interface: str = "00"
    model: str = ""
    driver: str = ""
    numa_node: int | None = None
    silent: bool = False
    details: int = 0
    secondary: int = 0
    subordinate: int = 0
    role: bytes = b""
    listed: bool = False
    unread: bool = False
    extended: bool = False
    has_acs: bool = False
    redirects: bool | None = None
    link: Link = UNSAID
    virtual_functions: tuple[int, int, int] = (0, 0, 0)

    @property
    def name(self) -> str:
        return address_of(*self.address)

    @property
    def bus(self) -> _Bus:
        return self.address[:2]

    @property
    def class_code(self) -> str:
        return self.kind and self.kind + self.interface

    @property
    def is_bridge(self) -> bool:
        return self.secondary != 0 or self.kind == "0604"

    @property
    def port(self) -> HopKind:
        for words, kind in _PORTS:
            if self.role.startswith(words):
                return kind
        # conventional PCI has no PCI Express capability
        return "Bridge" if self.listed and not self.unread and not self.role else "Unknown"

    @property
    def acs(self) -> Acs | None:
        if self.redirects is not None:
            return "Redirect" if self.redirects else "Direct"
        has_none = self.extended and not self.unread and not self.has_acs
        return "Direct" if has_none and self.port in ("RootPort", "SwitchDownstream") else None

    def hop(self) -> Hop:
        return Hop(self.name, self.port, self.link, self.acs)


def recognises(content: bytes) -> bool:
    """Whether it looks like any output of lspci's."""
    return _RECOGNISED.search(content) is not None


def parse(content: bytes) -> Listing:
    """The server that an output of lspci's describes, whatever else is before and after it.

    Raises:
        BadDump: when it is none, lacks what tells who is beside whom, or contradicts itself.
    """
    content = unpasted(content)
    if not recognises(content):
        raise BadDump(f"nothing in it looks like lspci's output: {_REMEDY}")
    reader = _Reader()
    for number, line in enumerate(_lines(content), 1):
        reader.take(number, line)
    functions = reader.settled()
    if not functions or not (reader.has_paths or any(function.details for function in functions.values())):
        raise BadDump("it is lspci's short output, without bus numbers: use lspci -vvv, as root")
    shares = _shares(functions)
    tree = _Tree(functions, shares, has_paths=reader.has_paths, is_machine=reader.is_machine)
    devices = tuple(tree.devices())
    unbound = {function.name for function in functions.values() if function.driver not in ("", "vmd")}
    vmds = [device for device in devices if is_vmd(device) and device.address not in unbound]
    joined, unjoined = join_vmd_domains(devices, vmds)
    return Listing(
        source=reader.source,
        devices=joined,
        facts={function.name: Facts(model=function.model) for function in functions.values() if function.model},
        unsaid=(*_unsaid(functions.values(), reader, tree.lost), *unjoined),
    )


def _lines(content: bytes) -> Iterator[bytes]:
    for number, line in enumerate(content.split(b"\n"), 1):
        if len(line) > _LONGEST_LINE:
            raise BadDump(f"line {number} has {len(line)} bytes: that is not lspci's output")
        yield line


class _Reader:
    """Takes the lines as they come.

    Attributes:
        is_machine: whether it is -vmm.
        is_detailed: whether it is -vv or -vvv, not -v.
        has_paths: whether it is -PP.
        names_only: whether a maker is given in words that are not known.
    """

    def __init__(self) -> None:
        self.is_machine = False
        self.is_detailed = False
        self.has_paths = False
        self.names_only = False
        self._functions: dict[_Address, _Function] = {}
        self._again: list[tuple[_Function, _Function]] = []
        self._open: _Function | None = None
        self._header = ""
        self._after_blank = False
        self._in_machine_record = False
        self._capability = b""
        self._takers: dict[bytes, Callable[[_Function, bytes], bool]] = {
            b"Control": self._take_control,
            b"Flags": self._take_flags,
            b"Status": self._take_status,
            b"NUMA node": self._take_numa_node,
            b"Bus": self._take_buses,
            b"Capabilities": self._take_capability,
            b"LnkCap": self._take_link_capability,
            b"LnkSta": self._take_link_status,
            b"ACSCtl": self._take_acs,
            b"Initial VFs": self._take_virtual_functions,
            b"VF offset": self._take_spacing,
            b"Kernel driver in use": self._take_driver,
        }

    @property
    def source(self) -> str:
        """What was read, in words."""
        return "lspci -vmm" if self.is_machine else "lspci -vvv" if self.is_detailed else "lspci -v"

    def settled(self) -> dict[_Address, _Function]:
        """All functions, by address.

        Raises:
            BadDump: when two have the same one. A short listing before or after the details is no contradiction.
        """
        for earlier, later in self._again:
            detailed, brief = (later, earlier) if later.details else (earlier, later)
            told = zip((brief.kind, brief.vendor, brief.device), (detailed.kind, detailed.vendor, detailed.device))  # noqa: B905
            if brief.details or any(one and other and one != other for one, other in told):
                raise BadDump(
                    f"two devices have the address {later.name} (lines {earlier.line} and {later.line}):"
                    " keep one dump alone"
                )
            self._functions[detailed.address] = detailed
        return self._functions

    def take(self, number: int, line: bytes) -> None:
        """The next line."""
        if not line or line.isspace():
            self._after_blank = True
            return
        after_blank, self._after_blank = self._after_blank, False
        key, _, rest = line.strip().partition(b":")
        indented = line[:1] in b" \t"
        if self._open is not None and self._take_detail(self._open, key, rest.strip(), line.strip(), indented=indented):
            return
        if not indented:
            self._take_start(number, line.decode(errors="replace").strip(), after_blank=after_blank)

    def _take_detail(self, function: _Function, key: bytes, rest: bytes, line: bytes, *, indented: bool) -> bool:
        """A line of a device's block, which web pages may have robbed of its indent; whether it is one."""
        if self._in_machine_record:
            if indented or key not in _FIELDS or (key == b"Device" and _SLOT.fullmatch(rest.decode(errors="replace"))):
                return False
            self._take_field(function, key, rest.decode(errors="replace"))
            return True
        taker = self._takers.get(key)
        if taker is None:
            self._header = "" if indented else self._header
            return False
        self._header = ""
        if taker(function, line if key in _WHOLE else rest):
            function.details += 1
        return True

    def _take_start(self, number: int, text: str, *, after_blank: bool) -> None:
        key, _, rest = text.partition(":")
        slot = _SLOT.fullmatch(rest.strip()) if key in ("Slot", "Device") else None
        if slot is not None:
            self.is_machine = self._in_machine_record = True
            self._open = self._add(number, slot[1], slot[2])
            self._open.details += 1
            return
        header = _HEADER.fullmatch(text)
        if header is not None:
            self._in_machine_record = False
            self._open = self._add(number, header[1], header[2])
            self._header = header[3]
            self._take_header(self._open)
        elif after_blank or _ADDRESS.match(text):
            self._open = None  # something else begins here
        elif self._open is not None and self._header and not (self._open.kind and self._open.vendor):
            self._header = f"{self._header} {text}"[:_LONGEST_LINE]  # mail programs wrap long lines
            self._take_header(self._open)

    def _take_header(self, function: _Function) -> None:
        interface = _PROG_IF.search(self._header)
        kind, _, name = _AFTER_NAME.split(self._header, maxsplit=1)[0].partition(": ")
        function.kind = _class_of(kind)
        function.silent = interface is not None and interface[1] == _SILENT
        function.interface = interface[1] if interface is not None and not function.silent else "00"
        if function.kind == "0108" and (interface is None or function.silent):
            function.interface = ""  # where nobody says which, an SSD is believed to be one
        self._name(function, name)

    def _add(self, number: int, domain: str | None, slots: str) -> _Function:
        steps: list[_Address] = []
        for slot in slots.split("/"):
            step = _STEP.fullmatch(slot)
            if step is None:
                if "/" in slots and ":" not in slot:
                    raise BadDump(f"line {number}: lspci -P leaves out the buses of bridges: use -PP, or neither")
                raise BadDump(f"line {number}: {plain(slot)[:20]!r} is no PCI address such as 4e:00.0")
            steps.append((int(domain or "0", 16), int(step[1], 16), int(step[2], 16), int(step[3], 16)))
        *above, address = steps
        if len(set(steps)) != len(steps):
            raise BadDump(f"line {number}: the path of {address_of(*address)} goes round in a loop")
        if len(self._functions) + len(self._again) >= MOST_DEVICES:
            raise BadDump(f"line {number}: more than {MOST_DEVICES} devices: that is no server")
        self.has_paths = self.has_paths or bool(above)
        function = _Function(address, number, tuple(above))
        earlier = self._functions.setdefault(address, function)
        if earlier is not function:
            self._again.append((earlier, function))
        self._capability = b""
        return function

    def _name(self, function: _Function, name: str) -> None:
        """Takes "NVIDIA Corporation GH100 [H100 SXM5 80GB] [10de:2330]", or as much of it as there is."""
        numbers, bare = _NUMBERS.fullmatch(name), _BARE.fullmatch(name)
        if numbers is not None:
            name, function.vendor, function.device = numbers[1], numbers[2], numbers[3]
        elif bare is not None:
            name, function.vendor, function.device = "", bare[1], bare[2]
        maker = next((known for known in MAKERS_BY_LENGTH if name.startswith(known)), "")
        self._settle_name(function, maker, name[len(maker) :].strip())

    def _settle_name(self, function: _Function, maker: str, model: str) -> None:
        function.vendor = function.vendor or MAKERS.get(maker, "")
        self.names_only = self.names_only or not function.vendor
        unnamed = _UNNAMED.fullmatch(model)
        if unnamed is not None:
            function.device = function.device or unnamed[1]
        elif model != "Device":
            function.model = plain(model)
        if not function.device and function.vendor == "1002":
            function.device = next((number for words, number in BMC_GRAPHICS.items() if words in model), "")

    def _take_field(self, function: _Function, key: bytes, text: str) -> None:
        """A line of -vmm."""
        if key == b"Class":
            function.kind = _class_of(text)
        elif key == b"Vendor":
            function.vendor = _number_of(text)[1] or MAKERS.get(text, "")
        elif key == b"Device":
            name, function.device = _number_of(text)
            self._settle_name(function, "", name)
        elif key == b"ProgIf" and re.fullmatch("[0-9a-f]{2}", text):
            function.interface = text
        elif key == b"NUMANode":
            self._take_numa_node(function, text.encode())
        elif key == b"Driver":
            function.driver = plain(text)

    def _take_control(self, _function: _Function, _text: bytes) -> bool:
        self.is_detailed = True
        return True

    def _take_status(self, function: _Function, text: bytes) -> bool:
        function.listed = function.listed or text.startswith(b"Cap-")
        return True

    def _take_flags(self, function: _Function, text: bytes) -> bool:
        """A line of -v, which says in one what -vvv says in several."""
        node = _NODE.search(text)
        if node is not None:
            self._take_numa_node(function, node[1])
        return True

    def _take_numa_node(self, function: _Function, text: bytes) -> bool:
        if text.isdigit() and len(text) < 10:
            function.numa_node = int(text)
        return True

    def _take_buses(self, function: _Function, text: bytes) -> bool:
        buses = _BUSES.match(text)
        if buses is not None:
            function.secondary, function.subordinate = int(buses[1], 16), int(buses[2], 16)
        return buses is not None

    def _take_capability(self, function: _Function, text: bytes) -> bool:
        capability = _CAPABILITY.match(text)
        if capability is None:
            function.unread = True  # <access denied>
            return True
        function.listed = True
        function.extended = function.extended or len(capability[1]) > 2
        function.unread = function.unread or capability[2].startswith((b"<chain", b"<unreadable"))
        self._capability = capability[2]
        express = _EXPRESS.match(capability[2])
        if express is not None:
            function.role = express[1]
        elif capability[2].startswith(b"Access Control Services"):
            function.has_acs = True
        return True

    def _take_link_capability(self, function: _Function, text: bytes) -> bool:
        speed, width = _link(text)
        function.link = replace(function.link, max_speed=speed, max_width=width)
        return True

    def _take_link_status(self, function: _Function, text: bytes) -> bool:
        speed, width = _link(text)
        # no lanes is no link: what it says of its speed is left over
        function.link = replace(function.link, speed=speed if width else None, width=width)
        return True

    def _take_acs(self, function: _Function, text: bytes) -> bool:
        function.redirects = _REDIRECTS.search(text) is not None
        return True

    def _take_virtual_functions(self, function: _Function, text: bytes) -> bool:
        count = _VIRTUAL.search(text)
        if count is not None and self._capability.startswith(b"Single Root I/O Virtualization"):
            function.virtual_functions = (int(count[1]), 0, 0)
        return True

    def _take_spacing(self, function: _Function, text: bytes) -> bool:
        spacing = _SPACING.search(text)
        if spacing is not None:
            function.virtual_functions = (function.virtual_functions[0], int(spacing[1]), int(spacing[2]))
        return True

    def _take_driver(self, function: _Function, text: bytes) -> bool:
        function.driver = plain(text.decode(errors="replace"))
        return False  # `lspci -k` says it too


_WHOLE = frozenset({b"Initial VFs", b"VF offset"})
"""Lines that hold several things: read as a whole."""
_FIELDS = frozenset(
    b"Class Vendor Device SVendor SDevice PhySlot Rev ProgIf Driver Module NUMANode DTNode IOMMUGroup".split()
)
"""What the lines of a record of -vmm are called, but for its first."""


def _class_of(text: str) -> str:
    """The class, four digits, out of "3D controller", "3D controller [0302]" or "0302"; empty when it is not known."""
    words, number = _number_of(text)
    return number or CLASSES.get(words, "")


def _number_of(text: str) -> tuple[str, str]:
    """The name and the number in "NVIDIA Corporation [10de]", "Device 2330", or "2330"; empty where it has none."""
    number, unnamed = _NUMBER.fullmatch(text), _UNNAMED.fullmatch(text)
    if number is not None:
        return number[1], number[2]
    return ("", unnamed[1]) if unnamed is not None else (text, "")


def _link(text: bytes) -> tuple[float | None, int | None]:
    """GT/s and lanes; None where it says unknown or none."""
    speed, width = _SPEED.search(text), _WIDTH.search(text)
    lanes = int(width[1]) if width is not None else 0
    return (float(speed[1]) if speed is not None else None), lanes or None


def _shares(functions: dict[_Address, _Function]) -> dict[_Address, _Address]:
    """Which functions are virtual ones, and of which (PCI Express Base Specification, 9.3.3.8: routing ids)."""
    owners: dict[_Address, _Address] = {}
    budget = _MOST_VIRTUAL_FUNCTIONS
    for owner, function in functions.items():
        count, offset, stride = function.virtual_functions
        if count == 0 or offset == 0:
            continue
        budget -= count
        if budget < 0:
            raise BadDump(f"line {function.line}: more SR-IOV functions are counted up than there can be")
        domain, bus, slot, number = owner
        first = (bus << 8 | slot << 3 | number) + offset
        for routing_id in range(first, min(first + count * stride, 0x10000), stride) if stride else (first,):
            share = (domain, routing_id >> 8, routing_id >> 3 & 0x1F, routing_id & 7)
            if share in functions:
                owners[share] = owner
    return owners


@dataclass(frozen=True, slots=True)
class _Way:
    """How a bus is reached.

    Attributes:
        root: the root bus; None when bridges are missing in between.
        path: from there.
        numa_node: of the nearest bridge that says.
    """

    root: int | None
    path: tuple[Hop, ...]
    numa_node: int | None


class _Tree:
    """Puts functions where their bus numbers, or the paths of -PP, say that they are.

    Attributes:
        lost: how many are nowhere.
    """

    def __init__(
        self,
        functions: dict[_Address, _Function],
        shares: dict[_Address, _Address],
        *,
        has_paths: bool,
        is_machine: bool,
    ) -> None:
        self.functions = functions
        self.shares = shares
        self.has_paths = has_paths
        self.is_machine = is_machine
        self.lost = 0
        self._above: dict[_Bus, _Function] = {}
        self._bridges: dict[int, list[_Function]] = {}
        self._ways: dict[_Bus, _Way] = {}
        self._hops: dict[_Address, Hop] = {}
        self._paths: dict[tuple[_Address, ...], tuple[tuple[Hop, ...], int | None]] = {}
        if not is_machine and not has_paths:
            self._connect()
        self._roots = self._root_buses()

    def devices(self) -> Iterator[PciDevice]:
        """All of them.

        Raises:
            BadDump: when a GPU or an SSD is nowhere.
        """
        if not self._above and not self.has_paths and not self.is_machine:
            for function in self.functions.values():
                if function.bus not in self._roots and function.address not in self.shares:
                    raise BadDump(f"it lists no bridges, and {function.name} is behind some: {_REMEDY}")
        for address, function in self.functions.items():
            owner = self.shares.get(address)
            way = self._way(function if owner is None else self.functions[owner])
            numa_node = function.numa_node
            if numa_node is None and owner is not None:
                numa_node = self.functions[owner].numa_node
            found = PciDevice(
                address=function.name,
                vendor=function.vendor,
                device=function.device,
                class_code=function.class_code,
                numa_node=way.numa_node if numa_node is None else numa_node,
                root_complex="" if way.root is None else root_complex_of(address[0], way.root),
                path=None if way.root is None else way.path,
                link=UNSAID if function.is_bridge else function.link,
                physical_function="" if owner is None else address_of(*owner),
            )
            if way.root is None:
                self.lost += 1
                if not self.is_machine and (
                    is_nvme(found) or GpuRules().accept(found.vendor, found.device, found.class_code)
                ):
                    raise BadDump(f"a bridge above {found.address} (line {function.line}) is missing: {_REMEDY}")
            yield found

    def _connect(self) -> None:
        for function in self.functions.values():
            if function.secondary == 0:
                continue
            domain, bus = function.bus
            below = (domain, function.secondary)
            other = self._above.setdefault(below, function)
            if other is not function:
                raise BadDump(
                    f"two bridges lead to bus {function.secondary:02x}: {other.name} (line {other.line}) and"
                    f" {function.name} (line {function.line}): keep one dump alone"
                )
            if function.secondary == bus:
                raise BadDump(f"the buses go round in a loop at {function.name} (line {function.line})")
            self._bridges.setdefault(domain, []).append(function)

    def _root_buses(self) -> set[_Bus]:
        """The buses that no listed bridge leads to and that are a host bridge's own, as what is on them tells."""
        on_bus: dict[_Bus, list[_Function]] = {}
        for function in self.functions.values():
            if function.bus not in self._above:
                on_bus.setdefault(function.bus, []).append(function)
        buses: dict[int, set[int]] = {}
        for function in self.functions.values():
            buses.setdefault(function.address[0], set()).add(function.address[1])
        return {
            bus
            for bus, there in on_bus.items()
            if self._is_root(bus, there) or (self._is_partition_s(bus, there) and len(buses[bus[0]]) == 1)
        }

    @staticmethod
    def _is_partition_s(bus: _Bus, there: list[_Function]) -> bool:
        """Whether it looks like a slot of a partition on POWER: a domain each, such as 0524:28, without any bridge.

        Bus 1 is behind the root port that every real server has on bus 0 of such a domain.
        """
        domain, number = bus
        return 0 < domain <= 0xFFFF and number > 1 and not any(function.is_bridge for function in there)

    def _is_root(self, bus: _Bus, there: list[_Function]) -> bool:
        if bus[1] == 0 or any(
            function.kind == "0600" or function.role.startswith(_ON_ROOT_BUSES) for function in there
        ):
            return True
        if any(bridge.secondary <= bus[1] <= bridge.subordinate for bridge in self._bridges.get(bus[0], ())):
            return False  # a bridge in between is missing
        bridges = [function for function in there if function.is_bridge]
        if bridges:
            return not any(function.role.startswith(_NEVER_ON_ROOT_BUSES) for function in bridges)
        # At the end of a link there is device 0 alone, but for shares. (Clouds show cards on bare root buses.)
        return any(function.address[2] > 0 for function in there) and not any(
            function.address in self.shares or function.virtual_functions[0] for function in there
        )

    def _way(self, function: _Function) -> _Way:
        if self.has_paths:
            return self._given_way(function)
        if self.is_machine:
            return _Way(None, (), None)
        return self._way_to(function.bus)

    def _given_way(self, function: _Function) -> _Way:
        above = function.above or ()
        if above not in self._paths:
            nodes = [self.functions[step].numa_node for step in above if step in self.functions]
            node = next((node for node in reversed(nodes) if node is not None), None)
            self._paths[above] = tuple(self._hop(step) for step in above), node
        path, node = self._paths[above]
        return _Way((*above, function.address)[0][1], path, node)

    def _hop(self, address: _Address) -> Hop:
        if address not in self._hops:
            function = self.functions.get(address)
            self._hops[address] = Hop(address_of(*address)) if function is None else function.hop()
        return self._hops[address]

    def _way_to(self, bus: _Bus) -> _Way:
        climbed: dict[_Bus, _Function] = {}
        while bus not in self._ways:
            bridge = self._above.get(bus)
            if bridge is None:
                self._ways[bus] = _Way(bus[1] if bus in self._roots else None, (), None)
                break
            if bus in climbed:
                raise BadDump(f"the buses go round in a loop at {bridge.name} (line {bridge.line})")
            climbed[bus] = bridge
            bus = bridge.bus
        way = self._ways[bus]
        for below, bridge in reversed(climbed.items()):
            node = way.numa_node if bridge.numa_node is None else bridge.numa_node
            way = self._ways[below] = _Way(way.root, (*way.path, self._hop(bridge.address)), node)
        return way


def _unsaid(functions: Iterable[_Function], reader: _Reader, lost: int) -> list[str]:
    functions = list(functions)
    said = ["lspci does not say which socket a device is attached to: NUMA nodes stand for sockets."]
    if not any(function.numa_node is not None for function in functions):
        said.append("No NUMA node is said: the kernel has just one, or the firmware does not tell.")
    if reader.is_machine:
        said.append("lspci -vmm says neither links nor ACS nor shares (SR-IOV): use lspci -vvv, as root.")
        if not reader.has_paths:
            said.append("lspci -vmm does not say what is above a device: use lspci -vvv, as root.")
    elif any(function.unread for function in functions):
        said.append("Kinds of ports, links, ACS and shares (SR-IOV) are not said for all: use lspci -vvv, as root.")
    elif not reader.is_detailed:
        said.append("lspci -v says neither links nor ACS settings nor shares (SR-IOV): use lspci -vvv, as root.")
    if reader.names_only:
        said.append("Not all makers are known by the name that lspci gives: use lspci -vvvnn for numbers.")
    if lost and not reader.is_machine:
        said.append(f"The bridges above {lost} of {len(functions)} PCI devices are missing.")
    silent = [function.name for function in functions if function.silent]
    if silent:
        said.append(f"{len(silent)} devices do not answer, {silent[0]} among them: off the bus, or asleep.")
    last = max(functions, key=lambda function: function.address)
    beyond = sum(last.bus < (function.address[0], function.secondary) for function in functions)
    if beyond:
        said.append(
            f"Nothing is listed beyond {last.name}, though bridges lead there ({beyond}): their slots are empty, or the"
            " text is cut off."
        )
    return said
