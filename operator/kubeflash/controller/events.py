"""What happened to a volume that somebody should hear of: events, from its conditions before and after. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from kubeflash.api.v1alpha1 import FlashVolume
from kubeflash.domain.conditions import find
from kubeflash.kube.events import event


@dataclass(frozen=True)
class _News:
    """A condition that is told of when it becomes so: its type, status and (unless empty) reason."""

    type: str
    status: str
    reason: str
    kind: Literal["Normal", "Warning"]
    action: str


_NEWS = (
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


def events_of(before: FlashVolume, after: FlashVolume, now: datetime) -> Iterator[dict[str, Any]]:
    """The bodies of the events that tell what became so between two states of a volume."""
    for news in _NEWS:
        was, is_ = find(before.status.conditions, news.type), find(after.status.conditions, news.type)
        if is_ is None or is_.status != news.status or news.reason not in ("", is_.reason):
            continue
        if was is not None and was.status == news.status and news.reason in ("", was.reason):
            continue
        placed = find(after.status.conditions, "Placed")
        note = is_.message or (placed.message if placed is not None else is_.reason)
        yield event(
            after,
            kind=news.kind,
            reason=is_.reason,
            action=news.action,
            note=note,
            component="controller",
            now=now,
        )
