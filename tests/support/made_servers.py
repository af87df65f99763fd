"""Servers out of `tests/fixtures`: made-up ones (`servers/*.yaml`) as every source would show them, and captured ones.

A made-up server is described once, as its owner would, and written as a folder shaped like / (`write_sysfs`), as text
of lspci (`lspci`, `lspci_vmm`) and as XML of hwloc (`hwloc`)::

    sockets: [[0], [1]]                   # NUMA nodes of each; [[0, 1, 2, 3]] is one socket in four
    roots:                                # host bridges
      - bus: 0x10
        node: 0                           # left out: the firmware does not say it
        devices: [{vga: bmc}]             # on the root bus itself, each with `at: "05.5"` if it matters
        ports:                            # a root port each
          - switch:                       # a port each
              - {gpu: g0}
              - {ssd: A0}
              - {switch: [{nic: n0}]}     # nested
          - functions: [[{gpu: g1}], [{ssd: A1}]]   # a switch whose upstream port has two functions
          - {empty: E0}
    expect: {g0: {A0: PIX, "*": PXB}}     # of each GPU: SSDs by name (* for any), the first that fits counts

Of a device or switch behind a port, `max: 32x4` says what it can do (GT/s x lanes), `slot: 16x4` what the port can do,
`link: 16x2` what they agreed upon (by default the best of both), `acs: redirect` how the port is set (`off`; `none`: it
has none); `shown: 2` makes it two functions, `shares: 2` gives it two SR-IOV functions. A VMD is a device on a root
bus: `{vmd: v0, at: "05.5", domain: 0x10000, bus: 0xe0, ports: [...]}`.
Bus numbers are given out depth first, as Linux does.
"""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

import yaml

from capture import lay_out
from kubeflash.host.root import HostRoot
from support.sysfs_builder import (
    DOWNSTREAM,
    ENDPOINT,
    INTEGRATED_ENDPOINT,
    ROOT_PORT,
    TO_PCI,
    UPSTREAM,
    MadeUpServer,
)

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
CAPTURED = FIXTURES / "captured"
CPUS_PER_NODE = 2
SSD_SECTORS = 7_501_476_528  # 3.84 TB
_DEFAULTS = {"gpu": "32x16", "ssd": "32x4", "nic": "32x16", "switch": "32x16", "vga": "5x1"}
_RATES = {2.5: 1, 5.0: 2, 8.0: 3, 16.0: 4, 32.0: 5, 64.0: 6}

Speed = tuple[float, int]
"""GT/s a lane, and lanes."""


@dataclass(frozen=True)
class Kind:
    """What functions of one kind say that they are, in numbers and in the words of pci.ids."""

    vendor: str
    device: str
    class_code: str
    maker: str
    model: str
    class_name: str
    interface: str = ""
    rev: int = 0


_BRIDGE = ("060400", "PCI bridge", "Normal decode")
_INTEL, _AMD, _LSI = "Intel Corporation", "Advanced Micro Devices, Inc. [AMD]", "Broadcom / LSI"


def _bridge(vendor: str, device: str, maker: str, model: str, rev: int = 0) -> Kind:
    return Kind(vendor, device, _BRIDGE[0], maker, model, *_BRIDGE[1:], rev=rev)


KINDS = {
    "gpu": Kind("10de", "2330", "030200", "NVIDIA Corporation", "GH100 [H100 SXM5 80GB]", "3D controller", rev=0xA1),
    "gpu-v100": Kind(
        "10de", "1db8", "030200", "NVIDIA Corporation", "GV100GL [Tesla V100 SXM3 32GB]", "3D controller", rev=0xA1
    ),
    "gpu-mi300x": Kind(
        "1002",
        "74a1",
        "120000",
        "Advanced Micro Devices, Inc. [AMD/ATI]",
        "Aqua Vanjaram [Instinct MI300X]",
        "Processing accelerators",
    ),
    "ssd": Kind(
        "144d",
        "a824",
        "010802",
        "Samsung Electronics Co Ltd",
        "NVMe SSD Controller PM173X",
        "Non-Volatile memory controller",
        "NVM Express",
    ),
    "nic": Kind(
        "15b3", "1021", "020700", "Mellanox Technologies", "MT2910 Family [ConnectX-7]", "Infiniband controller"
    ),
    "vga": Kind(
        "1a03",
        "2000",
        "030000",
        "ASPEED Technology, Inc.",
        "ASPEED Graphics Family",
        "VGA compatible controller",
        "VGA controller",
        rev=0x52,
    ),
    "vga-bridge": _bridge("1a03", "1150", "ASPEED Technology, Inc.", "AST1150 PCI-to-PCI Bridge", 6),
    "vmd": Kind(
        "8086", "28c0", "010400", _INTEL, "Volume Management Device NVMe RAID Controller", "RAID bus controller", rev=4
    ),
    "switch": _bridge("1000", "c030", _LSI, "PEX890xx PCIe Gen 5 Switch", 0xB0),
    "intel-port": _bridge("8086", "352a", _INTEL, "Device 352a", 4),
    "amd-port": _bridge("1022", "1483", _AMD, "Starship/Matisse GPP Bridge"),
    "intel-root": Kind("8086", "09a2", "088000", _INTEL, "Ice Lake Memory Map/VT-d", "System peripheral", rev=4),
    "amd-root": Kind("1022", "1482", "060000", _AMD, "Starship/Matisse PCIe Dummy Host Bridge", "Host bridge"),
}


@dataclass
class Function:
    """One function of a PCI device, in its place.

    Attributes:
        name: of the device in the description; empty of what the description does not name.
        node: NUMA node; None: the firmware does not say.
        above: the bridge above it; None on a root bus.
        host: names of the host bridges above it in sysfs and, behind a VMD, of the VMD: what its path starts with.
        root_complex: the host bridge that it hangs on; of a device behind a VMD that of the VMD.
        port_type: as in its PCI Express capability; None: conventional PCI.
        trained: what its link runs at; of a port the one below it.
        best: what its own end of the link can do.
        acs: redirect, off or none.
        buses: below it, from and to; (0, 0) when it is no bridge.
        several: whether its device has further functions.
        owner: what it is a share of (an SR-IOV virtual function).
        shares: how many it has itself.
    """

    kind: Kind
    domain: int
    bus: int
    slot: int
    number: int
    name: str
    what: str
    node: int | None
    above: Function | None
    host: str
    root_complex: str
    port_type: int | None
    trained: Speed | None = None
    best: Speed | None = None
    acs: str = "none"
    buses: tuple[int, int] = (0, 0)
    several: bool = False
    owner: Function | None = None
    shares: int = 0
    below: list[Function] = field(default_factory=list)

    @property
    def address(self) -> str:
        return f"{self.domain:04x}:{self.bus:02x}:{self.slot:02x}.{self.number}"

    @property
    def path(self) -> str:
        """Its folder below /sys/devices."""
        return f"{self.above.path if self.above else self.host}/{self.address}"

    @property
    def is_bridge(self) -> bool:
        return self.buses != (0, 0)

    @property
    def chain(self) -> list[Function]:
        """The bridges above it, from the top; a VMD is none."""
        return [*self.above.chain, self.above] if self.above else []


@dataclass
class HostBridge:
    """A root bus and all that is on it and below."""

    domain: int
    bus: int
    last: int
    node: int | None
    on_bus: list[Function]


@dataclass
class Made:
    """A made-up server.

    Attributes:
        functions: all of them, in the order of their addresses.
        expected: GPU's name → SSD's name → distance, as the description says by hand.
    """

    name: str
    sockets: list[list[int]]
    hosts: list[HostBridge]
    functions: list[Function]
    expected: dict[str, dict[str, str]]

    def named(self, what: str) -> dict[str, Function]:
        """GPUs ("gpu"), SSDs ("ssd") … by name, in the order of their addresses."""
        return {function.name: function for function in self.functions if function.what == what}

    @property
    def nodes(self) -> list[int]:
        return [node for socket in self.sockets for node in socket]

    def cpus(self, node: int | None) -> list[int]:
        """The processors of a node; all, when it is not said which."""
        nodes = range(len(self.nodes)) if node is None else [self.nodes.index(node)]
        return [cpu for place in nodes for cpu in range(place * CPUS_PER_NODE, (place + 1) * CPUS_PER_NODE)]


def made_names() -> list[str]:
    """Names of the made-up servers."""
    return sorted(path.stem for path in (FIXTURES / "servers").glob("*.yaml"))


def captured_names() -> list[str]:
    """Names of the captured servers."""
    return sorted(path.name for path in CAPTURED.iterdir() if path.is_dir())


@lru_cache
def made(name: str) -> Made:
    """A made-up server; not to be changed."""
    return build(name, yaml.safe_load((FIXTURES / "servers" / f"{name}.yaml").read_text()))


def write_captured(name: str, folder: Path) -> HostRoot:
    """Lays the files of a captured server out below a folder."""
    lay_out(json.loads((CAPTURED / name / "sysfs.json").read_text()), folder)
    return HostRoot(folder)


# --- placing ---


def build(name: str, document: Mapping[str, Any]) -> Made:
    """The server that a description describes."""
    placer = _Placer(document)
    functions = sorted(placer.functions, key=lambda one: (one.domain, one.bus, one.slot, one.number))
    names = [function.name for function in functions if function.name and function.number == 0]
    assert len(names) == len(set(names)), f"{name}: a name is used twice"
    server = Made(name, document["sockets"], placer.hosts, functions, {})
    ssds = list(server.named("ssd"))
    for gpu in server.named("gpu"):
        rules = document["expect"][gpu]
        row: dict[str, str] = {}
        for ssd in ssds:
            row[ssd] = next(said for pattern, said in rules.items() if fnmatch.fnmatchcase(ssd, str(pattern)))
        server.expected[gpu] = row
    return server


class _Placer:
    """Gives devices their addresses."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self.functions: list[Function] = []
        self.hosts: list[HostBridge] = []
        self.flavour = document.get("flavour", "intel")
        self.first_port = document.get("first_port", 1)  # its device number on the root bus
        self.gpu = KINDS[document.get("gpus", "gpu")]
        self.acs = document.get("acs", "off")
        self.next = 0
        for root in document["roots"]:
            self._host(root, root.get("domain", 0), root.get("node"), "", "")

    def _host(self, root: Mapping[str, Any], domain: int, node: int | None, above: str, root_complex: str) -> None:
        bus, own = root["bus"], f"pci{domain:04x}:{root['bus']:02x}"
        place = {"domain": domain, "bus": bus, "node": node, "above": None, "host": f"{above}{own}"}
        place["root_complex"] = root_complex or own
        on_bus: list[Function] = []
        self.next = bus + 1
        if not above and root.get("host_bridge", True):
            kind = KINDS[f"{self.flavour}-root"]
            on_bus.append(self._add(kind, "root", "", slot=0, number=0, port_type=INTEGRATED_ENDPOINT, **place))
        vmds = []
        for index, device in enumerate(root.get("devices", []), 1):
            slot, number = (int(part, 16) for part in device.get("at", f"{0x10 + index:02x}.0").split("."))
            what = next(key for key in (*_DEFAULTS, "vmd") if key in device)
            kind = self.gpu if what == "gpu" else KINDS[what]
            function = self._add(
                kind, what, device[what], slot=slot, number=number, port_type=INTEGRATED_ENDPOINT, **place
            )
            if what in ("gpu", "ssd"):
                function.port_type = ENDPOINT  # so it looks in a virtual machine
                function.best = function.trained = _speed(device.get("max", _DEFAULTS[what]))
            on_bus.append(function)
            if what == "vmd":
                vmds.append((device, function))
        for index, below in enumerate(root.get("ports", [])):
            # Intel: a device a port; AMD: functions 1 and up of few devices, function 0 being a dummy
            slot, number = (index + self.first_port, 0) if self.flavour == "intel" else (1 + index // 7, 1 + index % 7)
            kind = KINDS[f"{self.flavour}-port"]
            port = self._add(kind, "port", "", slot=slot, number=number, port_type=ROOT_PORT, **place)
            on_bus.append(port)
            self._behind(port, below)
        self.hosts.append(HostBridge(domain, bus, self.next - 1, node, on_bus))
        for device, function in vmds:
            self._host(device, device["domain"], node, f"{function.path}/", place["root_complex"])

    def _add(self, kind: Kind, what: str, name: str, **place: Any) -> Function:
        function = Function(kind=kind, what=what, name=name, **place)
        if function.above is not None:
            function.above.below.append(function)
        self.functions.append(function)
        return function

    def _behind(self, port: Function, below: Mapping[str, Any]) -> None:
        """What is behind a port, and the numbers of the buses that it takes."""
        first = self.next
        self.next += 1
        port.buses = first, first
        port.acs = below.get("acs", self.acs)
        what = "switch" if "functions" in below else next(key for key in (*_DEFAULTS, "empty") if key in below)
        if what == "empty":
            port.best = _speed(below.get("slot", _DEFAULTS["switch"]))
            return
        end = _speed(below.get("max", _DEFAULTS[what]))
        port.best = _speed(below["slot"]) if "slot" in below else end
        trained = _speed(below["link"]) if "link" in below else (min(end[0], port.best[0]), min(end[1], port.best[1]))
        port.trained = trained
        place = {"domain": port.domain, "bus": first, "slot": 0, "node": port.node, "above": port, "host": port.host}
        place["root_complex"] = port.root_complex
        link = {"trained": trained, "best": end}
        if what == "switch":
            for number, inside in enumerate(below.get("functions", [below.get("switch")])):
                upstream = self._add(KINDS["switch"], "", "", number=number, port_type=UPSTREAM, **place, **link)
                upstream.several = "functions" in below
                inner = self.next
                self.next += 1
                for slot, device in enumerate(inside):
                    downstream = self._add(
                        KINDS["switch"],
                        "port",
                        "",
                        **{**place, "bus": inner, "slot": slot, "above": upstream},
                        number=0,
                        port_type=DOWNSTREAM,
                    )
                    self._behind(downstream, device)
                upstream.buses = inner, self.next - 1
        elif what == "vga":
            bridge = self._add(KINDS["vga-bridge"], "", "", number=0, port_type=TO_PCI, **place, **link)
            bridge.buses = self.next, self.next
            self.next += 1
            inner_place = {**place, "bus": bridge.buses[0], "above": bridge}
            self._add(KINDS["vga"], "vga", below[what], number=0, port_type=None, **inner_place)
        else:
            kind = self.gpu if what == "gpu" else KINDS[what]
            for number in range(below.get("shown", 1)):  # `shown: 2`: a device of two functions
                function = self._add(kind, what, below[what], number=number, port_type=ENDPOINT, **place, **link)
                function.several = below.get("shown", 1) > 1
                function.name = below[what] if number == 0 else f"{below[what]}.{number}"
            function.shares = below.get("shares", 0)
            for number in range(1, function.shares + 1):  # its link is its owner's: it says nothing of one
                share = self._add(kind, "share", f"{below[what]}/{number}", number=number, port_type=ENDPOINT, **place)
                share.owner = function
        port.buses = first, self.next - 1


def _speed(text: str) -> Speed:
    rate, _, lanes = text.partition("x")
    return float(rate), int(lanes)


# --- sysfs ---


def config_of(function: Function) -> bytes:
    """Its configuration space: 4096 bytes, 256 of conventional PCI."""
    content = bytearray(256 if function.port_type is None else 4096)

    def put(offset: int, value: int, length: int) -> None:
        content[offset : offset + length] = value.to_bytes(length, "little")

    kind = function.kind
    put(0x00, int(kind.vendor, 16), 2)
    put(0x02, int(kind.device, 16), 2)
    put(0x04, 0x0006, 2)
    put(0x06, 0x0010, 2)
    put(0x08, kind.rev, 1)
    put(0x09, int(kind.class_code, 16) & 0xFF, 1)
    put(0x0A, int(kind.class_code, 16) >> 8, 2)
    put(0x0E, (0x80 if function.several else 0) | (1 if function.is_bridge else 0), 1)
    if function.is_bridge:
        put(0x18, function.bus, 1)
        put(0x19, function.buses[0], 1)
        put(0x1A, function.buses[1], 1)
    put(0x34, 0x40, 1)
    put(0x40, 0x01, 1)  # power management; PCI Express follows
    put(0x42, 0x0003, 2)
    if function.port_type is None:
        return bytes(content)
    put(0x41, 0x60, 1)
    put(0x60, 0x10, 1)
    put(0x62, function.port_type << 4 | 2 | (0x100 if function.port_type in (ROOT_PORT, DOWNSTREAM) else 0), 2)
    if function.best is not None:
        put(0x6C, _RATES[function.best[0]] | function.best[1] << 4, 4)
        put(0x8C, ((1 << _RATES[function.best[0]]) - 1) << 1, 4)  # all speeds up to it
    if function.trained is not None:
        put(0x72, _RATES[function.trained[0]] | function.trained[1] << 4, 2)
    has_acs = function.acs != "none"
    put(0x100, 0x0001 | 2 << 16 | (0x148 if has_acs or function.shares else 0) << 20, 4)  # advanced error reporting
    if has_acs:
        put(0x148, 0x000D | 1 << 16, 4)
        put(0x14C, 0x005F, 2)
        put(0x14E, 0x001D if function.acs == "redirect" else 0, 2)  # SrcValid, ReqRedir, CmpltRedir, UpstreamFwd
    if function.shares:
        put(0x148, 0x0010 | 1 << 16, 4)
        put(0x150, 0x0001, 2)  # switched on
        for offset, value in ((0x154, function.shares), (0x156, function.shares), (0x158, function.shares)):
            put(offset, value, 2)
        put(0x15C, 1, 2)  # the first share's number after its owner's, and the next one's after that
        put(0x15E, 1, 2)
        put(0x162, int(kind.device, 16), 2)
    return bytes(content)


def write_sysfs(server: Made, folder: Path) -> HostRoot:
    """Writes a server as a folder shaped like /."""
    out = MadeUpServer(folder)
    out.write("proc/sys/kernel/hostname", f"{server.name}\n")
    _write_processors(server, out)
    serial = 0
    for function in server.functions:
        kind, sys = function.kind, f"sys/devices/{function.path}"
        if function.what == "ssd":
            serial += 1
            out.ssd(function.path, f"S{serial:03}{function.name}", numa=function.node)
        else:
            out.pci(function.path, kind.vendor, kind.device, kind.class_code, numa=function.node)
        cpus = server.cpus(function.node)
        attributes = {
            "vendor": f"0x{kind.vendor}",
            "device": f"0x{kind.device}",
            "class": f"0x{kind.class_code}",
            "revision": f"0x{kind.rev:02x}",
            "subsystem_vendor": "0x0000",
            "subsystem_device": "0x0000",
            "local_cpus": f"{_mask(cpus):x}",
            "local_cpulist": f"{cpus[0]}-{cpus[-1]}",
            # lspci, told to read this folder, insists on these two
            "irq": "0",
            "resource": "\n".join(["0x0000000000000000 0x0000000000000000 0x0000000000000000"] * 7),
        }
        if function.owner is not None:
            (folder / sys / "physfn").symlink_to(f"../{function.owner.address}")
        if function.is_bridge:
            attributes["secondary_bus_number"], attributes["subordinate_bus_number"] = map(str, function.buses)
        if function.best is not None:
            attributes["max_link_speed"], attributes["max_link_width"] = _gts(function.best[0]), str(function.best[1])
            now = function.trained or (2.5, 0)  # what the kernel shows of an empty slot
            attributes["current_link_speed"], attributes["current_link_width"] = _gts(now[0]), str(now[1])
        for name, value in attributes.items():
            out.write(f"{sys}/{name}", f"{value}\n")
        out.write(f"{sys}/config", config_of(function))
    return out.root


def _write_processors(server: Made, out: MadeUpServer) -> None:
    count = len(server.nodes)
    out.numa("0" if count == 1 else f"0-{count - 1}")
    for node in server.nodes:
        cpus = server.cpus(node)
        out.write(f"sys/devices/system/node/node{node}/cpulist", f"{cpus[0]}-{cpus[-1]}\n")
        out.write(f"sys/devices/system/node/node{node}/cpumap", f"{_mask(cpus):x}\n")
        distances = " ".join("10" if other == node else "20" for other in server.nodes)
        out.write(f"sys/devices/system/node/node{node}/distance", f"{distances}\n")
        out.write(f"sys/devices/system/node/node{node}/meminfo", f"Node {node} MemTotal:       1048576 kB\n")
    for name in ("online", "possible", "present"):
        out.write(f"sys/devices/system/cpu/{name}", f"0-{count * CPUS_PER_NODE - 1}\n")
    for package, nodes in enumerate(server.sockets):
        packaged = [cpu for node in nodes for cpu in server.cpus(node)]
        for core, cpu in enumerate(packaged):
            topology = {
                "physical_package_id": str(package),
                "die_id": "0",
                "core_id": str(core),
                "package_cpus": f"{_mask(packaged):x}",
                "package_cpus_list": f"{packaged[0]}-{packaged[-1]}",
                "core_siblings": f"{_mask(packaged):x}",
                "core_siblings_list": f"{packaged[0]}-{packaged[-1]}",
                "core_cpus": f"{1 << cpu:x}",
                "thread_siblings": f"{1 << cpu:x}",
                "core_cpus_list": str(cpu),
                "thread_siblings_list": str(cpu),
            }
            for name, value in topology.items():
                out.write(f"sys/devices/system/cpu/cpu{cpu}/topology/{name}", f"{value}\n")


def _mask(numbers: list[int]) -> int:
    return sum(1 << number for number in numbers)


def _gts(rate: float) -> str:
    return f"{rate:.1f} GT/s PCIe"


# --- lspci ---

_ROLES = {
    ENDPOINT: "Endpoint, MSI 00",
    ROOT_PORT: "Root Port (Slot+), MSI 00",
    UPSTREAM: "Upstream Port, MSI 00",
    DOWNSTREAM: "Downstream Port (Slot+), MSI 00",
    TO_PCI: "PCI-Express to PCI/PCI-X Bridge, MSI 00",
    INTEGRATED_ENDPOINT: "Root Complex Integrated Endpoint, MSI 00",
}


def lspci(server: Made, *, numbers: bool) -> bytes:
    """What `lspci -vvv` prints, with `numbers` -vvvnn, as root: the lines that say something of the tree."""
    return "".join(_lspci_block(server, function, numbers=numbers) for function in server.functions).encode()


def _lspci_block(server: Made, function: Function, *, numbers: bool) -> str:
    kind = function.kind
    class_name = f"{kind.class_name} [{kind.class_code[:4]}]" if numbers else kind.class_name
    name = f"{kind.maker} {kind.model}"
    if numbers:
        unnamed = kind.model == f"Device {kind.device}"
        name = f"{f'{kind.maker} Device' if unnamed else name} [{kind.vendor}:{kind.device}]"
    rev = f" (rev {kind.rev:02x})" if kind.rev else ""
    interface = f" (prog-if {kind.class_code[4:]} [{kind.interface}])" if kind.interface else ""
    lines = [
        f"{_lspci_address(server, function)} {class_name}: {name}{rev}{interface}",
        "\tControl: I/O- Mem+ BusMaster+ SpecCycle- MemWINV- VGASnoop- ParErr- Stepping- SERR- FastB2B- DisINTx-",
        "\tStatus: Cap+ 66MHz- UDF- FastB2B- ParErr- DEVSEL=fast >TAbort- <TAbort- <MAbort- >SERR- <PERR- INTx-",
        "\tLatency: 0",
    ]
    if function.node is not None:
        lines.append(f"\tNUMA node: {function.node}")
    if function.is_bridge:
        first, last = function.buses
        lines.append(f"\tBus: primary={function.bus:02x}, secondary={first:02x}, subordinate={last:02x}, sec-latency=0")
    lines.append("\tCapabilities: [40] Power Management version 3")
    if function.port_type is not None:
        lines.append(f"\tCapabilities: [60] Express (v2) {_ROLES[function.port_type]}")
        lines += _lspci_link(function)
        lines.append("\tCapabilities: [100 v2] Advanced Error Reporting")
        if function.acs != "none":
            capable = "SrcValid+ TransBlk+ ReqRedir+ CmpltRedir+ UpstreamFwd+ EgressCtrl- DirectTrans+"
            is_set = "SrcValid+ TransBlk- ReqRedir+ CmpltRedir+ UpstreamFwd+ EgressCtrl- DirectTrans-"
            lines.append("\tCapabilities: [148 v1] Access Control Services")
            lines.append(f"\t\tACSCap:\t{capable}")
            lines.append(f"\t\tACSCtl:\t{is_set if function.acs == 'redirect' else is_set.replace('+', '-')}")
        if function.shares:
            count = function.shares
            lines += [
                "\tCapabilities: [148 v1] Single Root I/O Virtualization (SR-IOV)",
                f"\t\tInitial VFs: {count}, Total VFs: {count}, Number of VFs: {count}, Function Dependency Link: 00",
                f"\t\tVF offset: 1, stride: 1, Device ID: {kind.device}",
            ]
    return "\n".join(lines) + "\n\n"


def _lspci_link(function: Function) -> Iterator[str]:
    if function.best is None:
        return
    (rate, width), now = function.best, function.trained or (0.0, 0)
    slower = " (downgraded)" if now[0] < rate else ""
    narrower = " (downgraded)" if now[1] < width else ""
    speed = f"{now[0]:g}GT/s" if now[0] else "unknown"
    yield f"\t\tLnkCap:\tPort #0, Speed {rate:g}GT/s, Width x{width}, ASPM not supported"
    yield f"\t\tLnkSta:\tSpeed {speed}{slower}, Width x{now[1]}{narrower}"


def _lspci_address(server: Made, function: Function) -> str:
    # with one domain other than 0 it prints all of them, but not so with -vmm
    shown = any(one.domain for one in server.functions)
    return function.address if shown else function.address.removeprefix("0000:")


def lspci_vmm(server: Made) -> bytes:
    """What `lspci -vmm` prints."""
    blocks = []
    for function in server.functions:
        kind = function.kind
        fields = {
            "Slot": function.address.removeprefix("0000:"),
            "Class": kind.class_name,
            "Vendor": kind.maker,
            "Device": kind.model,
            "Rev": f"{kind.rev:02x}" if kind.rev else "",
            "ProgIf": kind.class_code[4:],
            "NUMANode": "" if function.node is None else str(function.node),
        }
        blocks.append("".join(f"{key}:\t{value}\n" for key, value in fields.items() if value) + "\n")
    return "".join(blocks).encode()


# --- hwloc ---


def hwloc(server: Made, version: int) -> bytes:
    """What `lstopo --whole-io` of hwloc 1, 2 or 3 writes, built with domains of 32 bits."""
    return _Hwloc(server, version).file().encode()


class _Hwloc:
    def __init__(self, server: Made, version: int) -> None:
        self.server = server
        self.version = version
        self._disk = 0

    def file(self) -> str:
        server = self.server
        name = f'<info name="HostName" value={quoteattr(server.name)}/>\n'
        packages = [self._package(index, nodes) for index, nodes in enumerate(server.sockets)]
        inside = "".join(packages) + self._hosts(None)
        machine = self._part("Machine", 0, server.nodes, (name if self.version < 3 else "") + inside)
        dtd = "hwloc.dtd" if self.version == 1 else "hwloc2.dtd"
        attribute = "" if self.version == 1 else f' version="{self.version}.0"'
        return (
            f'<?xml version="1.0" encoding="UTF-8"?>\n<!DOCTYPE topology SYSTEM "{dtd}">\n'
            f"<topology{attribute}>\n{machine}{name if self.version == 3 else ''}</topology>\n"
        )

    def _package(self, index: int, nodes: list[int]) -> str:
        """A socket. Version 1 has NUMA nodes among the parts of a machine, later ones attach them to parts."""
        cores = {node: "".join(self._core(cpu) for cpu in self.server.cpus(node)) for node in nodes}
        if self.version == 1:
            if len(nodes) == 1:
                return self._part(
                    "NUMANode", nodes[0], nodes, self._part("Socket", index, nodes, self._in(nodes[0], cores))
                )
            inside = "".join(self._part("NUMANode", node, [node], self._in(node, cores)) for node in nodes)
            return self._part("Socket", index, nodes, inside)
        if len(nodes) == 1:
            memory = self._part("NUMANode", nodes[0], nodes, "")
            return self._part("Package", index, nodes, memory + self._in(nodes[0], cores))
        groups = [
            self._part("Group", None, [node], self._part("NUMANode", node, [node], "") + self._in(node, cores))
            for node in nodes
        ]
        return self._part("Package", index, nodes, "".join(groups))

    def _in(self, node: int, cores: Mapping[int, str]) -> str:
        return cores[node] + self._hosts(node)

    def _core(self, cpu: int) -> str:
        unit = f'<object type="PU" os_index="{cpu}" cpuset="0x{1 << cpu:08x}"/>\n'
        return f'<object type="Core" os_index="{cpu}" cpuset="0x{1 << cpu:08x}">\n{unit}</object>\n'

    def _part(self, kind: str, index: int | None, nodes: list[int], inside: str) -> str:
        cpus = _mask([cpu for node in nodes for cpu in self.server.cpus(node)])
        number = "" if index is None else f' os_index="{index}"'
        sets = f'cpuset="0x{cpus:08x}" nodeset="0x{_mask(nodes):08x}"'
        return f'<object type="{kind}"{number} {sets}>\n{inside}</object>\n'

    def _hosts(self, node: int | None) -> str:
        return "".join(self._host(host) for host in self.server.hosts if host.node == node)

    def _host(self, host: HostBridge) -> str:
        inside = "".join(map(self._function, sorted(host.on_bus, key=lambda one: (one.slot, one.number))))
        buses = f"{host.domain:04x}:[{host.bus:02x}-{host.last:02x}]"
        return f'<object type="Bridge" bridge_type="0-1" depth="0" bridge_pci="{buses}">\n{inside}</object>\n'

    def _function(self, function: Function) -> str:
        kind = function.kind
        ids = f"{kind.class_code[:4]} [{kind.vendor}:{kind.device}] [0000:0000] {kind.rev:02x}"
        if self.version == 3:
            ids += f" {kind.class_code[4:]}"
        rate, lanes = function.trained or (0.0, 0)
        encoding = 128 / 130 if rate > 5 else 0.8
        common = f'pci_busid="{function.address}" pci_type="{ids}" pci_link_speed="{rate * lanes * encoding / 8:.6f}"'
        infos = f'<info name="PCIVendor" value={quoteattr(kind.maker)}/>\n'
        infos += f'<info name="PCIDevice" value={quoteattr(kind.model)}/>\n'
        if function.is_bridge:
            first, last = function.buses
            depth = len(function.chain) + 1
            buses = f'bridge_pci="{function.domain:04x}:[{first:02x}-{last:02x}]"'
            inside = infos + "".join(map(self._function, function.below))
            return f'<object type="Bridge" bridge_type="1-1" depth="{depth}" {buses} {common}>\n{inside}</object>\n'
        if function.what == "ssd":
            infos += self._namespace()
        return f'<object type="PCIDev" {common}>\n{infos}</object>\n'

    def _namespace(self) -> str:
        self._disk += 1
        number = 1 if self.version == 3 else 0
        size = f'<info name="Size" value="{SSD_SECTORS // 2}"/>'
        return f'<object type="OSDev" name="nvme{self._disk}n1" osdev_type="{number}">{size}</object>\n'
