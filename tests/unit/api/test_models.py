"""All that the schema lets through the models read, and what they write the schema lets through."""

from __future__ import annotations

from datetime import UTC
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from kubeflash.api.crds import root_schema
from kubeflash.api.v1alpha1 import KINDS, Condition, Distance, FlashNode, FlashVolume, LabelSelector

META = {"name": "a", "namespace": "serving", "uid": "u", "resourceVersion": "1", "generation": 1}
kinds = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.info.kind)


def json_of(node: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Values that a structural schema lets through, its CEL rules not looked at."""
    if "enum" in node:
        return st.sampled_from(node["enum"])
    if "x-kubernetes-int-or-string" in node:
        texts = st.from_regex(node["pattern"], fullmatch=True).filter(lambda text: len(text) <= node["maxLength"])
        return st.integers(0, 1 << 62) | texts
    longest = node.get("maxLength", 20)
    match node["type"]:
        case "string" if node.get("format") == "date-time":
            return st.datetimes(timezones=st.just(UTC)).map(lambda when: when.isoformat().replace("+00:00", "Z"))
        case "string" if "pattern" in node:
            return st.from_regex(node["pattern"], fullmatch=True).filter(lambda text: len(text) <= longest)
        case "string":
            return st.text(min_size=node.get("minLength", 0), max_size=min(longest, 8))
        case "integer":
            return st.integers(node.get("minimum", -(1 << 63)), node.get("maximum", (1 << 63) - 1))
        case "boolean":
            return st.booleans()
        case "array":
            return st.lists(json_of(node["items"]), max_size=2)
        case "object" if "properties" in node:
            fields = {name: json_of(part) for name, part in node["properties"].items()}
            required = node.get("required", [])
            return st.fixed_dictionaries(
                {name: fields[name] for name in required},
                optional={name: part for name, part in fields.items() if name not in required},
            )
        case "object":
            return st.dictionaries(st.text(max_size=4), json_of(node["additionalProperties"]), max_size=2)
    raise AssertionError(node)


@kinds
@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(data=st.data())
def test_what_the_schema_lets_through_is_read_and_round_trips(kind, data):
    parts = root_schema(kind)["properties"]
    body = {"metadata": META, "spec": data.draw(json_of(parts["spec"])), "status": data.draw(json_of(parts["status"]))}
    read = kind.from_json(body)
    written = read.to_json()
    again = kind.from_json(written)
    assert again == read
    assert again.to_json() == written


@kinds
@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(data=st.data())
def test_what_a_model_writes_has_a_field_of_the_schema_for_each_of_its_own(kind, data):
    schema = root_schema(kind)
    drawn = {part: data.draw(json_of(schema["properties"][part])) for part in ("spec", "status")}
    written = kind.from_json({"metadata": META, **drawn}).to_json()
    for part in ("spec", "status"):
        assert unknown(written[part], schema["properties"][part], part) == []


def unknown(value: Any, node: dict[str, Any], where: str) -> list[str]:
    """Fields in `value` that the schema has not: the API server would drop them silently."""
    found: list[str] = []
    if isinstance(value, list):
        found += [name for item in value for name in unknown(item, node["items"], f"{where}[]")]
    elif isinstance(value, dict):
        for name, inside in value.items():
            part = node.get("properties", {}).get(name, node.get("additionalProperties"))
            found += [f"{where}.{name}"] if part is None else unknown(inside, part, f"{where}.{name}")
    return found


def test_fields_that_a_later_version_has_are_ignored():
    read = FlashVolume.from_json({"metadata": META | {"x": 1}, "spec": {"pool": "p", "size": "1Gi", "later": 1}})
    assert "later" not in read.to_json()["spec"]


def test_what_is_unset_is_not_written():
    assert (
        "near" not in FlashVolume.from_json({"metadata": META, "spec": {"pool": "p", "size": "1Gi"}}).to_json()["spec"]
    )


def test_key_and_deleting():
    read = FlashVolume.from_json({"metadata": META, "spec": {"pool": "p", "size": 1}})
    assert read.key == "serving/a"
    assert not read.deleting
    gone = FlashVolume.from_json(
        {"metadata": META | {"deletionTimestamp": "2026-01-01T00:00:00Z"}, "spec": {"pool": "p", "size": 1}}
    )
    assert gone.deleting


def test_models_do_not_change():
    with pytest.raises(ValidationError, match="frozen"):
        LabelSelector().match_labels = {}


def test_a_bad_reason_is_no_condition():
    with pytest.raises(ValidationError, match="pattern"):
        Condition(type="Ready", status="True", reason="not one word", last_transition_time="2026-01-01T00:00:00Z")


def test_distances_are_ordered_by_how_far_they_are_not_by_letter():
    order = [Distance.PIX, Distance.PXB, Distance.PHB, Distance.NODE, Distance.SYS]
    assert sorted(["SYS", "PIX", "NODE", "PXB", "PHB"], key=Distance) == order
    assert max(order) == Distance.SYS
    assert Distance.PHB < "NODE"
    assert Distance.SYS >= Distance.SYS
    assert [distance.is_neighbour for distance in order] == [True, True, False, False, False]


def test_a_flashnode_of_an_earlier_agent_stays_readable():
    """Its booleans are unknown by now; the API server drops them."""
    old = {"metadata": {"name": "a"}, "status": {"kernel": {"release": "6.12", "nvmetTcp": True, "nvmeTcp": False}}}
    assert FlashNode.from_json(old).status.linux is None
