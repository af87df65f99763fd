"""What an identity may write, tried with tokens as kubelets have them made: bound to a Pod on a Node, or to the Node.

Two Nodes, `mine` and `other`; each agent's write is tried for its own and for the other's.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

import manifest
from api.refusals import ATTACHMENT, VOLUME
from fleet import Fleet, attachment, pool, volume
from kubeflash.api.v1alpha1 import FlashAttachment, FlashNode, FlashVolume
from kubeflash.kube.builtin import EVENT, LEASE, Node
from kubeflash.kube.client import Client, load_configuration
from kubeflash.kube.errors import Forbidden
from lab.controlplane import user_environment
from lab.processes import run, wait_until
from support.simulated import Network, SimulatedServer, gpu, ssd
from support.simulation import Simulation

pytestmark = pytest.mark.api

SYSTEM = "kubeflash-system"
MINE, OTHER = "mine", "other"
APPLY: dict[str, Any] = {"query": {"fieldManager": "test"}, "content_type": "application/apply-patch+yaml"}
REFUSED = "ValidatingAdmissionPolicy '{policy}' with binding '{policy}' denied request: {words}"


@pytest.fixture(scope="module")
def fleet(lab, emptied) -> Fleet:
    """What is installed, and no controller: it would look after what these tests make."""
    made = Fleet(lab)
    made.install()
    return made


@pytest.fixture(scope="module")
def nodes(fleet: Fleet) -> Iterator[None]:
    """Two Nodes, and on each a Pod of the agent's ServiceAccount."""
    for name in (MINE, OTHER):
        fleet.apply({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": {"kept": "yes"}}})
        container = {"name": "agent", "image": "kubeflash"}
        spec = {"serviceAccountName": "kubeflash-agent", "nodeName": name, "containers": [container]}
        spec["automountServiceAccountToken"] = False
        fleet.apply({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": SYSTEM}, "spec": spec})
    yield
    fleet.kubectl("delete", "pod", "-n", SYSTEM, MINE, OTHER, "--force", "--grace-period=0")
    fleet.kubectl("delete", "node", MINE, OTHER)


@pytest.fixture(scope="module")
def client_with(lab, nodes, tmp_path_factory) -> Iterator[Any]:
    """A client with a token of one of the ServiceAccounts. All policies are in force."""
    made: list[Client] = []
    plain = json.loads(lab.control_plane.kubeconfig().read_text())

    def make(account: str, bound_to: tuple[str, str] | None) -> Client:
        token = lab.control_plane.token(SYSTEM, account, bound_to=bound_to)
        path = tmp_path_factory.mktemp("kubeconfig") / "config"
        path.write_text(json.dumps({**plain, "users": [{"name": "admin", "user": {"token": token}}]}))
        made.append(Client(load_configuration(str(path))))
        return made[-1]

    agent, controller = make("kubeflash-agent", None), make("kubeflash-controller", None)
    wait_refused(agent, "POST", "/apis/kubeflash.io/v1alpha1/flashnodes", flashnode("early"))
    wait_refused(agent, "POST", f"/apis/coordination.k8s.io/v1/namespaces/{SYSTEM}/leases", lease("early"))
    wait_refused(agent, "POST", "/apis/events.k8s.io/v1/namespaces/default/events", event("Node", "early"))
    wait_refused(controller, "PATCH", f"/api/v1/nodes/{MINE}", {"spec": {"unschedulable": True}})
    yield make
    for client in made:
        client.close()


@pytest.fixture(scope="module", params=["Pod", "Node"])
def agent(request, client_with) -> Client:
    """The agent on node `mine`, by a token bound to its Pod, or to its Node."""
    return client_with("kubeflash-agent", (request.param, MINE))


@pytest.fixture(scope="module")
def controller(client_with) -> Client:
    return client_with("kubeflash-controller", None)


@pytest.fixture
def on(client, make):
    """Objects of each kind that belong to a node; gone when the test is done."""
    made = []

    def make_on(node: str) -> dict[type, Any]:
        carved = make(FlashVolume, VOLUME)
        client.apply_status(carved, {"nodeName": node, "conditions": []}, "controller")
        attached = make(FlashAttachment, {**ATTACHMENT, "nodeName": node})
        told = make(FlashNode, {}, node)
        made.extend([carved, attached, told])
        return {FlashVolume: carved, FlashAttachment: attached, FlashNode: told}

    yield make_on
    for item in made:
        path = (
            f"/apis/kubeflash.io/v1alpha1/{f'namespaces/{item.metadata.namespace}/' if item.metadata.namespace else ''}"
        )
        client.call("DELETE", f"{path}{item.info.plural}/{item.metadata.name}")


def flashnode(name: str, **spec: Any) -> dict[str, Any]:
    return {"apiVersion": "kubeflash.io/v1alpha1", "kind": "FlashNode", "metadata": {"name": name}, "spec": spec}


def lease(name: str) -> dict[str, Any]:
    return {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": name}, "spec": {}}


def event(kind: str, name: str, group: str = "kubeflash.io") -> dict[str, Any]:
    return {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"generateName": "policy-", "namespace": "default"},
        "eventTime": "2026-01-01T00:00:00.000000Z",
        "type": "Normal",
        "reason": "Tried",
        "action": "Try",
        "note": "tried",
        "regarding": {"apiVersion": f"{group}/v1alpha1" if group else "v1", "kind": kind, "name": name},
        "reportingController": "kubeflash.io/agent",
        "reportingInstance": f"agent-{name}",
    }


def wait_refused(client: Client, method: str, path: str, body: dict[str, Any]) -> None:
    """Waits until a policy refuses it: the API server takes one up some time after it was made."""
    kind = "application/merge-patch+json" if method == "PATCH" else "application/json"
    deadline = time.monotonic() + 30
    while True:
        try:
            client.call(method, path, body=body, query={"dryRun": "All"}, content_type=kind)
        except Forbidden as error:
            if "denied request" in str(error):
                return
            raise
        assert time.monotonic() < deadline, path
        time.sleep(0.2)


def refused(policy: str, words: str, work: Any, *arguments: Any, **options: Any) -> None:
    with pytest.raises(Forbidden) as caught:
        work(*arguments, **options)
    assert REFUSED.format(policy=policy, words=words) in str(caught.value)


# --- agents


def test_an_agent_makes_its_own_flashnode_and_no_other(agent, client):
    agent.create(FlashNode.info, flashnode(MINE))
    client.call("DELETE", f"/apis/kubeflash.io/v1alpha1/flashnodes/{MINE}")
    words = "an agent writes only its own server's FlashNode: this one is of Node mine, not other"
    refused("kubeflash-agent", words, agent.create, FlashNode.info, flashnode(OTHER))


@pytest.mark.parametrize(
    "spec",
    [
        {"wipe": {"ssds": {"eui.1": "0" * 64}}},
        {"adopt": {"eui.1": "u"}},
        {"lost": ["eui.1"]},
        {"pairsAcceptedAt": "2026-01-01T00:00:00Z"},
    ],
    ids=lambda spec: next(iter(spec)),
)
def test_an_agent_does_not_say_an_admin_s_word(agent, spec, client):
    # the admin's own is taken, so that it is the policy that refuses, and not the schema
    client.create(FlashNode.info, flashnode(MINE, **spec))
    client.call("DELETE", f"/apis/kubeflash.io/v1alpha1/flashnodes/{MINE}")
    words = "an agent does not say an admin's word"
    refused("kubeflash-agent", words, agent.create, FlashNode.info, flashnode(MINE, **spec))


@pytest.mark.parametrize("kind", [FlashNode, FlashVolume, FlashAttachment], ids=lambda kind: kind.info.kind)
def test_an_agent_writes_the_status_of_what_is_its_own_and_of_nothing_else(agent, on, kind):
    words = {
        FlashNode: "an agent writes only its own server's FlashNode: this one is of Node mine, not other",
        FlashVolume: "an agent writes only the status of FlashVolumes on its own server: this one is of Node mine, the "
        "volume on other",
        FlashAttachment: "an agent writes only the status of FlashAttachments at its own server: this one is of Node "
        "mine, the attachment at other",
    }
    agent.apply_status(on(MINE)[kind], {"conditions": []}, "kubeflash-agent")
    refused("kubeflash-agent", words[kind], agent.apply_status, on(OTHER)[kind], {"conditions": []}, "kubeflash-agent")


def test_an_agent_neither_takes_a_volume_nor_gives_one_away(agent, make, on):
    words = (
        "an agent writes only the status of FlashVolumes on its own server: this one is of Node mine, the volume on "
    )
    for volume_, before, node in (
        (on(OTHER)[FlashVolume], "other", MINE),
        (on(MINE)[FlashVolume], "mine", OTHER),
        (make(FlashVolume, VOLUME), "none yet", MINE),
    ):
        told = {"nodeName": node, "conditions": []}
        refused("kubeflash-agent", words + before, agent.apply_status, volume_, told, "kubeflash-agent")


def test_an_agent_renews_its_own_lease_and_no_other(agent, client):
    path = f"/apis/coordination.k8s.io/v1/namespaces/{SYSTEM}/leases"
    made = agent.create(LEASE, lease("agent-mine"), SYSTEM)
    agent.replace(LEASE, {**made, "spec": {"holderIdentity": "u"}}, "agent-mine", SYSTEM)
    client.call("DELETE", f"{path}/agent-mine")
    words = "an agent writes only its own heartbeat, Lease agent-mine, not "
    refused("kubeflash-agent-lease", words + "agent-other", agent.create, LEASE, lease("agent-other"), SYSTEM)
    client.call("PATCH", f"{path}/kubeflash-controller", body={**lease("kubeflash-controller")}, **APPLY)
    leading = agent.get(LEASE, "kubeflash-controller", SYSTEM)  # who leads is to be read, not to be made
    taken = {**leading, "spec": {"holderIdentity": "me"}}
    words += "kubeflash-controller"
    refused("kubeflash-agent-lease", words, agent.replace, LEASE, taken, "kubeflash-controller", SYSTEM)


def test_an_agent_tells_of_its_own_server_and_of_nothing_else(agent):
    agent.create(EVENT, event("FlashNode", MINE), "default")
    words = "an agent tells only of its own server: events that regard FlashNode mine"
    for body in (event("FlashNode", OTHER), event("Node", MINE, ""), event("FlashNode", MINE, "example.com")):
        refused("kubeflash-agent-event", words, agent.create, EVENT, body, "default")


def test_a_token_that_names_no_node_writes_nothing_and_is_told_what_to_do(client_with, on):
    agent = client_with("kubeflash-agent", None)
    words = (
        "an agent writes only what belongs to its own Node, and this token does not say which that is: use the one "
        "that a Pod of DaemonSet kubeflash-agent gets, or one bound to the Node (kubectl create token kubeflash-agent "
        "--namespace kubeflash-system --bound-object-kind Node --bound-object-name NODE)"
    )
    mine = on(MINE)
    for kind, found in mine.items():
        refused("kubeflash-agent", words, agent.apply_status, found, {"conditions": []}, kind.info.kind)
    refused("kubeflash-agent", words, agent.create, FlashNode.info, flashnode("new"))
    refused("kubeflash-agent-lease", words, agent.create, LEASE, lease("agent-x"), SYSTEM)
    refused("kubeflash-agent-event", words, agent.create, EVENT, event("FlashNode", ""), "default")
    assert agent.list(FlashNode.info), "it may read"


# --- the controller


def patched(client: Client, body: dict[str, Any], kind: str = "application/merge-patch+json") -> Any:
    return client.call("PATCH", f"/api/v1/nodes/{MINE}", body=body, content_type=kind)


def test_the_controller_writes_labels_of_its_own_on_a_node(controller, client):
    patched(controller, {"metadata": {"labels": {"kubeflash.io/target-tcp": "true"}}})
    patched(controller, {"metadata": {"labels": {"kubeflash.io/target-tcp": "false"}}})
    patched(controller, {"metadata": {"labels": {"kubeflash.io/target-tcp": None}}})
    assert client.get(Node.info, MINE)["metadata"]["labels"] == {"kept": "yes"}


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"metadata": {"labels": {"new": "yes"}}}, "the controller writes only labels kubeflash.io/… of a Node"),
        ({"metadata": {"labels": {"kept": "no"}}}, "the controller writes only labels kubeflash.io/… of a Node"),
        ({"metadata": {"labels": {"kept": None}}}, "the controller writes only labels kubeflash.io/… of a Node"),
        ({"metadata": {"labels": {"a.kubeflash.io/b": "c"}}}, "the controller writes only labels kubeflash.io/… of a"),
        ({"spec": {"unschedulable": True}}, "the controller writes only labels of a Node, not its spec"),
        (
            {"spec": {"taints": [{"key": "k", "effect": "NoExecute"}]}},
            "the controller writes only labels of a Node, not",
        ),
        ({"metadata": {"annotations": {"a": "b"}}}, "the controller writes only labels of a Node, not its annotations"),
        ({"metadata": {"finalizers": ["example.com/f"]}}, "the controller writes only labels of a Node, not its anno"),
    ],
    ids=["add", "change", "remove", "alike", "cordon", "taint", "annotate", "finalizer"],
)
def test_the_controller_writes_nothing_else_on_a_node(controller, body, words):
    refused("kubeflash-controller", words, patched, controller, body)


def test_others_write_what_they_like(client, on):
    patched(client, {"metadata": {"labels": {"new": "yes"}, "annotations": {"a": "b"}}})
    patched(client, {"metadata": {"labels": {"new": None}, "annotations": {"a": None}}})
    client.apply_status(on(OTHER)[FlashVolume], {"nodeName": OTHER, "conditions": []}, "controller")


# --- the policies themselves


def test_policies_look_at_no_more_than_they_must():
    documents = list(yaml.safe_load_all(manifest.FILE.read_text()))
    ours = {item["metadata"]["name"]: item["spec"] for item in documents if item["kind"] == "ValidatingAdmissionPolicy"}
    assert len(ours) == 4
    for name, spec in ours.items():
        assert spec["failurePolicy"] == "Fail", name
        [asked] = spec["matchConditions"]
        account = "controller" if name == "kubeflash-controller" else "agent"
        assert asked["expression"] == (
            f'request.userInfo.username == "system:serviceaccount:kubeflash-system:kubeflash-{account}"'
        )
        assert "*" not in str(spec["matchConstraints"])
    constraints = {name: spec["matchConstraints"] for name, spec in ours.items()}
    selected = {name: item.get("namespaceSelector", {}).get("matchLabels") for name, item in constraints.items()}
    assert selected == {
        "kubeflash-agent": None,  # kinds that nobody but KubeFlash and its users write
        "kubeflash-agent-lease": {"kubernetes.io/metadata.name": "kubeflash-system"},
        "kubeflash-agent-event": {"kubernetes.io/metadata.name": "default"},
        "kubeflash-controller": None,
    }


# --- the true agent


def test_all_that_a_true_agent_writes_is_let_through(fleet, lab, nodes, tmp_path, caplog):
    """The kubeconfig is the one that scripts/kubeconfig makes for an agent on a Node."""
    environment = user_environment(lab.control_plane.programs.kubectl, lab.control_plane.kubeconfig())
    network = Network()
    servers = {
        MINE: SimulatedServer(MINE, "10.0.0.1", network, [gpu(1)], [ssd("P1", 1), ssd("P2", 2)]),
        OTHER: SimulatedServer(OTHER, "10.0.0.2", network, [gpu(1)], []),
    }
    simulations = []
    try:
        fleet.start_controller()
        for name in servers:
            made = run([manifest.REPO / "scripts" / "kubeconfig", "agent", name], timeout=60, env=environment)
            (tmp_path / name).write_bytes(made.stdout)
            simulations.append(Simulation(str(tmp_path / name), servers))
            simulations[-1].start(name)
        for name in servers:
            fleet.wait_ready("flashnode", name, namespace=None, timeout=30)
        fleet.wait_alive(*servers, timeout=30)
        fleet.apply(pool("policed", "P1", "P2"), volume("policed", "512Mi", pool="policed"))
        fleet.wait_ready("flashvolume", "policed", timeout=30)
        for where in (MINE, OTHER):
            fleet.apply(attachment("policed", "policed", where))
            fleet.wait_ready("flashattachment", "policed", timeout=30)
            fleet.delete("flashattachment", "policed", timeout=30)
        fleet.delete("flashvolume", "policed", timeout=30)
        servers[MINE].unplug("P1-1")
        fleet.kubectl("annotate", "flashnode", MINE, "look=again")
        fleet.wait("flashnode", MINE, lambda it: len(it["status"]["ssds"]) == 1, namespace=None, timeout=30)
        told = lambda: [item["regarding"]["name"] for item in fleet.events("PairsChanged")] == [MINE]  # noqa: E731
        wait_until("an event says which server's pairs changed", told, timeout=20, interval=0.5)
        fleet.kubectl("delete", "flashpool", "policed", "--timeout=20s")
    finally:
        for simulation in simulations:
            simulation.close()
        fleet.stop_controller()
    fleet.kubectl("delete", "flashnode", MINE, OTHER, "--wait=false")
    assert "denied request" not in caplog.text
    assert "Forbidden" not in caplog.text
