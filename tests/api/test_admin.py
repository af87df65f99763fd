"""What only an admin may ask, by `kubectl flash` on a real API server: plan, why volume, wipe, adopt, purge."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from fleet import NAMESPACE, Fleet, attachment, condition, pool, volume
from kubeflash.domain.carving import DiskView
from lab.errors import CommandError
from support.simulated import GIB, Network, SimulatedServer, gpu, ssd
from support.simulation import Simulation

GPU = "0000:12:00.0"
LEASES = "kubeflash-system"


@pytest.fixture(scope="module")
def simulation(fleet: Fleet) -> Iterator[Simulation]:
    network = Network()
    servers = {
        "srv-x": SimulatedServer(
            "srv-x", "10.0.1.1", network, [gpu(1), gpu(2)], [ssd("XA", 1), ssd("XB", 2), ssd("XC", 3)]
        ),
        "srv-y": SimulatedServer("srv-y", "10.0.1.2", network, [gpu(1)], [ssd("YA", 1), ssd("YB", 2)]),
    }
    try:
        with Simulation.running(fleet, servers, "kubeflash-agent-adm") as made:
            yield made
    finally:
        fleet.kubectl("delete", "flashnode", *servers, "--ignore-not-found", "--timeout=30s")
        fleet.kubectl("delete", "lease", "-n", LEASES, *(f"agent-{name}" for name in servers), "--ignore-not-found")


@pytest.fixture
def objects(fleet: Fleet) -> Iterator[Fleet]:
    """Leaves none of the test's objects behind."""
    yield fleet
    for name in ("srv-x", "srv-y"):
        if fleet.get("flashnode", name, None) is not None:
            patch(fleet, name, {"wipe": None, "adopt": None, "purge": None})
    for kind in ("flashattachment", "flashvolume"):
        fleet.kubectl("delete", kind, "-n", NAMESPACE, "--all", "--timeout=60s", timeout=70)
    fleet.kubectl("delete", "flashpool", "--all", "--timeout=30s")


def server_of(fleet: Fleet, name: str) -> dict:
    return fleet.get("flashnode", name, None)


def ssd_of(found: dict, ssd_id: str) -> dict:
    return next((item for item in found["status"]["ssds"] if item["id"] == ssd_id), {})


def wait_ssd(fleet: Fleet, name: str, ssd_id: str, reached) -> dict:
    found = fleet.wait("flashnode", name, lambda it: reached(ssd_of(it, ssd_id)), namespace=None, timeout=30)
    return ssd_of(found, ssd_id)


def patch(fleet: Fleet, name: str, spec: dict) -> None:
    fleet.kubectl("patch", "flashnode", name, "--type=merge", "-p", json.dumps({"spec": spec}))


def look(fleet: Fleet, name: str) -> None:
    """Has the agent look at its machine."""
    fleet.kubectl("annotate", "--overwrite", "flashnode", name, f"look={time.monotonic_ns()}")


def flat(text: str) -> str:
    """Words as they were before the terminal wrapped them."""
    return " ".join(text.split())


def refused(fleet: Fleet, *words: str) -> str:
    """What a command says that does not do it: one line, status 1."""
    with pytest.raises(CommandError) as failed:
        fleet.flash(*words)
    lines = [line for line in str(failed.value).splitlines() if "kubectl flash: " in line]
    assert len(lines) == 1, str(failed.value)
    assert "Traceback" not in str(failed.value)
    return lines[0]


@contextmanager
def paused(fleet: Fleet, name: str) -> Iterator[None]:
    patch(fleet, name, {"paused": True})
    try:
        fleet.wait("flashnode", name, lambda it: condition(it, "Ready").get("reason") == "Paused", namespace=None)
        yield
    finally:
        patch(fleet, name, {"paused": False})


def orphaned(fleet: Fleet, name: str, made: dict, server: str) -> dict:
    """Makes a volume, and takes its object away by force: what is left on the SSD."""
    fleet.apply(made)
    ready = fleet.wait_ready("flashvolume", name, timeout=30)
    with paused(fleet, server):
        fleet.kubectl("delete", "flashvolume", name, "-n", NAMESPACE, "--wait=false")
        fleet.kubectl(
            "patch", "flashvolume", name, "-n", NAMESPACE, "--type=merge", "-p", '{"metadata":{"finalizers":null}}'
        )
        fleet.wait_gone("flashvolume", name)
    on = ready["status"]["ssd"]
    is_orphan = lambda it: any(e["id"] == ready["spec"]["id"] and "volume" not in e for e in it["volumes"])  # noqa: E731
    found = wait_ssd(fleet, server, on, is_orphan)
    return next(item for item in found["volumes"] if item["id"] == ready["spec"]["id"])


@contextmanager
def silent(fleet: Fleet, simulation: Simulation, name: str) -> Iterator[None]:
    """The agent is gone. Its Lease is emptied, so that nobody need wait until it runs out."""
    simulation.stop(name)
    try:
        spec = '{"spec":{"holderIdentity":"","renewTime":null}}'
        fleet.kubectl("patch", "lease", f"agent-{name}", "-n", LEASES, "--type=merge", "-p", spec)
        unknown = lambda it: condition(it, "Ready").get("status") == "Unknown"  # noqa: E731
        fleet.wait("flashnode", name, unknown, namespace=None, timeout=60)
        yield
    finally:
        simulation.start(name)
        fleet.wait_ready("flashnode", name, namespace=None, timeout=60)


@contextmanager
def foreign(fleet: Fleet, simulation: Simulation, fingerprint: str) -> Iterator[None]:
    """SSD XC of srv-x has somebody's file system on it, and its server has seen that."""
    disks = simulation.servers["srv-x"].disks
    disks["XC-1"] = DiskView("XC-1", GIB, findings=("ext4 file system",), fingerprint=fingerprint)
    try:
        look(fleet, "srv-x")
        wait_ssd(fleet, "srv-x", "XC-1", lambda it: it["state"] == "Foreign")
        yield
    finally:
        disks["XC-1"] = DiskView("XC-1", GIB)
        look(fleet, "srv-x")


def test_wipe_of_an_ssd_that_somebody_else_used(fleet, simulation, objects):
    server = simulation.servers["srv-x"]
    with foreign(fleet, simulation, "f" * 16):
        shown = flat(fleet.flash("wipe", "srv-x", "XC", "--dry-run"))
        assert "SSD XC-1 of server srv-x, at 33:00.0: SIMULATED 1, serial XC, 1Gi, foreign" in shown
        assert "not blank: ext4 file system" in shown
        assert "WILL BE LOST: everything on it, all 1Gi" in shown
        assert "nothing was changed. The SSD's serial, XC, will be asked for" in shown
        assert "type the SSD's serial on a terminal" in refused(fleet, "wipe", "srv-x", "XC")
        assert "--confirm XB is not the SSD's serial" in refused(fleet, "wipe", "srv-x", "XC", "--confirm", "XB")
        assert server.disks["XC-1"].findings, "nobody typed the right serial yet"
        assert "wipe" not in server_of(fleet, "srv-x")["spec"]

        assert "is wiped: it is blank" in fleet.flash("wipe", "srv-x", "XC", "--confirm", "XC")
        assert server.disks["XC-1"].findings == ()
        after = server_of(fleet, "srv-x")
        assert ssd_of(after, "XC-1")["state"] == "Blank"
        assert "wipe" not in after["spec"], "the request is taken back once it is done"
        assert "It is blank: there is nothing to wipe." in fleet.flash("wipe", "srv-x", "XC-1")


def test_wipe_is_refused_while_a_volume_is_on_the_ssd(fleet, simulation, objects):
    fleet.apply(pool("adm", "XC"), volume("held", "8Mi", pool="adm"))
    fleet.wait_ready("flashvolume", "held", timeout=30)
    said = refused(fleet, "wipe", "srv-x", "XC", "--confirm", "XC")
    assert "SSD XC-1 holds FlashVolumes serving/held" in said
    found = fleet.get("flashvolume", "held")["spec"]["id"]
    assert "no orphan, it is FlashVolume serving/held" in refused(fleet, "wipe", "srv-x", found, "--confirm", found)
    assert found in simulation.partitions("srv-x")


def test_wipe_is_refused_by_a_server_that_is_paused(fleet, simulation, objects):
    with foreign(fleet, simulation, "e" * 16), paused(fleet, "srv-x"):
        assert "server srv-x is paused" in refused(fleet, "wipe", "srv-x", "XC", "--confirm", "XC")


def test_wipe_of_an_orphan_leaves_its_neighbour_alone(fleet, simulation, objects):
    fleet.apply(pool("adm", "XC"), volume("beside", "8Mi", pool="adm"))
    fleet.wait_ready("flashvolume", "beside", timeout=30)
    left = orphaned(fleet, "left", volume("left", "16Mi", pool="adm"), "srv-x")
    said = refused(fleet, "wipe", "srv-x", "XC", "--confirm", "XC")
    assert "holds FlashVolumes serving/beside" in said
    assert "1 orphan: kubectl flash adopt lists them" in flat(fleet.flash("plan", "srv-x"))
    assert f"To keep it: kubectl flash adopt srv-x {left['id']}" in fleet.flash(
        "wipe", "srv-x", left["id"], "--dry-run"
    )
    assert "is not the orphan's id" in refused(fleet, "wipe", "srv-x", left["id"], "--confirm", "XC")
    assert left["id"] in simulation.partitions("srv-x")

    assert "is wiped, and its 16Mi free" in flat(fleet.flash("wipe", "srv-x", left["id"], "--confirm", left["id"]))
    beside = fleet.get("flashvolume", "beside")["spec"]["id"]
    assert simulation.partitions("srv-x") == {beside}
    kinds = [type(step).__name__ for step in simulation.servers["srv-x"].history]
    assert kinds[-2:] == ["WipePartition", "RemovePartition"]
    assert "wipe" not in server_of(fleet, "srv-x")["spec"]


def test_an_orphan_is_adopted_with_its_data(fleet, simulation, objects):
    fleet.apply(pool("adm", "XC"))
    left = orphaned(fleet, "orphan", volume("orphan", "16Mi", pool="adm"), "srv-x")
    listed = json.loads(fleet.flash("adopt", "-o", "json"))
    mine = [item for item in listed["orphans"] if item["node"] == "srv-x"]
    assert mine == [{"node": "srv-x", "ssd": "XC-1", "id": left["id"], "bytes": 16 << 20, "was": []}]
    assert left["id"] in fleet.flash("adopt")
    assert "--name NAME -n NAMESPACE" in refused(fleet, "adopt", "srv-x", left["id"])
    named = ("adopt", "srv-x", left["id"], "--name", "again", "-n", NAMESPACE)
    assert "It would be FlashVolume serving/again of 16Mi in pool adm" in fleet.flash(*named, "--dry-run")
    assert "there is no FlashPool nope" in refused(fleet, *named, "--pool", "nope")
    assert fleet.get("flashvolume", "again") is None

    steps = len(simulation.servers["srv-x"].history)
    assert "It is Ready." in fleet.flash(*named)
    found = fleet.get("flashvolume", "again")
    assert found["spec"]["id"] == left["id"]
    assert condition(found, "Placed")["reason"] in ("Found", "Settled")
    (now,) = wait_ssd(fleet, "srv-x", "XC-1", lambda it: it["volumes"] == [{**left, "volume": "serving/again"}])[
        "volumes"
    ]
    assert (now["number"], now["start"], now["bytes"]) == (left["number"], left["start"], left["bytes"])
    assert len(simulation.servers["srv-x"].history) == steps, "nothing was written to the SSD"
    assert "FlashVolume serving/again has id" in refused(fleet, *named[:-3], "twice", "-n", NAMESPACE)


def test_plan_of_a_paused_server(fleet, simulation, objects):
    assert flat(fleet.flash("plan", "srv-x")) == "srv-x: nothing to do"
    with paused(fleet, "srv-x"):
        fleet.apply(pool("adm", "XC"), volume("later", "8Mi", pool="adm"))
        planned = lambda it: any(step["step"] == "CarvePartition" for step in it["status"].get("plan", ()))  # noqa: E731
        fleet.wait("flashnode", "srv-x", planned, namespace=None, timeout=30)
        said = flat(fleet.flash("plan", "srv-x"))
        assert "paused (spec.paused): the agent prints what it would do, and does nothing" in said
        assert "pending carve volume" in said
        assert "expects the table of this owner; number, id and place free" in said
        whole = json.loads(fleet.flash("plan", "srv-x", "-o", "json"))
        assert (whole["paused"], {step["state"] for step in whole["steps"]}) == (True, {"Pending"})
        why = flat(fleet.flash("why", "volume", "later", "-n", NAMESPACE))
        assert "paused (spec.paused): it changes nothing" in why
        assert "pending: carve volume" in why
    fleet.wait_ready("flashvolume", "later", timeout=30)
    fleet.wait("flashnode", "srv-x", lambda it: not it["status"].get("plan"), namespace=None, timeout=30)
    assert flat(fleet.flash("plan", "srv-x")) == "srv-x: nothing to do"


def test_why_a_volume_is_where_it_is(fleet, simulation, objects):
    fleet.apply(pool("adm", "XA", "XB", "YA", "NONE"))
    fleet.apply(volume("near", "8Mi", pool="adm", node="srv-x", gpu=GPU))
    ready = fleet.wait_ready("flashvolume", "near", timeout=30)
    fleet.apply(attachment("near-on-y", "near", "srv-y"))
    fleet.wait_ready("flashattachment", "near-on-y", timeout=30)
    fleet.apply(attachment("near-on-x", "near", "srv-x"))
    in_use = lambda it: condition(it, "Ready").get("reason") == "VolumeInUse"  # noqa: E731
    fleet.wait("flashattachment", "near-on-x", in_use, timeout=30)
    said = flat(fleet.flash("why", "volume", f"{NAMESPACE}/near"))
    assert said.startswith("serving/near: Ready, on SSD XA-1 of server srv-x")
    assert "adm allows namespace serving (spec.allowedNamespaces: every namespace); no quota" in said
    whole = json.loads(fleet.flash("why", "volume", "near", "-n", NAMESPACE, "-o", "json"))
    assert whole["volume"]["id"] == ready["spec"]["id"]
    assert whole["placement"]["ssd"] == "XA-1"
    assert whole["placement"]["distance"] == "PIX"
    assert (whole["server"]["answers"], whole["server"]["partition"]["id"]) == (True, ready["spec"]["id"])
    by_ssd = {item["ssd"]: item for item in whole["ssds"]}
    assert set(by_ssd) == {"XA-1", "XB-1", "YA-1"}
    assert (by_ssd["XA-1"]["here"], by_ssd["XA-1"]["best"], by_ssd["XA-1"]["own"]) == (True, True, True)
    assert (by_ssd["XB-1"]["whyNot"], by_ssd["XB-1"]["distance"]) == ("", "PHB")
    assert by_ssd["YA-1"]["whyNot"] == "it is not in server srv-x"
    assert [item["ssd"] for item in whole["refused"]] == ["NONE"]
    first, second = whole["attachments"]
    assert (first["name"], first["ready"], first["path"]) == ("near-on-y", True, "Fabric")
    assert second["reason"] == "VolumeInUse"
    assert whole["unread"] == []


def test_why_a_volume_is_nowhere(fleet, simulation, objects):
    fleet.apply(pool("adm", "XA", "YA"), pool("tight", "XB", quota={"perNamespace": "20Mi"}))
    fleet.apply(volume("huge", "100Ti", pool="adm"), volume("first", "16Mi", pool="tight"))
    fleet.wait_ready("flashvolume", "first", timeout=30)
    fleet.apply(volume("second", "16Mi", pool="tight"))
    for name, reason in (("huge", "NoSpace"), ("second", "QuotaExceeded")):
        fleet.wait("flashvolume", name, lambda it, r=reason: condition(it, "Ready").get("reason") == r, timeout=30)
    said = flat(fleet.flash("why", "volume", "huge", "-n", NAMESPACE))
    assert said.startswith("serving/huge: not Ready: NoSpace: 2 SSDs in pool adm; largest free extent")
    assert said.count("< 100Ti") == 4, "once in the condition, once as the outcome, once for each SSD"
    whole = json.loads(fleet.flash("why", "volume", "huge", "-n", NAMESPACE, "-o", "json"))
    assert all("< 100Ti" in item["whyNot"] for item in whole["ssds"])
    assert whole["placement"]["message"] == condition(fleet.get("flashvolume", "huge"), "Placed")["message"]

    whole = json.loads(fleet.flash("why", "volume", "second", "-n", NAMESPACE, "-o", "json"))
    assert whole["placement"]["reason"] == "QuotaExceeded"
    assert whole["pool"]["quota"] == {"perNamespace": "20Mi", "usedByOthers": "16Mi", "this": "16Mi"}
    assert [(item["ssd"], item["whyNot"]) for item in whole["ssds"]] == [("XB-1", "")]
    assert "there is no FlashVolume nope in namespace serving" in refused(
        fleet, "why", "volume", "nope", "-n", NAMESPACE
    )


def test_an_ssd_that_came_from_a_server_that_is_gone_is_adopted(fleet, simulation, objects):
    x, y = simulation.servers["srv-x"], simulation.servers["srv-y"]
    fleet.apply(pool("adm", "YB"), volume("moves", "8Mi", pool="adm"))
    ready = fleet.wait_ready("flashvolume", "moves", timeout=30)
    before = wait_ssd(fleet, "srv-y", "YB-1", lambda it: it["volumes"] and "volume" in it["volumes"][0])["volumes"][0]
    device, disk = y.ssds["YB-1"], y.disks["YB-1"]
    label = disk.label
    try:
        x.plug(ssd("YB", 4), disk)
        look(fleet, "srv-x")
        wait_ssd(fleet, "srv-x", "YB-1", lambda it: it.get("labelled") == "uuid-of-srv-y")
        assert "it still has it" in refused(fleet, "adopt", "srv-x", "YB", "--confirm", "YB")
        with silent(fleet, simulation, "srv-y"):
            y.unplug("YB-1")
            shown = flat(fleet.flash("adopt", "srv-x", "YB", "--dry-run"))
            assert "label of the server with system UUID uuid-of-srv-y: srv-y" in shown
            assert "The agent on server srv-y does not answer" in shown
            assert f"volume serving/moves {ready['spec']['id']}: 8Mi" in shown
            assert "--confirm XA is not" in refused(fleet, "adopt", "srv-x", "YB", "--confirm", "XA")
            assert x.disks["YB-1"].label == label
            assert "is server srv-x's now, with 1 volume" in fleet.flash("adopt", "srv-x", "YB", "--confirm", "YB")
            assert x.disks["YB-1"].label.system_uuid == "uuid-of-srv-x"
            assert not server_of(fleet, "srv-x")["spec"].get("adopt")
            moved = fleet.wait("flashvolume", "moves", lambda it: it["status"].get("nodeName") == "srv-x", timeout=30)
            assert condition(moved, "Placed")["reason"] == "Moved"
            fleet.wait_ready("flashvolume", "moves", timeout=30)
            (now,) = ssd_of(server_of(fleet, "srv-x"), "YB-1")["volumes"]
            assert (now["id"], now["start"], now["bytes"]) == (before["id"], before["start"], before["bytes"])
            fleet.delete("flashvolume", "moves")
    finally:
        if "YB-1" in x.ssds:
            x.unplug("YB-1")
        y.plug(device, DiskView("YB-1", GIB))
        look(fleet, "srv-x")
        look(fleet, "srv-y")
        wait_ssd(fleet, "srv-y", "YB-1", lambda it: it.get("state") == "Blank")


def test_purge_of_a_server_and_its_return(fleet, simulation, objects):
    fleet.apply(pool("adm", "YA"), volume("gone", "8Mi", pool="adm"))
    ready = fleet.wait_ready("flashvolume", "gone", timeout=30)
    volume_id = ready["spec"]["id"]
    fleet.apply(attachment("gone-on-x", "gone", "srv-x"))
    fleet.wait_ready("flashattachment", "gone-on-x", timeout=30)
    before = wait_ssd(fleet, "srv-y", "YA-1", lambda it: it["volumes"] and "volume" in it["volumes"][0])["volumes"][0]
    said = refused(fleet, "purge", "srv-y", "--confirm", "uuid-of-srv-y")
    assert "the agent on server srv-y answers" in said
    with silent(fleet, simulation, "srv-y"):
        shown = flat(fleet.flash("purge", "srv-y", "--dry-run"))
        assert "LOST WILL BE: 1 volume with 8Mi serving/gone: 8Mi on SSD YA-1" in shown
        assert "attachment serving/gone-on-x of gone at server srv-x" in shown
        assert "its partitions are orphans" in shown
        assert "--confirm srv-y is not" in refused(fleet, "purge", "srv-y", "--confirm", "srv-y")
        assert "purge" not in server_of(fleet, "srv-y")["spec"]

        done = flat(fleet.flash("purge", "srv-y", "--confirm", "uuid-of-srv-y"))
        assert "Server srv-y is purged" in done
        assert "Lost: serving/gone." in done
        assert fleet.get("flashnode", "srv-y", None) is None
        assert fleet.get("lease", "agent-srv-y", LEASES) is None
        lost = fleet.get("flashvolume", "gone")
        assert condition(lost, "Ready")["reason"] == "Lost"
        assert lost["status"]["lost"]["nodeName"] == "srv-y"
        why = flat(fleet.flash("why", "volume", "gone", "-n", NAMESPACE))
        assert why.startswith("serving/gone: not Ready: Lost: SSD YA-1 of server srv-y was declared lost for good")
        fleet.kubectl("delete", "flashattachment", "gone-on-x", "-n", NAMESPACE, "--timeout=30s")
        assert "there is no FlashNode srv-y" in refused(fleet, "purge", "srv-y", "--confirm", "uuid-of-srv-y")

    back = server_of(fleet, "srv-y")
    assert back["status"]["summary"]["orphans"] == 1
    (orphan,) = ssd_of(back, "YA-1")["volumes"]
    assert orphan == {key: value for key, value in before.items() if key != "volume"}
    assert "serving/gone" in fleet.flash("adopt"), "the list says whose it was"
    again = ("adopt", "srv-y", volume_id, "--name", "back", "-n", NAMESPACE)
    assert "it is lost; kubectl delete flashvolume gone -n serving first" in refused(fleet, *again)
    fleet.delete("flashvolume", "gone")
    assert volume_id in simulation.partitions("srv-y"), "a lost volume's object goes without its bytes"
    assert "It is Ready." in fleet.flash(*again)
    assert ssd_of(server_of(fleet, "srv-y"), "YA-1")["volumes"][0]["start"] == before["start"]


def test_a_purge_that_was_interrupted_is_finished_by_the_same_command(fleet, simulation, objects):
    with silent(fleet, simulation, "srv-y"):
        patch(fleet, "srv-y", {"purge": "uuid-of-srv-y"})
        purged = lambda it: condition(it, "Purged").get("status") == "True"  # noqa: E731
        fleet.wait("flashnode", "srv-y", purged, namespace=None, timeout=30)
        fleet.kubectl("delete", "flashnode", "srv-y", "--timeout=30s")
        assert "Lease is deleted too" in fleet.flash("purge", "srv-y", "--confirm", "uuid-of-srv-y")
        assert fleet.get("lease", "agent-srv-y", LEASES) is None
