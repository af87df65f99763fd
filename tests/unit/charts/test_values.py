"""The chart's values: each is explained, in the schema, and the other way round; versions agree. Helm is not needed."""

from __future__ import annotations

import json
import tomllib
from typing import Any

import pytest
import yaml

from support.chart_values import CHART, PAGE, REPO, SCHEMA, VALUES, ValuesError, page, schema, values

CHARTS = ("kubeflash", "kubeflash-crds")
WHOLE: dict[str, Any] = json.loads(SCHEMA.read_text())
TYPES = {"string": str, "boolean": bool, "array": list, "object": dict}


def resolved(node: dict[str, Any]) -> dict[str, Any]:
    """A node of the schema; of a reference, what it refers to."""
    if "$ref" not in node:
        return node
    return {**WHOLE["definitions"][node["$ref"].removeprefix("#/definitions/")], **node}


def nodes(node: dict[str, Any], where: str):
    """Every node of the schema that is about a value, with its path."""
    node = resolved(node)
    yield where, node
    for name, part in node.get("properties", {}).items():
        yield from nodes(part, f"{where}.{name}")
    if isinstance(node.get("items"), dict):
        yield from nodes(node["items"], f"{where}[]")


def test_the_table_and_the_descriptions_are_fresh():
    assert PAGE.read_text() == page(), "run `make docs`"
    assert SCHEMA.read_text() == schema(), "run `make docs`"


def test_the_schema_knows_every_value_and_no_others():
    def keys(node: dict[str, Any]) -> Any:
        node = resolved(node)
        return {name: keys(part) for name, part in node["properties"].items()} if "properties" in node else None

    def said(path: tuple[str, ...], known: Any) -> set[str]:
        name = ".".join(path)
        if known is None or name in table:
            return {name}
        return {leaf for step, below in known.items() for leaf in said((*path, step), below)}

    table = {value.name for value in values(VALUES.read_text())}
    # Helm gives `global` to each chart that is part of another: nobody sets it here.
    assert said((), keys(WHOLE)) == {*table, "global"}


def test_nothing_unknown_is_let_through():
    for where, node in nodes(WHOLE, ""):
        if "properties" in node:
            assert node["additionalProperties"] is False, where
        elif node.get("type") == "object" and not where.endswith(("affinity", "global")):
            assert isinstance(node["additionalProperties"], dict), f"{where}: says nothing about what is in it"


def test_every_value_has_a_description():
    inner = ("", ".image", ".apiServer", ".controller", ".agent", ".controller.podDisruptionBudget")
    for where, node in nodes(WHOLE, ""):
        if where not in (*inner, ".controller.networkPolicy", ".agent.updateStrategy") and not where.endswith("[]"):
            assert node.get("description"), where


def test_defaults_are_of_their_type():
    for value in values(VALUES.read_text()):
        node = WHOLE
        for step in value.path:
            node = resolved(node["properties"][step])
        if "enum" in node:
            assert value.default in node["enum"], value.name
        elif "anyOf" not in node:
            kind = TYPES.get(node["type"], int)
            assert isinstance(value.default, kind), value.name


@pytest.mark.parametrize("chart", CHARTS)
def test_versions_agree(chart):
    version = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]["version"]
    said = yaml.safe_load((REPO / "charts" / chart / "Chart.yaml").read_text())
    assert (said["version"], said["appVersion"]) == (version, version)
    assert said["kubeVersion"] == ">=1.32.0-0"
    assert said["name"] == chart


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\n", "a has no comment"),
        ("a:\n  # -- B.\n  b: 1\n  c: 2\n", "a.c has no comment"),
        ("# -- A.\na:\n  # -- B.\n  b: 1\n", "comments of no value of the table: .*a.b"),
        ("# -- A.\n\na: 1\n", "the comment 'A.' is followed by no key"),
    ],
)
def test_a_value_without_a_comment_is_an_error(text, message):
    with pytest.raises(ValuesError, match=message):
        values(text)


def test_comments_go_on_over_lines_and_a_mapping_with_one_is_one_value():
    text = "# A file.\n\na:\n  # -- First\n  # line.\n  b: {x: 1}\n# -- C.\nc:\n  d: 1\n"
    assert [(value.name, value.default, value.words) for value in values(text)] == [
        ("a.b", {"x": 1}, "First line."),
        ("c", {"d": 1}, "C."),
    ]


def test_the_chart_names_no_registry():
    assert "/" not in yaml.safe_load((CHART / "values.yaml").read_text())["image"]["repository"]
