"""One server as a source describes it: its PCI devices, which of them are GPUs and SSDs, and what is not said. Pure.

A source (sysfs, hwloc's XML, lspci's text, a FlashNode) is read into a `Listing`; `Listing.server` sorts it out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from kubeflash.topology.cards import mark_cards
from kubeflash.topology.devices import GpuRules, is_nvme
from kubeflash.topology.errors import TopologyError
from kubeflash.topology.tree import PciDevice, PciTree


@dataclass(frozen=True)
class Facts:
    """What a source says of a device beside its place. Empty or None is: not said.

    Attributes:
        model: in words: "NVIDIA H100 80GB HBM3", "SAMSUNG MZWLO3T8HCLS".
        uuid: of a GPU, as its maker's tools say it: GPU-7f2c…
        serial: of an SSD.
        id: durable id of an SSD, as FlashNode says it.
        bytes: size of an SSD, all its namespaces together.
        free: bytes that new volumes can take.
        reason: why KubeFlash leaves an SSD alone; empty when it does not, or when nobody says.
        note: what else is to be known of an SSD, in a few words: "blank, in no pool".
    """

    model: str = ""
    uuid: str = ""
    serial: str = ""
    id: str = ""
    bytes: int | None = None
    free: int | None = None
    reason: str = ""
    note: str = ""


NO_FACTS = Facts()


@dataclass(frozen=True)
class Server:
    """A server.

    Attributes:
        name: as it calls itself; empty when nobody says.
        source: what was read, in words: "sysfs", "hwloc XML 2", "lspci -vvv", "FlashNode".
        tree: all its PCI devices that are known, bridges too.
        gpus: addresses of its GPUs, in order.
        ssds: addresses of its NVMe controllers, in order.
        facts: by address.
        kernel: what its kernel can do, in words; empty when nobody says.
        unsaid: what the source does not say, each a sentence; what follows from it is unknown.
        switched: what `has_switches` says, from a source that does not list all devices; None: work it out.
    """

    name: str
    source: str
    tree: PciTree
    gpus: tuple[str, ...]
    ssds: tuple[str, ...]
    facts: Mapping[str, Facts] = field(default_factory=dict)
    kernel: str = ""
    unsaid: tuple[str, ...] = ()
    switched: bool | None = None

    def device(self, address: str) -> PciDevice:
        """The device at an address. Raises KeyError when there is none."""
        found = self.tree.get(address)
        if found is None:
            raise KeyError(address)
        return found

    def fact(self, address: str) -> Facts:
        """What is known of a device beside its place."""
        return self.facts.get(address, NO_FACTS)

    @property
    def gpu_devices(self) -> tuple[PciDevice, ...]:
        """The GPUs."""
        return tuple(self.device(address) for address in self.gpus)

    @property
    def ssd_devices(self) -> tuple[PciDevice, ...]:
        """The NVMe controllers."""
        return tuple(self.device(address) for address in self.ssds)

    @cached_property
    def has_switches(self) -> bool:
        """Whether a GPU or SSD is behind a PCIe switch that leads to more than one place.

        A switch on a GPU's own card does not count: nothing can be beside that GPU.
        """
        if self.switched is not None:
            return self.switched
        below: dict[str, set[str]] = {}
        for device in self.tree:
            steps = device.way
            itself = device.address if device.is_bridge else device.slot
            for step, next_one in zip(steps, [*(step.hop.address for step in steps[1:]), itself], strict=False):
                if step.kind == "SwitchUpstream":
                    below.setdefault(step.switch, set()).add(next_one)
                elif step.kind == "SwitchDownstream":
                    below.setdefault(step.switch, set()).add(step.hop.address)
        ways = [device.way for device in (*self.gpu_devices, *self.ssd_devices)]
        mine = {step.switch for way in ways for step in way if not step.hop.on_card}
        return any(len(below.get(switch, ())) > 1 for switch in mine)


@dataclass(frozen=True)
class Listing:
    """All that a source says of a server, before it is said what is a GPU.

    Attributes:
        devices: every PCI device and bridge, in any order.
        facts: by address.
        others: as in `Server`.
    """

    source: str
    devices: tuple[PciDevice, ...]
    name: str = ""
    facts: Mapping[str, Facts] = field(default_factory=dict)
    kernel: str = ""
    unsaid: tuple[str, ...] = ()

    def server(self, rules: GpuRules = GpuRules()) -> Server:  # noqa: B008  immutable
        """The server: its devices sorted by address, GPUs by `rules`, SSDs by class.

        Shares of an SSD (SR-IOV virtual functions) are left out where their owner is listed too.
        """
        tree = PciTree.of(self.devices)
        gpus = tuple(device.address for device in tree if rules.is_gpu(device))
        ssds = tuple(device.address for device in tree if is_nvme(device) and not device.physical_function)
        return Server(self.name, self.source, mark_cards(tree, gpus), gpus, ssds, self.facts, self.kernel, self.unsaid)


def require_both(server: Server) -> Server:
    """The server itself, when it has GPUs and SSDs to compare.

    Raises:
        TopologyError: when it has not; says what there is instead.
    """
    kinds = ", ".join(sorted({f"{d.vendor}:{d.class_code[:4]}" for d in server.tree if d.class_code[:2] in _DISPLAYS}))
    count = f"{len(server.tree)} PCI devices"
    if not server.gpus:
        hint = f"; it has {kinds} (vendor:class): name yours with --gpu VENDOR:CLASS" if kinds else ""
        raise TopologyError(f"there is no GPU among its {count}{hint}")
    if not server.ssds:
        raise TopologyError(f"there is no NVMe SSD (PCI class 0108) among its {count}")
    if len(server.gpus) * len(server.ssds) > _MOST_DISTANCES:
        raise TopologyError(f"{len(server.gpus)} GPUs and {len(server.ssds)} SSDs are more than any server has")
    return server


_DISPLAYS = ("03", "12")
_MOST_DISTANCES = 8192
"""GPUs times SSDs of a dump: what is worked out and printed grows with it. 64 GPUs with 128 SSDs have as many."""
