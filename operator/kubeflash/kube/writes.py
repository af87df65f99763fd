"""Writes as data: what to change at the API server, and whether there is anything to change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from kubeflash.api.v1alpha1 import (
    FINALIZER,
    Condition,
    FlashAttachment,
    FlashNode,
    FlashPool,
    FlashVolume,
    Model,
    Resource,
)
from kubeflash.domain.conditions import Finding, merge
from kubeflash.kube.client import Client

JSON = dict[str, Any]


@dataclass(frozen=True)
class Patch:
    """A merge patch on metadata or spec, guarded by uid and resourceVersion.

    Attributes:
        any_version: guarded by uid alone: what it says depends on nothing else in the object.
    """

    resource: Resource
    body: JSON
    any_version: bool = field(default=False)

    def send(self, client: Client) -> JSON:
        """Sends it. Raises as `Client.patch`."""
        return client.patch(self.resource, self.body, any_version=self.any_version)


@dataclass(frozen=True)
class Apply:
    """All that one writer says in an object's status.

    Attributes:
        guarded: refuse when the object changed since it was read.
    """

    resource: Resource
    status: JSON
    manager: str
    guarded: bool = field(default=False)

    def send(self, client: Client) -> JSON:
        """Sends it. Raises as `Client.apply_status`."""
        version = self.resource.metadata.resource_version if self.guarded else None
        return client.apply_status(self.resource, self.status, self.manager, resource_version=version)


Write = Patch | Apply


def hold(resource: Resource, **more: JSON) -> Patch:
    """Puts KubeFlash's finalizer on an object, others' left; and whatever else of it is to be patched with that."""
    return Patch(resource, {"metadata": {"finalizers": [*_others(resource), FINALIZER]}, **more})


def let_go(resource: Resource) -> Patch:
    """Takes KubeFlash's finalizer off an object, others' left."""
    return Patch(resource, {"metadata": {"finalizers": _others(resource)}})


def _others(resource: Resource) -> list[str]:
    return [name for name in resource.metadata.finalizers if name != FINALIZER]


def say(
    resource: FlashAttachment | FlashNode | FlashPool | FlashVolume,
    status: Model,
    findings: Sequence[Finding],
    fields: tuple[str, ...],
    *,
    manager: str,
    now: datetime,
    at_times: tuple[str, ...] = (),
    guarded: bool = False,
) -> Apply | None:
    """What a writer has to say in an object's status; None when it says so already.

    Args:
        resource: the object as read.
        status: the status as the writer would have it; only `fields` of it count. Its generation is the object's.
        findings: the conditions that it says now.
        fields: the JSON names of the fields that it owns.
        manager: who it is.
        now: the time.
        at_times: types of conditions that it says at times: those not among the findings should be absent.
        guarded: as of `Apply`.
    """
    generation = resource.metadata.generation
    conditions = merge(resource.status.conditions, findings, generation=generation, now=now)
    intent = status_json(status.model_copy(update={"observed_generation": generation}), fields, conditions)
    types = (*at_times, *(finding.type for finding in findings))
    return Apply(resource, intent, manager, guarded) if differs(resource.status, intent, fields, types) else None


def status_json(status: Model, fields: tuple[str, ...], conditions: list[Condition]) -> JSON:
    """The part of a status that one writer owns: `fields` (as in JSON) and its conditions; empty ones left out."""
    whole = status.to_json()
    part = {name: whole[name] for name in fields if _said(whole.get(name)) is not None}
    part["conditions"] = [condition.to_json() for condition in conditions]
    return part


def differs(current: Model, intent: JSON, fields: tuple[str, ...], condition_types: tuple[str, ...]) -> bool:
    """Whether what this writer wants to say is not what the object's status says already.

    Args:
        current: the status as read.
        intent: what `status_json` made.
        fields: the JSON names of the fields that the writer owns: one that is absent in `intent` should be absent.
        condition_types: the types of the conditions that it owns.
    """
    now = current.to_json()
    if any(_said(now.get(name)) != _said(intent.get(name)) for name in fields):
        return True
    theirs = {item["type"]: item for item in now.get("conditions", ()) if item["type"] in condition_types}
    return theirs != {item["type"]: item for item in intent["conditions"]}


def _said(value: Any) -> Any:
    """A field's value; None for one that is empty. No and 0 are something."""
    return None if value in ({}, [], "") else value
