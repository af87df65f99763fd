"""A server as `kubectl flash --local` and `--sysfs` read it."""

from __future__ import annotations

from pathlib import Path

import pytest

from kubeflash.host.listing import read_listing
from kubeflash.host.root import HostRoot
from kubeflash.topology.devices import GpuRules
from kubeflash.topology.server import Facts
from support.sysfs_builder import DOWNSTREAM, ROOT_PORT, UPSTREAM, MadeUpServer, Namespace

SWITCH = "pci0000:4a/0000:4a:01.0/0000:4b:00.0"
UUID = "GPU-7f2c1a90-1b2c-4d5e-8f90-a1b2c3d4e5f6"


@pytest.fixture
def machine(server: MadeUpServer) -> MadeUpServer:
    """A GPU and an SSD behind one switch, on the only node of the only socket."""
    return furnish(server)


def furnish(server: MadeUpServer, *, readable: int = 4096) -> MadeUpServer:
    server.write("proc/sys/kernel/hostname", "gpu-a\n")
    server.processors({0: "0-3"}, {0: "0-3"})
    server.ports(SWITCH, [ROOT_PORT, UPSTREAM], readable=readable)
    for number, fill in enumerate((server.gpu, lambda path: server.ssd(path, "S1", [Namespace(1), Namespace(2)]))):
        port = server.ports(f"{SWITCH}/0000:4c:{number:02x}.0", [DOWNSTREAM], readable=readable)
        path = f"{port}/0000:{0x4D + number:02x}:00.0"
        fill(path)
        server.link(path, "16.0 GT/s PCIe x4")
    text = f"Model: NVIDIA H100\nGPU UUID: {UUID}\n"
    server.write("proc/driver/nvidia/gpus/0000:4d:00.0/information", text)
    return server


def test_a_server(machine: MadeUpServer):
    listing = read_listing(machine.root)
    assert (listing.name, listing.source, listing.kernel) == ("gpu-a", "sysfs", "6.12")
    assert listing.unsaid == ()
    assert len(listing.devices) == 6, "bridges too"
    server = listing.server()
    assert (server.gpus, server.ssds) == (("0000:4d:00.0",), ("0000:4e:00.0",))
    assert server.fact("0000:4d:00.0") == Facts(model="NVIDIA H100", uuid=UUID)
    assert server.fact("0000:4e:00.0") == Facts(model="MADE UP MODEL", serial="S1", id="S1-1", bytes=2 * 1_024_000_000)
    ssd = server.device("0000:4e:00.0")
    assert (ssd.numa_node, ssd.socket, ssd.link.width) == (0, 0, 4)
    assert [hop.kind for hop in ssd.bridges] == ["RootPort", "SwitchUpstream", "SwitchDownstream"]
    assert {hop.acs for hop in ssd.bridges} == {"Direct"}


def test_the_name_of_a_machine_that_is_not_running(machine: MadeUpServer):
    (machine.root.path / "proc/sys/kernel/hostname").unlink()
    assert read_listing(machine.root).name == ""
    machine.write("etc/hostname", "gpu-\x1b[2Jb\n")
    assert read_listing(machine.root).name == "gpu- [2Jb"


def test_a_copy_of_sys_alone(machine: MadeUpServer):
    listing = read_listing(HostRoot.of(machine.root.sys))
    assert (listing.name, listing.kernel) == ("", "")
    assert [said for said in listing.unsaid if "no /proc" in said]
    assert listing.devices == read_listing(machine.root).devices
    assert listing.facts["0000:4e:00.0"].serial == "S1"


def test_who_is_not_root_is_told_what_is_missing(server: MadeUpServer):
    listing = read_listing(furnish(server, readable=64).root)
    (said,) = listing.unsaid
    assert "takes root" in said
    assert "ACS" in said
    assert listing.server().has_switches, "the structure says it"


def test_a_machine_that_shows_no_extended_configuration_space(server: MadeUpServer):
    (said,) = read_listing(furnish(server, readable=256).root).unsaid
    assert said == "Whether ports redirect peer-to-peer requests (ACS) is not said by all of them."


def test_firmware_that_does_not_say_numa_nodes(machine: MadeUpServer):
    machine.processors({0: "0-3", 1: "4-7"}, {0: "0-3", 1: "4-7"})
    (said,) = read_listing(machine.root).unsaid
    assert "NUMA" in said


def test_an_ssd_of_a_virtual_machine(machine: MadeUpServer):
    path = machine.pci("pci0000:4a/0000:4a:02.0", "144d", "a824", "010802")
    listing = read_listing(machine.root)
    assert listing.facts["0000:4a:02.0"] == Facts()
    (machine.root.sys / "devices" / path / "driver").symlink_to("../../../bus/pci/drivers/vfio-pci")
    listing = read_listing(machine.root)
    assert listing.facts["0000:4a:02.0"].reason == "its driver is vfio-pci, not nvme: the kernel has no disk of it"
    (machine.root.sys / "devices" / path / "driver").unlink()
    (machine.root.sys / "devices" / path / "driver").symlink_to("../../../bus/pci/drivers/nvme")
    assert read_listing(machine.root).facts["0000:4a:02.0"].reason == ""


def test_an_ssd_that_cannot_be_used_says_why(machine: MadeUpServer):
    machine.ssd("pci0000:4a/0000:4a:02.0", "EMPTY", [])
    assert "it has no namespace" in read_listing(machine.root).facts["0000:4a:02.0"].reason


def test_rules_say_later_what_is_a_gpu(machine: MadeUpServer):
    machine.pci("pci0000:4a/0000:4a:03.0", "1234", "1111", "038000")
    machine.write("usr/share/misc/pci.ids", "1234  Technical Corp.\n\t1111  QEMU Virtual Video Controller\n")
    listing = read_listing(machine.root)
    assert listing.server().gpus == ("0000:4d:00.0",)
    assert listing.server(GpuRules.parse(["1234:0380"])).gpus == ("0000:4a:03.0", "0000:4d:00.0")
    assert listing.facts["0000:4a:03.0"].model == "QEMU Virtual Video Controller"


def test_no_file_is_left_open(machine: MadeUpServer):
    before = len(list(Path("/proc/self/fd").iterdir()))
    read_listing(machine.root)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_this_very_machine():
    listing = read_listing(HostRoot())
    assert listing.name
    assert listing.kernel


def test_an_empty_machine(tmp_path):
    assert read_listing(HostRoot(tmp_path)).devices == ()
