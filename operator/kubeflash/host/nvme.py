"""The local NVMe SSDs of this machine, from sysfs alone: no disk is opened.

A namespace's block device hangs under its controller, or, where several controllers may reach it (a dual-port SSD),
under the subsystem; the controller then has a hidden path to it::

    /sys/class/nvme/nvme0/nvme0n1                       the namespace
    /sys/class/nvme/nvme1/nvme1c1n1                     a path; its head is
    /sys/class/nvme-subsystem/nvme-subsys1/nvme1n1      the namespace

Either way /sys/class/block leads to it by name.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from kubeflash.host.blockdev import SECTOR
from kubeflash.host.pci import address_in, read_pci_devices
from kubeflash.host.root import HostRoot
from kubeflash.host.sysfs import device_path, list_names, read_int, read_text
from kubeflash.topology.tree import PciDevice, address_key

_CONTROLLER = re.compile(r"nvme\d+")
_NAMESPACE = re.compile(r"(nvme\d+)(?:c\d+)?(n\d+)")


@dataclass(frozen=True)
class NvmeSsd:
    """One namespace of a local SSD.

    Attributes:
        id: durable: `eui.<EUI-64>`, `nguid.<NGUID>`, else `<serial>-<namespace id>`. With `trouble` it may hold the
            address too, after an @, so that it is the only one of its kind.
        bytes: size of the namespace in bytes.
        pci: the controller's PCI function.
        device_name: the kernel's name of the block device, such as nvme0n1. Another disk may have it after a reboot.
        dev_t: major and minor number of the block device.
        trouble: why it must not be used whatever is on it; empty for a sound one.
    """

    id: str
    serial: str
    model: str
    firmware: str
    bytes: int
    namespace_id: int
    pci: PciDevice
    device_name: str
    dev_t: tuple[int, int]
    trouble: str = ""

    @property
    def order(self) -> tuple[tuple[int, int, int, int], int]:
        """Sorts by PCI address, then namespace."""
        return self.pci.order, self.namespace_id


def find_ssds(root: HostRoot) -> tuple[NvmeSsd, ...]:
    """The namespaces of all local NVMe SSDs, by PCI address and namespace id.

    Controllers over a fabric are left out. A namespace that several controllers reach counts once, at the first
    address.
    """
    controllers = dict(_local_controllers(root))
    tree = read_pci_devices(root, set(controllers.values()))
    found: dict[tuple[int, int], NvmeSsd] = {}
    for name, address in sorted(controllers.items(), key=lambda item: address_key(item[1])):
        pci = tree.get(address)
        for ssd in _namespaces(root, name, pci) if pci else ():
            found.setdefault(ssd.dev_t, ssd)
    return tuple(sorted(_mark_duplicates(found.values()), key=lambda ssd: ssd.order))


def _local_controllers(root: HostRoot) -> Iterator[tuple[str, str]]:
    """Name and PCI address of each controller that is a PCI device."""
    for name in list_names(root.sys / "class/nvme"):
        link = f"class/nvme/{name}"
        if not _CONTROLLER.fullmatch(name) or read_text(f"{root.sys}/{link}/transport") != "pcie":
            continue
        address = address_in(device_path(root.sys, link) or "")
        if address is not None:
            yield name, address


def _namespaces(root: HostRoot, controller: str, pci: PciDevice) -> Iterator[NvmeSsd]:
    """The namespaces of a controller; one that vanishes while it is read is left out."""
    folder = f"{root.sys}/class/nvme/{controller}"
    serial = read_text(f"{folder}/serial") or ""
    model = read_text(f"{folder}/model") or ""
    firmware = read_text(f"{folder}/firmware_rev") or ""
    for name in list_names(folder):
        match = _NAMESPACE.fullmatch(name)
        if match is None:
            continue
        device_name = match[1] + match[2]
        block = f"{root.sys}/class/block/{device_name}"
        sectors, namespace_id = read_int(f"{block}/size"), read_int(f"{block}/nsid")
        dev_t = _device_number(read_text(f"{block}/dev"))
        if sectors is None or namespace_id is None or dev_t is None:
            continue
        trouble = "" if sectors > 0 else "its size is 0: the kernel cannot use its format, or it is failing (see dmesg)"
        identity = _identity(block, serial, namespace_id)
        if identity is None:
            identity = f"@{pci.address}-{namespace_id}"
            trouble = "it has no EUI-64, NGUID or serial number: nothing says durably which SSD it is"
        yield NvmeSsd(
            id=identity,
            serial=serial,
            model=model,
            firmware=firmware,
            bytes=sectors * SECTOR,
            namespace_id=namespace_id,
            pci=pci,
            device_name=device_name,
            dev_t=dev_t,
            trouble=trouble,
        )


def _identity(block: str, serial: str, namespace_id: int) -> str | None:
    """The durable id of a namespace. Kernels show bogus ones of known drives as absent, others as zeroes."""
    for attribute, digits in (("eui", 16), ("nguid", 32)):
        text = re.sub(r"[\s-]", "", read_text(f"{block}/{attribute}") or "").lower()
        if re.fullmatch(rf"[0-9a-f]{{{digits}}}", text) and set(text) not in ({"0"}, {"f"}):
            return f"{attribute}.{text}"
    return f"{serial}-{namespace_id}" if serial else None


def _device_number(text: str | None) -> tuple[int, int] | None:
    """Major and minor number from a text such as `259:3`."""
    match = re.fullmatch(r"(\d+):(\d+)", text or "")
    return (int(match[1]), int(match[2])) if match else None


def _mark_duplicates(ssds: Iterable[NvmeSsd]) -> Iterator[NvmeSsd]:
    """Takes SSDs of one id out of use: a label or a volume would say that it is on both of them."""
    every = list(ssds)
    count = Counter(ssd.id for ssd in every)
    for ssd in every:
        if count[ssd.id] == 1:
            yield ssd
            continue
        others = ", ".join(
            f"{other.pci.address} namespace {other.namespace_id}"
            for other in sorted(every, key=lambda item: item.order)
            if other.id == ssd.id and other is not ssd
        )
        yield replace(
            ssd,
            id=f"{ssd.id}@{ssd.pci.address}-{ssd.namespace_id}",
            trouble=f"another SSD has its id {ssd.id} too ({others}): take one out, or update its firmware",
        )
