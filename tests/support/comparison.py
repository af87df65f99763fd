"""The table in docs/topology.md, over every fixture: `make docs` writes it, a test compares it."""

from __future__ import annotations

import re
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from kubeflash.cli.picture import draw
from kubeflash.host.listing import read_listing
from kubeflash.topology.analysis import Analysis, RootView, analyse
from kubeflash.topology.devices import GpuRules
from support.made_servers import captured_names, made, made_names, write_captured, write_sysfs

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = DOCS / "topology.md"
PICTURES = DOCS / "pictures"
BEGIN, END = "<!-- comparison: begin (generated: make docs) -->\n", "<!-- comparison: end -->"
DRAWN = ("hgx-8gpu-32ssd", "degraded", "no-neighbour")
PUBLIC = (
    ("Dell XE8640 with H100 (public hwloc dump)", "4", "1", "1 PIX, 1 NODE, 2 SYS", "1 of 4", "matches no SSD (3)"),
    ("Supermicro 4124GS with MI50 (the same)", "8", "1", "1 PHB, 3 NODE, 4 SYS", "1 of 8", "matches no SSD (7)"),
)
"""What two public dumps come out as; the dumps themselves are not part of this repository."""
RULES = GpuRules.parse(["1234:0380"])  # the lab's stand-in GPUs


def analyses() -> Iterator[tuple[str, str, Analysis]]:
    """Name, what it is, and analysis of each fixture, read from its sysfs."""
    for kind, names in (("synthetic", made_names()), ("captured", captured_names())):
        for name in names:
            with tempfile.TemporaryDirectory() as folder:
                there = Path(folder)
                root = write_sysfs(made(name), there) if kind == "synthetic" else write_captured(name, there)
                yield name, kind, analyse(read_listing(root).server(RULES))


def table() -> str:
    """The comparison with pcieRoot as Markdown."""
    lines = [
        "| server | GPUs | SSDs | nearest SSDs are at | pcieRoot names just them for | else it |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, kind, analysis in analyses():
        nearest = Counter({view.gpu: view.distance for view in analysis.pairs}.values())
        near = ", ".join(f"{nearest[item]} {item}" for item in sorted(nearest, key=lambda item: item.rank))
        right = sum(view.tells for view in analysis.roots)
        cells = [
            f"{name} ({kind})",
            str(len(analysis.server.gpus)),
            str(len(analysis.server.ssds)),
            near,
            f"{right} of {len(analysis.roots)}",
            _wrong(analysis.roots),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [f"| {' | '.join(row)} |" for row in PUBLIC]
    return "\n".join(lines) + "\n"


def _wrong(roots: tuple[RootView, ...]) -> str:
    """What it says of the other GPUs, counted."""
    said = Counter(view.verdict.split(";")[0] for view in roots if not view.tells)
    return "; ".join(f"{words} ({count})" for words, count in said.items()) or "-"


def page(text: str) -> str:
    """The page with a fresh table."""
    return re.sub(f"{re.escape(BEGIN)}.*?{re.escape(END)}", lambda _: BEGIN + table() + END, text, flags=re.DOTALL)


def main() -> int:
    """Writes page and pictures."""
    PAGE.write_text(page(PAGE.read_text()))
    PICTURES.mkdir(exist_ok=True)
    for name, kind, analysis in analyses():
        if name in DRAWN:
            (PICTURES / f"{name}.svg").write_text(draw(analysis, title=f"{name} ({kind})"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
