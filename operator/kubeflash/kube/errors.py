"""What can go wrong with the API server, each with what to do about it."""

from __future__ import annotations

import json


class KubeError(Exception):
    """Talking to the API server failed."""


class KubeconfigInvalid(KubeError):
    """There is no usable way to the API server: kubeconfig missing, broken, or without such a context."""


class Unreachable(KubeError):
    """No answer: wrong address, network, certificate, or the API server is down. Worth trying again."""


class Unauthorized(KubeError):
    """The credentials are not accepted."""


class Forbidden(KubeError):
    """The identity may not do this: RBAC is missing."""


class NotFound(KubeError):
    """There is no such object, or no such kind: the CRDs are not applied."""


class Conflict(KubeError):
    """Somebody else changed or replaced the object in between. Read again and decide anew."""


class Invalid(KubeError):
    """The API server's schema or rules refuse the object."""


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

_REMEDY: dict[type[KubeError], str] = {
    Unauthorized: "check the credentials in the kubeconfig",
    Forbidden: "apply deploy/rbac.yaml and bind this identity to its role",
    NotFound: "if the kind is unknown, apply crds/ first",
}


def from_status(status: int, what: str, body: str) -> KubeError:
    """The error for an answer with this HTTP status, with the API server's own message in it."""
    try:
        message = str(json.loads(body)["message"])
    except (ValueError, KeyError, TypeError):
        message = body.strip()[:500] or f"HTTP {status}"
    kind = _BY_STATUS.get(status, ServerError)
    remedy = _REMEDY.get(kind)
    return kind(f"{what}: {message}" + (f" ({remedy})" if remedy else ""))
