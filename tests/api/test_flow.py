"""Controller and agents on a real API server; the servers' disks and nvmet are simulated."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

import pytest

from fleet import NAMESPACE, Fleet, attachment, condition, pool, volume
from kubeflash.kube.builtin import EVENT, Node
from kubeflash.kube.client import Client
from kubeflash.kube.events import CLUSTER_NAMESPACE, event
from lab.errors import CommandError, LabTimeout
from support import scenarios
from support.simulated import Network, SimulatedServer, gpu, ssd
from support.simulation import Simulation

GPU = "0000:12:00.0"


@pytest.fixture(scope="module")
def simulation(fleet: Fleet) -> Iterator[Simulation]:
    network = Network()
    servers = {
        "gpu-a": SimulatedServer("gpu-a", "10.0.0.1", network, [gpu(1), gpu(2)], [ssd("A1", 1), ssd("A2", 2)]),
        "gpu-b": SimulatedServer("gpu-b", "10.0.0.2", network, [gpu(1)], [ssd("B1", 1)]),
    }
    with Simulation.running(fleet, servers, "kubeflash-agent-sim") as made:
        yield made


def test_the_flashnode_says_what_the_server_has(fleet, simulation):
    status = fleet.get("flashnode", "gpu-a", None)["status"]
    assert status["systemUUID"] == "uuid-of-gpu-a"
    assert [item["address"] for item in status["gpus"]] == [GPU, "0000:22:00.0"]
    assert {item["serial"]: item["state"] for item in status["ssds"]} == {"A1": "Blank", "A2": "Blank"}
    assert status["summary"]["neighbours"] == "2/2 PIX"
    assert scenarios.nearest_serial(fleet, "gpu-a", GPU) == ("A1", "PIX")


def wait_sound(fleet, reason: str) -> dict:
    reached = lambda it: condition(it, "TopologySound").get("reason") == reason  # noqa: E731
    return fleet.wait("flashnode", "gpu-a", reached, namespace=None, timeout=30)


@contextmanager
def without(fleet, server: SimulatedServer, ssd_id: str) -> Iterator[None]:
    """An SSD that is out of its server; the agent looks when it goes and when it is back."""
    look = ("annotate", "--overwrite", "flashnode", server.name)
    pulled = server.unplug(ssd_id)
    try:
        fleet.kubectl(*look, f"look=without-{time.monotonic_ns()}")
        yield
    finally:
        server.plug(*pulled)
        fleet.kubectl(*look, f"look=with-{time.monotonic_ns()}")


def test_an_event_that_regards_nothing_does_not_hide_the_others(fleet, client):
    """The API server makes such ones itself, now and then, on a busy machine."""
    node = Node.from_json({"metadata": {"name": "somebody"}})
    words = {"reason": "Regarded", "action": "Try", "note": "tried", "component": "tests"}
    named = event(node, kind="Warning", **words, now=datetime.now(UTC))
    for regarding in ({"apiVersion": "v1", "kind": "Node"}, named["regarding"]):
        client.create(EVENT, named | {"regarding": regarding}, CLUSTER_NAMESPACE)
    assert [item["regarding"].get("name") for item in fleet.events("Regarded", about="somebody")] == ["somebody"]
    assert len(fleet.events("Regarded")) == 2


def test_when_an_ssd_goes_pairs_change_an_event_says_so_and_what_was_better_stays_visible(fleet, simulation):
    server = simulation.servers["gpu-a"]
    before = fleet.get("flashnode", "gpu-a", None)["status"]
    assert [(item["gpu"], item["id"], item["distance"]) for item in before["pairs"]] == [
        (GPU, "A1-1", "PIX"),
        ("0000:22:00.0", "A2-1", "PIX"),
    ]
    assert condition({"status": before}, "TopologySound")["reason"] == "Sound"
    assert fleet.events("PairsChanged", about="gpu-a") == [], "the first pairs of a server are no change"
    with without(fleet, server, "A2-1"):
        worse = wait_sound(fleet, "PairsWorse")
        assert "GPU 22:00.0 had A2-1 at PIX since 20" in condition(worse, "TopologySound")["message"]
        assert [(item["gpu"], item["id"], item["distance"]) for item in worse["status"]["pairs"]] == [
            (GPU, "A1-1", "PIX"),
            ("0000:22:00.0", "A1-1", "PHB"),
        ]
        assert worse["status"]["summary"]["neighbours"] == "1/2 PIX"
        deadline = time.monotonic() + 20
        while not (told := fleet.events("PairsChanged", about="gpu-a")):
            assert time.monotonic() < deadline
            time.sleep(0.2)
        assert [(item["type"], item["note"]) for item in told] == [
            ("Warning", "GPU 22:00.0: A2-1 at PIX → A1-1 at PHB"),
        ]
        assert "PairsChanged" in fleet.kubectl("describe", "flashnode", "gpu-a")
        assert "GPU 22:00.0 had A2-1 at PIX" in " ".join(fleet.flash("pairs", "gpu-a").split())
    back = wait_sound(fleet, "Sound")
    assert back["status"]["pairs"] == before["pairs"]
    assert back["status"]["best"] == before["best"]


def test_an_admin_accepts_what_the_server_has_become(fleet, simulation):
    server = simulation.servers["gpu-a"]
    with without(fleet, server, "A2-1"):
        wait_sound(fleet, "PairsWorse")
        time.sleep(1)  # times in the API are whole seconds
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        patch = json.dumps({"spec": {"pairsAcceptedAt": now}})
        fleet.kubectl("patch", "flashnode", "gpu-a", "--type", "merge", "-p", patch)
        accepted = wait_sound(fleet, "NoNeighbour")
        assert {item["distance"] for item in accepted["status"]["best"]} == {"PIX", "PHB"}
    wait_sound(fleet, "Sound")


def test_kubectl_flash_by_way_of_kubectl(fleet, simulation):
    whole = fleet.flash("topology")
    assert "gpu-a   1 NUMA node   2 GPUs   2 SSDs" in whole
    assert "gpu-b   1 NUMA node   1 GPU   1 SSD" in whole
    found = json.loads(fleet.flash("topology", "gpu-b", "-o", "json"))
    assert [(item["gpu"], item["distance"]) for item in found["pairs"]] == [(GPU, "PIX")]
    assert fleet.flash("topology", "gpu-a", "-o", "svg").startswith("<svg")
    assert "SSD of GPU 12:00.0" in fleet.flash("why", "gpu-a", "A1")
    with pytest.raises(CommandError, match="there is no FlashNode gpu-z") as failed:
        fleet.flash("topology", "gpu-z")
    assert "there are: gpu-a, gpu-b" in str(failed.value)


def test_the_whole_thread(fleet, simulation):
    scenarios.the_whole_thread(fleet, simulation, GPU, "A1")


def test_bad_input(fleet, simulation):
    scenarios.bad_input(fleet, "A2")


def test_a_pool_does_not_serve_a_namespace_that_it_does_not_allow(fleet, simulation):
    closed = pool("closed", "B1")
    del closed["spec"]["allowedNamespaces"]
    fleet.apply(closed)
    fleet.apply(volume("stranger", "1Mi", pool="closed"))
    fleet.wait("flashvolume", "stranger", lambda it: condition(it, "Ready").get("reason") == "NamespaceNotAllowed")
    fleet.apply({**volume("own", "1Mi", pool="closed"), "metadata": {"name": "own", "namespace": "kubeflash-system"}})
    fleet.wait_ready("flashvolume", "own", namespace="kubeflash-system")
    fleet.kubectl("delete", "flashvolume", "own", "-n", "kubeflash-system", "--timeout=30s")
    fleet.delete("flashvolume", "stranger")
    fleet.kubectl("delete", "flashpool", "closed")


def test_a_refused_placement_goes_elsewhere(fleet, simulation):
    fleet.apply(pool("two", "A1", "A2"))
    server = simulation.servers["gpu-a"]
    before = dict(server.disks)
    server.disks["A1-1"] = before["A1-1"].__class__("A1-1", before["A1-1"].bytes, findings=("ext4 file system",))
    try:
        # The controller has not heard yet that A1 is not blank any more: the agent refuses, it places anew.
        fleet.apply(volume("moved", "1Mi", pool="two", node="gpu-a", gpu=GPU))
        ready = fleet.wait_ready("flashvolume", "moved", timeout=60)
        assert ready["status"]["ssd"] == "A2-1"
        assert condition(ready, "Neighbour")["status"] == "False"
    finally:
        server.disks["A1-1"] = before["A1-1"]
    fleet.delete("flashvolume", "moved")
    fleet.kubectl("delete", "flashpool", "two")


def test_volumes_reserve_their_bytes_before_they_are_carved(fleet, simulation):
    fleet.apply(pool("small", "B1"))
    names = [f"r{number}" for number in range(4)]
    fleet.apply(*(volume(name, "300Mi", pool="small") for name in names))
    deadline = time.monotonic() + 60
    while True:
        found = [fleet.get("flashvolume", name) for name in names]
        ready = [it for it in found if condition(it, "Ready").get("status") == "True"]
        full = [it for it in found if condition(it, "Ready").get("reason") == "NoSpace"]
        if len(ready) == 3 and len(full) == 1:
            break
        assert time.monotonic() < deadline, [condition(it, "Ready") for it in found]
        time.sleep(0.2)
    fleet.delete("flashvolume", ready[0]["metadata"]["name"])
    fleet.wait_ready("flashvolume", full[0]["metadata"]["name"])
    fleet.kubectl("delete", "flashvolume", "-n", NAMESPACE, "--all", "--timeout=60s")
    fleet.kubectl("delete", "flashpool", "small")


def test_nothing_is_written_when_nothing_changes(fleet, simulation, client: Client):
    fleet.apply(pool("still", "A1"), volume("calm", "1Mi", pool="still"))
    fleet.wait_ready("flashvolume", "calm")
    time.sleep(1.0)  # what the last change set off is over
    kinds = ("flashnodes", "flashpools", "flashvolumes")
    versions = {kind: fleet.kubectl("get", kind, "-A", "-o", "jsonpath={..metadata.resourceVersion}") for kind in kinds}
    observed = simulation.servers["gpu-a"].observations
    fleet.kubectl("label", "flashpool", "still", "look=again")
    deadline = time.monotonic() + 10
    while simulation.servers["gpu-a"].observations == observed:
        assert time.monotonic() < deadline, "the label woke nobody"
        time.sleep(0.05)
    time.sleep(0.5)
    for kind in ("flashnodes", "flashvolumes"):
        assert fleet.kubectl("get", kind, "-A", "-o", "jsonpath={..metadata.resourceVersion}") == versions[kind], kind
    fleet.delete("flashvolume", "calm")
    fleet.kubectl("delete", "flashpool", "still")


def test_an_agent_that_is_started_again_writes_nothing_and_changes_nothing(fleet, simulation):
    fleet.apply(pool("again", "A1"), volume("kept", "1Mi", pool="again"))
    ready = fleet.wait_ready("flashvolume", "kept")
    steps = len(simulation.servers["gpu-a"].history)
    simulation.stop("gpu-a")
    simulation.start("gpu-a")
    time.sleep(2.0)
    now = fleet.get("flashvolume", "kept")
    assert now["status"] == ready["status"]
    assert len(simulation.servers["gpu-a"].history) == steps
    fleet.delete("flashvolume", "kept")
    fleet.kubectl("delete", "flashpool", "again")


def test_what_failed_is_tried_again_and_said(fleet, simulation):
    simulation.servers["gpu-a"].refuse["CarvePartition"] = "sfdisk: no space left in this test"
    fleet.apply(pool("retry", "A1"), volume("stubborn", "1Mi", pool="retry"))
    fleet.wait_ready("flashvolume", "stubborn", timeout=30)
    assert "CarvePartition" not in simulation.servers["gpu-a"].refuse, "the failure was met"
    fleet.delete("flashvolume", "stubborn")
    fleet.kubectl("delete", "flashpool", "retry")


def test_paused_means_that_nothing_is_changed_on_the_server(fleet, simulation):
    fleet.kubectl("patch", "flashnode", "gpu-a", "--type=merge", "-p", '{"spec":{"paused":true}}')
    fleet.wait("flashnode", "gpu-a", lambda it: condition(it, "Ready").get("reason") == "Paused", namespace=None)
    fleet.apply(pool("p", "A1"), volume("later", "1Mi", pool="p"))
    fleet.wait("flashvolume", "later", lambda it: condition(it, "Placed").get("status") == "True")
    with pytest.raises(LabTimeout):
        fleet.wait_ready("flashvolume", "later", timeout=2)
    assert simulation.partitions("gpu-a") == set()
    fleet.kubectl("patch", "flashnode", "gpu-a", "--type=merge", "-p", '{"spec":{"paused":false}}')
    fleet.wait_ready("flashvolume", "later", timeout=20)
    fleet.delete("flashvolume", "later")
    fleet.kubectl("delete", "flashpool", "p")


def test_a_second_server_of_the_same_name_is_refused(fleet, simulation):
    impostor = SimulatedServer("impostor", "10.0.0.9", Network(), [], [])
    other = Simulation(simulation.kubeconfig, {"gpu-a": impostor})
    other.start("gpu-a")
    with pytest.raises(Exception, match="system UUID uuid-of-gpu-a, this one is uuid-of-impostor: give this server"):
        other.wait_ended("gpu-a")


def test_an_agent_by_another_name_ends_while_the_first_one_runs(fleet, simulation):
    renamed = SimulatedServer("gpu-a", "10.0.0.8", Network(), [], [])
    other = Simulation(simulation.kubeconfig, {"gpu-new": renamed})
    other.start("gpu-new")
    with pytest.raises(Exception, match="this server is FlashNode gpu-a already, and an agent runs by that name"):
        other.wait_ended("gpu-new", timeout=30)
    assert fleet.get("flashnode", "gpu-new", None) is None


def test_a_deleted_flashnode_is_made_again(fleet, simulation):
    fleet.kubectl("delete", "flashnode", "gpu-b")
    fleet.wait_ready("flashnode", "gpu-b", namespace=None, timeout=20)


def test_the_api_server_gone_for_a_while(fleet, simulation):
    fleet.apply(pool("outage", "A1"), volume("steady", "1Mi", pool="outage"))
    fleet.wait_ready("flashvolume", "steady")
    fleet.apply(attachment("steady-on-b", "steady", "gpu-b"))
    fleet.wait_ready("flashattachment", "steady-on-b")
    steps = {name: len(server.history) for name, server in simulation.servers.items()}
    fleet.lab.control_plane.pause()
    time.sleep(12)
    assert {name: len(server.history) for name, server in simulation.servers.items()} == steps, "agents idle"
    fleet.lab.control_plane.resume()
    began = time.monotonic()
    fleet.apply(volume("after", "1Mi", pool="outage"))
    fleet.wait_ready("flashvolume", "after", timeout=30)
    assert time.monotonic() - began < 30
    assert {name: len(server.history) for name, server in simulation.servers.items()} != steps
    fleet.delete("flashattachment", "steady-on-b")
    fleet.kubectl("delete", "flashvolume", "steady", "after", "-n", NAMESPACE, "--timeout=60s")
    fleet.kubectl("delete", "flashpool", "outage")


def test_a_silent_agent_makes_its_server_s_state_unknown_and_is_believed_again_when_it_has_looked(fleet, simulation):
    server, lease = simulation.servers["gpu-b"], ("lease", "agent-gpu-b", "kubeflash-system")
    fleet.apply(
        pool("silence", "A1"), volume("still", "1Mi", pool="silence"), attachment("still-on-b", "still", "gpu-b")
    )
    fleet.wait_ready("flashattachment", "still-on-b")
    simulation.stop("gpu-b")  # keeps its Lease: an agent that is only upgraded must not look dead
    said = fleet.wait(
        "flashnode", "gpu-b", lambda it: condition(it, "Ready").get("status") == "Unknown", namespace=None, timeout=90
    )
    assert condition(said, "Ready")["reason"] == "AgentSilent"
    unknown = lambda it: condition(it, "Ready").get("reason") == "AgentSilent"  # noqa: E731
    assert condition(fleet.wait("flashattachment", "still-on-b", unknown), "Connected")["status"] == "True"

    server.drop_connections()  # as a boot does
    server.slow["Connect"] = 8
    before = fleet.get(*lease)["spec"]["renewTime"]
    simulation.start("gpu-b")
    renewed = lambda it: it["spec"]["renewTime"] != before  # noqa: E731
    fleet.wait(*lease[:2], renewed, namespace=lease[2], timeout=30)
    assert condition(fleet.get("flashattachment", "still-on-b"), "Connected")["reason"] == "Lost"
    server.slow.clear()
    fleet.wait_ready("flashnode", "gpu-b", namespace=None, timeout=40)
    fleet.wait_ready("flashattachment", "still-on-b", timeout=40)
    assert fleet.get("flashattachment", "still-on-b")["status"]["connection"]["state"] == "Live"
    fleet.delete("flashattachment", "still-on-b")
    fleet.delete("flashvolume", "still")
    fleet.kubectl("delete", "flashpool", "silence")


def test_a_second_controller_stands_by_and_takes_over(fleet, simulation):
    second = fleet.another_controller("controller-2")
    try:
        second.wait_ready(lambda: "standing by" in second.log_tail(), timeout=20)
        lease = ("lease", "kubeflash-controller", "kubeflash-system")
        first = fleet.get(*lease)["spec"]["holderIdentity"]
        assert fleet.controller.stop(timeout=10) == 0
        assert fleet.get(*lease)["spec"].get("holderIdentity") != first, fleet.controller.log_tail()  # given back
        second.wait_ready(lambda: "leading as" in second.log_tail(), timeout=20)
        fleet.apply(pool("next", "A1"), volume("led", "1Mi", pool="next"))
        fleet.wait_ready("flashvolume", "led", timeout=30)
        fleet.delete("flashvolume", "led")
        fleet.kubectl("delete", "flashpool", "next")
    finally:
        second.stop()
        fleet.start_controller()
