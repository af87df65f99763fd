"""What controller and agent share as processes: kopf as the source of events, one loop, signals, an orderly end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, NoReturn

import kopf
from kubernetes.client.configuration import Configuration

from kubeflash.kube.errors import KubeError
from kubeflash.kube.feed import Feed
from kubeflash.kube.secrets import path_of

log = logging.getLogger(__name__)

DEBOUNCE = 0.02
"""Seconds to wait for further events before looking: a write of ours comes back as an event of its own."""
RESYNC = 300.0
"""Seconds between full lists when nothing happens."""
BACKOFF = (0.5, 1.0, 2.0, 5.0)
"""Seconds to wait after a failure, the last one for ever: converged well within 30 s of the API server's return."""

EXIT_SECONDS = 0.3
"""Seconds that kopf has for ending its watches in order, and again for being cancelled."""

Reconcile = Callable[[], Awaitable[float | None]]


class _Forever:
    """Back-offs that never end, so that kopf outlives an API server that is gone for hours."""

    def __iter__(self) -> Iterator[float]:
        yield from BACKOFF
        while True:
            yield BACKOFF[-1]


def kopf_settings() -> kopf.OperatorSettings:
    """Kopf as a source of events only: no events posted, no peering, no storage in annotations, a quick exit."""
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    settings.peering.standalone = True
    settings.scanning.disabled = True
    settings.networking.error_backoffs = _Forever()
    settings.networking.connect_timeout = 5.0
    settings.watching.reconnect_backoff = 0.5
    settings.queueing.exit_timeout = 0.2
    settings.queueing.idle_timeout = 1.0
    settings.process.ultimate_exiting_timeout = None  # else kopf sends SIGKILL to its own process
    return settings


async def run(feed: Feed, reconcile: Reconcile, stop: asyncio.Event) -> None:
    """Feeds the index and reconciles until `stop` is set.

    `reconcile` looks at the whole index and does what is due; it returns seconds until it wants to look again though
    nothing changed, or None. When it raises `KubeError` it is called again after a back-off.
    """
    registry = kopf.OperatorRegistry()
    settings = kopf_settings()
    ready = asyncio.Event()
    feed.register(registry, settings)
    _add_login(registry, feed.configuration)
    loop = asyncio.create_task(_loop(feed, reconcile), name="reconcile")
    operator = asyncio.create_task(
        kopf.operator(
            registry=registry,
            settings=settings,
            clusterwide=True,
            standalone=True,
            stop_flag=stop,
            ready_flag=ready,
        ),
        name="kopf",
    )
    signals = asyncio.create_task(_heed_signals(ready, stop), name="signals")
    stopped = asyncio.create_task(stop.wait(), name="stop")
    try:
        await asyncio.wait({loop, operator, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if operator.done() and not operator.cancelled() and operator.exception() is not None:
            error = operator.exception()
            raise KubeError(f"watching the API server ended: {type(error).__name__}: {error}") from error
    finally:
        stop.set()
        for task in (loop, stopped, signals):
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await loop
        await asyncio.wait({operator}, timeout=EXIT_SECONDS)
        operator.cancel()
        await asyncio.wait({operator}, timeout=EXIT_SECONDS)


async def _heed_signals(ready: asyncio.Event, stop: asyncio.Event) -> None:
    """Takes the signals back from kopf once it runs: it would wait 5 s for tasks that are not its own."""
    await ready.wait()
    set_on_signal(stop)


def set_on_signal(stop: asyncio.Event) -> None:
    """Has SIGTERM and SIGINT set `stop`, in a process's main thread; elsewhere signals are not ours to take."""
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)


async def _loop(feed: Feed, reconcile: Reconcile) -> None:
    failures = 0
    next_resync = 0.0
    clock = asyncio.get_running_loop().time
    while True:
        feed.changed.clear()
        delay: float | None
        try:
            if feed.relisted.is_set() or clock() >= next_resync:
                await feed.resync()
                feed.changed.clear()
                next_resync = clock() + RESYNC
            delay = await reconcile()
            failures = 0
        except KubeError as error:
            delay = BACKOFF[min(failures, len(BACKOFF) - 1)]
            failures += 1
            next_resync = 0.0
            log.warning("%s: %s; again in %g s", type(error).__name__, error, delay)
        until_resync = max(0.0, next_resync - clock())
        wait = until_resync if delay is None else delay if failures else min(delay, until_resync)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(feed.changed.wait(), timeout=max(wait, 0.01))
            if failures:
                await asyncio.sleep(wait)  # events do not shorten a back-off
            await asyncio.sleep(DEBOUNCE)


def _add_login(registry: kopf.OperatorRegistry, configuration: Configuration) -> None:
    """Kopf takes the very way to the API server that the client has; its token may have been renewed meanwhile."""

    def login(**_kwargs: Any) -> kopf.ConnectionInfo:
        scheme, _, token = (configuration.get_api_key_with_prefix("BearerToken") or "").partition(" ")
        return kopf.ConnectionInfo(
            server=configuration.host,
            ca_path=path_of(configuration.ssl_ca_cert),
            insecure=not configuration.verify_ssl,
            scheme=scheme or None,
            token=token or None,
            certificate_path=path_of(configuration.cert_file),
            private_key_path=path_of(configuration.key_file),
        )

    kopf.on.login(registry=registry, id="login")(login)


async def sleep(seconds: float, stop: asyncio.Event) -> None:
    """Sleeps, or returns at once when `stop` is set."""
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(stop.wait(), timeout=seconds)


def execute(main: Callable[[asyncio.Event], Awaitable[int]], expected: tuple[type[Exception], ...] = ()) -> NoReturn:
    """Runs an asynchronous main with a stop event that SIGTERM and SIGINT set; ends the process with its result.

    What `main` raises is raised, but for `expected` errors: one line, and exit status 1. The process ends at once even
    where a blocking call (a wipe, a connect) still sits in a thread: the disk is the ledger, the next start goes on.
    """

    async def body() -> int:
        stop = asyncio.Event()
        set_on_signal(stop)
        return await main(stop)

    # Not asyncio.run, which waits for the threads; nor a return to the interpreter, which does so too.
    try:
        status = asyncio.new_event_loop().run_until_complete(body())
    except expected as error:
        log.error("%s: %s", type(error).__name__, error)  # noqa: TRY400
        status = 1
    logging.shutdown()
    os._exit(status)
