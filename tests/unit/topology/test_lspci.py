"""lspci's text. All machines here are synthetic; the forms are those of pciutils 3.5 to 3.13.

`SWITCHED` is, but for lines that do not count, what lspci 3.9 itself prints of made-up configuration spaces.
"""

from __future__ import annotations

import itertools
import random
import re

import pytest

from kubeflash.topology.distance import Distance, distance
from kubeflash.topology.errors import BadDump
from kubeflash.topology.lspci import parse
from kubeflash.topology.server import Facts, Listing
from kubeflash.topology.tree import UNSAID, Link

SWITCHED = """\
00:00.0 Host bridge [0600]: Intel Corporation Ice Lake Memory Map/VT-d [8086:09a2] (rev a1)
	Control: I/O- Mem+ BusMaster+ SpecCycle- MemWINV- VGASnoop- ParErr- Stepping- SERR- FastB2B- DisINTx-
	Status: Cap+ 66MHz- UDF- FastB2B- ParErr- DEVSEL=fast >TAbort- <TAbort- <MAbort- >SERR- <PERR- INTx-
	NUMA node: 0

48:01.0 PCI bridge [0604]: Intel Corporation Device [8086:352a] (rev a1) (prog-if 00 [Normal decode])
	Control: I/O- Mem+ BusMaster+ SpecCycle- MemWINV- VGASnoop- ParErr- Stepping- SERR- FastB2B- DisINTx-
	NUMA node: 1
	Bus: primary=48, secondary=49, subordinate=4e, sec-latency=0
	Capabilities: [40] Express (v2) Root Port (Slot+), MSI 00
		LnkCap:	Port #0, Speed 32GT/s, Width x16, ASPM not supported
		LnkSta:	Speed 32GT/s, Width x16
			TrErr- Train- SlotClk- DLActive- BWMgmt- ABWMgmt-
		LnkSta2: Current De-emphasis Level: -6dB, EqualizationComplete- EqualizationPhase1-
	Capabilities: [100 v2] Advanced Error Reporting
	Capabilities: [140 v1] Access Control Services
		ACSCap:	SrcValid+ TransBlk+ ReqRedir+ CmpltRedir+ UpstreamFwd+ EgressCtrl- DirectTrans+
		ACSCtl:	SrcValid+ TransBlk- ReqRedir+ CmpltRedir+ UpstreamFwd+ EgressCtrl- DirectTrans-
	Kernel driver in use: pcieport

49:00.0 PCI bridge [0604]: Broadcom / LSI PEX890xx PCIe Gen 5 Switch [1000:c030] (rev a1) (prog-if 00 [Normal decode])
	Bus: primary=49, secondary=4a, subordinate=4e, sec-latency=0
	Capabilities: [40] Express (v2) Upstream Port, MSI 00
		LnkCap:	Port #0, Speed 32GT/s, Width x16, ASPM not supported
		LnkSta:	Speed 32GT/s (ok), Width x16 (ok)
	Capabilities: [100 v2] Advanced Error Reporting

4a:00.0 PCI bridge [0604]: Broadcom / LSI PEX890xx PCIe Gen 5 Switch [1000:c030] (rev a1) (prog-if 00 [Normal decode])
	Bus: primary=4a, secondary=4b, subordinate=4b, sec-latency=0
	Capabilities: [40] Express (v2) Downstream Port (Slot+), MSI 00
		LnkCap:	Port #0, Speed 32GT/s, Width x16, ASPM not supported
		LnkSta:	Speed 8GT/s (downgraded), Width x4 (downgraded)
	Capabilities: [100 v2] Advanced Error Reporting
	Capabilities: [140 v1] Access Control Services
		ACSCtl:	SrcValid- TransBlk- ReqRedir- CmpltRedir- UpstreamFwd- EgressCtrl- DirectTrans-

4a:03.0 PCI bridge [0604]: Broadcom / LSI PEX890xx PCIe Gen 5 Switch [1000:c030] (rev a1) (prog-if 00 [Normal decode])
	Bus: primary=4a, secondary=4e, subordinate=4e, sec-latency=0
	Capabilities: [40] Express (v2) Downstream Port (Slot+), MSI 00
	Capabilities: [100 v2] Advanced Error Reporting

4b:00.0 Non-Volatile memory controller [0108]: Samsung Electronics Co Ltd PM173X [144d:a824] (prog-if 02 [NVM Express])
	Subsystem: Dell Express Flash [1028:2127]
	Physical Slot: 167
	Status: Cap+ 66MHz- UDF- FastB2B- ParErr- DEVSEL=fast >TAbort- <TAbort- <MAbort- >SERR- <PERR- INTx-
	Capabilities: [40] Express (v2) Endpoint, MSI 00
		LnkCap:	Port #0, Speed 16GT/s, Width x4, ASPM not supported
		LnkSta:	Speed 8GT/s (downgraded), Width x4
	Capabilities: [100 v2] Advanced Error Reporting
	Capabilities: [140 v1] Single Root I/O Virtualization (SR-IOV)
		IOVCap:	Migration- 10BitTagReq- Interrupt Message Number: 000
		Initial VFs: 16, Total VFs: 16, Number of VFs: 3, Function Dependency Link: 00
		VF offset: 1, stride: 1, Device ID: a824
	Kernel driver in use: nvme

4b:00.1 Non-Volatile memory controller [0108]: Samsung Electronics Co Ltd PM173X [144d:a824] (prog-if 02 [NVM Express])
	NUMA node: 1
	Capabilities: [40] Express (v2) Endpoint, MSI 00
		LnkCap:	Port #0, Speed 16GT/s, Width x4, ASPM not supported
		LnkSta:	Speed unknown (downgraded), Width x0 (downgraded)

4e:00.0 3D controller [0302]: NVIDIA Corporation GH100 [H100 SXM5 80GB] [10de:2330] (rev a1)
	NUMA node: 1
	Capabilities: [40] Express (v2) Endpoint, MSI 00
		LnkCap:	Port #0, Speed 32GT/s, Width x16, ASPM not supported
		LnkSta:	Speed 2.5GT/s (downgraded), Width x16

"""


def named(text: str = SWITCHED) -> str:
    """As lspci prints it without -nn."""
    return re.sub(r" \[[0-9a-f]{4}\](?=:)| \[[0-9a-f]{4}:[0-9a-f]{4}\]", "", text)


def numeric(text: str = SWITCHED) -> str:
    """As lspci prints it with -n."""
    return re.sub(
        r"^(\S+) .*?\[([0-9a-f]{4})\]: .*\[([0-9a-f]{4}:[0-9a-f]{4})\]", r"\1 \2: \3", text, flags=re.MULTILINE
    )


def with_domains(text: str, domain: str = "0000") -> str:
    return re.sub(r"^(?=[0-9a-f]{2}:[0-9a-f]{2}\.)", f"{domain}:", text, flags=re.MULTILINE)


def without_root(text: str = SWITCHED) -> str:
    kept = re.sub(r"\tCapabilities: \[40\]", "\tCapabilities: <access denied>\n\tCapabilities: [40]", text)
    return re.sub(r"\t(Capabilities: \[|\t).*\n", "", kept)


def with_paths(text: str = SWITCHED) -> str:
    above = {
        "49:00.0": "48:01.0",
        "4a:": "48:01.0/49:00.0",
        "4b:": "48:01.0/49:00.0/4a:00.0",
        "4e:": "48:01.0/49:00.0/4a:03.0",
    }
    for start, path in above.items():
        text = re.sub(rf"^(?={re.escape(start)})", f"{path}/", text, flags=re.MULTILINE)
    return text


def only(text: str, *starts: str) -> str:
    """Only the blocks of these devices."""
    return "".join(block + "\n\n" for block in text.split("\n\n") if block.startswith(starts))


def without(text: str, *starts: str) -> str:
    return "".join(block + "\n\n" for block in text.split("\n\n") if block and not block.startswith(starts))


def block(address: str, kind: str, *details: str) -> str:
    kinds = {
        "port": "PCI bridge: Intel Corporation Device 352a (prog-if 00 [Normal decode])",
        "gpu": "3D controller: NVIDIA Corporation Device 2330 (rev a1)",
        "ssd": "Non-Volatile memory controller: Samsung Electronics Co Ltd Device a824 (prog-if 02 [NVM Express])",
        "vmd": "RAID bus controller: Intel Corporation Volume Management Device NVMe RAID Controller (rev 04)",
        "nic": "Ethernet controller: Mellanox Technologies MT2910 Family [ConnectX-7]",
    }
    return f"{address} {kinds[kind]}\n" + "".join(f"\t{line}\n" for line in ("Control: I/O-", *details)) + "\n"


def port(address: str, buses: str, role: str = "Root Port (Slot+)", *details: str) -> str:
    secondary, _, subordinate = buses.partition("-")
    bus = f"Bus: primary=00, secondary={secondary}, subordinate={subordinate or secondary}, sec-latency=0"
    return block(address, "port", bus, f"Capabilities: [40] Express (v2) {role}, MSI 00", *details)


def read(text: str) -> Listing:
    return parse(text.encode())


def places(listing: Listing) -> dict[str, tuple[str, list[str] | None]]:
    return {
        d.address: (d.root_complex, None if d.path is None else [h.address for h in d.path]) for d in listing.devices
    }


def test_a_machine_with_a_switch():
    listing = read(SWITCHED)
    server = listing.server()
    assert listing.source == "lspci -vvv"
    assert (server.gpus, server.ssds) == (("0000:4e:00.0",), ("0000:4b:00.0",))
    (gpu,), (ssd,) = server.gpu_devices, server.ssd_devices
    assert (gpu.vendor, gpu.device, gpu.class_code) == ("10de", "2330", "030200")
    assert (ssd.vendor, ssd.device, ssd.class_code) == ("144d", "a824", "010802")
    assert gpu.root_complex == "pci0000:48"
    assert [hop.kind for hop in gpu.bridges] == ["RootPort", "SwitchUpstream", "SwitchDownstream"]
    assert [hop.acs for hop in gpu.bridges] == ["Redirect", None, "Direct"]  # the last has no ACS at all
    assert [hop.acs for hop in ssd.bridges] == ["Redirect", None, "Direct"]  # the last has it, switched off
    assert distance(gpu, ssd) is Distance.PIX
    assert (gpu.link, ssd.link) == (Link(2.5, 16, 32, 16), Link(8, 4, 16, 4))
    assert ssd.bridges[-1].link == Link(8, 4, 32, 16)
    assert server.device("0000:4b:00.1").link == Link(None, None, 16, 4)
    assert server.fact(gpu.address) == Facts(model="GH100 [H100 SXM5 80GB]")
    assert server.device("0000:4b:00.1").physical_function == "0000:4b:00.0"
    assert (gpu.numa_node, gpu.socket) == (1, None)
    assert ssd.numa_node == 1  # it does not say; its root port does
    assert any("socket" in sentence for sentence in listing.unsaid)


SAME = {
    "without -nn": named(),
    "with -D": with_domains(SWITCHED),
    "with -PP": with_paths(),
    "with -PP and -D": with_domains(with_paths()),
    "in another order": "\n\n".join(random.Random(3).sample(SWITCHED.strip().split("\n\n"), 8)),
    "from a Windows editor": SWITCHED.replace("\n", "\r\n"),
    "with spaces for tabs": SWITCHED.replace("\t", "        "),
    "with libpci's complaints": SWITCHED.replace("\n\n", "\npcilib: sysfs_read_vpd: read failed: No such device\n\n"),
    "with -x": SWITCHED.replace("\n\n", "\n00: 86 80 a2 09 06 00 10 00 a1 00 00 06 00 00 00 00\n\n"),
}


@pytest.mark.parametrize("name", SAME)
def test_the_same_machine(name: str):
    expected, found = read(SWITCHED), read(SAME[name])
    key = {device.address: device for device in expected.devices}
    assert len(found.devices) == len(key)
    for device in found.devices:
        same = key[device.address]
        assert (device.path, device.root_complex, device.numa_node) == (same.path, same.root_complex, same.numa_node)
        assert (device.vendor, device.class_code, device.link) == (same.vendor, same.class_code, same.link)
        assert device.physical_function == same.physical_function
    assert found.facts == expected.facts


LISTED = "".join(f"{block.splitlines()[0]}\n" for block in SWITCHED.strip().split("\n\n"))


@pytest.mark.parametrize("text", [LISTED + SWITCHED, SWITCHED + LISTED, named(LISTED) + "$ lspci -vvvnn\n" + SWITCHED])
def test_a_short_listing_beside_the_details_is_no_contradiction(text: str):
    assert places(read(text)) == places(read(SWITCHED))


def test_output_of_other_commands_is_no_detail_of_the_last_device():
    after = "\n$ ip link\n2: eth0\n\tBus: primary=4a, secondary=09, subordinate=09, sec-latency=0\n"
    assert places(read(SWITCHED + after)) == places(read(SWITCHED))


def test_an_address_that_is_not_understood_does_not_lend_its_details_to_another():
    text = SWITCHED + "4F:00.0 3D controller: x\n\tNUMA node: 0\n"
    assert [device.numa_node for device in read(text).devices] == [
        device.numa_node for device in read(SWITCHED).devices
    ]


@pytest.mark.parametrize(
    "line",
    [
        "00:05.0 Non-Volatile memory\ncontroller: Samsung Electronics Co Ltd Device a824 (prog-if 02 [NVM Express])",
        "00:05.0 Non-Volatile memory controller: Samsung\nElectronics Co Ltd Device a824 (prog-if 02 [NVM Express])",
        "00:05.0 Non-Volatile memory controller [0108]: Samsung Electronics Co Ltd Device [144d:a824](rev 01) (prog-if",
    ],
)
def test_a_wrapped_line(line: str):
    (found,) = read(f"{line}\n\tControl: I/O-\n").server().ssd_devices
    assert (found.vendor, found.device) == ("144d", "a824")


def test_paths_need_no_details():
    listing = read(with_paths(LISTED))
    assert places(listing) == places(read(SWITCHED))
    assert {
        distance(*pair) for pair in itertools.product(listing.server().gpu_devices, listing.server().ssd_devices)
    } == {Distance.PIX}


def test_a_cut_that_may_hide_devices_is_mentioned():
    cut = SWITCHED[: SWITCHED.index("4b:00.1")]
    assert any("cut off" in sentence for sentence in read(cut).unsaid)
    assert not any("cut off" in sentence for sentence in read(SWITCHED).unsaid)


def test_devices_that_do_not_answer_are_there():
    def off(kind: str, address: str) -> str:
        header = re.sub(r" \((rev|prog-if).*", "", block(address, kind).splitlines()[0])
        return f"{header} (rev ff) (prog-if ff)\n\t!!! Unknown header type 7f\n\tKernel driver in use: x\n\n"

    listing = read(port("00:01.0", "01") + off("ssd", "01:00.0") + port("00:02.0", "02") + off("gpu", "02:00.0"))
    server = listing.server()
    assert (server.gpus, server.ssds) == (("0000:02:00.0",), ("0000:01:00.0",))
    assert distance(*server.gpu_devices, *server.ssd_devices) is Distance.PHB
    assert any("2 devices do not answer, 0000:01:00.0 among" in sentence for sentence in listing.unsaid)


def test_what_is_part_of_an_intel_processor_is_no_gpu():
    npu = "00:0b.0 Processing accelerators [1200]: Intel Corporation Meteor Lake NPU [8086:7d1d]\n\tControl: \n"
    assert read(npu).server().gpus == ()
    assert read(port("00:01.0", "01") + npu.replace("00:0b.0", "01:00.0")).server().gpus == ("0000:01:00.0",)


def test_numbers_alone():
    assert {d.address: (d.vendor, d.device, d.class_code) for d in read(numeric()).devices} == {
        d.address: (d.vendor, d.device, d.class_code) for d in read(SWITCHED).devices
    }


def test_without_root_kinds_and_links_are_not_said():
    listing = read(without_root())
    assert places(listing) == places(read(SWITCHED))
    for device in listing.devices:
        assert device.link == UNSAID
        assert {(hop.kind, hop.acs, hop.link) for hop in device.bridges} <= {("Unknown", None, UNSAID)}
    (gpu,), ssds = listing.server().gpu_devices, listing.server().ssd_devices
    assert len(ssds) == 2  # nor that one is a share of the other
    assert distance(gpu, ssds[0]) is Distance.PIX
    assert any("as root" in sentence for sentence in listing.unsaid)


def test_v_says_the_tree_but_no_links():
    text = re.sub(r"\tControl: .*", "\tFlags: bus master, fast devsel, latency 0", SWITCHED)
    listing = read(re.sub(r"\n\t\t.*", "", text).replace("Express (v2)", "Express").replace(" v2]", "]"))
    assert listing.source == "lspci -v"
    assert places(listing) == places(read(SWITCHED))
    gpu = listing.server().device("0000:4e:00.0")
    assert [hop.kind for hop in gpu.bridges] == ["RootPort", "SwitchUpstream", "SwitchDownstream"]
    assert [hop.acs for hop in gpu.bridges] == [None, None, "Direct"]
    assert any("lspci -v says" in sentence for sentence in listing.unsaid)


def test_v_says_the_numa_node_among_the_flags():
    text = re.sub(r"\tControl: .*", "\tFlags: bus master, fast devsel, latency 0, IRQ 5, NUMA node 1", SWITCHED)
    nodes = {device.numa_node for device in parse(re.sub(r"\tNUMA node: .*\n", "", text).encode()).devices}
    assert 1 in nodes


MACHINE = """\
Slot:	{}4e:00.0
Class:	3D controller{}
Vendor:	NVIDIA Corporation{}
Device:	GH100 [H100 SXM5 80GB]{}
SVendor:	NVIDIA Corporation
SDevice:	Device 16c1
PhySlot:	22
Rev:	a1
ProgIf:	00
Driver:	nvidia
NUMANode:	1
IOMMUGroup:	12

Slot:	{}4b:00.0
Class:	Non-Volatile memory controller{}
Vendor:	Samsung Electronics Co Ltd{}
Device:	Device {}
Rev:	a1
ProgIf:	02
NUMANode:	1

"""
MACHINES = {
    "-vmm": MACHINE.format("", "", "", "", "", "", "", "a824"),
    "-vmmnnk": MACHINE.format("", " [0302]", " [10de]", " [2330]", "", " [0108]", " [144d]", "[a824]"),
    "-vmm -D": MACHINE.format("0000:", "", "", "", "0000:", "", "", "a824"),
    "-vm": MACHINE.format("", "", "", "", "", "", "", "a824")
    .replace("Slot:", "Device:")
    .replace("PhyDevice:", "PhySlot:"),
}


@pytest.mark.parametrize("name", MACHINES)
def test_machine_readable(name: str):
    listing = read(MACHINES[name])
    server = listing.server()
    (gpu,), (ssd,) = server.gpu_devices, server.ssd_devices
    assert listing.source == "lspci -vmm"
    assert (gpu.root_complex, gpu.path, gpu.numa_node, gpu.class_code) == ("", None, 1, "030200")
    assert (ssd.vendor, ssd.device, ssd.class_code) == ("144d", "a824", "010802")
    assert server.fact(gpu.address).model == "GH100 [H100 SXM5 80GB]"
    assert distance(gpu, ssd) is Distance.UNKNOWN
    assert any("above" in sentence for sentence in listing.unsaid)


def test_machine_readable_with_paths():
    listing = read(
        MACHINE.format("0000:48:01.0/49:00.0/4a:03.0/", "", "", "", "0000:48:01.0/49:00.0/4a:00.0/", "", "", "a824")
    )
    assert places(listing)["0000:4e:00.0"] == ("pci0000:48", ["0000:48:01.0", "0000:49:00.0", "0000:4a:03.0"])
    assert distance(*listing.devices) is Distance.PIX


def test_paths_make_up_for_bridges_that_are_not_listed():
    """As `lspci -PP -vvv -d 10de:` prints."""
    listing = read(only(with_paths(), "48:01.0/49:00.0/4a:03.0/4e"))
    assert places(listing) == {"0000:4e:00.0": ("pci0000:48", ["0000:48:01.0", "0000:49:00.0", "0000:4a:03.0"])}


@pytest.mark.parametrize(
    ("line", "vendor", "device", "class_code"),
    [
        ("VGA compatible controller: Advanced Micro Devices, Inc. [AMD/ATI] Vega 20 [MI50]", "1002", "", "030000"),
        ("Processing accelerators: Advanced Micro Devices, Inc. [AMD/ATI] Device 74a1", "1002", "74a1", "120000"),
        ("Display controller: Intel Corporation Ponte Vecchio 1T [Data Center GPU Max 1550]", "8086", "", "038000"),
        ("VGA compatible controller: Advanced Micro Devices, Inc. [AMD/ATI] ES1000", "1002", "515e", "030000"),
        ("VGA compatible controller: ASPEED Technology, Inc. ASPEED Graphics Family", "1a03", "", "030000"),
        ("Processing accelerators [12ff]: Device 1abc:2000 (rev a1)", "1abc", "2000", "12ff00"),
        ("Host bridge: Advanced Micro Devices, Inc. [AMD] Starship Root Complex", "1022", "", "060000"),
        ("Unassigned class [ffff]: Red Hat, Inc. Virtio RNG", "", "", "ffff00"),
        ("Something else: Somebody Thing", "", "", ""),
    ],
)
def test_names(line: str, vendor: str, device: str, class_code: str):
    (found,) = read(f"00:05.0 {line}\n\tControl: I/O-\n").devices
    assert (found.vendor, found.device, found.class_code) == (vendor, device, class_code)


def test_makers_that_names_do_not_tell_are_mentioned():
    assert any("-vvvnn" in s for s in read("00:05.0 3D controller: Somebody Thing\n\tControl: I/O-\n").unsaid)


def test_functions_of_one_device():
    listing = read(
        port("00:01.0", "01-01") + block("01:00.0", "gpu") + block("01:00.1", "ssd") + block("01:00.2", "nic")
    )
    assert distance(*listing.server().gpu_devices, *listing.server().ssd_devices) is Distance.PIX


def sriov(text: str, count: int, offset: int, stride: int) -> str:
    return text.rstrip("\n") + (
        "\n\tCapabilities: [160 v1] Single Root I/O Virtualization (SR-IOV)\n"
        f"\t\tInitial VFs: 64, Total VFs: 64, Number of VFs: {count}, Function Dependency Link: 00\n"
        f"\t\tVF offset: {offset}, stride: {stride}, Device ID: a824\n\n"
    )


def test_virtual_functions_on_a_bus_of_their_own():
    """Routing id 0100 + 256 is on bus 02, which no bridge leads to: they hang where their owner hangs."""
    text = port("00:01.0", "01-02") + sriov(block("01:00.0", "ssd", "NUMA node: 1"), 2, 256, 2)
    text += block("02:00.0", "ssd") + block("02:00.2", "ssd")
    listing = read(text)
    shares = [device for device in listing.devices if device.physical_function]
    assert [device.address for device in shares] == ["0000:02:00.0", "0000:02:00.2"]
    for device in shares:
        assert device.physical_function == "0000:01:00.0"
        assert (device.root_complex, [hop.address for hop in device.bridges]) == ("pci0000:00", ["0000:00:01.0"])
        assert device.numa_node == 1
    assert listing.server().ssds == ("0000:01:00.0",)


def test_virtual_functions_that_are_off():
    text = port("00:01.0", "01-01") + sriov(block("01:00.0", "ssd"), 0, 1, 1) + block("01:00.1", "ssd")
    assert len(read(text).server().ssds) == 2


AER = "Capabilities: [100 v2] Advanced Error Reporting"
ACS = "Capabilities: [140 v1] Access Control Services"


@pytest.mark.parametrize(
    ("details", "acs"),
    [
        ((AER, ACS, "\tACSCtl: SrcValid+ ReqRedir+ CmpltRedir- UpstreamFwd+ EgressCtrl-"), "Redirect"),
        ((AER, ACS, "\tACSCtl: SrcValid+ ReqRedir- CmpltRedir+ UpstreamFwd+ EgressCtrl-"), "Redirect"),
        ((AER, ACS, "\tACSCtl: SrcValid+ ReqRedir- CmpltRedir- UpstreamFwd+ EgressCtrl+"), "Redirect"),
        ((AER, ACS, "\tACSCtl: SrcValid+ ReqRedir- CmpltRedir- UpstreamFwd+ EgressCtrl-"), "Direct"),
        ((AER, ACS), None),  # -v
        ((AER,), "Direct"),
        ((), None),  # extended capabilities are hidden
        ((AER, "Capabilities: [140 v0] <chain broken>"), None),
        ((AER, "Capabilities: <access denied>"), None),
    ],
)
def test_access_control(details: tuple[str, ...], acs: str | None):
    listing = read(port("00:01.0", "01-01", "Root Port (Slot-)", *details) + block("01:00.0", "gpu"))
    assert listing.server().device("0000:01:00.0").bridges[0].acs == acs


@pytest.mark.parametrize(
    ("role", "kind"),
    [
        ("Root Port (Slot+)", "RootPort"),
        ("PCI-Express to PCI/PCI-X Bridge", "Bridge"),
        ("Unknown type 9", "Unknown"),
    ],
)
def test_kinds_of_bridges(role: str, kind: str):
    listing = read(port("00:01.0", "01-01", role) + block("01:00.0", "gpu"))
    assert listing.server().device("0000:01:00.0").bridges[0].kind == kind


def test_a_bridge_of_conventional_pci():
    text = port("00:01.0", "01-01").replace("Express (v2) Root Port (Slot+), MSI 00", "Subsystem: Device")
    assert read(text + block("01:00.0", "gpu")).server().device("0000:01:00.0").bridges[0].kind == "Bridge"


def vmd(controllers: int, *domains: str, driver: str = "") -> str:
    said = [f"Kernel driver in use: {driver}"] if driver else []
    text = "".join(block(f"0000:e0:{5 + n:02x}.5", "vmd", "NUMA node: 1", *said) for n in range(controllers))
    for domain in domains:
        text += port(f"{domain}:e0:02.0", "e1-e1") + block(f"{domain}:e1:00.0", "ssd")
    return text + port("0000:e0:01.0", "e2-e2") + block("0000:e2:00.0", "gpu")


def test_one_vmd():
    server = read(vmd(1, "10000", driver="vmd")).server()
    ssd = server.device("10000:e1:00.0")
    assert (ssd.root_complex, ssd.numa_node, ssd.detached) == ("pci0000:e0", 1, False)
    assert [hop.address for hop in ssd.bridges] == ["0000:e0:05.5", "10000:e0:02.0"]
    assert distance(ssd, server.device("0000:e2:00.0")) is Distance.PHB


@pytest.mark.parametrize("text", [vmd(2, "10000", "10001"), vmd(2, "10000"), vmd(1, "10000", "10001"), vmd(0, "10000")])
def test_several_vmds(text: str):
    listing = read(text)
    ssd = listing.server().device("10000:e1:00.0")
    assert (ssd.root_complex, ssd.detached) == ("pci10000:e0", True)
    assert distance(ssd, listing.server().device("0000:e2:00.0")) is Distance.UNKNOWN
    assert any("10000" in sentence for sentence in listing.unsaid)


def test_a_raid_controller_with_another_driver_is_no_vmd():
    sata = block("0000:00:17.0", "vmd", "Kernel driver in use: ahci")
    assert read(sata + vmd(1, "10000", driver="vmd")).server().device("10000:e1:00.0").root_complex == "pci0000:e0"


def test_cards_on_the_root_bus_of_a_virtual_machine():
    listing = read(block("00:1e.0", "gpu") + block("00:1f.0", "ssd"))
    assert places(listing) == {"0000:00:1e.0": ("pci0000:00", []), "0000:00:1f.0": ("pci0000:00", [])}
    assert distance(*listing.devices) is Distance.PHB


def test_cards_in_domains_of_their_own():
    listing = read(block("0001:00:00.0", "gpu") + block("c05b:00:00.0", "ssd"))
    assert [device.root_complex for device in listing.devices] == ["pci0001:00", "pcic05b:00"]


def test_cards_on_bare_root_buses():
    """As some clouds show them: no host bridge, no port, but device numbers that the end of a link cannot have."""
    listing = read(block("10:1c.0", "gpu") + block("10:1f.0", "ssd") + block("20:1c.0", "gpu"))
    assert [device.root_complex for device in listing.devices] == ["pci0000:10", "pci0000:10", "pci0000:20"]


def test_slots_of_a_partition_on_power():
    listing = read(block("0524:28:00.0", "ssd", "NUMA node: 1") + block("0018:70:00.0", "gpu", "NUMA node: 1"))
    assert places(listing) == {"0524:28:00.0": ("pci0524:28", []), "0018:70:00.0": ("pci0018:70", [])}
    assert distance(*listing.devices) is Distance.NODE
    with pytest.raises(BadDump, match="lists no bridges"):
        read(block("0009:01:00.0", "gpu"))
    with pytest.raises(BadDump, match="lists no bridges"):
        read(block("10000:e1:00.0", "ssd"))


def test_a_card_that_is_no_gpu_may_be_nowhere():
    listing = read(port("00:01.0", "01-05") + block("01:00.0", "gpu") + block("04:00.0", "nic"))
    assert places(listing)["0000:04:00.0"] == ("", None)
    assert any("bridges above 1 of 3" in sentence for sentence in listing.unsaid)


def test_a_bridge_that_nobody_configured_leads_nowhere():
    text = port("00:01.0", "01-01") + block("01:00.0", "gpu") + port("00:02.0", "00-00") + port("00:03.0", "00-00")
    assert places(read(text))["0000:01:00.0"] == ("pci0000:00", ["0000:00:01.0"])


CARD = block("01:00.0", "gpu")
BAD = {
    "nothing of lspci's": ("hello\nworld\n", "nothing in it looks like"),
    "empty": ("", "nothing in it looks like"),
    "plain lspci": (re.sub(r"\n\t.*", "", SWITCHED).replace("\n\n", "\n"), "use lspci -vvv"),
    "plain lspci -n": ("00:00.0 0600: 8086:09a2 (rev a1)\n4e:00.0 0302: 10de:2330 (rev a1)\n", "use lspci -vvv"),
    "lspci -m": ('00:00.0 "Host bridge" "Intel Corporation" "Ice Lake" -ra1 "" ""\n', "use lspci -vvv"),
    "lspci -P": (with_paths().replace("/4a:03.0/4e:00.0", "/03.0/00.0"), "use -PP"),
    "no bridges": (without(SWITCHED, "48", "49", "4a"), "lists no bridges"),
    "GPUs alone": (only(SWITCHED, "4e"), "lists no bridges"),
    "no bridge above a GPU": (without(SWITCHED, "4a:03"), "above 0000:4e:00.0"),
    "no upstream port": (without(SWITCHED, "49"), "is missing"),
    "no upstream port, without root": (without(without_root(), "49"), "is missing"),
    "no root port": (without(SWITCHED, "48"), "is missing"),
    "two devices with one address": (SWITCHED + only(SWITCHED, "4e"), "have the address 0000:4e:00.0"),
    "a listing and details of two servers": (LISTED.replace("[10de:2330]", "[10de:20b2]") + SWITCHED, "4e:00.0 (lines"),
    "lspci -nnk": (LISTED.replace("\n", "\n\tKernel driver in use: pcieport\n"), "use lspci -vvv"),
    "two dumps in one": (SWITCHED + SWITCHED, "have the address 0000:00:00.0"),
    "two bridges to one bus": (
        port("00:01.0", "01-01") + port("00:02.0", "01-01") + CARD,
        "two bridges lead to bus 01",
    ),
    "a bridge to its own bus": (port("01:01.0", "01-01") + CARD, "loop at 0000:01:01.0"),
    "a loop of bridges": (port("01:01.0", "02-02") + port("02:01.0", "01-01") + CARD, "in a loop"),
    "a path in a loop": ("00:01.0/01:00.0/00:01.0/02:00.0 3D controller: x\n\tControl: \n", "in a loop"),
    "an address that is none": ("00:01.0/01:zz.0 3D controller: x\n\tControl: \n", "use lspci -vvv"),
    "a device number that is none": ("00:3f.0 3D controller: x\n\tControl: \n", "is no PCI address"),
    "one huge line": (SWITCHED + "\t" + "x" * 20000, "20001 bytes"),
    "too many lines": (SWITCHED + "\n" * 1_000_000, "1000000 lines"),
    "more shares than there can be": (
        "".join(sriov(block(f"00:{n:02x}.0", "ssd"), 65535, 1, 1) for n in range(17)),
        "more SR-IOV functions",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_text(name: str):
    text, message = BAD[name]
    with pytest.raises(BadDump) as caught:
        read(text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


def test_text_cut_off_anywhere_says_less_and_nothing_false():
    whole = places(read(SWITCHED))
    for step in range(20):
        try:
            listing = read(SWITCHED[: len(SWITCHED) * step // 20])
        except BadDump:
            continue
        assert all(whole[address] == place for address, place in places(listing).items() if place[1] is not None)
