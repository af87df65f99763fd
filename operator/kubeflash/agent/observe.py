"""Reads this server. Disks are read only when something said that they changed, so that an idle agent costs nothing."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from kubeflash.agent.observation import Observation
from kubeflash.domain.carving import DiskView, volumes_of
from kubeflash.domain.disk import LABEL_TYPE, Label
from kubeflash.host import addresses, blank, gpt, holders, identity, initiator, inventory, nvmet
from kubeflash.host.errors import HostError
from kubeflash.host.gpus import GpuRules
from kubeflash.host.inventory import Inventory, NvmeSsd
from kubeflash.host.root import HostRoot

log = logging.getLogger(__name__)

EXAMINE_AGAIN = 300.0
"""Seconds after which a disk is read again though nobody said that it changed."""


@dataclass(frozen=True)
class _Read:
    """What was read of one disk, when, and of which device: a kernel name may be another disk's next time."""

    view: DiskView
    device: tuple[int, int]
    moment: float


class Observer:
    """Reads the machine.

    Args:
        root: where /sys, /proc and /dev are.
        rules: which PCI devices count as GPUs.
        api_server: host and port of the API server: the address used to reach it is the server's internal one.

    Attributes:
        cluster_id: the cluster that this server belongs to; known once the API server has answered.
        system_uuid: the server's durable identity.

    Raises:
        HostError: when the server has no durable identity.
    """

    def __init__(self, root: HostRoot, rules: GpuRules, api_server: tuple[str, int]) -> None:
        self._root, self._rules, self._api_server = root, rules, api_server
        self._reads: dict[str, _Read] = {}
        self.cluster_id = ""
        self.system_uuid = identity.system_uuid(root)

    def forget(self, ssd: str | None = None) -> None:
        """The next observation reads this disk again, or all of them."""
        if ssd is None:
            self._reads.clear()
        else:
            self._reads.pop(ssd, None)

    def owner(self, ssd: str) -> Label:
        """The label that an SSD carries, or would carry, on this server."""
        return Label(self.cluster_id, self.system_uuid, ssd)

    def inventory(self) -> Inventory:
        """GPUs and SSDs, from sysfs alone."""
        return inventory.discover(self._root, self._rules)

    def find(self, ssd: str) -> NvmeSsd:
        """The SSD with this id, looked up now.

        Raises:
            HostError: when there is none, or several.
        """
        found = [item for item in self.inventory().ssds if item.id == ssd]
        if len(found) != 1:
            raise HostError(f"{len(found)} SSDs have the id {ssd} now; nothing is done to any")
        return found[0]

    def device(self, ssd: NvmeSsd) -> Path:
        """The block device of an SSD."""
        return self._root.dev / ssd.device_name

    def observe(self, asked_about: Collection[str] = ()) -> Observation:
        """Everything, read in one go. `asked_about`: ids of volumes whose holders matter.

        Raises:
            HostError: when the machine cannot be read at all.
        """
        machine = self.inventory()
        disks = {ssd.id: self._disk(ssd) for ssd in machine.ssds}
        owners = {ssd.id: self.owner(ssd.id) for ssd in machine.ssds}
        partitions = self._partitions(machine, disks, owners)
        connections = initiator.connections(self._root)
        devices = {volume: self._root.dev / name for volume, name in partitions.items()}
        devices |= {item.uuid: Path(item.device) for item in connections if item.uuid and item.device}
        held = {
            volume: "; ".join(str(holder) for holder in holders.holders(self._root, devices[volume]))
            for volume in asked_about
            if volume in devices
        }
        return Observation(
            inventory=machine,
            disks=disks,
            owners=owners,
            partitions=partitions,
            nvmet=nvmet.read_state(self._root),
            connections=connections,
            listening=addresses.listening_ports(self._root),
            addresses=addresses.global_addresses(),
            internal=addresses.address_toward(*self._api_server),
            held=held,
        )

    def _disk(self, ssd: NvmeSsd) -> DiskView:
        kernel = {number: name for number, name in gpt.kernel_partitions(self._root, ssd.device_name).items()}
        known = self._reads.get(ssd.id)
        fresh = known is not None and known.device == ssd.dev_t and time.monotonic() - known.moment < EXAMINE_AGAIN
        if known is not None and fresh and known.view.kernel_partitions == kernel:
            return known.view
        view = self._read_disk(ssd, kernel)
        self._reads[ssd.id] = _Read(view, ssd.dev_t, time.monotonic())
        return view

    def _read_disk(self, ssd: NvmeSsd, kernel: dict[int, str]) -> DiskView:
        device = self.device(ssd)
        try:
            table = gpt.read_table(device)
            ours = [part for part in table.partitions if part.type_guid == LABEL_TYPE] if table else []
            label = gpt.read_label(device, ours[0]) if ours else None
            findings = () if ours else blank.examine(self._root, device).findings
        except HostError as error:
            log.warning("SSD %s cannot be read and is left alone: %s", ssd.id, error)
            return DiskView(ssd.id, ssd.bytes, kernel_partitions=kernel, trouble=f"it cannot be read: {error}")
        return DiskView(ssd.id, ssd.bytes, table, label, kernel, findings, ssd.trouble)

    @staticmethod
    def _partitions(machine: Inventory, disks: dict[str, DiskView], owners: dict[str, Label]) -> dict[str, str]:
        """Kernel names of our volumes' partitions: in the table by PARTUUID, in the kernel under that number and name."""
        names: dict[str, str] = {}
        for ssd in machine.ssds:
            disk = disks[ssd.id]
            if disk.trouble or disk.label != owners[ssd.id]:
                continue
            for part in volumes_of(disk.table):
                if disk.kernel_partitions.get(part.number) == part.uuid:
                    names[part.uuid] = f"{ssd.device_name}p{part.number}"
        return names
