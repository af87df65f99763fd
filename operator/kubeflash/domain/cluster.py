"""Everything that is decided from, at one moment. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property

from kubeflash.api.v1alpha1 import FlashAttachment, FlashAttachmentStatus, FlashNode, FlashPool, FlashVolume
from kubeflash.domain.ledger import Ledger
from kubeflash.domain.names import SYSTEM_NAMESPACE
from kubeflash.domain.neighbours import Neighbours
from kubeflash.domain.pools import PoolView, evaluate


@dataclass(frozen=True)
class Cluster:
    """The objects, by `namespace/name`, and who answers.

    Attributes:
        node_labels: labels of Nodes by name.
        namespace_labels: labels of Namespaces by name.
        cordoned: names of Nodes that take no new pods.
        answering: names of the servers whose agent renews its Lease.
        silence: by server, seconds since its agent was heard last; one that is not in it never was.
        leaving: by uid of a deleted attachment, for how many seconds its consumer has said that it disconnects.
        refusals: by volume uid and SSD id, what its server said when it refused; remembered for a while.
        leader: who decides; placements carry this name.
        neighbours: which SSDs are neighbours of GPUs.
    """

    now: datetime
    pools: Mapping[str, FlashPool]
    nodes: Mapping[str, FlashNode]
    volumes: Mapping[str, FlashVolume]
    attachments: Mapping[str, FlashAttachment]
    node_labels: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    namespace_labels: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    cordoned: frozenset[str] = frozenset()
    answering: frozenset[str] = frozenset()
    silence: Mapping[str, float] = field(default_factory=dict)
    leaving: Mapping[str, float] = field(default_factory=dict)
    refusals: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    own_namespace: str = SYSTEM_NAMESPACE
    leader: str = ""
    neighbours: Neighbours = field(default_factory=Neighbours)

    @cached_property
    def ledger(self) -> Ledger:
        """Whose every byte is. Decisions are written into it as they are made, so that the next one sees them."""
        return Ledger(self.nodes.values(), self.volumes.values())

    @cached_property
    def views(self) -> dict[str, PoolView]:
        """Each pool evaluated against all servers; what is free in it is the ledger's, at each moment."""
        return evaluate(
            self.pools.values(),
            nodes=self.nodes.values(),
            node_labels=self.node_labels,
            ledger=self.ledger,
            neighbours=self.neighbours,
        )

    @cached_property
    def attachments_by_volume(self) -> dict[str, list[FlashAttachment]]:
        """The attachments of each volume (by its key), oldest first: the first one has the volume."""
        result: dict[str, list[FlashAttachment]] = {}
        for attachment in self.attachments.values():
            key = attachment.volume_key
            result.setdefault(key, []).append(attachment)
        for items in result.values():
            items.sort(key=_seniority)
        return result

    @cached_property
    def keyless(self) -> dict[str, list[str]]:
        """By server that lost its private key, the attachments whose keys it cannot read any more."""
        result: dict[str, list[str]] = {}
        for attachment in self.attachments.values():
            volume = self.volumes.get(attachment.volume_key)
            storage = self.nodes.get(volume.status.node_name or "") if volume is not None else None
            consumer = self.nodes.get(attachment.spec.node_name)
            if storage is not None and consumer is not None:
                keys = attachment.status.keys
                moved = keys is not None and keys.storage_node not in ("", storage.metadata.name)
                for name in servers_without_keys(attachment.status, storage, consumer):
                    if moved and name == storage.metadata.name:
                        continue  # its key is not lost: the SSD came from another server
                    result.setdefault(name, []).append(attachment.key)
        return result

    @cached_property
    def placed_on(self) -> dict[str, list[FlashVolume]]:
        """The volumes placed on each server, by its name."""
        result: dict[str, list[FlashVolume]] = {}
        for volume in self.volumes.values():
            if volume.status.node_name is not None:
                result.setdefault(volume.status.node_name, []).append(volume)
        return result

    @cached_property
    def purged(self) -> frozenset[str]:
        """Servers that an admin has declared lost for good, and whose agent does not answer."""
        return frozenset(name for name, node in self.nodes.items() if is_purged(node) and name not in self.answering)

    def is_lost(self, volume: FlashVolume) -> bool:
        """Whether an admin has declared the server, or the SSD, that a volume is on lost for good.

        A server that answers, and has the volume's bytes, knows better: this one, or the one that the SSD is in now.
        """
        node = self.nodes.get(volume.status.node_name or "")
        if node is None or volume.status.ssd is None:
            return False
        declared = node.metadata.name in self.purged or volume.status.ssd in node.spec.lost
        if not declared:
            return False
        return all(place[0] not in self.answering for place, _ in self.ledger.extents(volume.spec.id or ""))

    @cached_property
    def by_uuid(self) -> dict[str, list[FlashNode]]:
        """The servers by system UUID; a server that was renamed has several names for a while."""
        result: dict[str, list[FlashNode]] = {}
        for node in self.nodes.values():
            if node.status.system_uuid:
                result.setdefault(node.status.system_uuid, []).append(node)
        return result


def is_purged(node: FlashNode) -> bool:
    """Whether an admin has declared this very server lost for good."""
    return bool(node.spec.purge) and node.spec.purge == node.status.system_uuid


def servers_without_keys(status: FlashAttachmentStatus, storage: FlashNode, consumer: FlashNode) -> list[str]:
    """Names of the servers whose private key is not the one any more that an attachment's keys were sealed to."""
    if status.keys is None:
        return []
    sealed = ((storage, status.keys.storage_key), (consumer, status.keys.consumer_key))
    return [node.metadata.name for node, public in sealed if node.status.public_key != public]


def _seniority(attachment: FlashAttachment) -> tuple[bool, str, str]:
    """Those that have been given the volume before those that wait, then by age, then by name."""
    return (attachment.status.path is None, attachment.created, attachment.metadata.name)
