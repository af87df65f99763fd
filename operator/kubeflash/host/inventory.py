"""What this server has: GPUs, local SSDs, the kernel's abilities, its identity. No disk is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from kubeflash.api.v1alpha1 import Kernel
from kubeflash.domain.kernel import kernel_problems
from kubeflash.host.gpus import GpuFacts, gpu_facts
from kubeflash.host.identity import NoIdentity, system_uuid
from kubeflash.host.kernel import read_kernel
from kubeflash.host.nvme import NvmeSsd, find_ssds
from kubeflash.host.pci import read_pci_devices
from kubeflash.host.root import HostRoot
from kubeflash.topology.cards import mark_cards
from kubeflash.topology.devices import GpuRules
from kubeflash.topology.server import Server
from kubeflash.topology.tree import PciDevice


@dataclass(frozen=True)
class Inventory:
    """One server at one moment.

    Attributes:
        gpus: by PCI address.
        ssds: by PCI address and namespace id; ids are unique.
        system_uuid: empty when the server has no identity; `problems` says so then.
        problems: what an admin should know of, each a sentence.
        gpu_facts: what is known of the GPUs beside their place, by PCI address.
        switched: whether GPUs or SSDs are behind PCIe switches that lead to more than one place.
    """

    gpus: tuple[PciDevice, ...]
    ssds: tuple[NvmeSsd, ...]
    kernel: Kernel
    system_uuid: str
    problems: tuple[str, ...] = ()
    gpu_facts: Mapping[str, GpuFacts] = field(default_factory=dict)
    switched: bool = True


def discover(root: HostRoot, rules: GpuRules, failures: Mapping[str, str] | None = None) -> Inventory:
    """Reads the server. Devices that come or go meanwhile are in it or not; nothing is raised for them.

    Args:
        root: where /sys, /proc, /dev and /lib/modules are.
        rules: which PCI devices count as GPUs.
        failures: by module, why it could not be loaded.
    """
    tree = read_pci_devices(root)
    addresses = tuple(device.address for device in tree if rules.is_gpu(device))
    tree = mark_cards(tree, addresses)
    gpus = tuple(gpu for address in addresses if (gpu := tree.get(address)) is not None)
    ssds = find_ssds(root, tree)
    controllers = tuple(dict.fromkeys(ssd.pci.address for ssd in ssds))
    server = Server("", "sysfs", tree, addresses, controllers)
    problems = [f"SSD {ssd.id} at {ssd.pci.address}: {ssd.trouble}" for ssd in ssds if ssd.trouble]
    uuid = ""
    try:
        uuid = system_uuid(root)
    except NoIdentity as error:
        problems.append(str(error))
    if kinds_unsaid([*gpus, *(ssd.pci for ssd in ssds)]):
        problems.append(
            "some PCI bridges do not say whether they are root ports or switches, so distances are taken from the "
            "structure alone: the agent needs CAP_SYS_ADMIN to read their configuration space"
        )
    kernel = read_kernel(root, failures)
    problems += kernel_problems(kernel)
    return Inventory(
        gpus=gpus,
        ssds=ssds,
        kernel=kernel,
        system_uuid=uuid,
        problems=tuple(problems),
        gpu_facts=gpu_facts(root, gpus),
        switched=server.has_switches,
    )


def kinds_unsaid(devices: Sequence[PciDevice]) -> bool:
    """Whether a bridge does not say what it is that a distance depends on."""
    return any(hop.kind == "Unknown" for device in devices for hop in device.local_path)
