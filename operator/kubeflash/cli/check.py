"""`kubectl flash check`: is this installation sound, what is missing where, and how to mend it. It only reads.

What it needs: the version of the API server, get on the four CRDs, on the admission policies and on the agents'
DaemonSet, list on FlashNodes, FlashPools and Nodes, and on the Leases of KubeFlash's namespace. What it may not read it
cannot call sound.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

from kubeflash import __version__
from kubeflash.api.v1alpha1 import KINDS, FlashNode, FlashPool, KindInfo
from kubeflash.cli import cluster, data
from kubeflash.cli.asking import NotDone
from kubeflash.cli.terminal import Terminal, clean
from kubeflash.cli.text import count
from kubeflash.domain.conditions import find
from kubeflash.domain.kernel import kernel_problems
from kubeflash.domain.names import LEADER_LEASE, SYSTEM_NAMESPACE, agent_lease
from kubeflash.kube.builtin import CRD, DAEMON_SET, LEASE, POLICY, POLICY_BINDING, Node
from kubeflash.kube.errors import APPLY_CRDS, Forbidden, NotFound, ServerError, Unreachable

if TYPE_CHECKING:
    from kubeflash.kube.client import Client
    from kubeflash.kube.leases import LeaseView

OLDEST = (1, 32)
"""The first Kubernetes whose API servers serve what KubeFlash needs: selectable fields of CRDs."""
INTERVAL = 2.0
"""Seconds between two looks while it is waited."""
AGENTS = "kubeflash-agent"
"""The agents' DaemonSet."""
POLICIES = {
    "kubeflash-agent": "kubeflash-agent",
    "kubeflash-agent-lease": "kubeflash-agent",
    "kubeflash-agent-event": "kubeflash-agent",
    "kubeflash-controller": "kubeflash-controller",
}
"""The chart's admission policies, each of the ServiceAccount that it holds to its own."""
NAMED = 10
"""Nodes that a finding names at the most."""
FIRST_POOL = (
    "there is none yet, so no SSD is used. The first one: kubectl flash topology shows the SSDs and their ids; then a "
    "FlashPool with spec.ssds.ids and spec.allowedNamespaces (kubectl explain flashpool.spec)"
)

JSON = dict[str, Any]


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong (a fault), or that an admin should know of (a note), with what to do."""

    level: Literal["Fault", "Note"]
    about: str
    message: str


@dataclass(frozen=True)
class State:
    """What was read of a cluster.

    Attributes:
        version: of the API server, such as (1, 37); None: it does not say.
        agents: how many agents there shall be, and how many run and are ready; None: there is no DaemonSet.
        policies: by name of an admission policy, the policy and its binding; None: it is not there.
        crds: by name of a CRD, what it lacks that this version needs; None: it is not there.
        leases: those of KubeFlash's namespace, by name.
        nodes: the cluster's Nodes, as the API server gives them.
        unread: what could not be read, and why.
    """

    version: tuple[int, int] | None = None
    crds: Mapping[str, Sequence[str] | None] = field(default_factory=dict)
    agents: tuple[int, int] | None = (0, 0)
    policies: Mapping[str, tuple[JSON | None, JSON | None]] = field(default_factory=dict)
    system: str = SYSTEM_NAMESPACE
    leases: Mapping[str, LeaseView] | None = None
    servers: Sequence[FlashNode] | None = None
    pools: Sequence[FlashPool] | None = None
    nodes: Sequence[JSON] | None = None
    unread: Sequence[str] = ()


def read(client: Client, system: str | None) -> State:
    """Reads everything that findings follow from.

    Raises:
        KubeError: when the API server does not answer, or knows not who asks.
    """
    from kubeflash.kube.leases import parse  # noqa: PLC0415  a second that no dump needs

    reader = _Reader(client)
    crds = reader.crds()
    servers = reader.bodies(FlashNode.info, crds)
    system = system or cluster.namespace_said(servers or ())
    leases = reader.bodies(LEASE, crds, system)
    pools = reader.bodies(FlashPool.info, crds)
    return State(
        version=reader.version(),
        crds=crds,
        agents=reader.agents(system),
        policies=reader.policies(),
        system=system,
        leases={view.name: view for view in map(parse, leases)} if leases is not None else None,
        servers=reader.parsed(FlashNode, servers),
        pools=reader.parsed(FlashPool, pools),
        nodes=reader.bodies(Node.info, crds),
        unread=tuple(reader.unread),
    )


@dataclass
class _Reader:
    client: Client
    unread: list[str] = field(default_factory=list)

    def version(self) -> tuple[int, int] | None:
        try:
            said = self.client.call("GET", "/version")
        except Forbidden as error:
            self.unread.append(f"the API server's version: {error}")
            return None
        numbers = [re.match("[0-9]+", str(said.get(name, ""))) for name in ("major", "minor")]
        return (int(numbers[0][0]), int(numbers[1][0])) if numbers[0] and numbers[1] else None

    def crds(self) -> dict[str, Sequence[str] | None]:
        from kubeflash.kube.schema import crd_name, lacking  # noqa: PLC0415  as above

        found: dict[str, Sequence[str] | None] = {}
        for kind in KINDS:
            name = crd_name(kind)
            try:
                found[name] = lacking(kind, self.client.get(CRD, name))
            except NotFound:
                found[name] = None
            except Forbidden as error:
                self.unread.append(f"CRD {name}: {error}")
        return found

    def agents(self, system: str) -> tuple[int, int] | None:
        try:
            status = self.client.get(DAEMON_SET, AGENTS, system).get("status") or {}
        except NotFound:
            return None
        except Forbidden as error:
            self.unread.append(f"daemonsets: {error}")
            return 0, 0
        return int(status.get("desiredNumberScheduled") or 0), int(status.get("numberReady") or 0)

    def policies(self) -> dict[str, tuple[JSON | None, JSON | None]]:
        try:
            return {name: (self._policy(POLICY, name), self._policy(POLICY_BINDING, name)) for name in POLICIES}
        except Forbidden as error:
            self.unread.append(f"admission policies: {error}")
            return {}

    def _policy(self, info: KindInfo, name: str) -> JSON | None:
        try:
            return self.client.get(info, name)
        except NotFound:
            return None

    def bodies(
        self, info: Any, crds: Mapping[str, Sequence[str] | None], namespace: str | None = None
    ) -> list[JSON] | None:
        """All objects of a kind; None where they may not be listed, or the kind is not there."""
        if crds.get(f"{info.plural}.{info.group}", ()) is None:
            return None
        try:
            return self.client.list(info, namespace=namespace)
        except (Forbidden, NotFound) as error:
            self.unread.append(f"{info.plural}: {error}")
            return None

    def parsed(self, kind: type[cluster.Kind], bodies: Sequence[JSON] | None) -> list[cluster.Kind] | None:
        """Those that fit this version's schema; of one that does not it is said."""
        if bodies is None:
            return None
        found: list[cluster.Kind] = []
        for body in bodies:
            try:
                found.append(cluster.parsed(kind, body))
            except NotDone as error:
                self.unread.append(str(error))
        return sorted(found, key=lambda item: item.metadata.name)


# --- findings: pure ---


def findings(state: State, now: datetime) -> list[Finding]:
    """What is wrong, then what an admin should know. Pure."""
    every = [
        *(_fault("reading", f"{words}: what may not be read cannot be called sound") for words in state.unread),
        *_version(state),
        *_crds(state),
        *_policies(state),
        *_controller(state, now),
        *_servers(state, now),
        *_nodes(state),
        *_pools(state),
    ]
    return sorted(every, key=lambda item: item.level != "Fault")


def _fault(about: str, message: str) -> Finding:
    return Finding("Fault", about, message)


def _note(about: str, message: str) -> Finding:
    return Finding("Note", about, message)


def _version(state: State) -> Iterator[Finding]:
    if state.version is not None and state.version < OLDEST:
        has, needs = (".".join(map(str, item)) for item in (state.version, OLDEST))
        yield _fault("API server", f"it is Kubernetes {has}, and KubeFlash needs {needs} or later: upgrade the cluster")


def _crds(state: State) -> Iterator[Finding]:
    missing = [name for name, lacks in state.crds.items() if lacks is None]
    if missing:
        yield _fault("CRDs", f"{', '.join(missing)}: not in this cluster; {APPLY_CRDS}")
    for name, lacks in state.crds.items():
        if lacks:
            more = f" and {len(lacks) - NAMED} more" if len(lacks) > NAMED else ""
            words = f"older than KubeFlash {__version__}: it lacks {', '.join(lacks[:NAMED])}{more}; {APPLY_CRDS}"
            yield _fault(f"CRD {name}", words)


def _policies(state: State) -> Iterator[Finding]:
    for name, (policy, binding) in state.policies.items():
        account = f"system:serviceaccount:{state.system}:{POLICIES[name]}"
        if policy is None or binding is None:
            words = "it, or its binding, is not there"
        elif not any(f'"{account}"' in item["expression"] for item in policy["spec"].get("matchConditions") or ()):
            words = (
                f"it does not hold {account}: KubeFlash was put into namespace {state.system} by a change of manifests"
            )
        elif "Deny" not in (binding["spec"].get("validationActions") or ()):
            words = "its binding does not deny"
        else:
            continue
        again = "apply the chart, or its manifest, anew: helm template -n NAMESPACE makes one for another namespace"
        yield _fault(f"policy {name}", f"{words}, so that root on one server may write what is another's: {again}")


def _controller(state: State, now: datetime) -> Iterator[Finding]:
    if state.leases is None:
        return
    beat = cluster.heartbeat(None, state.leases.get(LEADER_LEASE), now)
    if not beat.answers:
        look = f"kubectl get pods -n {state.system}, and the log of kubeflash-controller"
        words = f"none leads: Lease {LEADER_LEASE} in namespace {state.system}: it {beat.words}"
        yield _fault("controller", f"{words}; look at {look}; another namespace is given with --system-namespace")


def _servers(state: State, now: datetime) -> Iterator[Finding]:
    if state.agents is None:
        words = f"KubeFlash is not installed in namespace {state.system}: it has no DaemonSet {AGENTS}"
        yield _fault("agents", f"{words}; another namespace is given with --system-namespace")
    elif state.agents[1] < state.agents[0]:
        words = f"{state.agents[1]} of {state.agents[0]} are ready: kubectl get pods -o wide -n {state.system}"
        yield _fault("agents", f"{words}, and kubectl describe of those that are not")
    if state.servers is not None and not state.servers:
        words = (
            "no agent has made a FlashNode: does DaemonSet kubeflash-agent select Nodes with GPUs, and do its pods run?"
        )
        yield _fault("servers", f"{words} kubectl get daemonset,pods -n {state.system}")
    for server in state.servers or ():
        yield from _server(server, state, now)


def _server(server: FlashNode, state: State, now: datetime) -> Iterator[Finding]:
    about, name, status = f"server {server.metadata.name}", server.metadata.name, server.status
    if state.leases is not None:
        beat = cluster.heartbeat(server, state.leases.get(agent_lease(name)), now)
        if not beat.answers:
            look = f"kubectl get pods -n {state.system} -o wide --field-selector spec.nodeName={name}"
            words = (
                f"its agent {beat.words}; look at {look}; if the server is lost for good: kubectl flash purge {name}"
            )
            yield _fault(about, words)
    yield from _skew(about, status.agent.version if status.agent is not None else "")
    takes_part = status.gpus or any(ssd.state == "Claimed" for ssd in status.ssds)
    for problem in kernel_problems(status.linux) if status.linux is not None else ():
        # an admin who takes no volumes on it knows of it; a server without GPU and pool is nobody's concern
        yield _fault(about, problem) if takes_part and not server.spec.maintenance else _note(about, problem)
    ready = find(status.conditions, "Ready")
    if ready is not None and (ready.status == "False" or ready.reason == "InDoubt"):
        yield _fault(about, f"{ready.reason}: {ready.message}")
    for ssd in status.ssds:
        if ssd.failing:
            yield _note(about, f"SSD {ssd.id} gets no new volumes: {ssd.failing}")
    if server.spec.paused:
        yield _note(about, f"it is paused, its agent changes nothing: {cluster.unpause(name)}")
    if server.spec.maintenance:
        yield _note(about, "it is in maintenance (spec.maintenance): it gets no new volumes")
    if status.summary is None:
        return
    if not status.gpus:
        yield _note(about, "it has no GPU that counts as one: agent.gpus of the chart (--gpu VENDOR:CLASS) adds others")
    if not status.ssds:
        yield _note(about, "it has no NVMe SSD: volumes of other servers can be used there")
    elif status.gpus and status.summary.neighbours.startswith("0/"):
        yield _note(about, f"no GPU has a neighbour SSD; the nearest are used: kubectl flash topology {name}")


def _skew(about: str, version: str) -> Iterator[Finding]:
    if not version:
        yield _note(about, "its agent does not say its version")
        return
    if version == __version__:
        return
    theirs, ours = _minor(version), _minor(__version__)
    words = f"its agent is KubeFlash {version}, this is {__version__}"
    if theirs is None or ours is None or theirs[0] != ours[0] or abs(theirs[1] - ours[1]) > 1:
        yield _fault(
            about, f"{words}: more than one minor version apart; upgrade one after the other, without leaving one out"
        )
    else:
        yield _note(about, f"{words}: an upgrade that goes on, or stopped half-way")


def _minor(version: str) -> tuple[int, int] | None:
    found = re.match(r"v?([0-9]+)\.([0-9]+)", version)
    return (int(found[1]), int(found[2])) if found else None


def _nodes(state: State) -> Iterator[Finding]:
    if state.nodes is None or state.servers is None:
        return
    servers = {item.metadata.name for item in state.servers}
    known = {str(body["metadata"]["name"]): body for body in state.nodes}
    for name, body in sorted(known.items()):
        if name in servers and not _is_ready(body):
            yield _fault(f"server {name}", f"its Node is not Ready: kubectl describe node {name}")
    without = sorted(known.keys() - servers)
    gpus = [name for name in without if _has_gpus(known[name])]
    others = [name for name in without if name not in gpus]
    why = "does DaemonSet kubeflash-agent select it, and does its pod run?"
    if gpus:
        yield _note(
            "Nodes", f"{_named(gpus)}: with GPUs, by their allocatable resources, and no agent speaks for them: {why}"
        )
    if others:
        yield _note("Nodes", f"{_named(others)}: no agent speaks for {'it' if len(others) == 1 else 'them'}")
    for name in sorted(servers - known.keys()):
        yield _note(
            f"server {name}", "there is no Node of its name: if it is gone for good: kubectl flash purge " + name
        )


def _is_ready(body: JSON) -> bool:
    conditions = (body.get("status") or {}).get("conditions") or ()
    return any(item.get("type") == "Ready" and item.get("status") == "True" for item in conditions)


def _has_gpus(body: JSON) -> bool:
    """Whether a device plugin counts GPUs on a Node, whoever made them: nvidia.com/gpu, amd.com/gpu."""
    resources = (body.get("status") or {}).get("allocatable") or {}
    return any(name.endswith("/gpu") and str(number) != "0" for name, number in resources.items())


def _named(names: Sequence[str]) -> str:
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")


def _pools(state: State) -> Iterator[Finding]:
    if state.pools is None:
        return
    if not state.pools:
        yield _note("pools", FIRST_POOL)
    for pool in state.pools:
        about, ready = f"pool {pool.metadata.name}", find(pool.status.conditions, "Ready")
        if ready is None:
            yield _fault(about, "no controller has looked at it yet")
        elif ready.status != "True":
            yield _fault(about, f"not Ready: {ready.reason}: {ready.message}")
        elif ready.message:
            yield _note(about, f"{ready.reason}: {ready.message}")


# --- what is printed ---


def run(options: argparse.Namespace, client: Client) -> tuple[str, bool]:
    """Looks, and with --wait goes on until there is no fault; what to print, and whether the installation is sound.

    Raises:
        KubeError: when the API server does not answer.
    """
    deadline = time.monotonic() + (options.wait or 0.0)
    while True:
        late = time.monotonic() >= deadline
        try:
            state = read(client, options.system_namespace)
        except (Unreachable, ServerError):
            if late:
                raise
        else:
            found = findings(state, datetime.now(UTC))
            if late or not _faults(found):
                break
        time.sleep(min(INTERVAL, max(0.0, deadline - time.monotonic())))
    sound = not _faults(found)
    if options.output != "text":
        return data.rendered(options.output, _document(found, state, sound=sound)), sound
    return "\n".join(text(found, state, Terminal.of(sys.stdout, options.color))) + "\n", sound


def _faults(found: Iterable[Finding]) -> int:
    return sum(item.level == "Fault" for item in found)


def text(found: Sequence[Finding], state: State, terminal: Terminal) -> list[str]:
    """A line for each finding, however long, so that it can be searched; then what follows."""
    lines = [
        f"{terminal.paint(item.level.upper().ljust(5), 'red' if item.level == 'Fault' else 'yellow')}  "
        f"{clean(' '.join(f'{item.about}: {item.message}'.split()))}"
        for item in found
    ]
    faults = _faults(found)
    figures = [
        count(len(state.servers or ()), "server"),
        count(len(state.pools or ()), "pool"),
        count(faults, "fault"),
        count(len(found) - faults, "note"),
    ]
    return [*lines, f"{'Not sound' if faults else 'Sound'}: KubeFlash {__version__}: {', '.join(figures)}."]


def _document(found: Sequence[Finding], state: State, *, sound: bool) -> JSON:
    return {
        "sound": sound,
        "version": __version__,
        "namespace": state.system,
        "servers": [item.metadata.name for item in state.servers or ()],
        "pools": [item.metadata.name for item in state.pools or ()],
        "findings": [{"level": item.level, "about": item.about, "message": item.message} for item in found],
    }
