"""The API server refuses what is wrong, with a message that says what to do, and takes what is right."""

from __future__ import annotations

import json

import pytest

from api.objects import KIND, body_of, send
from api.refusals import NEAR, RULES, SCHEMA, SSDS, UUID, VOLUME, Refused
from kubeflash.api.v1alpha1 import KINDS, FlashNode, FlashPool, FlashVolume
from kubeflash.kube.client import Client
from kubeflash.kube.errors import Invalid

pytestmark = [pytest.mark.api, pytest.mark.usefixtures("clean")]


# --- what is refused, and what it says


def attempt(client: Client, row: Refused) -> None:
    """Does what the row says; its last step should be refused."""
    body = body_of(KIND[row.kind], row.spec if row.before is None else row.before, row.name)
    if row.before is None and row.status is None:
        send(client, "POST", body)
        return
    made = send(client, "POST", body)
    if row.status_before is not None:
        made = send(client, "PUT", {**made, "status": row.status_before}, status=True)
    if row.before is not None:
        send(client, "PUT", {**made, "spec": row.spec})
        return
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
    made = send(
        client, "GET", {"kind": "FlashPool", "metadata": {"name": make(FlashPool, {"ssds": SSDS}).metadata.name}}
    )
    assert made["spec"] == {
        "ssds": {**SSDS, "all": False, "neighboursOnly": False},
        "nodes": {},
        "reserve": "0%",
        "wipe": "Zero",
        "export": {"transport": "tcp", "ports": "4420-5443", "reconnectSeconds": 2, "lossSeconds": 600},
        "security": {"authentication": "Bidirectional", "tls": "None"},
    }
    assert "status" not in made
    read = FlashPool.from_json(made)
    assert read.spec.allowed_namespaces is None
    assert read == FlashPool.from_json({**made, "spec": {"ssds": SSDS}})  # the server's defaults are the models'


def test_a_whole_pool(make):
    spec = {
        "nodes": {"matchLabels": {"nvidia.com/gpu.present": "true"}},
        "ssds": {
            "serials": ["S1"],
            "ids": ["eui.0025384b21c0aa01"],
            "models": ["SAMSUNG MZWLO*"],
            "minSize": "1Ti",
            "neighboursOnly": True,
            "exclude": {"serials": ["S2"], "minSize": "16Ti"},
        },
        "quota": {"perNamespace": "20Ti"},
        "reserve": "7%",
        "wipe": "Discard",
        "allowedNamespaces": {"matchExpressions": [{"key": "team", "operator": "In", "values": ["serving"]}]},
        "export": {"ports": "1024-65535", "networks": ["10.20.0.0/16", "fd00::/64"], "reconnectSeconds": 1},
    }
    read = make(FlashPool, spec)
    assert read.spec.export.networks == ["10.20.0.0/16", "fd00::/64"]
    assert read.spec.export.loss_seconds == 600
    assert read.spec.reserve_percent == 7
    assert read.spec.quota.per_namespace == 20 << 40
    assert read.spec.ssds.exclude.min_size == 16 << 40
    assert read.spec.allowed_namespaces.match_expressions[0].values == ["serving"]


def test_a_pool_of_every_blank_ssd_needs_no_names(make):
    assert make(FlashPool, {"ssds": {"all": True}}).spec.ssds.all


def test_a_volume_may_grow_and_may_be_near_a_gpu_by_its_uuid_alone(client, make):
    made = send(client, "POST", body_of(FlashVolume, {**VOLUME, "near": {"gpu": "GPU-7f2c1e3a-0b1c-4d5e"}}))
    assert send(client, "PUT", {**made, "spec": {**made["spec"], "size": "600Gi"}})["spec"]["size"] == "600Gi"


def test_a_server_is_declared_lost_by_its_own_uuid(client):
    made = send(client, "POST", body_of(FlashNode, {}))
    made = send(client, "PUT", {**made, "status": {"systemUUID": UUID}}, status=True)
    assert send(client, "PUT", {**made, "spec": {"purge": UUID}})["spec"]["purge"] == UUID


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
    assert made["spec"] == {"pool": "fast", "size": 5368709120, "id": UUID, "sharing": "Exclusive"}


def test_a_node_needs_no_spec(client):
    body = body_of(FlashNode, {}, "n" * 247)
    del body["spec"]
    assert send(client, "POST", body)["spec"] == {"paused": False, "maintenance": False}


def test_spec_and_status_are_written_apart(client):
    body = body_of(FlashVolume, VOLUME)
    made = send(client, "POST", {**body, "status": {"nodeName": "sneaked-in"}})
    assert "status" not in made
    made = send(client, "PUT", {**made, "spec": {"pool": "other"}, "status": {"nodeName": "n1"}}, status=True)
    assert made["status"] == {"nodeName": "n1"}
    assert made["spec"]["pool"] == "fast"
    assert made["metadata"]["generation"] == 1
