from __future__ import annotations

import pytest

from kubeflash.api.crds import root_schema
from kubeflash.api.fields import fields_of
from kubeflash.api.v1alpha1 import KINDS


def names(node: dict) -> dict:
    """The fields of a node of a schema, in the shape of `fields_of`."""
    while "items" in node or isinstance(node.get("additionalProperties"), dict):
        node = node.get("items") or node["additionalProperties"]
    return {name: names(part) for name, part in node.get("properties", {}).items()}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.info.kind)
def test_they_are_those_of_the_schema(kind):
    found = names(root_schema(kind))
    assert fields_of(kind) == {part: found[part] for part in ("spec", "status")}
