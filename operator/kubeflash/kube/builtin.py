"""The few kinds of Kubernetes itself that KubeFlash reads or writes, as far as it does."""

from __future__ import annotations

from typing import ClassVar, Literal

from kubeflash.api.v1alpha1 import KindInfo, Model, Resource


def _info(kind: str, plural: str, group: str = "", scope: Literal["Cluster", "Namespaced"] = "Cluster") -> KindInfo:
    return KindInfo(kind=kind, plural=plural, short=(), scope=scope, columns=(), group=group, version="v1")


class NodeSpec(Model):
    """The part of a Node's spec that KubeFlash reads."""

    unschedulable: bool = False


class Node(Resource):
    """A Node: its labels decide which pools select the server of this name; cordoned, it gets no new volumes."""

    info: ClassVar[KindInfo] = _info("Node", "nodes")

    spec: NodeSpec = NodeSpec()


class Namespace(Resource):
    """A Namespace: its labels decide which pools it may use."""

    info: ClassVar[KindInfo] = _info("Namespace", "namespaces")


LEASE = _info("Lease", "leases", "coordination.k8s.io", "Namespaced")
EVENT = _info("Event", "events", "events.k8s.io", "Namespaced")
DAEMON_SET = _info("DaemonSet", "daemonsets", "apps", "Namespaced")
CRD = _info("CustomResourceDefinition", "customresourcedefinitions", "apiextensions.k8s.io")
POLICY = _info("ValidatingAdmissionPolicy", "validatingadmissionpolicies", "admissionregistration.k8s.io")
POLICY_BINDING = _info(
    "ValidatingAdmissionPolicyBinding", "validatingadmissionpolicybindings", "admissionregistration.k8s.io"
)
