"""What stands on the parts: names, badges, the lines of cards, marks, and the room that they take. Pure."""

from __future__ import annotations

from collections import Counter, defaultdict
from math import ceil

from kubeflash.api.quantity import human_bytes
from kubeflash.api.v1alpha1 import Distance
from kubeflash.cli.picture.boxes import Box, build
from kubeflash.cli.picture.looks import GPU_COLOURS, Style
from kubeflash.cli.picture.words import UNSAID, clean, counted, link_text, rate, text_width, wrap
from kubeflash.topology.analysis import Analysis, PairView
from kubeflash.topology.devices import VENDORS
from kubeflash.topology.faults import Fault, short
from kubeflash.topology.links import Edge


class Content:
    """What is written where, and how much room it takes."""

    def __init__(self, analysis: Analysis) -> None:
        self.analysis, self.server = analysis, analysis.server
        self.top = build(analysis)
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

    def name(self, address: str) -> str:
        """G0, G1 and so on, in the order of addresses; S0, S1 and so on; a bridge's address."""
        if address in self.gpu_numbers:
            return f"G{self.gpu_numbers[address]}"
        return f"S{self.ssd_numbers[address]}" if address in self.ssd_numbers else short(address)

    def colour(self, gpu: str) -> str:
        """A GPU's colour."""
        return GPU_COLOURS[self.gpu_numbers[gpu] % len(GPU_COLOURS)]

    def again(self, gpu: str) -> bool:
        """Whether the colour is used a second time: then its badges have an inner frame."""
        return self.gpu_numbers[gpu] // len(GPU_COLOURS) % 2 == 1

    def badge(self, number: int, style: Style) -> str:
        """A pair in short."""
        pair = self.pairs[number]
        cell = self.cards[pair.ssd].parent
        # in a narrow card the frame, which is the GPU's, says whose it is
        gpu = "" if style.brief and cell is not None and cell.owner else self.name(pair.gpu)
        return "  ".join(part for part in (f"P{number}", gpu, str(pair.distance), rate(pair.gbps)) if part)

    def lane_badge(self, number: int) -> str:
        """A pair in short, with both its ends."""
        pair = self.pairs[number]
        ends = f"{self.name(pair.gpu)} → {self.name(pair.ssd)}"
        return "   ".join(part for part in (f"P{number}", ends, str(pair.distance), rate(pair.gbps)) if part)

    def badge_width(self, number: int, style: Style) -> float:
        """Width of the badge in the lane."""
        return text_width(self.lane_badge(number), style * 10.5, bold=True) + style * 16

    # lines

    def column(self, card: Box) -> list[Box]:
        """The cards of its column, itself alone when it is in no cell."""
        assert card.parent is not None
        if card.parent.kind != "cell":
            return [card]
        return next(column for column in card.parent.rows if card in column)

    def lines(self, card: Box) -> list[int]:
        """The pairs of a card that are lines."""
        return [number for number in self.by_address[card.addresses[0]] if self.meet[number] is not None]

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
        rows = len(own) + ceil(len(away) / style.chips) if box.kind == "ssd" else 1
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
        if cell.kind != "cell" or not style.brief or any(self.lines(card) for card in cell.children):
            return {}  # lines leave a cell where the caption would stand
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
                        f"{count} x {link_text(next(c for c in ssds if self.link(c, style) == link).edge)}"
                    )
        return self.captions[key]

    def link(self, box: Box, style: Style) -> str:
        """The link above a card."""
        return link_text(box.edge, gpu=box.kind == "gpu", brief=style.brief)

    def model(self, box: Box) -> str:
        """The model of a card, or its ids."""
        assert box.device is not None
        device, fact = box.device, self.server.fact(box.device.address)
        maker = VENDORS.get(device.vendor, "") + " " if device.vendor in VENDORS else ""
        ids = f"{maker}{device.vendor}:{device.device}" if device.vendor or device.device else "model not said"
        return clean(fact.model).strip() or ids

    def tip(self, box: Box) -> str:
        """A card in full: what is cut off on it, or left out."""
        address = box.addresses[0]
        parts = [self.model(box), link_text(box.edge, gpu=box.kind == "gpu")]
        parts += [self.room(box)] if box.kind == "ssd" and self.says_room else []
        return f"{self.name(address)} {short(address)}: {'; '.join(parts)}"

    def room(self, box: Box) -> str:
        """What can be put on an SSD."""
        fact = self.server.fact(box.addresses[0])
        if fact.reason:
            return f"refused: {clean(fact.reason)}"
        if fact.free is not None:
            of = f" of {human_bytes(fact.bytes)}" if fact.bytes is not None else ""
            return f"{human_bytes(fact.free)}{of} free"
        size = human_bytes(fact.bytes) if fact.bytes is not None else "free: not said"
        return ", ".join(filter(None, (size, clean(fact.note))))

    def status(self, gpu: str, style: Style) -> tuple[str, bool]:
        """What a GPU has, and whether it is a neighbour."""
        mine = [self.pairs[number] for number in self.by_address[gpu]]
        if not mine:
            return "no SSD", False
        least = min((pair.distance for pair in mine), key=lambda distance: distance.rank)
        if self.analysis.is_neighbour(least):
            what = "neighbour" if style.brief else "neighbour SSD"
            return f"{counted(len(mine), what)}: {least}", True
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

    def trouble(self) -> str:
        """What the list below the server holds that an admin should act on, counted; a missing neighbour is no news."""
        groups = [group for group in self.faults if group[0].kind != "NoNeighbour"]
        return counted(sum(any(fault.serious for fault in group) for group in groups), "fault")

    # links

    def gbps(self, box: Box) -> float | None:
        """Of the link above a part; a GPU's own link leads to the switch on its card, if there is one."""
        return box.edge.gbps(gpu=self.is_gpus(box.edge)) if box.edge is not None else None

    def is_gpus(self, edge: Edge | None) -> bool:
        """Whether it is a GPU's own link, which sleeps while it idles."""
        return edge is not None and edge.lower in self.gpu_numbers

    def head_lines(self, box: Box) -> list[str]:
        """What stands beside the link above a box."""
        lines = [box.port] if box.port else []
        if (
            box.edge is not None
            and not box.is_card
            and (link := link_text(box.edge, gpu=self.is_gpus(box.edge))) != UNSAID
        ):
            lines.append(link)
        return lines

    def head_height(self, box: Box, style: Style) -> float:
        """Room for it."""
        lines = len(self.head_lines(box))
        return style * (14 * lines + 8) if lines else 0.0

    def head_width(self, box: Box, style: Style) -> float:
        """Room for it."""
        return max((text_width(line, style * 10) for line in self.head_lines(box)), default=0) + style * 32
