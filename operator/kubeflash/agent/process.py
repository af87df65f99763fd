"""The agent as a process: one a server, a Lease as its heartbeat, one loop that observes, plans, applies, reports."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from kubeflash.agent.execute import Executor
from kubeflash.agent.observation import Observation
from kubeflash.agent.observe import Observer
from kubeflash.agent.report import report_attachment, report_node, report_ssds, report_volume
from kubeflash.agent.wishes import export_wishes, selected_by, volume_wishes
from kubeflash.api.v1alpha1 import Exported, FlashAttachment, FlashNode, FlashPool, FlashVolume
from kubeflash.domain.carving import CarvePlan, plan_volumes
from kubeflash.domain.connecting import plan_connections
from kubeflash.domain.exporting import ExportPlan, plan_exports
from kubeflash.domain.names import agent_lease
from kubeflash.domain.pairs import changes, got_worse
from kubeflash.domain.sealing import public_key
from kubeflash.domain.steps import (
    Connect,
    DisableNamespace,
    DisallowHost,
    Disconnect,
    ExportStep,
    RemoveHost,
    RemovePartition,
    RemovePort,
    RemoveSubsystem,
    Step,
    UnlinkPort,
    WipePartition,
)
from kubeflash.host import uevents
from kubeflash.host.errors import HostError
from kubeflash.kube import runtime
from kubeflash.kube.builtin import EVENT, Namespace, Node
from kubeflash.kube.client import Client, api_version
from kubeflash.kube.errors import Conflict, KubeError, ServerError, Unreachable
from kubeflash.kube.events import event
from kubeflash.kube.feed import Feed, Watch
from kubeflash.kube.leases import Lease, LeaseHeld
from kubeflash.kube.writes import Write

log = logging.getLogger(__name__)

LEASE_SECONDS = 40
HEARTBEAT_SECONDS = 10.0
RESYNC_SECONDS = 60.0
"""Seconds between two looks at the machine when nothing said that it changed."""
RETRY_SECONDS = (1.0, 2.0, 5.0, 15.0, 30.0)
"""Seconds until what failed is tried again, the last one for ever."""
WAIT_SECONDS = 2.0
"""Seconds between two looks at what another server or the kernel has to do first."""


TAKING_DOWN = (
    Disconnect,
    WipePartition,
    RemovePartition,
    DisallowHost,
    UnlinkPort,
    DisableNamespace,
    RemoveSubsystem,
    RemovePort,
    RemoveHost,
)
"""Steps that follow from something not being wanted any more."""


class NameTaken(KubeError):
    """Another server has this FlashNode name."""


@dataclass(frozen=True)
class Plan:
    """All steps of one pass, and what is recorded before they run."""

    carve: CarvePlan
    export: ExportPlan
    connect: tuple[Step, ...]

    @property
    def steps(self) -> tuple[Step, ...]:
        """In the order in which they are applied: disconnect, exports, disks, connect."""
        leave = tuple(step for step in self.connect if isinstance(step, Disconnect))
        join = tuple(step for step in self.connect if not isinstance(step, Disconnect))
        return (*leave, *self.export.steps, *self.carve.steps, *join)


class Agent:
    """One server's agent.

    Args:
        client: the way to the API server.
        node: name of the FlashNode.
        observer: reads the machine.
        executor: changes it.
        private: the server's X25519 private key.
    """

    def __init__(self, client: Client, node: str, observer: Observer, executor: Executor, private: bytes) -> None:
        self._client, self._node = client, node
        self._observer, self._executor = observer, executor
        self._public = public_key(private)
        self.feed = Feed(
            client,
            [
                Watch(FlashNode, f"metadata.name={node}"),
                Watch(Node, f"metadata.name={node}"),
                Watch(FlashPool),
                Watch(FlashVolume, f"status.nodeName={node}"),
                Watch(FlashAttachment, f"spec.nodeName={node}"),
            ],
        )
        self._failures: dict[str, str] = {}
        self._tries = 0

    async def start(self, cluster_id: str | None) -> None:
        """Learns which cluster this is, and that this server may speak for its FlashNode.

        Raises:
            NameTaken: when the FlashNode of this name belongs to another server.
            KubeError: when the API server does not do it.
        """
        if cluster_id is None:
            body = await asyncio.to_thread(self._client.get, Namespace.info, "kube-system")
            cluster_id = str(body["metadata"]["uid"])
        self._observer.cluster_id = cluster_id
        await self.feed.resync()
        self._check_name()
        bodies = await asyncio.to_thread(self._client.list, FlashNode.info)
        others = [
            body["metadata"]["name"]
            for body in bodies
            if body.get("status", {}).get("systemUUID") == self._observer.system_uuid
            and body["metadata"]["name"] != self._node
        ]
        if others:
            # Under a new name this server would find nothing that is wanted of it, and take its exports down.
            raise NameTaken(
                f"this server is FlashNode {others[0]} already: run the agent with --node {others[0]}, or delete that "
                "FlashNode once its volumes and attachments are dealt with"
            )

    def _check_name(self) -> None:
        node = self.feed.of(FlashNode).get(self._node)
        theirs, ours = node.status.system_uuid if node else "", self._observer.system_uuid
        if theirs and theirs != ours:
            raise NameTaken(
                f"FlashNode {self._node} is the server with system UUID {theirs}, this one is {ours}: give this server "
                f"another name (--node), or delete FlashNode {self._node} if that server is gone for good"
            )

    async def plan_now(self) -> Plan:
        """Observes, and plans without doing anything."""
        return self.plan(await asyncio.to_thread(self._observer.observe, self._asked_about()))

    async def _register(self) -> None:
        """Sees to it that this server has a FlashNode, and that it is this server's.

        Raises:
            NameTaken: when the FlashNode of this name belongs to another server.
            KubeError: when the API server does not do it.
        """
        self._check_name()
        body = {
            "apiVersion": api_version(FlashNode.info),
            "kind": FlashNode.info.kind,
            "metadata": {"name": self._node},
            "spec": {},
        }
        try:
            self.feed.put(FlashNode, await asyncio.to_thread(self._client.create, FlashNode.info, body))
        except Conflict:
            await self.feed.resync()
        else:
            log.info("created FlashNode %s", self._node)

    async def reconcile(self) -> float | None:
        """One pass: observe, plan, record, apply, observe, report. Seconds until the next one is due by itself."""
        node = self.feed.of(FlashNode).get(self._node)
        if node is None:
            await self._register()
            return 0.0
        self._check_name()
        try:
            return await self._pass(node)
        except (HostError, OSError, ValueError) as error:
            self._tries += 1
            log.warning("this server cannot be read, nothing is changed on it: %s: %s", type(error).__name__, error)
            return self._retry_delay()

    async def _pass(self, node: FlashNode) -> float:
        observation = await asyncio.to_thread(self._observer.observe, self._asked_about())
        plan = self.plan(observation)
        ran = False
        if not node.spec.paused:
            ran = await self._record_and_apply(plan, observation)
        if ran:
            observation = await asyncio.to_thread(self._observer.observe, self._asked_about())
            plan = self.plan(observation)
        await self._report(node, observation, plan)
        return self._next(plan, paused=node.spec.paused)

    def machine_changed(self, event: uevents.Uevent | None) -> None:
        """A device came, went or changed: look again, and read its disk again."""
        self._observer.forget_device(event.name if event is not None else None)
        self.feed.changed.set()

    def plan(self, observation: Observation) -> Plan:
        """What there is to do, without doing it."""
        volumes = list(self.feed.of(FlashVolume).values())
        carve = plan_volumes(
            observation.disks,
            observation.owners,
            self._selected(observation),
            volume_wishes(volumes),
        )
        export = plan_exports(
            export_wishes(volumes, observation.partitions),
            observation.nvmet,
            addresses=observation.addresses,
            internal=observation.internal,
            listening=observation.listening,
        )
        connect = plan_connections(self.feed.of(FlashAttachment).values(), observation.connections)
        return Plan(carve, export, connect)

    def _selected(self, observation: Observation) -> dict[str, str]:
        """The pool of each SSD of this server that a pool selects, by SSD id."""
        node = self.feed.of(Node).get(self._node)
        labels = node.metadata.labels if node is not None else None
        return selected_by(report_ssds(observation, {}), self.feed.of(FlashPool).values(), labels)

    def _asked_about(self) -> frozenset[str]:
        """Ids of volumes whose holders matter: an attachment at this server is being deleted."""
        attachments = self.feed.of(FlashAttachment).values()
        return frozenset(item.status.volume_id for item in attachments if item.deleting and item.status.volume_id)

    async def _record_and_apply(self, plan: Plan, observation: Observation) -> bool:
        """Records port numbers first; then runs the steps that need no record. Whether anything ran."""
        for key, volume in self.feed.of(FlashVolume).items():
            if any(owner == key for owner, _ in plan.export.records):
                await self._report_volume(volume, observation, plan)
        doubt = self._doubt(observation)
        steps = [step for step in plan.steps if not (doubt and isinstance(step, TAKING_DOWN))]
        if len(steps) < len(plan.steps):
            log.warning("nothing is taken down or wiped: %s", doubt)
        if not steps:
            self._failures = {}
            return False
        self._failures = await asyncio.to_thread(self._apply, steps)
        return True

    def _doubt(self, observation: Observation) -> str:
        """Why an object's absence says nothing now; empty when it does."""
        if self.feed.unreadable:
            return f"objects do not fit their schema: {', '.join(sorted(self.feed.unreadable))}"
        for ssd, disk in observation.disks.items():
            owner = observation.owners[ssd]
            if disk.label and disk.label.system_uuid == owner.system_uuid and disk.label.cluster_id != owner.cluster_id:
                return f"SSD {ssd} of this server belongs to cluster {disk.label.cluster_id}: is this the right one?"
        return ""

    def _apply(self, steps: Sequence[Step]) -> dict[str, str]:
        """Runs the steps in order. A failed one ends its own group (an SSD, export or connection), not the others."""
        failures: dict[str, str] = {}
        for step in steps:
            group = group_of(step)
            if group in failures:
                continue
            log.info("%s", step.describe())
            try:
                self._executor.apply(step)
            except (HostError, OSError, ValueError) as error:
                log.warning("failed: %s: %s", step.describe(), error)
                failures[group] = str(error)
        return failures

    async def _report(self, node: FlashNode, observation: Observation, plan: Plan) -> None:
        pools = self._selected(observation)
        now = datetime.now(UTC)
        written = report_node(node, observation, pools, self._public, now)
        if written is not None and await self.feed.send(written):
            await self._tell_changes(node)
        for volume in list(self.feed.of(FlashVolume).values()):
            await self._report_volume(volume, observation, plan)
        for attachment in list(self.feed.of(FlashAttachment).values()):
            nqn = attachment.status.fabric.nqn if attachment.status.fabric else ""
            await self._send(report_attachment(attachment, observation, self._failures.get(nqn, ""), now))

    async def _tell_changes(self, node: FlashNode) -> None:
        """An event about pairs that changed since `node` was read. The first that were ever seen are no change."""
        now = self.feed.of(FlashNode).get(self._node)
        if now is None or not node.status.best:
            return
        before, pairs = node.status.pairs, now.status.pairs
        said = changes(before, pairs)
        if not said:
            return
        log.info("pairs changed: %s", "; ".join(said))
        body = event(
            node,
            kind="Warning" if got_worse(before, pairs) else "Normal",
            reason="PairsChanged",
            action="Pair",
            note="; ".join(said),
            component="agent",
            now=datetime.now(UTC),
        )
        try:
            await asyncio.to_thread(self._client.create, EVENT, body, body["metadata"]["namespace"])
        except KubeError as error:
            log.warning("the event about it could not be written: %s", error)

    async def _report_volume(self, volume: FlashVolume, observation: Observation, plan: Plan) -> None:
        exported = dict(volume.status.exported)
        for (key, attachment), record in plan.export.records.items():
            if key == volume.key and record is None:
                exported.pop(attachment, None)
            elif key == volume.key and record is not None:
                exported[attachment] = record
        for name, record in exported.items():
            wanted = volume.status.wanted.get(name)
            failure = self._failures.get(wanted.nqn, "") if wanted is not None and not record.ready else ""
            if failure:
                exported[name] = Exported(uid=record.uid, portals=record.portals, message=failure)
        await self._send(
            report_volume(
                volume,
                observation,
                exported=exported,
                refused=plan.carve.refused.get(volume.key, ""),
                waiting=plan.carve.waiting.get(volume.key, ""),
                failure=self._failures.get(volume.status.ssd or "", ""),
                now=datetime.now(UTC),
            )
        )

    async def _send(self, write: Write | None) -> None:
        if write is not None:
            await self.feed.send(write)

    def _retry_delay(self) -> float:
        return RETRY_SECONDS[min(self._tries, len(RETRY_SECONDS)) - 1]

    def _next(self, plan: Plan, *, paused: bool) -> float:
        if not self._failures:
            self._tries = 0
        if self._failures and not paused:
            self._tries += 1
            return self._retry_delay()
        if not paused and (plan.steps or plan.carve.waiting or self._asked_about()):
            return WAIT_SECONDS  # nobody tells when a file system is unmounted
        return RESYNC_SECONDS


def group_of(step: Step) -> str:
    """What a step belongs to: its export or connection (the NQN), else its SSD."""
    if isinstance(step, ExportStep | Connect | Disconnect):
        return step.nqn
    return str(getattr(step, "ssd", ""))


async def main(agent: Agent, lease: Lease, cluster_id: str | None, stop: asyncio.Event) -> int:
    """Runs the agent until `stop` is set; the exit status.

    An API server that is gone is waited for: agents idle, I/O goes on.

    Raises:
        NameTaken: when another server has this name.
        KubeError: when the API server refuses what the agent needs (RBAC, CRDs).
    """
    if not await _started(agent, cluster_id, stop):
        return 0
    heartbeat = asyncio.create_task(_heartbeat(lease, stop), name="heartbeat")
    try:
        async with uevents.listening(agent.machine_changed):
            await runtime.run(agent.feed, agent.reconcile, stop)
    finally:
        stop.set()
        await asyncio.wait({heartbeat}, timeout=1.0)
    if heartbeat.done() and (error := heartbeat.exception()) is not None:
        raise error
    return 0


async def _started(agent: Agent, cluster_id: str | None, stop: asyncio.Event) -> bool:
    """Starts the agent, waiting for an API server that does not answer. False when `stop` came first."""
    for delay in itertools.chain(runtime.BACKOFF, itertools.repeat(runtime.BACKOFF[-1])):
        try:
            await agent.start(cluster_id)
        except (Unreachable, ServerError) as error:
            log.warning("waiting for the API server: %s", error)
        else:
            return True
        await runtime.sleep(delay, stop)
        if stop.is_set():
            return False
    return False


async def _heartbeat(lease: Lease, stop: asyncio.Event) -> None:
    """Renews the Lease until `stop`. It is not given back: an agent that is only upgraded must not look dead.

    Raises:
        NameTaken: when another server renews it.
    """
    first: LeaseHeld | None = None
    while not stop.is_set():
        try:
            await asyncio.to_thread(lease.acquire)
        except LeaseHeld as held:
            first = first or held
            if held.renewed != first.renewed:
                stop.set()
                raise NameTaken(f"{held}: another server has this name; give this one another with --node") from held
            log.warning("waiting whether it is renewed: %s", held)
        except KubeError as error:
            log.warning("heartbeat: %s", error)
        await runtime.sleep(HEARTBEAT_SECONDS, stop)


def heartbeat_lease(client: Client, namespace: str, node: str, system_uuid: str) -> Lease:
    """The Lease of this server's agent. Its holder is the server, which a lock on the server keeps to one process."""
    return Lease(client, namespace, agent_lease(node), system_uuid, LEASE_SECONDS)
