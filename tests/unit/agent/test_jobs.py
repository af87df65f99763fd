"""Steps under way: one SSD's one after another, several SSDs' side by side; what fails holds up nothing but itself."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from kubeflash.agent import jobs as module
from kubeflash.agent.jobs import RETRY_SECONDS, Jobs
from kubeflash.domain.disk import MIB, VOLUME_TYPE, Partition
from kubeflash.domain.steps import ClaimSsd, RemovePartition, Step, WipePartition
from kubeflash.host.errors import HostError
from unit.domain.test_crashes import STRANGER, uuid

LIMIT = 10
"""Seconds after which a test that hangs has failed."""


def wipe(ssd: str, volume: int) -> WipePartition:
    return WipePartition(ssd, "guid", Partition(2, MIB, MIB, uuid(volume), uuid(volume), VOLUME_TYPE))


def remove(ssd: str, volume: int) -> RemovePartition:
    return RemovePartition(ssd, "guid", Partition(2, MIB, MIB, uuid(volume), uuid(volume), VOLUME_TYPE))


class Worker:
    """Carries steps out: each as it is told, the others at once."""

    def __init__(self) -> None:
        self.done: list[Step] = []
        self.ended: list[str] = []
        self.over = asyncio.Event()
        self.does: dict[Step, Callable[[module.Progress], None]] = {}

    def end(self, group: str) -> None:
        self.ended.append(group)
        self.over.set()

    def apply(self, step: Step, progress: module.Progress) -> None:
        if (does := self.does.get(step)) is not None:
            does(progress)
        self.done.append(step)


class Clock:
    """A clock that stands still."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def worker() -> Worker:
    return Worker()


@pytest.fixture
def jobs(worker: Worker) -> Jobs:
    return Jobs(worker.apply, worker.end)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=made.monotonic))
    return made


def failing(words: str) -> Callable[[module.Progress], None]:
    def fail(_: module.Progress) -> None:
        raise HostError(words)

    return fail


def test_the_steps_of_one_ssd_run_in_order_and_those_of_two_side_by_side(jobs: Jobs, worker: Worker):
    first, second = wipe("S-1", 1), wipe("T-1", 2)
    meeting = threading.Barrier(2)
    worker.does = {first: lambda _: meeting.wait(LIMIT), second: lambda _: meeting.wait(LIMIT)}
    assert asyncio.run(jobs.run([first, remove("S-1", 1), second], LIMIT))
    assert [step for step in worker.done if step.group == "S-1"] == [first, remove("S-1", 1)]
    assert sorted(worker.ended) == ["S-1", "T-1"]
    assert jobs.failures == {}


def test_what_is_worked_on_is_not_begun_again_and_tells_how_far_it_is(jobs: Jobs, worker: Worker):
    step, other = wipe("S-1", 1), wipe("T-1", 2)
    told, go_on = threading.Event(), threading.Event()

    def slow(progress: module.Progress) -> None:
        progress(33, 100)
        told.set()
        assert go_on.wait(LIMIT)

    async def body() -> None:
        worker.does = {step: slow}
        assert await jobs.run(jobs.due([step, remove("S-1", 1)]), 0)
        assert await asyncio.to_thread(told.wait, LIMIT)
        assert jobs.busy == {"S-1"}
        assert jobs.due([step, wipe("S-1", 3), other]) == [other]
        running = jobs.running(uuid(1))
        assert running is not None
        assert running.words == "30% done"
        assert jobs.running("S-1") is running
        assert jobs.running(uuid(2)) is None
        assert jobs.under_way() == [step, remove("S-1", 1)]
        assert jobs.touched == {uuid(1)}
        go_on.set()
        await asyncio.wait_for(worker.over.wait(), LIMIT)
        assert jobs.under_way() == []
        assert not await jobs.run([], 0)

    asyncio.run(body())


def test_what_a_job_has_done_already_counts_as_touched_until_the_job_ends(jobs: Jobs, worker: Worker):
    """Its SSD may have been read before the first step, and is not read again while the job goes on."""
    second, go_on = threading.Event(), threading.Event()

    def slow(_: module.Progress) -> None:
        second.set()
        assert go_on.wait(LIMIT)

    async def body() -> None:
        worker.does = {wipe("S-1", 2): slow}
        await jobs.run(jobs.due([wipe("S-1", 1), wipe("S-1", 2), wipe("S-1", 3)]), 0)
        assert await asyncio.to_thread(second.wait, LIMIT)
        assert jobs.under_way() == [wipe("S-1", 2), wipe("S-1", 3)]
        assert jobs.touched == {uuid(1), uuid(2), uuid(3)}
        go_on.set()
        async with asyncio.timeout(LIMIT):
            while jobs.busy:  # noqa: ASYNC110  `ended` is told of each step that takes long, too
                await asyncio.sleep(0.01)
        assert jobs.touched == frozenset()

    asyncio.run(body())


def test_a_volume_that_fails_does_not_hold_up_another_one_on_its_ssd(jobs: Jobs, worker: Worker, clock: Clock):
    worker.does = {wipe("S-1", 1): failing("held: /data")}
    plan = [wipe("S-1", 1), remove("S-1", 1), wipe("S-1", 2), remove("S-1", 2)]
    asyncio.run(jobs.run(jobs.due(plan), LIMIT))
    assert worker.done == [wipe("S-1", 2), remove("S-1", 2)]
    assert jobs.words(uuid(1), "S-1") == "held: /data"
    assert jobs.words(uuid(2), "S-1") == ""
    assert jobs.due(plan) == [wipe("S-1", 2), remove("S-1", 2)]


def test_an_ssd_that_fails_holds_up_all_that_comes_behind_it_there(jobs: Jobs, worker: Worker, clock: Clock):
    claim = ClaimSsd("S-1", STRANGER)
    worker.does = {claim: failing("I/O error")}
    asyncio.run(jobs.run(jobs.due([claim, wipe("S-1", 1), wipe("T-1", 2)]), LIMIT))
    assert worker.done == [wipe("T-1", 2)]
    assert jobs.due([wipe("S-1", 1)]) == []
    assert jobs.words(uuid(1), "S-1") == "I/O error"


def test_what_failed_on_one_ssd_is_tried_at_once_on_another_one_as_for_the_first_time(
    jobs: Jobs, worker: Worker, clock: Clock
):
    here, there = wipe("S-1", 1), wipe("T-1", 1)
    worker.does = {here: failing("I/O error"), there: failing("I/O error, too")}
    for _ in range(3):
        asyncio.run(jobs.run([here], LIMIT))
    assert jobs.failures[uuid(1)].tries == 3
    assert jobs.due([here]) == []
    assert jobs.due([there]) == [there]
    asyncio.run(jobs.run([there], LIMIT))
    assert (jobs.failures[uuid(1)].tries, jobs.failures[uuid(1)].step) == (1, there)


@pytest.mark.parametrize("error", [HostError("x"), OSError("x"), ValueError("x")])
def test_what_fails_waits_longer_and_longer_until_it_is_done(jobs: Jobs, worker: Worker, clock: Clock, error):
    step = wipe("S-1", 1)

    def fail(_: module.Progress) -> None:
        raise error

    worker.does = {step: fail}
    for tries, wait in enumerate([*RETRY_SECONDS, RETRY_SECONDS[-1]], start=1):
        assert jobs.due([step]) == [step]
        asyncio.run(jobs.run([step], LIMIT))
        assert jobs.failures[uuid(1)].tries == tries
        assert jobs.next_try() == wait
        clock.now += wait - 0.001
        assert jobs.due([step]) == []
        clock.now += 0.002
    worker.does = {}
    asyncio.run(jobs.run(jobs.due([step]), LIMIT))
    assert jobs.failures == {}
    assert jobs.next_try() is None


def test_a_retry_that_takes_long_is_not_asked_about_all_the_time(jobs: Jobs, worker: Worker, clock: Clock):
    """Else the loop runs ten times a second for as long as a second wipe of an SSD takes."""
    step, go_on = wipe("S-1", 1), threading.Event()
    worker.does = {step: failing("held")}
    asyncio.run(jobs.run([step], LIMIT))
    clock.now += RETRY_SECONDS[0] + 1

    async def body() -> None:
        worker.over.clear()
        worker.does = {step: lambda _: go_on.wait(LIMIT) or None}
        await jobs.run(jobs.due([step]), 0)
        assert jobs.failures, "it has not succeeded yet"
        assert jobs.next_try() is None
        go_on.set()
        await asyncio.wait_for(worker.over.wait(), LIMIT)

    asyncio.run(body())


def test_what_failed_once_and_is_not_wanted_any_more_wakes_nobody(jobs: Jobs, worker: Worker, clock: Clock):
    """A volume whose partition grew though reading it back failed has no step left, and is still there."""
    worker.does = {wipe("S-1", 1): failing("held")}
    asyncio.run(jobs.run([wipe("S-1", 1)], LIMIT))
    assert jobs.next_try() == RETRY_SECONDS[0]
    clock.now += RETRY_SECONDS[0] + 1
    jobs.forget_all_but({uuid(1)})
    assert jobs.due([]) == []
    assert jobs.next_try() is None


def test_failures_of_what_is_gone_are_forgotten(jobs: Jobs, worker: Worker):
    worker.does = {wipe("S-1", 1): failing("a"), wipe("T-1", 2): failing("b")}
    asyncio.run(jobs.run(list(worker.does), LIMIT))
    jobs.forget_all_but({uuid(2), "S-1"})
    assert set(jobs.failures) == {uuid(2)}


def test_failures_can_be_read_while_a_job_writes_them(jobs: Jobs, worker: Worker):
    worker.does = {wipe("S-1", 1): failing("a"), wipe("T-1", 2): failing("b")}
    asyncio.run(jobs.run([wipe("S-1", 1)], LIMIT))
    for _ in jobs.failures.values():
        asyncio.run(jobs.run([wipe("T-1", 2)], LIMIT))
    assert set(jobs.failures) == {uuid(1), uuid(2)}


def test_what_nobody_expects_ends_the_process_and_not_only_its_thread(jobs: Jobs, worker: Worker):
    def bug(_: module.Progress) -> None:
        raise KeyError("a bug")

    worker.does = {wipe("S-1", 1): bug}

    async def body() -> None:
        await jobs.run([wipe("S-1", 1)], 0)
        await asyncio.wait_for(worker.over.wait(), LIMIT)
        await jobs.run([], 0)

    with pytest.raises(KeyError, match="a bug"):
        asyncio.run(body())
    assert worker.ended == ["S-1"]
