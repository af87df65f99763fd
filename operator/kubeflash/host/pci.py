"""PCI devices of this machine: their ids, their NUMA node, and the bridges above them, all from sysfs.

The place of a device is the path that its link in /sys/bus/pci/devices leads to::

    /sys/devices/pci0000:4a/0000:4a:01.0/0000:4b:00.0/0000:4c:10.0/0000:4e:00.0
                 host bridge root port    upstream     downstream   the device

    /sys/devices/pci0000:e0/0000:e0:05.5/pci10000:e0/10000:e0:02.0/10000:e1:00.0
                 host bridge Intel VMD   its domain  root port     the device

What a bridge is says its configuration space (`kubeflash.host.pciconfig`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable

from kubeflash.host.pciconfig import read_port
from kubeflash.host.root import HostRoot
from kubeflash.host.sockets import Sockets, read_sockets
from kubeflash.host.sysfs import device_path, list_names, read_int, read_text
from kubeflash.topology.tree import UNSAID, Hop, Link, PciDevice, PciTree

_ADDRESS = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")
_HOST_BRIDGE = re.compile(r"pci[0-9a-f]{4,8}:[0-9a-f]{2}")
_MODALIAS = re.compile(
    r"pci:v0000(?P<vendor>[0-9A-F]{4})d0000(?P<device>[0-9A-F]{4})"
    r"sv[0-9A-F]{8}sd[0-9A-F]{8}bc(?P<base>[0-9A-F]{2})sc(?P<sub>[0-9A-F]{2})i(?P<interface>[0-9A-F]{2})"
)
_DEVICES = "bus/pci/devices"
_BRIDGE = "0604"
_SPEED = re.compile(r"(\d{1,3}(?:\.\d{1,2})?) GT/s(?: PCIe)?")
_WIDEST = 32
"""Lanes; 0, 63 and 255 stand for what is not known (PCI Express Base Specification 5.0, 7.5.3.8)."""


def pci_addresses(root: HostRoot) -> list[str]:
    """Addresses of all PCI devices."""
    return [name for name in list_names(root.sys / _DEVICES) if _ADDRESS.fullmatch(name)]


def pci_folder(root: HostRoot, address: str) -> str:
    """Where the attributes of a device are."""
    return f"{root.sys}/{_DEVICES}/{address}"


def pci_ids(root: HostRoot, address: str) -> tuple[str, str, str] | None:
    """Vendor and device (four hex digits each) and class code (six), lower case; None when the device has gone.

    All three are in its modalias, so that one file a device is read and not three. Not all copies of a /sys hold it.
    """
    modalias = read_text(pci_folder(root, address) + "/modalias")
    if modalias is None:
        return _single_ids(root, address)
    match = _MODALIAS.fullmatch(modalias)
    if match is None:
        return None
    ids = match.groupdict()
    class_code = ids["base"] + ids["sub"] + ids["interface"]
    return ids["vendor"].lower(), ids["device"].lower(), class_code.lower()


def _single_ids(root: HostRoot, address: str) -> tuple[str, str, str] | None:
    folder = pci_folder(root, address)
    found = [read_int(f"{folder}/{name}", 16) for name in ("vendor", "device", "class")]
    vendor, device, class_code = (-1 if number is None else number for number in found)
    if not (0 <= vendor <= 0xFFFF and 0 <= device <= 0xFFFF and 0 <= class_code <= 0xFFFFFF):
        return None
    return f"{vendor:04x}", f"{device:04x}", f"{class_code:06x}"


def read_pci_devices(root: HostRoot, addresses: Iterable[str] | None = None) -> PciTree:
    """The devices at these addresses, by default all; those that have gone meanwhile are left out.

    A device's NUMA node is what the firmware says. Where it says nothing and the kernel runs with a single node, it is
    that one. Its socket is the one of that node.
    """
    sockets = read_sockets(root)
    hops: dict[str, Hop] = {}

    def hop_of(bridge: str) -> Hop:
        if bridge not in hops:
            hops[bridge] = _read_hop(root, bridge)
        return hops[bridge]

    devices = (
        _read_device(root, address, sockets, hop_of)
        for address in (pci_addresses(root) if addresses is None else addresses)
    )
    return PciTree.of(device for device in devices if device is not None)


def address_in(path: str) -> str | None:
    """The PCI device that something hangs on, by its path below /sys: the last PCI address in it."""
    found = [part for part in path.split("/") if _ADDRESS.fullmatch(part)]
    return found[-1] if found else None


def _read_device(root: HostRoot, address: str, sockets: Sockets, hop_of: Callable[[str], Hop]) -> PciDevice | None:
    ids, path = pci_ids(root, address), device_path(root.sys, f"{_DEVICES}/{address}")
    if ids is None or path is None:
        return None
    parts = path.split("/")
    root_complex = next((part for part in parts if _HOST_BRIDGE.fullmatch(part)), None)
    if root_complex is None:
        return None
    vendor, device, class_code = ids
    node = sockets.node(read_int(pci_folder(root, address) + "/numa_node"))
    return PciDevice(
        address=address,
        vendor=vendor,
        device=device,
        class_code=class_code,
        numa_node=node,
        socket=sockets.socket(node),
        root_complex=root_complex,
        path=tuple(hop_of(part) for part in parts[:-1] if _ADDRESS.fullmatch(part)),
        link=UNSAID if class_code.startswith(_BRIDGE) else read_link(pci_folder(root, address)),
        physical_function=_physical_function(root, address),
    )


def _read_hop(root: HostRoot, bridge: str) -> Hop:
    """A bridge above a device. An Intel VMD is one by its place alone: it says neither kind nor link nor ACS."""
    folder, ids = pci_folder(root, bridge), pci_ids(root, bridge)
    if ids is not None and not ids[2].startswith(_BRIDGE):
        return Hop(bridge)
    kind, acs = read_port(f"{folder}/config")
    return Hop(bridge, kind, read_link(folder), acs)


def read_link(folder: str) -> Link:
    """What a device or port says of its link, from the attributes in its folder."""
    speed = read_text(f"{folder}/current_link_speed")
    if speed is None:  # a conventional PCI device has none of them
        return UNSAID
    return Link(
        speed=_speed(speed),
        width=_width(read_int(f"{folder}/current_link_width")),
        max_speed=_speed(read_text(f"{folder}/max_link_speed")),
        max_width=_width(read_int(f"{folder}/max_link_width")),
    )


def _speed(text: str | None) -> float | None:
    """GT/s a lane from a text such as `32.0 GT/s PCIe`, or `8 GT/s` of older kernels."""
    match = _SPEED.fullmatch(text or "")
    return (float(match[1]) or None) if match else None


def _width(lanes: int | None) -> int | None:
    return lanes if lanes is not None and 0 < lanes <= _WIDEST else None


def _physical_function(root: HostRoot, address: str) -> str:
    """The device that a virtual function (SR-IOV) is a share of; empty for any other."""
    try:
        target = os.readlink(pci_folder(root, address) + "/physfn")  # noqa: PTH115  as in kubeflash.host.sysfs
    except OSError:
        return ""
    owner = target.rpartition("/")[2]
    return owner if _ADDRESS.fullmatch(owner) else ""
