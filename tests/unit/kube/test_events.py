"""Events are written in the background: whatever becomes of them, nothing waits for them."""

from __future__ import annotations

import asyncio
import logging
import threading

from kubeflash.kube import events
from kubeflash.kube.errors import Unreachable


class Slow:
    """A client whose every write waits until it may go on, and fails where it shall."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.fails: set[str] = set()
        self.written: list[str] = []

    def create(self, _info, body, namespace):
        assert self.go.wait(10)
        if body["note"] in self.fails:
            raise Unreachable("no answer")
        self.written.append(f"{namespace}/{body['note']}")


def body(note: str) -> dict:
    return {"metadata": {"namespace": "default"}, "note": note}


async def written(client: Slow, number: int) -> None:
    for _ in range(1000):
        if len(client.written) >= number:
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"only {client.written} after 10 s")


def test_nobody_waits_and_the_order_stays(caplog):
    client = Slow()
    client.fails.add("2")

    async def whole() -> None:
        teller = events.Teller(client)
        for number in range(4):
            teller.tell(body(str(number)))
        assert client.written == []
        client.go.set()
        await written(client, 3)
        teller.tell(body("later"))
        await written(client, 4)

    with caplog.at_level(logging.WARNING):
        asyncio.run(whole())
    assert client.written == ["default/0", "default/1", "default/3", "default/later"]
    assert "an event could not be written: no answer" in caplog.text


def test_those_that_wait_are_not_more_and_more(caplog, monkeypatch):
    monkeypatch.setattr(events, "WAITING", 3)
    client = Slow()

    async def whole() -> None:
        teller = events.Teller(client)
        for number in range(5):
            teller.tell(body(str(number)))
        client.go.set()
        await written(client, 3)

    asyncio.run(whole())
    assert client.written == ["default/0", "default/1", "default/2"]
    assert "an event was not written, 3 wait already: 4" in caplog.text
