"""FlashPool: which SSDs on which servers KubeFlash may use, and who may use them. An admin writes it."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from kubeflash.api.quantity import Quantity
from kubeflash.api.v1alpha1.base import (
    CONDITIONS,
    Column,
    ConditionList,
    KindInfo,
    LabelSelector,
    Model,
    Resource,
    Rule,
)

Name = Annotated[str, Field(min_length=1, max_length=253)]
Cidr = Annotated[str, Field(max_length=64)]
Transport = Literal["tcp", "rdma"]
Authentication = Literal["Bidirectional", "None"]
Tls = Literal["None", "Required"]


class SsdNames(Model):
    """SSDs by name. One that fits any of the lists is meant."""

    serials: list[Name] = Field(
        default=[], description="Serial numbers, exactly as the FlashNode shows them.", max_length=4096
    )
    ids: list[Name] = Field(default=[], description="SSD ids, exactly as the FlashNode shows them.", max_length=4096)
    models: list[Name] = Field(
        default=[],
        description='Models; * and ? stand for any characters, such as "SAMSUNG MZWLO*".',
        max_length=256,
    )


class SsdExclusion(SsdNames):
    """SSDs that are not taken, whatever selects them."""

    min_size: Quantity | None = Field(default=None, description="SSDs of at least this many bytes.")


class SsdSelector(SsdNames):
    """Which SSDs. One that fits any of the lists, or `all`, is selected; nothing selected means nothing taken."""

    all: bool = Field(
        default=False,
        description="Every SSD that is provably blank: with nobody's name behind it, it is examined more thoroughly.",
    )
    min_size: Quantity | None = Field(default=None, description="Of these, only SSDs of at least this many bytes.")
    neighbours_only: bool = Field(
        default=False, description="Of these, only SSDs that are a neighbour of some GPU of their server."
    )
    exclude: SsdExclusion | None = Field(default=None, description="Of these, not the ones that fit any of this.")


class Quota(Model):
    """How much of the pool one namespace may have."""

    per_namespace: Quantity = Field(description="Bytes of all volumes of one namespace together, such as 20Ti.")


class Export(Model):
    """How volumes of the pool reach other servers."""

    transport: Transport = Field(
        default="tcp", description="NVMe/TCP, or NVMe/RDMA where all servers have RDMA network cards (or soft-RoCE)."
    )
    ports: str = Field(
        default="4420-5443",
        description="TCP port numbers to use, first-last: one for each remote attachment on a server.",
        pattern=r"^[0-9]{1,5}-[0-9]{1,5}$",
        max_length=11,
    )
    networks: list[Cidr] = Field(
        default=[],
        description="CIDRs: volumes are exported on those of a server's addresses that lie in one of them. "
        "Empty: the address by which the server reaches the API server.",
        max_length=16,
    )
    reconnect_seconds: int = Field(
        default=2, description="How long a consumer waits between two attempts to reconnect.", ge=1, le=60
    )
    loss_seconds: int = Field(
        default=600,
        description="How long I/O is held while a volume's server cannot be reached, before it fails (ctrl_loss_tmo).",
        ge=1,
        le=86400,
    )


class Security(Model):
    """Who may reach exported volumes, and who may read along. An attachment keeps what it was made with."""

    authentication: Authentication = Field(
        default="Bidirectional",
        description="Bidirectional: DH-HMAC-CHAP, each attachment with keys of its own that both ends prove to have. "
        "None: whoever reaches the port and knows the attachment's host NQN is taken for its consumer.",
    )
    tls: Tls = Field(
        default="None",
        description="Required: TLS 1.3 by the kernel, with a key of each attachment's own; both servers run tlshd. "
        "None: data goes over the network in clear.",
    )


class FlashPoolSpec(Model):
    """What KubeFlash may use, and for whom."""

    nodes: LabelSelector = Field(
        default=LabelSelector(),
        description="Servers, by the labels of their Nodes. Empty: every server that has a FlashNode.",
    )
    ssds: SsdSelector = Field(description="Which of the servers' SSDs. They must be blank, or KubeFlash's already.")
    allowed_namespaces: LabelSelector | None = Field(
        default=None,
        description="Namespaces that may have volumes of the pool, by their labels; {} is all of them. "
        "Absent: only the namespace that KubeFlash runs in.",
    )
    quota: Quota | None = Field(default=None, description="Limits. Absent: none.")
    reserve: str = Field(
        default="0%",
        description="Share of each SSD that no volume ever takes, at its end: flash that is never written makes the "
        "rest faster and last longer.",
        pattern=r"^([0-9]|[1-8][0-9]|90)%$",
        max_length=3,
    )
    export: Export = Field(default=Export(), description="How volumes reach other servers.")
    security: Security = Field(default=Security(), description="How exports are guarded.")
    wipe: Literal["Zero", "Discard", "None"] = Field(
        default="Zero",
        description="What becomes of a released volume's bytes. Zero: overwritten with zeroes. Discard: discarded, and "
        "overwritten where the SSD does not read as zeroes then. Both are proven by reading. None: left as they are, "
        "for whoever gets that part of the SSD next to read.",
    )

    @property
    def reserve_percent(self) -> int:
        """The reserve as a number."""
        return int(self.reserve.removesuffix("%"))


class PoolNode(Model):
    """What the pool has on one server."""

    name: str = Field(description="Name of the FlashNode.")
    ssds: int = Field(default=0, description="Number of usable SSDs.", ge=0)
    free: str = Field(default="", description="Free bytes on them.")
    largest: str = Field(default="", description="The largest volume that still fits there.")


class RefusedSsd(Model):
    """One selected SSD that is not used, with the reason."""

    node: str = Field(description="Name of the FlashNode; empty where no server has such an SSD.")
    ssd: str = Field(description="Id of the SSD, or the serial or id that the pool names.")
    reason: str = Field(description="Why it is not used, and what to do about it.")


class DrainingSsd(Model):
    """One SSD that the pool does not select any more, and that still holds volumes of it."""

    node: str = Field(description="Name of the FlashNode.")
    ssd: str = Field(description="Id of the SSD.")
    reason: str = Field(description="Why it gets no new volumes.")
    volumes: list[str] = Field(
        default=[], description="The first of the volumes that hold it, as namespace/name.", max_length=16
    )
    count: int = Field(default=0, description="Number of volumes that hold it.", ge=0)


class NamespaceUse(Model):
    """What one namespace has of the pool."""

    name: str = Field(description="Name of the namespace.")
    volumes: int = Field(default=0, description="Number of its volumes, released ones included until they are gone.")
    bytes: Quantity = Field(description="Bytes of them.")


class PoolSummary(Model):
    """Figures for the columns of kubectl get."""

    ssds: int = Field(default=0, description="Number of usable SSDs.", ge=0)
    nodes: int = Field(default=0, description="Number of servers that they are in.", ge=0)
    capacity: str = Field(default="", description="Bytes for volumes on all usable SSDs.")
    free: str = Field(default="", description="Bytes that no volume takes.")
    largest: str = Field(default="", description="The largest volume that still fits.")
    refused: int = Field(default=0, description="Number of selected SSDs that are not used.", ge=0)
    draining: int = Field(default=0, description="Number of SSDs no longer selected that hold volumes.", ge=0)


class FlashPoolStatus(Model):
    """What the pool has; written by the controller."""

    observed_generation: int = Field(default=0, description="The metadata.generation acted upon.", ge=0)
    summary: PoolSummary | None = Field(default=None, description="Figures for the columns of kubectl get.")
    nodes: list[PoolNode] = Field(
        default=[],
        description="Servers with usable SSDs.",
        max_length=1000,
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
    )
    refused: list[RefusedSsd] = Field(
        default=[],
        description="Selected SSDs that are not used, each with its reason.",
        max_length=1000,
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["node", "ssd"]},
    )
    draining: list[DrainingSsd] = Field(
        default=[],
        description="SSDs that are not selected any more, and are kept until their volumes are gone.",
        max_length=1000,
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["node", "ssd"]},
    )
    namespaces: list[NamespaceUse] = Field(
        default=[],
        description="What each namespace has of the pool.",
        max_length=1000,
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
    )
    conditions: ConditionList = CONDITIONS


class FlashPool(Resource):
    """SSDs that KubeFlash may use, on the servers that it may use, for the namespaces that may use them."""

    info: ClassVar[KindInfo] = KindInfo(
        kind="FlashPool",
        plural="flashpools",
        short=("fp",),
        scope="Cluster",
        columns=(
            Column("SSDs", ".status.summary.ssds", "integer"),
            Column("Nodes", ".status.summary.nodes", "integer"),
            Column("Capacity", ".status.summary.capacity"),
            Column("Free", ".status.summary.free"),
            Column("Largest", ".status.summary.largest"),
            Column("Refused", ".status.summary.refused", "integer"),
            Column("Draining", ".status.summary.draining", "integer", priority=1),
            Column("Ready", '.status.conditions[?(@.type=="Ready")].status'),
            Column("Reason", '.status.conditions[?(@.type=="Ready")].reason', priority=1),
            Column("Age", ".metadata.creationTimestamp", "date"),
        ),
        rules=(
            Rule(
                ("spec", "ssds"),
                "(has(self.serials) && size(self.serials) > 0) || (has(self.ids) && size(self.ids) > 0)"
                " || (has(self.models) && size(self.models) > 0) || (has(self.all) && self.all)",
                "name SSDs by serials, ids or models, or say all: true: nothing selected means nothing taken",
            ),
            Rule(
                ("spec", "export", "ports"),
                "!self.matches('^[0-9]{1,5}-[0-9]{1,5}$') || (int(self.split('-')[0]) >= 1024 && "
                "int(self.split('-')[1]) <= 65535 && int(self.split('-')[0]) <= int(self.split('-')[1]))",
                "ports is first-last with 1024 <= first <= last <= 65535, such as 4420-5443",
            ),
            Rule(
                ("spec", "export", "networks"),
                "self.all(n, isCIDR(n))",
                "every network is a CIDR, such as 10.20.0.0/16",
            ),
            Rule(
                ("spec",),
                "!has(self.security) || !has(self.security.tls) || self.security.tls != 'Required' || "
                "!has(self.export) || !has(self.export.transport) || self.export.transport == 'tcp'",
                "TLS is the kernel's for NVMe/TCP only: take transport tcp, or tls None",
            ),
            Rule(
                ("spec", "security"),
                "!has(self.tls) || self.tls != 'Required' || "
                "!has(self.authentication) || self.authentication != 'None'",
                "nvmet does not compare a TLS key with the host that uses it: tls Required needs authentication "
                "Bidirectional",
            ),
        ),
    )

    spec: FlashPoolSpec = Field(description="What KubeFlash may use, and for whom.")
    status: FlashPoolStatus = Field(default=FlashPoolStatus(), description="What the pool has.")
