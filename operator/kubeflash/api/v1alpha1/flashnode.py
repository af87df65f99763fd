"""FlashNode: what one server has. The agent on it writes the status; an admin reads it."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from kubeflash.api.quantity import Quantity
from kubeflash.api.v1alpha1.base import CONDITIONS, Column, ConditionList, KindInfo, Model, Resource, Rule
from kubeflash.api.v1alpha1.distance import Distance

PCI_ADDRESS = r"^[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]$"


Word = Annotated[str, Field(min_length=1, max_length=253)]


class WipeRequests(Model):
    """What shall be wiped, by the admin's word: kubectl flash wipe writes it, after it has shown what is there."""

    ssds: dict[str, Word] = Field(
        default={},
        description="By SSD id: the fingerprint (status.ssds[].fingerprint) of what was shown. What is on it is wiped "
        "only while it is that.",
    )
    orphans: dict[str, Word] = Field(
        default={}, description="By id of an orphaned volume: the id of the SSD that it was shown on."
    )


class FlashNodeSpec(Model):
    """What an admin asks of the agent on this server."""

    maintenance: bool = Field(
        default=False,
        description="Nothing new is placed on the server. What is there stays, works, grows and can be released.",
    )
    wipe: WipeRequests | None = Field(default=None, description="What shall be wiped; see kubectl flash wipe.")
    adopt: dict[str, Word] = Field(
        default={},
        description="By SSD id: the system UUID of the server whose label it carries, which cannot be asked any more. "
        "The SSD is taken over by this server with all its volumes; see kubectl flash adopt.",
    )
    purge: str | None = Field(
        default=None,
        description="The server's system UUID: it is lost for good. Its volumes become Lost, and nothing waits for it "
        "any longer; see kubectl flash purge.",
        max_length=64,
    )

    lost: list[Word] = Field(
        default=[],
        description="Ids of SSDs that are lost for good: broken, or thrown away. Their volumes become Lost; see "
        "kubectl flash purge. An SSD that works is not lost.",
        max_length=256,
    )
    paused: bool = Field(
        default=False,
        description="The agent goes on observing and reporting, and changes nothing on the server.",
    )
    pairs_accepted_at: datetime | None = Field(
        default=None,
        description="Time at which an admin accepted the server as it is: what pairs were before is forgotten, and no "
        "longer counts as better. A time that has not come yet says nothing. Such as the output of date -u +%FT%TZ.",
        json_schema_extra={"pattern": r"^20[0-9]{2}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z$"},
    )


class PciLink(Model):
    """What one end of a PCIe link says of it; absent is what it does not say."""

    speed: int | None = Field(default=None, description="MT/s a lane, as trained now; not of a GPU that idles.", ge=0)
    width: int | None = Field(default=None, description="Lanes in use now.", ge=0)
    max_speed: int | None = Field(default=None, description="MT/s a lane that this end can do.", ge=0)
    max_width: int | None = Field(default=None, description="Lanes that this end has.", ge=0)


class PathHop(Model):
    """One bridge on the way from the root complex down to a device."""

    address: str = Field(description="PCI address of the bridge, such as 0000:4b:00.0.")
    kind: Literal["RootPort", "SwitchUpstream", "SwitchDownstream", "Bridge", "Unknown"] = Field(
        description="What the bridge is, by the Device/Port Type of its PCI Express capability."
    )
    on_card: bool | None = Field(
        default=None, description="It is a port of the GPU's own card; absent for a port that others may share."
    )
    link: PciLink | None = Field(
        default=None,
        description="The link that the bridge is at the end of: a root port or downstream port of the one below it, an "
        "upstream port of the one above it.",
    )
    acs: Literal["Redirect", "Direct"] | None = Field(
        default=None,
        description="Whether Access Control Services send peer-to-peer requests up to the root complex; absent when "
        "it cannot be read.",
    )


class PciLocation(Model):
    """Where a device hangs in the PCIe tree."""

    address: str = Field(
        description="PCI address with its domain, such as 0000:4e:00.0; a device's durable name in this server.",
        pattern=PCI_ADDRESS,
    )
    numa_node: int | None = Field(
        default=None,
        description="NUMA node that the device is nearest to; absent when the firmware does not say.",
    )
    socket: int | None = Field(
        default=None, description="Processor socket that the device is nearest to; absent when it is not known."
    )
    root_complex: str = Field(
        description="Host bridge at the top of the path, such as pci0000:4a.", pattern=r"^pci[0-9a-f]{4,8}:[0-9a-f]{2}$"
    )
    link: PciLink | None = Field(default=None, description="The link above the device, as the device sees it.")
    path: list[PathHop] = Field(
        default=[],
        description="The bridges from the root complex down to the device, without the device itself.",
    )


class Nearest(Model):
    """The SSD that a GPU is paired with."""

    ssd: str = Field(description="Id of the SSD.")
    address: str = Field(description="PCI address of the SSD.")
    distance: Distance = Field(description="How far it is: PIX, PXB, PHB, NODE or SYS, or unknown.")


class PairFault(Model):
    """Something on the way between a GPU and its SSD that an admin can mend."""

    kind: str = Field(description="One CamelCase word, such as LinkSlow or AcsRedirect.")
    address: str = Field(description="PCI address of the device or bridge that it is about.")
    message: str = Field(description="What is so.")
    remedy: str = Field(description="What to do about it.")


class PeerToPeerStatus(Model):
    """Whether a GPU and an SSD can exchange data without main memory between them."""

    possible: bool | None = Field(default=None, description="Absent: it cannot be said.")
    why: str = Field(description="Why so.")


class NodePair(Model):
    """A GPU and an SSD of its own."""

    gpu: str = Field(description="PCI address of the GPU.", pattern=PCI_ADDRESS)
    ssd: str = Field(description="PCI address of the SSD.", pattern=PCI_ADDRESS)
    id: str = Field(description="Id of the SSD.")
    distance: Distance = Field(description="How far they are apart.")
    megabytes_per_second: int | None = Field(
        default=None,
        description="MB/s (10^6 bytes, a direction) of the narrowest link between them, uplinks of switches divided by "
        "the number of pairs that cross them; absent when the links do not say.",
        ge=0,
    )
    alone: int | None = Field(
        default=None, description="MB/s of the narrowest link between them, while no other pair works.", ge=0
    )
    p2p: PeerToPeerStatus = Field(alias="p2p", description="Whether they can exchange data directly.")
    why: str = Field(description="Why it is this SSD.")
    faults: list[PairFault] = Field(default=[], description="What is wrong on the way, each with a remedy.")


class BestPair(Model):
    """The best that a GPU's slot has had since the agent saw it first, or since spec.pairsAcceptedAt."""

    gpu: str = Field(description="PCI address of the GPU.", pattern=PCI_ADDRESS)
    id: str = Field(description="Id of the SSD that was its nearest then.")
    distance: Distance = Field(description="How far it was.")
    alone: int | None = Field(default=None, description="MB/s of the narrowest link that the pair had.", ge=0)
    since: datetime = Field(description="When it was seen first.")


class Gpu(PciLocation):
    """One GPU of the server."""

    vendor: str = Field(description="PCI vendor id, four hex digits, such as 10de.")
    device: str = Field(description="PCI device id, four hex digits.")
    device_class: str = Field(description="PCI class code, six hex digits, such as 030200.")
    model: str = Field(default="", description="Model, as its driver or the PCI id list of the server says it.")
    uuid: str = Field(
        default="", description="The maker's own id, such as GPU-7f2c…; an alias: distance is the slot's."
    )
    minor: int | None = Field(default=None, description="Number of its device node, such as 0 of /dev/nvidia0.", ge=0)
    nearest: Nearest | None = Field(
        default=None, description="The nearest SSD by PCIe topology; absent when the server has none."
    )


class Extent(Model):
    """One partition of KubeFlash on an SSD: one volume."""

    id: str = Field(description="Id of the volume, which is the partition's PARTUUID and name.")
    number: int = Field(description="Number of the partition in the table.", ge=1)
    start: int = Field(description="First byte on the SSD.", ge=0)
    bytes: int = Field(description="Length in bytes.", ge=0)
    volume: str | None = Field(
        default=None, description="Its FlashVolume, as namespace/name; absent: an orphan, kept until an admin decides."
    )


class SsdHealth(Model):
    """What an SSD's SMART log says; absent is what is not known. What changes all the time is left out."""

    critical: list[str] = Field(default=[], description="The drive's critical warnings, in words.")
    percentage_used: int | None = Field(
        default=None, description="Percent of the rated endurance that is used up; may exceed 100.", ge=0
    )
    available_spare: int | None = Field(default=None, description="Percent of the spare blocks that are left.", ge=0)
    spare_threshold: int | None = Field(
        default=None, description="Percent of spare blocks below which the drive warns.", ge=0
    )
    media_errors: int | None = Field(default=None, description="Unrecovered data integrity errors.", ge=0)
    unknown: str = Field(default="", description="Why nothing is known; empty when the log was read.")

    @property
    def words(self) -> str:
        """All of it in one line."""
        if self.unknown:
            return f"unknown: {self.unknown}"
        used = "?" if self.percentage_used is None else self.percentage_used
        return f"{'; '.join(self.critical) or 'no warnings'}, {used}% of its endurance used"


class Ssd(PciLocation):
    """One local NVMe namespace: what becomes flash for volumes."""

    id: str = Field(
        description="Durable identity: eui.<EUI-64>, nguid.<NGUID>, "
        "or <serial>-<namespace id> where the drive has neither."
    )
    serial: str = Field(description="Serial number, as the drive says it.")
    model: str = Field(description="Model, as the drive says it.")
    firmware: str = Field(default="", description="Firmware revision.")
    bytes: int = Field(description="Size of the namespace in bytes.", ge=0)
    namespace_id: int = Field(
        description="NVMe namespace id on its controller; 0 of a controller that has no namespace.", ge=0
    )
    state: Literal["Blank", "Claimed", "Foreign"] = Field(
        description="Blank: nothing was found on it. Claimed: it carries KubeFlash's partition table. "
        "Foreign: anything else, which KubeFlash leaves alone."
    )
    reason: str = Field(default="", description="Why it is Foreign, and what to do about it.")
    labelled: str | None = Field(
        default=None,
        description="System UUID of the server whose label of this cluster it carries, when that is not this one.",
    )
    failing: str = Field(
        default="", description="Why it gets no new volumes though it works: SMART warnings, read-only, I/O errors."
    )
    held: str = Field(default="", description="Who uses it though it is not KubeFlash's: it is not wiped meanwhile.")
    fingerprint: str | None = Field(
        default=None, description="Stands for what is on it now; absent of a blank one, and of what cannot be read."
    )
    health: SsdHealth | None = Field(default=None, description="What its SMART log says; absent when it was not read.")
    pool: str | None = Field(default=None, description="The FlashPool that selects it.")
    free: Quantity | None = Field(default=None, description="Bytes not taken by a volume, once selected by a pool.")
    largest: Quantity | None = Field(
        default=None, description="Largest free extent: the largest volume that still fits."
    )
    volumes: list[Extent] = Field(
        default=[],
        description="The volumes that the SSD holds, read from its partition table.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["id"]},
    )


class Ability(Model):
    """One thing that a kernel can do or not."""

    available: bool = Field(default=False, description="Whether it can.")
    how: str = Field(default="", description="How that was found out.")


class Kernel(Model):
    """What the server's kernel can do. A module that is not loaded, but could be, counts."""

    release: str = Field(default="", description="Kernel release, as uname -r says it.")
    nvmet: Ability = Field(default=Ability(), description="It can export disks over NVMe-oF at all.")
    nvmet_tcp: Ability = Field(default=Ability(), description="It can export volumes over NVMe/TCP.")
    nvmet_rdma: Ability = Field(default=Ability(), description="It can export volumes over NVMe/RDMA.")
    nvme_tcp: Ability = Field(default=Ability(), description="It can connect to volumes over NVMe/TCP.")
    nvme_rdma: Ability = Field(default=Ability(), description="It can connect to volumes over NVMe/RDMA.")
    authentication: Ability = Field(
        default=Ability(),
        description="Its initiator knows NVMe in-band authentication (DH-HMAC-CHAP), and its target is not known to "
        "lack it.",
    )
    tls: Ability = Field(
        default=Ability(),
        description="Its initiator knows NVMe/TCP over TLS, its target is not known to lack it, and tlshd runs.",
    )

    @property
    def words(self) -> str:
        """The version and what it can do, in a few words: `6.12: tcp rdma auth tls`."""
        can = {
            "tcp": self.nvmet_tcp.available and self.nvme_tcp.available,
            "rdma": self.nvmet_rdma.available and self.nvme_rdma.available,
            "auth": self.authentication.available,
            "tls": self.tls.available,
        }
        abilities = " ".join(word for word, available in can.items() if available)
        version = ".".join(re.split(r"[.-]", self.release)[:2])
        return f"{version}: {abilities}" if abilities else version


class NodeAddress(Model):
    """One address of the server."""

    address: str = Field(description="IPv4 or IPv6 address.")
    interface: str = Field(description="Network interface that has it.")


class NodeSummary(Model):
    """Figures for the columns of kubectl get."""

    gpus: int = Field(default=0, description="Number of GPUs.", ge=0)
    ssds: int = Field(default=0, description="Number of local NVMe SSDs.", ge=0)
    neighbours: str = Field(
        default="",
        description="GPUs with a neighbour SSD, of all GPUs, and the farthest distance among them.",
    )
    free: str = Field(default="", description="Bytes that new volumes can take on SSDs selected by a pool.")
    pools: str = Field(default="", description="Pools that select an SSD of the server.")
    orphans: int = Field(default=0, description="Number of KubeFlash's partitions that no FlashVolume has.", ge=0)


class PlannedStep(Model):
    """One step that the agent has before it, or is at."""

    step: str = Field(description="Kind of the step, such as CarvePartition.")
    what: str = Field(description="What it does.")
    expects: str = Field(default="", description="What it expects to find, and does nothing otherwise.")
    state: Literal["Pending", "Running", "Failed"] = Field(
        description="Pending: not begun, as while spec.paused. Running. Failed: it is tried again."
    )
    message: str = Field(default="", description="How far it is, or why it failed.")


class AgentInfo(Model):
    """The agent that speaks for the server."""

    version: str = Field(description="Version of KubeFlash that it is of.", max_length=64)
    namespace: str = Field(description="Namespace that KubeFlash runs in.", max_length=63)


class FlashNodeStatus(Model):
    """What the agent found and does; `moved`, and what the agent cannot know of itself, are the controller's."""

    observed_generation: int = Field(default=0, description="The metadata.generation acted upon.", ge=0)
    system_uuid: str = Field(
        default="",
        alias="systemUUID",
        description="The server's durable identity: the DMI system UUID, else the machine id. "
        "Names are reused, this is not.",
        max_length=64,
    )
    agent: AgentInfo | None = Field(default=None, description="The agent that wrote this last.")
    linux: Kernel | None = Field(  # not `kernel`: that held bare booleans, and a live field's type cannot change
        default=None,
        description="What the server's Linux kernel can do, and how that was found out.",
    )
    public_key: str = Field(
        default="",
        description="The agent's X25519 public key, base64: keys meant for this server are sealed to it.",
    )
    internal_address: str = Field(
        default="",
        description="The address by which the server reaches the API server; the default for exports.",
    )
    addresses: list[NodeAddress] = Field(
        default=[],
        description="Addresses of the server, for pools that name networks.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["address"]},
    )
    gpus: list[Gpu] = Field(
        default=[],
        description="The GPUs, by PCI address.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["address"]},
    )
    ssds: list[Ssd] = Field(
        default=[],
        description="The local NVMe SSDs.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["id"]},
    )
    pairs: list[NodePair] = Field(
        default=[],
        description="Which SSDs are a GPU's own: the nearest, shared out fairly.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["gpu", "ssd"]},
    )
    best: list[BestPair] = Field(
        default=[],
        description="What each GPU's slot had at its best: what became worse since stays visible.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["gpu"]},
    )
    switched: bool | None = Field(
        default=None,
        description="Whether GPUs or SSDs are behind PCIe switches that others share. Where none is, a common host "
        "bridge (PHB) is as near as it gets, and counts as a neighbour.",
    )
    plan: list[PlannedStep] = Field(
        default=[],
        description="What the agent has still to do, in order; see kubectl flash plan.",
        max_length=1024,
        json_schema_extra={"x-kubernetes-list-type": "atomic"},
    )
    moved: dict[str, str] = Field(
        default={},
        description="By SSD id: the system UUID of the server that it came from, which does not have it any more. The "
        "controller's word that this server may take it over.",
    )
    summary: NodeSummary | None = Field(default=None, description="Figures for the columns of kubectl get.")
    conditions: ConditionList = CONDITIONS


class FlashNode(Resource):
    """One server with its GPUs, its NVMe SSDs and who is whose neighbour. It outlives the Node: disks may come back."""

    info: ClassVar[KindInfo] = KindInfo(
        kind="FlashNode",
        plural="flashnodes",
        short=("fn",),
        scope="Cluster",
        columns=(
            Column("GPUs", ".status.summary.gpus", "integer"),
            Column("SSDs", ".status.summary.ssds", "integer"),
            Column("Neighbours", ".status.summary.neighbours"),
            Column("Free", ".status.summary.free"),
            Column("Pools", ".status.summary.pools"),
            Column("Ready", '.status.conditions[?(@.type=="Ready")].status'),
            Column("Topology", '.status.conditions[?(@.type=="TopologySound")].reason', priority=1),
            Column("Reason", '.status.conditions[?(@.type=="Ready")].reason', priority=1),
            Column("Orphans", ".status.summary.orphans", "integer", priority=1),
            Column("Version", ".status.agent.version", priority=1, description="Version of the server's agent."),
            Column("UUID", ".status.systemUUID", priority=1),
            Column("Age", ".metadata.creationTimestamp", "date"),
        ),
        rules=(
            Rule(
                (),
                "size(self.metadata.name) <= 247",
                "a FlashNode's name has at most 247 characters: its agent's Lease is called agent-<name>",
            ),
            Rule(
                (),
                "!has(self.spec.purge) || self.spec.purge == '' || "
                "(has(self.status) && has(self.status.systemUUID) && self.spec.purge == self.status.systemUUID)",
                "spec.purge must be the server's own system UUID (status.systemUUID): it declares this server lost for "
                "good; kubectl flash purge NODE shows what that means first",
            ),
            Rule(
                ("status",),
                "!has(oldSelf.systemUUID) || oldSelf.systemUUID == ''"
                " || (has(self.systemUUID) && self.systemUUID == oldSelf.systemUUID)",
                "systemUUID is the server's identity and does not change; another server has this name now: "
                "delete this FlashNode once the old server's volumes are dealt with",
            ),
        ),
    )

    spec: FlashNodeSpec = Field(default=FlashNodeSpec(), description="What an admin asks of the agent.")
    status: FlashNodeStatus = Field(default=FlashNodeStatus(), description="What the agent found.")

    def ssd(self, ssd_id: str) -> Ssd | None:
        """The SSD of this id, as the agent found it; None when this server has none."""
        return next((ssd for ssd in self.status.ssds if ssd.id == ssd_id), None)
