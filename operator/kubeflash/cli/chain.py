"""What the answers of `why volume` and `why attachment` are made of: a chain of parts, each with what is so of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from kubeflash.api.v1alpha1 import Condition, PlannedStep
from kubeflash.cli.terminal import Colour, Terminal

Mark = Literal["So", "Not", "Unknown", "Note"]
_MARKS: Mapping[Mark, tuple[str, Colour]] = {
    "So": ("✓", "green"),
    "Not": ("!", "red"),
    "Unknown": ("?", "yellow"),
    "Note": ("·", "dim"),
}
_WIDTH = 11


@dataclass(frozen=True)
class Link:
    """One line of a chain.

    Attributes:
        part: what it is about, one word; the same as that of the line before: more of it.
        mark: So: as it must be. Not: not so, and what is behind it waits for it. Note: neither good nor bad.
        remedy: what to do about it.
    """

    part: str
    mark: Mark
    words: str
    remedy: str = ""

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        return {"part": self.part, "mark": self.mark, "words": self.words, "remedy": self.remedy}


def lines(links: Iterable[Link], terminal: Terminal) -> list[str]:
    """A chain with its marks; each remedy below what it is for, the name of a part once."""
    found: list[str] = []
    before = ""
    for link in links:
        mark, colour = _MARKS[link.mark]
        part = link.part if link.part != before else ""
        hanging = " " * (_WIDTH + 2)
        first, *more = terminal.wrap(link.words, f"{mark} {part.ljust(_WIDTH)}", hanging)
        found += [terminal.paint(mark, colour) + first[len(mark) :], *more]
        found += terminal.wrap(f"→ {link.remedy}", hanging, hanging + "  ") if link.remedy else []
        before = link.part
    return found


def named(name: str, words: str, terminal: Terminal) -> list[str]:
    """A part of a chain without marks: its name, then what is so."""
    return terminal.wrap(words, name.ljust(_WIDTH), " " * _WIDTH)


def below(words: str, terminal: Terminal) -> list[str]:
    """More of the part above."""
    return terminal.wrap(words, " " * _WIDTH, " " * (_WIDTH + 2))


def verdict(key: str, words: str, colour: Colour, terminal: Terminal) -> list[str]:
    """The answer, before the chain that explains it."""
    return [terminal.paint(line, colour) for line in terminal.wrap(f"{key}: {words}", hanging="  ")]


def unread(words: Iterable[str], terminal: Terminal) -> list[str]:
    """What could not be read, and what is not known therefore."""
    return [line for said in words for line in terminal.wrap(f"? {said}", hanging="  ")]


def condition_words(item: Condition) -> str:
    """A condition in a line."""
    return f"{item.type} {item.status}: {item.reason}{f': {item.message}' if item.message else ''}"


def step_words(step: PlannedStep) -> str:
    """A step that an agent has before it, is at, or failed at, in a line."""
    return ": ".join(filter(None, (step.state.lower(), step.what, step.message)))
