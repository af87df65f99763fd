"""What the controller writes for attachments: local or fabric, keys made once, refusals, the end."""

from __future__ import annotations

import pytest

from kubeflash.api.v1alpha1 import FlashAttachment
from kubeflash.controller.attachments import reconcile_attachment
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


def snapshot(*attachments: FlashAttachment, volumes=None, silent=(), **more) -> Cluster:
    servers = (node("gpu-a", 1, [], [], public_key(KEY_A)), node("gpu-b", 2, [], [], public_key(KEY_B)))
    return Cluster(
        now=T0,
        answering=frozenset({"gpu-a", "gpu-b"}) - frozenset(silent),
        pools={"fast": pool("fast", 3, "S")},
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
