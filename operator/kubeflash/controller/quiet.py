"""Volumes of which nothing changed since nothing was to be written for them: most of them, in every pass.

A thousand settled volumes cost a third of a second to look at in full, and every change of one looks at all.
"""

from __future__ import annotations

from kubeflash.api.v1alpha1 import FlashVolume
from kubeflash.domain.allocation import align_up
from kubeflash.domain.cluster import Cluster
from kubeflash.domain.ledger import granted
from kubeflash.domain.placement import was_carved

Key = tuple[object, ...]


class Quiet:
    """Remembers, by volume, from what it was decided that there is nothing to write."""

    def __init__(self) -> None:
        self._known: dict[str, Key] = {}

    def is_quiet(self, volume: FlashVolume, cluster: Cluster) -> bool:
        """Whether nothing that this volume depends on changed since nothing was to be written for it."""
        known = self._known.get(volume.metadata.uid)
        return known is not None and known == depends_on(volume, cluster)

    def remember(self, volume: FlashVolume, cluster: Cluster, *, wrote: bool) -> None:
        """Takes down whether there was anything to write."""
        key = None if wrote else depends_on(volume, cluster)
        if key is None:
            self._known.pop(volume.metadata.uid, None)
        else:
            self._known[volume.metadata.uid] = key

    def forget_all_but(self, cluster: Cluster) -> None:
        """Forgets volumes that are gone."""
        uids = {volume.metadata.uid for volume in cluster.volumes.values()}
        self._known = {uid: key for uid, key in self._known.items() if uid in uids}


def depends_on(volume: FlashVolume, cluster: Cluster) -> Key | None:
    """All that a settled volume's status is made of; None of a volume whose time, size or place is still open."""
    status = volume.status
    attachments = cluster.attachments_by_volume.get(volume.key, [])
    open_ended = (
        volume.deleting
        or status.lost is not None
        or not was_carved(volume)
        or align_up(volume.spec.size) > granted(volume)
        or any(attachment.deleting for attachment in attachments)
    )
    if open_ended:
        return None
    pool = cluster.pools.get(volume.spec.pool)
    node = cluster.nodes.get(status.node_name or "")
    where = [place for place, _ in cluster.ledger.extents(volume.spec.id or "")]
    return (
        volume.metadata.resource_version,
        pool.metadata.resource_version if pool is not None else None,
        (node.metadata.resource_version, node.metadata.name in cluster.answering) if node is not None else None,
        status.node_name in cluster.purged,
        tuple((item.metadata.uid, item.metadata.resource_version) for item in attachments),
        tuple((place, place[0] in cluster.answering) for place in where),
    )
