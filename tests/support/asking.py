"""What a process says of itself, asked over HTTP as a probe does it."""

from __future__ import annotations

import http.client


def ask(port: int, path: str, timeout: float = 5) -> tuple[int, str]:
    """Status and text of an answer on the loopback."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()
