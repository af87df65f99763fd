"""A small synchronous client for plain JSON objects, on the kubernetes package's transport and kubeconfig handling.

The package's typed APIs cost 20-45 MB of memory in each process; custom resources gain nothing by them. Calls block:
from asyncio they go through `asyncio.to_thread`.
"""

from __future__ import annotations

import builtins
import json
import os
from collections.abc import Iterable, Mapping
from typing import Any

import urllib3.exceptions
from kubernetes.client.api_client import ApiClient
from kubernetes.client.configuration import Configuration
from kubernetes.client.exceptions import ApiException
from kubernetes.config import ConfigException, load_incluster_config, load_kube_config

from kubeflash.api.v1alpha1 import KindInfo, Resource
from kubeflash.kube.errors import Invalid, KubeconfigInvalid, Unreachable, from_status
from kubeflash.kube.secrets import keep_in_memory

TIMEOUT = (5.0, 20.0)
"""Seconds to connect and to wait for an answer."""
PAGE = 500
"""Objects a list call asks for at once."""

JSON = dict[str, Any]


def load_configuration(kubeconfig: str | None, context: str | None = None) -> Configuration:
    """The way to the API server: the given kubeconfig, else $KUBECONFIG or ~/.kube/config, else the pod's own.

    Raises:
        KubeconfigInvalid: when there is none, or it cannot be used.
    """
    configuration = Configuration()
    try:
        if kubeconfig is None and "KUBECONFIG" not in os.environ and "KUBERNETES_SERVICE_HOST" in os.environ:
            load_incluster_config(client_configuration=configuration)
        else:
            options = {"config_file": kubeconfig, "context": context, "client_configuration": configuration}
            if hasattr(os, "memfd_create"):
                keep_in_memory(configuration, lambda folder: load_kube_config(**options, temp_file_path=folder))
            else:  # kubectl flash on an administrator's Mac ends in order, and the package removes its files
                load_kube_config(**options)
    except (ConfigException, OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        where = kubeconfig or os.environ.get("KUBECONFIG") or "~/.kube/config"
        raise KubeconfigInvalid(
            f"no way to the API server by kubeconfig {where}: {error}; give a right one with --kubeconfig"
        ) from error
    configuration.retries = False
    return configuration


class Client:
    """Lists, reads and writes JSON objects. Safe to use from several threads."""

    def __init__(self, configuration: Configuration) -> None:
        self._api = ApiClient(configuration)
        self.configuration = configuration
        self.server = str(configuration.host)

    def call(
        self,
        method: str,
        path: str,
        *,
        body: JSON | None = None,
        query: Mapping[str, str] | None = None,
        content_type: str = "application/json",
    ) -> JSON:
        """One request; the decoded answer.

        Raises:
            KubeError: of the kind that fits; `Unreachable` when there is no answer.
        """
        what = f"{method} {self.server}{path}"
        try:
            request = self._api.param_serialize(  # reads the token anew, which may be gone for a moment
                method,
                path,
                query_params=list((query or {}).items()),
                header_params={"Accept": "application/json", "Content-Type": content_type},
                body=body,
                auth_settings=["BearerToken"],
            )
            response = self._api.call_api(*request, _request_timeout=TIMEOUT)
            data = response.read()
        except (ConfigException, urllib3.exceptions.HTTPError, ApiException, OSError) as error:
            raise Unreachable(f"{what}: {error}; is the API server up, and the address right?") from error
        text = data.decode(errors="replace") if data else ""
        if not 200 <= response.status < 300:
            raise from_status(response.status, what, text)
        try:
            answer = json.loads(text)
        except ValueError as error:
            raise Invalid(f"{what}: the answer is not JSON; is this a Kubernetes API server?") from error
        if not isinstance(answer, dict):
            raise Invalid(f"{what}: the answer is not an object; is this a Kubernetes API server?")
        return answer

    def get(self, info: KindInfo, name: str, namespace: str | None = None) -> JSON:
        """Reads one object. Raises `NotFound` when there is none, else as `call`."""
        return self.call("GET", path_of(info, namespace, name))

    def list(self, info: KindInfo, field_selector: str | None = None, *, namespace: str | None = None) -> list[JSON]:
        """All objects of a kind, of one namespace or of all. Raises as `call`."""
        return self.list_at(info, field_selector, namespace=namespace)[0]

    def list_at(
        self, info: KindInfo, field_selector: str | None = None, *, namespace: str | None = None
    ) -> tuple[builtins.list[JSON], int]:
        """The same, in pages, with the resource version that the list is of. Raises as `call`."""
        items: builtins.list[JSON] = []
        query = {"limit": str(PAGE)}
        if field_selector:
            query["fieldSelector"] = field_selector
        while True:
            answer = self.call("GET", path_of(info, namespace), query=query)
            items.extend(answer.get("items", ()))
            token = answer.get("metadata", {}).get("continue")
            if not token:
                return items, int(answer.get("metadata", {}).get("resourceVersion") or 0)
            query["continue"] = token

    def create(self, info: KindInfo, body: JSON, namespace: str | None = None) -> JSON:
        """Creates an object. Raises `Conflict` when there is one already, else as `call`."""
        return self.call("POST", path_of(info, namespace), body=body)

    def replace(self, info: KindInfo, body: JSON, name: str, namespace: str | None = None) -> JSON:
        """Replaces an object. Raises `Conflict` when its resourceVersion is not the one in `body`, else as `call`."""
        return self.call("PUT", path_of(info, namespace, name), body=body)

    def patch(self, resource: Resource, body: JSON, *, any_version: bool = False) -> JSON:
        """Merges `body` into an object, only while it is the very one that was read: uid and resourceVersion.

        With `any_version` it may have changed meanwhile, but not be another one of that name.

        Raises:
            Conflict: when it changed, or another has its name now.
            KubeError: as `call`.
        """
        meta = resource.metadata
        guarded = dict(body)
        guarded["metadata"] = {**body.get("metadata", {}), "uid": meta.uid}
        if not any_version:
            guarded["metadata"]["resourceVersion"] = meta.resource_version
        path = path_of(resource.info, meta.namespace, meta.name)
        return self.call("PATCH", path, body=guarded, content_type="application/merge-patch+json")

    def apply_status(
        self, resource: Resource, status: JSON, manager: str, *, resource_version: str | None = None
    ) -> JSON:
        """Makes `status` the whole of what `manager` says in the object's status, by server-side apply.

        What the manager said before and does not say now goes away; what others say stays. So two writers share one
        status without reading each other's part.

        Raises:
            Conflict: when another object has its name now, or (with `resource_version`) it changed since.
            KubeError: as `call`.
        """
        meta = resource.metadata
        metadata = {"name": meta.name, "uid": meta.uid}
        if meta.namespace:
            metadata["namespace"] = meta.namespace
        if resource_version:
            metadata["resourceVersion"] = resource_version
        body = {
            "apiVersion": api_version(resource.info),
            "kind": resource.info.kind,
            "metadata": metadata,
            "status": status,
        }
        return self.call(
            "PATCH",
            path_of(resource.info, meta.namespace, meta.name) + "/status",
            body=body,
            query={"fieldManager": manager, "force": "true"},
            content_type="application/apply-patch+yaml",
        )

    def close(self) -> None:
        """Closes the connections."""
        self._api.close()


def api_version(info: KindInfo) -> str:
    """`group/version`, or the version alone for the core group."""
    return f"{info.group}/{info.version}" if info.group else info.version


def path_of(info: KindInfo, namespace: str | None, name: str | None = None) -> str:
    """The URL path of a kind, or of one object of it."""
    root = f"/apis/{info.group}/{info.version}" if info.group else f"/api/{info.version}"
    parts: Iterable[str] = (
        *(("namespaces", namespace) if namespace else ()),
        info.plural,
        *((name,) if name else ()),
    )
    return "/".join((root, *parts))
