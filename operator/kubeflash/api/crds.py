"""CustomResourceDefinitions, generated from the pydantic models: `python -m kubeflash.api.crds DIR [--check]`.

pydantic says JSON Schema 2020-12; the API server wants a *structural* OpenAPI v3 schema: no references, one type a
node, no null, and only the keywords that it knows. What pydantic says beyond that is an error here, never dropped.

Two choices that the schema makes for the models:

- A default in `spec` is kept where it tells the reader something: the API server then fills it in, and `kubectl get -o
  yaml` shows it. An empty list, map or string is left out: absent means the same to the models.
- No default in `status`: two writers share it by server-side apply, and a filled-in field would belong to nobody.

Sources: "Extend the Kubernetes API with CustomResourceDefinitions" (structural schemas, defaulting, selectable fields)
and "Server-Side Apply" (list types) in the Kubernetes documentation.
"""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from kubeflash.api.v1alpha1 import KINDS, Column, KindInfo, Resource

JSON = dict[str, Any]

HEADER = "# generated from operator/kubeflash/api by `make crds`; do not edit\n"
CATEGORY = "flash"
LABELS = {"app.kubernetes.io/name": "kubeflash", "app.kubernetes.io/part-of": "kubeflash"}

KEYWORDS = (
    "description", "type", "format", "enum", "default", "pattern", "minLength", "maxLength", "minimum", "maximum",
    "minItems", "maxItems", "anyOf", "x-kubernetes-int-or-string", "x-kubernetes-list-type",
    "x-kubernetes-list-map-keys", "x-kubernetes-map-type", "properties", "additionalProperties", "items", "required",
    "x-kubernetes-validations",
)  # fmt: skip
"""What a node of the schema may say, in the order in which the file says it."""

_MERGED = ("$ref", "allOf", "const", "title", "$defs")
"""What pydantic says and `_node` takes apart."""

_INT_OR_STRING = [{"type": "integer"}, {"type": "string"}]
_STEP = re.compile(r'\.(?P<field>[A-Za-z][A-Za-z0-9]*)|\[\?\(@\.(?P<key>[A-Za-z]+)=="[^"]*"\)\]')

_META: JSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "namespace": {"type": "string"},
        "uid": {"type": "string"},
        "generation": {"type": "integer"},
        "creationTimestamp": {"type": "string", "format": "date-time"},
    },
}
"""Metadata's own schema, for columns alone: the API server validates it by itself."""


class CrdError(Exception):
    """A kind cannot be made a CustomResourceDefinition; the message says which part of which model."""


class NotStructural(CrdError):
    """A model says something that a structural schema cannot."""


class PathMissing(CrdError):
    """A column, selectable field or rule names a field that the schema has not, or not of the right type."""


def crd(kind: type[Resource]) -> JSON:
    """The CustomResourceDefinition of `kind`.

    Raises:
        NotStructural: when a model says what a structural schema cannot.
        PathMissing: when a column, a selectable field or a rule names a field that the schema has not.
    """
    info = kind.info
    schema = root_schema(kind)
    for column in info.columns:
        _check_column(info, schema, column)
    for path in info.selectable:
        _check_selectable(info, schema, path)
    version = {
        "name": info.version,
        "served": True,
        "storage": True,
        "additionalPrinterColumns": [_column(column) for column in info.columns],
        "selectableFields": [{"jsonPath": path} for path in info.selectable],
        "schema": {"openAPIV3Schema": schema},
        "subresources": {"status": {}},
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{info.plural}.{info.group}", "labels": dict(LABELS)},
        "spec": {
            "group": info.group,
            "names": {
                "kind": info.kind,
                "listKind": f"{info.kind}List",
                "plural": info.plural,
                "singular": info.singular,
                "shortNames": list(info.short),
                "categories": [CATEGORY],
            },
            "scope": info.scope,
            "versions": [{key: value for key, value in version.items() if value != []}],
        },
    }


def root_schema(kind: type[Resource]) -> JSON:
    """The structural schema of a whole object, its rules in place.

    Raises:
        NotStructural: when a model says what a structural schema cannot.
        PathMissing: when a rule names a field that the schema has not.
    """
    raw = kind.model_json_schema(by_alias=True, mode="validation")
    definitions = raw.get("$defs", {})
    parts = raw["properties"]
    schema: JSON = {
        "description": raw["description"],
        "type": "object",
        "properties": {
            "apiVersion": {"type": "string", "description": f"{kind.info.group}/{kind.info.version}."},
            "kind": {"type": "string", "description": f"{kind.info.kind}."},
            "metadata": {"type": "object"},
            "spec": _node(parts["spec"], definitions, f"{kind.info.kind}.spec", defaults=True),
            "status": _node(parts["status"], definitions, f"{kind.info.kind}.status", defaults=False),
        },
    }
    if "spec" in raw["required"]:
        schema["required"] = ["spec"]
    for rule in kind.info.rules:
        where = f"{kind.info.kind}: rule {rule.message!r}"
        node = field_at(schema, rule.path, where)
        node.setdefault("x-kubernetes-validations", []).append({"rule": rule.expression, "message": rule.message})
    return _ordered(schema)


def field_at(schema: JSON, path: Sequence[str], where: str) -> JSON:
    """The node of the field at `path`, names from the root.

    Raises:
        PathMissing: when there is no such field; the message begins with `where`.
    """
    node = schema
    for index, name in enumerate(path):
        properties = node.get("properties", {})
        if name not in properties:
            at = ".".join(("", *path[:index])) or "the root"
            raise PathMissing(f"{where}: {at} has no field {name!r}; it has {', '.join(properties) or 'none'}")
        node = properties[name]
    return node


def _node(raw: JSON, definitions: JSON, where: str, *, defaults: bool, inside: tuple[str, ...] = ()) -> JSON:
    """One node made structural: references put in place, `X | None` made X, defaults kept or dropped."""
    merged, inside = _merged(raw, definitions, where, inside)
    if "const" in merged:
        merged["enum"] = [merged.pop("const")]
    node: JSON = {key: value for key, value in merged.items() if key != "title"}
    if unknown := sorted(node.keys() - set(KEYWORDS)):
        raise NotStructural(f"{where}: {', '.join(unknown)} cannot be said in a structural schema")
    if node.get("x-kubernetes-int-or-string"):
        if "type" in node or node.get("anyOf") != _INT_OR_STRING:
            raise NotStructural(f"{where}: an int-or-string has anyOf integer, string and no type")
    elif "anyOf" in node or "type" not in node:
        raise NotStructural(f"{where}: not of one type; a union can be told apart by nobody")
    if node.get("type") == "integer":
        node["format"] = "int64"
    if "properties" in node:
        node["properties"] = {
            name: _node(part, definitions, f"{where}.{name}", defaults=defaults, inside=inside)
            for name, part in node["properties"].items()
        }
    for key, mark in (("items", "[]"), ("additionalProperties", "{}")):
        if key in node:
            if not isinstance(node[key], dict):
                raise NotStructural(f"{where}: {key} needs a type")
            node[key] = _node(node[key], definitions, where + mark, defaults=defaults, inside=inside)
    default = node.pop("default", None)
    if defaults and _tells(default, node):
        node["default"] = _beyond(default, node)
    return node


def _merged(raw: JSON, definitions: JSON, where: str, inside: tuple[str, ...]) -> tuple[JSON, tuple[str, ...]]:
    """`raw` with its references, single `allOf` and `anyOf [X, null]` put in place; what stands beside them wins."""
    node = dict(raw)
    while True:
        if "$ref" in node:
            name = node.pop("$ref").rpartition("/")[2]
            if name in inside:
                raise NotStructural(f"{where}: {name} contains itself")
            inside = (*inside, name)
            node = {**definitions[name], **node}
        elif len(node.get("allOf", ())) == 1:
            node = {**node.pop("allOf")[0], **node}
        elif {"type": "null"} in node.get("anyOf", ()):
            rest = [option for option in node.pop("anyOf") if option != {"type": "null"}]
            node = {**rest[0], **node} if len(rest) == 1 else {**node, "anyOf": rest}
        else:
            return node, inside


def _tells(default: Any, node: JSON) -> bool:
    """Whether a default says more than that the field is absent. A `{}` on an object brings its fields' defaults."""
    return default not in (None, [], "", {}) or (default == {} and "properties" in node)


def _beyond(default: Any, node: JSON) -> Any:
    """A default without what the defaults of the fields inside say already."""
    if not isinstance(default, dict):
        return default
    fields = node.get("properties", {})
    return {
        name: _beyond(value, fields[name])
        for name, value in default.items()
        if value not in (None, [], "", {}) and not _same(value, fields[name])
    }


def _same(value: Any, node: JSON) -> bool:
    """Whether the API server fills in `value` by itself, from the defaults of the field and of those inside."""
    if "default" not in node:
        return False
    if isinstance(value, dict):
        return not _beyond(value, node) and node["default"] == {}
    return bool(value == node["default"])


def _ordered(node: JSON) -> JSON:
    """The node with its keywords in the order of `KEYWORDS`; fields stay in the models' order."""
    result: JSON = {}
    for key in KEYWORDS:
        if key not in node:
            continue
        value = node[key]
        if key == "properties":
            value = {name: _ordered(part) for name, part in value.items()}
        elif key in {"items", "additionalProperties"}:
            value = _ordered(value)
        result[key] = value
    return result


def _column(column: Column) -> JSON:
    """A printer column as the CustomResourceDefinition says it."""
    result: JSON = {"name": column.name, "type": column.type, "jsonPath": column.path}
    if column.description:
        result["description"] = column.description
    if column.priority:
        result["priority"] = column.priority
    return result


def _check_column(info: KindInfo, schema: JSON, column: Column) -> None:
    where = f"{info.kind}: column {column.name}"
    node = _at_json_path(schema, column.path, where)
    kind = "date" if node.get("format") == "date-time" else node.get("type", "string")
    if kind != column.type:
        raise PathMissing(f"{where}: {column.path} is {kind}, the column says {column.type}")


def _check_selectable(info: KindInfo, schema: JSON, path: str) -> None:
    where = f"{info.kind}: selectable field"
    node = _at_json_path(schema, path, where)
    if "[" in path or path.startswith(".metadata") or node.get("type") not in {"string", "integer", "boolean"}:
        raise PathMissing(f"{where}: {path} is no plain field of spec or status, which is all that can be selected by")


def _at_json_path(schema: JSON, path: str, where: str) -> JSON:
    """The node that a JSON path of fields and `[?(@.key=="value")]` leads to.

    Raises:
        PathMissing: when the schema has no such field.
    """
    whole = {**schema, "properties": {**schema["properties"], "metadata": _META}}
    node, position = whole, 0
    while position < len(path):
        step = _STEP.match(path, position)
        if step is None:
            raise PathMissing(f"{where}: {path[position:]!r} of {path} is not understood")
        if step["field"]:
            node = field_at(node, (step["field"],), f"{where}: {path}")
        else:
            node = node.get("items", {})
            field_at(node, (step["key"],), f"{where}: {path}")
        position = step.end()
    return node


class _Dumper(yaml.SafeDumper):
    """Lists indented under their key, no anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        """Always: a reader should not have to look an anchor up."""
        del data
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        """Lists are indented, too."""
        del indentless
        super().increase_indent(flow, False)


def files() -> Iterator[tuple[str, str]]:
    """Name and text of each file of crds/.

    Raises:
        CrdError: as `crd`.
    """
    for kind in KINDS:
        text = yaml.dump(crd(kind), Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=True)
        yield f"{kind.info.group}_{kind.info.plural}.yaml", HEADER + text


def differences(folder: Path) -> str:
    """A unified diff from what is in `folder` to what should be; empty when it is right. Raises as `files`."""
    wanted = dict(files())
    names = sorted(wanted.keys() | {path.name for path in folder.glob("*.yaml")})
    diff: list[str] = []
    for name in names:
        path = folder / name
        old = path.read_text(encoding="utf-8") if path.exists() else ""
        new = wanted.get(name, "")
        diff += difflib.unified_diff(
            old.splitlines(keepends=True), new.splitlines(keepends=True), f"{path}", f"{path} (generated)"
        )
    return "".join(diff)


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes the files into a folder, or with --check compares them; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m kubeflash.api.crds", description="Generates crds/.")
    parser.add_argument("folder", type=Path, metavar="DIR", help="where the files belong")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 with a diff when a file differs")
    options = parser.parse_args(arguments)
    if options.check:
        diff = differences(options.folder)
        sys.stdout.write(diff)
        return 1 if diff else 0
    options.folder.mkdir(parents=True, exist_ok=True)
    wanted = dict(files())
    for path in options.folder.glob("*.yaml"):
        if path.name not in wanted and path.read_text(encoding="utf-8").startswith(HEADER):
            path.unlink()
    for name, text in wanted.items():
        (options.folder / name).write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
