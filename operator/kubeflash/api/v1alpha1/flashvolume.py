"""FlashVolume: so many bytes of flash. A user writes it; the controller places it; the agent carves it."""

from __future__ import annotations

from datetime import datetime
from typing import ClassVar, Literal

from pydantic import Field

from kubeflash.api.quantity import Quantity
from kubeflash.api.v1alpha1.base import CONDITIONS, Column, ConditionList, KindInfo, Model, ObjectMeta, Resource, Rule
from kubeflash.api.v1alpha1.distance import Distance
from kubeflash.api.v1alpha1.flashnode import PCI_ADDRESS, PeerToPeerStatus
from kubeflash.api.v1alpha1.flashpool import Authentication, Tls, Transport

GPU = rf"({PCI_ADDRESS})|(^GPU-[0-9a-fA-F][0-9a-fA-F-]{{0,62}}$)"
UUID = r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$"


class Near(Model):
    """Where the volume shall be. Each part is optional and must hold."""

    node: str | None = Field(default=None, description="Name of the FlashNode.", min_length=1, max_length=253)
    gpu: str | None = Field(
        default=None,
        description="A GPU: its nearest usable SSD is taken. By PCI address in that server, such as 0000:4e:00.0, or "
        "by UUID, such as GPU-7f2c…, which needs no server.",
        pattern=GPU,
        max_length=66,
    )
    ssd: str | None = Field(default=None, description="Id of one SSD.", min_length=1, max_length=253)
    max_distance: Literal["PIX", "PXB", "PHB", "NODE", "SYS"] | None = Field(
        default=None, description="The farthest SSD that is still good enough. Absent: the nearest there is."
    )


class FlashVolumeSpec(Model):
    """What the user asks for."""

    pool: str = Field(description="Name of the FlashPool to take it from.", min_length=1, max_length=253)
    size: Quantity = Field(
        description="Bytes, as a quantity such as 500Gi; rounded up to whole MiB. It may grow, never shrink."
    )
    near: Near | None = Field(default=None, description="Where it shall be. Absent: anywhere in the pool.")
    sharing: Literal["Exclusive", "Shared"] = Field(
        default="Exclusive",
        description="Exclusive: attached at one server at a time; the one before is fenced first. Shared: at several "
        "at once, as a raw block device whose users coordinate themselves: no file system survives that.",
    )
    id: str | None = Field(
        default=None,
        description="The volume's identity on the disk, a UUID. Set once by the controller; "
        "keep it when restoring from a backup, and the volume is found again with its data.",
        pattern=UUID,
        max_length=36,
    )


class WantedExport(Model):
    """An export that the controller wants of the storage server, for one attachment."""

    uid: str = Field(description="The attachment's uid, from which all its export identities come.")
    nqn: str = Field(description="NQN of the attachment's own subsystem.")
    host_nqn: str = Field(description="NQN of the only host that may connect.", alias="hostNQN")
    host_id: str = Field(description="Host id that goes with the host NQN.", alias="hostID")
    sealed_keys: str = Field(
        default="",
        description="The keys of authentication and TLS, sealed to the storage server's public key, base64; empty "
        "where neither is used.",
    )
    authentication: Authentication = Field(default="Bidirectional", description="From the pool.")
    tls: Tls = Field(default="None", description="From the pool.")
    transport: Transport = Field(default="tcp", description="From the pool.")
    shared: bool = Field(default=False, description="Whether others may have the volume at the same time.")
    networks: list[str] = Field(default=[], description="CIDRs of the addresses to export on.")
    ports: str = Field(description="TCP port numbers to choose from, first-last.")


class Exported(Model):
    """An export as the storage server has it, for one attachment."""

    uid: str = Field(description="The attachment's uid.")
    portals: list[str] = Field(
        default=[], description="Where it listens, or will: tcp://address:port. Recorded before it is built."
    )
    ready: bool = Field(default=False, description="Built and read back: a consumer can connect.")
    fencing: bool = Field(default=False, description="It is taken down; when it is for certain, this entry goes.")
    message: str = Field(default="", description="What keeps it from being ready, or from being gone.")


class Lost(Model):
    """Where a volume was whose server an admin has declared lost for good."""

    node_name: str = Field(description="FlashNode of that server.")
    ssd: str = Field(description="Id of the SSD.")
    since: datetime = Field(description="When it was declared lost.")


class FlashVolumeStatus(Model):
    """Achieved, not asked. `bytes`, `device`, `refused`, `exported` and Carved are the agent's; it writes no more."""

    observed_generation: int = Field(default=0, description="The metadata.generation acted upon.", ge=0)
    id: str | None = Field(
        default=None,
        description="The id that the controller made for a new volume; spec.id becomes it. A spec.id that is not this "
        "one came with the object: such a volume is looked for on the SSDs, never made anew.",
        max_length=36,
    )
    node_name: str | None = Field(default=None, description="FlashNode of the server that it is on.")
    ssd: str | None = Field(default=None, description="Id of the SSD that it is on.")
    distance: Distance | None = Field(default=None, description="How far the SSD is from the GPU in spec.near.")
    p2p: PeerToPeerStatus | None = Field(
        default=None, alias="p2p", description="Whether that GPU and the SSD can exchange data directly."
    )
    granted: Quantity | None = Field(
        default=None,
        description="Bytes that the volume may take on its SSD, by quota and free space: what its server carves, and "
        "grows it to.",
    )
    granted_by: str | None = Field(
        default=None,
        description="The controller that decided where it is and how large: its server carves only at the word of the "
        "one that leads.",
    )
    lost: Lost | None = Field(
        default=None, description="Its server was declared lost for good, by kubectl flash purge; the bytes with it."
    )
    bytes: int | None = Field(default=None, description="Length of the carved partition.", ge=0)
    device: str | None = Field(default=None, description="Block device on its own server.")
    refused: dict[str, str] = Field(
        default={},
        description="By SSD id: why its server refused to carve the volume there. It is placed elsewhere then.",
    )
    release: bool | None = Field(
        default=None,
        description="The controller's word, given once nothing is attached any more, that the server may wipe it. "
        "Deletion alone is not that word.",
    )
    wanted: dict[str, WantedExport] = Field(
        default={}, description="By attachment: the exports that the controller wants of the storage server."
    )
    exported: dict[str, Exported] = Field(
        default={}, description="By attachment: the exports that the storage server has."
    )
    conditions: ConditionList = CONDITIONS

    def wanted_of(self, attachment: ObjectMeta) -> WantedExport | None:
        """What is wanted for this very attachment, not for an earlier one of its name."""
        found = self.wanted.get(attachment.name)
        return found if found is not None and found.uid == attachment.uid else None

    def export_of(self, attachment: ObjectMeta) -> Exported | None:
        """The export of this very attachment, not that of an earlier one of its name."""
        found = self.exported.get(attachment.name)
        return found if found is not None and found.uid == attachment.uid else None


class FlashVolume(Resource):
    """A volume on one SSD: a partition there, a local device on its own server, NVMe-oF from any other."""

    info: ClassVar[KindInfo] = KindInfo(
        kind="FlashVolume",
        plural="flashvolumes",
        short=("fv",),
        scope="Namespaced",
        columns=(
            Column("Pool", ".spec.pool"),
            Column("Size", ".spec.size"),
            Column("Node", ".status.nodeName"),
            Column("Distance", ".status.distance"),
            Column("Ready", '.status.conditions[?(@.type=="Ready")].status'),
            Column("Reason", '.status.conditions[?(@.type=="Ready")].reason'),
            Column("Sharing", ".spec.sharing", priority=1),
            Column("Resized", '.status.conditions[?(@.type=="Resized")].reason', priority=1),
            Column("SSD", ".status.ssd", priority=1),
            Column("Id", ".spec.id", priority=1),
            Column("Age", ".metadata.creationTimestamp", "date"),
        ),
        rules=(
            Rule(
                ("spec",),
                "self.pool == oldSelf.pool",
                "pool is immutable: make another volume and copy the data",
            ),
            Rule(
                ("spec",),
                "has(self.near) == has(oldSelf.near) && (!has(self.near) || self.near == oldSelf.near)",
                "near is immutable: make another volume and copy the data",
            ),
            Rule(
                ("spec",),
                "(has(self.sharing) ? self.sharing : 'Exclusive') == "
                "(has(oldSelf.sharing) ? oldSelf.sharing : 'Exclusive')",
                "sharing is immutable: make another volume and copy the data",
            ),
            Rule(
                (),
                "!has(self.spec.id) || has(oldSelf.spec.id) || !has(oldSelf.status) || !has(oldSelf.status.id)"
                " || self.spec.id == oldSelf.status.id",
                "id is given by the controller, which has chosen one already; give yours when you create the volume",
            ),
            Rule(
                ("spec",),
                "!has(oldSelf.id) || (has(self.id) && self.id == oldSelf.id)",
                "id is the volume's identity on the disk and never changes once set",
            ),
            Rule(
                ("spec",),
                "!isQuantity(string(self.size)) || "
                "quantity(string(self.size)).compareTo(quantity(string(oldSelf.size))) >= 0",
                "size may grow, never shrink: make a smaller volume and copy the data",
            ),
            Rule(
                ("spec",),
                "!isQuantity(string(self.size)) || quantity(string(self.size)).compareTo(quantity('1Mi')) >= 0",
                "size is at least 1Mi",
            ),
            Rule(
                ("spec", "near"),
                "!has(self.gpu) || has(self.node) || self.gpu.startsWith('GPU-')",
                "near.gpu is an address within one server: give near.node too, or the GPU's UUID",
            ),
            Rule(
                ("spec", "near"),
                "!has(self.maxDistance) || has(self.gpu)",
                "near.maxDistance is measured from a GPU: give near.gpu too",
            ),
        ),
        selectable=(".status.nodeName", ".spec.pool"),
    )

    spec: FlashVolumeSpec = Field(description="What the user asks for.")
    status: FlashVolumeStatus = Field(default=FlashVolumeStatus(), description="What was achieved.")
