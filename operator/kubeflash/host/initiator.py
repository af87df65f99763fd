"""The consumer's side: NVMe-oF connections, made by `/dev/nvme-fabrics` and found in sysfs, never by a `/dev` name.

No nvme-cli: its connect takes keys as arguments and ends with 1 for every error, and its disconnect has no safety: on a
mounted device it returns 0 and the dirty data is gone.

`connect`, `wait_for_device` and `disconnect` block. `connect` blocks in the kernel, for as long as TCP takes to give up
on a dead address (minutes): run it in a thread of its own, with a limit on how long to wait for it. A connect that was
given up on may still succeed; the next pass sees it in `connections`.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from kubeflash.domain.dhchap import DhchapKeys
from kubeflash.domain.dhchap import check as check_key
from kubeflash.domain.fabric import Connection, Portal
from kubeflash.host.blockdev import SECTOR
from kubeflash.host.initiator_errors import (
    ConnectFailed,
    DeviceNotSeen,
    FabricsMissing,
    KeyRefused,
    connect_error,
)
from kubeflash.host.root import HostRoot

KEEP_ALIVE = 5  # seconds; notices a loss in 6-8 s
_INSTANCE = re.compile(r"instance=(\d+)")
_CONTROLLER = re.compile(r"nvme(\d+)")
_PATH = re.compile(r"nvme(\d+)c\d+n(\d+)")
_NAMESPACE = re.compile(r"nvme\d+n\d+")


@dataclass(frozen=True)
class Target:
    """What to connect to, and as whom.

    Attributes:
        reconnect_seconds: wait between two attempts to reconnect.
        loss_seconds: how long I/O is held before it fails (ctrl_loss_tmo). The kernel counts attempts
            (loss / reconnect), each of which takes about 3 s more where the server cannot be reached.
    """

    nqn: str
    host_nqn: str
    host_id: str
    portal: Portal
    reconnect_seconds: int
    loss_seconds: int
    keep_alive_seconds: int = KEEP_ALIVE


class Fabrics(Protocol):
    """The edge to the kernel's connect: writes one line to /dev/nvme-fabrics and returns what it reads back."""

    def __call__(self, device: Path, line: str) -> str:
        """May raise OSError as the kernel gave it."""


def exchange(device: Path, line: str) -> str:
    """The kernel's own `Fabrics`: the file must stay open between writing and reading."""
    fd = os.open(device, os.O_RDWR | os.O_CLOEXEC)
    try:
        os.write(fd, line.encode())
        return os.read(fd, 4096).decode()
    finally:
        os.close(fd)


def connections(root: HostRoot) -> tuple[Connection, ...]:
    """All NVMe-oF controllers, whoever made them; local SSDs are left out.

    A controller's own block device is its hidden path (`nvme0c1n1`); `device` is the head above it (`nvme0n1`).
    """
    folder = root.sys / "class" / "nvme"
    found = [_read(root, item) for item in _listed(folder) if _CONTROLLER.fullmatch(item.name)]
    return tuple(sorted((item for item in found if item is not None), key=lambda item: item.instance))


def _listed(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []  # no such class, or gone meanwhile


def _text(path: Path) -> str:
    """An attribute; empty when it is not there, or its device is going away."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _read(root: HostRoot, folder: Path) -> Connection | None:
    transport, nqn = _text(folder / "transport"), _text(folder / "subsysnqn")
    if transport in ("", "pcie", "apple-nvme") or not nqn:
        return None
    head = next(_heads(root, folder), None)
    block = root.sys / "class" / "block" / head if head else None
    size = _text(block / "size") if block else ""
    return Connection(
        instance=int(folder.name.removeprefix("nvme")),
        nqn=nqn,
        host_nqn=_text(folder / "hostnqn"),
        state=_text(folder / "state"),
        transport=transport,
        address=_text(folder / "address"),
        device=f"/dev/{head}" if head else None,
        uuid=(_text(block / "uuid").lower() or None) if block else None,
        bytes=int(size) * SECTOR if size.isdigit() else 0,
    )


def _heads(root: HostRoot, folder: Path) -> Iterator[str]:
    """Names of the block devices of a controller that can be opened: heads, or namespaces without multipath."""
    for item in sorted(_listed(folder)):
        path = _PATH.fullmatch(item.name)
        name = f"nvme{path[1]}n{path[2]}" if path else item.name
        if (path or _NAMESPACE.fullmatch(item.name)) and (root.sys / "class" / "block" / name).exists():
            yield name


def connect(root: HostRoot, target: Target, keys: DhchapKeys, *, fabrics: Fabrics = exchange) -> int:
    """Connects, and returns the instance: N of nvmeN. Blocks: see the module. Both keys are always passed.

    Raises:
        FabricsMissing: when the initiator is not loaded.
        ConnectFailed: one of its kinds, with what to do.
    """
    what = f"cannot connect to {target.nqn} at {target.portal}"
    line = _line(target, keys, what)
    device = root.dev / "nvme-fabrics"
    try:
        answer = fabrics(device, line)
    except FileNotFoundError as error:
        raise FabricsMissing(f"{device} is not there: `modprobe nvme-fabrics nvme-tcp`") from error
    except OSError as error:
        raise connect_error(what, error) from error
    instance = _INSTANCE.search(answer)
    if instance is None:
        raise ConnectFailed(f"{what}: the kernel answered without an instance")
    return int(instance[1])


def _line(target: Target, keys: DhchapKeys, what: str) -> str:
    """The options in one line. It holds the keys: never log it."""
    for key in (keys.host, keys.controller):
        try:
            check_key(key)
        except ValueError as error:
            raise KeyRefused(f"{what}: {error}") from error
    options = {
        "nqn": target.nqn,
        "transport": target.portal.transport,
        "traddr": target.portal.address,
        "trsvcid": str(target.portal.port),
        "hostnqn": target.host_nqn,
        "hostid": target.host_id,
        "reconnect_delay": str(target.reconnect_seconds),
        "ctrl_loss_tmo": str(target.loss_seconds),
        "keep_alive_tmo": str(target.keep_alive_seconds),
        "dhchap_secret": keys.host,
        # only this end enforces the controller's key
        "dhchap_ctrl_secret": keys.controller,
    }
    for name, value in options.items():
        if not value or re.search(r"[,\s]", value):
            raise ConnectFailed(f"{what}: the option {name} is empty, or has a comma or a blank in it")
    return ",".join(f"{name}={value}" for name, value in options.items())


def find(root: HostRoot, nqn: str) -> tuple[Connection, ...]:
    """The connections with exactly this NQN: one for each path."""
    return tuple(item for item in connections(root) if item.nqn == nqn)


def wait_for_device(root: HostRoot, nqn: str, uuid: str, *, timeout: float) -> Connection:
    """Waits until a subsystem's block device is there, with the expected UUID and a size other than 0.

    Args:
        root: the machine.
        nqn: the subsystem.
        uuid: UUID of its namespace.
        timeout: limit in seconds.

    Raises:
        DeviceNotSeen: when it does not appear; says what is there instead.
    """
    deadline = time.monotonic() + timeout
    while True:
        found = find(root, nqn)
        for item in found:
            if item.device and item.uuid == uuid.lower() and item.bytes and _node(root, item).is_block_device():
                return item
        if time.monotonic() >= deadline:
            raise DeviceNotSeen(
                f"no block device with UUID {uuid} from {nqn} in {timeout:g} s: {_instead(found, uuid)}"
            )
        time.sleep(0.05)


def _node(root: HostRoot, connection: Connection) -> Path:
    return root.path / (connection.device or "").lstrip("/")


def _instead(found: tuple[Connection, ...], uuid: str) -> str:
    if not found:
        return "it is not connected (any more)"
    seen = found[0]
    if seen.device is None:
        hint = ", perhaps since another connection here has the same UUID (see dmesg)" if seen.state == "live" else ""
        return f"the connection is {seen.state} and has no block device{hint}"
    if seen.uuid != uuid.lower():
        return f"{seen.device} has UUID {seen.uuid}: not the volume"
    return f"{seen.device} has {seen.bytes} bytes: its server had not enabled it when it was linked"
