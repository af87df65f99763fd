"""What can go wrong with the API server, each with what to do about it."""

from __future__ import annotations

import json
import re
from typing import ClassVar


class KubeError(Exception):
    """Talking to the API server failed."""


class KubeconfigInvalid(KubeError):
    """There is no usable way to the API server: kubeconfig missing, broken, or without such a context."""


class Unreachable(KubeError):
    """No answer: wrong address, network, certificate, or the API server is down. Worth trying again."""


class Unauthorized(KubeError):
    """The credentials are not accepted."""


class Forbidden(KubeError):
    """The identity may not do this: RBAC is missing, or a policy refuses it."""


class NotFound(KubeError):
    """There is no such object, or no such kind: the CRDs are not applied."""


class Conflict(KubeError):
    """Somebody else changed or replaced the object in between. Read again and decide anew."""


class Invalid(KubeError):
    """The API server's schema or rules refuse the object."""


class NotYet(KubeError):
    """Something else has to happen first, or an admin has to do something. Worth trying again.

    Attributes:
        seconds: after how long; None: as after any failure.
    """

    seconds: ClassVar[float | None] = None


class ServerError(KubeError):
    """The API server answered with an error of its own. Worth trying again."""


_BY_STATUS: dict[int, type[KubeError]] = {
    400: Invalid,
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    410: Conflict,
    422: Invalid,
    429: ServerError,
}

APPLY_CRDS = (
    "apply this version's CRDs: helm upgrade --install kubeflash-crds charts/kubeflash-crds, or kubectl apply "
    "--server-side -f crds/"
)
APPLY_RBAC = (
    "Apply the chart's RBAC: helm upgrade of release kubeflash, or kubectl apply --server-side -f deploy/kubeflash.yaml"
)

_REMEDY: dict[type[KubeError], str] = {
    Unauthorized: "check the credentials in the kubeconfig",
    NotFound: f"if the kind is unknown, {APPLY_CRDS}",
}

_NO_RULE = re.compile(
    r'User "(?P<user>[^"]*)" cannot (?P<verb>\S+) resource "(?P<resource>[^"]*)" in API group "(?P<group>[^"]*)"'
)
"""How the API server says that no authorizer allows a request."""


def from_status(status: int, what: str, body: str) -> KubeError:
    """The error for an answer with this HTTP status, with the API server's own message in it."""
    try:
        message = str(json.loads(body)["message"])
    except (ValueError, KeyError, TypeError):
        message = body.strip()[:500] or f"HTTP {status}"
    kind = _BY_STATUS.get(status, ServerError)
    remedy = _REMEDY.get(kind)
    if kind is Forbidden and (found := _NO_RULE.search(message)):
        rule = said_rule(found["verb"], found["resource"], found["group"])
        remedy = f"{found['user']} lacks the RBAC rule: {rule}. {APPLY_RBAC}; or bind this identity to its role"
    return kind(f"{what}: {message}" + (f" ({remedy})" if remedy else ""))


def said_rule(verb: str, resource: str, group: str) -> str:
    """A rule of RBAC in words: `list flashpools in API group kubeflash.io`."""
    return f"{verb} {resource} in API group {group or chr(34) * 2}"
