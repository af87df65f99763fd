"""One lab: artifacts, network, control plane and servers, up together and down together."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import threading
from collections.abc import Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Protocol, Self, TypeVar

from lab import binaries, rundir
from lab.controlplane import AuditLevel, ControlPlane, Programs, assert_ours
from lab.errors import LabError
from lab.network import Network, check_machine
from lab.processes import boot_id, start_time

T = TypeVar("T")


class Server(Protocol):
    """What a lab needs of a virtual server: see `lab.servers.VirtualServer`."""

    @property
    def name(self) -> str:
        """Unique in the lab."""

    def start(self) -> None:
        """Switch it on."""

    def close(self) -> None:
        """Switch it off at once, whatever state it is in. Safe to call again."""


def ensure_programs(*, kubelets: bool = False, older: bool = False) -> Programs:
    """The control plane's programs, built first if need be: once, about 6 minutes, and 3 more for kubelets.

    Args:
        kubelets: Whether kube-controller-manager and kube-scheduler are wanted, too.
        older: Whether all that is Kubernetes' own is `binaries.OLDER_KUBERNETES`.

    Raises:
        BuildError: One could not be built.
    """
    etcd, kube_apiserver, kubectl = (binaries.ensure(name, older=older) for name in binaries.CONTROL_PLANE)
    managers = (binaries.ensure(name, older=older) for name in binaries.MANAGERS) if kubelets else ()
    return Programs(etcd, kube_apiserver, kubectl, *managers)


class Lab:
    """A lab, as a context manager. A process has one at a time, and stays in its network for good.

    Enter it in the main thread, before starting others. However it is left (an exception, Ctrl-C, SIGTERM), it ends
    what it started and checks that nothing is left; after ``kill -9`` the kernel ends its processes, and the next lab
    of the same name, or ``python -m lab down``, removes its files.
    """

    def __init__(
        self,
        name: str = "lab",
        *,
        audit_level: AuditLevel = "Metadata",
        apiserver_arguments: Sequence[str] = (),
        kubelets: bool = False,
        older: bool = False,
        keep_logs: Path | None = None,
    ) -> None:
        """Describe a lab; nothing happens before ``with``.

        Args:
            name: Only one lab of a name can be up on a machine.
            audit_level: See `ControlPlane`.
            apiserver_arguments: See `ControlPlane`.
            kubelets: Whether pods are to run: with kube-controller-manager and kube-scheduler.
            older: See `ensure_programs`.
            keep_logs: Where to put a copy of the logs when the lab goes down; ``$KUBEFLASH_LAB_LOGS`` when None.
        """
        self.name = name
        self.run_dir = rundir.of(name)
        self._audit_level = audit_level
        self._apiserver_arguments = tuple(apiserver_arguments)
        self._kubelets, self._older = kubelets, older
        kept = os.environ.get("KUBEFLASH_LAB_LOGS")
        self._keep_logs = keep_logs or (Path(kept) / name if kept else None)
        self._servers: dict[str, Server] = {}
        self._stack = contextlib.ExitStack()
        self._signals = _Signals()
        self._network: Network | None = None
        self._control_plane: ControlPlane | None = None

    def __enter__(self) -> Self:
        """Bring up the network and the control plane: about 4 seconds when everything is built.

        Raises:
            NotPossible: This machine cannot have a lab.
            AlreadyUp: A lab of this name is up.
            LabError: Something failed; what was up is down again.
        """
        check_machine()
        programs = ensure_programs(kubelets=self._kubelets, older=self._older)
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._signals)
            stack.enter_context(rundir.claim(self.run_dir))
            stack.callback(self._leave_nothing)
            (self.run_dir / "logs").mkdir()
            try:
                self._bring_up(stack, programs)
            except BaseException:
                self._signals.heeded = False
                raise
            self._stack = stack.pop_all()
        return self

    def _bring_up(self, stack: contextlib.ExitStack, programs: Programs) -> None:
        self._network = Network()
        self._control_plane = ControlPlane(
            programs, self.run_dir, audit_level=self._audit_level, apiserver_arguments=self._apiserver_arguments
        )
        stack.callback(self._control_plane.stop)
        self._control_plane.start()
        self._write_record()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Take everything down, the last thing first, and remove the run directory.

        Raises:
            LeftBehind: Something could not be ended.
        """
        self._signals.heeded = False
        self._servers.clear()
        self._stack.__exit__(kind, error, traceback)

    @property
    def network(self) -> Network:
        """Its bridges and cables."""
        return _up(self._network)

    @property
    def control_plane(self) -> ControlPlane:
        """Its etcd and kube-apiserver."""
        return _up(self._control_plane)

    @property
    def servers(self) -> dict[str, Server]:
        """Its virtual servers by name."""
        return dict(self._servers)

    def add_server(self, server: Server) -> None:
        """Start a virtual server; the lab stops it when it goes down. Waiting until it is ready is the caller's.

        Raises:
            LabError: There is one of this name.
        """
        if server.name in self._servers:
            raise LabError(f"the lab has a server {server.name!r} already")
        self._servers[server.name] = server
        self._stack.callback(server.close)
        server.start()
        self._write_record()

    def assert_ours(self, kubeconfig: Path) -> None:
        """Make sure that a kubeconfig leads to this lab.

        Raises:
            NotOurs: It leads to another cluster.
        """
        assert_ours(kubeconfig, self.run_dir / "lab.json", self.control_plane.programs.kubectl)

    def _write_record(self) -> None:
        pid = os.getpid()
        rundir.Record(
            name=self.name,
            pid=pid,
            started=start_time(pid) or 0,
            boot=boot_id(),
            clusterId=self.control_plane.cluster_id,
            server=self.control_plane.server_url,
            kubeconfig=str(self.control_plane.kubeconfig()),
            kubectl=str(self.control_plane.programs.kubectl),
            servers=tuple(self._servers),
        ).write(self.run_dir)

    def _leave_nothing(self) -> None:
        if self._keep_logs is not None:
            self._keep_logs.mkdir(parents=True, exist_ok=True)
            for log in (*self.run_dir.glob("logs/*"), *self.run_dir.glob("audit*.log")):
                shutil.copy(log, self._keep_logs)
        rundir.clear(self.run_dir)


class _Signals:
    """Turns SIGTERM into what Ctrl-C is, KeyboardInterrupt, so that ``with`` blocks are left in order.

    The first signal raises; later ones do not disturb the way down, nor does any while `heeded` is False.
    """

    def __init__(self) -> None:
        self.heeded = True
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is not threading.main_thread():
            raise LabError("start a lab from the main thread: its processes would end with any other")
        self.heeded = True
        self._before = {number: signal.signal(number, self._handle) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self.heeded:
            self.heeded = False
            raise KeyboardInterrupt(f"{signal.Signals(number).name}: the lab goes down")


def _up(part: T | None) -> T:
    if part is None:
        raise LabError("the lab is not up: use it inside `with Lab(...) as lab:`")
    return part
