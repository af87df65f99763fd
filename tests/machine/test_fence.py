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

pytestmark = [pytest.mark.machine, pytest.mark.heavy, pytest.mark.timeout(1500)]

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


def writing_at(fleet: Fleet, server: str, name: str) -> Writer:
    """Attaches a volume at a server, where as many writes as can be are in flight from then on."""
    fleet.apply(attachment(f"{name}-old", name, server))
    device = wait_connected(fleet, f"{name}-old")["status"]["device"]
    how = {"depth": DEPTH, "buffered": BUFFERED, "pause": 0.02, "give_up": GIVE_UP, "verify": False}
    return Writer(fleet.servers[server], device, name, owner=OLD, size=SIZE, **how).start()


def gone_from(server: VirtualServer, nqn: str) -> None:
    """Waits until a server's sysfs lists a subsystem no more."""
    gone = lambda: nqn not in {link.nqn for link in links(server)}  # noqa: E731
    wait_until(f"{server.name} without {nqn}", gone, timeout=180, interval=0.5)


class Taken:
    """A volume of gpu-a's, taken from a server that writes to it and goes silent: in the order of its methods."""

    def __init__(self, fleet: Fleet, server: str, how: str) -> None:
        self.fleet, self.server, self.how, self.name = fleet, fleet.servers[server], how, f"v-{how}"
        self.storage = fleet.servers["gpu-a"]
        self.image = self.storage.image_file(SSD)
        self.start, _ = made(fleet, self.name)
        self.old = writing_at(fleet, server, self.name)
        self.nqn = fleet.get("flashattachment", f"{self.name}-old")["status"]["fabric"]["nqn"]
        self.old.wait_writes(500)

    def strange(self) -> list[str]:
        """Blocks of the volume that are not its new owner's."""
        return fabric.strange_blocks(self.image, self.start, SIZE, NEW)

    def silence(self) -> None:
        SILENCES[self.how].begin(self.server)
        if self.how == "cut":  # until what is in flight is queued, to be sent again
            self.old.wait("writes that wait", lambda said: said.waiting > 15, timeout=120)
        self.began = time.monotonic()
        self.fleet.release("flashattachment", f"{self.name}-old")
        self.fleet.apply(attachment(f"{self.name}-new", self.name, "gpu-a"))

    def handed_over(self) -> None:
        ready = self.fleet.wait_ready("flashattachment", f"{self.name}-new", timeout=300)
        self.took = time.monotonic() - self.began
        assert self.fleet.get("flashattachment", f"{self.name}-old") is None
        assert self.nqn not in RealServers(self.fleet).exports("gpu-a")
        assert self.strange(), "the old one wrote nothing: this would show nothing"
        fabric.cover(self.storage, ready["status"]["device"], NEW, SIZE)
        assert self.strange() == []

    def speak(self) -> None:
        SILENCES[self.how].end(self.server)

    def never_wrote_again(self) -> None:
        ended = self.old.wait_ended(timeout=300)
        gone_from(self.server, self.nqn)
        time.sleep(QUIET)
        assert self.strange() == []
        assert ended.errors >= (DEPTH + BUFFERED) * GIVE_UP, "every one of its threads saw nothing but errors at last"
        assert ended.late == 0, "no write that was begun after the first error was acknowledged"
        TABLE.seen(
            self.how,
            f"the new attachment was Ready {self.took:.0f} s after the deletion; the old consumer's "
            f"{DEPTH + BUFFERED} writers ended with {ended.errors} errors ({', '.join(sorted(ended.kinds))}); 0 of "
            f"{SIZE // MIB} MiB differ {QUIET:.0f} s later",
        )
        self.fleet.delete("flashattachment", f"{self.name}-new")
        self.fleet.delete("flashvolume", self.name)


@pytest.mark.parametrize("how", [pytest.param(("cut",), marks=pytest.mark.long), ("frozen", "agent")], ids="+".join)
def test_a_consumer_that_cannot_be_asked_is_fenced_and_never_writes_again(fleet: Fleet, how):
    """Two ways at once, on a server each: nearly all of it is waiting."""
    taken = [Taken(fleet, server, one) for server, one in zip(("gpu-b", "gpu-c"), how, strict=False)]
    try:
        for one in taken:
            one.silence()
        for one in taken:
            one.handed_over()
    finally:
        for one in taken:
            one.speak()
    for one in taken:
        one.never_wrote_again()
    told = {event["regarding"]["name"] for event in fleet.events("Fenced")}
    assert {f"{one.name}-old" for one in taken} <= told
    fleet.wait_alive("gpu-b", "gpu-c")


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
    gone_from(fleet.servers["gpu-b"], nqn)
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
    old = writing_at(fleet, "gpu-b", "held")
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
