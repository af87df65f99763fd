"""An artifact is whole or not there, and built once."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lab import cache, network
from lab.errors import BuildError


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own, outside any lab."""
    monkeypatch.setenv("KUBEFLASH_CACHE", str(tmp_path))
    monkeypatch.delenv(network.INSIDE, raising=False)
    return tmp_path


def write(text: str) -> cache.Build:
    def build(out: Path) -> None:
        (out / "file").write_text(text)

    return build


def unwanted(_: Path) -> None:
    pytest.fail("built again")


def test_an_artifact_is_built_once_for_a_key():
    first = cache.artifact("thing", "1", write("one"))
    assert cache.artifact("thing", "1", unwanted) == first
    assert (first / "file").read_text() == "one"
    second = cache.artifact("thing", "2", write("two"))
    assert (second / "file").read_text() == "two"


def test_a_failed_build_leaves_nothing_that_counts(folder: Path):
    def fail(out: Path) -> None:
        (out / "file").write_text("half")
        raise BuildError("no compiler")

    with pytest.raises(BuildError, match="no compiler"):
        cache.artifact("thing", "1", fail)
    assert [path.name for path in (folder / "thing").iterdir()] == [".1.lock"]
    assert (cache.artifact("thing", "1", write("whole")) / "file").read_text() == "whole"


def test_a_full_disk_is_a_build_error():
    def fail(_: Path) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(BuildError, match=r"building thing 1: .*No space left"):
        cache.artifact("thing", "1", fail)


def child(folder: Path, body: str) -> subprocess.Popen[str]:
    """Another process that asks for the artifact; `body` is its build function's."""
    script = (
        f"import os, pathlib, sys, time\nfrom lab import cache\ndef build(out):\n    {body}\n"
        "print(cache.artifact('thing', '1', build) / 'file')"
    )
    environment = {**os.environ, "KUBEFLASH_CACHE": str(folder), "PYTHONPATH": os.pathsep.join(sys.path)}
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [sys.executable, "-c", script], stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=environment
    )


def test_a_build_killed_half_way_does_not_count(folder: Path):
    body = "(out / 'file').write_text('half'); print('half', flush=True); time.sleep(600)"
    with child(folder, body) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "half\n"
        process.kill()
    assert list((folder / "thing").glob(".1.*.tmp/file")), "nothing was half built: this test tests nothing"
    assert (cache.artifact("thing", "1", write("whole")) / "file").read_text() == "whole"
    assert not list((folder / "thing").glob(".*.tmp"))


def test_two_processes_build_once(folder: Path):
    # Building ends when a line comes in, which is after the other one was seen waiting.
    body = f"open('{folder}/builds', 'a').write('x'); (out / 'file').write_text('whole'); sys.stdin.readline()"
    with child(folder, body) as one, child(folder, body) as other:
        try:
            said = {process.stderr.readline().split()[0]: process for process in (one, other) if process.stderr}
            assert set(said) == {"building", "waiting"}
            answers = {said[role].communicate(input="\n", timeout=20)[0] for role in ("building", "waiting")}
        finally:
            one.kill()
            other.kill()
    assert answers == {f"{folder}/thing/1/file\n"}
    assert (folder / "builds").read_text() == "x"


def test_nothing_is_downloaded_inside_a_lab(monkeypatch: pytest.MonkeyPatch):
    built = cache.artifact("thing", "1", write("one"))
    monkeypatch.setenv(network.INSIDE, network.identity())
    assert cache.artifact("thing", "1", unwanted) == built
    with pytest.raises(BuildError, match="python -m lab build"):
        cache.artifact("thing", "2", unwanted)
    assert (cache.artifact("thing", "2", write("two"), offline=True) / "file").exists()


def test_what_nobody_uses_is_removed():
    old = cache.artifact("thing", "1", write("one"))
    used = cache.artifact("thing", "2", write("two"))
    long_ago = time.time() - (cache.UNUSED_DAYS + 1) * 86_400
    os.utime(old, (long_ago, long_ago))
    os.utime(used, (long_ago, long_ago))
    cache.artifact("thing", "2", unwanted)
    cache.artifact("thing", "3", write("three"))
    assert (old.exists(), used.exists()) == (False, True)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"KUBEFLASH_CACHE": "/a", "XDG_CACHE_HOME": "/b", "HOME": "/c"}, "/a"),
        ({"XDG_CACHE_HOME": "/b", "HOME": "/c"}, "/b/kubeflash"),
        ({"HOME": "/c"}, "/c/.cache/kubeflash"),
    ],
)
def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], expected: str):
    for name in ("KUBEFLASH_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert str(cache.folder()) == expected
