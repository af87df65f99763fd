"""FlashAttachment: one volume on one server. A user (or CSI) writes it; the consumer's agent brings the device."""

from __future__ import annotations

from datetime import datetime
from typing import ClassVar, Literal

from pydantic import Field

from kubeflash.api.v1alpha1.base import CONDITIONS, Column, ConditionList, KindInfo, Model, Resource, Rule
from kubeflash.api.v1alpha1.flashpool import Authentication, Tls


class FlashAttachmentSpec(Model):
    """This volume on that server."""

    volume: str = Field(description="Name of the FlashVolume, in the same namespace.", min_length=1, max_length=253)
    node_name: str = Field(description="Name of the FlashNode to attach it at.", min_length=1, max_length=253)
    read_only: bool = Field(
        default=False,
        description="The consumer's kernel refuses every write to the device. It is that kernel that holds it: nvmet "
        "cannot, so a root user of that server could undo it.",
    )


class SealedKeys(Model):
    """The keys of authentication and TLS, made once by the controller, readable by two servers only."""

    storage: str = Field(description="Sealed to the storage server's public key, base64.")
    storage_key: str = Field(description="The public key of the storage server that it was sealed to.")
    storage_node: str = Field(default="", description="The FlashNode of the storage server then.")
    consumer: str = Field(description="Sealed to the consumer's public key, base64.")
    consumer_key: str = Field(description="The public key of the consumer that it was sealed to.")


class Fabric(Model):
    """How the consumer reaches the volume; written by the controller."""

    volume_id: str = Field(description="The volume's id, which is the UUID of the NVMe namespace.")
    nqn: str = Field(description="NQN of the attachment's own subsystem.")
    host_nqn: str = Field(description="NQN that the consumer calls itself.", alias="hostNQN")
    host_id: str = Field(description="Host id that goes with it.", alias="hostID")
    portals: list[str] = Field(default=[], description="Where to connect, once exported: tcp://address:port.")
    reconnect_seconds: int = Field(default=2, description="From the pool.", ge=1)
    loss_seconds: int = Field(default=600, description="From the pool.", ge=1)
    authentication: Authentication = Field(default="Bidirectional", description="From the pool.")
    tls: Tls = Field(default="None", description="From the pool.")


class AttachmentPath(Model):
    """One way to the volume: one of the kernel's NVMe-oF controllers."""

    portal: str = Field(description="Where it leads: tcp://address:port.")
    state: str = Field(description="As the kernel says it: live, connecting, resetting, new, deleting, dead.")


class AttachmentConnection(Model):
    """The consumer's connection, as its kernel shows it."""

    state: Literal["Live", "Reconnecting", "Lost"] = Field(
        description="Live: I/O works. Reconnecting: the volume's server does not answer, and I/O waits. Lost: it did "
        "not answer for so long that I/O has failed; connected anew as soon as it does."
    )
    since: datetime = Field(description="When it came to be so, as far as the agent saw it.")
    lost_at: datetime | None = Field(
        default=None, description="Of a connection that reconnects: when I/O begins to fail, at the earliest."
    )
    paths: list[AttachmentPath] = Field(
        default=[],
        description="The ways there are: several where the pool names several networks.",
        max_length=64,
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["portal"]},
    )


class FlashAttachmentStatus(Model):
    """Achieved, not asked. `device`, `connection`, Connected are the consumer agent's, all else the controller's."""

    observed_generation: int = Field(default=0, description="The metadata.generation acted upon.", ge=0)
    path: Literal["Local", "Fabric"] | None = Field(
        default=None, description="Local on the volume's own server, Fabric (NVMe-oF) from any other."
    )
    volume_id: str | None = Field(default=None, description="The id of the volume that is attached.")
    fabric: Fabric | None = Field(default=None, description="How the consumer reaches the volume.")
    keys: SealedKeys | None = Field(default=None, description="The keys, sealed.")
    device: str | None = Field(default=None, description="Block device on the server.")
    connection: AttachmentConnection | None = Field(
        default=None, description="Of a Fabric attachment: the state of its connection."
    )
    conditions: ConditionList = CONDITIONS


class FlashAttachment(Resource):
    """One volume on one server: its local device there, or NVMe-oF with a subsystem, port and keys of its own."""

    info: ClassVar[KindInfo] = KindInfo(
        kind="FlashAttachment",
        plural="flashattachments",
        short=("fa",),
        scope="Namespaced",
        columns=(
            Column("Volume", ".spec.volume"),
            Column("Node", ".spec.nodeName"),
            Column("Path", ".status.path"),
            Column("State", ".status.connection.state"),
            Column("Device", ".status.device"),
            Column("Ready", '.status.conditions[?(@.type=="Ready")].status'),
            Column("Reason", '.status.conditions[?(@.type=="Ready")].reason'),
            Column("NQN", ".status.fabric.nqn", priority=1),
            Column("Age", ".metadata.creationTimestamp", "date"),
        ),
        rules=(
            Rule(
                ("spec",),
                "self == oldSelf",
                "an attachment is immutable, and so are its export identities: delete it and make another",
            ),
        ),
        selectable=(".spec.nodeName", ".spec.volume"),
    )

    spec: FlashAttachmentSpec = Field(description="Which volume, where.")
    status: FlashAttachmentStatus = Field(default=FlashAttachmentStatus(), description="What was achieved.")

    @property
    def volume_key(self) -> str:
        """`namespace/name` of the FlashVolume that it attaches."""
        return f"{self.metadata.namespace}/{self.spec.volume}"
