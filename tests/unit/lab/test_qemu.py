from __future__ import annotations

import json
from pathlib import Path

import pytest

from lab import pcie, qemu, spec
from lab.errors import LabError
from lab.image import ServerImage
from lab.qemu import Fault
from lab.spec import Ssd

IMAGE = ServerImage(Path("/c/root"), Path("/c/root.ext4"), Path("/c/vmlinux"), Path("/c/initramfs"))


SSD = Ssd("A", "K1", 1 << 30)


def words(name="gpu-a", run_dir=Path("/run/lab"), **wrong):
    one = spec.load(name)
    files = qemu.Files(run_dir, name)
    return qemu.command_line(one, IMAGE, Path("/c/app.ext4"), files, {"main": "tap0"}, pcie.layout(one).ssds, **wrong)


def documents(line, option):
    return [json.loads(line[n + 1]) for n, word in enumerate(line) if word == option]


@pytest.mark.parametrize("name", ["gpu-b", "strangers"])
def test_every_disk_has_a_block_node_and_every_block_node_a_holder_after_it(name):
    line = words(name, faults={("KFB0", 1): Fault(), ("KFC0", 32): Fault()})
    free: set[str] = set()
    for node in documents(line, "-blockdev"):
        free -= {below for key in ("file", "image") if isinstance(below := node.get(key), str)}
        free.add(node["node-name"])
    assert {device["drive"] for device in documents(line, "-device") if "drive" in device} == free


def test_a_fault_stands_between_a_namespace_and_its_file():
    files = qemu.Files(Path("/run/lab"), "s")
    file, disk = qemu.block_nodes(files, SSD, 1)
    assert (file["filename"], disk["file"]) == ("/run/lab/s/ssd-K1-n1.raw", file["node-name"])
    same, fault, broken = qemu.block_nodes(files, SSD, 1, Fault())
    assert (same, broken["node-name"]) == (file, disk["node-name"])
    assert (broken["file"], fault["image"]) == (fault["node-name"], file["node-name"])


@pytest.mark.parametrize(
    ("fault", "rules"),
    [
        (Fault(writes=False), {("read", None)}),
        (Fault(reads=False), {("write", None), ("write-zeroes", None), ("discard", None)}),
        (Fault(writes=False, sectors=(1, 9)), {("read", 1), ("read", 9)}),
        (Fault(sectors=(1,)), {("read", 1), ("write", 1), ("write-zeroes", 1), ("discard", 1)}),
    ],
)
def test_a_fault_fails_what_it_says_again_and_again(fault, rules):
    found = qemu.faulty_node(SSD, 1, fault)["inject-error"]
    assert {(rule["iotype"], rule.get("sector")) for rule in found} == rules
    assert {(rule["event"], rule["errno"], rule["once"]) for rule in found} == {("none", 5, False)}


@pytest.mark.parametrize("fault", [Fault(reads=False, writes=False), Fault(sectors=())])
def test_a_fault_of_nothing_is_refused(fault):
    with pytest.raises(LabError, match="is none"):
        qemu.faulty_node(SSD, 1, fault)


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
    assert qemu.mac_address("gpu-a") != qemu.mac_address("gpu-a", "storage") != qemu.mac_address("gpu-b", "storage")


def test_a_second_cable_is_a_second_card_after_the_first():
    one = spec.load("gpu-a")
    files = qemu.Files(Path("/run/lab"), "gpu-a")
    line = qemu.command_line(
        one, IMAGE, Path("/c/app.ext4"), files, {"main": "tap0", "storage": "sto0"}, pcie.layout(one).ssds
    )
    cards = [device for device in documents(line, "-device") if device["driver"] == "virtio-net-pci"]
    assert [card["id"] for card in cards] == [qemu.CARDS["main"], qemu.CARDS["storage"]]
    cables = [line[n + 1].split(",") for n, word in enumerate(line) if word == "-netdev"]
    assert [f"id={card['netdev']}" for card in cards] == [cable[1] for cable in cables]
    assert [cable[2] for cable in cables] == ["ifname=tap0", "ifname=sto0"]


def test_the_server_is_told_its_storage_address_if_it_has_one():
    numa = [{"node": 0}]
    two = spec.parse({"name": "s", "address": "10.77.0.9/24", "storage": "10.78.0.9/24", "numa": numa})
    assert "STORAGE=10.78.0.9/24\n" in qemu.facts(two, "10.77.0.1")
    one = spec.parse({"name": "s", "address": "10.77.0.9/24", "numa": numa})
    assert "STORAGE=\n" in qemu.facts(one, "10.77.0.1")


def test_a_node_has_its_disk_its_own_changes_over_it_and_is_told_who_it_is():
    node = qemu.Membership(Path("/c/node.ext4"), Path("/run/lab/kubelet.yaml"), Path("/run/lab/ca.crt"))
    line = words(node=node)
    (disk,) = [found for found in documents(line, "-blockdev") if found["node-name"] == "node"]
    assert (disk["driver"], disk["file"]["filename"]) == ("qcow2", "/run/lab/gpu-a/node.qcow2")
    assert [found["serial"] for found in documents(line, "-device") if found.get("drive") == "node"] == ["node"]
    assert "name=opt/kubeflash/kubelet,file=/run/lab/kubelet.yaml" in line
    assert "name=opt/kubeflash/ca,file=/run/lab/ca.crt" in line
    assert not [word for word in words() if "node.qcow2" in word or "kubelet" in word]
