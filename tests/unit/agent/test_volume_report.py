"""What an agent says of a volume, and of what is still to be done: a row a state."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from kubeflash.agent.jobs import Failure, Running
from kubeflash.agent.report import VolumeState, report_plan, report_volume
from kubeflash.agent.wishes import is_fresh, selected_by, volume_wishes
from kubeflash.api.v1alpha1 import FlashVolume, Ssd
from kubeflash.domain.carving import DiskView, Selection
from kubeflash.domain.disk import MIB, VOLUME_TYPE, Label, Partition
from kubeflash.domain.steps import CarvePartition, ClaimSsd, WipePartition
from support.objects import T0, make, pool, ssd_json, uid, volume
from support.simulated import Network, SimulatedServer, ssd

ID = uid(1001)
PART = Partition(2, 2 * MIB, 10 * MIB, ID, ID, VOLUME_TYPE)


def away(server: SimulatedServer) -> None:
    server.disks.clear()


def torn(server: SimulatedServer) -> None:
    """The partition is in the table, and the kernel does not show it."""
    server.disks["S-1"] = replace(server.disks["S-1"], shown=frozenset({1}))


def unreadable(server: SimulatedServer) -> None:
    server.disks["S-1"] = DiskView("S-1", server.disks["S-1"].bytes, trouble="EIO")


def another_s(server: SimulatedServer) -> None:
    server.disks["S-1"] = replace(server.disks["S-1"], label=Label("c", "another", "S-1"))


def empty(server: SimulatedServer) -> None:
    disk = server.disks["S-1"]
    assert disk.table is not None
    parts = tuple(part for part in disk.table.partitions if part.uuid != ID)
    server.disks["S-1"] = replace(disk, table=replace(disk.table, partitions=parts))


def as_it_is(server: SimulatedServer) -> None:
    """Nothing happened to it."""


def made(change: Callable[[SimulatedServer], None]) -> SimulatedServer:
    server = SimulatedServer("a", "10.0.0.1", Network(), [], [ssd("S", 1)])
    server.cluster_id = "c"
    owner = server.owner("S-1")
    server.apply(ClaimSsd("S-1", owner))
    server.apply(CarvePartition("S-1", owner.disk_guid, PART))
    change(server)
    return server


def one(status: dict[str, Any] | None = None, **more: Any) -> FlashVolume:
    granted = {"nodeName": "a", "ssd": "S-1", "granted": "10Mi", "grantedBy": "me"}
    return volume("v", 1, size="10Mi", status={**granted, **(status or {})}, **more)


RELEASED = {"status": {"release": True}, "deleting": True}
GROWING = {"status": {"granted": "20Mi", "bytes": 10 * MIB}}
WAS = {"status": {"bytes": 10 * MIB}}


@pytest.mark.parametrize(
    ("change", "item", "state", "carved", "words", "bytes_"),
    [
        (as_it_is, {}, {}, "True Carved", "partition 2, 10485760 bytes at 2097152", 10),
        (as_it_is, GROWING, {}, "True Growing", "it is growing", 10),
        (as_it_is, GROWING, {"cramped": "no room"}, "True CannotGrow", "no room", 10),
        (as_it_is, GROWING, {"failure": "I/O error"}, "True CannotGrow", "I/O error", 10),
        (as_it_is, {"status": {"bytes": 5 * MIB}}, {"unseen": True}, "True Carved", "", 5),
        (as_it_is, {}, {"failure": "old"}, "True Carved", "partition 2", 10),
        (torn, {}, {}, "False Carving", "it is being carved", None),
        (torn, WAS, {}, "False Unreachable", "its SSD is looked at", 10),
        (empty, {}, {}, "False Carving", "it is being carved", None),
        (empty, {}, {"failure": "I/O error"}, "False CarveFailed", "I/O error", None),
        (empty, {}, {"waiting": "it waits"}, "False Carving", "it waits", None),
        (empty, {}, {"failure": "I/O error", "waiting": "it waits"}, "False CarveFailed", "it waits; I/O error", None),
        (empty, {}, {"refused": "no"}, "False Refused", "no", None),
        (empty, WAS, {"missing": "gone"}, "False Missing", "gone. Its data is gone", 10),
        (unreadable, WAS, {"waiting": "EIO"}, "False Unreachable", "EIO", 10),
        (another_s, WAS, {"waiting": "of server another"}, "False Unreachable", "of server another", 10),
        (away, WAS, {"waiting": "not in this server"}, "False Unreachable", "not in this server", 10),
        (as_it_is, RELEASED, {}, "False Releasing", "it is wiped and removed", 10),
        (as_it_is, RELEASED, {"progress": "30% done"}, "False Releasing", "30% done", 10),
        (as_it_is, RELEASED, {"failure": "held", "progress": "30% done"}, "False Releasing", "held; 30% done", 10),
        (empty, {**RELEASED, "status": {"release": True, "bytes": 10 * MIB}}, {}, "False Released", "free", None),
        (away, {**RELEASED, "status": {"release": True, "bytes": 10 * MIB}}, {}, "False Releasing", "", 10),
        (unreadable, RELEASED, {}, "False Releasing", "", None),
        (empty, RELEASED, {"touched": True}, "False Releasing", "", None),
        (another_s, RELEASED, {}, "False Releasing", "", None),
        (as_it_is, {"deleting": True}, {}, "True Carved", "", 10),
    ],
)
def test_what_is_said_of_a_volume(change, item, state, carved, words, bytes_):
    written = report_volume(one(**item), made(change).observe(), VolumeState(**state), exported={}, now=T0)
    assert written is not None
    (condition,) = written.status["conditions"]
    assert f"{condition['status']} {condition['reason']}" == carved
    assert words in condition["message"]
    assert written.status.get("bytes") == (bytes_ * MIB if bytes_ is not None else None)
    assert ("device" in written.status) is (
        carved.startswith("True") or (carved == "False Releasing" and change is as_it_is)
    )
    assert written.status.get("refused") == ({"S-1": state["refused"]} if "refused" in state else None)
    known = {**one(**item).status.to_json(), **written.status}
    again = make(
        FlashVolume, "v", 1, spec=one(**item).spec.to_json(), status=known, deleting=item.get("deleting", False)
    )
    assert report_volume(again, made(change).observe(), VolumeState(**state), exported={}, now=T0) is None or not bytes_


def test_a_volume_is_new_until_its_bytes_were_seen_once():
    assert is_fresh(one())
    assert not is_fresh(one(WAS["status"]))
    assert not is_fresh(volume("v", 1, restored=True, status={"nodeName": "a", "ssd": "S-1"}))


@pytest.mark.parametrize(
    ("leader", "by", "confirmed"), [(None, "x", True), ("me", "me", True), ("me", "x", False), ("", "me", False)]
)
def test_a_grant_is_the_leader_s_or_is_waited_for(leader, by, confirmed):
    (wish,) = volume_wishes([one({"grantedBy": by})], {}, leader=leader)
    assert wish.confirmed is confirmed


def test_wishes_say_how_large_how_to_wipe_and_what_failed():
    pools = {"fast": pool("fast", 3, "S", wipe="Discard")}
    other = volume("w", 2, pool="gone", status={"nodeName": "a", "ssd": "S-1", "exported": {"x": {"uid": "u"}}})
    first, second = volume_wishes([one({"granted": "12Mi"}), other], pools, given_up={(ID, "S-1"): "I/O error"})
    assert (first.bytes, first.wipe, first.given_up, first.exported) == (12 * MIB, "Discard", "I/O error", False)
    assert (second.bytes, second.wipe, second.given_up, second.exported) == (100 * MIB, "Zero", "", True)
    assert volume_wishes([volume("u", 3)], pools) == [], "it has no place"
    (elsewhere,) = volume_wishes([one()], pools, given_up={(ID, "S-2"): "I/O error"})
    assert elsewhere.given_up == "", "another SSD of the server failed, not this one"
    (beside,) = volume_wishes([one()], pools, given_up={("S-1", "S-1"): "it cannot be claimed"})
    assert beside.given_up == "it cannot be claimed"


def test_an_agent_selects_as_the_controller_does():
    ssds = [Ssd.model_validate(ssd_json(serial, bus)) for serial, bus in (("A", 0x13), ("B", 0x23))]
    near = pool("near", 1, age=9, ssds={"all": True, "neighboursOnly": True})
    named = pool("named", 2, "A", "B", reserve="7%")
    found = selected_by(ssds, [named, near], None, {"A-1": 1})
    assert found == {"A-1": Selection("near", 0, thorough=True), "B-1": Selection("named", 7)}


# --- what is still to be done ---

CARVE, WIPE = CarvePartition("S-1", "guid", PART), WipePartition("T-1", "guid", replace(PART, uuid=uid(9), name="w"))


def jobs(under_way: list[Any], failures: dict[str, Failure]) -> Any:
    running = {step.subject: Running(step, 0.0, 1, 4) for step in under_way[:1]}
    return SimpleNamespace(
        under_way=lambda: under_way,
        running=running.get,
        words=lambda *names: next((failures[name].words for name in names if name in failures), ""),
    )


FAILED = Failure("I/O error", CARVE, OSError("I/O error"), 1, 0.0)


@pytest.mark.parametrize(
    ("steps", "under_way", "failures", "said"),
    [
        ([CARVE, WIPE], [], {}, [("CarvePartition", "Pending", ""), ("WipePartition", "Pending", "")]),
        ([CARVE, WIPE], [WIPE], {}, [("WipePartition", "Running", "25% done"), ("CarvePartition", "Pending", "")]),
        ([CARVE], [CARVE, WIPE], {}, [("CarvePartition", "Running", "25% done"), ("WipePartition", "Pending", "")]),
        ([CARVE], [], {ID: FAILED}, [("CarvePartition", "Failed", "I/O error")]),
        ([CARVE], [], {"S-1": FAILED}, [("CarvePartition", "Failed", "I/O error")]),
        ([CARVE], [CARVE], {ID: FAILED}, [("CarvePartition", "Running", "25% done")]),
        ([], [], {}, []),
    ],
)
def test_a_plan_says_what_runs_what_waits_and_what_failed(steps, under_way, failures, said):
    found = report_plan(steps, {}, jobs(under_way, failures))
    assert [(item.step, item.state, item.message) for item in found] == said
    assert all(item.what and item.expects for item in found)


def test_a_plan_says_what_an_admin_asked_for_and_does_not_get_and_is_never_too_long():
    (denied,) = report_plan([], {"S-1": "it holds volumes"}, jobs([], {}))
    assert (denied.state, denied.what, denied.message) == ("Failed", "wipe S-1", "it holds volumes")
    assert len(report_plan([CARVE] * 2000, {}, jobs([], {}))) == 1024
