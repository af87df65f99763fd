"""Leases: the agent's heartbeat and the controller's leadership, by one piece of code.

`kubernetes.leaderelection` would do for leadership, but it cannot give a Lease back when the process ends, runs its
own threads that cannot be stopped, and knows no heartbeat that says whose it is; a Lease is four fields.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from kubeflash.kube.builtin import LEASE
from kubeflash.kube.client import Client, api_version
from kubeflash.kube.errors import Conflict, KubeError, NotFound

UNWATCHED = 35.0
"""Seconds without a look after which nothing is known of any Lease: less than an agent's lasts."""


class LeaseHeld(KubeError):
    """Somebody else holds the Lease, and has renewed it in time."""

    def __init__(self, name: str, holder: str, since: datetime) -> None:
        self.holder, self.renewed = holder, since
        super().__init__(f"Lease {name} is held by {holder}, renewed at {since.isoformat()}")


@dataclass(frozen=True)
class LeaseView:
    """One Lease as read. `renewed` is None for one that was given back."""

    name: str
    holder: str
    renewed: datetime | None
    seconds: int


class Watcher:
    """Which Leases are being renewed, judged by this machine's own clock: other machines' clocks may be wrong.

    A Lease is fresh for its duration after it was *seen* to change; one seen for the first time counts as fresh.
    Nothing follows from a time in which nobody looked, as while the API server was gone: all are fresh anew then.

    Args:
        unwatched: seconds between two looks that are such a time.
    """

    def __init__(self, unwatched: float = UNWATCHED) -> None:
        self._unwatched = unwatched
        self._seen: dict[str, tuple[LeaseView, float]] = {}
        self._looked = time.monotonic()

    def see(self, views: Iterable[LeaseView]) -> None:
        """Takes in all Leases as they are now."""
        before, now = self._seen, time.monotonic()
        if now - self._looked > self._unwatched:
            before = {}
        self._looked = now
        self._seen = {
            view.name: before[view.name] if view.name in before and before[view.name][0] == view else (view, now)
            for view in views
        }

    def silence(self) -> dict[str, float]:
        """Seconds since each Lease was seen to change."""
        now = time.monotonic()
        return {name: now - since for name, (_, since) in self._seen.items()}

    def fresh(self) -> frozenset[str]:
        """Names of the Leases that somebody holds and renews."""
        now = time.monotonic()
        return frozenset(
            name for name, (view, since) in self._seen.items() if view.holder and now < since + view.seconds
        )


class Lease:
    """One Lease that this process wants to hold.

    Args:
        client: the way to the API server.
        namespace: where the Lease is.
        name: its name.
        holder: who we are; the same after a restart only if the restart proves that the former process is gone.
        seconds: how long it holds without being renewed.
    """

    def __init__(self, client: Client, namespace: str, name: str, holder: str, seconds: int) -> None:
        self._client, self._namespace, self.name = client, namespace, name
        self.holder, self.seconds = holder, seconds
        self._watcher = Watcher(min(UNWATCHED, seconds / 2))  # who holds it could not renew it either

    def acquire(self) -> None:
        """Takes or renews it. Somebody else's is taken once it was watched for its duration without being renewed.

        Raises:
            LeaseHeld: when somebody else holds it.
            KubeError: when the API server does not do it.
        """
        now = datetime.now(UTC)
        try:
            body = self._client.get(LEASE, self.name, self._namespace)
        except NotFound:
            self._create(now)
            return
        view = parse(body)
        self._watcher.see([view])
        if view.holder != self.holder and self._watcher.fresh():
            raise LeaseHeld(self.name, view.holder, view.renewed or now)
        spec = body.setdefault("spec", {})
        if view.holder != self.holder:
            spec["leaseTransitions"] = int(spec.get("leaseTransitions") or 0) + 1
            spec["acquireTime"] = _text(now)
        spec.update(holderIdentity=self.holder, leaseDurationSeconds=self.seconds, renewTime=_text(now))
        try:
            self._client.replace(LEASE, body, self.name, self._namespace)
        except Conflict:
            self._raise_held(now)

    def release(self) -> None:
        """Gives it back, so that the next holder need not wait; nothing happens when it is not ours.

        Raises:
            KubeError: when the API server does not do it.
        """
        try:
            body = self._client.get(LEASE, self.name, self._namespace)
        except NotFound:
            return
        if parse(body).holder != self.holder:
            return
        body["spec"].update(holderIdentity="", renewTime=None)
        self._client.replace(LEASE, body, self.name, self._namespace)

    def _create(self, now: datetime) -> None:
        body: dict[str, Any] = {
            "apiVersion": api_version(LEASE),
            "kind": LEASE.kind,
            "metadata": {"name": self.name, "namespace": self._namespace},
            "spec": {
                "holderIdentity": self.holder,
                "leaseDurationSeconds": self.seconds,
                "acquireTime": _text(now),
                "renewTime": _text(now),
                "leaseTransitions": 0,
            },
        }
        try:
            self._client.create(LEASE, body, self._namespace)
        except Conflict:
            self._raise_held(now)

    def _raise_held(self, now: datetime) -> None:
        """Somebody wrote it in the same moment: theirs, unless it was ourselves."""
        view = parse(self._client.get(LEASE, self.name, self._namespace))
        if view.holder != self.holder:
            raise LeaseHeld(self.name, view.holder or "nobody", view.renewed or now)


def parse(body: dict[str, Any]) -> LeaseView:
    """Reads a Lease as the API server gives it; what is missing or garbled counts as not held."""
    spec = body.get("spec") or {}
    text = spec.get("renewTime")
    return LeaseView(
        name=str(body["metadata"]["name"]),
        holder=str(spec.get("holderIdentity") or ""),
        renewed=datetime.fromisoformat(text) if text else None,
        seconds=int(spec.get("leaseDurationSeconds") or 0),
    )


def _text(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
