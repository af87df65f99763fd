"""The controller's Lease at the end of its process: whoever stands by must not have to wait for it."""

from __future__ import annotations

import asyncio
import threading

import pytest

from kubeflash.controller import process
from kubeflash.controller.process import Leadership
from kubeflash.kube.errors import Unreachable


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
    leadership = Leadership(lease)
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
        leadership = Leadership(lease)
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
        leadership = Leadership(lease)
        keeping = asyncio.create_task(leadership.keep(stop))
        assert await asyncio.to_thread(lease.renewing.wait, 10)
        stop.set()
        await leadership.give_back(keeping)
        lease.go_on.set()

    asyncio.run(ended())
    assert "given back" not in lease.calls
    assert "the next controller waits 15 s" in caplog.text
