"""From objects to wishes: what pools, volumes and attachments want of this server. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from kubeflash.api.v1alpha1 import FlashPool, FlashVolume, Ssd
from kubeflash.domain.carving import VolumeWish
from kubeflash.domain.exporting import ExportWish
from kubeflash.domain.pools import owner_of


def selected_by(
    ssds: Iterable[Ssd], pools: Iterable[FlashPool], node_labels: Mapping[str, str] | None
) -> dict[str, str]:
    """The pool of each SSD that a pool selects on this server, by SSD id."""
    known = list(pools)
    owners = {ssd.id: owner_of(ssd, known, node_labels) for ssd in ssds}
    return {ssd: pool.metadata.name for ssd, pool in owners.items() if pool is not None}


def is_released(volume: FlashVolume) -> bool:
    """Whether its bytes may be wiped: it is being deleted, and the controller says that nothing is attached to it."""
    return volume.deleting and bool(volume.status.release)


def volume_wishes(volumes: Iterable[FlashVolume]) -> list[VolumeWish]:
    """What the volumes placed on this server want of its SSDs."""
    return [
        VolumeWish(
            key=volume.key,
            id=volume.spec.id,
            ssd=volume.status.ssd,
            bytes=volume.spec.size,
            released=is_released(volume),
            exported=bool(volume.status.exported or volume.status.wanted),
        )
        for volume in volumes
        if volume.spec.id is not None and volume.status.ssd is not None
    ]


def export_wishes(volumes: Iterable[FlashVolume], partitions: Mapping[str, str]) -> list[ExportWish]:
    """The exports that are wanted or recorded on this server."""
    return [
        ExportWish(
            volume=volume.key,
            attachment=name,
            volume_id=volume.spec.id,
            wanted=volume.status.wanted.get(name),
            recorded=volume.status.exported.get(name),
            carved=volume.spec.id in partitions,
        )
        for volume in volumes
        if volume.spec.id is not None
        for name in sorted({*volume.status.wanted, *volume.status.exported})
    ]
