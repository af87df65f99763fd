"""The agent's work on SSDs, exports and connections, killed at every point: in a virtual server, without Kubernetes.

    PYTHONPATH=operator:tests python3 -m support.crashing < stages.json

What runs is what the agent's own pass runs between reading its objects and reporting them: `Observer`, `plan_volumes`
over wishes (given as JSON here), `Executor`, until nothing is left to do. Left out are kopf, the API server and the
threads of `Jobs`. Each run is a process of its own, forked so that importing is paid for once; it kills itself with
SIGKILL at the first point at which none was killed before. Points are the start and the end of each
`Executor.apply`, the end of every command in it, and every piece of a wipe. Nobody cleans up behind it: the next run
finds what is. A stage is done when a run comes to its end.

    {"cluster": ID, "every": 2, "stages": [{"name": …, "wishes": [arguments of VolumeWish, …]},
                               {"name": …, "fabric": {arguments of Fabric}}, …]}

With `every` above 1 a run is killed at the start of each step, and at one of so many other points, always the same.

A stage of exports and connections has the server as storage server and consumer at once, over an address of its own;
each change in configfs and each connect and disconnect is a point, too.

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
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from typing import Any
from zlib import crc32

from kubeflash.agent import execute
from kubeflash.agent.execute import Executor
from kubeflash.agent.observe import Observer
from kubeflash.api.v1alpha1 import Exported, FlashAttachment, WantedExport
from kubeflash.domain import dhchap
from kubeflash.domain.carving import CarvePlan, Selection, VolumeWish, plan_volumes
from kubeflash.domain.connecting import Consumer, plan_connections
from kubeflash.domain.dhchap import DhchapKeys
from kubeflash.domain.exporting import ExportWish, Ground, plan_exports
from kubeflash.domain.names import export_identity
from kubeflash.domain.sealing import ExportKeys, public_key, seal
from kubeflash.domain.steps import Step
from kubeflash.host import commands, initiator
from kubeflash.host.nvmet import KernelConfigfs
from kubeflash.host.root import HostRoot
from kubeflash.host.wipe import Progress
from kubeflash.topology.devices import GpuRules

JSON = dict[str, Any]
MOST_RUNS = 300
MOST_ROUNDS = 20


class Points:
    """Where a run may be killed; `seen` are those where one was. Told by a pipe, for nothing else outlives the kill."""

    def __init__(self, seen: set[str], pipe: int, every: int = 1) -> None:
        self._seen, self._pipe, self._every = seen, pipe, every
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
        chosen = name == "start" or crc32(point.encode()) % self._every == 0
        if chosen and point not in self._seen:
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


@dataclass(frozen=True)
class Fabric:
    """What is wanted of one attachment.

    Attributes:
        uid: the attachment's.
        exported: whether its export is wanted; connected likewise.
        tls: whether it is guarded by TLS, too.
    """

    uid: str
    volume_id: str
    address: str
    port: int
    exported: bool
    connected: bool
    tls: bool = False

    def wish(self, device: str | None, keys: str) -> ExportWish:
        """What the storage server's agent is to do about it; its port is recorded."""
        names = export_identity(self.uid)
        wanted = WantedExport(
            uid=self.uid,
            nqn=names.nqn,
            host_nqn=names.host_nqn,
            host_id=names.host_id,
            sealed_keys=keys,
            tls="Required" if self.tls else "None",
            ports=f"{self.port}-{self.port}",
        )
        recorded = Exported(uid=self.uid, portals=[f"tcp://{self.address}:{self.port}"])
        return ExportWish("ns/v", "a", self.volume_id, wanted if self.exported else None, recorded, device)

    def attachment(self, keys: str) -> FlashAttachment:
        """The attachment, as the consumer's agent reads it once the export is ready."""
        names = export_identity(self.uid)
        fabric = {
            "volumeId": self.volume_id,
            "nqn": names.nqn,
            "hostNQN": names.host_nqn,
            "hostID": names.host_id,
            "portals": [f"tcp://{self.address}:{self.port}"],
            "tls": "Required" if self.tls else "None",
        }
        sealed = {"storage": keys, "storageKey": "-", "consumer": keys, "consumerKey": "-"}
        status = {"path": "Fabric", "volumeId": self.volume_id, "fabric": fabric, "keys": sealed}
        meta = {"name": "a", "namespace": "ns", "uid": self.uid}
        spec = {"volume": "v", "nodeName": "crash"}
        return FlashAttachment.from_json({"metadata": meta, "spec": spec, "status": status})


def sealed_keys(fabric: Fabric) -> str:
    """The same keys in every run: made from the attachment's uid, and sealed to the private key of zeroes."""
    secret = sha256(fabric.uid.encode()).digest()
    keys = DhchapKeys(host=dhchap.encode(secret), controller=dhchap.encode(secret[::-1]))
    return seal(ExportKeys(keys, secret if fabric.tls else None), public_key(bytes(32)))


def work_fabric(cluster: str, fabric: Fabric, points: Points) -> None:
    """One run: passes until nothing is left to do, and what is wanted is so."""
    root = HostRoot()
    observer = Observer(root, GpuRules.parse([]), ("127.0.0.1", 1))
    observer.cluster_id = cluster
    executor = Executor(root, observer, bytes(32))
    wrap_calls(points, KernelConfigfs, ("mkdir", "rmdir", "write", "chmod", "symlink", "unlink"))
    wrap_calls(points, initiator, ("connect",))
    wrap_calls(points, execute, ("disconnect",))
    keys = sealed_keys(fabric)
    steps: tuple[Step, ...] = ()
    for _ in range(MOST_ROUNDS):
        seen = observer.observe()
        wish = fabric.wish(seen.partitions.get(fabric.volume_id), keys)
        exports = plan_exports([wish], seen.nvmet, Ground(seen.addresses, fabric.address, seen.listening))
        here = Consumer(seen.connections, {}, frozenset(), {})
        connect = plan_connections([fabric.attachment(keys)] if fabric.connected else [], here)
        steps = (exports.steps or connect) if fabric.connected else (*connect, *exports.steps)
        if not steps:
            states = [item.state for item in seen.connections]
            assert states == (["live"] if fabric.connected else []), seen.connections
            return
        for step in steps:
            points.begin(step)
            executor.apply(step)
            points.end()
    raise AssertionError(f"after {MOST_ROUNDS} passes there is still to do: {[step.describe() for step in steps]}")


def wrap_calls(points: Points, owner: Any, names: Sequence[str]) -> None:
    """Makes the end of every call of these a point."""
    for name in names:
        real = getattr(owner, name)

        def call(*args: Any, _real: Any = real, _name: str = name, **options: Any) -> Any:
            try:
                return _real(*args, **options)
            finally:
                points.reach(f"{_name} {args[1] if len(args) > 1 and isinstance(args[1], str) else ''}".strip())

        setattr(owner, name, call)


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


def killed_everywhere(run: Callable[[Points], None], every: int = 1) -> list[str]:
    """Runs the work until a run comes to its end; the points at which runs were killed, in that order.

    Raises:
        RuntimeError: when a run fails by itself, or too many were killed.
    """
    seen: list[str] = []
    for _ in range(MOST_RUNS):
        status, point = forked(lambda pipe: run(Points(set(seen), pipe, every)))
        if status == 0:
            return seen
        if not os.WIFSIGNALED(status) or os.WTERMSIG(status) != signal.SIGKILL:
            raise RuntimeError(f"after it was killed at {seen[-1:]} the next run failed (wait status {status})")
        seen.append(point)
    raise RuntimeError(f"{MOST_RUNS} runs were killed, and there is no end: {seen[-5:]}")


def run_stage(cluster: str, stage: JSON, points: Points) -> None:
    """One run of a stage."""
    if "fabric" in stage:
        work_fabric(cluster, Fabric(**stage["fabric"]), points)
    else:
        work(cluster, [VolumeWish(**wish) for wish in stage["wishes"]], points)


def main() -> None:
    """Reads stages from standard input."""
    logging.basicConfig(level=logging.WARNING)
    asked: JSON = json.load(sys.stdin)
    gc.freeze()  # else each run copies all of memory, which takes seconds under emulation
    for stage in asked["stages"]:
        points = killed_everywhere(partial(run_stage, asked["cluster"], stage), asked.get("every", 1))
        print(json.dumps({"stage": stage["name"], "points": points}), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
