from __future__ import annotations

import pytest

from kubeflash.host.nvme import find_ssds
from kubeflash.host.pci import read_pci_devices
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
    *several, none = find_ssds(server.root)
    assert [ssd.id for ssd in several] == ["A-1", "A-2", "A-10"]
    assert {ssd.controller for ssd in several} == {"nvme0"}
    assert (none.id, none.serial, none.bytes, none.namespace_id) == ("B-0", "B", 0, 0)
    assert (none.device_name, none.dev_t, none.controller) == ("", (0, 0), "nvme1")
    assert "nvme create-ns" in none.trouble


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


def test_two_ssds_with_one_eui_are_both_out_of_use(server: MadeUpServer):
    for number in (1, 2):
        server.ssd(slot(server, number), f"S{number}", [Namespace(eui=EUI)])
    one, other = find_ssds(server.root)
    assert (one.id, other.id) == ("eui.0025385a21401234@0000:01:00.0-1", "eui.0025385a21401234@0000:02:00.0-1")
    assert "another SSD has its id" in one.trouble
    assert "another SSD has its id" in other.trouble


def test_two_ssds_with_one_serial_of_which_one_has_an_eui_are_told_apart(server: MadeUpServer):
    server.ssd(slot(server, 1), "CLONE", [Namespace(eui=EUI)])
    server.ssd(slot(server, 2), "CLONE")
    assert [(ssd.id, ssd.trouble) for ssd in find_ssds(server.root)] == [("eui.0025385a21401234", ""), ("CLONE-1", "")]


def test_two_controllers_of_one_serial_without_namespaces_are_told_apart(server: MadeUpServer):
    for number in (1, 2):
        server.ssd(slot(server, number), "CLONE", [])
    server.ssd(slot(server, 3), "", [])
    found = find_ssds(server.root)
    assert [ssd.id for ssd in found] == ["CLONE-0@0000:01:00.0-0", "CLONE-0@0000:02:00.0-0", "@0000:03:00.0-0"]
    assert all("it has no namespace" in ssd.trouble for ssd in found)


# --- several controllers of one SSD ---


def test_a_controller_whose_twin_has_the_namespaces_is_no_empty_ssd(server: MadeUpServer):
    server.ssd(slot(server, 1), "DUAL", nqn="nqn.x:dual")
    server.ssd(slot(server, 2), "DUAL", [], nqn="nqn.x:dual")
    assert [ssd.id for ssd in find_ssds(server.root)] == ["DUAL-1"]


def test_without_multipathing_a_namespace_is_several_disks_and_none_is_used(server: MadeUpServer):
    for number in (1, 2):
        server.ssd(slot(server, number), "DUAL", nqn="nqn.x:dual")
    one, other = find_ssds(server.root)
    assert "nvme_core.multipath=Y" in one.trouble
    assert "nvme0n1, nvme1n1" in one.trouble
    assert one.trouble == other.trouble
    assert one.id != other.id


def test_a_dual_port_ssd_is_where_its_working_controller_is(server: MadeUpServer):
    server.ssd(slot(server, 1), "DUAL", subsystem=0, state="dead")
    server.ssd(slot(server, 2), "DUAL", subsystem=0)
    (ssd,) = find_ssds(server.root)
    assert (ssd.pci.address, ssd.controller, ssd.state, ssd.trouble) == ("0000:02:00.0", "nvme1", "live", "")


def test_a_dual_port_ssd_with_no_controller_that_works(server: MadeUpServer):
    server.ssd(slot(server, 1), "DUAL", subsystem=0, state="dead")
    server.ssd(slot(server, 2), "DUAL", subsystem=0, state="resetting")
    (ssd,) = find_ssds(server.root)
    assert (ssd.pci.address, ssd.state) == ("0000:01:00.0", "dead")
    assert "reseat" in ssd.trouble


def test_virtual_functions_with_shared_and_private_namespaces(server: MadeUpServer):
    port = server.ports("pci0000:00/0000:00:01.0", [ROOT_PORT])
    server.ssd(f"{port}/0000:01:00.0", "SRIOV", [Namespace(1)], subsystem=0)
    for function, namespaces in ((1, [Namespace(1), Namespace(2)]), (2, [Namespace(1), Namespace(3)]), (3, [])):
        server.ssd(f"{port}/0000:01:00.{function}", "SRIOV", namespaces, subsystem=0)
        server.share(f"{port}/0000:01:00.{function}", "0000:01:00.0")
    found = find_ssds(server.root)
    assert [(ssd.id, ssd.pci.address, ssd.pci.physical_function, ssd.trouble) for ssd in found] == [
        ("SRIOV-1", "0000:01:00.0", "", ""),
        ("SRIOV-2", "0000:01:00.1", "0000:01:00.0", ""),
        ("SRIOV-3", "0000:01:00.2", "0000:01:00.0", ""),
    ]


def test_virtual_functions_without_namespaces_are_no_ssds(server: MadeUpServer):
    port = server.ports("pci0000:00/0000:00:01.0", [ROOT_PORT])
    server.ssd(f"{port}/0000:01:00.0", "SRIOV", [])
    server.ssd(f"{port}/0000:01:00.1", "SRIOV", [])
    server.share(f"{port}/0000:01:00.1", "0000:01:00.0")
    assert [(ssd.id, ssd.pci.address) for ssd in find_ssds(server.root)] == [("SRIOV-0", "0000:01:00.0")]


def test_a_path_whose_head_is_not_there_yet_is_no_empty_ssd(server: MadeUpServer):
    server.ssd(slot(server, 1), "DUAL", subsystem=0)
    (server.root.sys / "class/block/nvme0n1").unlink()
    assert find_ssds(server.root) == ()


def test_an_administrative_controller_has_no_namespaces_of_its_own(server: MadeUpServer):
    path = slot(server, 1)
    server.ssd(path, "ADMIN", [])
    server.write(f"sys/devices/{path}/nvme/nvme0/cntrltype", "admin\n")
    assert find_ssds(server.root) == ()


# --- controllers that do not work ---


@pytest.mark.parametrize("namespaces", [(Namespace(),), ()])
@pytest.mark.parametrize(
    ("state", "words"),
    [
        ("dead", "its controller is dead, it takes no commands: see dmesg, then reseat or replace it"),
        ("resetting", "its controller is resetting: if it stays so, see dmesg"),
        ("connecting", "its controller is connecting"),
        ("new", "its controller is new"),
        ("\x1b[31m", "its controller is \N{REPLACEMENT CHARACTER}[31m, it takes no commands"),
    ],
)
def test_a_controller_that_is_not_live(server: MadeUpServer, namespaces: tuple, state: str, words: str):
    server.ssd(slot(server, 1), "S", namespaces, state=state)
    (ssd,) = find_ssds(server.root)
    assert ssd.trouble.startswith(words)


@pytest.mark.parametrize("state", ["deleting", "deleting (no IO)"])
def test_a_controller_that_is_being_removed(server: MadeUpServer, state: str):
    server.ssd(slot(server, 1), "WITH", state=state)
    server.ssd(slot(server, 2), "WITHOUT", [], state=state)
    assert [(ssd.id, ssd.trouble) for ssd in find_ssds(server.root)] == [("WITH-1", "it is being removed")]


@pytest.mark.parametrize("attribute", ["state", "cntrltype", "subsysnqn"])
def test_what_old_kernels_do_not_say_is_no_trouble(server: MadeUpServer, attribute: str):
    path = slot(server, 1)
    server.ssd(path, "S")
    (server.root.sys / "devices" / path / "nvme/nvme0" / attribute).unlink()
    assert [(ssd.id, ssd.trouble) for ssd in find_ssds(server.root)] == [("S-1", "")]


# --- garbage ---


def test_what_a_drive_says_of_itself_can_be_garbage(server: MadeUpServer):
    path = slot(server, 1)
    server.ssd(path, "S")
    for name in ("serial", "model", "firmware_rev"):
        server.write(f"sys/devices/{path}/nvme/nvme0/{name}", b"A\x00\x1b[2J\xff" + b"B" * 5000)
    (ssd,) = find_ssds(server.root)
    assert ssd.serial.startswith("A\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}[2J")
    assert all(word.isprintable() and len(word) <= 256 for word in (ssd.serial, ssd.model, ssd.firmware))


@pytest.mark.parametrize(("size", "size_seen"), [("-8", 0), (str(1 << 70), 0), ("8", 4096)])
def test_a_size_that_cannot_be(server: MadeUpServer, size: str, size_seen: int):
    path = slot(server, 1)
    server.ssd(path, "S")
    server.write(f"sys/devices/{path}/nvme/nvme0/nvme0n1/size", f"{size}\n")
    (ssd,) = find_ssds(server.root)
    assert ssd.bytes == size_seen
    assert bool(ssd.trouble) is (size_seen == 0)


@pytest.mark.parametrize(
    ("name", "value"),
    [("size", "many"), ("nsid", "0"), ("nsid", "-1"), ("nsid", str(1 << 32)), ("dev", "259"), ("dev", "\xff:\xfe")],
)
def test_a_namespace_that_cannot_be_is_left_out_and_its_ssd_is_not_empty(server: MadeUpServer, name: str, value: str):
    path = slot(server, 1)
    server.ssd(path, "S", [Namespace(1), Namespace(2)])
    server.write(f"sys/devices/{path}/nvme/nvme0/nvme0n1/{name}", f"{value}\n")
    assert [ssd.id for ssd in find_ssds(server.root)] == ["S-2"]


def test_devices_that_are_known_already_are_not_read_again(server: MadeUpServer):
    server.ssd(slot(server, 1), "KNOWN")
    tree = read_pci_devices(server.root)
    server.ssd(slot(server, 2), "NEW")
    assert [ssd.serial for ssd in find_ssds(server.root, tree)] == ["KNOWN"]


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


@pytest.mark.parametrize(("said", "read_only"), [("0", False), ("1", True), (None, False)])
def test_an_ssd_that_lets_nobody_write(server: MadeUpServer, said: str | None, read_only: bool):
    path = slot(server, 1)
    server.ssd(path, "S")
    if said is not None:
        server.write(f"sys/devices/{path}/nvme/nvme0/nvme0n1/ro", f"{said}\n")
    (ssd,) = find_ssds(server.root)
    assert ssd.read_only is read_only


def test_a_machine_without_nvme(tmp_path):
    assert find_ssds(HostRoot(tmp_path)) == ()
