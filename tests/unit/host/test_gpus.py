from __future__ import annotations

import pytest

from kubeflash.host.gpus import BadGpuRule, GpuRules, find_gpus
from support.sysfs_builder import ROOT_PORT, MadeUpServer

BEHIND_A_PORT = "pci0000:00/0000:00:01.0/0000:01:00.0"


@pytest.mark.parametrize(
    ("vendor", "device", "class_code", "is_gpu"),
    [
        pytest.param("10de", "2330", "030200", True, id="NVIDIA H100"),
        pytest.param("10de", "2684", "030000", True, id="NVIDIA GeForce"),
        pytest.param("10de", "22bd", "040300", False, id="its audio function"),
        pytest.param("10de", "22a3", "068000", False, id="NVSwitch"),
        pytest.param("1002", "740f", "038000", True, id="AMD Instinct MI210"),
        pytest.param("1002", "74a1", "120000", True, id="AMD Instinct MI300X"),
        pytest.param("1002", "515e", "030000", False, id="ES1000, the VGA of a BMC"),
        pytest.param("8086", "0bd5", "038000", True, id="Intel Data Center GPU Max"),
        pytest.param("1a03", "2000", "030000", False, id="ASPEED, the VGA of a BMC"),
        pytest.param("102b", "0538", "030000", False, id="Matrox, the VGA of a BMC"),
        pytest.param("1234", "1111", "038000", False, id="QEMU's display, not configured"),
        pytest.param("144d", "a824", "010802", False, id="an SSD"),
    ],
)
def test_what_is_a_gpu(server: MadeUpServer, vendor: str, device: str, class_code: str, is_gpu: bool):
    server.ports("pci0000:00/0000:00:01.0", [ROOT_PORT])
    server.pci(BEHIND_A_PORT, vendor, device, class_code)
    assert bool(find_gpus(server.root, GpuRules())) is is_gpu


def test_further_gpus_are_those_of_a_vendor_and_one_class(server: MadeUpServer):
    server.pci("pci0000:00/0000:00:01.0", "1234", "1111", "030000")
    server.pci("pci0000:00/0000:00:02.0", "1234", "1111", "038000")
    found = find_gpus(server.root, GpuRules.parse([" 1234:0380 ", "1DA3:1200"]))
    assert [gpu.address for gpu in found] == ["0000:00:02.0"]


def test_intel_integrated_graphics_is_no_gpu_and_cards_are(server: MadeUpServer):
    server.pci("pci0000:00/0000:00:02.0", "8086", "4680", "030000")
    server.ports("pci0000:00/0000:00:01.0", [ROOT_PORT])
    server.pci(BEHIND_A_PORT, "8086", "56c0", "030000")
    assert [gpu.address for gpu in find_gpus(server.root, GpuRules())] == ["0000:01:00.0"]


def test_a_gpu_on_the_root_bus_of_a_virtual_machine_counts(server: MadeUpServer):
    server.gpu("pci0000:00/0000:00:02.0")
    assert len(find_gpus(server.root, GpuRules())) == 1


def test_virtual_functions_are_not_counted_beside_their_gpu(server: MadeUpServer):
    server.ports("pci0000:00/0000:00:01.0", [ROOT_PORT])
    server.gpu("pci0000:00/0000:00:01.0/0000:01:00.0")
    share = server.gpu("pci0000:00/0000:00:01.0/0000:01:00.4")
    (server.root.sys / "devices" / share / "physfn").symlink_to("../0000:01:00.0")
    assert [gpu.address for gpu in find_gpus(server.root, GpuRules())] == ["0000:01:00.0"]


@pytest.mark.parametrize("entry", ["", "1234", "1234:", "1234:038000", "10dg:0302", "1234:0380:00"])
def test_a_rule_that_cannot_be_read_is_refused_with_an_example(entry: str):
    with pytest.raises(BadGpuRule, match="1234:0380"):
        GpuRules.parse([entry])
