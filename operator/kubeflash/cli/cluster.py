"""The cluster read once: objects as the controller sees them, whose agent answers, and what could not be read."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import ValidationError

from kubeflash.api.v1alpha1 import Extent, FlashAttachment, FlashNode, FlashPool, FlashVolume, Resource, Ssd
from kubeflash.cli.asking import NotDone
from kubeflash.domain.cluster import Cluster
from kubeflash.domain.conditions import find
from kubeflash.domain.names import LEADER_LEASE, SYSTEM_NAMESPACE, agent_lease, agent_lease_node
from kubeflash.kube.builtin import LEASE, Namespace, Node
from kubeflash.kube.errors import Conflict, Forbidden, NotFound
from kubeflash.topology.faults import short

if TYPE_CHECKING:  # a second of imports that no dump needs
    from kubeflash.kube.client import Client
    from kubeflash.kube.leases import LeaseView

TOLERANCE = 20.0
"""Seconds that this machine's clock and a server's may be apart before its agent is taken for silent."""
WATCHED = 13.0
"""Seconds that a Lease is watched where it is not clear: an agent renews it every 10 s."""
TRIES = 10
"""Attempts to write an object that others write at the same time."""
SHOWN = 10
"""Names that are listed where another one is not there."""
_SILENT = ("AgentSilent", "Renamed")

JSON = dict[str, Any]
Kind = TypeVar("Kind", bound=Resource)


def connect(kubeconfig: str | None, context: str | None) -> Client:
    """A client for the cluster that a kubeconfig names.

    Raises:
        KubeconfigInvalid: when there is none, or it cannot be used.
    """
    from kubeflash.kube.client import Client, load_configuration  # noqa: PLC0415  a second that no dump needs

    return Client(load_configuration(kubeconfig, context))


def default_namespace(kubeconfig: str | None, context: str | None) -> str:
    """The namespace of the kubeconfig's context, as kubectl takes it."""
    from kubernetes.config import ConfigException, list_kube_config_contexts  # noqa: PLC0415  as above

    try:
        contexts, current = list_kube_config_contexts(config_file=kubeconfig)
    except (ConfigException, OSError, ValueError, TypeError, KeyError, AttributeError):
        return "default"  # in a pod there is none; what is wrong with it the client has said by then
    chosen = next((item for item in contexts if item["name"] == context), current) if context else current
    return str((chosen.get("context") or {}).get("namespace") or "default")


def namespace_said(bodies: Iterable[JSON]) -> str:
    """The namespace that KubeFlash runs in, as most agents say in their FlashNodes (`status.agent.namespace`)."""
    agents = [(body.get("status") or {}).get("agent") or {} for body in bodies]
    counts = Counter(str(agent["namespace"]) for agent in agents if agent.get("namespace"))
    return min(counts, key=lambda name: (-counts[name], name), default=SYSTEM_NAMESPACE)


def system_namespace(client: Client, given: str | None) -> str:
    """The namespace that KubeFlash runs in, where its Leases are: the one given, else the one that its agents say.

    Raises:
        KubeError: as `Client.list`; where FlashNodes may not be listed, or are unknown, it is the usual one.
    """
    if given is not None:
        return given
    try:
        return namespace_said(client.list(FlashNode.info))
    except (Forbidden, NotFound):
        return SYSTEM_NAMESPACE


@dataclass(frozen=True)
class Heartbeat:
    """Whether an agent answers, and how that is known."""

    answers: bool
    words: str


def heartbeat(node: FlashNode | None, lease: LeaseView | None, now: datetime, *, readable: bool = True) -> Heartbeat:
    """Whether the agent of a server answers.

    A command looks once and cannot watch a Lease change: the time in it is compared with this machine's clock. The
    controller does watch: its word in the FlashNode's condition comes first.

    Args:
        node: its FlashNode, None where there is none.
        lease: its Lease, None where there is none.
        now: the time here.
        readable: whether Leases can be read at all; else the condition alone says it.
    """
    if (said := _said_silent(node)) is not None:
        return said
    if not readable:
        if node is None or find(node.status.conditions, "Ready") is None:
            return Heartbeat(False, "has never said anything")
        return Heartbeat(True, "answers, by its FlashNode's condition: Leases cannot be read")
    return _by_clock(lease, now)


def _said_silent(node: FlashNode | None) -> Heartbeat | None:
    """The controller's word that an agent is silent."""
    ready = find(node.status.conditions, "Ready") if node is not None else None
    if ready is None or ready.status != "Unknown" or ready.reason not in _SILENT:
        return None
    return Heartbeat(False, f"does not answer since {ready.last_transition_time:%Y-%m-%d %H:%M} UTC")


def _by_clock(lease: LeaseView | None, now: datetime) -> Heartbeat:
    if lease is None:
        return Heartbeat(False, "has no Lease: it does not run")
    if not lease.holder or lease.renewed is None:
        return Heartbeat(False, "has given its Lease back")
    age = (now - lease.renewed).total_seconds()
    if age > lease.seconds + TOLERANCE:
        return Heartbeat(False, f"does not answer: it renewed its Lease {_ago(age)} ago, by this machine's clock")
    if age < -TOLERANCE:
        return Heartbeat(True, f"answers, or did: its Lease is {_ago(-age)} ahead of this machine's clock")
    return Heartbeat(True, f"answers, {_ago(max(0.0, age))} ago")


def _ago(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"


def heartbeat_of(client: Client, node: FlashNode, system: str) -> Heartbeat:
    """Whether the agent of one server answers; watched for a moment where clock and controller do not agree.

    Args:
        client: the way to the API server.
        node: its FlashNode.
        system: the namespace that KubeFlash runs in.

    Raises:
        KubeError: as `Client.get`.
    """
    from kubeflash.kube.leases import parse  # noqa: PLC0415  a second that no dump needs

    def look() -> LeaseView | None:
        try:
            return parse(client.get(LEASE, agent_lease(node.metadata.name), system))
        except NotFound:
            return None

    try:
        first = look()
    except Forbidden:
        return heartbeat(node, None, datetime.now(UTC), readable=False)
    by_clock, said = _by_clock(first, datetime.now(UTC)), _said_silent(node)
    if first is None or not first.holder or by_clock.answers == (said is None):
        return said or by_clock
    deadline = time.monotonic() + WATCHED
    while time.monotonic() < deadline:
        time.sleep(1.0)
        now = look()
        if now is not None and now.holder and now != first:
            return Heartbeat(True, "answers: it renewed its Lease a moment ago")
    return Heartbeat(False, f"did not renew its Lease for {WATCHED:g} s")


# --- all of it ---


@dataclass(frozen=True)
class Reading:
    """A cluster as it was read.

    Attributes:
        cluster: what the controller decides from.
        heartbeats: by FlashNode's name, whether its agent answers.
        controller: whether a controller leads.
        unread: what could not be read, and what that means.
    """

    cluster: Cluster
    heartbeats: Mapping[str, Heartbeat]
    controller: Heartbeat
    unread: tuple[str, ...] = ()

    def heartbeat(self, name: str) -> Heartbeat:
        """Whether the agent of the server with this name answers."""
        return self.heartbeats.get(name, Heartbeat(False, "has no FlashNode"))


@dataclass
class _Reader:
    client: Client
    system: str | None
    unread: list[str] = field(default_factory=list)

    def objects(self, kind: type[Kind], means: str, namespace: str | None = None) -> dict[str, Kind]:
        """All objects of a kind, by key; of one namespace where that is all that may be listed."""
        plural = kind.info.plural
        try:
            bodies = self.client.list(kind.info)
            if kind is FlashNode:
                self.system = self.system or namespace_said(bodies)
            return keyed(kind, bodies)
        except Forbidden:
            self.unread.append(f"you may not list {plural} (RBAC): {means}")
        if namespace is None:
            return {}
        try:
            if kind is Namespace:
                return keyed(kind, [self.client.get(kind.info, namespace)])
            return keyed(kind, self.client.list(kind.info, namespace=namespace))
        except (Forbidden, NotFound):
            return {}

    def leases(self) -> dict[str, LeaseView] | None:
        from kubeflash.kube.leases import parse  # noqa: PLC0415  a second that no dump needs

        try:
            bodies = self.client.list(LEASE, namespace=self.system or SYSTEM_NAMESPACE)
            return {view.name: view for view in map(parse, bodies)}
        except Forbidden:
            self.unread.append("you may not list leases (RBAC): whether agents answer is taken from their FlashNodes")
            return None


def keyed(kind: type[Kind], bodies: Iterable[JSON]) -> dict[str, Kind]:
    """The objects of a list by key.

    Raises:
        NotDone: when one does not fit its schema.
    """
    return {item.key: item for item in (parsed(kind, body) for body in bodies)}


def parsed(kind: type[Kind], body: JSON) -> Kind:
    """An object as the API server gave it.

    Raises:
        NotDone: when it does not fit its schema.
    """
    try:
        return kind.from_json(body)
    except ValidationError as error:
        first = error.errors()[0]
        name, where = body.get("metadata", {}).get("name", "?"), ".".join(map(str, first["loc"]))
        raise NotDone(
            f"{kind.info.kind} {name} does not fit this release: {where}: {first['msg']}; use the kubectl flash of the "
            "release that runs in the cluster"
        ) from error


def read(
    client: Client, namespace: str | None = None, refusals_of: str | None = None, *, system: str | None = None
) -> Reading:
    """Reads everything that placement is decided from. What may not be read is said, and done without.

    Args:
        client: the way to the API server.
        namespace: the one that matters, where not all may be listed.
        refusals_of: key of the volume whose servers' refusals count.
        system: the namespace that KubeFlash runs in; None: the one that its agents say.
    """
    reader = _Reader(client, system)
    servers = reader.objects(FlashNode, "no server is known")
    pools = reader.objects(FlashPool, "no pool is known")
    volumes = reader.objects(FlashVolume, "what others take of quota and space is not known", namespace)
    attachments = reader.objects(FlashAttachment, "those of other namespaces are not known", namespace)
    nodes = reader.objects(Node, "pools that select servers by labels seem to have none; cordoned ones are not known")
    namespaces = reader.objects(Namespace, "labels of namespaces may not be known", namespace)
    leases, now = reader.leases(), datetime.now(UTC)
    views = {agent_lease_node(name): view for name, view in (leases or {}).items()}
    heartbeats = {
        name: heartbeat(server, views.get(name), now, readable=leases is not None) for name, server in servers.items()
    }
    volume = volumes.get(refusals_of or "")
    leading = leases.get(LEADER_LEASE) if leases is not None else None
    controller = heartbeat(None, leading, now)
    if leases is None:
        controller = Heartbeat(True, "may answer: Leases cannot be read")
    by = volume.status.granted_by if volume is not None else None
    cluster = Cluster(
        now=now,
        pools=pools,
        nodes=servers,
        volumes=volumes,
        attachments=attachments,
        node_labels={name: node.metadata.labels for name, node in nodes.items()},
        namespace_labels={name: item.metadata.labels for name, item in namespaces.items()},
        cordoned=frozenset(name for name, node in nodes.items() if node.spec.unschedulable),
        answering=frozenset(name for name, item in heartbeats.items() if item.answers),
        refusals={volume.metadata.uid: dict(volume.status.refused)} if volume is not None else {},
        leader=(leading.holder if leading is not None else "") or by or "",
    )
    return Reading(cluster, heartbeats, controller, tuple(reader.unread))


def not_there(
    kind: type[Resource], known: Mapping[str, Resource], namespace: str | None, name: str, also: str = ""
) -> NotDone:
    """What to say of an object that is not there: where one of that name is, and what there is instead."""
    elsewhere = sorted(item.key for item in known.values() if item.metadata.name == name)
    there = sorted(item.metadata.name for item in known.values() if namespace in (None, item.metadata.namespace))
    shown = ", ".join(there[:SHOWN]) + (f" and {len(there) - SHOWN} more" if len(there) > SHOWN else "")
    where = f"in namespace {namespace}" if namespace is not None else "in any namespace"
    parts = [f"there is no {kind.info.kind} {name} {where}", *([also] if also else [])]
    parts += [f"elsewhere: {', '.join(elsewhere)}"] if elsewhere else []
    return NotDone("; ".join([*parts, f"there are: {shown or 'none'}"]))


# --- one server ---


def flash_node(client: Client, name: str) -> FlashNode:
    """A server's FlashNode.

    Raises:
        NotDone: when there is none.
        KubeError: as `Client.get`.
    """
    try:
        return parsed(FlashNode, client.get(FlashNode.info, name))
    except NotFound as error:
        known = sorted(body["metadata"]["name"] for body in client.list(FlashNode.info))
        raise NotDone(f"there is no FlashNode {name}; there are: {', '.join(known) or 'none'}") from error


def write_spec(client: Client, name: str, change: Callable[[FlashNode], JSON | None]) -> FlashNode:
    """Merges what `change` makes of a FlashNode into its spec, from the very state that it was made of.

    Args:
        client: the way to the API server.
        name: the FlashNode.
        change: the patch of its spec; None when there is nothing to write. It looks anew whenever others were faster.

    Raises:
        NotDone: when others always are.
        KubeError: as `Client.patch`.
    """
    for _ in range(TRIES):
        node = flash_node(client, name)
        body = change(node)
        if body is None:
            return node
        try:
            return parsed(FlashNode, client.patch(node, {"spec": body}))
        except Conflict:
            continue
    raise NotDone(f"FlashNode {name} changes all the time: nothing was written; try again")


def unpause(name: str) -> str:
    """The command that ends a server's pause."""
    return f'kubectl patch flashnode {name} --type=merge -p \'{{"spec":{{"paused":false}}}}\''


def needs_agent(client: Client, node: FlashNode, system: str) -> None:
    """Sees to it that a server's agent can do something now; the arguments are `heartbeat_of`'s.

    Raises:
        NotDone: when it is paused, or does not answer.
    """
    name = node.metadata.name
    if node.spec.paused:
        raise NotDone(f"server {name} is paused, its agent changes nothing: {unpause(name)} first")
    beat = heartbeat_of(client, node, system)
    if not beat.answers:
        raise NotDone(f"the agent on server {name} {beat.words}: nothing can be done there now; look at it first")


def find_ssd(node: FlashNode, wanted: str) -> Ssd | None:
    """The SSD that is meant: by id, serial, or PCI address, short or long.

    Raises:
        NotDone: when it is several.
    """
    ssds = node.status.ssds
    exact = [ssd for ssd in ssds if ssd.id == wanted]
    found = exact or [ssd for ssd in ssds if wanted in (ssd.serial, ssd.address, short(ssd.address))]
    if len(found) > 1:
        raise NotDone(f"{wanted} is {', '.join(ssd.id for ssd in found)}: give the id of one")
    return found[0] if found else None


def find_extent(node: FlashNode, volume_id: str) -> tuple[Ssd, Extent] | None:
    """The partition with a volume's id, and its SSD; the server's own before one of another's label."""
    found = [(ssd, item) for ssd in node.status.ssds for item in ssd.volumes if item.id == volume_id]
    return min(found, key=lambda pair: pair[0].labelled is not None, default=None)


def orphans(node: FlashNode) -> list[tuple[Ssd, Extent]]:
    """KubeFlash's partitions on a server that no FlashVolume has."""
    return [
        (ssd, item) for ssd in node.status.ssds if ssd.labelled is None for item in ssd.volumes if item.volume is None
    ]


def called(volumes: Sequence[FlashVolume]) -> str:
    """FlashVolumes by name, with what is lost of them."""
    return ", ".join(f"{item.key}{' (Lost)' if item.status.lost is not None else ''}" for item in volumes)


def has_id(volume: FlashVolume, volume_id: str) -> bool:
    """Whether a volume has this id, or is about to."""
    return volume_id in (volume.spec.id, volume.status.id)
