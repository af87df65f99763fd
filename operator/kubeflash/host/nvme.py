"""The local NVMe SSDs of this machine, from sysfs alone: no disk is opened.

A namespace's block device hangs under its controller, or, where several controllers may reach it (a dual-port SSD, a
virtual function of SR-IOV), under the subsystem; the controller then has a hidden path to it::

    /sys/class/nvme/nvme0/nvme0n1                       the namespace
    /sys/class/nvme/nvme1/nvme1c1n1                     a path; its head is
    /sys/class/nvme-subsystem/nvme-subsys1/nvme1n1      the namespace

Either way /sys/class/block leads to it by name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from kubeflash.host.blockdev import SECTOR
from kubeflash.host.pci import address_in, read_pci_devices
from kubeflash.host.root import HostRoot
from kubeflash.host.sysfs import device_path, list_names, read_int, read_text
from kubeflash.topology.tree import PciDevice, PciTree, address_key

LIVE = "live"
PASSING = frozenset({"new", "connecting", "resetting"})
"""States of a controller that pass by themselves. Until then the kernel holds back what is read or written."""
_GOING = "deleting"
_CONTROLLER = re.compile(r"nvme\d+")
_NAMESPACE = re.compile(r"(nvme\d+)(?:c\d+)?(n\d+)")
_LAST_NAMESPACE = 0xFFFFFFFE  # NVM Express Base Specification 2.0, 3.2.1.2
_MOST_SECTORS = 1 << 54  # of 512 bytes: a size in bytes is a signed number of 64 bits
_LONGEST = 256


@dataclass(frozen=True)
class NvmeSsd:
    """One namespace of a local SSD, or a controller that has none.

    Attributes:
        id: durable: `eui.<EUI-64>`, `nguid.<NGUID>`, else `<serial>-<namespace id>`. With `trouble` it may hold the
            address too, after an @, so that it is the only one of its kind.
        bytes: size of the namespace in bytes.
        namespace_id: 0 of a controller without namespaces.
        pci: the controller's PCI function.
        device_name: the kernel's name of the block device, such as nvme0n1. Another disk may have it after a reboot.
            Empty without a namespace.
        dev_t: major and minor number of the block device; zeroes without a namespace.
        trouble: why it must not be used whatever is on it; empty for a sound one.
        controller: the kernel's name of the controller, such as nvme0.
        state: of the controller, in the kernel's word; `live` when it works.
        read_only: whether the kernel lets nobody write: the SSD is worn out, or write-protected.
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
    controller: str = ""
    state: str = LIVE
    read_only: bool = False

    @property
    def order(self) -> tuple[tuple[int, int, int, int], int]:
        """Sorts by PCI address, then namespace."""
        return self.pci.order, self.namespace_id


@dataclass(frozen=True)
class _Controller:
    """A controller on PCIe.

    Attributes:
        subsystem: NQN of its subsystem: what controllers of one SSD have in common.
        kind: `io`, `admin`, `discovery`; `reserved` of those before NVMe 1.4, empty of old kernels.
    """

    name: str
    pci: PciDevice
    serial: str
    model: str
    firmware: str
    state: str
    subsystem: str
    kind: str


def find_ssds(root: HostRoot, tree: PciTree | None = None) -> tuple[NvmeSsd, ...]:
    """The namespaces of all local NVMe SSDs, by PCI address and namespace id.

    Controllers over a fabric are left out. A namespace that several controllers reach counts once, at the first address
    whose controller works. A controller without namespaces counts too, unless it is a share of another (SR-IOV), or
    another one of its SSD has some.

    Args:
        root: the machine.
        tree: its PCI devices, when they are known already; one that came since is left out.
    """
    links = dict(_local_controllers(root))
    known = read_pci_devices(root, set(links.values())) if tree is None else tree
    found: dict[tuple[int, int], tuple[_Controller, NvmeSsd]] = {}
    empty: list[_Controller] = []
    reached: set[str] = set()
    for name, address in sorted(links.items(), key=lambda item: address_key(item[1])):
        pci, devices = known.get(address), _block_devices(root, name)
        if pci is None or devices is None:
            continue
        controller = _read_controller(root, name, pci)
        if devices:
            reached.add(controller.subsystem)
        else:
            empty.append(controller)
        for device in devices:
            ssd = _read_namespace(root, device, controller)
            if ssd is not None and (ssd.dev_t not in found or _better(controller, found[ssd.dev_t][0])):
                found[ssd.dev_t] = controller, ssd
    lone = [
        (item, _without_namespace(item))
        for item in empty
        if not item.pci.physical_function
        and item.kind != "admin"
        and not item.state.startswith(_GOING)
        and (not item.subsystem or item.subsystem not in reached)
    ]
    return tuple(sorted(_mark_duplicates([*found.values(), *lone]), key=lambda ssd: ssd.order))


def _better(one: _Controller, other: _Controller) -> bool:
    return one.state == LIVE != other.state


def _local_controllers(root: HostRoot) -> Iterator[tuple[str, str]]:
    """Name and PCI address of each controller that is a PCI device."""
    for name in list_names(root.sys / "class/nvme"):
        address = controller_address(root, name)
        if address is not None:
            yield name, address


def controller_address(root: HostRoot, name: str) -> str | None:
    """The PCI address of a local controller such as nvme0; None when it is none, or over a fabric."""
    link = f"class/nvme/{name}"
    if not _CONTROLLER.fullmatch(name) or read_text(f"{root.sys}/{link}/transport") != "pcie":
        return None
    return address_in(device_path(root.sys, link) or "")


def _read_controller(root: HostRoot, name: str, pci: PciDevice) -> _Controller:
    def word(attribute: str) -> str:
        return _printable(read_text(f"{root.sys}/class/nvme/{name}/{attribute}") or "")

    return _Controller(
        name=name,
        pci=pci,
        serial=word("serial"),
        model=word("model"),
        firmware=word("firmware_rev"),
        state=word("state") or LIVE,
        subsystem=word("subsysnqn"),
        kind=word("cntrltype"),
    )


def _block_devices(root: HostRoot, controller: str) -> list[str] | None:
    """The kernel's names of the namespaces that a controller reaches; None when the controller has gone."""
    names = list_names(f"{root.sys}/class/nvme/{controller}")
    matches = (_NAMESPACE.fullmatch(name) for name in names)
    return [match[1] + match[2] for match in matches if match is not None] if names else None


def _read_namespace(root: HostRoot, device: str, controller: _Controller) -> NvmeSsd | None:
    """A namespace; None for one that vanishes while it is read."""
    block = f"{root.sys}/class/block/{device}"
    sectors, namespace_id = read_int(f"{block}/size"), read_int(f"{block}/nsid")
    dev_t = _device_number(read_text(f"{block}/dev"))
    if sectors is None or namespace_id is None or dev_t is None or not 0 < namespace_id <= _LAST_NAMESPACE:
        return None
    if not 0 <= sectors < _MOST_SECTORS:
        sectors = 0
    trouble = "" if sectors > 0 else "its size is 0: the kernel cannot use its format, or it is failing (see dmesg)"
    identity = _identity(block, controller.serial, namespace_id)
    if identity is None:
        identity = f"@{controller.pci.address}-{namespace_id}"
        trouble = "it has no EUI-64, NGUID or serial number: nothing says durably which SSD it is"
    return NvmeSsd(
        id=identity,
        serial=controller.serial,
        model=controller.model,
        firmware=controller.firmware,
        bytes=sectors * SECTOR,
        namespace_id=namespace_id,
        pci=controller.pci,
        device_name=device,
        dev_t=dev_t,
        trouble=_not_live(controller.state) or trouble,
        controller=controller.name,
        state=controller.state,
        read_only=read_int(f"{block}/ro") == 1,
    )


def _without_namespace(controller: _Controller) -> NvmeSsd:
    return NvmeSsd(
        id=f"{controller.serial}-0" if controller.serial else f"@{controller.pci.address}-0",
        serial=controller.serial,
        model=controller.model,
        firmware=controller.firmware,
        bytes=0,
        namespace_id=0,
        pci=controller.pci,
        device_name="",
        dev_t=(0, 0),
        trouble=_not_live(controller.state)
        or "it has no namespace: make one with nvme create-ns, and attach it with nvme attach-ns",
        controller=controller.name,
        state=controller.state,
    )


def _not_live(state: str) -> str:
    """Why an SSD whose controller is in this state cannot be used; empty when it can."""
    if state == LIVE:
        return ""
    if state in PASSING:
        return f"its controller is {state}: if it stays so, see dmesg"
    if state.startswith(_GOING):
        return "it is being removed"
    return f"its controller is {state}, it takes no commands: see dmesg, then reseat or replace it"


def _printable(text: str) -> str:
    """An attribute of a drive, fit for an id, a file and a terminal: others' bytes become U+FFFD."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text[:_LONGEST])


def _identity(block: str, serial: str, namespace_id: int) -> str | None:
    """The durable id of a namespace. Kernels show bogus ones of known drives as absent, others as zeroes."""
    for attribute, digits in (("eui", 16), ("nguid", 32)):
        text = re.sub(r"[\s-]", "", read_text(f"{block}/{attribute}") or "").lower()
        if re.fullmatch(rf"[0-9a-f]{{{digits}}}", text) and set(text) not in ({"0"}, {"f"}):
            return f"{attribute}.{text}"
    return f"{serial}-{namespace_id}" if serial else None


def _device_number(text: str | None) -> tuple[int, int] | None:
    """Major and minor number from a text such as `259:3`."""
    match = re.fullmatch(r"([0-9]+):([0-9]+)", text or "")
    return (int(match[1]), int(match[2])) if match else None


def _mark_duplicates(found: Iterable[tuple[_Controller, NvmeSsd]]) -> Iterator[NvmeSsd]:
    """Takes SSDs of one id out of use: a label or a volume would say that it is on both of them."""
    every = list(found)
    for controller, ssd in every:
        twins = [(c, other) for c, other in every if other.id == ssd.id and other is not ssd]
        if not twins:
            yield ssd
            continue
        trouble = ssd.trouble if ssd.namespace_id == 0 else _twin_trouble(controller, ssd, twins)
        yield replace(ssd, id=f"{ssd.id}@{ssd.pci.address}-{ssd.namespace_id}", trouble=trouble)


def _twin_trouble(controller: _Controller, ssd: NvmeSsd, twins: list[tuple[_Controller, NvmeSsd]]) -> str:
    if all(
        controller.subsystem and other.subsystem == controller.subsystem and twin.namespace_id == ssd.namespace_id
        for other, twin in twins
    ):
        names = ", ".join(sorted([ssd.device_name, *(twin.device_name for _, twin in twins)]))
        return f"its kernel makes several disks of it ({names}), one a controller: boot with nvme_core.multipath=Y"
    others = ", ".join(
        f"{twin.pci.address} namespace {twin.namespace_id}" for _, twin in sorted(twins, key=lambda item: item[1].order)
    )
    return f"another SSD has its id {ssd.id} too ({others}): take one out, or update its firmware"
