"""Volumes for life on a real API server, controllers as processes, real agents on simulated servers."""

from __future__ import annotations

import itertools
import json
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from zlib import crc32

import pytest

from fleet import JSON, NAMESPACE, Fleet, attachment, condition, is_ready, pool, volume
from kubeflash.api.v1alpha1 import FlashVolume
from kubeflash.domain import steps
from kubeflash.domain.carving import volumes_of
from kubeflash.host.smart import Health
from kubeflash.kube.client import Client
from lab.errors import CommandError, LabTimeout
from lab.processes import ManagedProcess, wait_until
from support.simulated import Network, SimulatedServer, gpu, ssd
from support.simulation import Simulation

SERVERS = ("life-a", "life-b", "life-c")
MIB = 1 << 20


def serial(server: str, number: int) -> str:
    return f"{server[-1].upper()}L{number}"


@pytest.fixture(scope="module")
def simulation(fleet: Fleet) -> Iterator[Simulation]:
    network = Network()
    servers = {
        name: SimulatedServer(
            name,
            f"10.0.1.{number}",
            network,
            [gpu(1), gpu(2)],
            [ssd(serial(name, n), n) for n in (1, 2, 3, 4)],
        )
        for number, name in enumerate(SERVERS, start=1)
    }
    with Simulation.running(fleet, servers, "kubeflash-agent-life") as made:
        yield made
    for name in servers:
        fleet.kubectl("delete", "flashnode", name, "--ignore-not-found", "--wait=false")


def look(fleet: Fleet, name: str) -> None:
    """Makes an agent look at its server now."""
    fleet.kubectl("annotate", "--overwrite", "flashnode", name, f"look={time.monotonic_ns()}")


def carved(simulation: Simulation) -> dict[str, list[str]]:
    """By volume id, where its partitions are."""
    found: dict[str, list[str]] = {}
    for name, server in simulation.servers.items():
        for disk in server.disks.values():
            for part in volumes_of(disk.table):
                found.setdefault(part.uuid, []).append(f"{name}/{disk.ssd}")
    return found


def volumes(client: Client, pools: set[str]) -> list[JSON]:
    return [item for item in client.list(FlashVolume.info) if item["spec"]["pool"] in pools]


def reason(found: JSON) -> str:
    return str(condition(found, "Ready").get("reason"))


def wait_all(
    client: Client, pools: set[str], reached: Callable[[list[JSON]], bool], what: str, timeout: float = 120
) -> None:
    try:
        wait_until(what, lambda: reached(volumes(client, pools)), timeout=timeout, interval=0.5)
    except LabTimeout as error:
        left = [condition(item, "Ready") for item in volumes(client, pools) if not is_ready(item)]
        raise AssertionError(f"{error}; {len(left)} are not Ready, among them {left[:3]}") from error


def test_two_hundred_volumes_at_once_over_two_pools_while_agents_refuse_one_in_ten(fleet, simulation, client):
    fleet.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "limited"}})
    one = [serial(name, n) for name in SERVERS for n in (1, 2)]
    two = [serial(name, n) for name in SERVERS for n in (3, 4)]
    fleet.apply(pool("one", *one), pool("two", *two, quota={"perNamespace": "128Mi"}, reserve="10%"))
    refused: set[tuple[str, str]] = set()

    def broken(step: steps.Step) -> str:
        if isinstance(step, steps.CarvePartition) and crc32(f"{step.subject}{step.ssd}".encode()) % 10 == 0:
            refused.add((step.subject, step.ssd))
            return "sfdisk: this SSD does not take it"
        return ""

    for server in simulation.servers.values():
        server.broken = broken
    try:
        bodies = [volume(f"many-{n}", "16Mi", pool="one") for n in range(180)]
        bodies += [volume(f"some-{n}", "16Mi", pool="two") for n in range(20)]
        for body in bodies[180:]:
            body["metadata"]["namespace"] = "limited"
        with ThreadPoolExecutor(16) as threads:
            list(threads.map(lambda it: client.create(FlashVolume.info, it, it["metadata"]["namespace"]), bodies))
        wait_all(
            client,
            {"one"},
            lambda items: len(items) == 180 and all(map(is_ready, items)),
            "all volumes of pool one are Ready",
        )
        # 128Mi are eight of 16Mi: exactly so many, and every other one says why not
        wait_all(
            client,
            {"two"},
            lambda items: Counter(map(reason, items)) == {"Carved": 8, "QuotaExceeded": 12},
            "the quota is used up to the last byte",
        )
        everything = volumes(client, {"one", "two"})
        ready = [item for item in everything if is_ready(item)]
        assert refused, "no agent refused: the test shows nothing"
        places = carved(simulation)
        assert {item["spec"]["id"] for item in ready} == set(places), "a partition too many, or too few"
        assert all(len(where) == 1 for where in places.values()), "a volume is on two SSDs"
        for item in ready:
            status = item["status"]
            assert places[item["spec"]["id"]] == [f"{status['nodeName']}/{status['ssd']}"]
            assert (item["spec"]["id"], status["ssd"]) not in refused
        told = fleet.wait("flashpool", "two", lambda it: it["status"].get("namespaces"), namespace=None)["status"]
        assert told["namespaces"] == [{"name": "limited", "volumes": 8, "bytes": "128Mi"}]
    finally:
        for server in simulation.servers.values():
            server.broken = lambda _: ""
        for namespace in (NAMESPACE, "limited"):
            fleet.kubectl("delete", "flashvolume", "--all", "-n", namespace, "--timeout=120s", timeout=150)
    assert carved(simulation) == {}
    wait_until("nothing is used", lambda: not used(fleet, "one") and not used(fleet, "two"), timeout=20)
    fleet.kubectl("delete", "flashpool", "one", "two", "--timeout=30s")


def used(fleet: Fleet, name: str) -> list[JSON]:
    return fleet.get("flashpool", name, None)["status"].get("namespaces", [])


@contextmanager
def second_controller(fleet: Fleet) -> Iterator[ManagedProcess]:
    made = fleet.another_controller("controller-of-life")
    try:
        made.wait_ready(lambda: "standing by" in made.log_tail(), timeout=20)
        yield made
    finally:
        made.stop()


@contextmanager
def restarted(fleet: Fleet, first: ManagedProcess) -> Iterator[None]:
    """Whatever becomes of the first controller, there is one afterwards."""
    try:
        yield
    finally:
        first.stop()
        fleet.start_controller()


def test_of_a_frozen_controller_no_stale_placement_is_carved(fleet, simulation, client):
    fleet.apply(pool("frozen", serial("life-a", 1)))
    fleet.wait_ready("flashpool", "frozen", namespace=None)
    first, began = fleet.controller, len(simulation.servers["life-a"].history)
    fleet.controller = None
    with restarted(fleet, first), second_controller(fleet) as second:
        bodies = [volume(f"before-{n}", "16Mi", pool="frozen") for n in range(20)]
        for number, body in enumerate(bodies):
            client.create(FlashVolume.info, body, NAMESPACE)
            if number == 10:
                os.kill(first.pid, signal.SIGSTOP)  # in the middle of placing
        try:
            second.wait_ready(lambda: "leading as" in second.log_file.read_text(), timeout=60)
            wait_all(client, {"frozen"}, lambda items: all(map(is_ready, items)), "the second one goes on")
            old = {item["status"]["grantedBy"] for item in volumes(client, {"frozen"})}
            leader = second.log_file.read_text().partition("leading as ")[2].split()[0]
            assert leader in old
            # The last SSD space is taken by the new leader; then what the old one had decided before it froze arrives.
            fleet.apply(volume("fills", "700Mi", pool="frozen"))
            fleet.wait_ready("flashvolume", "fills")
            fleet.apply(volume("stale", "16Mi", pool="frozen"))
            full = lambda it: reason(it) == "NoSpace" and "id" in it["spec"]  # noqa: E731
            ident = fleet.wait("flashvolume", "stale", full, timeout=30)["spec"]["id"]
            resource = FlashVolume.from_json(client.get(FlashVolume.info, "stale", NAMESPACE))
            client.apply_status(
                resource,
                {
                    "id": ident,
                    "nodeName": "life-a",
                    "ssd": f"{serial('life-a', 1)}-1",
                    "granted": "16Mi",
                    "grantedBy": "a-controller-that-was-frozen",
                    "conditions": [],
                },
                "kubeflash-controller",
            )
        finally:
            os.kill(first.pid, signal.SIGCONT)
        lost = lambda: "leadership is lost" in first.log_file.read_text()  # noqa: E731
        wait_until("the first one sees that it does not lead", lost, timeout=30)
        # Full by the leader's own ledger, or refused by the server that was asked to: nowhere, in either case.
        nowhere = lambda it: reason(it) in ("NoSpace", "NoSuitableSSD") and "nodeName" not in it["status"]  # noqa: E731
        fleet.wait("flashvolume", "stale", nowhere, timeout=30)
        assert ident not in carved(simulation)
        history = simulation.servers["life-a"].history[began:]
        done = [step.subject for step in history if isinstance(step, steps.CarvePartition)]
        assert len(done) == len(set(done)), "something was carved twice"
        assert all(len(where) == 1 for where in carved(simulation).values())
        fleet.kubectl("delete", "flashvolume", "--all", "-n", NAMESPACE, "--timeout=60s", timeout=90)
        fleet.kubectl("delete", "flashpool", "frozen", "--timeout=30s")


def test_a_stale_placement_alone_is_not_carved_while_nobody_leads(fleet, simulation, client):
    fleet.apply(pool("nobody", serial("life-a", 1)))
    fleet.wait_ready("flashpool", "nobody", namespace=None)
    fleet.stop_controller()
    try:
        made = client.create(FlashVolume.info, volume("late", "16Mi", pool="nobody"), NAMESPACE)
        ident = "5ca1e000-0000-4000-8000-000000000002"
        made = client.patch(FlashVolume.from_json(made), {"spec": {"id": ident}})
        place = {"id": ident, "nodeName": "life-a", "ssd": f"{serial('life-a', 1)}-1"}
        grant = {"granted": "16Mi", "grantedBy": "a-controller-that-was-frozen", "conditions": []}
        client.apply_status(FlashVolume.from_json(made), {**place, **grant}, "kubeflash-controller")
        said = fleet.wait("flashvolume", "late", lambda it: condition(it, "Carved"), timeout=20)
        assert "leads no longer" in condition(said, "Carved")["message"]
        assert carved(simulation) == {}
    finally:
        fleet.start_controller()
    fleet.wait_ready("flashvolume", "late", timeout=40)
    fleet.delete("flashvolume", "late")
    fleet.kubectl("delete", "flashpool", "nobody", "--timeout=30s")


@pytest.mark.parametrize("order", list(itertools.permutations(("flashpool", "flashvolume", "flashattachment"))))
def test_deletion_in_every_order_ends_with_nothing(fleet, simulation, order):
    fleet.apply(pool("gone", serial("life-b", 1)), volume("gone", "16Mi", pool="gone"))
    fleet.wait_ready("flashvolume", "gone")
    fleet.apply(attachment("gone", "gone", "life-c"))
    fleet.wait_ready("flashattachment", "gone")
    for kind in order:
        where = [] if kind == "flashpool" else ["-n", NAMESPACE]
        fleet.kubectl("delete", kind, "gone", *where, "--wait=false")
        time.sleep(0.5)
    for kind in order:
        where = None if kind == "flashpool" else NAMESPACE
        wait_until(f"{kind} is gone", lambda k=kind, w=where: fleet.get(k, "gone", w) is None, timeout=40)
    assert carved(simulation) == {}
    assert simulation.exports("life-b") == set()
    assert simulation.connections("life-c") == set()


def test_a_pool_waits_for_its_volumes_and_says_which(fleet, simulation):
    fleet.apply(pool("kept", serial("life-b", 1)), volume("keeps", "16Mi", pool="kept"))
    fleet.wait_ready("flashvolume", "keeps")
    fleet.kubectl("delete", "flashpool", "kept", "--wait=false")
    said = fleet.wait("flashpool", "kept", lambda it: reason(it) == "Deleting", namespace=None, timeout=20)
    assert "serving/keeps" in condition(said, "Ready")["message"]
    fleet.apply(volume("too-late", "16Mi", pool="kept"))
    fleet.wait("flashvolume", "too-late", lambda it: reason(it) == "PoolDeleting", timeout=20)
    assert is_ready(fleet.get("flashvolume", "keeps"))
    fleet.kubectl("delete", "flashvolume", "too-late", "keeps", "-n", NAMESPACE, "--timeout=30s")
    wait_until("the pool is gone", lambda: fleet.get("flashpool", "kept", None) is None, timeout=20)


def test_deletion_waits_for_an_agent_that_is_gone_and_ends_when_it_is_back(fleet, simulation):
    fleet.apply(pool("away", serial("life-b", 1)), volume("away", "16Mi", pool="away"))
    fleet.wait_ready("flashvolume", "away")
    simulation.stop("life-b")
    try:
        fleet.kubectl("delete", "flashvolume", "away", "-n", NAMESPACE, "--wait=false")
        said = fleet.wait("flashvolume", "away", lambda it: reason(it) == "AgentSilent", timeout=90)
        assert "kubectl flash purge life-b" in condition(said, "Ready")["message"]
        assert carved(simulation), "nobody wiped it"
        fleet.kubectl("delete", "flashnode", "life-b", "--wait=false")  # says nothing about the server
        time.sleep(1)
        assert fleet.get("flashnode", "life-b", None) is not None, "what volumes are placed on is kept"
    finally:
        simulation.start("life-b")
    fleet.wait_gone("flashvolume", "away", timeout=40)
    assert carved(simulation) == {}
    fleet.wait("flashnode", "life-b", lambda it: "deletionTimestamp" not in it["metadata"], namespace=None, timeout=40)
    fleet.wait_ready("flashnode", "life-b", namespace=None, timeout=40)
    fleet.kubectl("delete", "flashpool", "away", "--timeout=30s")


def node(name: str, **labels: str) -> JSON:
    return {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels}}


def test_a_node_that_is_deleted_and_registered_again_keeps_its_volumes(fleet, simulation):
    fleet.apply(node("life-a", rack="7"))
    selected = pool("rack", serial("life-a", 1), nodes={"matchLabels": {"rack": "7"}})
    fleet.apply(selected, volume("racked", "16Mi", pool="rack"))
    before = fleet.wait_ready("flashvolume", "racked")
    fleet.kubectl("delete", "node", "life-a")
    said = fleet.wait("flashpool", "rack", lambda it: it["status"].get("draining"), namespace=None, timeout=20)
    (item,) = said["status"]["draining"]
    assert item["volumes"] == ["serving/racked"]
    assert "spec.nodes does not select" in item["reason"]
    assert is_ready(fleet.get("flashvolume", "racked"))
    fleet.apply(volume("no-rack", "16Mi", pool="rack"))
    fleet.wait("flashvolume", "no-rack", lambda it: reason(it) == "PoolEmpty", timeout=20)
    fleet.apply(node("life-a", rack="7"))
    fleet.wait_ready("flashvolume", "no-rack", timeout=30)
    after = fleet.get("flashvolume", "racked")
    assert (after["spec"]["id"], after["status"]["ssd"]) == (before["spec"]["id"], before["status"]["ssd"])
    fleet.kubectl("cordon", "life-a")
    fleet.apply(volume("cordoned", "16Mi", pool="rack"))
    said = fleet.wait("flashvolume", "cordoned", lambda it: reason(it) == "NoSuitableSSD", timeout=20)
    assert "0 on servers that take new volumes" in condition(said, "Ready")["message"]
    fleet.apply(volume("insists", "16Mi", pool="rack", node="life-a"))
    fleet.wait_ready("flashvolume", "insists")
    fleet.kubectl("uncordon", "life-a")
    fleet.wait_ready("flashvolume", "cordoned")
    fleet.kubectl("delete", "flashvolume", "--all", "-n", NAMESPACE, "--timeout=60s")
    fleet.kubectl("delete", "flashpool", "rack", "--timeout=30s")
    fleet.kubectl("delete", "node", "life-a")


def test_in_maintenance_nothing_new_is_placed_and_what_is_there_works(fleet, simulation):
    fleet.apply(pool("care", serial("life-a", 1)), volume("there", "16Mi", pool="care"))
    fleet.wait_ready("flashvolume", "there")
    maintain = lambda on: fleet.kubectl(  # noqa: E731
        "patch", "flashnode", "life-a", "--type=merge", "-p", json.dumps({"spec": {"maintenance": on}})
    )
    maintain(True)
    try:
        fleet.wait("flashnode", "life-a", lambda it: reason(it) == "Maintenance", namespace=None)
        fleet.apply(volume("new", "16Mi", pool="care"))
        fleet.wait("flashvolume", "new", lambda it: reason(it) == "NoSuitableSSD", timeout=20)
        grow(fleet, "there", "32Mi")
        fleet.wait("flashvolume", "there", lambda it: it["status"].get("bytes") == 32 * MIB, timeout=20)
        fleet.delete("flashvolume", "there")
    finally:
        maintain(False)
    fleet.wait_ready("flashvolume", "new")
    fleet.delete("flashvolume", "new")
    fleet.kubectl("delete", "flashpool", "care", "--timeout=30s")


def grow(fleet: Fleet, name: str, size: str) -> None:
    patch = json.dumps({"spec": {"size": size}})
    fleet.kubectl("patch", "flashvolume", name, "-n", NAMESPACE, "--type=merge", "-p", patch)


def test_growth_stops_at_the_neighbour_and_goes_on_when_it_is_gone(fleet, simulation):
    fleet.apply(pool("grow", serial("life-a", 1), quota={"perNamespace": "200Mi"}))
    fleet.apply(volume("g0", "16Mi", pool="grow"))
    fleet.wait_ready("flashvolume", "g0")
    fleet.apply(volume("g1", "16Mi", pool="grow"))
    fleet.wait_ready("flashvolume", "g1")
    with pytest.raises(CommandError, match="size may grow, never shrink"):
        grow(fleet, "g0", "8Mi")
    grow(fleet, "g1", "64Mi")
    grown = fleet.wait("flashvolume", "g1", lambda it: it["status"].get("bytes") == 64 * MIB, timeout=20)
    fleet.wait("flashvolume", "g1", lambda it: condition(it, "Resized").get("status") == "True", timeout=20)
    assert is_ready(grown)
    grow(fleet, "g0", "32Mi")
    said = fleet.wait("flashvolume", "g0", lambda it: condition(it, "Resized").get("reason") == "NoSpace", timeout=20)
    assert "behind it is volume serving/g1" in condition(said, "Resized")["message"]
    assert is_ready(said), "it works on, as large as it is"
    fleet.delete("flashvolume", "g1")
    fleet.wait("flashvolume", "g0", lambda it: it["status"].get("bytes") == 32 * MIB, timeout=20)
    grow(fleet, "g0", "300Mi")
    said = fleet.wait(
        "flashvolume", "g0", lambda it: condition(it, "Resized").get("reason") == "QuotaExceeded", timeout=20
    )
    assert "may have 200Mi" in condition(said, "Resized")["message"]
    fleet.delete("flashvolume", "g0")
    fleet.kubectl("delete", "flashpool", "grow", "--timeout=30s")


def test_a_failing_ssd_gets_no_new_volumes_and_its_volumes_say_so(fleet, simulation):
    server, bad = simulation.servers["life-a"], f"{serial('life-a', 1)}-1"
    fleet.apply(pool("worn", serial("life-a", 1)), volume("old", "16Mi", pool="worn"))
    fleet.wait_ready("flashvolume", "old")
    server.health[bad] = Health(critical=("it is unreliable",))
    try:
        look(fleet, "life-a")
        said = fleet.wait("flashvolume", "old", lambda it: condition(it, "Healthy").get("status") == "False")
        assert "it is unreliable" in condition(said, "Healthy")["message"]
        assert is_ready(said)
        fleet.apply(volume("young", "16Mi", pool="worn"))
        said = fleet.wait("flashvolume", "young", lambda it: reason(it) == "NoSuitableSSD", timeout=20)
        assert "0 that do not fail" in condition(said, "Ready")["message"]
    finally:
        server.health.clear()
        look(fleet, "life-a")
    fleet.wait("flashvolume", "old", lambda it: condition(it, "Healthy").get("status") == "True")
    fleet.wait_ready("flashvolume", "young")
    fleet.kubectl("delete", "flashvolume", "old", "young", "-n", NAMESPACE, "--timeout=30s")
    fleet.kubectl("delete", "flashpool", "worn", "--timeout=30s")


def move(simulation: Simulation, ssd_id: str, source: str, target: str) -> None:
    simulation.servers[target].plug(*simulation.servers[source].unplug(ssd_id))


def test_volumes_follow_an_ssd_that_moved_to_another_server_and_say_so(fleet, simulation):
    moving = f"{serial('life-a', 1)}-1"
    fleet.apply(pool("moves", serial("life-a", 1)), volume("rider", "16Mi", pool="moves"))
    before = fleet.wait_ready("flashvolume", "rider")
    move(simulation, moving, "life-a", "life-b")
    try:
        look(fleet, "life-a")
        look(fleet, "life-b")
        moved = lambda it: it["status"].get("nodeName") == "life-b" and is_ready(it)  # noqa: E731
        after = fleet.wait("flashvolume", "rider", moved, timeout=40)
        assert condition(after, "Placed")["reason"] == "Moved"
        assert "came from server life-a" in condition(after, "Placed")["message"]
        assert after["spec"]["id"] == before["spec"]["id"]
        fleet.apply(attachment("rides", "rider", "life-b"))
        assert fleet.wait_ready("flashattachment", "rides")["status"]["path"] == "Local"
        fleet.delete("flashattachment", "rides")
        fleet.delete("flashvolume", "rider")
    finally:
        move(simulation, moving, "life-b", "life-a")
        look(fleet, "life-a")
        look(fleet, "life-b")
    states = lambda it: {item["id"]: item["state"] for item in it["status"]["ssds"]}  # noqa: E731
    fleet.wait("flashnode", "life-a", lambda it: states(it).get(moving) == "Claimed", namespace=None, timeout=40)
    fleet.kubectl("delete", "flashpool", "moves", "--timeout=30s")


def test_a_server_that_was_renamed_keeps_its_volumes(fleet, simulation):
    fleet.apply(pool("names", serial("life-c", 1)), volume("named", "16Mi", pool="names"))
    before = fleet.wait_ready("flashvolume", "named")
    simulation.stop("life-c")
    simulation.servers["life-new"] = simulation.servers["life-c"]
    history = len(simulation.servers["life-c"].history)
    simulation.start("life-new")
    try:
        renamed = lambda it: it["status"].get("nodeName") == "life-new" and is_ready(it)  # noqa: E731
        after = fleet.wait("flashvolume", "named", renamed, timeout=120)
        assert "server life-c is called life-new now" in condition(after, "Placed")["message"]
        assert after["status"]["ssd"] == before["status"]["ssd"]
        said = fleet.wait("flashnode", "life-c", lambda it: reason(it) == "Renamed", namespace=None, timeout=40)
        assert "FlashNode life-new now" in condition(said, "Ready")["message"]
        assert simulation.servers["life-c"].history[history:] == [], "nothing was touched on its disks"
        fleet.delete("flashvolume", "named")
        fleet.kubectl("delete", "flashnode", "life-c", "--timeout=30s")
    finally:
        simulation.stop("life-new")
        del simulation.servers["life-new"]
        fleet.kubectl("delete", "lease", "agent-life-new", "-n", "kubeflash-system")  # so that nobody waits for it
        fleet.kubectl("delete", "flashnode", "life-new", "--timeout=60s", timeout=70)
        simulation.start("life-c")
    fleet.wait_ready("flashnode", "life-c", namespace=None, timeout=40)
    fleet.kubectl("delete", "flashpool", "names", "--timeout=30s")


def export(fleet: Fleet, *kinds: str) -> list[JSON]:
    """All objects of these kinds, as a backup has them: without status, and without what the API server fills in."""
    found: list[JSON] = []
    for kind in kinds:
        for item in json.loads(fleet.kubectl("get", kind, "-A", "-o", "json"))["items"]:
            meta = {
                key: item["metadata"][key] for key in ("name", "namespace", "finalizers") if key in item["metadata"]
            }
            found.append(
                {"apiVersion": item["apiVersion"], "kind": item["kind"], "metadata": meta, "spec": item["spec"]}
            )
    return found


def delete_by_force(fleet: Fleet, *kinds: str) -> None:
    """As if the cluster were lost: objects go, and nobody is there to release anything."""
    for kind in kinds:
        for item in json.loads(fleet.kubectl("get", kind, "-A", "-o", "json"))["items"]:
            where = ["-n", item["metadata"]["namespace"]] if "namespace" in item["metadata"] else []
            name = item["metadata"]["name"]
            fleet.kubectl("patch", kind, name, *where, "--type=merge", "-p", '{"metadata":{"finalizers":null}}')
            fleet.kubectl("delete", kind, name, *where, "--ignore-not-found")


KINDS = ("flashattachments", "flashvolumes", "flashpools")


@pytest.mark.parametrize("cluster_id", [None, "0ddc1d00-0000-4000-8000-000000000000"])
def test_restored_from_a_backup_all_volumes_are_on_the_same_partitions(fleet, simulation, client, cluster_id):
    """Also into a new cluster that has the old one's id: then agents come up with `--cluster-id`."""
    if cluster_id is not None:
        for name in SERVERS:
            simulation.stop(name)
            simulation.servers[name].disks = {
                item.id: type(disk)(item.id, item.bytes)
                for item, disk in (
                    (i, simulation.servers[name].disks[i.id]) for i in simulation.servers[name].ssds.values()
                )
            }
            simulation.start(name, cluster_id=cluster_id)
    serials = [serial(name, n) for name in SERVERS for n in (1, 2)]
    fleet.apply(pool("backup", *serials), *(volume(f"saved-{n}", "16Mi", pool="backup") for n in range(12)))
    fleet.apply(volume("saved-gpu", "32Mi", pool="backup", node="life-b", gpu="0000:22:00.0"))
    wait_all(client, {"backup"}, lambda items: len(items) == 13 and all(map(is_ready, items)), "all Ready")
    saved, places = export(fleet, "flashpools", "flashvolumes"), carved(simulation)
    tables = {(n, k): d.table for n, s in simulation.servers.items() for k, d in s.disks.items()}
    fleet.stop_controller()
    for name in SERVERS:
        simulation.stop(name)
    delete_by_force(fleet, *KINDS, "flashnodes")
    assert volumes(client, {"backup"}) == []
    fleet.start_controller()
    fleet.apply(*saved)
    said = fleet.wait("flashvolume", "saved-0", lambda it: reason(it) in ("NotFound", "PoolEmpty"), timeout=30)
    assert "nodeName" not in said["status"]
    for name in SERVERS:
        simulation.start(name, cluster_id=cluster_id)
    wait_all(client, {"backup"}, lambda items: len(items) == 13 and all(map(is_ready, items)), "all Ready again")
    assert carved(simulation) == places
    assert {(n, k): d.table for n, s in simulation.servers.items() for k, d in s.disks.items()} == tables
    assert {
        item["metadata"]["name"]: f"{item['status']['nodeName']}/{item['status']['ssd']}"
        for item in volumes(client, {"backup"})
    } == {item["metadata"]["name"]: places[item["spec"]["id"]][0] for item in saved if item["kind"] == "FlashVolume"}
    fleet.kubectl("delete", "flashvolume", "--all", "-n", NAMESPACE, "--timeout=60s", timeout=90)
    assert carved(simulation) == {}
    fleet.kubectl("delete", "flashpool", "backup", "--timeout=30s")


def test_a_volume_whose_status_is_lost_is_found_again(fleet, simulation, client):
    fleet.apply(pool("status", serial("life-b", 1), serial("life-b", 2)), volume("forgot", "16Mi", pool="status"))
    before = fleet.wait_ready("flashvolume", "forgot")
    for manager in ("kubeflash-controller", "kubeflash-agent"):
        resource = FlashVolume.from_json(client.get(FlashVolume.info, "forgot", NAMESPACE))
        client.apply_status(resource, {"conditions": []}, manager)
    after = fleet.wait_ready("flashvolume", "forgot", timeout=40)
    assert after["status"]["ssd"] == before["status"]["ssd"]
    assert carved(simulation) == {before["spec"]["id"]: [f"life-b/{before['status']['ssd']}"]}
    fleet.delete("flashvolume", "forgot")
    fleet.kubectl("delete", "flashpool", "status", "--timeout=30s")


def test_an_ssd_that_somebody_wiped_is_not_carved_anew_for_its_old_volume(fleet, simulation):
    server, wiped = simulation.servers["life-b"], f"{serial('life-b', 1)}-1"
    fleet.apply(pool("wiped", serial("life-b", 1)), volume("gone-for-good", "16Mi", pool="wiped"))
    fleet.wait_ready("flashvolume", "gone-for-good")
    disk = server.disks[wiped]
    server.disks[wiped] = type(disk)(disk.ssd, disk.bytes)
    look(fleet, "life-b")
    said = fleet.wait("flashvolume", "gone-for-good", lambda it: reason(it) == "Missing", timeout=20)
    assert "somebody wiped it" in condition(said, "Ready")["message"]
    assert carved(simulation) == {}
    fleet.delete("flashvolume", "gone-for-good")
    fleet.apply(volume("another", "16Mi", pool="wiped"))
    fleet.wait_ready("flashvolume", "another")
    fleet.delete("flashvolume", "another")
    fleet.kubectl("delete", "flashpool", "wiped", "--timeout=30s")


def test_the_older_of_two_pools_keeps_an_ssd_and_the_newer_says_so(fleet, simulation):
    fleet.apply(pool("older", serial("life-c", 1)))
    fleet.wait_ready("flashpool", "older", namespace=None)
    time.sleep(1.1)  # ages are whole seconds
    fleet.apply(pool("newer", serial("life-c", 1), serial("life-c", 2)))
    said = fleet.wait("flashpool", "newer", lambda it: it.get("status", {}).get("refused"), namespace=None)
    assert "pool older selects it too and is older" in said["status"]["refused"][0]["reason"]
    assert said["status"]["summary"]["ssds"] == 1
    fleet.apply(volume("shrinks", "16Mi", pool="older"))
    fleet.wait_ready("flashvolume", "shrinks")
    fleet.apply(pool("older", serial("life-c", 3)))
    held = fleet.wait("flashpool", "older", lambda it: it["status"].get("draining"), namespace=None)
    assert held["status"]["draining"][0]["volumes"] == ["serving/shrinks"]
    assert condition(held, "Ready")["reason"] == "Draining"
    fleet.wait("flashpool", "newer", lambda it: it["status"]["summary"]["ssds"] == 2, namespace=None)
    fleet.delete("flashvolume", "shrinks")
    fleet.wait("flashpool", "older", lambda it: not it["status"].get("draining"), namespace=None)
    fleet.kubectl("delete", "flashpool", "older", "newer", "--timeout=30s")


def test_progress_of_a_long_wipe_is_told_and_holds_up_no_other_ssd(fleet, simulation):
    server = simulation.servers["life-b"]
    fleet.apply(pool("slow", serial("life-b", 1), serial("life-b", 2)))
    ids = [f"{serial('life-b', n)}-1" for n in (1, 2)]
    fleet.apply(volume("wiped", "16Mi", pool="slow", ssd=ids[0]))
    fleet.wait_ready("flashvolume", "wiped")
    server.slow["WipePartition"] = 100
    try:
        fleet.kubectl("delete", "flashvolume", "wiped", "-n", NAMESPACE, "--wait=false")
        said = fleet.wait("flashvolume", "wiped", lambda it: "% done" in condition(it, "Ready").get("message", ""))
        assert reason(said) == "Releasing"
        fleet.apply(volume("beside", "16Mi", pool="slow", ssd=ids[1]))
        fleet.wait_ready("flashvolume", "beside", timeout=60)
        assert fleet.get("flashvolume", "wiped") is not None
        plan = fleet.get("flashnode", "life-b", None)["status"]["plan"]
        assert (plan[0]["step"], plan[0]["state"]) == ("WipePartition", "Running")
        server.slow.clear()
        fleet.wait_gone("flashvolume", "wiped", timeout=30)
    finally:
        server.slow.clear()
    fleet.delete("flashvolume", "beside")
    fleet.kubectl("delete", "flashpool", "slow", "--timeout=30s")
