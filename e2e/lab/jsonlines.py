"""Lines of JSON over a unix socket: what QEMU's monitor and its guest agent speak."""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path
from typing import Any

from lab.errors import LabError, LabTimeout

_SENTINEL = b"\xff"


class JsonLines:
    """One connection. Not safe for threads: callers hold a lock over each request and its answer."""

    def __init__(self, path: Path, timeout: float) -> None:
        """Connect.

        Args:
            path: The socket; QEMU makes it as it starts, so it may not be there yet.
            timeout: Seconds to keep trying.

        Raises:
            LabTimeout: Nobody listened in time.
        """
        deadline = time.monotonic() + timeout
        while True:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                self._socket.connect(str(path))
            except (FileNotFoundError, ConnectionRefusedError) as error:
                self._socket.close()
                if time.monotonic() > deadline:
                    raise LabTimeout(f"{path}: nobody listens after {timeout:g} s") from error
                time.sleep(0.05)
            else:
                break
        self._path = path
        self._buffer = bytearray()

    def close(self) -> None:
        """End the connection."""
        self._socket.close()

    def send(self, message: Any, *, prefix: bytes = b"") -> None:
        """Send one message.

        Raises:
            LabError: The other side is gone.
        """
        try:
            self._socket.settimeout(30)
            self._socket.sendall(prefix + json.dumps(message).encode() + b"\n")
        except TimeoutError as error:
            raise LabTimeout(f"{self._path}: nobody reads") from error
        except OSError as error:
            raise LabError(f"{self._path}: {error.strerror}: QEMU has ended") from error

    def receive(self, deadline: float) -> Any:
        """The next message.

        Args:
            deadline: When to give up, on ``time.monotonic``'s clock; what came by then is kept for the next call.

        Raises:
            LabTimeout: No whole message came in time.
            LabError: The other side is gone, or sent something else than JSON.
        """
        line = self._read_until(b"\n", deadline)
        try:
            return json.loads(line)
        except ValueError as error:
            raise LabError(f"{self._path}: not JSON: {line[:200]!r}") from error

    def skip_sentinel(self, deadline: float) -> None:
        """Drop everything up to and with the byte 0xFF, which the guest agent sends on request.

        Raises:
            LabTimeout: It did not come in time.
            LabError: The other side is gone.
        """
        self._read_until(_SENTINEL, deadline)

    def _read_until(self, mark: bytes, deadline: float) -> bytes:
        while mark not in self._buffer:
            left = deadline - time.monotonic()
            if left <= 0:
                raise LabTimeout(f"{self._path}: no answer")
            self._socket.settimeout(left)
            try:
                data = self._socket.recv(1 << 18)
            except TimeoutError:
                continue
            except OSError as error:
                raise LabError(f"{self._path}: {error.strerror}: QEMU has ended") from error
            if not data:
                raise LabError(f"{self._path}: closed: QEMU has ended")
            self._buffer += data
        line, _, rest = bytes(self._buffer).partition(mark)
        self._buffer = bytearray(rest)
        return line
