"""Exports of one server: a subsystem and a port number of its own for each attachment. Pure.

Built host first and link last, so that no consumer is told "no" for good; fenced in the order that makes a late write
impossible.

Two passes make an export: the first chooses a port number and *records* it in the volume's status; the next builds it.
So a port that a crash left half made is known as ours, and a number stays the same over a reboot.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address, ip_network

from kubeflash.api.v1alpha1 import Exported, NodeAddress, WantedExport
from kubeflash.domain.fabric import NvmetPort, NvmetState, NvmetSubsystem, Portal
from kubeflash.domain.names import MODEL, attachment_uid, export_identity, is_ours
from kubeflash.domain.steps import (
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
        carved: whether the volume's partition is there and known to the kernel.
        grown: whether it has grown since its size was reported: nvmet has to look again.
    """

    volume: str
    attachment: str
    volume_id: str
    wanted: WantedExport | None
    recorded: Exported | None
    carved: bool
    grown: bool = False


@dataclass(frozen=True)
class ExportPlan:
    """Steps in order, and what to record before they may run: by volume key and attachment; None drops the record."""

    steps: tuple[Step, ...]
    records: Mapping[tuple[str, str], Exported | None]


def addresses_for(networks: Sequence[str], addresses: Sequence[NodeAddress], internal: str) -> tuple[str, ...]:
    """The addresses to export on: those in one of the networks; without networks the server's internal address."""
    if not networks:
        return (internal,) if internal else ()
    nets = [ip_network(network, strict=False) for network in networks]
    fitting = {item.address for item in addresses if any(ip_address(item.address) in net for net in nets)}
    return tuple(sorted(fitting))


def choose_port(ports: str, taken: Collection[int]) -> int | None:
    """The lowest number of a `first-last` range that nobody has; None when all are taken."""
    first, _, last = ports.partition("-")
    return next((number for number in range(int(first), int(last) + 1) if number not in taken), None)


def plan_exports(
    wishes: Iterable[ExportWish],
    nvmet: NvmetState,
    *,
    addresses: Sequence[NodeAddress],
    internal: str,
    listening: Collection[int],
) -> ExportPlan:
    """The steps that bring nvmet to what the controller wants of this server.

    Args:
        wishes: everything wanted or recorded; the list must be complete, since what is not in it is fenced.
        nvmet: the tree as it is; what is not KubeFlash's in it is left alone.
        addresses: addresses of the server.
        internal: the one to use when a pool names no network.
        listening: TCP port numbers that somebody listens on.
    """
    everything = list(wishes)
    steps: list[Step] = []
    records: dict[tuple[str, str], Exported | None] = {}
    taken = set(listening) | set(nvmet.ports) | {int(p.service) for p in nvmet.ports.values() if p.service.isdigit()}
    taken |= {portal.port for wish in everything for portal in _portals(wish.recorded)}
    live: set[str] = set()
    for wish in sorted(everything, key=lambda item: (item.volume, item.attachment)):
        key = (wish.volume, wish.attachment)
        wanted, recorded = wish.wanted, wish.recorded
        if wanted is None or (recorded is not None and recorded.uid != wanted.uid):
            gone = export_identity(recorded.uid).nqn if recorded else ""
            fencing = _fence(gone, nvmet, _portals(recorded)) if recorded else []
            steps += fencing
            if not fencing:
                records[key] = None
            continue
        live.add(wanted.nqn)
        if recorded is None or not recorded.portals:
            records[key] = _reserve(wanted, addresses, internal, taken)
            continue
        stolen = [
            str(portal.port)
            for portal in _portals(recorded)
            if portal.port in nvmet.ports and not _is_own(nvmet.ports[portal.port], portal, wanted.nqn)
        ]
        build = _build(wish.volume_id, wanted, _portals(recorded), nvmet) if wish.carved and not stolen else []
        steps += build
        if wish.grown and wish.carved and not build and not stolen:
            steps.append(RevalidateNamespace(wanted.nqn, NSID))
        now = Exported(
            uid=recorded.uid,
            portals=recorded.portals,
            ready=wish.carved and not stolen and not build,
            message=f"somebody else uses nvmet port {', '.join(stolen)}: remove theirs, or make the attachment anew"
            if stolen
            else "",
        )
        if now != recorded:
            records[key] = now
    known = {export_identity(wish.recorded.uid).nqn for wish in everything if wish.recorded} | live
    for nqn in sorted(set(nvmet.subsystems) | {_subsystem_of(host) for host in nvmet.hosts if is_ours(host)}):
        if is_ours(nqn) and nqn not in known:
            steps += _fence(nqn, nvmet, ())
    return ExportPlan(tuple(steps), records)


def _subsystem_of(host_nqn: str) -> str:
    uid = attachment_uid(host_nqn)
    return export_identity(uid).nqn if uid else ""


def _portals(recorded: Exported | None) -> tuple[Portal, ...]:
    return tuple(Portal.parse(text) for text in recorded.portals) if recorded else ()


def _reserve(wanted: WantedExport, addresses: Sequence[NodeAddress], internal: str, taken: set[int]) -> Exported:
    where = addresses_for(wanted.networks, addresses, internal)
    if not where:
        has = ", ".join(item.address for item in addresses) or "none"
        return Exported(
            uid=wanted.uid, message=f"no address of this server lies in {', '.join(wanted.networks)}; it has: {has}"
        )
    portals: list[str] = []
    for address in where:
        number = choose_port(wanted.ports, taken)
        if number is None:
            message = f"all port numbers of {wanted.ports} are taken; widen spec.export.ports of the pool"
            return Exported(uid=wanted.uid, message=message)
        taken.add(number)
        portals.append(str(Portal("tcp", address, number)))
    return Exported(uid=wanted.uid, portals=portals)


def _build(volume_id: str, wanted: WantedExport, portals: Iterable[Portal], nvmet: NvmetState) -> list[Step]:
    """What is missing of an export, in the only order in which no consumer can be told `no` too early."""
    nqn = wanted.nqn
    steps: list[Step] = []
    subsystem = nvmet.subsystems.get(nqn)
    if wanted.host_nqn not in nvmet.hosts:
        steps.append(CreateHost(nqn, wanted.host_nqn, wanted.sealed_keys))
    if subsystem is None:
        steps.append(CreateSubsystem(nqn, export_identity(wanted.uid).serial, MODEL))
    if subsystem is None or wanted.host_nqn not in subsystem.allowed_hosts:
        steps.append(AllowHost(nqn, wanted.host_nqn))
    if subsystem is None or not _namespace_ready(subsystem, volume_id):
        steps.append(EnableNamespace(nqn, volume_id))
    for portal in portals:
        port = nvmet.ports.get(portal.port)
        if port is not None and nqn in port.subsystems:
            continue
        if port is None or not port.service:
            steps.append(CreatePort(nqn, portal.port, portal))
        steps.append(LinkPort(nqn, portal.port))
    return steps


def _is_own(port: NvmetPort, portal: Portal, nqn: str) -> bool:
    """Whether a port that we recorded still is ours: nobody else's subsystem on it, our address or (half made) none."""
    found = (port.transport, port.address, port.service)
    ours = (portal.transport, portal.address, str(portal.port))
    return port.subsystems <= {nqn} and all(
        value in ("", expected) for value, expected in zip(found, ours, strict=True)
    )


def _namespace_ready(subsystem: NvmetSubsystem, volume_id: str) -> bool:
    return any(ns.nsid == NSID and ns.uuid == volume_id and ns.enabled for ns in subsystem.namespaces)


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
    if host_nqn in nvmet.hosts:
        steps.append(RemoveHost(nqn, host_nqn))
    return steps
