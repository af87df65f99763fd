"""Real agents on simulated servers: the agent's own loop, kopf and all, against a real API server."""

from __future__ import annotations

import asyncio
import io
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Self

from fleet import Fleet
from kubeflash.agent import process
from kubeflash.domain.sealing import generate_private_key
from kubeflash.kube.client import Client, load_configuration
from kubeflash.kube.serving import Health
from support.simulated import SimulatedServer


class _Running:
    """One agent in a thread with an event loop of its own, as it has one to itself in its process."""

    def __init__(self, kubeconfig: str, name: str, server: SimulatedServer, cluster_id: str | None) -> None:
        self._cluster_id = cluster_id
        self.health = Health()
        self.result: Future[int] = Future()
        self._made: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = Future()
        self._thread = threading.Thread(target=self._run, args=(kubeconfig, name, server), name=f"agent-{name}")
        self._thread.start()
        self._loop, self._stop = self._made.result(10)

    def _run(self, kubeconfig: str, name: str, server: SimulatedServer) -> None:
        async def body() -> int:
            stop = asyncio.Event()
            client = Client(load_configuration(kubeconfig))
            self._made.set_result((asyncio.get_running_loop(), stop))
            lease = process.heartbeat_lease(client, "kubeflash-system", name, server.system_uuid)
            agent = process.Agent(client, name, server, server, server.private)
            try:
                return await process.main(agent, lease, self._cluster_id, self.health, stop)
            finally:
                client.close()

        try:
            self.result.set_result(asyncio.run(body()))
        except BaseException as error:  # noqa: BLE001 - the test that asks for the result is told
            self.result.set_exception(error)

    def stop(self, timeout: float) -> None:
        if not self.result.done():
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(timeout)
        assert not self._thread.is_alive(), f"the agent does not end:\n{self._at()}"
        self.result.result(0)

    def _at(self) -> str:
        """Where its tasks, and all threads of this process, are."""
        told = io.StringIO()
        for task in asyncio.all_tasks(self._loop):
            task.print_stack(file=told)
        for number, frame in sys._current_frames().items():
            told.write(f"Thread {number}\n{''.join(traceback.format_stack(frame))}")
        return told.getvalue()


class Simulation:
    """Agents by server."""

    def __init__(self, kubeconfig: str, servers: Mapping[str, SimulatedServer]) -> None:
        self.kubeconfig, self.servers = kubeconfig, servers
        self._running: dict[str, _Running] = {}

    def start(self, name: str, *, cluster_id: str | None = None) -> None:
        """Starts the agent of a server, by the FlashNode name of that server; in a cluster with this id, if given."""
        server = self.servers[name]
        server.private = server.private or generate_private_key()
        self._running[name] = _Running(self.kubeconfig, name, server, cluster_id)

    def health(self, name: str) -> Health:
        """What the agent of a server says of itself."""
        return self._running[name].health

    def stop(self, name: str, timeout: float = 15) -> None:
        self._running.pop(name).stop(timeout)

    def wait_ended(self, name: str, timeout: float = 15) -> None:
        """Waits for an agent that ends by itself; raises what it raised."""
        self._running[name].result.exception(timeout)
        self.stop(name)

    @classmethod
    @contextmanager
    def running(cls, fleet: Fleet, servers: Mapping[str, SimulatedServer], user: str) -> Iterator[Self]:
        """Agents on all of these servers, whose FlashNodes are Ready; they end with the `with`."""
        kubeconfig = str(fleet.lab.control_plane.kubeconfig(user, groups=("kubeflash:agents",)))
        made = cls(kubeconfig, servers)
        try:
            for name in servers:
                made.start(name)
            for name in servers:
                fleet.wait_ready("flashnode", name, namespace=None, timeout=30)
            yield made
        finally:
            made.close()

    def close(self) -> None:
        for name in list(self._running):
            self.stop(name)

    # --- as `scenarios.Servers` ---

    def exports(self, server: str) -> set[str]:
        return set(self.servers[server].nvmet.subsystems)

    def partitions(self, server: str) -> set[str]:
        return set(self.servers[server].partitions())

    def connections(self, server: str) -> set[str]:
        return {nqn for nqn, _ in self.servers[server].connections}
