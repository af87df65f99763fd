"""What was done to the servers, what is promised, and what was seen: told by tests, rendered as tables.

    PYTHONPATH=tests:e2e:operator python3 -m support.faults build/faults.json

The words of promises are in the tests, beside what holds them to it.
"""

from __future__ import annotations

import fcntl
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

REPO = Path(__file__).parents[2]
FILE = REPO / "build" / "faults.json"


@dataclass(frozen=True)
class Fault:
    """A row: what is done, and what is promised."""

    done: str
    promised: str


class Table:
    """The rows of one test module, in their order; each is seen by a test."""

    def __init__(self, title: str, rows: Mapping[str, Fault], path: Path = FILE) -> None:
        self.title, self._rows, self._path = title, dict(rows), path

    def seen(self, key: str, words: str) -> None:
        """Writes down what was seen; what other tests saw, now or before, stays."""
        assert key in self._rows, key
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # modules run side by side
            tables = json.loads(self._path.read_text()) if self._path.exists() else {}
            before = tables.get(self.title, {})
            tables[self.title] = {
                name: {**asdict(row), "seen": words if name == key else before.get(name, {}).get("seen", "")}
                for name, row in self._rows.items()
            }
            self._path.write_text(json.dumps(tables, indent=2) + "\n")


def render(tables: Mapping[str, Mapping[str, Mapping[str, str]]]) -> str:
    """The tables in Markdown."""
    parts = []
    for title, rows in tables.items():
        lines = [f"## {title}", "", "| what is done | what is promised | what was seen |", "| --- | --- | --- |"]
        lines += [
            f"| {row['done']} | {row['promised']} | {row['seen'] or 'not run'} |".replace("\n", " ")
            for row in rows.values()
        ]
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def main() -> int:
    """Prints the tables of a file."""
    sys.stdout.write(render(json.loads(Path(sys.argv[1]).read_text())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
