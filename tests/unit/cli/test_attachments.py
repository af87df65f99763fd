"""`kubectl flash attachments`: the one word that is true of an attachment, and the line around it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from kubeflash.api.v1alpha1 import FlashAttachment, FlashVolume
from kubeflash.cli import attachments
from kubeflash.cli.attachments import state_of
from kubeflash.cli.terminal import Terminal
from kubeflash.cli.text import span
from support.objects import T0, attachment, make, uid, volume

NOW = T0 + timedelta(hours=1)
PORTALS = ["tcp://10.20.0.4:4427", "tcp://10.21.0.4:4427"]
LIVE = ("live", "live")


def ago(seconds: int) -> str:
    return (NOW - timedelta(seconds=seconds)).isoformat()


def condition(kind: str, reason: str, status: str = "False", message: str = "") -> dict[str, Any]:
    return {"type": kind, "status": status, "reason": reason, "message": message, "lastTransitionTime": ago(90)}


def connection(state: str, since: int, *paths: str, lost_in: int | None = None) -> dict[str, Any]:
    said = [{"portal": portal, "state": path} for portal, path in zip(PORTALS, paths, strict=False)]
    lost = {} if lost_in is None else {"lostAt": ago(-lost_in)}
    return {"state": state, "since": ago(since), "paths": said, **lost}


def fabric(*portals: str, **security: str) -> dict[str, Any]:
    return {"volumeId": uid(1), "nqn": "n", "hostNQN": "h", "hostID": "i", "portals": list(portals), **security}


def made(
    *conditions: dict[str, Any], deleting: bool = False, path: str | None = "Fabric", **status: Any
) -> FlashAttachment:
    whole = {"conditions": list(conditions), **({"path": path} if path is not None else {}), **status}
    return make(
        FlashAttachment,
        "kv-0-on-b",
        9,
        spec={"volume": "kv-0", "nodeName": "gpu-b"},
        status=whole,
        deleting=deleting,
        age=600,
    )


def kept(*, wanted: bool = True, of: int = 9, **exported: Any) -> FlashVolume:
    """The volume on gpu-a, with an export of the attachment with number `of`."""
    identity = {"uid": uid(of), "nqn": "n", "hostNQN": "h", "hostID": "i", "ports": "4420-5443"}
    status: dict[str, Any] = {"nodeName": "gpu-a", "exported": {"kv-0-on-b": {"uid": uid(of), **exported}}}
    status |= {"wanted": {"kv-0-on-b": identity}} if wanted else {}
    return volume("kv-0", 8, status=status)


UNEXPORTED = volume("kv-0", 8, status={"nodeName": "gpu-a"})
READY, CONNECTED = condition("Ready", "Connected", "True"), condition("Connected", "Connected", "True")

# name: the attachment, its volume, the word, since how many seconds
STATES: dict[str, tuple[FlashAttachment, FlashVolume | None, str, int]] = {
    "nobody has looked at it": (made(path=None), UNEXPORTED, "Unseen", 4200),
    "local": (made(READY, path="Local"), UNEXPORTED, "Attached", 90),
    "local, not there yet": (made(condition("Ready", "Connecting"), path="Local"), UNEXPORTED, "Connecting", 90),
    "live": (made(READY, CONNECTED, connection=connection("Live", 300, *LIVE)), kept(ready=True), "Live", 300),
    "live, and the controller is behind": (
        made(condition("Ready", "Reconnecting"), CONNECTED, connection=connection("Live", 3, *LIVE)),
        kept(ready=True),
        "Live",
        3,
    ),
    "live by a clock that is ahead": (
        made(READY, CONNECTED, connection=connection("Live", -30, *LIVE)),
        kept(ready=True),
        "Live",
        0,
    ),
    "connected, without a device": (
        made(
            condition("Ready", "NoDevice"),
            condition("Connected", "NoDevice"),
            connection=connection("Live", 3, *LIVE),
        ),
        kept(ready=True),
        "NoDevice",
        90,
    ),
    "connected, by an agent that says no more": (made(READY, CONNECTED), kept(ready=True), "Connected", 90),
    "reconnecting": (
        made(condition("Ready", "Reconnecting"), connection=connection("Reconnecting", 168, "connecting", lost_in=432)),
        kept(ready=True),
        "Reconnecting",
        168,
    ),
    "reconnecting, and the controller is behind": (
        made(READY, CONNECTED, connection=connection("Reconnecting", 1, "connecting", lost_in=599)),
        kept(ready=True),
        "Reconnecting",
        1,
    ),
    "lost": (
        made(condition("Ready", "Lost"), connection=connection("Lost", 20)),
        kept(ready=True),
        "Lost",
        20,
    ),
    "its server is silent": (
        made(condition("Ready", "AgentSilent", "Unknown"), CONNECTED, connection=connection("Live", 300, *LIVE)),
        kept(ready=True),
        "AgentSilent",
        90,
    ),
    "keys lost while it is live": (
        made(condition("Ready", "KeysLost"), CONNECTED, connection=connection("Live", 300, *LIVE)),
        kept(ready=True),
        "KeysLost",
        90,
    ),
    "another one has it": (made(condition("Ready", "VolumeInUse"), path=None), UNEXPORTED, "Waiting", 90),
    "not exported": (made(condition("Ready", "NotExported"), fabric=fabric()), UNEXPORTED, "NotExported", 90),
    "exported, and the consumer is behind": (
        made(condition("Ready", "NotExported"), fabric=fabric(*PORTALS)),
        kept(ready=True),
        "Connecting",
        90,
    ),
    "exported before, and broken now": (
        made(condition("Ready", "NotExported"), fabric=fabric(*PORTALS)),
        kept(portals=PORTALS, message="the port is taken"),
        "NotExported",
        90,
    ),
    "it connects": (
        made(condition("Ready", "Connecting"), fabric=fabric(*PORTALS)),
        kept(ready=True),
        "Connecting",
        90,
    ),
    "it cannot connect": (
        made(condition("Ready", "ConnectFailed"), fabric=fabric(*PORTALS)),
        kept(ready=True),
        "ConnectFailed",
        90,
    ),
    "no volume": (made(condition("Ready", "VolumeNotFound"), path=None), None, "VolumeNotFound", 90),
    "fenced though nobody deleted it": (made(READY), kept(fencing=True), "Fencing", 90),
    "one of its name is fenced": (
        made(condition("Ready", "NotExported"), fabric=fabric()),
        kept(fencing=True, of=5),
        "NotExported",
        90,
    ),
    "deleted, connected": (made(READY, CONNECTED, deleting=True), kept(ready=True), "Detaching", 3600),
    "deleted, it disconnects": (
        made(condition("Connected", "Disconnecting"), deleting=True),
        kept(ready=True),
        "Detaching",
        3600,
    ),
    "deleted, held": (
        made(condition("Connected", "InUse", message="mounted at /kv"), deleting=True),
        kept(ready=True),
        "InUse",
        3600,
    ),
    "deleted, disconnected, its export still there": (
        made(condition("Connected", "Disconnected"), deleting=True),
        kept(ready=True),
        "Fencing",
        3600,
    ),
    "deleted, and not waited for any longer": (
        made(condition("Connected", "Disconnecting"), deleting=True),
        kept(wanted=False, ready=True),
        "Fencing",
        3600,
    ),
    "deleted, its export being taken down": (made(deleting=True), kept(fencing=True), "Fencing", 3600),
    "deleted, nothing is left": (
        made(condition("Connected", "Disconnected"), deleting=True),
        UNEXPORTED,
        "Detaching",
        3600,
    ),
    "deleted, its volume is gone": (made(deleting=True), None, "Detaching", 3600),
    "deleted, local, held": (
        made(condition("Connected", "InUse"), deleting=True, path="Local"),
        UNEXPORTED,
        "InUse",
        3600,
    ),
}


@pytest.mark.parametrize(("item", "volume", "word", "since"), STATES.values(), ids=STATES)
def test_state(item, volume, word, since):
    state = state_of(item, volume, NOW)
    assert (state.word, state.since) == (word, NOW - timedelta(seconds=since))
    assert (state.lost_at is not None) == (word == "Reconnecting")


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(-3, "0s"), (0, "0s"), (48.9, "48s"), (432, "7m12s"), (3600, "1h"), (7980, "2h13m"), (356400, "4d3h")],
)
def test_a_length_of_time(seconds, words):
    assert span(seconds) == words


def table(*items: FlashAttachment, volumes: FlashVolume | None = None, **more: Any) -> list[list[str]]:
    known = {item.key: item for item in ([volumes] if volumes is not None else [])}
    return [line.split("  ") for line in attachments.text(items, known, NOW, Terminal(60), **more)]


def cells(*items: FlashAttachment, **more: Any) -> dict[str, str]:
    head, row = ([cell.strip() for cell in line if cell.strip()] for line in table(*items, **more))
    return dict(zip(head, row, strict=True))


def test_a_line_for_each(capsys):
    item = made(
        condition("Ready", "Reconnecting"),
        connection=connection("Reconnecting", 168, "live", "connecting", lost_in=432),
        fabric=fabric(*PORTALS, tls="Required"),
        device="/dev/nvme3n1",
    )
    assert cells(item, volumes=kept(ready=True), namespaces=True) == {
        "NAMESPACE": "serving",
        "NAME": "kv-0-on-b",
        "VOLUME": "kv-0",
        "FROM": "gpu-a",
        "TO": "gpu-b",
        "PATH": "Fabric",
        "STATE": "Reconnecting, lost in 7m12s",
        "SINCE": "2m48s",
        "PATHS": "1/2",
        "SECURITY": "auth+tls",
        "DEVICE": "/dev/nvme3n1",
    }


def test_a_line_of_a_local_one_and_of_one_that_nobody_has_looked_at():
    device = f"/dev/disk/by-partuuid/{uid(1)}"
    found = cells(made(READY, path="Local", device=device), volumes=UNEXPORTED)
    assert (found["PATHS"], found["SECURITY"], found["DEVICE"], found["STATE"]) == ("-", "-", device, "Attached")
    found = cells(attachment("new", 3, "kv-0", "gpu-b"))
    assert [found[name] for name in ("FROM", "PATH", "STATE", "PATHS", "SECURITY", "DEVICE")] == [
        "-",
        "-",
        "Unseen",
        "-",
        "-",
        "-",
    ]


@pytest.mark.parametrize(
    ("security", "word"),
    [
        ({}, "auth"),
        ({"tls": "Required"}, "auth+tls"),
        ({"authentication": "None", "tls": "Required"}, "tls"),
        ({"authentication": "None"}, "none!"),
    ],
)
def test_how_it_is_guarded(security, word):
    found = cells(made(READY, fabric=fabric(*PORTALS, **security)), volumes=kept(ready=True))
    assert (found["SECURITY"], found["PATHS"]) == (word, "0/2")


@pytest.mark.parametrize(
    ("left", "words"),
    [(1, "Reconnecting, lost in 1s"), (0, "Reconnecting, lost at any moment"), (None, "Reconnecting")],
)
def test_how_long_until_it_is_lost(left, words):
    item = made(condition("Ready", "Reconnecting"), connection=connection("Reconnecting", 9, lost_in=left))
    assert cells(item, volumes=kept(ready=True))["STATE"] == words


def test_for_programs():
    item = made(
        condition("Ready", "Reconnecting", message="I/O waits"),
        connection=connection("Reconnecting", 168, "connecting", lost_in=432),
        fabric=fabric(*PORTALS),
    )
    found = attachments.document(item, kept(ready=True), NOW)
    assert (found["state"], found["since"], found["lostAt"]) == (
        "Reconnecting",
        "2026-01-01T00:57:12+00:00",
        "2026-01-01T01:07:12+00:00",
    )
    assert found["paths"] == [{"portal": PORTALS[0], "state": "connecting"}, {"portal": PORTALS[1], "state": None}]
    assert found["security"] == {"authentication": "Bidirectional", "tls": "None"}
    assert (found["from"], found["to"], found["message"], found["device"]) == ("gpu-a", "gpu-b", "I/O waits", None)


@pytest.mark.parametrize(
    ("change", "colour"), [(lambda: READY, "32"), (lambda: condition("Ready", "KeysLost"), "31")], ids=["good", "bad"]
)
def test_colours(change: Callable[[], dict[str, Any]], colour: str):
    lines = attachments.text([made(change(), path="Local")], {}, NOW, Terminal(60, coloured=True))
    assert f"\x1b[{colour}m" in lines[1]
