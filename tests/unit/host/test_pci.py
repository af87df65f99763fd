from __future__ import annotations

import pytest

from kubeflash.api.v1alpha1 import Distance
from kubeflash.host.pci import address_in, read_link, read_pci_devices
from kubeflash.host.root import HostRoot
from kubeflash.topology.distance import distance
from kubeflash.topology.tree import UNSAID, Hop, Link, PciDevice
from support.sysfs_builder import (
    DOWNSTREAM,
    INTEGRATED_ENDPOINT,
    ROOT_PORT,
    TO_PCI,
    UPSTREAM,
    MadeUpServer,
)

REDIRECT, VALIDATE = 0x001D, 0x0001  # ACS control: SV RR CR UF, and SV alone
SWITCH = "pci0000:4a/0000:4a:01.0/0000:4b:00.0/0000:4c:00.0"


def device(server: MadeUpServer, address: str) -> PciDevice:
    found = read_pci_devices(server.root).get(address)
    assert found is not None
    return found


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


def test_the_pci_device_in_a_path():
    assert address_in("devices/pci0000:00/0000:00:01.0/0000:01:00.0/nvme/nvme0") == "0000:01:00.0"
    assert address_in("devices/virtual/nvme-fabrics/ctl/nvme1") is None


# --- links, ACS, shares ---


def test_links_of_a_device_and_of_the_ports_above_it(server: MadeUpServer):
    server.ports(SWITCH, [ROOT_PORT, UPSTREAM, DOWNSTREAM])
    gpu = server.gpu(f"{SWITCH}/0000:4d:00.0")
    server.link(SWITCH, "32.0 GT/s PCIe x16")
    server.link(gpu, "2.5 GT/s PCIe x8", "32.0 GT/s PCIe x16")
    found = device(server, "0000:4d:00.0")
    assert found.link == Link(2.5, 8, 32.0, 16)
    assert [hop.link for hop in found.bridges] == [UNSAID, UNSAID, Link(32.0, 16, 32.0, 16)]
    assert device(server, "0000:4c:00.0").link == UNSAID, "a port's link may be the one below it: its hop says it"


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("16.0 GT/s PCIe x4", Link(16.0, 4, 16.0, 4)),
        ("8 GT/s x4", Link(8.0, 4, 8.0, 4)),  # kernels before 5.7
        ("64.0 GT/s PCIe x32", Link(64.0, 32, 64.0, 32)),
        ("Unknown x0", UNSAID),
        ("Unknown speed x255", UNSAID),
        ("Unknown x63", UNSAID),
        ("rubbish xrubbish", UNSAID),
        ("0.0 GT/s PCIe x-1", UNSAID),
        ("99999 GT/s PCIe x4", Link(None, 4, None, 4)),
        ("\xff\xfe GT/s x4.5", UNSAID),
    ],
)
def test_what_a_link_says(server: MadeUpServer, said: str, expected: Link):
    server.link("card", said)
    assert read_link(f"{server.root.sys}/devices/card") == expected


def test_a_link_of_which_only_a_part_is_said(server: MadeUpServer):
    """hwloc's copies of /sys hold the current values alone."""
    server.link("card", "16.0 GT/s PCIe x4")
    for name in ("max_link_speed", "max_link_width", "current_link_width"):
        (server.root.sys / "devices/card" / name).unlink()
    assert read_link(f"{server.root.sys}/devices/card") == Link(speed=16.0)


@pytest.mark.parametrize(
    ("control", "readable", "expected"),
    [
        (REDIRECT, 4096, "Redirect"),
        (1 << 2, 4096, "Redirect"),  # requests alone
        (1 << 3, 4096, "Redirect"),  # completions alone
        (1 << 5, 4096, "Redirect"),  # egress control
        (VALIDATE, 4096, "Direct"),
        (None, 4096, "Direct"),  # no such capability
        (REDIRECT, 256, None),  # no way to the extended configuration space
        (REDIRECT, 64, None),  # not root
    ],
)
def test_whether_ports_redirect(server: MadeUpServer, control: int | None, readable: int, expected: str | None):
    server.ports(SWITCH, [ROOT_PORT, UPSTREAM, DOWNSTREAM], acs=control, readable=readable)
    server.gpu(f"{SWITCH}/0000:4d:00.0")
    assert {hop.acs for hop in device(server, "0000:4d:00.0").bridges} == {expected}


def test_a_conventional_bridge_says_nothing_of_acs(server: MadeUpServer):
    server.ports("pci0000:00/0000:00:1e.0", [TO_PCI])
    server.pci("pci0000:00/0000:00:1e.0/0000:05:00.0", "1a03", "2000", "030000", port_type=None)
    assert device(server, "0000:05:00.0").bridges == (Hop("0000:00:1e.0", "Bridge"),)


def test_a_share_names_its_owner(server: MadeUpServer):
    server.gpu("pci0000:00/0000:00:05.0")
    server.share(server.gpu("pci0000:00/0000:00:05.1"), "0000:00:05.0")
    broken = server.gpu("pci0000:00/0000:00:06.0")
    (server.root.sys / "devices" / broken / "physfn").symlink_to("../rubbish")
    owners = {item.address: item.physical_function for item in read_pci_devices(server.root)}
    assert owners == {"0000:00:05.0": "", "0000:00:05.1": "0000:00:05.0", "0000:00:06.0": ""}


def test_the_socket_is_that_of_the_numa_node(server: MadeUpServer):
    server.processors({0: "0-3", 1: "4-7"}, {0: "0-3", 1: "4-7"})
    server.gpu("pci0000:00/0000:00:05.0", numa=0)
    server.gpu("pci0000:80/0000:80:05.0", numa=1)
    server.gpu("pci0000:80/0000:80:06.0")
    assert [(gpu.numa_node, gpu.socket) for gpu in read_pci_devices(server.root)] == [(0, 0), (1, 1), (None, None)]


def test_a_copy_without_modalias_has_the_ids_one_by_one(server: MadeUpServer):
    path = server.gpu("pci0000:00/0000:00:05.0")
    (server.root.sys / "devices" / path / "modalias").unlink()
    for name, value in {"vendor": "0x10de", "device": "0x2330", "class": "0x030200"}.items():
        server.write(f"sys/devices/{path}/{name}", f"{value}\n")
    gpu = device(server, "0000:00:05.0")
    assert (gpu.vendor, gpu.device, gpu.class_code) == ("10de", "2330", "030200")
    server.write(f"sys/devices/{path}/class", "0x1030200\n")
    assert not read_pci_devices(server.root)


@pytest.mark.parametrize("address", ["10000:e1:00.0", "abcd1234:e1:1f.7"])
def test_domains_of_more_than_four_digits(server: MadeUpServer, address: str):
    server.gpu(f"pci0000:00/{address}")
    assert [gpu.address for gpu in read_pci_devices(server.root)] == [address]
