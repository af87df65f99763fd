"""The few kinds of Kubernetes itself that KubeFlash reads or writes, as far as it does."""

from __future__ import annotations

from typing import ClassVar

from kubeflash.api.v1alpha1 import KindInfo, Model, Resource


class NodeSpec(Model):
    """The part of a Node's spec that KubeFlash reads."""

    unschedulable: bool = False


class Node(Resource):
    """A Node: its labels decide which pools select the server of this name; cordoned, it gets no new volumes."""

    info: ClassVar[KindInfo] = KindInfo(
        kind="Node", plural="nodes", short=(), scope="Cluster", columns=(), group="", version="v1"
    )

    spec: NodeSpec = NodeSpec()


class Namespace(Resource):
    """A Namespace: its labels decide which pools it may use."""

    info: ClassVar[KindInfo] = KindInfo(
        kind="Namespace", plural="namespaces", short=(), scope="Cluster", columns=(), group="", version="v1"
    )


LEASE = KindInfo(
    kind="Lease",
    plural="leases",
    short=(),
    scope="Namespaced",
    columns=(),
    group="coordination.k8s.io",
    version="v1",
)

EVENT = KindInfo(
    kind="Event",
    plural="events",
    short=(),
    scope="Namespaced",
    columns=(),
    group="events.k8s.io",
    version="v1",
)
