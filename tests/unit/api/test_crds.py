"""crds/ is what the models say; what they cannot say in a structural schema is an error, not left out."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import yaml
from pydantic import Field, create_model

from kubeflash.api import crds
from kubeflash.api.crds import HEADER, PathMissing, crd, differences, field_at, main, root_schema
from kubeflash.api.structural import NotStructural
from kubeflash.api.v1alpha1 import KINDS, Column, KindInfo, Model, Resource, Rule

REPO = Path(__file__).parents[3]
FOLDER, TEMPLATES = REPO / "crds", REPO / "charts" / "kubeflash-crds" / "templates"
kinds = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.info.kind)


def nodes(schema: dict[str, Any], where: str = ""):
    """Every node of a schema, with its path."""
    yield where, schema
    for name, part in schema.get("properties", {}).items():
        yield from nodes(part, f"{where}.{name}")
    for key, mark in (("items", "[]"), ("additionalProperties", "{}")):
        if key in schema:
            yield from nodes(schema[key], where + mark)


def under(part: str, schema: dict[str, Any]):
    return [(where, node) for where, node in nodes(schema) if re.match(rf"\.{part}\b", where)]


# --- what is in the repository


def test_the_files_in_crds_are_what_the_models_say():
    assert differences(FOLDER, dict(crds.files())) == "", "run `make crds`"
    assert differences(TEMPLATES, dict(crds.templates())) == "", "run `make crds`"


def test_a_template_is_the_file_and_that_helm_shall_keep_it():
    for (name, text), (same, template) in zip(crds.files(), crds.templates(), strict=True):
        body, kept = yaml.safe_load(text), yaml.safe_load(template.replace('{{ "{{" }}', "{{"))
        assert (name, kept["metadata"].pop("annotations")) == (same, {"helm.sh/resource-policy": "keep"})
        assert kept == body


def test_braces_of_a_description_are_no_template():
    assert crds.escaped("a {{b}} c {{d}} {e}") == 'a {{ "{{" }}b}} c {{ "{{" }}d}} {e}'


def test_check_says_what_differs_and_writing_mends_it(tmp_path, capsys):
    assert main([str(tmp_path)]) == 0
    assert main([str(tmp_path), "--check"]) == 0
    changed = tmp_path / "kubeflash.io_flashpools.yaml"
    changed.write_text(changed.read_text().replace("4420-5443", "1-2", 1))
    stale = tmp_path / "kubeflash.io_olds.yaml"
    stale.write_text(HEADER + "kind: Old\n")
    assert main([str(tmp_path), "--check"]) == 1
    diff = capsys.readouterr().out
    assert "-                      default: 1-2" in diff
    assert "+                      default: 4420-5443" in diff
    assert "-kind: Old" in diff
    assert main([str(tmp_path)]) == 0
    assert main([str(tmp_path), "--check"]) == 0
    assert not stale.exists()


def test_writing_leaves_alone_what_it_did_not_generate(tmp_path):
    other = tmp_path / "mine.yaml"
    other.write_text("kind: Mine\n")
    main([str(tmp_path / "crds"), "--chart", str(tmp_path)])
    assert other.exists()


def test_the_chart_is_checked_too(tmp_path, capsys):
    both = [str(tmp_path / "crds"), "--chart", str(tmp_path / "templates")]
    assert main(both) == 0
    assert main([*both, "--check"]) == 0
    changed = tmp_path / "templates" / "kubeflash.io_flashpools.yaml"
    changed.write_text(changed.read_text().replace("resource-policy: keep", "resource-policy: gone"))
    assert main([*both, "--check"]) == 1
    assert "+    helm.sh/resource-policy: keep" in capsys.readouterr().out


def test_it_runs_as_a_module(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["crds", str(tmp_path), "--check"])
    with pytest.warns(RuntimeWarning, match="found in sys.modules"), pytest.raises(SystemExit) as left:
        runpy.run_module("kubeflash.api.crds", run_name="__main__")
    assert left.value.code == 1


def test_the_text_says_the_same_as_the_data_and_is_the_same_each_time():
    assert list(crds.files()) == list(crds.files())
    for kind, (name, text) in zip(KINDS, crds.files(), strict=True):
        assert name == f"kubeflash.io_{kind.info.plural}.yaml"
        assert text.startswith(HEADER)
        assert "&id" not in text
        assert yaml.safe_load(text) == crd(kind)


# --- the schema


@kinds
def test_every_field_has_a_description_that_is_a_sentence(kind):
    for where, node in nodes(root_schema(kind)):
        if where != ".metadata" and not where.endswith(("[]", "{}")):
            text = node.get("description", "")
            assert text.endswith("."), f"{kind.info.kind}{where}: {text!r}"
            assert "\n" not in text


@kinds
def test_it_is_structural(kind):
    for where, node in nodes(root_schema(kind)):
        assert ("type" in node) != ("x-kubernetes-int-or-string" in node), where
        assert not node.keys() & {"$ref", "title", "allOf", "oneOf", "not", "nullable", "const", "$defs"}, where
        assert "x-kubernetes-preserve-unknown-fields" not in node, where
        assert "anyOf" not in node or "x-kubernetes-int-or-string" in node, where
        assert not ("properties" in node and "additionalProperties" in node), where
        if node.get("type") == "object":
            assert "properties" in node or "additionalProperties" in node or where == ".metadata", where
        if node.get("type") == "integer":
            assert node["format"] == "int64", where
        if node.get("type") == "array":
            assert "items" in node, where


@kinds
def test_status_has_no_defaults_so_that_no_field_belongs_to_nobody(kind):
    assert [where for where, node in under("status", root_schema(kind)) if "default" in node] == []


@kinds
def test_keys_of_lists_that_are_maps_are_required(kind):
    for where, node in nodes(root_schema(kind)):
        if node.get("x-kubernetes-list-type") == "map":
            assert set(node["x-kubernetes-list-map-keys"]) <= set(node["items"]["required"]), where


@kinds
def test_rules_hang_where_they_say(kind):
    schema = root_schema(kind)
    for rule in kind.info.rules:
        hung = field_at(schema, rule.path, "")["x-kubernetes-validations"]
        assert {"rule": rule.expression, "message": rule.message} in hung
    assert sum(len(node.get("x-kubernetes-validations", ())) for _, node in nodes(schema)) == len(kind.info.rules)


@kinds
def test_names(kind):
    made = crd(kind)
    names = made["spec"]["names"]
    assert made["metadata"]["name"] == f"{names['plural']}.kubeflash.io"
    assert made["metadata"]["labels"]["app.kubernetes.io/part-of"] == "kubeflash"
    assert "annotations" not in made["metadata"]
    assert names["categories"] == ["flash"]
    assert "all" not in names["categories"]
    [version] = made["spec"]["versions"]
    assert version["subresources"] == {"status": {}}


def test_short_names_are_unique():
    short = [name for kind in KINDS for name in (*kind.info.short, kind.info.plural, kind.info.singular)]
    assert len(short) == len(set(short))


def test_a_pool_that_names_ssds_gets_the_rest_by_defaults():
    spec = field_at(root_schema(kind_named("FlashPool")), ("spec",), "")
    assert spec["required"] == ["ssds"]
    assert spec["properties"]["export"]["default"] == {}
    inside = {name: node.get("default") for name, node in spec["properties"]["export"]["properties"].items()}
    assert inside == {
        "transport": "tcp",
        "ports": "4420-5443",
        "networks": None,
        "reconnectSeconds": 2,
        "lossSeconds": 600,
    }
    guarded = {name: node.get("default") for name, node in spec["properties"]["security"]["properties"].items()}
    assert guarded == {"authentication": "Bidirectional", "tls": "None"}
    assert "default" not in spec["properties"]["allowedNamespaces"]  # absent is not {}: that would be everybody


def test_a_node_needs_no_spec():
    schema = root_schema(kind_named("FlashNode"))
    assert "required" not in schema
    assert field_at(schema, ("spec",), "")["default"] == {}


def test_selectable_fields():
    def selectable(name: str) -> list[str]:
        [version] = crd(kind_named(name))["spec"]["versions"]
        return [field["jsonPath"] for field in version.get("selectableFields", ())]

    assert ".status.nodeName" in selectable("FlashVolume")
    assert ".spec.nodeName" in selectable("FlashAttachment")
    assert selectable("FlashNode") == []


def kind_named(name: str) -> type[Resource]:
    return next(kind for kind in KINDS if kind.info.kind == name)


# --- what is refused


def a_kind(field: Any = str, default: Any = ..., **info: Any) -> type[Resource]:
    """A kind whose spec has one field `f`."""
    spec = create_model("Spec", __base__=Model, f=(field, Field(default, description="F.")))
    thing = create_model(
        "Thing",
        __base__=Resource,
        __doc__="A thing.",
        spec=(spec, Field(description="Spec.")),
        status=(Status, Field(Status(), description="Status.")),
    )
    thing.info = KindInfo(
        **{"kind": "Thing", "plural": "things", "short": (), "scope": "Cluster", "columns": (), **info}
    )
    return thing


class Part(Model):
    """A part."""

    name: str = Field(description="Name.")
    size: int = Field(5, description="Size.")
    words: list[str] = Field([], description="Words.")


class Status(Model):
    """Status."""

    s: str = Field("", description="S.")
    days: list[Part] = Field([], description="Days.")


class Tree(Model):
    """Contains itself."""

    below: list[Tree] = Field([], description="Below.")


@pytest.mark.parametrize(
    ("field", "message"),
    [
        (int | str, "not of one type"),
        (int | str | None, "not of one type"),
        (Any, "not of one type"),
        (dict[str, Any], "additionalProperties needs a type"),
        (Tree, "Tree contains itself"),
        (Annotated[int, Field(gt=0)], "exclusiveMinimum cannot be said"),
        (Annotated[int, Field(multiple_of=2)], "multipleOf cannot be said"),
        (tuple[int, str], "prefixItems cannot be said"),
        (dict[Annotated[str, Field(pattern="^a$")], str], "patternProperties cannot be said"),
    ],
)
def test_what_a_structural_schema_cannot_say_is_an_error_that_names_the_field(field, message):
    with pytest.raises(NotStructural, match=rf"^Thing\.spec\.f.*{message}"):
        crd(a_kind(field))


@pytest.mark.parametrize(
    ("field", "default", "node"),
    [
        (str | None, None, {"description": "F.", "type": "string"}),
        (Literal["One"], ..., {"description": "F.", "type": "string", "enum": ["One"]}),
        (bool, False, {"description": "F.", "type": "boolean", "default": False}),
        (dict[str, str], {}, {"description": "F.", "type": "object", "additionalProperties": {"type": "string"}}),
        (Annotated[list[int], Field(max_length=3)], [], {
            "description": "F.", "type": "array", "maxItems": 3, "items": {"type": "integer", "format": "int64"}
        }),
    ],
)  # fmt: skip
def test_how_fields_are_said(field, default, node):
    assert field_at(root_schema(a_kind(field, default)), ("spec", "f"), "") == node


def test_an_objects_default_says_only_what_its_fields_do_not():
    def default(part: Part) -> Any:
        return field_at(root_schema(a_kind(Part, part)), ("spec", "f"), "")["default"]

    assert default(Part(name="n")) == {"name": "n"}
    assert default(Part(name="n", size=6, words=["w"])) == {"name": "n", "size": 6, "words": ["w"]}


@pytest.mark.parametrize(
    ("info", "message"),
    [
        ({"columns": (Column("C", ".spec.nope"),)}, "Thing: column C: .spec.nope.*no field 'nope'; it has f"),
        ({"columns": (Column("C", ".status.s.deeper"),)}, "no field 'deeper'; it has none"),
        ({"columns": (Column("C", ".spec.f", "integer"),)}, "is string, the column says integer"),
        ({"columns": (Column("C", ".metadata.creationTimestamp"),)}, "is date, the column says string"),
        ({"columns": (Column("C", '.status.days[?(@.nope=="x")].size', "integer"),)}, "no field 'nope'"),
        ({"columns": (Column("C", '.spec.f[?(@.name=="x")].size'),)}, "no field 'name'"),
        ({"columns": (Column("C", ".spec.f[0]"),)}, r"'\[0\]' of .spec.f\[0\] is not understood"),
        ({"selectable": (".status.nope",)}, "Thing: selectable field: .status.nope.*no field 'nope'"),
        ({"selectable": (".status.days",)}, "no plain field"),
        ({"selectable": (".metadata.name",)}, "no plain field"),
        ({"rules": (Rule(("spec", "nope"), "true", "m"),)}, "Thing: rule 'm': .spec has no field 'nope'; it has f"),
        ({"rules": (Rule(("nope",), "true", "m"),)}, "the root has no field 'nope'"),
    ],
)
def test_columns_selectable_fields_and_rules_must_name_fields_that_exist(info, message):
    with pytest.raises(PathMissing, match=message):
        crd(a_kind(**info))


def test_a_column_may_look_into_a_list():
    made = crd(a_kind(columns=(Column("C", '.status.days[?(@.name=="x")].size', "integer", 1, "Size of x."),)))
    assert made["spec"]["versions"][0]["additionalPrinterColumns"] == [
        {
            "name": "C",
            "type": "integer",
            "jsonPath": '.status.days[?(@.name=="x")].size',
            "description": "Size of x.",
            "priority": 1,
        }
    ]
