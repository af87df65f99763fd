"""Conditions: a new list from the old one and what is so now, times kept where nothing changed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from kubeflash.api.v1alpha1 import Condition


@dataclass(frozen=True)
class Finding:
    """What is so about one condition, before it has a time."""

    type: str
    status: Literal["True", "False", "Unknown"]
    reason: str
    message: str = ""


def true(kind: str, reason: str, message: str = "") -> Finding:
    """A condition that holds."""
    return Finding(kind, "True", reason, message)


def false(kind: str, reason: str, message: str) -> Finding:
    """A condition that does not hold, with the reason and the way out."""
    return Finding(kind, "False", reason, message)


def find(conditions: Iterable[Condition], kind: str) -> Condition | None:
    """The condition of this type."""
    return next((c for c in conditions if c.type == kind), None)


def holds(conditions: Iterable[Condition], kind: str) -> bool:
    """Whether the condition of this type is there and True."""
    condition = find(conditions, kind)
    return condition is not None and condition.status == "True"


def merge(
    existing: Sequence[Condition], findings: Iterable[Finding], *, generation: int, now: datetime
) -> list[Condition]:
    """The findings as conditions, in their order.

    A condition whose status is what it was keeps its `lastTransitionTime`, and one of which nothing changed is returned
    as it was, so that comparing old and new tells whether there is anything to write.
    """
    return [_updated(find(existing, finding.type), finding, generation, now) for finding in findings]


def _updated(old: Condition | None, finding: Finding, generation: int, now: datetime) -> Condition:
    since = old.last_transition_time if old is not None and old.status == finding.status else now
    return Condition(
        type=finding.type,
        status=finding.status,
        reason=finding.reason,
        message=finding.message,
        last_transition_time=since.replace(microsecond=0),
        observed_generation=generation,
    )
