"""The consumer's side: only what is ours and unwanted is disconnected; what is said is what is so."""

from __future__ import annotations

from datetime import timedelta

import pytest

from kubeflash.domain.connecting import Consumer, plan_connections, view_attachment
from kubeflash.domain.fabric import Connection
from kubeflash.domain.names import export_identity, partition_link
from kubeflash.domain.steps import Connect, Disconnect, DropPath, RemoveTlsKey, SetReadOnly
from support.objects import T0, attachment, uid

VOLUME = uid(1010)


PORTAL = "tcp://10.0.0.1:4420"
OTHER = "tcp://10.1.0.1:4421"


def fabric(number: int, *, portals=(PORTAL,), deleting=False, path="Fabric", read_only=False, was=None, **more):
    identity = export_identity(uid(number))
    status = {
        "path": path,
        "volumeId": VOLUME,
        "keys": {"storage": "a", "storageKey": "b", "consumer": "sealed", "consumerKey": "d"},
        **({"connection": {"state": was, "since": "2025-12-31T23:59:00Z"}} if was else {}),
    }
    if path == "Fabric":
        status["fabric"] = {
            "volumeId": VOLUME,
            "nqn": identity.nqn,
            "hostNQN": identity.host_nqn,
            "hostID": identity.host_id,
            "portals": list(portals),
            "reconnectSeconds": 3,
            "lossSeconds": 77,
            **more,
        }
    found = attachment(f"a{number}", number, "v", "gpu-b", status=status, deleting=deleting)
    spec = found.spec.model_copy(update={"read_only": read_only})
    return found.model_copy(update={"spec": spec})


def connection(
    nqn: str, *, state="live", device="/dev/nvme3n1", uuid=VOLUME, size=1 << 20, at="10.0.0.1", port=4420, ro=False
) -> Connection:
    return Connection(3, nqn, "h", state, "tcp", f"traddr={at},trsvcid={port},src_addr=x", device, uuid, size, ro)


MINE, OLD = export_identity(uid(1)).nqn, export_identity(uid(2)).nqn


def here(*connections: Connection, partitions=(), read_only=(), exported=None) -> Consumer:
    return Consumer(connections, dict(partitions), frozenset(read_only), exported)


def plan(attachments, *connections, **more):
    return plan_connections(attachments, here(*connections, **more))


def view(item, *connections, held="", failure="", **more):
    return view_attachment(item, here(*connections, **more), held, failure, T0)


def test_what_is_wanted_is_connected_with_the_pool_s_timing_and_the_consumer_s_keys():
    (step,) = plan([fabric(1)])
    assert isinstance(step, Connect)
    assert (step.nqn, step.sealed_keys, step.reconnect_seconds, step.loss_seconds) == (MINE, "sealed", 3, 77)
    assert (step.authentication, step.tls, step.several) == (True, False, False)
    assert plan([fabric(1)], connection(MINE)) == ()


def test_nothing_is_connected_before_it_is_exported_nor_locally_nor_when_deleted():
    assert plan([fabric(1, portals=())]) == ()
    assert plan([fabric(1, path="Local")]) == ()
    assert plan([fabric(1, deleting=True)]) == ()


def test_without_authentication_no_keys_are_needed_and_with_tls_they_are():
    bare = fabric(1, authentication="None")
    keyless = bare.model_copy(update={"status": bare.status.model_copy(update={"keys": None})})
    (step,) = plan([keyless])
    assert (step.authentication, step.sealed_keys) == (False, "")
    guarded = fabric(1, authentication="None", tls="Required")
    assert plan([guarded])[0].tls
    assert plan([guarded.model_copy(update={"status": guarded.status.model_copy(update={"keys": None})})]) == ()


def test_what_is_ours_and_wanted_no_more_is_disconnected_and_strangers_are_not():
    stranger = connection("nqn.2014-08.org.example:theirs")
    assert plan([], connection(MINE), stranger) == (Disconnect(MINE, abandoned=True),)
    assert plan([fabric(1, deleting=True)], connection(MINE)) == (Disconnect(MINE),)


def test_a_connection_that_reconnects_is_left_alone():
    assert plan([fabric(1)], connection(MINE, state="connecting")) == ()


def test_each_portal_is_a_path_and_each_path_that_is_missing_is_connected():
    both = fabric(1, portals=(PORTAL, OTHER))
    assert [str(step.portal) for step in plan([both])] == [PORTAL, OTHER]
    (step,) = plan([both], connection(MINE))
    assert (str(step.portal), step.several) == (OTHER, True)


def test_a_path_to_a_portal_of_before_is_dropped_only_while_another_one_lives():
    moved = fabric(1, portals=(OTHER,))
    old, new = connection(MINE), connection(MINE, at="10.1.0.1", port=4421)
    assert [type(step) for step in plan([moved], old)] == [Connect]
    assert plan([moved], old, new) == (DropPath(MINE, 3, old.portal),)
    assert plan([moved], old, connection(MINE, at="10.1.0.1", port=4421, state="connecting")) == ()


def test_ipv6_portals_are_recognised_however_they_are_written():
    six = fabric(1, portals=("tcp://[fd00::1]:4420",))
    assert plan([six], connection(MINE, at="fd00:0:0::1")) == ()


def test_a_volume_that_an_ended_attachment_still_connects_is_not_connected_twice():
    steps = plan([fabric(1)], connection(OLD))
    assert steps == (Disconnect(OLD, abandoned=True),), "the kernel would ignore the second device"
    said = view(fabric(1), connection(OLD))
    assert said.reason == "Stale"
    assert OLD in said.message


def test_the_mode_of_a_device_is_brought_to_what_is_asked():
    assert plan([fabric(1, read_only=True)], connection(MINE)) == (SetReadOnly(VOLUME, MINE, True),)
    assert plan([fabric(1, read_only=True)], connection(MINE, ro=True)) == ()
    assert plan([fabric(1)], connection(MINE, ro=True)) == (SetReadOnly(VOLUME, MINE, False),)
    assert view(fabric(1, read_only=True), connection(MINE)).reason == "SettingMode"
    assert view(fabric(1, read_only=True), connection(MINE)).device is None, "nobody is given a writable device"


def test_a_local_device_is_read_only_while_it_is_attached_so_and_no_longer():
    local, there = fabric(1, path="Local", read_only=True), {"partitions": {VOLUME: "nvme0n1p2"}}
    assert plan([local], **there) == (SetReadOnly(VOLUME, "", True),)
    assert view(local, **there).reason == "SettingMode"
    assert plan([local], **there, read_only={VOLUME}) == ()
    assert view(local, **there, read_only={VOLUME}).reason == "Connected"
    assert plan([], **there, read_only={VOLUME}) == (SetReadOnly(VOLUME, "", False),)


@pytest.mark.parametrize(
    ("found", "failure", "reason", "device"),
    [
        ([], "", "Connecting", None),
        ([], "key refused", "ConnectFailed", None),
        ([connection(MINE)], "", "Connected", "/dev/nvme3n1"),
        ([connection(MINE, state="connecting")], "", "Reconnecting", "/dev/nvme3n1"),
        ([connection(MINE, uuid=uid(9))], "", "NoDevice", None),
        ([connection(MINE, size=0)], "", "NoDevice", None),
        ([connection(MINE, device=None)], "", "NoDevice", None),
    ],
)
def test_a_fabric_attachment_says_what_is_so(found, failure, reason, device):
    said = view(fabric(1), *found, failure=failure)
    assert (said.reason, said.device) == (reason, device)
    assert view(fabric(1, portals=())).reason == "NotExported"


def test_a_connection_says_since_when_it_is_so_and_how_long_until_io_fails():
    live = view(fabric(1), connection(MINE)).connection
    assert (live.state, live.since, live.lost_at) == ("Live", T0, None)
    assert [(path.portal, path.state) for path in live.paths] == [(PORTAL, "live")]
    same = view(fabric(1, was="Live"), connection(MINE)).connection
    assert same.since == T0 - timedelta(seconds=60)
    waiting = view(fabric(1, was="Live"), connection(MINE, state="connecting"))
    assert (waiting.connection.state, waiting.connection.since) == ("Reconnecting", T0)
    assert waiting.connection.lost_at == T0 + timedelta(seconds=77)
    assert "00:01:17 UTC" in waiting.message
    gone = view(fabric(1, was="Reconnecting"), failure="no answer")
    assert (gone.reason, gone.connection.state) == ("Lost", "Lost")
    assert "no answer" in gone.message
    assert view(fabric(1)).connection is None, "it never was connected"


def test_one_path_that_works_is_enough_and_the_other_is_named():
    both = fabric(1, portals=(PORTAL, OTHER))
    half = connection(MINE, at="10.1.0.1", port=4421, state="connecting")
    said = view(both, connection(MINE), half)
    assert said.reason == "Connected"
    assert said.message == f"1 of 2 paths work, not {OTHER}"
    assert said.connection.state == "Live"
    assert {path.portal: path.state for path in said.connection.paths} == {PORTAL: "live", OTHER: "connecting"}


@pytest.mark.parametrize(
    ("found", "held", "reason"),
    [
        ([], "", "Disconnected"),
        ([connection(MINE)], "mounted at /mnt", "InUse"),
        ([connection(MINE)], "", "Disconnecting"),
        ([connection(MINE)], None, "Looking"),
    ],
)
def test_a_deleted_fabric_attachment_is_over_only_when_sysfs_lists_it_no_more(found, held, reason):
    assert view(fabric(1, deleting=True), *found, held=held).reason == reason


@pytest.mark.parametrize(
    ("deleting", "present", "held", "reason"),
    [
        (False, True, "", "Connected"),
        (False, False, "", "NoDevice"),
        (True, True, "", "Disconnected"),
        (True, True, "mounted at /mnt", "InUse"),
        (True, True, None, "Looking"),
    ],
)
def test_a_local_attachment_is_over_only_when_somebody_looked_and_nobody_uses_it(deleting, present, held, reason):
    partitions = {VOLUME: "nvme0n1p2"} if present else {}
    said = view(fabric(1, path="Local", deleting=deleting), held=held, partitions=partitions)
    assert said.reason == reason
    if reason == "Connected":
        assert said.device == partition_link(VOLUME)


def test_a_local_device_is_given_to_nobody_while_the_volume_is_exported_still():
    there = {"partitions": {VOLUME: "nvme0n1p2"}, "exported": {VOLUME: [OLD]}}
    said = view(fabric(1, path="Local"), **there)
    assert (said.reason, said.device) == ("Fencing", None)
    assert OLD in said.message


def test_a_device_that_is_being_let_go_stays_read_only_while_it_is_refused():
    local = fabric(1, path="Local", read_only=True, deleting=True)
    assert plan([local], partitions={VOLUME: "nvme0n1p2"}, read_only={VOLUME}) == ()


def test_an_ssd_that_is_read_only_as_a_whole_is_given_as_it_is():
    there = Consumer((), {VOLUME: "nvme0n1p2"}, frozenset({VOLUME}), None, frozenset({VOLUME}))
    local = fabric(1, path="Local")
    assert plan_connections([local], there) == ()
    assert view_attachment(local, there, "", "", T0).reason == "Connected"


def test_a_path_that_has_no_namespace_yet_does_not_speak_for_the_device():
    both = fabric(1, portals=(PORTAL, OTHER))
    fresh = connection(MINE, at="10.1.0.1", port=4421, device=None, uuid=None, size=0)
    assert view(both, fresh, connection(MINE)).reason == "Connected"


def test_a_tls_key_that_no_attachment_and_no_connection_has_is_taken_away():
    host = export_identity(uid(2)).host_nqn
    kept = Consumer((), {}, frozenset(), None, frozenset(), frozenset({(export_identity(uid(1)).host_nqn, MINE)}))
    assert [type(step) for step in plan_connections([fabric(1)], kept)] == [Connect]
    stale = Consumer((), {}, frozenset(), None, frozenset(), frozenset({(host, OLD)}))
    assert plan_connections([], stale) == (RemoveTlsKey(OLD, host),)
