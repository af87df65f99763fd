"""What a process must be allowed, asked of the API server before it begins: all missing rules are named at once.

A watch that is refused would otherwise never be noticed: kopf tries it again for ever.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from kubeflash.kube.builtin import CRD
from kubeflash.kube.client import Client
from kubeflash.kube.errors import APPLY_RBAC, Forbidden, said_rule
from kubeflash.kube.schema import CRD_NAMES

_REVIEWS = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"

NAMED = 8
"""Rules that a message names at the most."""


class RightsMissing(Forbidden):
    """RBAC does not allow what the process needs; the message has the rules."""


@dataclass(frozen=True)
class Right:
    """One verb on one resource.

    Attributes:
        resource: plural name, a subresource after a slash.
        group: API group; empty for the core group.
        namespace: where; None: in all, or of no namespace.
        name: of one object alone.
    """

    verb: str
    resource: str
    group: str = ""
    namespace: str | None = None
    name: str | None = None

    @property
    def words(self) -> str:
        """The rule that gives it."""
        where = f" in namespace {self.namespace}" if self.namespace else ""
        return said_rule(self.verb, self.resource, self.group) + (f" ({self.name})" if self.name else "") + where


def rights(group: str, verbs: Iterable[str], *resources: str, namespace: str | None = None) -> tuple[Right, ...]:
    """Each of some verbs on each of some resources."""
    chosen = tuple(verbs)
    return tuple(Right(verb, resource, group, namespace) for resource in resources for verb in chosen)


CRD_RIGHTS = tuple(Right("get", CRD.plural, CRD.group, name=name) for name in CRD_NAMES)
"""To compare CRDs: `kube.schema`."""


def check(client: Client, process: str, needed: Iterable[Right]) -> None:
    """Asks whether the client's identity has all of these rights.

    Raises:
        RightsMissing: when it has not; names the process and the rules.
        KubeError: as `Client.call`.
    """
    try:
        missing = [right for right in needed if not _allowed(client, right)]
    except Forbidden:  # no system:basic-user: what is missing will be said when it is used
        return
    if missing:
        named = "; ".join(right.words for right in missing[:NAMED])
        more = f"; and {len(missing) - NAMED} more" if len(missing) > NAMED else ""
        raise RightsMissing(f"{process} lacks RBAC rules: {named}{more}. {APPLY_RBAC}")


def _allowed(client: Client, right: Right) -> bool:
    resource, _, subresource = right.resource.partition("/")
    wanted = {
        "verb": right.verb,
        "group": right.group,
        "resource": resource,
        "subresource": subresource,
        "namespace": right.namespace,
        "name": right.name,
    }
    body = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": {key: value for key, value in wanted.items() if value}},
    }
    return bool(client.call("POST", _REVIEWS, body=body).get("status", {}).get("allowed"))
