"""What the controller writes for volumes, from one snapshot."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import timedelta

import pytest

from kubeflash.api.v1alpha1 import FINALIZER, FlashNodeSpec, FlashVolume
from kubeflash.controller.volumes import reconcile_volume
from kubeflash.domain.cluster import Cluster
from kubeflash.domain.names import export_identity
from kubeflash.kube.writes import Apply, Patch
from support.objects import T0, attachment, gpu_json, make, node, pool, ssd_json, uid, volume

GPU, NEAR_SSD, FAR_SSD = 0x12, ssd_json("NEAR", 0x13), ssd_json("FAR", 0x23)
GPU_ADDRESS = "0000:12:00.0"


def snapshot(*volumes, attachments=(), pools=None, ssds=(NEAR_SSD, FAR_SSD), silent=(), **more) -> Cluster:
    servers = (node("gpu-a", 1, [gpu_json(GPU)], list(ssds)), node("gpu-b", 2, [], []))
    return Cluster(
        now=T0,
        answering=frozenset({"gpu-a", "gpu-b"}) - frozenset(silent),
        pools={item.metadata.name: item for item in (pools if pools is not None else [pool("fast", 3, "NEAR", "FAR")])},
        nodes={item.metadata.name: item for item in servers},
        volumes={item.key: item for item in volumes},
        attachments={item.key: item for item in attachments},
        **more,
    )


def conditions(write: Apply) -> dict[str, dict]:
    return {item["type"]: item for item in write.status["conditions"]}


def only(item: FlashVolume, snap: Cluster) -> Apply:
    writes = reconcile_volume(item, snap)
    (write,) = writes
    assert isinstance(write, Apply)
    return write


def test_a_new_volume_is_placed_then_gets_its_id_and_its_finalizer_in_one_write():
    new = make(FlashVolume, "v", 10, spec={"pool": "fast", "size": "1Mi"}, finalized=False)
    write = only(new, snapshot(new))
    assert re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", write.status["id"])
    assert write.status["nodeName"] == "gpu-a"
    placed = make(FlashVolume, "v", 10, spec={"pool": "fast", "size": "1Mi"}, status=write.status, finalized=False)
    (patch,) = reconcile_volume(placed, snapshot(placed))
    assert isinstance(patch, Patch)
    assert patch.body["metadata"]["finalizers"] == [FINALIZER]
    assert patch.body["spec"]["id"] == write.status["id"]


def test_an_id_from_a_backup_is_kept():
    restored = make(FlashVolume, "v", 10, spec={"pool": "fast", "size": "1Mi", "id": uid(7)}, finalized=False)
    (write,) = reconcile_volume(restored, snapshot(restored))
    assert write.body["spec"]["id"] == uid(7)


def test_near_a_gpu_means_the_nearest_ssd_of_the_pool_and_says_how_near():
    item = volume("v", 10, spec={"near": {"node": "gpu-a", "gpu": GPU_ADDRESS}})
    write = only(item, snapshot(item))
    assert (write.status["nodeName"], write.status["ssd"], write.status["distance"]) == ("gpu-a", "NEAR-1", "PIX")
    assert conditions(write)["Neighbour"]["status"] == "True"
    assert conditions(write)["Placed"]["status"] == "True"
    assert conditions(write)["Ready"]["reason"] == "Carving"


def test_the_nearest_that_is_no_neighbour_is_taken_and_said_so():
    item = volume("v", 10, spec={"near": {"node": "gpu-a", "gpu": GPU_ADDRESS}})
    write = only(item, snapshot(item, pools=[pool("fast", 3, "FAR")]))
    assert write.status["distance"] == "PHB"
    assert conditions(write)["Neighbour"]["status"] == "False"


FOREIGN = ssd_json("NEAR", 0x13, state="Foreign", reason="not blank: ext4 file system")


@pytest.mark.parametrize(
    ("spec", "more", "reason", "words"),
    [
        ({"pool": "slow"}, {}, "PoolNotFound", "there is no FlashPool slow; there are: fast"),
        ({"near": {"node": "gpu-z"}}, {}, "NodeNotFound", "there is no FlashNode gpu-z; there are: gpu-a, gpu-b"),
        (
            {"near": {"node": "gpu-a", "gpu": "0000:99:00.0"}},
            {},
            "GPUNotFound",
            "server gpu-a has no GPU at 0000:99:00.0; it has: 0000:12:00.0",
        ),
        ({"size": "2Gi"}, {}, "NoSpace", "2 SSDs in pool fast; largest free extent 1021Mi < 2Gi"),
        (
            {"near": {"node": "gpu-a", "gpu": GPU_ADDRESS, "maxDistance": "PXB"}},
            {"pools": [pool("fast", 3, "FAR")]},
            "NoSuitableSSD",
            "0 within PXB of GPU gpu-a/0000:12:00.0",
        ),
        ({"near": {"node": "gpu-b"}}, {}, "NoSuitableSSD", "0 on server gpu-b"),
        ({}, {"ssds": [FOREIGN]}, "PoolEmpty", "kubectl describe flashpool fast"),
        ({}, {"pools": [pool("fast", 3, "NEAR", allowedNamespaces=None)]}, "NamespaceNotAllowed", "only namespace k"),
        ({}, {"silent": ["gpu-a"]}, "NoSuitableSSD", "0 on servers whose agent answers"),
    ],
)
def test_what_cannot_be_placed_stays_and_says_what_would_have_to_change(spec, more, reason, words):
    item = volume("v", 10, spec=spec)
    write = only(item, snapshot(item, **more))
    found = conditions(write)
    assert "nodeName" not in write.status
    assert found["Placed"]["reason"] == reason
    assert words in found["Placed"]["message"]
    assert found["Ready"]["status"] == "False"
    assert words in found["Ready"]["message"]


def test_a_refused_placement_is_made_anew_elsewhere():
    status = {"nodeName": "gpu-a", "ssd": "NEAR-1", "refused": {"NEAR-1": "not blank"}}
    item = volume("v", 10, status=status)
    write = only(item, snapshot(item, refusals={item.metadata.uid: {"NEAR-1": "not blank"}}))
    assert write.status["ssd"] == "FAR-1"
    assert write.guarded, "a controller that slept must not write a stale placement"


def test_when_every_server_refused_it_says_their_words():
    item = volume("v", 10, status={"nodeName": "gpu-a", "ssd": "NEAR-1"})
    refusals = {item.metadata.uid: {"NEAR-1": "not blank", "FAR-1": "somebody added partition 3"}}
    write = only(item, snapshot(item, refusals=refusals))
    assert "nodeName" not in write.status
    assert "not blank; somebody added partition 3" in conditions(write)["Placed"]["message"]


CARVED = {"type": "Carved", "status": "True", "reason": "Carved", "lastTransitionTime": T0.isoformat()}


def carved(name: str, number: int, **more) -> FlashVolume:
    status = {"nodeName": "gpu-a", "ssd": "NEAR-1", "conditions": [CARVED], **more.pop("status", {})}
    return volume(name, number, status=status, **more)


def test_a_carved_volume_is_ready_and_then_nothing_is_written_any_more():
    item = carved("v", 10)
    write = only(item, snapshot(item))
    assert conditions(write)["Ready"]["status"] == "True"
    merged = {**item.status.to_json(), **write.status}
    merged["conditions"] = [*write.status["conditions"], CARVED]
    again = make(FlashVolume, "v", 10, spec=item.spec.to_json(), status=merged)
    assert reconcile_volume(again, snapshot(again)) == []


def test_bytes_of_volumes_that_are_placed_but_not_carved_yet_are_taken():
    first = volume("a", 10, size="900Mi", status={"nodeName": "gpu-a", "ssd": "NEAR-1"})
    second = volume("b", 11, size="900Mi", spec={"near": {"node": "gpu-a", "ssd": "NEAR-1"}})
    write = only(second, snapshot(first, second))
    assert conditions(write)["Placed"]["reason"] == "NoSpace"


FABRIC = {
    "path": "Fabric",
    "fabric": {"volumeId": uid(1010), "nqn": "n", "hostNQN": "h", "hostID": "i"},
    "keys": {"storage": "c2E=", "storageKey": "a", "consumer": "c2E=", "consumerKey": "b"},
}


def test_an_export_is_wanted_for_the_attachment_on_another_server():
    item, att = carved("v", 10), attachment("v-on-b", 20, "v", "gpu-b", status=FABRIC)
    write = only(item, snapshot(item, attachments=[att]))
    wanted = write.status["wanted"]["v-on-b"]
    identity = export_identity(uid(20))
    assert (wanted["nqn"], wanted["hostNQN"], wanted["hostID"]) == (identity.nqn, identity.host_nqn, identity.host_id)
    assert wanted["sealedKeys"] == "c2E="


def test_the_second_attachment_gets_no_export_while_the_first_one_is_there():
    item = carved("v", 10)
    first = attachment("one", 20, "v", "gpu-b", status=FABRIC, age=10)
    second = attachment("two", 21, "v", "gpu-c", status=FABRIC, age=5)
    write = only(item, snapshot(item, attachments=[second, first]))
    assert set(write.status["wanted"]) == {"one"}


@pytest.mark.parametrize(("silence", "kept"), [(45.0, True), (91.0, False)])
def test_an_agent_that_misses_a_beat_is_no_consumer_that_is_gone(silence, kept):
    """Deleted an hour ago and refused since, as its device is in use; then the agent is restarted."""
    att = attachment("one", 20, "v", "gpu-b", status=disconnecting("InUse"), deleting=True)
    wanted = {"uid": uid(20), "nqn": "n", "hostNQN": "h", "hostID": "i", "sealedKeys": "k", "ports": "1-2"}
    item = carved("v", 10, status={"wanted": {"one": wanted}})
    snap = snapshot(item, attachments=[att], silent=["gpu-b"])
    write = only(item, replace(snap, now=T0 + timedelta(seconds=3600), silence={"gpu-b": silence}))
    assert ("wanted" in write.status) is kept


def test_a_volume_that_was_put_into_its_consumer_is_not_exported_any_more():
    local = attachment("one", 20, "v", "gpu-a", status={"path": "Local"})
    wanted = {"uid": uid(20), "nqn": "n", "hostNQN": "h", "hostID": "i", "sealedKeys": "k", "ports": "1-2"}
    item = carved("v", 10, status={"wanted": {"one": wanted}})
    assert "wanted" not in only(item, snapshot(item, attachments=[local])).status


def test_a_shared_volume_is_exported_to_all_that_have_it():
    item = carved("v", 10)
    spec = item.spec.model_copy(update={"sharing": "Shared"})
    item = item.model_copy(update={"spec": spec})
    first = attachment("one", 20, "v", "gpu-b", status=FABRIC, age=10)
    second = attachment("two", 21, "v", "gpu-c", status=FABRIC, age=5)
    local = attachment("here", 22, "v", "gpu-a", status={"path": "Local"}, age=5)
    write = only(item, snapshot(item, attachments=[second, first, local]))
    assert {name: export["shared"] for name, export in write.status["wanted"].items()} == {"one": True, "two": True}


def test_an_export_is_made_as_the_attachment_was_meant_whatever_its_pool_says_now():
    item = carved("v", 10)
    open_ = {**FABRIC, "fabric": {**FABRIC["fabric"], "authentication": "None"}}
    bare = attachment("one", 20, "v", "gpu-b", status={name: value for name, value in open_.items() if name != "keys"})
    wanted = only(item, snapshot(item, attachments=[bare])).status["wanted"]["one"]
    assert (wanted["authentication"], wanted["sealedKeys"]) == ("None", "")


def disconnecting(reason: str) -> dict:
    condition = {"type": "Connected", "status": "False", "reason": reason, "lastTransitionTime": T0.isoformat()}
    return {**FABRIC, "conditions": [condition]}


@pytest.mark.parametrize(
    ("reason", "later", "silent", "known", "kept"),
    [
        ("Disconnected", 0, False, True, False),
        ("Disconnecting", 0, False, True, True),
        ("Disconnecting", 61, False, True, False),
        ("Connected", 3600, False, True, True),
        ("InUse", 3600, False, True, True),
        ("Connected", 0, True, True, True),
        ("Connected", 91, True, True, False),
        ("InUse", 91, True, True, False),
        ("InUse", 89, True, True, True),
        ("InUse", 3600, False, False, True),
    ],
)
def test_a_consumer_that_answers_is_asked_and_a_silent_one_is_fenced_without_its_word(
    reason, later, silent, known, kept
):
    """The export of a deleted attachment stays until its consumer left, or had its time."""
    att = attachment("one", 20, "v", "gpu-b", status=disconnecting(reason), deleting=True)
    wanted = {"uid": uid(20), "nqn": "n", "hostNQN": "h", "hostID": "i", "sealedKeys": "k", "ports": "1-2"}
    item = carved("v", 10, status={"wanted": {"one": wanted}})
    snap = snapshot(item, attachments=[att], silent=["gpu-b"] if silent else [])
    nodes = snap.nodes if known else {name: node for name, node in snap.nodes.items() if name != "gpu-b"}
    leaving = {uid(20): float(later)} if reason == "Disconnecting" else {}
    write = only(item, replace(snap, now=T0 + timedelta(seconds=later), nodes=nodes, leaving=leaving))
    assert ("wanted" in write.status) is kept


def test_an_export_once_wanted_outlives_a_disk_that_is_away_for_a_while():
    wanted = {"uid": uid(20), "nqn": "n", "hostNQN": "h", "hostID": "i", "sealedKeys": "k", "ports": "1-2"}
    away = {**CARVED, "status": "False", "reason": "Carving"}
    item = volume(
        "v", 10, status={"nodeName": "gpu-a", "ssd": "NEAR-1", "wanted": {"one": wanted}, "conditions": [away]}
    )
    att = attachment("one", 20, "v", "gpu-b", status=FABRIC)
    for pools in (None, []):
        assert only(item, snapshot(item, attachments=[att], pools=pools)).status["wanted"]["one"]["nqn"] == "n"


def test_a_volume_that_was_carved_is_never_placed_elsewhere_whatever_its_server_says():
    settled = {**CARVED, "type": "Placed", "reason": "Settled"}
    lost = {**CARVED, "status": "False", "reason": "Refused"}
    for conditions_now in ([CARVED], [settled, lost]):
        item = volume("v", 10, status={"nodeName": "gpu-a", "ssd": "NEAR-1", "conditions": conditions_now})
        write = only(item, snapshot(item, refusals={item.metadata.uid: {"NEAR-1": "cannot be read"}}))
        assert write.status["ssd"] == "NEAR-1"
        assert conditions(write)["Placed"]["reason"] == "Settled"


def test_a_copy_of_a_volume_s_object_does_not_get_its_bytes():
    original = carved("v", 10)
    copy = make(FlashVolume, "copy", 11, spec={"pool": "fast", "size": "100Mi", "id": original.spec.id}, age=99)
    write = only(copy, snapshot(original, copy))
    assert "nodeName" not in write.status
    assert conditions(write)["Placed"]["reason"] == "IdTaken"
    assert "serving/v has id" in conditions(write)["Placed"]["message"]
    assert only(original, snapshot(original, copy)).status["nodeName"] == "gpu-a"


def test_a_restored_volume_is_found_again_where_its_bytes_are():
    restored = volume("v", 10, restored=True)
    extent = {"id": restored.spec.id, "number": 2, "start": 2 << 20, "bytes": 100 << 20}
    holder = ssd_json("FAR", 0x23, state="Claimed", volumes=[extent])
    write = only(restored, snapshot(restored, ssds=[NEAR_SSD, holder]))
    assert (write.status["nodeName"], write.status["ssd"]) == ("gpu-a", "FAR-1")


def test_deletion_waits_for_attachments_and_says_which():
    item = carved("v", 10, deleting=True)
    att = attachment("one", 20, "v", "gpu-b", status=FABRIC)
    write = only(item, snapshot(item, attachments=[att]))
    assert conditions(write)["Ready"]["reason"] == "Attached"
    assert "one on server gpu-b" in conditions(write)["Ready"]["message"]
    assert "release" not in write.status, "the server must not wipe what is attached"
    assert "release" not in only(item, snapshot(item, attachments=[attachment("one", 20, "v", "gpu-a")])).status


def test_release_is_said_once_nothing_is_attached_any_more():
    item = carved("v", 10, deleting=True)
    assert only(item, snapshot(item)).status["release"] is True


def test_the_finalizer_goes_when_the_server_says_released_and_not_before():
    released = {**CARVED, "status": "False", "reason": "Released"}
    busy = carved("v", 10, deleting=True)
    assert conditions(only(busy, snapshot(busy)))["Ready"]["reason"] == "Releasing"
    done = volume("v", 10, deleting=True, status={"nodeName": "gpu-a", "ssd": "NEAR-1", "conditions": [released]})
    (write,) = reconcile_volume(done, snapshot(done))
    assert isinstance(write, Patch)
    assert write.body["metadata"]["finalizers"] == []


def test_a_volume_that_was_never_placed_goes_at_once():
    item = volume("v", 10, deleting=True)
    (write,) = reconcile_volume(item, snapshot(item))
    assert write.body["metadata"]["finalizers"] == []


def test_deletion_on_a_server_that_is_silent_says_so():
    item = carved("v", 10, deleting=True)
    write = only(item, snapshot(item, silent=["gpu-a"]))
    assert conditions(write)["Ready"]["reason"] == "AgentSilent"


@pytest.mark.parametrize(
    ("lost", "there", "silent", "is_lost"),
    [
        (["NEAR-1"], False, False, True),
        (["NEAR-1"], True, False, False),
        (["NEAR-1"], True, True, True),
        ([], False, False, False),
    ],
)
def test_an_admin_s_word_that_an_ssd_is_lost_makes_its_volumes_lost_unless_a_server_has_it(
    lost, there, silent, is_lost
):
    item = carved("v", 10)
    extent = {"id": item.spec.id, "number": 2, "start": 2 << 20, "bytes": 100 << 20}
    ssds = [FAR_SSD, *([ssd_json("NEAR", 0x13, state="Foreign", volumes=[extent])] if there else [])]
    snap = snapshot(item, ssds=ssds, silent=["gpu-a"] if silent else [])
    server = snap.nodes["gpu-a"].model_copy(update={"spec": FlashNodeSpec(lost=lost)})
    write = only(item, replace(snap, nodes={**snap.nodes, "gpu-a": server}))
    assert ("lost" in write.status) is is_lost
    assert ("nodeName" in write.status) is not is_lost
    if is_lost:
        assert write.status["lost"]["ssd"] == "NEAR-1"
        assert conditions(write)["Ready"]["reason"] == "Lost"


def test_of_copies_that_were_restored_beside_the_original_nobody_gets_the_bytes():
    original = volume("v", 10, restored=True)
    copy = make(FlashVolume, "copy", 11, spec={"pool": "fast", "size": "100Mi", "id": original.spec.id}, age=99)
    extent = {"id": original.spec.id, "number": 2, "start": 2 << 20, "bytes": 100 << 20}
    snap = snapshot(original, copy, ssds=[ssd_json("NEAR", 0x13, state="Claimed", volumes=[extent])])
    for item in (original, copy):
        write = only(item, snap)
        assert conditions(write)["Placed"]["reason"] == "IdTaken"
        assert "nodeName" not in write.status


def test_a_lost_volume_keeps_its_id_from_a_copy_until_it_is_deleted():
    gone = {"nodeName": "gpu-a", "ssd": "NEAR-1", "since": T0.isoformat()}
    lost = volume("v", 10, restored=True, status={"lost": gone})
    copy = make(FlashVolume, "copy", 11, spec={"pool": "fast", "size": "100Mi", "id": lost.spec.id})
    extent = {"id": lost.spec.id, "number": 2, "start": 2 << 20, "bytes": 100 << 20}
    ssds = [ssd_json("NEAR", 0x13, state="Claimed", volumes=[extent])]
    assert conditions(only(copy, snapshot(lost, copy, ssds=ssds)))["Placed"]["reason"] == "IdTaken"
    assert only(copy, snapshot(copy, ssds=ssds)).status["ssd"] == "NEAR-1"


def test_a_placement_that_was_made_for_another_id_does_not_stand():
    status = {"id": uid(7), "nodeName": "gpu-a", "ssd": "NEAR-1", "granted": "100Mi", "grantedBy": ""}
    thief = volume("thief", 11, status=status)  # spec.id is not the one that the controller chose
    assert thief.spec.id != uid(7)
    write = only(thief, snapshot(thief))
    assert "nodeName" not in write.status
    assert conditions(write)["Placed"]["reason"] == "NotFound"


def test_growth_that_a_former_leader_granted_is_confirmed_by_the_one_that_leads():
    status = {"granted": "200Mi", "grantedBy": "former", "bytes": 100 << 20}
    item = carved("v", 10, size="200Mi", status=status)
    extent = {"id": item.spec.id, "number": 2, "start": 2 << 20, "bytes": 100 << 20}
    snap = snapshot(item, ssds=[ssd_json("NEAR", 0x13, state="Claimed", volumes=[extent])])
    write = only(item, replace(snap, leader="me"))
    assert (write.status["granted"], write.status["grantedBy"]) == ("200Mi", "me")
    done = carved("v", 10, size="200Mi", status={**status, "bytes": 200 << 20})
    grown = [{**extent, "bytes": 200 << 20}]
    settled = replace(snapshot(done, ssds=[ssd_json("NEAR", 0x13, state="Claimed", volumes=grown)]), leader="me")
    assert only(done, settled).status["grantedBy"] == "former", "what is there needs nobody's word"


def test_a_volume_on_a_paused_server_says_that_it_is_paused():
    item = volume("v", 10, status={"nodeName": "gpu-a", "ssd": "NEAR-1", "grantedBy": ""})
    snap = snapshot(item)
    server = snap.nodes["gpu-a"].model_copy(update={"spec": FlashNodeSpec(paused=True)})
    write = only(item, replace(snap, nodes={**snap.nodes, "gpu-a": server}))
    assert conditions(write)["Ready"]["reason"] == "Paused"
