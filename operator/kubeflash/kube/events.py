"""Events: what happened to an object, for people who `kubectl describe` it. Nothing depends on one having been seen."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from datetime import datetime
from typing import Any, Literal

from kubeflash.api.v1alpha1 import Resource
from kubeflash.kube.builtin import EVENT
from kubeflash.kube.client import Client, api_version
from kubeflash.kube.errors import KubeError

log = logging.getLogger(__name__)

CLUSTER_NAMESPACE = "default"
"""Where events about objects without a namespace must be."""
WAITING = 512
"""Events that wait to be written at the most; a thousand volumes become Ready in minutes."""
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


class Teller:
    """Writes events in the background, in their order: an admission webhook that is slow holds up no pass."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._waiting: deque[dict[str, Any]] = deque()
        self._sending: asyncio.Task[None] | None = None

    def tell(self, body: dict[str, Any]) -> None:
        """Has an event written soon. One that cannot be written is logged: nothing depends on it."""
        if len(self._waiting) >= WAITING:
            log.warning("an event was not written, %d wait already: %s", WAITING, body["note"])
            return
        self._waiting.append(body)
        if self._sending is None or self._sending.done():
            self._sending = asyncio.create_task(self._send(), name="events")

    async def _send(self) -> None:
        while self._waiting:
            body = self._waiting.popleft()
            try:
                await asyncio.to_thread(self._client.create, EVENT, body, body["metadata"]["namespace"])
            except KubeError as error:
                log.warning("an event could not be written: %s", error)


def _fitting(note: str) -> str:
    """A note that is too long, cut between characters, with an ellipsis."""
    content = note.encode()
    if len(content) <= _NOTE:
        return note
    return content[: _NOTE - len("…".encode())].decode(errors="ignore") + "…"
