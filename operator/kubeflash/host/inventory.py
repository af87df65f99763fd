"""What this server has: GPUs, local SSDs, the kernel's abilities, its identity. No disk is read."""

from __future__ import annotations

from dataclasses import dataclass

from kubeflash.api.v1alpha1 import Kernel
from kubeflash.host.gpus import GpuRules, find_gpus
from kubeflash.host.identity import NoIdentity, system_uuid
from kubeflash.host.kernel import read_kernel
from kubeflash.host.nvme import NvmeSsd, find_ssds
from kubeflash.host.root import HostRoot
from kubeflash.topology.tree import PciDevice


@dataclass(frozen=True)
class Inventory:
    """One server at one moment.

    Attributes:
        gpus: by PCI address.
        ssds: by PCI address and namespace id; ids are unique.
        system_uuid: empty when the server has no identity; `problems` says so then.
        problems: what an admin should know of, each a sentence.
    """

    gpus: tuple[PciDevice, ...]
    ssds: tuple[NvmeSsd, ...]
    kernel: Kernel
    system_uuid: str
    problems: tuple[str, ...] = ()


def discover(root: HostRoot, rules: GpuRules) -> Inventory:
    """Reads the server. Devices that come or go meanwhile are in it or not; nothing is raised for them."""
    gpus, ssds = find_gpus(root, rules), find_ssds(root)
    problems = [f"SSD {ssd.id} at {ssd.pci.address}: {ssd.trouble}" for ssd in ssds if ssd.trouble]
    uuid = ""
    try:
        uuid = system_uuid(root)
    except NoIdentity as error:
        problems.append(str(error))
    if _unclear(gpus, ssds):
        problems.append(
            "some PCI bridges do not say whether they are root ports or switches, so distances are taken from the "
            "structure alone: the agent needs CAP_SYS_ADMIN to read their configuration space"
        )
    return Inventory(gpus, ssds, read_kernel(root), uuid, tuple(problems))


def _unclear(gpus: tuple[PciDevice, ...], ssds: tuple[NvmeSsd, ...]) -> bool:
    """Whether a bridge is unknown that a distance depends on."""
    return any(hop.kind == "Unknown" for device in (*gpus, *(ssd.pci for ssd in ssds)) for hop in device.local_path)
