"""Who uses a block device, by every way that a device can be used: no single one sees them all.

| used by | O_EXCL | seen here by |
| --- | --- | --- |
| a mount, in any namespace; swap | EBUSY | `/proc/*/mountinfo`, `/proc/swaps` |
| device-mapper, md, bcache | EBUSY | sysfs `holders/` |
| nvmet | opens | `device_path` of every namespace in configfs |
| a loop device | opens | `/sys/block/loop*/loop/backing_file` |
| a process, also by /dev/ngXnY | opens | `/proc/*/fd` |
| a container that was given the device's node | opens | the node's bind mount in `/proc/*/mountinfo` |

A device is compared by its number. A whole disk is used when one of its partitions is, and the other way round. Not
seen: a device that is only mapped (`mmap`) by a process that closed it, and passthrough commands by /dev/nvmeX.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from kubeflash.host.blockdev import NotABlockDevice, device_number, number_text, sysfs_folder
from kubeflash.host.errors import HostError
from kubeflash.host.fds import command_of, open_in
from kubeflash.host.root import HostRoot

LOOK_LIMIT = 5.0  # seconds
_UDEV = ("(udev-worker)", "systemd-udevd", "udevd")
_ESCAPE = re.compile(r"\\([0-7]{3})")


class HoldersUnknown(HostError):
    """It cannot be said who uses a device; treat it as used."""


@dataclass(frozen=True)
class Holder:
    """One use of a device.

    Attributes:
        kind: mount, bind, swap, block, nvmet, loop, process, exclusive; udev for a look that udev takes.
        who: in words that go on after "it is": "mounted at /mnt/x", "open in fio (pid 812)".
        pid: a process to look at, None where there is none.
    """

    kind: str
    who: str
    pid: int | None = None


def in_words(found: tuple[Holder, ...]) -> str:
    """All uses in one line; empty for none."""
    return ", ".join(holder.who for holder in found)


@dataclass(frozen=True)
class _Device:
    """The device, its partitions and, of a partition, its disk: names and numbers."""

    path: Path
    names: frozenset[str]
    numbers: frozenset[int]
    disk_name: str | None
    disk_number: int | None
    characters: frozenset[int]


def holders(root: HostRoot, device: Path, *, probe: bool = True, patience: float = LOOK_LIMIT) -> tuple[Holder, ...]:
    """Everybody but this process that uses a block device. For a whole disk, its partitions count too.

    A bare open of the whole disk does not count as a use of its partition: udev, smartd and the like look at disks.

    Args:
        root: the machine.
        device: a whole disk or a partition.
        probe: whether to try O_EXCL as well; not for who holds the device exclusively itself, nor where it may hang.
        patience: seconds to wait while udev alone has it open, as it has after every change.

    Raises:
        NotABlockDevice: when it is none, or vanished meanwhile.
        HoldersUnknown, ProcessesUnreadable: when something could not be looked at; treat the device as used.
    """
    deadline = time.monotonic() + patience
    while True:
        found = _look(root, device, probe=probe)
        if not found or any(holder.kind != "udev" for holder in found) or time.monotonic() >= deadline:
            return found
        time.sleep(0.1)


def _look(root: HostRoot, device: Path, *, probe: bool) -> tuple[Holder, ...]:
    target = _describe(root, device)
    found = [*_mounts(root, target), *_swaps(root, target), *_block_holders(root, target)]
    found += [*_nvmet(root, target), *_loops(root, target)]
    for item in open_in(root, target.numbers, target.characters):
        kind = "udev" if item.command in _UDEV else "process"
        found.append(Holder(kind, f"open in {item.command} (pid {item.pid})", item.pid))
    probed = _probe(device) if probe else None
    if probed is not None and not any(holder.kind in ("mount", "swap", "block") for holder in found):
        found.append(probed)
    return tuple(dict.fromkeys(found))


def _describe(root: HostRoot, device: Path) -> _Device:
    folder = sysfs_folder(root, device)
    numbers, names, characters = {device_number(device)}, {folder.name}, set()
    disk_name = disk_number = None
    if (folder / "partition").exists():
        disk_name = folder.parent.name
        disk_number = _number(folder.parent)
    else:
        try:
            children = [child for child in folder.iterdir() if (child / "partition").exists()]
        except FileNotFoundError as error:
            raise NotABlockDevice(f"{device} vanished meanwhile") from error
        for child in children:
            names.add(child.name)
            numbers.add(_number(child))
        generic = root.sys / "class" / "nvme-generic" / folder.name.replace("nvme", "ng", 1)
        if generic.exists():
            characters.add(_number(generic))
    return _Device(device, frozenset(names), frozenset(numbers), disk_name, disk_number, frozenset(characters))


def _number(folder: Path) -> int:
    try:
        major, _, minor = (folder / "dev").read_text().strip().partition(":")
        return os.makedev(int(major), int(minor))
    except (OSError, ValueError) as error:
        raise HoldersUnknown(f"sysfs does not say the device number of {folder.name}: {error}") from error


def _is(root: HostRoot, path: str, target: _Device) -> bool:
    """Whether a path, as the kernel remembers it, is the device, one of its partitions, or its disk."""
    numbers = target.numbers if target.disk_number is None else target.numbers | {target.disk_number}
    names = target.names if target.disk_name is None else target.names | {target.disk_name}
    clean = path.removesuffix(" (deleted)").removesuffix("\\040(deleted)")
    try:
        status = (root.path / clean.lstrip("/")).stat()
    except OSError:
        return Path(clean).name in names  # a path of another mount namespace, or a removed node: its name must do
    return stat.S_ISBLK(status.st_mode) and status.st_rdev in numbers


def _mounts(root: HostRoot, target: _Device) -> Iterator[Holder]:
    own = _namespace(root.proc / "self")
    seen: set[str | None] = set()
    numbers = {number_text(number) for number in target.numbers}
    for process in root.proc.iterdir():
        if not process.name.isdigit():
            continue
        namespace = _namespace(process)
        if namespace is not None and namespace in seen:
            continue
        seen.add(namespace)
        try:
            lines = (process / "mountinfo").read_text(errors="surrogateescape").splitlines()
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ESRCH, errno.EINVAL):  # gone, or a zombie: it has no mounts
                seen.discard(namespace)
                continue
            raise HoldersUnknown(f"cannot read the mounts of process {process.name}: {error.strerror}") from error
        pid = int(process.name)
        where = "" if namespace == own else f" in the mount namespace of {command_of(root, pid)} (pid {pid})"
        for line in lines:
            holder = _mount(root, line, target, numbers)
            if holder is not None:
                yield Holder(holder.kind, holder.who + where, pid if where else None)


def _namespace(process: Path) -> str | None:
    try:
        return str((process / "ns" / "mnt").readlink())
    except OSError:
        return None


def _mount(root: HostRoot, line: str, target: _Device, numbers: set[str]) -> Holder | None:
    """One line of mountinfo; proc_pid_mountinfo(5)."""
    left, _, right = line.partition(" - ")
    fields, rest = left.split(" "), right.split(" ")
    if len(fields) < 6 or len(rest) < 2:
        raise HoldersUnknown(f"mountinfo has a line that cannot be understood: {line!r}")
    point = _plain(fields[4])
    # btrfs shows a number of its own, so the source is looked at too
    if fields[2] in numbers or (rest[1].startswith("/dev/") and _is_own(root, _plain(rest[1]), target)):
        return Holder("mount", f"mounted at {point}")
    if rest[0] in ("devtmpfs", "tmpfs") and Path(_plain(fields[3])).name in target.names:
        return Holder("bind", f"handed out as a device at {point}")
    return None


def _is_own(root: HostRoot, path: str, target: _Device) -> bool:
    """Like `_is`, without the disk of a partition: what is mounted from the disk itself is not mounted from it."""
    try:
        return (root.path / path.lstrip("/")).stat().st_rdev in target.numbers
    except OSError:
        return Path(path).name in target.names


def _plain(text: str) -> str:
    return _ESCAPE.sub(lambda match: chr(int(match[1], 8)), text)


def _swaps(root: HostRoot, target: _Device) -> Iterator[Holder]:
    try:
        lines = (root.proc / "swaps").read_text().splitlines()[1:]
    except FileNotFoundError:
        return  # a kernel without swap
    for line in lines:
        if _is_own(root, _plain(line.split()[0]), target):
            yield Holder("swap", "used as swap")


def _block_holders(root: HostRoot, target: _Device) -> Iterator[Holder]:
    for name in sorted({*target.names, *([target.disk_name] if target.disk_name else [])}):
        folder = root.sys / "class" / "block" / name / "holders"
        for holder in sorted(folder.iterdir()) if folder.is_dir() else ():
            volume = root.sys / "class" / "block" / holder.name / "dm" / "name"
            label = f" ({volume.read_text().strip()})" if volume.exists() else ""
            yield Holder("block", f"part of {holder.name}{label}")


def _nvmet(root: HostRoot, target: _Device) -> Iterator[Holder]:
    for namespace in sorted(root.nvmet.glob("subsystems/*/namespaces/*")):
        try:
            path = (namespace / "device_path").read_text().strip()
            enabled = (namespace / "enable").read_text().strip() == "1"
        except FileNotFoundError:
            continue  # removed meanwhile
        if path and _is(root, path, target):
            how = "exported by" if enabled else "configured for export in"
            subsystem = namespace.parent.parent.name
            yield Holder("nvmet", f"{how} nvmet subsystem {subsystem} (namespace {namespace.name})")


def _loops(root: HostRoot, target: _Device) -> Iterator[Holder]:
    for file in sorted((root.sys / "class" / "block").glob("loop*/loop/backing_file")):
        try:
            path = file.read_text().strip()
        except OSError:
            continue  # detached meanwhile
        if path.startswith("/") and _is(root, path, target):
            yield Holder("loop", f"behind loop device /dev/{file.parent.parent.name}")


def _probe(device: Path) -> Holder | None:
    """Opens the device exclusively, as the kernel's own users do, and closes it again."""
    try:
        fd = os.open(device, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.EBUSY:
            return Holder("exclusive", "held exclusively (O_EXCL): by a mount, a volume manager or a partitioning tool")
        raise HoldersUnknown(f"{device} cannot be opened: {error.strerror}") from error
    os.close(fd)
    return None


__all__ = ["Holder", "HoldersUnknown", "NotABlockDevice", "holders", "in_words"]
