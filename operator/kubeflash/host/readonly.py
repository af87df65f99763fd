"""Write protection of a block device, by the kernel of this server (BLKROSET); nothing is said to the SSD.

Refused are mounting it writable, enabling it in nvmet, and every `write`, also through a descriptor that is open
already; opening it for writing is not. It does not hold for a file system that is mounted writable already (the kernel
warns, and writes), nor for passthrough commands by /dev/ngXnY. It stays over a reconnect and ends with the device:
after a boot or a new connection it is set again.
"""

from __future__ import annotations

import fcntl
import os
import stat
import struct
from pathlib import Path

from kubeflash.host.errors import HostError
from kubeflash.host.root import HostRoot

_BLKROSET, _BLKROGET = 0x125D, 0x125E  # linux/fs.h; the same on x86_64 and aarch64


class ReadOnlyFailed(HostError):
    """A device could not be made read-only, or writable."""


def set_read_only(device: Path, *, value: bool) -> None:
    """Has the kernel refuse writes to a device, or take them again, and reads back that it does. Idempotent.

    Args:
        device: a disk, a partition or a connected volume.
        value: whether it shall be read-only.

    Raises:
        ReadOnlyFailed: when the device is not there, is none, or does not become what it shall be.
    """
    wanted = "read-only" if value else "writable"
    try:
        fd = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise ReadOnlyFailed(f"{device} cannot be opened to make it {wanted}: {error.strerror}") from error
    try:
        if not stat.S_ISBLK(os.fstat(fd).st_mode):
            raise ReadOnlyFailed(f"{device} is no block device")
        if _get(fd) != value:
            fcntl.ioctl(fd, _BLKROSET, struct.pack("i", value))
        now = _get(fd)
    except OSError as error:
        raise ReadOnlyFailed(f"{device} cannot be made {wanted}: {error.strerror}") from error
    finally:
        os.close(fd)
    if now != value:
        raise ReadOnlyFailed(f"{device} was made {wanted} and is not: its SSD, or its server, protects it itself")


def _get(fd: int) -> bool:
    return bool(struct.unpack("i", fcntl.ioctl(fd, _BLKROGET, bytes(4)))[0])


def is_read_only(root: HostRoot, kernel_name: str) -> bool:
    """Whether the kernel refuses writes to the device of this name, such as nvme0n1p3; False when it is not there."""
    try:
        return (root.sys / "class" / "block" / kernel_name / "ro").read_text().strip() == "1"
    except OSError:
        return False
