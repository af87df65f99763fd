"""What is on this server at one moment, as far as plans and reports need it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from kubeflash.api.v1alpha1 import NodeAddress
from kubeflash.domain.carving import DiskView, volumes_of
from kubeflash.domain.disk import Label
from kubeflash.domain.fabric import Connection, NvmetState
from kubeflash.host.inventory import Inventory
from kubeflash.host.refusals import Refusal
from kubeflash.host.smart import Health


@dataclass(frozen=True)
class Observation:
    """Read in one go.

    Attributes:
        disks: the local SSDs by id.
        owners: by SSD id, the label that it carries or would carry here.
        partitions: kernel name of the partition of each volume on SSDs that are ours, by volume id.
        read_only: ids of the volumes whose partition the kernel holds read-only.
        fixed: ids of those that are on an SSD that is read-only as a whole.
        held: by volume id, who holds its device, in words; only for those that were asked about.
        listening: TCP port numbers that somebody listens on.
        health: what each SSD says of its own health, by its id; read every few minutes.
        refusals: whom nvmet has turned away since the last look.
        errors: I/O errors that the kernel logged since it saw the SSD, by SSD id.
    """

    inventory: Inventory
    disks: Mapping[str, DiskView]
    owners: Mapping[str, Label]
    partitions: Mapping[str, str]
    nvmet: NvmetState
    connections: tuple[Connection, ...]
    listening: frozenset[int]
    addresses: tuple[NodeAddress, ...]
    internal: str
    read_only: frozenset[str] = frozenset()
    fixed: frozenset[str] = frozenset()
    held: Mapping[str, str] = field(default_factory=dict)
    health: Mapping[str, Health] = field(default_factory=dict)
    errors: Mapping[str, int] = field(default_factory=dict)
    refusals: tuple[Refusal, ...] = ()

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of each volume's partition, by volume id."""
        return {part.uuid: part.bytes for disk in self.disks.values() for part in volumes_of(disk.table)}
