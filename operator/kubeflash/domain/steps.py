"""Plans are data: typed steps, each with what it expects to find. Printing a plan is `describe` for each step.

Steps are idempotent. After a crash between any two of them the next pass observes what is, plans what is left, and
goes on from there. Steps of one `group` (an SSD, an export, a connection) run one after another, groups side by side.
When a step fails, those of the same `subject` behind it are left out, and the others go on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from kubeflash.api.quantity import human_bytes
from kubeflash.domain.disk import Label, Partition
from kubeflash.domain.fabric import Portal

WipeMode = Literal["Zero", "Discard", "None"]


@dataclass(frozen=True)
class Step:
    """One change on this server.

    Attributes:
        expects: what it expects to find, looked at again right before; it does nothing otherwise.
        takes_down: whether it follows from something not being wanted any more: never done in doubt.
        new_bytes: whether it gives a volume bytes: done only at the word of the controller that leads.
        long: whether it may take minutes.
        keeps_table: whether what is read of the SSD's table while it runs is what is.
    """

    expects: ClassVar[str] = ""
    takes_down: ClassVar[bool] = False
    new_bytes: ClassVar[bool] = False
    long: ClassVar[bool] = False
    keeps_table: ClassVar[bool] = False

    def describe(self) -> str:
        """What the step does, in one line for an administrator."""
        raise NotImplementedError

    @property
    def group(self) -> str:
        """What it works on: one step at a time."""
        raise NotImplementedError

    @property
    def subject(self) -> str:
        """What fails when it fails."""
        return self.group


# --- disks: all name the SSD by its durable id; the device is looked up, and its identity checked, right before ---


@dataclass(frozen=True)
class SsdStep(Step):
    """One change on an SSD."""

    ssd: str

    @property
    def group(self) -> str:
        """The SSD."""
        return self.ssd


@dataclass(frozen=True)
class RepairTable(SsdStep):
    """Write the damaged copy of KubeFlash's own partition table anew from the whole one."""

    expects: ClassVar[str] = "one whole copy of the table with this disk GUID"
    disk_guid: str

    def describe(self) -> str:
        """What the step does."""
        return f"repair the partition table of SSD {self.ssd} from its whole copy"


@dataclass(frozen=True)
class TakeOver(SsdStep):
    """Make this server the owner of an SSD that came from another one: its label is rewritten, all else stays."""

    expects: ClassVar[str] = "the label of the other server, of this cluster and this very SSD"
    old: Label
    new: Label

    def describe(self) -> str:
        """What the step does."""
        return f"take over SSD {self.ssd} from server {self.old.system_uuid}: write the label anew"


@dataclass(frozen=True)
class ClaimSsd(SsdStep):
    """Write KubeFlash's partition table and label. `thorough`: nobody named the SSD, so more of it is read."""

    expects: ClassVar[str] = "the SSD blank, proven again right before; or half-claimed by this very owner"
    new_bytes: ClassVar[bool] = True
    label: Label
    thorough: bool = False

    def describe(self) -> str:
        """What the step does."""
        return f"claim SSD {self.ssd}: prove it blank again, write a GPT with KubeFlash's label"


@dataclass(frozen=True)
class WipeSsd(SsdStep):
    """Zero a whole SSD, by an admin's word, and prove it by reading."""

    expects: ClassVar[str] = "the very content that the admin was shown, held by nobody, no volume on it"
    takes_down: ClassVar[bool] = True
    long: ClassVar[bool] = True
    fingerprint: str
    bytes: int

    def describe(self) -> str:
        """What the step does."""
        return f"wipe SSD {self.ssd}: zero all {human_bytes(self.bytes)} of it, read back; an admin asked for it"


@dataclass(frozen=True)
class VolumeStep(SsdStep):
    """One change of a volume's partition, in the table with this disk GUID."""

    disk_guid: str
    partition: Partition

    @property
    def subject(self) -> str:
        """The volume."""
        return self.partition.uuid


@dataclass(frozen=True)
class CarvePartition(VolumeStep):
    """Add a volume's partition."""

    expects: ClassVar[str] = "the table of this owner; number, id and place free"
    new_bytes: ClassVar[bool] = True

    def describe(self) -> str:
        """What the step does."""
        part = self.partition
        where = f"partition {part.number} of SSD {self.ssd}, {human_bytes(part.bytes)} at {part.start}"
        return f"carve volume {part.name}: {where}"


@dataclass(frozen=True)
class GrowPartition(VolumeStep):
    """Grow a volume's partition, which may be in use, into the free space behind it."""

    expects: ClassVar[str] = "the partition as it is, or grown already; the space behind it free"
    new_bytes: ClassVar[bool] = True
    new_size: int

    def describe(self) -> str:
        """What the step does."""
        sizes = f"{human_bytes(self.partition.bytes)} to {human_bytes(self.new_size)}"
        return f"grow volume {self.partition.name} on SSD {self.ssd} from {sizes}"


@dataclass(frozen=True)
class ShowPartition(VolumeStep):
    """Tell the kernel of a partition that is in the table only, as a crash between the two leaves it."""

    expects: ClassVar[str] = "the partition in the table"

    def describe(self) -> str:
        """What the step does."""
        return f"tell the kernel of partition {self.partition.number} of SSD {self.ssd}"


@dataclass(frozen=True)
class WipePartition(VolumeStep):
    """Wipe a volume's partition as its pool says, and prove it by reading."""

    expects: ClassVar[str] = "the partition, named by the volume's id, held by nobody, not exported"
    takes_down: ClassVar[bool] = True
    long: ClassVar[bool] = True
    keeps_table: ClassVar[bool] = True
    mode: WipeMode = "Zero"

    def describe(self) -> str:
        """What the step does."""
        verb = "discard" if self.mode == "Discard" else "zero"
        what = f"{human_bytes(self.partition.bytes)} of SSD {self.ssd}"
        return f"wipe volume {self.partition.name}: {verb} {what}, read back"


@dataclass(frozen=True)
class RemovePartition(VolumeStep):
    """Delete a wiped partition from the table."""

    expects: ClassVar[str] = "number, PARTUUID and place to be the volume's, nobody having it open"
    takes_down: ClassVar[bool] = True

    def describe(self) -> str:
        """What the step does."""
        return f"remove partition {self.partition.number} (volume {self.partition.name}) from SSD {self.ssd}"


# --- exports: nvmet's objects of one attachment, host first, link last ---


@dataclass(frozen=True)
class ExportStep(Step):
    """One step of building or fencing the export of one attachment."""

    nqn: str

    @property
    def group(self) -> str:
        """The export."""
        return self.nqn


@dataclass(frozen=True)
class CreateHost(ExportStep):
    """The only host that may connect, with the keys of both directions (opened from `sealed_keys` when applied).

    Without `authentication` it has no keys.
    """

    host_nqn: str
    sealed_keys: str
    authentication: bool = True

    def describe(self) -> str:
        """What the step does."""
        return f"export: create host {self.host_nqn} {'with its' if self.authentication else 'without'} keys"


@dataclass(frozen=True)
class AddTlsKey(ExportStep):
    """The TLS key of an attachment, put into the kernel's keyring (opened from `sealed_keys` when applied)."""

    host_nqn: str
    sealed_keys: str

    def describe(self) -> str:
        """What the step does."""
        return f"export: give the kernel the TLS key of {self.nqn}"


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
    """Namespace 1 on the volume's partition, with the volume's id as its UUID, enabled.

    `shared`: others may have it at the same time, as a raw block device.
    """

    volume_id: str
    shared: bool = False

    def describe(self) -> str:
        """What the step does."""
        return f"export: namespace with UUID {self.volume_id} at {self.nqn}, enable it, read it back"


@dataclass(frozen=True)
class ReplaceDevice(ExportStep):
    """Give an enabled namespace its device anew: its SSD was pulled out and put back, and what it has is dead."""

    expects: ClassVar[str] = "the namespace on another device than the volume's partition, which is there again"
    nsid: int
    volume_id: str
    device: str
    """What the namespace has now."""

    def describe(self) -> str:
        """What the step does."""
        return f"export: {self.nqn} has {self.device}, which is dead: take the volume's device of now"


@dataclass(frozen=True)
class RevalidateNamespace(ExportStep):
    """Have nvmet look at the size of a partition that has grown, so that the consumer sees it."""

    nsid: int

    def describe(self) -> str:
        """What the step does."""
        return f"export: have {self.nqn} take over the new size of its volume"


@dataclass(frozen=True)
class CreatePort(ExportStep):
    """A port of the attachment's own. Its number in configfs is its port number."""

    number: int
    portal: Portal
    tls: bool = False

    def describe(self) -> str:
        """What the step does."""
        return f"export: create port {self.number} for {self.portal}"


@dataclass(frozen=True)
class LinkPort(ExportStep):
    """Link the subsystem to the port: it listens from here on, which is why it comes last."""

    number: int
    authentication: bool = True

    def describe(self) -> str:
        """What the step does."""
        return f"export: link {self.nqn} to port {self.number}; it listens from now on"


@dataclass(frozen=True)
class DisallowHost(ExportStep):
    """Take the host off the allow-list: no new connection."""

    takes_down: ClassVar[bool] = True
    host_nqn: str

    def describe(self) -> str:
        """What the step does."""
        return f"fence: {self.host_nqn} may not connect to {self.nqn} any more"


@dataclass(frozen=True)
class UnlinkPort(ExportStep):
    """Unlink the subsystem from a port: live controllers end."""

    takes_down: ClassVar[bool] = True
    number: int

    def describe(self) -> str:
        """What the step does."""
        return f"fence: unlink {self.nqn} from port {self.number}"


@dataclass(frozen=True)
class DisableNamespace(ExportStep):
    """The write barrier: returns when no I/O is in flight any more. Must come before anything is removed."""

    takes_down: ClassVar[bool] = True
    nsid: int

    def describe(self) -> str:
        """What the step does."""
        return f"fence: disable namespace {self.nsid} of {self.nqn} and wait for I/O in flight"


@dataclass(frozen=True)
class RemoveSubsystem(ExportStep):
    """Remove the subsystem and its (disabled) namespaces."""

    takes_down: ClassVar[bool] = True

    def describe(self) -> str:
        """What the step does."""
        return f"fence: remove subsystem {self.nqn}"


@dataclass(frozen=True)
class RemovePort(ExportStep):
    """Remove a port that nothing is linked to."""

    takes_down: ClassVar[bool] = True
    number: int

    def describe(self) -> str:
        """What the step does."""
        return f"fence: remove port {self.number}"


@dataclass(frozen=True)
class RemoveHost(ExportStep):
    """Remove the host, and with it the keys."""

    takes_down: ClassVar[bool] = True
    host_nqn: str

    def describe(self) -> str:
        """What the step does."""
        return f"fence: remove host {self.host_nqn} and its keys"


@dataclass(frozen=True)
class RemoveTlsKey(ExportStep):
    """Take the attachment's TLS key out of the kernel's keyring."""

    takes_down: ClassVar[bool] = True
    host_nqn: str

    def describe(self) -> str:
        """What the step does."""
        return f"fence: remove the TLS key of {self.nqn}"


# --- the consumer ---


@dataclass(frozen=True)
class Connect(Step):
    """Connect one path to an attachment's subsystem, and wait for the device with the volume's UUID.

    Attributes:
        several: whether the subsystem has several portals: I/O is then spread over its paths.
    """

    nqn: str
    host_nqn: str
    host_id: str
    portal: Portal
    volume_id: str
    sealed_keys: str
    reconnect_seconds: int
    loss_seconds: int
    authentication: bool = True
    tls: bool = False
    several: bool = False

    @property
    def group(self) -> str:
        """The connection."""
        return self.nqn

    @property
    def subject(self) -> str:
        """The path."""
        return f"{self.nqn} {self.portal}"

    def describe(self) -> str:
        """What the step does."""
        return f"connect to {self.nqn} at {self.portal}"


@dataclass(frozen=True)
class DropPath(Step):
    """End one path of a connection that has another live one: its portal is not the volume's any more."""

    expects: ClassVar[str] = "another path of the same subsystem that is live"
    takes_down: ClassVar[bool] = True
    nqn: str
    instance: int
    portal: Portal

    @property
    def group(self) -> str:
        """The connection."""
        return self.nqn

    @property
    def subject(self) -> str:
        """The path."""
        return f"{self.nqn} {self.portal}"

    def describe(self) -> str:
        """What the step does."""
        return f"drop the path of {self.nqn} at {self.portal}"


@dataclass(frozen=True)
class SetReadOnly(Step):
    """Have this server's kernel refuse writes to the device of an attached volume, or take them again.

    Attributes:
        volume_id: the volume, on an SSD of this server or connected.
        nqn: of its connection; empty for the local device.
        read_only: what it shall be.
    """

    volume_id: str
    nqn: str
    read_only: bool

    @property
    def group(self) -> str:
        """The connection, or the volume on this server."""
        return self.nqn or self.volume_id

    def describe(self) -> str:
        """What the step does."""
        how = "read-only" if self.read_only else "writable"
        return f"make the device of volume {self.volume_id} {how}"


@dataclass(frozen=True)
class Disconnect(Step):
    """Disconnect exactly this NQN, unless its device is held; done when sysfs lists it no more.

    `abandoned`: no attachment wants it any more, so its export is gone for good: what is not live is taken away even
    from somebody who holds it, whose I/O would only wait to fail.
    """

    takes_down: ClassVar[bool] = True
    nqn: str
    abandoned: bool = False

    @property
    def group(self) -> str:
        """The connection."""
        return self.nqn

    def describe(self) -> str:
        """What the step does."""
        return f"disconnect {self.nqn}"
