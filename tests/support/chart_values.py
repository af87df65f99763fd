"""The table in docs/values.md and the descriptions in values.schema.json, both from the comments in values.yaml.

`make docs` writes them, a test compares. A comment that begins with `# --` belongs to the key below it and makes it one
value of the table, whatever is below it; a mapping without one is descended into.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

REPO = Path(__file__).resolve().parents[2]
CHART = REPO / "charts" / "kubeflash"
VALUES, SCHEMA = CHART / "values.yaml", CHART / "values.schema.json"
PAGE = REPO / "docs" / "values.md"
HEAD = """<!-- generated from charts/kubeflash/values.yaml by `make docs`; do not edit -->
# Settings of the chart

For `helm install --set NAME=VALUE` or a file of `--values FILE`. What is not here is refused, as is what does not fit.
Pools, and with them which SSDs may be used, are objects of the cluster: `kubectl explain flashpool.spec`.

| value | default | what |
| --- | --- | --- |
"""

_KEY = re.compile(r"(?P<indent> *)(?P<name>[A-Za-z]\w*):")


class ValuesError(Exception):
    """A value without a comment, or a comment without a value."""


@dataclass(frozen=True)
class Value:
    """One value: its path, what it is by default, and what its comment says."""

    path: tuple[str, ...]
    default: Any
    words: str

    @property
    def name(self) -> str:
        """Such as `image.tag`."""
        return ".".join(self.path)


def values(text: str) -> list[Value]:
    """The values of a values.yaml.

    Raises:
        ValuesError: when a value has no comment, or a comment no value.
    """
    words = _comments(text)
    found = list(_walk(yaml.safe_load(text), (), words))
    nowhere = words.keys() - {value.path for value in found}
    if nowhere:
        raise ValuesError(f"comments of no value of the table: {sorted('.'.join(path) for path in nowhere)}")
    return found


def _walk(node: dict[str, Any], path: tuple[str, ...], words: dict[tuple[str, ...], str]) -> Iterator[Value]:
    for name, default in node.items():
        at = (*path, name)
        if at in words:
            yield Value(at, default, words[at])
        elif isinstance(default, dict) and default:
            yield from _walk(default, at, words)
        else:
            raise ValuesError(f"{'.'.join(at)} has no comment that begins with `# --`")


def _comments(text: str) -> dict[tuple[str, ...], str]:
    """By the path of a key, the comment above it."""
    found: dict[tuple[str, ...], str] = {}
    path: list[tuple[int, str]] = []
    comment: list[str] | None = None
    for line in text.splitlines():
        bare = line.strip()
        if bare.startswith("# -- "):
            comment = [bare.removeprefix("# -- ")]
        elif bare.startswith("# ") and comment is not None:
            comment.append(bare.removeprefix("# "))
        elif match := _KEY.match(line):
            indent = len(match["indent"])
            path = [*(step for step in path if step[0] < indent), (indent, match["name"])]
            if comment is not None:
                found[tuple(name for _, name in path)] = " ".join(comment)
            comment = None
        elif comment is not None:
            raise ValuesError(f"the comment {comment[0]!r} is followed by no key")
    return found


def page() -> str:
    """docs/values.md."""
    rows = (f"| `{value.name}` | {_shown(value.default)} | {value.words} |" for value in values(VALUES.read_text()))
    return HEAD + "".join(f"{row}\n" for row in rows)


def _shown(default: Any) -> str:
    text = json.dumps(default, ensure_ascii=False)
    return f"`{text}`" if len(text) <= 60 else "see values.yaml"


def schema() -> str:
    """values.schema.json with the comments as descriptions."""
    whole: dict[str, Any] = json.loads(SCHEMA.read_text())
    for value in values(VALUES.read_text()):
        node: dict[str, Any] = whole
        for name in value.path[:-1]:
            node = node["properties"][name]
        if value.path[-1] not in node["properties"]:
            raise ValuesError(f"values.schema.json does not know {value.name}")
        known = {key: item for key, item in node["properties"][value.path[-1]].items() if key != "description"}
        node["properties"][value.path[-1]] = {"description": value.words, **known}
    return json.dumps(whole, indent=2, ensure_ascii=False) + "\n"


def main() -> int:
    """Writes page and schema."""
    SCHEMA.write_text(schema())
    PAGE.write_text(page())
    return 0


if __name__ == "__main__":
    sys.exit(main())
