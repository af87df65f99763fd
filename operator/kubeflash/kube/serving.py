"""What a process says of itself over HTTP: whether it works (/livez), whether it serves (/readyz), figures (/metrics).

It is served by the process's own event loop: one that hangs does not answer, and whoever probes it notices by that.
Work that blocks is done in threads, and holds up no answer.
"""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

log = logging.getLogger(__name__)

STUCK_SECONDS = 600.0
"""Seconds without a sign of life after which the process should be started anew.

Far more than anything legitimate takes: an idle loop goes round at least every 300 s (`runtime.RESYNC`), and a pass
waits 20 s at the most for its steps (`agent.process.PATIENCE`, four rounds). Each answer of the API server is a sign of
life, and takes 25 s at the most; so is each disk that an agent reads, and one that hangs costs three commands of 60 s.
What takes long, a wipe or a connect, is no part of a pass.
"""

START = "start"
"""Topic: what the process needs before it can begin."""


class CannotServe(Exception):
    """The address of --serve is none, or cannot be listened on."""


class Health:
    """Signs of life of a process, and what keeps it from being ready, by topic."""

    def __init__(self) -> None:
        self._reasons = {START: "it starts"}
        self._beat = time.monotonic()

    def beat(self) -> None:
        """The process gets on: its loop went round, or the API server has answered."""
        self._beat = time.monotonic()

    def say(self, topic: str, words: str = "") -> None:
        """Why the process is not ready as far as `topic` goes; nothing when it is."""
        if words:
            self._reasons[topic] = words
        else:
            self._reasons.pop(topic, None)

    @property
    def unready(self) -> str:
        """Why the process is not ready; empty when it is."""
        return "; ".join(self._reasons.values())

    @property
    def stuck(self) -> str:
        """Why the process should be started anew; empty while it works."""
        silent = time.monotonic() - self._beat
        return "" if silent < STUCK_SECONDS else f"its loop has not gone round for {silent:.0f} s"


def parse_address(text: str) -> tuple[str, int]:
    """Host and port of `HOST:PORT`; an IPv6 address stands in brackets, and no host is all addresses, IPv4 and IPv6.

    Raises:
        CannotServe: when it is not one.
    """
    host, colon, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    host = host[1:-1] if bracketed else host
    if not colon or (":" in host) != bracketed or not (port.isascii() and port.isdigit()) or int(port) > 65535:
        raise CannotServe(f"--serve {text}: give HOST:PORT, such as 127.0.0.1:8080, [::1]:8080 or :8080")
    return host, int(port)


@asynccontextmanager
async def serving(address: tuple[str, int] | None, health: Health) -> AsyncIterator[None]:
    """Answers /livez, /readyz and /metrics meanwhile; nothing listens when there is no address.

    Args:
        address: host, all if empty, and port; port 0 is any free one, which the log names.
        health: what is answered.

    Raises:
        CannotServe: when it cannot be listened on; says what to do.
    """
    if address is None:
        yield
        return
    application = web.Application()

    async def livez(_request: web.Request) -> web.Response:
        return _verdict(health.stuck)

    async def readyz(_request: web.Request) -> web.Response:
        return _verdict(health.unready)

    application.add_routes([web.get("/livez", livez), web.get("/readyz", readyz), web.get("/metrics", _metrics)])
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.0)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, address[0] or None, address[1]).start()
        except OSError as error:
            raise CannotServe(_words(address, error)) from error
        log.info("serving /livez, /readyz and /metrics on %s", " and ".join(map(_shown, runner.addresses)))
        yield
    finally:
        await runner.cleanup()


def _verdict(trouble: str) -> web.Response:
    return web.Response(status=503, text=f"{trouble}\n") if trouble else web.Response(text="ok\n")


async def _metrics(_request: web.Request) -> web.Response:
    return web.Response(body=generate_latest(), headers={"Content-Type": CONTENT_TYPE_LATEST})


def _shown(address: tuple[str, int]) -> str:
    host, port = address[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _words(address: tuple[str, int], error: OSError) -> str:
    where = f"--serve {_shown(address)}"
    if error.errno == errno.EADDRINUSE:
        return f"{where}: another program listens there, see `ss -tlnp`: end that one, or give another port"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"{where}: this machine has no such address: give one that it has, or none for all"
    if error.errno == errno.EACCES:
        return f"{where}: not allowed: give a port above 1023"
    return f"{where}: {error.strerror or error}: give an address of this machine"
