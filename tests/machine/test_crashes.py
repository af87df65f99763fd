"""The agent is killed, and the power is cut, in the middle of what it does to SSDs: it goes on, and no byte is lost."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import support
from fleet import JSON, NAMESPACE, Fleet, condition, is_ready, pool, volume
from lab.processes import wait_until
from lab.servers import VirtualServer
from support import real
from support.real import MIB

pytestmark = [pytest.mark.machine, pytest.mark.heavy, pytest.mark.timeout(900)]

TESTS = "/opt/kubeflash/tests"
EVERY = 1 if os.environ.get("KUBEFLASH_LONG") == "1" else 4
"""Of the points at which an agent is killed, one of so many; `make heavy LONG=1` has them all."""
KEPT, RELEASED = "2b1f0a52-7d5c-4a3e-9d1e-0d3f8f2c0001", "2b1f0a52-7d5c-4a3e-9d1e-0d3f8f2c0002"
SERVER = {
    "name": "crash",
    "address": "10.77.0.14/24",
    "memory": "1024Mi",
    "numa": [
        {
            "node": 0,
            "roots": [
                {
                    "bus": 16,
                    "ports": [
                        {"switch": [{"gpu": "g0"}, {"ssd": "D0", "serial": "KFD0", "size": "512Mi"}]},
                        {"empty": "E0"},
                    ],
                }
            ],
        }
    ],
}


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    """A lab with one server, KubeFlash not installed yet."""
    with real.lone_server(SERVER) as fleet:
        yield fleet


@pytest.fixture(scope="module")
def server(fleet: Fleet) -> VirtualServer:
    return fleet.servers["crash"]


# ---- kill -9 at every point


def kill_everywhere(server: VirtualServer, cluster: str, **wishes: JSON) -> list[str]:
    """Carries wishes out by processes that are killed at every point; the points. See `support.crashing`."""
    all_wishes = [
        {"key": f"{NAMESPACE}/{key}", "ssd": "KFD0-1", "released": False, "exported": False, **wish}
        for key, wish in wishes.items()
    ]
    stages = {"cluster": cluster, "every": EVERY, "stages": [{"name": "all", "wishes": all_wishes}]}
    command = f"PYTHONPATH=$PYTHONPATH:{TESTS} python3 -m support.crashing"
    done = server.run(command, input=json.dumps(stages).encode(), timeout=600)
    return json.loads(done.stdout_text)["points"]


def table_and_kernel(server: VirtualServer, serial: str) -> tuple[dict[int, tuple[int, int, str]], dict[int, tuple]]:
    """By number: start, bytes and name of each partition by the table; start and bytes of each by the kernel."""
    disk = server.run(f"readlink -f {real.BY_ID}{serial}").stdout_text.strip()
    table = json.loads(server.run(["sfdisk", "--json", disk]).stdout_text)["partitiontable"]
    listed = {
        int(item["node"].removeprefix(f"{disk}p")): (item["start"] * 512, item["size"] * 512, item["name"])
        for item in table["partitions"]
    }
    name = Path(disk).name
    shown = server.run(f"cd /sys/block/{name}; for p in {name}p*; do cat $p/partition $p/start $p/size | xargs; done")
    rows = (map(int, line.split()) for line in shown.stdout_text.splitlines())
    return listed, {number: (start * 512, size * 512) for number, start, size in rows}


def test_an_agent_killed_at_every_point_of_its_work_is_followed_by_one_that_goes_on(fleet: Fleet, server):
    for name in ("__init__.py", "crashing.py"):
        server.put_file(f"{TESTS}/support/{name}", (Path(support.__path__[0]) / name).read_bytes())
    cluster, image = fleet.lab.control_plane.cluster_id, server.image_file("KFD0")

    carved = {"kept": {"id": KEPT, "bytes": 64 * MIB}, "released": {"id": RELEASED, "bytes": 96 * MIB}}
    points = kill_everywhere(server, cluster, **carved)
    assert {point.split()[0] for point in points} >= {"ClaimSsd", "CarvePartition"}
    assert len(points) > 15 // EVERY, points  # not always as many: udev shows partitions, too
    server.run("udevadm settle --timeout=60", timeout=90)
    listed, shown = table_and_kernel(server, "KFD0")
    assert sorted(size for _, size, _ in listed.values()) == [1 * MIB, 64 * MIB, 96 * MIB]
    assert shown == {number: place[:2] for number, place in listed.items()}

    for number, seed in enumerate((KEPT, RELEASED)):
        data = os.urandom(3 * MIB) + seed.encode()
        server.put_file(f"/tmp/data{number}", data)
        server.run(f"dd if=/tmp/data{number} of=/dev/disk/by-partuuid/{seed} bs=1M conv=fsync status=none")
    (start,) = (place[0] for place in listed.values() if place[2] == KEPT)
    (old_start,) = (place[0] for place in listed.values() if place[2] == RELEASED)
    before = real.read_image(image, start, 64 * MIB)
    assert KEPT.encode() in before

    # at once, as one plan of the agent's would have it
    carved["kept"] |= {"bytes": 128 * MIB, "fresh": False}
    carved["released"] |= {"released": True, "fresh": False}
    server.run(f"sleep 99999 < /dev/disk/by-partuuid/{KEPT} > /dev/null 2>&1 & echo $! > /tmp/using")
    points = kill_everywhere(server, cluster, **carved)
    steps = {point.split()[0] for point in points}
    assert steps - {"ShowPartition"} == {"GrowPartition", "WipePartition", "RemovePartition"}
    assert "ShowPartition" in steps or EVERY > 1, "no run was killed between the table and the kernel"
    assert any(" of " in point for point in points), "no run was killed in the middle of wiping"

    server.run("kill $(cat /tmp/using); udevadm settle --timeout=60", timeout=90)
    listed, shown = table_and_kernel(server, "KFD0")
    assert {place[2]: place[:2] for place in listed.values()} == {
        "kubeflash": (1 * MIB, 1 * MIB),
        KEPT: (start, 128 * MIB),
    }
    assert shown == {number: place[:2] for number, place in listed.items()}
    assert real.whole_copies(image) == (True, True)
    assert real.read_image(image, start, 64 * MIB) == before
    assert not real.read_image(image, old_start, 96 * MIB).strip(b"\0")
    server.run(f"flock --nonblock {real.BY_ID}KFD0 true")
    left = server.run("losetup --list --noheadings; pgrep -a 'sfdisk|partx|wipefs|blkid|nvme$'", check=False)
    assert left.stdout_text == ""


UID = "2b1f0a52-7d5c-4a3e-9d1e-0d3f8f2c0011"
NQN = "nqn.2026-01.io.kubeflash:subsystem:" + UID


def kill_fabric(server: VirtualServer, cluster: str, **fabric: object) -> list[str]:
    """Brings an attachment of this server at itself to what is wished, by processes that are killed at every point."""
    asked = {"uid": UID, "volume_id": KEPT, "address": "10.77.0.14", "port": 4500, **fabric}
    stages = {"cluster": cluster, "every": EVERY, "stages": [{"name": "all", "fabric": asked}]}
    command = f"PYTHONPATH=$PYTHONPATH:{TESTS} python3 -m support.crashing"
    done = server.run(command, input=json.dumps(stages).encode(), timeout=900)
    return json.loads(done.stdout_text)["points"]


NVMET = "/sys/kernel/config/nvmet"
LEFT = (
    f"(ls {NVMET}/subsystems {NVMET}/hosts; ls {NVMET}/ports | sed s/^/kubeflash-port-/; "
    "cat /sys/class/nvme/nvme*/subsysnqn; grep NVMe1R /proc/keys) 2>/dev/null | grep -c kubeflash"
)
"""Counts what is left of exports, ports, connections and TLS keys."""


@pytest.mark.parametrize("tls", [False, pytest.param(True, marks=pytest.mark.long)])  # a handshake takes seconds
def test_an_agent_killed_at_every_point_of_exporting_connecting_leaving_and_fencing_goes_on(fleet: Fleet, server, tls):
    """Builds on the volume that the test above left."""
    cluster = fleet.lab.control_plane.cluster_id
    assert server.run(LEFT, check=False).stdout_text.strip() == "0"
    points = kill_fabric(server, cluster, exported=True, connected=True, tls=tls)
    assert {point.split()[0] for point in points} >= {
        "CreateHost",
        "CreateSubsystem",
        "AllowHost",
        "EnableNamespace",
        "CreatePort",
        "LinkPort",
        "Connect",
    }
    assert len(points) > 25 // EVERY, points
    modes = server.run(f"stat -c %a {NVMET}/hosts/*/dhchap_key {NVMET}/hosts/*/dhchap_ctrl_key").stdout_text
    assert set(modes.split()) == {"600"}
    look = f"for s in /sys/class/nvme-subsystem/*; do if grep -qx {NQN} $s/subsysnqn; then ls $s; fi; done"
    device = server.run(f"{look} | grep -E '^nvme[0-9]+n[0-9]+$'").stdout_text.strip()
    server.run(f"dd if=/dev/zero of=/dev/{device} bs=1M count=4 oflag=direct status=none")

    points = kill_fabric(server, cluster, exported=True, connected=False, tls=tls)
    assert {point.split()[0] for point in points} == {"Disconnect"}
    kill_fabric(server, cluster, exported=True, connected=True, tls=tls)
    points = kill_fabric(server, cluster, exported=False, connected=False, tls=tls)
    assert {point.split()[0] for point in points} >= {
        "DisallowHost",
        "UnlinkPort",
        "DisableNamespace",
        "RemoveSubsystem",
        "RemovePort",
        "RemoveHost",
        "Disconnect",
    }
    assert server.run(LEFT, check=False).stdout_text.strip() == "0"


# ---- the agent itself


@pytest.fixture(scope="module")
def running(fleet: Fleet, server) -> Iterator[Fleet]:
    """KubeFlash installed, with the SSD of the test above, and a new one."""
    server.plug_ssd("KFD1", port="E0", size=512 * MIB)
    fleet.start()
    fleet.wait_ready("flashnode", "crash", namespace=None, timeout=180)
    fleet.apply(pool("old", "KFD0"), pool("new", "KFD1"))
    yield fleet
    fleet.stop_controller()


def all_ready(fleet: Fleet) -> bool:
    found = json.loads(fleet.kubectl("get", "flashvolumes", "-A", "-o", "json"))["items"]
    return bool(found) and all(is_ready(item) for item in found)


def place_of(fleet: Fleet, ssd: str, name: str) -> tuple[int, int]:
    """Start and bytes of a volume."""
    node = fleet.get("flashnode", "crash", None)
    known = real.ssd_of(node, ssd)["volumes"]
    return next((item["start"], item["bytes"]) for item in known if item.get("volume") == f"{NAMESPACE}/{name}")


def test_what_killed_processes_left_is_found_whole_by_the_agent(running: Fleet, server):
    wanted = volume("kept", "128Mi", pool="old")
    wanted["spec"]["id"] = KEPT
    running.apply(wanted)
    ready = running.wait_ready("flashvolume", "kept", timeout=180)
    assert real.said(ready, "Placed") in {("True", "Found"), ("True", "Settled")}
    assert ready["status"]["bytes"] == 128 * MIB


def test_an_agent_killed_while_sfdisk_claims_an_ssd_leaves_it_locked_and_goes_on(running: Fleet, server):
    image = server.image_file("KFD1")
    queue = f"/sys/block/$(basename $(readlink -f {real.BY_ID}KFD1))/queue/max_sectors_kb"
    usual = server.run(f"cat {queue}; echo 16 > {queue}").stdout_text.strip()  # a table takes 7 requests
    server.throttle_ssd("KFD1", 1, writes_only=True)
    try:
        running.apply(volume("c0", "48Mi", pool="new"))
        wait_until("half a table", lambda: any(real.entries(image)[1]), timeout=180)
        server.service_kill("agent")
        # in this order: a lock that is free says that none writes any more
        free = f"if flock --nonblock {real.BY_ID}KFD1 true; then ! pgrep -x sfdisk; fi"
        assert server.run(free, check=False).exit_code == 0, "another agent could write to a table that is written"
        assert real.whole_copies(image) != (True, True), "the agent was killed too late to show anything"
        running.wait_ready("flashvolume", "c0", timeout=300)
    finally:
        server.throttle_ssd("KFD1", None)
        server.run(f"echo {usual} > {queue}")
    assert real.whole_copies(image) == (True, True)


def test_an_agent_killed_while_it_wipes_leaves_no_byte_of_the_volume_and_all_of_its_neighbour(running: Fleet, server):
    image = server.image_file("KFD1")
    running.apply(volume("w0", "64Mi", pool="new"))
    ready = running.wait_ready("flashvolume", "w0", timeout=180)
    (start, count), (beside, length) = place_of(running, "KFD1-1", "w0"), place_of(running, "KFD1-1", "c0")
    for name, where in (("w0", "1 63"), ("c0", "0 47")):
        link = running.get("flashvolume", name)["status"]["device"]
        server.run(
            f"until [ -b {link} ]; do sleep 0.2; done; "  # udev's, a moment after the kernel's partition
            f"for at in {where}; do dd if=/dev/urandom of={link} bs=1M count=1 seek=$at conv=fsync status=none; done"
        )
    neighbour = real.read_image(image, beside, length)
    assert ready["status"]["bytes"] == count
    server.throttle_ssd("KFD1", 10, writes_only=True)
    try:
        running.kubectl("delete", "flashvolume", "w0", "-n", NAMESPACE, "--wait=false")
        head = lambda: not real.read_image(image, start, 2 * MIB).strip(b"\0")  # noqa: E731
        wait_until("half of it wiped", head, timeout=180)
        server.service_kill("agent")
        assert real.read_image(image, start, count).strip(b"\0"), "the agent was killed too late to show anything"
    finally:
        server.throttle_ssd("KFD1", None)
    running.wait_gone("flashvolume", "w0", timeout=240)
    assert not real.read_image(image, start, count).strip(b"\0")
    assert real.read_image(image, beside, length) == neighbour


# ---- power cuts


def cut_while_carving(fleet: Fleet, server: VirtualServer, name: str, copy: int) -> tuple[bool, bool]:
    """Cuts the power while sfdisk has written half of a copy of a table; which copies are whole."""
    image = server.image_file("KFD1")
    before = real.entries(image)
    server.throttle_ssd("KFD1", 1, writes_only=True)
    fleet.apply(volume(name, "32Mi", pool="new"))
    try:
        wait_until("half a table", lambda: real.entries(image)[copy] != before[copy], timeout=180, interval=0.01)
    finally:
        server.power_off_hard()
    return real.whole_copies(image)


def switched_on_again(fleet: Fleet, server: VirtualServer) -> None:
    """Until every volume is Ready, on whole tables."""
    server.start()
    server.wait_ready(240)
    renewed = fleet.get("lease", "agent-crash", "kubeflash-system")["spec"]["renewTime"]
    alive = lambda it: it["spec"]["renewTime"] > renewed  # noqa: E731
    fleet.wait("lease", "agent-crash", alive, namespace="kubeflash-system", timeout=180)
    images = [server.image_file(serial) for serial in ("KFD0", "KFD1")]
    whole = lambda: all(real.whole_copies(image) == (True, True) for image in images)  # noqa: E731
    wait_until("whole tables", whole, timeout=180, interval=0.5)
    wait_until("all volumes ready", lambda: all_ready(fleet), timeout=180, interval=0.5)
    for serial in ("KFD0", "KFD1"):
        listed, shown = table_and_kernel(server, serial)
        assert shown == {number: place[:2] for number, place in listed.items()}


@pytest.mark.parametrize(("name", "copy", "by_hand"), [("p0", 0, -512), ("p1", 1, 512)])
def test_a_power_cut_while_a_table_is_written_costs_no_volume(running: Fleet, server, name, copy, by_hand):
    """One copy is torn by the cut on one SSD, the other copy by hand on the other SSD."""
    images = [server.image_file(serial) for serial in ("KFD0", "KFD1")]
    places = [place_of(running, "KFD0-1", "kept"), place_of(running, "KFD1-1", "c0")]
    before = [real.read_image(image, *place) for image, place in zip(images, places, strict=True)]
    whole = cut_while_carving(running, server, name, copy)
    assert whole[1 - copy], "both copies are torn"
    assert not whole[copy], "the power was cut too late to show anything"
    at = by_hand % images[0].stat().st_size
    real.write_image(images[0], at, bytes(100))
    assert real.whole_copies(images[0]) == (by_hand < 0, by_hand > 0)
    switched_on_again(running, server)
    assert [real.read_image(image, *place) for image, place in zip(images, places, strict=True)] == before
    assert running.get("flashvolume", name)["status"]["bytes"] == 32 * MIB
    assert condition(running.get("flashnode", "crash", None), "Ready")["reason"] == "AgentRunning"
