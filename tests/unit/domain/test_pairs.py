"""Pairs over time: what became worse stays visible until an admin accepts it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from kubeflash.api.v1alpha1 import Distance, NodePair, PeerToPeerStatus
from kubeflash.domain.pairs import became_worse, best_of, changes, got_worse, remember

T0 = datetime(2026, 11, 1, tzinfo=UTC)
LATER = T0 + timedelta(days=3)
GPU, OTHER = "0000:4d:00.0", "0000:5d:00.0"


def pair(how_far: str, ssd: str = "eui.1", *, gpu: str = GPU, wide: int | None = 15754) -> NodePair:
    return NodePair(
        gpu=gpu,
        ssd="0000:4e:00.0",
        id=ssd,
        distance=Distance(how_far),
        alone=wide,
        p2p=PeerToPeerStatus(why="a test"),
        why="a test",
    )


def test_what_is_seen_first_is_remembered_and_what_is_better_replaces_it():
    first = remember([], [pair("NODE")], T0)
    assert [(item.distance, item.since) for item in first] == [(Distance.NODE, T0)]
    assert remember(first, [pair("NODE")], LATER) == first
    better = remember(first, [pair("PIX")], LATER)
    assert [(item.distance, item.since) for item in better] == [(Distance.PIX, LATER)]
    assert remember(better, [pair("NODE")], LATER + timedelta(days=1)) == better


@pytest.mark.parametrize(
    ("now", "said"),
    [
        ([pair("PIX")], []),
        ([pair("PIX", "eui.2")], []),
        ([pair("PIX", wide=15000)], []),
        ([pair("PIX", wide=None)], []),
        ([pair("PIX", wide=7877)], ["had eui.1 at PIX, 15.8 GB/s since 2026-11-01, now eui.1 at PIX, 7.9 GB/s"]),
        ([pair("SYS", "eui.2")], ["had eui.1 at PIX, 15.8 GB/s since 2026-11-01, now eui.2 at SYS, 15.8 GB/s"]),
        ([pair("SYS", "eui.2"), pair("PIX")], []),
        ([], ["has no SSD any more; it had eui.1 at PIX, 15.8 GB/s since 2026-11-01"]),
    ],
)
def test_what_became_worse(now: list[NodePair], said: list[str]):
    best = remember([], [pair("PIX")], T0)
    assert became_worse(remember(best, now, LATER), now, [GPU]) == [f"GPU 4d:00.0 {words}" for words in said]


def test_a_gpu_that_is_gone_is_not_forgotten():
    """A riser that dropped out at a reboot takes GPU and SSD with it."""
    best = remember([], [pair("PIX"), pair("PIX", "eui.2", gpu=OTHER)], T0)
    now = [pair("PIX", "eui.2", gpu=OTHER)]
    assert became_worse(remember(best, now, LATER), now, [OTHER]) == [
        "GPU 4d:00.0 is gone; it had eui.1 at PIX, 15.8 GB/s since 2026-11-01"
    ]


def test_an_admin_accepts_what_is():
    best = remember([], [pair("PIX"), pair("PIX", gpu=OTHER)], T0)
    now = [pair("SYS", "eui.2")]
    accepted = remember(best, now, LATER, accepted_at=LATER - timedelta(minutes=1))
    assert [(item.gpu, item.distance, item.since) for item in accepted] == [(GPU, Distance.SYS, LATER)]
    assert became_worse(accepted, now, [GPU]) == []
    assert remember(accepted, now, LATER + timedelta(days=1), accepted_at=LATER - timedelta(minutes=1)) == accepted


def test_a_time_that_has_not_come_yet_accepts_nothing():
    """Else each pass would forget, and write, what the one before has just seen."""
    best = remember([], [pair("PIX")], T0)
    assert remember(best, [pair("SYS")], LATER, accepted_at=LATER + timedelta(hours=1)) == best


def test_changes_are_told_for_each_gpu():
    before = [pair("PIX"), pair("NODE", "eui.3", gpu=OTHER)]
    after = [pair("SYS", "eui.2"), pair("NODE", "eui.3", gpu=OTHER, wide=1)]
    assert changes(before, after) == ["GPU 4d:00.0: eui.1 at PIX, 15.8 GB/s → eui.2 at SYS, 15.8 GB/s"]
    assert changes(before, before) == []
    assert changes([], before[:1]) == ["GPU 4d:00.0: nothing → eui.1 at PIX, 15.8 GB/s"]
    assert changes(before[:1], []) == ["GPU 4d:00.0: eui.1 at PIX, 15.8 GB/s → nothing"]


def test_what_is_worse_is_a_warning():
    assert got_worse([pair("PIX")], [pair("SYS", "eui.2")])
    assert got_worse([pair("PIX")], [])
    assert not got_worse([pair("NODE")], [pair("PIX", "eui.2")])
    assert not got_worse([], [pair("SYS")])


def test_the_best_pair_of_a_gpu_is_the_nearest_then_the_widest():
    assert best_of([pair("NODE", "a"), pair("PIX", "b", wide=1), pair("PIX", "c", wide=2)])[GPU].id == "c"
