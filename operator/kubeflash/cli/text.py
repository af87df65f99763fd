"""What `topology`, `pairs` and `why` print for people. Pure."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from kubeflash.api.quantity import human_bytes
from kubeflash.api.v1alpha1 import Distance
from kubeflash.cli.terminal import Colour, Terminal, clean, shorten
from kubeflash.topology.analysis import Analysis, PairView
from kubeflash.topology.faults import Fault, short
from kubeflash.topology.links import edges
from kubeflash.topology.server import Server
from kubeflash.topology.tree import PciDevice, Step

_COLOURS: Mapping[Distance, Colour | None] = {
    Distance.PIX: "green",
    Distance.PXB: "green",
    Distance.PHB: "yellow",
    Distance.NODE: "yellow",
    Distance.SYS: "red",
    Distance.UNKNOWN: "dim",
}
_MARKS: Mapping[bool, tuple[str, Colour]] = {True: ("!", "red"), False: ("·", "dim")}
_PEERS: Mapping[bool | None, tuple[str, Colour]] = {True: ("yes", "green"), False: ("no", "red"), None: ("?", "dim")}
_NOT_PLACED = "place not said by this source"


def topology(analysis: Analysis, terminal: Terminal, history: tuple[str, ...] = ()) -> list[str]:
    """The tree of a server, its pairs, and what is wrong."""
    lines = [_headline(analysis.server, terminal), *_tree(analysis, terminal), ""]
    lines += [*pair_table(analysis, terminal), *_notes(analysis, terminal, history)]
    return lines


def pairs(analysis: Analysis, terminal: Terminal, history: tuple[str, ...] = (), *, matrix: bool = False) -> list[str]:
    """The pairs of a server, beside what pcieRoot alone would say, and if wanted all distances."""
    lines = [_headline(analysis.server, terminal), "", *pair_table(analysis, terminal)]
    if matrix:
        lines += ["", *_matrix(analysis, terminal)]
    lines += ["", *root_table(analysis, terminal), *_notes(analysis, terminal, history)]
    return lines


def pair_table(analysis: Analysis, terminal: Terminal) -> list[str]:
    """GPU, SSD, distance, GB/s, whether they can talk directly, and why it is this SSD."""
    if not analysis.pairs:
        return [terminal.paint("PAIRS", "bold"), *terminal.wrap(_no_pairs(analysis.server))]
    rows: list[list[tuple[str, Colour | None]]] = [
        [
            (short(view.gpu), None),
            (short(view.ssd), None),
            (view.distance, _COLOURS[view.distance]),
            ("?" if view.gbps is None else f"{view.gbps:.1f}", None),
            peer_to_peer(view),
            (view.why, None),
        ]
        for view in analysis.pairs
    ]
    return [terminal.paint("PAIRS", "bold"), *terminal.table(("GPU", "SSD", "DISTANCE", "GB/s", "P2P", "WHY"), rows)]


def peer_to_peer(view: PairView) -> tuple[str, Colour | None]:
    """Yes, no or ?, with its colour."""
    return _PEERS[view.peer_to_peer.possible]


def root_table(analysis: Analysis, terminal: Terminal) -> list[str]:
    """What resource.kubernetes.io/pcieRoot alone would say of each GPU."""
    rows: list[list[tuple[str, Colour | None]]] = [
        [
            (short(view.gpu), None),
            (view.root or "?", None),
            (" ".join(f"{short(ssd)}:{how_far}" for ssd, how_far in view.same_root[:3]) or "-", None)
            if len(view.same_root) <= 3
            else (f"{len(view.same_root)} SSDs", None),
            (view.verdict, "green" if view.tells else "yellow"),
        ]
        for view in analysis.roots
    ]
    head = ("GPU", "pcieRoot", "SSDs WITH THE SAME", "SO IT")
    return [terminal.paint("WHAT pcieRoot ALONE WOULD SAY", "bold"), *terminal.table(head, rows)]


def why(analysis: Analysis, address: str, terminal: Terminal, more: tuple[str, ...] = ()) -> list[str]:
    """All about one device: what it is, whether it can be used, its pairs, and how far the others are."""
    server = analysis.server
    device, facts = server.device(address), server.fact(address)
    is_gpu = address in server.gpus
    serial = f" ({clean(facts.serial or facts.uuid)})" if facts.serial or facts.uuid else ""
    named = f"{short(address)} {_model(server, device)}{serial}"
    mine = [view for view in analysis.pairs if address in (view.gpu, view.ssd)]
    if facts.reason:
        verdict = f"not usable: {clean(facts.reason)}"
    elif is_gpu:
        verdict = "GPU with " + (", ".join(f"SSD {short(view.ssd)}" for view in mine) or "no SSD of its own")
    else:
        verdict = "SSD of " + (", ".join(f"GPU {short(view.gpu)}" for view in mine) or "no GPU: none has it nearest")
    lines = terminal.wrap(f"{named}: {verdict}", hanging="  ")
    lines += [line for text in more for line in terminal.wrap(text, "  ")]
    place = f"NUMA {_or_unknown(device.numa_node)}, socket {_or_unknown(device.socket)}, "
    place += (
        "way not said" if device.path is None else " > ".join([device.root_complex, *_hops(device), short(address)])
    )
    lines += terminal.wrap(place, "  ")
    for view in mine:
        other = view.ssd if is_gpu else view.gpu
        bandwidth = "" if view.gbps is None else f", {view.gbps:.1f} GB/s"
        lines += terminal.wrap(f"{short(other)}: {view.distance}{bandwidth}: {view.why}", "  ", "    ")
        lines += terminal.wrap(f"peer-to-peer: {peer_to_peer(view)[0]}: {view.peer_to_peer.why}", "    ", "      ")
    others = server.ssds if is_gpu else server.gpus
    far = [
        f"{short(other)} {analysis.distances[(address, other) if is_gpu else (other, address)]}"
        for other in others
        if all(other not in (view.gpu, view.ssd) for view in mine)
    ]
    if far:
        lines += terminal.wrap(f"other {'SSDs' if is_gpu else 'GPUs'}: {', '.join(far)}", "  ", "    ")
    return lines + _faults(dict.fromkeys(fault for view in mine for fault in view.faults), terminal)


def _model(server: Server, device: PciDevice) -> str:
    """What a device is: its model, else its ids, else its kind."""
    ids = ":".join(part for part in (device.vendor, device.device) if part)
    return clean(server.fact(device.address).model) or ids or ("GPU" if device.address in server.gpus else "SSD")


def _hops(device: PciDevice) -> list[str]:
    kinds = {"RootPort": "root port", "SwitchUpstream": "switch", "SwitchDownstream": "port"}
    return [f"{kinds.get(step.kind, 'bridge')} {short(step.hop.address)}" for step in device.way]


def _or_unknown(number: int | None) -> str:
    return "unknown" if number is None else str(number)


def _no_pairs(server: Server) -> str:
    if not server.gpus:
        return "none: the server has no GPU that counts as one (see agent.gpus of the chart, --gpu of the agent)"
    if not server.ssds:
        return "none: the server has no NVMe SSD"
    left = ", ".join(short(ssd) for ssd in server.ssds)
    return f"none: all SSDs are left alone ({left}); kubectl flash why {server.name or 'NODE'} SSD says why"


def _headline(server: Server, terminal: Terminal) -> str:
    nodes = {device.numa_node for device in server.tree} - {None}
    sockets = {device.socket for device in server.tree} - {None}
    parts = [clean(server.name or server.source)]
    if sockets and len(sockets) != len(nodes):
        parts.append(count(len(sockets), "socket"))
    elif nodes:
        parts.append(count(len(nodes), "NUMA node"))
    parts += [count(len(server.gpus), "GPU"), count(len(server.ssds), "SSD")]
    parts += [f"kernel {clean(server.kernel)}"] if server.kernel else []
    line = "   ".join(parts)
    return terminal.paint(shorten(line, terminal.columns), "bold")


def count(number: int, what: str) -> str:
    """A number of things: 1 volume, 2 volumes."""
    return f"{number} {what}" + ("" if number == 1 else "s")


def span(seconds: float) -> str:
    """A length of time in its two largest units: 48s, 7m12s, 2h13m, 3d4h."""
    left = max(0, int(seconds))
    units = (("d", 86400), ("h", 3600), ("m", 60), ("s", 1))
    first = next((index for index, (_, size) in enumerate(units) if left >= size), len(units) - 1)
    parts: list[str] = []
    for letter, size in units[first : first + 2]:
        number, left = divmod(left, size)
        parts += [f"{number}{letter}"] if number or not parts else []
    return "".join(parts)


@dataclass
class _Branch:
    """One line of the tree and what is below it."""

    label: str
    details: tuple[str, ...] = ()
    colour: Colour | None = None
    notes: list[str] = field(default_factory=list)
    below: dict[str, _Branch] = field(default_factory=dict)


def _tree(analysis: Analysis, terminal: Terminal) -> list[str]:
    regions: dict[str, _Branch] = {}
    server = analysis.server
    for device in sorted((*server.gpu_devices, *server.ssd_devices), key=lambda item: item.order):
        region = regions.setdefault(_region(device), _Branch(_region(device)))
        branch = region
        if device.root_complex and device.path is not None:
            branch = branch.below.setdefault(device.root_complex, _Branch(device.root_complex))
        elif device.root_complex:
            branch = branch.below.setdefault(device.root_complex, _Branch(f"{device.root_complex} (way not said)"))
        for step in device.way:
            if step.kind == "SwitchUpstream":
                if step.switch not in branch.below:
                    branch.below[step.switch] = _switch(analysis, device, step)
                branch = branch.below[step.switch]
        branch.below[device.address] = _leaf(analysis, device)
    lines: list[tuple[str, _Branch]] = []
    for name in sorted(regions, key=lambda name: (name == _NOT_PLACED, name)):
        lines.append(("", regions[name]))
        lines += _walk(regions[name], "")
    return _fit(lines, terminal)


def _region(device: PciDevice) -> str:
    if not device.root_complex:
        return _NOT_PLACED if device.numa_node is None else f"NUMA {device.numa_node}, {_NOT_PLACED}"
    node = "NUMA unknown" if device.numa_node is None else f"NUMA {device.numa_node}"
    return node if device.socket in (None, device.numa_node) else f"{node}, socket {device.socket}"


def _switch(analysis: Analysis, device: PciDevice, step: Step) -> _Branch:
    """A switch, with the bandwidth of the link above it. Of one on a GPU's card that link is the GPU's own."""
    upstream = step.hop.address
    below = device.address if step.hop.on_card else upstream
    edge = next((edge for _, edge in edges(device) if edge.lower == below), None)
    label = f"switch {short(upstream)}" + (", on the card" if step.hop.on_card else "")
    uplink = edge.upper if edge is not None and edge.is_uplink else ""
    alike: dict[str, list[str]] = {}
    for fault in analysis.faults:
        shared = fault.kind == "SharedUplink"  # an uplink is called by the port above it, which may be another switch's
        port = not shared and _is_port(analysis, fault.address, step.switch)
        if fault.serious and (fault.address == (uplink if shared else upstream) or port):
            where = [short(fault.address)] if port and fault.address != upstream else []
            alike.setdefault(fault.message, []).extend(where)
    notes = [f"! {', '.join(ports)}: {message}" if ports else f"! {message}" for message, ports in alike.items()]
    return _Branch(
        label, ("", "", _bandwidth(edge.gbps(gpu=step.hop.on_card) if edge is not None else None)), None, notes
    )


def _is_port(analysis: Analysis, address: str, switch: str) -> bool:
    """Whether there is a bridge of this switch at an address."""
    devices = (*analysis.server.gpu_devices, *analysis.server.ssd_devices)
    return any(step.hop.address == address and step.switch == switch for device in devices for step in device.way)


def _bandwidth(gbps: float | None) -> str:
    return "" if gbps is None else f"{gbps:.1f} GB/s"


def _leaf(analysis: Analysis, device: PciDevice) -> _Branch:
    server = analysis.server
    facts = server.fact(device.address)
    is_gpu = device.address in server.gpus
    own = next((edge for _, edge in reversed(edges(device)) if edge.lower == device.address), None)
    near = sorted({view.distance for view in analysis.pairs if view.ssd == device.address}, key=lambda item: item.rank)
    label = f"{'GPU' if is_gpu else 'SSD'} {short(device.address)}"
    free = f"free {human_bytes(facts.free)}" if facts.free is not None else ""
    state = "left alone" if facts.reason else free or clean(facts.note)
    details = (
        _model(server, device),
        clean(facts.uuid or facts.id or facts.serial),
        _bandwidth(own.gbps(gpu=is_gpu) if own is not None else None),
        ",".join(near),
        state,
    )
    mine = [fault for fault in analysis.faults if fault.address == device.address and fault.kind != "NoNeighbour"]
    notes = [f"! {fault.message}" for fault in mine if fault.serious]
    return _Branch(label, details, _COLOURS[near[0]] if near and not is_gpu else None, notes)


def _walk(branch: _Branch, indent: str) -> Iterator[tuple[str, _Branch]]:
    members = list(branch.below.values())
    for number, member in enumerate(members):
        last = number == len(members) - 1
        yield indent + ("└─ " if last else "├─ "), member
        yield from _walk(member, indent + ("   " if last else "│  "))


def _fit(lines: list[tuple[str, _Branch]], terminal: Terminal) -> list[str]:
    """The lines of the tree, with columns that fit: names and ids are shortened first."""
    for _, branch in lines:
        branch.label, branch.details = clean(branch.label), tuple(map(clean, branch.details))
    first = max((len(prefix + branch.label) for prefix, branch in lines if branch.details), default=0)
    columns = [[branch.details[index] for _, branch in lines if len(branch.details) > index] for index in range(5)]
    widths = [max(map(len, column), default=0) for column in columns]
    spare = terminal.columns - first - sum(width + 2 for width in widths if width)
    for index in (1, 0):  # the id is shortened before the name
        if spare < 0 and widths[index]:
            cut = min(-spare, max(0, widths[index] - 8))
            widths[index] -= cut
            spare += cut
    found: list[str] = []
    for prefix, branch in lines:
        if not branch.details:
            found.append(prefix + terminal.paint(branch.label, None if prefix else "bold"))
            continue
        cells = [(prefix + branch.label).ljust(first)]
        padded = (*branch.details, *[""] * (5 - len(branch.details)))
        for index, (text, width) in enumerate(zip(padded, widths, strict=True)):
            cell = shorten(text, width)
            cell = cell.rjust(width) if index == 2 else cell.ljust(width)
            cells += [terminal.paint(cell, branch.colour if index == 3 else None)] if width else []
        found.append("  ".join(cells).rstrip())
        for note in branch.notes:
            bars = prefix.replace("├─", "│ ").replace("└─", "  ")
            wrapped = textwrap.wrap(note, terminal.columns - len(bars) - 4)
            bars += "│   " if branch.below else "    "
            found += [f"{bars}{terminal.paint(line, 'red')}" for line in wrapped]
    return found


def _matrix(analysis: Analysis, terminal: Terminal) -> list[str]:
    """All distances: a row an SSD, a column a GPU; in several blocks where there are many GPUs."""
    server = analysis.server
    left = max(map(len, map(short, server.ssds)), default=0)
    cell = max([7, *map(len, map(short, server.gpus))])
    many = max(1, (terminal.columns - left) // (cell + 2))
    lines = [terminal.paint("DISTANCES", "bold")]
    for start in range(0, len(server.gpus), many):
        block = server.gpus[start : start + many]
        lines.append(" " * left + "".join("  " + short(gpu).ljust(cell) for gpu in block).rstrip())
        for ssd in server.ssds:
            cells = "".join(
                "  " + terminal.paint(how_far.ljust(cell), _COLOURS[how_far])
                for how_far in (analysis.distances[gpu, ssd] for gpu in block)
            )
            lines.append(short(ssd).ljust(left) + cells.rstrip())
    return lines


def _notes(analysis: Analysis, terminal: Terminal, history: tuple[str, ...]) -> list[str]:
    """What became worse, what is wrong with its remedy, and what the source does not say."""
    lines: list[str] = []
    serious = [fault for fault in analysis.faults if fault.serious]
    passing = [fault for fault in analysis.faults if not fault.serious]
    if analysis.pairs and not any(analysis.is_neighbour(view.distance) for view in analysis.pairs):
        lines += _loud(analysis, terminal)
    for text in history:
        lines += [terminal.paint(line, "red") for line in terminal.wrap(f"! {clean(text)}", hanging="  ")]
    lines += _faults((*serious, *passing), terminal)
    for text in analysis.server.unsaid:
        lines += [terminal.paint(line, "dim") for line in terminal.wrap(f"? {clean(text)}", hanging="  ")]
    return ["", *lines] if lines else []


def _loud(analysis: Analysis, terminal: Terminal) -> list[str]:
    nearest = min((view.distance for view in analysis.pairs), key=lambda item: item.rank)
    if nearest is Distance.UNKNOWN:
        return terminal.wrap("? which SSD is near cannot be told from this source", hanging="  ")
    words = f"! no GPU of this server has a neighbour SSD: the nearest is {nearest}; KubeFlash works at its best there"
    return [terminal.paint(line, "red") for line in terminal.wrap(words, hanging="  ")]


def _faults(faults: Iterable[Fault], terminal: Terminal) -> list[str]:
    """Each fault with its remedy; what is the same of several devices is said once."""
    alike: dict[tuple[str, str], list[Fault]] = {}
    for fault in faults:
        alike.setdefault((fault.message, fault.remedy), []).append(fault)
    lines: list[str] = []
    for same in alike.values():
        first = same[0]
        mark, colour = _MARKS[first.serious]
        where = ", ".join(short(fault.address) for fault in same if fault.address)
        said = terminal.wrap(f"{mark} {where}: {first.message}" if where else f"{mark} {first.message}", hanging="  ")
        lines += [terminal.paint(line, colour) for line in said] + terminal.wrap(f"→ {first.remedy}", "  ", "    ")
    return lines
