"""What takes long to build is built once and kept, outside the repository.

The folder is ``$KUBEFLASH_CACHE``, or ``$XDG_CACHE_HOME/kubeflash``, or ``~/.cache/kubeflash``. It may be deleted at
any time when no lab runs.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

from lab import network
from lab.errors import BuildError
from lab.processes import wait_until

PROGRESS_INTERVAL = 20.0
"""Seconds between two lines about a build that goes on."""
BUILD_LIMIT = 3600.0
"""Seconds to wait for another process that builds the same artifact."""
UNUSED_DAYS = 30.0
"""Artifacts that nobody asked for in so many days are removed when another of the same name is built."""


Build = Callable[[Path], None]
"""Fills the empty folder it is given."""


def folder() -> Path:
    """Where artifacts are kept. It need not exist."""
    if given := os.environ.get("KUBEFLASH_CACHE"):
        return Path(given)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "kubeflash"


def say(message: str) -> None:
    """Tell the user, on standard error."""
    print(message, file=sys.stderr, flush=True)


def artifact(
    name: str,
    key: str,
    build: Build,
    *,
    about: str = "",
    offline: bool = False,
    unused_days: float = UNUSED_DAYS,
) -> Path:
    """The folder of an artifact, built if it is not there.

    It is built in a folder beside and renamed when it is whole, so a build that crashed never counts. Two processes do
    not build the same thing twice: the second waits for the first.

    Args:
        name: What it is.
        key: Which one: a version, a hash of all that goes into it.
        build: Fills the empty folder it is given; the folder's own path must not end up in the content.
        about: How long that takes, for the progress line, such as ``about 5 min``.
        offline: Whether building needs no downloads, and so may happen inside a lab's network.
        unused_days: After how many days others of this name are removed that nobody asked for.

    Raises:
        LabTimeout: Another process has been building it for an hour.
        BuildError: `build` failed, or needs the internet and this process has moved into a lab's network.
    """
    final = folder() / name / key
    if final.is_dir():
        _touch(final)
        return final
    if network.entered() and not offline:
        raise BuildError(
            f"{name} {key} is not built, and there is no internet inside the lab's network:"
            " run `python -m lab build` outside it first"
        )
    final.parent.mkdir(parents=True, exist_ok=True)
    with _locked(final.parent / f".{key}.lock", f"{name} {key}"):
        if not final.is_dir():
            _build(final, name, build, about)
            _remove_unused(final, unused_days)
    return final


def _build(final: Path, name: str, build: Build, about: str) -> None:
    prefix = f".{final.name}."
    for stale in final.parent.glob(f"{prefix}*.tmp"):  # the lock is ours: whoever built here is dead
        shutil.rmtree(stale)
    work = Path(tempfile.mkdtemp(prefix=prefix, suffix=".tmp", dir=final.parent))
    work.chmod(0o755)
    label = f"{name} {final.name}"
    began = time.monotonic()
    try:
        with _progress(f"building {label} ({f'{about}, ' if about else ''}once)"):
            build(work)
        work.rename(final)
    except OSError as error:
        raise BuildError(f"building {label}: {error}") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)  # the rename left nothing of it, unless something failed
    say(f"built {label} in {time.monotonic() - began:.0f} s")


@contextlib.contextmanager
def _progress(label: str) -> Iterator[None]:
    say(label)
    began = time.monotonic()
    done = threading.Event()

    def tick() -> None:
        while not done.wait(PROGRESS_INTERVAL):
            say(f"{label} ... {time.monotonic() - began:.0f} s")

    ticker = threading.Thread(target=tick, name="progress", daemon=True)
    ticker.start()
    try:
        yield
    finally:
        done.set()
        ticker.join()


@contextlib.contextmanager
def _locked(path: Path, label: str) -> Iterator[None]:
    with path.open("w") as file:
        if not _try_lock(file):
            with _progress(f"waiting for another process that builds {label}"):
                wait_until(f"{label} built by another process", lambda: _try_lock(file), timeout=BUILD_LIMIT)
        yield


def _try_lock(file: TextIO) -> bool:
    # The kernel drops the lock when its holder ends, however it ends.
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _touch(path: Path) -> None:
    with contextlib.suppress(OSError):  # only what is removed first depends on it: a read-only cache works too
        os.utime(path)


def _remove_unused(latest: Path, days: float) -> None:
    horizon = time.time() - days * 86_400
    for other in latest.parent.iterdir():
        if other.is_dir() and not other.name.startswith(".") and other.stat().st_mtime < horizon:
            say(f"removing {other}: not used for {days:.0f} days")
            shutil.rmtree(other)
