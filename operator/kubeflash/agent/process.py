"""The agent as a process: one a server, a Lease as its heartbeat, one loop that observes, plans, applies, reports."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from kubeflash.agent import fabric
from kubeflash.agent.execute import Executor
from kubeflash.agent.jobs import RETRY_SECONDS, Jobs
from kubeflash.agent.observation import Observation
from kubeflash.agent.observe import Observer
from kubeflash.agent.report import (
    MANAGER,
    Voice,
    VolumeState,
    report_attachment,
    report_node,
    report_plan,
    report_ssds,
    report_volume,
)
from kubeflash.agent.wishes import admin_requests, export_wishes, selected_by, volume_wishes
from kubeflash.api.v1alpha1 import GROUP, FlashAttachment, FlashNode, FlashPool, FlashVolume
from kubeflash.domain.carving import CarvePlan, Selection, plan_volumes
from kubeflash.domain.connecting import plan_connections
from kubeflash.domain.exporting import ExportPlan, Ground, plan_exports
from kubeflash.domain.names import LEADER_LEASE, SYSTEM_NAMESPACE, agent_lease
from kubeflash.domain.neighbours import Neighbours
from kubeflash.domain.pairs import changes, got_worse
from kubeflash.domain.sealing import public_key
from kubeflash.domain.steps import (
    CarvePartition,
    ClaimSsd,
    Disconnect,
    RevalidateNamespace,
    SetReadOnly,
    Step,
    WipeSsd,
)
from kubeflash.host import addresses, pathwatch, uevents
from kubeflash.host.errors import HostError
from kubeflash.host.root import HostRoot
from kubeflash.kube import leases, rights, runtime, schema
from kubeflash.kube.builtin import LEASE, Namespace, Node
from kubeflash.kube.client import Client, api_version
from kubeflash.kube.errors import Conflict, KubeError, NotFound, NotYet
from kubeflash.kube.events import Teller, event
from kubeflash.kube.feed import Feed, Watch
from kubeflash.kube.leases import Lease, LeaseHeld
from kubeflash.kube.rights import Right
from kubeflash.kube.serving import Health
from kubeflash.kube.writes import Write

log = logging.getLogger(__name__)

LEASE_SECONDS = 40
HEARTBEAT_SECONDS = 10.0
FIRST_LOOK = 20.0
"""Seconds that the first heartbeat waits for what the agent said before to be set right."""
RESYNC_SECONDS = 60.0
"""Seconds between two looks at the machine when nothing said that it changed."""
REFUSED_SECONDS = 10.0
"""The same after the API server did not allow a write: nobody tells when its RBAC is mended."""
WAIT_SECONDS = 2.0
"""Seconds between two looks at what another server or the kernel has to do first."""
PATIENCE = 5.0
"""Seconds that a pass waits for the steps that it began, so that quick ones are reported at once."""
ROUNDS = 4
"""Plans that one pass carries out at the most before it reports: what one makes, the next may build on."""
SERVER = "server"
"""Topic of `Health`: whether this server can be read, and has been reported once."""
HEARTBEAT = "heartbeat"
"""Topic of `Health`: whether the Lease is renewed."""
GIVE_UP = 3
"""Tries after which a new volume is refused, so that it is placed elsewhere."""


class NameTaken(KubeError):
    """Another server has this FlashNode name."""


class StillThere(NotYet):
    """An agent ran by another name on this server a moment ago; it is waited for."""

    seconds = HEARTBEAT_SECONDS


@dataclass(frozen=True)
class Plan:
    """All steps of one pass, and what is recorded before they run."""

    carve: CarvePlan
    export: ExportPlan
    connect: tuple[Step, ...]
    selected: Mapping[str, Selection]
    contested: frozenset[str] = frozenset()
    places: frozenset[tuple[str | None, str | None]] = frozenset()
    """Id and SSD of each volume that it is about."""

    @property
    def steps(self) -> tuple[Step, ...]:
        """In the order in which they are applied: disconnect, exports, disks, connect."""
        first = (Disconnect, SetReadOnly)
        leave = tuple(step for step in self.connect if isinstance(step, first))
        join = tuple(step for step in self.connect if not isinstance(step, first))
        return (*leave, *self.export.steps, *self.carve.steps, *join)


class Agent:
    """One server's agent.

    Args:
        client: the way to the API server.
        node: name of the FlashNode.
        observer: reads the machine.
        executor: changes it.
        private: the server's X25519 private key.
        namespace: the one that KubeFlash runs in, where Leases are.
        root: where /sys is.
    """

    def __init__(
        self,
        client: Client,
        node: str,
        observer: Observer,
        executor: Executor,
        private: bytes,
        namespace: str = SYSTEM_NAMESPACE,
        *,
        root: HostRoot | None = None,
    ) -> None:
        self.root = root or HostRoot()
        self._client, self._node, self._namespace = client, node, namespace
        self._teller = Teller(client)
        self._observer = observer
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
        self.jobs = Jobs(executor.apply, self._ended)
        self._neighbours = Neighbours()
        self._thorough: frozenset[str] = frozenset()
        self._former: frozenset[str] = frozenset()
        self._seen: dict[str, leases.LeaseView] = {}
        self._refused = fabric.RefusedPorts()
        self._tries = 0
        self.heard: Callable[[], bool] = lambda: True
        self.attend(Health())
        self._touched: frozenset[str] = frozenset()  # ids of volumes that were worked on at the last look
        self._declined: dict[tuple[str, str], str] = {}  # by id and SSD: why volumes were refused that are still here
        self._told: dict[str, int] = {}  # by NQN: bytes of its volume when nvmet last looked
        self.corrected = asyncio.Event()
        """Set once attachments say what is so since this agent began: after a boot, no connection is there any more."""

    def attend(self, health: Health) -> None:
        """Says from now on in `health` how it is."""
        self._health = health
        self.feed.answered = self._observer.looked = health.beat

    async def check_rights(self) -> None:
        """Sees to it that RBAC allows all that an agent does.

        Raises:
            RightsMissing: when it does not; names the rules.
            KubeError: when the API server does not answer.
        """
        await asyncio.to_thread(rights.check, self._client, MANAGER, needed_rights(self._namespace))

    async def start(self, cluster_id: str | None) -> None:
        """Learns which cluster this is, and that this server may speak for its FlashNode.

        Raises:
            CrdsMissing, CrdsOlder: when the cluster's kinds are not those of this version.
            NameTaken: when the FlashNode of this name belongs to another server.
            KubeError: when the API server does not do it.
        """
        await asyncio.to_thread(schema.check, self._client)
        if cluster_id is None:
            body = await asyncio.to_thread(self._client.get, Namespace.info, "kube-system")
            cluster_id = str(body["metadata"]["uid"])
        self._observer.cluster_id = cluster_id
        await self.feed.resync()
        self._check_name()
        bodies = await asyncio.to_thread(self._client.list, FlashNode.info)
        self._former = frozenset(
            body["metadata"]["name"]
            for body in bodies
            if body.get("status", {}).get("systemUUID") == self._observer.system_uuid
            and body["metadata"]["name"] != self._node
        )
        for name in sorted(self._former):
            await self._check_former(name)

    async def _check_former(self, name: str) -> None:
        """Sees to it that no agent speaks for this server by another name, as after it was renamed.

        Raises:
            NameTaken: when one does.
            StillThere: when one did a moment ago: what it holds runs out soon.
        """
        try:
            body = await asyncio.to_thread(self._client.get, LEASE, agent_lease(name), self._namespace)
        except NotFound:
            return
        lease = leases.parse(body)
        before, self._seen[name] = self._seen.get(name), lease
        if before is not None and before != lease:
            raise NameTaken(
                f"this server is FlashNode {name} already, and an agent runs by that name: run this one with --node "
                f"{name}; or another server has the same system UUID, {self._observer.system_uuid}"
            )
        if lease.holder and lease.renewed and (datetime.now(UTC) - lease.renewed).total_seconds() < lease.seconds:
            raise StillThere(
                f"this server was FlashNode {name} a moment ago: waiting whether an agent runs by that name"
            )
        log.warning("this server was FlashNode %s and is %s now: its volumes follow", name, self._node)

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
        plan = self.plan(await self._observe())
        if self._wants_thorough(plan):
            plan = self.plan(await self._observe())
        return plan

    async def _observe(self) -> Observation:
        self._touched = self.jobs.touched
        seen = await asyncio.to_thread(
            self._observer.observe, self._asked_about(), busy=self.jobs.changing, thorough=self._thorough
        )
        self._tell_refusals(seen)
        return seen

    def _tell_refusals(self, observation: Observation) -> None:
        """Events about whom this server's exports have turned away."""
        node = self.feed.of(FlashNode).get(self._node)
        for refusal in observation.refusals if node is not None else ():
            assert node is not None
            log.warning("%s", refusal)
            body = event(
                node,
                kind="Warning",
                reason="ConnectionRefused",
                action="Refuse",
                note=str(refusal),
                component="agent",
                now=datetime.now(UTC),
            )
            self._teller.tell(body)

    def _wants_thorough(self, plan: Plan) -> bool:
        """Whether there are SSDs now that must be read more thoroughly than they were."""
        before = self._thorough
        self._thorough = frozenset(ssd for ssd, selection in plan.selected.items() if selection.thorough)
        return not self._thorough <= before

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
            words = f"this server cannot be read, nothing is changed on it: {type(error).__name__}: {error}"
            log.warning("%s", words)
            self._health.say(SERVER, words)
            return RETRY_SECONDS[min(self._tries, len(RETRY_SECONDS)) - 1]

    async def _pass(self, node: FlashNode) -> float:
        await self._look_for_former()
        if not node.spec.paused:
            await asyncio.to_thread(self._observer.load_modules)
        for number in range(ROUNDS):
            busy = self.jobs.busy  # what ends while the server is looked at is still seen as it was before
            observation = await self._observe()
            if not self.corrected.is_set():
                await self._report_attachments(observation)
                self.corrected.set()
            plan = await self._confirmed(observation)
            if self._wants_thorough(plan):
                continue
            if number == ROUNDS - 1 or node.spec.paused or not await self._record_and_apply(plan, observation, busy):
                break
        await self._report(node, observation, plan)
        self._health.say(SERVER)
        return self._next(plan, paused=node.spec.paused)

    def _ended(self, group: str) -> None:
        """A job has ended: its SSD is read anew."""
        self._observer.forget(group)
        self.feed.changed.set()

    def machine_changed(self, event: uevents.Uevent | None) -> None:
        """A device came, went or changed: look again, and read its disk again."""
        own = self._observer.forget_device(event.name if event is not None else None)
        if event is not None and event.reported:
            self._observer.forget_health()
        if event is not None and event.asked_for and not own:
            return  # somebody has closed the device of a connection: nothing of it is read here
        self.feed.changed.set()

    async def _confirmed(self, observation: Observation) -> Plan:
        """The plan, new bytes in it only where the controller that leads now says so.

        A controller that was frozen while another took over, and goes on, may still have placed something. The Lease is
        read after the placement was seen: whoever leads by then is the only one whose word counts.
        """
        plan = self.plan(observation)
        if not any(step.new_bytes for step in plan.carve.steps):
            return plan
        try:
            body = await asyncio.to_thread(self._client.get, LEASE, LEADER_LEASE, self._namespace)
        except NotFound:
            return self.plan(observation, leader="")
        return self.plan(observation, leader=leases.parse(body).holder)

    def plan(self, observation: Observation, *, leader: str | None = None) -> Plan:
        """What there is to do, without doing it. `leader`: whose word gives volumes new bytes; None: anybody's."""
        volumes = self._volumes()
        node = self.feed.of(FlashNode).get(self._node)
        pools = self.feed.of(FlashPool)
        selected = self._selected(observation)
        given_up = {
            (subject, failure.step.ssd): failure.words
            for subject, failure in self.jobs.failures.items()
            if failure.tries >= GIVE_UP and isinstance(failure.step, (CarvePartition, ClaimSsd))
        }
        # Whoever was refused may be on its way to another SSD: it is not carved here any more, whatever has changed.
        places = frozenset((volume.spec.id, volume.status.ssd) for volume in volumes)
        self._declined = {place: words for place, words in self._declined.items() if place in places}
        carve = plan_volumes(
            observation.disks,
            observation.owners,
            selected,
            volume_wishes(volumes, pools, leader=leader, given_up=given_up | self._declined),
            admin_requests(node) if node is not None else None,
        )
        contested = _contested(volumes)
        uncontested = {item: name for item, name in observation.partitions.items() if item not in contested}
        export = plan_exports(
            export_wishes(volumes, uncontested, observation.sizes, self._told),
            observation.nvmet,
            Ground(
                observation.addresses,
                observation.internal,
                observation.listening,
                refused=self._refused.now(self.jobs),
            ),
        )
        connect = plan_connections(self.feed.of(FlashAttachment).values(), fabric.consumer(observation, volumes))
        return Plan(carve, export, connect, selected, contested, places)

    def _volumes(self) -> list[FlashVolume]:
        """The volumes placed on this server.

        One that has moved away may come back into the index by the answer to a write of ours: it is another's now.
        """
        return [item for item in self.feed.of(FlashVolume).values() if item.status.node_name == self._node]

    def _selected(self, observation: Observation) -> dict[str, Selection]:
        """The pool of each SSD of this server that a pool selects, by SSD id."""
        node = self.feed.of(Node).get(self._node)
        labels = node.metadata.labels if node is not None else None
        known = self.feed.of(FlashNode).get(self._node)
        neighbours = self._neighbours.of(known) if known is not None else {}
        return selected_by(report_ssds(observation, {}, {}), self.feed.of(FlashPool).values(), labels, neighbours)

    def _asked_about(self) -> frozenset[str]:
        """Ids of volumes whose holders matter: an attachment at this server is being deleted."""
        attachments = self.feed.of(FlashAttachment).values()
        return frozenset(item.status.volume_id for item in attachments if item.deleting and item.status.volume_id)

    async def _record_and_apply(self, plan: Plan, observation: Observation, busy: frozenset[str]) -> bool:
        """Records port numbers first; then begins the steps that need no record. Whether any was begun.

        Of a group that was `busy` when the server was looked at nothing is begun: the plan may be of what was before.
        """
        for volume in self._volumes():
            if any(owner == volume.key for owner, _ in plan.export.records):
                await self._report_volume(volume, observation, plan)
        doubt = self._doubt(observation)
        steps = [step for step in plan.steps if not (doubt and step.takes_down and not self._is_asked_for(step))]
        if len(steps) < len(plan.steps):
            log.warning("nothing is taken down or wiped: %s", doubt)
        wanted = {volume.spec.id for volume in self._volumes() if volume.spec.id}
        self.jobs.forget_all_but({*wanted, *(name for step in plan.steps for name in (step.subject, step.group))})
        due = self.jobs.due(step for step in steps if step.group not in busy)
        begun = await self.jobs.run(due, PATIENCE)
        sizes = fabric.exported_bytes(observation, self.feed.of(FlashVolume).values())
        looked = {step.nqn for step in due if isinstance(step, RevalidateNamespace)}
        looked -= self.jobs.busy | self.jobs.failures.keys()
        self._told = {nqn: count for nqn, count in self._told.items() if nqn in sizes}
        self._told |= {nqn: sizes[nqn] for nqn in looked if nqn in sizes}
        return begun

    def _is_asked_for(self, step: Step) -> bool:
        """Whether a step follows from an admin's word about what is on an SSD, and from no object's absence."""
        return isinstance(step, WipeSsd) and not self._former

    async def _look_for_former(self) -> None:
        """After this server was renamed: whether volumes are still placed on it by its former name."""
        for name in sorted(self._former):
            selector = f"status.nodeName={name}"
            if not await asyncio.to_thread(self._client.list, FlashVolume.info, selector):
                self._former -= {name}

    def _doubt(self, observation: Observation) -> str:
        """Why an object's absence says nothing now; empty when it does."""
        if self._former:
            return f"this server was {', '.join(sorted(self._former))}, and its volumes are still placed there"
        if self.feed.unreadable:
            return f"objects do not fit their schema: {', '.join(sorted(self.feed.unreadable))}"
        for ssd, disk in observation.disks.items():
            owner = observation.owners[ssd]
            if disk.label and disk.label.system_uuid == owner.system_uuid and disk.label.cluster_id != owner.cluster_id:
                return f"SSD {ssd} of this server belongs to cluster {disk.label.cluster_id}: is this the right one?"
        return ""

    async def _report(self, node: FlashNode, observation: Observation, plan: Plan) -> None:
        now = datetime.now(UTC)
        volumes = self._volumes()
        known = {volume.spec.id: volume.key for volume in volumes if volume.spec.id}
        ahead = report_plan(plan.steps, plan.carve.denied, self.jobs)
        written = report_node(
            node,
            observation,
            plan.selected,
            known,
            voice=Voice(self._public, self._namespace, self._doubt(observation), heard=self.heard()),
            plan=ahead,
            now=now,
        )
        if written is not None and await self.feed.send(written):
            self._tell_changes(node)
        for volume in volumes:
            await self._report_volume(volume, observation, plan)
        await self._report_attachments(observation)

    async def _report_attachments(self, observation: Observation) -> None:
        now, here = datetime.now(UTC), fabric.consumer(observation, self._volumes())
        for attachment in list(self.feed.of(FlashAttachment).values()):
            seen = observation.held.get(attachment.status.volume_id or "")
            held = fabric.held_by(attachment, seen, self.jobs)
            await self._send(report_attachment(attachment, here, held, fabric.failure_of(attachment, self.jobs), now))

    def _tell_changes(self, node: FlashNode) -> None:
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
        self._teller.tell(body)

    async def _report_volume(self, volume: FlashVolume, observation: Observation, plan: Plan) -> None:
        if (volume.spec.id, volume.status.ssd) not in plan.places:
            return  # it came, or was placed anew, since the plan was made, which says nothing of it
        exported = fabric.exported(volume, plan.export, self.jobs)
        resizing = {step.nqn for step in plan.export.steps if isinstance(step, RevalidateNamespace)}
        ours, ssd = volume.spec.id or "", volume.status.ssd or ""
        running, touched = self.jobs.running(ours), ours in self._touched
        state = VolumeState(
            contested=ours in plan.contested,
            refused="" if touched else plan.carve.refused.get(volume.key, ""),  # its carving is begun: it will be there
            missing=plan.carve.missing.get(volume.key, ""),
            waiting=plan.carve.waiting.get(volume.key, ""),
            cramped=plan.carve.cramped.get(volume.key, ""),
            failure=self.jobs.words(ours, ssd),
            progress=running.words if running is not None else "",
            unseen=any(wanted.nqn in resizing for wanted in volume.status.wanted.values()),
            touched=touched,
        )
        if state.refused:
            self._declined[ours, ssd] = state.refused
        await self._send(report_volume(volume, observation, state, exported=exported, now=datetime.now(UTC)))

    async def _send(self, write: Write | None) -> None:
        if write is not None:
            await self.feed.send(write)

    def _next(self, plan: Plan, *, paused: bool) -> float:
        self._tries = 0
        if paused:
            return REFUSED_SECONDS if self.feed.forbidden else RESYNC_SECONDS
        waits = [REFUSED_SECONDS if self.feed.forbidden else RESYNC_SECONDS]
        if (again := self.jobs.next_try()) is not None:
            waits.append(max(again, 0.1))
        elif plan.steps:
            waits.append(WAIT_SECONDS)
        if plan.carve.waiting or self._asked_about() or self.jobs.busy or self._former:
            waits.append(WAIT_SECONDS)  # nobody tells when a file system is unmounted
        return min(waits)


def _contested(volumes: Iterable[FlashVolume]) -> frozenset[str]:
    """Ids that several volumes of this server say that they have."""
    counts = Counter(volume.spec.id for volume in volumes if volume.spec.id is not None)
    return frozenset(volume for volume, count in counts.items() if count > 1)


def needed_rights(namespace: str) -> tuple[Right, ...]:
    """What RBAC must allow an agent, events left out: nothing depends on them."""
    nodes, pools, volumes, attachments = (
        kind.info.plural for kind in (FlashNode, FlashPool, FlashVolume, FlashAttachment)
    )
    return (
        *rights.rights(GROUP, ("list", "watch"), nodes, pools, volumes, attachments),
        *rights.rights(GROUP, ("create",), nodes),
        *rights.rights(GROUP, ("patch",), *(f"{name}/status" for name in (nodes, volumes, attachments))),
        *rights.rights("", ("list", "watch"), Node.info.plural),
        Right("get", Namespace.info.plural, name="kube-system"),
        *rights.rights(LEASE.group, ("get", "create", "update"), LEASE.plural, namespace=namespace),
        *rights.CRD_RIGHTS,
    )


async def main(agent: Agent, lease: Lease, cluster_id: str | None, health: Health, stop: asyncio.Event) -> int:
    """Runs the agent until `stop` is set; the exit status.

    An API server that is gone, and RBAC or CRDs that are missing, are waited for: agents idle, I/O goes on.

    Raises:
        NameTaken: when another server has this name.
        KubeError: when the API server refuses what the agent needs for good, as with wrong credentials.
    """
    agent.attend(health)

    async def started() -> None:
        await agent.check_rights()
        await agent.start(cluster_id)

    if not await runtime.persist(started, health, stop):
        return 0
    health.say(SERVER, "the first look at this server is not over")
    beat = _Beat()
    agent.heard = beat.fresh
    heartbeat = asyncio.create_task(_heartbeat(lease, beat, health, agent.corrected, stop), name="heartbeat")
    paths = asyncio.create_task(pathwatch.watch(agent.root, agent.feed.changed.set), name="paths")
    try:
        changed = agent.feed.changed.set
        async with uevents.listening(agent.machine_changed), addresses.watching(changed):
            await runtime.run(agent.feed, agent.reconcile, health, stop, beside=heartbeat)
    finally:
        stop.set()
        paths.cancel()
        await asyncio.wait({heartbeat, paths}, timeout=1.0)
    if heartbeat.done() and (error := heartbeat.exception()) is not None:
        raise error
    return 0


class _Beat:
    """When the Lease was renewed last."""

    def __init__(self) -> None:
        self.at = time.monotonic()

    def fresh(self) -> bool:
        """Whether the others still take this agent for one that answers."""
        return time.monotonic() - self.at < LEASE_SECONDS


async def _heartbeat(lease: Lease, beat: _Beat, health: Health, corrected: asyncio.Event, stop: asyncio.Event) -> None:
    """Renews the Lease until `stop`. It is not given back: an agent that is only upgraded must not look dead.

    It begins once what was said before is `corrected`: who answers is believed, and a boot ended all connections.

    Raises:
        NameTaken: when another server renews it.
    """
    first: LeaseHeld | None = None
    await runtime.sleep(FIRST_LOOK, corrected, stop)
    while not stop.is_set():
        try:
            await asyncio.to_thread(lease.acquire)
            beat.at = time.monotonic()
            health.say(HEARTBEAT)
        except LeaseHeld as held:
            first = first or held
            if held.renewed != first.renewed:
                stop.set()
                raise NameTaken(f"{held}: another server has this name; give this one another with --node") from held
            log.warning("waiting whether it is renewed: %s", held)
            health.say(HEARTBEAT, f"waiting whether it is renewed: {held}")
        except KubeError as error:
            log.warning("heartbeat: %s", error)
            health.say(HEARTBEAT, f"the Lease is not renewed: {error}")
        await runtime.sleep(HEARTBEAT_SECONDS, stop)


def heartbeat_lease(client: Client, namespace: str, node: str, system_uuid: str) -> Lease:
    """The Lease of this server's agent. Its holder is the server, which a lock on the server keeps to one process."""
    return Lease(client, namespace, agent_lease(node), system_uuid, LEASE_SECONDS)
