"""The drawing: heading, boxes with their links, cards, lines of pairs. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from itertools import pairwise
from math import ceil

from kubeflash.cli.picture.boxes import BRIDGES, Box
from kubeflash.cli.picture.content import Content
from kubeflash.cli.picture.foot import Foot
from kubeflash.cli.picture.ink import Ink, polyline
from kubeflash.cli.picture.layout import Layout, best_style
from kubeflash.cli.picture.looks import (
    DASHES,
    FONT,
    GREY,
    HEIGHT,
    INK,
    LINE,
    LOOKS,
    MARGIN,
    TOP,
    WIDTH,
    text_on,
    thickness,
)
from kubeflash.cli.picture.routing import Router
from kubeflash.cli.picture.words import clean, counted, rate, short_model, text_width
from kubeflash.topology.analysis import Analysis
from kubeflash.topology.faults import short


def draw(analysis: Analysis, *, title: str = "") -> str:
    """One server as a self-contained SVG document: no scripts, nothing loaded; the same input gives the same text.

    Args:
        analysis: what to draw.
        title: the heading; the server's own name if empty.
    """
    return _Picture(analysis, title or analysis.server.name or "server").svg()


class _Picture:
    """Draws what the layout has placed."""

    def __init__(self, analysis: Analysis, title: str) -> None:
        self.server, self.title = analysis.server, title
        self.content = Content(analysis)
        self.ink = Ink()
        self.foot = Foot(self.content)
        # a long list of faults makes the picture higher, not the server smaller
        room = max(HEIGHT - TOP - self.foot.put(Ink(), 0, WIDTH), HEIGHT / 2)
        self.style = best_style(self.content, WIDTH - 2 * MARGIN, room)

    def svg(self) -> str:
        """The document."""
        content = self.content
        layout = Layout(content, self.style)
        layout.run(WIDTH - 2 * MARGIN, MARGIN, TOP)
        width = max(WIDTH, ceil(content.top.w + 2 * MARGIN))
        self._header(width)
        for box in content.boxes:
            self._box(box)
        for number, meeting in enumerate(content.meet):
            if meeting is not None:
                self._line(number, layout.router)
        bottom = TOP + content.top.h
        height = ceil(bottom + self.foot.put(self.ink, bottom, width))
        body = "\n".join("\n".join(layer) for layer in self.ink.layers if layer)
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
            f'font-family="{FONT}" role="img" aria-labelledby="title desc">\n'
            f'<title id="title">{escape(clean(self.title))}: GPUs and NVMe SSDs by PCIe topology</title>\n'
            f'<desc id="desc">{escape(clean(self._description()))}</desc>\n'
            f'<rect width="{width}" height="{height}" fill="#fff"/>\n{body}\n</svg>\n'
        )

    def _description(self) -> str:
        """The picture in words."""
        content = self.content
        parts = [f"{self.title}: {content.verdict()[0]}."]
        parts += [
            f"P{number}: {content.name(pair.gpu)} {pair.gpu} with {content.name(pair.ssd)} {pair.ssd}, {pair.distance}"
            + (f", {rate(pair.gbps)}" if pair.gbps is not None else "")
            + "."
            for number, pair in enumerate(content.pairs)
        ]
        for group in content.faults:
            parts += [f"{fault.kind} {fault.address}: {fault.message}; {fault.remedy}" for fault in group]
        return " ".join(parts)

    # heading

    def _header(self, width: float) -> None:
        content, server = self.content, self.server
        x: float = width - MARGIN
        # that all have neighbours is not that all is well: what is wrong stands beside it
        for text, good in (content.verdict(), (content.trouble(), False)):
            if not text:
                continue
            room = text_width(text, 17, bold=True) + 32
            x -= room
            fill, stroke = ("#e2f3ec", "#00734f") if good else ("#fff3cd", "#a66b00")
            more = f'fill="{fill}" stroke="{stroke}" stroke-width="2" class="verdict"'
            self.ink.rect(3, x, 26, room, 38, r=19, more=more)
            self.ink.text(x + room / 2, 51, text, 17, most=room - 24, bold=True, middle=True)
            x -= 12
        self.ink.text(MARGIN, 46, self.title, 28, most=x - MARGIN - 24, bold=True)
        nodes = {device.numa_node for device in server.tree} - {None}
        sockets = {device.socket for device in server.tree} - {None}
        by_socket = sockets and len(sockets) != len(nodes)
        counts = [
            counted(len(sockets), "socket") if by_socket else counted(len(nodes), "NUMA node"),
            counted(len(content.gpu_numbers), "GPU"),
            counted(len(content.ssd_numbers), "NVMe SSD"),
            f"read from {server.source}" if server.source else "",
            f"kernel {server.kernel}" if server.kernel else "",
        ]
        line = "   ·   ".join(part for part in counts if part)
        self.ink.text(MARGIN, 70, line, 14, most=x - MARGIN - 24, fill=GREY)

    # boxes

    def _box(self, box: Box) -> None:
        s, ink = self.style, self.ink
        self._link(box)
        if box.is_card:
            ink.begin(self.content.tip(box), 'class="device"')
            self._card(box)
            ink.end()
            return
        if box.kind == "cell":
            if box.near:
                colour = self.content.colour(box.owner) if box.owner else GREY
                more = f'fill="{colour}" fill-opacity="0.13" stroke="{colour}" stroke-width="2" class="neighbours"'
                ink.rect(0, box.x, box.y, box.w, box.h, r=s * 8, more=more)
            caption = self.content.caption(box, s)
            halo = "" if box.near else "#fff"
            for number, (what, words) in enumerate(caption.items()):
                y = box.y + box.h - s * (14 * (len(caption) - 1 - number) + 6)
                brief = short_model(what, box.w - s * 50, s * 10)
                ink.text(box.x + s * 9, y, words.replace(what, brief), s * 10, most=box.w - s * 14, halo=halo)
            return
        if box.kind == "server":
            return
        fill, stroke, bar, ink_on_bar, more = LOOKS[box.kind]
        ink.rect(
            0, box.x, box.y, box.w, box.h, r=s * 7, more=f'fill="{fill}" stroke="{stroke}" {more} class="{box.kind}"'
        )
        if not box.label:
            return
        if bar:
            ink.rect(3, box.x, box.y, box.w, s * 20, r=s * 6, more=f'fill="{bar}"')
        room = box.w - s * 18 - self.content.marks_width(box, s)
        ink.text(
            box.x + s * 9, box.y + s * (14 if bar else 17), box.label, s * 12, most=room, bold=True, fill=ink_on_bar
        )
        self._marks(box, box.x + box.w - s * 6, box.y + s * (2.5 if bar else 5))

    def _marks(self, box: Box, right: float, y: float) -> None:
        """Warning signs, the last one at the right end."""
        s, numbers = self.style, self.content.marks(box)
        x = right - self.content.marks_width(box, s)
        shown, more = self.content.shown_marks(box, s)
        tips = []
        for number in numbers:
            group = self.content.faults[number - 1]
            mine = [fault for fault in group if fault.address in box.addresses] or group
            tips.append("; ".join(f"{fault.kind}: {fault.message}" for fault in mine))
        for number, tip in list(zip(numbers, tips, strict=True))[:shown]:
            serious = any(fault.serious for fault in self.content.faults[number - 1])
            self.ink.mark(x + s * 1, y, number, s.scale, tip, serious=serious)
            x += s * 19
        if more:
            self.ink.begin("; ".join(tips[shown:]), 'class="mark"')
            self.ink.text(x + s * 1, y + s * 12, f"+{more}", s * 9, most=s * 17, bold=True)
            self.ink.end()

    def _link(self, box: Box) -> None:
        """The link above a box: a line from the bar of the bridge, as thick as it is wide."""
        s, ink, parent = self.style, self.ink, box.parent
        if parent is None:
            return
        if parent.kind == "cell":
            self._bus(box, parent)
            return
        if parent.kind not in BRIDGES or box.kind == "cell":
            return
        row = next(row for row in parent.rows if box in row)
        start = parent.y + s * 20
        x = box.x + s * 13
        if row is not parent.rows[0]:
            start = box.y - max(s * 9, *(self.content.head_height(child, s) for child in row)) + s * 2
            self._rail(parent, row, start)
        ink.put(2, f'<path d="M{x:.1f} {start:.1f}V{box.y:.1f}" {self._look(box)}/>')
        y = box.y - s * (14 * len(self.content.head_lines(box)) + 1)
        if box.port:
            ink.rect(
                3, x - s * 5, y + s * 1, s * 10, s * 10, r=s * 2, more=f'fill="#fff" stroke="{INK}" stroke-width="1.5"'
            )
        for line in self.content.head_lines(box):
            y += s * 14
            ink.text(
                x + s * 9,
                y - s * 4,
                line,
                s * 10,
                most=box.w - s * 22,
                fill=GREY,
                halo="#fff" if parent.kind != "switch" else "#eaf1f7",
            )

    def _look(self, box: Box) -> str:
        """The stroke of the link above a box, by its bandwidth; dashed when nothing is known of it."""
        width = self.style * thickness(self.content.gbps(box))
        dashed = box.edge is None and box.kind not in ("port", "vmd")  # those hang on the root complex's own bus
        dashes = f' stroke-dasharray="{self.style * 3:.1f}"' if dashed else ""
        return f'stroke="{GREY}" stroke-width="{width:.1f}"{dashes} class="link"'

    def _rail(self, parent: Box, row: list[Box], y: float) -> None:
        """Leads a bridge's bus to a further row: down at the left, then across."""
        s = self.style
        last = row[-1].x + s * (13 if row[-1].kind != "cell" else 10)
        path = polyline([(parent.x + s * 3.5, parent.y + s * 20), (parent.x + s * 3.5, y), (last, y)], s * 3)
        self.ink.put(1, f'<path d="{path}" fill="none" stroke="{LINE}" stroke-width="{s * 2:.1f}"/>')

    def _bus(self, card: Box, cell: Box) -> None:
        """The link of a card in a cell: to the bus at the left of its column, which hangs on the bridge's bar."""
        s, bridge = self.style, cell.parent
        if bridge is None or bridge.kind not in BRIDGES:
            return
        x, y = card.x - s * 10, card.y + s * 13
        column = self.content.column(card)
        if card is column[0]:
            row = next(row for row in bridge.rows if cell in row)
            start = bridge.y + s * 20
            if row is not bridge.rows[0]:
                start = cell.y - max(s * 9, *(self.content.head_height(child, s) for child in row)) + s * 2
                self._rail(bridge, row, start)
            end = column[-1].y + s * 13
            self.ink.put(2, f'<path d="M{x:.1f} {start:.1f}V{end:.1f}" stroke="{LINE}" stroke-width="{s * 2:.1f}"/>')
        self.ink.put(2, f'<path d="M{x - s * 1:.1f} {y:.1f}H{card.x:.1f}" {self._look(card)}/>')

    def _card(self, box: Box) -> None:
        s, ink, content = self.style, self.ink, self.content
        address = box.addresses[0]
        refused = bool(self.server.fact(address).reason)
        name, colour = content.name(address), content.colour(address) if box.kind == "gpu" else GREY
        stroke = f'stroke="{colour}" stroke-width="{2.5 if box.kind == "gpu" else 1.3}"'
        look = f'fill="{"#eceff1" if refused else "#fff"}" {stroke}' + (' stroke-dasharray="5 3"' if refused else "")
        ink.rect(
            3,
            box.x,
            box.y,
            box.w,
            box.h,
            r=s * 6,
            more=f'{look} class="card {box.kind}" data-address="{escape(clean(address))}"',
        )
        room, left = box.w - s * 14, box.x + s * 7
        wide = text_width(name, s * 11, bold=True) + s * 10
        self._badge(left, box.y + s * 5, wide, name, address if box.kind == "gpu" else "", 11)
        free = room - wide - s * 6 - content.marks_width(box, s)
        ink.text(left + wide + s * 6, box.y + s * 18, short(address), s * 11, most=free, bold=True, shrink=True)
        self._marks(box, box.x + box.w - s * 5, box.y + s * 6)
        y = box.y + s * 35
        for number, line in enumerate(content.card_lines(box, s)):
            is_model = number == 0 and line == content.model(box)
            words = short_model(line, room, s * 10.5) if is_model else line
            ink.text(left, y, words, s * 10.5, most=room, fill=INK if is_model else GREY)
            y += s * 14
        y -= s * 9
        if box.kind == "gpu":
            text, good = content.status(address, s)
            if not good:
                ink.rect(3, left - s * 2, y, room + s * 4, s * 17, r=s * 4, more='fill="#fff3cd" stroke="#a66b00"')
            ink.text(left + s * 2, y + s * 12.5, text, s * 10.5, most=room - s * 2, bold=True, shrink=True)
            return
        own, away = content.chips(box)
        for pair in own:
            self._badge(left - s * 2, y, room + s * 4, content.badge(pair, s), content.pairs[pair].gpu, 10, pair=pair)
            y += s * 20
        across = s.chips
        for at, pair in enumerate(away):
            x = left - s * 2 + s * (34 * (at % across))
            self._badge(x, y + s * (20 * (at // across)), s * 32, f"P{pair}", content.pairs[pair].gpu, 10, pair=pair)

    def _badge(
        self, x: float, y: float, w: float, text: str, gpu: str, size: float, *, pair: int | None = None
    ) -> None:
        """A name or a pair, in the GPU's colour; without a GPU it is an SSD's name."""
        s, ink = self.style, self.ink
        colour = self.content.colour(gpu) if gpu else "#fff"
        if pair is not None:
            view = self.content.pairs[pair]
            says = {True: "peer-to-peer possible", False: "no peer-to-peer", None: "peer-to-peer not said"}
            peers = f"{says[view.peer_to_peer.possible]}: {view.peer_to_peer.why}"
            tip = f"P{pair}: {view.gpu} and {view.ssd}: {view.why}; {peers}"
            ink.begin(tip, f'class="pair" data-pair="P{pair}"')
        ink.rect(3, x, y, w, s * 17, r=s * 4, more=f'fill="{colour}" stroke="{colour if gpu else INK}"')
        if gpu and self.content.again(gpu):
            more = f'fill="none" stroke="{text_on(colour)}" stroke-width="1.2"'
            ink.rect(3, x + s * 1.8, y + s * 1.8, w - s * 3.6, s * 13.4, r=s * 3, more=more)
        fill = text_on(colour) if gpu else INK
        ink.text(
            x + w / 2, y + s * 12.3, text, s * size, most=w - s * 4, bold=True, fill=fill, middle=True, shrink=True
        )
        if pair is not None:
            ink.end()

    def _line(self, number: int, router: Router) -> None:
        """A pair that is not in one cell: out of both cards, to where both ends meet, with its badge there."""
        s, content, pair = self.style, self.content, self.content.pairs[number]
        points, channel = router.points(number), router.ends[number]
        y, way = channel.y(number), channel.ways[number]
        assert way.badge is not None
        colour, dashes = content.colour(pair.gpu), DASHES[pair.distance]
        dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
        path = polyline(points, s * 6)
        width = content.badge_width(number, s)
        for end, (x, _) in zip((way.left, way.right), sorted(points[at] for at in _ends_at(points, y)), strict=True):
            path += f"M{x:.1f} {y:.1f}L{end:.1f} {y:.1f}" if abs(x - end) > 0.1 else ""  # leads to a badge beside it
        ends = "".join(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{s * 3:.1f}" fill="{colour}"/>' for x, y in (points[0], points[-1])
        )
        self.ink.put(1, f'<path d="{path}" fill="none" stroke="#fff" stroke-width="{s * 5:.1f}"/>')
        look = f'fill="none" stroke="{colour}" stroke-width="{s * 2.4:.1f}"{dashed} class="line" data-pair="P{number}"'
        self.ink.put(1, f'<path d="{path}" {look}/>{ends}')
        self._badge(way.badge, y - s * 8.5, width, content.lane_badge(number), pair.gpu, 10.5, pair=number)


def _ends_at(points: Sequence[tuple[float, float]], y: float) -> tuple[int, int]:
    """The corners between which a line has its badge."""
    at = next(number for number, (one, other) in enumerate(pairwise(points)) if one[1] == other[1] == y)
    return at, at + 1
