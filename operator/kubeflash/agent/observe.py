"""Reads this server. Disks are read when something said that they changed, else rarely: an idle agent costs nothing."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from kubeflash.agent.observation import Observation
from kubeflash.domain.carving import DiskView, is_ours, volumes_of
from kubeflash.domain.disk import LABEL_TYPE, Label
from kubeflash.domain.names import NQN_PREFIX
from kubeflash.host import (
    addresses,
    blank,
    claim,
    gpt,
    holders,
    identity,
    initiator,
    inventory,
    keyring,
    nvmet,
    partitions,
    readonly,
)
from kubeflash.host.claim import Claim
from kubeflash.host.errors import HostError
from kubeflash.host.inventory import Inventory
from kubeflash.host.ioerrors import ErrorLog
from kubeflash.host.modules import Loader
from kubeflash.host.nvme import LIVE, PASSING, NvmeSsd, find_ssds
from kubeflash.host.partitions import KernelPartition
from kubeflash.host.refusals import RefusalLog
from kubeflash.host.root import HostRoot
from kubeflash.host.smart import HealthWatch
from kubeflash.topology.devices import GpuRules

log = logging.getLogger(__name__)

EXAMINE_AGAIN = 300.0
"""Seconds after which a disk is read again though nobody said that it changed."""


@dataclass(frozen=True)
class _Read:
    """What was read of one disk, when, and of which device: a kernel name may be another disk's next time."""

    view: DiskView
    device: tuple[int, int]
    kernel: tuple[KernelPartition, ...]
    moment: float


class Observer:
    """Reads the machine.

    Args:
        root: where /sys, /proc and /dev are.
        rules: which PCI devices count as GPUs.
        api_server: host and port of the API server: the address used to reach it is the server's internal one.
        loader: loads kernel modules that are missing; None: nobody does.
        address: the server's internal address, where it is known, as the kubelet tells it; None: see `api_server`.

    Attributes:
        cluster_id: the cluster that this server belongs to; known once the API server has answered.
        system_uuid: the server's durable identity.
        looked: called before each disk that is read: one that hangs takes minutes.

    Raises:
        HostError: when the server has no durable identity.
    """

    def __init__(
        self,
        root: HostRoot,
        rules: GpuRules,
        api_server: tuple[str, int],
        loader: Loader | None = None,
        address: str | None = None,
    ) -> None:
        self._root, self._rules, self._api_server, self._address = root, rules, api_server, address
        self._loader = loader
        self._nvmet = nvmet.KernelConfigfs(root)
        self._health = HealthWatch(root)
        self._errors = ErrorLog(root)
        self._refusals = RefusalLog(root)
        self._reads: dict[str, _Read] = {}
        self._forgotten = 0
        self._lock = threading.Lock()  # steps and the look itself read in threads, the loop forgets
        self._names: dict[str, str] = {}
        self.cluster_id = ""
        self.system_uuid = identity.system_uuid(root)
        self.looked: Callable[[], None] = lambda: None

    def load_modules(self) -> None:
        """Loads the kernel modules that are missing, where that is wanted; what fails, the inventory says."""
        if self._loader is not None:
            self._loader.load()

    def forget(self, ssd: str | None = None) -> None:
        """The next observation reads this disk again, or all of them."""
        with self._lock:
            self._forgotten += 1
            if ssd is None:
                self._reads.clear()
            else:
                self._reads.pop(ssd, None)

    def forget_device(self, name: str | None) -> bool:
        """The next observation reads the disk with this kernel name (or with this partition) again; None: all.

        Returns:
            Whether there is such a disk: one of this server's own.
        """
        found = False
        for ssd, device in list(self._names.items()):
            if name is None or name == device or name.startswith(f"{device}p"):
                self.forget(ssd)
                found = True
        return found

    def forget_health(self) -> None:
        """The next observation asks every SSD anew how it is."""
        self._health.forget()

    def owner(self, ssd: str) -> Label:
        """The label that an SSD carries, or would carry, on this server."""
        return Label(self.cluster_id, self.system_uuid, ssd)

    def inventory(self) -> Inventory:
        """GPUs and SSDs, from sysfs alone."""
        return inventory.discover(self._root, self._rules, self._loader.failures if self._loader is not None else None)

    def find(self, ssd: str) -> NvmeSsd:
        """The SSD with this id, looked up now.

        Raises:
            HostError: when there is none, or several.
        """
        found = [item for item in find_ssds(self._root) if item.id == ssd]
        if len(found) != 1:
            raise HostError(f"{len(found)} SSDs have the id {ssd} now; nothing is done to any")
        return found[0]

    def device(self, ssd: NvmeSsd) -> Path:
        """The block device of an SSD."""
        return self._root.dev / ssd.device_name

    def volume_device(self, volume_id: str) -> Path:
        """The device of a volume's partition on an SSD of ours, looked up now.

        Raises:
            HostError: when it is on none.
        """
        ssds = find_ssds(self._root)
        disks = {ssd.id: self._disk(ssd) for ssd in ssds}
        name = self._partitions(ssds, disks, {ssd: self.owner(ssd) for ssd in disks}).get(volume_id)
        if name is None:
            raise HostError(f"volume {volume_id} is on no SSD of this server now")
        return self._root.dev / name

    def observe(
        self, asked_about: Collection[str] = (), *, busy: Collection[str] = (), thorough: Collection[str] = ()
    ) -> Observation:
        """Everything, read in one go.

        Args:
            asked_about: ids of volumes whose holders matter.
            busy: ids of SSDs that are worked on: what was read of them before stands.
            thorough: ids of SSDs that nobody named: of a blank one more is read.

        Raises:
            HostError: when the machine cannot be read at all.
        """
        machine = self.inventory()
        self._names = {ssd.id: ssd.device_name for ssd in machine.ssds}
        disks = {ssd.id: self._disk(ssd, busy=ssd.id in busy, thorough=ssd.id in thorough) for ssd in machine.ssds}
        owners = {ssd.id: self.owner(ssd.id) for ssd in machine.ssds}
        volumes = self._partitions(machine.ssds, disks, owners)
        connections = initiator.connections(self._root)
        listening = addresses.listening_ports(self._root)  # before nvmet's tree: see `domain.exporting.Ground`
        tree = nvmet.read_state(self._nvmet)
        devices = {volume: self._root.dev / name for volume, name in volumes.items()}
        devices |= {item.uuid: Path(item.device) for item in connections if item.uuid and item.device}
        held = {volume: self._holders(devices.get(volume)) for volume in asked_about}
        return Observation(
            inventory=machine,
            disks=disks,
            owners=owners,
            partitions=volumes,
            nvmet=replace(tree, tls_keys=self._tls_keys()),
            connections=connections,
            listening=listening,
            addresses=addresses.global_addresses(),
            internal=self._internal_address(),
            read_only=frozenset(item for item, name in volumes.items() if readonly.is_read_only(self._root, name)),
            fixed=frozenset(part.uuid for disk in disks.values() if disk.read_only for part in volumes_of(disk.table)),
            held=held,
            health=self._health.look(machine.ssds),
            refusals=self._refusals.look(),
            errors=self._errors.look({ssd.device_name: ssd.id for ssd in machine.ssds if ssd.device_name}),
        )

    def _holders(self, device: Path | None) -> str:
        """Who uses a device, in words. O_EXCL is not tried: on a consumer whose server is gone that could hang.

        KubeFlash's own exports of it do not count: they are other attachments, which end by themselves.
        """
        found = holders.holders(self._root, device, probe=False) if device is not None else ()
        return holders.in_words(tuple(item for item in found if item.kind != "nvmet" or NQN_PREFIX not in item.who))

    def _tls_keys(self) -> frozenset[tuple[str, str]]:
        """None where the keyring cannot be read: only what needs TLS fails then, and says why."""
        try:
            return keyring.tls_keys(self._root)
        except HostError as error:
            log.debug("no TLS keys: %s", error)
            return frozenset()

    def _internal_address(self) -> str:
        """Empty when there is no way to the API server now: local work goes on without."""
        if self._address is not None:
            return self._address
        try:
            return addresses.address_toward(*self._api_server)
        except addresses.NoAddress as error:
            log.debug("no internal address: %s", error)
            return ""

    def _disk(self, ssd: NvmeSsd, *, busy: bool = False, thorough: bool = False) -> DiskView:
        known = self._reads.get(ssd.id)
        if known is not None and busy and known.device == ssd.dev_t:
            return known.view  # half of what is being done must not be taken for what is
        if known is not None and (known.device != ssd.dev_t or time.monotonic() - known.moment >= EXAMINE_AGAIN):
            known = None
        if known is not None and ssd.state in PASSING:
            return known.view  # a reset takes seconds, and changes nothing on the disk
        if ssd.state != LIVE or not ssd.device_name:
            return DiskView(ssd.id, ssd.bytes, trouble=ssd.trouble)
        try:
            kernel = partitions.kernel_partitions(self._root, ssd.device_name)
        except (HostError, OSError) as error:  # pulled out since it was found
            return DiskView(ssd.id, ssd.bytes, trouble=str(error))
        if known is not None and known.kernel == kernel and not (thorough and _wants_more(known.view)):
            return known.view
        forgotten = self._forgotten
        view = self._read_disk(ssd, kernel, thorough=thorough)
        with self._lock:
            # What could not be read is read again, and what was to be forgotten meanwhile: it may be of before.
            if not view.trouble and forgotten == self._forgotten:
                self._reads[ssd.id] = _Read(view, ssd.dev_t, kernel, time.monotonic())
        return view

    def _read_disk(self, ssd: NvmeSsd, kernel: tuple[KernelPartition, ...], *, thorough: bool) -> DiskView:
        """Reads one disk. What cannot be read is left alone, with the reason."""
        self.looked()
        device, owner = self.device(ssd), self.owner(ssd.id)
        view = DiskView(ssd.id, ssd.bytes, trouble=ssd.trouble, read_only=ssd.read_only)
        try:
            state = claim.claim_state(device, owner)
            if state is Claim.NONE:
                return self._examined(view, device, thorough=thorough)
            if state in (Claim.HALF_TABLE, Claim.UNLABELLED):
                return replace(view, half_claimed=True, fingerprint=blank.fingerprint(device))
            table = gpt.read_table(device)
            view = replace(view, table=table)
            labels = [part for part in table.partitions if part.type_guid == LABEL_TYPE] if table else []
            if table is None or not labels:
                return self._examined(view, device, thorough=thorough)
            shown = frozenset(part.number for part in table.partitions if any(item.is_(part) for item in kernel))
            label, print_ = claim.read_label(device, labels[0]), blank.fingerprint(device)
            return replace(view, label=label, shown=shown, fingerprint=print_)
        except (HostError, OSError, ValueError) as error:
            log.warning("SSD %s is left alone: %s", ssd.id, error)
            return replace(view, trouble=ssd.trouble or str(error))

    def _examined(self, view: DiskView, device: Path, *, thorough: bool) -> DiskView:
        """What is on a disk that is not KubeFlash's."""
        more = {"edge": blank.THOROUGH_EDGE, "samples": blank.THOROUGH_SAMPLES} if thorough else {}
        found = blank.examine(self._root, device, **more)
        print_ = "" if found.blank else blank.fingerprint(device)
        held = "; ".join(found.held)
        return replace(view, findings=found.findings, held=held, thorough=thorough, fingerprint=print_)

    @staticmethod
    def _partitions(
        ssds: Iterable[NvmeSsd], disks: Mapping[str, DiskView], owners: Mapping[str, Label]
    ) -> dict[str, str]:
        """Kernel names of our volumes' partitions: by PARTUUID in the table, shown by the kernel at that place."""
        return {
            part.uuid: f"{ssd.device_name}p{part.number}"
            for ssd in ssds
            if is_ours(disks[ssd.id], owners[ssd.id])
            for part in volumes_of(disks[ssd.id].table)
            if part.number in disks[ssd.id].shown
        }


def _wants_more(view: DiskView) -> bool:
    """Whether a disk looked blank, and was not read thoroughly."""
    return not (view.thorough or view.half_claimed or view.trouble or view.label or view.findings or view.table)
