"""The agent's work on SSDs, killed at every point of it: runs in a virtual server, without Kubernetes.

    PYTHONPATH=operator:tests python3 -m support.crashing < stages.json

What runs is what the agent's own pass runs between reading its objects and reporting them: `Observer`, `plan_volumes`
over wishes (given as JSON here), `Executor`, until nothing is left to do. Left out are kopf, the API server and the
threads of `Jobs`. Each run is a process of its own, forked so that importing is paid for once; it kills itself with
SIGKILL at the first point at which none was killed before. Points are the start and the end of each
`Executor.apply`, the end of every command in it, and every piece of a wipe. Nobody cleans up behind it: the next run
finds what is. A stage is done when a run comes to its end.

    {"cluster": ID, "stages": [{"name": …, "wishes": [arguments of VolumeWish, …]}, …]}

Prints for each stage which points there were, and what is on the SSDs at its end, as JSON.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from kubeflash.agent.execute import Executor
from kubeflash.agent.observe import Observer
from kubeflash.domain.carving import CarvePlan, Selection, VolumeWish, plan_volumes
from kubeflash.domain.steps import Step
from kubeflash.host import commands
from kubeflash.host.root import HostRoot
from kubeflash.host.wipe import Progress
from kubeflash.topology.devices import GpuRules

JSON = dict[str, Any]
MOST_RUNS = 300
MOST_ROUNDS = 20


class Points:
    """Where a run may be killed; `seen` are those where one was. Told by a pipe, for nothing else outlives the kill."""

    def __init__(self, seen: set[str], pipe: int) -> None:
        self._seen, self._pipe = seen, pipe
        self._step, self._count = "", 0

    def begin(self, step: Step) -> None:
        """A step begins."""
        self._step, self._count = f"{type(step).__name__} {step.subject}", 0
        self.reach("start")

    def reach(self, name: str) -> None:
        """A point is reached, in the step that was begun last; outside of steps there are none."""
        if not self._step:
            return
        point = f"{self._step}: {self._count} {name}"
        self._count += 1
        if point not in self._seen:
            os.write(self._pipe, point.encode())
            os.kill(os.getpid(), signal.SIGKILL)

    def end(self) -> None:
        """The step is over."""
        self.reach("end")
        self._step = ""


def wrap_commands(points: Points) -> None:
    """Makes the end of every command of the host's room a point."""
    real = commands.run

    def run(argv: Sequence[str], **options: Any) -> commands.Output:
        try:
            return real(argv, **options)
        finally:
            points.reach(" ".join(argv[:2]))

    users = [module for name, module in sys.modules.items() if name.startswith("kubeflash.host.")]
    for module in users:
        if getattr(module, "run", None) is real:
            module.run = run  # type: ignore[attr-defined]


def work(cluster: str, wishes: Sequence[VolumeWish], points: Points) -> None:
    """One run: passes until nothing is left to do."""
    root = HostRoot()
    observer = Observer(root, GpuRules.parse([]), ("127.0.0.1", 1))
    observer.cluster_id = cluster
    executor = Executor(root, observer, bytes(32))
    wrap_commands(points)
    for _ in range(MOST_ROUNDS):
        plan = look(observer, wishes)
        if not plan.steps:
            unmet = {**plan.refused, **plan.missing, **plan.waiting, **plan.cramped}
            assert not unmet, unmet
            return
        for step in plan.steps:
            points.begin(step)
            executor.apply(step, _progress(points))
            points.end()
            observer.forget(step.group)
    raise AssertionError(f"after {MOST_ROUNDS} passes there is still to do: {[step.describe() for step in plan.steps]}")


def look(observer: Observer, wishes: Sequence[VolumeWish]) -> CarvePlan:
    """What there is to do, as the agent's own pass finds it."""
    seen = observer.observe()
    selected = {wish.ssd: Selection("crashing") for wish in wishes}
    return plan_volumes(seen.disks, seen.owners, selected, wishes)


def _progress(points: Points) -> Progress:
    def progress(done: int, total: int) -> None:
        points.reach(f"{done} of {total}")

    return progress


def forked(call: Callable[[int], None]) -> tuple[int, str]:
    """Runs a call in a process of its own, with the writing end of a pipe; its wait status, and what it wrote."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.close(reading)
            call(writing)
            status = 0
        except BaseException:  # noqa: BLE001  nothing may run on in the child
            traceback.print_exc()
        finally:
            os._exit(status)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        said = pipe.read()
    return os.waitpid(pid, 0)[1], said


def killed_everywhere(cluster: str, wishes: Sequence[VolumeWish]) -> list[str]:
    """Runs the work until a run comes to its end; the points at which runs were killed, in that order.

    Raises:
        RuntimeError: when a run fails by itself, or too many were killed.
    """
    seen: list[str] = []
    for _ in range(MOST_RUNS):
        status, point = forked(lambda pipe: work(cluster, wishes, Points(set(seen), pipe)))
        if status == 0:
            return seen
        if not os.WIFSIGNALED(status) or os.WTERMSIG(status) != signal.SIGKILL:
            raise RuntimeError(f"after it was killed at {seen[-1:]} the next run failed (wait status {status})")
        seen.append(point)
    raise RuntimeError(f"{MOST_RUNS} runs were killed, and there is no end: {seen[-5:]}")


def main() -> None:
    """Reads stages from standard input."""
    logging.basicConfig(level=logging.WARNING)
    asked: JSON = json.load(sys.stdin)
    gc.freeze()  # else each run copies all of memory, which takes seconds under emulation
    for stage in asked["stages"]:
        points = killed_everywhere(asked["cluster"], [VolumeWish(**wish) for wish in stage["wishes"]])
        print(json.dumps({"stage": stage["name"], "points": points}), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
