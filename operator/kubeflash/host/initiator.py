"""The consumer's side: NVMe-oF connections, made by `/dev/nvme-fabrics` and found in sysfs, never by a `/dev` name.

No nvme-cli: its connect takes keys as arguments and ends with 1 for every error, and its disconnect has no safety: on a
mounted device it returns 0 and the dirty data is gone.

A subsystem with several portals is connected once to each: the paths share one block device, the head, and I/O is
spread over them once `spread` has said so; the kernel's default uses one alone.

`connect`, `wait_for_device`, `drop_path` and `disconnect` block. `connect` blocks in the kernel, where nothing ends it
(measured, 6.12): 3.2 s where nobody answers, since the kernel's NVMe/TCP repeats its SYN once, whatever tcp_syn_retries
says; 10 s where somebody accepts and is silent. A wrong key is refused at once, unless nvmet hangs up before it has
said so: then the kernel waits for its commands, 61 s, with TLS 306 s, and says EIO. So run it in a thread of its own,
with a limit on how long to wait for it; one that was given up on may still succeed, and is in `connections` then.
"""

from __future__ import annotations

import errno
import os
import re
import threading
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
    DisconnectFailed,
    FabricsMissing,
    KeyRefused,
    LastPath,
    PolicyRefused,
    connect_error,
)
from kubeflash.host.root import HostRoot

KEEP_ALIVE = 5  # seconds; notices a loss in 6-8 s
ROUND_ROBIN = "round-robin"
_POLL = 0.05  # seconds
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
        tls_key: serial number of the TLS PSK in the kernel's keyring; None for no TLS.
    """

    nqn: str
    host_nqn: str
    host_id: str
    portal: Portal
    reconnect_seconds: int
    loss_seconds: int
    keep_alive_seconds: int = KEEP_ALIVE
    tls_key: int | None = None


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
        read_only=block is not None and _text(block / "ro") == "1",
    )


def _heads(root: HostRoot, folder: Path) -> Iterator[str]:
    """Names of the block devices of a controller that can be opened: heads, or namespaces without multipath."""
    for item in sorted(_listed(folder)):
        path = _PATH.fullmatch(item.name)
        name = f"nvme{path[1]}n{path[2]}" if path else item.name
        if (path or _NAMESPACE.fullmatch(item.name)) and (root.sys / "class" / "block" / name).exists():
            yield name


def connect(root: HostRoot, target: Target, keys: DhchapKeys | None, *, fabrics: Fabrics = exchange) -> int:
    """Connects one path, and returns the instance: N of nvmeN. Blocks: see the module.

    Args:
        root: the machine.
        target: what to connect to, and as whom.
        keys: both are always passed; None for no authentication, of either side.
        fabrics: the edge to the kernel.

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
        raise FabricsMissing(f"{device} is not there: `modprobe nvme-{target.portal.transport}`") from error
    except OSError as error:
        raise connect_error(what, error, target.portal.transport) from error
    instance = _INSTANCE.search(answer)
    if instance is None:
        raise ConnectFailed(f"{what}: the kernel answered without an instance")
    return int(instance[1])


def _line(target: Target, keys: DhchapKeys | None, what: str) -> str:
    """The options in one line. It holds the keys: never log it."""
    if target.tls_key is not None and target.portal.transport != "tcp":
        raise ConnectFailed(f"{what}: only tcp has TLS")
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
    }
    if keys is not None:
        for key in (keys.host, keys.controller):
            try:
                check_key(key)
            except ValueError as error:
                raise KeyRefused(f"{what}: {error}") from error
        # only this end enforces the controller's key
        options |= {"dhchap_secret": keys.host, "dhchap_ctrl_secret": keys.controller}
    if target.tls_key is not None:
        options["tls_key"] = str(target.tls_key)
    for name, value in options.items():
        if not value or re.search(r"[,\s]", value):
            raise ConnectFailed(f"{what}: the option {name} is empty, or has a comma or a blank in it")
    words = [f"{name}={value}" for name, value in options.items()]
    return ",".join([*words, "tls"] if target.tls_key is not None else words)


def find(root: HostRoot, nqn: str) -> tuple[Connection, ...]:
    """The connections with exactly this NQN: one for each path."""
    return tuple(item for item in connections(root) if item.nqn == nqn)


def wait_for_device(root: HostRoot, nqn: str, uuid: str, *, timeout: float, instance: int | None = None) -> Connection:
    """Waits until a subsystem's block device is there, with the expected UUID and a size other than 0.

    Args:
        root: the machine.
        nqn: the subsystem.
        uuid: UUID of its namespace.
        timeout: limit in seconds.
        instance: the path that it must be there by; None for any.

    Raises:
        DeviceNotSeen: when it does not appear; says what is there instead.
    """
    deadline = time.monotonic() + timeout
    while True:
        found = tuple(item for item in find(root, nqn) if instance in (None, item.instance))
        for item in found:
            if item.device and item.uuid == uuid.lower() and item.bytes and _node(root, item).is_block_device():
                return item
        if time.monotonic() >= deadline:
            raise DeviceNotSeen(
                f"no block device with UUID {uuid} from {nqn} in {timeout:g} s: {_instead(found, uuid)}"
            )
        time.sleep(_POLL)


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


def spread(root: HostRoot, nqn: str) -> None:
    """Spreads I/O over all paths of a subsystem. Idempotent; lost with the last path.

    Raises:
        PolicyRefused: when it is not connected, or the kernel does not take the policy or has no multipath.
    """
    folders = [item for item in _listed(root.sys / "class" / "nvme-subsystem") if _text(item / "subsysnqn") == nqn]
    if not folders:
        raise PolicyRefused(f"I/O to {nqn} cannot be spread over its paths: it is not connected")
    for folder in folders:
        file = folder / "iopolicy"
        if _text(file) == ROUND_ROBIN:
            continue
        try:
            _write(file, ROUND_ROBIN)
        except OSError as error:
            reason = f"{file} cannot be written ({error.strerror}): nvme_core needs multipath=Y"
            raise PolicyRefused(f"I/O to {nqn} cannot be spread over its paths: {reason}") from error
        found = _text(file)
        if found != ROUND_ROBIN:
            raise PolicyRefused(f"{file} was set to {ROUND_ROBIN} and reads {found!r}")


def drop_path(root: HostRoot, nqn: str, instance: int, *, timeout: float = 90.0) -> None:
    """Ends one path of a subsystem, and returns when sysfs lists it no more. I/O goes on over another. Idempotent.

    Takes 2-3 s for a path that is `connecting`, and up to 62 s for one that is still `live` to a server that is gone.

    Args:
        root: the machine.
        nqn: the subsystem.
        instance: N of nvmeN.
        timeout: limit in seconds.

    Raises:
        LastPath: when no other path of the subsystem, with the block device, is live. Nothing was done.
        DisconnectFailed: when it is still there afterwards.
    """
    found = find(root, nqn)
    mine = next((item for item in found if item.instance == instance), None)
    if mine is None:
        return  # gone, or the number is another's by now
    others = [item for item in found if item.instance != instance and item.state == "live" and item.bytes]
    if not any(mine.device in (None, item.device) for item in others):
        raise LastPath(f"nvme{instance} is the only path of {nqn} that is left: disconnect the attachment instead")
    errors: list[OSError] = []

    def delete() -> None:
        try:
            _write(root.sys / "class" / "nvme" / f"nvme{instance}" / "delete_controller", "1")
        except OSError as error:
            errors.append(error)

    # aside: the write returns when the controller is gone, and may hang with it
    threading.Thread(target=delete, name=f"delete nvme{instance}", daemon=True).start()
    deadline = time.monotonic() + timeout
    while any(item.instance == instance for item in find(root, nqn)):
        if errors and errors[0].errno not in (errno.ENOENT, errno.ENODEV):
            raise DisconnectFailed(f"nvme{instance} ({nqn}) cannot be deleted: {errors[0].strerror}") from errors[0]
        if time.monotonic() >= deadline:
            raise DisconnectFailed(f"nvme{instance} ({nqn}) is not deleted in {timeout:g} s")
        time.sleep(_POLL)


def _write(path: Path, value: str) -> None:
    """Writes an attribute, by one call of `write`."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, value.encode())
    finally:
        os.close(fd)
