"""What the kernel says when devices come, go or change: a reason to look again, never something to rely on."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from kubeflash.host.errors import HostError

log = logging.getLogger(__name__)

_NETLINK_KOBJECT_UEVENT = 15  # linux/netlink.h
_KERNEL_GROUP = 1  # group 2 has udev's own messages, in another form
_LARGEST = 8192  # the kernel's own limit is 2 KiB of variables and a path
_BUFFER = 1 << 20
_STORAGE = frozenset({"nvme", "nvme-fabrics", "nvme-subsystem", "pci"})


class NoUevents(HostError):
    """The kernel's messages about devices cannot be listened to."""


@dataclass(frozen=True)
class Uevent:
    """One message of the kernel.

    Attributes:
        action: add, remove, change, bind, unbind, move, online, offline.
        devpath: the device's path below /sys, such as /devices/pci0000:00/0000:00:01.0/nvme/nvme0.
        subsystem: block, nvme, pci, ...
        name: name of the device node below /dev, such as nvme0n1p1; empty without one.
        reported: what a controller reported of itself (NVME_AEN: health, errors, a changed namespace), as the kernel
            writes it, such as 0x020001; empty for anything else.
        asked_for: somebody had the kernel say it (`echo change > uevent`), as udev does whenever a device that was open
            for writing is closed: what is on the device may have changed, the device has not.
    """

    action: str
    devpath: str = ""
    subsystem: str = ""
    name: str = ""
    reported: str = ""
    asked_for: bool = False

    @property
    def concerns_storage(self) -> bool:
        """Whether GPUs, SSDs, their partitions or connections may have changed. Of block devices only NVMe's count."""
        return self.subsystem in _STORAGE or (self.subsystem == "block" and self.name.startswith("nvme"))


@asynccontextmanager
async def listening(changed: Callable[[Uevent | None], None]) -> AsyncIterator[None]:
    """Calls `changed` in the running loop for every message that concerns storage, inside of the `async with`.

    None stands for messages that were lost since they came faster than they were read: anything may have changed. Where
    the kernel does not let us listen, a warning is logged and nothing is ever called: whoever listens also looks by
    itself from time to time.
    """
    try:
        listener = open_uevents()
    except NoUevents as error:
        log.warning("%s; changes are noticed when the agent looks by itself", error)
        yield
        return
    loop = asyncio.get_running_loop()

    def read() -> None:
        try:
            messages = receive(listener)
        except NoUevents as error:
            log.warning("%s; changes are noticed when the agent looks by itself", error)
            loop.remove_reader(listener)
            messages = [None]
        for message in messages:
            if message is None or message.concerns_storage:
                changed(message)

    loop.add_reader(listener, read)
    try:
        yield
    finally:
        loop.remove_reader(listener)
        listener.close()


def open_uevents() -> socket.socket:
    """A non-blocking socket that becomes readable when a device changes; for `loop.add_reader` and `receive`.

    It hears of devices in the network namespace of the server; in a container's own it stays silent.

    Raises:
        NoUevents: when the kernel refuses.
    """
    try:
        listener = socket.socket(
            socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, _NETLINK_KOBJECT_UEVENT
        )
    except OSError as error:
        raise NoUevents(f"the kernel's messages about devices cannot be heard: {error}") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)  # the kernel grants less where it must
        listener.bind((0, _KERNEL_GROUP))
    except OSError as error:
        listener.close()
        raise NoUevents(f"the kernel's messages about devices cannot be heard: {error}") from error
    return listener


def receive(listener: socket.socket) -> list[Uevent | None]:
    """All messages that wait, None where some were lost. Does not block.

    Raises:
        NoUevents: when the socket is of no use any more.
    """
    found: list[Uevent | None] = []
    while True:
        try:
            content, sender = listener.recvfrom(_LARGEST)
        except BlockingIOError:
            return found
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                reason = os.strerror(error.errno or 0)
                raise NoUevents(f"the kernel's messages about devices ended: {reason}") from error
            found.append(None)
            continue
        # the kernel's netlink port is 0; any process may send to ours
        if sender[0] == 0 and (event := parse(content)):
            found.append(event)


def parse(content: bytes) -> Uevent | None:
    """Reads a message: `action@devpath`, then `KEY=value`, each ended by a NUL. None when it is not of this form."""
    head, *rest = content.decode(errors="replace").split("\0")
    action, at, devpath = head.partition("@")
    if not at or not action:
        return None
    values = dict(item.split("=", 1) for item in rest if "=" in item)
    return Uevent(
        action=values.get("ACTION", action),
        devpath=values.get("DEVPATH", devpath),
        subsystem=values.get("SUBSYSTEM", ""),
        name=values.get("DEVNAME", ""),
        reported=values.get("NVME_AEN", ""),
        asked_for="SYNTH_UUID" in values,
    )
