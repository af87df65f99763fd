"""PCIe devices and where each hangs in the tree: the one model, whatever the source of the facts. Pure.

Sysfs feeds it (`kubeflash.host.pci`), what the API server holds does (`from_location`), hwloc's or lspci's text can.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from kubeflash.api.v1alpha1 import PathHop, PciLocation

HopKind = Literal["RootPort", "SwitchUpstream", "SwitchDownstream", "Bridge", "Unknown"]
"""What a bridge is, in the words of the API's `PathHop`."""


def address_key(address: str) -> tuple[int, int, int, int]:
    """Domain, bus, device and function as numbers: the order of PCI addresses, domains of any length.

    Raises:
        ValueError: when it is no PCI address with a domain, such as 0000:4e:00.0 or 10000:e1:00.0.
    """
    try:
        domain, bus, slot = address.split(":")
        device, function = slot.split(".")
        return int(domain, 16), int(bus, 16), int(device, 16), int(function, 16)
    except ValueError as error:
        raise ValueError(f"{address!r} is no PCI address such as 0000:4e:00.0") from error


@dataclass(frozen=True)
class Hop:
    """One bridge on the way from a host bridge down to a device."""

    address: str
    kind: HopKind = "Unknown"


@dataclass(frozen=True)
class PciDevice:
    """One function of a PCI device.

    Attributes:
        address: `domain:bus:device.function`, lower case; the domain has four digits or more (Intel VMD).
        vendor: four hex digits, lower case.
        device: four hex digits, lower case.
        class_code: six hex digits, lower case: class, subclass, programming interface.
        numa_node: None when nobody says.
        root_complex: the host bridge as sysfs names it, such as `pci0000:4a`; for a device behind an Intel VMD the host
            bridge that the VMD itself hangs on.
        path: the bridges from the host bridge down to the device, without the device.
    """

    address: str
    vendor: str
    device: str
    class_code: str
    numa_node: int | None
    root_complex: str
    path: tuple[Hop, ...] = ()

    @property
    def slot(self) -> str:
        """The address without its function: what functions of one device have in common."""
        return self.address.rpartition(".")[0]

    @property
    def local_path(self) -> tuple[Hop, ...]:
        """The path within the device's own PCI domain: what traffic to it crosses.

        Behind an Intel VMD, devices are in a domain of its own, and the VMD is the first hop of their path. It is no
        bridge that traffic crosses: the root ports in its domain are the host bridge's own.
        """
        domain = self.address.partition(":")[0]
        return tuple(hop for hop in self.path if hop.address.startswith(f"{domain}:"))

    @property
    def order(self) -> tuple[int, int, int, int]:
        """Sorts devices by address."""
        return address_key(self.address)


@dataclass(frozen=True)
class PciTree:
    """Devices of one server, by address."""

    devices: tuple[PciDevice, ...]

    @classmethod
    def of(cls, devices: Iterable[PciDevice]) -> PciTree:
        """The tree over these devices, in whatever order they come; of one address the last one counts."""
        by_address = {device.address: device for device in devices}
        return cls(tuple(sorted(by_address.values(), key=lambda device: device.order)))

    def __iter__(self) -> Iterator[PciDevice]:
        return iter(self.devices)

    def __len__(self) -> int:
        return len(self.devices)

    def get(self, address: str) -> PciDevice | None:
        """The device at an address."""
        return self._by_address.get(address)

    def below(self, bridge: str) -> tuple[PciDevice, ...]:
        """The devices behind a bridge, given by address, or behind a host bridge, given by name."""
        return tuple(
            device
            for device in self.devices
            if device.root_complex == bridge or any(hop.address == bridge for hop in device.path)
        )

    @property
    def root_complexes(self) -> tuple[str, ...]:
        """The host bridges that devices hang on, in the order of the devices."""
        return tuple(dict.fromkeys(device.root_complex for device in self.devices))

    @cached_property
    def _by_address(self) -> dict[str, PciDevice]:
        return {device.address: device for device in self.devices}


def from_location(location: PciLocation) -> PciDevice:
    """The device that a FlashNode's status tells of: its place, without its ids."""
    return PciDevice(
        address=location.address,
        vendor="",
        device="",
        class_code="",
        numa_node=location.numa_node,
        root_complex=location.root_complex,
        path=tuple(Hop(hop.address, hop.kind) for hop in location.path),
    )


def to_location(device: PciDevice) -> PciLocation:
    """What a FlashNode's status tells of a device's place."""
    return PciLocation(
        address=device.address,
        numa_node=device.numa_node,
        root_complex=device.root_complex,
        path=[PathHop(address=hop.address, kind=hop.kind) for hop in device.path],
    )
