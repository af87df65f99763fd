"""Writes as data: what to change at the API server, and whether there is anything to change."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from kubeflash.api.v1alpha1 import Condition, Model, Resource
from kubeflash.kube.client import Client

JSON = dict[str, Any]


@dataclass(frozen=True)
class Patch:
    """A merge patch on metadata or spec, guarded by uid and resourceVersion."""

    resource: Resource
    body: JSON

    def send(self, client: Client) -> JSON:
        """Sends it. Raises as `Client.patch`."""
        return client.patch(self.resource, self.body)


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
