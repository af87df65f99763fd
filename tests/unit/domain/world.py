"""A made-up cluster without an API server: objects, servers with disks in memory, controllers and agents by turns.

What a pass of either decides is real; here are only what stands around it: objects whose status is merged by field
manager, clocks, crashes, and the watch over every write to a disk.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from itertools import pairwise
from types import SimpleNamespace
from typing import Any
from unittest import mock
from uuid import UUID

from kubeflash.agent.process import GIVE_UP
from kubeflash.agent.report import (
    Voice,
    VolumeState,
    report_attachment,
    report_node,
    report_plan,
    report_ssds,
    report_volume,
)
from kubeflash.agent.wishes import admin_requests, selected_by, volume_wishes
from kubeflash.api.v1alpha1 import FlashAttachment, FlashNode, FlashPool, FlashVolume, Resource
from kubeflash.controller.process import decide
from kubeflash.controller.quiet import Quiet
from kubeflash.domain import steps
from kubeflash.domain.allocation import usable
from kubeflash.domain.carving import CarvePlan, DiskView, SsdState, is_ours, judge, plan_volumes, volumes_of
from kubeflash.domain.cluster import Cluster
from kubeflash.domain.disk import LABEL_TYPE, MIB, VOLUME_TYPE, Partition
from kubeflash.domain.neighbours import Neighbours
from kubeflash.host.errors import HostError
from kubeflash.host.nvme import NvmeSsd
from kubeflash.kube.writes import Apply, Patch, Write
from support import simulated
from support.objects import T0

KINDS: tuple[type[Resource], ...] = (FlashNode, FlashPool, FlashVolume, FlashAttachment)
STRANGER = "0fc63daf-8483-4772-8e79-3d69d8477de4"


class Crash(Exception):
    """The process ended here."""


@dataclass
class Stored:
    """One object: its body, and who says what in its status, by field or type of condition."""

    body: dict[str, Any]
    owners: dict[tuple[str, str], set[str]] = field(default_factory=dict)


class Api:
    """Objects as the API server keeps them: versions, finalizers, status merged by field manager."""

    def __init__(self) -> None:
        self.objects: dict[type[Resource], dict[str, Stored]] = {kind: {} for kind in KINDS}
        self._read: dict[tuple[type[Resource], str], tuple[str, Resource]] = {}
        self._count = 0

    def of(self, kind: type[Resource]) -> dict[str, Any]:
        found: dict[str, Resource] = {}
        for key, item in self.objects[kind].items():
            version = item.body["metadata"]["resourceVersion"]
            known = self._read.get((kind, key))
            if known is None or known[0] != version:
                known = self._read[kind, key] = (version, kind.from_json(item.body))
            found[key] = known[1]
        return found

    def create(self, kind: type[Resource], name: str, spec: dict[str, Any], now: datetime, namespace: str = "") -> str:
        self._count += 1
        meta = {"name": name, "uid": str(UUID(int=self._count)), "generation": 1, "finalizers": []}
        meta["creationTimestamp"] = now.isoformat()
        if namespace:
            meta["namespace"] = namespace
        key = f"{namespace}/{name}" if namespace else name
        assert key not in self.objects[kind]
        self.objects[kind][key] = Stored({"metadata": meta, "spec": spec})
        self._changed(kind, key)
        return key

    def edit(self, kind: type[Resource], key: str, spec: Mapping[str, Any]) -> None:
        """An edit of the spec; None takes a field out."""
        item = self.objects[kind][key]
        body = {**item.body["spec"], **spec}
        item.body["spec"] = {name: value for name, value in body.items() if value is not None}
        item.body["metadata"]["generation"] += 1
        self._changed(kind, key)

    def delete(self, kind: type[Resource], key: str, now: datetime) -> None:
        self.objects[kind][key].body["metadata"].setdefault("deletionTimestamp", now.isoformat())
        self._changed(kind, key)

    def lose_status(self, kind: type[Resource], key: str) -> None:
        """As a restore from a backup does: the status goes, and who said it."""
        item = self.objects[kind][key]
        item.body.pop("status", None)
        item.owners.clear()
        self._changed(kind, key)

    def send(self, write: Write) -> bool:
        """Whether it was accepted; what is guarded and changed meanwhile is not."""
        kind, meta = type(write.resource), write.resource.metadata
        item = self.objects[kind].get(write.resource.key)
        if item is None or item.body["metadata"]["uid"] != meta.uid:
            return False
        same = item.body["metadata"]["resourceVersion"] == meta.resource_version
        if isinstance(write, Patch):
            if not same:
                return False
            if "spec" in write.body:
                self.edit(kind, write.resource.key, write.body["spec"])
            item.body["metadata"]["finalizers"] = list(write.body["metadata"]["finalizers"])
            self._changed(kind, write.resource.key)
            return True
        if write.guarded and not same:
            return False
        self._merge(item, json.loads(json.dumps(write.status)), write.manager)
        self._changed(kind, write.resource.key)
        return True

    def _merge(self, item: Stored, intent: dict[str, Any], manager: str) -> None:
        status = item.body.setdefault("status", {})
        conditions = {entry["type"]: entry for entry in status.pop("conditions", [])}
        for name, rows in intent.items():
            if isinstance(rows, list) and rows and isinstance(rows[0], dict):
                for keys in (("type",), ("id",), ("node", "ssd")):  # maps by key: the API server takes no key twice
                    if name in ("conditions", "ssds", "refused", "draining") and all(key in rows[0] for key in keys):
                        named = [tuple(row[key] for key in keys) for row in rows]
                        assert len(named) == len(set(named)), f"{name} names {named} twice"
        said = {("field", name): value for name, value in intent.items() if name != "conditions"}
        said |= {("condition", entry["type"]): entry for entry in intent.get("conditions", [])}
        homes: dict[str, dict[str, Any]] = {"field": status, "condition": conditions}
        for (kind, name), value in said.items():
            same = homes[kind].get(name) == value
            item.owners[kind, name] = {*(item.owners.get((kind, name), set()) if same else set()), manager}
            homes[kind][name] = value
        for (kind, name), owners in list(item.owners.items()):
            if manager in owners and (kind, name) not in said:
                owners.discard(manager)
                if not owners:
                    del item.owners[kind, name]
                    homes[kind].pop(name, None)
        status["conditions"] = list(conditions.values())

    def _changed(self, kind: type[Resource], key: str) -> None:
        self._count += 1
        item = self.objects[kind][key]
        item.body["metadata"]["resourceVersion"] = str(self._count)
        if "deletionTimestamp" in item.body["metadata"] and not item.body["metadata"]["finalizers"]:
            del self.objects[kind][key]


class Server(simulated.SimulatedServer):
    """A server whose every write to a disk is watched; it loses power when its `fuel` is used up."""

    def __init__(self, name: str, number: int, gpus: int, ssds: Iterable[NvmeSsd], world: World) -> None:
        network = simulated.Network()
        super().__init__(name, f"10.0.0.{number}", network, [simulated.gpu(n + 1) for n in range(gpus)], ssds)
        self.cluster_id = "c"
        self._world = world
        self.fuel: int | None = None
        self.half = False

    def burn(self) -> None:
        if self.fuel is not None:
            if self.fuel == 0:
                raise Crash
            self.fuel -= 1

    def apply(self, step: steps.Step, progress: Callable[[int, int], None] | None = None, *, words: str = "") -> None:
        """Carries out a step, as a simulated server does; with `words` it fails."""
        if words:
            raise HostError(words)
        if self.fuel == 0 and self.half:
            self._tear(step)
        self.burn()
        before = self.disks.get(step.ssd)
        assert before is not None
        self._world.may_write(self, before, step)
        super().apply(step)
        self._world.was_written(self, before, self.disks[step.ssd], step)

    def _tear(self, step: steps.Step) -> None:
        """Power is lost within a step: the table says it, the kernel does not show it; a claim has no label yet."""
        disk = self.disks[step.ssd]
        if isinstance(step, steps.ClaimSsd):
            self.disks[step.ssd] = replace(disk, half_claimed=True)
        elif isinstance(step, steps.CarvePartition):
            self.apply_whole(step)
            torn = self.disks[step.ssd]
            self.disks[step.ssd] = replace(torn, shown=torn.shown - {step.partition.number})
        raise Crash

    def apply_whole(self, step: steps.Step) -> None:
        self.fuel, self.half = None, False
        self.apply(step)


class World:
    """Everything at one moment, what happens to it, and what must never be."""

    def __init__(self) -> None:
        self.api = Api()
        self.now = T0
        self.leader = "leader-0"
        self.leaders = 0
        self.neighbours = Neighbours()
        self.memory: dict[str, dict[str, tuple[str, datetime]]] = {}
        self.servers: dict[str, Server] = {}
        self.silent: set[str] = set()
        self.cordoned: set[str] = set()
        self.labels: dict[str, dict[str, str]] = {}
        self.failures: dict[str, dict[str, tuple[int, str, steps.Step]]] = {}
        self.fails: Callable[[steps.Step], str] = lambda _: ""
        self.known: set[str] = set()
        self.wiped: set[str] = set()
        self.stale: list[Write] = []
        self.limbo: dict[str, tuple[NvmeSsd, DiskView]] = {}
        self._ids = 0

    # --- what there is ---

    def add_server(self, name: str, gpus: int, **ssds: int) -> Server:
        """A server with SSDs by serial, of so many MiB, in slots from 1 on; GPUs are in the first ones."""
        items = [
            simulated.ssd(serial, slot + 1, size=mib * MIB) for slot, (serial, mib) in enumerate(sorted(ssds.items()))
        ]
        server = self.servers[name] = Server(name, len(self.servers) + 1, gpus, items, self)
        self.labels[name] = {"name": name}
        self.failures[name] = {}
        return server

    def tick(self) -> None:
        self.now += timedelta(seconds=7)

    @property
    def volumes(self) -> dict[str, FlashVolume]:
        return self.api.of(FlashVolume)

    def holding(self, volume_id: str) -> list[str]:
        """The SSDs that hold a partition of a volume, wherever they are."""
        disks = [disk for server in self.servers.values() for disk in server.disks.values()]
        disks += [disk for _, disk in self.limbo.values()]
        return [disk.ssd for disk in disks for part in volumes_of(disk.table) if part.uuid == volume_id]

    # --- what must never be written ---

    def may_write(self, server: Server, disk: DiskView, step: steps.Step) -> None:
        owner = server.owner(disk.ssd)
        verdict = judge(disk, owner)
        volume = next((item for item in self.volumes.values() if item.spec.id == step.subject), None)
        match step:
            case steps.ClaimSsd():
                assert verdict.state is SsdState.BLANK
                assert not volumes_of(disk.table)
            case steps.CarvePartition(partition=part):
                assert verdict.state is SsdState.CLAIMED, verdict
                assert part.uuid not in self.known, f"{part.uuid} was carved before"
                assert not self.holding(part.uuid), f"{part.uuid} is on {self.holding(part.uuid)} already"
                assert volume is not None
                assert volume.status.granted is not None
                assert part.bytes == volume.status.granted
            case steps.WipePartition(partition=part) | steps.RemovePartition(partition=part):
                wipe = self.api.of(FlashNode)[server.name].spec.wipe
                asked = wipe is not None and wipe.orphans.get(part.uuid) == disk.ssd
                assert is_ours(disk, owner)
                assert asked or (volume is not None and volume.deleting and volume.status.release)
                if isinstance(step, steps.RemovePartition):
                    pool = self.api.of(FlashPool).get(volume.spec.pool) if volume is not None else None
                    unwiped = pool is not None and pool.spec.wipe == "None" and not asked
                    assert unwiped or part.uuid in self.wiped, "removed before it was wiped"
            case steps.WipeSsd():
                wipe = self.api.of(FlashNode)[server.name].spec.wipe
                assert wipe is not None
                assert wipe.ssds.get(disk.ssd) == disk.fingerprint
                placed = [item.key for item in self.volumes.values() if item.status.ssd == disk.ssd]
                held = {part.uuid for part in volumes_of(disk.table)}
                settled = [
                    key for key in placed if self.volumes[key].spec.id in held and verdict.state is not SsdState.FOREIGN
                ]
                assert not settled, f"wiped under {settled}"
            case steps.TakeOver(old=old):
                assert disk.label == old
                assert old.cluster_id == owner.cluster_id
            case steps.RepairTable():  # also of an SSD that has just moved in
                assert disk.label is not None
                assert (disk.label.cluster_id, disk.label.ssd) == (owner.cluster_id, owner.ssd)
            case _:
                assert is_ours(disk, owner), f"{step.describe()}: {verdict}"

    def was_written(self, server: Server, before: DiskView, after: DiskView, step: steps.Step) -> None:
        def strangers(disk: DiskView) -> list[Partition]:
            parts = disk.table.partitions if disk.table is not None else ()
            return [part for part in parts if part.type_guid not in (LABEL_TYPE, VOLUME_TYPE)]

        if not isinstance(step, steps.WipeSsd):
            assert strangers(before) == strangers(after)
        if isinstance(step, steps.WipePartition):
            self.wiped.add(step.partition.uuid)
        self.check_disk(after)

    def check_disk(self, disk: DiskView) -> None:
        parts = sorted(disk.table.partitions, key=lambda part: part.start) if disk.table is not None else []
        for one, two in pairwise(parts):
            assert one.end <= two.start, f"{one} and {two} overlap"
        assert len({part.number for part in parts}) == len(parts)
        whole = usable(disk.bytes)
        assert all(whole.start <= part.start and part.end <= whole.end for part in parts if part.number != 1)

    def check(self) -> None:
        """What holds at every moment."""
        for server in self.servers.values():
            for disk in server.disks.values():
                self.check_disk(disk)
        ids = [item.spec.id for item in self.volumes.values() if item.spec.id]
        for item in ids:
            assert len(self.holding(item)) <= 1, f"{item} is on {self.holding(item)}"
        for volume in self.volumes.values():
            if volume.status.bytes is not None and volume.spec.id:
                self.known.add(volume.spec.id)

    # --- the controller ---

    def cluster(self, leader: str | None = None, *, reverse: bool = False) -> Cluster:
        def of(kind: type[Resource]) -> dict[str, Any]:
            items = self.api.of(kind)
            return dict(reversed(items.items())) if reverse else items

        return Cluster(
            now=self.now,
            pools=of(FlashPool),
            nodes=of(FlashNode),
            volumes=of(FlashVolume),
            attachments=of(FlashAttachment),
            node_labels=dict(self.labels),
            namespace_labels={"serving": {}, "batch": {"team": "batch"}},
            cordoned=frozenset(self.cordoned),
            answering=frozenset(self.servers) - frozenset(self.silent),
            refusals=self._refusals(),
            leader=leader or self.leader,
            neighbours=self.neighbours,
        )

    def decide(self, leader: str | None = None) -> list[Write]:
        """What a controller would write; the same when it decides again, in whatever order it looks at objects."""
        start = self._ids
        writes = self._decide(self.cluster(leader))
        self._ids = start
        again = self._decide(self.cluster(leader, reverse=True))
        assert _shown(writes) == _shown(again)
        return writes

    def _decide(self, cluster: Cluster) -> list[Write]:
        def made() -> UUID:
            self._ids += 1
            return UUID(int=(1 << 64) + self._ids)

        with mock.patch("kubeflash.controller.volumes.uuid4", made):
            return decide(cluster, Quiet())

    def _refusals(self) -> dict[str, dict[str, str]]:
        """What servers refused in the last minute, as the controller remembers it."""
        for volume in self.volumes.values():
            known = self.memory.setdefault(volume.metadata.uid, {})
            for ssd, words in volume.status.refused.items():
                if ssd == volume.status.ssd and ssd not in known:
                    known[ssd] = (words, self.now + timedelta(seconds=60))
        self.memory = {
            uid: {ssd: entry for ssd, entry in known.items() if entry[1] > self.now}
            for uid, known in self.memory.items()
        }
        return {uid: {ssd: words for ssd, (words, _) in known.items()} for uid, known in self.memory.items()}

    def controller_pass(self) -> int:
        """Decides, and writes it down. How much was written."""
        before = {key: (item.status.granted or 0, item.status.granted_by) for key, item in self.volumes.items()}
        writes = self.decide()
        for write in writes:
            self._finalizers(write)
            self.api.send(write)
        self._check_quota(before)
        self.check()
        return len(writes)

    def _finalizers(self, write: Write) -> None:
        """A volume's object goes when its bytes are gone, or nobody says where they are."""
        if not isinstance(write, Patch) or not isinstance(write.resource, FlashVolume) or not write.resource.deleting:
            return
        volume = write.resource
        if not write.body["metadata"]["finalizers"] and volume.status.node_name is not None:
            here = [disk for disk in self.holding(volume.spec.id or "") if disk == volume.status.ssd]
            assert not here, f"{volume.key} is let go, and its bytes are on {here}"

    def _check_quota(self, before: Mapping[str, tuple[int, str | None]]) -> None:
        pools = self.api.of(FlashPool)
        for volume in self.volumes.values():
            status = volume.status
            had, by = before.get(volume.key, (0, None))
            pool = pools.get(volume.spec.pool)
            mine = status.granted_by == self.leader and status.granted is not None
            if pool is None or pool.spec.quota is None or not mine:
                continue
            if status.granted <= had and by == self.leader:
                continue
            if status.bytes is not None and status.granted <= status.bytes:
                continue  # nothing new: what is there is only confirmed
            total = sum(
                max(item.status.granted or 0, item.status.bytes or 0)
                for item in self.volumes.values()
                if item.status.node_name is not None
                and item.spec.pool == volume.spec.pool
                and item.metadata.namespace == volume.metadata.namespace
            )
            limit = pool.spec.quota.per_namespace
            assert total <= limit, f"{volume.key} was granted {status.granted}: {total} of {limit}"

    # --- an agent ---

    def agent_pass(self, name: str, fuel: int | None = None, *, half: bool = False) -> int:
        """Plans, applies, reports; how many steps and writes. With `fuel` it ends without a word after so many."""
        server = self.servers[name]
        server.fuel, server.half = fuel, half
        try:
            return self._agent_pass(name, server)
        except Crash:
            self.failures[name] = {}
            return 1
        finally:
            server.fuel, server.half = None, False
            self.check()

    def plan(self, name: str) -> tuple[CarvePlan, Any, dict[str, Any]]:
        server = self.servers[name]
        node = self.api.of(FlashNode)[name]
        pools = self.api.of(FlashPool)
        volumes = [item for item in self.volumes.values() if item.status.node_name == name]
        observation = server.observe()
        near = Neighbours().of(node)
        selected = selected_by(report_ssds(observation, {}, {}), pools.values(), self.labels.get(name), near)
        thorough = [ssd for ssd, selection in selected.items() if selection.thorough]
        observation = server.observe(
            {item.status.volume_id for item in self.api.of(FlashAttachment).values() if item.status.volume_id},
            thorough=thorough,
        )
        failures = self.failures[name]
        given_up = {
            (subject, step.ssd): words
            for subject, (tries, words, step) in failures.items()
            if tries >= GIVE_UP and isinstance(step, (steps.CarvePartition, steps.ClaimSsd))
        }
        wishes = volume_wishes(volumes, pools, leader=self.leader, given_up=given_up)
        plan = plan_volumes(observation.disks, observation.owners, selected, wishes, admin_requests(node))
        return plan, observation, selected

    def _agent_pass(self, name: str, server: Server) -> int:
        if name not in self.api.of(FlashNode):
            server.burn()
            self.api.create(FlashNode, name, {}, self.now)
        done = 0
        for _ in range(4):
            plan, observation, selected = self.plan(name)
            failures = self.failures[name]
            wanted = {item.spec.id for item in self.volumes.values() if item.status.node_name == name}
            kept = {*wanted, *(text for step in plan.steps for text in (step.subject, step.group))}
            self.failures[name] = failures = {item: failures[item] for item in failures if item in kept}
            doubt = any(
                item.status.node_name == former
                for item in self.volumes.values()
                for former, node in self.api.of(FlashNode).items()
                if former != name and node.status.system_uuid == server.system_uuid
            )
            failed: set[str] = set()
            worked = False
            for step in plan.steps:
                if (doubt and step.takes_down) or {step.subject, step.group} & failed:
                    continue
                words = self.fails(step)
                try:
                    server.apply(step, words=words)
                    worked = True
                    done += 1
                    failures.pop(step.subject, None)
                except HostError as error:
                    failed.add(step.subject)
                    tries, _, last = failures.get(step.subject, (0, "", step))
                    failures[step.subject] = (tries + 1 if last.group == step.group else 1, str(error), step)
            if not worked:
                break
        return done + self._report(name, server, plan, observation, selected)

    def _report(self, name: str, server: Server, plan: CarvePlan, observation: Any, selected: Any) -> int:
        jobs = SimpleNamespace(
            under_way=list,
            running=lambda _: None,
            words=lambda *names: next((self.failures[name][n][1] for n in names if n in self.failures[name]), ""),
        )
        volumes = [item for item in self.volumes.values() if item.status.node_name == name]
        known = {item.spec.id: item.key for item in volumes if item.spec.id}
        ahead = report_plan(plan.steps, plan.denied, jobs)
        node = self.api.of(FlashNode)[name]
        writes = [
            report_node(
                node, observation, selected, known, plan=ahead, voice=Voice("k", "kubeflash-system"), now=self.now
            )
        ]
        for item in volumes:
            state = VolumeState(
                refused=plan.refused.get(item.key, ""),
                missing=plan.missing.get(item.key, ""),
                waiting=plan.waiting.get(item.key, ""),
                cramped=plan.cramped.get(item.key, ""),
                failure=jobs.words(item.spec.id or "", item.status.ssd or ""),
            )
            writes.append(report_volume(item, observation, state, exported={}, now=self.now))
        writes += [
            report_attachment(item, observation, "", self.now)
            for item in self.api.of(FlashAttachment).values()
            if item.spec.node_name == name
        ]
        sent = [write for write in writes if write is not None]
        for write in sent:
            server.burn()
            self.api.send(write)
        return len(sent)

    # --- everything, until nothing moves ---

    def rounds(self, most: int = 30) -> int:
        """Passes of everybody, until nobody writes anything; how many rounds that took."""
        for number in range(most):
            moved = self.controller_pass()
            for name in self.servers:
                if name not in self.silent:
                    moved += self.agent_pass(name)
            if not moved:
                return number
        raise AssertionError(f"it never comes to rest: {_shown(self.decide())}")


def _shown(writes: Iterable[Write]) -> list[str]:
    return sorted(
        f"{type(item.resource).__name__} {item.resource.key} "
        + json.dumps(item.status if isinstance(item, Apply) else item.body, sort_keys=True)
        for item in writes
    )
