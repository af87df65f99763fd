"""Connections that are lost and found again. The kernel sends no uevent when a controller leaves or regains `live`.

So the states are looked at, often, and at next to no cost: one folder is listed, and one small file is read for each
NVMe-oF controller. Measured: 15 us of CPU a look with none or one, 0.3 ms with 64.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import NoReturn

from kubeflash.host.root import HostRoot

_LOCAL = ("pcie", "apple-nvme")


class PathWatch:
    """The states of all NVMe-oF controllers of a server, whoever made them."""

    def __init__(self, root: HostRoot) -> None:
        self._folder = str(root.sys / "class" / "nvme")
        self._is_fabric: dict[tuple[str, int], bool] = {}  # by name and inode: numbers are given out again
        self._last: dict[tuple[str, int], str] | None = None

    @property
    def any(self) -> bool:
        """Whether there was a controller at the last look."""
        return bool(self._last)

    def changed(self) -> bool:
        """Whether anything differs from the last look; False at the first. What cannot be read is not there."""
        before, self._last = self._last, self._look()
        return before is not None and before != self._last

    def _look(self) -> dict[tuple[str, int], str]:
        try:
            with os.scandir(self._folder) as found:
                entries = {(entry.name, entry.inode()): entry.path for entry in found}
        except OSError:
            entries = {}  # no such class (any more)
        self._is_fabric = {
            key: self._is_fabric[key] if key in self._is_fabric else _read(f"{path}/transport") not in _LOCAL
            for key, path in entries.items()
        }
        return {key: _read(f"{entries[key]}/state") for key, fabric in self._is_fabric.items() if fabric}


def _read(path: str) -> str:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.read(fd, 64).decode(errors="replace").strip()
        finally:
            os.close(fd)
    except OSError:
        return ""  # gone, or going


async def watch(root: HostRoot, changed: Callable[[], None], *, every: float = 2.0, idle: float = 10.0) -> NoReturn:
    """Calls `changed` when a connection's state is another one than at the last look. Until it is cancelled.

    Args:
        root: the machine.
        changed: called in the running loop.
        every: seconds between two looks.
        idle: the same while there is no connection: a new one has a uevent.
    """
    paths = PathWatch(root)
    while True:
        if paths.changed():
            changed()
        await asyncio.sleep(every if paths.any else idle)
