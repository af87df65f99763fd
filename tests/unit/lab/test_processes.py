"""Children end when they should, and nobody else does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from lab.errors import CommandError, LabError, LabTimeout, NotPossible, ProcessDied
from lab.processes import Ledger, ManagedProcess, reap, run, start_time, wait_until

STUBBORN = "trap '' TERM; echo deaf; while :; do read -t 60 <> /dev/zero; done"


@pytest.fixture
def stranger() -> Iterator[subprocess.Popen[bytes]]:
    """A process that no lab started."""
    with subprocess.Popen(["sleep", "600"]) as process:
        yield process
        process.kill()


def test_run_returns_what_the_command_printed():
    done = run(["sh", "-c", "cat; echo oops >&2"], input="hello", timeout=10)
    assert (done.stdout, done.stderr_text, done.exit_code) == (b"hello", "oops\n", 0)


def test_run_tells_why_a_command_failed():
    with pytest.raises(CommandError, match=r"exit status 3:\nthe reason") as caught:
        run(["sh", "-c", "echo out; echo the reason >&2; exit 3"], timeout=10)
    assert (caught.value.exit_code, caught.value.stdout) == (3, "out\n")
    assert run(["sh", "-c", "exit 3"], timeout=10, check=False).exit_code == 3


def test_run_kills_a_late_command_and_what_it_started(tmp_path: Path):
    script = f"sleep 600 & echo $! > {tmp_path}/pid; echo working on it >&2; wait"
    with pytest.raises(LabTimeout, match="working on it"):
        run(["sh", "-c", script], timeout=0.5)
    grandchild = int((tmp_path / "pid").read_text())
    wait_until("grandchild dead", lambda: start_time(grandchild) is None, timeout=5)


def test_run_names_a_missing_program():
    with pytest.raises(NotPossible, match="no program kubeflash-no-such-thing: install it"):
        run(["kubeflash-no-such-thing"], timeout=10)


def test_ledger_remembers_across_a_torn_last_line(tmp_path: Path, stranger: subprocess.Popen[bytes]):
    ledger = Ledger(tmp_path)
    ledger.add(stranger.pid, "a server")
    with ledger.path.open("a") as file:
        file.write('{"pid": 1, "star')
    assert [(entry.pid, entry.what) for entry in ledger.alive()] == [(stranger.pid, "a server")]


def test_a_damaged_ledger_is_not_passed_over(tmp_path: Path):
    (tmp_path / "ledger.jsonl").write_text('{"pid": 1}\n')
    with pytest.raises(LabError, match="damaged"):
        Ledger(tmp_path).entries()


@pytest.mark.parametrize("change", [{"started": 1}, {"boot": "another boot"}])
def test_reap_spares_whoever_got_the_process_id_later(
    tmp_path: Path, stranger: subprocess.Popen[bytes], change: dict[str, object]
):
    ledger = Ledger(tmp_path)
    entry = ledger.add(stranger.pid, "died long ago")
    assert entry is not None
    ledger.path.write_text(json.dumps(asdict(replace(entry, **change))) + "\n")
    assert reap(tmp_path) == []
    assert stranger.poll() is None


def test_reap_ends_what_the_ledger_names(tmp_path: Path, stranger: subprocess.Popen[bytes]):
    Ledger(tmp_path).add(stranger.pid, "left behind")
    assert [entry.what for entry in reap(tmp_path)] == ["left behind"]
    assert stranger.wait(5) == -signal.SIGTERM
    assert reap(tmp_path) == []


def test_reap_kills_the_deaf(tmp_path: Path):
    with subprocess.Popen(["bash", "-c", STUBBORN], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()  # the trap is set
        Ledger(tmp_path).add(process.pid, "deaf")
        reap(tmp_path, grace=0.2)
        assert process.wait(5) == -signal.SIGKILL


def test_start_time_of_a_zombie_is_none():
    with subprocess.Popen(["true"]) as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # dead, and not yet waited for
        assert start_time(process.pid) is None


def test_start_time_reads_past_odd_command_names(tmp_path: Path):
    odd = tmp_path / "a) S 1 (b"
    odd.symlink_to("/bin/sleep")
    with subprocess.Popen([str(odd), "600"]) as process:
        own = start_time(os.getpid())
        assert own is not None
        seen = start_time(process.pid)
        process.kill()
    assert seen is not None
    assert seen >= own


def test_managed_process_writes_its_log_and_stops(tmp_path: Path):
    process = ManagedProcess("speaker", ["sh", "-c", "echo ready; exec sleep 600"], run_dir=tmp_path).start()
    process.wait_ready(lambda: "ready" in process.log_tail(), timeout=10)
    assert [entry.what for entry in Ledger(tmp_path).alive()] == ["speaker"]
    assert process.stop() == -signal.SIGTERM
    assert process.stop() == -signal.SIGTERM
    assert not process.running
    assert Ledger(tmp_path).alive() == []


def test_managed_process_is_killed_when_it_does_not_listen(tmp_path: Path):
    process = ManagedProcess("deaf", ["bash", "-c", STUBBORN], run_dir=tmp_path).start()
    process.wait_ready(lambda: "deaf" in process.log_tail(), timeout=10)
    assert process.stop(timeout=0.2) == -signal.SIGKILL


def test_wait_ready_shows_the_log_of_a_process_that_died(tmp_path: Path):
    process = ManagedProcess("broken", ["sh", "-c", "echo no such disk; exit 4"], run_dir=tmp_path).start()
    with pytest.raises(ProcessDied, match=r"(?s)exit status 4.*no such disk"):
        process.wait_ready(lambda: False, timeout=10)


def test_wait_ready_shows_the_log_of_a_process_that_is_late(tmp_path: Path):
    process = ManagedProcess("slow", ["sh", "-c", "echo still looking; exec sleep 600"], run_dir=tmp_path).start()
    wait_until("first line", lambda: "looking" in process.log_tail(), timeout=10)
    with pytest.raises(LabTimeout, match=r"(?s)within 0.2 s.*still looking"):
        process.wait_ready(lambda: False, timeout=0.2)
    process.stop()


def test_managed_process_starts_in_the_main_thread_only(tmp_path: Path):
    caught: list[BaseException] = []

    def start() -> None:
        try:
            ManagedProcess("never", ["true"], run_dir=tmp_path).start()
        except LabError as error:
            caught.append(error)

    thread = threading.Thread(target=start)
    thread.start()
    thread.join(10)
    assert "main thread" in str(caught[0])


def test_kill_9_of_the_parent_takes_the_children_along(tmp_path: Path):
    script = (
        "import pathlib, sys, time\n"
        "from lab.processes import ManagedProcess\n"
        f"process = ManagedProcess('child', ['sleep', '600'], run_dir=pathlib.Path({str(tmp_path)!r})).start()\n"
        "process.wait_ready(lambda: pathlib.Path(f'/proc/{process.pid}/comm').read_text() == 'sleep\\n', timeout=10)\n"
        "print(flush=True)\n"
        "time.sleep(600)\n"
    )
    path = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, env=path) as parent:
        assert parent.stdout is not None
        parent.stdout.readline()
        (child,) = Ledger(tmp_path).alive()
        parent.kill()
    wait_until("child dead", lambda: not child.alive, timeout=5)
