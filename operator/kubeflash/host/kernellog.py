"""The kernel's log, record by record, since some moment on. A ring: what is older than its oldest record is not known.

The text of a record may hold what somebody else chose (a host's NQN, a label on a disk): anchor at its start what looks
for a message in it. The kernel writes bytes that cannot be printed in hexadecimal: nobody makes two records of one.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from kubeflash.host.root import HostRoot

_RECORD = 8192  # bytes: the kernel gives one record a read, never longer than this (PRINTK_MESSAGE_MAX)
_MOST_RECORDS = 200_000  # a look ends, however fast somebody logs; the rest is read by the next one
_KERNEL_FACILITY = 0

Reader = Callable[[], bytes]
"""Gives one record, or raises as a read of a non-blocking /dev/kmsg does."""


@dataclass(frozen=True, slots=True)
class Record:
    """One message of the kernel itself. `seconds`: since the server started."""

    seconds: float
    text: str


class KernelLog:
    """The records that were not read yet.

    Args:
        root: the machine.
        reader: instead of /dev/kmsg.
        past: whether to begin with the oldest record there is; else with the first one after the first look.
    """

    def __init__(self, root: HostRoot, reader: Reader | None = None, *, past: bool = True) -> None:
        self._root, self._reader, self._past = root, reader, past

    def new(self) -> Iterator[Record]:
        """What the kernel logged since the last call. Does not block.

        Raises:
            OSError: when the log cannot be read.
        """
        reader = self._reader = self._reader or _open(self._root, past=self._past)
        for _ in range(_MOST_RECORDS):
            try:
                content = reader()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno == errno.EPIPE:  # records were overwritten before they were read; it goes on behind them
                    continue
                raise
            if not content:
                return
            record = parse(content)
            if record is not None:
                yield record


def _open(root: HostRoot, *, past: bool) -> Reader:
    fd = os.open(root.dev / "kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not past:
        os.lseek(fd, 0, os.SEEK_END)
    return lambda: os.read(fd, _RECORD)


def parse(content: bytes) -> Record | None:
    """A record of /dev/kmsg; None when it is none of the kernel's own: any process may write to the log.

    `priority,sequence,microseconds,flags;text`; Documentation/ABI/testing/dev-kmsg of Linux.
    """
    head, _, text = content.decode(errors="replace").partition(";")
    fields = head.split(",")
    if len(fields) < 4:
        return None
    try:
        priority, microseconds = int(fields[0]), int(fields[2])
    except ValueError:
        return None
    if priority >> 3 != _KERNEL_FACILITY:
        return None
    return Record(microseconds / 1e6, text.partition("\n")[0])
