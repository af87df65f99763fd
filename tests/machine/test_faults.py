"""A volume is written over the fabric while everything around it fails, and each row of the table says what was seen.

One fleet, one volume of gpu-a, attached at gpu-b for as long as the module lasts; each test starts from what the one
before left and leaves it Ready. `make heavy` has those in which a server, a connection or an SSD is lost; with LONG=1
controller and agents are killed, too, and the API server is away for 10 minutes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from fleet import JSON, NAMESPACE, Fleet, attachment, condition, is_ready, pool, volume
from lab.processes import wait_until
from lab.servers import VirtualServer
from support import fabric
from support.fabric import Fio, Writer, connection, links, wait_connected, wait_state
from support.faults import Fault, Table
from support.real import MIB, RealServers

pytestmark = [pytest.mark.machine, pytest.mark.heavy, pytest.mark.timeout(1800)]

OUTAGE = 600
CONVERGED = 30
"""Seconds after the API server's return within which a new volume is Ready."""
LOSS = 20
"""lossSeconds of the pool whose connections are to be lost."""
KILLS = 20
SIZE = 48 * MIB

TABLE = Table(
    "A volume over the fabric",
    {
        "agents": Fault(
            f"the agents of both servers are killed (SIGKILL), {KILLS} times each, whatever they are doing",
            "no I/O error and no reconnect; nothing in nvmet's tree or of the connection changes",
        ),
        "controller": Fault(
            "the controller is killed (SIGKILL) and started again",
            "no I/O error and no reconnect; what was asked for meanwhile is done after its start",
        ),
        "api": Fault(
            f"the API server is away for {OUTAGE} s",
            f"no I/O error and no reconnect; a new volume is Ready {CONVERGED} s after its return",
        ),
        "cut": Fault(
            "the storage server's cable is cut for less than lossSeconds",
            "I/O waits and goes on without an error; the attachment says Reconnecting, since when, and when it is lost",
        ),
        "lost": Fault(
            f"the storage server's cable is cut for longer than lossSeconds ({LOSS} s)",
            "I/O fails; the attachment says Lost, and is connected anew by itself once the cable is mended; all that "
            "was acknowledged is there; what was mounted must be mounted anew",
        ),
        "path": Fault(
            "one of two networks of a pool fails",
            "I/O goes on by the other one without an error; the attachment stays Ready and names the path that fails",
        ),
        "late": Fault(
            "the storage server boots, and the address in one of two networks comes minutes later",
            "the export is up on the address that is there; the other path comes by itself when its address does",
        ),
        "reboot": Fault(
            "the storage server is rebooted", "I/O waits and goes on by itself, without an error, on the same ports"
        ),
        "power": Fault(
            "the storage server is switched off hard, and on again",
            "I/O waits and goes on by itself, without an error; all that was acknowledged is there",
        ),
        "ssd": Fault(
            "the volume's SSD is pulled out and put back",
            "I/O fails at once; the attachment says so, and has a working device by itself when the SSD is back; all "
            "that was acknowledged is there",
        ),
        "consumer": Fault(
            "the consumer is switched off hard; one of its two attachments is deleted meanwhile; it is switched on",
            "what is still wanted is connected again, what is not is not, and its export is gone without the "
            "consumer's word; all that was acknowledged is there",
        ),
    },
)


@pytest.fixture(scope="module")
def device(fleet: Fleet) -> Iterator[str]:
    """The device at gpu-b of volume f0; it may change its name: later tests ask anew."""
    fleet.start()
    for name in fleet.servers:
        fleet.wait_ready("flashnode", name, namespace=None, timeout=240)
    fleet.apply(
        pool("steady", "KFA0"),
        pool("short", "KFA1", export={"lossSeconds": LOSS}),
        pool("both", "KFA2", export={"networks": ["10.77.0.0/24", "10.78.0.0/24"]}),
        volume("f0", f"{SIZE // MIB}Mi", pool="steady"),
    )
    fleet.wait_ready("flashvolume", "f0", timeout=180)
    fleet.apply(attachment("f0-on-b", "f0", "gpu-b"))
    yield wait_connected(fleet, "f0-on-b")["status"]["device"]
    fleet.stop_controller()


@pytest.fixture
def storage(fleet: Fleet, device: str) -> VirtualServer:
    return fleet.servers["gpu-a"]


@pytest.fixture
def consumer(fleet: Fleet, device: str) -> VirtualServer:
    return fleet.servers["gpu-b"]


def device_of(fleet: Fleet, name: str) -> str:
    return fleet.get("flashattachment", name)["status"]["device"]


def figures(said: JSON) -> str:
    """What fio measured, in words."""
    return (
        f"{said['writes']} writes, {said['verified']} verified, {said['errors']} errors; the longest took "
        f"{said['longest']:.1f} s"
    )


def both_live(found: JSON) -> bool:
    """Whether an attachment has two paths, and both live."""
    return [path["state"] for path in connection(found).get("paths", [])] == ["live", "live"]


def paths_of(found: JSON) -> list[str]:
    """Portals that an attachment is connected by."""
    return sorted(path["portal"] for path in connection(found)["paths"])


def kill_agent(server: VirtualServer) -> None:
    """Kills it as soon as it runs again."""
    wait_until(f"an agent on {server.name}", lambda: server.service_pid("agent") is not None, timeout=60)
    server.service_kill("agent")


def quiet(fleet: Fleet, act, name: str) -> JSON:
    """fio beside something that neither the consumer nor the target may notice; what it measured."""
    storage, consumer = fleet.servers["gpu-a"], fleet.servers["gpu-b"]
    before = fabric.exports_tree(storage), links(consumer), fabric.reconnects(consumer)
    fio = Fio(consumer, device_of(fleet, "f0-on-b"), name).start()
    act(fio)
    fio.wait_progress()
    said = fio.stop()
    assert (fabric.exports_tree(storage), links(consumer), fabric.reconnects(consumer)) == before
    return said


@pytest.mark.long  # the cluster tier replaces them under fio, and test_crashes kills them at each point of their work
def test_io_does_not_notice_that_the_agents_of_both_ends_are_killed_again_and_again(fleet: Fleet, storage, consumer):
    def act(fio: Fio) -> None:
        for number in range(KILLS):
            kill_agent(storage)
            kill_agent(consumer)
            if number == KILLS // 2:
                fleet.wait_alive("gpu-a", "gpu-b")
            else:
                time.sleep(number % 7)  # the next time while they start
        fleet.wait_alive("gpu-a", "gpu-b")

    said = quiet(fleet, act, "agents")
    assert is_ready(fleet.get("flashattachment", "f0-on-b"))
    TABLE.seen("agents", f"{figures(said)}; no reconnect; nvmet's tree unchanged")


@pytest.mark.long
def test_io_does_not_notice_that_the_controller_is_killed(fleet: Fleet, storage, consumer):
    took = []

    def act(fio: Fio) -> None:
        fleet.kill_controller()
        fleet.apply(volume("while-away", "1Mi", pool="steady"))
        fio.wait_progress()
        began = time.monotonic()
        fleet.start_controller()
        fleet.wait_ready("flashvolume", "while-away", timeout=120)
        took.append(time.monotonic() - began)

    said = quiet(fleet, act, "controller")
    fleet.delete("flashvolume", "while-away")
    TABLE.seen("controller", f"{figures(said)}; a volume asked for meanwhile was Ready {took[0]:.0f} s after its start")


@pytest.mark.long
def test_io_does_not_notice_that_the_api_server_is_away_and_all_is_well_soon_after_its_return(
    fleet: Fleet, storage, consumer
):
    took = []

    def act(fio: Fio) -> None:
        fleet.lab.control_plane.pause()
        try:
            until = time.monotonic() + OUTAGE
            while time.monotonic() < until:
                fio.wait_progress()
                time.sleep(5)
        finally:
            fleet.lab.control_plane.resume()
        began = time.monotonic()
        fleet.apply(volume("after-it", "1Mi", pool="steady"))
        fleet.wait_ready("flashvolume", "after-it", timeout=120)
        took.append(time.monotonic() - began)

    said = quiet(fleet, act, "api")
    assert took[0] < CONVERGED
    fleet.delete("flashvolume", "after-it")
    TABLE.seen("api", f"{figures(said)}; a new volume was Ready {took[0]:.0f} s after its return")


@pytest.mark.long
def test_io_waits_for_a_cable_that_is_cut_for_less_than_the_limit(fleet: Fleet, storage, consumer):
    fio = Fio(consumer, device_of(fleet, "f0-on-b"), "cut").start()
    began = time.monotonic()
    storage.cut_cable()
    try:
        said = connection(wait_state(fleet, "f0-on-b", "Reconnecting"))
        noticed = time.monotonic() - began
        assert said["since"] < said["lostAt"]
        assert [path["state"] for path in said["paths"]] != ["live"]
        told = fleet.get("flashattachment", "f0-on-b")
        assert condition(told, "Connected")["reason"] == "Reconnecting"
        moved = fio.moved()
        time.sleep(max(10.0, 25 - noticed))
        assert fio.moved() == moved, "the cable was not cut: this would show nothing"
    finally:
        storage.mend_cable()
    fio.wait_progress()
    stood = time.monotonic() - began
    wait_connected(fleet, "f0-on-b")
    said = figures(fio.stop())
    TABLE.seen("cut", f"Reconnecting was said after {noticed:.0f} s; I/O went on {stood:.0f} s after the cut; {said}")


def test_a_connection_that_is_lost_is_said_to_be_and_made_anew_with_all_the_data(fleet: Fleet, storage, consumer):
    """What has more patience, f0, goes on beside it."""
    fleet.apply(volume("l0", "16Mi", pool="short"))
    fleet.wait_ready("flashvolume", "l0")
    fleet.apply(attachment("l0-on-b", "l0", "gpu-b"))
    device = wait_connected(fleet, "l0-on-b")["status"]["device"]
    patient = Fio(consumer, device_of(fleet, "f0-on-b"), "patient").start()
    writer = Writer(consumer, device, "lost", give_up=10).start()
    writer.wait_writes(50)
    began = time.monotonic()
    storage.cut_cable()
    try:
        writer.wait_errors(timeout=300)
        failed = time.monotonic() - began
        said = wait_state(fleet, "l0-on-b", "Lost")
        assert condition(said, "Connected")["reason"] == "Lost"
        assert not is_ready(said)
        ended = writer.wait_ended()
    finally:
        storage.mend_cable()
    mended = time.monotonic()
    again = wait_connected(fleet, "l0-on-b", timeout=300)["status"]["device"]
    healed = time.monotonic() - mended
    assert writer.missing(again) == []
    fresh = Writer(consumer, again, "healed").start()
    fresh.wait_writes(50)
    works = fresh.stop()
    assert (works.errors, works.mismatches) == (0, [])
    patient.wait_progress()
    went_on = patient.stop()
    TABLE.seen(
        "lost",
        f"I/O failed after {failed:.0f} s ({', '.join(sorted(ended.kinds))}); connected anew {healed:.0f} s after the "
        f"cable was mended; nothing acknowledged was missing; a volume of more patience beside it: {figures(went_on)}",
    )
    fleet.delete("flashattachment", "l0-on-b")
    fleet.delete("flashvolume", "l0")


def test_two_networks_are_two_paths_and_one_that_fails_is_not_noticed_by_io(fleet: Fleet, storage, consumer):
    fleet.apply(volume("m0", "16Mi", pool="both"))
    fleet.wait_ready("flashvolume", "m0")
    fleet.apply(attachment("m0-on-b", "m0", "gpu-b"))
    found = wait_connected(fleet, "m0-on-b")
    found = fleet.wait("flashattachment", "m0-on-b", both_live, timeout=120)
    assert [path["portal"].split(":")[1] for path in connection(found)["paths"]] == ["//10.77.0.11", "//10.78.0.11"]
    fio = Fio(consumer, found["status"]["device"], "path", size=8 * MIB).start()
    storage.cut_cable(network="storage")
    try:
        broken = lambda it: "1 of 2 paths" in condition(it, "Connected").get("message", "")  # noqa: E731
        said = fleet.wait("flashattachment", "m0-on-b", broken, timeout=180)
        assert is_ready(said)
        assert "10.78.0.11" in condition(said, "Connected")["message"]
        fio.wait_progress()
    finally:
        storage.mend_cable(network="storage")
    fleet.wait("flashattachment", "m0-on-b", both_live, timeout=180)
    fio.wait_progress()
    TABLE.seen("path", f"{figures(fio.stop())}; the path was named, and came back by itself")


def test_io_goes_on_by_itself_after_a_reboot_of_the_storage_server_and_a_late_network_is_waited_for(
    fleet: Fleet, storage, consumer
):
    """After the test of two networks, whose volume has the late one."""
    ports = lambda name: fleet.get("flashattachment", name)["status"]["fabric"]["portals"]  # noqa: E731
    names = ("f0-on-b", "m0-on-b")
    before, paths = [ports(name) for name in names], paths_of(fleet.get("flashattachment", "m0-on-b"))
    storage.hold_back_storage_address()
    fio = Fio(consumer, device_of(fleet, "f0-on-b"), "reboot").start()
    late = Fio(consumer, device_of(fleet, "m0-on-b"), "late", size=8 * MIB).start()
    began = time.monotonic()
    storage.reboot()
    fio.wait_progress(timeout=300)
    took = time.monotonic() - began
    late.wait_progress(timeout=300)
    fleet.wait_alive("gpu-a")
    waits = lambda it: "waiting for address 10.78.0.11" in str(it["status"].get("exported"))  # noqa: E731
    fleet.wait("flashvolume", "m0", waits, timeout=180)
    for name in names:
        fleet.wait_ready("flashattachment", name, timeout=180)
    TABLE.seen("reboot", f"I/O went on {took:.0f} s after the reboot began; {figures(fio.stop())}")
    began = time.monotonic()
    storage.bring_storage_address()
    found = fleet.wait("flashattachment", "m0-on-b", both_live, timeout=240)
    came = time.monotonic() - began
    assert ([ports(name) for name in names], paths_of(found)) == (before, paths), "port numbers stay"
    late.wait_progress()
    TABLE.seen("late", f"{figures(late.stop())}; the second path was live {came:.0f} s after its address came")
    fleet.delete("flashattachment", "m0-on-b")
    fleet.delete("flashvolume", "m0")


@pytest.mark.long
def test_io_goes_on_by_itself_after_the_storage_server_was_switched_off_hard(fleet: Fleet, storage, consumer):
    device = device_of(fleet, "f0-on-b")
    fio = Fio(consumer, device, "power").start()
    writer = Writer(consumer, device, "acknowledged", at=32 * MIB, depth=2).start()
    writer.wait_writes(50)
    storage.power_off_hard()
    wait_state(fleet, "f0-on-b", "Reconnecting")
    began = time.monotonic()
    storage.start()
    storage.wait_ready(240)
    fio.wait_progress(timeout=300)
    took = time.monotonic() - began
    wait_connected(fleet, "f0-on-b")
    writer.wait_writes(50)
    said = writer.stop()
    assert (said.errors, said.mismatches) == (0, [])
    assert writer.missing() == []
    TABLE.seen("power", f"I/O went on {took:.0f} s after it was switched on; {figures(fio.stop())}; nothing missing")


def test_an_ssd_that_is_pulled_out_and_put_back_is_a_working_device_again(fleet: Fleet, storage, consumer):
    writer = Writer(consumer, device_of(fleet, "f0-on-b"), "pulled", give_up=10).start()
    writer.wait_writes(50)
    began = time.monotonic()
    storage.unplug_ssd("KFA0")
    writer.wait_errors()
    failed = time.monotonic() - began
    ended = writer.wait_ended()
    fleet.wait("flashattachment", "f0-on-b", lambda it: not is_ready(it), timeout=120)
    storage.plug_ssd("KFA0")
    began = time.monotonic()
    works = lambda it: is_ready(it) and is_ready(fleet.get("flashvolume", "f0"))  # noqa: E731
    device = fleet.wait("flashattachment", "f0-on-b", works, timeout=240)["status"]["device"]
    healed = time.monotonic() - began
    assert writer.missing(device) == []
    fresh = Writer(consumer, device, "put-back").start()
    fresh.wait_writes(50)
    said = fresh.stop()
    assert (said.errors, said.mismatches) == (0, [])
    TABLE.seen(
        "ssd",
        f"I/O failed after {failed:.1f} s ({', '.join(sorted(ended.kinds))}); a working device {healed:.0f} s after it "
        "was put back; nothing missing",
    )


def test_a_consumer_that_was_off_is_connected_to_what_is_still_wanted_and_to_nothing_else(
    fleet: Fleet, storage, consumer
):
    fleet.apply(volume("g0", "16Mi", pool="steady"))
    fleet.wait_ready("flashvolume", "g0")
    fleet.apply(attachment("g0-on-b", "g0", "gpu-b"))
    unwanted = wait_connected(fleet, "g0-on-b")["status"]["fabric"]["nqn"]
    wanted = fleet.get("flashattachment", "f0-on-b")["status"]["fabric"]["nqn"]
    writer = Writer(consumer, device_of(fleet, "f0-on-b"), "before").start()
    writer.wait_writes(50)
    writer.stop()
    known = consumer.get_file(f"{fabric.FOLDER}/before/acknowledged.json")
    consumer.power_off_hard()
    fleet.release("flashattachment", "g0-on-b")
    began = time.monotonic()
    fleet.wait_gone("flashattachment", "g0-on-b", timeout=240)
    fenced = time.monotonic() - began
    assert unwanted not in RealServers(fleet).exports("gpu-a")
    consumer.start()
    consumer.wait_ready(240)
    began = time.monotonic()
    fleet.wait_alive("gpu-b")
    device = wait_connected(fleet, "f0-on-b")["status"]["device"]
    took = time.monotonic() - began
    assert {link.nqn for link in links(consumer)} == {wanted}
    fabric.bring_script(consumer)
    consumer.put_file(f"{fabric.FOLDER}/before/acknowledged.json", known)
    assert writer.missing(device) == []
    fresh = Writer(consumer, device, "after").start()
    fresh.wait_writes(50)
    said = fresh.stop()
    assert (said.errors, said.mismatches) == (0, [])
    TABLE.seen(
        "consumer",
        f"the deleted attachment was gone after {fenced:.0f} s; the other one was connected {took:.0f} s after the "
        "boot; sysfs listed no other; nothing missing",
    )


def test_nothing_is_left_in_the_end(fleet: Fleet, storage, consumer):
    fleet.delete("flashattachment", "f0-on-b")
    fleet.kubectl("delete", "flashvolume", "--all", "-n", NAMESPACE, "--timeout=120s", timeout=130)
    servers = RealServers(fleet)
    assert servers.exports("gpu-a") == set()
    assert links(consumer) == []
    left = [line for line in fabric.exports_tree(storage) if "kubeflash" in line or line.startswith("ports/")]
    assert left == []
