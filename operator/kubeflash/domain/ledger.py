"""Whose every byte is: what is carved, what is promised, what each namespace has. Pure.

The disks are the ledger; this is its fair copy, read from what agents tell of them, with the promises of the controller
written in: a volume that is placed and not carved yet, and one that may grow and has not grown yet, take their bytes
from the moment they are decided.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from kubeflash.api.v1alpha1 import Extent, FlashNode, FlashVolume, Ssd
from kubeflash.domain.allocation import Span, align_up, best_fit, free_spans, room, with_reservations

Place = tuple[str, str]
"""A server's name and an SSD's id."""


def granted(volume: FlashVolume) -> int:
    """Bytes that a placed volume may take, on whole MiB; before the controller says so, what it has or asks for."""
    status = volume.status
    if status.granted is not None:
        return align_up(status.granted)
    return status.bytes if status.bytes is not None else align_up(volume.spec.size)


def identity(volume: FlashVolume) -> str | None:
    """The volume's id: spec.id, or what will become it."""
    return volume.spec.id or volume.status.id


@dataclass
class _Shelf:
    """One SSD: what is carved on it, and the volumes that are placed on it."""

    ssd: Ssd
    placed: dict[str, FlashVolume] = field(default_factory=dict)
    free: dict[int, tuple[Span, ...]] = field(default_factory=dict)

    def spans(self, without: str | None = None) -> Iterator[Span]:
        """What is taken by carved volumes, each as large as it may become; but for the volume with the id `without`."""
        may = {identity(volume): granted(volume) for volume in self.placed.values()}
        for extent in self.ssd.volumes:
            if extent.id != without:
                yield Span(extent.start, max(extent.bytes, may.get(extent.id, 0)))

    def promised(self) -> list[int]:
        """Bytes of the volumes that are placed here and not carved yet."""
        carved = {extent.id for extent in self.ssd.volumes}
        return [granted(volume) for volume in self.placed.values() if identity(volume) not in carved]


class Ledger:
    """The bytes of a cluster, by server and SSD, and by pool and namespace. Volumes can be put in and taken out."""

    def __init__(self, nodes: Iterable[FlashNode], volumes: Iterable[FlashVolume]) -> None:
        self._shelves: dict[Place, _Shelf] = {}
        self._extents: dict[str, list[tuple[Place, Extent]]] = {}
        for node in nodes:
            for ssd in node.status.ssds:
                place = (node.metadata.name, ssd.id)
                self._shelves[place] = _Shelf(ssd)
                if ssd.labelled is None:  # else another server's label is on it: not this one's to give away
                    for extent in ssd.volumes:
                        self._extents.setdefault(extent.id, []).append((place, extent))
        self._volumes: dict[str, FlashVolume] = {}
        self._ids: dict[str, dict[str, FlashVolume]] = {}
        self._use: dict[tuple[str, str], dict[str, int]] = {}
        for volume in volumes:
            self.put(volume)

    def put(self, volume: FlashVolume) -> None:
        """Writes a volume in as it is, or will be: in place of what was known of it."""
        self.take(volume)
        self._volumes[volume.metadata.uid] = volume
        known = identity(volume)
        if known is not None:
            self._ids.setdefault(known, {})[volume.metadata.uid] = volume
        if volume.status.node_name is None:
            return
        if (shelf := self._shelves.get(_place(volume))) is not None:
            shelf.placed[volume.metadata.uid] = volume
            shelf.free.clear()
        owner = (volume.spec.pool, volume.metadata.namespace or "")
        self._use.setdefault(owner, {})[volume.metadata.uid] = max(granted(volume), volume.status.bytes or 0)

    def take(self, volume: FlashVolume) -> None:
        """Takes a volume out: its promises count no longer. What is carved stays taken."""
        before = self._volumes.pop(volume.metadata.uid, None)
        if before is None:
            return
        known = identity(before)
        if known is not None:
            self._ids[known].pop(volume.metadata.uid, None)
        if before.status.node_name is None:
            return
        if (shelf := self._shelves.get(_place(before))) is not None:
            shelf.placed.pop(volume.metadata.uid, None)
            shelf.free.clear()
        self._use[before.spec.pool, before.metadata.namespace or ""].pop(volume.metadata.uid, None)

    def free(self, place: Place, reserve: int = 0) -> tuple[Span, ...]:
        """The free extents of an SSD once all promises are kept."""
        shelf = self._shelves[place]
        if reserve not in shelf.free:
            shelf.free[reserve] = with_reservations(shelf.ssd.bytes, shelf.spans(), shelf.promised(), reserve)
        return shelf.free[reserve]

    def room(self, place: Place, volume_id: str, reserve: int = 0) -> tuple[int, str]:
        """Bytes that a carved volume could have at the most where it is, and what stands behind them."""
        shelf = self._shelves.get(place)
        extent = next((item for item in shelf.ssd.volumes if item.id == volume_id), None) if shelf else None
        if shelf is None or extent is None:
            return 0, "its SSD is not there"
        others = list(shelf.spans(without=volume_id))
        mine = next(span for span in shelf.spans() if span.start == extent.start)  # as large as it was granted
        for count in sorted(shelf.promised(), reverse=True):  # where the agent would put them
            if (span := best_fit(free_spans(shelf.ssd.bytes, [*others, mine], reserve), count)) is not None:
                others.append(span)
        behind = min((span for span in others if span.start >= extent.start), default=None)
        return room(shelf.ssd.bytes, others, extent.start, reserve), self._who(shelf, behind)

    def _who(self, shelf: _Shelf, behind: Span | None) -> str:
        if behind is None:
            return "the end of the SSD, or of what the pool's reserve leaves of it"
        extent = next((item for item in shelf.ssd.volumes if item.start == behind.start), None)
        if extent is None:
            return "a volume that is about to be carved"
        if extent.volume is None:
            return f"orphan {extent.id}"
        return f"volume {extent.volume}"

    def placed_on(self, place: Place) -> list[FlashVolume]:
        """The volumes that are placed on an SSD."""
        shelf = self._shelves.get(place)
        return list(shelf.placed.values()) if shelf is not None else []

    def has(self, place: Place) -> bool:
        """Whether the server says that it has the SSD."""
        return place in self._shelves

    def extents(self, volume_id: str) -> list[tuple[Place, Extent]]:
        """Where the bytes of a volume are, as agents tell."""
        return self._extents.get(volume_id, [])

    def namesakes(self, volume: FlashVolume) -> list[FlashVolume]:
        """Other volumes with the id of this one."""
        return [other for other in self.with_id(identity(volume) or "") if other.metadata.uid != volume.metadata.uid]

    def with_id(self, volume_id: str) -> list[FlashVolume]:
        """The volumes with an id."""
        return list(self._ids.get(volume_id, {}).values())

    def used(self, pool: str, namespace: str, *, without: FlashVolume | None = None) -> int:
        """Bytes that a namespace has of a pool; but for one volume."""
        use = self._use.get((pool, namespace), {})
        return sum(use.values()) - (use.get(without.metadata.uid, 0) if without is not None else 0)

    def use_of(self, pool: str) -> Mapping[str, tuple[int, int]]:
        """By namespace: how many volumes it has of a pool, and their bytes."""
        return {
            namespace: (len(use), sum(use.values()))
            for (name, namespace), use in sorted(self._use.items())
            if name == pool and use
        }


def _place(volume: FlashVolume) -> Place:
    return (volume.status.node_name or "", volume.status.ssd or "")
