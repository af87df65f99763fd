"""`python -m kubeflash.agent`: the agent process of one server."""

from __future__ import annotations

import argparse
import asyncio
import socket
import sys
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

from kubeflash.agent import process, state
from kubeflash.agent.execute import Executor
from kubeflash.agent.observe import Observer
from kubeflash.domain.sealing import generate_private_key
from kubeflash.host.errors import HostError
from kubeflash.host.modules import Loader
from kubeflash.host.root import HostRoot
from kubeflash.kube import command, runtime
from kubeflash.kube.client import Client, load_configuration
from kubeflash.kube.errors import KubeError
from kubeflash.kube.serving import Health, parse_address
from kubeflash.topology.devices import GpuRules
from kubeflash.topology.errors import TopologyError

EXPECTED = (KubeError, HostError, TopologyError)


def main() -> int:
    """Runs the agent; its exit status."""
    options = _options()
    command.prepare(options)
    return command.guarded(lambda: _run(options), expected=EXPECTED)


def _options() -> argparse.Namespace:
    parser = command.parser("kubeflash-agent", "Finds this server's GPUs and SSDs, carves and exports volumes.")
    parser.add_argument(
        "--node", default=socket.gethostname(), help="name of this server's FlashNode (default: hostname)"
    )
    parser.add_argument(
        "--gpu",
        action="append",
        default=[],
        metavar="VENDOR:CLASS",
        help="count devices of this PCI vendor and class as GPUs too, such as 1234:0380; may be repeated",
    )
    parser.add_argument(
        "--load-modules",
        action="store_true",
        help="load the kernel modules for NVMe over fabrics that are missing, and mount configfs",
    )
    parser.add_argument(
        "--address",
        type=ip_address,
        metavar="IP",
        help="this server's address that others reach it by, where a pool names no networks (default: the one that "
        "reaches the API server)",
    )
    parser.add_argument("--root", type=Path, default=Path("/"), help=argparse.SUPPRESS)
    parser.add_argument(
        "--state-dir", type=Path, default=Path("/var/lib/kubeflash"), help="where the private key is kept"
    )
    parser.add_argument("--run-dir", type=Path, default=Path("/run/kubeflash"), help="where the lock is")
    parser.add_argument(
        "--plan", action="store_true", help="print what would be done on this server now, do nothing, and end"
    )
    return parser.parse_args()


def _run(options: argparse.Namespace) -> int:
    if options.plan:
        private = state.read_private_key(options.state_dir) or generate_private_key()
        return asyncio.run(_print_plan(_agent(options, *_ways(options), private), options.cluster_id))
    address = parse_address(options.serve) if options.serve else None
    return runtime.execute(partial(_work, options), address, expected=EXPECTED)


async def _work(options: argparse.Namespace, health: Health, stop: asyncio.Event) -> int:
    client, observer = _ways(options)
    with state.only_agent(options.run_dir):  # ends with the process
        agent = _agent(options, client, observer, state.load_private_key(options.state_dir))
        lease = process.heartbeat_lease(client, options.namespace, options.node, observer.system_uuid)
        return await process.main(agent, lease, options.cluster_id, health, stop)


def _ways(options: argparse.Namespace) -> tuple[Client, Observer]:
    """To the API server and into the server, as the options say."""
    root = HostRoot(options.root)
    client = Client(load_configuration(options.kubeconfig))
    server = urlsplit(client.server)
    loader = Loader(root) if options.load_modules else None
    address = str(options.address) if options.address is not None else None
    rules = GpuRules.parse(options.gpu)
    return client, Observer(root, rules, (server.hostname or "", server.port or 443), loader, address)


def _agent(options: argparse.Namespace, client: Client, observer: Observer, private: bytes) -> process.Agent:
    root = HostRoot(options.root)
    executor = Executor(root, observer, private)
    return process.Agent(client, options.node, observer, executor, private, options.namespace, root=root)


async def _print_plan(agent: process.Agent, cluster_id: str | None) -> int:
    await agent.start(cluster_id)
    plan = await agent.plan_now()
    for step in plan.steps:
        print(step.describe())  # noqa: T201
    unmet = (plan.carve.refused, plan.carve.missing, plan.carve.waiting, plan.carve.cramped)
    for key, reason in (entry for found in unmet for entry in found.items()):
        print(f"volume {key}: {reason}")  # noqa: T201
    if not (plan.steps or any(unmet)):
        print("nothing to do")  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
