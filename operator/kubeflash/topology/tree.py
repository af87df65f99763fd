"""PCIe devices and where each hangs in the tree: the one model, whatever the source of the facts. Pure.

Sysfs feeds it (`kubeflash.host.pci`), hwloc's XML (`hwloc`), lspci's text (`lspci`), and what the API server holds
(`flashnode`). What a source does not say is None, and stays so: no distance is made of a guess.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

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


Acs = Literal["Redirect", "Direct"]
"""Whether a port sends peer-to-peer requests up to the root complex (Access Control Services), or lets them through."""


@dataclass(frozen=True)
class Link:
    """What one end of a PCIe link says of it. None is: not said.

    Attributes:
        speed: GT/s a lane, as trained now.
        width: lanes in use now.
        max_speed: GT/s a lane that this end can do.
        max_width: lanes that this end has.
        gbps: GB/s (10^9 bytes, a direction, without encoding) now, from a source that says nothing else (hwloc).
    """

    speed: float | None = None
    width: int | None = None
    max_speed: float | None = None
    max_width: int | None = None
    gbps: float | None = None


UNSAID = Link()


@dataclass(frozen=True)
class Hop:
    """One bridge on the way from a host bridge down to a device.

    Attributes:
        link: what the bridge says of the link that it is at the end of: a root port or downstream port of the one
            below it, an upstream port of the one above it.
        acs: whether it redirects peer-to-peer requests; None when nobody says.
        on_card: it is a port of the GPU's own card (`kubeflash.topology.cards`).
    """

    address: str
    kind: HopKind = "Unknown"
    link: Link = UNSAID
    acs: Acs | None = None
    on_card: bool = False


@dataclass(frozen=True)
class Step:
    """One bridge of a way, known for what it is.

    Attributes:
        kind: what it says that it is, else what its place makes it.
        switch: names the switch that it is a port of; of any other bridge its own address.
    """

    hop: Hop
    kind: HopKind
    switch: str

    @property
    def is_switch(self) -> bool:
        """Whether it is a port of a PCIe switch."""
        return self.kind in ("SwitchUpstream", "SwitchDownstream")


_BELOW: dict[HopKind, HopKind] = {
    "RootPort": "SwitchUpstream",
    "SwitchUpstream": "SwitchDownstream",
    "SwitchDownstream": "SwitchUpstream",
    "Bridge": "Bridge",
}
"""What a bridge that does not say what it is must be, by what is above it."""


@dataclass(frozen=True)
class PciDevice:
    """One function of a PCI device.

    Attributes:
        address: `domain:bus:device.function`, lower case; the domain has four digits or more (Intel VMD).
        vendor: four hex digits, lower case.
        device: four hex digits, lower case.
        class_code: six hex digits, lower case: class, subclass, programming interface.
        numa_node: None when nobody says.
        root_complex: the host bridge as sysfs names it, such as `pci0000:4a`; of a device behind an Intel VMD the one
            that the VMD itself hangs on. Empty when nobody says.
        path: the bridges from the host bridge down to the device, without the device; None when not all are said.
        socket: the processor package that the host bridge belongs to; None when nobody says.
        link: what the device says of the link above it.
        physical_function: address of the device that it is a share of, of an SR-IOV virtual function; else empty.
        detached: nobody says which host bridge of the server its root bus hangs on: `root_complex` is then the top of
            an Intel VMD's own domain.
    """

    address: str
    vendor: str
    device: str
    class_code: str
    numa_node: int | None
    root_complex: str
    path: tuple[Hop, ...] | None = ()
    socket: int | None = None
    link: Link = UNSAID
    physical_function: str = ""
    detached: bool = False

    @property
    def bridges(self) -> tuple[Hop, ...]:
        """The path as far as it is known."""
        return self.path or ()

    @property
    def is_bridge(self) -> bool:
        """Whether it is a PCI-to-PCI bridge: a port of a root complex or of a switch, or an old bridge."""
        return self.class_code.startswith("0604")

    @cached_property
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
        return tuple(hop for hop in self.bridges if hop.address.startswith(f"{domain}:"))

    @cached_property
    def way(self) -> tuple[Step, ...]:
        """The bridges that traffic between the host bridge and the device crosses, from the top."""
        steps: list[Step] = []
        for hop in self.local_path:
            expected = _BELOW[steps[-1].kind] if steps else "RootPort"
            kind = expected if hop.kind == "Unknown" else hop.kind
            switch = hop.address
            if kind == "SwitchUpstream":
                switch = hop.address.rpartition(".")[0]  # an upstream port may have several functions: one switch
            elif kind == "SwitchDownstream":
                # An upstream port can be hidden from a virtual machine: then the ports of one bus are one switch.
                under_upstream = bool(steps) and steps[-1].kind == "SwitchUpstream"
                switch = steps[-1].switch if under_upstream else hop.address.rpartition(":")[0]
            steps.append(Step(hop, kind, switch))
        return tuple(steps)

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
            if device.root_complex == bridge or any(hop.address == bridge for hop in device.bridges)
        )

    @property
    def root_complexes(self) -> tuple[str, ...]:
        """The host bridges that devices hang on, in the order of the devices."""
        return tuple(dict.fromkeys(device.root_complex for device in self.devices))

    @cached_property
    def _by_address(self) -> dict[str, PciDevice]:
        return {device.address: device for device in self.devices}
