"""CustomResourceDefinitions, generated: `python -m kubeflash.api.crds DIR [--chart TEMPLATES] [--check]`.

They are made from the pydantic models, for `kubectl apply -f DIR`, and as templates of the chart kubeflash-crds, the
same but for an annotation: `helm uninstall` must keep them, as all objects of these kinds would go with them.

`kubeflash.api.structural` makes the schema; names, columns, rules and selectable fields are added here, each checked
against it.

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
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from kubeflash import __version__
from kubeflash.api.structural import JSON, CrdError, ordered, structural
from kubeflash.api.v1alpha1 import KINDS, Column, KindInfo, Resource

HEADER = "# generated from operator/kubeflash/api by `make crds`; do not edit\n"
CATEGORY = "flash"
LABELS = {
    "app.kubernetes.io/name": "kubeflash",
    "app.kubernetes.io/part-of": "kubeflash",
    "app.kubernetes.io/version": __version__,  # the chart refuses to install a controller over older ones
}
KEPT = {"helm.sh/resource-policy": "keep"}

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
            "spec": structural(parts["spec"], definitions, f"{kind.info.kind}.spec", defaults=True),
            "status": structural(parts["status"], definitions, f"{kind.info.kind}.status", defaults=False),
        },
    }
    if "spec" in raw["required"]:
        schema["required"] = ["spec"]
    for rule in kind.info.rules:
        where = f"{kind.info.kind}: rule {rule.message!r}"
        node = field_at(schema, rule.path, where)
        node.setdefault("x-kubernetes-validations", []).append({"rule": rule.expression, "message": rule.message})
    return ordered(schema)


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
        yield _name(kind), HEADER + _text(crd(kind))


def templates() -> Iterator[tuple[str, str]]:
    """Name and text of each template of the chart. Raises as `files`."""
    for kind in KINDS:
        kept = crd(kind)
        kept["metadata"]["annotations"] = dict(KEPT)
        yield _name(kind), HEADER + escaped(_text(kept))


def escaped(text: str) -> str:
    """A text as a Helm template that renders to it: braces of its own would be taken for the template's."""
    return text.replace("{{", '{{ "{{" }}')


def _name(kind: type[Resource]) -> str:
    return f"{kind.info.group}_{kind.info.plural}.yaml"


def _text(body: JSON) -> str:
    return yaml.dump(body, Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=True)


def differences(folder: Path, wanted: Mapping[str, str]) -> str:
    """A unified diff from what is in `folder` to what should be; empty when it is right."""
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


def write(folder: Path, wanted: Mapping[str, str]) -> None:
    """Makes the files of `folder` what they should be; what else was generated there goes."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.glob("*.yaml"):
        if path.name not in wanted and path.read_text(encoding="utf-8").startswith(HEADER):
            path.unlink()
    for name, text in wanted.items():
        (folder / name).write_text(text, encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes the files into their folders, or with --check compares them; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m kubeflash.api.crds", description="Generates crds/.")
    parser.add_argument("folder", type=Path, metavar="DIR", help="where the files belong")
    parser.add_argument("--chart", type=Path, metavar="TEMPLATES", help="where the chart's templates belong")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 with a diff when a file differs")
    options = parser.parse_args(arguments)
    folders = {options.folder: dict(files())}
    if options.chart is not None:
        folders[options.chart] = dict(templates())
    if options.check:
        diff = "".join(differences(folder, wanted) for folder, wanted in folders.items())
        sys.stdout.write(diff)
        return 1 if diff else 0
    for folder, wanted in folders.items():
        write(folder, wanted)
    return 0


if __name__ == "__main__":
    sys.exit(main())
