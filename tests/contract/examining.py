"""Contracts of blankness and of who uses a disk."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from contract.common import (
    GUID,
    Skipped,
    claimed,
    findings,
    mounted,
    opener,
    poke,
    reset,
    settle,
    users,
    volume,
)
from kubeflash.domain.disk import MIB
from kubeflash.host import gpt
from kubeflash.host.blockdev import size_bytes
from kubeflash.host.holders import in_words
from kubeflash.host.root import HostRoot


def contract_blank_disk_is_blank(root: HostRoot, disk: Path) -> None:
    assert findings(root, disk) == ""
    assert gpt.read_table(disk) is None


def contract_signatures_are_found(root: HostRoot, disk: Path) -> None:
    makers = {"ext4": ["mkfs.ext4", "-q", "-F"], "swap": ["mkswap"], "xfs": ["mkfs.xfs", "-q", "-f"]}
    done = 0
    for kind, argv in makers.items():
        if shutil.which(argv[0]) and (kind != "xfs" or size_bytes(root, disk) >= 300 * MIB):
            subprocess.run([*argv, str(disk)], check=True, capture_output=True)
            settle()
            assert f"{kind} signature" in findings(root, disk), kind
            reset(root, disk)
            done += 1
    assert done


def contract_tables_are_found(root: HostRoot, disk: Path) -> None:
    for kind in ("gpt", "dos"):
        script = f"label: {kind}\n"
        subprocess.run(["sfdisk", "-q", "--no-reread", str(disk)], input=script.encode(), check=True)
        settle()
        assert f"{kind} signature" in findings(root, disk)
        if kind == "gpt":
            poke(disk, 0, bytes(MIB))  # only its backup is left: blkid sees nothing
            assert "gpt signature" in findings(root, disk)
        reset(root, disk)


def contract_partitions_are_found(root: HostRoot, disk: Path) -> None:
    claimed(root, disk)
    assert f"partition {disk.name}p1" in findings(root, disk)


def contract_data_without_signature_is_found(root: HostRoot, disk: Path) -> None:
    size = size_bytes(root, disk)
    for offset in (0, MIB - 1, size - MIB, size - 1):
        poke(disk, offset, b"x")
        assert "data without a known signature" in findings(root, disk), offset
        reset(root, disk)
    poke(disk, size // 3, b"x" * (size // 32))
    assert "data without a known signature at byte" in findings(root, disk)


def contract_cached_zeroes_do_not_hide_data(root: HostRoot, disk: Path) -> None:
    fd = os.open(disk, os.O_RDONLY)
    try:
        assert not any(os.pread(fd, MIB, 0))  # now the page cache holds zeroes
        direct = os.open(disk, os.O_WRONLY | os.O_DIRECT)
        os.close(direct)
        poke(disk, 4096, b"y" * 4096)
        assert findings(root, disk)
    finally:
        os.close(fd)


def contract_a_missing_device_is_not_blank(root: HostRoot, disk: Path) -> None:
    del disk
    assert "cannot be examined" in findings(root, root.dev / "no-such-disk")
    assert "cannot be examined" in findings(root, root.dev / "null")


def contract_nobody_holds_a_fresh_disk(root: HostRoot, disk: Path) -> None:
    settle()
    assert users(root, disk) == ()


def contract_mount_is_seen(root: HostRoot, disk: Path) -> None:
    with mounted(disk) as folder:
        assert f"mounted at {folder}" in in_words(users(root, disk))
        assert f"mounted at {folder}" in findings(root, disk)


def contract_mount_in_another_namespace_is_seen(root: HostRoot, disk: Path) -> None:
    with mounted(disk, "unshare", "-m") as folder:
        words = in_words(users(root, disk))
        assert f"mounted at {folder} in the mount namespace of " in words, words


def contract_bare_open_is_seen(root: HostRoot, disk: Path) -> None:
    with opener(disk) as pid:
        (found,) = users(root, disk)
        assert (found.kind, found.pid) == ("process", pid)
        assert found.who.startswith("open in python")
        assert f"(pid {pid})" in findings(root, disk)


def contract_open_by_another_node_is_seen(root: HostRoot, disk: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        node = Path(folder) / "other"
        os.mknod(node, 0o600 | 0o060000, disk.stat().st_rdev)
        try:
            with opener(node) as pid:
                assert [item.pid for item in users(root, disk)] == [pid]
        except PermissionError as error:
            raise Skipped(f"{folder} is mounted nodev") from error


def contract_generic_character_device_is_seen(root: HostRoot, disk: Path) -> None:
    node = root.dev / disk.name.replace("nvme", "ng", 1)
    if not disk.name.startswith("nvme") or not node.exists():
        raise Skipped("not an NVMe namespace")
    with opener(node) as pid:
        assert [item.pid for item in users(root, disk)] == [pid]


def contract_exclusive_open_is_seen(root: HostRoot, disk: Path) -> None:
    with opener(disk, "os.O_RDONLY | os.O_EXCL"):
        assert {item.kind for item in users(root, disk)} == {"process", "exclusive"}


def contract_loop_device_is_seen(root: HostRoot, disk: Path) -> None:
    result = subprocess.run(["losetup", "-f", "--show", str(disk)], capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise Skipped(f"no loop devices: {result.stderr}")
    loop = result.stdout.strip()
    try:
        assert f"behind loop device {loop}" in in_words(users(root, disk))
    finally:
        subprocess.run(["losetup", "-d", loop], check=True)


def contract_swap_is_seen(root: HostRoot, disk: Path) -> None:
    subprocess.run(["mkswap", str(disk)], check=True, capture_output=True)
    if subprocess.run(["swapon", str(disk)], check=False, capture_output=True).returncode != 0:
        raise Skipped("swapon is refused here")
    try:
        assert "used as swap" in in_words(users(root, disk))
    finally:
        subprocess.run(["swapoff", str(disk)], check=True)


def contract_device_mapper_is_seen(root: HostRoot, disk: Path) -> None:
    if not shutil.which("dmsetup"):
        raise Skipped("dmsetup is not installed")
    table = f"0 2048 linear {disk} 0"
    made = subprocess.run(["dmsetup", "create", "contract", "--table", table], check=False, capture_output=True)
    if made.returncode != 0:
        raise Skipped("this kernel has no device-mapper")
    try:
        assert "(contract)" in in_words(users(root, disk))
    finally:
        subprocess.run(["dmsetup", "remove", "--retry", "contract"], check=True)


def contract_use_of_a_partition_is_use_of_its_disk(root: HostRoot, disk: Path) -> None:
    claimed(root, disk)
    one, two = volume(2), volume(3, 18 * MIB)
    first = gpt.add_partition(root, disk, one, disk_guid=GUID)
    second = gpt.add_partition(root, disk, two, disk_guid=GUID)
    settle()
    with opener(root.dev / first.device) as pid:
        assert [item.pid for item in users(root, disk)] == [pid]
        assert [item.pid for item in users(root, root.dev / first.device)] == [pid]
        assert users(root, root.dev / second.device) == ()


CONTRACTS = [value for name, value in list(globals().items()) if name.startswith("contract_")]
