"""The controller as a process: leadership, the feed, one reconcile loop over everything."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

from kubeflash.api.v1alpha1 import FINALIZER, GROUP, KINDS, FlashAttachment, FlashNode, FlashPool, FlashVolume
from kubeflash.controller.attachments import reconcile_attachment
from kubeflash.controller.events import events_of, farewell
from kubeflash.controller.labels import label_nodes
from kubeflash.controller.nodes import is_new_of, reconcile_node
from kubeflash.controller.pools import reconcile_pool
from kubeflash.controller.quiet import Quiet
from kubeflash.controller.status import MANAGER
from kubeflash.controller.volumes import LEAVING, reconcile_volume
from kubeflash.domain.cluster import Cluster
from kubeflash.domain.conditions import find
from kubeflash.domain.names import LEADER_LEASE, agent_lease_node
from kubeflash.domain.neighbours import Neighbours
from kubeflash.kube import leases, rights, runtime, schema
from kubeflash.kube.builtin import LEASE, Namespace, Node
from kubeflash.kube.client import Client
from kubeflash.kube.errors import KubeError
from kubeflash.kube.events import Teller
from kubeflash.kube.feed import Feed, Watch
from kubeflash.kube.leases import Lease, LeaseHeld
from kubeflash.kube.rights import Right
from kubeflash.kube.serving import Health
from kubeflash.kube.writes import Apply, Write

log = logging.getLogger(__name__)

LEADER_SECONDS = 10
"""How long the Lease holds. When the leader's server is lost, the next one has seen its last renewal after 2.5 s at the
most (`RENEW_SECONDS`), waits 10 s, and looks again within 2.5 s: it leads after 15 s at the latest, and a new volume is
placed within 20 s."""
RENEW_SECONDS = 2.5
"""Seconds between two renewals, and between two looks of one that stands by."""
LEASE_TOPIC = "lease"
"""Topic of `Health`: whether the Lease can be asked for and renewed."""
GIVE_BACK_SECONDS = 5.0
"""How long the end of the process waits for its Lease to be given back."""
HEARTBEAT_CHECK = 15.0
"""Seconds between two looks at the agents' Leases."""
HEARTBEAT_AGAIN = 1.0
"""The same, while a server tells something whose Lease has not been seen."""
REFUSAL_MEMORY = timedelta(seconds=60)
"""How long a volume is not placed again on an SSD whose server refused it."""
REFUSAL_PARDON = timedelta(seconds=15)
"""How long after that the same words are not a new refusal yet."""


REFUSED_WAIT = 10.0
"""Seconds until what the API server refused is tried again."""


class Unreadable(KubeError):
    """Objects do not fit their schema: another version of KubeFlash wrote them, or the CRDs are older."""


class Controller:
    """Decides everything from what is at one moment, then writes what differs.

    Args:
        client: the way to the API server.
        namespace: the one that KubeFlash runs in.
        identity: this process's own name, as the holder of the leader's Lease.
    """

    def __init__(self, client: Client, namespace: str, identity: str) -> None:
        self._client, self._namespace, self._identity = client, namespace, identity
        self._teller = Teller(client)
        self._neighbours = Neighbours()
        self._quiet = Quiet()
        self.feed = Feed(
            client, [Watch(kind) for kind in (FlashNode, FlashPool, FlashVolume, FlashAttachment, Node, Namespace)]
        )
        self._heartbeats = leases.Watcher()
        self._next_heartbeat_check = 0.0
        self._refusals: dict[str, dict[str, tuple[str, datetime]]] = {}
        self._leaving: dict[str, float] = {}

    async def reconcile(self) -> float | None:
        """One pass over everything; seconds until the next one is due though nothing changed."""
        clock = asyncio.get_running_loop().time
        now, nodes = clock(), self.feed.of(FlashNode).values()
        if now >= self._next_heartbeat_check or (
            now >= self._next_heartbeat_check - HEARTBEAT_CHECK + HEARTBEAT_AGAIN
            and is_new_of(nodes, self._answering())
        ):
            bodies = await asyncio.to_thread(self._client.list, LEASE, namespace=self._namespace)
            self._heartbeats.see(leases.parse(body) for body in bodies)
            self._next_heartbeat_check = clock() + HEARTBEAT_CHECK
        if self.feed.unreadable:
            # Their absence would be taken for a deletion, and bytes would be released.
            raise Unreadable(f"nothing is decided while these objects do not fit their schema: {self.feed.unreadable}")
        cluster = self._cluster()
        writes = [*decide(cluster, self._quiet), *label_nodes(self.feed.of(FlashNode), self.feed.of(Node))]
        refused = [write for write in writes if not await self._send(write, cluster)]
        wait = max(0.0, self._next_heartbeat_check - clock())
        return min(wait, REFUSED_WAIT) if refused else wait

    async def _send(self, write: Write, cluster: Cluster) -> bool:
        """Sends a write and tells of what it says that is new. False when the API server refuses it."""
        if not await self.feed.send(write):
            return False
        for body in self._news(write, cluster):
            self._teller.tell(body)
        return True

    def _news(self, write: Write, cluster: Cluster) -> Iterable[dict[str, Any]]:
        """The events about what was written."""
        was = write.resource
        if isinstance(write, Apply) and isinstance(was, FlashVolume):
            now = self.feed.of(FlashVolume).get(was.key)
            return events_of(was, now, cluster.now) if now is not None else ()
        if isinstance(write, Apply) and isinstance(was, FlashAttachment):
            after = self.feed.of(FlashAttachment).get(was.key)
            return events_of(was, after, cluster.now) if after is not None else ()
        if isinstance(was, FlashAttachment) and was.deleting:
            left = self.feed.of(FlashAttachment).get(was.key)
            if left is not None and left.metadata.uid == was.metadata.uid and FINALIZER in left.metadata.finalizers:
                return ()  # it changed meanwhile, and is looked at again
            said = farewell(was, cluster)
            return [said] if said is not None else ()
        return ()

    def _answering(self) -> frozenset[str]:
        """Names of the servers whose agent renews its Lease."""
        return frozenset(node for lease in self._heartbeats.fresh() if (node := agent_lease_node(lease)) is not None)

    def _cluster(self) -> Cluster:
        now = datetime.now(UTC)
        feed = self.feed
        nodes = feed.of(Node)
        self._neighbours.forget_all_but(frozenset(node.metadata.uid for node in feed.of(FlashNode).values()))
        return Cluster(
            now=now,
            pools=feed.of(FlashPool),
            nodes=feed.of(FlashNode),
            volumes=dict(feed.of(FlashVolume)),
            attachments=feed.of(FlashAttachment),
            node_labels={name: node.metadata.labels for name, node in nodes.items()},
            namespace_labels={name: item.metadata.labels for name, item in feed.of(Namespace).items()},
            cordoned=frozenset(name for name, node in nodes.items() if node.spec.unschedulable),
            answering=self._answering(),
            silence={
                node: seconds
                for lease, seconds in self._heartbeats.silence().items()
                if (node := agent_lease_node(lease)) is not None
            },
            leaving=self._remember_leaving(),
            refusals=self._remember_refusals(now),
            own_namespace=self._namespace,
            leader=self._identity,
            neighbours=self._neighbours,
        )

    def _remember_leaving(self) -> dict[str, float]:
        """By uid of a deleted attachment, for how many seconds its consumer has said that it disconnects."""
        clock = asyncio.get_running_loop().time()
        self._leaving = {
            item.metadata.uid: self._leaving.get(item.metadata.uid, clock)
            for item in self.feed.of(FlashAttachment).values()
            if item.deleting and (said := find(item.status.conditions, "Connected")) is not None
            if said.reason == LEAVING
        }
        return {uid: clock - since for uid, since in self._leaving.items()}

    def _remember_refusals(self, now: datetime) -> dict[str, dict[str, str]]:
        """By volume uid and SSD id, the servers' refusals of the last minute: then it may be tried there again.

        The old words are still in the status then, until the server has looked: they do not count for a while.
        """
        volumes = self.feed.of(FlashVolume).values()
        for volume in volumes:
            known = self._refusals.setdefault(volume.metadata.uid, {})
            for ssd, words in volume.status.refused.items():
                if ssd == volume.status.ssd and ssd not in known:
                    known[ssd] = (words, now + REFUSAL_MEMORY)
        uids = {volume.metadata.uid for volume in volumes}
        fresh = {
            uid: {ssd: entry for ssd, entry in known.items() if entry[1] + REFUSAL_PARDON > now}
            for uid, known in self._refusals.items()
            if uid in uids
        }
        self._refusals = {uid: known for uid, known in fresh.items() if known}
        return {
            uid: {ssd: words for ssd, (words, until) in known.items() if until > now}
            for uid, known in self._refusals.items()
        }


def decide(cluster: Cluster, quiet: Quiet) -> list[Write]:
    """All writes. Volumes are placed one after another, each seeing the bytes of those before it as taken.

    Args:
        cluster: what is.
        quiet: the volumes for which nothing was to be written lately; it learns of those of now.
    """
    writes: list[Write] = []
    quiet.forget_all_but(cluster)
    for volume in sorted(cluster.volumes.values(), key=lambda item: (item.created, item.key)):
        if quiet.is_quiet(volume, cluster):
            continue
        found = reconcile_volume(volume, cluster)
        quiet.remember(volume, cluster, wrote=bool(found))
        writes += found
    for attachment in cluster.attachments.values():
        writes += reconcile_attachment(attachment, cluster)
    for pool in cluster.pools.values():
        writes += reconcile_pool(pool, cluster)
    for node in cluster.nodes.values():
        writes += reconcile_node(node, cluster)
    return writes


def needed_rights(namespace: str) -> tuple[Right, ...]:
    """What RBAC must allow the controller, events left out: nothing depends on them."""
    names = tuple(kind.info.plural for kind in KINDS)
    return (
        *rights.rights(GROUP, ("list", "watch", "patch"), *names),
        *rights.rights(GROUP, ("patch",), *(f"{name}/status" for name in names)),
        *rights.rights("", ("list", "watch"), "nodes", "namespaces"),
        *rights.rights("", ("patch",), "nodes"),
        *rights.rights(LEASE.group, ("list", "create"), LEASE.plural, namespace=namespace),
        *(Right(verb, LEASE.plural, LEASE.group, namespace, LEADER_LEASE) for verb in ("get", "update")),
        *rights.CRD_RIGHTS,
    )


class Leadership:
    """The controller's Lease, and whether it was renewed lately enough to act on it.

    An API server that is gone takes nobody's leadership away: nothing can be written, so the controller only waits.
    It is lost when somebody else holds the Lease.
    """

    def __init__(self, lease: Lease, health: Health) -> None:
        self._lease, self._health = lease, health
        self._renewed = 0.0
        self.lost = False

    @property
    def fresh(self) -> bool:
        """Whether nobody else can have taken the Lease yet."""
        return asyncio.get_running_loop().time() - self._renewed < LEADER_SECONDS - RENEW_SECONDS

    async def win(self, stop: asyncio.Event) -> bool:
        """Waits until the Lease is ours. False when `stop` came first.

        Raises:
            KubeError: when the API server refuses it for good.
        """
        said = ""
        self._health.say(LEASE_TOPIC, "the Lease has not been asked for yet")
        while not stop.is_set():
            self._health.beat()
            words = ""
            try:
                await self._acquire()
            except LeaseHeld as held:
                if said != held.holder:
                    log.info("standing by: %s", held)
                said = held.holder
            except runtime.MENDABLE as error:
                words = str(error)
                if said != words:
                    log.warning("waiting for the Lease: %s", words)
                said = words
            else:
                log.info("leading as %s", self._lease.holder)
                self._health.say(runtime.PASS, "it leads since a moment ago, and has not looked at all objects yet")
                self._health.say(LEASE_TOPIC)
                return True
            self._health.say(LEASE_TOPIC, words)
            await runtime.sleep(RENEW_SECONDS, stop)
        return False

    async def keep(self, stop: asyncio.Event) -> None:
        """Renews the Lease until `stop`; sets `stop` when somebody else has it."""
        while not stop.is_set():
            await runtime.sleep(RENEW_SECONDS if self.fresh else 1.0, stop)
            if stop.is_set():
                return  # it is given back now: a renewal beside that would take it again
            try:
                await self._acquire()
            except LeaseHeld as held:
                log.error("leadership is lost: %s", held)  # noqa: TRY400
                self.lost = True
                stop.set()
            except KubeError as error:
                log.warning("renewing the Lease failed: %s", error)
                self._health.say(LEASE_TOPIC, f"the Lease is not renewed: {error}")
            else:
                self._health.say(LEASE_TOPIC)

    async def give_back(self, renewing: asyncio.Task[None]) -> None:
        """Lets the next controller lead at once: after the last renewal that is under way, if there is one.

        Args:
            renewing: `keep`, whose `stop` is set.
        """
        try:
            async with asyncio.timeout(GIVE_BACK_SECONDS):
                await renewing
                await asyncio.to_thread(self._lease.release)
        except (KubeError, TimeoutError) as error:
            log.warning("the Lease could not be given back, the next controller waits %s s: %s", LEADER_SECONDS, error)

    async def _acquire(self) -> None:
        began = asyncio.get_running_loop().time()
        await asyncio.to_thread(self._lease.acquire)
        self._renewed = began


async def main(client: Client, namespace: str, health: Health, stop: asyncio.Event) -> int:
    """Waits for leadership, then works until `stop` is set or leadership is lost. The exit status.

    An API server that is gone, and RBAC or CRDs that are missing, are waited for; `health` says so.

    Raises:
        KubeError: when the API server refuses what the controller needs for good, as with wrong credentials.
    """
    holder = f"{socket.gethostname()}-{os.getpid()}-{uuid4().hex[:8]}"
    leadership = Leadership(Lease(client, namespace, LEADER_LEASE, holder, LEADER_SECONDS), health)
    controller = Controller(client, namespace, holder)
    controller.feed.answered = health.beat

    async def needs() -> None:
        await asyncio.to_thread(rights.check, client, MANAGER, needed_rights(namespace))
        await asyncio.to_thread(schema.check, client)
        await controller.feed.probe()

    # Before it leads: one that cannot work must not keep another from it.
    if not await runtime.persist(needs, health, stop):
        return 0
    if not await leadership.win(stop):
        return 0
    renewing = asyncio.create_task(leadership.keep(stop), name="leadership")

    async def reconcile() -> float | None:
        return await controller.reconcile() if leadership.fresh else 1.0

    try:
        await runtime.run(controller.feed, reconcile, health, stop, beside=renewing)
    finally:
        stop.set()
    if leadership.lost:
        return 1
    if renewing.done():  # else it ends with `stop`
        renewing.result()
    await leadership.give_back(renewing)
    return 0
