"""How large, in which colours, with which strokes. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from math import sqrt

from kubeflash.api.v1alpha1 import Distance
from kubeflash.cli.picture.boxes import BoxKind

WIDTH, HEIGHT = 1600, 900
"""A slide; the height grows where the server needs it."""
MARGIN, TOP = 32, 92
"""At the left and right; above, for the heading."""
FONT = "system-ui, 'Segoe UI', 'Helvetica Neue', Helvetica, Arial, sans-serif"
GPU_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#6b4c9a", "#8c6d31")
"""Okabe and Ito's, told apart with any kind of colour vision; the yellow, too light on white, and black replaced."""
INK, GREY, LINE, AMBER, PALE = "#1d2730", "#55626d", "#9aa7b2", "#ffc629", "#eceff1"
DASHES = {
    Distance.PIX: "",
    Distance.PXB: "14 4",
    Distance.PHB: "9 5",
    Distance.NODE: "5 4",
    Distance.SYS: "2 4",
    Distance.UNKNOWN: "1 7",
}


LOOKS: dict[BoxKind, tuple[str, str, str, str, str]] = {
    "socket": ("#fafbfc", "#b3bec7", "", INK, 'stroke-width="1.5"'),
    "region": ("#f2f5f8", "#c3ccd4", "", INK, 'stroke-width="1.2"'),
    "root": ("#ffffff", "#37474f", "#37474f", "#ffffff", 'stroke-width="1.4"'),
    "vmd": ("#ffffff", "#37474f", "#e4e8eb", INK, 'stroke-width="1.2" stroke-dasharray="6 3"'),
    "port": ("#ffffff", "#78909c", "#e4e8eb", INK, 'stroke-width="1.2"'),
    "switch": ("#eaf1f7", "#5f7d95", "#c4d5e3", INK, 'stroke-width="1.6"'),
    "group": ("#ffffff", "#9aa7b2", "", INK, 'stroke-width="1" stroke-dasharray="4 3"'),
}
"""Fill, stroke, the bar that stands for the bridge itself, the text on it, and more of the stroke."""


def thickness(gbps: float | None) -> float:
    """Of a link's line: grows with the bandwidth, slower than it (4 GB/s: 2.7, 16: 4.2, 63: 7.2)."""
    return 1.5 if gbps is None else min(9.0, 1.2 + 0.75 * sqrt(max(gbps, 0)))


def text_on(colour: str) -> str:
    """Black or white, whichever is easier to read on a colour (WCAG's relative luminance)."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "#ffffff" if 1.05 / (luminance + 0.05) > (luminance + 0.05) / 0.05 else "#000000"


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

    @property
    def chips(self) -> int:
        """Pairs in short, side by side in a card."""
        return int((self.card - self * 14) // (self * 34))


_SIZES = (1.75, 1.5, 1.35, 1.2, 1.1, 1.0, 0.96, 0.92, 0.86)
_ROOMY, _BRIEF = 1.1, 1.2
"""Cards become brief only before they become smaller than the one, and no brief ones are larger than the other."""


def styles_from_best(most: int, regions: int) -> Iterator[list[Style]]:
    """From the best to read to the smallest: grids to try, equally good."""
    sizes = [(scale, False) for scale in _SIZES if scale >= _ROOMY]
    sizes += [(scale, brief) for scale in _SIZES for brief in (False, True) if scale < (_BRIEF if brief else _ROOMY)]
    depths = [depth for depth in (1, 2, 3, 4, 5, 6, 8, 12) if depth <= most] or [1]
    for scale, brief in sizes:
        yield [Style(scale, brief, *grid) for grid in product(depths, range(1, regions + 1))]
