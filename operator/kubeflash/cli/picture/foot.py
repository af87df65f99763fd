"""The foot: what is wrong, what is not said, and the legend. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from kubeflash.api.v1alpha1 import Distance
from kubeflash.cli.picture.content import Content
from kubeflash.cli.picture.ink import Ink
from kubeflash.cli.picture.looks import DASHES, GREY, INK, LINE, MARGIN, thickness
from kubeflash.cli.picture.words import clean, text_width, wrap
from kubeflash.topology.faults import Fault, short

_MOST_MESSAGES, _MOST_NAMES = 3, 4
"""Messages in one entry of the list, devices beside a message; what is more is counted."""


_MEANINGS = {
    Distance.PIX: "one PCIe switch at most",
    Distance.PXB: "several switches",
    Distance.PHB: "through the host bridge",
    Distance.NODE: "other host bridge, same socket",
    Distance.SYS: "across sockets",
    Distance.UNKNOWN: "not said by this source",
}


class Foot:
    """What stands below the server."""

    def __init__(self, content: Content) -> None:
        self.content, self.server = content, content.server

    def put(self, ink: Ink, y: float, width: float) -> float:
        """Adds all of it below `y`; returns its height."""
        bottom = self._faults(ink, y + 18, width - 2 * MARGIN)
        bottom = self._unsaid(ink, bottom, width - 2 * MARGIN)
        bottom = self._legend(ink, bottom, width - 2 * MARGIN)
        return bottom - y + 14

    def _faults(self, ink: Ink, y: float, room: float) -> float:
        """All of them, however many there are: a mark in the picture whose number is not explained helps nobody."""
        groups = self.content.faults
        if not groups:
            return y
        across = 1 if len(groups) == 1 else 2
        each = (room - 32 * (across - 1)) / across
        columns = [groups[at::across] for at in range(across)]
        bottom = y
        for number, column in enumerate(columns):
            at, x = y, MARGIN + number * (each + 32)
            for group in column:
                at = self._fault(ink, x, at, each, group)
            bottom = max(bottom, at)
        return bottom + 4

    def _fault(self, ink: Ink, x: float, y: float, width: float, group: list[Fault]) -> float:
        """One entry of the list."""
        kind, remedy = group[0].kind, clean(group[0].remedy)
        alike: defaultdict[str, list[str]] = defaultdict(list)
        for fault in group:
            alike[fault.message].append(fault.address)
        said = list(alike)
        if len(alike) > 1:
            named = [(_some(map(self.content.name, where)), message) for message, where in alike.items()]
            said = [f"{names}: {message}" if names else message for names, message in named]
        tip, serious = f"{kind}: {'; '.join(said)}", any(fault.serious for fault in group)
        ink.mark(x, y, self.content.faults.index(group) + 1, 1.1, tip, serious=serious)
        where = _some(map(self._name, (fault.address for fault in group)))
        ink.text(
            x + 28, y + 13, f"{kind}{'' if serious else ' (remark)'}  {where}".rstrip(), 13, most=width - 28, bold=True
        )
        lines = [line for message in said[:_MOST_MESSAGES] for line in wrap(clean(message), width - 28, 12, 2)]
        lines += [f"+{len(said) - _MOST_MESSAGES} more"] if len(said) > _MOST_MESSAGES else []
        remedies = wrap(f"→ {remedy}", width - 28, 12, 2) if remedy else []
        y += 30
        for line, fill in [*((line, INK) for line in lines), *((line, "#00543a") for line in remedies)]:
            ink.text(x + 28, y, line, 12, most=width - 28, fill=fill)
            y += 16
        return y

    def _name(self, address: str) -> str:
        """G0 or S0 with its address, a bridge's address."""
        return " ".join(dict.fromkeys((self.content.name(address), short(address))))

    def _unsaid(self, ink: Ink, y: float, room: float) -> float:
        if not self.server.unsaid:
            return y
        text = clean("Not said: " + " ".join(self.server.unsaid))
        for line in wrap(text, room, 12, 2):
            ink.text(MARGIN, y + 12, line, 12, most=room, fill=GREY)
            y += 17
        return y + 6

    def _legend(self, ink: Ink, y: float, room: float) -> float:
        used = {pair.distance for pair in self.content.pairs}
        ink.put(1, f'<path d="M{MARGIN} {y + 4:.1f}H{MARGIN + room:.1f}" stroke="{LINE}"/>')
        y += 24
        x: float = MARGIN
        for distance, meaning in _MEANINGS.items():
            wide = 52 + text_width(str(distance), 12, bold=True) + text_width(meaning, 12) + 16
            if x + wide > MARGIN + room and x > MARGIN:
                x, y = MARGIN, y + 20
            dashes = f' stroke-dasharray="{DASHES[distance]}"' if DASHES[distance] else ""
            fill = INK if distance in used else GREY
            ink.put(1, f'<path d="M{x:.1f} {y - 4:.1f}h38" stroke="{fill}" stroke-width="2.4"{dashes}/>')
            ink.text(x + 46, y, str(distance), 12, most=80, bold=True, fill=fill)
            ink.text(x + 52 + text_width(str(distance), 12, bold=True), y, meaning, 12, most=400, fill=fill)
            x += wide
        x, y = MARGIN, y + 22
        for gbps in (4, 16, 64):
            ink.put(1, f'<path d="M{x:.1f} {y - 4:.1f}h24" stroke="{GREY}" stroke-width="{thickness(gbps):.1f}"/>')
            ink.text(x + 30, y, f"{gbps} GB/s", 12, most=80, fill=GREY)
            x += 36 + text_width(f"{gbps} GB/s", 12) + 8
        notes = "PCIe links, GB/s one way as trained; a pair's GB/s with uplinks shared by the pairs. "
        notes += "A tinted frame holds neighbours, lines join other pairs. G GPU, S SSD, P pair."
        ink.text(x + 6, y, notes, 12, most=MARGIN + room - x - 6, fill=GREY)
        return y


def _some(names: Iterable[str]) -> str:
    """The first of them, and how many there are beside; faults of the whole server have no name."""
    found = [name for name in names if name]
    more = f" +{len(found) - _MOST_NAMES} more" if len(found) > _MOST_NAMES else ""
    return ", ".join(found[:_MOST_NAMES]) + more
