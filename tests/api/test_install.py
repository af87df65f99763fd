"""Identities of processes that run outside of pods, made as the README says it."""

from __future__ import annotations

from pathlib import Path

import pytest

from kubeflash.api.v1alpha1 import FlashNode
from kubeflash.kube.client import Client, load_configuration
from kubeflash.kube.errors import Forbidden
from lab.controlplane import ControlPlane, user_environment
from lab.processes import Completed, run

REPO = Path(__file__).parents[2]


def kubeconfig(cluster: ControlPlane, *words: str) -> Completed:
    """Runs scripts/kubeconfig as a cluster's administrator."""
    environment = user_environment(cluster.programs.kubectl, cluster.kubeconfig())
    return run([REPO / "scripts" / "kubeconfig", *words], timeout=60, env=environment, check=False)


@pytest.fixture
def as_process(cluster: ControlPlane, tmp_path: Path):
    """A client with the kubeconfig that README makes for one of the processes."""
    cluster.kubectl("apply", "--server-side", "--force-conflicts", "-f", REPO / "deploy" / "kubeflash.yaml")
    cluster.apply({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "installed"}})

    def made(who: str, *words: str) -> Client:
        done = kubeconfig(cluster, who, *words)
        assert done.exit_code == 0, done.stderr_text
        (tmp_path / who).write_bytes(done.stdout)
        return Client(load_configuration(str(tmp_path / who)))

    yield made
    cluster.kubectl("delete", "node", "installed")


def test_the_agent_s_identity_may_do_its_work_and_no_more(as_process):
    agent = as_process("agent", "installed")
    body = {"apiVersion": "kubeflash.io/v1alpha1", "kind": "FlashNode", "metadata": {"name": "installed"}}
    path = "/apis/kubeflash.io/v1alpha1/flashnodes"
    agent.call("POST", path, body=body)
    assert "installed" in {item["metadata"]["name"] for item in agent.list(FlashNode.info)}
    with pytest.raises(Forbidden):
        agent.call("DELETE", f"{path}/installed")
    with pytest.raises(Forbidden):
        agent.call("GET", "/api/v1/namespaces/kube-system/secrets")
    agent.close()


def test_the_controller_s_identity_makes_no_flashnodes(as_process, client):
    controller = as_process("controller")
    assert isinstance(controller.list(FlashNode.info), list)
    body = {"apiVersion": "kubeflash.io/v1alpha1", "kind": "FlashNode", "metadata": {"name": "forged"}}
    with pytest.raises(Forbidden):
        controller.call("POST", "/apis/kubeflash.io/v1alpha1/flashnodes", body=body)
    controller.close()
    client.call("DELETE", "/apis/kubeflash.io/v1alpha1/flashnodes/installed")


@pytest.mark.parametrize("words", [("root",), (), ("agent",)])
def test_another_process_gets_none(cluster, words):
    done = kubeconfig(cluster, *words)
    assert done.exit_code != 0
    assert "usage: scripts/kubeconfig controller | agent NODE" in done.stderr_text
    assert done.stdout == b""
