"""Words that fit: text is measured by the widest of the usual fonts, and cut; bandwidths and links in words. Pure."""

from __future__ import annotations

import unicodedata

from kubeflash.topology.links import Edge

_MAKERS = ("NVIDIA", "AMD", "INTEL", "SAMSUNG", "KIOXIA", "MICRON", "SOLIDIGM", "WDC", "HGST", "SEAGATE", "SK", "HYNIX")


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


def rate(value: float | None) -> str:
    """A bandwidth; nothing where it is not said."""
    return "" if value is None else f"{value:.1f} GB/s"


UNSAID = "link not said"


def link_text(edge: Edge | None, *, gpu: bool = False, brief: bool = False) -> str:
    """Speed, lanes and bandwidth of a link: of a GPU's what it does when it works, brief ones without bandwidth."""
    if edge is None:
        return UNSAID
    speed = edge.best_speed if gpu and edge.best_speed is not None else edge.speed
    lanes = " ".join(
        [*([f"{speed:g} GT/s"] if speed is not None else []), *([f"x{edge.width}"] if edge.width is not None else [])]
    )
    if brief and lanes and speed is not None:
        return lanes
    return " · ".join(part for part in (lanes, rate(edge.gbps(gpu=gpu))) if part) or UNSAID


def counted(number: int, what: str) -> str:
    """A number of things; nothing where there are none."""
    return f"{number} {what}{'' if number == 1 else 's'}" if number else ""
