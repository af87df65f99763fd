"""From objects to wishes: what pools, volumes and attachments want of this server. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from kubeflash.api.v1alpha1 import FlashNode, FlashPool, FlashVolume, Ssd
from kubeflash.domain.carving import Requests, Selection, VolumeWish
from kubeflash.domain.exporting import ExportWish
from kubeflash.domain.ledger import granted
from kubeflash.domain.pools import needs_thorough, owner_of


def selected_by(
    ssds: Iterable[Ssd],
    pools: Iterable[FlashPool],
    node_labels: Mapping[str, str] | None,
    neighbours: Mapping[str, int],
) -> dict[str, Selection]:
    """The pool of each SSD that a pool selects on this server, by SSD id.

    Args:
        ssds: the server's SSDs.
        pools: all pools.
        node_labels: labels of its Node; None where it has none.
        neighbours: by SSD id, of how many GPUs it is a neighbour.
    """
    known = list(pools)
    found: dict[str, Selection] = {}
    for ssd in ssds:
        pool = owner_of(ssd, known, node_labels, neighbour=neighbours.get(ssd.id, 0) > 0)
        if pool is not None:
            name, reserve = pool.metadata.name, pool.spec.reserve_percent
            found[ssd.id] = Selection(name, reserve, thorough=needs_thorough(pool, ssd))
    return found


def is_released(volume: FlashVolume) -> bool:
    """Whether its bytes may be wiped: it is being deleted, and the controller says that nothing is attached to it."""
    return volume.deleting and bool(volume.status.release)


def is_fresh(volume: FlashVolume) -> bool:
    """Whether it may be made: the controller gave it its id, and it was never carved."""
    return volume.status.id == volume.spec.id and volume.status.bytes is None


def volume_wishes(
    volumes: Iterable[FlashVolume],
    pools: Mapping[str, FlashPool],
    *,
    leader: str | None = None,
    given_up: Mapping[tuple[str, str], str] | None = None,
) -> list[VolumeWish]:
    """What the volumes placed on this server want of its SSDs.

    Args:
        volumes: the volumes.
        pools: the pools by name, which say how to wipe.
        leader: the controller that leads; None where that does not matter.
        given_up: by id of the volume, or of the SSD itself, and of the SSD: why it is no use trying to carve it there
            any more. Another SSD of this server may take it.
    """
    hopeless = given_up or {}
    return [
        VolumeWish(
            key=volume.key,
            id=volume.spec.id,
            ssd=volume.status.ssd,
            bytes=granted(volume),
            released=is_released(volume),
            exported=bool(volume.status.exported or volume.status.wanted),
            fresh=is_fresh(volume),
            confirmed=leader is None or volume.status.granted_by == leader,
            wipe=pools[volume.spec.pool].spec.wipe if volume.spec.pool in pools else "Zero",
            given_up=hopeless.get((volume.status.ssd, volume.status.ssd))
            or hopeless.get((volume.spec.id, volume.status.ssd), ""),
            pool=volume.spec.pool,
        )
        for volume in volumes
        if volume.spec.id is not None and volume.status.ssd is not None
    ]


def export_wishes(
    volumes: Iterable[FlashVolume],
    partitions: Mapping[str, str],
    sizes: Mapping[str, int],
    told: Mapping[str, int],
) -> list[ExportWish]:
    """The exports that are wanted or recorded on this server.

    Args:
        volumes: the volumes placed on it.
        partitions: kernel name of each volume's partition, by volume id.
        sizes: its bytes, by volume id.
        told: what of them nvmet has looked at already, by NQN.
    """
    return [
        ExportWish(
            volume=volume.key,
            attachment=name,
            volume_id=volume.spec.id,
            wanted=wanted,
            recorded=volume.status.exported.get(name),
            device=partitions.get(volume.spec.id),
            grown=_has_grown(volume, sizes.get(volume.spec.id, 0), told.get(wanted.nqn) if wanted else None),
        )
        for volume in volumes
        if volume.spec.id is not None
        for name in sorted({*volume.status.wanted, *volume.status.exported})
        for wanted in [volume.status.wanted.get(name)]
    ]


def _has_grown(volume: FlashVolume, size: int, told: int | None) -> bool:
    """Whether it is larger than its status says, and nvmet has not looked at that size yet."""
    return volume.status.bytes is not None and volume.status.bytes < size != told


def admin_requests(node: FlashNode) -> Requests:
    """What an admin asks of this server by name, and the controller's word on SSDs that moved here."""
    wipe = node.spec.wipe
    return Requests(
        wipe_ssds=dict(wipe.ssds) if wipe is not None else {},
        wipe_orphans=dict(wipe.orphans) if wipe is not None else {},
        moved=dict(node.status.moved),
    )
