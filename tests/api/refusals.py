"""What the API server must refuse, one row each, with the words it must say: see `test_crds`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

JSON = dict[str, Any]

UUID = "6f3c1f0e-2f65-4f0b-9d5c-0123456789ab"
SSDS: JSON = {"serials": ["S64HNE0R100001"]}
VOLUME: JSON = {"pool": "fast", "size": "500Gi"}
NEAR: JSON = {"node": "gpu-a", "gpu": "0000:4e:00.0", "maxDistance": "PXB"}
ATTACHMENT: JSON = {"volume": "kv-0", "nodeName": "gpu-b"}
CONDITION: JSON = {"type": "Ready", "status": "True", "reason": "Done", "lastTransitionTime": "2026-01-01T00:00:00Z"}


@dataclass(frozen=True)
class Refused:
    """A bad object.

    Attributes:
        kind: Its kind.
        spec: Its spec.
        says: A part of the API server's message: of a CEL rule the rule's whole message.
        before: The spec that it has before, when it is the change that is bad.
        status: Written after it was made, in which case this is what is bad.
        status_before: Written before that.
        name: Of the object; else a new one.
    """

    kind: str
    spec: JSON
    says: str
    before: JSON | None = None
    status: JSON | None = field(default=None)
    status_before: JSON | None = None
    name: str = ""


def pool(says: str, **spec: Any) -> Refused:
    return Refused("FlashPool", {"ssds": SSDS, **spec}, says)


def export(says: str, **parts: Any) -> Refused:
    return pool(says, export=parts)


def volume(says: str, **spec: Any) -> Refused:
    return Refused("FlashVolume", {**VOLUME, **spec}, says)


def changed(says: str, spec: JSON, before: JSON) -> Refused:
    return Refused("FlashVolume", {**VOLUME, **spec}, says, before={**VOLUME, **before})


def volume_status(says: str, **status: Any) -> Refused:
    return Refused("FlashVolume", VOLUME, says, status=status)


_PORTS = "ports is first-last with 1024 <= first <= last <= 65535, such as 4420-5443"
_NOTHING = "name SSDs by serials, ids or models, or say all: true: nothing selected means nothing taken"
_POOL = "pool is immutable: make another volume and copy the data"
_NEAR = "near is immutable: make another volume and copy the data"
_ID = "id is the volume's identity on the disk and never changes once set"
_SIZE = "size may grow, never shrink: make a smaller volume and copy the data"
_GIVEN = "id is given by the controller, which has chosen one already; give yours when you create the volume"
_PURGE = (
    "spec.purge must be the server's own system UUID (status.systemUUID): it declares this server lost for good; "
    "kubectl flash purge NODE shows what that means first"
)
_NODE_UUID = (
    "systemUUID is the server's identity and does not change; another server has this name now: "
    "delete this FlashNode once the old server's volumes are dealt with"
)
_ATTACHMENT = "an attachment is immutable, and so are its export identities: delete it and make another"

RULES: tuple[Refused, ...] = (
    pool(_NOTHING, ssds={}),
    pool(_NOTHING, ssds={"serials": [], "ids": [], "models": []}),
    pool(_NOTHING, ssds={"all": False}),
    pool(_NOTHING, ssds={"minSize": "1Ti", "neighboursOnly": True, "exclude": {"serials": ["S64HNE0R100001"]}}),
    export(_PORTS, ports="1023-2000"),
    export(_PORTS, ports="2000-1999"),
    export(_PORTS, ports="60000-65536"),
    export(_PORTS, ports="0-0"),
    export("every network is a CIDR, such as 10.20.0.0/16", networks=["10.20.0.0/16", "10.20.0.1"]),
    export("every network is a CIDR, such as 10.20.0.0/16", networks=["fd00::/129"]),
    changed(_POOL, {"pool": "slow"}, {}),
    changed(_NEAR, {"near": {"node": "gpu-b"}}, {"near": {"node": "gpu-a"}}),
    changed(_NEAR, {"near": NEAR}, {}),
    changed(_NEAR, {}, {"near": NEAR}),
    changed(_ID, {"id": UUID.replace("6", "7")}, {"id": UUID}),
    changed(_ID, {}, {"id": UUID}),
    Refused("FlashVolume", {**VOLUME, "id": UUID}, _GIVEN, before=VOLUME, status_before={"id": UUID.replace("6", "7")}),
    changed(_SIZE, {"size": "400Gi"}, {}),
    changed(_SIZE, {"size": 5368709119}, {"size": "5Gi"}),
    volume("size is at least 1Mi", size="1023Ki"),
    volume("size is at least 1Mi", size=0),
    volume("size is at least 1Mi", size=-5368709120),
    volume("size is at least 1Mi", size="0.5"),
    volume(
        "near.gpu is an address within one server: give near.node too, or the GPU's UUID", near={"gpu": "0000:4e:00.0"}
    ),
    volume("near.maxDistance is measured from a GPU: give near.gpu too", near={"node": "a", "maxDistance": "PIX"}),
    pool(
        "TLS is the kernel's for NVMe/TCP only: take transport tcp, or tls None",
        export={"transport": "rdma"},
        security={"tls": "Required"},
    ),
    pool(
        "nvmet does not compare a TLS key with the host that uses it: tls Required needs authentication Bidirectional",
        security={"tls": "Required", "authentication": "None"},
    ),
    Refused(
        "FlashVolume",
        {"pool": "fast", "size": "1Gi", "sharing": "Shared"},
        "sharing is immutable: make another volume and copy the data",
        before={"pool": "fast", "size": "1Gi"},
    ),
    Refused("FlashAttachment", {**ATTACHMENT, "volume": "kv-1"}, _ATTACHMENT, before=ATTACHMENT),
    Refused("FlashAttachment", {**ATTACHMENT, "nodeName": "gpu-c"}, _ATTACHMENT, before=ATTACHMENT),
    Refused("FlashNode", {}, _NODE_UUID, status={"systemUUID": "other"}, status_before={"systemUUID": UUID}),
    Refused("FlashNode", {}, _NODE_UUID, status={"publicKey": "k"}, status_before={"systemUUID": UUID}),
    Refused("FlashNode", {"purge": UUID}, _PURGE),
    Refused("FlashNode", {"purge": "all"}, _PURGE),
    Refused(
        "FlashNode",
        {},
        "a FlashNode's name has at most 247 characters: its agent's Lease is called agent-<name>",
        name="n" * 248,
    ),
)
"""By a CEL rule: at least one row a rule."""

SCHEMA: tuple[Refused, ...] = (
    Refused("FlashPool", {}, "spec.ssds: Required value"),
    pool("spec.ssds.serials[0]: Invalid value", ssds={"serials": [""]}),
    pool("spec.ssds.models: Too many: 257: must have at most 256 items", ssds={"models": ["m"] * 257}),
    pool("spec.ssds.serials: Too many: 4097", ssds={"serials": ["s"] * 4097}),
    pool("spec.ssds.serials: Invalid value", ssds={"serials": "S64HNE0R100001"}),
    pool('supported values: "In", "NotIn", "Exists"', nodes={"matchExpressions": [{"key": "a", "operator": "Is"}]}),
    pool("key: Required value", allowedNamespaces={"matchExpressions": [{"operator": "Exists"}]}),
    pool("spec.ssds.minSize in body should match", ssds={"all": True, "minSize": "large"}),
    pool("spec.ssds.all: Invalid value", ssds={"all": "yes"}),
    pool("spec.ssds.exclude.ids: Invalid value", ssds={"all": True, "exclude": {"ids": "x"}}),
    pool("spec.quota.perNamespace: Required value", quota={}),
    pool("spec.quota.perNamespace in body should match", quota={"perNamespace": "lots"}),
    pool("spec.reserve in body should match", reserve="91%"),
    pool("spec.reserve in body should match", reserve="7"),
    pool('supported values: "Zero", "Discard", "None"', wipe="Shred"),
    export("spec.export.ports in body should match", ports="4420"),
    export("spec.export.ports in body should match", ports="http-https"),
    export("may not be more than 11 bytes", ports="000004420-000005443"),
    export("spec.export.networks: Too many: 17", networks=["10.0.0.0/8"] * 17),
    export("spec.export.networks[0]: Too long", networks=["1" * 65]),
    export("should be greater than or equal to 1", reconnectSeconds=0),
    export("should be less than or equal to 60", reconnectSeconds=61),
    export("should be greater than or equal to 1", lossSeconds=-1),
    export("should be less than or equal to 86400", lossSeconds=86401),
    export("must be of type integer", lossSeconds="600"),
    export('supported values: "tcp", "rdma"', transport="fc"),
    pool('supported values: "Bidirectional", "None"', security={"authentication": "Off"}),
    pool('supported values: "None", "Required"', security={"tls": "Off"}),
    pool("spec.security.tls: Invalid value", security={"tls": False}),
    volume('supported values: "Exclusive", "Shared"', sharing="Some"),
    Refused("FlashVolume", {"size": "1Gi"}, "spec.pool: Required value"),
    Refused("FlashVolume", {"pool": "fast"}, "spec.size: Required value"),
    volume("spec.pool in body should be at least 1 chars long", pool=""),
    volume("spec.pool: Too long", pool="p" * 254),
    volume("spec.size in body should match", size="much"),
    volume("spec.size in body should match", size="-1Gi"),
    volume("spec.size in body should match", size="500GiB"),
    volume("spec.size: Too long", size="9" * 33),
    volume("spec.size in body must be of type integer,string", size=1.5),
    volume("spec.id in body should match", id="kv-0"),
    volume("spec.id in body should match", id=UUID.upper()),
    volume("spec.near.gpu in body should match", near={"node": "a", "gpu": "4e:00.0"}),
    volume("spec.near.gpu in body should match", near={"gpu": "GPU-"}),
    volume('supported values: "PIX", "PXB", "PHB", "NODE", "SYS"', near={**NEAR, "maxDistance": "PXI"}),
    Refused("FlashAttachment", {"volume": "kv-0"}, "spec.nodeName: Required value"),
    Refused("FlashAttachment", {"nodeName": "gpu-a"}, "spec.volume: Required value"),
    Refused("FlashNode", {"paused": "yes"}, "must be of type boolean"),
    Refused("FlashNode", {"maintenance": "yes"}, "must be of type boolean"),
    Refused("FlashNode", {"wipe": {"ssds": {"a": ""}}}, "should be at least 1 chars long"),
    Refused("FlashNode", {"adopt": {"a": ""}}, "should be at least 1 chars long"),
    Refused("FlashNode", {"pairsAcceptedAt": "0000-01-01T00:00:00Z"}, "spec.pairsAcceptedAt in body should match"),
    Refused("FlashNode", {"pairsAcceptedAt": "2026-11-24T10:00:00+99:99"}, "spec.pairsAcceptedAt in body should match"),
    Refused("FlashNode", {"pairsAcceptedAt": "2026-02-31T10:00:00Z"}, "must be of type date-time"),
    volume_status("should be greater than or equal to 0", bytes=-1),
    volume_status("status.bytes: Invalid value", bytes="1Gi"),
    volume_status('supported values: "True", "False", "Unknown"', conditions=[{**CONDITION, "status": "Yes"}]),
    volume_status("reason in body should match", conditions=[{**CONDITION, "reason": "two words"}]),
    volume_status("must be of type date-time", conditions=[{**CONDITION, "lastTransitionTime": "yesterday"}]),
    volume_status("Duplicate value", conditions=[CONDITION, CONDITION]),
    volume_status("status.wanted.a.nqn: Required value", wanted={"a": {"uid": "u"}}),
    Refused("FlashAttachment", ATTACHMENT, 'supported values: "Local", "Fabric"', status={"path": "Near"}),
    Refused("FlashNode", {}, "Too long", status={"systemUUID": "u" * 65}),
    Refused("FlashPool", {"ssds": SSDS}, "status.nodes[0].name: Required value", status={"nodes": [{"ssds": 1}]}),
)
"""By the schema."""
