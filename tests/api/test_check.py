"""`kubectl flash check` on a real API server, by an identity that may do no more than the test of a Helm release."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator

import pytest

from fleet import Fleet, pool
from lab.processes import run
from support.simulated import Network, SimulatedServer, gpu, ssd
from support.simulation import Simulation

RULES = [
    {"apiGroups": ["kubeflash.io"], "resources": ["flashnodes", "flashpools"], "verbs": ["get", "list"]},
    {"apiGroups": [""], "resources": ["nodes"], "verbs": ["list"]},
    {
        "apiGroups": ["apiextensions.k8s.io"],
        "resources": ["customresourcedefinitions"],
        "resourceNames": [
            f"{kind}.kubeflash.io" for kind in ("flashnodes", "flashpools", "flashvolumes", "flashattachments")
        ],
        "verbs": ["get"],
    },
    {
        "apiGroups": ["admissionregistration.k8s.io"],
        "resources": ["validatingadmissionpolicies", "validatingadmissionpolicybindings"],
        "verbs": ["get"],
    },
]
INSIDE = [
    {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["list"]},
    {"apiGroups": ["apps"], "resources": ["daemonsets"], "verbs": ["get"]},
]


@pytest.fixture(scope="module")
def checker(fleet: Fleet) -> Iterator[str]:
    """A kubeconfig of an identity that may read what `check` reads, in the cluster of one simulated server."""
    rbac = {"apiVersion": "rbac.authorization.k8s.io/v1", "metadata": {"name": "checker"}}
    inside = {**rbac, "metadata": {"name": "checker", "namespace": "kubeflash-system"}}
    who = [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "checker"}]
    ref = {"apiGroup": "rbac.authorization.k8s.io", "name": "checker"}
    fleet.apply(
        {**rbac, "kind": "ClusterRole", "rules": RULES},
        {**rbac, "kind": "ClusterRoleBinding", "subjects": who, "roleRef": {**ref, "kind": "ClusterRole"}},
        {**inside, "kind": "Role", "rules": INSIDE},
        {**inside, "kind": "RoleBinding", "subjects": who, "roleRef": {**ref, "kind": "Role"}},
    )
    server = SimulatedServer("srv-c", "10.0.3.1", Network(), [gpu(1)], [ssd("CA", 1)])
    try:
        with Simulation.running(fleet, {"srv-c": server}, "kubeflash-agent-check"):
            yield str(fleet.lab.control_plane.kubeconfig("checker"))
    finally:
        fleet.kubectl("delete", "flashpool", "--all", "--timeout=30s")
        fleet.kubectl("delete", "flashnode", "srv-c", "--ignore-not-found", "--timeout=30s")


def check(checker: str, *words: str, status: int = 0) -> dict:
    argv = [sys.executable, "-m", "kubeflash.cli", "check", "--kubeconfig", checker, "-o", "json", *words]
    done = run(argv, timeout=60, check=False)
    assert done.exit_code == status, done.stdout_text + done.stderr_text
    return json.loads(done.stdout_text)


def test_what_is_sound_and_what_is_not(fleet, checker):
    fleet.apply(pool("checked", "CA"))
    fleet.wait_ready("flashpool", "checked", namespace=None, timeout=30)
    found = check(checker, "--wait", "30s")
    assert found["sound"], found
    assert (found["servers"], found["pools"], found["namespace"]) == (["srv-c"], ["checked"], "kubeflash-system")
    assert [item["level"] for item in found["findings"]] == ["Note"], "there is no Node of the simulated server's name"

    fleet.stop_controller()
    try:
        (fault, *_) = check(checker, status=1)["findings"]
        assert (fault["level"], fault["about"]) == ("Fault", "controller")
        assert "has given its Lease back" in fault["message"]
    finally:
        fleet.start_controller()
    assert check(checker, "--wait", "1m")["sound"]


def test_a_policy_that_does_not_hold_anybody_is_a_fault(fleet, checker):
    path = [{"op": "replace", "path": "/spec/validationActions", "value": ["Audit"]}]
    policy = ("validatingadmissionpolicybinding", "kubeflash-agent")
    fleet.kubectl("patch", *policy, "--type=json", "-p", json.dumps(path))
    try:
        (fault, *_) = check(checker, status=1)["findings"]
        assert (fault["level"], fault["about"]) == ("Fault", "policy kubeflash-agent")
        assert "its binding does not deny" in fault["message"]
    finally:
        fleet.kubectl("patch", *policy, "--type=json", "-p", json.dumps([{**path[0], "value": ["Deny"]}]))
    assert check(checker)["sound"]


def test_what_may_not_be_read_is_a_fault(fleet, checker):
    fleet.kubectl("delete", "rolebinding", "checker", "-n", "kubeflash-system")
    (fault, *_) = check(checker, status=1)["findings"]
    assert fault["about"] == "reading"
    assert "leases" in fault["message"]
