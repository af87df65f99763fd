"""What is drawn: the tree of boxes, with only the bridges that lead to a GPU or SSD. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from kubeflash.cli.picture.channels import Channel
from kubeflash.topology.analysis import Analysis
from kubeflash.topology.faults import short
from kubeflash.topology.links import Edge, edges
from kubeflash.topology.tree import PciDevice, Step

BoxKind = Literal["server", "socket", "region", "root", "vmd", "port", "switch", "group", "cell", "gpu", "ssd"]
BRIDGES = ("root", "vmd", "port", "switch")
_NOWHERE = 1 << 30
_DEEPEST = 12
"""Boxes in boxes; what is below hangs on the last one."""


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
        channels: below each row, for the lines of pairs.
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
    channels: list[Channel] = field(default_factory=list)
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


def build(analysis: Analysis) -> Box:
    """The tree of a server's GPUs and SSDs."""
    return _Builder(analysis).build()


class _Builder:
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
        own = next((edge for edge in links.values() if edge.lower == device.address), None)
        card.edge = links.get(len(steps), own)  # of a GPU with bridges on its card: the link that its slot has
        here.add(card)


def _bridge(step: Step) -> Box:
    if step.is_switch:
        return Box("switch", f"switch {short(step.hop.address)}" + (", on the card" if step.hop.on_card else ""))
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
