"""Attachments on a real API server; the servers' nvmet and initiators are simulated."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from fleet import JSON, NAMESPACE, Fleet, attachment, condition, pool, volume
from support import attaching
from support.simulated import Network, SimulatedServer, gpu, ssd
from support.simulation import Simulation

SEED = 2026


@pytest.fixture(scope="module")
def network() -> Network:
    return Network()


@pytest.fixture(scope="module")
def simulation(fleet: Fleet, network: Network) -> Iterator[Simulation]:
    servers = {
        "gpu-a": SimulatedServer("gpu-a", "10.0.0.1", network, [gpu(1)], [ssd("A1", 1), ssd("A2", 2)]),
        "gpu-b": SimulatedServer("gpu-b", "10.0.0.2", network, [gpu(1)], [ssd("B1", 1)]),
    }
    with Simulation.running(fleet, servers, "kubeflash-agent-att") as made:
        yield made


@pytest.fixture
def volumes(fleet: Fleet, simulation) -> Iterator[Fleet]:
    """A pool, and volumes of gpu-a, one of them shared."""
    fleet.apply(pool("att", "A1"))
    shared = volume("s0", "1Mi", pool="att")
    shared["spec"]["sharing"] = "Shared"
    fleet.apply(*(volume(name, "1Mi", pool="att") for name in ("v0", "v1", "v2")), shared)
    for name in ("v0", "v1", "v2", "s0"):
        fleet.wait_ready("flashvolume", name, timeout=30)
    yield fleet
    fleet.kubectl("delete", "flashattachment", "--all", "-n", NAMESPACE, "--timeout=60s")
    fleet.kubectl("delete", "flashvolume", "--all", "-n", NAMESPACE, "--timeout=60s")
    fleet.kubectl("delete", "flashpool", "att")


def look_again(fleet: Fleet, *names: str) -> None:
    """Has agents look at once: nothing tells a simulated one that its server changed."""
    for name in names:
        fleet.kubectl("annotate", "--overwrite", "flashnode", name, f"look={time.monotonic_ns()}")


def reasons(fleet: Fleet, name: str) -> set[str]:
    return {item["reason"] for item in fleet.events(about=name)}


def wait_told(fleet: Fleet, name: str, *wanted: str) -> None:
    """Events are written a moment after what they tell of."""
    deadline = time.monotonic() + 20
    while not set(wanted) <= (told := reasons(fleet, name)):
        assert time.monotonic() < deadline, told
        time.sleep(0.2)


def wait_reason(fleet: Fleet, name: str, reason: str, kind: str = "Ready") -> JSON:
    return fleet.wait("flashattachment", name, lambda it: condition(it, kind).get("reason") == reason, timeout=30)


def test_attachments_in_random_order_leave_nothing_and_kernel_and_api_agree(volumes, simulation):
    shared = {"v0": False, "v1": False, "v2": False, "s0": True}
    done = attaching.run(volumes, simulation, shared, number=SEED, most=40, patience=60)
    assert done["attached"] > 20, done
    assert done["looked"] >= 1, done


def test_a_shared_volume_is_had_by_several_and_ending_one_leaves_the_other(volumes: Fleet, simulation):
    volumes.apply(attachment("one", "s0", "gpu-a"), attachment("two", "s0", "gpu-b"))
    assert volumes.wait_ready("flashattachment", "one")["status"]["path"] == "Local"
    assert volumes.wait_ready("flashattachment", "two")["status"]["path"] == "Fabric"
    volumes.apply(attachment("three", "s0", "gpu-b"))
    wait_reason(volumes, "three", "AlreadyAttached")
    volumes.delete("flashattachment", "one")
    assert condition(volumes.get("flashattachment", "two"), "Ready")["status"] == "True"
    assert simulation.connections("gpu-b") == simulation.exports("gpu-a") != set()


def test_read_only_is_held_by_the_consumer_s_kernel_on_either_path(volumes: Fleet, simulation):
    for node in ("gpu-a", "gpu-b"):
        wanted = attachment(f"ro-{node}", "v0", node)
        wanted["spec"]["readOnly"] = True
        volumes.apply(wanted)
        volumes.wait_ready("flashattachment", f"ro-{node}", timeout=30)
        local, remote = simulation.servers["gpu-a"], simulation.servers["gpu-b"]
        held = local.read_only or {item.nqn for item in remote.connections.values() if item.read_only}
        assert held
        volumes.delete("flashattachment", f"ro-{node}")
    volumes.apply(attachment("rw", "v0", "gpu-b"))
    volumes.wait_ready("flashattachment", "rw", timeout=30)
    assert simulation.servers["gpu-a"].read_only == set(), "an export of it would be refused"


def test_every_network_of_the_pool_is_a_path_and_one_that_comes_late_is_seen(fleet: Fleet, simulation, network):
    server = simulation.servers["gpu-a"]
    network.servers["10.5.0.1"] = server
    fleet.apply(
        pool("nets", "A2", export={"networks": ["10.0.0.0/24", "10.5.0.0/24"]}), volume("n0", "1Mi", pool="nets")
    )
    fleet.wait_ready("flashvolume", "n0", timeout=30)
    fleet.apply(attachment("n0-on-b", "n0", "gpu-b"))
    one = fleet.wait_ready("flashattachment", "n0-on-b", timeout=30)
    assert len(one["status"]["connection"]["paths"]) == 1
    server.addresses = ["10.0.0.1", "10.5.0.1"]
    look_again(fleet, "gpu-a")
    both = fleet.wait(
        "flashattachment", "n0-on-b", lambda it: len(it["status"]["connection"]["paths"]) == 2, timeout=30
    )
    assert both["status"]["device"] == one["status"]["device"], "one device, two paths"
    assert condition(both, "Ready")["status"] == "True"

    network.cut.add("10.5.0.1")
    look_again(fleet, "gpu-b")
    half = fleet.wait(
        "flashattachment",
        "n0-on-b",
        lambda it: "1 of 2 paths work" in condition(it, "Connected")["message"],
        timeout=30,
    )
    assert half["status"]["connection"]["state"] == "Live"
    network.cut.add("10.0.0.1")
    look_again(fleet, "gpu-b")
    cut = wait_reason(fleet, "n0-on-b", "Reconnecting")
    assert cut["status"]["connection"]["state"] == "Reconnecting"
    assert cut["status"]["connection"]["lostAt"] > cut["status"]["connection"]["since"]
    simulation.servers["gpu-b"].drop_connections()  # as the kernel does after ctrl_loss_tmo
    look_again(fleet, "gpu-b")
    wait_reason(fleet, "n0-on-b", "Lost")
    network.cut.clear()
    look_again(fleet, "gpu-b")
    fleet.wait_ready("flashattachment", "n0-on-b", timeout=60)
    wait_told(fleet, "n0-on-b", "Connected", "Reconnecting", "Lost")
    fleet.delete("flashattachment", "n0-on-b")
    wait_told(fleet, "n0-on-b", "Fenced")
    fleet.delete("flashvolume", "n0")
    fleet.kubectl("delete", "flashpool", "nets")
    server.addresses = ["10.0.0.1"]


def test_a_port_number_that_a_stranger_has_is_skipped_and_one_that_he_takes_is_chosen_anew(volumes: Fleet, simulation):
    server = simulation.servers["gpu-a"]
    server.listening.add(4420)
    try:
        volumes.apply(attachment("p0", "v0", "gpu-b"))
        found = volumes.wait_ready("flashattachment", "p0", timeout=30)
        assert found["status"]["fabric"]["portals"] == ["tcp://10.0.0.1:4421"]
    finally:
        server.listening.clear()


def test_without_authentication_it_works_and_is_said_aloud(fleet: Fleet, simulation):
    fleet.apply(pool("open", "A2", security={"authentication": "None"}), volume("o0", "1Mi", pool="open"))
    fleet.wait_ready("flashvolume", "o0", timeout=30)
    fleet.apply(attachment("o0-on-b", "o0", "gpu-b"))
    found = fleet.wait_ready("flashattachment", "o0-on-b", timeout=30)
    assert condition(found, "Secured")["reason"] == "NoAuthentication"
    assert "keys" not in found["status"]
    assert "NoAuthentication" in reasons(fleet, "o0-on-b")
    assert "none!" in fleet.flash("attachments", "-n", NAMESPACE)
    fleet.delete("flashattachment", "o0-on-b")
    fleet.delete("flashvolume", "o0")
    fleet.kubectl("delete", "flashpool", "open")


def test_tls_keys_come_and_go_with_the_export(fleet: Fleet, simulation):
    fleet.apply(pool("tls", "A2", security={"tls": "Required"}), volume("t0", "1Mi", pool="tls"))
    fleet.wait_ready("flashvolume", "t0", timeout=30)
    fleet.apply(attachment("t0-on-b", "t0", "gpu-b"))
    fleet.wait_ready("flashattachment", "t0-on-b", timeout=30)
    server = simulation.servers["gpu-a"]
    assert len(server.nvmet.tls_keys) == 1
    fleet.delete("flashattachment", "t0-on-b")
    assert server.nvmet.tls_keys == frozenset()
    fleet.delete("flashvolume", "t0")
    fleet.kubectl("delete", "flashpool", "tls")


def test_a_server_that_lost_its_private_key_says_which_attachments_must_be_made_anew(volumes: Fleet, simulation):
    volumes.apply(attachment("k0", "v0", "gpu-b"))
    volumes.wait_ready("flashattachment", "k0", timeout=30)
    simulation.stop("gpu-b")
    kept, simulation.servers["gpu-b"].private = simulation.servers["gpu-b"].private, b""
    simulation.start("gpu-b")
    wait_reason(volumes, "k0", "KeysLost")
    said = volumes.wait(
        "flashnode",
        "gpu-b",
        lambda it: condition(it, "KeysIntact").get("status") == "False",
        namespace=None,
        timeout=30,
    )
    assert f"{NAMESPACE}/k0" in condition(said, "KeysIntact")["message"]
    assert kept != simulation.servers["gpu-b"].private
    volumes.delete("flashattachment", "k0")
    volumes.apply(attachment("k1", "v0", "gpu-b"))
    volumes.wait_ready("flashattachment", "k1", timeout=30)
    volumes.wait("flashnode", "gpu-b", lambda it: not condition(it, "KeysIntact"), namespace=None, timeout=30)


def test_a_fence_that_does_not_return_is_an_alarm_and_the_volume_goes_to_nobody_meanwhile(volumes: Fleet, simulation):
    server = simulation.servers["gpu-a"]
    volumes.apply(attachment("f0", "v0", "gpu-b"))
    volumes.wait_ready("flashattachment", "f0", timeout=30)
    server.slow["DisableNamespace"] = 40  # seconds: an SSD that hangs
    try:
        volumes.kubectl("delete", "flashattachment", "f0", "-n", NAMESPACE, "--wait=false")
        volumes.apply(attachment("f1", "v0", "gpu-a"))
        stuck = volumes.wait(
            "flashattachment", "f0", lambda it: condition(it, "Ready").get("reason") == "FenceStuck", timeout=60
        )
        assert "does the SSD answer?" in condition(stuck, "Ready")["message"]
        assert condition(volumes.get("flashattachment", "f1"), "Ready")["status"] == "False"
        wait_told(volumes, "f0", "FenceStuck")
    finally:
        server.slow.clear()
    volumes.wait_gone("flashattachment", "f0", timeout=60)
    volumes.wait_ready("flashattachment", "f1", timeout=30)
