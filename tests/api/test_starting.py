"""What controller and agents wait for, and what they say of themselves meanwhile: on a real API server."""

from __future__ import annotations

import copy
import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from api.objects import CRDS
from fleet import Fleet, condition, pool, volume
from kubeflash.host.errors import HostError
from kubeflash.kube.leases import Lease
from kubeflash.kube.serving import Health
from lab.lab import Lab
from lab.processes import ManagedProcess, wait_until
from support.asking import ask
from support.simulated import Network, SimulatedServer, gpu, ssd
from support.simulation import Simulation

pytestmark = pytest.mark.api

LOCAL = "127.0.0.1"
LEASE = ("lease", "kubeflash-controller", "kubeflash-system")
JSON = dict[str, Any]


@pytest.fixture(scope="module")
def fleet(lab: Lab, emptied: None) -> Fleet:
    """KubeFlash installed, and nothing of it running."""
    made = Fleet(lab)
    made.install()
    return made


class Controller:
    """A controller process that answers over HTTP."""

    def __init__(self, process: ManagedProcess, port: int) -> None:
        self.process, self._port = process, port

    def ask(self, path: str) -> tuple[int, str]:
        return ask(self._port, path)

    @property
    def unready(self) -> str:
        """Why it is not ready; empty when it is. It is alive whatever it says."""
        try:
            status, words = self.ask("/readyz")
            assert self.ask("/livez") == (200, "ok\n")
        except ConnectionRefusedError:
            return "nothing listens yet"
        return "" if status == 200 else words.strip()

    def says(self, wanted: str, timeout: float = 30) -> None:
        """Waits until it says this; the empty word is that it is ready."""
        until(lambda: self.unready, wanted, timeout, self.process)


def until(said: Callable[[], str], wanted: str, timeout: float = 30, process: ManagedProcess | None = None) -> None:
    deadline = time.monotonic() + timeout
    while True:
        words = said()
        if wanted in words if wanted else not words:
            return
        assert process is None or process.running, process.log_tail()
        assert time.monotonic() < deadline, f"it says {words!r}, not {wanted!r}"
        time.sleep(0.1)


@pytest.fixture
def start(fleet: Fleet) -> Iterator[Callable[..., Controller]]:
    """Starts controllers that serve; they end with the test."""
    running: list[ManagedProcess] = []

    def started(name: str) -> Controller:
        with socket.socket() as probe:
            probe.bind((LOCAL, 0))
            port = probe.getsockname()[1]
        running.append(fleet.another_controller(name, "--serve", f"{LOCAL}:{port}"))
        return Controller(running[-1], port)

    yield started
    for process in running:
        process.stop()


@pytest.fixture
def server() -> SimulatedServer:
    return SimulatedServer("gpu-s", "10.0.0.7", Network(), [gpu(1)], [ssd("S1", 1)])


@pytest.fixture
def agent(fleet: Fleet, server: SimulatedServer) -> Iterator[Callable[[], Health]]:
    """Starts the agent of a simulated server, and returns what it says of itself."""
    kubeconfig = str(fleet.lab.control_plane.kubeconfig("kubeflash-agent-start", groups=("kubeflash:agents",)))
    made = Simulation(kubeconfig, {"gpu-s": server})

    def started() -> Health:
        made.start("gpu-s")
        return made.health("gpu-s")

    yield started
    made.close()
    fleet.kubectl("delete", "flashnode", "gpu-s", "--ignore-not-found", "--wait=false")


def test_an_agent_whose_heartbeat_breaks_ends(fleet, server, monkeypatch):
    """It would work on, and look dead to all others for ever."""

    def broken(_: Lease) -> None:
        raise RuntimeError("a bug")

    with Simulation.running(fleet, {"gpu-s": server}, "kubeflash-agent-start") as simulation:
        monkeypatch.setattr(Lease, "acquire", broken)
        with pytest.raises(RuntimeError, match="a bug"):
            simulation.wait_ended("gpu-s", timeout=60)
    fleet.kubectl("delete", "flashnode", "gpu-s", "--ignore-not-found", "--wait=false")


# ---- Ready and live


def test_who_leads_and_who_stands_by_are_ready_and_the_figures_are_there(fleet, start):
    first = start("serving-1")
    first.says("")
    second = start("serving-2")
    second.says("")
    assert "standing by" in second.process.log_tail()
    for one in (first, second):
        status, text = one.ask("/metrics")
        assert status == 200
        assert "process_resident_memory_bytes" in text
    assert first.process.stop(timeout=10) == 0, "an answer in the air holds nothing up"
    second.process.wait_ready(lambda: "leading as" in second.process.log_tail(), timeout=20)
    second.says("")


def test_an_api_server_that_is_gone_makes_both_unready_and_kills_neither(fleet, start, agent):
    first, second, health = start("gone-1"), start("gone-2"), agent()
    for one in (first, second):
        one.says("")
    until(lambda: health.unready, "")
    fleet.lab.control_plane.pause()
    try:
        for one in (first, second):
            one.says("is the API server up, and the address right?")
        until(lambda: health.unready, "is the API server up, and the address right?")
    finally:
        fleet.lab.control_plane.resume()
    for one in (first, second):
        one.says("")
    until(lambda: health.unready, "")


def test_a_lost_leader_is_replaced_and_a_new_volume_is_placed_within_20_s(fleet, start, agent):
    first, health = start("lost-1"), agent()
    first.says("")
    second = start("lost-2")
    second.says("")
    until(lambda: health.unready, "")
    fleet.apply(pool("takeover", "S1"))
    first.process.stop(force=True)
    began = time.monotonic()
    fleet.apply(volume("orphaned", "1Mi", pool="takeover"))
    fleet.wait("flashvolume", "orphaned", lambda it: it["status"].get("nodeName") == "gpu-s", timeout=20)
    assert time.monotonic() - began < 20
    fleet.wait_ready("flashvolume", "orphaned", timeout=20)
    fleet.delete("flashvolume", "orphaned")
    fleet.kubectl("delete", "flashpool", "takeover", "--timeout=30s")


def test_an_agent_is_ready_once_it_has_reported_and_not_while_it_cannot_read_its_server(
    fleet, agent, server, monkeypatch
):
    def observe(*_: object, **__: object) -> None:
        raise HostError("sysfs is not there")

    with monkeypatch.context() as broken:
        broken.setattr(server, "observe", observe)
        health = agent()
        assert health.unready
        until(lambda: health.unready, "this server cannot be read, nothing is changed on it: HostError: sysfs is not")
        assert "status" not in fleet.get("flashnode", "gpu-s", None)
    until(lambda: health.unready, "")
    assert fleet.get("flashnode", "gpu-s", None)["status"]["systemUUID"] == "uuid-of-gpu-s"


# ---- CRDs


def crd(plural: str) -> JSON:
    """A CRD of this version."""
    return copy.deepcopy(yaml.safe_load((Path(CRDS) / f"kubeflash.io_{plural}.yaml").read_text()))


def apply_crds(fleet: Fleet, *bodies: JSON) -> None:
    words = ("apply", "--server-side", "--force-conflicts", "-f")
    if bodies:
        fleet.kubectl(*words, "-", stdin=yaml.safe_dump_all(bodies))
    else:
        fleet.kubectl(*words, str(CRDS))
        fleet.kubectl("wait", "--for=condition=Established", "--timeout=30s", "-f", str(CRDS))


def test_missing_crds_are_waited_for_and_nothing_is_written_meanwhile(fleet, start, agent):
    before = fleet.get(*LEASE)
    fleet.kubectl("delete", "crd", "flashattachments.kubeflash.io", "--timeout=60s", timeout=70)
    try:
        controller, health = start("without-crds"), agent()
        words = (
            "these CRDs are not in this cluster: flashattachments.kubeflash.io; apply this version's CRDs: helm "
            "upgrade --install kubeflash-crds charts/kubeflash-crds, or kubectl apply --server-side -f crds/"
        )
        controller.says(words)
        until(lambda: health.unready, words)
        time.sleep(3)
        assert controller.unready == words
        assert controller.process.log_tail().count(words) == 1, "it is said once, not with each look"
        assert fleet.get(*LEASE) == before, "it does not lead"
        assert fleet.get("flashnode", "gpu-s", None) is None
    finally:
        apply_crds(fleet)
    controller.says("")
    until(lambda: health.unready, "")
    fleet.wait_ready("flashnode", "gpu-s", namespace=None, timeout=20)


def test_older_crds_are_waited_for_with_what_they_lack_and_newer_ones_are_fine(fleet, start, agent):
    older, newer = crd("flashnodes"), crd("flashpools")
    status = older["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["status"]["properties"]
    del status["linux"], status["ssds"]["items"]["properties"]["health"]
    spec = newer["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]
    spec["ofALaterVersion"] = {"type": "string"}
    apply_crds(fleet, older, newer)
    try:
        controller, health = start("older-crds"), agent()
        words = "CRDs are older than KubeFlash 0.1.0: flashnodes.kubeflash.io lacks status.linux, status.ssds.health; "
        controller.says(words)
        until(lambda: health.unready, words)
        time.sleep(2)
        assert fleet.get("flashnode", "gpu-s", None) is None
        apply_crds(fleet, crd("flashnodes"))
        controller.says("")
        until(lambda: health.unready, "")
        fleet.wait_ready("flashnode", "gpu-s", namespace=None, timeout=20)
    finally:
        apply_crds(fleet)


# ---- RBAC


def may(fleet: Fleet, role: str, resource: str, verb: str) -> bool:
    """Whether whoever has a ClusterRole of KubeFlash's may do this now."""
    plural, _, subresource = resource.partition("/")
    group = "apiextensions.k8s.io" if plural == "customresourcedefinitions" else "kubeflash.io"
    asked = {"verb": verb, "group": group, "resource": plural, "subresource": subresource}
    groups = ["kubeflash:agents"] if role == "kubeflash-agent" else []
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {"user": role, "groups": groups, "resourceAttributes": asked},
    }
    said = fleet.kubectl("create", "-f", "-", "-o", "json", stdin=json.dumps(review))
    return bool(json.loads(said)["status"]["allowed"])


@contextmanager
def without(fleet: Fleet, role: str, resource: str, verb: str) -> Iterator[None]:
    """A ClusterRole that does not give a verb on a resource; mended at the end."""
    found = json.loads(fleet.kubectl("get", "clusterrole", role, "-o", "json"))
    del found["metadata"]["resourceVersion"]
    less = copy.deepcopy(found)
    for rule in list(less["rules"]):
        if resource in rule["resources"] and verb in rule["verbs"]:
            others = [item for item in rule["resources"] if item != resource]
            verbs = [item for item in rule["verbs"] if item != verb]
            less["rules"].remove(rule)
            less["rules"] += [{**rule, "resources": others}] if others else []
            less["rules"] += [{**rule, "resources": [resource], "verbs": verbs}] if verbs else []
    assert less != found
    fleet.kubectl("replace", "-f", "-", stdin=json.dumps(less))
    try:
        wait_until("the API server goes by it", lambda: not may(fleet, role, resource, verb), timeout=20, interval=0.2)
        yield
    finally:
        fleet.kubectl("replace", "-f", "-", stdin=json.dumps(found))


REMEDY = "Apply the chart's RBAC: helm upgrade of release kubeflash, or kubectl apply --server-side -f deploy/"


@pytest.mark.parametrize(
    ("resource", "verb", "group"),
    [
        ("flashpools", "list", "kubeflash.io"),
        ("flashvolumes/status", "patch", "kubeflash.io"),
        ("customresourcedefinitions", "get", "apiextensions.k8s.io"),
    ],
)
def test_a_controller_names_the_rule_that_is_missing_and_begins_once_it_is_there(fleet, start, resource, verb, group):
    with without(fleet, "kubeflash-controller", resource, verb):
        controller = start(f"without-{verb}")
        controller.says(f"kubeflash-controller lacks RBAC rules: {verb} {resource} in API group {group}")
        assert REMEDY in controller.unready
        assert f"{verb} {resource} in API group {group}" in controller.process.log_tail()
    controller.says("")


@pytest.mark.parametrize(("resource", "verb"), [("flashpools", "watch"), ("flashnodes", "create")])
def test_an_agent_names_the_rule_that_is_missing_and_begins_once_it_is_there(fleet, agent, resource, verb):
    with without(fleet, "kubeflash-agent", resource, verb):
        health = agent()
        until(
            lambda: health.unready,
            f"kubeflash-agent lacks RBAC rules: {verb} {resource} in API group kubeflash.io. {REMEDY}",
        )
        assert fleet.get("flashnode", "gpu-s", None) is None
    until(lambda: health.unready, "")


def test_an_agent_whose_rule_is_back_goes_on_though_nothing_else_changes(fleet, agent):
    health = agent()
    until(lambda: health.unready, "")
    with without(fleet, "kubeflash-agent", "flashnodes/status", "patch"):
        fleet.kubectl("patch", "flashnode", "gpu-s", "--type=merge", "-p", '{"spec":{"paused":true}}')
        until(lambda: health.unready, "lacks the RBAC rule: patch flashnodes/status")
    until(lambda: health.unready, "", timeout=20)
    assert condition(fleet.get("flashnode", "gpu-s", None), "Ready")["reason"] == "Paused"


def test_a_rule_that_goes_while_they_work_is_named_and_they_go_on_once_it_is_back(fleet, start, agent):
    controller, health = start("at-work"), agent()
    controller.says("")
    until(lambda: health.unready, "")
    with (
        without(fleet, "kubeflash-controller", "flashpools/status", "patch"),
        without(fleet, "kubeflash-agent", "flashnodes/status", "patch"),
    ):
        fleet.apply(pool("unwritten", "S1"))  # both have something to say of it
        controller.says("kubeflash-controller lacks the RBAC rule: patch flashpools/status in API group kubeflash.io")
        until(
            lambda: health.unready,
            "kubeflash-agent-start lacks the RBAC rule: patch flashnodes/status in API group kubeflash.io",
        )
        assert REMEDY in controller.unready
        assert REMEDY in health.unready
    controller.says("")
    until(lambda: health.unready, "")
    fleet.kubectl("delete", "flashpool", "unwritten", "--timeout=30s")
