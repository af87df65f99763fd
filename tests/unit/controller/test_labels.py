"""The labels of Nodes that say what their kernels can do."""

from __future__ import annotations

from typing import Any

import pytest

from kubeflash.api.v1alpha1 import FlashNode
from kubeflash.controller.labels import LABELS, label_node, label_nodes
from kubeflash.kube.builtin import Node
from support.objects import make

YES, NO = {"available": True, "how": "it is loaded"}, {"available": False, "how": "there is no module"}
FIELDS = ("nvmet", "nvmetTcp", "nvmetRdma", "nvmeTcp", "nvmeRdma", "authentication", "tls")
ALL = dict.fromkeys(FIELDS, YES)


def server(linux: dict[str, Any] | None, **more: Any) -> FlashNode:
    status = {} if linux is None else {"linux": {"release": "6.12", **linux}}
    return make(FlashNode, "a", 1, status=status, **more)


def node(**labels: str) -> Node:
    named = {key.replace("_", "-"): value for key, value in labels.items()}
    ours = {f"kubeflash.io/{key}": value for key, value in named.items()}
    metadata = {"name": "a", "uid": "node-uid", "resourceVersion": "7", "labels": {"zone": "z1", **ours}}
    return Node.from_json({"metadata": metadata})


def labels(linux: dict[str, Any] | None, known: Node | None = None, **more: Any) -> dict[str, Any] | None:
    """The patch of metadata.labels, without the prefix; None when nothing is written."""
    patch = label_node(server(linux, **more), known or node())
    if patch is None:
        return None
    assert set(patch.body) == {"metadata"}
    assert set(patch.body["metadata"]) == {"labels"}, "nothing else of a Node is KubeFlash's"
    return {key.removeprefix("kubeflash.io/"): value for key, value in patch.body["metadata"]["labels"].items()}


def test_all_six_are_said_of_a_node_without_any():
    assert labels(ALL) == {
        "target-tcp": "true",
        "initiator-tcp": "true",
        "target-rdma": "true",
        "initiator-rdma": "true",
        "authentication": "true",
        "tls": "true",
    }


@pytest.mark.parametrize(
    ("lacking", "false"),
    [
        (("nvmet",), {"target-tcp", "target-rdma"}),  # without nvmet nothing can be exported
        (("nvmetTcp",), {"target-tcp"}),
        (("nvmetRdma",), {"target-rdma"}),
        (("nvmeTcp",), {"initiator-tcp"}),
        (("nvmeRdma",), {"initiator-rdma"}),
        (("authentication",), {"authentication"}),
        (("tls",), {"tls"}),
        (FIELDS, {"target-tcp", "initiator-tcp", "target-rdma", "initiator-rdma", "authentication", "tls"}),
    ],
    ids=lambda item: "-".join(item) if isinstance(item, tuple) else "",
)
def test_what_a_kernel_lacks_is_false(lacking, false):
    found = labels({**ALL, **dict.fromkeys(lacking, NO)})
    assert {key for key, value in found.items() if value == "false"} == false


def test_what_is_so_already_is_not_written_and_of_the_rest_only_what_differs():
    right = dict.fromkeys(
        ("target_tcp", "initiator_tcp", "target_rdma", "initiator_rdma", "authentication", "tls"), "true"
    )
    assert labels(ALL, node(**right)) is None
    assert labels(ALL, node(**right, of_somebody_else="x")) is None
    assert labels({**ALL, "tls": NO}, node(**right)) == {"tls": "false"}


def test_another_value_of_somebody_s_is_overwritten():
    assert labels(ALL, node(tls="maybe"))["tls"] == "true"


def test_while_nothing_is_known_nothing_is_written():
    assert labels(None) is None
    assert labels(None, node(tls="true")) is None
    assert labels(ALL, node(tls="false"), deleting=True) is None


def test_without_a_flashnode_they_go_and_nothing_else_does():
    patch = label_node(None, node(tls="true", target_rdma="false", of_somebody_else="x"))
    assert patch is not None
    assert patch.body == {"metadata": {"labels": {"kubeflash.io/tls": None, "kubeflash.io/target-rdma": None}}}
    assert label_node(None, node()) is None


def test_a_server_without_a_node_and_a_node_without_a_server():
    assert label_nodes({"b": server(ALL)}, {"a": node()}) == []
    (patch,) = label_nodes({"a": server(ALL)}, {"a": node(), "z": node()})
    assert set(patch.body["metadata"]["labels"]) == set(LABELS)


def test_what_else_changes_of_a_node_does_not_stand_in_the_way():
    sent = []

    class Client:
        def patch(self, resource, body, *, any_version):
            sent.append((resource.metadata.name, any_version))
            return {}

    patch = label_node(server(ALL), node())
    assert patch is not None
    patch.send(Client())
    assert sent == [("a", True)]
