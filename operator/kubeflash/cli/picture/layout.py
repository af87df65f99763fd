"""Where everything is: each style is tried, the one that reads best is taken. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

from kubeflash.cli.picture.boxes import BRIDGES, Box
from kubeflash.cli.picture.content import Content
from kubeflash.cli.picture.looks import Style, styles_from_best
from kubeflash.cli.picture.routing import Router
from kubeflash.cli.picture.words import text_width

_GAP = 16.0
"""Between regions."""
_BUS = 15.0
"""Width of a bus left of a column of cards; to scale."""
_TRIES = 8
"""To find room for badges: each try widens the boxes that lack it."""


def best_style(content: Content, most: float, room: float) -> Style:
    """The style that reads best among those in which the server fits on a slide; else the one that is lowest.

    Args:
        content: what is to be placed.
        most: width of the slide.
        room: its height.
    """
    deepest = max((len(box.children) for box in content.boxes if box.kind == "cell"), default=1)
    regions = max(1, min(4, len(content.top.children)))
    best: tuple[float, int, float, Style] | None = None
    lowest: tuple[bool, float, Style] | None = None
    for styles in styles_from_best(deepest, regions):
        for style in styles:
            layout = Layout(content, style)
            layout.run(most)
            top = content.top
            wide = top.w > most + 0.5
            detours = layout.detours()
            height = top.h + 20 * min(detours, 12)
            if style.scale <= 1 and (lowest is None or (wide, height) < lowest[:2]):
                lowest = (wide, height, style)
            if not wide and top.h <= room:
                # a line that goes round something costs as much as a size; many cannot be helped
                cost = 0.1 * min(detours, 6) - style.scale + 0.1 * style.brief
                if best is None or (cost, detours, top.h) < best[:3]:
                    best = (cost, detours, top.h, style)
        if best is not None and best[0] <= -styles[0].scale:
            break  # smaller ones cannot be better
    if best is not None:
        return best[3]
    assert lowest is not None
    return lowest[2]


class Layout:
    """Finds a place for everything in one style: widths from the inside, then x from the outside, then heights."""

    def __init__(self, content: Content, style: Style) -> None:
        self.content, self.style = content, style
        self.router = Router(content, style)
        self.extra: dict[int, float] = {}

    def run(self, most: float, left: float = 0, top: float = 0) -> None:
        """Places all boxes and lines, the outermost one at `left`, `top`, and `most` wide if that can be."""
        server = self.content.top
        for _ in range(_TRIES):
            self.router = Router(self.content, self.style)
            self._width(server, most)
            server.x, server.y = left, top
            self._across(server, server.w)
            self.router.leave()
            self._height(server)
            lacking = {
                id(box): room
                for box in self.content.boxes
                if (room := max((channel.lacking for channel in box.channels), default=0)) > self.extra.get(id(box), 0)
            }
            if not lacking:
                break
            self.extra |= {box: room + self.style * 16 for box, room in lacking.items()}
        server.y = top
        self._down(server)

    def _beside(self, box: Box) -> float:
        """Room at the right of what is in a box: its gutter, and what badges need."""
        return self.router.gutter(box) + self.extra.get(id(box), 0)

    def detours(self) -> int:
        """How many lines go round something, and how many badges stand beside theirs."""
        return self.router.turns() + sum(channel.leaders for box in self.content.boxes for channel in box.channels)

    def _width(self, box: Box, most: float) -> None:
        """The width that a box needs, `most` at most if that can be, and how its children form rows."""
        if box.is_card:
            box.w = self.style.card
        elif box.kind == "cell":
            self._columns(box)
        elif box.kind == "server":
            across = max(1, min(self.style.regions, len(box.children)))
            box.rows = [box.children[at : at + across] for at in range(0, len(box.children), across)]
            box.w, beside = most, self._beside(box)
            for row in box.rows:
                for child in row:
                    self._width(child, (most - beside - _GAP * (len(row) - 1)) / len(row))
                widest = max(child.w for child in row)
                box.w = max(box.w, (widest + _GAP) * len(row) - _GAP + beside)
        else:
            self._rows(box, most)

    def _columns(self, box: Box) -> None:
        """A cell: cards in columns of about the same height, in order."""
        heights = []
        for card in box.children:
            card.w, card.h = self.style.card, self.content.card_height(card, self.style)
            heights.append(card.h + self.style * 7)
        wanted = ceil(len(box.children) / self.style.deepest)
        limit = max(sum(heights) / wanted, *heights)
        while len(columns := _stack(box.children, heights, limit)) > wanted:
            limit += self.style * 8
        box.rows = columns
        box.w = self.style * 6 + sum(self._column(box, column) for column in columns)

    def _column(self, box: Box, column: list[Box]) -> float:
        """Width of a column, with its bus at the left, and the gutter by which lines leave at the right."""
        least = self.style * (8 if box.near else 16)
        return self.style.card + self.style * _BUS + max(least, self.router.column_room(column))

    def _rows(self, box: Box, most: float) -> None:
        """A box of boxes: side by side while there is room, and beside them room for the lines that go round them."""
        beside = self.extra.get(id(box), 0)
        while True:
            widest = self._fill(box, most - beside)
            if beside >= self._beside(box) - 0.01:
                break
            beside = self._beside(box)
        badges = [self.content.badge_width(number, self.style) for number in self.content.meeting(box)]
        label = (
            text_width(box.label, self.style * 12, bold=True)
            + self.style * 20
            + self.content.marks_width(box, self.style)
        )
        around = widest + 2 * self._pad(box) + self._beside(box)
        box.w = max(label, self.content.head_width(box, self.style), around, *(b + self.style * 12 for b in badges))

    def _fill(self, box: Box, most: float) -> float:
        """Makes rows that are `most` wide if that can be; returns how wide the widest one is."""
        pad, gap = self._pad(box), self.style * 10
        box.rows, widest, x = [], 0.0, 0.0
        for child in box.children:
            self._width(child, most - 2 * pad)
            # what belongs to no GPU here stands below its neighbours where all is narrow, else beside them
            near = [cell for cell in box.children if cell.near]
            below = child.kind == "cell" and not child.near and near and all(len(cell.rows) == 1 for cell in near)
            below = below and not any(self.content.lines(card) for card in child.children)
            if not box.rows or below or x + gap + child.w > most - 2 * pad + 0.01:
                box.rows.append([])
                x = -gap
            box.rows[-1].append(child)
            x += gap + child.w
            widest = max(widest, x)
        return widest

    def _pad(self, box: Box) -> float:
        return self.style * (10 if box.kind in ("region", "socket") else 7)

    def _across(self, box: Box, width: float) -> None:
        """Spreads what is in a box over its width."""
        box.w = max(box.w, width)
        if box.kind == "cell":
            at = box.x + self.style * 6
            for column in box.rows:
                for card in column:
                    card.x = at + self.style * _BUS
                at += self._column(box, column)
            return
        room = box.w - self._beside(box)
        for row in box.rows:
            if box.kind == "server":
                each = (room - _GAP * (len(row) - 1)) / len(row)
                for number, child in enumerate(row):
                    child.x = box.x + number * (each + _GAP)
                    self._across(child, each)
                continue
            gap = self.style * 10
            taken = sum(child.w for child in row) + gap * (len(row) - 1)
            spare = max(room - 2 * self._pad(box) - taken, 0)
            # nodes of the machine fill their place, so that the eye finds a grid; switches and cards stay compact
            growth = {"socket": spare, "region": self.style * (60 * len(row))}
            grow = min(spare, growth.get(box.kind, 0.0)) / len(row)
            spare -= grow * len(row)
            between = gap + min(spare / (len(row) + 1), self.style * 30)
            x = box.x + (room - sum(child.w + grow for child in row) - between * (len(row) - 1)) / 2
            for child in row:
                child.x = x
                self._across(child, child.w + (0 if child.is_card else grow))
                x += child.w + between

    def _height(self, box: Box) -> None:
        """How high a box is, and how far below its own top its children and channels are."""
        box.channels = []
        if box.kind == "cell":
            box.h = 0
            for column in box.rows:
                y = self.style * 6
                for card in column:
                    card.y = y
                    y += card.h + self.style * 7
                box.h = max(box.h, y - self.style * 1)
            box.h += self.style * (14 * len(self.content.caption(box, self.style)))
            return
        if box.is_card:
            box.h = self.content.card_height(box, self.style)
            return
        gap = _GAP if box.kind == "server" else self.style * 10
        y = 0.0 if box.kind == "server" else self.style * 23 if box.label else self._pad(box)
        for number, row in enumerate(box.rows):
            for child in row:
                self._height(child)
            least = self.style * 9 if box.kind in BRIDGES else 0 if box.kind == "server" else self.style * 3
            y += max(least, *(self.content.head_height(child, self.style) for child in row))
            deepest = max(child.h for child in row)
            for child in row:
                child.y = y
                child.h = child.h if child.is_card or child.kind == "cell" else deepest
            y += deepest
            channel = self.router.channel(box, number, self.extra.get(id(box), 0))
            box.channels.append(channel)
            channel.top = y + self.style * (4 if box.kind != "server" else 8)
            y = channel.top + channel.height if channel.height else y
            y += gap
        ends = bool(box.channels and box.channels[-1].height)
        box.h = y - gap + (self.style * 4 if ends else 0 if box.kind == "server" else self._pad(box))

    def _down(self, box: Box) -> None:
        """Makes heights below the parent's top places in the picture."""
        for channel in box.channels:
            channel.top += box.y
        for child in box.children:
            child.y += box.y
            self._down(child)


def _stack(cards: Sequence[Box], heights: Sequence[float], limit: float) -> list[list[Box]]:
    columns: list[list[Box]] = [[]]
    height = 0.0
    for card, tall in zip(cards, heights, strict=True):
        if columns[-1] and height + tall > limit + 0.01:
            columns.append([])
            height = 0.0
        columns[-1].append(card)
        height += tall
    return columns
