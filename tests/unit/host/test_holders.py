"""Who uses a device, on folders shaped like /proc, /sys and configfs."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from kubeflash.host.fds import ProcessesUnreadable
from kubeflash.host.holders import Holder, HoldersUnknown, holders
from kubeflash.host.root import HostRoot

DISK, PART, OTHER = os.makedev(259, 0), os.makedev(259, 3), os.makedev(259, 4)
GENERIC = os.makedev(238, 0)


def write(path: Path, text: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def node(path: Path, number: int, kind: int = stat.S_IFBLK) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.mknod(path, 0o600 | kind, number)
    except PermissionError:
        pytest.skip("device nodes need root")
    return path


def process(root: HostRoot, pid: int, name: str, mounts: str = "", namespace: int = 1) -> Path:
    folder = root.proc / str(pid)
    write(folder / "comm", name + "\n")
    write(folder / "mountinfo", mounts)
    (folder / "fd").mkdir()
    (folder / "ns").mkdir()
    (folder / "ns/mnt").symlink_to(f"mnt:[{namespace}]")
    return folder / "fd"


@pytest.fixture
def root(tmp_path: Path) -> HostRoot:
    root = HostRoot(tmp_path)
    disk = root.sys / "devices/nvme0n1"
    write(disk / "dev", "259:0\n")
    for name, number in (("nvme0n1p3", "259:3"), ("nvme0n1p4", "259:4")):
        write(disk / name / "dev", number)
        write(disk / name / "partition", name[-1])
    for name, number, folder in (
        ("nvme0n1", "259:0", disk),
        ("nvme0n1p3", "259:3", disk / "nvme0n1p3"),
        ("nvme0n1p4", "259:4", disk / "nvme0n1p4"),
    ):
        for link in (root.sys / "class/block" / name, root.sys / "dev/block" / number):
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(folder)
    write(root.sys / "class/nvme-generic/ng0n1/dev", "238:0\n")
    node(root.dev / "nvme0n1", DISK)
    node(root.dev / "nvme0n1p3", PART)
    node(root.dev / "nvme0n1p4", OTHER)
    process(root, 10, "kubeflash")
    (root.proc / "self").symlink_to("10")
    return root


def look(root: HostRoot, name: str) -> list[Holder]:
    return list(holders(root, root.dev / name, probe=False, patience=0))


def test_nobody(root: HostRoot) -> None:
    assert look(root, "nvme0n1") == []


@pytest.mark.parametrize(
    ("line", "who"),
    [
        ("36 35 259:3 / /mnt/my\\040data rw - ext4 /dev/nvme0n1p3 rw", "mounted at /mnt/my data"),
        ("36 35 0:44 / /mnt/b rw shared:1 - btrfs /dev/nvme0n1p3 rw", "mounted at /mnt/b"),
        ("36 35 0:6 /nvme0n1p3 /var/lib/dev rw - devtmpfs udev rw", "handed out as a device at /var/lib/dev"),
    ],
)
def test_mounts(root: HostRoot, line: str, who: str) -> None:
    write(root.proc / "10/mountinfo", f"22 1 8:1 / / rw - ext4 /dev/sda1 rw\n{line}\n")
    assert [item.who for item in look(root, "nvme0n1p3")] == [who]
    assert [item.who for item in look(root, "nvme0n1")] == [who]
    assert look(root, "nvme0n1p4") == []


def test_mounts_of_other_namespaces_name_a_process(root: HostRoot) -> None:
    line = "36 35 259:3 / /data rw - ext4 /dev/nvme0n1p3 rw\n"
    for pid in (20, 21, 22):
        process(root, pid, "postgres", line, namespace=2)
    (found,) = look(root, "nvme0n1p3")
    assert found.kind == "mount"
    assert found.who.startswith("mounted at /data in the mount namespace of postgres (pid 2")


def test_garbled_mountinfo_is_no_all_clear(root: HostRoot) -> None:
    write(root.proc / "10/mountinfo", "what is this\n")
    with pytest.raises(HoldersUnknown):
        look(root, "nvme0n1p3")


def test_open_files_by_any_node(root: HostRoot) -> None:
    elsewhere = node(root.path / "container/dev/data", PART)
    (process(root, 812, "fio") / "7").symlink_to(elsewhere)
    assert look(root, "nvme0n1p3") == [Holder("process", "open in fio (pid 812)", 812)]
    assert look(root, "nvme0n1") == [Holder("process", "open in fio (pid 812)", 812)]
    assert look(root, "nvme0n1p4") == []


def test_own_files_do_not_count(root: HostRoot) -> None:
    (root.proc / "10/fd/3").symlink_to(root.dev / "nvme0n1p3")
    assert look(root, "nvme0n1p3") == []


def test_generic_character_device(root: HostRoot) -> None:
    (process(root, 9, "nvme") / "3").symlink_to(node(root.dev / "ng0n1", GENERIC, stat.S_IFCHR))
    assert [item.pid for item in look(root, "nvme0n1")] == [9]


def test_a_look_by_udev_is_told_apart(root: HostRoot) -> None:
    (process(root, 9, "(udev-worker)") / "3").symlink_to(root.dev / "nvme0n1p3")
    assert [item.kind for item in look(root, "nvme0n1p3")] == ["udev"]


def test_a_file_that_cannot_be_looked_at_is_no_all_clear(root: HostRoot) -> None:
    folder = process(root, 9, "other")
    loop = folder / "3"
    loop.symlink_to(loop)  # any error but "gone" does
    with pytest.raises(ProcessesUnreadable):
        look(root, "nvme0n1p3")


def test_nvmet_swap_loop_and_block_holders(root: HostRoot) -> None:
    for subsystem, device, enabled in (("nqn.a", "/dev/nvme0n1p3", "1"), ("nqn.b", "/dev/nvme0n1", "0")):
        namespace = root.nvmet / "subsystems" / subsystem / "namespaces/1"
        write(namespace / "device_path", device + "\n")
        write(namespace / "enable", enabled + "\n")
    write(root.proc / "swaps", "Filename Type Size Used Priority\n/dev/nvme0n1p3 partition 1 0 -2\n")
    write(root.sys / "class/block/loop7/loop/backing_file", "/dev/nvme0n1p3\n")
    write(root.sys / "devices/nvme0n1/nvme0n1p3/holders/dm-0/dev", "253:0")
    write(root.sys / "class/block/dm-0/dm/name", "vg-data\n")
    assert [item.who for item in look(root, "nvme0n1p3")] == [
        "used as swap",
        "part of dm-0 (vg-data)",
        "exported by nvmet subsystem nqn.a (namespace 1)",
        "configured for export in nvmet subsystem nqn.b (namespace 1)",
        "behind loop device /dev/loop7",
    ]
    # what uses the whole disk uses each of its partitions
    assert [item.kind for item in look(root, "nvme0n1p4")] == ["nvmet"]
