"""What happened to volumes and attachments that somebody should hear of, from conditions before and after. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from kubeflash.api.v1alpha1 import FlashAttachment, FlashVolume
from kubeflash.domain.cluster import Cluster
from kubeflash.domain.conditions import find
from kubeflash.kube.events import event

Told = FlashVolume | FlashAttachment


@dataclass(frozen=True)
class _News:
    """A condition that is told of when it becomes so: its type, status and (unless empty) reason."""

    type: str
    status: str
    reason: str
    kind: Literal["Normal", "Warning"]
    action: str


_VOLUME = (
    _News("Ready", "True", "", "Normal", "Carve"),
    _News("Ready", "False", "Missing", "Warning", "Look"),
    _News("Ready", "False", "Lost", "Warning", "Purge"),
    _News("Placed", "True", "Moved", "Warning", "Follow"),
    _News("Placed", "True", "Found", "Normal", "Adopt"),
    _News("Resized", "True", "", "Normal", "Grow"),
    _News("Resized", "False", "NoSpace", "Warning", "Grow"),
    _News("Resized", "False", "QuotaExceeded", "Warning", "Grow"),
    _News("Healthy", "False", "", "Warning", "Look"),
    _News("Healthy", "True", "", "Normal", "Look"),
)
_ATTACHMENT = (
    _News("Ready", "True", "", "Normal", "Attach"),
    _News("Ready", "False", "Reconnecting", "Warning", "Connect"),
    _News("Ready", "False", "Lost", "Warning", "Connect"),
    _News("Ready", "False", "ConnectFailed", "Warning", "Connect"),
    _News("Ready", "False", "NoDevice", "Warning", "Connect"),
    _News("Ready", "False", "KernelLacks", "Warning", "Attach"),
    _News("Ready", "False", "KeysLost", "Warning", "Attach"),
    _News("Ready", "False", "VolumeInUse", "Normal", "Attach"),
    _News("Ready", "False", "InUse", "Warning", "Detach"),
    _News("Ready", "False", "Fencing", "Normal", "Fence"),
    _News("Ready", "False", "FenceStuck", "Warning", "Fence"),
    _News("Secured", "False", "NoAuthentication", "Warning", "Attach"),
)


def events_of(before: Told, after: Told, now: datetime) -> Iterator[dict[str, Any]]:
    """The bodies of the events that tell what became so between two states of a volume or an attachment."""
    for news in _VOLUME if isinstance(after, FlashVolume) else _ATTACHMENT:
        was, is_ = find(before.status.conditions, news.type), find(after.status.conditions, news.type)
        if is_ is None or is_.status != news.status or news.reason not in ("", is_.reason):
            continue
        if was is not None and was.status == news.status and news.reason in ("", was.reason):
            continue
        note = is_.message or _instead(after) or is_.reason
        yield event(
            after,
            kind=news.kind,
            reason=is_.reason,
            action=news.action,
            note=note,
            component="controller",
            now=now,
        )


def _instead(after: Told) -> str:
    """What to say of an object whose condition says nothing more."""
    if isinstance(after, FlashVolume):
        placed = find(after.status.conditions, "Placed")
        return placed.message if placed is not None else ""
    path = f"{after.status.path} at {after.status.device}" if after.status.device else after.status.path or ""
    return f"volume {after.spec.volume} is attached at server {after.spec.node_name}: {path}"


def farewell(attachment: FlashAttachment, cluster: Cluster) -> dict[str, Any] | None:
    """The event that tells that an attachment over the fabric has ended, and what that was proven by."""
    if attachment.status.path != "Fabric":
        return None
    consumer = attachment.spec.node_name
    volume = cluster.volumes.get(attachment.volume_key)
    connected = find(attachment.status.conditions, "Connected")
    if volume is not None and volume.status.export_of(attachment.metadata) is not None:
        kind: Literal["Normal", "Warning"] = "Warning"
        note = (
            f"server {volume.status.node_name}, which has the volume, does not answer; its agent takes the export for "
            f"{consumer} down when it is back, before it exports anything else of the volume"
        )
    elif connected is not None and connected.reason == "Disconnected":
        kind, note = "Normal", f"server {consumer} disconnected, and its export is taken down"
    else:
        kind = "Warning"
        note = f"server {consumer} did not say that it let go: its export is taken down, and it cannot write any more"
    return event(
        attachment,
        kind=kind,
        reason="Fenced",
        action="Fence",
        note=note,
        component="controller",
        now=cluster.now,
    )
