"""`kubectl flash plan`: what agents have still to do, as their FlashNodes say it. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kubeflash.api.v1alpha1 import FlashNode
from kubeflash.cli.terminal import Colour, Terminal, clean
from kubeflash.cli.text import count
from kubeflash.domain.conditions import find

_COLOURS: dict[str, Colour | None] = {"Running": "green", "Pending": None, "Failed": "red"}
_PAUSED = "paused (spec.paused): the agent prints what it would do, and does nothing"


def document(node: FlashNode) -> dict[str, Any]:
    """For programs: `server`, `paused`, `silent`, `orphans`, and `steps[]`."""
    return {
        "server": node.metadata.name,
        "paused": node.spec.paused,
        "silent": _silent(node),
        "orphans": _orphans(node),
        "steps": [step.to_json() for step in node.status.plan],
    }


def text(nodes: Sequence[FlashNode], terminal: Terminal) -> list[str]:
    """For people: each server, what it is at, what is before it, and what failed."""
    lines: list[str] = []
    for node in nodes:
        steps = node.status.plan
        said = [count(len(steps), "step") if steps else "nothing to do"]
        said += [count(number, "orphan") + ": kubectl flash adopt lists them"] if (number := _orphans(node)) else []
        name = clean(node.metadata.name)
        first, *more = terminal.wrap(f"{name}: {'; '.join(said)}", hanging="  ")
        lines += [first.replace(name, terminal.paint(name, "bold"), 1), *more]
        lines += terminal.wrap(_PAUSED, "  ") if node.spec.paused else []
        lines += terminal.wrap("its agent does not answer: this is what it said last", "  ") if _silent(node) else []
        for step in steps:
            state = step.state.lower().ljust(7)
            whole = terminal.wrap(f"{state}  {step.what}", "  ", " " * 11)
            lines.append(whole[0].replace(state, terminal.paint(state, _COLOURS[step.state]), 1))
            lines += whole[1:]
            lines += terminal.wrap(step.message, " " * 11) if step.message else []
            lines += terminal.wrap(f"expects {step.expects}", " " * 11) if step.expects else []
    return lines


def _orphans(node: FlashNode) -> int:
    return node.status.summary.orphans if node.status.summary is not None else 0


def _silent(node: FlashNode) -> bool:
    ready = find(node.status.conditions, "Ready")
    return ready is None or ready.status == "Unknown"
