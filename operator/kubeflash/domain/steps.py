"""Plans are data: typed steps, each with what it expects to find. Printing a plan is `describe` for each step.

Steps are idempotent. After a crash between any two of them the next pass observes what is, plans what is left, and
goes on from there.
"""

from __future__ import annotations

from dataclasses import dataclass

from kubeflash.domain.disk import Label, Partition
from kubeflash.domain.fabric import Portal


@dataclass(frozen=True)
class Step:
    """One change on this server."""

    def describe(self) -> str:
        """What the step does, in one line for an administrator."""
        raise NotImplementedError


# --- disks: all name the SSD by its durable id; the device is looked up, and its identity checked, right before ---


@dataclass(frozen=True)
class ClaimSsd(Step):
    """Write KubeFlash's partition table and label. Expects the SSD blank, or half-claimed by this very owner."""

    ssd: str
    label: Label

    def describe(self) -> str:
        """What the step does."""
        return f"claim SSD {self.ssd}: prove it blank again, write a GPT with KubeFlash's label"


@dataclass(frozen=True)
class CarvePartition(Step):
    """Add a volume's partition. Expects the table of this owner, and the span free."""

    ssd: str
    disk_guid: str
    partition: Partition

    def describe(self) -> str:
        """What the step does."""
        part = self.partition
        return (
            f"carve volume {part.name}: partition {part.number} of SSD {self.ssd}, {part.bytes} bytes at {part.start}"
        )


@dataclass(frozen=True)
class ShowPartition(Step):
    """Tell the kernel of a partition that is in the table only, as a crash between the two leaves it."""

    ssd: str
    disk_guid: str
    partition: Partition

    def describe(self) -> str:
        """What the step does."""
        return f"tell the kernel of partition {self.partition.number} of SSD {self.ssd}"


@dataclass(frozen=True)
class WipePartition(Step):
    """Zero a volume's partition and prove it by reading. Expects it unheld and named by the volume's id."""

    ssd: str
    disk_guid: str
    partition: Partition

    def describe(self) -> str:
        """What the step does."""
        return f"wipe volume {self.partition.name}: zero {self.partition.bytes} bytes of SSD {self.ssd}, read back"


@dataclass(frozen=True)
class RemovePartition(Step):
    """Delete a wiped partition from the table. Expects number, PARTUUID and start to be those of the volume."""

    ssd: str
    disk_guid: str
    partition: Partition

    def describe(self) -> str:
        """What the step does."""
        return f"remove partition {self.partition.number} (volume {self.partition.name}) from SSD {self.ssd}"


# --- exports: nvmet's objects of one attachment, host first, link last ---


@dataclass(frozen=True)
class ExportStep(Step):
    """One step of building or fencing the export of one attachment."""

    nqn: str


@dataclass(frozen=True)
class CreateHost(ExportStep):
    """The only host that may connect, with the keys of both directions (opened from `sealed_keys` when applied)."""

    host_nqn: str
    sealed_keys: str

    def describe(self) -> str:
        """What the step does."""
        return f"export: create host {self.host_nqn} with its keys"


@dataclass(frozen=True)
class CreateSubsystem(ExportStep):
    """The attachment's own subsystem, closed to any host but its own."""

    serial: str
    model: str

    def describe(self) -> str:
        """What the step does."""
        return f"export: create subsystem {self.nqn}"


@dataclass(frozen=True)
class AllowHost(ExportStep):
    """Put the host on the subsystem's allow-list."""

    host_nqn: str

    def describe(self) -> str:
        """What the step does."""
        return f"export: allow host {self.host_nqn} at {self.nqn}"


@dataclass(frozen=True)
class EnableNamespace(ExportStep):
    """Namespace 1 on the volume's partition, with the volume's id as its UUID, enabled."""

    volume_id: str

    def describe(self) -> str:
        """What the step does."""
        return f"export: namespace with UUID {self.volume_id} at {self.nqn}, enable it, read it back"


@dataclass(frozen=True)
class CreatePort(ExportStep):
    """A port of the attachment's own. Its number in configfs is its TCP port number."""

    number: int
    portal: Portal

    def describe(self) -> str:
        """What the step does."""
        return f"export: create port {self.number} for {self.portal}"


@dataclass(frozen=True)
class LinkPort(ExportStep):
    """Link the subsystem to the port: it listens from here on, which is why it comes last."""

    number: int

    def describe(self) -> str:
        """What the step does."""
        return f"export: link {self.nqn} to port {self.number}; it listens from now on"


@dataclass(frozen=True)
class DisallowHost(ExportStep):
    """Take the host off the allow-list: no new connection."""

    host_nqn: str

    def describe(self) -> str:
        """What the step does."""
        return f"fence: {self.host_nqn} may not connect to {self.nqn} any more"


@dataclass(frozen=True)
class UnlinkPort(ExportStep):
    """Unlink the subsystem from a port: live controllers end."""

    number: int

    def describe(self) -> str:
        """What the step does."""
        return f"fence: unlink {self.nqn} from port {self.number}"


@dataclass(frozen=True)
class DisableNamespace(ExportStep):
    """The write barrier: returns when no I/O is in flight any more. Must come before anything is removed."""

    nsid: int

    def describe(self) -> str:
        """What the step does."""
        return f"fence: disable namespace {self.nsid} of {self.nqn} and wait for I/O in flight"


@dataclass(frozen=True)
class RemoveSubsystem(ExportStep):
    """Remove the subsystem and its (disabled) namespaces."""

    def describe(self) -> str:
        """What the step does."""
        return f"fence: remove subsystem {self.nqn}"


@dataclass(frozen=True)
class RemovePort(ExportStep):
    """Remove a port that nothing is linked to."""

    number: int

    def describe(self) -> str:
        """What the step does."""
        return f"fence: remove port {self.number}"


@dataclass(frozen=True)
class RemoveHost(ExportStep):
    """Remove the host, and with it the keys."""

    host_nqn: str

    def describe(self) -> str:
        """What the step does."""
        return f"fence: remove host {self.host_nqn} and its keys"


# --- the consumer ---


@dataclass(frozen=True)
class Connect(Step):
    """Connect to an attachment's subsystem by /dev/nvme-fabrics, and wait for the device with the volume's UUID."""

    nqn: str
    host_nqn: str
    host_id: str
    portal: Portal
    volume_id: str
    sealed_keys: str
    reconnect_seconds: int
    loss_seconds: int

    def describe(self) -> str:
        """What the step does."""
        return f"connect to {self.nqn} at {self.portal}"


@dataclass(frozen=True)
class Disconnect(Step):
    """Disconnect exactly this NQN, unless its device is held; done when sysfs lists it no more."""

    nqn: str

    def describe(self) -> str:
        """What the step does."""
        return f"disconnect {self.nqn}"
