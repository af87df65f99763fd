from __future__ import annotations

import json
from pathlib import Path

import pytest

from lab import pcie, qemu, spec
from lab.errors import LabError
from lab.image import ServerImage

IMAGE = ServerImage(Path("/c/root"), Path("/c/root.ext4"), Path("/c/vmlinux"), Path("/c/initramfs"))


def words(name="gpu-a", run_dir=Path("/run/lab")):
    one = spec.load(name)
    files = qemu.Files(run_dir, name)
    return qemu.command_line(one, IMAGE, Path("/c/app.ext4"), files, "tap0", pcie.layout(one).ssds)


def test_every_disk_has_a_block_node_and_every_block_node_a_disk():
    line = words("gpu-b")
    nodes = {json.loads(line[n + 1])["node-name"] for n, word in enumerate(line) if word == "-blockdev"}
    devices = [json.loads(line[n + 1]) for n, word in enumerate(line) if word == "-device"]
    assert {device["drive"] for device in devices if "drive" in device} == nodes


def test_the_code_is_read_only():
    line = words()
    (app,) = (block for block in map(json.loads, (word for word in line if '"app"' in word)) if "file" in block)
    assert app["read-only"] is True


def test_a_path_too_long_for_a_unix_socket_is_refused():
    with pytest.raises(LabError, match="longer than"):
        words(run_dir=Path("/" + "x" * 100))


def test_the_server_is_told_which_disk_it_boots_from():
    assert "SYSTEM_SERIAL=KFSYS\n" in qemu.facts(spec.load("gpu-a"), "10.77.0.1")
    assert "SYSTEM_SERIAL=\n" in qemu.facts(spec.load("gpu-b"), "10.77.0.1")


def test_mac_addresses_differ_and_stay():
    assert qemu.mac_address("gpu-a") == qemu.mac_address("gpu-a") != qemu.mac_address("gpu-b")
    assert qemu.mac_address("gpu-a").startswith("52:54:00:")
