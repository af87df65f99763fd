"""The same code as a later release, to upgrade to: its version is another one in package, image and chart."""

from __future__ import annotations

import hashlib
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from kubeflash import __version__
from lab import cache
from lab.container import operator_image
from lab.image import hash_tree

REPO = Path(__file__).parents[2]
PARTS = ("charts", "crds", "operator", "requirements", "scripts", "Dockerfile", ".dockerignore", "pyproject.toml")
TEXTS = ("README.md", "LICENSE")


@dataclass(frozen=True)
class Release:
    """A release that can be installed.

    Attributes:
        version: Of package, image and chart.
        charts: Its charts' folder.
        image: Its image's archive.
    """

    version: str
    charts: Path
    image: Path


def next_release() -> Release:
    """The release after this one: the same code, with a minor version more. Built once, outside a lab's network."""
    major, minor, _ = __version__.split(".")
    version = f"{major}.{int(minor) + 1}.0"
    digest = hashlib.sha256(version.encode())
    for part in (*PARTS, *TEXTS):
        path = REPO / part
        digest.update((hash_tree(path) if path.is_dir() else path.read_text()).encode())
    source = cache.artifact("next-release", digest.hexdigest()[:16], lambda out: _copy(out, version), offline=True)
    return Release(version, source / "charts", operator_image(source))


def _copy(out: Path, version: str) -> None:
    for part in (*PARTS, *TEXTS):
        if (REPO / part).is_dir():
            shutil.copytree(REPO / part, out / part, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(REPO / part, out / part)
    for path, before in (
        (out / "pyproject.toml", f'version = "{__version__}"'),
        (out / "operator/kubeflash/__init__.py", f'__version__ = "{__version__}"'),
    ):
        text = path.read_text()
        assert before in text, f"{path.name} does not say {before}"
        path.write_text(text.replace(before, before.replace(__version__, version), 1))
    for path in (*out.glob("charts/*/Chart.yaml"), *out.glob("charts/kubeflash-crds/templates/*.yaml")):
        path.write_text(re.sub(rf'"?\b{re.escape(__version__)}\b"?', f'"{version}"', path.read_text()))
