"""What each process must be allowed: asked for, named when it is missing, and given by what is installed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from kubeflash.agent import process as agent
from kubeflash.controller import process as controller
from kubeflash.kube import rights
from kubeflash.kube.errors import Forbidden, from_status
from kubeflash.kube.rights import Right, RightsMissing

DEPLOY = Path(__file__).parents[3] / "deploy"
NAMESPACE = "kubeflash-system"
NEEDED = {
    "kubeflash-controller": controller.needed_rights(NAMESPACE),
    "kubeflash-agent": agent.needed_rights(NAMESPACE),
}


class Reviewer:
    """An API server that allows all but some."""

    def __init__(self, *denied: Right, closed: bool = False):
        self.denied, self.closed, self.asked = denied, closed, []

    def call(self, method, path, *, body):
        assert (method, path) == ("POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews")
        if self.closed:
            raise Forbidden("no system:basic-user")
        found = body["spec"]["resourceAttributes"]
        resource = "/".join(filter(None, (found["resource"], found.get("subresource"))))
        right = Right(found["verb"], resource, found.get("group", ""), found.get("namespace"), found.get("name"))
        self.asked.append(right)
        return {"status": {"allowed": right not in self.denied}}


@pytest.mark.parametrize("who", NEEDED)
def test_all_are_asked_for(who):
    reviewer = Reviewer()
    rights.check(reviewer, who, NEEDED[who])
    assert reviewer.asked == list(NEEDED[who])


def test_missing_ones_are_named_for_whom_and_with_what_to_do():
    denied = (
        Right("watch", "flashpools", "kubeflash.io"),
        Right("patch", "flashvolumes/status", "kubeflash.io"),
        Right("list", "nodes"),
        Right("update", "leases", "coordination.k8s.io", NAMESPACE),
        Right("get", "customresourcedefinitions", "apiextensions.k8s.io", name="flashnodes.kubeflash.io"),
    )
    with pytest.raises(RightsMissing) as failed:
        rights.check(Reviewer(*denied), "kubeflash-agent", NEEDED["kubeflash-agent"])
    words = str(failed.value)
    assert words.startswith("kubeflash-agent lacks RBAC rules: watch flashpools in API group kubeflash.io; ")
    assert "; patch flashvolumes/status in API group kubeflash.io; " in words
    assert '; list nodes in API group ""; ' in words
    assert "; update leases in API group coordination.k8s.io in namespace kubeflash-system; " in words
    assert "get customresourcedefinitions in API group apiextensions.k8s.io (flashnodes.kubeflash.io). " in words
    assert "helm upgrade of release kubeflash, or kubectl apply --server-side -f deploy/kubeflash.yaml" in words


def test_of_many_some_are_named():
    with pytest.raises(RightsMissing, match=r"; and [0-9]+ more\. Apply the chart's RBAC"):
        rights.check(Reviewer(*NEEDED["kubeflash-agent"]), "kubeflash-agent", NEEDED["kubeflash-agent"])


def test_who_may_not_even_ask_begins():
    rights.check(Reviewer(closed=True), "kubeflash-agent", NEEDED["kubeflash-agent"])


def granted(who: str) -> list[tuple[dict, str | None]]:
    """The rules that what is installed gives a process, each with the namespace that it holds in."""
    documents = [doc for file in sorted(DEPLOY.glob("*.yaml")) for doc in yaml.safe_load_all(file.read_text()) if doc]
    roles = {
        (doc["kind"], doc["metadata"]["name"], doc["metadata"].get("namespace")): doc
        for doc in documents
        if doc["kind"] in ("Role", "ClusterRole")
    }
    found = []
    for doc in documents:
        if doc["kind"] in ("RoleBinding", "ClusterRoleBinding") and any(
            subject["kind"] == "ServiceAccount" and subject["name"] == who for subject in doc["subjects"]
        ):
            namespace = doc["metadata"].get("namespace")
            role = roles[doc["roleRef"]["kind"], doc["roleRef"]["name"], namespace]
            found += [(rule, namespace) for rule in role["rules"]]
    return found


@pytest.mark.parametrize("who", NEEDED)
def test_what_is_installed_gives_what_is_needed(who):
    rules = granted(who)
    for right in NEEDED[who]:
        assert any(
            right.verb in rule["verbs"]
            and right.resource in rule["resources"]
            and right.group in rule["apiGroups"]
            and ("resourceNames" not in rule or right.name in rule["resourceNames"])
            and (namespace is None or namespace == right.namespace)
            for rule, namespace in rules
        ), right


@pytest.mark.parametrize("who", NEEDED)
def test_what_is_installed_gives_no_write_that_is_not_needed(who):
    reads = ("get", "list", "watch")
    given = {
        (group, resource, verb)
        for rule, _ in granted(who)
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
        if verb not in reads
    }
    needed = {(right.group, right.resource, right.verb) for right in NEEDED[who] if right.verb not in reads}
    assert given == needed | {("events.k8s.io", "events", "create")}


def refused(message: str) -> str:
    return str(from_status(403, "PATCH /x", json.dumps({"message": message})))


def test_a_request_that_no_rule_allows_names_the_rule():
    words = refused(
        'flashvolumes.kubeflash.io "v" is forbidden: '
        'User "system:serviceaccount:kubeflash-system:kubeflash-controller" '
        'cannot patch resource "flashvolumes/status" in API group "kubeflash.io" in the namespace "serving"'
    )
    assert (
        "system:serviceaccount:kubeflash-system:kubeflash-controller lacks the RBAC rule: patch flashvolumes/status in "
        "API group kubeflash.io. Apply the chart's RBAC: helm upgrade"
    ) in words


def test_what_a_policy_refuses_is_no_matter_of_rbac():
    words = refused('ValidatingAdmissionPolicy "kubeflash-agent" with binding "x" denied request: not its own node')
    assert "RBAC" not in words
