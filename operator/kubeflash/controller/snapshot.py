"""Everything that the controller decides from, at one moment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property

from kubeflash.api.v1alpha1 import FlashAttachment, FlashNode, FlashPool, FlashVolume
from kubeflash.domain.names import SYSTEM_NAMESPACE
from kubeflash.domain.pools import PoolView, evaluate


@dataclass(frozen=True)
class Snapshot:
    """The objects, by `namespace/name`, and who answers.

    Attributes:
        node_labels: labels of Nodes by name.
        namespace_labels: labels of Namespaces by name.
        answering: names of the servers whose agent renews its Lease.
        refusals: by volume uid and SSD id, what its server said when it refused; remembered for a while.
    """

    now: datetime
    pools: Mapping[str, FlashPool]
    nodes: Mapping[str, FlashNode]
    volumes: Mapping[str, FlashVolume]
    attachments: Mapping[str, FlashAttachment]
    node_labels: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    namespace_labels: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    answering: frozenset[str] = frozenset()
    refusals: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    own_namespace: str = SYSTEM_NAMESPACE

    @cached_property
    def views(self) -> dict[str, PoolView]:
        """Each pool evaluated against all servers."""
        return {name: self.view(pool, self.volumes) for name, pool in self.pools.items()}

    def view(self, pool: FlashPool, volumes: Mapping[str, FlashVolume]) -> PoolView:
        """One pool evaluated with these volumes."""
        return evaluate(
            pool,
            pools=self.pools.values(),
            nodes=self.nodes.values(),
            node_labels=self.node_labels,
            volumes=volumes.values(),
        )

    @cached_property
    def attachments_by_volume(self) -> dict[str, list[FlashAttachment]]:
        """The attachments of each volume (by its key), oldest first: the first one has the volume."""
        result: dict[str, list[FlashAttachment]] = {}
        for attachment in self.attachments.values():
            key = f"{attachment.metadata.namespace}/{attachment.spec.volume}"
            result.setdefault(key, []).append(attachment)
        for items in result.values():
            items.sort(key=_seniority)
        return result


def _seniority(attachment: FlashAttachment) -> tuple[bool, str, str]:
    """Those that have been given the volume before those that wait, then by age, then by name."""
    created = attachment.metadata.creation_timestamp
    return (attachment.status.path is None, created.isoformat() if created else "", attachment.metadata.name)
