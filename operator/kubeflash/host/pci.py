"""PCI devices of this machine: their ids, their NUMA node, and the bridges above them, all from sysfs.

The place of a device is the path that its link in /sys/bus/pci/devices leads to::

    /sys/devices/pci0000:4a/0000:4a:01.0/0000:4b:00.0/0000:4c:10.0/0000:4e:00.0
                 host bridge root port    upstream     downstream   the device

    /sys/devices/pci0000:e0/0000:e0:05.5/pci10000:e0/10000:e0:02.0/10000:e1:00.0
                 host bridge Intel VMD   its domain  root port     the device

What a bridge is says the PCI Express capability in its configuration space (PCI Express Base Specification, 7.5.3.2).
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable

from kubeflash.host.root import HostRoot
from kubeflash.host.sysfs import device_path, list_names, read_int, read_text
from kubeflash.topology.tree import Hop, HopKind, PciDevice, PciTree

_ADDRESS = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")
_HOST_BRIDGE = re.compile(r"pci[0-9a-f]{4,8}:[0-9a-f]{2}")
_MODALIAS = re.compile(
    r"pci:v0000(?P<vendor>[0-9A-F]{4})d0000(?P<device>[0-9A-F]{4})"
    r"sv[0-9A-F]{8}sd[0-9A-F]{8}bc(?P<base>[0-9A-F]{2})sc(?P<sub>[0-9A-F]{2})i(?P<interface>[0-9A-F]{2})"
)
_DEVICES = "bus/pci/devices"

_STATUS, _HAS_CAPABILITIES = 0x06, 0x10
_CAPABILITIES = 0x34
_PCI_EXPRESS = 0x10
_MOST_CAPABILITIES = 48  # as many as fit: a damaged list can be a ring
_PORT_TYPES: dict[int, HopKind] = {
    4: "RootPort",
    5: "SwitchUpstream",
    6: "SwitchDownstream",
    7: "Bridge",  # PCI Express to PCI
    8: "Bridge",  # PCI to PCI Express
}


def pci_addresses(root: HostRoot) -> list[str]:
    """Addresses of all PCI devices."""
    return [name for name in list_names(root.sys / _DEVICES) if _ADDRESS.fullmatch(name)]


def pci_ids(root: HostRoot, address: str) -> tuple[str, str, str] | None:
    """Vendor and device (four hex digits each) and class code (six), lower case; None when the device has gone.

    All three are in its modalias, so that one file a device is read and not three.
    """
    match = _MODALIAS.fullmatch(read_text(_folder(root, address) + "/modalias") or "")
    if match is None:
        return None
    ids = match.groupdict()
    class_code = ids["base"] + ids["sub"] + ids["interface"]
    return ids["vendor"].lower(), ids["device"].lower(), class_code.lower()


def is_virtual_function(root: HostRoot, address: str) -> bool:
    """Whether it is an SR-IOV virtual function: a share of another device."""
    return os.path.islink(_folder(root, address) + "/physfn")  # noqa: PTH114  as in kubeflash.host.sysfs


def read_pci_devices(root: HostRoot, addresses: Iterable[str] | None = None) -> PciTree:
    """The devices at these addresses, by default all; those that have gone meanwhile are left out.

    A device's NUMA node is what the firmware says. Where it says nothing and the kernel runs with a single node, it is
    that one.
    """
    only_node = _only_numa_node(root)
    kinds: dict[str, HopKind] = {}

    def kind_of(bridge: str) -> HopKind:
        if bridge not in kinds:
            kinds[bridge] = _read_kind(_folder(root, bridge) + "/config")
        return kinds[bridge]

    devices = (
        _read_device(root, address, only_node, kind_of)
        for address in (pci_addresses(root) if addresses is None else addresses)
    )
    return PciTree.of(device for device in devices if device is not None)


def address_in(path: str) -> str | None:
    """The PCI device that something hangs on, by its path below /sys: the last PCI address in it."""
    found = [part for part in path.split("/") if _ADDRESS.fullmatch(part)]
    return found[-1] if found else None


def port_kind(read: Callable[[int, int], bytes]) -> HopKind:
    """What a bridge is, from its configuration space.

    Args:
        read: gives bytes from an offset; fewer than asked for where they may not be read. Without CAP_SYS_ADMIN the
            kernel shows the first 64 bytes only: the answer is Unknown then.
    """

    def number(offset: int, length: int) -> int | None:
        content = read(offset, length)
        return int.from_bytes(content, "little") if len(content) == length else None

    status = number(_STATUS, 2)
    if status is None:
        return "Unknown"
    position = number(_CAPABILITIES, 1) if status & _HAS_CAPABILITIES else 0
    for _ in range(_MOST_CAPABILITIES):
        if position is None:
            return "Unknown"
        position &= 0xFC
        if position == 0:
            return "Bridge"  # conventional PCI: it has no PCI Express capability
        identity = number(position, 1)
        if identity == _PCI_EXPRESS:
            flags = number(position + 2, 2)
            return "Unknown" if flags is None else _PORT_TYPES.get(flags >> 4 & 0xF, "Unknown")
        position = None if identity is None else number(position + 1, 1)
    return "Unknown"


def _folder(root: HostRoot, address: str) -> str:
    return f"{root.sys}/{_DEVICES}/{address}"


def _read_device(
    root: HostRoot, address: str, only_node: int | None, kind_of: Callable[[str], HopKind]
) -> PciDevice | None:
    ids, path = pci_ids(root, address), device_path(root.sys, f"{_DEVICES}/{address}")
    if ids is None or path is None:
        return None
    parts = path.split("/")
    root_complex = next((part for part in parts if _HOST_BRIDGE.fullmatch(part)), None)
    if root_complex is None:
        return None
    bridges = [part for part in parts if _ADDRESS.fullmatch(part)][:-1]
    node = read_int(_folder(root, address) + "/numa_node")
    return PciDevice(
        address=address,
        vendor=ids[0],
        device=ids[1],
        class_code=ids[2],
        numa_node=node if node is not None and node >= 0 else only_node,
        root_complex=root_complex,
        path=tuple(Hop(bridge, kind_of(bridge)) for bridge in bridges),
    )


def _only_numa_node(root: HostRoot) -> int | None:
    """The NUMA node of a kernel that has just one; a list such as `0-1` is no number."""
    text = read_text(root.sys / "devices" / "system" / "node" / "online")
    return int(text) if text and text.isdecimal() else None


def _read_kind(config: str) -> HopKind:
    try:
        fd = os.open(config, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return "Unknown"
    try:
        # a few bytes where they are needed: each four bytes are a transaction on the bus
        return port_kind(lambda offset, length: os.pread(fd, length, offset))
    except OSError:
        return "Unknown"
    finally:
        os.close(fd)
