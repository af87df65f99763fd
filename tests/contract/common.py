"""What the contracts share. Standard library and kubeflash only: they run in a virtual server without pytest."""

from __future__ import annotations

import fcntl
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from uuid import uuid4

from kubeflash.domain.disk import MIB, VOLUME_TYPE, Label, Partition
from kubeflash.host import blank, claim, commands, gpt, partitions
from kubeflash.host.blockdev import DirectDevice, disk_lock, size_bytes
from kubeflash.host.gptbytes import read_copies
from kubeflash.host.holders import Holder, holders
from kubeflash.host.partitions import kernel_partitions
from kubeflash.host.root import HostRoot

OWNER = Label("11111111-2222-4333-8444-555555555555", "4c4c4544-0042-3510-8052-b4c04f4d5931", "serial:S1-ns1")
GUID = OWNER.disk_guid


class Skipped(Exception):
    """A contract cannot run on this machine; says why."""


def raises(kind: type[Exception], call: Callable[[], object]) -> Exception:
    """The error of that type that a call raises."""
    try:
        call()
    except kind as error:
        return error
    raise AssertionError(f"{kind.__name__} was not raised")


def reset(root: HostRoot, disk: Path) -> None:
    """Makes a disk blank, whatever a contract left on it."""
    for part in kernel_partitions(root, disk.name):
        forget(disk, part.number)
    with disk_lock(disk):
        fd = os.open(disk, os.O_WRONLY)
        try:
            fcntl.ioctl(fd, 0x127F, struct.pack("QQ", 0, size_bytes(root, disk)))
            os.fsync(fd)
        finally:
            os.close(fd)


def forget(disk: Path, number: int) -> None:
    """Makes the kernel forget a partition, as a crash before telling it would; waits while udev looks at it."""
    deadline = time.monotonic() + 20
    while subprocess.run(["partx", "-d", "--nr", str(number), str(disk)], check=False).returncode != 0:
        assert time.monotonic() < deadline, f"partition {number} of {disk} stays busy"
        time.sleep(0.2)


def users(root: HostRoot, device: Path) -> tuple[Holder, ...]:
    """Who uses a device, but for a look that udev takes."""
    return tuple(item for item in holders(root, device) if item.kind != "udev")


def poke(device: Path, offset: int, content: bytes) -> None:
    """Writes bytes anywhere, as a stranger would."""
    with nullcontext() if _is_partition(device) else disk_lock(device):
        fd = os.open(device, os.O_WRONLY)
        try:
            os.pwrite(fd, content, offset)
            os.fsync(fd)
        finally:
            os.close(fd)


def _is_partition(device: Path) -> bool:
    return (HostRoot().sys / "class" / "block" / device.name / "partition").exists()


def settle() -> None:
    """Lets udev look at what was changed behind its back."""
    if shutil.which("udevadm"):
        subprocess.run(["udevadm", "settle", "--timeout=20"], check=False)


@contextmanager
def opener(path: Path, flags: str = "os.O_RDONLY") -> Iterator[int]:
    """A process that has a device open; yields its pid."""
    code = f"import os,sys\nos.open({str(path)!r}, {flags})\nprint('open', flush=True)\nsys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"open\n"
        try:
            yield process.pid
        finally:
            process.kill()


@contextmanager
def mounted(device: Path, *unshare: str) -> Iterator[Path]:
    """A fresh ext4 on the device, mounted; in a namespace of its own with `unshare` before the command."""
    if not shutil.which("mkfs.ext4"):
        raise Skipped("mkfs.ext4 is not installed")
    subprocess.run(["mkfs.ext4", "-q", "-F", str(device)], check=True)
    folder = Path(tempfile.mkdtemp())
    try:
        if unshare:
            script = f"mount {device} {folder} && echo mounted && cat"
            with subprocess.Popen(
                [*unshare, "sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
            ) as process:
                assert process.stdout is not None
                assert process.stdout.readline() == b"mounted\n"
                assert process.stdin is not None
                try:
                    yield folder
                finally:
                    process.stdin.close()
                    process.wait()
        else:
            subprocess.run(["mount", str(device), str(folder)], check=True)
            try:
                yield folder
            finally:
                subprocess.run(["umount", str(folder)], check=True)
    finally:
        folder.rmdir()


def volume(number: int = 2, start: int = 2 * MIB, size: int = 16 * MIB) -> Partition:
    """A volume's partition with a new id."""
    ident = str(uuid4())
    return Partition(number, start, size, ident, ident, VOLUME_TYPE)


def yes() -> None:
    """A check that passes."""


def claimed(root: HostRoot, disk: Path) -> None:
    """A disk that is KubeFlash's."""
    claim.create_table(root, disk, OWNER, check=yes)


def entries(disk: Path) -> tuple[Partition, ...]:
    """What is in the partition table."""
    table = gpt.read_table(disk)
    assert table is not None
    return table.partitions


def findings(root: HostRoot, disk: Path) -> str:
    """What the examination found, in one line."""
    return "; ".join(blank.examine(root, disk).findings)


def head(disk: Path) -> bytes:
    """The first 4 MiB."""
    fd = os.open(disk, os.O_RDONLY)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        return os.pread(fd, 4 * MIB, 0)
    finally:
        os.close(fd)


def on_disk(device: Path, offset: int, length: int) -> bytes:
    """What is there, past the page cache; positions in multiples of 4096 bytes, or counted so from the end."""
    with DirectDevice(device) as disk:
        return disk.read(offset, length)


def sector_of(root: HostRoot, disk: Path) -> int:
    """The logical block in bytes."""
    return int((root.sys / "class" / "block" / disk.name / "queue" / "logical_block_size").read_text())


@contextmanager
def nothing_written(root: HostRoot, disk: Path) -> Iterator[None]:
    """Asserts that not one sector of the disk is written, by the kernel's count."""
    settle()
    stat = root.sys / "class" / "block" / disk.name / "stat"
    before = stat.read_text().split()[4:7]
    yield
    settle()
    assert stat.read_text().split()[4:7] == before, "something was written"


def agree(root: HostRoot, disk: Path) -> None:
    """Asserts that both copies of the table are whole and the same, and that the kernel shows just what is in them."""
    settle()
    copies = read_copies(disk)
    assert copies.damaged == ""
    assert copies.primary == copies.backup == gpt.read_table(disk)
    wanted = {(part.number, part.start, part.bytes) for part in entries(disk)}
    assert {(part.number, part.start, part.bytes) for part in kernel_partitions(root, disk.name)} == wanted


class Killed(BaseException):
    """The process ends here; nothing catches it."""


@contextmanager
def killed_after(count: int) -> Iterator[list[str]]:
    """Whoever runs commands of the host is killed right after the `count`-th one; yields the commands that ran."""
    ran: list[str] = []
    real = commands.run

    def run(argv: Sequence[str], **options: Any) -> commands.Output:
        try:
            return real(argv, **options)
        finally:
            ran.append(" ".join(argv))
            if len(ran) == count:
                raise Killed

    users = (blank, claim, gpt, partitions)
    for module in users:
        module.run = run  # type: ignore[attr-defined]
    try:
        yield ran
    finally:
        for module in users:
            module.run = real  # type: ignore[attr-defined]


class Refused(Exception):
    """What `no` raises."""


def no() -> None:
    """A check that fails."""
    raise Refused
