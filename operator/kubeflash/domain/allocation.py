"""Where on an SSD a volume goes: free extents, best fit. All positions and lengths are in bytes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from kubeflash.domain.disk import ALIGNMENT, LABEL_BYTES, LABEL_START, TABLE_ENTRIES


@dataclass(frozen=True, order=True)
class Span:
    """A run of bytes on an SSD."""

    start: int
    bytes: int

    @property
    def end(self) -> int:
        """First byte behind it."""
        return self.start + self.bytes


def align_up(count: int) -> int:
    """The next whole MiB: what a volume of `count` bytes takes."""
    return -(-count // ALIGNMENT) * ALIGNMENT


def usable(disk_bytes: int, reserve: int = 0) -> Span:
    """The part of an SSD of `disk_bytes` that volumes can take: behind the label, before the backup table.

    `reserve` percent of the SSD, at its end, are never given to a volume.
    """
    start = LABEL_START + LABEL_BYTES
    end = (disk_bytes - max(ALIGNMENT, disk_bytes * reserve // 100)) // ALIGNMENT * ALIGNMENT
    return Span(start, max(0, end - start))


def free_spans(disk_bytes: int, taken: Iterable[Span], reserve: int = 0) -> tuple[Span, ...]:
    """The free extents of an SSD, in order, each on whole MiB; `taken` may overlap, touch or be out of order."""
    whole = usable(disk_bytes, reserve)
    free: list[Span] = []
    position = whole.start
    for span in sorted(taken):
        end = min(span.start // ALIGNMENT * ALIGNMENT, whole.end)
        if end > position:
            free.append(Span(position, end - position))
        position = max(position, align_up(span.end))
    if whole.end > position:
        free.append(Span(position, whole.end - position))
    return tuple(free)


def best_fit(free: Iterable[Span], count: int) -> Span | None:
    """Where a volume of `count` bytes goes: at the start of the smallest free extent that holds it (first of equals).

    None when no single extent holds it.
    """
    needed = align_up(count)
    fitting = [span for span in free if span.bytes >= needed]
    if not fitting:
        return None
    span = min(fitting, key=lambda candidate: (candidate.bytes, candidate.start))
    return Span(span.start, needed)


def room(disk_bytes: int, others: Iterable[Span], start: int, reserve: int = 0) -> int:
    """Bytes that a volume at `start` can have at the most: up to the next of `others`, or to the end."""
    return next(
        (span.end - start for span in free_spans(disk_bytes, others, reserve) if span.start <= start < span.end), 0
    )


def free_number(taken: Iterable[int]) -> int | None:
    """The lowest partition number from 2 on that is not taken; None when the table is full.

    The kernel shows no partition 256: its limit counts the disk itself.
    """
    used = set(taken)
    return next((number for number in range(2, TABLE_ENTRIES) if number not in used), None)


def with_reservations(
    disk_bytes: int, carved: Iterable[Span], reserved: Iterable[int], reserve: int = 0
) -> tuple[Span, ...]:
    """Free extents once volumes that are placed but not carved yet have been put where the agent would put them."""
    taken = list(carved)
    for count in sorted(reserved, reverse=True):
        span = best_fit(free_spans(disk_bytes, taken, reserve), count)
        if span is not None:
            taken.append(span)
    return free_spans(disk_bytes, taken, reserve)
