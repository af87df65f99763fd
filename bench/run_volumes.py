"""`make bench-volumes`: what a thousand volumes cost the controller; real API server, real agents, simulated disks.

Nothing here is an assertion. Results go to bench/results.json, and to stdout.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fleet import NAMESPACE, Fleet, is_ready, pool, volume
from kubeflash.api.v1alpha1 import FlashVolume
from kubeflash.kube.client import Client, load_configuration, path_of
from lab.errors import LabTimeout
from lab.lab import Lab
from results import report
from run_bench import cpu_seconds, rss_mib
from support.simulated import Network, SimulatedServer, gpu, ssd
from support.simulation import Simulation

VOLUMES = 1000
SERVERS = 8
SSDS = 8
IDLE_SECONDS = 60
LIMIT = 900.0


class Controller:
    """The controller's own account, in /proc."""

    def __init__(self, pid: int) -> None:
        self._folder = Path("/proc") / str(pid)

    def cpu(self) -> float:
        """Seconds."""
        return cpu_seconds((self._folder / "stat").read_text(), os.sysconf("SC_CLK_TCK"))

    def rss(self) -> float:
        """MiB."""
        return rss_mib((self._folder / "status").read_text())


def until(what: str, client: Client, reached: Callable[[list[dict]], bool]) -> None:
    """Waits for all volumes, saying how many there are and how many are Ready."""
    deadline, said = time.monotonic() + LIMIT, 0.0
    while True:
        items = client.list(FlashVolume.info)
        if reached(items):
            return
        if time.monotonic() > deadline:
            raise LabTimeout(f"{what} took longer than {LIMIT:g} s")
        if time.monotonic() - said > 10:
            said = time.monotonic()
            print(f"  {what}: {len(items)} volumes, {sum(map(is_ready, items))} Ready", flush=True)
        time.sleep(1)


def main() -> int:
    """Measures and writes it down."""
    with Lab(f"bench-{os.getpid()}") as lab:
        fleet = Fleet(lab)
        fleet.install()
        controller = Controller(fleet.start_controller().pid)
        network = Network()
        servers = {
            f"many-{n}": SimulatedServer(
                f"many-{n}",
                f"10.1.0.{n}",
                network,
                [gpu(1), gpu(2)],
                [ssd(f"M{n}X{k}", k, size=8 << 30) for k in range(1, SSDS + 1)],
            )
            for n in range(1, SERVERS + 1)
        }
        kubeconfig = str(lab.control_plane.kubeconfig("kubeflash-agent-many", groups=("kubeflash:agents",)))
        simulation = Simulation(kubeconfig, servers)
        client = Client(load_configuration(str(lab.control_plane.kubeconfig())))
        try:
            for name in servers:
                simulation.start(name)
            for name in servers:
                fleet.wait_ready("flashnode", name, namespace=None)
            fleet.apply(pool("many", *(disk.serial for one in servers.values() for disk in one.ssds.values())))
            fleet.wait_ready("flashpool", "many", namespace=None)
            measure(controller, client)
        finally:
            client.close()
            simulation.close()
    return 0


def measure(controller: Controller, client: Client) -> None:
    """Creates, idles, deletes."""
    cpu, rss, began = controller.cpu(), controller.rss(), time.monotonic()
    bodies = [volume(f"v-{n}", "16Mi", pool="many") for n in range(VOLUMES)]
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda body: client.create(FlashVolume.info, body, NAMESPACE), bodies))
    until("carving", client, lambda items: len(items) == VOLUMES and all(map(is_ready, items)))
    report(
        {
            "controller_cpu_s_per_1000_volumes_made": controller.cpu() - cpu,
            "seconds_per_1000_volumes_made": time.monotonic() - began,
            "controller_rss_mib_per_1000_volumes": controller.rss() - rss,
        }
    )
    time.sleep(20)
    cpu = controller.cpu()
    time.sleep(IDLE_SECONDS)
    report({"controller_idle_cpu_percent_with_1000_volumes": 100 * (controller.cpu() - cpu) / IDLE_SECONDS})
    cpu, began = controller.cpu(), time.monotonic()
    with ThreadPoolExecutor(8) as threads:  # one request for all of them takes longer than an answer may
        names = [body["metadata"]["name"] for body in bodies]
        list(threads.map(lambda name: client.call("DELETE", path_of(FlashVolume.info, NAMESPACE, name)), names))
    until("deleting", client, lambda items: not items)
    report(
        {
            "controller_cpu_s_per_1000_volumes_deleted": controller.cpu() - cpu,
            "seconds_per_1000_volumes_deleted": time.monotonic() - began,
        }
    )


if __name__ == "__main__":
    sys.exit(main())
