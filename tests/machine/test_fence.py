"""A volume is taken from a server that writes to it and cannot be asked: not one byte of its next owner's data changes.

One fleet of three servers; the volumes are gpu-a's. The tests do not build on each other.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from fleet import Fleet, attachment, condition, pool, volume
from lab.processes import wait_until
from lab.servers import VirtualServer
from support import fabric, real
from support.fabric import Writer, links, wait_connected
from support.faults import Fault, Table
from support.real import MIB, RealServers

pytestmark = [pytest.mark.machine, pytest.mark.heavy, pytest.mark.alone, pytest.mark.timeout(1500)]

SSD = "KFA0"
SIZE = 32 * MIB
OLD, NEW = 1, 2
DEPTH, BUFFERED = 16, 2
GIVE_UP = 10
LOSS = 30
"""lossSeconds of the pool whose consumers shall not wait for long."""
QUIET = 30.0
"""Seconds after the old writer's end in which nothing may change."""

PROMISE = (
    "the attachment is gone, its export is taken down without its consumer's word, and only then the next one is "
    "Ready; every write of the old consumer fails, and not one byte of the new owner's data changes"
)
TABLE = Table(
    "Fencing",
    {
        "frozen": Fault("the consumer's machine is frozen while it writes, and thawed under the new owner", PROMISE),
        "cut": Fault(
            "the consumer's cable is cut with writes queued, and mended under the new owner (they would be replayed)",
            PROMISE,
        ),
        "agent": Fault(
            "the consumer's agent is stopped while a program there writes, and started under the new owner", PROMISE
        ),
        "shared": Fault(
            "a Shared volume is written by three servers; one of them is frozen, and its attachment deleted",
            "that one is fenced; the I/O of the others goes on without an error",
        ),
        "off": Fault(
            "the storage server is switched off hard, the attachment deleted and another one made; it is switched on",
            "the deletion does not wait for the server; the other attachment does; nothing of the old export comes up "
            "again. A program that holds the device is waited for, which its I/O ends at lossSeconds",
        ),
    },
)


@dataclass(frozen=True)
class Silence:
    """A way in which a consumer stops to answer, and comes back."""

    begin: Callable[[VirtualServer], None]
    end: Callable[[VirtualServer], None]


SILENCES = {
    "frozen": Silence(VirtualServer.freeze, VirtualServer.thaw),
    "cut": Silence(VirtualServer.cut_cable, VirtualServer.mend_cable),
    "agent": Silence(lambda server: server.service_stop("agent"), lambda server: server.service_start("agent")),
}


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    """A lab with gpu-a, gpu-b and gpu-c, KubeFlash in it, and a pool of an SSD of gpu-a's."""
    with real.several_servers("gpu-a", "gpu-b", "gpu-c", timeout=300) as fleet:
        fleet.start()
        for name in fleet.servers:
            fleet.wait_ready("flashnode", name, namespace=None, timeout=240)
        fleet.apply(pool("fence", SSD), pool("impatient", "KFA1", export={"lossSeconds": LOSS}))
        yield fleet
        fleet.stop_controller()


def made(fleet: Fleet, name: str, *, pool: str = "fence", **how: str) -> tuple[int, int]:
    """Makes a volume of gpu-a's; its place on the SSD."""
    fleet.apply(volume(name, f"{SIZE // MIB}Mi", pool=pool, node="gpu-a", **how))
    fleet.wait_ready("flashvolume", name, timeout=180)
    return real.place_of(fleet, name)


def writing_at_b(fleet: Fleet, name: str) -> Writer:
    """Attaches a volume at gpu-b, where as many writes as can be are in flight from then on."""
    fleet.apply(attachment(f"{name}-old", name, "gpu-b"))
    device = wait_connected(fleet, f"{name}-old")["status"]["device"]
    how = {"depth": DEPTH, "buffered": BUFFERED, "pause": 0.002, "give_up": GIVE_UP, "verify": False}
    return Writer(fleet.servers["gpu-b"], device, name, owner=OLD, size=SIZE, **how).start()


def gone_from_b(fleet: Fleet, nqn: str) -> None:
    """Waits until gpu-b's sysfs lists a subsystem no more."""
    gone = lambda: nqn not in {link.nqn for link in links(fleet.servers["gpu-b"])}  # noqa: E731
    wait_until(f"gpu-b without {nqn}", gone, timeout=180, interval=0.5)


@pytest.mark.parametrize("how", SILENCES)
def test_a_consumer_that_cannot_be_asked_is_fenced_and_never_writes_again(fleet: Fleet, how):
    storage, old_server, silence = fleet.servers["gpu-a"], fleet.servers["gpu-b"], SILENCES[how]
    image, name = storage.image_file(SSD), f"v-{how}"
    start, _ = made(fleet, name)
    old = writing_at_b(fleet, name)
    nqn = fleet.get("flashattachment", f"{name}-old")["status"]["fabric"]["nqn"]
    old.wait_writes(500)
    silence.begin(old_server)
    try:
        if how == "cut":  # until what is in flight is queued, to be sent again
            old.wait("writes that wait", lambda said: said.waiting > 15, timeout=120)
        began = time.monotonic()
        fleet.release("flashattachment", f"{name}-old")
        fleet.apply(attachment(f"{name}-new", name, "gpu-a"))
        ready = fleet.wait_ready("flashattachment", f"{name}-new", timeout=300)
        took = time.monotonic() - began
        assert fleet.get("flashattachment", f"{name}-old") is None
        assert nqn not in RealServers(fleet).exports("gpu-a")
        assert fabric.strange_blocks(image, start, SIZE, NEW), "the old one wrote nothing: this would show nothing"
        fabric.cover(storage, ready["status"]["device"], NEW, SIZE)
        assert fabric.strange_blocks(image, start, SIZE, NEW) == []
    finally:
        silence.end(old_server)
    ended = old.wait_ended(timeout=300)
    gone_from_b(fleet, nqn)
    time.sleep(QUIET)
    assert fabric.strange_blocks(image, start, SIZE, NEW) == []
    assert ended.errors >= (DEPTH + BUFFERED) * GIVE_UP, "every one of its threads saw nothing but errors in the end"
    assert ended.late == 0, "no write that was begun after the first error was acknowledged"
    assert fleet.events("Fenced"), "nobody was told"
    TABLE.seen(
        how,
        f"the new attachment was Ready {took:.0f} s after the deletion; the old consumer's {DEPTH + BUFFERED} writers "
        f"ended with {ended.errors} errors ({', '.join(sorted(ended.kinds))}); 0 of {SIZE // MIB} MiB differ "
        f"{QUIET:.0f} s later",
    )
    fleet.delete("flashattachment", f"{name}-new")
    fleet.delete("flashvolume", name)
    fleet.wait_alive("gpu-b")


def test_fencing_one_user_of_a_shared_volume_is_not_noticed_by_the_others(fleet: Fleet):
    start, _ = made(fleet, "shared", sharing="Shared")
    fleet.apply(*(attachment(f"shared-{name}", "shared", name) for name in fleet.servers))
    devices = {
        name: fleet.wait_ready("flashattachment", f"shared-{name}", timeout=240)["status"]["device"]
        for name in fleet.servers
    }
    nqn = fleet.get("flashattachment", "shared-gpu-b")["status"]["fabric"]["nqn"]
    writers = {
        name: Writer(
            fleet.servers[name],
            device,
            "shared",
            owner=n + 1,
            at=n * 8 * MIB,
            give_up=GIVE_UP if name == "gpu-b" else 0,
        ).start()
        for n, (name, device) in enumerate(sorted(devices.items()))
    }
    for writer in writers.values():
        writer.wait_writes(50)
    image, b = fleet.servers["gpu-a"].image_file(SSD), fleet.servers["gpu-b"]
    with fabric.frozen(b):
        began = time.monotonic()
        fleet.release("flashattachment", "shared-gpu-b")
        fleet.wait_gone("flashattachment", "shared-gpu-b", timeout=300)
        took = time.monotonic() - began
        assert nqn not in RealServers(fleet).exports("gpu-a")
        for name in ("gpu-a", "gpu-c"):
            writers[name].wait_writes(50)
        left = real.read_image(image, start + 8 * MIB, 8 * MIB)
    ended = writers["gpu-b"].wait_ended(timeout=300)
    gone_from_b(fleet, nqn)
    time.sleep(QUIET)
    assert real.read_image(image, start + 8 * MIB, 8 * MIB) == left, "the fenced one wrote on"
    assert ended.late == 0
    said = {}
    for name in ("gpu-a", "gpu-c"):
        writers[name].wait_writes(50)
        said[name] = writers[name].stop()
        assert (said[name].errors, said[name].mismatches) == (0, [])
        assert writers[name].missing() == []
    TABLE.seen(
        "shared",
        f"fenced {took:.0f} s after the deletion; meanwhile "
        + "; ".join(
            f"{name}: {it.writes} writes, 0 errors, the longest {it.longest:.1f} s" for name, it in said.items()
        )
        + f"; the fenced one ended with {ended.errors} errors",
    )
    fleet.delete("flashattachment", "shared-gpu-a")  # the export for gpu-c is no use of it
    fleet.delete("flashattachment", "shared-gpu-c")
    fleet.delete("flashvolume", "shared")


SUBSYSTEMS_SEEN = """echo boot
exec sh -c 'while :; do ls /sys/kernel/config/nvmet/subsystems; sleep 0.1; done'
"""


def test_a_storage_server_that_is_off_is_not_waited_for_and_never_exports_the_old_ones_again(fleet: Fleet):
    """A device that nobody uses is let go of at once; one that a program holds when its I/O has failed."""
    storage = fleet.servers["gpu-a"]
    image, b = storage.image_file(SSD), RealServers(fleet)
    start, _ = made(fleet, "off")
    fleet.apply(attachment("off-old", "off", "gpu-b"))
    wait_connected(fleet, "off-old")
    made(fleet, "held", pool="impatient")
    old = writing_at_b(fleet, "held")
    nqns = {fleet.get("flashattachment", name)["status"]["fabric"]["nqn"] for name in ("off-old", "held-old")}
    old.wait_writes(200)
    storage.service("subsystems-seen", SUBSYSTEMS_SEEN)
    seen = lambda: all(nqn in storage.service_log("subsystems-seen") for nqn in nqns)  # noqa: E731
    wait_until("the exports are seen", seen, timeout=30)
    storage.run("sync")
    storage.power_off_hard()
    began = time.monotonic()
    fleet.release("flashattachment", "off-old")
    fleet.release("flashattachment", "held-old")
    fleet.apply(attachment("off-new", "off", "gpu-c"))
    held = fleet.wait("flashattachment", "held-old", lambda it: condition(it, "Ready").get("reason") == "InUse")
    assert "open in python3" in condition(held, "Ready")["message"]
    fleet.wait_gone("flashattachment", "off-old", timeout=240)
    took = time.monotonic() - began
    waits = fleet.wait("flashattachment", "off-new", lambda it: condition(it, "Ready").get("status") == "False")
    assert "device" not in waits["status"]
    ended = old.wait_ended(timeout=300)
    fleet.wait_gone("flashattachment", "held-old", timeout=240)
    held_took = time.monotonic() - began
    assert b.connections("gpu-b").isdisjoint(nqns)
    left = real.read_image(image, start, SIZE)
    storage.start()
    storage.wait_ready(240)
    began = time.monotonic()
    new = wait_connected(fleet, "off-new", timeout=300)
    exported = time.monotonic() - began
    assert real.read_image(image, start, SIZE) == left
    log = storage.service_log("subsystems-seen").rpartition("boot\n")[2]
    assert new["status"]["fabric"]["nqn"] in log
    assert not [nqn for nqn in nqns if nqn in log]
    assert ended.late == 0
    writer = Writer(fleet.servers["gpu-c"], new["status"]["device"], "off", owner=NEW, size=SIZE).start()
    writer.wait_writes(50)
    said = writer.stop()
    assert (said.errors, said.mismatches) == (0, [])
    storage.run("rm -rf /etc/service/subsystems-seen")
    TABLE.seen(
        "off",
        f"the attachment was gone {took:.0f} s after its deletion, one whose device a program held {held_took:.0f} s "
        f"after it (lossSeconds {LOSS}; it said InUse until then); the next one was connected {exported:.0f} s after "
        "the server's boot; looked at ten times a second, the old exports were never there",
    )
    fleet.delete("flashattachment", "off-new")
    fleet.kubectl("delete", "flashvolume", "off", "held", "-n", "serving", "--timeout=120s", timeout=130)
