"""A condition keeps its time while its status stays, and is the same object's worth while nothing changed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from kubeflash.domain.conditions import false, find, holds, merge, true

T0 = datetime(2026, 1, 1, tzinfo=UTC)


def test_the_time_stays_while_the_status_stays_though_the_message_changes():
    first = merge([], [false("Ready", "Waiting", "for this")], generation=1, now=T0)
    later = merge(first, [false("Ready", "Waiting", "for that")], generation=2, now=T0 + timedelta(hours=1))
    assert later[0].last_transition_time == T0
    assert later[0].message == "for that"
    assert later[0].observed_generation == 2


def test_the_time_moves_with_the_status():
    first = merge([], [false("Ready", "Waiting", "")], generation=1, now=T0)
    later = merge(first, [true("Ready", "Done")], generation=1, now=T0 + timedelta(hours=1))
    assert later[0].last_transition_time == T0 + timedelta(hours=1)


def test_nothing_new_is_equal_so_that_nothing_is_written():
    first = merge([], [true("Ready", "Done"), true("Placed", "Placed")], generation=1, now=T0)
    again = merge(first, [true("Ready", "Done"), true("Placed", "Placed")], generation=1, now=T0 + timedelta(days=1))
    assert first == again


def test_find_and_holds():
    conditions = merge([], [true("Ready", "Done"), false("Placed", "No", "")], generation=1, now=T0)
    assert find(conditions, "Placed").reason == "No"
    assert find(conditions, "Carved") is None
    assert holds(conditions, "Ready")
    assert not holds(conditions, "Placed")
    assert not holds(conditions, "Carved")
