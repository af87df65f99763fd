"""What is on an SSD, as the plans see it: its partition table and KubeFlash's label. All positions are in bytes.

The layout (version 1)
----------------------
A GPT of 256 entries (the kernel shows no more partitions of one disk). Its disk GUID is derived from whose it is, so
that a table that a crash left without a label is still recognised as this cluster's, this server's, this SSD's own::

    0        1 MiB                2 MiB                                    end - 1 MiB
    | GPT    | partition 1: label | volume | volume |  free  | volume |    | GPT backup |

Partition 1 has the type `LABEL_TYPE` and the name "kubeflash"; its first 4 KiB are JSON that says cluster, server, SSD
and layout version, zero-padded. Every other partition of KubeFlash is one volume: type `VOLUME_TYPE`, PARTUUID and name
both the volume's id. Partitions start and end on whole MiB.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from uuid import UUID, uuid5

MIB = 1 << 20
ALIGNMENT = MIB
TABLE_ENTRIES = 256
LAYOUT_VERSION = 1
LABEL_NAME = "kubeflash"
LABEL_START = MIB
LABEL_BYTES = MIB
LABEL_BLOCK = 4096
LABEL_TYPE = "7d0f3c2e-5b1a-4f7e-9c7b-6b75626c6162"
VOLUME_TYPE = "7d0f3c2e-5b1a-4f7e-9c7b-6b7562766f6c"
_NAMESPACE = UUID("7d0f3c2e-5b1a-4f7e-9c7b-6b7562666c61")


@dataclass(frozen=True)
class Partition:
    """One entry of a partition table. `uuid` and `type_guid` are lower case; `start` and `bytes` are in bytes."""

    number: int
    start: int
    bytes: int
    name: str
    uuid: str
    type_guid: str

    @property
    def end(self) -> int:
        """First byte behind the partition."""
        return self.start + self.bytes


@dataclass(frozen=True)
class PartitionTable:
    """A partition table as read from a disk.

    Attributes:
        kind: `gpt`, `dos` or whatever else sfdisk calls it.
        disk_guid: the table's own GUID, lower case; an MBR's id for `dos`.
        first_usable: first byte that a partition may take.
        end_usable: first byte that none may take any more.
        damaged: which copy of a GPT is, `primary` or `backup`; empty when both are whole. The content is the other's.
    """

    kind: str
    disk_guid: str
    first_usable: int
    end_usable: int
    partitions: tuple[Partition, ...]
    damaged: str = field(default="", compare=False)


@dataclass(frozen=True)
class Label:
    """Whose an SSD is: the content of KubeFlash's own partition."""

    cluster_id: str
    system_uuid: str
    ssd: str
    layout: int = LAYOUT_VERSION

    @property
    def disk_guid(self) -> str:
        """The table's disk GUID for this owner: uuid5 over cluster, server and SSD."""
        return str(uuid5(_NAMESPACE, f"{self.cluster_id}/{self.system_uuid}/{self.ssd}"))

    def encode(self) -> bytes:
        """The label's block: JSON, zero-padded to 4 KiB."""
        text = json.dumps(
            {
                "kubeflash": {
                    "cluster": self.cluster_id,
                    "server": self.system_uuid,
                    "ssd": self.ssd,
                    "layout": self.layout,
                }
            }
        )
        return text.encode().ljust(LABEL_BLOCK, b"\0")

    @classmethod
    def decode(cls, block: bytes) -> Label | None:
        """Reads a label's block; None when it holds none (all zero: the claim stopped before the label was written).

        Raises:
            ValueError: when it holds something else.
        """
        text = block.rstrip(b"\0")
        if not text:
            return None
        try:
            content = json.loads(text)["kubeflash"]
            return cls(
                cluster_id=str(content["cluster"]),
                system_uuid=str(content["server"]),
                ssd=str(content["ssd"]),
                layout=int(content["layout"]),
            )
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"KubeFlash's partition does not hold a KubeFlash label: {error}") from error
