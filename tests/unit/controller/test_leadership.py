"""The controller's Lease at the end of its process: whoever stands by must not have to wait for it."""

from __future__ import annotations

import asyncio
import copy
import threading

import pytest

from kubeflash.controller import process
from kubeflash.controller.process import Leadership
from kubeflash.kube import leases
from kubeflash.kube.errors import Forbidden, NotFound, Unreachable
from kubeflash.kube.leases import Lease, LeaseHeld
from kubeflash.kube.serving import START, Health
from support.objects import T0


class SlowLease:
    """A Lease whose renewal is as slow as the test lets it be, as at a busy API server."""

    holder = "one"

    def __init__(self):
        self.calls: list[str] = []
        self.renewing, self.go_on = threading.Event(), threading.Event()
        self.fails = False

    def acquire(self):
        self.renewing.set()
        assert self.go_on.wait(10)
        if self.fails:
            raise Unreachable("gone")
        self.calls.append("renewed")

    def release(self):
        self.calls.append("given back")


@pytest.fixture
def lease(monkeypatch):
    monkeypatch.setattr(process, "RENEW_SECONDS", 0.01)
    return SlowLease()


async def stopped_in_a_renewal(lease: SlowLease) -> None:
    stop = asyncio.Event()
    leadership = Leadership(lease, Health())
    keeping = asyncio.create_task(leadership.keep(stop))
    assert await asyncio.to_thread(lease.renewing.wait, 10)
    stop.set()
    giving = asyncio.create_task(leadership.give_back(keeping))
    await asyncio.sleep(0.05)
    lease.go_on.set()
    await giving
    await keeping


def test_it_is_given_back_after_the_renewal_that_was_under_way(lease):
    asyncio.run(stopped_in_a_renewal(lease))
    assert lease.calls == ["renewed", "given back"]


def test_it_is_given_back_though_the_last_renewal_failed(lease):
    lease.fails = True
    asyncio.run(stopped_in_a_renewal(lease))
    assert lease.calls == ["given back"]


def test_nothing_is_renewed_once_it_is_to_end(lease, monkeypatch):
    monkeypatch.setattr(process, "RENEW_SECONDS", 60)
    lease.go_on.set()

    async def ended() -> None:
        stop = asyncio.Event()
        leadership = Leadership(lease, Health())
        assert await leadership.win(stop)
        keeping = asyncio.create_task(leadership.keep(stop))
        await asyncio.sleep(0.05)
        stop.set()
        await leadership.give_back(keeping)

    asyncio.run(ended())
    assert lease.calls == ["renewed", "given back"]


def test_an_api_server_that_does_not_answer_holds_the_end_up_for_seconds_at_most(lease, monkeypatch, caplog):
    monkeypatch.setattr(process, "GIVE_BACK_SECONDS", 0.1)

    async def ended() -> None:
        stop = asyncio.Event()
        leadership = Leadership(lease, Health())
        keeping = asyncio.create_task(leadership.keep(stop))
        assert await asyncio.to_thread(lease.renewing.wait, 10)
        stop.set()
        await leadership.give_back(keeping)
        lease.go_on.set()

    asyncio.run(ended())
    assert "given back" not in lease.calls
    assert "the next controller waits 10 s" in caplog.text


class Clock:
    """Time that a test lets pass, for the loop and for the leases alike."""

    now = 1000.0


class SharedLease:
    """The API server's one Lease, as `tests/unit/kube/test_leases.py` has it."""

    body = None

    def get(self, info, name, namespace):
        if self.body is None:
            raise NotFound(name)
        return copy.deepcopy(self.body)

    def create(self, info, body, namespace):
        self.body = copy.deepcopy(body)

    replace = lambda self, info, body, name, namespace: self.create(info, body, namespace)  # noqa: E731


@pytest.mark.parametrize("phase", [0.0, 0.1, 1.2, 2.4])
def test_when_the_leader_is_lost_the_next_one_leads_within_15_s(monkeypatch, phase):
    monkeypatch.setattr(leases.time, "monotonic", lambda: Clock.now)
    slept: list[float] = []

    async def sleep(seconds, stop):
        slept.append(seconds)
        Clock.now += seconds

    monkeypatch.setattr(process.runtime, "sleep", sleep)
    server = SharedLease()
    first = Lease(server, "ns", "leader", "first", process.LEADER_SECONDS)
    first.acquire()
    second = Leadership(Lease(server, "ns", "leader", "second", process.LEADER_SECONDS), Health())
    with pytest.raises(LeaseHeld):
        second._lease.acquire()
    Clock.now += phase  # the last renewal, right after the other one has looked or later
    server.body["spec"]["renewTime"] = "2026-01-01T00:00:00Z"
    lost = Clock.now
    Clock.now += process.RENEW_SECONDS - phase
    assert asyncio.run(second.win(asyncio.Event()))
    assert 10 <= Clock.now - lost <= 15
    assert set(slept) == {2.5}


def test_a_leader_acts_on_a_lease_only_while_nobody_can_have_taken_it():
    async def body() -> None:
        lease = SlowLease()
        lease.go_on.set()
        leadership = Leadership(lease, Health())
        assert await leadership.win(asyncio.Event())
        now = asyncio.get_running_loop().time
        assert leadership.fresh
        leadership._renewed = now() - (process.LEADER_SECONDS - process.RENEW_SECONDS) - 0.01
        assert not leadership.fresh

    asyncio.run(body())


def test_who_stands_by_is_ready_while_the_api_server_answers_and_who_leads_once_it_has_looked(monkeypatch):
    monkeypatch.setattr(process, "RENEW_SECONDS", 0.0)
    answers = iter([Unreachable("no answer"), LeaseHeld("l", "other", T0), Forbidden("may not"), None])
    health, seen = Health(), []
    health.say(START)

    class Told:
        holder = "one"

        def acquire(self):
            seen.append(health.unready)
            answer = next(answers)
            if answer is not None:
                raise answer

    assert asyncio.run(Leadership(Told(), health).win(asyncio.Event()))
    assert seen == ["the Lease has not been asked for yet", "no answer", "", "may not"]
    assert "has not looked at all objects yet" in health.unready
