"""Exports of one server: a subsystem and port numbers of its own for each attachment. Pure.

Built host first and link last, so that no consumer is told "no" for good; fenced in the order that makes a late write
impossible; and no export of an exclusive volume is built while another one of it is still there.

Two passes make an export: the first chooses port numbers and *records* them in the volume's status; the next builds it.
So a port that a crash left half made is known as ours, and a number stays the same over a reboot.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import PurePosixPath

from kubeflash.api.v1alpha1 import Exported, NodeAddress, WantedExport
from kubeflash.domain.fabric import NvmetPort, NvmetState, NvmetSubsystem, Portal
from kubeflash.domain.names import MODEL, attachment_uid, export_identity, is_ours
from kubeflash.domain.steps import (
    AddTlsKey,
    AllowHost,
    CreateHost,
    CreatePort,
    CreateSubsystem,
    DisableNamespace,
    DisallowHost,
    EnableNamespace,
    LinkPort,
    RemoveHost,
    RemovePort,
    RemoveSubsystem,
    RemoveTlsKey,
    ReplaceDevice,
    RevalidateNamespace,
    Step,
    UnlinkPort,
)

NSID = 1


@dataclass(frozen=True)
class ExportWish:
    """One attachment's export that the controller wants, or that is still recorded.

    Attributes:
        volume: key of the volume.
        attachment: name of the attachment.
        wanted: what the controller wants; None when it wants it gone.
        recorded: what the volume's status says that this agent has.
        device: kernel name of the volume's partition; None while it is not there.
        grown: whether it has grown since its size was reported: nvmet has to look again.
    """

    volume: str
    attachment: str
    volume_id: str
    wanted: WantedExport | None
    recorded: Exported | None
    device: str | None
    grown: bool = False


@dataclass(frozen=True)
class ExportPlan:
    """Steps in order, and what to record before they may run: by volume key and attachment; None drops the record."""

    steps: tuple[Step, ...]
    records: Mapping[tuple[str, str], Exported | None]


@dataclass(frozen=True)
class Ground:
    """What an export stands on: this server's addresses, and who listens there.

    Attributes:
        addresses: the server's addresses.
        internal: the one to use when a pool names no network; empty when there is none now.
        listening: TCP port numbers that somebody listens on, read before nvmet's tree was: what listens there and is
            not linked in the tree is a stranger's.
        refused: port numbers that the kernel said somebody else has, when they were to be linked.
    """

    addresses: Sequence[NodeAddress]
    internal: str
    listening: Collection[int]
    refused: Collection[int] = field(default=frozenset())

    def has(self, address: str) -> bool:
        """Whether the server has this address now."""
        return address == self.internal or any(item.address == address for item in self.addresses)


def addresses_for(networks: Sequence[str], addresses: Sequence[NodeAddress], internal: str) -> tuple[str, ...]:
    """The addresses to export on: those in one of the networks; without networks the server's internal address."""
    if not networks:
        return (internal,) if internal else ()
    nets = _networks(networks)
    fitting = {item.address for item in addresses if any(ip_address(item.address) in net for net in nets)}
    return tuple(sorted(fitting))


def _networks(networks: Sequence[str]) -> list[IPv4Network | IPv6Network]:
    return [ip_network(network, strict=False) for network in networks]


def choose_port(ports: str, taken: Collection[int]) -> int | None:
    """The lowest number of a `first-last` range that nobody has; None when all are taken."""
    first, _, last = ports.partition("-")
    return next((number for number in range(int(first), int(last) + 1) if number not in taken), None)


def plan_exports(wishes: Iterable[ExportWish], nvmet: NvmetState, ground: Ground) -> ExportPlan:
    """The steps that bring nvmet to what the controller wants of this server.

    Args:
        wishes: everything wanted or recorded; the list must be complete, since what is not in it is fenced.
        nvmet: the tree as it is; what is not KubeFlash's in it is left alone.
        ground: addresses, and who listens.
    """
    everything = sorted(wishes, key=lambda item: (item.volume, item.attachment))
    steps: list[Step] = []
    records: dict[tuple[str, str], Exported | None] = {}
    taken = set(ground.listening) | set(ground.refused) | set(nvmet.ports)
    taken |= {int(port.service) for port in nvmet.ports.values() if port.service.isdigit()}
    on_record = Counter(portal.port for wish in everything for portal in _portals(wish.recorded))
    taken |= set(on_record)
    contested = {number for number, count in on_record.items() if count > 1}
    known: set[str] = set()
    for wish in everything:
        key = (wish.volume, wish.attachment)
        wanted, recorded = wish.wanted, wish.recorded
        if recorded is not None:
            known.add(export_identity(recorded.uid).nqn)
        if wanted is None or (recorded is not None and recorded.uid != wanted.uid):
            fencing = _fence(export_identity(recorded.uid).nqn, nvmet, _portals(recorded)) if recorded else []
            steps += fencing
            if not fencing:
                records[key] = None
            elif recorded is not None and not recorded.fencing:
                records[key] = recorded.model_copy(update={"ready": False, "fencing": True, "message": ""})
            continue
        known.add(wanted.nqn)
        more, now = _serve(wish, wanted, nvmet, ground, _Numbers(taken, contested))
        steps += more
        if now != recorded:
            records[key] = now
    for nqn in sorted(_ours(nvmet) - known):
        steps += _fence(nqn, nvmet, ())
    return ExportPlan(tuple(steps), records)


@dataclass(frozen=True)
class _Numbers:
    """Port numbers that are taken, and those that several exports have on record, as when an SSD came with them."""

    taken: set[int]
    contested: set[int]


def _serve(
    wish: ExportWish, wanted: WantedExport, nvmet: NvmetState, ground: Ground, numbers: _Numbers
) -> tuple[list[Step], Exported]:
    """The steps of one export that is wanted, and what to say of it."""
    nqn, before = wanted.nqn, wish.recorded or Exported(uid=wanted.uid)
    stolen = [portal for portal in _portals(before) if _is_stolen(portal, nqn, nvmet, ground)]
    clearing: list[Step] = [
        RemovePort(nqn, portal.port)
        for portal in stolen
        if portal.port in nvmet.ports and _is_own(nvmet.ports[portal.port], portal, nqn)
    ]
    if clearing:
        return clearing, before
    portals, words = _reserve(wanted, _portals(before), set(stolen), ground, numbers)
    if portals != _portals(before) or wish.recorded is None:
        text = [str(portal) for portal in portals]
        return [], Exported(uid=wanted.uid, portals=text, message=words)
    others = _other_exports(wish.volume_id, nqn, nvmet) if not wanted.shared else []
    if wish.device is None:
        return [], before.model_copy(update={"ready": False, "message": "the volume's partition is not there"})
    if others:
        message = f"waiting until another export of the volume is gone: {', '.join(others)}"
        return [], before.model_copy(update={"ready": False, "message": message})
    there = [portal for portal in portals if ground.has(portal.address)]
    steps = _build(wish.volume_id, wish.device, wanted, there, nvmet)
    if wish.grown and not steps:
        steps.append(RevalidateNamespace(nqn, NSID))
    building = any(not isinstance(step, RevalidateNamespace) for step in steps)
    late = [portal.address for portal in portals if portal not in there]
    if late:
        words = f"waiting for address {', '.join(late)}: no interface of this server has it now"
    return steps, before.model_copy(update={"ready": bool(there) and not building, "message": words})


def _ours(nvmet: NvmetState) -> set[str]:
    """NQNs of KubeFlash's subsystems of which anything is there, be it the host that a crash left.

    Not by TLS keys: those of this server's own connections are in the same keyring.
    """
    hosts = {_subsystem_of(host) for host in nvmet.hosts if is_ours(host)}
    return {nqn for nqn in (*nvmet.subsystems, *hosts) if is_ours(nqn)}


def _other_exports(volume_id: str, nqn: str, nvmet: NvmetState) -> list[str]:
    return sorted(
        subsystem.nqn
        for subsystem in nvmet.subsystems.values()
        if subsystem.nqn != nqn and any(ns.uuid == volume_id for ns in subsystem.namespaces)
    )


def _subsystem_of(host_nqn: str) -> str:
    uid = attachment_uid(host_nqn)
    return export_identity(uid).nqn if uid else ""


def _portals(recorded: Exported | None) -> tuple[Portal, ...]:
    return tuple(Portal.parse(text) for text in recorded.portals) if recorded else ()


def _is_stolen(portal: Portal, nqn: str, nvmet: NvmetState, ground: Ground) -> bool:
    """Whether somebody else has the port number that was chosen, on this address or any other."""
    port = nvmet.ports.get(portal.port)
    if port is not None and not _is_own(port, portal, nqn):
        return True
    if port is not None and nqn in port.subsystems:
        return False
    return portal.port in ground.refused or (portal.transport == "tcp" and portal.port in ground.listening)


def _reserve(
    wanted: WantedExport, before: tuple[Portal, ...], stolen: set[Portal], ground: Ground, numbers: _Numbers
) -> tuple[tuple[Portal, ...], str]:
    """The portals of an export: those that it has, one for each address that has none, and what is wrong with that.

    What was chosen stays. An address that is gone is waited for, unless its network gave the server a new one in its
    place; a number that somebody else took is chosen anew: consumers take the new portal as another path.
    """
    portals = [portal for portal in before if portal not in stolen]
    mine = {portal.address for portal in portals}
    new = [item for item in addresses_for(wanted.networks, ground.addresses, ground.internal) if item not in mine]
    for address in new:
        replaced = next(
            (item for item in portals if not ground.has(item.address) and _same(item, address, wanted)), None
        )
        keeps = replaced is not None and replaced.port not in numbers.contested
        number = replaced.port if replaced is not None and keeps else choose_port(wanted.ports, numbers.taken)
        if number is None:
            return tuple(portals), f"all port numbers of {wanted.ports} are taken; widen spec.export.ports of the pool"
        if replaced is not None:
            portals.remove(replaced)
        numbers.taken.add(number)
        portals.append(Portal(wanted.transport, address, number))
    if portals:
        return tuple(portals), ""
    if not wanted.networks:
        return (), "this server has no way to the API server now, and the pool names no network to export on"
    has = ", ".join(item.address for item in ground.addresses) or "none"
    return (), f"no address of this server lies in {', '.join(wanted.networks)}; it has: {has}"


def _same(portal: Portal, address: str, wanted: WantedExport) -> bool:
    """Whether an address is in the network that a portal's is in; a pool without networks has but one."""
    one, other = ip_address(portal.address), ip_address(address)
    return not wanted.networks or any(one in net and other in net for net in _networks(wanted.networks))


def _build(
    volume_id: str, device: str, wanted: WantedExport, portals: Iterable[Portal], nvmet: NvmetState
) -> list[Step]:
    """What is missing of an export, in the only order in which no consumer can be told `no` too early."""
    nqn, keyed = wanted.nqn, wanted.authentication != "None"
    tls = wanted.tls == "Required"
    steps: list[Step] = []
    subsystem, host = nvmet.subsystems.get(nqn), nvmet.hosts.get(wanted.host_nqn)
    if host is None or host.authenticated != keyed:  # a crash can leave a host without its keys
        steps.append(CreateHost(nqn, wanted.host_nqn, wanted.sealed_keys, keyed))
    if tls and (wanted.host_nqn, nqn) not in nvmet.tls_keys:
        steps.append(AddTlsKey(nqn, wanted.host_nqn, wanted.sealed_keys))
    if subsystem is None:
        steps.append(CreateSubsystem(nqn, export_identity(wanted.uid).serial, MODEL))
    else:
        steps += [DisallowHost(nqn, other) for other in sorted(subsystem.allowed_hosts - {wanted.host_nqn})]
    if subsystem is None or wanted.host_nqn not in subsystem.allowed_hosts:
        steps.append(AllowHost(nqn, wanted.host_nqn))
    steps += _namespace(volume_id, device, wanted, subsystem)
    for portal in portals:
        port = nvmet.ports.get(portal.port)
        if port is not None and nqn in port.subsystems:
            continue
        if port is None or not port.service or port.tls != tls:
            steps.append(CreatePort(nqn, portal.port, portal, tls))
        steps.append(LinkPort(nqn, portal.port, keyed))
    return steps


def _namespace(volume_id: str, device: str, wanted: WantedExport, subsystem: NvmetSubsystem | None) -> Iterator[Step]:
    """What the namespace needs: to be there, or a device that lives."""
    ready = [ns for ns in subsystem.namespaces if ns.nsid == NSID and ns.uuid == volume_id] if subsystem else []
    if not ready or not ready[0].enabled:
        yield EnableNamespace(wanted.nqn, volume_id, wanted.shared)
    elif PurePosixPath(ready[0].device).name != device:
        yield ReplaceDevice(wanted.nqn, NSID, volume_id, ready[0].device)


def _is_own(port: NvmetPort, portal: Portal, nqn: str) -> bool:
    """Whether a port that we recorded still is ours: nobody else's subsystem on it, our address or (half made) none."""
    found = (port.transport, port.address, port.service)
    ours = (portal.transport, portal.address, str(portal.port))
    return port.subsystems <= {nqn} and all(
        value in ("", expected) for value, expected in zip(found, ours, strict=True)
    )


def _fence(nqn: str, nvmet: NvmetState, recorded: Sequence[Portal]) -> list[Step]:
    """Take an export down: allow-list, unlink, disable and wait, remove. Empty when nothing of it is left."""
    steps: list[Step] = []
    uid = attachment_uid(nqn)
    host_nqn = export_identity(uid).host_nqn if uid else ""
    subsystem = nvmet.subsystems.get(nqn)
    linked = sorted(number for number, port in nvmet.ports.items() if nqn in port.subsystems)
    if subsystem is not None:
        steps += [DisallowHost(nqn, host) for host in sorted(subsystem.allowed_hosts)]
        steps += [UnlinkPort(nqn, number) for number in linked]
        steps += [DisableNamespace(nqn, ns.nsid) for ns in subsystem.namespaces]
        steps.append(RemoveSubsystem(nqn))
    own = {
        portal.port
        for portal in recorded
        if portal.port in nvmet.ports and _is_own(nvmet.ports[portal.port], portal, nqn)
    }
    own |= {number for number in linked if nvmet.ports[number].subsystems == {nqn}}
    steps += [RemovePort(nqn, number) for number in sorted(own)]
    if (host_nqn, nqn) in nvmet.tls_keys:
        steps.append(RemoveTlsKey(nqn, host_nqn))
    if host_nqn in nvmet.hosts:
        # last: by it what a crash left of an export without a record is found again, its port excepted
        steps.append(RemoveHost(nqn, host_nqn))
    return steps
