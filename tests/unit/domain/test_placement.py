"""Which SSD a volume goes on, which it never does, and that what explains it is what decides it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import permutations
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kubeflash.api.v1alpha1 import Distance, FlashNode, FlashPool, FlashVolume
from kubeflash.domain.cluster import Cluster
from kubeflash.domain.disk import MIB
from kubeflash.domain.placement import Consideration, Placement, Refusal, consider, grow, settle
from support.objects import T0, gpu_json, make, node, pool, ssd_json, uid, volume

A_GPU, OTHER_GPU = "0000:12:00.0", "0000:22:00.0"
PLACES: Mapping[str, dict[str, Any]] = {
    "PIX": {"bus": 0x13},
    "PHB": {"bus": 0x33},
    "NODE": {"bus": 0x93, "rootComplex": "pci0000:80"},
    "SYS": {"bus": 0xA3, "rootComplex": "pci0000:80", "numaNode": 1},
}


def ssd(serial: str, where: str = "PHB", **more: Any) -> dict[str, Any]:
    """An SSD that is so far from the GPU at 12:00.0."""
    place = dict(PLACES[where])
    return {**ssd_json(serial, place.pop("bus"), **more), **place}


def extent(number: int, start: int, mib: int) -> dict[str, Any]:
    return {"id": uid(1000 + number), "number": number % 200 + 2, "start": start * MIB, "bytes": mib * MIB}


def cluster(
    nodes: list[FlashNode], *volumes: FlashVolume, pools: list[FlashPool] | None = None, **more: Any
) -> Cluster:
    known = pools if pools is not None else [make(FlashPool, "fast", 900, spec=EVERYTHING)]
    return Cluster(
        **{
            "now": T0,
            "pools": {item.metadata.name: item for item in known},
            "nodes": {item.metadata.name: item for item in nodes},
            "volumes": {item.key: item for item in volumes},
            "attachments": {},
            "answering": frozenset(item.metadata.name for item in nodes),
            "leader": "me",
            **more,
        }
    )


EVERYTHING = {"ssds": {"all": True}, "allowedNamespaces": {}}


# --- whatever the cluster ---


@st.composite
def clusters(draw: st.DrawFn) -> tuple[Cluster, FlashVolume]:
    """Some servers, and a volume that wants something of them."""
    nodes, labels = [], {}
    for number in range(draw(st.integers(1, 3))):
        name = f"s{number}"
        ssds = []
        for item in range(draw(st.integers(0, 4))):
            more: dict[str, Any] = {"gib": draw(st.sampled_from([1, 2]))}
            if draw(st.booleans()):
                more["volumes"] = [extent(10 * number + item, 2 + draw(st.integers(0, 400)), draw(st.integers(1, 600)))]
            kind = draw(st.sampled_from(["", "", "", "failing", "Foreign"]))
            more |= {"failing": "SMART: worn out"} if kind == "failing" else {}
            more |= {"state": kind, "reason": "not blank: ext4"} if kind == "Foreign" else {}
            place = ssd(f"N{number}S{item}", draw(st.sampled_from(list(PLACES))), **more)
            ssds.append({**place, "address": f"{place['address'][:-1]}{item}"})
        gpus = [gpu_json(0x12), gpu_json(0x22)][: draw(st.integers(0, 2))]
        made = node(name, number + 1, gpus, ssds)
        pairs = [
            {"gpu": A_GPU, "ssd": item["address"], "id": item["id"], "distance": "PIX", "p2p": {"why": ""}, "why": ""}
            for item in ssds
            if gpus and draw(st.integers(0, 3)) == 0
        ]
        body = {**made.model_dump(by_alias=True), "spec": {"maintenance": draw(st.integers(0, 5)) == 0}}
        body["status"]["pairs"] = pairs
        nodes.append(FlashNode.from_json(body))
        labels[name] = {"rack": draw(st.sampled_from(["a", "b"]))}
    spec: dict[str, Any] = dict(EVERYTHING)
    if draw(st.integers(0, 3)) == 0:
        spec["quota"] = {"perNamespace": "300Mi"}
    if draw(st.integers(0, 3)) == 0:
        spec["nodes"] = {"matchLabels": {"rack": "a"}}
    near: dict[str, Any] = {}
    if draw(st.booleans()):
        near = {"node": draw(st.sampled_from(["s0", "s1"]))}
        if draw(st.booleans()):
            near["gpu"] = draw(st.sampled_from([A_GPU, OTHER_GPU]))
            most = draw(st.sampled_from([None, "PIX", "PHB", "NODE", "SYS"]))
            near |= {"maxDistance": most} if most else {}
    item = volume("v", 99, size=f"{draw(st.sampled_from([1, 100, 500, 1000]))}Mi", spec={"near": near} if near else {})
    names = [item.metadata.name for item in nodes]
    found = cluster(
        nodes,
        item,
        pools=[make(FlashPool, "fast", 900, spec=spec)],
        node_labels=labels,
        answering=frozenset(name for name in names if draw(st.integers(0, 4))),
        cordoned=frozenset(name for name in names if not draw(st.integers(0, 4))),
        refusals={item.metadata.uid: {"N0S0-1": "it said no"}} if draw(st.booleans()) else {},
    )
    return found, item


def fresh(found: Cluster, *, backwards: bool = False) -> Cluster:
    """The same cluster with nothing worked out yet, its objects in another order where wished."""
    turn = (lambda items: dict(reversed(items.items()))) if backwards else dict
    return replace(
        found,
        pools=turn(found.pools),
        nodes=turn(found.nodes),
        volumes=turn(found.volumes),
        neighbours=type(found.neighbours)(),
    )


def shown(seen: Consideration) -> tuple[Any, ...]:
    return (seen.outcome, [(c.item.node, c.item.ssd.id, c.distance, c.own, c.gpus, c.why_not) for c in seen.candidates])


FEW = settings(max_examples=150, derandomize=True, deadline=None)


@FEW
@given(clusters())
def test_what_explains_is_what_decides(made):
    found, item = made
    seen = consider(item, found)
    left = [candidate for candidate in seen.candidates if not candidate.why_not]
    if isinstance(seen.outcome, Placement):
        assert (seen.outcome.node, seen.outcome.ssd) == (left[0].item.node, left[0].item.ssd.id)
        assert seen.candidates[0] is left[0], "the best comes first"
    else:
        assert not left or seen.outcome.reason == "QuotaExceeded"
        assert seen.outcome.message
    assert settle(item, fresh(found)) == seen.outcome


@FEW
@given(clusters())
def test_the_order_in_which_objects_are_told_does_not_matter(made):
    found, item = made
    assert shown(consider(item, fresh(found))) == shown(consider(item, fresh(found, backwards=True)))


@FEW
@given(clusters())
def test_an_ssd_that_is_taken_may_be_taken(made):
    found, item = made
    outcome = consider(item, found).outcome
    if isinstance(outcome, Refusal):
        return
    server = found.nodes[outcome.node]
    (device,) = [one for one in server.status.ssds if one.id == outcome.ssd]
    assert device.state != "Foreign"
    assert not device.failing
    assert not server.spec.maintenance
    assert outcome.node in found.answering
    assert outcome.ssd not in found.refusals.get(item.metadata.uid, {})
    near = item.spec.near
    assert outcome.node not in found.cordoned or (near is not None and near.node == outcome.node)
    assert near is None or near.node == outcome.node
    if near is not None and near.max_distance is not None:
        assert outcome.distance is not None
        assert outcome.distance <= Distance(near.max_distance)
    assert sum(span.bytes for span in found.ledger.free((outcome.node, outcome.ssd))) >= item.spec.size


@FEW
@given(clusters())
def test_the_nearest_is_taken_then_the_gpu_s_own_then_the_emptiest(made):
    found, item = made
    seen = consider(item, found)
    if isinstance(seen.outcome, Refusal):
        return
    left = [candidate for candidate in seen.candidates if not candidate.why_not]
    best = left[0]

    def taken(candidate):
        return 1_000_000 - candidate.item.free_bytes * 1_000_000 // candidate.item.capacity

    if item.spec.near is not None and item.spec.near.gpu:
        least = min(candidate.distance.rank for candidate in left)
        assert best.distance.rank == least
        left = [candidate for candidate in left if candidate.distance.rank == least]
        assert best.own or not any(candidate.own for candidate in left)
        left = [candidate for candidate in left if candidate.own == best.own]
    else:
        least = min(candidate.gpus for candidate in left)
        assert best.gpus == least, "neighbours are left for those who ask for one"
        left = [candidate for candidate in left if candidate.gpus == least]
    assert taken(best) == min(taken(candidate) for candidate in left)


def test_ssds_fill_evenly():
    items: list[FlashVolume] = []
    servers = [node("s0", 1, [], [ssd("A"), ssd("B")]), node("s1", 2, [], [ssd("C"), ssd("D")])]
    for number in range(16):
        new = volume(f"v{number}", number, size="50Mi")
        found = settle(new, cluster(servers, *items, new))
        assert isinstance(found, Placement)
        status = {"nodeName": found.node, "ssd": found.ssd, "granted": "50Mi", "grantedBy": "me"}
        items.append(volume(f"v{number}", number, size="50Mi", status=status))
        counts = [sum(item.status.ssd == f"{serial}-1" for item in items) for serial in "ABCD"]
        assert max(counts) - min(counts) <= 1


@pytest.mark.parametrize(("taken_mib", "chosen"), [(0, "B-1"), (600, "B-1"), (1000, "A-1")])
def test_a_neighbour_is_wasted_on_a_volume_that_asks_for_none_only_where_nothing_else_fits(taken_mib, chosen):
    there = [extent(1, 2, taken_mib)] if taken_mib else []
    servers = [node("s0", 1, [gpu_json(0x12)], [ssd("A", "PIX"), ssd("B", volumes=there)])]
    item = volume("v", 9)
    outcome = settle(item, cluster(servers, item))
    assert isinstance(outcome, Placement)
    assert outcome.ssd == chosen


# --- whose GPU is it? ---

BY_UUID = {"near": {"gpu": "GPU-1"}}


def test_a_gpu_that_two_servers_tell_of_is_the_one_s_that_answers():
    """A server that was renamed, or whose GPU went into another one, has left its word behind."""
    gpus = [{**gpu_json(0x12), "uuid": "GPU-1"}]
    before, now = node("old", 1, gpus, [ssd("A")]), node("new", 2, gpus, [ssd("A", "PIX")])
    item = volume("v", 9, spec=BY_UUID)
    for servers in permutations([before, now]):
        outcome = consider(item, cluster(list(servers), item, answering=frozenset({"new"}))).outcome
        assert isinstance(outcome, Placement)
        assert (outcome.node, outcome.distance) == ("new", Distance.PIX)
    both = [consider(item, cluster(list(order), item)).outcome for order in permutations([before, now])]
    assert both[0] == both[1]


def test_the_same_address_in_another_server_is_another_gpu():
    """An SSD that moved is beside the GPU with that address there: which is not the one in spec.near."""
    pair = {"gpu": A_GPU, "ssd": "0000:13:00.0", "id": "A-1", "distance": "PIX", "p2p": {"why": "b's"}, "why": ""}
    made = node("b", 2, [gpu_json(0x12)], [{**ssd("A", "PIX"), "volumes": [extent(9, 2, 100)]}])
    body = made.model_dump(by_alias=True)
    body["status"]["pairs"] = [pair]
    home = FlashNode.from_json(body)
    status = {"nodeName": "b", "ssd": "A-1", "bytes": 100 * MIB, "granted": "100Mi", "grantedBy": "me"}
    item = volume("v", 9, spec={"near": {"node": "a", "gpu": A_GPU}}, status=status)
    found = settle(item, cluster([node("a", 1, [gpu_json(0x12)], []), home], item))
    assert isinstance(found, Placement)
    assert (found.distance, found.p2p) == (None, None)


# --- quota ---


def settled(name: str, number: int, mib: int, **more: Any) -> FlashVolume:
    status = {"nodeName": "s0", "ssd": "A-1", "bytes": mib * MIB, "granted": f"{mib}Mi", "grantedBy": "me"}
    return volume(name, number, status={**status, **more.pop("status", {})}, **{"size": f"{mib}Mi", **more})


@pytest.mark.parametrize(
    ("others", "restored", "size", "bytes_there", "fits"),
    [
        ([], False, "200Mi", 0, True),
        ([], False, "201Mi", 0, False),
        ([150], False, "50Mi", 0, True),
        ([150], False, "51Mi", 0, False),
        ([150], True, "1Mi", 50, True),
        ([150], True, "1Mi", 51, False),  # a small spec.size smuggles no larger partition in
        ([150], True, "900Mi", 50, True),
    ],
)
def test_quota_at_creation_and_at_restore(others, restored, size, bytes_there, fits):
    there = [extent(number, 2 + 200 * number, mib) for number, mib in enumerate(others, start=1)]
    there += [extent(9, 700, bytes_there)] if bytes_there else []
    volumes = [settled(f"o{number}", number, mib) for number, mib in enumerate(others, start=1)]
    item = volume("v", 9, size=size, restored=restored)
    limited = make(FlashPool, "fast", 900, spec={**EVERYTHING, "quota": {"perNamespace": "200Mi"}})
    outcome = settle(item, cluster([node("s0", 1, [], [ssd("A", volumes=there)])], *volumes, item, pools=[limited]))
    if fits:
        assert isinstance(outcome, Placement), outcome
        assert outcome.bytes == (bytes_there * MIB or item.spec.size)
    else:
        assert isinstance(outcome, Refusal)
        assert outcome.reason == "QuotaExceeded"
        assert "may have 200Mi" in outcome.message


@pytest.mark.parametrize(
    ("size", "others", "behind", "status", "granted", "reason"),
    [
        ("100Mi", 10, 0, {}, 100, ""),
        ("100Mi", 150, 0, {}, 50, "QuotaExceeded"),
        ("250Mi", 0, 0, {}, 50, "QuotaExceeded"),
        ("100Mi", 10, 20, {}, 50, "NoSpace"),
        ("70Mi", 10, 20, {}, 70, ""),
        ("50Mi", 150, 0, {}, 50, ""),
        ("100Mi", 150, 0, {"granted": "100Mi"}, 100, ""),  # what this controller granted stands
        ("100Mi", 150, 0, {"granted": "100Mi", "grantedBy": "another"}, 50, "QuotaExceeded"),
        ("100Mi", 10, 0, {"granted": "100Mi", "grantedBy": "another"}, 100, ""),
        ("20Mi", 10, 0, {"granted": "100Mi", "grantedBy": "another"}, 50, ""),
    ],
)
def test_how_large_a_volume_may_become(size, others, behind, status, granted, reason):
    item = settled("v", 9, 50, size=size, status=status)
    there = [extent(9, 2, 50), extent(1, 600, others or 1), *([extent(2, 52 + behind, 5)] if behind else [])]
    limited = make(FlashPool, "fast", 900, spec={**EVERYTHING, "quota": {"perNamespace": "200Mi"}})
    other = [settled("o", 1, others)] if others else []
    growth = grow(item, cluster([node("s0", 1, [], [ssd("A", volumes=there)])], *other, item, pools=[limited]))
    assert (growth.bytes // MIB, growth.reason) == (granted, reason)
    assert bool(growth.why_not) is bool(reason)


@pytest.mark.parametrize(
    ("pools", "reason"),
    [
        ([], "PoolGone"),
        ([make(FlashPool, "fast", 900, spec=EVERYTHING, deleting=True)], "PoolGone"),
        ([make(FlashPool, "fast", 900, spec={"ssds": {"all": True}})], "NamespaceNotAllowed"),
        ([pool("fast", 900, "B")], "Draining"),
    ],
)
def test_a_volume_whose_pool_does_not_have_its_ssd_for_it_any_more_does_not_grow(pools, reason):
    item = settled("v", 9, 50, size="60Mi")
    servers = [node("s0", 1, [], [ssd("A", volumes=[extent(9, 2, 50)]), ssd("B")])]
    growth = grow(item, cluster(servers, item, pools=pools))
    assert (growth.bytes, growth.reason) == (50 * MIB, reason)


# --- is it somewhere already? ---

HOLDS = extent(9, 2, 100)
RESTORED = volume("v", 9, restored=True)
STATE = {"state": "Claimed"}
FOREIGN = {"state": "Foreign", "reason": "somebody added partition 3"}


@pytest.mark.parametrize(
    ("servers", "more", "reason", "words"),
    [
        ([("s0", [ssd("A", volumes=[HOLDS])])], {}, "Found", ""),
        ([("s0", [ssd("A")])], {}, "NotFound", "no SSD holds it. It is waited for"),
        ([("s0", [ssd("A")]), ("s1", [])], {"answering": frozenset({"s0"})}, "NotFound", "does not answer now: s1"),
        ([("s0", [ssd("A", volumes=[HOLDS])])], {"answering": frozenset()}, "Found", ""),
        (
            [("s0", [ssd("A", volumes=[HOLDS])]), ("s1", [ssd("B", volumes=[HOLDS])])],
            {},
            "FoundTwice",
            "SSD A-1 of server s0, SSD B-1 of server s1",
        ),
        (
            [("s0", [ssd("A", volumes=[HOLDS])]), ("s1", [ssd("A", volumes=[HOLDS])])],
            {"answering": frozenset({"s1"})},
            "Found",
            "",
        ),
        ([("s0", [ssd("A", volumes=[HOLDS], labelled="s9")])], {}, "NotFound", ""),
        (
            [("s0", [ssd("A", volumes=[HOLDS])])],
            {"pools": [pool("fast", 900, "B")]},
            "FoundElsewhere",
            "SSD A-1 of server s0, which is not of pool fast",
        ),
        ([("s0", [ssd("A", volumes=[HOLDS], **FOREIGN)])], {}, "Found", ""),  # it is the pool's, and gets nothing new
    ],
)
def test_a_volume_whose_id_came_with_the_object_is_looked_for(servers, more, reason, words):
    made = [node(name, number, [], ssds) for number, (name, ssds) in enumerate(servers, start=1)]
    outcome = settle(RESTORED, cluster(made, RESTORED, **more))
    assert outcome.reason == reason
    if isinstance(outcome, Refusal):
        assert words in outcome.message
    else:
        assert outcome.bytes == 100 * MIB


def test_of_two_objects_with_one_id_the_one_that_has_a_place_has_it_else_the_older_one():
    older, younger = volume("old", 1, age=9), volume("new", 1)
    younger = make(FlashVolume, "new", 2, spec=older.spec.to_json(), age=1)
    servers = [node("s0", 1, [], [ssd("A")])]
    for order in permutations([older, younger]):
        found = cluster(servers, *order)
        assert isinstance(settle(older, fresh(found)), Placement)
        refused = settle(younger, fresh(found))
        assert isinstance(refused, Refusal)
        assert refused.reason == "IdTaken"
    found = {"type": "Placed", "status": "True", "reason": "Found", "lastTransitionTime": T0.isoformat()}
    status = {"nodeName": "s0", "ssd": "A-1", "conditions": [found]}
    placed = make(FlashVolume, "new", 2, spec=older.spec.to_json(), status=status, age=1)
    refused = settle(older, cluster(servers, older, placed))
    assert isinstance(refused, Refusal)
    assert refused.reason == "IdTaken"


def test_a_lost_volume_is_placed_nowhere_and_keeps_its_id_until_it_is_deleted():
    lost = {"nodeName": "gone", "ssd": "A-1", "since": T0.isoformat()}
    gone = volume("v", 9, status={"lost": lost})
    adopted = make(FlashVolume, "again", 10, spec=gone.spec.to_json())
    servers = [node("s0", 1, [], [ssd("A", volumes=[HOLDS])])]
    refused = settle(gone, cluster(servers, gone, adopted))
    assert isinstance(refused, Refusal)
    assert refused.reason == "Lost"
    refused = settle(adopted, cluster(servers, gone, adopted))
    assert isinstance(refused, Refusal)
    assert "it is lost: delete it first" in refused.message
    found = settle(adopted, cluster(servers, adopted))
    assert isinstance(found, Placement)
    assert found.reason == "Found"


# --- its SSD went elsewhere ---


@pytest.mark.parametrize(
    ("here", "there", "answering", "goes", "words"),
    [
        ([], [ssd("A", volumes=[HOLDS])], {"s0", "s1"}, True, "came from server s0"),
        ([], [ssd("A", volumes=[HOLDS])], {"s1"}, True, "came from server s0"),
        ([ssd("A", volumes=[HOLDS])], [ssd("A", volumes=[HOLDS])], {"s1"}, False, ""),
        ([ssd("A", volumes=[HOLDS])], [ssd("A", volumes=[HOLDS])], {"s0", "s1"}, False, ""),
        ([], [ssd("A", volumes=[HOLDS])], {"s0"}, False, ""),
        ([], [ssd("A", volumes=[HOLDS], labelled="s0")], {"s0", "s1"}, False, ""),
        ([], [ssd("B", volumes=[HOLDS])], {"s0", "s1"}, False, ""),
    ],
)
def test_a_volume_follows_its_ssd_once_that_is_the_other_server_s(here, there, answering, goes, words):
    item = settled("v", 9, 100)
    servers = [node("s0", 1, [], here), node("s1", 2, [], there)]
    outcome = settle(item, cluster(servers, item, answering=frozenset(answering)))
    assert isinstance(outcome, Placement)
    assert outcome.node == ("s1" if goes else "s0")
    assert outcome.reason == ("Moved" if goes else "Settled")
    assert words in outcome.words


@pytest.mark.parametrize(
    ("adopt", "purge", "answering", "goes"),
    [
        ({"A-1": "s0"}, None, {"s1"}, True),
        ({}, "s0", {"s1"}, True),
        ({"A-1": "s2"}, None, {"s1"}, False),
        ({"B-1": "s0"}, None, {"s1"}, False),
        ({}, "s2", {"s1"}, False),
        ({"A-1": "s0"}, None, {"s0", "s1"}, False),
        ({}, "s0", {"s0", "s1"}, False),
    ],
)
def test_from_a_silent_server_a_volume_follows_its_ssd_at_an_admin_s_word(adopt, purge, answering, goes):
    item = settled("v", 9, 100)
    has = [ssd("A", volumes=[HOLDS])]
    before = make(FlashNode, "s0", 1, spec={"purge": purge}, status=node("s0", 1, [], has).status.to_json())
    now = make(FlashNode, "s1", 2, spec={"adopt": adopt}, status=node("s1", 2, [], has).status.to_json())
    outcome = settle(item, cluster([before, now], item, answering=frozenset(answering)))
    assert isinstance(outcome, Placement)
    assert outcome.node == ("s1" if goes else "s0")


def test_a_renamed_server_s_volumes_follow_it_with_all_that_is_known_of_their_place():
    item = settled("v", 9, 100, status={"distance": "PIX"})
    servers = [node("s0", 1, [], [ssd("A", volumes=[HOLDS])]), node("s1", 2, [], [ssd("A", volumes=[HOLDS])])]
    servers[1] = servers[1].model_copy(update={"status": servers[1].status.model_copy(update={"system_uuid": "s0"})})
    outcome = settle(item, cluster(servers, item, answering=frozenset({"s1"})))
    assert isinstance(outcome, Placement)
    assert (outcome.node, outcome.distance, outcome.words) == ("s1", Distance.PIX, "server s0 is called s1 now")


# --- servers and SSDs that get nothing new ---


def maintained(name: str, ssds: list[dict[str, Any]]) -> FlashNode:
    return make(FlashNode, name, 1, spec={"maintenance": True}, status=node(name, 1, [], ssds).status.to_json())


@pytest.mark.parametrize(
    ("servers", "near", "more", "words"),
    [
        ([maintained("s0", [ssd("A")])], None, {}, "maintenance"),
        ([maintained("s0", [ssd("A")])], {"node": "s0"}, {}, "maintenance"),
        ([node("s0", 1, [], [ssd("A")])], None, {"cordoned": frozenset({"s0"})}, "cordoned"),
        ([node("s0", 1, [], [ssd("A")])], {"ssd": "A-1"}, {"cordoned": frozenset({"s0"})}, "cordoned"),
        ([node("s0", 1, [], [ssd("A")])], {"node": "s0"}, {"cordoned": frozenset({"s0"})}, None),
        ([node("s0", 1, [], [ssd("A", failing="SMART: x")])], None, {}, "it is failing: SMART: x"),
        ([node("s0", 1, [], [ssd("A", failing="SMART: x")])], {"node": "s0", "ssd": "A-1"}, {}, "it is failing"),
        ([node("s0", 1, [], [ssd("A")])], None, {"answering": frozenset()}, "does not answer"),
        ([node("s0", 1, [], [ssd("A")])], {"ssd": "B-1"}, {}, "spec.near.ssd is B-1"),
    ],
)
def test_what_gets_nothing_new_says_why(servers, near, more, words):
    item = volume("v", 9, spec={"near": near} if near else {})
    seen = consider(item, cluster(servers, item, **more))
    if words is None:
        assert isinstance(seen.outcome, Placement)
        return
    assert isinstance(seen.outcome, Refusal)
    assert seen.outcome.reason == "NoSuitableSSD"
    assert [words in candidate.why_not for candidate in seen.candidates] == [True]


@pytest.mark.parametrize("change", [{"cordoned": frozenset({"s0"})}, {"answering": frozenset()}])
def test_what_is_there_stays_where_nothing_new_is_placed(change):
    servers = [maintained("s0", [ssd("A", volumes=[HOLDS], failing="SMART: x")])]
    item = settled("v", 9, 100)
    outcome = settle(item, cluster(servers, item, **change))
    assert isinstance(outcome, Placement)
    assert outcome.reason == "Settled"


# --- another controller leads ---


def placed(by: str, **status: Any) -> FlashVolume:
    return volume("v", 9, status={"nodeName": "s0", "ssd": "A-1", "granted": "100Mi", "grantedBy": by, **status})


def test_what_another_controller_placed_and_is_not_there_yet_is_decided_anew_where_it_is():
    servers = [node("s0", 1, [], [ssd("A"), ssd("B", gib=2)])]
    for by in ("me", "another"):
        outcome = settle(placed(by), cluster(servers, placed(by)))
        assert isinstance(outcome, Placement)
        assert outcome.ssd == "A-1", "as good as another one, and there already"
    limited = [make(FlashPool, "fast", 900, spec={**EVERYTHING, "quota": {"perNamespace": "50Mi"}})]
    assert isinstance(settle(placed("me"), cluster(servers, placed("me"), pools=limited)), Placement)
    assert isinstance(settle(placed("another"), cluster(servers, placed("another"), pools=limited)), Refusal)


def test_a_placement_on_a_server_that_went_silent_is_not_given_to_another_one_by_the_next_leader():
    """It may have been carved there before the silence: a second partition with its id must not come to be."""
    servers = [node("s0", 1, [], [ssd("A")]), node("s1", 2, [], [ssd("B")])]
    for by in ("me", "another"):
        outcome = settle(placed(by), cluster(servers, placed(by), answering=frozenset({"s1"})))
        assert isinstance(outcome, Placement)
        assert (outcome.node, outcome.ssd) == ("s0", "A-1")
