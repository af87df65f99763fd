"""Whether the CustomResourceDefinitions in the cluster are those that this version of KubeFlash was built for.

A field that a CRD does not have vanishes silently from a merge patch, and server-side apply of a status that has one
fails as a whole, with an error of the API server's own (500). So nothing is decided or written before all are there.
CRDs that have more, of a later version, are fine.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from kubeflash import __version__
from kubeflash.api.fields import Fields, fields_of
from kubeflash.api.v1alpha1 import KINDS, Resource
from kubeflash.kube.builtin import CRD
from kubeflash.kube.client import Client
from kubeflash.kube.errors import APPLY_CRDS, NotFound, NotYet

JSON = dict[str, Any]

NAMED = 4
"""Fields of a kind that a message names at the most."""


class CrdsMissing(NotYet):
    """The cluster does not know some of KubeFlash's kinds."""


class CrdsOlder(NotYet):
    """Fields that this version reads or writes are not in the cluster's CRDs."""


def crd_name(kind: type[Resource]) -> str:
    """The name of a kind's CustomResourceDefinition."""
    return f"{kind.info.plural}.{kind.info.group}"


CRD_NAMES = tuple(crd_name(kind) for kind in KINDS)


def check(client: Client) -> None:
    """Compares the cluster's CRDs with this version's.

    Raises:
        CrdsMissing: when there are not all of them.
        CrdsOlder: when one lacks what this version needs; says what.
        KubeError: as `Client.get`; `Forbidden` without the right to get them.
    """
    missing: list[str] = []
    older: list[str] = []
    for kind in KINDS:
        try:
            body = client.get(CRD, crd_name(kind))
        except NotFound:
            missing.append(crd_name(kind))
            continue
        lacks = lacking(kind, body)
        if lacks:
            more = f" and {len(lacks) - NAMED} more" if len(lacks) > NAMED else ""
            older.append(f"{crd_name(kind)} lacks {', '.join(lacks[:NAMED])}{more}")
    if missing:
        raise CrdsMissing(f"these CRDs are not in this cluster: {', '.join(missing)}; {APPLY_CRDS}")
    if older:
        raise CrdsOlder(f"CRDs are older than KubeFlash {__version__}: {'; '.join(older)}; {APPLY_CRDS}")
    _check_discovery(client)


def _check_discovery(client: Client) -> None:
    """Sees to it that the API server names all kinds: new ones it lists a moment later than it serves them.

    kopf asks once which kinds there are, and never watches one that was not named then.

    Raises:
        CrdsMissing: when some are not named yet.
        KubeError: as `Client.call`.
    """
    group, version = KINDS[0].info.group, KINDS[0].info.version
    groups = {item["name"] for item in client.call("GET", "/apis")["groups"]}
    try:
        listed = client.call("GET", f"/apis/{group}/{version}")["resources"] if group in groups else []
    except NotFound:
        listed = []
    absent = sorted({kind.info.plural for kind in KINDS} - {item["name"] for item in listed})
    if absent:
        raise CrdsMissing(f"waiting for the API server to serve these kinds of {group}: {', '.join(absent)}")


def lacking(kind: type[Resource], body: JSON) -> list[str]:
    """What this version needs of a kind and a CRD does not have, in words: the version, fields, selectable fields."""
    versions = {item["name"]: item for item in body["spec"]["versions"] if item.get("served")}
    version = versions.get(kind.info.version)
    if version is None:
        return [f"version {kind.info.version}"]
    schema = version.get("schema", {}).get("openAPIV3Schema", {})
    selectable = {item["jsonPath"] for item in version.get("selectableFields", ())}
    return [
        *_absent(fields_of(kind), schema, ""),
        *(f"selectable field {path}" for path in kind.info.selectable if path not in selectable),
    ]


def _absent(fields: Fields, node: JSON, path: str) -> Iterator[str]:
    """Paths of fields that the node of a schema has not; of those inside an absent one nothing is said."""
    while "items" in node or isinstance(node.get("additionalProperties"), dict):
        node = node.get("items") or node["additionalProperties"]
    if node.get("x-kubernetes-preserve-unknown-fields"):
        return
    properties = node.get("properties", {})
    for name, inside in fields.items():
        here = f"{path}.{name}" if path else name
        if name in properties:
            yield from _absent(inside, properties[name], here)
        else:
            yield here
