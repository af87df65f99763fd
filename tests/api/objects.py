"""Bodies of objects, and sending them with nothing in between."""

from __future__ import annotations

import itertools
from contextlib import suppress
from pathlib import Path
from typing import Any

from kubeflash.api.v1alpha1 import KINDS, Resource
from kubeflash.kube.builtin import EVENT, LEASE, Node
from kubeflash.kube.client import Client, api_version, path_of
from kubeflash.kube.errors import NotFound

CRDS = Path(__file__).parents[2] / "crds"
KIND = {kind.info.kind: kind for kind in KINDS}
MARK = ("made-by", "objects")
_numbers = itertools.count(1)


def body_of(kind: type[Resource], spec: dict[str, Any], name: str = "") -> dict[str, Any]:
    """A body for creating an object, in namespace default where its kind has one; a new name unless one is given."""
    metadata: dict[str, Any] = {"name": name or f"{kind.info.singular}-{next(_numbers)}", "labels": dict([MARK])}
    if kind.info.scope == "Namespaced":
        metadata["namespace"] = "default"
    return {"apiVersion": api_version(kind.info), "kind": kind.info.kind, "metadata": metadata, "spec": spec}


def send(client: Client, method: str, body: dict[str, Any], *, status: bool = False, **query: str) -> dict[str, Any]:
    """Sends a body to where its own kind and metadata say."""
    meta = body["metadata"]
    path = path_of(KIND[body["kind"]].info, meta.get("namespace"), "" if method == "POST" else meta["name"])
    return client.call(method, path + ("/status" if status else ""), body=body, query=query)


def delete_all(client: Client) -> None:
    """Deletes everything that was made of a `body_of`, so that no controller of a later test finds it."""
    for kind in KINDS:
        namespace = "default" if kind.info.scope == "Namespaced" else None
        client.call("DELETE", path_of(kind.info, namespace), query={"labelSelector": "=".join(MARK)})


def empty(client: Client) -> None:
    """Takes away all Nodes, KubeFlash's objects, its Leases and all events. Nothing of KubeFlash may run."""
    client.call("DELETE", path_of(Node.info, None))
    for info in (LEASE, EVENT):
        for namespace in {found["metadata"]["namespace"] for found in client.list(info)} - {"kube-system"}:
            client.call("DELETE", path_of(info, namespace))
    for kind in KINDS:  # whoever wants to do something first
        for found in client.list(kind.info):
            it = kind.from_json(found)
            path = path_of(kind.info, it.metadata.namespace, it.metadata.name)
            merge = "application/merge-patch+json"
            client.call("PATCH", path, body={"metadata": {"finalizers": None}}, content_type=merge)
            with suppress(NotFound):  # it was only waiting for that
                client.call("DELETE", path)
