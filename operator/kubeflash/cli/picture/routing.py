"""Which way the lines of pairs take: out of cards, past what is below, to where both ends meet. Pure.

Between boxes there is room that nothing else stands in: below each row of a box a channel (`channels`), at the right of
all rows a gutter, at the right of each column of cards another one. A line leaves the last card of a column at its
foot, any other at its side, into the column's gutter; what is in the last row of a box goes straight down out of it,
what is in another row turns in the channel below into the box's gutter. No line shares its place with another one.
"""

from __future__ import annotations

from collections import defaultdict
from typing import NamedTuple

from kubeflash.cli.picture.boxes import Box
from kubeflash.cli.picture.channels import Channel, Meeting, Turn, dig
from kubeflash.cli.picture.content import Content
from kubeflash.cli.picture.looks import Style

_TRACK = 8.0
"""Between two lines in a gutter; to scale."""
_FAR = 1e9


class Strand(NamedTuple):
    """One end of a pair's line: from a card to the box where both ends meet."""

    pair: int
    address: str


class Router:
    """Ways for the lines of one picture in one style. Rows must be known for the gutters, x for the rest."""

    def __init__(self, content: Content, style: Style) -> None:
        self.content, self.style = content, style
        self.through: defaultdict[int, list[tuple[Strand, Box]]] = defaultdict(list)
        for number, meeting in enumerate(content.meet):
            if meeting is None:
                continue
            for strand in self.strands(number):
                box = content.cards[strand.address]
                while box is not meeting and box.parent is not None:
                    if box.parent.kind != "cell":
                        self.through[id(box.parent)].append((strand, box))
                    box = box.parent
        self.x: dict[Strand, float] = {}
        self.side: dict[Strand, float] = {}
        self.moves: defaultdict[Strand, list[tuple[Channel, Turn]]] = defaultdict(list)
        self.ends: dict[int, Channel] = {}

    def strands(self, number: int) -> tuple[Strand, Strand]:
        """Both ends of a pair's line."""
        pair = self.content.pairs[number]
        return Strand(number, pair.gpu), Strand(number, pair.ssd)

    # how much room

    def column_room(self, column: list[Box]) -> float:
        """Width of the gutter beside a column of cards."""
        tracks = sum(len(self.content.lines(card)) for card in column[:-1])
        return self.style * (_TRACK * tracks + 3) if tracks else 0.0

    def gutter(self, box: Box) -> float:
        """Width of the gutter beside the rows of a box."""
        tracks = len(self._turning(box))
        return self.style * (_TRACK * tracks + 4) if tracks else 0.0

    def turns(self) -> int:
        """How many lines must go round something."""
        return sum(len(self._turning(box)) for box in self.content.boxes)

    def _rows(self, box: Box) -> dict[int, int]:
        """The row of each part."""
        return {id(child): number for number, row in enumerate(box.rows) for child in row}

    def _last_rows(self, box: Box) -> dict[Strand, int]:
        """Down to the channel below which row each line goes in this box."""
        rows = self._rows(box)
        lowest: dict[Strand, int] = {}
        for strand, child in self.through[id(box)]:
            if self.content.meet[strand.pair] is box:
                here = [rows[id(c)] for s, c in self.through[id(box)] if s.pair == strand.pair]
                lowest[strand] = max(here, default=rows[id(child)])
            else:
                lowest[strand] = len(box.rows) - 1
        return lowest

    def _turning(self, box: Box) -> list[Strand]:
        """Those of them that go through the gutter."""
        if len(box.rows) < 2 or box.kind == "cell":
            return []
        rows, lowest = self._rows(box), self._last_rows(box)
        return [strand for strand, child in self.through[id(box)] if rows[id(child)] < lowest[strand]]

    # out of the cards

    def leave(self) -> None:
        """Finds where the lines leave their cards."""
        for cell in self.content.boxes:
            columns = cell.rows if cell.kind == "cell" else [[c] for c in cell.children if c.is_card]
            for column in columns:
                self._leave(column)

    def _leave(self, column: list[Box]) -> None:
        s = self.style
        beside = [strand for card in column[:-1] for strand in reversed(self._ordered(card))]
        for number, strand in enumerate(beside):  # the uppermost one takes the outermost track: so they do not cross
            self.x[strand] = column[0].x + column[0].w + s * (_TRACK * (len(beside) - number - 0.5))
        for card in column[:-1]:
            mine = list(reversed(self._ordered(card)))
            for number, strand in enumerate(mine, 1):
                self.side[strand] = card.h * (0.45 + 0.45 * number / (len(mine) + 1))
        foot = self._ordered(column[-1])
        for number, strand in enumerate(foot, 1):
            self.x[strand] = column[-1].x + column[-1].w * number / (len(foot) + 1)

    def _ordered(self, card: Box) -> list[Strand]:
        """The lines of a card from the left to the right, so that they cross as little as can be."""

        def key(strand: Strand) -> tuple[int, float, float]:
            meeting = self.content.meet[strand.pair]
            assert meeting is not None
            other = next(one for one in self.strands(strand.pair) if one != strand)
            deep = len(meeting.above)
            if any(strand in self._turning(box) for box in card.above if box.kind != "cell"):
                return 2, strand.pair, 0
            there = self.content.cards[other.address]
            target = there.x + there.w / 2
            if other in self._turning(meeting):
                target = _FAR
            return (0, -deep, -target) if target < card.x + card.w / 2 else (1, deep, -target)

        return sorted((Strand(number, card.addresses[0]) for number in self.content.lines(card)), key=key)

    # through the boxes

    def channel(self, box: Box, row: int, extra: float) -> Channel:
        """The channel below a row, once those of all rows and boxes before it are there.

        Args:
            box: which one.
            row: of its rows.
            extra: room at the right of the gutter, for badges.
        """
        s, rows, lowest = self.style, self._rows(box), self._last_rows(box)
        turning = set(self._turning(box))
        left = box.x + box.w - extra - self.gutter(box)
        order = sorted(turning, key=lambda strand: (rows[id(self._child(box, strand))], -self._x_before(box, strand)))
        tracks = {strand: left + s * (_TRACK * (len(order) - number - 0.5) + 2) for number, strand in enumerate(order)}
        mine = [strand for strand, child in self.through[id(box)] if rows[id(child)] == row]
        leaving = [strand for strand in order if strand in mine]
        turns = [Turn(strand.pair, self.x[strand], tracks[strand]) for strand in leaving]
        meetings = [
            self._meeting(number) for number in self.content.meeting(box) if self._ends_in(number, lowest) == row
        ]
        ending = {meeting.pair for meeting in meetings}
        passing = [
            self.x[strand]
            for strand, child in self.through[id(box)]
            if strand.pair not in ending
            and (rows[id(child)] < row <= lowest[strand] or (rows[id(child)] == row == lowest[strand]))
        ]
        limits = (box.x + s * 8, box.x + box.w - s * 4)
        channel = dig(turns, meetings, passing, limits, s.scale)
        for strand, turn in zip(leaving, turns, strict=True):
            self.moves[strand].append((channel, turn))
            self.x[strand] = turn.track
        for number in ending:
            self.ends[number] = channel
        return channel

    def _x_before(self, box: Box, strand: Strand) -> float:
        """Where a line comes into a box, before it turned there."""
        turned = [turn for channel, turn in self.moves[strand] if channel in box.channels]
        return turned[0].x if turned else self.x[strand]

    def _child(self, box: Box, strand: Strand) -> Box:
        return next(child for other, child in self.through[id(box)] if other == strand)

    def _ends_in(self, number: int, lowest: dict[Strand, int]) -> int:
        return lowest[self.strands(number)[0]]

    def _meeting(self, number: int) -> Meeting:
        left, right = sorted(self.x[strand] for strand in self.strands(number))
        return Meeting(number, left, right, self.content.badge_width(number, self.style))

    # what comes of it

    def points(self, number: int) -> list[tuple[float, float]]:
        """The corners of a pair's line."""
        one, other = (self._down(strand) for strand in self.strands(number))
        return [*one, *reversed(other)]

    def _down(self, strand: Strand) -> list[tuple[float, float]]:
        card = self.content.cards[strand.address]
        x = self.moves[strand][0][1].x if self.moves[strand] else self.x[strand]
        if strand in self.side:
            y = card.y + self.side[strand]
            points = [(card.x + card.w, y), (x, y)]
        else:
            points = [(x, card.y + card.h)]
        for channel, turn in self.moves[strand]:
            y = channel.y(strand.pair)
            points += [(turn.x, y), (turn.track, y)]
        return [*points, (self.x[strand], self.ends[strand.pair].y(strand.pair))]
