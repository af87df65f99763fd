"""The consumer's side: only what is ours and unwanted is disconnected; what is said is what is so."""

from __future__ import annotations

import pytest

from kubeflash.domain.connecting import plan_connections, view_attachment
from kubeflash.domain.fabric import Connection
from kubeflash.domain.names import export_identity, partition_link
from kubeflash.domain.steps import Connect, Disconnect
from support.objects import attachment, uid

VOLUME = uid(1010)


def fabric(number: int, *, portals=("tcp://10.0.0.1:4420",), deleting=False, path="Fabric"):
    identity = export_identity(uid(number))
    status = {
        "path": path,
        "volumeId": VOLUME,
        "fabric": {
            "volumeId": VOLUME,
            "nqn": identity.nqn,
            "hostNQN": identity.host_nqn,
            "hostID": identity.host_id,
            "portals": list(portals),
            "reconnectSeconds": 3,
            "lossSeconds": 77,
        },
        "keys": {"storage": "a", "storageKey": "b", "consumer": "sealed", "consumerKey": "d"},
    }
    return attachment(f"a{number}", number, "v", "gpu-b", status=status, deleting=deleting)


def connection(nqn: str, *, state="live", device="/dev/nvme3n1", uuid=VOLUME, size=1 << 20) -> Connection:
    return Connection(3, nqn, "h", state, "tcp", "traddr=10.0.0.1,trsvcid=4420", device, uuid, size)


MINE = export_identity(uid(1)).nqn


def test_what_is_wanted_is_connected_with_the_pool_s_timing_and_the_consumer_s_keys():
    (step,) = plan_connections([fabric(1)], [])
    assert isinstance(step, Connect)
    assert (step.nqn, step.sealed_keys, step.reconnect_seconds, step.loss_seconds) == (MINE, "sealed", 3, 77)
    assert plan_connections([fabric(1)], [connection(MINE)]) == ()


def test_nothing_is_connected_before_it_is_exported_nor_locally_nor_when_deleted():
    assert plan_connections([fabric(1, portals=())], []) == ()
    assert plan_connections([fabric(1, path="Local")], []) == ()
    assert plan_connections([fabric(1, deleting=True)], []) == ()


def test_what_is_ours_and_wanted_no_more_is_disconnected_and_strangers_are_not():
    stranger = connection("nqn.2014-08.org.example:theirs")
    assert plan_connections([], [connection(MINE), stranger]) == (Disconnect(MINE),)
    assert plan_connections([fabric(1, deleting=True)], [connection(MINE)]) == (Disconnect(MINE),)


def test_a_connection_that_reconnects_is_left_alone():
    assert plan_connections([fabric(1)], [connection(MINE, state="connecting")]) == ()


@pytest.mark.parametrize(
    ("found", "failure", "reason", "device"),
    [
        ([], "", "NotExported", None),
        ([], "key refused", "ConnectFailed", None),
        ([connection(MINE)], "", "Connected", "/dev/nvme3n1"),
        ([connection(MINE, state="connecting")], "", "Reconnecting", "/dev/nvme3n1"),
        ([connection(MINE, uuid=uid(9))], "", "NoDevice", None),
        ([connection(MINE, size=0)], "", "NoDevice", None),
        ([connection(MINE, device=None)], "", "NoDevice", None),
    ],
)
def test_a_fabric_attachment_says_what_is_so(found, failure, reason, device):
    view = view_attachment(fabric(1), found, {}, "", failure)
    assert (view.reason, view.device) == (reason, device)


@pytest.mark.parametrize(
    ("found", "held", "reason"),
    [
        ([], "", "Disconnected"),
        ([connection(MINE)], "mounted at /mnt", "InUse"),
        ([connection(MINE)], "", "Disconnecting"),
        ([connection(MINE)], None, "Disconnecting"),
    ],
)
def test_a_deleted_fabric_attachment_is_over_only_when_sysfs_lists_it_no_more(found, held, reason):
    assert view_attachment(fabric(1, deleting=True), found, {}, held, "").reason == reason


@pytest.mark.parametrize(
    ("deleting", "present", "held", "reason"),
    [
        (False, True, "", "Connected"),
        (False, False, "", "NoDevice"),
        (True, True, "", "Disconnected"),
        (True, True, "mounted at /mnt", "InUse"),
        (True, True, None, "Disconnecting"),
    ],
)
def test_a_local_attachment_is_over_only_when_somebody_looked_and_nobody_uses_it(deleting, present, held, reason):
    partitions = {VOLUME: "nvme0n1p2"} if present else {}
    view = view_attachment(fabric(1, path="Local", deleting=deleting), [], partitions, held, "")
    assert view.reason == reason
    if reason == "Connected":
        assert view.device == partition_link(VOLUME)
