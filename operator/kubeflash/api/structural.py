"""JSON Schema as pydantic says it, made the *structural* OpenAPI v3 schema that the API server wants.

No references, one type a node, no null, and only the keywords that the API server knows. What pydantic says beyond that
is an error here, never dropped: a rule that silently does not hold is worse than none.

Source: "Extend the Kubernetes API with CustomResourceDefinitions" in the Kubernetes documentation, its sections on
structural schemas, defaulting and int-or-string.
"""

from __future__ import annotations

from typing import Any

JSON = dict[str, Any]

KEYWORDS = (
    "description", "type", "format", "enum", "default", "pattern", "minLength", "maxLength", "minimum", "maximum",
    "minItems", "maxItems", "anyOf", "x-kubernetes-int-or-string", "x-kubernetes-list-type",
    "x-kubernetes-list-map-keys", "x-kubernetes-map-type", "properties", "additionalProperties", "items", "required",
    "x-kubernetes-validations",
)  # fmt: skip
"""What a node of the schema may say, in the order in which the file says it."""

_INT_OR_STRING = [{"type": "integer"}, {"type": "string"}]


class CrdError(Exception):
    """A kind cannot be made a CustomResourceDefinition; the message says which part of which model."""


class NotStructural(CrdError):
    """A model says something that a structural schema cannot."""


def structural(raw: JSON, definitions: JSON, where: str, *, defaults: bool, inside: tuple[str, ...] = ()) -> JSON:
    """One node made structural: references put in place, `X | None` made X, defaults kept or dropped.

    Args:
        raw: the node as pydantic says it.
        definitions: pydantic's `$defs`.
        where: the node's place, for messages.
        defaults: whether defaults are kept.
        inside: the definitions that the node lies in.

    Raises:
        NotStructural: when it says what a structural schema cannot; the message begins with `where`.
    """
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
            name: structural(part, definitions, f"{where}.{name}", defaults=defaults, inside=inside)
            for name, part in node["properties"].items()
        }
    for key, mark in (("items", "[]"), ("additionalProperties", "{}")):
        if key in node:
            if not isinstance(node[key], dict):
                raise NotStructural(f"{where}: {key} needs a type")
            node[key] = structural(node[key], definitions, where + mark, defaults=defaults, inside=inside)
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


def ordered(node: JSON) -> JSON:
    """The node with its keywords in the order of `KEYWORDS`; fields stay in the models' order."""
    result: JSON = {}
    for key in KEYWORDS:
        if key not in node:
            continue
        value = node[key]
        if key == "properties":
            value = {name: ordered(part) for name, part in value.items()}
        elif key in {"items", "additionalProperties"}:
            value = ordered(value)
        result[key] = value
    return result
