"""What a server's kernel can do, as labels of its Node: so that pods and pools can select by it. Pure.

The controller writes them, never an agent: an agent may not write Nodes. It writes these keys alone, and over whatever
somebody else made of them: kubeflash.io/ is KubeFlash's. Without a FlashNode nothing is known of a server, and a label
that says otherwise is wrong: they go with it. A FlashNode whose agent is silent, or new, changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping

from kubeflash.api.v1alpha1 import GROUP, FlashNode, Kernel
from kubeflash.kube.builtin import Node
from kubeflash.kube.writes import Patch

TARGET_TCP = f"{GROUP}/target-tcp"
INITIATOR_TCP = f"{GROUP}/initiator-tcp"
TARGET_RDMA = f"{GROUP}/target-rdma"
INITIATOR_RDMA = f"{GROUP}/initiator-rdma"
AUTHENTICATION = f"{GROUP}/authentication"
TLS = f"{GROUP}/tls"

LABELS = (TARGET_TCP, INITIATOR_TCP, TARGET_RDMA, INITIATOR_RDMA, AUTHENTICATION, TLS)


def label_nodes(servers: Mapping[str, FlashNode], nodes: Mapping[str, Node]) -> list[Patch]:
    """What to write of the labels of all Nodes, by name; nothing of those that say so already.

    Args:
        servers: all FlashNodes by name.
        nodes: all Nodes by name.
    """
    return [patch for name, node in nodes.items() if (patch := label_node(servers.get(name), node)) is not None]


def label_node(server: FlashNode | None, node: Node) -> Patch | None:
    """What to write of a Node's labels; None when they are as they should be, or when nobody knows.

    Args:
        server: the FlashNode of the same name; None when there is none.
        node: the Node.
    """
    if server is None:
        wanted: dict[str, str | None] = dict.fromkeys(LABELS)
    elif server.status.linux is None or server.deleting:  # one that is deleted and still there has volumes
        return None
    else:
        wanted = {**labels_of(server.status.linux)}
    different = {key: value for key, value in wanted.items() if node.metadata.labels.get(key) != value}
    return Patch(node, {"metadata": {"labels": different}}, any_version=True) if different else None


def labels_of(linux: Kernel) -> dict[str, str]:
    """The labels of a server with these abilities."""
    can = {
        TARGET_TCP: linux.nvmet.available and linux.nvmet_tcp.available,
        INITIATOR_TCP: linux.nvme_tcp.available,
        TARGET_RDMA: linux.nvmet.available and linux.nvmet_rdma.available,
        INITIATOR_RDMA: linux.nvme_rdma.available,
        AUTHENTICATION: linux.authentication.available,
        TLS: linux.tls.available,
    }
    return {key: "true" if available else "false" for key, available in can.items()}
