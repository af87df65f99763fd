"""Children of the lab: started, waited for, and ended by id; none outlives the lab.

Three nets, one below the other:

1. Whoever starts a `ManagedProcess` stops it.
2. The kernel kills it when the lab dies, by ``kill -9`` too (the parent-death signal). That signal fires when the
   *thread* that started the child ends, so long-lived children are started from the main thread only.
3. A ledger in the lab's run directory names every long-lived child by process id and start time. `reap` ends exactly
   those, and never a stranger that was given the same id later.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from lab.errors import CommandError, LabError, LabTimeout, LeftBehind, NotPossible, ProcessDied, tail

LEDGER = "ledger.jsonl"
DIE_WITH_PARENT = ("setpriv", "--pdeathsig", "KILL", "--")
"""Prefix of every child: util-linux's setpriv asks for the parent-death signal, then becomes the command."""


@dataclass(frozen=True)
class Completed:
    """What a command left behind.

    Attributes:
        argv: What was run.
        exit_code: Its exit status; minus the signal's number when a signal ended it.
        stdout: What it printed, as bytes.
        stderr: What it complained of, as bytes.
    """

    argv: tuple[str, ...]
    exit_code: int
    stdout: bytes
    stderr: bytes

    @property
    def stdout_text(self) -> str:
        """Standard output as text."""
        return self.stdout.decode(errors="replace")

    @property
    def stderr_text(self) -> str:
        """Standard error as text."""
        return self.stderr.decode(errors="replace")


def run(
    argv: Sequence[str | Path],
    *,
    timeout: float,
    input: str | bytes | None = None,  # noqa: A002 - named as in subprocess
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    check: bool = True,
) -> Completed:
    """Run a command to its end. It, and what it started, is killed when time is up or the caller is interrupted.

    Args:
        argv: The command; no shell.
        timeout: Seconds it may take.
        input: Its standard input; nothing when None.
        env: Its whole environment; the caller's when None.
        cwd: Where it runs; the caller's folder when None.
        check: Whether a failure raises.

    Raises:
        CommandError: It failed, and `check` was asked for.
        LabTimeout: Time was up.
        NotPossible: There is no such program.
    """
    words = tuple(map(str, argv))
    process = _spawn(
        words,
        stdin=subprocess.DEVNULL if input is None else subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=env,
        cwd=cwd,
    )
    with process:
        try:
            stdout, stderr = process.communicate(input.encode() if isinstance(input, str) else input, timeout=timeout)
        except subprocess.TimeoutExpired:
            _kill_group(process)
            stdout, stderr = process.communicate(timeout=10)
            said = tail((stderr or stdout).decode(errors="replace"))
            raise LabTimeout(f"{' '.join(words)}\ndid not end within {timeout:g} s and was killed:\n{said}") from None
        except BaseException:
            _kill_group(process)
            raise
    done = Completed(words, process.returncode, stdout, stderr)
    if check and done.exit_code != 0:
        raise CommandError(words, done.exit_code, done.stdout_text, done.stderr_text)
    return done


def _spawn(
    argv: tuple[str, ...],
    *,
    stdin: int,
    stdout: int,
    stderr: int,
    env: Mapping[str, str] | None,
    cwd: Path | None,
    pass_fds: Sequence[int] = (),
) -> subprocess.Popen[bytes]:
    search = (os.environ if env is None else env).get("PATH", os.defpath)
    for program in (DIE_WITH_PARENT[0], argv[0]):
        if shutil.which(program, path=search) is None:
            raise NotPossible(f"no program {program}: install it, or mend PATH ({search})")
    try:
        return subprocess.Popen(
            (*DIE_WITH_PARENT, *argv),
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            env=env,
            cwd=cwd,
            pass_fds=pass_fds,
            start_new_session=True,
        )
    except OSError as error:
        raise NotPossible(f"cannot run {argv[0]} in {cwd or Path.cwd()}: {error}") from error


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    # The group's id is the child's own and stays taken until the child is waited for, so it cannot be a stranger's.
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def start_time(pid: int) -> int | None:
    """When a process started, in clock ticks since the machine did; None when it is gone or only a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The second field is the command's name in brackets, and may hold spaces and brackets itself.
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in {"Z", "X"} else int(fields[19])


def boot_id() -> str:
    """Names this run of the kernel: a start time means nothing in another."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


@dataclass(frozen=True)
class Entry:
    """A process in the ledger.

    Attributes:
        pid: Process id.
        started: Start time, in clock ticks since boot.
        boot: Which boot that was.
        what: For a reader.
    """

    pid: int
    started: int
    boot: str
    what: str

    @property
    def alive(self) -> bool:
        """Whether this very process still runs."""
        return boot_id() == self.boot and start_time(self.pid) == self.started

    def send(self, number: int) -> bool:
        """Send this very process a signal, and no later one of its id; whether it was there to get it."""
        with process_handle(self) as handle:
            if handle is None:
                return False
            try:
                signal.pidfd_send_signal(handle, number)
            except ProcessLookupError:
                return False
            return True

    def __str__(self) -> str:
        return f"{self.what} (pid {self.pid})"


class Ledger:
    """Which processes a lab started, in a file that outlives it: one JSON object a line."""

    def __init__(self, run_dir: Path) -> None:
        self.path = run_dir / LEDGER

    def add(self, pid: int, what: str) -> Entry | None:
        """Write a child down; None when it is gone already."""
        started = start_time(pid)
        if started is None:
            return None
        entry = Entry(pid, started, boot_id(), what)
        with self.path.open("a") as file:
            file.write(json.dumps(asdict(entry)) + "\n")
        return entry

    def entries(self) -> list[Entry]:
        """All that were written down. A last line cut short by a crash does not count.

        Raises:
            LabError: The file is not a ledger.
        """
        try:
            lines = self.path.read_text().splitlines(keepends=True)
        except FileNotFoundError:
            return []
        if lines and not lines[-1].endswith("\n"):
            del lines[-1]
        try:
            return [Entry(**json.loads(line)) for line in lines]
        except (ValueError, TypeError) as error:
            raise LabError(f"{self.path} is damaged ({error}): look at what it names, end it, remove it") from error

    def alive(self) -> list[Entry]:
        """Those that still run."""
        return [entry for entry in self.entries() if entry.alive]


def reap(run_dir: Path, *, grace: float = 10.0) -> list[Entry]:
    """End what a lab's ledger names and still runs: SIGTERM, at most `grace` seconds, then SIGKILL.

    Returns:
        What had to be ended.

    Raises:
        LeftBehind: Something survived SIGKILL for 10 seconds.
    """
    with contextlib.ExitStack() as stack:
        handles: dict[int, Entry] = {}
        for entry in Ledger(run_dir).entries():
            handle = stack.enter_context(process_handle(entry))
            if handle is not None:
                handles[handle] = entry
        ended = list(handles.values())
        for number, limit in ((signal.SIGTERM, grace), (signal.SIGKILL, 10.0)):
            for handle in handles:
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(handle, number)
            handles = {handle: handles[handle] for handle in _wait_exits(set(handles), limit)}
        if handles:
            names = ", ".join(map(str, handles.values()))
            raise LeftBehind(f"still running 10 s after SIGKILL: {names}; look at their state in /proc/PID/stack")
        return ended


@contextlib.contextmanager
def process_handle(entry: Entry) -> Iterator[int | None]:
    """A descriptor of this very process (pidfd): a signal sent through it cannot reach another. None when gone."""
    try:
        handle = os.pidfd_open(entry.pid)
    except ProcessLookupError:
        yield None
        return
    try:
        # Looked at after opening: if the start time fits now, the descriptor is of this process and no later one.
        yield handle if entry.alive else None
    finally:
        os.close(handle)


def _wait_exits(handles: set[int], limit: float) -> set[int]:
    """Wait for processes to end; those that did not within `limit` seconds."""
    deadline = time.monotonic() + limit
    while handles and (left := deadline - time.monotonic()) > 0:
        poll = select.poll()
        for handle in handles:
            poll.register(handle, select.POLLIN)
        handles = handles - {handle for handle, _ in poll.poll(left * 1000)}
    return handles


def wait_until(what: str, ready: Callable[[], bool], *, timeout: float, interval: float = 0.05) -> float:
    """Ask until the answer is yes; the seconds that took.

    Args:
        what: What is waited for, for the message.
        ready: Asked every `interval` seconds.
        timeout: Seconds to go on asking.
        interval: Seconds between two questions.

    Raises:
        LabTimeout: The answer stayed no.
    """
    began = time.monotonic()
    while not ready():
        if time.monotonic() - began > timeout:
            raise LabTimeout(f"{what}: not within {timeout:g} s")
        time.sleep(interval)
    return time.monotonic() - began


class ManagedProcess:
    """A long-lived child with a log file, written down in its lab's ledger."""

    def __init__(
        self,
        name: str,
        argv: Sequence[str | Path],
        *,
        run_dir: Path,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        pass_fds: Sequence[int] = (),
    ) -> None:
        """Describe it; nothing runs before `start`.

        Args:
            name: Unique in the lab; the log is ``run_dir/logs/NAME.log``, appended to at every start.
            argv: The command.
            run_dir: The lab's.
            env: Its whole environment; the caller's when None.
            cwd: Where it runs.
            pass_fds: Open descriptors it inherits.
        """
        self.name = name
        self.argv = tuple(map(str, argv))
        self.log_file = run_dir / "logs" / f"{name}.log"
        self._ledger = Ledger(run_dir)
        self._env = env
        self._cwd = cwd
        self._pass_fds = tuple(pass_fds)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Its process id.

        Raises:
            LabError: It does not run.
        """
        if self._process is None:
            raise LabError(f"{self.name} does not run: start it first")
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether it was started, and has not ended."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> Self:
        """Start it.

        Raises:
            LabError: It runs already, or this is not the main thread.
            NotPossible: There is no such program.
        """
        if self.running:
            raise LabError(f"{self.name} runs already (pid {self.pid})")
        if threading.current_thread() is not threading.main_thread():
            raise LabError(
                f"start {self.name} from the main thread: the kernel kills a child when the thread that made it ends"
            )
        self.log_file.parent.mkdir(parents=True, exist_ok=True)
        with self.log_file.open("ab") as log:
            self._process = _spawn(
                self.argv,
                stdin=subprocess.DEVNULL,
                stdout=log.fileno(),
                stderr=subprocess.STDOUT,
                env=self._env,
                cwd=self._cwd,
                pass_fds=self._pass_fds,
            )
        self._ledger.add(self._process.pid, self.name)
        return self

    def wait_ready(self, ready: Callable[[], bool], *, timeout: float, interval: float = 0.05) -> float:
        """Wait until it does its work; the seconds that took.

        Args:
            ready: Whether it does.
            timeout: Seconds to wait.
            interval: Seconds between two looks.

        Raises:
            ProcessDied: It ended instead.
            LabTimeout: It was not ready in time. Both messages end with its log.
        """

        def look() -> bool:
            if not self.running:
                code = None if self._process is None else self._process.returncode
                raise ProcessDied(
                    f"{self.name} ended (exit status {code}) instead of becoming ready\n{self.log_tail()}"
                )
            return ready()

        try:
            return wait_until(f"{self.name} ready", look, timeout=timeout, interval=interval)
        except LabTimeout as error:
            raise LabTimeout(f"{error}; its log {self.log_file} ends:\n{self.log_tail()}") from None

    def stop(self, timeout: float = 15.0, *, force: bool = False) -> int | None:
        """End it and wait for it. Safe to call again.

        Args:
            timeout: Seconds after SIGTERM before SIGKILL.
            force: SIGKILL at once, as a power cut would.

        Returns:
            Its exit status (minus the signal's number), or None when it was never started.

        Raises:
            LeftBehind: It survived SIGKILL for 10 seconds.
        """
        process = self._process
        if process is None:
            return None
        if process.poll() is None and not force:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout)
        if process.poll() is None:
            process.kill()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                raise LeftBehind(f"{self.name} (pid {process.pid}) survived SIGKILL for 10 s") from None
        return process.returncode

    def wait(self, timeout: float) -> int | None:
        """Wait for its own end: its exit status, or None when it still runs after `timeout` seconds.

        Raises:
            LabError: It was never started.
        """
        if self._process is None:
            raise LabError(f"{self.name} does not run: start it first")
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            return None

    def log_tail(self) -> str:
        """The end of its log, for a message."""
        try:
            return tail(self.log_file.read_bytes()[-32_768:].decode(errors="replace"))
        except FileNotFoundError:
            return "(no log)"
