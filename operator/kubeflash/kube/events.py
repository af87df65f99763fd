"""Events: what happened to an object, for people who `kubectl describe` it. Nothing depends on one having been seen."""

from __future__ import annotations

import asyncio
import logging
from datetime import datetime
from typing import Any, Literal

from kubeflash.api.v1alpha1 import Resource
from kubeflash.kube.builtin import EVENT
from kubeflash.kube.client import Client, api_version
from kubeflash.kube.errors import KubeError

log = logging.getLogger(__name__)

CLUSTER_NAMESPACE = "default"
"""Where events about objects without a namespace must be."""
_NOTE = 1024  # bytes that the API server takes


def event(
    regarding: Resource,
    *,
    kind: Literal["Normal", "Warning"],
    reason: str,
    action: str,
    note: str,
    component: str,
    now: datetime,
) -> dict[str, Any]:
    """The body of an Event about an object.

    Args:
        regarding: the object.
        kind: Warning where somebody should look.
        reason: one CamelCase word that says what happened, for programs.
        action: one CamelCase word that says what was done.
        note: what happened, for people; shortened where it is too long.
        component: which program says so; its name and the object's make the instance.
        now: when.
    """
    meta = regarding.metadata
    prefix = meta.name[:50].rstrip(".-")
    return {
        "apiVersion": api_version(EVENT),
        "kind": EVENT.kind,
        "metadata": {"generateName": f"{prefix}-", "namespace": meta.namespace or CLUSTER_NAMESPACE},
        "eventTime": now.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        "type": kind,
        "reason": reason,
        "action": action,
        "note": _fitting(note),
        "regarding": {
            "apiVersion": api_version(regarding.info),
            "kind": regarding.info.kind,
            "name": meta.name,
            "uid": meta.uid,
            **({"namespace": meta.namespace} if meta.namespace else {}),
        },
        "reportingController": f"kubeflash.io/{component}",
        "reportingInstance": f"{component}-{meta.name}"[:128],
    }


async def tell(client: Client, body: dict[str, Any]) -> None:
    """Writes an event. One that cannot be written is logged: nothing depends on it."""
    try:
        await asyncio.to_thread(client.create, EVENT, body, body["metadata"]["namespace"])
    except KubeError as error:
        log.warning("an event could not be written: %s", error)


def _fitting(note: str) -> str:
    """A note that is too long, cut between characters, with an ellipsis."""
    content = note.encode()
    if len(content) <= _NOTE:
        return note
    return content[: _NOTE - len("…".encode())].decode(errors="ignore") + "…"
