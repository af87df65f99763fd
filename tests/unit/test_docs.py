"""What the documentation shows is what comes out."""

from __future__ import annotations

from kubeflash.cli.picture import draw
from support.comparison import DRAWN, PAGE, PICTURES, analyses, page


def test_the_comparison_with_pcie_root_is_fresh():
    assert page(PAGE.read_text()) == PAGE.read_text(), "run make docs"


def test_the_pictures_are_fresh():
    for name, kind, analysis in analyses():
        if name in DRAWN:
            assert (PICTURES / f"{name}.svg").read_text() == draw(analysis, title=f"{name} ({kind})"), "run make docs"
