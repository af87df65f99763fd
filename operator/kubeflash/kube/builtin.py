"""The few kinds of Kubernetes itself that KubeFlash reads or writes, as far as it does."""

from __future__ import annotations

from typing import ClassVar

from kubeflash.api.v1alpha1 import KindInfo, Resource


class Node(Resource):
    """A Node: its labels decide which pools select the server of this name."""

    info: ClassVar[KindInfo] = KindInfo(
        kind="Node", plural="nodes", short=(), scope="Cluster", columns=(), group="", version="v1"
    )


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
