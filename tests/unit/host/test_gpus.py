from __future__ import annotations

import pytest

from kubeflash.host.gpus import NO_GPU_FACTS, GpuFacts, gpu_facts
from kubeflash.host.pci import read_pci_devices
from kubeflash.host.root import HostRoot
from kubeflash.topology.devices import GpuRules
from kubeflash.topology.errors import BadGpuRule
from kubeflash.topology.tree import PciDevice
from support.sysfs_builder import ROOT_PORT, MadeUpServer

BEHIND_A_PORT = "pci0000:00/0000:00:01.0/0000:01:00.0"
UUID = "GPU-7f2c1a90-1b2c-4d5e-8f90-a1b2c3d4e5f6"
INFORMATION = """Model: \t\t NVIDIA H100 80GB HBM3
IRQ:   \t\t 133
GPU UUID: \t {uuid}
Video BIOS: \t 96.00.89.00.01
Bus Type: \t PCIe
DMA Size: \t 52 bits
DMA Mask: \t 0xfffffffffffff
Bus Location: \t {location}
Device Minor: \t {minor}
GPU Firmware: \t 535.161.08
GPU Excluded:\t No
"""
PCI_IDS = """# a list
1002  Advanced Micro Devices, Inc. [AMD/ATI]
\t740f  Aldebaran/MI200 [Instinct MI210]
10de  NVIDIA Corporation
\t22a3  GH100 [H100 NVSwitch]
\t2330  GH100[H100 SXM5 80GB]
\t\t10de 16c1  H100 with a subsystem
\t2331  GH100
1234  Technical Corp.
\t1111  QEMU Virtual Video Controller
C 03  Display controller
\t2330  no device
"""


def find_gpus(root: HostRoot, rules: GpuRules) -> list[PciDevice]:
    return [device for device in read_pci_devices(root) if rules.is_gpu(device)]


def facts(server: MadeUpServer) -> dict[str, GpuFacts]:
    return gpu_facts(server.root, find_gpus(server.root, GpuRules.parse(["1234:0380"])))


def nvidia(server: MadeUpServer, folder: str, *, uuid: str = UUID, location: str = "", minor: str = "3") -> None:
    text = INFORMATION.format(uuid=uuid, location=location or folder, minor=minor)
    server.write(f"proc/driver/nvidia/gpus/{folder}/information", text)


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
    server.share(server.gpu("pci0000:00/0000:00:01.0/0000:01:00.4"), "0000:01:00.0")
    assert [gpu.address for gpu in find_gpus(server.root, GpuRules())] == ["0000:01:00.0"]


@pytest.mark.parametrize("entry", ["", "1234", "1234:", "1234:038000", "10dg:0302", "1234:0380:00"])
def test_a_rule_that_cannot_be_read_is_refused_with_an_example(entry: str):
    with pytest.raises(BadGpuRule, match="1234:0380"):
        GpuRules.parse([entry])


# --- what drivers say ---


@pytest.mark.parametrize(
    ("folder", "location"),
    [
        ("0000:01:00.0", ""),
        ("0000:01:00.0", "rubbish"),
        ("00000000:01:00.0", ""),  # as nvidia-smi writes it
        ("gpu0", "0000:01:00.0"),
    ],
)
def test_nvidias_driver(server: MadeUpServer, folder: str, location: str):
    server.gpu(BEHIND_A_PORT)
    nvidia(server, folder, location=location)
    assert facts(server) == {"0000:01:00.0": GpuFacts(UUID, 3, "NVIDIA H100 80GB HBM3")}


def test_an_address_in_capitals(server: MadeUpServer):
    server.gpu("pci10000:00/10000:ab:00.0")
    nvidia(server, "10000:AB:00.0")
    assert facts(server)["10000:ab:00.0"].uuid == UUID


def test_a_gpu_that_is_not_initialised(server: MadeUpServer):
    server.gpu(BEHIND_A_PORT)
    nvidia(server, "0000:01:00.0", uuid="GPU-????????-????-????-????-????????????", minor="")
    assert facts(server) == {"0000:01:00.0": GpuFacts("", None, "NVIDIA H100 80GB HBM3")}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", NO_GPU_FACTS),
        ("Model\nGPU UUID\n", NO_GPU_FACTS),
        ("Model: Unknown\nGPU UUID: N/A\nDevice Minor: -1\n", NO_GPU_FACTS),
        ("Device Minor: 99999999999999999999\n", NO_GPU_FACTS),
        ("Model: Tesla V100-SXM2-16GB\n", GpuFacts(model="NVIDIA Tesla V100-SXM2-16GB")),
        ("Model: \x1b[31mred\x07\n", GpuFacts(model="NVIDIA [31mred")),
    ],
)
def test_what_a_driver_says_can_be_garbage(server: MadeUpServer, text: str, expected: GpuFacts):
    server.gpu(BEHIND_A_PORT)
    server.write("proc/driver/nvidia/gpus/0000:01:00.0/information", text)
    server.write("proc/driver/nvidia/gpus/rubbish/information", INFORMATION)
    assert facts(server) == {"0000:01:00.0": expected}


def amd(server: MadeUpServer, node: int, **properties: int) -> None:
    text = "".join(f"{name} {value}\n" for name, value in {"cpu_cores_count": 0, **properties}.items())
    server.write(f"sys/class/kfd/kfd/topology/nodes/{node}/properties", text)


def test_amds_compute_driver(server: MadeUpServer):
    for bus in ("03", "83"):
        server.pci(f"pci0000:00/0000:{bus}:00.0", "1002", "740f", "038000")
    server.write("sys/devices/pci0000:00/0000:03:00.0/product_name", "Instinct MI210\n")
    amd(server, 0, unique_id=0, location_id=0)  # a processor
    amd(server, 1, unique_id=0x1234567890ABCDEF, location_id=0x0300, domain=0)
    amd(server, 2, unique_id=0xFEDC, location_id=0x8300, domain=0)
    server.write("sys/class/kfd/kfd/topology/nodes/3/properties", "unique_id\nlocation_id x\n\xff\n")
    assert facts(server) == {
        "0000:03:00.0": GpuFacts("GPU-1234567890abcdef", None, "AMD Instinct MI210"),
        "0000:83:00.0": GpuFacts("GPU-000000000000fedc"),
    }


def test_an_amd_gpu_in_another_domain(server: MadeUpServer):
    server.pci("pci0001:00/0001:03:00.1", "1002", "74a1", "120000")
    amd(server, 1, unique_id=1, location_id=0x0301, domain=1)
    assert facts(server)["0001:03:00.1"].uuid == "GPU-0000000000000001"


@pytest.mark.parametrize(("said", "uuid"), [("a1b2\n", "GPU-000000000000a1b2"), ("0\n", ""), ("rubbish\n", "")])
def test_amds_unique_id_without_the_compute_driver(server: MadeUpServer, said: str, uuid: str):
    server.pci("pci0000:00/0000:03:00.0", "1002", "740f", "038000")
    server.write("sys/devices/pci0000:00/0000:03:00.0/unique_id", said)
    assert facts(server)["0000:03:00.0"].uuid == uuid


@pytest.mark.parametrize("place", ["usr/share/misc/pci.ids", "usr/share/hwdata/pci.ids"])
@pytest.mark.parametrize(
    ("vendor", "device", "class_code", "model"),
    [
        ("10de", "2330", "030200", "NVIDIA H100 SXM5 80GB"),
        ("10de", "2331", "030200", "NVIDIA GH100"),
        ("10de", "16c1", "030200", ""),
        ("1002", "740f", "038000", "AMD Instinct MI210"),
        ("1002", "2330", "038000", ""),
        ("1234", "1111", "038000", "QEMU Virtual Video Controller"),
        ("8086", "0bd5", "038000", ""),
    ],
)
def test_without_a_driver_the_list_of_pci_ids_has_the_model(
    server: MadeUpServer, place: str, vendor: str, device: str, class_code: str, model: str
):
    server.write(place, PCI_IDS)
    server.ports("pci0000:00/0000:00:01.0", [ROOT_PORT])
    server.pci(BEHIND_A_PORT, vendor, device, class_code)
    assert facts(server) == {"0000:01:00.0": GpuFacts(model=model)}


def test_a_list_of_pci_ids_that_was_updated_is_read_again(server: MadeUpServer):
    server.gpu(BEHIND_A_PORT)
    server.write("usr/share/misc/pci.ids", b"\xff\xfe\x00")
    assert facts(server)["0000:01:00.0"].model == ""
    server.write("usr/share/misc/pci.ids", "10de  NVIDIA\n\t2330  New name [New name]")
    assert facts(server)["0000:01:00.0"].model == "NVIDIA New name"
