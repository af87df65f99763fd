"""Zeroing a partition, and proving it by reading.

`zero` is what `blkdiscard -z` does, the ioctl BLKZEROOUT, without the tool: so that this process holds the partition
exclusively over all of it, says how far it is, and can stop. The kernel sends Write Zeroes where the SSD has it and
writes zeroes where it has not. A plain discard is faster on some SSDs and promises nothing about what is read
afterwards.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import time
from collections.abc import Callable
from pathlib import Path

from kubeflash.host.blank import MIB, SAMPLES, first_used
from kubeflash.host.blockdev import DirectDevice, all_zero, device_number, size_bytes
from kubeflash.host.errors import HostError
from kubeflash.host.holders import holders, in_words
from kubeflash.host.root import HostRoot

_BLKZEROOUT = 0x127F  # _IO(0x12, 127) of <linux/fs.h>: takes two 64-bit numbers, start and length in bytes
_CHUNK = 1 << 30
_SMALL_CHUNK = 64 << 20
_LEAST_SPEED = 20 << 20  # bytes/s: slower than any SSD that works; emulated ones do 19 MB/s at worst over the network


class WipeHeld(HostError):
    """A partition that was to be wiped is used by somebody."""


class WipeFailed(HostError):
    """Zeroing failed, or was too slow for a device that works."""


class NotZero(HostError):
    """A wiped partition does not read back as zeroes."""


def zero(
    root: HostRoot,
    device: Path,
    *,
    check: Callable[[], None],
    progress: Callable[[int, int], None] | None = None,
    limit: float | None = None,
) -> None:
    """Overwrites a whole partition with zeroes. It is held exclusively meanwhile.

    Args:
        root: the machine.
        device: the partition.
        check: proves that the device still is the partition to wipe; called right before, while it is held.
        progress: told bytes done and bytes in all; may raise to stop. A stopped wipe is begun anew.
        limit: seconds; without one 2 min and as long as 20 MiB/s take.

    Raises:
        WipeHeld: when somebody uses it; says who.
        WipeFailed: on an error of the device, or past the limit.
    """
    number = device_number(device)
    who = in_words(holders(root, device))
    if who:
        raise WipeHeld(f"{device} is {who}: not wiped")
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
        who = in_words(holders(root, device, probe=False))  # a bare open is no obstacle to O_EXCL: ask while holding it
        if who:
            raise WipeHeld(f"{device} is {who}: not wiped")
        check()
        _zero(fd, device, total, progress, deadline)
    finally:
        os.close(fd)


def _zero(fd: int, device: Path, total: int, progress: Callable[[int, int], None] | None, deadline: float) -> None:
    done, chunk = 0, _SMALL_CHUNK
    while done < total:
        length = min(chunk, total - done)
        began = time.monotonic()
        try:
            fcntl.ioctl(fd, _BLKZEROOUT, struct.pack("QQ", done, length))
        except OSError as error:
            raise WipeFailed(f"{device} could not be zeroed at byte {done}: {error.strerror}; see dmesg") from error
        done += length
        if progress is not None:
            progress(done, total)
        now = time.monotonic()
        if now > deadline and done < total:
            raise WipeFailed(f"zeroing {device} is too slow: {done} of {total} bytes by the limit")
        chunk = _CHUNK if now - began < 1 else _SMALL_CHUNK  # large steps only where they are quick
    try:
        os.fsync(fd)
    except OSError as error:
        raise WipeFailed(f"{device} did not confirm the zeroes: {error.strerror}") from error


def prove_zero(device: Path, *, samples: int = SAMPLES) -> None:
    """Reads the first and last MiB and `samples` random blocks of a wiped partition, past the page cache.

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
