"""The house itself: the layout holds, files say nothing that they should not, versions agree."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

import kubeflash

REPO = Path(__file__).parents[2]


def tracked() -> list[Path]:
    """All files of the project that git knows, or would."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=REPO,
        capture_output=True,
        text=True,
        check=True,
    )
    return [REPO / name for name in listed.stdout.splitlines() if (REPO / name).is_file()]


def test_the_source_root_holds_no_python_of_its_own():
    """`operator` is a module of the standard library: a package or a file of that name would hide it."""
    assert not [path for path in (REPO / "operator").iterdir() if path.suffix == ".py"]
    code = "import operator; assert operator.add(1, 2) == 3, operator"
    subprocess.run([sys.executable, "-c", code], cwd=REPO, check=True)
    subprocess.run([sys.executable, "-c", code], cwd=REPO / "operator", check=True)


def test_no_folder_is_empty():
    folders = {path.parent for path in tracked()}
    for folder in ("operator/kubeflash", "crds", "tests", "e2e", "bench", "docs", "deploy"):
        assert any((REPO / folder) in (found, *found.parents) for found in folders), folder


def test_versions_agree():
    project = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
    assert project["version"] == kubeflash.__version__


@pytest.mark.parametrize("name", ["runtime.txt", "dev.txt", "build.txt"])
def test_every_dependency_is_pinned_and_hashed_and_names_no_host(name):
    text = (REPO / "requirements" / name).read_text()
    assert "://" not in text
    pins = [line for line in text.splitlines() if line and not line.startswith((" ", "#"))]
    assert pins
    assert all("==" in line for line in pins)
    assert text.count("--hash=sha256:") >= len(pins)


def test_rbac_gives_the_agent_nothing_but_status_and_its_own_flashnode():
    documents = list(yaml.safe_load_all((REPO / "deploy" / "kubeflash.yaml").read_text()))
    (role,) = (d for d in documents if d["kind"] == "ClusterRole" and d["metadata"]["name"] == "kubeflash-agent")
    writes = {
        (resource, verb)
        for rule in role["rules"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
        if verb not in ("get", "list", "watch")
    }
    assert writes == {
        ("flashnodes", "create"),
        ("flashnodes/status", "patch"),
        ("flashvolumes/status", "patch"),
        ("flashattachments/status", "patch"),
    }
    rules = [rule for document in documents for rule in document.get("rules", ())]
    assert len(rules) > 15
    assert not [rule for rule in rules if "secrets" in rule["resources"] or "*" in str(rule)]
