"""Real agents on simulated servers: the agent's own loop, kopf and all, against a real API server."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping

from support.simulated import SimulatedServer

from kubeflash.agent import process
from kubeflash.domain.sealing import generate_private_key
from kubeflash.kube.client import Client, load_configuration


class Simulation:
    """Agents in a thread with an event loop of its own."""

    def __init__(self, kubeconfig: str, servers: Mapping[str, SimulatedServer]) -> None:
        self.kubeconfig, self.servers = kubeconfig, servers
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="simulation", daemon=True)
        self._thread.start()
        self._running: dict[str, tuple[asyncio.Event, object]] = {}
        self.agents: dict[str, process.Agent] = {}

    def start(self, name: str) -> None:
        server = self.servers[name]
        server.private = server.private or generate_private_key()
        client = Client(load_configuration(self.kubeconfig))
        lease = process.heartbeat_lease(client, "kubeflash-system", name, server.system_uuid)

        async def make() -> tuple[process.Agent, asyncio.Event]:
            return process.Agent(client, name, server, server, server.private), asyncio.Event()

        agent, stop = asyncio.run_coroutine_threadsafe(make(), self._loop).result(10)
        future = asyncio.run_coroutine_threadsafe(process.main(agent, lease, None, stop), self._loop)
        self.agents[name] = agent
        self._running[name] = (stop, future)

    def stop(self, name: str, timeout: float = 15) -> None:
        stop, future = self._running.pop(name)
        self._loop.call_soon_threadsafe(stop.set)
        future.result(timeout)

    def close(self) -> None:
        for name in list(self._running):
            self.stop(name)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    # --- as `scenarios.Servers` ---

    def exports(self, server: str) -> set[str]:
        return set(self.servers[server].nvmet.subsystems)

    def partitions(self, server: str) -> set[str]:
        return set(self.servers[server].partitions())

    def connections(self, server: str) -> set[str]:
        return set(self.servers[server].connections)
