"""A client of QEMU's machine protocol (QMP)."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lab.errors import LabError, LabTimeout
from lab.jsonlines import JsonLines


class QmpError(LabError):
    """QEMU refused a command."""


class Qmp:
    """One connection to one QEMU; commands may come from several threads."""

    def __init__(self, path: Path, timeout: float = 30) -> None:
        """Connect and leave the negotiation mode.

        Args:
            path: QEMU's monitor socket.
            timeout: Seconds to wait for QEMU to listen and greet.

        Raises:
            LabTimeout: It did not.
        """
        self._lock = threading.Lock()
        self._events: list[Mapping[str, Any]] = []
        self._lines = JsonLines(path, timeout)
        self._lines.receive(time.monotonic() + timeout)
        self.execute("qmp_capabilities", timeout=timeout)

    def close(self) -> None:
        """End the connection; QEMU goes on."""
        self._lines.close()

    def execute(self, command: str, *, timeout: float = 30, arguments: Mapping[str, Any] | None = None) -> Any:
        """Run one command and return what it returns.

        Args:
            command: Its name, as QEMU spells it.
            timeout: Seconds to wait for the answer.
            arguments: Its arguments.

        Raises:
            QmpError: QEMU refused it.
            LabTimeout: No answer in time; the connection is of no further use.
            LabError: QEMU has ended.
        """
        deadline = time.monotonic() + timeout
        with self._lock:
            self._lines.send({"execute": command, "arguments": dict(arguments or {})})
            while True:
                message = self._lines.receive(deadline)
                if "event" in message:
                    self._events.append(message)
                elif "error" in message:
                    raise QmpError(f"{command} {dict(arguments or {})}: {message['error']['desc']}")
                elif "return" in message:
                    return message["return"]

    def wait_event(self, name: str, matches: Callable[[Mapping[str, Any]], bool], timeout: float) -> None:
        """Wait for an event, past ones since the last ``forget_events`` included.

        Args:
            name: Its name, for instance ``DEVICE_DELETED``.
            matches: Tells from the event's data whether it is the one.
            timeout: Seconds to wait.

        Raises:
            LabTimeout: It did not come.
            LabError: QEMU has ended.
        """
        deadline = time.monotonic() + timeout
        with self._lock:
            while True:
                for event in self._events:
                    if event["event"] == name and matches(event.get("data", {})):
                        self._events.remove(event)
                        return
                try:
                    message = self._lines.receive(deadline)
                except LabTimeout as error:
                    seen = ", ".join(event["event"] for event in self._events) or "none"
                    raise LabTimeout(f"no event {name} within {timeout:g} s (seen: {seen})") from error
                if "event" in message:
                    self._events.append(message)

    def forget_events(self) -> None:
        """Drop the events that have come so far."""
        with self._lock:
            self._events.clear()
