"""PCIe devices and where each hangs in the tree: the one model, whatever the source of the facts."""

from __future__ import annotations

from dataclasses import dataclass

from kubeflash.api.v1alpha1 import PathHop, PciLocation


@dataclass(frozen=True)
class Hop:
    """One bridge on the way down to a device.

    Attributes:
        address: PCI address of the bridge.
        kind: RootPort, SwitchUpstream, SwitchDownstream, Bridge or Unknown, as its PCI Express capability says.
    """

    address: str
    kind: str = "Unknown"


@dataclass(frozen=True)
class PciDevice:
    """One PCI function.

    Attributes:
        address: `domain:bus:device.function`; the domain has four digits or more (VMD).
        vendor: four hex digits.
        device: four hex digits.
        class_code: six hex digits: class, subclass, programming interface.
        numa_node: None where the firmware does not say.
        root_complex: the host bridge, such as `pci0000:4a`.
        path: the bridges from the root complex down, without the device itself.
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
        """The address without its function: functions of one slot are one device."""
        return self.address.rpartition(".")[0]


def from_location(location: PciLocation) -> PciDevice:
    """The device that a FlashNode's status tells of."""
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
        path=[PathHop.model_validate({"address": hop.address, "kind": hop.kind}) for hop in device.path],
    )
