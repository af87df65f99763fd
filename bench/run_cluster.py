"""`make bench-cluster`: KubeFlash installed by Helm on two kubelets: how long until a first volume, and what it costs.

Emulated servers are some twenty times slower than real ones, and their kubelets share the one processor with it.
Results go to bench/results.json, and as a table to stdout.
"""

from __future__ import annotations

import argparse
import sys
import time

from cluster import Cluster, prepare
from fleet import NAMESPACE, pool, volume
from lab.lab import Lab
from results import report
from run_bench import cpu_seconds, rss_mib


def spent(cluster: Cluster, process: str) -> tuple[float, float]:
    """CPU seconds so far, and resident memory in MiB, of the controller that leads, or of the agent beside it."""
    server = cluster.servers[cluster.leader()["spec"]["nodeName"]]
    pid = server.run(["pgrep", "--full", "--oldest", f"bin/kubeflash-{process}"]).stdout_text.strip()
    ticks = int(server.run("getconf CLK_TCK").stdout_text)
    read = lambda name: server.run(f"cat /proc/{pid}/{name}").stdout_text  # noqa: E731
    return cpu_seconds(read("stat"), ticks), rss_mib(read("status"))


def main() -> int:
    """Runs it; the exit status."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--idle", type=float, default=120, help="seconds to watch both processes doing nothing")
    options = parser.parse_args()
    disk = prepare()
    with Lab("bench", kubelets=True) as lab:
        cluster = Cluster(lab)
        cluster.boot(disk)
        began = time.monotonic()
        cluster.start()
        ready = time.monotonic() - began
        cluster.apply(pool("fast", "KFA0", "KFB0"), volume("first", "64Mi", node="gpu-a"))
        cluster.wait_ready("flashvolume", "first", timeout=180)
        first = time.monotonic() - began
        cluster.kubectl("get", "flashvolumes", "-n", NAMESPACE)
        time.sleep(30)  # what was begun is over
        before = {name: spent(cluster, name) for name in ("controller", "agent")}
        time.sleep(options.idle)
        found = {"cluster_install_to_pods_ready_s": ready, "cluster_install_to_first_volume_s": first}
        for name, (then, _) in before.items():
            now, rss = spent(cluster, name)
            found[f"cluster_{name}_idle_cpu_percent"] = 100 * (now - then) / options.idle
            found[f"cluster_{name}_rss_mib"] = rss
        report(found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
