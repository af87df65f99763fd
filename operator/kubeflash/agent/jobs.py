"""Steps under way: those of one SSD, export or connection one after another, those of different ones side by side.

So that a wipe of an hour, or an SSD that hangs in the kernel, holds up nothing but itself. The loop goes on observing
and reporting meanwhile; a process that ends in the middle leaves what the next one goes on from.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from prometheus_client import Histogram

from kubeflash.domain.steps import Step
from kubeflash.host.errors import HostError
from kubeflash.host.wipe import Progress

log = logging.getLogger(__name__)

RETRY_SECONDS = (1.0, 2.0, 5.0, 15.0, 30.0)
"""Seconds until what failed is tried again, the last one for ever."""
SHORTLY = 0.5
"""Seconds that are waited for any step; longer only for those that are not known to take minutes."""
AT_ONCE = 1024
"""Groups that are worked on side by side: more than a server has SSDs and attachments, so that some that hang hold up
no other. A thread is made when it is needed."""

STEP_SECONDS = Histogram(
    "kubeflash_agent_step_seconds",
    "How long the steps of plans take, by kind and outcome (done or failed).",
    ("step", "outcome"),
    buckets=(0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 3000),
)


@dataclass(frozen=True)
class Failure:
    """The last failure of a subject.

    Attributes:
        words: what it said.
        step: the step that failed.
        error: the error that said it.
        tries: how often in a row.
        again: when it may be tried again, by the monotonic clock.
    """

    words: str
    step: Step
    error: Exception
    tries: int
    again: float


@dataclass
class Running:
    """A step that is under way."""

    step: Step
    since: float
    done: int = 0
    total: int = 0

    @property
    def words(self) -> str:
        """How far it is, in steps of a twentieth: each new word is a write to the API server."""
        if not self.total:
            return ""
        return f"{self.done * 20 // self.total * 5}% done"


@dataclass
class _Job:
    """The step that runs, those that are not done yet, it among them, and all that the job began with."""

    running: Running
    steps: Sequence[Step]
    every: Sequence[Step]


class Jobs:
    """What is under way on this server, and what failed.

    Args:
        apply: carries out one step; raises `HostError`, `OSError` or `ValueError` when it could not.
        ended: called in the event loop, with the group, whenever one of its steps has ended.
    """

    def __init__(self, apply: Callable[[Step, Progress], None], ended: Callable[[str], None]) -> None:
        self._apply, self._ended = apply, ended
        self._threads = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="step")
        self._jobs: dict[str, _Job] = {}
        self._bug: BaseException | None = None
        self._failures: dict[str, Failure] = {}
        self._looked = 0.0

    @property
    def failures(self) -> dict[str, Failure]:
        """The last failure of each subject that failed, at this moment: jobs go on writing them in their threads."""
        return dict(self._failures)

    @property
    def busy(self) -> frozenset[str]:
        """Groups that are worked on."""
        return frozenset(self._jobs)

    @property
    def changing(self) -> frozenset[str]:
        """Groups of which what is read now may be half of what is being done."""
        return frozenset(group for group, job in self._jobs.items() if not job.running.step.keeps_table)

    @property
    def touched(self) -> frozenset[str]:
        """Subjects of all steps of the jobs under way, also of those done: what is read of them may be of before."""
        return frozenset(step.subject for job in self._jobs.values() for step in job.every)

    def running(self, subject: str) -> Running | None:
        """The step of a subject that is under way."""
        now = (job.running for job in self._jobs.values())
        return next((item for item in now if subject in (item.step.subject, item.step.group)), None)

    def under_way(self) -> list[Step]:
        """All steps of all jobs that are not done yet, those that run first."""
        return [step for job in self._jobs.values() for step in job.steps]

    def words(self, *subjects: str) -> str:
        """What the last failure of the first of these that failed said; empty when none did."""
        failures = self.failures
        return next((failures[item].words for item in subjects if item in failures), "")

    def forget_all_but(self, subjects: Collection[str]) -> None:
        """Forgets failures of what nobody wants any more."""
        for item in set(self.failures).difference(subjects):
            self._failures.pop(item, None)

    def due(self, steps: Iterable[Step]) -> list[Step]:
        """Those of the steps that can be begun: their group is not worked on, and they do not wait after a failure."""
        now = self._looked = time.monotonic()
        return [step for step in steps if step.group not in self._jobs and not self._waits(step, now)]

    def _waits(self, step: Step, now: float) -> bool:
        failures = (self._last_failure(subject, step.group) for subject in (step.group, step.subject))
        return any(failure is not None and failure.again > now for failure in failures)

    def _last_failure(self, subject: str, group: str) -> Failure | None:
        """A volume's on one SSD says nothing of another one."""
        failure = self._failures.get(subject)
        return failure if failure is not None and failure.step.group == group else None

    def next_try(self) -> float | None:
        """Seconds until something that failed may be tried again; None when nothing waits for that.

        What could be tried when `due` was asked last is under way, or nobody wants it any more.
        """
        moments = [failure.again for failure in self.failures.values() if failure.again > self._looked]
        return max(0.0, min(moments) - time.monotonic()) if moments else None

    async def run(self, steps: Iterable[Step], patience: float) -> bool:
        """Begins steps that are due, and waits for them a while. Whether any was begun.

        Args:
            steps: in order.
            patience: seconds to wait for their end; what takes longer, or is known to, goes on by itself.
        """
        by_group: dict[str, list[Step]] = {}
        for step in steps:
            by_group.setdefault(step.group, []).append(step)
        loop = asyncio.get_running_loop()
        begun: list[asyncio.Future[None]] = []
        for group, mine in by_group.items():
            job = self._jobs[group] = _Job(Running(mine[0], time.monotonic()), mine, mine)
            future = loop.run_in_executor(self._threads, self._work, job, mine, loop)
            future.add_done_callback(partial(self._end, group))
            begun.append(future)
        began = loop.time()
        while begun and (waited := loop.time() - began) < patience:
            if waited >= SHORTLY and all(self._is_long(group) for group in by_group):
                break
            _, left = await asyncio.wait(begun, timeout=min(SHORTLY, patience - waited))
            begun = list(left)
        if self._bug is not None:
            raise self._bug  # what nobody expects ends the process
        return bool(by_group)

    def _is_long(self, group: str) -> bool:
        """Whether there is no use in waiting for a group: what it is at takes minutes, or it is done."""
        job = self._jobs.get(group)
        return job is None or job.running.step.long

    def _end(self, group: str, future: asyncio.Future[None]) -> None:
        self._jobs.pop(group, None)
        if not future.cancelled():
            self._bug = self._bug or future.exception()
        self._ended(group)

    def _work(self, job: _Job, steps: Sequence[Step], loop: asyncio.AbstractEventLoop) -> None:
        """In a thread: the steps of one group, in order."""
        failed: set[str] = set()
        for number, step in enumerate(steps):
            job.steps = steps[number:]
            if number and step.long:
                loop.call_soon_threadsafe(self._ended, step.group)  # what is done already is told before this is
            if step.subject in failed or step.group in failed:
                continue
            running = job.running = Running(step, time.monotonic())
            log.info("%s", step.describe())

            def progress(done: int, total: int, running: Running = running) -> None:
                running.done, running.total = done, total

            try:
                self._apply(step, progress)
            except (HostError, OSError, ValueError) as error:
                log.warning("failed: %s: %s", step.describe(), error)
                failed.add(step.subject)
                self._failed(step, error)
                outcome = "failed"
            else:
                self._failures.pop(step.subject, None)
                outcome = "done"
            STEP_SECONDS.labels(type(step).__name__, outcome).observe(time.monotonic() - running.since)

    def _failed(self, step: Step, error: Exception) -> None:
        before = self._last_failure(step.subject, step.group)
        tries = before.tries + 1 if before is not None else 1
        wait = RETRY_SECONDS[min(tries, len(RETRY_SECONDS)) - 1]
        self._failures[step.subject] = Failure(str(error), step, error, tries, time.monotonic() + wait)
