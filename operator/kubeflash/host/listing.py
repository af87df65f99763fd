"""A whole server as `kubectl flash` reads it: this machine, or a copy of its /sys. No disk is opened."""

from __future__ import annotations

import os
from collections.abc import Sequence

from kubeflash.host.gpus import gpu_facts
from kubeflash.host.inventory import kinds_unsaid
from kubeflash.host.kernel import read_kernel
from kubeflash.host.nvme import NvmeSsd, find_ssds
from kubeflash.host.pci import pci_folder, read_pci_devices
from kubeflash.host.root import HostRoot
from kubeflash.host.sysfs import read_text
from kubeflash.topology.devices import GpuRules, is_nvme
from kubeflash.topology.reading import plain
from kubeflash.topology.server import Facts, Listing
from kubeflash.topology.tree import PciDevice, PciTree

_CARDS = ("03", "12", "0b40")
"""Classes of displays, accelerators and co-processors: what rules may call a GPU."""
_NVME_DRIVER = "nvme"


def read_listing(root: HostRoot) -> Listing:
    """Everything that the machine's files say of it."""
    tree = read_pci_devices(root)
    ssds = find_ssds(root, tree)
    cards = [device for device in tree if device.class_code.startswith(_CARDS)]  # rules say later what is a GPU
    facts = {address: Facts(model=said.model, uuid=said.uuid) for address, said in gpu_facts(root, cards).items()}
    for device in tree:
        if is_nvme(device):
            facts[device.address] = _ssd_facts(root, device, [ssd for ssd in ssds if ssd.pci.address == device.address])
    return Listing(
        source="sysfs",
        devices=tree.devices,
        name=_name(root),
        facts=facts,
        kernel=read_kernel(root).words,
        unsaid=tuple(_unsaid(root, tree, cards)),
    )


def _ssd_facts(root: HostRoot, device: PciDevice, namespaces: Sequence[NvmeSsd]) -> Facts:
    """An SSD is one device, however many namespaces it has. It is left alone when all of them are."""
    if not namespaces:
        return Facts(reason=_why_no_disk(root, device))
    first = next((ssd for ssd in namespaces if not ssd.trouble), namespaces[0])
    return Facts(
        model=plain(first.model),
        serial=plain(first.serial),
        id=plain(first.id),
        bytes=sum(ssd.bytes for ssd in namespaces),
        reason=first.trouble,
    )


def _why_no_disk(root: HostRoot, device: PciDevice) -> str:
    """Why the kernel has no disk of an NVMe controller; empty where nobody says."""
    try:
        driver = os.readlink(f"{pci_folder(root, device.address)}/driver").rpartition("/")[2]  # noqa: PTH115
    except OSError:
        return ""
    if driver == _NVME_DRIVER:
        return ""
    return f"its driver is {plain(driver)}, not nvme: the kernel has no disk of it"


def _name(root: HostRoot) -> str:
    return plain(
        read_text(root.proc / "sys" / "kernel" / "hostname") or read_text(root.path / "etc" / "hostname") or ""
    )


def _unsaid(root: HostRoot, tree: PciTree, cards: Sequence[PciDevice]) -> list[str]:
    """What cannot be known from these files, in sentences."""
    said: list[str] = []
    gpus = [card for card in cards if GpuRules().is_gpu(card)] or cards
    mine = [*gpus, *(device for device in tree if is_nvme(device))]
    ports = {hop.address: hop for device in mine for hop in device.local_path}
    if kinds_unsaid(mine):
        said.append(
            "The configuration space of bridges cannot be read, which takes root: what kind of port each is follows "
            "from its place, and whether it redirects peer-to-peer requests (ACS) is not known."
        )
    elif any(port.acs is None for port in ports.values()):
        said.append("Whether ports redirect peer-to-peer requests (ACS) is not said by all of them.")
    if any(device.numa_node is None for device in mine):
        said.append("The firmware does not say for all devices which NUMA node they are nearest to.")
    if not root.proc.is_dir():
        said.append("There is no /proc beside this /sys: which kernel, which server and what its GPUs are is not said.")
    return said
