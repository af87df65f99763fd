"""How a command that changes something asks, waits, and says that it did not do it."""

from __future__ import annotations

import argparse
import re
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import NoReturn

from kubeflash.cli.terminal import clean
from kubeflash.kube.errors import ServerError, Unreachable

INTERVAL = 0.5
"""Seconds between two looks at what is waited for."""
QUIET = 10.0
"""Seconds between two lines about progress where there is no terminal that shows it in one."""
_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600}


class NotDone(Exception):
    """A command did not do what it was asked for; the message says why, and what to do."""


def duration(text: str) -> float:
    """Seconds of `90`, `90s`, `30m` or `2h`, as an argument of a command.

    Raises:
        argparse.ArgumentTypeError: when it is none of these.
    """
    found = re.fullmatch(r"([0-9]+)([smh]?)", text)
    if found is None or int(found[1]) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no duration: write it such as 90s, 30m or 2h")
    return float(int(found[1]) * _UNITS[found[2]])


def say(lines: Iterable[str]) -> None:
    """Prints at once: what is shown must be seen before anything is asked."""
    print("\n".join(lines), flush=True)


def confirm(wanted: str, given: str | None, what: str) -> None:
    """Has the right word typed, or given by --confirm.

    Raises:
        NotDone: when it is another, or there is nobody to type it.
    """
    if given is not None:
        if given != wanted:
            raise NotDone(f"--confirm {given} is not {what}, which is {wanted}: nothing was changed")
        return
    if not sys.stdin.isatty():
        raise NotDone(f"nothing was changed: type {what} on a terminal, or give it with --confirm")
    print(f"Type {what} to go on: ", end="", file=sys.stderr, flush=True)
    try:
        typed = input().strip()
    except (EOFError, KeyboardInterrupt) as error:
        print(file=sys.stderr)
        raise NotDone("nothing was changed") from error
    if typed != wanted:
        raise NotDone(f"{typed or 'nothing'} was typed, and {what} is {wanted}: nothing was changed")


def wait_for(look: Callable[[], str], *, timeout: float, behind: str) -> None:
    """Looks until there is nothing left to wait for, and shows how far it is on standard error.

    Args:
        look: what is waited for, in words; empty once it is reached. An API server that is gone is waited for too.
        timeout: seconds.
        behind: what goes on when this ends early, and how to call it off.

    Raises:
        NotDone: when it was interrupted or takes too long; or whatever `look` raises.
    """
    progress = _Progress()
    deadline = time.monotonic() + timeout
    try:
        with _terminated():
            while True:
                try:
                    words = look()
                except (Unreachable, ServerError):
                    words = "the API server does not answer, it is waited for"
                if not words:
                    return
                progress.show(words)
                if time.monotonic() > deadline:
                    raise NotDone(f"not done after {timeout:g} s: {words}; {behind}")
                time.sleep(INTERVAL)
    except KeyboardInterrupt as error:
        raise NotDone(f"interrupted; {behind}") from error
    finally:
        progress.end()


@contextmanager
def _terminated() -> Iterator[None]:
    """SIGTERM ends a wait as SIGINT does."""

    def interrupt(_number: int, _frame: object) -> NoReturn:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:  # not the main thread, as in a test: signals are not ours to take
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class _Progress:
    """One line that changes on a terminal; elsewhere a line now and then."""

    def __init__(self) -> None:
        self._in_place = sys.stderr.isatty()
        self._last, self._next = "", 0.0

    def show(self, words: str) -> None:
        words = clean(" ".join(words.split()))
        if words == self._last:
            return
        if self._in_place:
            print(f"\r\x1b[K{words[:160]}", end="", file=sys.stderr, flush=True)
        elif time.monotonic() >= self._next:
            print(words, file=sys.stderr, flush=True)
            self._next = time.monotonic() + QUIET
        else:
            return
        self._last = words

    def end(self) -> None:
        if self._in_place and self._last:
            print(file=sys.stderr)
