"""The objects that a process looks at, kept current by kopf's watches and made whole by lists of our own.

kopf tells of changes; it does not tell of an object that vanished while a watch was down and had to list anew. So no
decision rests on an event: events only say "look again", and `resync` replaces everything by what the API server
lists. Until the first `resync` nothing is known, and nothing may be concluded from an object's absence.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import kopf
from pydantic import ValidationError

from kubeflash.api.v1alpha1 import Resource
from kubeflash.kube.client import Client, path_of
from kubeflash.kube.errors import Conflict, Forbidden, Invalid, NotFound
from kubeflash.kube.writes import Write

log = logging.getLogger(__name__)

REMEMBERED = 1000
"""Objects that went whose uids are remembered: far more than there are writes on their way at once."""

R = TypeVar("R", bound=Resource)


@dataclass(frozen=True)
class Watch:
    """One kind to watch, in all namespaces; `field_selector` narrows it to what concerns this process."""

    kind: type[Resource]
    field_selector: str | None = None


class Feed:
    """An index of objects by kind and `namespace/name`.

    Attributes:
        configuration: the way to the API server, for kopf.
        changed: set whenever something may have changed.
        unreadable: objects that do not fit their schema. They are not in the index, and are not absent either: while
            there are any, nothing may be concluded from an object's absence.
        answered: called at each answer of the API server.
        forbidden: why the API server did not allow a write; empty when it allowed all since this was emptied.
    """

    def __init__(self, client: Client, watches: Iterable[Watch]) -> None:
        self._client = client
        self.configuration = client.configuration
        self._watches = tuple(watches)
        self._objects: dict[type[Resource], dict[str, Resource]] = {watch.kind: {} for watch in self._watches}
        self._gone: dict[str, int] = {}
        self.changed = asyncio.Event()
        self.relisted = asyncio.Event()
        self.unreadable: set[str] = set()
        self.forbidden = ""
        self.answered: Callable[[], None] = lambda: None

    def register(self, registry: kopf.OperatorRegistry, settings: kopf.OperatorSettings) -> None:
        """Has kopf watch the kinds and feed this index."""
        for watch in self._watches:
            info = watch.kind.info
            kopf.on.event(info.group, info.version, info.plural, registry=registry, id=f"feed-{info.plural}")(
                self._handler(watch.kind)
            )
            if watch.field_selector:
                settings.watching.field_selectors[info.group, info.version, info.plural] = watch.field_selector

    def of(self, kind: type[R]) -> dict[str, R]:
        """The objects of a kind, by `namespace/name`."""
        return cast("dict[str, R]", self._objects[kind])

    def put(self, kind: type[Resource], body: dict[str, Any]) -> None:
        """Takes over an object as the API server answered it, if it is newer than what is known."""
        parsed = _parse(kind, body)
        if parsed is None:
            return
        if self._is_late(parsed):
            return
        if parsed.deleting and not parsed.metadata.finalizers:
            self._drop(kind, parsed)
            return
        known = self._objects[kind].get(parsed.key)
        if known is not None and _version(known) >= _version(parsed):
            return
        self._objects[kind][parsed.key] = parsed

    def _is_late(self, resource: Resource) -> bool:
        """Whether this is news from before the object went: an answer to a write can come after the deletion."""
        return _version(resource) <= self._gone.get(resource.metadata.uid, -1)

    def _drop(self, kind: type[Resource], resource: Resource) -> None:
        """Takes an object out: it was deleted, or does not match the selector any more (it may come back then)."""
        self._gone[resource.metadata.uid] = _version(resource)
        while len(self._gone) > REMEMBERED:
            del self._gone[next(iter(self._gone))]
        known = self._objects[kind].get(resource.key)
        if known is not None and known.metadata.uid == resource.metadata.uid:
            del self._objects[kind][resource.key]

    async def send(self, write: Write) -> bool:
        """Sends one write and takes over the answer.

        What changed or went meanwhile is looked at again: everything is listed anew. What the API server refuses is
        logged, so that it holds up nothing else.

        Returns:
            False when the API server refuses it.

        Raises:
            KubeError: when it does not answer.
        """
        kind = type(write.resource)
        what = f"{kind.info.kind} {write.resource.key}"
        try:
            body = await asyncio.to_thread(write.send, self._client)
        except (Conflict, NotFound) as error:
            log.info("%s changed meanwhile, looking again: %s", what, error)
            self.relisted.set()
            self.changed.set()
            return True
        except (Invalid, Forbidden) as error:
            log.error("%s: %s", what, error)  # noqa: TRY400
            self.answered()
            if isinstance(error, Forbidden):
                self.forbidden = str(error)
            return False
        self.answered()
        log.info("wrote %s", what)
        self.put(kind, body)
        return True

    async def probe(self) -> None:
        """Asks whether all kinds can be listed.

        Raises:
            KubeError: when one cannot: RBAC or CRDs are missing, or the API server does not answer.
        """
        for watch in self._watches:
            path, query = path_of(watch.kind.info, None), {"limit": "1"}
            await asyncio.to_thread(self._client.call, "GET", path, query=query)
            self.answered()

    async def resync(self) -> None:
        """Replaces everything by full lists.

        Raises:
            KubeError: when the API server does not answer; what was known stays.
        """
        self.relisted.clear()
        unreadable: set[str] = set()
        for watch in self._watches:
            bodies, version = await asyncio.to_thread(self._client.list_at, watch.kind.info, watch.field_selector)
            self.answered()
            parsed = [_parse(watch.kind, body) for body in bodies]
            unreadable |= {
                f"{watch.kind.info.kind} {body['metadata'].get('namespace', '')}/{body['metadata']['name']}"
                for body, resource in zip(bodies, parsed, strict=True)
                if resource is None
            }
            fresh = {
                resource.key: resource for resource in parsed if resource is not None and not self._is_late(resource)
            }
            for key, before in self._objects[watch.kind].items():
                if _version(before) > version or key in fresh:  # told by a watch while the list was under way
                    fresh[key] = max(before, fresh.get(key, before), key=_version)
            self._objects[watch.kind] = fresh
        self.unreadable = unreadable
        self.changed.set()

    def _handler(self, kind: type[Resource]) -> Any:
        async def feed(event: Any, **_: Any) -> None:
            body = dict(event["object"])
            if event["type"] == "DELETED":
                parsed = _parse(kind, body)
                if parsed is not None:
                    self._drop(kind, parsed)
            else:
                self.put(kind, body)
            if event["type"] is None:
                self.relisted.set()  # kopf listed anew: an object may have gone unseen
            self.changed.set()

        return feed


def _version(resource: Resource) -> int:
    """Resource versions are comparable integers within a kind (Kubernetes 1.35 and later promise it)."""
    text = resource.metadata.resource_version
    return int(text) if text.isdigit() else 0


def _parse(kind: type[Resource], body: dict[str, Any]) -> Resource | None:
    try:
        return kind.from_json(body)
    except ValidationError as error:
        name = body.get("metadata", {}).get("name", "?")
        log.error("%s %s does not fit its schema and is left alone: %s", kind.info.kind, name, error)  # noqa: TRY400
        return None
