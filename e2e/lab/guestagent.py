"""Commands and files in a virtual server, through QEMU's guest agent on a virtio serial port.

No network is involved, so it works with the cable cut; and it needs no secret. A frozen or dead server does not
answer: that is ``LabTimeout``.
"""

from __future__ import annotations

import base64
import itertools
import shlex
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lab.errors import CommandError, LabError, LabTimeout, tail
from lab.jsonlines import JsonLines
from lab.processes import Completed

_CHUNK = 1 << 20
_LARGEST_FILE = 8 << 20
_AGENT_ANSWERS = 30.0
"""Seconds within which a living agent answers; under emulation with busy neighbours a second is common."""
PATIENCE = 150.0
"""Seconds that a command has: a request to an emulated SSD may take a minute, see docs/limitations.md."""


class GuestAgent:
    """The agent of one running server. Safe for threads: commands of several run at the same time."""

    def __init__(self, path: Path) -> None:
        """Remember where the agent is; the connection is made with the first request.

        Args:
            path: The host's end of the virtio serial port.
        """
        self._path = path
        self._lock = threading.Lock()
        self._lines: JsonLines | None = None
        self._numbers = itertools.count(int(time.time()))

    def close(self) -> None:
        """End the connection, if there is one."""
        with self._lock:
            self._disconnect()

    def ping(self, timeout: float = 2.0) -> bool:
        """Whether the agent answers within so many seconds."""
        try:
            self._request("guest-ping", {}, timeout)
        except LabTimeout:
            return False
        return True

    def run(
        self,
        command: str | Sequence[str],
        *,
        timeout: float = PATIENCE,
        input: bytes | None = None,  # noqa: A002 - subprocess.run calls it so
        check: bool = True,
        env: Mapping[str, str] | None = None,
    ) -> Completed:
        """Run a command in the server as root and wait for it.

        It runs in a session of its own. A process that it leaves behind with its standard output open is waited
        for: redirect what shall go on alone.

        Args:
            command: Words, or a line for ``/bin/sh``.
            timeout: Seconds after which the command and its process group are killed.
            input: What it reads on standard input.
            check: Whether an exit status other than 0 is an error.
            env: Variables besides the usual ones.

        Raises:
            CommandError: It failed, and ``check`` is set.
            LabTimeout: It took too long, or the server does not answer.
            LabError: It could not be started, or wrote more than 16 MiB.
        """
        words = ["/bin/sh", "-c", command] if isinstance(command, str) else list(command)
        if env:
            words = ["env", *(f"{key}={value}" for key, value in env.items()), *words]
        deadline = time.monotonic() + timeout
        patience = min(_AGENT_ANSWERS, timeout + 5)
        pid = self._start(words, input, patience)
        status = self._wait(pid, deadline, patience)
        if status is None:
            self._start(["kill", "-KILL", "--", f"-{pid}"], None, patience)
            status = self._wait(pid, time.monotonic() + 10, patience)
            if status is None:
                raise LabTimeout(f"{_show(words)}\nis still there 10 s after SIGKILL (process {pid})")
            raise LabTimeout(f"{_show(words)}\nwas killed after {timeout:g} s:\n{_said(_completed(words, status))}")
        if status.get("out-truncated") or status.get("err-truncated"):
            raise LabError(f"{_show(words)}\nwrote more than the agent holds: let it write to a file and fetch that")
        done = _completed(words, status)
        if check and done.exit_code != 0:
            raise CommandError(done.argv, done.exit_code, done.stdout_text, done.stderr_text)
        return done

    def put_file(self, path: str, data: bytes, mode: int = 0o644) -> None:
        """Write a file in the server, whole or not at all; missing folders are made.

        Raises:
            CommandError: It cannot be written.
            LabTimeout: The server does not answer.
        """
        script = 'set -eu; mkdir -p "$(dirname "$1")"; umask 077; cat > "$1.new"; chmod "$2" "$1.new"; mv "$1.new" "$1"'
        if len(data) > _LARGEST_FILE:
            raise LabError(f"{path}: {len(data)} bytes; a request to the agent holds {_LARGEST_FILE}")
        self.run(["/bin/sh", "-c", script, "sh", path, f"{mode:o}"], input=data)

    def get_file(self, path: str) -> bytes:
        """Read a regular file of the server.

        Raises:
            LabError: It cannot be opened.
            LabTimeout: The server does not answer.
        """
        handle = self._request("guest-file-open", {"path": path, "mode": "r"})
        parts = []
        try:
            while True:
                chunk = self._request("guest-file-read", {"handle": handle, "count": _CHUNK})
                parts.append(base64.b64decode(chunk["buf-b64"]))
                if chunk["eof"]:
                    return b"".join(parts)
        finally:
            self._request("guest-file-close", {"handle": handle})

    def set_clock(self) -> None:
        """Set the server's wall clock to the host's: it stands still while the server is frozen.

        Raises:
            LabTimeout: The server does not answer.
        """
        self.run(["date", "--utc", f"--set=@{time.time():.3f}"])

    def _start(self, words: Sequence[str], stdin: bytes | None, patience: float) -> int:
        # setsid keeps the process id (the agent's child leads no group yet) and makes it name the whole group.
        arguments: dict[str, Any] = {"path": "setsid", "arg": list(words), "capture-output": True}
        if stdin is not None:
            arguments["input-data"] = base64.b64encode(stdin).decode()
        return int(self._request("guest-exec", arguments, patience)["pid"])

    def _wait(self, pid: int, deadline: float, patience: float) -> Mapping[str, Any] | None:
        pause = 0.01
        while True:
            status: Mapping[str, Any] = self._request("guest-exec-status", {"pid": pid}, patience)
            if status["exited"]:
                return status
            if time.monotonic() > deadline:
                return None
            time.sleep(pause)
            pause = min(pause * 1.5, 0.2)

    def _request(self, command: str, arguments: Mapping[str, Any], timeout: float = _AGENT_ANSWERS) -> Any:
        deadline = time.monotonic() + timeout
        with self._lock:
            try:
                lines = self._connected(deadline)
                lines.send({"execute": command, "arguments": dict(arguments)})
                message = lines.receive(deadline)
            except LabTimeout:
                self._disconnect()  # a late answer must not be taken for the next one's
                raise LabTimeout(
                    f"{self._path}: the guest agent does not answer within {timeout:g} s: the server is frozen,"
                    " still booting, or too busy"
                ) from None
            except LabError:
                self._disconnect()
                raise
        if "error" in message:
            raise LabError(f"guest agent: {command}: {message['error']['desc']}")
        return message["return"]

    def _connected(self, deadline: float) -> JsonLines:
        if self._lines is not None:
            return self._lines
        lines = JsonLines(self._path, timeout=max(0.0, deadline - time.monotonic()))
        self._lines = lines
        number = next(self._numbers)
        lines.send({"execute": "guest-sync-delimited", "arguments": {"id": number}}, prefix=b"\xff")
        while True:
            lines.skip_sentinel(deadline)
            if lines.receive(deadline).get("return") == number:
                return lines

    def _disconnect(self) -> None:
        if self._lines is not None:
            self._lines.close()
            self._lines = None


def _completed(words: Sequence[str], status: Mapping[str, Any]) -> Completed:
    exit_code = -int(status["signal"]) if "signal" in status else int(status["exitcode"])
    out, err = (base64.b64decode(status.get(key, "")) for key in ("out-data", "err-data"))
    return Completed(tuple(words), exit_code, out, err)


def _show(words: Sequence[str]) -> str:
    line = shlex.join(words)
    return line if len(line) <= 300 else line[:300] + "…"


def _said(done: Completed) -> str:
    return tail(done.stderr_text) or tail(done.stdout_text) or "(it printed nothing)"
