"""What an admin sees: kubectl applies crds/, explains, shows columns, and finds objects by their fields."""

from __future__ import annotations

import json
import re

import pytest

from api.objects import CRDS
from api.refusals import ATTACHMENT, CONDITION, SSDS, VOLUME
from kubeflash.api.crds import root_schema
from kubeflash.api.v1alpha1 import KINDS, FlashNode, FlashPool, FlashVolume
from kubeflash.kube.client import path_of
from kubeflash.kube.errors import Invalid

pytestmark = [pytest.mark.api, pytest.mark.usefixtures("clean")]

kinds = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.info.kind)
READY = {**CONDITION, "type": "Ready"}


def test_crds_apply_either_way_and_again_without_a_change(kubectl):
    def versions() -> str:
        return kubectl("get", "crd", "-o", "jsonpath={.items[*].spec}").stdout_text

    before = versions()
    for how in ((), ("--server-side",), ()):
        done = kubectl("apply", *how, "-f", str(CRDS))
        assert done.stdout_text.count("customresourcedefinition") == len(KINDS)
        assert versions() == before
    assert kubectl("apply", "-f", str(CRDS)).stdout_text.count("unchanged") == len(KINDS)


def test_the_api_server_finds_nothing_to_complain_about(kubectl):
    listed = json.loads(kubectl("get", "crd", "-l", "app.kubernetes.io/part-of=kubeflash", "-o", "json").stdout_text)
    assert len(listed["items"]) == len(KINDS)
    for item in listed["items"]:
        found = {entry["type"]: entry["status"] for entry in item["status"]["conditions"]}
        assert found == {"NamesAccepted": "True", "Established": "True"}  # no NonStructuralSchema


@kinds
def test_the_schema_is_kept_as_it_was_written(kubectl, kind):
    listed = json.loads(kubectl("get", "crd", f"{kind.info.plural}.{kind.info.group}", "-o", "json").stdout_text)
    assert listed["spec"]["versions"][0]["schema"]["openAPIV3Schema"] == root_schema(kind)


def test_explain_teaches(kubectl):
    text = kubectl("explain", "flashvolume.spec.near.maxDistance").stdout_text
    assert "maxDistance <string>" in text
    assert "PIX" in text
    assert "The farthest SSD that is still good enough." in text
    whole = kubectl("explain", "flashpool", "--recursive").stdout_text
    assert "reconnectSeconds" in whole
    assert "ssds\t<Object> -required-" in whole
    for kind in KINDS:
        assert " ".join(kubectl("explain", kind.info.singular).stdout_text.split()).count(kind.info.kind) >= 1


@kinds
def test_columns(kubectl, make, kind):
    specs = {"FlashNode": {}, "FlashPool": {"ssds": SSDS}, "FlashVolume": VOLUME, "FlashAttachment": ATTACHMENT}
    name = make(kind, specs[kind.info.kind]).metadata.name
    short = kind.info.short[0]
    header = kubectl("get", short, name).stdout_text.splitlines()[0].split()
    assert header == ["NAME", *(column.name.upper() for column in kind.info.columns if not column.priority)]
    wide = kubectl("get", short, name, "-o", "wide").stdout_text.splitlines()[0].split()
    assert wide == ["NAME", *(column.name.upper() for column in kind.info.columns)]


def test_columns_show_what_was_achieved(kubectl, client, make):
    volume = make(FlashVolume, VOLUME)
    status = {
        "nodeName": "n1",
        "distance": "PIX",
        "ssd": "eui.1",
        "conditions": [{**READY, "type": "Placed"}, READY],
    }
    client.apply_status(volume, status, "controller")
    row = kubectl("get", "fv", volume.metadata.name, "--no-headers").stdout_text.split()
    assert row[:-1] == [volume.metadata.name, "fast", "500Gi", "n1", "PIX", "True", "Done"]


def test_the_category_shows_all_kinds_and_the_category_all_none(kubectl, make):
    made = [make(FlashNode, {}), make(FlashPool, {"ssds": SSDS}), make(FlashVolume, VOLUME)]
    names = kubectl("get", "flash", "-o", "name").stdout_text.split()
    assert {f"{item.info.singular}.kubeflash.io/{item.metadata.name}" for item in made} <= set(names)
    for kind in KINDS:
        resources = kubectl("api-resources", "--api-group", "kubeflash.io", "--categories", "flash", "-o", "name")
        assert f"{kind.info.plural}.kubeflash.io" in resources.stdout_text
    assert "flash" not in kubectl("get", "all", "-o", "name").stdout_text


# --- selecting


def test_volumes_are_found_by_the_server_they_are_on(kubectl, client, make):
    volume, other, unplaced = (make(FlashVolume, VOLUME) for _ in range(3))
    client.apply_status(volume, {"nodeName": "here"}, "controller")
    client.apply_status(other, {"nodeName": "there"}, "controller")
    found = client.list(FlashVolume.info, "status.nodeName=here")
    assert [item["metadata"]["name"] for item in found] == [volume.metadata.name]
    listed = kubectl("get", "fv", "--field-selector", "status.nodeName=here", "-o", "name").stdout_text.split()
    assert listed == [f"flashvolume.kubeflash.io/{volume.metadata.name}"]
    empty = {item["metadata"]["name"] for item in client.list(FlashVolume.info, "status.nodeName=")}
    assert unplaced.metadata.name in empty
    with pytest.raises(Invalid, match=re.escape("field label not supported: status.ssd")):
        client.list(FlashVolume.info, "status.ssd=eui.1")


def test_a_watch_by_server_sees_a_volume_come_and_go(kubectl, client, make):
    start = client.call("GET", path_of(FlashVolume.info, None))["metadata"]["resourceVersion"]
    volume = make(FlashVolume, VOLUME)
    for node in ("elsewhere", "watched", "elsewhere"):
        client.apply_status(volume, {"nodeName": node}, "controller")
    query = f"watch=true&timeoutSeconds=1&resourceVersion={start}&fieldSelector=status.nodeName%3Dwatched"
    lines = kubectl("get", "--raw", f"{path_of(FlashVolume.info, None)}?{query}").stdout_text.splitlines()
    assert [json.loads(line)["type"] for line in lines] == ["ADDED", "DELETED"]


@kinds
def test_every_selectable_field_selects(client, kind):
    for path in kind.info.selectable:
        assert client.list(kind.info, f"{path[1:]}=nobody-is-called-this") == []
