"""An NVMe/TCP host that does not authenticate itself, whatever it is told: runs in a virtual server.

    python3 rawnvme.py 10.77.0.11 4420 < identity.json

The kernel's own initiator gives up by itself when it has no key, which proves nothing of the target. This one connects
as somebody (JSON: `nqn`, `hostnqn`, `hostid`), skips authentication and asks: for the controller's data, for an I/O
queue, for the volume's first block, and that it be overwritten. Prints as JSON what each was answered: the status as
the specification (NVMe Base 2.0, figures 100 to 103) counts it, in hexadecimal, or why there was none.
"""

from __future__ import annotations

import json
import socket
import struct
import sys
import uuid
from collections.abc import Callable
from typing import Self

IC_REQUEST, IC_RESPONSE, COMMAND, RESPONSE = 0x00, 0x01, 0x04, 0x05
FABRICS, CONNECT, PROPERTY_SET = 0x7F, 0x01, 0x00
IDENTIFY, WRITE, READ = 0x06, 0x01, 0x02
IN_CAPSULE, IN_TRANSPORT = 0x01, 0x5A
WAIT = 20.0


class Queue:
    """One connection: a queue of a controller."""

    def __init__(self, address: str, port: int) -> None:
        self._socket = socket.create_connection((address, port), timeout=WAIT)
        self._socket.sendall(struct.pack("<BBBBIHBBI112x", IC_REQUEST, 0, 128, 0, 128, 0, 0, 0, 0))
        kind, _ = self._take()
        if kind != IC_RESPONSE:
            raise ConnectionError(f"PDU {kind:#x} instead of an answer to the first")
        self._number = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def connect(self, who: dict[str, str], *, queue: int, controller: int) -> tuple[int, int]:
        """The command that every queue begins with; status and result."""
        host = uuid.UUID(who["hostid"]).bytes
        data = struct.pack("<16sH238x256s256s256x", host, controller, who["nqn"].encode(), who["hostnqn"].encode())
        return self.ask(FABRICS, CONNECT, struct.pack("<HHHBxI12x", 0, queue, 31, 0, 0), data=data)

    def ask(
        self, opcode: int, kind: int = 0, tail: bytes = b"", *, nsid: int = 0, data: bytes = b"", want: int = 0
    ) -> tuple[int, int]:
        """One command; status and result of its completion. `tail` is what stands from byte 40 on."""
        self._number += 1
        head = struct.pack("<BBHI16x", opcode, 0x40, self._number, kind if opcode == FABRICS else nsid)
        length, where = (len(data), IN_CAPSULE) if data and not want else (want, IN_TRANSPORT)
        sgl = struct.pack("<QI3xB", 0, length, where) if length else bytes(16)
        command = (head + sgl + tail).ljust(64, b"\0")
        offset = 72 if data else 0
        self._socket.sendall(struct.pack("<BBBBI", COMMAND, 0, 72, offset, 72 + len(data)) + command + data)
        while True:
            answer, body = self._take()
            if answer == RESPONSE:
                result, _, _, _, status = struct.unpack("<QHHHH", body[:16])
                return status >> 1, result

    def _take(self) -> tuple[int, bytes]:
        kind, _, _, _, length = struct.unpack("<BBBBI", self._read(8))
        return kind, self._read(length - 8)

    def _read(self, count: int) -> bytes:
        parts = b""
        while len(parts) < count:
            part = self._socket.recv(count - len(parts))
            if not part:
                raise ConnectionError("closed by the server")
            parts += part
        return parts


def answered(ask: Callable[[], tuple[int, int]]) -> str:
    """A command's status, or why there is none."""
    try:
        return f"{ask()[0] & 0x7FF:#05x}"
    except OSError as error:
        return f"{type(error).__name__}: {error}"


def main() -> int:
    """Asks, and prints what was answered."""
    address, port, who = sys.argv[1], int(sys.argv[2]), json.load(sys.stdin)
    said: dict[str, object] = {}
    with Queue(address, port) as admin:
        status, result = admin.connect(who, queue=0, controller=0xFFFF)
        said["connect"], said["wants authentication"] = f"{status & 0x7FF:#05x}", bool(result >> 17 & 1)
        if status == 0:
            enable = struct.pack("<BxxxIQ", 0, 0x14, 0x460001)
            said["enable"] = answered(lambda: admin.ask(FABRICS, PROPERTY_SET, enable))
            said["identify"] = answered(lambda: admin.ask(IDENTIFY, 0, struct.pack("<I", 1), want=4096))
            try:
                with Queue(address, port) as io:
                    said["queue"] = answered(lambda: io.connect(who, queue=1, controller=result & 0xFFFF))
                    first = struct.pack("<QI", 0, 7)  # 8 blocks of 512 bytes
                    said["read"] = answered(lambda: io.ask(READ, 0, first, nsid=1, want=4096))
                    said["write"] = answered(lambda: io.ask(WRITE, 0, first, nsid=1, data=b"\xff" * 4096))
            except OSError as error:
                said.setdefault("queue", f"{type(error).__name__}: {error}")
    sys.stdout.write(json.dumps(said))
    return 0


if __name__ == "__main__":
    sys.exit(main())
