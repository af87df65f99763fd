"""`statx(2)`, for what Python's `os.stat` has not: a time of birth, and not waiting for a dead file server."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

TYPE, BIRTH = 0x1, 0x800
_AT_FDCWD = -100
_AT_STATX_DONT_SYNC = 0x4000
_libc = ctypes.CDLL(None, use_errno=True)


class Statx(ctypes.Structure):
    """`struct statx` of <linux/stat.h>; only what is read here has a name."""

    _fields_ = (
        ("mask", ctypes.c_uint32),
        ("head", ctypes.c_uint8 * 24),
        ("mode", ctypes.c_uint16),
        ("middle", ctypes.c_uint8 * 50),
        ("birth_seconds", ctypes.c_int64),
        ("birth_nanoseconds", ctypes.c_uint32),
        ("times", ctypes.c_uint8 * 36),
        ("rdev_major", ctypes.c_uint32),
        ("rdev_minor", ctypes.c_uint32),
        ("tail", ctypes.c_uint8 * 120),
    )


def statx(path: Path, wanted: int) -> Statx:
    """What the file system knows of a path without asking a server; its `mask` says which of `wanted` is filled in.

    Raises:
        OSError: as the kernel gave it.
    """
    buffer = Statx()
    if _libc.statx(_AT_FDCWD, os.fsencode(path), _AT_STATX_DONT_SYNC, wanted, ctypes.byref(buffer)) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(path))
    return buffer
