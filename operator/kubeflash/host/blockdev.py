"""Block devices: their numbers, sysfs folders and sizes, reads past the page cache, and the lock that udev respects."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from kubeflash.host.errors import HostError
from kubeflash.host.root import HostRoot

SECTOR = 512  # sysfs counts in these, whatever the device's own block size is
BLOCK = 4096  # direct I/O is done in these: fits devices of 512 and of 4096 bytes a block
_ZEROES = bytes(1 << 20)


class NotABlockDevice(HostError):
    """A path is not a block device that the kernel knows."""


class DeviceBusy(HostError):
    """Somebody else holds the lock on a disk."""


class ReadFailed(HostError):
    """A device could not be read."""


def device_number(device: Path) -> int:
    """The `st_rdev` of a block device.

    Raises:
        NotABlockDevice: when it is none, or not there.
    """
    try:
        status = device.stat()
    except OSError as error:
        raise NotABlockDevice(f"{device} cannot be found: {error.strerror}") from error
    if not stat.S_ISBLK(status.st_mode):
        raise NotABlockDevice(f"{device} is not a block device")
    return status.st_rdev


def number_text(number: int) -> str:
    """A device number as sysfs and mountinfo write it: `259:3`."""
    return f"{os.major(number)}:{os.minor(number)}"


def sysfs_folder(root: HostRoot, device: Path) -> Path:
    """The folder of a block device in sysfs, found by its number and not by its name.

    Raises:
        NotABlockDevice: when it is none, or the kernel no longer has it.
    """
    link = root.sys / "dev" / "block" / number_text(device_number(device))
    try:
        return link.resolve(strict=True)
    except OSError as error:
        raise NotABlockDevice(f"the kernel has no block device {device}: was it pulled out?") from error


def size_bytes(root: HostRoot, device: Path) -> int:
    """Size in bytes, from sysfs.

    Raises:
        NotABlockDevice: when it is none, or sysfs does not say its size.
    """
    folder = sysfs_folder(root, device)
    try:
        return int((folder / "size").read_text()) * SECTOR
    except (OSError, ValueError) as error:
        raise NotABlockDevice(f"sysfs does not say the size of {device}: {error}") from error


class DirectDevice:
    """A device opened past the page cache, so that what is read is what is on it. Use it in a `with`.

    Positions and lengths are multiples of 4096 bytes, or counted so from the end of the device.
    """

    def __init__(self, device: Path, flags: int = os.O_RDONLY) -> None:
        self.device = device
        try:
            self.fd = os.open(device, flags | os.O_DIRECT | os.O_CLOEXEC)
        except OSError as error:
            raise ReadFailed(f"{device} cannot be opened for direct I/O: {error.strerror}") from error

    def __enter__(self) -> DirectDevice:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self.fd)

    def size(self) -> int:
        """Size in bytes: a multiple of the device's own blocks."""
        return os.lseek(self.fd, 0, os.SEEK_END)

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes from `offset`.

        Raises:
            ReadFailed: on an error, or at the end of the device.
        """
        with mmap.mmap(-1, length) as buffer:  # page-aligned, as direct I/O wants it
            done = 0
            while done < length:
                with memoryview(buffer) as view, view[done:] as rest:
                    try:
                        got = os.preadv(self.fd, [rest], offset + done)
                    except OSError as error:
                        raise ReadFailed(
                            f"{self.device} cannot be read at byte {offset + done}: {error.strerror}"
                        ) from error
                if got == 0:
                    raise ReadFailed(f"{self.device} ends before byte {offset + length}")
                done += got
            return buffer.read(length)

    def write(self, offset: int, content: bytes) -> None:
        """Writes, and returns when the device says that it is on its medium.

        Raises:
            OSError: as the kernel gave it.
        """
        with mmap.mmap(-1, len(content)) as buffer:
            buffer.write(content)
            with memoryview(buffer) as view:
                written = os.pwritev(self.fd, [view], offset)
        if written != len(content):
            raise OSError(errno.EIO, f"only {written} of {len(content)} bytes were written", str(self.device))
        os.fsync(self.fd)


def all_zero(content: bytes) -> bool:
    """Whether every byte is zero."""
    if len(content) <= len(_ZEROES):
        return content == _ZEROES[: len(content)]
    return content.count(0) == len(content)


@dataclass(frozen=True)
class LockedDisk:
    """A whole disk under lock. While `fd` is open, the kernel gives the disk's name to no other disk."""

    device: Path
    fd: int


@contextmanager
def disk_lock(device: Path, *, timeout: float = 30.0) -> Iterator[LockedDisk]:
    """Holds the BSD lock on a whole disk that udev respects (https://systemd.io/BLOCK_DEVICE_LOCKING).

    Without it udev re-reads the partition table whenever somebody closes the disk, and removes and re-adds partitions.

    Args:
        device: the whole disk.
        timeout: limit in seconds: udev itself holds the lock while it looks at the disk.

    Raises:
        DeviceBusy: when somebody held the lock for all that time.
        NotABlockDevice: when the path is none, or names another device by now.
    """
    deadline = time.monotonic() + timeout
    number = device_number(device)
    # read-only: closing a disk that was open for writing makes udev re-read the table
    fd = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
    try:
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() >= deadline:
                    raise DeviceBusy(
                        f"{device} was locked by somebody else for {timeout:g} s: see which program partitions it"
                    ) from error
                time.sleep(0.02)
        if os.fstat(fd).st_rdev != number or device_number(device) != number:
            raise NotABlockDevice(f"{device} became another device meanwhile")
        yield LockedDisk(device, fd)
    finally:
        os.close(fd)
