"""The room below a row of boxes, in which lines run across: each in a lane of its own, with its badge on it. Pure.

Lines come from above. Some only pass, some go to a track in the gutter at the right, which leads them past the rows
below, and some end here: both ends of a pair's line meet. Where lines cross, they cross at right angles, and never
below a badge.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

LANE, THIN = 22.0, 9.0
"""Height of a lane with a badge, and of one without; to scale."""
_APART = 8.0
"""Between two lines in one lane."""


@dataclass(frozen=True)
class Turn:
    """A pair's line that goes from `x` to `track`, and down again."""

    pair: int
    x: float
    track: float


@dataclass(frozen=True)
class Meeting:
    """A pair's line between its two ends, with a badge that is `badge` wide."""

    pair: int
    left: float
    right: float
    badge: float


@dataclass(frozen=True)
class Way:
    """What a pair has of a channel: y below its top, from where to where; of a meeting where its badge begins."""

    y: float
    left: float
    right: float
    badge: float | None = None


@dataclass(eq=False)
class Channel:
    """A channel with all lines in their lanes.

    Attributes:
        top: where it begins: below the top of its box, at last in the picture.
        lacking: by how much the widest badge for which there is no place needs more room at the right; 0 if all fit.
        leaders: badges that stand beside their line, which was made longer for them.
    """

    height: float = 0
    ways: dict[int, Way] = field(default_factory=dict)
    lacking: float = 0
    leaders: int = 0
    top: float = 0

    def y(self, pair: int) -> float:
        """Where a pair's line runs across."""
        return self.top + self.ways[pair].y


def dig(
    turns: Sequence[Turn],
    meetings: Iterable[Meeting],
    passing: Sequence[float],
    limits: tuple[float, float],
    scale: float,
) -> Channel:
    """A channel for these lines.

    Args:
        turns: uppermost first.
        meetings: short ones come first, several in a lane where they fit.
        passing: x of the lines that only pass.
        limits: x between which badges may be.
        scale: of lanes.
    """
    channel = Channel(height=len(turns) * THIN * scale)
    for number, turn in enumerate(turns):
        left, right = sorted((turn.x, turn.track))
        channel.ways[turn.pair] = Way((number + 0.5) * THIN * scale, left, right)
    lanes: list[list[tuple[float, float]]] = []
    placed: list[tuple[int, Meeting]] = []
    waiting = sorted(meetings, key=lambda meeting: (meeting.right - meeting.left, meeting.left, meeting.pair))
    always = [*passing, *(turn.track for turn in turns)]
    while waiting:
        meeting = waiting.pop(0)
        later = [x for other in waiting for x in (other.left, other.right)]
        for number in range(len(lanes) + 1):
            used = lanes[number] if number < len(lanes) else []
            if any(meeting.left < b + _APART and a - _APART < meeting.right for a, b in used):
                continue
            deeper = [x for lane, other in placed if lane > number for x in (other.left, other.right)]
            walls = [*used, *((x, x) for x in (*always, *later, *deeper))]
            badge = _badge(meeting, walls, limits, scale, leader=number == len(lanes))
            if badge is None and number < len(lanes):
                continue
            if number == len(lanes):
                lanes.append([])
            if badge is None:
                channel.lacking = max(channel.lacking, meeting.badge)
                badge = max(limits[0], (meeting.left + meeting.right - meeting.badge) / 2)
            left, right = meeting.left, meeting.right
            if badge > right or badge + meeting.badge < left:
                channel.leaders += 1
                left, right = min(left, badge), max(right, badge + meeting.badge)
            y = channel.height + (number + 0.5) * LANE * scale
            channel.ways[meeting.pair] = Way(y, left, right, badge)
            lanes[number].append((min(left, badge), max(right, badge + meeting.badge)))
            placed.append((number, meeting))
            break
    channel.height += len(lanes) * LANE * scale
    return channel


def _badge(
    meeting: Meeting, walls: Iterable[tuple[float, float]], limits: tuple[float, float], scale: float, *, leader: bool
) -> float | None:
    """Where the badge begins: as near as can be to the middle of its line, without a wall in it.

    Args:
        meeting: the line; its own ends are no walls.
        walls: from x to x.
        limits: x between which it may be.
        scale: of the room beside it.
        leader: it may be beside the line too, if it cannot be on it.
    """
    apart = 7 * scale
    gaps, start = [], limits[0]
    for left, right in sorted(walls):
        gaps.append((start, left - apart))
        start = max(start, right + apart)
    gaps.append((start, limits[1]))
    middle = (meeting.left + meeting.right - meeting.badge) / 2
    found: list[tuple[bool, float, float]] = []
    for left, right in gaps:
        if right - left >= meeting.badge:
            at = max(left, min(middle, right - meeting.badge))
            beside = at > meeting.right or at + meeting.badge < meeting.left
            # what sticks out hides where the line turns
            out = max(0.0, meeting.left - at, at + meeting.badge - meeting.right)
            found.append((beside, abs(at - middle) + out, at))
    best = min(found, default=None)
    return None if best is None or (best[0] and not leader) else best[2]
