"""One living lab a run directory; what a dead one left is cleared."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import rundir
from lab.errors import AlreadyUp, LabError, NotUp
from lab.processes import Ledger, boot_id, start_time


@pytest.fixture
def run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a lab called "one" would live."""
    monkeypatch.setenv("KUBEFLASH_LAB_RUN", str(tmp_path / "run"))
    return rundir.of("one")


@pytest.fixture
def orphan() -> Iterator[subprocess.Popen[bytes]]:
    """A process of a dead lab."""
    with subprocess.Popen(["sleep", "600"]) as process:
        yield process
        process.kill()


def record(pid: int, started: int) -> rundir.Record:
    return rundir.Record("one", pid, started, boot_id(), "uid", "https://server", "/kubeconfig", "/kubectl", ("gpu-a",))


@pytest.mark.parametrize("name", ["", "..", "a/b", "-a", "Lab", "a" * 41])
def test_bad_names(name: str):
    with pytest.raises(LabError, match="is no name for a lab"):
        rundir.of(name)


def test_a_claim_is_exclusive_and_private(run_dir: Path):
    with rundir.claim(run_dir):
        assert run_dir.stat().st_mode & 0o777 == 0o700
        assert rundir.holder(run_dir) is not None
        with pytest.raises(AlreadyUp, match=f"pid {os.getpid()}"):
            rundir.claim(run_dir)
        with pytest.raises(AlreadyUp, match=f"pid {os.getpid()}"):
            rundir.assert_free(run_dir)
        with pytest.raises(AlreadyUp):
            rundir.remove(run_dir, timeout=0.1)
        assert run_dir.exists()


def test_a_killed_holder_holds_nothing(run_dir: Path):
    script = (
        "import pathlib, sys, time\nfrom lab import rundir\n"
        "lock = rundir.claim(pathlib.Path(sys.argv[1]))\nprint(flush=True)\ntime.sleep(600)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    argv = [sys.executable, "-c", script, str(run_dir)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with pytest.raises(AlreadyUp):
            rundir.claim(run_dir)
        process.kill()
    assert rundir.holder(run_dir) is None
    rundir.claim(run_dir).close()


def test_a_claim_clears_what_a_dead_lab_left(run_dir: Path, orphan: subprocess.Popen[bytes]):
    rundir.claim(run_dir).close()
    (run_dir / "etcd").mkdir()
    Ledger(run_dir).add(orphan.pid, "etcd")
    with rundir.claim(run_dir):
        assert [path.name for path in run_dir.iterdir()] == ["lock"]
    assert orphan.wait(5) != 0


def test_remove_ends_and_removes(run_dir: Path, orphan: subprocess.Popen[bytes]):
    rundir.claim(run_dir).close()
    Ledger(run_dir).add(orphan.pid, "etcd")
    assert [entry.what for entry in rundir.remove(run_dir)] == ["etcd"]
    assert not run_dir.exists()
    assert rundir.remove(run_dir) == []


def test_live_tells_a_living_lab_from_a_dead_one(run_dir: Path):
    with pytest.raises(NotUp, match="python -m lab up"):
        rundir.live(run_dir)
    with rundir.claim(run_dir):
        with pytest.raises(NotUp):
            rundir.live(run_dir)
        own = record(os.getpid(), start_time(os.getpid()) or 0)
        own.write(run_dir)
        assert rundir.live(run_dir) == own
        record(os.getpid(), 1).write(run_dir)  # the same process id, long ago
        with pytest.raises(NotUp):
            rundir.live(run_dir)


def test_a_damaged_record_says_so(run_dir: Path):
    run_dir.mkdir(parents=True)
    (run_dir / "lab.json").write_text(json.dumps({"name": "one"}))
    with pytest.raises(LabError, match="damaged"):
        rundir.read(run_dir)
