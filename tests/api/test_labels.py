"""The labels of Nodes that say what their kernels can do, on a real API server with the controller's own rights."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from fleet import Fleet
from kubeflash.controller.labels import LABELS
from support.simulated import Network, SimulatedServer, gpu, ssd
from support.simulation import Simulation

pytestmark = pytest.mark.api

NODE = "gpu-l"
TRUE = dict.fromkeys(LABELS, "true")


@pytest.fixture
def simulation(fleet: Fleet) -> Iterator[Simulation]:
    server = SimulatedServer(NODE, "10.0.0.6", Network(), [gpu(1)], [ssd("L1", 1)])
    fleet.apply({"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE, "labels": {"zone": "z1"}}})
    try:
        with Simulation.running(fleet, {NODE: server}, "kubeflash-agent-labels") as made:
            yield made
    finally:
        fleet.kubectl("delete", "flashnode,node", NODE, "--ignore-not-found", "--timeout=30s")


def labels(fleet: Fleet) -> dict[str, str]:
    """The Node's labels but for its own zone's, which always stays."""
    found = fleet.lab.control_plane.read(f"/api/v1/nodes/{NODE}")["metadata"]["labels"]
    assert found.pop("zone") == "z1"
    return found


def wait_labels(fleet: Fleet, wanted: dict[str, str], timeout: float = 20) -> None:
    deadline = time.monotonic() + timeout
    while (found := labels(fleet)) != wanted:
        assert time.monotonic() < deadline, found
        time.sleep(0.1)


def test_they_follow_the_server_and_go_with_its_flashnode(fleet, simulation):
    wait_labels(fleet, TRUE)
    fleet.kubectl("label", "node", NODE, "--overwrite", "kubeflash.io/tls=maybe", "kubeflash.io/of-an-admin=kept")
    wait_labels(fleet, {**TRUE, "kubeflash.io/of-an-admin": "kept"})
    fleet.kubectl("label", "node", NODE, "kubeflash.io/target-rdma-")
    wait_labels(fleet, {**TRUE, "kubeflash.io/of-an-admin": "kept"})
    simulation.stop(NODE)
    time.sleep(1)
    assert labels(fleet) == {**TRUE, "kubeflash.io/of-an-admin": "kept"}, "silence says nothing of the kernel"
    fleet.kubectl("delete", "flashnode", NODE, "--timeout=30s")
    wait_labels(fleet, {"kubeflash.io/of-an-admin": "kept"})


def test_a_node_that_is_registered_later_gets_them_then(fleet, simulation):
    fleet.kubectl("delete", "node", NODE)
    time.sleep(1)
    assert fleet.controller.running, fleet.controller.log_tail()
    fleet.apply({"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE, "labels": {"zone": "z1"}}})
    wait_labels(fleet, TRUE)
