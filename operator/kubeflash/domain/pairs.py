"""A server's pairs over time: what each GPU had at its best, what became worse, what changed. Pure.

Pairs are a function of the hardware, and hardware changes silently: a riser drops out at a reboot, a link trains at
half its width. What a GPU had at its best is therefore remembered in the FlashNode until an admin accepts what is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime

from kubeflash.api.v1alpha1 import BestPair, NodePair
from kubeflash.topology.faults import short

_AS_WIDE = 0.9
"""A pair whose narrowest link has less than this share of what it had is worse. Links that others use too, whose number
changes with the hardware, are not counted against it: what a pair has alone is compared."""


def best_of(pairs: Iterable[NodePair]) -> dict[str, NodePair]:
    """The best pair of each GPU, by its address: the nearest, then the widest, then the first."""
    found: dict[str, NodePair] = {}
    for item in sorted(pairs, key=lambda item: (item.distance.rank, -(item.alone or 0))):
        found.setdefault(item.gpu, item)
    return found


def remember(
    known: Iterable[BestPair], pairs: Iterable[NodePair], now: datetime, accepted_at: datetime | None = None
) -> list[BestPair]:
    """What each GPU's slot has had at its best, by address; of GPUs that are gone too.

    Args:
        known: what is remembered.
        pairs: what is.
        now: the time, for what is new.
        accepted_at: what was seen first before it is forgotten; a time that has not come yet says nothing.
    """
    forget = accepted_at if accepted_at is not None and accepted_at <= now else None
    kept = {item.gpu: item for item in known if forget is None or item.since >= forget}
    for gpu, item in best_of(pairs).items():
        if gpu not in kept or _is_worse(kept[gpu], item):
            kept[gpu] = BestPair(gpu=gpu, id=item.id, distance=item.distance, alone=item.alone, since=now)
    return [kept[gpu] for gpu in sorted(kept)]


def became_worse(best: Iterable[BestPair], pairs: Iterable[NodePair], gpus: Iterable[str]) -> list[str]:
    """A sentence for each GPU that has less than it had at its best.

    Args:
        best: what `remember` made.
        pairs: what is.
        gpus: addresses of the GPUs that there are.
    """
    now, there = best_of(pairs), set(gpus)
    said: list[str] = []
    for was in best:
        had = f"had {_words(was)} since {was.since:%Y-%m-%d}"
        item = now.get(was.gpu)
        if was.gpu not in there:
            said.append(f"GPU {short(was.gpu)} is gone; it {had}")
        elif item is None:
            said.append(f"GPU {short(was.gpu)} has no SSD any more; it {had}")
        elif _is_worse(item, was):
            said.append(f"GPU {short(was.gpu)} {had}, now {_words(item)}")
    return said


def changes(before: Sequence[NodePair], after: Sequence[NodePair]) -> list[str]:
    """What changed between two sets of pairs, a sentence for each GPU; empty when nothing did."""
    said: list[str] = []
    for gpu in sorted({item.gpu for item in (*before, *after)}):
        old = {item.id: item for item in before if item.gpu == gpu}
        new = {item.id: item for item in after if item.gpu == gpu}
        if {ssd: item.distance for ssd, item in old.items()} == {ssd: item.distance for ssd, item in new.items()}:
            continue
        lost = [
            f"{_words(item)}" for ssd, item in old.items() if new.get(ssd) is None or new[ssd].distance != item.distance
        ]
        won = [
            f"{_words(item)}" for ssd, item in new.items() if old.get(ssd) is None or old[ssd].distance != item.distance
        ]
        said.append(f"GPU {short(gpu)}: {', '.join(lost) or 'nothing'} → {', '.join(won) or 'nothing'}")
    return said


def got_worse(before: Sequence[NodePair], after: Sequence[NodePair]) -> bool:
    """Whether some GPU has no SSD any more, or only one that is farther."""
    old, new = best_of(before), best_of(after)
    return any(gpu not in new or new[gpu].distance > item.distance for gpu, item in old.items())


def _is_worse(one: NodePair | BestPair, other: NodePair | BestPair) -> bool:
    """Whether `one` is farther than `other`, or at the same distance clearly narrower. Unknown is neither."""
    if one.distance is not other.distance:
        return one.distance > other.distance
    if one.alone is None or other.alone is None:
        return False
    return one.alone < _AS_WIDE * other.alone


def _words(item: NodePair | BestPair) -> str:
    wide = f", {item.alone / 1000:.1f} GB/s" if item.alone is not None else ""
    return f"{item.id} at {item.distance}{wide}"
