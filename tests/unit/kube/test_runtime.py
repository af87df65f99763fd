"""The loop of both processes ends when it is told to, whatever else happens at that moment."""

from __future__ import annotations

import asyncio

import pytest

from kubeflash.kube import runtime
from kubeflash.kube.feed import Feed
from kubeflash.kube.serving import Health


class Nothing:
    """A client of a cluster without objects."""

    configuration = None


@pytest.mark.parametrize("turns", range(8))
def test_told_to_end_when_something_changes_the_loop_ends(turns):
    """A replica that has lost its Lease, or an agent that gets SIGTERM, must not go on for ever."""

    async def ends() -> bool:
        feed, looked = Feed(Nothing(), []), asyncio.Event()

        async def reconcile() -> None:
            looked.set()

        loop = asyncio.create_task(runtime._loop(feed, reconcile, Health()))
        await looked.wait()
        await asyncio.sleep(0.05)  # it waits for a change now
        feed.changed.set()
        for _ in range(turns):
            await asyncio.sleep(0)
        loop.cancel()
        done, _ = await asyncio.wait({loop}, timeout=1)
        loop.cancel()  # one that has lost the first, so that a failed test ends
        return loop in done and loop.cancelled()

    assert asyncio.run(ends())


def test_what_was_listed_anew_during_a_resync_is_looked_at_once_more(monkeypatch):
    """An object that went between the two lists would stay in the index otherwise."""
    feed, resyncs = Feed(Nothing(), []), []

    async def resync() -> None:
        feed.relisted.clear()
        resyncs.append(1)
        if len(resyncs) == 1:
            feed.relisted.set()  # kopf's own list comes while this one is under way
        feed.changed.set()

    monkeypatch.setattr(feed, "resync", resync)

    async def body() -> None:
        async def reconcile() -> None:
            assert len(resyncs) < 3, "no end"

        loop = asyncio.create_task(runtime._loop(feed, reconcile, Health()))
        await asyncio.sleep(0.3)
        loop.cancel()
        await asyncio.wait({loop})

    asyncio.run(body())
    assert len(resyncs) == 2
