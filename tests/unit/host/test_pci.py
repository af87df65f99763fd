from __future__ import annotations

import pytest

from kubeflash.api.v1alpha1 import Distance
from kubeflash.host.pci import address_in, port_kind, read_pci_devices
from kubeflash.host.root import HostRoot
from kubeflash.topology.distance import distance
from kubeflash.topology.tree import Hop
from support.sysfs_builder import (
    DOWNSTREAM,
    ENDPOINT,
    INTEGRATED_ENDPOINT,
    ROOT_PORT,
    TO_PCI,
    UPSTREAM,
    MadeUpServer,
    config_space,
)

SWITCH = "pci0000:4a/0000:4a:01.0/0000:4b:00.0/0000:4c:00.0"


def test_the_path_of_a_device_behind_a_switch(server: MadeUpServer):
    server.ports(SWITCH, [ROOT_PORT, UPSTREAM, DOWNSTREAM])
    server.gpu(f"{SWITCH}/0000:4d:00.0", numa=1)
    gpu = read_pci_devices(server.root).get("0000:4d:00.0")
    assert gpu is not None
    assert (gpu.vendor, gpu.device, gpu.class_code) == ("10de", "2330", "030200")
    assert (gpu.root_complex, gpu.numa_node) == ("pci0000:4a", 1)
    assert gpu.path == (
        Hop("0000:4a:01.0", "RootPort"),
        Hop("0000:4b:00.0", "SwitchUpstream"),
        Hop("0000:4c:00.0", "SwitchDownstream"),
    )


def test_an_intel_vmd_is_part_of_the_host_bridge_that_it_hangs_on(server: MadeUpServer):
    vmd = server.pci("pci0000:e0/0000:e0:05.5", "8086", "28c0", "010400", port_type=INTEGRATED_ENDPOINT)
    for number in (2, 3):
        port = server.ports(f"{vmd}/pci10000:e0/10000:e0:{number:02x}.0", [ROOT_PORT])
        server.ssd(f"{port}/10000:e{number}:00.0", f"S{number}")
    tree = read_pci_devices(server.root)
    one, other = tree.get("10000:e2:00.0"), tree.get("10000:e3:00.0")
    assert one is not None
    assert other is not None
    assert one.root_complex == "pci0000:e0"
    assert one.path == (Hop("0000:e0:05.5", "Unknown"), Hop("10000:e0:02.0", "RootPort"))
    assert distance(one, other) is Distance.PHB


def test_a_host_bridge_below_other_devices(server: MadeUpServer):
    """Hyper-V and some ARM servers do not have their host bridges at the top of /sys/devices."""
    server.gpu("LNXSYSTM:00/VMBUS:00/47505500-0001/pci0001:00/0001:00:00.0")
    gpu = read_pci_devices(server.root).get("0001:00:00.0")
    assert gpu is not None
    assert (gpu.root_complex, gpu.path) == ("pci0001:00", ())


@pytest.mark.parametrize(
    ("online", "said", "expected"),
    [("0-1", None, None), ("0-1", 1, 1), ("0", None, 0), ("3", None, 3), ("0,2", None, None), ("", None, None)],
)
def test_the_numa_node_is_known_where_there_is_just_one(
    server: MadeUpServer, online: str, said: int | None, expected: int | None
):
    server.numa(online)
    server.gpu("pci0000:00/0000:00:05.0", numa=said)
    assert [gpu.numa_node for gpu in read_pci_devices(server.root)] == [expected]


def test_unprivileged_the_kinds_of_bridges_are_unknown(server: MadeUpServer):
    server.ports(SWITCH, [ROOT_PORT, UPSTREAM, DOWNSTREAM], readable=64)
    server.gpu(f"{SWITCH}/0000:4d:00.0")
    gpu = read_pci_devices(server.root).get("0000:4d:00.0")
    assert gpu is not None
    assert {hop.kind for hop in gpu.path} == {"Unknown"}


def test_a_device_that_vanishes_is_left_out(server: MadeUpServer):
    server.gpu("pci0000:00/0000:00:05.0")
    server.gpu("pci0000:00/0000:00:06.0")
    (server.root.sys / "devices/pci0000:00/0000:00:05.0/modalias").unlink()
    assert [gpu.address for gpu in read_pci_devices(server.root)] == ["0000:00:06.0"]
    assert not read_pci_devices(server.root, ["0000:00:07.0"])


def test_garbage_is_not_a_number(server: MadeUpServer):
    path = server.gpu("pci0000:00/0000:00:05.0", numa=0)
    server.write(f"sys/devices/{path}/numa_node", "zero\n")
    assert [gpu.numa_node for gpu in read_pci_devices(server.root)] == [None]
    server.write(f"sys/devices/{path}/modalias", b"\xff\xfe\x00")
    assert not read_pci_devices(server.root)


def test_a_link_out_of_the_root_is_not_followed(server: MadeUpServer):
    for name, target in (("0000:00:05.0", "/etc"), ("0000:00:06.0", "../../../../../../../etc")):
        (server.root.sys / "bus/pci/devices" / name).symlink_to(target)
    assert not read_pci_devices(server.root)


def test_a_machine_without_pci(tmp_path):
    assert not read_pci_devices(HostRoot(tmp_path))


@pytest.mark.parametrize(
    ("port_type", "kind"),
    [
        (ROOT_PORT, "RootPort"),
        (UPSTREAM, "SwitchUpstream"),
        (DOWNSTREAM, "SwitchDownstream"),
        (TO_PCI, "Bridge"),
        (8, "Bridge"),
        (None, "Bridge"),  # conventional PCI
        (ENDPOINT, "Unknown"),
        (15, "Unknown"),
    ],
)
def test_what_a_bridge_is(port_type: int | None, kind: str):
    content = config_space(port_type)
    assert port_kind(lambda offset, length: content[offset : offset + length]) == kind


@pytest.mark.parametrize(
    "content",
    [
        b"",
        config_space(ROOT_PORT, readable=64),
        config_space(ROOT_PORT, readable=0x62),
        b"\xff" * 256,  # a device that was pulled out
        config_space(None)[:0x41] + b"\x40" + config_space(None)[0x42:],  # capabilities in a ring
    ],
)
def test_what_cannot_be_read_is_unknown(content: bytes):
    assert port_kind(lambda offset, length: content[offset : offset + length]) == "Unknown"


def test_the_pci_device_in_a_path():
    assert address_in("devices/pci0000:00/0000:00:01.0/0000:01:00.0/nvme/nvme0") == "0000:01:00.0"
    assert address_in("devices/virtual/nvme-fabrics/ctl/nvme1") is None
