"""Ending a connection without losing data: refused while anybody holds the device, flushed, waited for.

The kernel's delete takes 2-3 s for an unreachable server while the state is `connecting`, and 31-62 s while it is still
`live`: so, where a flush does not come back, the state is waited for first (keep-alive notices a loss in 6-8 s).

The device is held exclusively from before the check until it is deleted, so that nobody mounts it in between.

A connection that no attachment wants any more is fenced for good by its server: it is never live again, and whoever
still holds its device would wait for ctrl_loss_tmo (600 s) only to get the same errors. There, holders hold nothing up.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

from kubeflash.domain.fabric import Connection
from kubeflash.host.blockdev import NotABlockDevice
from kubeflash.host.errors import HostError
from kubeflash.host.holders import LOOK_LIMIT, holders, in_words
from kubeflash.host.initiator import find
from kubeflash.host.initiator_errors import DeviceHeld, DisconnectFailed, FlushFailed, InitiatorError
from kubeflash.host.root import HostRoot

log = logging.getLogger(__name__)

_POLL = 0.05  # seconds
_NOT_A_BLIP = 10.0  # seconds without a live path in a row; a cable that is swapped comes back sooner
_OPEN_LIMIT = 5.0  # seconds for an open; one may hang where the server is gone
_FLUSH_END = 5.0  # seconds for a flush to fail once its controller is deleted


class _Aside:
    """A call in a thread of its own, which may hang in the kernel. It does not keep the process alive."""

    def __init__(self, name: str, call: Callable[[], None]) -> None:
        self.error: OSError | None = None
        self._call = call
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._call()
        except OSError as error:
            self.error = error

    @property
    def running(self) -> bool:
        return self._thread.is_alive()

    def ended_within(self, seconds: float) -> bool:
        self._thread.join(max(0.0, seconds))
        return not self.running


class _Guard:
    """A device held exclusively, opened aside: an open hangs while somebody reads from a server that is gone.

    Opened for reading: closing a disk that was open for writing makes udev read it, and that would hang, too.
    """

    def __init__(self, node: Path) -> None:
        self._node = node
        self._lock = threading.Lock()
        self._wanted = True
        self.fd: int | None = None
        self.opening = _Aside(f"open {node}", self._open)

    def _open(self) -> None:
        fd = os.open(self._node, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC)
        with self._lock:
            if self._wanted:
                self.fd = fd
                return
        os.close(fd)

    def release(self) -> None:
        """Closes the device, now or, where the open still hangs, then."""
        with self._lock:
            self._wanted = False
            fd, self.fd = self.fd, None
        if fd is not None:
            os.close(fd)


def disconnect(root: HostRoot, nqn: str, *, timeout: float = 60.0, abandoned: bool = False) -> None:
    """Ends all connections with exactly this NQN, and returns when sysfs lists them no more. Idempotent.

    Args:
        root: the machine.
        nqn: the subsystem.
        timeout: limit in seconds for all of it.
        abandoned: no attachment wants this connection any more. Then, where no path was live for 10 s in a row, whoever
            holds the device is not asked: I/O that waits, and all that follows, ends with an error. While a path is
            live nothing is different.

    Raises:
        DeviceHeld: when somebody uses the device; says who. Nothing was done.
        FlushFailed: when the server is there and did not confirm what was written, or in time. Nothing was done.
        DisconnectFailed: when a connection is still there afterwards.
    """
    deadline = time.monotonic() + timeout
    try:
        _disconnect_unused(root, nqn, deadline)
    except HostError as error:  # held, or it cannot be said by whom
        if not abandoned or not _stays_away(root, nqn, deadline):
            raise
        found = find(root, nqn)
        log.warning("%s is gone for good, its connection is ended under whoever holds it: %s", nqn, error)
        _delete(root, nqn, found, deadline)
        _await_gone(root, nqn, found, deadline)


def _disconnect_unused(root: HostRoot, nqn: str, deadline: float) -> None:
    found = find(root, nqn)
    if not found:
        return
    guards: list[_Guard] = []
    flushes: list[_Aside] = []
    try:
        for device in sorted({item.device for item in found if item.device}):
            guard = _Guard(root.path / device.lstrip("/"))
            guards.append(guard)
            if _must_be_unused(root, nqn, device, guard) and guard.fd is not None:
                flushes.append(_flush(root, nqn, guard.fd, device, deadline))
        _delete(root, nqn, found, deadline)
    finally:
        # deleting ends a hanging flush; a descriptor that one still uses must not become another file's number
        if all(flush.ended_within(_FLUSH_END) for flush in flushes):
            for guard in guards:
                guard.release()
    _await_gone(root, nqn, found, deadline)


def _stays_away(root: HostRoot, nqn: str, deadline: float) -> bool:
    """Waits whether a path becomes live; whether none did for long enough. False, too, when there is no time for it."""
    since = time.monotonic()
    while not _is_live(root, nqn):
        now = time.monotonic()
        if now - since >= _NOT_A_BLIP:
            return True
        if now >= deadline:
            return False
        time.sleep(_POLL)
    return False


def _must_be_unused(root: HostRoot, nqn: str, device: str, guard: _Guard) -> bool:
    """Proves that nobody uses a device; whether the device is still there."""
    node = root.path / device.lstrip("/")
    limit = time.monotonic() + _OPEN_LIMIT
    while not guard.opening.ended_within(_POLL) and (_is_live(root, nqn) or time.monotonic() < limit):
        if time.monotonic() >= limit + _OPEN_LIMIT:
            raise DisconnectFailed(f"{device} cannot be opened in time, though it is connected: try again")
    error = guard.opening.error
    if error is not None and error.errno in (errno.ENOENT, errno.ENXIO, errno.ENODEV):
        return False
    patience = LOOK_LIMIT if _is_live(root, nqn) else 0.0  # where the server is gone, udev itself may hang
    try:
        # udev only looks, and deleting the controller ends a look that hangs
        found = [item for item in holders(root, node, probe=False, patience=patience) if item.kind != "udev"]
    except NotABlockDevice:
        return False
    if found:
        raise DeviceHeld(f"{device} is {in_words(tuple(found))}: not disconnected")
    if error is not None and error.errno == errno.EBUSY:
        raise DeviceHeld(f"{device} is held exclusively (O_EXCL) by somebody: not disconnected")
    if error is not None:
        raise InitiatorError(f"{device} cannot be opened before it is disconnected: {error.strerror}") from error
    return True


def _flush(root: HostRoot, nqn: str, fd: int, device: str, deadline: float) -> _Aside:
    """Makes everything written durable. The flush may still hang afterwards, when its server is gone.

    Nobody uses the device, so the page cache holds nothing of it that is not written, and a server that is gone has
    what it had confirmed. A server that is there and does not confirm is another matter.
    """
    flush = _Aside(f"flush {device}", lambda: os.fsync(fd))
    while flush.running and _is_live(root, nqn):
        if time.monotonic() >= deadline:
            raise FlushFailed(f"{device} did not confirm what was written to it, though it is connected: try again")
        time.sleep(_POLL)
    if flush.error is not None and _is_live(root, nqn):
        raise FlushFailed(f"{device} lost what was written to it last: {flush.error.strerror}") from flush.error
    return flush


def _is_live(root: HostRoot, nqn: str) -> bool:
    return any(item.state == "live" for item in find(root, nqn))


def _delete(root: HostRoot, nqn: str, found: tuple[Connection, ...], deadline: float) -> None:
    for item in found:
        folder = root.sys / "class" / "nvme" / f"nvme{item.instance}"
        if _text(folder / "subsysnqn") != nqn:
            continue  # gone by itself; the number may be another's by now
        deleting = _Aside(f"delete nvme{item.instance}", partial(_write, folder / "delete_controller"))
        while deleting.running:
            if time.monotonic() >= deadline:
                state = _text(folder / "state") or "gone"
                raise DisconnectFailed(f"nvme{item.instance} ({nqn}) is not deleted in time; its state is {state}")
            time.sleep(_POLL)
        if deleting.error is not None and deleting.error.errno not in (errno.ENOENT, errno.ENODEV):
            reason = deleting.error.strerror
            raise DisconnectFailed(f"nvme{item.instance} ({nqn}) cannot be deleted: {reason}") from deleting.error


def _write(path: Path) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, b"1")
    finally:
        os.close(fd)


def _text(path: Path) -> str:
    with suppress(OSError):  # gone meanwhile
        return path.read_text().strip()
    return ""


def _await_gone(root: HostRoot, nqn: str, found: tuple[Connection, ...], deadline: float) -> None:
    """Waits until neither the connections nor their block devices are listed."""
    while True:
        left = find(root, nqn)
        mine = {item.instance for item in found}
        if not any(item.instance in mine for item in left):
            return
        if time.monotonic() >= deadline:
            raise DisconnectFailed(f"{nqn} is still connected after it was deleted: {left}")
        time.sleep(_POLL)
