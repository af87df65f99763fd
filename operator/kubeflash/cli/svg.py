"""A server's PCIe tree as a picture: which GPUs and SSDs are neighbours, how wide the way is, what is wrong. Pure.

Boxes in boxes are the tree: a NUMA node, its host bridges, the switches below, the cards of GPUs and SSDs. Neighbours
are drawn in one frame; a pair that is further apart is a line, in a lane at the bottom of the innermost box that holds
both. No viewer is asked for its fonts: text is measured by the widest of the usual ones, DejaVu Sans, and cut to fit.
"""

from __future__ import annotations

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import pairwise, product
from math import ceil, sqrt
from typing import Literal

from kubeflash.api.quantity import human_bytes
from kubeflash.api.v1alpha1 import Distance
from kubeflash.topology.analysis import Analysis, PairView
from kubeflash.topology.devices import VENDORS
from kubeflash.topology.faults import Fault, short
from kubeflash.topology.links import Edge, edges
from kubeflash.topology.tree import PciDevice, Step

WIDTH, HEIGHT = 1600, 900
"""A slide; the height grows where the server needs it."""
_MARGIN = 32
_MOST_FAULTS = 6
_DEEPEST = 12
"""Boxes in boxes; what is below hangs on the last one."""
_FONT = "system-ui, 'Segoe UI', 'Helvetica Neue', Helvetica, Arial, sans-serif"
_GPU_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#6b4c9a", "#8c6d31")
"""Okabe and Ito's, told apart with any kind of colour vision; the yellow, too light on white, and black replaced."""
_INK, _GREY, _LINE, _AMBER = "#1d2730", "#55626d", "#9aa7b2", "#ffc629"
_DASHES = {
    Distance.PIX: "",
    Distance.PXB: "14 4",
    Distance.PHB: "9 5",
    Distance.NODE: "5 4",
    Distance.SYS: "2 4",
    Distance.UNKNOWN: "1 7",
}
_MEANINGS = {
    Distance.PIX: "one PCIe switch at most",
    Distance.PXB: "several switches",
    Distance.PHB: "through the host bridge",
    Distance.NODE: "other host bridge, same socket",
    Distance.SYS: "across sockets",
    Distance.UNKNOWN: "not said by this source",
}
_MAKERS = ("NVIDIA", "AMD", "INTEL", "SAMSUNG", "KIOXIA", "MICRON", "SOLIDIGM", "WDC", "HGST", "SEAGATE", "SK", "HYNIX")


def draw(analysis: Analysis, *, title: str = "") -> str:
    """One server as a self-contained SVG document: no scripts, nothing loaded; the same input gives the same text.

    Args:
        analysis: what to draw.
        title: the heading; the server's own name if empty.
    """
    return _Picture(analysis, title or analysis.server.name or "server").svg()


# Text

_GROUPS = {
    0.34: "'ijlIJ ,.·:;/|\\",
    0.42: "f-()[]t!r",
    0.58: '"*_`sz?cLFk',
    0.65: "vxyPTYaoeESbdghnpqu$0123456789{}",
    0.71: "KAVBRXZC",
    0.8: "UHNDG&OQ",
    0.87: "w#+<=>^~M→",
    1.02: "%mW@…\ufffd",
}
_UNITS = {char: width for width, chars in _GROUPS.items() for char in chars}
_WIDEST = 1.1
_BOLD = 1.14
"""Widths of DejaVu Sans in ems, a little more rather than less."""


def clean(text: str) -> str:
    """Text that XML can hold and that stays on its line: control, format and combining characters are replaced."""
    return "".join(
        " " if char.isspace() else "\ufffd" if unicodedata.category(char)[0] in "CM" else char
        for char in unicodedata.normalize("NFC", text)
    )


def text_width(text: str, size: float, *, bold: bool = False) -> float:
    """Width of a line of text, in the widest of the fonts that viewers usually have: never too little."""
    units = sum(_UNITS.get(char, _WIDEST) for char in text)
    return units * size * (_BOLD if bold else 1)


def fit(text: str, width: float, size: float, *, bold: bool = False) -> str:
    """The text, cut off with an ellipsis where it is wider than `width`."""
    if text_width(text, size, bold=bold) <= width:
        return text
    while text and text_width(text + "…", size, bold=bold) > width:
        text = text[:-1]
    return text.rstrip() + "…"


def wrap(text: str, width: float, size: float, most: int) -> list[str]:
    """The text in lines, `most` at most; what does not fit is cut off with an ellipsis."""
    lines: list[str] = []
    rest = text.split()
    while rest and len(lines) < most:
        if len(lines) == most - 1:
            return [*lines, fit(" ".join(rest), width, size)]
        line = rest.pop(0)
        while rest and text_width(f"{line} {rest[0]}", size) <= width:
            line += " " + rest.pop(0)
        lines.append(fit(line, width, size))
    return lines


def short_model(model: str, width: float, size: float) -> str:
    """A model that fits: without its maker where both do not."""
    if text_width(model, size) > width:
        first, _, rest = model.partition(" ")
        if rest and first.upper() in _MAKERS:
            model = rest
    return fit(model, width, size)


def _gbps(value: float | None) -> str:
    return "" if value is None else f"{value:.1f} GB/s"


_UNSAID = "link not said"


def _link_text(edge: Edge | None, *, gpu: bool = False, brief: bool = False) -> str:
    if edge is None:
        return _UNSAID
    speed = edge.best_speed if gpu and (edge.idles or edge.speed is None) else edge.speed
    lanes = " ".join(
        [*([f"{speed:g} GT/s"] if speed is not None else []), *([f"x{edge.width}"] if edge.width is not None else [])]
    )
    if brief and lanes and speed is not None:
        return lanes
    return " · ".join(part for part in (lanes, _gbps(edge.gbps(gpu=gpu))) if part) or _UNSAID


def _thickness(gbps: float | None) -> float:
    """Of a link's line: grows with the bandwidth, slower than it (4 GB/s: 2.7, 16: 4.2, 63: 7.2)."""
    return 1.5 if gbps is None else min(9.0, 1.2 + 0.75 * sqrt(max(gbps, 0)))


def _text_on(colour: str) -> str:
    """Black or white, whichever is easier to read on a colour (WCAG's relative luminance)."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "#ffffff" if 1.05 / (luminance + 0.05) > (luminance + 0.05) / 0.05 else "#000000"


# What is drawn: the tree of boxes

BoxKind = Literal["server", "socket", "region", "root", "vmd", "port", "switch", "group", "cell", "gpu", "ssd"]
_BRIDGES = ("root", "vmd", "port", "switch")
_NOWHERE = 1 << 30


@dataclass(eq=False)
class Box:
    """One part of the picture; the layout finds its place.

    Attributes:
        port: of what hangs alone on a root port or bridge: that one, in words.
        edge: the link above it.
        addresses: what faults call it.
        owner: of a cell of neighbours: the GPU that its SSDs belong to, if it is one.
        near: of a cell: it holds neighbours.
        rows: of what it holds; in a cell they are columns.
        lanes: pairs that are drawn at the bottom of this box, each with the number of its lane.
        lanes_y: where the lanes begin.
    """

    kind: BoxKind
    label: str = ""
    addresses: list[str] = field(default_factory=list)
    device: PciDevice | None = None
    children: list[Box] = field(default_factory=list)
    parent: Box | None = None
    port: str = ""
    edge: Edge | None = None
    owner: str = ""
    near: bool = False
    rows: list[list[Box]] = field(default_factory=list)
    lanes: dict[int, int] = field(default_factory=dict)
    lanes_y: float = 0
    x: float = 0
    y: float = 0
    w: float = 0
    h: float = 0

    def add(self, child: Box) -> Box:
        """Hangs a part on this one."""
        child.parent = self
        self.children.append(child)
        return child

    def walk(self) -> Iterator[Box]:
        """This part and all below, from the top."""
        yield self
        for child in self.children:
            yield from child.walk()

    @property
    def is_card(self) -> bool:
        """Whether it is a device."""
        return self.kind in ("gpu", "ssd")

    @property
    def above(self) -> list[Box]:
        """The parts that it is in, from the innermost."""
        return [] if self.parent is None else [self.parent, *self.parent.above]


class _Builder:
    """Makes the tree of a server's GPUs and SSDs, with only the bridges that lead to one."""

    def __init__(self, analysis: Analysis) -> None:
        self.analysis, self.server = analysis, analysis.server
        self.top = Box("server")
        self.known: dict[tuple[int, object], Box] = {}
        self.sockets: dict[int | None, int | None] = {
            d.numa_node: d.socket for d in self.server.tree if d.numa_node is not None and d.socket is not None
        }
        nodes = Counter(self.sockets.values())
        self.divided = {socket for socket, count in nodes.items() if count > 1}

    def build(self) -> Box:
        devices = {device.address: device for device in (*self.server.gpu_devices, *self.server.ssd_devices)}
        for device in sorted(devices.values(), key=lambda device: (self._order(device), device.order)):
            self._place(device)
        for box in list(self.top.walk()):
            _fold_ports(box)
        for box in list(self.top.walk()):
            _gather(box, self.analysis)
        return self.top

    def _order(self, device: PciDevice) -> tuple[bool, int, int]:
        """Sockets and NUMA nodes in order; what is not said comes last."""
        unplaced = device.path is None or not device.root_complex
        socket = self.sockets.get(device.numa_node, device.socket)
        return (
            unplaced,
            _NOWHERE if socket is None else socket,
            _NOWHERE if device.numa_node is None else device.numa_node,
        )

    def _part(self, parent: Box, key: object, make: Callable[[], Box]) -> Box:
        """The part of a box that has this key, made if it is not there."""
        found = self.known.get((id(parent), key))
        if found is None:
            found = self.known[id(parent), key] = parent.add(make())
        return found

    def _place(self, device: PciDevice) -> None:
        card = Box("gpu" if device.address in self.server.gpus else "ssd", addresses=[device.address], device=device)
        if device.path is None or not device.root_complex:
            region = self._part(self.top, None, lambda: Box("region", "place not said by this source"))
            known = [f"somewhere below {device.root_complex}"] if device.root_complex else []
            known += [f"NUMA node {device.numa_node}"] if device.numa_node is not None else []
            label = ", ".join(known)
            (self._part(region, label, lambda: Box("group", label)) if label else region).add(card)
            return
        here = self.top
        node = "NUMA node not said" if device.numa_node is None else f"NUMA node {device.numa_node}"
        socket = self.sockets.get(device.numa_node, device.socket)
        if socket in self.divided:
            here = self._part(here, ("socket", socket), lambda: Box("socket", f"socket {socket}"))
        elif socket is not None:
            node = f"socket {socket} · {node}"
        self._hang(card, device, self._part(here, node, lambda: Box("region", node)))

    def _hang(self, card: Box, device: PciDevice, here: Box) -> None:
        """Puts a card below its bridges."""
        root = device.root_complex
        label = f"host bridge {root}" + (" (of which processor, is not said)" if device.detached else "")
        here = self._part(here, root, lambda: Box("root", label, [root]))
        if len(device.bridges) > len(device.local_path):
            vmd = device.bridges[0].address
            domain = device.address.partition(":")[0]
            here = self._part(here, vmd, lambda: Box("vmd", f"VMD {short(vmd)} · PCI domain {domain}", [vmd]))
        steps, links = device.way, dict(edges(device))
        for index, step in enumerate(steps[:_DEEPEST]):
            if index == 0 or steps[index - 1].switch != step.switch:
                here = self._part(here, step.switch, lambda step=step: _bridge(step))  # type: ignore[misc]
                here.edge = here.edge or links.get(index)
            if step.hop.address not in here.addresses:
                here.addresses.append(step.hop.address)
        card.edge = links.get(len(steps))
        here.add(card)


def _bridge(step: Step) -> Box:
    if step.kind in ("SwitchUpstream", "SwitchDownstream"):
        return Box("switch", f"switch {short(step.hop.address)}")
    return Box("port", f"{'root port' if step.kind == 'RootPort' else 'bridge'} {short(step.hop.address)}")


def _fold_ports(box: Box) -> None:
    """A port that leads to one thing is drawn on that thing's link, not as a box around it."""
    for number, child in enumerate(box.children):
        if child.kind == "port" and len(child.children) == 1 and not child.children[0].port:
            only = child.children[0]
            only.port, only.parent = child.label, box
            only.addresses += child.addresses
            box.children[number] = only


def _gather(box: Box, analysis: Analysis) -> None:
    """Puts cards that hang on a box directly into cells: neighbours together, all others that have no port in one."""
    cards = {card.addresses[0]: card for card in box.children if card.is_card}
    if not cards or box.kind == "cell":
        return
    partner = {address: address for address in cards}

    def head(address: str) -> str:
        while partner[address] != address:
            address = partner[address]
        return address

    here = [pair for pair in analysis.pairs if pair.gpu in cards and pair.ssd in cards]
    near = [pair for pair in here if analysis.is_neighbour(pair.distance)]
    for pair in near:
        partner[head(pair.ssd)] = head(pair.gpu)
    cells: dict[str, Box] = {}
    for key in dict.fromkeys(head(pair.gpu) for pair in near):
        members = [card for address, card in cards.items() if head(address) == key]
        gpus = [card.addresses[0] for card in members if card.kind == "gpu"]
        # several GPUs with ports of their own that share an SSD through the host bridge are no close company
        if len(gpus) == 1 or not any(card.port for card in members):
            cells[key] = Box("cell", near=True, owner=gpus[0] if len(gpus) == 1 else "")
    loose, others = Box("cell"), list[Box]()
    for child in box.children:
        at = cells.get(head(child.addresses[0])) if child.is_card else None
        if at is None and (child.port or not child.is_card):
            others.append(child)
        else:
            (at or loose).add(child)
    box.children = []
    for child in (*cells.values(), *others, *([loose] if loose.children else [])):
        child.children.sort(key=lambda card: child.kind == "cell" and card.kind != "gpu")  # stable: by address
        box.add(child)


# Layout


@dataclass(frozen=True)
class Style:
    """How large and how dense.

    Attributes:
        scale: of everything between heading and legend.
        brief: cards are narrow, and links on them without GB/s.
        deepest: cards in a column of a cell.
        regions: side by side.
    """

    scale: float
    brief: bool
    deepest: int
    regions: int

    def __mul__(self, units: float) -> float:
        return units * self.scale

    @property
    def card(self) -> float:
        """Width of a card."""
        return self * (136 if self.brief else 164)


_SIZES = (1.75, 1.5, 1.35, 1.2, 1.1, 1.0, 0.96, 0.92, 0.86)
_ROOMY, _BRIEF = 1.1, 1.2
"""Cards become brief only before they become smaller than the one, and no brief ones are larger than the other."""


def _styles(most: int, regions: int) -> Iterator[list[Style]]:
    """From the best to read to the smallest: grids to try, equally good."""
    sizes = [(scale, False) for scale in _SIZES if scale >= _ROOMY]
    sizes += [(scale, brief) for scale in _SIZES for brief in (False, True) if scale < (_BRIEF if brief else _ROOMY)]
    depths = [depth for depth in (1, 2, 3, 4, 5, 6, 8, 12) if depth <= most] or [1]
    for scale, brief in sizes:
        yield [Style(scale, brief, *grid) for grid in product(depths, range(1, regions + 1))]


class _Layout:
    """Finds a place for everything in one style: widths from the inside, then x from the outside, then heights."""

    def __init__(self, content: _Content, style: Style) -> None:
        self.content, self.style = content, style

    def run(self, top: Box, most: float) -> None:
        """Places all boxes, the outermost one at 0, 0."""
        self._width(top, most)
        top.x = top.y = 0
        self._across(top, top.w)
        self._height(top)
        self._down(top)

    def hidden(self) -> int:
        """How often a line passes behind something that it does not belong to."""
        count = 0
        for number, pair in enumerate(self.content.pairs):
            meeting = self.content.meet[number]
            if meeting is None:
                continue
            for address, x in zip((pair.gpu, pair.ssd), self.content.ends(number, self.style), strict=True):
                card = self.content.cards[address]
                for box in self.content.boxes:
                    if box.x - 2 < x < box.x + box.w + 2 and card.y + card.h < box.y < meeting.lanes_y:
                        count += box.kind != "cell" and box not in card.above
        return count

    def _width(self, box: Box, most: float) -> None:
        """The width that a box needs, `most` at most if that can be, and how its children form rows."""
        if box.is_card:
            box.w = self.style.card
        elif box.kind == "cell":
            self._columns(box)
        elif box.kind == "server":
            across = max(1, min(self.style.regions, len(box.children)))
            box.rows = [box.children[at : at + across] for at in range(0, len(box.children), across)]
            box.w = most
            for row in box.rows:
                for child in row:
                    self._width(child, (most - _GAP * (len(row) - 1)) / len(row))
                widest = max(child.w for child in row)
                box.w = max(box.w, (widest + _GAP) * len(row) - _GAP)
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
        box.w = self.style * 12 + len(columns) * (self._column(box)) - self.style * 6

    def _column(self, box: Box) -> float:
        """Width of a column, with its bus at the left, and the gutter by which lines leave at the right."""
        return self.style.card + self.style * (_BUS + (8 if box.near else 16))

    def _rows(self, box: Box, most: float) -> None:
        """A box of boxes: side by side while there is room."""
        pad, gap = self._pad(box), self.style * 10
        box.rows, widest, x = [], 0.0, 0.0
        for child in box.children:
            self._width(child, most - 2 * pad)
            # what belongs to no GPU here stands below its neighbours where all is narrow, else beside them
            below = (
                child.kind == "cell"
                and not child.near
                and all(len(cell.rows) == 1 for cell in box.children if cell.near)
            )
            if not box.rows or below or x + gap + child.w > most - 2 * pad + 0.01:
                box.rows.append([])
                x = -gap
            box.rows[-1].append(child)
            x += gap + child.w
            widest = max(widest, x)
        badges = [self.content.badge_width(number, self.style) for number in self.content.meeting(box)]
        label = (
            text_width(box.label, self.style * 12, bold=True)
            + self.style * 20
            + self.content.marks_width(box, self.style)
        )
        box.w = max(label, self.content.head_width(box, self.style), widest + 2 * pad, *badges)

    def _pad(self, box: Box) -> float:
        return self.style * (10 if box.kind in ("region", "socket") else 7)

    def _across(self, box: Box, width: float) -> None:
        """Spreads what is in a box over its width."""
        box.w = max(box.w, width)
        if box.kind == "cell":
            for number, column in enumerate(box.rows):
                for card in column:
                    card.x = box.x + self.style * (6 + _BUS) + number * self._column(box)
            return
        for row in box.rows:
            if box.kind == "server":
                each = (box.w - _GAP * (len(row) - 1)) / len(row)
                for number, child in enumerate(row):
                    child.x = box.x + number * (each + _GAP)
                    self._across(child, each)
                continue
            gap = self.style * 10
            taken = sum(child.w for child in row) + gap * (len(row) - 1)
            spare = max(box.w - 2 * self._pad(box) - taken, 0)
            # nodes of the machine fill their place, so that the eye finds a grid; switches and cards stay compact
            grow = min(spare / len(row), self.style * 60) if box.kind in ("region", "socket") else 0.0
            if box.kind == "socket":
                grow = spare / len(row)
            spare -= grow * len(row)
            between = gap + min(spare / (len(row) + 1), self.style * 30)
            x = box.x + (box.w - sum(child.w + grow for child in row) - between * (len(row) - 1)) / 2
            for child in row:
                child.x = x
                self._across(child, child.w + (0 if child.is_card else grow))
                x += child.w + between

    def _height(self, box: Box) -> None:
        """How high a box is, and how far below its own top its children are."""
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
        for row in box.rows:
            for child in row:
                self._height(child)
            least = self.style * 9 if box.kind in _BRIDGES else 0 if box.kind == "server" else self.style * 3
            y += max(least, *(self.content.head_height(child, self.style) for child in row))
            deepest = max(child.h for child in row)
            for child in row:
                child.y = y
                child.h = child.h if child.is_card or child.kind == "cell" else deepest
            y += deepest + gap
        box.lanes_y = y - gap + self.style * (4 if box.kind != "server" else 8)
        self._lanes(box)
        count = max(box.lanes.values()) + 1 if box.lanes else 0
        box.h = y - gap + (0 if box.kind == "server" else self._pad(box))
        if count:
            box.h = box.lanes_y + self.style * (_LANE * count) + self.style * 4

    def _lanes(self, box: Box) -> None:
        """A lane for each pair that meets in this box: short ones above, several in a lane where they fit."""
        spans = []
        for number in self.content.meeting(box):
            left, right = self.content.span(number, box, self.style)
            spans.append((right - left, left, right, number))
        taken: list[list[tuple[float, float]]] = []
        box.lanes = {}
        for _, left, right, number in sorted(spans):
            free = (at for at, used in enumerate(taken) if all(right + 8 < a or b + 8 < left for a, b in used))
            lane = next(free, len(taken))
            taken += [[]] if lane == len(taken) else []
            taken[lane].append((left, right))
            box.lanes[number] = lane

    def _down(self, box: Box) -> None:
        """Makes heights below the parent's top places in the picture."""
        box.lanes_y += box.y
        for child in box.children:
            child.y += box.y
            self._down(child)


_GAP = 16.0
"""Between regions."""
_BUS, _LANE = 15.0, 22.0
"""Width of a bus left of a column of cards, height of a pair's lane; to scale."""


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


# What stands on the parts


class _Content:
    """What is written where, and how much room it takes."""

    def __init__(self, analysis: Analysis) -> None:
        self.analysis, self.server = analysis, analysis.server
        self.top = _Builder(analysis).build()
        self.boxes = list(self.top.walk())
        self.cards = {box.addresses[0]: box for box in self.boxes if box.is_card}
        self.gpu_numbers = {address: number for number, address in enumerate(dict.fromkeys(self.server.gpus))}
        self.ssd_numbers = {address: number for number, address in enumerate(dict.fromkeys(self.server.ssds))}
        self.pairs = [p for p in analysis.pairs if p.gpu in self.gpu_numbers and p.ssd in self.ssd_numbers]
        self.by_address: defaultdict[str, list[int]] = defaultdict(list)
        for number, pair in enumerate(self.pairs):
            for address in (pair.gpu, pair.ssd):
                self.by_address[address].append(number)
        self.meet = [self._meet(pair) for pair in self.pairs]
        self.met: defaultdict[int, list[int]] = defaultdict(list)
        for number, box in enumerate(self.meet):
            if box is not None:
                self.met[id(box)].append(number)
        self.captions: dict[tuple[int, bool], dict[str, str]] = {}
        self.faults = self._fault_groups()
        self.marked = self._marks()
        facts = [self.server.fact(address) for address in self.ssd_numbers]
        self.says_room = any(fact.free is not None or fact.bytes is not None or fact.reason for fact in facts)

    def _meet(self, pair: PairView) -> Box | None:
        """The innermost box that holds both; None for neighbours in one cell, which need no line."""
        gpu, ssd = self.cards[pair.gpu], self.cards[pair.ssd]
        if gpu.parent is ssd.parent and gpu.parent is not None and gpu.parent.near:
            return None
        above = {id(box) for box in gpu.above}
        return next(box for box in ssd.above if id(box) in above and box.kind != "cell")

    def meeting(self, box: Box) -> list[int]:
        """The pairs that are drawn as lines in this box."""
        return self.met[id(box)]

    # names

    def gpu(self, address: str) -> str:
        """G0, G1 and so on, in the order of addresses."""
        return f"G{self.gpu_numbers[address]}"

    def ssd(self, address: str) -> str:
        """S0, S1 and so on."""
        return f"S{self.ssd_numbers[address]}"

    def colour(self, gpu: str) -> str:
        """A GPU's colour."""
        return _GPU_COLOURS[self.gpu_numbers[gpu] % len(_GPU_COLOURS)]

    def again(self, gpu: str) -> bool:
        """Whether the colour is used a second time: then its badges have an inner frame."""
        return self.gpu_numbers[gpu] // len(_GPU_COLOURS) % 2 == 1

    def badge(self, number: int, style: Style) -> str:
        """A pair in short."""
        pair = self.pairs[number]
        cell = self.cards[pair.ssd].parent
        # in a narrow card the frame, which is the GPU's, says whose it is
        gpu = "" if style.brief and cell is not None and cell.owner else self.gpu(pair.gpu)
        return "  ".join(part for part in (f"P{number}", gpu, str(pair.distance), _gbps(pair.gbps)) if part)

    def lane_badge(self, number: int) -> str:
        """A pair in short, with both its ends."""
        pair = self.pairs[number]
        ends = f"{self.gpu(pair.gpu)} → {self.ssd(pair.ssd)}"
        return "   ".join(part for part in (f"P{number}", ends, str(pair.distance), _gbps(pair.gbps)) if part)

    def badge_width(self, number: int, style: Style) -> float:
        """Width of the badge in the lane."""
        return text_width(self.lane_badge(number), style * 10.5, bold=True) + style * 16

    # lines

    def ends(self, number: int, style: Style) -> tuple[float, float]:
        """Where a pair's line leaves the two cards: x below the card, or in the gutter beside it."""
        pair = self.pairs[number]
        return self._end(number, pair.gpu, style), self._end(number, pair.ssd, style)

    def _end(self, number: int, address: str, style: Style) -> float:
        card = self.cards[address]
        column = self.column(card)
        if card is column[-1]:
            mine = self.lines(card)
            return card.x + card.w * (mine.index(number) + 1) / (len(mine) + 1)
        others = [line for other in column[:-1] for line in self.lines(other)]
        return card.x + card.w + style * (3 + 9 * (others.index(number) + 1) / (len(others) + 1))

    def column(self, card: Box) -> list[Box]:
        """The cards of its column, itself alone when it is in no cell."""
        assert card.parent is not None
        if card.parent.kind != "cell":
            return [card]
        return next(column for column in card.parent.rows if card in column)

    def lines(self, card: Box) -> list[int]:
        """The pairs of a card that are lines."""
        return [number for number in self.by_address[card.addresses[0]] if self.meet[number] is not None]

    def span(self, number: int, box: Box, style: Style) -> tuple[float, float]:
        """What a pair takes of its lane: the line, and the badge in its middle."""
        left, right = sorted(self.ends(number, style))
        start = self.badge_x(number, box, style)
        return min(left, start), max(right, start + self.badge_width(number, style))

    def badge_x(self, number: int, box: Box, style: Style) -> float:
        """Where the badge in the lane begins: in the middle of the line, within the box."""
        width = self.badge_width(number, style)
        middle = sum(self.ends(number, style)) / 2
        return max(box.x + 4, min(middle - width / 2, box.x + box.w - width - 4))

    # what is wrong

    def _fault_groups(self) -> list[list[Fault]]:
        """Faults of one kind with one remedy are one entry of the list, with one number."""
        groups: dict[tuple[str, str], list[Fault]] = {}
        for fault in dict.fromkeys([*self.analysis.faults, *(f for pair in self.pairs for f in pair.faults)]):
            groups.setdefault((fault.kind, fault.remedy), []).append(fault)
        return list(groups.values())

    def _marks(self) -> dict[int, list[int]]:
        """The numbers of the faults at each box; a bridge without a box is marked on the one that it is in."""
        place: dict[str, Box] = {}
        for box in self.boxes:
            for address in box.addresses:
                place.setdefault(address, box)
        marks: defaultdict[int, list[int]] = defaultdict(list)
        for number, group in enumerate(self.faults, 1):
            for fault in group:
                at = place.get(fault.address)
                if at is not None and number not in marks[id(at)]:
                    marks[id(at)].append(number)
        return marks

    def marks(self, box: Box) -> list[int]:
        """The numbers of its faults."""
        return self.marked.get(id(box), [])

    def marks_width(self, box: Box, style: Style) -> float:
        """Room for them."""
        shown, more = self.shown_marks(box, style)
        return style * (19 * shown + (18 if more else 0))

    def shown_marks(self, box: Box, style: Style) -> tuple[int, int]:
        """How many are drawn, and how many are only counted: a card has little room beside its address."""
        most = 3 if not box.is_card else 1 if style.brief else 2
        count = len(self.marks(box))
        return min(count, most), max(0, count - most)

    # cards

    def card_height(self, box: Box, style: Style) -> float:
        """Height of a card."""
        lines = len(self.card_lines(box, style))
        own, away = self.chips(box)
        rows = len(own) + ceil(len(away) / _chips_a_row(style)) if box.kind == "ssd" else 1
        return style * (26 + 14 * lines + 20 * rows + 2)

    def chips(self, box: Box) -> tuple[list[int], list[int]]:
        """Pairs of an SSD: those in its cell, and those that are lines."""
        if box.kind != "ssd":
            return [], []
        numbers = self.by_address[box.addresses[0]]
        return [n for n in numbers if self.meet[n] is None], [n for n in numbers if self.meet[n] is not None]

    def card_lines(self, box: Box, style: Style) -> list[str]:
        """What stands below the first line of a card: without what the caption of its cell says of all."""
        said = self.caption(box.parent, style) if box.parent is not None and box.kind == "ssd" else {}
        lines = [line for line in (self.model(box), self.link(box, style)) if line not in said]
        if box.port and box.parent is not None and box.parent.kind == "cell":
            lines.append(box.port)
        if box.kind == "ssd" and self.says_room:
            lines += wrap(self.room(box), style.card - style * 14, style * 10.5, 2)
        return lines

    def caption(self, cell: Box, style: Style) -> dict[str, str]:
        """What is said once for the SSDs of a cell that are alike, and in which words."""
        if cell.kind != "cell" or not style.brief:
            return {}
        key = (id(cell), style.brief)
        if key not in self.captions:
            ssds = [card for card in cell.children if card.kind == "ssd"]
            self.captions[key] = {}
            if len(ssds) >= 3:
                model, count = Counter(map(self.model, ssds)).most_common(1)[0]
                if count > 1:
                    self.captions[key][model] = f"{count} x {model}"
                link, count = Counter(self.link(card, style) for card in ssds).most_common(1)[0]
                if count > 1:
                    self.captions[key][link] = (
                        f"{count} x {_link_text(next(c for c in ssds if self.link(c, style) == link).edge)}"
                    )
        return self.captions[key]

    def link(self, box: Box, style: Style) -> str:
        """The link above a card."""
        return _link_text(box.edge, gpu=box.kind == "gpu", brief=style.brief)

    def model(self, box: Box) -> str:
        """The model of a card, or its ids."""
        assert box.device is not None
        device, fact = box.device, self.server.fact(box.device.address)
        maker = VENDORS.get(device.vendor, "") + " " if device.vendor in VENDORS else ""
        ids = f"{maker}{device.vendor}:{device.device}" if device.vendor or device.device else "model not said"
        return clean(fact.model).strip() or ids

    def room(self, box: Box) -> str:
        """What can be put on an SSD."""
        fact = self.server.fact(box.addresses[0])
        if fact.reason:
            return f"refused: {clean(fact.reason)}"
        if fact.free is not None:
            of = f" of {human_bytes(fact.bytes)}" if fact.bytes is not None else ""
            return f"{human_bytes(fact.free)}{of} free"
        return human_bytes(fact.bytes) if fact.bytes is not None else "free: not said"

    def status(self, gpu: str, style: Style) -> tuple[str, bool]:
        """What a GPU has, and whether it is a neighbour."""
        mine = [self.pairs[number] for number in self.by_address[gpu]]
        if not mine:
            return "no SSD", False
        least = min((pair.distance for pair in mine), key=lambda distance: distance.rank)
        if self.analysis.is_neighbour(least):
            what = "neighbour" if style.brief else "neighbour SSD"
            return f"{_count(len(mine), what)}: {least}", True
        none = "nearest" if style.brief else "no neighbour"
        return ("nearest: unknown" if least is Distance.UNKNOWN else f"{none}: {least}"), False

    def verdict(self) -> tuple[str, bool]:
        """The server in one line, and whether every GPU has a neighbour."""
        gpus = len(self.gpu_numbers)
        found = sorted((pair.distance for pair in self.pairs), key=lambda distance: distance.rank)
        if not gpus or not self.ssd_numbers:
            return "no " + " and no ".join(
                name for name, any_ in (("GPU", gpus), ("SSD", self.ssd_numbers)) if not any_
            ), False
        if not found or found[0] is Distance.UNKNOWN:
            return "which SSD is a GPU's neighbour is not said by this source", False
        if not self.analysis.is_neighbour(found[0]):
            return f"no neighbour SSD: nearest is {found[0]}", False
        near = {pair.gpu: pair.distance for pair in self.pairs if self.analysis.is_neighbour(pair.distance)}
        kinds = " or ".join(str(d) for d in sorted(set(near.values()), key=lambda distance: distance.rank))
        why = ": no shared PCIe switch" if "PHB" in kinds else ""
        return f"{len(near)} of {gpus} GPUs with a neighbour SSD ({kinds}{why})", len(near) == gpus

    # links

    def head_lines(self, box: Box) -> list[str]:
        """What stands beside the link above a box."""
        lines = [box.port] if box.port else []
        if box.edge is not None and not box.is_card and (link := _link_text(box.edge)) != _UNSAID:
            lines.append(link)
        return lines

    def head_height(self, box: Box, style: Style) -> float:
        """Room for it."""
        lines = len(self.head_lines(box))
        return style * (14 * lines + 8) if lines else 0.0

    def head_width(self, box: Box, style: Style) -> float:
        """Room for it."""
        return max((text_width(line, style * 10) for line in self.head_lines(box)), default=0) + style * 32


def _chips_a_row(style: Style) -> int:
    return int((style.card - style * 14) // (style * 34))


# The drawing


class _Ink:
    """Layers of SVG elements: the later ones are above."""

    def __init__(self) -> None:
        self.layers: tuple[list[str], ...] = ([], [], [], [])

    def put(self, layer: int, element: str) -> None:
        """Adds an element."""
        self.layers[layer].append(element)

    def rect(self, layer: int, x: float, y: float, w: float, h: float, *, r: float = 0, more: str = "") -> None:
        """Adds a rectangle with rounded corners."""
        self.put(layer, f'<rect x="{x:.1f}" y="{y:.1f}" width="{w:.1f}" height="{h:.1f}" rx="{r:.1f}" {more}/>')

    def text(
        self,
        x: float,
        y: float,
        text: str,
        size: float,
        *,
        most: float,
        bold: bool = False,
        fill: str = _INK,
        middle: bool = False,
        halo: str = "",
        shrink: bool = False,
    ) -> None:
        """Adds a line of text, cut off at a width; what must not be cut is made smaller before."""
        if shrink and (width := text_width(clean(text), size, bold=bold)) > most:
            size *= max(0.7, most / width)
            most += 0.01
        words = fit(clean(text), most, size, bold=bold)
        more = ' font-weight="bold"' if bold else ""
        more += ' text-anchor="middle"' if middle else ""
        more += f' stroke="{halo}" stroke-width="3" stroke-linejoin="round" paint-order="stroke"' if halo else ""
        space = ' xml:space="preserve"' if "  " in words else ""
        self.put(
            3, f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size:.1f}" fill="{fill}"{more}{space}>{escape(words)}</text>'
        )

    def mark(self, x: float, y: float, number: int, scale: float, tip: str) -> None:
        """Adds a warning sign, 17 wide and 15 high to scale, with the number of what is wrong."""
        w, h = 17 * scale, 15 * scale
        path = f"M{x + w / 2:.1f} {y:.1f}L{x + w:.1f} {y + h:.1f}H{x:.1f}z"
        self.put(3, f'<g class="mark"><title>{escape(clean(tip))}</title>')
        self.put(3, f'<path d="{path}" fill="{_AMBER}" stroke="#000" stroke-linejoin="round"/>')
        self.text(x + w / 2, y + h - 2.5 * scale, str(number), 8.5 * scale, most=w, bold=True, fill="#000", middle=True)
        self.put(3, "</g>")


def _polyline(points: Sequence[tuple[float, float]], radius: float) -> str:
    """A line with rounded corners."""
    (x, y), *rest = points
    path = f"M{x:.1f} {y:.1f}"
    for (ax, ay), (bx, by) in pairwise(rest):
        into, out = max(abs(ax - x), abs(ay - y)), max(abs(bx - ax), abs(by - ay))
        r = min(radius, into / 2, out / 2)
        before = (ax - _sign(ax - x) * r, ay - _sign(ay - y) * r)
        after = (ax + _sign(bx - ax) * r, ay + _sign(by - ay) * r)
        path += f"L{before[0]:.1f} {before[1]:.1f}Q{ax:.1f} {ay:.1f} {after[0]:.1f} {after[1]:.1f}"
        x, y = ax, ay
    return path + f"L{rest[-1][0]:.1f} {rest[-1][1]:.1f}"


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)


class _Picture:
    """Draws what the layout has placed."""

    def __init__(self, analysis: Analysis, title: str) -> None:
        self.analysis, self.server, self.title = analysis, analysis.server, title
        self.content = _Content(analysis)
        self.ink = _Ink()

    def svg(self) -> str:
        """The document."""
        content = self.content
        foot = _Ink()
        footer = self._footer(foot, 0, WIDTH)
        self.style = self._best(HEIGHT - _TOP - footer)
        layout = _Layout(content, self.style)
        layout.run(content.top, WIDTH - 2 * _MARGIN)
        for box in content.boxes:
            box.x += _MARGIN
            box.y += _TOP
            box.lanes_y += _TOP
        width = max(WIDTH, ceil(content.top.w + 2 * _MARGIN))
        self._header(width)
        for box in content.boxes:
            self._box(box)
        for number, meeting in enumerate(content.meet):
            if meeting is not None:
                self._line(number, meeting)
        height = ceil(_TOP + content.top.h + self._footer(self.ink, _TOP + content.top.h, width))
        body = "\n".join("\n".join(layer) for layer in self.ink.layers if layer)
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
            f'font-family="{_FONT}" role="img" aria-labelledby="title desc">\n'
            f'<title id="title">{escape(clean(self.title))}: GPUs and NVMe SSDs by PCIe topology</title>\n'
            f'<desc id="desc">{escape(clean(self._description()))}</desc>\n'
            f'<rect width="{width}" height="{height}" fill="#fff"/>\n{body}\n</svg>\n'
        )

    def _best(self, room: float) -> Style:
        """The style that reads best among those in which the server fits on a slide; else the one that is lowest."""
        most, content = WIDTH - 2 * _MARGIN, self.content
        deepest = max((len(box.children) for box in content.boxes if box.kind == "cell"), default=1)
        regions = max(1, min(4, len(content.top.children)))
        best: tuple[float, int, float, Style] | None = None
        lowest: tuple[bool, float, Style] | None = None
        for styles in _styles(deepest, regions):
            for style in styles:
                layout = _Layout(content, style)
                layout.run(content.top, most)
                top = content.top
                wide = top.w > most + 0.5
                hidden = layout.hidden()
                height = top.h + 20 * min(hidden, 12)
                if style.scale <= 1 and (lowest is None or (wide, height) < lowest[:2]):
                    lowest = (wide, height, style)
                if not wide and top.h <= room:
                    # a line behind something else costs as much as a size or two; many cannot be helped
                    cost = 0.25 * min(hidden, 4) - style.scale + 0.1 * style.brief
                    if best is None or (cost, hidden, top.h) < best[:3]:
                        best = (cost, hidden, top.h, style)
            if best is not None and best[0] <= -styles[0].scale:
                break  # smaller ones cannot be better
        if best is not None:
            return best[3]
        assert lowest is not None
        return lowest[2]

    def _description(self) -> str:
        """The picture in words."""
        content = self.content
        parts = [f"{self.title}: {content.verdict()[0]}."]
        parts += [
            f"P{number}: {content.gpu(pair.gpu)} {pair.gpu} with {content.ssd(pair.ssd)} {pair.ssd}, {pair.distance}"
            + (f", {_gbps(pair.gbps)}" if pair.gbps is not None else "")
            + "."
            for number, pair in enumerate(content.pairs)
        ]
        for group in content.faults:
            parts += [f"{fault.kind} {fault.address}: {fault.message}; {fault.remedy}" for fault in group]
        return " ".join(parts)

    # heading

    def _header(self, width: float) -> None:
        content, server = self.content, self.server
        text, good = content.verdict()
        room = text_width(text, 17, bold=True) + 32
        x = width - _MARGIN - room
        fill, stroke = ("#e2f3ec", "#00734f") if good else ("#fff3cd", "#a66b00")
        self.ink.rect(
            3, x, 26, room, 38, r=19, more=f'fill="{fill}" stroke="{stroke}" stroke-width="2" class="verdict"'
        )
        self.ink.text(x + room / 2, 51, text, 17, most=room - 24, bold=True, middle=True)
        self.ink.text(_MARGIN, 46, self.title, 28, most=x - _MARGIN - 24, bold=True)
        nodes = {card.device.numa_node for card in content.cards.values() if card.device is not None} - {None}
        counts = [
            _count(len(nodes), "NUMA node"),
            _count(len(content.gpu_numbers), "GPU"),
            _count(len(content.ssd_numbers), "NVMe SSD"),
            f"read from {server.source}" if server.source else "",
            f"kernel {server.kernel}" if server.kernel else "",
        ]
        line = "   ·   ".join(part for part in counts if part)
        self.ink.text(_MARGIN, 70, line, 14, most=x - _MARGIN - 24, fill=_GREY)

    # boxes

    def _box(self, box: Box) -> None:
        s, ink = self.style, self.ink
        self._link(box)
        if box.is_card:
            self._card(box)
            return
        if box.kind == "cell":
            if box.near:
                colour = self.content.colour(box.owner) if box.owner else _GREY
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
        fill, stroke, bar, ink_on_bar, more = _LOOKS[box.kind]
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
            self.ink.mark(x + s * 1, y, number, s.scale, tip)
            x += s * 19
        if more:
            self.ink.put(3, f'<g class="mark"><title>{escape(clean("; ".join(tips[shown:])))}</title>')
            self.ink.text(x + s * 1, y + s * 12, f"+{more}", s * 9, most=s * 17, bold=True)
            self.ink.put(3, "</g>")

    def _link(self, box: Box) -> None:
        """The link above a box: a line from the bar of the bridge, as thick as it is wide."""
        s, ink, parent = self.style, self.ink, box.parent
        if parent is None:
            return
        if parent.kind == "cell":
            self._bus(box, parent)
            return
        if parent.kind not in _BRIDGES or box.kind == "cell":
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
                3, x - s * 5, y + s * 1, s * 10, s * 10, r=s * 2, more=f'fill="#fff" stroke="{_INK}" stroke-width="1.5"'
            )
        for line in self.content.head_lines(box):
            y += s * 14
            ink.text(
                x + s * 9,
                y - s * 4,
                line,
                s * 10,
                most=box.w - s * 22,
                fill=_GREY,
                halo="#fff" if parent.kind != "switch" else "#eaf1f7",
            )

    def _look(self, box: Box) -> str:
        """The stroke of the link above a box, by its bandwidth; dashed when nothing is known of it."""
        gbps = box.edge.gbps(gpu=box.kind == "gpu") if box.edge is not None else None
        width = self.style * _thickness(gbps)
        dashed = box.edge is None and box.kind not in ("port", "vmd")  # those hang on the root complex's own bus
        dashes = f' stroke-dasharray="{self.style * 3:.1f}"' if dashed else ""
        return f'stroke="{_GREY}" stroke-width="{width:.1f}"{dashes} class="link"'

    def _rail(self, parent: Box, row: list[Box], y: float) -> None:
        """Leads a bridge's bus to a further row: down at the left, then across."""
        s = self.style
        last = row[-1].x + s * (13 if row[-1].kind != "cell" else 10)
        path = _polyline([(parent.x + s * 3.5, parent.y + s * 20), (parent.x + s * 3.5, y), (last, y)], s * 3)
        self.ink.put(1, f'<path d="{path}" fill="none" stroke="{_LINE}" stroke-width="{s * 2:.1f}"/>')

    def _bus(self, card: Box, cell: Box) -> None:
        """The link of a card in a cell: to the bus at the left of its column, which hangs on the bridge's bar."""
        s, bridge = self.style, cell.parent
        if bridge is None or bridge.kind not in _BRIDGES:
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
            self.ink.put(2, f'<path d="M{x:.1f} {start:.1f}V{end:.1f}" stroke="{_LINE}" stroke-width="{s * 2:.1f}"/>')
        self.ink.put(2, f'<path d="M{x - s * 1:.1f} {y:.1f}H{card.x:.1f}" {self._look(card)}/>')

    def _card(self, box: Box) -> None:
        s, ink, content = self.style, self.ink, self.content
        address = box.addresses[0]
        refused = bool(self.server.fact(address).reason)
        name, colour = (
            (content.gpu(address), content.colour(address)) if box.kind == "gpu" else (content.ssd(address), _GREY)
        )
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
            ink.text(left, y, words, s * 10.5, most=room, fill=_INK if is_model else _GREY)
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
        across = _chips_a_row(s)
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
            ink.put(3, f'<g class="pair" data-pair="P{pair}"><title>{escape(clean(tip))}</title>')
        ink.rect(3, x, y, w, s * 17, r=s * 4, more=f'fill="{colour}" stroke="{colour if gpu else _INK}"')
        if gpu and self.content.again(gpu):
            more = f'fill="none" stroke="{_text_on(colour)}" stroke-width="1.2"'
            ink.rect(3, x + s * 1.8, y + s * 1.8, w - s * 3.6, s * 13.4, r=s * 3, more=more)
        fill = _text_on(colour) if gpu else _INK
        ink.text(
            x + w / 2, y + s * 12.3, text, s * size, most=w - s * 4, bold=True, fill=fill, middle=True, shrink=True
        )
        if pair is not None:
            ink.put(3, "</g>")

    def _line(self, number: int, box: Box) -> None:
        """A pair that is not in one cell: out of both cards, and along its lane."""
        s, content, pair = self.style, self.content, self.content.pairs[number]
        lane = box.lanes_y + s * (_LANE * (box.lanes[number] + 0.5))
        points = [*self._way_out(number, pair.gpu, lane), *reversed(self._way_out(number, pair.ssd, lane))]
        path = _polyline(points, s * 6)
        dashes = _DASHES[pair.distance]
        dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
        colour = content.colour(pair.gpu)
        ends = "".join(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{s * 3:.1f}" fill="{colour}"/>' for x, y in (points[0], points[-1])
        )
        self.ink.put(1, f'<path d="{path}" fill="none" stroke="#fff" stroke-width="{s * 5:.1f}"/>')
        line = f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="{s * 2.4:.1f}"{dashed} class="line"/>'
        self.ink.put(1, line + ends)
        width = content.badge_width(number, s)
        x = content.badge_x(number, box, s)
        self._badge(x, lane - s * 8.5, width, content.lane_badge(number), pair.gpu, 10.5, pair=number)

    def _way_out(self, number: int, address: str, lane: float) -> list[tuple[float, float]]:
        """From a card down to the lane: out at its foot, or beside what is below it."""
        card, s = self.content.cards[address], self.style
        gpu, ssd = self.content.ends(number, s)
        x = gpu if address == self.content.pairs[number].gpu else ssd
        if card is self.content.column(card)[-1]:
            return [(x, card.y + card.h), (x, lane)]
        mine = self.content.lines(card)
        y = card.y + card.h * (0.5 + 0.4 * (mine.index(number) + 1) / (len(mine) + 1))
        return [(card.x + card.w, y), (x, y), (x, lane)]

    # legend

    def _footer(self, ink: _Ink, y: float, width: float) -> float:
        """The legend and what is wrong; returns its height."""
        start, room = y, width - 2 * _MARGIN
        y = self._faults(ink, y + 18, room)
        y = self._unsaid(ink, y, room)
        y = self._legend(ink, y, room)
        return y - start + 14

    def _legend(self, ink: _Ink, y: float, room: float) -> float:
        used = {pair.distance for pair in self.content.pairs}
        ink.put(1, f'<path d="M{_MARGIN} {y + 4:.1f}H{_MARGIN + room:.1f}" stroke="{_LINE}"/>')
        y += 24
        x: float = _MARGIN
        for distance, meaning in _MEANINGS.items():
            wide = 52 + text_width(str(distance), 12, bold=True) + text_width(meaning, 12) + 16
            if x + wide > _MARGIN + room and x > _MARGIN:
                x, y = _MARGIN, y + 20
            dashes = f' stroke-dasharray="{_DASHES[distance]}"' if _DASHES[distance] else ""
            fill = _INK if distance in used else _GREY
            ink.put(1, f'<path d="M{x:.1f} {y - 4:.1f}h38" stroke="{fill}" stroke-width="2.4"{dashes}/>')
            ink.text(x + 46, y, str(distance), 12, most=80, bold=True, fill=fill)
            ink.text(x + 52 + text_width(str(distance), 12, bold=True), y, meaning, 12, most=400, fill=fill)
            x += wide
        x, y = _MARGIN, y + 22
        for gbps in (4, 16, 64):
            ink.put(1, f'<path d="M{x:.1f} {y - 4:.1f}h24" stroke="{_GREY}" stroke-width="{_thickness(gbps):.1f}"/>')
            ink.text(x + 30, y, f"{gbps} GB/s", 12, most=80, fill=_GREY)
            x += 36 + text_width(f"{gbps} GB/s", 12) + 8
        notes = "PCIe links, GB/s one way as trained; a pair's GB/s when all pairs work at once. "
        notes += "A tinted frame holds neighbours. G GPU, S SSD, P pair."
        ink.text(x + 6, y, notes, 12, most=_MARGIN + room - x - 6, fill=_GREY)
        return y

    def _faults(self, ink: _Ink, y: float, room: float) -> float:
        groups = self.content.faults
        if not groups:
            return y
        shown = groups[:_MOST_FAULTS]
        across = 1 if len(shown) == 1 else 2
        each = (room - 32 * (across - 1)) / across
        columns = [shown[at::across] for at in range(across)]
        bottom = y
        for number, column in enumerate(columns):
            at, x = y, _MARGIN + number * (each + 32)
            for group in column:
                at = self._fault(ink, x, at, each, group)
            bottom = max(bottom, at)
        if len(groups) > len(shown):
            more = sum(len(group) for group in groups[len(shown) :])
            ink.text(_MARGIN, bottom + 12, f"+{more} more", 13, most=room, bold=True)
            bottom += 22
        return bottom + 4

    def _fault(self, ink: _Ink, x: float, y: float, width: float, group: list[Fault]) -> float:
        """One entry of the list."""
        number, fault = self.content.faults.index(group) + 1, group[0]
        where = [self._name(item.address) for item in group if item.address]
        head = (
            fault.kind
            + ("  " + ", ".join(where[:4]) if where else "")
            + (f" +{len(where) - 4} more" if len(where) > 4 else "")
        )
        ink.mark(x, y, number, 1.1, f"{fault.kind}: {fault.message}")
        ink.text(x + 28, y + 13, head, 13, most=width - 28, bold=True)
        y += 30
        for line in wrap(clean(fault.message), width - 28, 12, 2):
            ink.text(x + 28, y, line, 12, most=width - 28)
            y += 16
        for line in wrap(f"→ {clean(fault.remedy)}", width - 28, 12, 2) if fault.remedy else []:
            ink.text(x + 28, y, line, 12, most=width - 28, fill="#00543a")
            y += 16
        return y

    def _name(self, address: str) -> str:
        if address in self.content.gpu_numbers:
            return f"{self.content.gpu(address)} {short(address)}"
        return (
            f"{self.content.ssd(address)} {short(address)}" if address in self.content.ssd_numbers else short(address)
        )

    def _unsaid(self, ink: _Ink, y: float, room: float) -> float:
        if not self.server.unsaid:
            return y
        text = clean("Not said: " + " ".join(self.server.unsaid))
        for line in wrap(text, room, 12, 2):
            ink.text(_MARGIN, y + 12, line, 12, most=room, fill=_GREY)
            y += 17
        return y + 6


_TOP = 92
_LOOKS: dict[BoxKind, tuple[str, str, str, str, str]] = {
    "socket": ("#fafbfc", "#b3bec7", "", _INK, 'stroke-width="1.5"'),
    "region": ("#f2f5f8", "#c3ccd4", "", _INK, 'stroke-width="1.2"'),
    "root": ("#ffffff", "#37474f", "#37474f", "#ffffff", 'stroke-width="1.4"'),
    "vmd": ("#ffffff", "#37474f", "#e4e8eb", _INK, 'stroke-width="1.2" stroke-dasharray="6 3"'),
    "port": ("#ffffff", "#78909c", "#e4e8eb", _INK, 'stroke-width="1.2"'),
    "switch": ("#eaf1f7", "#5f7d95", "#c4d5e3", _INK, 'stroke-width="1.6"'),
    "group": ("#ffffff", "#9aa7b2", "", _INK, 'stroke-width="1" stroke-dasharray="4 3"'),
}
"""Fill, stroke, the bar that stands for the bridge itself, the text on it, and more of the stroke."""


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}" if number else ""
