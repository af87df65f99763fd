"""What controller and agent share as processes: kopf as the source of events, one loop, signals, an orderly end."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import signal
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, NoReturn

import kopf
from kubernetes.client.configuration import Configuration

from kubeflash.kube.errors import Forbidden, KubeError, NotFound, NotYet, ServerError, Unreachable
from kubeflash.kube.feed import Feed
from kubeflash.kube.secrets import path_of
from kubeflash.kube.serving import START, CannotServe, Health, serving

log = logging.getLogger(__name__)

DEBOUNCE = 0.02
"""Seconds to wait for further events before looking: a write of ours comes back as an event of its own."""
RESYNC = 300.0
"""Seconds between full lists when nothing happens."""
BACKOFF = (0.5, 1.0, 2.0, 5.0)
"""Seconds to wait after a failure, the last one for ever: converged well within 30 s of the API server's return."""

EXIT_SECONDS = 0.3
"""Seconds that kopf and a pass under way have for ending in order, and again for being cancelled."""

Reconcile = Callable[[], Awaitable[float | None]]

MENDABLE = (Unreachable, ServerError, Forbidden, NotFound, NotYet)
"""What goes away when the API server is back, or when an admin has applied what is missing: it is waited for."""
WAITING = {Unreachable: "waiting for the API server", ServerError: "waiting for the API server"}

PASS = "pass"  # noqa: S105
"""Topic of `Health`: how the last pass went."""
RIGHTS = "rights"
"""Topic of `Health`: which writes the last pass was not allowed."""


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


async def run(
    feed: Feed, reconcile: Reconcile, health: Health, stop: asyncio.Event, *, beside: asyncio.Task[None]
) -> None:
    """Feeds the index and reconciles until `stop` is set, or `beside` ends: what it raises is its owner's to raise.

    `reconcile` looks at the whole index and does what is due; it returns seconds until it wants to look again though
    nothing changed, or None. When it raises `KubeError` it is called again after a back-off.
    """
    registry = kopf.OperatorRegistry()
    settings = kopf_settings()
    ready = asyncio.Event()
    feed.register(registry, settings)
    _add_login(registry, feed.configuration)
    loop = asyncio.create_task(_loop(feed, reconcile, health), name="reconcile")
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
        await asyncio.wait({loop, operator, stopped, beside}, return_when=asyncio.FIRST_COMPLETED)
        if operator.done() and not operator.cancelled() and operator.exception() is not None:
            error = operator.exception()
            raise KubeError(f"watching the API server ended: {type(error).__name__}: {error}") from error
    finally:
        stop.set()
        for task in (loop, stopped, signals):
            task.cancel()
        await asyncio.wait({loop, operator}, timeout=EXIT_SECONDS)
        operator.cancel()
        await asyncio.wait({loop, operator}, timeout=EXIT_SECONDS)
        if loop.done() and not loop.cancelled():
            loop.result()  # a bug in a pass


async def _heed_signals(ready: asyncio.Event, stop: asyncio.Event) -> None:
    """Takes the signals back from kopf once it runs: it would wait 5 s for tasks that are not its own."""
    await ready.wait()
    set_on_signal(stop)


def set_on_signal(stop: asyncio.Event) -> None:
    """Has SIGTERM and SIGINT set `stop`, in a process's main thread; elsewhere signals are not ours to take."""
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)


async def _loop(feed: Feed, reconcile: Reconcile, health: Health) -> None:
    failures = 0
    next_resync = 0.0
    clock = asyncio.get_running_loop().time
    while True:
        health.beat()
        feed.changed.clear()
        feed.forbidden = ""
        delay: float | None
        try:
            if feed.relisted.is_set() or clock() >= next_resync:
                await feed.resync()
                if not feed.relisted.is_set():  # else kopf has listed anew meanwhile: once more
                    feed.changed.clear()
                next_resync = clock() + RESYNC
            delay = await reconcile()
            failures = 0
            health.say(PASS)
        except KubeError as error:
            health.say(PASS, f"{type(error).__name__}: {error}")
            delay = BACKOFF[min(failures, len(BACKOFF) - 1)]
            failures += 1
            next_resync = 0.0
            log.warning("%s: %s; again in %g s", type(error).__name__, error, delay)
        health.say(RIGHTS, feed.forbidden)
        until_resync = max(0.0, next_resync - clock())
        wait = until_resync if delay is None else delay if failures else min(delay, until_resync)
        await sleep(max(wait, 0.01), feed.changed)
        if feed.changed.is_set():
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


async def persist(attempt: Callable[[], Awaitable[None]], health: Health, stop: asyncio.Event) -> bool:
    """Tries until `attempt` succeeds, saying why it does not. False when `stop` came first.

    Raises:
        KubeError: when it fails by what waiting does not mend.
    """
    said = ""
    for backoff in itertools.chain(BACKOFF, itertools.repeat(BACKOFF[-1])):
        health.beat()
        try:
            await attempt()
        except MENDABLE as error:
            words = f"{WAITING[type(error)]}: {error}" if type(error) in WAITING else str(error)
            health.say(START, words)
            if words != said:  # once, not every five seconds for as long as it takes
                log.warning("%s", words)
            said = words
            delay = error.seconds if isinstance(error, NotYet) and error.seconds is not None else backoff
        else:
            health.say(START)
            return True
        await sleep(delay, stop)
        if stop.is_set():
            break
    return False


async def sleep(seconds: float, *events: asyncio.Event) -> None:
    """Sleeps, or returns at once when one of the events is set.

    Not by `asyncio.wait_for`: before Python 3.12 it loses a cancellation that comes together with the event, so that
    who is told to end goes on (https://github.com/python/cpython/issues/86296).
    """
    waits = [asyncio.create_task(event.wait()) for event in events]
    try:
        await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in waits:
            task.cancel()


def execute(
    main: Callable[[Health, asyncio.Event], Awaitable[int]],
    address: tuple[str, int] | None,
    expected: tuple[type[Exception], ...] = (),
) -> NoReturn:
    """Runs an asynchronous main with a stop event that SIGTERM and SIGINT set; ends the process with its result.

    What `main` says of itself is served at `address`, if there is one, before `main` begins.

    What `main` raises ends it with exit status 1: one line for `expected` errors, a traceback for what is a bug. The
    process ends at once even where a blocking call (a wipe, a connect) still sits in a thread: the disk is the ledger,
    the next start goes on.
    """

    async def body() -> int:
        stop = asyncio.Event()
        set_on_signal(stop)
        health = Health()
        async with serving(address, health):
            return await main(health, stop)

    known: tuple[type[Exception], ...] = (CannotServe, *expected)
    # Not asyncio.run, which waits for the threads; nor a return to the interpreter, which does so too.
    try:
        status = asyncio.new_event_loop().run_until_complete(body())
    except known as error:
        log.error("%s: %s", type(error).__name__, error)  # noqa: TRY400
        status = 1
    except BaseException:
        log.exception("a bug: please report this")
        status = 1
    logging.shutdown()
    os._exit(status)
