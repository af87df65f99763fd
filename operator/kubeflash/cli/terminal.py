"""Text for a terminal: colours only where they are wanted, columns that fit, words from devices made harmless."""

from __future__ import annotations

import os
import re
import shutil
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TextIO

NARROW = 80
"""Columns where nobody says how many there are."""
_BEYOND_ASCII = r"\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069"
_UNPRINTABLE = re.compile(rf"[\x00-\x1f{_BEYOND_ASCII}]")
_CODES = {"green": "32", "yellow": "33", "red": "31", "bold": "1", "dim": "2"}
Colour = Literal["green", "yellow", "red", "bold", "dim"]


def clean(text: str) -> str:
    """The text without what could command a terminal: a device, or a dump, says what it likes."""
    return _UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", text)


def harmless_json(document: str) -> str:
    """JSON with the controls escaped that JSON itself lets stand as they are."""
    return re.sub(f"[{_BEYOND_ASCII}]", lambda found: f"\\u{ord(found[0]):04x}", document)


def shorten(text: str, width: int) -> str:
    """The text, or its beginning with an ellipsis, in at most `width` columns."""
    return text if len(text) <= width else text[: max(0, width - 1)] + "…"


@dataclass(frozen=True)
class Terminal:
    """Where text goes.

    Attributes:
        columns: how many it has.
        coloured: whether to colour.
    """

    columns: int = NARROW
    coloured: bool = False

    @classmethod
    def of(cls, stream: TextIO, wanted: str = "auto") -> Terminal:
        """The terminal behind a stream; `wanted` is auto, always or never. NO_COLOR (no-color.org) is respected."""
        is_terminal = stream.isatty()
        auto = is_terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        columns = shutil.get_terminal_size((NARROW, 24)).columns if is_terminal or "COLUMNS" in os.environ else NARROW
        return cls(max(columns, 40), wanted == "always" or (wanted == "auto" and auto))

    def paint(self, text: str, colour: Colour | None) -> str:
        """The text in a colour."""
        if not self.coloured or colour is None or not text:
            return text
        return f"\x1b[{_CODES[colour]}m{text}\x1b[0m"

    def wrap(self, text: str, indent: str = "", hanging: str | None = None) -> list[str]:
        """The text, made harmless, in lines that fit, the first behind `indent`, the others behind `hanging`."""
        return textwrap.wrap(
            clean(text),
            self.columns,
            initial_indent=indent,
            subsequent_indent=indent if hanging is None else hanging,
            break_on_hyphens=False,
        ) or [indent.rstrip()]

    def table(self, head: Sequence[str], rows: Sequence[Sequence[tuple[str, Colour | None]]]) -> list[str]:
        """Columns as wide as their cells, which are made harmless; the last one takes what is left, and is wrapped."""
        rows = [[(clean(text), colour) for text, colour in row] for row in rows]
        widths = [
            max(len(title), *(len(row[column][0]) for row in rows)) if rows else len(title)
            for column, title in enumerate(head[:-1])
        ]
        left = max(20, self.columns - sum(width + 2 for width in widths))
        lines = [self.paint("  ".join([*map(str.ljust, head[:-1], widths), head[-1]]).rstrip(), "bold")]
        for row in rows:
            words = textwrap.wrap(row[-1][0], left, break_on_hyphens=False) or [""]
            cells = [
                self.paint(text, colour) + " " * (width - len(text))
                for (text, colour), width in zip(row[:-1], widths, strict=True)
            ]
            lines.append("  ".join([*cells, self.paint(words[0], row[-1][1])]).rstrip())
            behind = " " * sum(width + 2 for width in widths)
            lines += [behind + self.paint(more, row[-1][1]) for more in words[1:]]
        return lines
