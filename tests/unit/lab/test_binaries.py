"""Which program is taken, and which passed over."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lab import binaries, cache
from lab.errors import LabError


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("Kubernetes v1.37.2\n", (1, 37, 2)),
        ("Client Version: v1.32.4-dispatcher\nKustomize Version: v5.5.0\n", (1, 32, 4)),
        ("etcd Version: 3.6.8\nGit SHA: 12.34.56\n", (3, 6, 8)),
        ("go version go1.26.8 linux/amd64\n", (1, 26, 8)),
        ("go version go1.27 linux/amd64\n", (1, 27, 0)),
        ("v4.3.1+g45a10f8", (4, 3, 1)),
        ("Kubernetes v1.36.0-rc.1\n", (1, 36, 0)),
        ("command not found", None),
        ("", None),
    ],
)
def test_parse_version(text: str, version: binaries.Version | None):
    assert binaries.parse_version(text) == version


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """$KUBEBUILDER_ASSETS and a folder on PATH; what would be built is found in the cache."""
    assets, path = tmp_path / "assets", tmp_path / "path"
    assets.mkdir()
    path.mkdir()
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(assets))
    monkeypatch.setenv("PATH", f"{path}:/usr/bin:/bin")
    monkeypatch.setattr(cache, "artifact", lambda name, *_, **__: Path("/cache") / name)
    return assets, path


def program(folder: Path, name: str, body: str) -> Path:
    file = folder / name
    file.write_text(f"#!/bin/sh\n{body}\n")
    file.chmod(0o755)
    return file


def test_assets_come_before_path(folders: tuple[Path, Path]):
    assets, path = folders
    program(path, "kube-apiserver", "echo Kubernetes v1.37.0")
    wanted = program(assets, "kube-apiserver", "echo Kubernetes v1.35.1")
    assert binaries.ensure("kube-apiserver") == wanted


def test_an_old_one_is_passed_over_and_said_so(folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]):
    assets, path = folders
    old = program(assets, "kube-apiserver", "echo Kubernetes v1.34.9")
    wanted = program(path, "kube-apiserver", "echo Kubernetes v1.36.0")
    assert binaries.ensure("kube-apiserver") == wanted
    said = capsys.readouterr().err
    assert f"passing over {old}: it is 1.34.9, the lab needs 1.35.0 or later" in said
    assert f"taking {wanted} (1.36.0)" in said


@pytest.mark.parametrize("body", ["echo no version here", "exit 1", "echo Kubernetes v1.37.2; exit 1"])
def test_a_broken_one_is_passed_over(folders: tuple[Path, Path], body: str):
    program(folders[0], "kube-apiserver", body)
    assert binaries.ensure("kube-apiserver") == Path("/cache/kube-apiserver/bin/kube-apiserver")


def test_an_old_go_is_passed_over(folders: tuple[Path, Path]):
    _, path = folders
    program(path, "go", "echo go version go1.25.5 linux/amd64")
    assert binaries.go() == Path("/cache/go/go/bin/go")
    new = program(path, "go", "echo go version go1.26.1 linux/amd64")
    assert binaries.go() == new


def test_an_unknown_name_is_an_error():
    with pytest.raises(LabError, match="no program 'kube-proxy'"):
        binaries.ensure("kube-proxy")


def test_the_older_kubernetes_is_built_whatever_the_machine_has(folders: tuple[Path, Path]):
    program(folders[1], "kube-apiserver", "echo Kubernetes v1.36.0")
    assert binaries.ensure("kube-apiserver", older=True) == Path("/cache/kube-apiserver/bin/kube-apiserver")
    assert binaries.OLDER["kubelet"].source.symbols["k8s.io/component-base/version.gitMinor"] == "34"


@pytest.mark.parametrize(
    "program",
    [*binaries.PROGRAMS.values(), *binaries.OLDER.values()],
    ids=lambda program: f"{program.name}-{program.source.version}",
)
def test_sources_are_locked(program: binaries.Program):
    source = program.source
    if not source.package:
        assert f"=={source.version.removeprefix('v')} " in (binaries.HERE / "pip" / source.module).read_text()
        return
    folder = binaries.HERE / "go" / source.module
    required = re.findall(
        rf"^\s*(?:require )?(\S+) {re.escape(source.version)}\b", (folder / "go.mod").read_text(), re.MULTILINE
    )
    (module,) = [name for name in required if f"{source.package}/".startswith(f"{name}/")]
    assert f"{module} {source.version} h1:" in (folder / "go.sum").read_text()
