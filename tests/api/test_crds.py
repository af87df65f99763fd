"""The API server takes crds/, teaches from them, refuses what is wrong with a message, and lets two write one status."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest

from api.conftest import CRDS
from api.refusals import ATTACHMENT, CONDITION, NEAR, RULES, SCHEMA, SSDS, UUID, VOLUME, Refused
from kubeflash.api.crds import root_schema
from kubeflash.api.v1alpha1 import KINDS, FlashNode, FlashPool, FlashVolume, Resource
from kubeflash.kube.client import Client, api_version, path_of
from kubeflash.kube.errors import Invalid

pytestmark = pytest.mark.api

KIND = {kind.info.kind: kind for kind in KINDS}
kinds = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.info.kind)
_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def kubectl(cluster, tmp_path_factory):
    """Runs kubectl; its discovery cache is of this cluster, not of an earlier one at the same address."""
    cache = tmp_path_factory.mktemp("kubectl-cache")

    def run(*words: str, **options: Any) -> Any:
        return cluster.kubectl("--cache-dir", cache, *words, **options)

    return run


@pytest.fixture(scope="module")
def make(client):
    """Makes an object in namespace default, or its kind's scope; returns it as read back."""

    def create(kind: type[Resource], spec: dict[str, Any], name: str = "") -> Any:
        return kind.from_json(send(client, "POST", body_of(kind, spec, name)))

    return create


def body_of(kind: type[Resource], spec: dict[str, Any], name: str = "") -> dict[str, Any]:
    metadata = {"name": name or f"{kind.info.singular}-{next(_numbers)}"}
    if kind.info.scope == "Namespaced":
        metadata["namespace"] = "default"
    return {"apiVersion": api_version(kind.info), "kind": kind.info.kind, "metadata": metadata, "spec": spec}


def send(client: Client, method: str, body: dict[str, Any], *, status: bool = False, **query: str) -> dict[str, Any]:
    meta = body["metadata"]
    path = path_of(KIND[body["kind"]].info, meta.get("namespace"), "" if method == "POST" else meta["name"])
    return client.call(method, path + ("/status" if status else ""), body=body, query=query)


# --- what is refused, and what it says


def attempt(client: Client, row: Refused) -> None:
    """Does what the row says; its last step should be refused."""
    body = body_of(KIND[row.kind], row.spec if row.before is None else row.before, row.name)
    if row.before is None and row.status is None:
        send(client, "POST", body)
        return
    made = send(client, "POST", body)
    if row.before is not None:
        send(client, "PUT", {**made, "spec": row.spec})
        return
    if row.status_before is not None:
        made = send(client, "PUT", {**made, "status": row.status_before}, status=True)
    send(client, "PUT", {**made, "status": row.status}, status=True)


@pytest.mark.parametrize("row", RULES, ids=lambda row: f"{row.kind}: {row.says[:40]}")
def test_rules_refuse_with_their_message_and_nothing_else(client, row):
    with pytest.raises(Invalid) as refused:
        attempt(client, row)
    text = str(refused.value)
    assert row.says in text
    assert "\n" not in text  # one complaint: several make kubectl print a list
    assert "evaluating rule" not in text  # a rule that fails to run says what CEL thinks, not what to do


@pytest.mark.parametrize("row", SCHEMA, ids=lambda row: f"{row.kind}: {row.says[:40]}")
def test_the_schema_refuses(client, row):
    with pytest.raises(Invalid) as refused:
        attempt(client, row)
    text = str(refused.value)
    assert row.says in text
    assert "evaluating rule" not in text


def test_every_rule_has_a_row():
    wanted = {(kind.info.kind, rule.message) for kind in KINDS for rule in kind.info.rules}
    assert {(row.kind, row.says) for row in RULES} == wanted


def test_unknown_fields_are_refused_when_asked_to_be_strict_as_kubectl_does(client, kubectl):
    body = body_of(FlashVolume, {**VOLUME, "sizes": "1Gi"})
    with pytest.raises(Invalid, match=r'unknown field "spec.sizes"'):
        send(client, "POST", body, fieldValidation="Strict")
    for how in ((), ("--server-side",)):
        done = kubectl("apply", "--dry-run=server", *how, "-f", "-", input=json.dumps(body), check=False)
        assert done.exit_code != 0
        assert "sizes" in done.stderr_text
    warned = kubectl("apply", "--dry-run=server", "--validate=warn", "-f", "-", input=json.dumps(body))
    assert 'unknown field "spec.sizes"' in warned.stderr_text


# --- what is accepted


def test_a_pool_that_names_ssds_by_serial_gets_the_rest_by_defaults(client, make):
    made = send(client, "GET", {"kind": "FlashPool", "metadata": {"name": make(FlashPool, {"ssds": SSDS}).metadata.name}})
    assert made["spec"] == {
        "ssds": SSDS,
        "nodes": {},
        "export": {"ports": "4420-5443", "reconnectSeconds": 2, "lossSeconds": 600},
    }
    assert "status" not in made
    read = FlashPool.from_json(made)
    assert read.spec.allowed_namespaces is None
    assert read == FlashPool.from_json({**made, "spec": {"ssds": SSDS}})  # the server's defaults are the models'


def test_a_whole_pool(make):
    spec = {
        "nodes": {"matchLabels": {"nvidia.com/gpu.present": "true"}},
        "ssds": {"serials": ["S1"], "ids": ["eui.0025384b21c0aa01"], "models": ["SAMSUNG MZWLO*"]},
        "allowedNamespaces": {"matchExpressions": [{"key": "team", "operator": "In", "values": ["serving"]}]},
        "export": {"ports": "1024-65535", "networks": ["10.20.0.0/16", "fd00::/64"], "reconnectSeconds": 1},
    }
    read = make(FlashPool, spec)
    assert read.spec.export.networks == ["10.20.0.0/16", "fd00::/64"]
    assert read.spec.export.loss_seconds == 600
    assert read.spec.allowed_namespaces.match_expressions[0].values == ["serving"]


def test_allowed_namespaces_of_all_stays_what_it_says(make):
    assert make(FlashPool, {"ssds": SSDS, "allowedNamespaces": {}}).spec.allowed_namespaces is not None


def test_a_pool_may_change(client):
    made = send(client, "POST", body_of(FlashPool, {"ssds": SSDS}))
    changed = send(client, "PUT", {**made, "spec": {"ssds": {"models": ["M*"]}, "export": {"ports": "5000-6000"}}})
    assert changed["spec"]["export"]["ports"] == "5000-6000"


@pytest.mark.parametrize("size", ["1Mi", "500Gi", "1.5T", 1048576, "1048576", "3840755982336"])
def test_sizes(make, size):
    assert make(FlashVolume, {"pool": "fast", "size": size}).spec.size >= 1 << 20


@pytest.mark.parametrize("near", [{}, {"node": "gpu-a"}, {"ssd": "eui.0025384b21c0aa01"}, NEAR])
def test_volumes_near(make, near):
    assert make(FlashVolume, {**VOLUME, "near": near}).to_json()["spec"]["near"] == near


def test_the_id_is_set_once_and_the_same_size_may_be_written_otherwise(client):
    made = send(client, "POST", body_of(FlashVolume, {"pool": "fast", "size": "5Gi"}))
    made = send(client, "PUT", {**made, "spec": {**made["spec"], "id": UUID}})
    made = send(client, "PUT", {**made, "spec": {**made["spec"], "size": 5368709120}})
    assert made["spec"] == {"pool": "fast", "size": 5368709120, "id": UUID}


def test_a_node_needs_no_spec(client):
    body = body_of(FlashNode, {}, "n" * 247)
    del body["spec"]
    assert send(client, "POST", body)["spec"] == {"paused": False}


def test_spec_and_status_are_written_apart(client):
    body = body_of(FlashVolume, VOLUME)
    made = send(client, "POST", {**body, "status": {"nodeName": "sneaked-in"}})
    assert "status" not in made
    made = send(client, "PUT", {**made, "spec": {"pool": "other"}, "status": {"nodeName": "n1"}}, status=True)
    assert made["status"] == {"nodeName": "n1"}
    assert made["spec"]["pool"] == "fast"
    assert made["metadata"]["generation"] == 1


# --- two writers of one status


def wanted(number: int) -> dict[str, Any]:
    return {"uid": f"u{number}", "nqn": "n", "hostNQN": "h", "hostID": "i", "sealedKeys": "k", "ports": "1-2"}


def condition(kind: str, *, status: str = "True") -> dict[str, Any]:
    return {**CONDITION, "type": kind, "status": status}


def types(written: dict[str, Any]) -> set[str]:
    return {item["type"] for item in written["status"].get("conditions", ())}


def test_the_controllers_and_the_agents_conditions_live_in_one_list(client, make):
    volume = make(FlashVolume, VOLUME)
    client.apply_status(volume, {"nodeName": "n1", "conditions": [condition("Placed")]}, "controller")
    both = client.apply_status(volume, {"bytes": 1, "conditions": [condition("Carved")]}, "agent")
    assert types(both) == {"Placed", "Carved"}
    assert (both["status"]["nodeName"], both["status"]["bytes"]) == ("n1", 1)

    changed = client.apply_status(volume, {"bytes": 1, "conditions": [condition("Carved", status="False")]}, "agent")
    assert {item["type"]: item["status"] for item in changed["status"]["conditions"]} == {"Placed": "True", "Carved": "False"}

    without = client.apply_status(volume, {"conditions": []}, "agent")
    assert types(without) == {"Placed"}
    assert "bytes" not in without["status"]
    assert without["status"]["nodeName"] == "n1"

    nothing = client.apply_status(volume, {}, "controller")
    assert nothing.get("status", {}) in ({}, {"conditions": []})


def test_each_attachment_is_a_key_of_its_own(client, make):
    volume = make(FlashVolume, VOLUME)
    client.apply_status(volume, {"wanted": {"a": wanted(1), "b": wanted(2)}}, "controller")
    both = client.apply_status(
        volume, {"exported": {"a": {"uid": "u1", "portals": ["tcp://10.0.0.1:4420"]}, "b": {"uid": "u2"}}}, "agent"
    )
    assert both["status"]["wanted"].keys() == both["status"]["exported"].keys() == {"a", "b"}
    less = client.apply_status(volume, {"wanted": {"b": wanted(2)}}, "controller")
    assert less["status"]["wanted"].keys() == {"b"}
    assert less["status"]["exported"].keys() == {"a", "b"}
    gone = client.apply_status(volume, {"exported": {"b": {"uid": "u2", "ready": True}}}, "agent")
    assert gone["status"]["exported"] == {"b": {"uid": "u2", "ready": True}}


def test_saying_the_same_again_changes_nothing(client, make):
    volume = make(FlashVolume, VOLUME)
    status = {"wanted": {"a": wanted(1)}, "conditions": [condition("Placed")]}
    first = client.apply_status(volume, status, "controller")
    again = client.apply_status(volume, status, "controller")
    assert again["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"]


def test_an_ssd_that_is_pulled_leaves_the_nodes_status_and_no_default_stays_behind(client, make):
    node = make(FlashNode, {})
    pci = {"address": "0000:4c:00.0", "rootComplex": "pci0000:4a"}
    ssd = {**pci, "serial": "S1", "model": "M", "bytes": 1, "namespaceId": 1, "state": "Blank"}
    ssds = [{**ssd, "id": "a"}, {**ssd, "id": "b", "free": "1Gi", "largest": 1048576}]
    client.apply_status(node, {"systemUUID": UUID, "ssds": ssds}, "agent")
    left = client.apply_status(node, {"systemUUID": UUID, "ssds": ssds[1:]}, "agent")
    assert left["status"] == {"systemUUID": UUID, "ssds": ssds[1:]}
    assert FlashNode.from_json(left).status.ssds[0].largest == 1 << 20


# --- kubectl


def test_crds_apply_either_way_and_again_without_a_change(kubectl, cluster):
    def versions() -> str:
        return kubectl("get", "crd", "-o", "jsonpath={.items[*].spec}").stdout_text

    before = versions()
    for how in ((), ("--server-side",), (), ("--server-side",)):
        done = kubectl("apply", *how, "-f", CRDS)
        assert done.stdout_text.count("customresourcedefinition") == len(KINDS)
        assert versions() == before
    assert "unchanged" in kubectl("apply", "-f", CRDS).stdout_text


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
    status = {"nodeName": "n1", "distance": "PIX", "ssd": "eui.1", "conditions": [condition("Placed"), condition("Ready")]}
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
    with pytest.raises(Invalid, match="field label not supported: status.ssd"):
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
