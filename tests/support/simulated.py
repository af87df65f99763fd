"""Simulated servers: what `Observer` and `Executor` are to an agent, over disks and nvmet trees in memory.

They refuse what the real ones refuse (overlap, a busy partition, a link before the host), and several share a network,
so that a consumer connects only where an export listens, allows it, and has the same keys. The scenarios in
`tests/scenarios.py` run on these and on the virtual servers alike.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace

from kubeflash.agent.execute import NotAsPlanned
from kubeflash.agent.observation import Observation
from kubeflash.api.v1alpha1 import Ability, Kernel, NodeAddress
from kubeflash.domain import steps
from kubeflash.domain.carving import DiskView, SsdState, is_ours, judge, volumes_of
from kubeflash.domain.disk import LABEL_TYPE, MIB, Label, Partition, PartitionTable
from kubeflash.domain.fabric import (
    Connection,
    NvmetHost,
    NvmetNamespace,
    NvmetPort,
    NvmetState,
    NvmetSubsystem,
    Portal,
)
from kubeflash.domain.names import is_ours as is_ours_nqn
from kubeflash.domain.sealing import ExportKeys, SealBroken, unseal
from kubeflash.host.errors import HostError
from kubeflash.host.inventory import Inventory
from kubeflash.host.nvme import NvmeSsd
from kubeflash.host.nvmet import PortTaken
from kubeflash.host.smart import Health
from kubeflash.topology.tree import Hop, PciDevice

GIB = 1 << 30
CAN = Ability(available=True, how="simulated")


@dataclass
class Network:
    """Who listens where."""

    servers: dict[str, SimulatedServer] = field(default_factory=dict)
    cut: set[str] = field(default_factory=set)
    """Addresses whose cable is out."""

    def target(self, portal: Portal, nqn: str) -> SimulatedServer:
        server = self.servers.get(portal.address) if portal.address not in self.cut else None
        port = server.nvmet.ports.get(portal.port) if server is not None else None
        if server is None or port is None or not port.subsystems:
            raise HostError(f"{portal}: connection refused")
        if nqn not in port.subsystems:
            raise HostError(f"{portal}: no such subsystem; the consumer's device would be lost for good")
        return server


def switch(number: int, *, numa: int = 0) -> tuple[Hop, Hop, Hop]:
    """The bridges above a device behind one switch: root port, upstream, downstream."""
    bus = 0x10 * number
    return (
        Hop(f"0000:00:{number:02x}.0", "RootPort"),
        Hop(f"0000:{bus:02x}:00.0", "SwitchUpstream"),
        Hop(f"0000:{bus + 1:02x}:{numa:02x}.0", "SwitchDownstream"),
    )


def gpu(number: int) -> PciDevice:
    """A GPU behind switch `number`."""
    return PciDevice(
        address=f"0000:{0x10 * number + 2:02x}:00.0",
        vendor="10de",
        device="2330",
        class_code="030200",
        numa_node=0,
        root_complex="pci0000:00",
        path=switch(number),
    )


def ssd(serial: str, number: int, *, size: int = GIB) -> NvmeSsd:
    """An SSD behind switch `number`."""
    pci = PciDevice(
        address=f"0000:{0x10 * number + 3:02x}:00.0",
        vendor="144d",
        device="a824",
        class_code="010802",
        numa_node=0,
        root_complex="pci0000:00",
        path=(*switch(number)[:2], Hop(f"0000:{0x10 * number + 1:02x}:01.0", "SwitchDownstream")),
    )
    return NvmeSsd(
        id=f"{serial}-1",
        serial=serial,
        model="SIMULATED 1",
        firmware="1.0",
        bytes=size,
        namespace_id=1,
        pci=pci,
        device_name=f"nvme{number}n1",
        dev_t=(259, number),
    )


class SimulatedServer:
    """One server: `Observer` and `Executor` in one."""

    def __init__(
        self, name: str, address: str, network: Network, gpus: Collection[PciDevice], ssds: Collection[NvmeSsd]
    ) -> None:
        self.name, self.address, self._network = name, address, network
        self.system_uuid = f"uuid-of-{name}"
        self.cluster_id = ""
        self.private = b""
        self.gpus, self.ssds = tuple(gpus), {item.id: item for item in ssds}
        self.disks = {item.id: DiskView(item.id, item.bytes) for item in ssds}
        self.nvmet = NvmetState()
        self.keys: dict[str, ExportKeys] = {}
        self.connections: dict[tuple[str, str], Connection] = {}
        self.read_only: set[str] = set()
        self.addresses = [address]
        self.listening: set[int] = set()
        self.held: dict[str, str] = {}
        self.refuse: dict[str, str] = {}
        self.broken: Callable[[steps.Step], str] = lambda _: ""
        self.health: dict[str, Health] = {}
        self.errors: dict[str, int] = {}
        self.slow: dict[str, float] = {}
        self.history: list[steps.Step] = []
        self.observations = 0
        self._lock = threading.Lock()
        network.servers[address] = self

    # --- what happens to it; whoever looks sees all of it or nothing ---

    def unplug(self, ssd_id: str) -> tuple[NvmeSsd, DiskView]:
        """Pulls an SSD out; what `plug` puts in again, here or elsewhere."""
        with self._lock:
            return self.ssds.pop(ssd_id), self.disks.pop(ssd_id)

    def plug(self, device: NvmeSsd, disk: DiskView) -> None:
        """Puts an SSD in."""
        with self._lock:
            self.ssds[device.id], self.disks[device.id] = device, disk

    def drop_connections(self) -> None:
        """All are gone, as after a boot, or after ctrl_loss_tmo."""
        with self._lock:
            self.connections.clear()

    # --- Observer ---

    def owner(self, ssd_id: str) -> Label:
        return Label(self.cluster_id, self.system_uuid, ssd_id)

    def forget(self, ssd_id: str | None = None) -> None:
        """Nothing is cached."""

    def forget_health(self) -> None:
        """Nothing is cached."""

    def load_modules(self) -> None:
        """This kernel has all that it needs."""

    def observe(
        self, asked_about: Collection[str] = (), *, busy: Collection[str] = (), thorough: Collection[str] = ()
    ) -> Observation:
        with self._lock:
            self.observations += 1
            self.disks.update(
                {
                    item: replace(disk, thorough=True)
                    for item, disk in self.disks.items()
                    if item in thorough and not disk.thorough
                }
            )
            return Observation(
                inventory=Inventory(
                    gpus=self.gpus,
                    ssds=tuple(self.ssds.values()),
                    kernel=Kernel(
                        release="6.12",
                        nvmet=CAN,
                        nvmet_tcp=CAN,
                        nvmet_rdma=CAN,
                        nvme_tcp=CAN,
                        nvme_rdma=CAN,
                        authentication=CAN,
                        tls=CAN,
                    ),
                    system_uuid=self.system_uuid,
                    problems=(),
                ),
                disks=dict(self.disks),
                owners={item: self.owner(item) for item in self.disks},
                partitions=self.partitions(),
                nvmet=self.nvmet,
                connections=tuple(self._seen(item) for item in self.connections.values()),
                listening=frozenset(self.listening),
                addresses=tuple(
                    NodeAddress(address=item, interface=f"eth{n}") for n, item in enumerate(self.addresses)
                ),
                internal=self.address,
                read_only=frozenset(self.read_only),
                held={volume: self._holders(volume) for volume in asked_about},
                health=dict(self.health),
                errors=dict(self.errors),
            )

    def _holders(self, volume: str) -> str:
        """Who uses a volume here: somebody, or a stranger's export of it; KubeFlash's own do not count."""
        others = [item for item in self.nvmet.subsystems.values() if any(ns.uuid == volume for ns in item.namespaces)]
        strangers = [item.nqn for item in others if not is_ours_nqn(item.nqn)]
        return self.held.get(volume, "") or ", ".join(strangers)

    def partitions(self) -> dict[str, str]:
        return {
            part.uuid: f"{self.ssds[item].device_name}p{part.number}"
            for item, disk in self.disks.items()
            if is_ours(disk, self.owner(item))
            for part in volumes_of(disk.table)
            if part.number in disk.shown
        }

    def _seen(self, connection: Connection) -> Connection:
        """A connection lives while its target exports."""
        portal = connection.portal
        assert portal is not None
        server = self._network.servers.get(portal.address)
        port = server.nvmet.ports.get(portal.port) if server and portal.address not in self._network.cut else None
        alive = port is not None and connection.nqn in port.subsystems and self.address not in self._network.cut
        return connection if alive else replace(connection, state="connecting")

    # --- Executor ---

    def apply(self, step: steps.Step, progress: Callable[[int, int], None] | None = None) -> None:
        """Carries out a step; `refuse` makes the next one of a kind fail, `broken` any that it has words for."""
        began, kind = time.monotonic(), type(step).__name__
        while (took := time.monotonic() - began) < (
            seconds := self.slow.get(kind, 0)
        ):  # it may be made quick meanwhile
            if progress is not None:
                progress(int(took * 10), int(seconds * 10))
            time.sleep(0.1)
        with self._lock:
            self.history.append(step)
            words = self.refuse.pop(type(step).__name__, None) or self.broken(step)
            if words:
                raise HostError(words)
            if hasattr(step, "ssd"):
                self._apply_disk(step)
            elif isinstance(step, steps.ExportStep):
                self._apply_export(step)
            else:
                self._apply_consumer(step)

    def _apply_disk(self, step) -> None:
        disk = self.disks.get(step.ssd)
        if disk is None:
            raise NotAsPlanned(f"no SSD {step.ssd}")
        match step:
            case steps.ClaimSsd(label=label):
                if judge(disk, label).state is not SsdState.BLANK:
                    raise NotAsPlanned(f"SSD {step.ssd} is not blank any more")
                part = Partition(1, MIB, MIB, "kubeflash", label.disk_guid, LABEL_TYPE)
                table = PartitionTable("gpt", label.disk_guid, MIB, disk.bytes - MIB, (part,))
                self._set(
                    DiskView(disk.ssd, disk.bytes, table, label, shown=frozenset({1}), fingerprint=label.disk_guid)
                )
            case steps.WipeSsd(fingerprint=shown):
                if disk.fingerprint != shown:
                    raise NotAsPlanned("what is on it is not what was shown")
                self._set(DiskView(disk.ssd, disk.bytes))
            case steps.RepairTable():
                assert disk.table is not None
                self._set(replace(disk, table=replace(disk.table, damaged="")))
            case steps.TakeOver(old=old, new=new_label):
                if disk.label != old:
                    raise NotAsPlanned("its label is another's")
                self._set(replace(disk, label=new_label))
            case steps.GrowPartition(partition=part, new_size=count):
                assert disk.table is not None
                grown = replace(part, bytes=count)
                others = tuple(p for p in disk.table.partitions if p.uuid != part.uuid)
                assert all(grown.end <= p.start or p.end <= grown.start for p in others), "overlap"
                self._set_parts(disk, tuple(sorted((*others, grown), key=lambda p: p.number)))
            case steps.CarvePartition(partition=new):
                assert disk.table is not None
                assert all(new.end <= p.start or p.end <= new.start for p in disk.table.partitions), "overlap"
                self._set_parts(disk, (*disk.table.partitions, new))
            case steps.ShowPartition():
                self._set_parts(disk, disk.table.partitions)
            case steps.WipePartition(partition=part):
                if self.held.get(part.uuid):
                    raise HostError(f"held: {self.held[part.uuid]}")
                if any(ns.uuid == part.uuid for sub in self.nvmet.subsystems.values() for ns in sub.namespaces):
                    raise HostError("exported")
            case steps.RemovePartition(partition=part):
                self._set_parts(disk, tuple(p for p in disk.table.partitions if p.uuid != part.uuid))

    def _set(self, disk: DiskView) -> None:
        self.disks[disk.ssd] = disk

    def _set_parts(self, disk: DiskView, parts: tuple[Partition, ...]) -> None:
        shown = frozenset(part.number for part in parts)
        self._set(replace(disk, table=replace(disk.table, partitions=parts), shown=shown))

    def _apply_export(self, step) -> None:
        state = self.nvmet
        hosts, subsystems, ports = dict(state.hosts), dict(state.subsystems), dict(state.ports)
        tls = set(state.tls_keys)
        nqn = step.nqn
        match step:
            case steps.CreateHost(host_nqn=host, sealed_keys=sealed, authentication=keyed):
                self.keys[host] = self._unseal(sealed) if keyed else ExportKeys()
                hosts[host] = NvmetHost(host, keyed)
            case steps.AddTlsKey(host_nqn=host, sealed_keys=sealed):
                assert self._unseal(sealed).psk
                tls.add((host, nqn))
            case steps.RemoveTlsKey(host_nqn=host):
                tls.discard((host, nqn))
            case steps.CreateSubsystem():
                subsystems[nqn] = NvmetSubsystem(nqn, False, frozenset(), ())
            case steps.AllowHost(host_nqn=host):
                subsystems[nqn] = replace(subsystems[nqn], allowed_hosts=subsystems[nqn].allowed_hosts | {host})
            case steps.EnableNamespace(volume_id=volume, shared=shared):
                name = self.partitions().get(volume)
                if name is None:
                    raise NotAsPlanned(f"volume {volume} is on no SSD of this server now")
                others = [sub.nqn for sub in subsystems.values() if any(ns.uuid == volume for ns in sub.namespaces)]
                if not shared and (set(others) - {nqn} or self.held.get(volume)):
                    raise HostError(f"volume {volume} is {self.held.get(volume) or others}: not exported")
                if volume in self.read_only:
                    raise HostError("read-only")
                subsystems[nqn] = replace(subsystems[nqn], namespaces=(NvmetNamespace(1, name, volume, True),))
            case steps.ReplaceDevice(nsid=nsid, volume_id=volume):
                namespaces = (NvmetNamespace(nsid, self.partitions()[volume], volume, True),)
                subsystems[nqn] = replace(subsystems[nqn], namespaces=namespaces)
            case steps.RevalidateNamespace():
                assert any(ns.enabled for ns in subsystems[nqn].namespaces)
            case steps.CreatePort(number=number, portal=portal, tls=only_tls):
                ports[number] = NvmetPort(
                    number, portal.transport, portal.address, str(portal.port), frozenset(), only_tls
                )
            case steps.LinkPort(number=number, authentication=keyed):
                allowed = subsystems[nqn].allowed_hosts
                if not allowed or not subsystems[nqn].namespaces:
                    raise AssertionError("linked too early")
                assert all(hosts[host].authenticated == keyed for host in allowed), "anybody gets in"
                if number in self.listening:
                    raise PortTaken("somebody else listens there")
                ports[number] = replace(ports[number], subsystems=frozenset({nqn}))
            case steps.DisallowHost(host_nqn=host):
                subsystems[nqn] = replace(subsystems[nqn], allowed_hosts=subsystems[nqn].allowed_hosts - {host})
            case steps.UnlinkPort(number=number):
                ports[number] = replace(ports[number], subsystems=frozenset())
            case steps.DisableNamespace():
                namespaces = tuple(replace(ns, enabled=False) for ns in subsystems[nqn].namespaces)
                subsystems[nqn] = replace(subsystems[nqn], namespaces=namespaces)
            case steps.RemoveSubsystem():
                if any(ns.enabled for ns in subsystems[nqn].namespaces):
                    raise AssertionError("removed without the write barrier")
                del subsystems[nqn]
            case steps.RemovePort(number=number):
                del ports[number]
            case steps.RemoveHost(host_nqn=host):
                hosts.pop(host, None)
                self.keys.pop(host, None)
        self.nvmet = NvmetState(True, hosts, subsystems, ports, frozenset(tls))

    def _unseal(self, sealed: str) -> ExportKeys:
        try:
            return unseal(sealed, self.private)
        except SealBroken as error:
            raise HostError(str(error)) from error

    def _apply_consumer(self, step) -> None:
        match step:
            case steps.Connect():
                self._connect(step)
            case steps.DropPath(nqn=nqn, portal=portal):
                others = [self._seen(item).state for item in self._paths(nqn) if item.portal != portal]
                assert "live" in others, "the last way was dropped"
                del self.connections[nqn, f"traddr={portal.address},trsvcid={portal.port}"]
            case steps.SetReadOnly(volume_id=volume, nqn="", read_only=value):
                (self.read_only.add if value else self.read_only.discard)(volume)
            case steps.SetReadOnly(nqn=nqn, read_only=value):
                for item in self._paths(nqn):
                    self.connections[nqn, item.address] = replace(item, read_only=value)
            case steps.Disconnect(nqn=nqn, abandoned=abandoned):
                paths = self._paths(nqn)
                live = any(self._seen(item).state == "live" for item in paths)
                words = next((self.held[item.uuid] for item in paths if self.held.get(item.uuid or "")), "")
                if words and (live or not abandoned):
                    raise HostError(f"held: {words}")
                for item in paths:
                    del self.connections[nqn, item.address]

    def _paths(self, nqn: str) -> list[Connection]:
        return [item for (known, _), item in self.connections.items() if known == nqn]

    def _connect(self, step: steps.Connect) -> None:
        if self.address in self._network.cut:
            raise HostError(f"{step.portal}: no answer")
        target = self._network.target(step.portal, step.nqn)
        subsystem = target.nvmet.subsystems[step.nqn]
        mine = self._unseal(step.sealed_keys) if step.sealed_keys else ExportKeys()
        theirs = target.keys.get(step.host_nqn)
        if step.host_nqn not in subsystem.allowed_hosts or theirs is None:
            raise HostError("not allowed")
        if (mine.dhchap is None) != (theirs.dhchap is None) or (mine.dhchap and mine.dhchap != theirs.dhchap):
            raise HostError("key refused")
        if target.nvmet.ports[step.portal.port].tls != step.tls:
            raise HostError("the server ended the connection: does the port want TLS?")
        namespace = subsystem.namespaces[0]
        paths = self._paths(step.nqn)
        device = paths[0].device if paths else f"/dev/nvme{len(self.connections) + 10}n1"
        address = f"traddr={step.portal.address},trsvcid={step.portal.port}"
        assert (step.nqn, address) not in self.connections, "connected already"
        ignored = any(item.uuid == namespace.uuid and item.nqn != step.nqn for item in self.connections.values())
        self.connections[step.nqn, address] = Connection(
            instance=len(self.connections) + 10,
            nqn=step.nqn,
            host_nqn=step.host_nqn,
            state="live",
            transport=step.portal.transport,
            address=address,
            device=None if ignored else device,
            uuid=None if ignored else namespace.uuid,
            bytes=MIB,
        )
