"""Leases are judged by the clock of who looks, since another machine's may be wrong."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from kubeflash.kube import leases
from kubeflash.kube.errors import Conflict, NotFound
from kubeflash.kube.leases import Lease, LeaseHeld, Watcher, parse


class Server:
    """One Lease, with resource versions."""

    def __init__(self):
        self.body = None

    def get(self, info, name, namespace):
        if self.body is None:
            raise NotFound(name)
        return {**self.body, "spec": dict(self.body["spec"]), "metadata": dict(self.body["metadata"])}

    def create(self, info, body, namespace):
        if self.body is not None:
            raise Conflict("exists")
        self.body = {**body, "metadata": {**body["metadata"], "resourceVersion": "1"}}

    def replace(self, info, body, name, namespace):
        if body["metadata"]["resourceVersion"] != self.body["metadata"]["resourceVersion"]:
            raise Conflict("changed")
        version = str(int(body["metadata"]["resourceVersion"]) + 1)
        self.body = {**body, "metadata": {**body["metadata"], "resourceVersion": version}}


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 1000.0

    monkeypatch.setattr(leases.time, "monotonic", lambda: Clock.now)
    return Clock


def lease(server, holder):
    return Lease(server, "ns", "agent-a", holder, 15)


def test_it_is_taken_renewed_and_given_back(clock):
    server = Server()
    one, other = lease(server, "one"), lease(server, "other")
    one.acquire()
    one.acquire()
    with pytest.raises(LeaseHeld, match="held by one"):
        other.acquire()
    one.release()
    other.acquire()
    assert parse(server.body).holder == "other"
    assert server.body["spec"]["leaseTransitions"] == 1


def test_a_dead_holder_s_is_taken_after_it_was_watched_for_its_duration_whatever_its_clock_said(clock):
    server = Server()
    lease(server, "one").acquire()
    server.body["spec"]["renewTime"] = (datetime.now(UTC) + timedelta(days=9)).isoformat()
    other = lease(server, "other")
    for now in (1000.0, 1005.0, 1010.0, 1014.0):
        clock.now = now
        with pytest.raises(LeaseHeld):
            other.acquire()
    clock.now = 1016.0
    other.acquire()
    assert parse(server.body).holder == "other"


def test_a_holder_keeps_it_over_a_time_in_which_nobody_could_ask_the_api_server(clock):
    server = Server()
    one, other = lease(server, "one"), lease(server, "other")
    one.acquire()
    with pytest.raises(LeaseHeld):
        other.acquire()
    clock.now += 20  # an outage: neither could renew it, nor look
    with pytest.raises(LeaseHeld):
        other.acquire()
    one.acquire()


def test_a_live_holder_with_a_clock_that_is_behind_keeps_it(clock):
    server = Server()
    one, other = lease(server, "one"), lease(server, "other")
    one.acquire()
    for step in range(5):
        clock.now += 10
        one.acquire()
        server.body["spec"]["renewTime"] = datetime(2001, 1, 1, 0, 0, step, tzinfo=UTC).isoformat()
        with pytest.raises(LeaseHeld):
            other.acquire()


def test_a_watcher_forgets_what_is_gone_and_trusts_what_it_sees_first(clock):
    watcher = Watcher()
    view = parse({"metadata": {"name": "agent-a"}, "spec": {"holderIdentity": "x", "leaseDurationSeconds": 40}})
    watcher.see([view])
    assert watcher.fresh() == {"agent-a"}
    for _ in range(3):
        clock.now += 14
        watcher.see([view])
    assert watcher.fresh() == frozenset()
    watcher.see([])
    watcher.see([view])
    assert watcher.fresh() == {"agent-a"}


def test_a_time_in_which_nobody_looked_says_nothing_of_anybody(clock):
    watcher = Watcher()
    view = parse({"metadata": {"name": "agent-a"}, "spec": {"holderIdentity": "x", "leaseDurationSeconds": 40}})
    watcher.see([view])
    clock.now += 100
    watcher.see([view])
    assert watcher.fresh() == {"agent-a"}
