from __future__ import annotations

import pytest

from kubeflash.host.nvme import find_ssds
from kubeflash.host.root import HostRoot
from support.sysfs_builder import ROOT_PORT, MadeUpServer, Namespace

EUI = "00 25 38 5a 21 40 12 34"
NGUID = "36344830-5263-0001-0025-384500000001"


def slot(server: MadeUpServer, number: int) -> str:
    """The path of a device behind root port `number`."""
    return f"{server.ports(f'pci0000:00/0000:00:{number:02x}.0', [ROOT_PORT])}/0000:{number:02x}:00.0"


def test_an_ssd(server: MadeUpServer):
    server.ssd(slot(server, 1), "S64HNE0R", numa=0)
    (ssd,) = find_ssds(server.root)
    assert (ssd.id, ssd.serial, ssd.model, ssd.firmware) == ("S64HNE0R-1", "S64HNE0R", "MADE UP MODEL", "1.0")
    assert (ssd.bytes, ssd.namespace_id) == (1_024_000_000, 1)
    assert (ssd.device_name, ssd.dev_t) == ("nvme0n1", (259, 1))
    assert (ssd.pci.address, ssd.pci.numa_node) == ("0000:01:00.0", 0)
    assert ssd.trouble == ""


@pytest.mark.parametrize(
    ("namespace", "expected"),
    [
        (Namespace(eui=EUI, nguid=NGUID), "eui.0025385a21401234"),
        (Namespace(nguid=NGUID), "nguid.36344830526300010025384500000001"),
        (Namespace(eui="00 00 00 00 00 00 00 00", nguid=NGUID), "nguid.36344830526300010025384500000001"),
        (Namespace(eui="ff ff ff ff ff ff ff ff"), "SERIAL-1"),
        (Namespace(eui="rubbish", nguid="00000000-0000-0000-0000-000000000000"), "SERIAL-1"),
        (Namespace(nsid=7), "SERIAL-7"),
    ],
)
def test_the_id_of_an_ssd(server: MadeUpServer, namespace: Namespace, expected: str):
    server.ssd(slot(server, 1), "SERIAL", [namespace])
    assert [ssd.id for ssd in find_ssds(server.root)] == [expected]


def test_an_ssd_with_several_namespaces_and_one_with_none(server: MadeUpServer):
    server.ssd(slot(server, 1), "A", [Namespace(2), Namespace(10), Namespace(1)])
    server.ssd(slot(server, 2), "B", [])
    assert [ssd.id for ssd in find_ssds(server.root)] == ["A-1", "A-2", "A-10"]


def test_a_namespace_below_its_subsystem(server: MadeUpServer):
    server.ssd(slot(server, 1), "PLAIN")
    server.ssd(slot(server, 2), "DUAL", [Namespace(1), Namespace(2)], subsystem=5)
    found = find_ssds(server.root)
    assert [(ssd.id, ssd.device_name, ssd.pci.address) for ssd in found] == [
        ("PLAIN-1", "nvme0n1", "0000:01:00.0"),
        ("DUAL-1", "nvme5n1", "0000:02:00.0"),
        ("DUAL-2", "nvme5n2", "0000:02:00.0"),
    ]


def test_a_dual_port_ssd_with_both_ports_in_this_server_is_one(server: MadeUpServer):
    server.ssd(slot(server, 2), "DUAL", subsystem=0)
    server.ssd(slot(server, 1), "DUAL", subsystem=0)
    (ssd,) = find_ssds(server.root)
    assert (ssd.id, ssd.pci.address, ssd.trouble) == ("DUAL-1", "0000:01:00.0", "")


def test_a_controller_over_a_fabric_is_no_local_ssd(server: MadeUpServer):
    server.fabric_controller()
    server.ssd(slot(server, 1), "LOCAL")
    assert [ssd.serial for ssd in find_ssds(server.root)] == ["LOCAL"]


def test_two_ssds_with_one_id_are_both_out_of_use(server: MadeUpServer):
    server.ssd(slot(server, 1), "CLONE")
    server.ssd(slot(server, 2), "CLONE")
    server.ssd(slot(server, 3), "ONLY")
    one, other, only = find_ssds(server.root)
    assert (one.id, other.id) == ("CLONE-1@0000:01:00.0-1", "CLONE-1@0000:02:00.0-1")
    assert "0000:02:00.0 namespace 1" in one.trouble
    assert "0000:01:00.0 namespace 1" in other.trouble
    assert only.trouble == ""


def test_namespaces_of_one_ssd_with_one_eui_are_out_of_use(server: MadeUpServer):
    server.ssd(slot(server, 1), "S", [Namespace(1, eui=EUI), Namespace(2, eui=EUI)])
    found = find_ssds(server.root)
    assert len({ssd.id for ssd in found}) == 2
    assert all(ssd.trouble for ssd in found)


def test_an_ssd_without_any_identity_is_out_of_use(server: MadeUpServer):
    server.ssd(slot(server, 1), "")
    (ssd,) = find_ssds(server.root)
    assert "nothing says durably" in ssd.trouble
    assert ssd.id == "@0000:01:00.0-1"


def test_a_namespace_of_no_size_is_out_of_use(server: MadeUpServer):
    server.ssd(slot(server, 1), "S", [Namespace(sectors=0)])
    (ssd,) = find_ssds(server.root)
    assert "size is 0" in ssd.trouble


@pytest.mark.parametrize("attribute", ["nvme0n1/size", "nvme0n1/nsid", "nvme0n1/dev", "transport"])
def test_an_ssd_that_vanishes_while_it_is_read_is_left_out(server: MadeUpServer, attribute: str):
    first, second = slot(server, 1), slot(server, 2)
    server.ssd(first, "GOING")
    server.ssd(second, "STAYING")
    (server.root.sys / "devices" / first / "nvme/nvme0" / attribute).unlink()
    assert [ssd.serial for ssd in find_ssds(server.root)] == ["STAYING"]


@pytest.mark.parametrize("attribute", ["model", "firmware_rev"])
def test_what_is_said_in_passing_may_be_missing(server: MadeUpServer, attribute: str):
    path = slot(server, 1)
    server.ssd(path, "S")
    (server.root.sys / "devices" / path / "nvme/nvme0" / attribute).unlink()
    (ssd,) = find_ssds(server.root)
    assert "" in (ssd.model, ssd.firmware)


def test_a_machine_without_nvme(tmp_path):
    assert find_ssds(HostRoot(tmp_path)) == ()
