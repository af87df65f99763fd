"""What the controller writes for attachments: local or fabric, keys made once, refusals, the end."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from kubeflash.api.v1alpha1 import FlashAttachment, FlashVolume
from kubeflash.controller.attachments import reconcile_attachment
from kubeflash.controller.events import events_of, farewell
from kubeflash.controller.nodes import reconcile_node
from kubeflash.domain.cluster import Cluster
from kubeflash.domain.names import export_identity
from kubeflash.domain.sealing import SealBroken, generate_private_key, public_key, unseal
from kubeflash.kube.writes import Apply, Patch
from support.objects import T0, attachment, node, pool, uid, volume

KEY_A, KEY_B = generate_private_key(), generate_private_key()
CARVED = {"type": "Carved", "status": "True", "reason": "Carved", "lastTransitionTime": T0.isoformat()}
READY = {**CARVED, "type": "Ready"}


def carved(**status):
    return volume("v", 10, status={"nodeName": "gpu-a", "ssd": "S-1", "conditions": [READY, CARVED], **status})


def snapshot(
    *attachments: FlashAttachment, volumes=None, silent=(), lacking=(), later=0, export=None, security=None, **more
) -> Cluster:
    servers = (
        node("gpu-a", 1, [], [], public_key(KEY_A), lacking),
        node("gpu-b", 2, [], [], public_key(KEY_B)),
    )
    return Cluster(
        now=T0 + timedelta(seconds=later),
        answering=frozenset({"gpu-a", "gpu-b"}) - frozenset(silent),
        pools={"fast": pool("fast", 3, "S", export=export or {}, security=security or {})},
        nodes={item.metadata.name: item for item in servers},
        volumes={item.key: item for item in (volumes if volumes is not None else [carved()])},
        attachments={item.key: item for item in attachments},
        **more,
    )


def only(item: FlashAttachment, snap: Cluster) -> Apply:
    (write,) = reconcile_attachment(item, snap)
    assert isinstance(write, Apply)
    return write


def ready(write: Apply) -> dict:
    return next(item for item in write.status["conditions"] if item["type"] == "Ready")


def test_on_the_volume_s_own_server_it_is_local_without_any_fabric():
    item = attachment("a", 20, "v", "gpu-a")
    write = only(item, snapshot(item))
    assert write.status["path"] == "Local"
    assert write.status["volumeId"] == uid(1010)
    assert "keys" not in write.status


def test_elsewhere_it_gets_an_identity_of_its_own_and_keys_that_only_the_two_servers_can_read():
    item = attachment("a", 20, "v", "gpu-b")
    write = only(item, snapshot(item))
    assert write.status["path"] == "Fabric"
    assert write.status["fabric"]["nqn"] == export_identity(uid(20)).nqn
    keys = write.status["keys"]
    assert unseal(keys["storage"], KEY_A) == unseal(keys["consumer"], KEY_B)
    with pytest.raises(SealBroken):
        unseal(keys["storage"], KEY_B)
    with pytest.raises(SealBroken):
        unseal(keys["consumer"], KEY_A)
    assert write.guarded, "of two controllers only one's keys may be used"


def test_keys_are_made_once():
    item = attachment("a", 20, "v", "gpu-b")
    first = only(item, snapshot(item)).status
    again = attachment("a", 20, "v", "gpu-b", status=first)
    assert reconcile_attachment(again, snapshot(again)) == []


def test_portals_come_from_the_export_of_this_very_attachment_once_it_is_ready():
    item = attachment("a", 20, "v", "gpu-b")
    first = only(item, snapshot(item)).status
    again = attachment("a", 20, "v", "gpu-b", status=first)
    portal = "tcp://10.0.0.1:4420"
    for exported, expected in (
        ({"uid": uid(20), "portals": [portal], "ready": False}, None),
        ({"uid": uid(99), "portals": [portal], "ready": True}, None),
        ({"uid": uid(20), "portals": [portal], "ready": True}, [portal]),
    ):
        writes = reconcile_attachment(again, snapshot(again, volumes=[carved(exported={"a": exported})]))
        portals = writes[0].status["fabric"]["portals"] if writes else None
        assert portals == expected


def test_a_server_that_lost_its_private_key_is_named():
    item = attachment("a", 20, "v", "gpu-b")
    first = only(item, snapshot(item)).status
    first["keys"]["consumerKey"] = "another"
    again = attachment("a", 20, "v", "gpu-b", status=first)
    words = ready(only(again, snapshot(again)))
    assert words["reason"] == "KeysLost"
    assert "gpu-b" in words["message"]


@pytest.mark.parametrize(
    ("item", "volumes", "reason"),
    [
        (attachment("a", 20, "nope", "gpu-b"), None, "VolumeNotFound"),
        (attachment("a", 20, "v", "gpu-z"), None, "NodeNotFound"),
        (attachment("a", 20, "v", "gpu-b"), [volume("v", 10)], "VolumeNotReady"),
        (attachment("a", 20, "v", "gpu-b"), [volume("v", 10, deleting=True)], "VolumeDeleting"),
    ],
)
def test_what_is_missing_is_said(item, volumes, reason):
    assert ready(only(item, snapshot(item, volumes=volumes)))["reason"] == reason


def test_one_server_at_a_time_and_the_one_that_has_it_is_named():
    first, second = attachment("a", 20, "v", "gpu-b", age=10), attachment("b", 21, "v", "gpu-a", age=5)
    words = ready(only(second, snapshot(first, second)))
    assert words["reason"] == "VolumeInUse"
    assert "gpu-b by a" in words["message"]


def connected(reason: str) -> dict:
    status = "True" if reason == "Connected" else "False"
    return {
        "type": "Connected",
        "status": status,
        "reason": reason,
        "message": "m",
        "lastTransitionTime": T0.isoformat(),
    }


@pytest.mark.parametrize(("reason", "gone"), [("Disconnected", True), ("InUse", False), ("Connected", False)])
def test_a_local_attachment_ends_when_its_server_says_that_nobody_holds_it(reason, gone):
    status = {"path": "Local", "volumeId": uid(1010), "conditions": [connected(reason)]}
    item = attachment("a", 20, "v", "gpu-a", status=status, deleting=True)
    (write,) = reconcile_attachment(item, snapshot(item))
    assert isinstance(write, Patch) is gone


def test_a_fabric_attachment_ends_only_when_its_export_is_gone_too():
    status = {"path": "Fabric", "conditions": [connected("Disconnected")]}
    item = attachment("a", 20, "v", "gpu-b", status=status, deleting=True)
    busy = carved(exported={"a": {"uid": uid(20), "portals": ["tcp://10.0.0.1:4420"]}})
    assert isinstance(reconcile_attachment(item, snapshot(item, volumes=[busy]))[0], Apply)
    assert isinstance(reconcile_attachment(item, snapshot(item))[0], Patch)


def test_one_that_never_got_anything_ends_at_once():
    item = attachment("a", 20, "v", "gpu-b", deleting=True)
    assert isinstance(reconcile_attachment(item, snapshot(item))[0], Patch)


def test_a_local_attachment_ends_once_its_server_was_purged_and_its_volume_is_gone():
    status = {"path": "Local", "volumeId": uid(1)}
    item = attachment("v-on-x", 20, "v", "gone", deleting=True, status=status)
    (write,) = reconcile_attachment(item, snapshot(item, volumes=[]))
    assert isinstance(write, Patch)
    assert write.body["metadata"]["finalizers"] == []


# ---- what is silent is not waited for for ever


EXPORTED = {"a": {"uid": uid(20), "portals": ["tcp://10.0.0.1:4420"]}}


@pytest.mark.parametrize(
    ("silent", "later", "gone"),
    [((), 3600, False), (("gpu-a",), 60, False), (("gpu-a",), 91, True), (("gpu-a", "gpu-b"), 91, True)],
)
def test_a_storage_server_that_is_dead_is_not_waited_for(silent, later, gone):
    status = {"path": "Fabric", "conditions": [connected("Connected" if "gpu-b" in silent else "Disconnected")]}
    item = attachment("a", 20, "v", "gpu-b", status=status, deleting=True)
    snap = snapshot(item, volumes=[carved(exported=EXPORTED)], silent=silent, later=later)
    (write,) = reconcile_attachment(item, snap)
    assert isinstance(write, Patch) is gone
    if gone:
        assert "takes the export for gpu-b down when it is back" in farewell(item, snap)["note"]


def test_whoever_has_the_volume_next_waits_until_the_export_of_before_is_gone():
    for where in ("gpu-a", "gpu-b"):
        item = attachment("next", 21, "v", where)
        words = ready(only(item, snapshot(item, volumes=[carved(exported=EXPORTED)])))
        assert (words["reason"], "attachment a" in words["message"]) == ("Fencing", True)


def test_a_local_attachment_of_a_server_that_is_dead_ends_after_a_while():
    status = {"path": "Local", "volumeId": uid(1010), "conditions": [connected("Connected")]}
    item = attachment("a", 20, "v", "gpu-a", status=status, deleting=True)
    assert isinstance(reconcile_attachment(item, snapshot(item, silent=["gpu-a"], later=60))[0], Apply)
    assert isinstance(reconcile_attachment(item, snapshot(item, silent=["gpu-a"], later=91))[0], Patch)


def test_a_fence_that_hangs_is_said_with_what_it_hangs_in():
    status = {"path": "Fabric", "conditions": [connected("Disconnected")]}
    item = attachment("a", 20, "v", "gpu-b", status=status, deleting=True)
    for words, reason in (("", "Fencing"), ("for more than 30 s now: disable", "FenceStuck")):
        stuck = {"a": {**EXPORTED["a"], "fencing": True, "message": words}}
        assert ready(only(item, snapshot(item, volumes=[carved(exported=stuck)])))["reason"] == reason


# ---- sharing and modes


def shared(**status) -> FlashVolume:
    found = carved(**status)
    return found.model_copy(update={"spec": found.spec.model_copy(update={"sharing": "Shared"})})


def test_a_shared_volume_is_attached_at_several_servers_but_once_at_each():
    first, second = attachment("a", 20, "v", "gpu-b", age=10), attachment("b", 21, "v", "gpu-a", age=5)
    third = attachment("c", 22, "v", "gpu-b", age=1)
    snap = snapshot(first, second, third, volumes=[shared()])
    assert only(first, snap).status["path"] == "Fabric"
    assert only(second, snap).status["path"] == "Local"
    words = ready(only(third, snap))
    assert (words["reason"], "by attachment a" in words["message"]) == ("AlreadyAttached", True)


def test_the_local_device_of_a_shared_volume_is_not_made_read_only_under_others():
    item = attachment("a", 20, "v", "gpu-a")
    item = item.model_copy(update={"spec": item.spec.model_copy(update={"read_only": True})})
    assert ready(only(item, snapshot(item, volumes=[shared()])))["reason"] == "ReadOnlyRefused"
    assert only(item, snapshot(item)).status["path"] == "Local"


# ---- security


def condition(write: Apply, kind: str) -> dict:
    return next(item for item in write.status["conditions"] if item["type"] == kind)


def test_without_authentication_there_are_no_keys_and_it_is_said_aloud():
    item = attachment("a", 20, "v", "gpu-b")
    write = only(item, snapshot(item, security={"authentication": "None"}))
    assert "keys" not in write.status
    assert condition(write, "Secured")["reason"] == "NoAuthentication"
    after = attachment("a", 20, "v", "gpu-b", status=write.status)
    told = {event["reason"]: event["type"] for event in events_of(item, after, T0)}
    assert told["NoAuthentication"] == "Warning"
    later = only(after, snapshot(after, volumes=[carved(exported=EXPORTED | {"a": {**EXPORTED["a"], "ready": True}})]))
    assert later.status["fabric"]["authentication"] == "None", "what the pool says now is for new attachments"


def test_tls_has_a_key_of_its_own():
    item = attachment("a", 20, "v", "gpu-b")
    write = only(item, snapshot(item, security={"tls": "Required"}))
    keys = unseal(write.status["keys"]["consumer"], KEY_B)
    assert keys.dhchap is not None
    assert keys.psk is not None
    assert "TLS 1.3" in condition(write, "Secured")["message"]


@pytest.mark.parametrize(
    ("lacking", "security", "export", "refused"),
    [
        ("nvmetTcp", {}, {}, True),
        ("authentication", {}, {}, True),
        ("authentication", {"authentication": "None"}, {}, False),
        ("tls", {}, {}, False),
        ("tls", {"tls": "Required"}, {}, True),
        ("nvmetRdma", {}, {}, False),
        ("nvmetRdma", {}, {"transport": "rdma"}, True),
    ],
)
def test_what_a_kernel_cannot_do_is_said_with_the_server_and_how_it_shows(lacking, security, export, refused):
    item = attachment("a", 20, "v", "gpu-b")
    words = ready(only(item, snapshot(item, lacking=(lacking,), security=security, export=export)))
    assert (words["reason"] == "KernelLacks") is refused
    if refused:
        assert f"how {lacking} shows" in words["message"]
        assert "server gpu-a" in words["message"]


def test_a_server_that_lost_its_private_key_lists_what_must_be_made_anew():
    item = attachment("a", 20, "v", "gpu-b")
    status = only(item, snapshot(item)).status
    status["keys"]["consumerKey"] = "another"
    snap = snapshot(attachment("a", 20, "v", "gpu-b", status=status))
    (write,) = reconcile_node(snap.nodes["gpu-b"], snap)
    assert "serving/a" in condition(write, "KeysIntact")["message"]
    assert reconcile_node(snap.nodes["gpu-a"], snap) == [] or "KeysIntact" not in str(
        reconcile_node(snap.nodes["gpu-a"], snap)
    )


@pytest.mark.parametrize(
    ("reason", "kind"),
    [("Reconnecting", "Warning"), ("Lost", "Warning"), ("ConnectFailed", "Warning"), ("InUse", "Warning")],
)
def test_what_happens_to_a_connection_is_told(reason, kind):
    before = attachment("a", 20, "v", "gpu-b", status={"conditions": [READY]})
    not_ready = {**READY, "status": "False", "reason": reason, "message": "words"}
    after = attachment("a", 20, "v", "gpu-b", status={"conditions": [not_ready]})
    (told,) = events_of(before, after, T0)
    assert (told["reason"], told["type"], told["note"]) == (reason, kind, "words")
    (back,) = events_of(after, before, T0)
    assert back["type"] == "Normal"


def test_the_end_says_whether_the_consumer_let_go_or_was_fenced():
    for reason, words in (("Disconnected", "disconnected"), ("Connected", "cannot write any more")):
        item = attachment("a", 20, "v", "gpu-b", status={"path": "Fabric", "conditions": [connected(reason)]})
        assert words in farewell(item, snapshot(item))["note"]


def test_the_storage_server_s_key_is_not_lost_when_the_ssd_moved_to_another_server():
    item = attachment("a", 20, "v", "gpu-b")
    status = only(item, snapshot(item)).status
    assert status["keys"]["storageNode"] == "gpu-a"
    status["keys"] |= {"storageNode": "gpu-z", "storageKey": "gpu-z's"}
    moved = attachment("a", 20, "v", "gpu-b", status=status)
    snap = snapshot(moved)
    words = ready(only(moved, snap))
    assert (words["reason"], "moved from server gpu-z to gpu-a" in words["message"]) == ("VolumeMoved", True)
    assert snap.keyless == {}


def test_another_volume_of_the_same_name_is_not_taken_for_the_one_that_was_attached():
    status = {"path": "Local", "volumeId": uid(999)}
    item = attachment("a", 20, "v", "gpu-a", status=status)
    assert ready(only(item, snapshot(item)))["reason"] == "VolumeReplaced"


def test_a_storage_server_that_is_paused_is_not_said_to_fence():
    status = {"path": "Fabric", "conditions": [connected("Disconnected")]}
    item = attachment("a", 20, "v", "gpu-b", status=status, deleting=True)
    snap = snapshot(item, volumes=[carved(exported={"a": {**EXPORTED["a"], "fencing": True}})])
    paused = snap.nodes["gpu-a"].model_copy(
        update={"spec": snap.nodes["gpu-a"].spec.model_copy(update={"paused": True})}
    )
    snap = replace(snap, nodes={**snap.nodes, "gpu-a": paused})
    assert ready(only(item, snap))["reason"] == "Paused"
