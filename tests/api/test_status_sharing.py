"""Two writers share one status by server-side apply: each changes and takes back its own part alone."""

from __future__ import annotations

from typing import Any

import pytest

from api.refusals import CONDITION, UUID, VOLUME
from kubeflash.api.v1alpha1 import FlashNode, FlashVolume

pytestmark = [pytest.mark.api, pytest.mark.usefixtures("clean")]


def wanted(number: int) -> dict[str, Any]:
    return {"uid": f"u{number}", "nqn": "n", "hostNQN": "h", "hostID": "i", "sealedKeys": "k", "ports": "1-2"}


def condition(kind: str, *, status: str = "True") -> dict[str, Any]:
    return {**CONDITION, "type": kind, "status": status}


def types(written: dict[str, Any]) -> set[str]:
    return {item["type"] for item in written["status"].get("conditions", ())}


def test_the_controllers_and_the_agents_conditions_live_in_one_list(client, make):
    volume = make(FlashVolume, VOLUME)
    client.apply_status(volume, {"nodeName": "n1", "conditions": [condition("Placed")]}, "controller")
    both = client.apply_status(volume, {"bytes": 1, "conditions": [condition("Carved")]}, "agent")
    assert types(both) == {"Placed", "Carved"}
    assert (both["status"]["nodeName"], both["status"]["bytes"]) == ("n1", 1)

    changed = client.apply_status(volume, {"bytes": 1, "conditions": [condition("Carved", status="False")]}, "agent")
    assert {item["type"]: item["status"] for item in changed["status"]["conditions"]} == {
        "Placed": "True",
        "Carved": "False",
    }

    without = client.apply_status(volume, {"conditions": []}, "agent")
    assert types(without) == {"Placed"}
    assert "bytes" not in without["status"]
    assert without["status"]["nodeName"] == "n1"

    # The last one's last word is an empty list: of `{}` the API server (1.37) makes a null, and refuses that itself.
    nothing = client.apply_status(volume, {"conditions": []}, "controller")
    assert nothing.get("status", {}) in ({}, {"conditions": []})
    assert FlashVolume.from_json(nothing).status == FlashVolume.from_json({**nothing, "status": {}}).status


def test_each_attachment_is_a_key_of_its_own(client, make):
    volume = make(FlashVolume, VOLUME)
    client.apply_status(volume, {"wanted": {"a": wanted(1), "b": wanted(2)}}, "controller")
    both = client.apply_status(
        volume, {"exported": {"a": {"uid": "u1", "portals": ["tcp://10.0.0.1:4420"]}, "b": {"uid": "u2"}}}, "agent"
    )
    assert both["status"]["wanted"].keys() == both["status"]["exported"].keys() == {"a", "b"}
    less = client.apply_status(volume, {"wanted": {"b": wanted(2)}}, "controller")
    assert less["status"]["wanted"].keys() == {"b"}
    assert less["status"]["exported"].keys() == {"a", "b"}
    gone = client.apply_status(volume, {"exported": {"b": {"uid": "u2", "ready": True}}}, "agent")
    assert gone["status"]["exported"] == {"b": {"uid": "u2", "ready": True}}


def test_saying_the_same_again_changes_nothing(client, make):
    volume = make(FlashVolume, VOLUME)
    status = {"wanted": {"a": wanted(1)}, "conditions": [condition("Placed")]}
    first = client.apply_status(volume, status, "controller")
    again = client.apply_status(volume, status, "controller")
    assert again["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"]


def test_an_ssd_that_is_pulled_leaves_the_nodes_status_and_no_default_stays_behind(client, make):
    node = make(FlashNode, {})
    pci = {"address": "0000:4c:00.0", "rootComplex": "pci0000:4a"}
    ssd = {**pci, "serial": "S1", "model": "M", "bytes": 1, "namespaceId": 1, "state": "Blank"}
    ssds = [{**ssd, "id": "a"}, {**ssd, "id": "b", "free": "1Gi", "largest": 1048576}]
    client.apply_status(node, {"systemUUID": UUID, "ssds": ssds}, "agent")
    left = client.apply_status(node, {"systemUUID": UUID, "ssds": ssds[1:]}, "agent")
    assert left["status"] == {"systemUUID": UUID, "ssds": ssds[1:]}
    assert FlashNode.from_json(left).status.ssds[0].largest == 1 << 20
