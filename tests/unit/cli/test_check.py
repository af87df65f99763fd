"""Is an installation sound: each thing that can be wrong is found, said with what to do, and told from a mere note."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from kubeflash import __version__
from kubeflash.api.crds import crd
from kubeflash.api.v1alpha1 import KINDS, FlashNode, Resource
from kubeflash.cli import check, cluster
from kubeflash.cli.__main__ import main
from kubeflash.kube import client as kube
from kubeflash.kube.errors import Forbidden, NotFound, Unreachable
from kubeflash.kube.leases import LeaseView
from support.objects import gpu_json, node, pool, ssd_json

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
SINCE = "2026-01-01T00:00:00Z"


def condition(status: str = "True", reason: str = "AgentRunning", message: str = "") -> dict:
    return {"type": "Ready", "status": status, "reason": reason, "message": message, "lastTransitionTime": SINCE}


def changed(item: Resource, **status: object) -> Resource:
    body = item.model_dump(mode="json", by_alias=True, exclude_none=True)
    body["status"] |= status
    return type(item).from_json(body)


def server(name: str = "gpu-a", **status: object) -> FlashNode:
    said = {
        "agent": {"version": __version__, "namespace": "flash"},
        "conditions": [condition()],
        "summary": {"gpus": 1, "ssds": 1, "neighbours": "1/1 PIX"},
    }
    made = node(name, 1, [gpu_json(0x12)], [ssd_json("A", 0x13)])
    linux = made.status.linux.model_copy(update={"release": "6.12.1"}).model_dump(mode="json", by_alias=True)
    return changed(made, **{**said, "linux": linux, **status})


def lacking(ability: str, how: str) -> dict:
    linux = server().status.linux.model_dump(mode="json", by_alias=True)
    return linux | {ability: {"available": False, "how": how}}


def spec(item: FlashNode, **more: object) -> FlashNode:
    body = item.model_dump(mode="json", by_alias=True, exclude_none=True)
    return FlashNode.from_json(body | {"spec": more})


def lease(name: str, age: float = 3, holder: str = "h") -> LeaseView:
    return LeaseView(name, holder, NOW - timedelta(seconds=age), 40)


def leases(*views: LeaseView) -> dict[str, LeaseView]:
    return {view.name: view for view in views}


def kube_node(name: str, *, ready: bool = True, **allocatable: str) -> dict:
    conditions = [{"type": "Ready", "status": "True" if ready else "Unknown"}]
    return {"metadata": {"name": name}, "status": {"conditions": conditions, "allocatable": allocatable}}


def policy(name: str, system: str = "flash", *actions: str) -> tuple[dict, dict]:
    account = f"system:serviceaccount:{system}:{check.POLICIES[name]}"
    conditions = [{"name": "it-is-the-one", "expression": f'request.userInfo.username == "{account}"'}]
    binding = {"spec": {"policyName": name, "validationActions": list(actions or ("Deny",))}}
    return {"spec": {"matchConditions": conditions}}, binding


def policies(**more: tuple[dict | None, dict | None]) -> dict[str, tuple[dict | None, dict | None]]:
    return {name: policy(name) for name in check.POLICIES} | {f"kubeflash-{name}": item for name, item in more.items()}


SOUND = check.State(
    policies=policies(),
    version=(1, 37),
    crds={"flashnodes.kubeflash.io": (), "flashpools.kubeflash.io": ()},
    system="flash",
    leases=leases(lease("kubeflash-controller"), lease("agent-gpu-a")),
    servers=[server()],
    pools=[changed(pool("fast", 2, "A"), conditions=[condition(reason="Usable")])],
    nodes=[kube_node("gpu-a")],
)


def said(state: check.State) -> list[str]:
    return [f"{item.level} {item.about}: {item.message}" for item in check.findings(state, NOW)]


def test_an_installation_that_is_sound():
    assert said(SOUND) == []


FAULTS = {
    "an agent that does not run yet": (
        replace(SOUND, agents=(2, 1)),
        "Fault agents: 1 of 2 are ready: kubectl get pods -o wide -n flash",
    ),
    "no KubeFlash": (
        replace(SOUND, agents=None),
        "Fault agents: KubeFlash is not installed in namespace flash: it has no DaemonSet kubeflash-agent",
    ),
    "a policy that is gone": (
        replace(SOUND, policies=policies(agent=(None, policy("kubeflash-agent")[1]))),
        "Fault policy kubeflash-agent: it, or its binding, is not there, so that root on one server may write",
    ),
    "a policy without binding": (
        replace(SOUND, policies=policies(controller=(policy("kubeflash-controller")[0], None))),
        "Fault policy kubeflash-controller: it, or its binding, is not there",
    ),
    "policies of another namespace": (
        replace(SOUND, policies=policies(agent=policy("kubeflash-agent", "kubeflash-system"))),
        "it does not hold system:serviceaccount:flash:kubeflash-agent: KubeFlash was put into namespace flash by",
    ),
    "a policy that only warns": (
        replace(SOUND, policies=policies(agent=policy("kubeflash-agent", "flash", "Warn", "Audit"))),
        "Fault policy kubeflash-agent: its binding does not deny",
    ),
    "an API server that is too old": (replace(SOUND, version=(1, 31)), "Fault API server: it is Kubernetes 1.31"),
    "no CRDs": (
        replace(SOUND, crds={"flashpools.kubeflash.io": None}),
        "Fault CRDs: flashpools.kubeflash.io: not in this cluster; apply this version's CRDs",
    ),
    "older CRDs": (
        replace(SOUND, crds={"flashnodes.kubeflash.io": ["status.agent"]}),
        f"Fault CRD flashnodes.kubeflash.io: older than KubeFlash {__version__}: it lacks status.agent; apply",
    ),
    "no controller": (
        replace(SOUND, leases=leases(lease("agent-gpu-a"))),
        "Fault controller: none leads: Lease kubeflash-controller in namespace flash: it has no Lease",
    ),
    "a controller that hangs": (
        replace(SOUND, leases=leases(lease("kubeflash-controller", 900), lease("agent-gpu-a"))),
        "it does not answer: it renewed its Lease 15 min ago, by this machine's clock; look at kubectl get",
    ),
    "no servers": (replace(SOUND, servers=[]), "Fault servers: no agent has made a FlashNode"),
    "an agent that is silent": (
        replace(SOUND, leases=leases(lease("kubeflash-controller"), lease("agent-gpu-a", 900))),
        "Fault server gpu-a: its agent does not answer: it renewed its Lease 15 min ago, by this",
    ),
    "a version too far": (
        replace(SOUND, servers=[server(agent={"version": "0.3.0", "namespace": "flash"})]),
        "Fault server gpu-a: its agent is KubeFlash 0.3.0",
    ),
    "another major version": (
        replace(SOUND, servers=[server(agent={"version": "1.1.0", "namespace": "flash"})]),
        "Fault server gpu-a: its agent is KubeFlash 1.1.0",
    ),
    "a kernel that lacks something": (
        replace(SOUND, servers=[server(linux=lacking("nvmetTcp", "no module: apt install it"))]),
        "Fault server gpu-a: its kernel cannot export volumes to other servers: no module: apt install it",
    ),
    "an agent in doubt": (
        replace(SOUND, servers=[server(conditions=[condition("True", "InDoubt", "another cluster's SSD")])]),
        "Fault server gpu-a: InDoubt: another cluster's SSD",
    ),
    "a Node that is not Ready": (
        replace(SOUND, nodes=[kube_node("gpu-a", ready=False)]),
        "Fault server gpu-a: its Node is not Ready: kubectl describe node gpu-a",
    ),
    "a pool that is not Ready": (
        replace(SOUND, pools=[changed(pool("fast", 2), conditions=[condition("False", "NoUsableSSD", "A: ext4")])]),
        "Fault pool fast: not Ready: NoUsableSSD: A: ext4",
    ),
    "a pool that nobody looked at": (
        replace(SOUND, pools=[pool("fast", 2)]),
        "Fault pool fast: no controller has looked",
    ),
    "what may not be read": (replace(SOUND, leases=None, unread=["leases: no"]), "Fault reading: leases: no: what"),
}
NOTES = {
    "no pool yet": (replace(SOUND, pools=[]), "Note pools: there is none yet, so no SSD is used. The first one:"),
    "a pool with something to say": (
        replace(SOUND, pools=[changed(pool("f", 2), conditions=[condition("True", "SomeRefused", "1 SSD")])]),
        "Note pool f: SomeRefused: 1 SSD",
    ),
    "Nodes without an agent": (
        replace(SOUND, nodes=[kube_node("gpu-a"), kube_node("cp-1", ready=False)]),
        "Note Nodes: cp-1: no agent speaks for it",
    ),
    "a Node with GPUs without an agent": (
        replace(SOUND, nodes=[kube_node("gpu-a"), kube_node("gpu-z", **{"nvidia.com/gpu": "8"})]),
        "Note Nodes: gpu-z: with GPUs",
    ),
    "a server without a Node": (replace(SOUND, nodes=[]), "Note server gpu-a: there is no Node of its name"),
    "one minor version apart": (
        replace(SOUND, servers=[server(agent={"version": "0.2.7", "namespace": "flash"})]),
        "Note server gpu-a: its agent is KubeFlash 0.2.7",
    ),
    "an agent without a version": (
        replace(SOUND, servers=[server(agent=None)]),
        "Note server gpu-a: its agent does not",
    ),
    "no GPU": (replace(SOUND, servers=[server(gpus=[])]), "Note server gpu-a: it has no GPU that counts as one"),
    "no SSD": (replace(SOUND, servers=[server(ssds=[])]), "Note server gpu-a: it has no NVMe SSD"),
    "no neighbours": (
        replace(SOUND, servers=[server(summary={"neighbours": "0/1"})]),
        "Note server gpu-a: no GPU has a neighbour SSD",
    ),
    "a failing SSD": (
        replace(SOUND, servers=[server(ssds=[ssd_json("A", 0x13, failing="SMART: worn out")])]),
        "Note server gpu-a: SSD A-1 gets no new volumes: SMART: worn out",
    ),
    "paused": (replace(SOUND, servers=[spec(server(), paused=True)]), "Note server gpu-a: it is paused"),
    "maintenance": (
        replace(SOUND, servers=[spec(server(), maintenance=True)]),
        "Note server gpu-a: it is in maintenance",
    ),
    "a kernel that lacks something, on a server without GPU and pool": (
        replace(SOUND, servers=[server(linux=lacking("nvmeTcp", "why"), gpus=[], ssds=[])]),
        "Note server gpu-a: its kernel cannot use volumes of other servers: why",
    ),
    "a kernel that lacks something, in maintenance": (
        replace(SOUND, servers=[spec(server(linux=lacking("nvmeTcp", "why")), maintenance=True)]),
        "Note server gpu-a: its kernel cannot use volumes of other servers: why",
    ),
}


@pytest.mark.parametrize("what", [*FAULTS, *NOTES])
def test_what_is_wrong_and_what_is_worth_knowing(what: str):
    state, words = (FAULTS | NOTES)[what]
    found = said(state)
    assert any(words in line for line in found), found
    assert any(line.startswith("Fault") for line in found) == (what in FAULTS)


def test_a_lease_of_the_future_is_said_to_be_one():
    """This machine's clock is behind; whether somebody renews it is not known then."""
    said = cluster.heartbeat(None, lease("agent-gpu-a", age=-60), NOW)
    assert (said.answers, said.words) == (True, "answers, or did: its Lease is 60 s ahead of this machine's clock")


# --- the command ---


class FakeClient:
    """What `SOUND` was read from; `on_list` is what happens before each look."""

    def __init__(self) -> None:
        self.objects: dict[str, list[dict]] = {"nodes": [kube_node("gpu-a")]}
        self.forbidden: set[str] = set()
        self.asked: set[str] = set()
        self.crds: Callable[[str], dict] = self._whole
        self.on_list: Callable[[FakeClient], None] = lambda _: None
        self.put("flashnodes", server())
        self.put("flashpools", *SOUND.pools)
        renewed = (datetime.now(UTC) - timedelta(seconds=3)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        held = {"holderIdentity": "h", "leaseDurationSeconds": 40, "renewTime": renewed}
        names = ("kubeflash-controller", "agent-gpu-a")
        self.objects["leases"] = [{"metadata": {"name": name, "namespace": "flash"}, "spec": held} for name in names]

    def put(self, plural: str, *items: Resource) -> None:
        self.objects[plural] = [item.model_dump(mode="json", by_alias=True, exclude_none=True) for item in items]

    @staticmethod
    def _whole(name: str) -> dict:
        return crd(next(kind for kind in KINDS if name.startswith(f"{kind.info.plural}.")))

    def call(self, method: str, path: str) -> dict:
        assert (method, path) == ("GET", "/version")
        return {"major": "1", "minor": "37+"}

    def get(self, info, name, namespace=None):
        self.asked.add(f"get {info.plural}")
        if info.plural == "daemonsets":
            assert name == "kubeflash-agent"
            assert namespace in ("flash", "other")
            return {"status": {"desiredNumberScheduled": 1, "numberReady": 1}}
        if info.plural.startswith("validating"):
            if info.plural in self.forbidden:
                raise Forbidden(f"{info.plural} is forbidden")
            return policy(name)[info.plural.endswith("bindings")]
        return self.crds(name)

    def list(self, info, field_selector=None, *, namespace=None):
        self.asked.add(f"list {info.plural}")
        self.on_list(self)
        if info.plural in self.forbidden:
            raise Forbidden(f"{info.plural} is forbidden")
        items = self.objects[info.plural]
        return [item for item in items if namespace in (None, item["metadata"].get("namespace"))]

    def close(self) -> None:
        pass


@pytest.fixture
def client(monkeypatch) -> FakeClient:
    made = FakeClient()
    monkeypatch.setattr(kube, "load_configuration", lambda *_: None)
    monkeypatch.setattr(kube, "Client", lambda _: made)
    monkeypatch.setattr(check, "INTERVAL", 0.001)
    return made


def run(capsys, *words: str, status: int = 0) -> str:
    assert main(["check", *words]) == status
    return capsys.readouterr().out


def test_a_sound_installation_is_status_zero_and_reads_no_more_than_a_helm_test_may(capsys, client):
    assert run(capsys) == f"Sound: KubeFlash {__version__}: 1 server, 1 pool, 0 faults, 0 notes.\n"
    assert client.asked == {
        "get customresourcedefinitions",
        "get daemonsets",
        "get validatingadmissionpolicies",
        "get validatingadmissionpolicybindings",
        *(f"list {plural}" for plural in ("flashnodes", "flashpools", "nodes", "leases")),
    }


def test_a_fault_is_status_one_and_each_finding_one_line_however_long(capsys, client):
    client.put("flashnodes", server(linux=lacking("nvmet", "word " * 60 + "\n\x1b[31m")))
    client.put("flashpools")
    first, second, last = run(capsys, status=1).splitlines()
    assert first.startswith("FAULT  server gpu-a: its kernel cannot export volumes to other servers: word word")
    assert "\x1b" not in first
    assert second.startswith("NOTE   pools: there is none yet")
    assert last == f"Not sound: KubeFlash {__version__}: 1 server, 0 pools, 1 fault, 1 note."


def test_notes_alone_are_sound_and_json_says_it_all(capsys, client):
    client.put("flashpools")
    found = json.loads(run(capsys, "-o", "json"))
    assert (found["sound"], found["namespace"], found["servers"], found["pools"]) == (True, "flash", ["gpu-a"], [])
    assert [(item["level"], item["about"]) for item in found["findings"]] == [("Note", "pools")]
    client.forbidden.add("nodes")
    found = json.loads(run(capsys, "-o", "json", status=1))
    assert not found["sound"]
    assert "nodes is forbidden" in found["findings"][0]["message"]


def test_kinds_that_are_not_there_or_do_not_fit(capsys, client):
    def gone(name: str) -> dict:
        raise NotFound(name)

    client.put("flashnodes", server())
    client.objects["flashnodes"][0]["status"]["gpus"] = "three"
    assert "FAULT  reading: FlashNode gpu-a does not fit this release" in run(capsys, status=1)
    client.crds = gone
    client.asked.clear()
    said = run(capsys, "--system-namespace", "flash", status=1)
    assert "flashnodes.kubeflash.io, flashpools.kubeflash.io" in said
    assert "list flashnodes" not in client.asked


def test_the_namespace_is_the_one_given(capsys, client):
    assert "none leads: Lease kubeflash-controller in namespace other" in run(
        capsys, "--system-namespace", "other", status=1
    )


def test_it_waits_until_all_is_sound(capsys, client):
    whole, looks = client.objects["leases"], []
    client.objects["leases"] = []

    def later(c: FakeClient) -> None:
        looks.append(1)
        if len(looks) == 6:
            raise Unreachable("restarting")
        if len(looks) > 12:
            c.objects["leases"] = whole

    client.on_list = later
    assert run(capsys, "--wait", "1m").startswith("Sound")
    assert len(looks) > 12


def test_it_does_not_wait_for_ever(capsys, client):
    client.objects["leases"] = []
    began = time.monotonic()
    assert "FAULT  controller: none leads" in run(capsys, "--wait", "1s", status=1)
    assert 1 <= time.monotonic() - began < 20


def test_an_api_server_that_is_gone_is_one_line(capsys, client):
    def gone(_: FakeClient) -> None:
        raise Unreachable("no answer")

    client.on_list = gone
    assert main(["check"]) == 1
    assert capsys.readouterr().err == "kubectl flash: no answer\n"
