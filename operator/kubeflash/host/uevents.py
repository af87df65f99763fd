"""What the kernel says when devices come, go or change: a reason to look again, never something to rely on."""

from __future__ import annotations

import errno
import os
import socket
from dataclasses import dataclass

from kubeflash.host.errors import HostError

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
        action: add, remove, change, bind, unbind, move, online, offline; `lost` stands for messages that were dropped.
        devpath: the device's path below /sys, such as /devices/pci0000:00/0000:00:01.0/nvme/nvme0.
        subsystem: block, nvme, pci, ...
        name: name of the device node below /dev, such as nvme0n1p1; empty without one.
    """

    action: str
    devpath: str = ""
    subsystem: str = ""
    name: str = ""

    @property
    def concerns_storage(self) -> bool:
        """Whether GPUs, SSDs, their partitions or connections may have changed. Of block devices only NVMe's count."""
        if self.subsystem == "block":
            return self.name.startswith("nvme")
        return self.action == "lost" or self.subsystem in _STORAGE


LOST = Uevent("lost")
"""Something happened, nobody knows what: messages came faster than they were read."""


def open_uevents() -> socket.socket:
    """A non-blocking socket that becomes readable when a device changes; for `loop.add_reader` and `receive`.

    It hears of devices in the network namespace of the server; inside a container's own it stays silent.

    Raises:
        NoUevents: when the kernel refuses.
    """
    try:
        listener = socket.socket(
            socket.AF_NETLINK,
            socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK,
            socket.NETLINK_KOBJECT_UEVENT,
        )
    except OSError as error:
        raise NoUevents(f"no messages about devices: {error}") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)  # the kernel takes less where it must
        listener.bind((0, _KERNEL_GROUP))
    except OSError as error:
        listener.close()
        raise NoUevents(f"no messages about devices: {error}") from error
    return listener


def receive(listener: socket.socket) -> list[Uevent]:
    """All messages that wait; `LOST` among them where some were dropped. Does not block.

    Raises:
        NoUevents: when the socket is of no use any more: open another one.
    """
    found: list[Uevent] = []
    while True:
        try:
            content, sender = listener.recvfrom(_LARGEST)
        except BlockingIOError:
            return found
        except InterruptedError:
            continue
        except OSError as error:
            if error.errno == errno.ENOBUFS:
                found.append(LOST)
                continue
            raise NoUevents(f"no messages about devices any more: {os.strerror(error.errno or 0)}") from error
        if _is_kernel(sender) and (event := parse(content)):
            found.append(event)


def parse(content: bytes) -> Uevent | None:
    r"""Reads a message: `action@devpath`, then `KEY=value`, each ended by a NUL. None when it is none of the kernel's."""
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
    )


def _is_kernel(sender: object) -> bool:
    """Whether a message came from the kernel, whose netlink port is 0, and not from another process."""
    return isinstance(sender, tuple) and bool(sender) and sender[0] == 0
