"""I/O errors of SSDs, as the kernel logged them: what an application suffered, which a SMART log need not say.

The kernel limits the rate of these lines, so a count is a lower bound; and its log is a ring, so what is older than its
oldest record is not known.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from kubeflash.host.root import HostRoot
from kubeflash.host.statx import BIRTH, statx

log = logging.getLogger(__name__)

_RECORD = 8192  # bytes: the kernel gives one record a read, never longer than this (PRINTK_MESSAGE_MAX)
_MOST_RECORDS = 200_000  # a look ends, however fast somebody logs; the rest is read by the next one
_KERNEL_FACILITY = 0
# blk_print_req_error of block/blk-mq.c; before Linux 5.16 behind "blk_update_request: "
_ERROR = re.compile(r"(?:^|: )([A-Za-z/ -]+) error, dev (\S+), sector \d+ op 0x([01]):")
_HARMLESS = frozenset({"operation not supported", "recoverable transport", "nonblocking retry", "kernel resource"})
_PATH = re.compile(r"(nvme\d+)c\d+(n\d+)")


@dataclass(frozen=True)
class Birth:
    """When a device node appeared.

    Attributes:
        node: tells this node from another one of the same name.
        seconds: of the clock that the kernel's log has.
    """

    node: str
    seconds: float


def born(node: Path) -> Birth | None:
    """When a device node appeared; None when there is none.

    By its time of birth: every write to a block device changes the *modification* time of its node. A file system that
    keeps none gives the time of booting. As good as the wall clock was since then.
    """
    try:
        known = statx(node, BIRTH)
    except OSError:
        return None
    if not known.mask & BIRTH:
        return Birth("", 0.0)
    since_boot = known.birth_seconds + known.birth_nanoseconds / 1e9 - (time.time() - time.monotonic())
    return Birth(f"{known.birth_seconds}.{known.birth_nanoseconds:09}", since_boot)


class ErrorLog:
    """Counts I/O errors since the server started, as far as the kernel's log goes back.

    Args:
        root: the machine.
        reader: gives one record, or raises as a read of a non-blocking /dev/kmsg does.
        birth: as `born`.
    """

    def __init__(
        self,
        root: HostRoot,
        reader: Callable[[], bytes] | None = None,
        birth: Callable[[Path], Birth | None] = born,
    ) -> None:
        self._root, self._reader, self._birth = root, reader, birth
        self._counts: dict[str, tuple[str, int]] = {}
        self._said = False

    def look(self, names: Mapping[str, str]) -> dict[str, int]:
        """I/O errors since boot of each SSD, by id; empty when the kernel's log cannot be read.

        Args:
            names: SSD ids by the kernel's names of their disks now, such as nvme0n1. A name may have been another SSD's
                before: what was logged before its device node appeared does not count.
        """
        try:
            self._read_on()
        except OSError as error:
            if not self._said:
                log.warning("I/O errors are not counted: the kernel's log cannot be read: %s", error)
                self._said = True
            return {}
        found = dict.fromkeys(names.values(), 0)
        for name, ssd in names.items():
            birth, (node, count) = self._birth(self._root.dev / name), self._counts.get(name, ("", 0))
            if birth is not None and birth.node == node:
                found[ssd] += count
        return found

    def _read_on(self) -> None:
        births: dict[str, Birth | None] = {}
        for seconds, name in self._errors():
            if name not in births:
                births[name] = self._birth(self._root.dev / name)
            birth = births[name]
            if birth is None or seconds < birth.seconds:
                continue
            node, count = self._counts.get(name, (birth.node, 0))
            self._counts[name] = birth.node, count + 1 if node == birth.node else 1

    def _errors(self) -> Iterator[tuple[float, str]]:
        """Time and disk of each error that was logged since the last look."""
        reader = self._reader = self._reader or _open(self._root)
        for _ in range(_MOST_RECORDS):
            try:
                record = reader()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno == errno.EPIPE:  # records were overwritten before they were read; it goes on behind them
                    continue
                raise
            if not record:
                return
            error_of = parse(record)
            if error_of is not None:
                yield error_of


def _open(root: HostRoot) -> Callable[[], bytes]:
    fd = os.open(root.dev / "kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    return lambda: os.read(fd, _RECORD)


def parse(record: bytes) -> tuple[float, str] | None:
    """Time in seconds and the kernel's name of the disk of a failed read or write; None for any other record.

    `priority,sequence,microseconds,flags;text`; Documentation/ABI/testing/dev-kmsg of Linux.
    """
    head, _, text = record.decode(errors="replace").partition(";")
    match = _ERROR.search(text.partition("\n")[0])
    fields = head.split(",")
    if match is None or match[1].strip() in _HARMLESS or len(fields) < 4:
        return None
    try:
        priority, microseconds = int(fields[0]), int(fields[2])
    except ValueError:
        return None
    if priority >> 3 != _KERNEL_FACILITY:  # any process may write to the log
        return None
    return microseconds / 1e6, _PATH.sub(r"\1\2", match[2])
