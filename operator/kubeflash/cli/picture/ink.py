"""Elements of SVG. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from itertools import pairwise

from kubeflash.cli.picture.looks import AMBER, INK, PALE
from kubeflash.cli.picture.words import clean, fit, text_width


class Ink:
    """Layers of SVG elements: the later ones are above."""

    def __init__(self) -> None:
        self.layers: tuple[list[str], ...] = ([], [], [], [])

    def put(self, layer: int, element: str) -> None:
        """Adds an element."""
        self.layers[layer].append(element)

    def begin(self, tip: str, more: str) -> None:
        """Begins a group of elements in the uppermost layer, with what a pointer that hovers over it shows."""
        self.put(3, f"<g {more}><title>{escape(clean(tip))}</title>")

    def end(self) -> None:
        """Ends it."""
        self.put(3, "</g>")

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
        fill: str = INK,
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

    def mark(self, x: float, y: float, number: int, scale: float, tip: str, *, serious: bool) -> None:
        """Adds a warning sign, 17 wide and 15 high to scale, with the number of what is wrong; a remark's is pale."""
        w, h = 17 * scale, 15 * scale
        path = f"M{x + w / 2:.1f} {y:.1f}L{x + w:.1f} {y + h:.1f}H{x:.1f}z"
        self.begin(tip, 'class="mark"')
        self.put(3, f'<path d="{path}" fill="{AMBER if serious else PALE}" stroke="#000" stroke-linejoin="round"/>')
        self.text(x + w / 2, y + h - 2.5 * scale, str(number), 8.5 * scale, most=w, bold=True, fill="#000", middle=True)
        self.end()


def polyline(points: Sequence[tuple[float, float]], radius: float) -> str:
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
