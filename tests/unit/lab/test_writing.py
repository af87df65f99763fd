"""The writer that fence and fault tests trust: here on plain files."""

from __future__ import annotations

import json
import os
import threading

import pytest

from lab.processes import wait_until
from support import faults, writing

SIZE = 64 * writing.BLOCK


@pytest.fixture
def disk(tmp_path):
    path = tmp_path / "disk"
    path.write_bytes(bytes(SIZE))
    return path


def words(command, disk, *more):
    return [command, "--device", str(disk), "--folder", str(disk.parent / "w"), "--bytes", str(SIZE), "--cached", *more]


def status(disk):
    return json.loads((disk.parent / "w" / "status.json").read_text())


def test_a_block_says_all_over_whose_it_is():
    block = writing.block(3, 7, 8192)
    assert len(block) == writing.BLOCK
    assert writing.told(block) == (3, 7, 8192)
    assert writing.told(bytes(writing.BLOCK)) is None
    assert writing.told(block[:-1] + b"x") is None
    assert writing.told(block[:2048] + writing.block(3, 8, 8192)[2048:]) is None, "half of each is neither"


def test_a_pattern_covers_all(disk):
    assert writing.main(words("cover", disk, "--owner", "2")) == 0
    assert disk.read_bytes() == writing.pattern(2, 0, SIZE)


def started(disk, *more):
    job = []

    def run():
        real = writing.Job

        def made(options):
            job.append(real(options))
            return job[0]

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(writing, "Job", made)
            patch.setattr(writing.signal, "signal", lambda *_: None)
            writing.main(words("write", disk, "--pause", "0.001", *more))

    thread = threading.Thread(target=run)
    thread.start()
    wait_until("a job", lambda: bool(job), timeout=10)
    return thread, job[0]


def test_what_is_written_is_counted_verified_and_found_again(disk, capsys):
    thread, job = started(disk, "--verify", "--depth", "3", "--buffered", "1")
    wait_until("writes", lambda: all(worker.writes > 30 or worker.buffered for worker in job.workers), timeout=20)
    job.stopping.set()
    thread.join(10)
    said = status(disk)
    assert said["ended"]
    assert said["writes"] > said["verified"] > 90
    assert (said["errors"], said["mismatches"], said["late"]) == (0, [], 0)
    assert writing.main(words("check", disk)) == 0
    with disk.open("r+b") as file:
        file.seek(5 * writing.BLOCK)
        file.write(writing.block(2, 1, 5 * writing.BLOCK))
    assert writing.main(words("check", disk)) == 1
    assert f"{5 * writing.BLOCK}: (2, 1, {5 * writing.BLOCK}) instead of" in capsys.readouterr().out


def test_it_goes_on_after_errors_and_gives_up_after_so_many_in_a_row(disk, monkeypatch):
    real, broken = os.pwritev, threading.Event()

    def pwritev(*arguments):
        if broken.is_set():
            raise OSError(5, "broken")
        return real(*arguments)

    monkeypatch.setattr(writing.os, "pwritev", pwritev)
    thread, job = started(disk, "--depth", "2", "--give-up", "3")
    wait_until("writes", lambda: all(worker.writes > 3 for worker in job.workers), timeout=20)
    broken.set()
    wait_until("errors", lambda: all(worker.errors > 0 for worker in job.workers), timeout=20)
    broken.clear()
    wait_until("late writes", lambda: any(worker.late > 0 for worker in job.workers), timeout=20)
    broken.set()
    thread.join(10)
    said = status(disk)
    assert said["ended"]
    assert said["kinds"]["write EIO"] == said["errors"] >= 8
    assert said["late"] > 0
    assert "failed: EIO" in (disk.parent / "w" / "log").read_text()


def test_rows_that_tests_saw_become_a_table(tmp_path):
    rows = {"cut": faults.Fault("the cable is cut", "I/O waits"), "off": faults.Fault("power off", "it comes back")}
    table = faults.Table("Faults", rows, tmp_path / "build" / "faults.json")
    table.seen("off", "back after 3 s")
    table.seen("cut", "no error")
    table.seen("off", "back after 2 s")
    text = faults.render(json.loads((tmp_path / "build" / "faults.json").read_text()))
    assert "| the cable is cut | I/O waits | no error |\n| power off | it comes back | back after 2 s |" in text
