"""`kubectl flash purge --all`: the way to be rid of everything. Controller and agents do it; nobody else touches disks.

What is used by somebody stops it before a byte is lost: attachments go first, and volumes only when they all are gone.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from kubeflash.api.quantity import human_bytes
from kubeflash.api.v1alpha1 import KINDS, FlashAttachment, FlashNode, FlashPool, FlashVolume, Resource, Ssd
from kubeflash.cli import cluster, wipe
from kubeflash.cli.asking import NotDone, confirm, say, wait_for
from kubeflash.cli.terminal import Terminal
from kubeflash.cli.text import count
from kubeflash.domain.conditions import find
from kubeflash.domain.ledger import granted
from kubeflash.domain.names import LEADER_LEASE, agent_lease
from kubeflash.kube.builtin import LEASE, Namespace
from kubeflash.kube.errors import Conflict, NotFound

if TYPE_CHECKING:
    from kubeflash.kube.client import Client

STUCK = 10.0
"""Seconds for which something must be held, or fail, before that stops the command."""
SILENT = 30.0
"""Seconds for which nobody leads, or an agent is silent, before that stops it. Another controller takes over in 20."""
LOOK = 5.0
"""Seconds between two looks at who answers."""
SHOWN = 20
"""Names in a line; no list that decides anything is cut short."""

JSON = dict[str, Any]
Act = Literal["close", "detach", "release", "wipe", "pools", "servers"]


@dataclass(frozen=True)
class Everything:
    """All that is KubeFlash's in a cluster.

    Attributes:
        ssds: those that carry KubeFlash's label, each with its server.
        others: SSDs with the label of another server, which are left alone, in words.
        obstacles: why nothing may be begun.
    """

    attachments: tuple[FlashAttachment, ...] = ()
    volumes: tuple[FlashVolume, ...] = ()
    ssds: tuple[tuple[FlashNode, Ssd], ...] = ()
    pools: tuple[FlashPool, ...] = ()
    servers: tuple[FlashNode, ...] = ()
    others: tuple[str, ...] = ()
    obstacles: tuple[str, ...] = ()

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing at all, as far as the API server knows."""
        return not (self.attachments or self.volumes or self.ssds or self.pools or self.servers)

    @property
    def carved(self) -> set[str]:
        """Ids of the volumes whose bytes an agent takes from an SSD when they are deleted.

        One that is Lost, or waits for a place, is only forgotten: a partition with its id is an orphan.
        """
        volumes = (item for item in self.volumes if item.status.node_name is not None and item.status.lost is None)
        return {item.spec.id for item in volumes if item.spec.id}

    def orphans(self, ssd: Ssd) -> set[str]:
        """Ids of partitions on an SSD that do not go with a FlashVolume."""
        return {item.id for item in ssd.volumes} - self.carved


@dataclass(frozen=True)
class Phase:
    """One part of the work, which begins when the one before it is done."""

    act: Act
    words: str


def everything(reading: cluster.Reading) -> Everything:
    """What there is, and what speaks against purging it. Pure."""
    known = reading.cluster
    servers = tuple(item for _, item in sorted(known.nodes.items()))
    volumes = tuple(item for _, item in sorted(known.volumes.items()))
    return Everything(
        attachments=tuple(item for _, item in sorted(known.attachments.items())),
        volumes=volumes,
        ssds=tuple((node, ssd) for node in servers for ssd in node.status.ssds if ssd.state == "Claimed"),
        pools=tuple(item for _, item in sorted(known.pools.items())),
        servers=servers,
        others=tuple(
            f"SSD {ssd.id} of server {node.metadata.name} carries the label of server {ssd.labelled}: kubectl flash "
            f"wipe {node.metadata.name} {ssd.id}"
            for node in servers
            for ssd in node.status.ssds
            if ssd.labelled is not None
        ),
        obstacles=tuple(_obstacles(reading, servers, volumes)),
    )


def _obstacles(reading: cluster.Reading, servers: Sequence[FlashNode], volumes: Sequence[FlashVolume]) -> Iterator[str]:
    yield from reading.unread
    silent = [item.metadata.name for item in servers if not reading.heartbeat(item.metadata.name).answers]
    if not reading.controller.answers:
        yield (
            f"no controller decides: it {reading.controller.words}; only controller and agents take volumes down and "
            "wipe SSDs: install KubeFlash again (volumes and pools are as they were), then purge, then uninstall it"
        )
    elif servers and len(silent) == len(servers):
        yield "no agent answers, and nobody else may touch a disk: install KubeFlash again, then purge"
    for name in silent:
        words = f"the agent on server {name} {reading.heartbeat(name).words}"
        yield f"{words}: start it; or if that server is lost for good: kubectl flash purge {name}"
    for item in servers:
        if item.spec.paused:
            yield f"server {item.metadata.name} is paused: {cluster.unpause(item.metadata.name)} first"
    names = {item.metadata.name for item in servers}
    there = {(node.metadata.name, ssd.id) for node in servers for ssd in node.status.ssds if ssd.state == "Claimed"}
    for volume in volumes:
        server, ssd_id = volume.status.node_name or "", volume.status.ssd or ""
        if server in names and volume.status.bytes is not None and (server, ssd_id) not in there:
            yield (
                f"volume {volume.key} is on SSD {ssd_id}, which server {server} cannot use: kubectl flash plan "
                f"{server} says why; if that SSD is lost for good: kubectl flash purge {server} {ssd_id}"
            )
    for place in sorted({item.status.node_name for item in volumes if item.status.node_name} - names):
        yield f"volumes are placed on server {place}, which has no FlashNode: kubectl flash purge {place}"


def phases(found: Everything) -> list[Phase]:
    """What is done, in this order. Pure."""
    every = [
        Phase("close", f"close {count(len(found.servers), 'server')} to new volumes (spec.maintenance)"),
        Phase("detach", f"detach {count(len(found.attachments), 'attachment')}; one that is in use ends it here")
        if found.attachments
        else None,
        Phase("release", f"wipe and remove {count(len(found.volumes), 'volume')}") if found.volumes else None,
        Phase("wipe", f"overwrite {count(len(found.ssds), 'SSD')} with zeroes, and read back") if found.ssds else None,
        Phase("pools", f"delete {count(len(found.pools), 'pool')}") if found.pools else None,
        Phase("servers", f"delete {count(len(found.servers), 'FlashNode')}") if found.servers else None,
    ]
    return [item for item in every if item is not None]


def show(found: Everything, cluster_id: str, terminal: Terminal) -> list[str]:
    """All that would go, and who uses it."""
    lines = terminal.wrap(f"Everything of KubeFlash in cluster {cluster_id}", hanging="  ")
    for item in found.attachments:
        words = f"attachment {item.key}: volume {item.spec.volume} at server {item.spec.node_name}, {_state(item)}"
        lines += terminal.wrap(words, "  ", "    ")
    for volume in found.volumes:
        users = [item for item in found.attachments if item.volume_key == volume.key]
        used = ", ".join(f"{item.metadata.name} on {item.spec.node_name}" for item in users) or "nobody"
        lines += terminal.wrap(f"volume {volume.key}: {_placed(volume)}, attached by {used}", "  ", "    ")
    for node, ssd in found.ssds:
        orphans = found.orphans(ssd)
        words = f"SSD {ssd.id} of server {node.metadata.name}, serial {ssd.serial}, {human_bytes(ssd.bytes)}: "
        words += count(len(ssd.volumes) - len(orphans), "volume")
        words += f", {count(len(orphans), 'orphan')}" if orphans else ""
        words += f", {ssd.held}" if ssd.held else ""
        lines += terminal.wrap(words, "  ", "    ")
    lines += [line for pool in found.pools for line in terminal.wrap(f"pool {pool.metadata.name}", "  ")]
    lines += [
        line
        for node in found.servers
        for line in terminal.wrap(f"server {node.metadata.name}, system UUID {node.status.system_uuid or '?'}", "  ")
    ]
    orphaned = sum(len(found.orphans(ssd)) for _, ssd in found.ssds)
    lost = [f"{count(len(found.volumes), 'volume')} with {human_bytes(sum(map(granted, found.volumes)))}"]
    lost += [count(orphaned, "orphan")] if orphaned else []
    lost += [f"everything on {count(len(found.ssds), 'SSD')}"]
    lines += [terminal.paint(line, "red") for line in terminal.wrap(f"LOST WILL BE: {', '.join(lost)}", hanging="  ")]
    lines += [line for text in found.others for line in terminal.wrap(f"Left alone: {text}", hanging="  ")]
    lines += ["In this order, each when the one before is done:"]
    for number, phase in enumerate(phases(found), 1):
        lines += terminal.wrap(f"{number}. {phase.words}", "  ", "     ")
    return lines


def _state(attachment: FlashAttachment) -> str:
    ready = find(attachment.status.conditions, "Ready")
    return (ready.reason if ready is not None else "not looked at yet") or "not looked at yet"


def _placed(volume: FlashVolume) -> str:
    if volume.status.lost is not None:
        return f"{human_bytes(granted(volume))}, lost"
    if volume.status.node_name is None:
        return f"{volume.spec.size}, placed nowhere"
    return f"{human_bytes(granted(volume))} on SSD {volume.status.ssd} of server {volume.status.node_name}"


def run(options: argparse.Namespace, client: Client) -> str:
    """Purges everything, once it was confirmed; what remains.

    Raises:
        NotDone: when it is refused, not confirmed, stopped by what is in use, or not done in time.
        KubeError: when the API server does not do it.
    """
    terminal = Terminal.of(sys.stdout, options.color)
    try:
        client.list(FlashNode.info)
        cluster_id = str(client.get(Namespace.info, "kube-system")["metadata"]["uid"])
    except NotFound as error:
        raise NotDone(
            "KubeFlash's kinds are not in this cluster: there is nothing to purge. What SSDs still hold only an agent "
            "can tell: install KubeFlash, then purge"
        ) from error
    found = everything(cluster.read(client, system=options.system_namespace))
    if found.is_empty and not found.obstacles:
        return f"Nothing of KubeFlash is in this cluster.\n{_remains(found, options.system_namespace)}"
    say(show(found, cluster_id, terminal))
    if found.obstacles:
        words = "; ".join(found.obstacles)
        if options.dry_run:
            return f"Dry run: nothing was changed. As it is now it would be refused: {words}.\n"
        raise NotDone(f"nothing was changed: {words}")
    if options.dry_run:
        return f"Dry run: nothing was changed. The cluster's id, {cluster_id}, will be asked for.\n"
    confirm(cluster_id, options.confirm, "the cluster's id")
    purge = _Purge(client, found, options.system_namespace, time.monotonic() + options.timeout)
    for number, phase in enumerate(phases(found), 1):
        say([f"{number}. {phase.words}"])
        purge.carry_out(phase.act)
    return _remains(found, options.system_namespace)


def _remains(found: Everything, system: str) -> str:
    kinds = " ".join(f"{kind.info.plural}.{kind.info.group}" for kind in KINDS)
    lines = [f"Gone: {count(len(found.volumes), 'volume')}; blank: {count(len(found.ssds), 'SSD')}."]
    lines += [f"Left alone: {text}" for text in found.others]
    lines += [
        "What remains is KubeFlash itself; while its agents run they make their FlashNodes anew:",
        f"  helm uninstall kubeflash -n {system}      # or kubectl delete -f deploy/kubeflash.yaml",
        f"  helm uninstall kubeflash-crds -n {system}      # if Helm made the kinds: it keeps them",
        f"  kubectl delete crd {kinds}",
        f"  kubectl delete namespace {system}      # its Leases; if nothing else is in it",
        "  rm -r /var/lib/kubeflash      # on each server: its private key",
    ]
    return "\n".join(lines) + "\n"


class _Purge:
    """The work, phase by phase.

    Args:
        client: the way to the API server.
        found: what was shown; nothing else is deleted.
        system: the namespace that KubeFlash runs in.
        deadline: of `time.monotonic`.
    """

    def __init__(self, client: Client, found: Everything, system: str, deadline: float) -> None:
        self._client, self._found, self._system, self._deadline = client, found, system, deadline
        self._next_look = 0.0
        self._since: dict[str, float] = {}

    def carry_out(self, act: Act) -> None:
        """Does one phase, and waits for its end."""
        {
            "close": self._close,
            "detach": self._detach,
            "release": self._release,
            "wipe": self._wipe,
            "pools": self._pools,
            "servers": self._servers,
        }[act]()

    def _close(self) -> None:
        """New volumes wait from now on: none is placed on an SSD that is about to be wiped."""
        for node in self._found.servers:
            uid = node.metadata.uid

            def close(now: FlashNode, uid: str = uid) -> JSON | None:
                if now.metadata.uid != uid:
                    raise NotDone(
                        f"FlashNode {now.metadata.name} is another one by now: nothing was deleted; look again"
                    )
                return None if now.spec.maintenance else {"maintenance": True}

            cluster.write_spec(self._client, node.metadata.name, close)

    def _detach(self) -> None:
        self._delete(self._found.attachments)

        def look() -> str:
            left = self._left(FlashAttachment, self._found.attachments)
            for item in left:
                connected = find(item.status.conditions, "Connected")
                held = connected is not None and connected.reason == "InUse"
                words = (
                    f"its device is in use on server {item.spec.node_name}: {connected.message if connected else ''}"
                )
                self._stop_if_stuck(f"attachment {item.key}", words if held else "")
            return f"{count(len(left), 'attachment')} left: {_named(item.key for item in left)}" if left else ""

        self._wait(look)
        new = self._client.list(FlashAttachment.info)
        if new:
            raise NotDone(
                f"attachments were made meanwhile: {_named(_key(item) for item in new)}; no volume was deleted; "
                f"{self._behind}"
            )

    def _release(self) -> None:
        self._delete(self._found.volumes)
        ids = {item.spec.id: item.key for item in self._found.volumes if item.spec.id}

        def look() -> str:
            left = self._left(FlashVolume, self._found.volumes)
            keys = {item.key for item in left}
            for volume_id, words in self._failures(ids):
                if ids[volume_id] in keys:
                    self._stop_if_stuck(f"volume {ids[volume_id]}", words)
            return f"{count(len(left), 'volume')} left: {left[0].key}: {_says(left[0])}" if left else ""

        self._wait(look)
        new = self._client.list(FlashVolume.info)
        if new:
            raise NotDone(f"volumes were made meanwhile: {_named(_key(item) for item in new)}; {self._behind}")

    def _failures(self, ids: Collection[str]) -> Iterator[tuple[str, str]]:
        """Volumes' ids, and why their bytes cannot be wiped or removed now; empty where they can."""
        failed: dict[str, str] = dict.fromkeys(ids, "")
        for body in self._client.list(FlashNode.info):
            node = cluster.parsed(FlashNode, body)
            failed |= {item: words for item in ids if (words := _failure(node, item))}
        yield from failed.items()

    def _wipe(self) -> None:
        """Each SSD is wiped as it is now, which must be what was shown without the volumes that are gone."""
        by_server: dict[str, list[Ssd]] = {}
        for node, ssd in self._found.ssds:
            by_server.setdefault(node.metadata.name, []).append(ssd)
        asked: dict[str, int] = {}

        def look() -> str:
            words = ""
            for name, ssds in by_server.items():
                now = cluster.flash_node(self._client, name)
                if name not in asked:
                    if behind := self._still_shows(now, ssds):
                        words = words or behind
                        continue
                    asked[name] = self._ask_to_wipe(name, ssds)
                    continue
                seen = now.status.observed_generation >= asked[name]
                for ssd in ssds:
                    same = now.ssd(ssd.id)
                    what = f"wipe SSD {ssd.id}"
                    self._stop_if_stuck(f"SSD {ssd.id} of server {name}", _failure(now, what))
                    if not (seen and same is not None and wipe.is_blank(same)):
                        state = wipe.progress(now, what, f"wipe {ssd.id}", seen=seen)
                        words = words or f"server {name}: {state}"
            return words or ("" if len(asked) == len(by_server) and self._all_blank(by_server) else "looking again")

        self._wait(look)
        for name, ssds in by_server.items():
            cluster.write_spec(self._client, name, partial(_without, ssds))

    def _still_shows(self, now: FlashNode, ssds: Sequence[Ssd]) -> str:
        """What its agent has not reported yet: a fingerprint counts only when the volumes are gone from the SSD.

        Raises:
            NotDone: when something is on an SSD that was not shown.
        """
        gone = self._found.carved
        for ssd in ssds:
            same = now.ssd(ssd.id)
            if same is None:
                raise NotDone(f"SSD {ssd.id} is not in server {now.metadata.name} any more; {self._behind}")
            on = {item.id for item in same.volumes}
            if on & gone:
                return f"waiting for the agent on server {now.metadata.name} to look at SSD {ssd.id}"
            if strange := on - self._found.orphans(ssd):
                raise NotDone(
                    f"SSD {ssd.id} of server {now.metadata.name} holds what was not shown: {_named(strange)}; "
                    f"{self._behind}"
                )
        return ""

    def _ask_to_wipe(self, name: str, ssds: Sequence[Ssd]) -> int:
        """Writes the requests; the FlashNode's generation that has them."""

        def ask(now: FlashNode) -> JSON | None:
            volumes = cluster.keyed(FlashVolume, self._client.list(FlashVolume.info))
            requests: dict[str, str] = {}
            for ssd in ssds:
                same = now.ssd(ssd.id)
                if same is None or self._still_shows(now, [ssd]):
                    raise NotDone(f"SSD {ssd.id} of server {name} changed a moment ago; {self._behind}")
                if wipe.is_blank(same):
                    continue
                if same.state != "Claimed" or same.labelled is not None:
                    raise NotDone(f"SSD {ssd.id} of server {name} is not KubeFlash's any more; {self._behind}")
                wipe.may_wipe_ssd(now, same, volumes)
                requests[ssd.id] = same.fingerprint or ""
            return {"wipe": {"ssds": requests}} if requests else None

        return cluster.write_spec(self._client, name, ask).metadata.generation

    def _all_blank(self, by_server: dict[str, list[Ssd]]) -> bool:
        nodes = {name: cluster.flash_node(self._client, name) for name in by_server}
        found = [nodes[name].ssd(ssd.id) for name, ssds in by_server.items() for ssd in ssds]
        return all(ssd is not None and wipe.is_blank(ssd) for ssd in found)

    def _pools(self) -> None:
        self._delete(self._found.pools)

        def look() -> str:
            left = self._left(FlashPool, self._found.pools)
            return f"{count(len(left), 'pool')} left: {left[0].metadata.name}: {_says(left[0])}" if left else ""

        self._wait(look)

    def _servers(self) -> None:
        self._delete(self._found.servers)

        def look() -> str:
            left = self._left(FlashNode, self._found.servers)
            return f"{count(len(left), 'FlashNode')} left: {_named(item.key for item in left)}" if left else ""

        self._wait(look)

    # --- all of them ---

    @property
    def _behind(self) -> str:
        return (
            "what was asked for goes on, and the same command goes on from there; to use the servers again, set "
            "spec.maintenance of their FlashNodes to false"
        )

    def _delete(self, items: Sequence[Resource]) -> None:
        """Deletes these very objects; one that is gone, or has become another, is left to what looks again."""
        from kubeflash.kube.client import path_of  # noqa: PLC0415  a second that no dump needs

        for item in items:
            meta = item.metadata
            body = {"kind": "DeleteOptions", "apiVersion": "v1", "preconditions": {"uid": meta.uid}}
            try:
                self._client.call("DELETE", path_of(item.info, meta.namespace, meta.name), body=body)
            except (NotFound, Conflict):
                continue

    def _left(self, kind: type[cluster.Kind], shown: Sequence[Resource]) -> list[cluster.Kind]:
        """Those of the objects that are still there."""
        uids = {item.metadata.uid for item in shown}
        objects = cluster.keyed(kind, self._client.list(kind.info)).values()
        return sorted((item for item in objects if item.metadata.uid in uids), key=lambda item: item.key)

    def _wait(self, look: Callable[[], str]) -> None:
        def watched() -> str:
            words = look()
            if words:
                self._look_who_answers()
            return words

        left = max(1.0, self._deadline - time.monotonic())
        wait_for(watched, timeout=left, behind=self._behind)

    def _stop_if_stuck(self, what: str, words: str) -> None:
        """Stops the command when something has been wrong for a while; empty `words`: it is not."""
        if not words:
            self._since.pop(what, None)
        elif self._lasts(what, STUCK):
            raise NotDone(f"{what}: {words}: end that, then run this again; {self._behind}")

    def _lasts(self, what: str, seconds: float) -> bool:
        return time.monotonic() - self._since.setdefault(what, time.monotonic()) >= seconds

    def _look_who_answers(self) -> None:
        """Stops the command when those who do the work are gone, as after helm uninstall.

        Raises:
            NotDone: when they are.
        """
        from kubeflash.kube.leases import parse  # noqa: PLC0415  as above

        if time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + LOOK
        views = {view.name: view for view in map(parse, self._client.list(LEASE, namespace=self._system))}
        who = {"the controller": LEADER_LEASE}
        who |= {
            f"the agent on server {item.metadata.name}": agent_lease(item.metadata.name) for item in self._found.servers
        }
        for what, lease in who.items():
            beat = cluster.heartbeat(None, views.get(lease), datetime.now(UTC))
            if beat.answers:
                self._since.pop(what, None)
            elif self._lasts(what, SILENT):
                raise NotDone(
                    f"{what} {beat.words}, and nobody else can do this: install or start KubeFlash again; "
                    f"{self._behind}"
                )


def _without(ssds: Sequence[Ssd], now: FlashNode) -> JSON | None:
    """The patch that takes the requests of these SSDs back; None when there is none."""
    asked = now.spec.wipe.ssds if now.spec.wipe is not None else {}
    mine = {ssd.id for ssd in ssds} & asked.keys()
    return {"wipe": {"ssds": dict.fromkeys(sorted(mine))}} if mine else None


def _named(names: Iterator[str] | Collection[str]) -> str:
    known = sorted(names)
    return ", ".join(known[:SHOWN]) + (f" and {len(known) - SHOWN} more" if len(known) > SHOWN else "")


def _key(body: JSON) -> str:
    return f"{body['metadata'].get('namespace', '')}/{body['metadata']['name']}"


def _failure(node: FlashNode, what: str) -> str:
    """Why the server's last step about `what` failed; empty when none did."""
    failed = [step.message for step in node.status.plan if step.state == "Failed" and what in step.what]
    return failed[-1] if failed else ""


def _says(item: FlashVolume | FlashPool) -> str:
    ready = find(item.status.conditions, "Ready")
    return ready.message if ready is not None and ready.message else "waiting for the controller"
