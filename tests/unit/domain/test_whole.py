"""Allocation and placement as a whole: whatever happens, no byte is given twice, none is lost, and it comes to rest."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace

from hypothesis import HealthCheck, Phase, note, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from kubeflash.api.v1alpha1 import FINALIZER, FlashAttachment, FlashNode, FlashPool, FlashVolume
from kubeflash.domain import steps
from kubeflash.domain.allocation import free_spans
from kubeflash.domain.carving import DiskView, Span, is_ours, volumes_of
from kubeflash.domain.conditions import find
from kubeflash.domain.disk import MIB, Partition
from support.simulated import gpu
from support.simulated import ssd as made
from unit.domain.world import STRANGER, World

MORE = int(os.environ.get("KUBEFLASH_EXAMPLES", "0"))
"""Examples to look at, other ones in each run, and none of them shrunk, instead of the same few."""

NAMES = st.sampled_from([f"v{number}" for number in range(8)])
SERVERS = st.sampled_from(["s0", "s1", "s2"])
SSDS = st.sampled_from(["A-1", "B-1", "C-1", "D-1", "E-1", "F-1"])
NAMESPACES = st.sampled_from(["serving", "batch"])
SIZES = st.sampled_from([1, 5, 20, 33, 60, 90])
GPUS = st.sampled_from([gpu(1).address, gpu(2).address])
FAST: Mapping[str, object] = {
    "ssds": {"serials": ["A", "B", "D"]},
    "allowedNamespaces": {},
    "quota": {"perNamespace": "120Mi"},
    "reserve": "10%",
}
WIDE: Mapping[str, object] = {
    "ssds": {"all": True, "neighboursOnly": True, "exclude": {"serials": ["B"]}},
    "allowedNamespaces": {"matchLabels": {"team": "batch"}},
    "wipe": "None",
}
FAST_SSDS = [
    {"serials": ["A", "B", "D"]},
    {"serials": ["A"]},
    {"serials": ["A", "B", "D"], "exclude": {"ids": ["A-1"]}},
    {"all": True},
    {"serials": ["F", "GONE"]},
]
POOLS = st.sampled_from(["fast", "wide", "last"])


class Life(RuleBasedStateMachine):
    """A cluster's life."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()

    @initialize(first=st.lists(st.tuples(NAMES, NAMESPACES, POOLS, SIZES), max_size=6, unique_by=lambda one: one[:2]))
    def begin(self, first: list[tuple[str, str, str, int]]) -> None:
        world = self.world
        world.add_server("s0", 2, A=40, B=100, C=100)
        world.add_server("s1", 1, D=260, E=100)
        world.add_server("s2", 0, F=100)
        world.api.create(FlashPool, "fast", dict(FAST), world.now)
        world.tick()
        world.api.create(FlashPool, "wide", dict(WIDE), world.now)
        world.tick()
        world.api.create(FlashPool, "last", {"ssds": {"all": True}, "allowedNamespaces": {}}, world.now)
        for name in world.servers:
            world.agent_pass(name)
        for one, namespace, pool, size in first:
            self.create(one, namespace, pool, size)
        self.everybody(3)

    # --- users ---

    @rule(name=NAMES, namespace=NAMESPACES, pool=POOLS, size=SIZES)
    def create(self, name: str, namespace: str, pool: str, size: int) -> None:
        self._create(name, namespace, {"pool": pool, "size": f"{size}Mi"})

    @rule(
        name=NAMES,
        pool=POOLS,
        size=SIZES,
        server=SERVERS,
        gpu=GPUS,
        most=st.sampled_from([None, None, "PIX", "PHB", "SYS"]),
    )
    def create_near(self, name: str, pool: str, size: int, server: str, gpu: str, most: str | None) -> None:
        near = {"node": server, "gpu": gpu, **({"maxDistance": most} if most else {})}
        self._create(name, "batch", {"pool": pool, "size": f"{size}Mi", "near": near})

    def _create(self, name: str, namespace: str, spec: dict[str, object]) -> None:
        self.world.tick()
        if f"{namespace}/{name}" not in self.world.volumes:
            self.world.api.create(FlashVolume, name, spec, self.world.now, namespace)

    @rule(name=NAMES, namespace=NAMESPACES, size=SIZES)
    def grow(self, name: str, namespace: str, size: int) -> None:
        volume = self.world.volumes.get(f"{namespace}/{name}")
        if volume is not None and volume.spec.size < size * MIB:
            self.world.api.edit(FlashVolume, volume.key, {"size": f"{size}Mi"})

    @rule(name=NAMES, namespace=NAMESPACES)
    def delete(self, name: str, namespace: str) -> None:
        if (key := f"{namespace}/{name}") in self.world.volumes:
            self.world.tick()
            self.world.api.delete(FlashVolume, key, self.world.now)

    @rule(name=NAMES, namespace=NAMESPACES, server=SERVERS)
    def attach(self, name: str, namespace: str, server: str) -> None:
        """On its own server: what crosses the fabric is tested elsewhere."""
        volume = self.world.volumes.get(f"{namespace}/{name}")
        attachments = self.world.api.of(FlashAttachment)
        if volume is not None and volume.status.node_name == server and volume.key not in attachments:
            self.world.api.create(
                FlashAttachment, name, {"volume": name, "nodeName": server}, self.world.now, namespace
            )

    @rule(name=NAMES, namespace=NAMESPACES)
    def detach(self, name: str, namespace: str) -> None:
        if (key := f"{namespace}/{name}") in self.world.api.of(FlashAttachment):
            self.world.api.delete(FlashAttachment, key, self.world.now)

    # --- passes ---

    @rule()
    def controller(self) -> None:
        self.world.tick()
        self.world.controller_pass()

    @rule(server=SERVERS, fuel=st.sampled_from([None, None, None, 0, 1, 2, 3, 5]), half=st.booleans())
    def agent(self, server: str, fuel: int | None, half: bool) -> None:
        self.world.tick()
        if server not in self.world.silent:
            self.world.agent_pass(server, fuel, half=half)

    @rule(rounds=st.integers(1, 3))
    def everybody(self, rounds: int) -> None:
        for _ in range(rounds):
            self.controller()
            for server in self.world.servers:
                if server not in self.world.silent:
                    self.world.agent_pass(server)

    @rule(first=SERVERS)
    def everybody_the_other_way_round(self, first: str) -> None:
        for server in sorted(self.world.servers, key=lambda name: name != first):
            if server not in self.world.silent:
                self.world.agent_pass(server)
        self.controller()

    @rule(server=SERVERS, kind=st.sampled_from([steps.CarvePartition, steps.ClaimSsd, steps.WipePartition]))
    def steps_fail(self, server: str, kind: type[steps.Step]) -> None:
        if server not in self.world.silent:
            self.world.fails = lambda step: "I/O error" if isinstance(step, kind) else ""
            for _ in range(3):
                self.world.agent_pass(server)
            self.world.fails = lambda _: ""

    @rule()
    def another_leader(self) -> None:
        self.world.leaders += 1
        self.world.leader = f"leader-{self.world.leaders}"

    @rule()
    def a_leader_falls_asleep_over_its_writes_and_another_one_leads(self) -> None:
        self.world.stale = self.world.decide()
        self.another_leader()

    @precondition(lambda self: self.world.stale)
    @rule()
    def it_wakes_up_and_sends_them(self) -> None:
        for write in self.world.stale:
            self.world.api.send(write)
        self.world.stale = []

    # --- what happens to objects ---

    @rule()
    def everything_is_restored_without_status(self) -> None:
        for kind in (FlashPool, FlashVolume):
            for key in self.world.api.of(kind):
                self.world.api.lose_status(kind, key)

    @rule(name=NAMES, namespace=NAMESPACES)
    def one_status_is_lost(self, name: str, namespace: str) -> None:
        if (key := f"{namespace}/{name}") in self.world.volumes:
            self.world.api.lose_status(FlashVolume, key)

    @rule(name=NAMES, namespace=NAMESPACES)
    def a_copy_of_an_object_is_made(self, name: str, namespace: str) -> None:
        volume = self.world.volumes.get(f"{namespace}/{name}")
        if volume is not None and volume.spec.id is not None:
            self._create(f"{name}-copy", namespace, {"pool": volume.spec.pool, "size": "1Mi", "id": volume.spec.id})

    @rule(ssds=st.sampled_from(FAST_SSDS), quota=st.sampled_from(["30Mi", "120Mi", "1Gi", None]))
    def a_pool_changes(self, ssds: dict[str, object], quota: str | None) -> None:
        if "fast" in self.world.api.of(FlashPool):
            change = {"ssds": ssds, "quota": {"perNamespace": quota} if quota else None}
            self.world.api.edit(FlashPool, "fast", change)

    @rule(pool=POOLS)
    def a_pool_goes_or_comes_back(self, pool: str) -> None:
        if pool in self.world.api.of(FlashPool):
            self.world.api.delete(FlashPool, pool, self.world.now)
        else:
            spec = {"fast": dict(FAST), "wide": dict(WIDE)}.get(pool, {"ssds": {"all": True}, "allowedNamespaces": {}})
            self.world.tick()
            self.world.api.create(FlashPool, pool, spec, self.world.now)

    # --- what happens to servers and disks ---

    @rule(server=SERVERS)
    def a_server_falls_silent_or_comes_back(self, server: str) -> None:
        self.world.silent ^= {server}
        self.world.failures[server] = {}

    @rule(server=SERVERS, what=st.sampled_from(["cordon", "maintenance", "failing"]))
    def a_server_is_to_get_nothing_new_or_is_again(self, server: str, what: str) -> None:
        node = self.world.api.of(FlashNode).get(server)
        if what == "cordon":
            self.world.cordoned ^= {server}
        elif what == "failing":
            disks = self.world.servers[server].disks
            broken = self.world.servers[server].errors
            self.world.servers[server].errors = {} if broken else dict.fromkeys(list(disks)[:1], 2)
        elif node is not None:
            self.world.api.edit(FlashNode, server, {"maintenance": not node.spec.maintenance})

    @rule(ssd=SSDS)
    def an_ssd_is_pulled_out(self, ssd: str) -> None:
        for server in self.world.servers.values():
            if ssd in server.ssds:
                self.world.limbo[ssd] = (server.ssds.pop(ssd), server.disks.pop(ssd))

    @rule(ssd=SSDS, server=SERVERS)
    def an_ssd_is_put_in(self, ssd: str, server: str) -> None:
        if ssd in self.world.limbo:
            self._put(ssd, server)

    def _put(self, ssd: str, server: str) -> None:
        item, disk = self.world.limbo.pop(ssd)
        there = self.world.servers[server]
        taken = {other.dev_t[1] for other in there.ssds.values()}
        slot = next(number for number in range(1, 9) if number not in taken)
        there.ssds[ssd] = replace(made(item.serial, slot), bytes=item.bytes)
        there.disks[ssd] = disk

    @rule(ssd=SSDS)
    def an_ssd_is_wiped_behind_our_back(self, ssd: str) -> None:
        for server in self.world.servers.values():
            if ssd in server.disks:
                server.disks[ssd] = DiskView(ssd, server.disks[ssd].bytes)

    @rule(ssd=SSDS, add=st.booleans())
    def a_stranger_s_partition_comes_or_goes(self, ssd: str, add: bool) -> None:
        for server in self.world.servers.values():
            disk = server.disks.get(ssd)
            if disk is None:
                continue
            if disk.table is None:
                server.disks[ssd] = replace(
                    disk, findings=("ext4",) if add else (), fingerprint="ext4" if add else "", half_claimed=False
                )
                continue
            parts = tuple(part for part in disk.table.partitions if part.type_guid != STRANGER)
            free = free_spans(disk.bytes, [Span(part.start, part.bytes) for part in parts])
            if add and free:
                number = max(part.number for part in parts) + 1
                parts = (*parts, Partition(number, free[-1].start, MIB, "data", f"data-{ssd}", STRANGER))
            shown = frozenset(part.number for part in parts)
            server.disks[ssd] = replace(disk, table=replace(disk.table, partitions=parts), shown=shown)

    @rule(ssd=SSDS, copy=st.sampled_from(["primary", "backup"]))
    def a_table_is_damaged(self, ssd: str, copy: str) -> None:
        for server in self.world.servers.values():
            disk = server.disks.get(ssd)
            if disk is not None and disk.table is not None:
                server.disks[ssd] = replace(disk, table=replace(disk.table, damaged=copy))

    # --- admins ---

    @rule(ssd=SSDS)
    def an_admin_has_an_ssd_wiped(self, ssd: str) -> None:
        for name, node in self.world.api.of(FlashNode).items():
            for item in node.status.ssds:
                if item.id == ssd and item.fingerprint:
                    self.world.api.edit(FlashNode, name, {"wipe": {"ssds": {ssd: item.fingerprint}}})

    @rule(server=SERVERS)
    def an_admin_has_orphans_wiped(self, server: str) -> None:
        node = self.world.api.of(FlashNode).get(server)
        ids = {item.spec.id for item in self.world.volumes.values()}
        if node is not None:
            orphans = {
                extent.id: item.id
                for item in node.status.ssds
                for extent in item.volumes
                if extent.volume is None and extent.id not in ids
            }
            self.world.api.edit(FlashNode, server, {"wipe": {"orphans": orphans} if orphans else None})

    @rule(server=SERVERS, name=NAMES)
    def an_admin_adopts_an_orphan(self, server: str, name: str) -> None:
        node = self.world.api.of(FlashNode).get(server)
        ids = {item.spec.id for item in self.world.volumes.values()}
        for item in node.status.ssds if node is not None else ():
            for extent in item.volumes:
                if extent.volume is None and extent.id not in ids:
                    self._create(name, "serving", {"pool": "last", "size": "1Mi", "id": extent.id})
                    return

    @rule(server=SERVERS)
    def an_admin_adopts_ssds(self, server: str) -> None:
        node = self.world.api.of(FlashNode).get(server)
        if node is not None:
            adopt = {item.id: item.labelled for item in node.status.ssds if item.labelled}
            self.world.api.edit(FlashNode, server, {"adopt": adopt})

    @rule(server=SERVERS)
    def an_admin_purges_a_silent_server_or_takes_that_back(self, server: str) -> None:
        node = self.world.api.of(FlashNode).get(server)
        if node is None:
            return
        if node.spec.purge:
            self.world.api.edit(FlashNode, server, {"purge": None})
        elif server in self.world.silent:
            self.world.api.edit(FlashNode, server, {"purge": node.status.system_uuid})

    # --- what holds ---

    @invariant()
    def nothing_is_broken(self) -> None:
        self.world.check()

    def teardown(self) -> None:
        world = self.world
        if not world.servers:
            return
        world.silent, world.stale = set(), []
        for ssd in list(world.limbo):
            self._put(ssd, "s2")
        for name, node in world.api.of(FlashNode).items():
            adopt = {item.id: item.labelled for item in node.status.ssds if item.labelled}
            world.api.edit(FlashNode, name, {"purge": None, "adopt": adopt})
        for key in world.api.of(FlashAttachment):
            world.api.delete(FlashAttachment, key, world.now)
        world.rounds()
        for name, node in world.api.of(FlashNode).items():
            adopt = {item.id: item.labelled for item in node.status.ssds if item.labelled}
            if adopt:
                world.api.edit(FlashNode, name, {"adopt": adopt})
        world.rounds()
        for volume in world.volumes.values():
            self._is_at_rest(volume)

    def _is_at_rest(self, volume: FlashVolume) -> None:
        ready = find(volume.status.conditions, "Ready")
        assert ready is not None
        note(f"{volume.key}: {ready.status} {ready.reason} {ready.message}")
        assert FINALIZER in volume.metadata.finalizers or volume.status.node_name is None
        if ready.status == "True":
            server = self.world.servers[volume.status.node_name or ""]
            disk = server.disks[volume.status.ssd or ""]
            assert is_ours(disk, server.owner(disk.ssd))
            (part,) = [part for part in volumes_of(disk.table) if part.uuid == volume.spec.id]
            assert part.bytes == volume.status.bytes
            assert part.number in disk.shown
            grown = find(volume.status.conditions, "Resized")
            fits = part.bytes == volume.status.granted
            assert fits or (grown is not None and grown.status == "False"), (part, volume.status)
            assert volume.status.granted_by == self.world.leader or volume.status.granted <= part.bytes
        else:
            assert ready.message
            assert ready.reason not in ("Carving", "CarveFailed", "AgentSilent") or "SSD" in ready.message, ready


TestLife = Life.TestCase
TestLife.settings = settings(
    max_examples=MORE or 60,
    stateful_step_count=50,
    derandomize=not MORE,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.generate] if MORE else [Phase.explicit, Phase.generate, Phase.shrink],
    print_blob=False,
)
