"""I/O errors of SSDs, as the kernel logged them: what an application suffered, which a SMART log need not say.

The kernel limits the rate of these lines, so a count is a lower bound; and its log is a ring, so what is older than its
oldest record is not known.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from kubeflash.host.kernellog import KernelLog, Reader, Record
from kubeflash.host.root import HostRoot
from kubeflash.host.statx import BIRTH, statx

log = logging.getLogger(__name__)

# blk_print_req_error of block/blk-mq.c; before Linux 5.16 behind "blk_update_request: ". From the start of the text:
# within the message that nvmet refused a host stands an NQN that the host chose.
_ERROR = re.compile(r"(?:blk_update_request: )?([A-Za-z/ -]+) error, dev (\S+), sector \d+ op 0x([01]):")
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
        reader: Reader | None = None,
        birth: Callable[[Path], Birth | None] = born,
    ) -> None:
        self._root, self._birth = root, birth
        self._log = KernelLog(root, reader)
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
        for record in self._log.new():
            name = disk_of(record)
            if name is None:
                continue
            if name not in births:
                births[name] = self._birth(self._root.dev / name)
            birth = births[name]
            if birth is None or record.seconds < birth.seconds:
                continue
            node, count = self._counts.get(name, (birth.node, 0))
            self._counts[name] = birth.node, count + 1 if node == birth.node else 1


def disk_of(record: Record) -> str | None:
    """The kernel's name of the disk of a failed read or write; None for any other record."""
    match = _ERROR.match(record.text)
    if match is None or match[1].strip() in _HARMLESS:
        return None
    return _PATH.sub(r"\1\2", match[2])
