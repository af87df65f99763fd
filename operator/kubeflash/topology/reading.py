"""What readers of dumps share: names, addresses, limits, and the domains behind Intel VMDs. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from kubeflash.topology.tree import Hop, PciDevice

MOST_DEVICES = 65536
"""As many functions as one PCI domain can have; no server comes near."""
_LONGEST_NAME = 256
_VMD_DOMAIN = 0x10000  # Linux numbers the domains behind VMDs from here (drivers/pci/controller/vmd.c)


def plain(text: str) -> str:
    """A name out of a dump, fit for one line of a terminal: no control characters, and not too long."""
    kept = "".join(character if character.isprintable() else " " for character in text[:_LONGEST_NAME])
    return " ".join(kept.split())


def address_of(domain: int, bus: int, device: int, function: int) -> str:
    """A PCI address as sysfs writes it."""
    return f"{domain:04x}:{bus:02x}:{device:02x}.{function}"


def root_complex_of(domain: int, bus: int) -> str:
    """The name in sysfs of a host bridge with this root bus."""
    return f"pci{domain:04x}:{bus:02x}"


def join_vmd_domains(
    devices: Sequence[PciDevice], controllers: Sequence[PciDevice]
) -> tuple[tuple[PciDevice, ...], tuple[str, ...]]:
    """The devices in domains of Intel VMDs, hung on the host bridge of their VMD where it is certain which one.

    Neither hwloc nor lspci says which VMD a domain belongs to: it is certain with one VMD and one such domain.

    Args:
        devices: all of the server.
        controllers: the VMDs among them.

    Returns:
        All devices, and what is not said, in sentences.
    """
    domains = {domain for domain in {device.address.partition(":")[0] for device in devices} if behind_vmd(domain)}
    if not domains:
        return tuple(devices), ()
    if len(domains) == 1 and len(controllers) == 1:
        (vmd,) = controllers
        above = None if vmd.path is None else (*vmd.path, Hop(vmd.address))
        return tuple(
            replace(
                device,
                root_complex=vmd.root_complex,
                path=None if above is None or device.path is None else (*above, *device.path),
                numa_node=vmd.numa_node if device.numa_node is None else device.numa_node,
                socket=vmd.socket if device.socket is None else device.socket,
                detached=False,
            )
            if device.address.partition(":")[0] in domains
            else device
            for device in devices
        ), ()
    listed = f"{len(controllers)} VMDs and {len(domains)} domains behind them are listed"
    return (
        tuple(replace(d, detached=True) if d.address.partition(":")[0] in domains else d for d in devices),
        (f"Which Intel VMD a domain such as {min(domains)} is behind is not said: {listed}.",),
    )


def is_vmd(device: PciDevice) -> bool:
    """Whether it is a RAID controller of Intel's: a VMD has no class of its own."""
    return device.vendor == "8086" and device.class_code.startswith("0104")


def behind_vmd(domain: str) -> bool:
    """Whether a PCI domain, in hex digits, is one that Linux makes for an Intel VMD."""
    return int(domain, 16) >= _VMD_DOMAIN
