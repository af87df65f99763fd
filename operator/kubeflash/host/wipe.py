"""Zeroing partitions and whole disks, and proving it by reading.

`zero` is what `blkdiscard -z` does, the ioctl BLKZEROOUT, without the tool: so that this process holds the partition
exclusively over all of it, says how far it is, and can stop. The kernel sends Write Zeroes where the SSD has it and
writes zeroes where it has not. A plain discard is faster on some SSDs and promises nothing about what is read
afterwards: `discard` reads, and zeroes after all where it must.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from kubeflash.domain.disk import LABEL_BYTES, LABEL_START
from kubeflash.host.blank import MIB, SAMPLES, first_used
from kubeflash.host.blockdev import DirectDevice, all_zero, device_number, disk_lock, size_bytes
from kubeflash.host.errors import HostError
from kubeflash.host.holders import Holder, holders, in_words
from kubeflash.host.partitions import hide, kernel_partitions
from kubeflash.host.root import HostRoot

_BLKZEROOUT = 0x127F  # _IO(0x12, 127) of <linux/fs.h>: takes two 64-bit numbers, start and length in bytes
_BLKDISCARD = 0x1277  # _IO(0x12, 119), likewise
_CHUNK = 1 << 30
_SMALL_CHUNK = 64 << 20
_LEAST_SPEED = 20 << 20  # bytes/s: slower than any SSD that works; emulated ones do 19 MB/s at worst over the network

Progress = Callable[[int, int], None]
"""Told what is done, and what there is in all."""


class WipeHeld(HostError):
    """A partition or disk that was to be wiped is used by somebody."""


class WipeFailed(HostError):
    """Zeroing failed, or was too slow for a device that works."""


class NotZero(HostError):
    """A wiped partition does not read back as zeroes."""


class _DiscardUnknown(Exception):
    """The device knows no discard."""


def zero(
    root: HostRoot,
    device: Path,
    *,
    check: Callable[[], None],
    progress: Progress | None = None,
    limit: float | None = None,
) -> None:
    """Overwrites a whole partition with zeroes, and proves it by reading. It is held exclusively meanwhile.

    Args:
        root: the machine.
        device: the partition.
        check: proves that the device still is the partition to wipe; called right before, while it is held.
        progress: told bytes done and bytes in all; may raise to stop. A stopped wipe is begun anew.
        limit: seconds; without one 2 min and as long as 20 MiB/s take.

    Raises:
        WipeHeld: when somebody uses it; says who.
        WipeFailed: on an error of the device, or past the limit.
        NotZero, ReadFailed: when it does not read as zeroes afterwards.
    """
    with _holding(root, device, check, progress, limit) as job:
        job.erase(_BLKZEROOUT)
        prove_zero(device)


def discard(
    root: HostRoot,
    device: Path,
    *,
    check: Callable[[], None],
    progress: Progress | None = None,
    limit: float | None = None,
) -> str:
    """Discards a whole partition, and zeroes it where it then does not read as zeroes, or knows no discard.

    That it reads as zeroes in the end is proven either way.

    Args:
        root: the machine.
        device: the partition.
        check: as of `zero`.
        progress: as of `zero`; begins anew when it has to be zeroed after all.
        limit: as of `zero`, for both together.

    Returns:
        What was done in the end: `Discard` or `Zero`.

    Raises:
        WipeHeld, WipeFailed, NotZero, ReadFailed: as of `zero`.
    """
    with _holding(root, device, check, progress, limit) as job:
        try:
            job.erase(_BLKDISCARD)
            prove_zero(device)
        except (_DiscardUnknown, NotZero):
            job.erase(_BLKZEROOUT)
            prove_zero(device)
            return "Zero"
        return "Discard"


def wipe_disk(
    root: HostRoot,
    device: Path,
    *,
    check: Callable[[], None],
    progress: Progress | None = None,
    limit: float | None = None,
) -> None:
    """Overwrites a whole disk with zeroes, whatever is on it, and proves it by reading. It is held exclusively.

    Its two ends are zeroed last: until then `blank.fingerprint` is that of what was to be wiped, so that the word given
    for it also holds for a wipe that was interrupted. Partitions are hidden from the kernel before.

    Args:
        root: the machine.
        device: the whole disk.
        check: proves that the device still is the disk to wipe; called under the lock, before partitions are hidden and
            right before the first byte.
        progress: as of `zero`.
        limit: as of `zero`.

    Raises:
        WipeHeld, PartitionHeld: when somebody uses it or one of its partitions; says who.
        WipeFailed: on an error of the device, or past the limit.
        NotZero, ReadFailed: when it does not read as zeroes afterwards.
    """
    with disk_lock(device) as disk:
        _refuse_held(device, holders(root, device))
        check()
        for known in kernel_partitions(root, device.name):
            hide(root, disk, known)
        with _holding(root, device, check, progress, limit) as job:
            # The ends last, KubeFlash's label among them: an interrupted wipe must not look like something else.
            head, tail = min(LABEL_START + LABEL_BYTES, job.total // 2), min(MIB, job.total // 2)
            job.erase(_BLKZEROOUT, (head, job.total - tail), (0, head), (job.total - tail, job.total))
            prove_zero(device)


def _refuse_held(device: Path, found: tuple[Holder, ...]) -> None:
    if found:
        raise WipeHeld(f"{device} is {in_words(found)}: not wiped")


@dataclass
class _Job:
    """A device that is held exclusively to be wiped."""

    fd: int
    device: Path
    total: int
    progress: Progress | None
    deadline: float

    def erase(self, request: int, *ranges: tuple[int, int]) -> None:
        """Sends an ioctl for the ranges (all of it without any), in that order and in pieces."""
        done, chunk = 0, _SMALL_CHUNK
        for start, end in ranges or [(0, self.total)]:
            at = start
            while at < end:
                length = min(chunk, end - at)
                began = time.monotonic()
                self._send(request, at, length)
                at, done = at + length, done + length
                if self.progress is not None:
                    self.progress(done, self.total)
                now = time.monotonic()
                if now > self.deadline and done < self.total:
                    raise WipeFailed(f"wiping {self.device} is too slow: {done} of {self.total} bytes by the limit")
                chunk = _CHUNK if now - began < 1 else _SMALL_CHUNK  # large steps only where they are quick
            self._sync()  # before the next range: the ends are the last to go, also on the medium

    def _send(self, request: int, at: int, length: int) -> None:
        try:
            fcntl.ioctl(self.fd, request, struct.pack("QQ", at, length))
        except OSError as error:
            if request == _BLKDISCARD and error.errno == errno.EOPNOTSUPP:
                raise _DiscardUnknown from error
            raise WipeFailed(f"{self.device} could not be wiped at byte {at}: {error.strerror}; see dmesg") from error

    def _sync(self) -> None:
        try:
            os.fsync(self.fd)
        except OSError as error:
            raise WipeFailed(f"{self.device} did not confirm the zeroes: {error.strerror}") from error


@contextmanager
def _holding(
    root: HostRoot, device: Path, check: Callable[[], None], progress: Progress | None, limit: float | None
) -> Iterator[_Job]:
    """Holds a device exclusively, nobody else using it, and has it checked."""
    number = device_number(device)
    _refuse_held(device, holders(root, device))
    total = size_bytes(root, device)
    deadline = time.monotonic() + (limit if limit is not None else 120 + total / _LEAST_SPEED)
    try:
        fd = os.open(device, os.O_RDWR | os.O_EXCL | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise WipeHeld(f"{device} was taken by somebody right now: not wiped") from error
        raise WipeFailed(f"{device} cannot be opened for wiping: {error.strerror}") from error
    try:
        if os.fstat(fd).st_rdev != number:
            raise WipeFailed(f"{device} became another device meanwhile: not wiped")
        # a bare open is no obstacle to O_EXCL: ask while holding it
        _refuse_held(device, holders(root, device, probe=False))
        check()
        yield _Job(fd, device, total, progress, deadline)
    finally:
        os.close(fd)


def prove_zero(device: Path, *, samples: int = SAMPLES) -> None:
    """Reads the first and last MiB and `samples` random blocks of a wiped partition or disk, past the page cache.

    Raises:
        NotZero: when one holds anything else.
        ReadFailed: when one cannot be read.
    """
    with DirectDevice(device) as part:
        size = part.size()
        edge = min(MIB, size)
        for start in (0, size - edge):
            if not all_zero(part.read(start, edge)):
                raise NotZero(f"{device} was zeroed, and does not read as zeroes in the MiB from byte {start}")
        offset = first_used(part, edge, max(edge, size - edge), samples)
        if offset is not None:
            raise NotZero(f"{device} was zeroed, and does not read as zeroes at byte {offset}")
