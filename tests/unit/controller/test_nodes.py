"""SSDs that move, servers that fall silent, are renamed or lost for good."""

from __future__ import annotations

from typing import Any

import pytest

from kubeflash.api.v1alpha1 import FINALIZER, FlashNode
from kubeflash.controller.nodes import moved_in, reconcile_node
from kubeflash.domain.cluster import Cluster
from kubeflash.kube.writes import Apply, Patch
from support.objects import T0, make, node, ssd_json, volume

CAME = ssd_json("S", 0x13, labelled="uuid-a")


def server(name: str, number: int, uuid: str, ssds: list[dict[str, Any]], **more: Any) -> FlashNode:
    status = {**node(name, number, [], ssds).status.to_json(), "systemUUID": uuid}
    return make(FlashNode, name, number, status=status, **more)


def snapshot(*nodes: FlashNode, answering: set[str], volumes: tuple[Any, ...] = ()) -> Cluster:
    return Cluster(
        now=T0,
        pools={},
        nodes={item.metadata.name: item for item in nodes},
        volumes={item.key: item for item in volumes},
        attachments={},
        answering=frozenset(answering),
        leader="me",
    )


HAS = [ssd_json("S", 0x13)]


@pytest.mark.parametrize(
    ("others", "answering", "adopt", "taken"),
    [
        ([server("a", 1, "uuid-a", [])], {"a"}, {}, True),
        ([server("a", 1, "uuid-a", HAS)], {"a"}, {}, False),
        ([server("a", 1, "uuid-a", [])], set(), {}, False),  # silence is no consent
        ([server("a", 1, "uuid-a", HAS)], set(), {}, False),
        ([server("a", 1, "uuid-a", HAS, spec={"purge": "uuid-a"})], set(), {}, True),
        ([server("a", 1, "uuid-a", HAS, spec={"purge": "uuid-a"})], {"a"}, {}, False),
        ([server("a", 1, "uuid-a", HAS, spec={"purge": "another"})], set(), {}, False),
        ([], set(), {}, False),  # the cluster does not know that server: it may not have come up yet
        ([], set(), {"S-1": "uuid-a"}, True),
        ([server("a", 1, "uuid-a", HAS)], set(), {"S-1": "uuid-a"}, True),
        ([server("a", 1, "uuid-a", HAS)], {"a"}, {"S-1": "uuid-a"}, False),  # that one says that it has it
        ([server("a", 1, "uuid-a", HAS)], set(), {"S-1": "uuid-z"}, False),
        ([server("a", 1, "uuid-a", HAS)], set(), {"T-1": "uuid-a"}, False),
        ([server("old", 1, "uuid-a", HAS), server("new", 3, "uuid-a", HAS)], {"new"}, {}, False),
        ([server("old", 1, "uuid-a", HAS), server("new", 3, "uuid-a", [])], {"new"}, {}, True),  # it was renamed
    ],
)
def test_an_ssd_is_taken_over_once_its_server_does_not_have_it_or_an_admin_says_so(others, answering, adopt, taken):
    here = server("b", 2, "uuid-b", [CAME], spec={"adopt": adopt})
    found = moved_in(here, snapshot(here, *others, answering={"b", *answering}))
    assert found == ({"S-1": "uuid-a"} if taken else {})


def test_an_ssd_with_our_own_label_did_not_move():
    here = server("b", 2, "uuid-b", HAS, spec={"adopt": {"S-1": "uuid-a"}})
    assert moved_in(here, snapshot(here, answering={"b"})) == {}


def only(item: FlashNode, snap: Cluster) -> dict[str, Any]:
    (write,) = reconcile_node(item, snap)
    assert isinstance(write, Apply)
    return {entry["type"]: entry for entry in write.status["conditions"]}


V = volume("v", 10, status={"nodeName": "a", "ssd": "S-1"})


@pytest.mark.parametrize(
    ("spec", "answering", "volumes", "conditions"),
    [
        ({}, set(), (), {"Ready": ("Unknown", "AgentSilent")}),
        ({"purge": "uuid-a"}, set(), (), {"Ready": ("Unknown", "AgentSilent"), "Purged": ("True", "Purged")}),
        ({"purge": "uuid-a"}, set(), (V,), {"Ready": ("Unknown", "AgentSilent"), "Purged": ("False", "Purging")}),
        ({"purge": "uuid-a"}, {"a"}, (), {"Purged": ("False", "AgentAnswers")}),
    ],
)
def test_what_a_server_cannot_say_of_itself(spec, answering, volumes, conditions):
    item = server("a", 1, "uuid-a", HAS, spec=spec)
    body = item.model_dump(by_alias=True)
    body["metadata"]["finalizers"] = [FINALIZER] if volumes else []
    item = FlashNode.from_json(body)
    found = only(item, snapshot(item, answering=answering, volumes=volumes))
    assert {kind: (entry["status"], entry["reason"]) for kind, entry in found.items()} == conditions


def test_the_former_name_of_a_server_says_what_it_is_called_now():
    old, new = server("old", 1, "uuid-a", HAS), server("new", 2, "uuid-a", HAS)
    ready = only(old, snapshot(old, new, answering={"new"}))["Ready"]
    assert (ready["status"], ready["reason"]) == ("Unknown", "Renamed")
    assert "FlashNode new" in ready["message"]


@pytest.mark.parametrize(
    ("deleting", "finalized", "held", "finalizers"),
    [
        (False, False, True, [FINALIZER]),
        (False, True, False, []),
        (True, True, False, []),
        (False, True, True, None),
        (True, True, True, None),
        (False, False, False, None),
    ],
)
def test_a_flashnode_stays_while_volumes_are_placed_on_it(deleting, finalized, held, finalizers):
    item = server("a", 1, "uuid-a", HAS, deleting=deleting)
    body = item.model_dump(by_alias=True)
    body["metadata"]["finalizers"] = [FINALIZER] if finalized else []
    item = FlashNode.from_json(body)
    writes = reconcile_node(item, snapshot(item, answering={"a"}, volumes=(V,) if held else ()))
    patches = [write.body["metadata"]["finalizers"] for write in writes if isinstance(write, Patch)]
    assert patches == ([] if finalizers is None else [finalizers])
