"""What a pool has: every SSD once, in one pool, and a reason for each that cannot be used."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kubeflash.api.v1alpha1 import FlashNode, FlashPool, FlashVolume, Ssd
from kubeflash.domain.ledger import Ledger
from kubeflash.domain.neighbours import Neighbours
from kubeflash.domain.pools import PoolView, evaluate, holding, needs_thorough, owner_of, pool_status
from support.objects import gpu_json, make, node, pool, ssd_json, volume


def views(
    pools: list[FlashPool],
    nodes: list[FlashNode],
    volumes: list[FlashVolume] | None = None,
    labels: dict[str, dict[str, str]] | None = None,
) -> dict[str, PoolView]:
    ledger = Ledger(nodes, volumes or [])
    return evaluate(pools, nodes=nodes, node_labels=labels or {}, ledger=ledger, neighbours=Neighbours())


def ssd(serial: str = "A", bus: int = 0x13, **more: Any) -> Ssd:
    return Ssd.model_validate(ssd_json(serial, bus, **more))


# --- whose is an SSD? ---


@pytest.mark.parametrize(
    ("ssds", "neighbour", "selects"),
    [
        ({"serials": ["A"]}, False, True),
        ({"ids": ["A-1"]}, False, True),
        ({"models": ["M *"]}, False, True),
        ({"models": ["N *"]}, False, False),
        ({"serials": ["B"]}, False, False),
        ({"all": True}, False, True),
        ({"all": True, "minSize": "1Gi"}, False, True),
        ({"all": True, "minSize": "1025Mi"}, False, False),
        ({"all": True, "neighboursOnly": True}, False, False),
        ({"all": True, "neighboursOnly": True}, True, True),
        ({"all": True, "exclude": {"serials": ["A"]}}, False, False),
        ({"all": True, "exclude": {"ids": ["A-1"]}}, False, False),
        ({"all": True, "exclude": {"models": ["M ?"]}}, False, False),
        ({"all": True, "exclude": {"minSize": "1Gi"}}, False, False),
        ({"all": True, "exclude": {"minSize": "1025Mi"}}, False, True),
        ({"serials": ["A"], "exclude": {"serials": ["A"]}}, False, False),
    ],
)
def test_what_a_pool_selects_is_its(ssds, neighbour, selects):
    made = make(FlashPool, "p", 1, spec={"ssds": ssds})
    assert (owner_of(ssd(), [made], {}, neighbour=neighbour) is made) is selects


@pytest.mark.parametrize(
    ("selector", "labels", "selects"),
    [
        ({}, None, True),
        ({}, {}, True),
        ({"matchLabels": {"rack": "a"}}, {"rack": "a"}, True),
        ({"matchLabels": {"rack": "a"}}, {"rack": "b"}, False),
        ({"matchLabels": {"rack": "a"}}, None, False),
        ({"matchExpressions": [{"key": "rack", "operator": "NotIn", "values": ["a"]}]}, {}, True),
        ({"matchExpressions": [{"key": "rack", "operator": "DoesNotExist"}]}, None, False),
    ],
)
def test_only_an_empty_selector_selects_a_server_without_a_node(selector, labels, selects):
    made = make(FlashPool, "p", 1, spec={"ssds": {"all": True}, "nodes": selector})
    assert (owner_of(ssd(), [made], labels, neighbour=False) is made) is selects


def test_of_several_pools_the_oldest_has_it_then_the_first_by_name_and_none_that_goes():
    old, young, same = pool("z", 1, "A", age=9), pool("a", 2, "A", age=5), pool("b", 3, "A", age=5)
    going = make(FlashPool, "going", 4, age=99, spec={"ssds": {"all": True}}, deleting=True)
    for order in permutations([old, young, same, going]):
        assert owner_of(ssd(), order, {}, neighbour=False) is old
        rest = [item for item in order if item is not old]
        assert owner_of(ssd(), rest, {}, neighbour=False) is young
        assert owner_of(ssd(), [going], {}, neighbour=False) is None


@pytest.mark.parametrize(
    ("ssds", "thorough"),
    [({"all": True}, True), ({"all": True, "serials": ["A"]}, False), ({"serials": ["A"]}, False)],
)
def test_what_nobody_named_is_proven_blank_more_thoroughly(ssds, thorough):
    assert needs_thorough(make(FlashPool, "p", 1, spec={"ssds": ssds}), ssd()) is thorough


# --- what is refused, what is kept, and why ---

V = volume("v", 10, status={"nodeName": "s0", "ssd": "A-1"})
FOREIGN = {"state": "Foreign", "reason": "not blank: ext4"}


@pytest.mark.parametrize(
    ("spec", "more", "words"),
    [
        ({"ssds": {"serials": ["A"]}}, FOREIGN, "not blank: ext4"),
        (
            {"ssds": {"serials": ["A"]}, "nodes": {"matchLabels": {"x": "y"}}},
            {},
            "spec.nodes does not select server s0",
        ),
        ({"ssds": {"serials": ["A"], "minSize": "2Gi"}}, {}, "smaller than spec.ssds.minSize, 2Gi"),
        ({"ssds": {"serials": ["A"], "neighboursOnly": True}}, {}, "no neighbour of a GPU"),
        ({"ssds": {"serials": ["A"], "exclude": {"ids": ["A-1"]}}}, {}, "spec.ssds.exclude names it"),
        ({"ssds": {"serials": ["A"], "exclude": {"minSize": "1Gi"}}}, {}, "spec.ssds.exclude.minSize is 1Gi"),
    ],
)
def test_a_named_ssd_that_is_not_used_says_why(spec, more, words):
    made = make(FlashPool, "fast", 1, spec=spec)
    view = views([made], [node("s0", 1, [], [ssd_json("A", 0x13, **more)])])["fast"]
    assert view.ssds == view.draining == ()
    (refused,) = view.refused
    assert (refused.node, refused.ssd) == ("s0", "A-1")
    assert words in refused.reason


@pytest.mark.parametrize(
    ("spec", "refused"),
    [
        ({"ssds": {"models": ["N *"]}}, 0),
        ({"ssds": {"all": True}, "nodes": {"matchLabels": {"x": "y"}}}, 0),
        ({"ssds": {"serials": ["A", "GONE"]}}, 1),
        ({"ssds": {"serials": ["GONE"], "ids": ["GONE", "LOST-1"]}}, 2),
    ],
)
def test_what_nobody_named_is_not_told_of_and_what_is_nowhere_once(spec, refused):
    view = views([make(FlashPool, "fast", 1, spec=spec)], [node("s0", 1, [], [ssd_json("A", 0x13)])])["fast"]
    assert len(view.refused) == refused
    assert all("no server has such an SSD" in item.reason and item.node == "" for item in view.refused)


@pytest.mark.parametrize(
    ("pools", "words"),
    [
        ([pool("fast", 1, "B")], "names neither its serial"),
        ([pool("fast", 1, "A", nodes={"matchLabels": {"x": "y"}})], "does not select server s0"),
        ([pool("fast", 1, "A"), pool("old", 2, "A", age=9)], "pool old selects it too and is older"),
        ([make(FlashPool, "fast", 1, spec={"ssds": {"all": True}}, deleting=True)], "the pool is being deleted"),
    ],
)
def test_an_ssd_that_the_pool_has_no_more_is_kept_for_its_volumes(pools, words):
    view = views(pools, [node("s0", 1, [], [ssd_json("A", 0x13)])], [V])["fast"]
    assert view.ssds == ()
    (kept,) = view.draining
    assert words in kept.reason
    assert kept.volumes == ["serving/v"]
    assert not [item for item in view.refused if item.node]


def test_an_ssd_with_a_stranger_s_partition_is_refused_for_new_volumes_and_kept_for_its_own():
    view = views([pool("fast", 1, "A")], [node("s0", 1, [], [ssd_json("A", 0x13, **FOREIGN)])], [V])["fast"]
    assert [item.reason for item in view.refused] == [item.reason for item in view.draining] == ["not blank: ext4"]


def test_an_ssd_is_refused_once_though_it_holds_volumes_of_another_pool():
    """The API server takes no list that names an SSD twice: the pool's whole status would be refused."""
    other = volume("v", 10, pool="other", status={"nodeName": "s0", "ssd": "A-1"})
    nodes = [node("s0", 1, [], [ssd_json("A", 0x13, **FOREIGN)])]
    found = views([pool("fast", 1, "A", age=9), pool("other", 2, "A")], nodes, [other])
    assert [(item.ssd, item.reason) for item in found["fast"].refused] == [("A-1", "not blank: ext4")]
    assert found["fast"].draining == ()
    assert [item.volumes for item in found["other"].draining] == [["serving/v"]]


# --- all of it ---


@st.composite
def fleets(draw: st.DrawFn) -> tuple[list[FlashPool], list[FlashNode], list[FlashVolume], dict[str, dict[str, str]]]:
    serials = ["A", "B", "C", "D"]
    pools = []
    for number in range(draw(st.integers(1, 3))):
        ssds: dict[str, Any] = {"serials": draw(st.lists(st.sampled_from([*serials, "GONE"]), unique=True))}
        ssds |= {"all": True} if draw(st.booleans()) or not ssds["serials"] else {}
        ssds |= {"neighboursOnly": True} if draw(st.booleans()) else {}
        ssds |= {"exclude": {"serials": [draw(st.sampled_from(serials))]}} if draw(st.booleans()) else {}
        spec: dict[str, Any] = {"ssds": ssds, "allowedNamespaces": {}, "reserve": draw(st.sampled_from(["0%", "20%"]))}
        spec |= {"nodes": {"matchLabels": {"rack": "a"}}} if draw(st.booleans()) else {}
        deleting = draw(st.integers(0, 4)) == 0
        pools.append(
            make(FlashPool, f"p{number}", number + 1, age=draw(st.integers(0, 3)), spec=spec, deleting=deleting)
        )
    nodes, placed = [], []
    for number in range(draw(st.integers(1, 2))):
        ssds_there = []
        for item, serial in enumerate(draw(st.lists(st.sampled_from(serials), unique=True))):
            more = FOREIGN if draw(st.integers(0, 3)) == 0 else {}
            ssds_there.append(ssd_json(serial, draw(st.sampled_from([0x13, 0x24, 0x35])) + item, **more))
            placed.append((f"s{number}", f"{serial}-1"))
        nodes.append(node(f"s{number}", number + 1, [gpu_json(0x12)] if draw(st.booleans()) else [], ssds_there))
    volumes = [
        volume(
            f"v{number}",
            20 + number,
            pool=draw(st.sampled_from(["p0", "p1", "gone"])),
            status={"nodeName": where[0], "ssd": where[1], "granted": "10Mi"},
        )
        for number, where in enumerate(placed)
        if draw(st.booleans())
    ]
    return pools, nodes, volumes, {"s0": {"rack": draw(st.sampled_from(["a", "b"]))}}


@settings(max_examples=200, derandomize=True, deadline=None)
@given(fleets())
def test_each_ssd_is_usable_refused_or_kept_and_usable_in_one_pool_at_the_most(made):
    pools, nodes, volumes, labels = made
    found = views(pools, nodes, volumes, labels)
    usable_in: dict[tuple[str, str], list[str]] = {}
    for name, view in found.items():
        usable = [(item.node, item.ssd.id) for item in view.ssds]
        refused = [(item.node, item.ssd) for item in view.refused]
        draining = [(item.node, item.ssd) for item in view.draining]
        for some in (usable, refused, draining):
            assert len(some) == len(set(some)), f"pool {name} names an SSD twice"
        assert not set(usable) & {*refused, *draining}
        foreign = {(server.metadata.name, item.id) for server in nodes for item in server.status.ssds if item.reason}
        assert set(refused) & set(draining) <= foreign
        assert set(usable) <= view.own
        assert view.own <= {*usable, *refused}
        assert all(item.reason for item in (*view.refused, *view.draining))
        assert not (view.pool.deleting and (usable or refused)) or all(not place for place, _ in refused)
        mine = {(item.status.node_name, item.status.ssd) for item in volumes if item.spec.pool == name}
        assert mine <= {*usable, *draining}, "every volume's SSD is told of"
        assert set(draining) <= mine
        for place in usable:
            usable_in.setdefault(place, []).append(name)
    assert all(len(names) == 1 for names in usable_in.values())
    again = views(pools[::-1], nodes[::-1], volumes[::-1], labels)
    ledger = Ledger(nodes, volumes)
    assert {name: pool_status(view, ledger) for name, view in found.items()} == {
        name: pool_status(view, Ledger(nodes, volumes[::-1])) for name, view in again.items()
    }


def test_a_pool_is_held_by_the_volumes_that_have_bytes_of_it():
    waiting = volume("w", 11)
    other = volume("o", 12, pool="other", status={"nodeName": "s0", "ssd": "A-1"})
    assert holding(pool("fast", 1, "A"), [waiting, V, other]) == ["serving/v"]


@pytest.mark.parametrize(
    ("ssds", "words"),
    [
        ({"serials": ["A-1"]}, "it is an SSD's id: name it in spec.ssds.ids, or by its serial, A"),
        ({"ids": ["A"]}, "it is an SSD's serial: name it in spec.ssds.serials, or by its id, A-1"),
        ({"ids": ["Z"]}, "no server has such an SSD"),
    ],
)
def test_a_name_in_the_wrong_list_is_told_from_one_that_is_nowhere(ssds, words):
    made = make(FlashPool, "fast", 1, spec={"ssds": ssds})
    (refused,) = views([made], [node("s0", 1, [], [ssd_json("A", 0x13)])])["fast"].refused
    assert words in refused.reason
