"""hwloc's XML. All machines here are synthetic; the forms are those of hwloc 1.11, 2.12 and 3.0."""

from __future__ import annotations

import itertools

import pytest

from kubeflash.topology.distance import Distance, distance
from kubeflash.topology.errors import BadDump
from kubeflash.topology.hwloc import parse
from kubeflash.topology.server import Facts, Listing

IDS = {  # what a device is: its pci_type in versions 1 and 2, and the programming interface that version 3 adds
    "port": ("0604 [8086:352a] [8086:0000] 04", "00"),
    "switch": ("0604 [1000:c030] [1028:236b] b0", "00"),
    "gpu": ("0302 [10de:2330] [10de:16c0] a1", "00"),
    "ssd": ("0108 [144d:a824] [1028:2127] 00", "02"),
    "vmd": ("0104 [8086:28c0] [8086:0000] 04", "00"),
    "vga": ("0300 [102b:0536] [1028:0b74] 04", "00"),
}


class Xml:
    """Writes a topology of one version."""

    def __init__(self, version: int) -> None:
        self.version = version

    def file(self, *inside: str, name: str = "testhost") -> bytes:
        attribute = {1: "", 2: ' version="2.0"', 3: ' version="3.0"'}[self.version]
        dtd = "hwloc.dtd" if self.version == 1 else "hwloc2.dtd"
        host = f'<info name="HostName" value="{name}"/>'
        machine = self.part("Machine", 0, 0b111, *([] if self.version == 3 else [host]), *inside)
        tail = host if self.version == 3 else ""
        return (
            f'<?xml version="1.0" encoding="UTF-8"?>\n<!DOCTYPE topology SYSTEM "{dtd}">\n'
            f"<topology{attribute}>\n{machine}{tail}</topology>\n"
        ).encode()

    def part(self, kind: str, index: int, nodes: int, *inside: str) -> str:
        if kind == "Package" and self.version == 1:
            kind = "Socket"
        return f'<object type="{kind}" os_index="{index}" nodeset="0x{nodes:08x}">\n{"".join(inside)}</object>\n'

    def host(self, buses: str, *inside: str, domain: str = "0000") -> str:
        attributes = f'bridge_type="0-1" depth="0" bridge_pci="{domain}:[{buses}]"'
        return f'<object type="Bridge" {attributes}>\n{"".join(inside)}</object>\n'

    def bridge(self, address: str, buses: str, *inside: str, kind: str = "switch", gbps: str = "63.015385") -> str:
        domain = address.partition(":")[0]
        return (
            f'<object type="Bridge" bridge_type="1-1" depth="1" bridge_pci="{domain}:[{buses}]" pci_busid="{address}"'
            f' pci_type="{self._type(kind)}" pci_link_speed="{gbps}">\n{"".join(inside)}</object>\n'
        )

    def device(self, address: str, kind: str, *inside: str, gbps: str = "7.876923") -> str:
        return (
            f'<object type="PCIDev" pci_busid="{address}" pci_type="{self._type(kind)}" pci_link_speed="{gbps}">\n'
            f"{''.join(inside)}</object>\n"
        )

    def osdev(self, name: str, **infos: str) -> str:
        number = {1: "0", 2: "0", 3: "1"}[self.version]
        said = "".join(f'<info name="{key}" value="{value}"/>' for key, value in infos.items())
        return f'<object type="OSDev" name="{name}" osdev_type="{number}">{said}</object>\n'

    def _type(self, kind: str) -> str:
        ids, interface = IDS[kind]
        return f"{ids} {interface}" if self.version == 3 else ids


def clustered(version: int) -> bytes:
    """A socket of two NUMA nodes (sub-NUMA clustering), each with a host bridge, and a socket of one."""
    xml = Xml(version)
    node_0 = xml.host(
        "48-4e",
        xml.bridge(
            "0000:48:01.0",
            "49-4e",
            xml.bridge(
                "0000:49:00.0",
                "4a-4e",
                xml.bridge(
                    "0000:4a:00.0",
                    "4b-4b",
                    xml.device(
                        "0000:4b:00.0",
                        "ssd",
                        xml.osdev("nvme0n1", Size="1875374424", Model="SSD 9", SerialNumber="S1", Other="x"),
                        xml.osdev("nvme0c0n1", Size="1875374424"),
                        xml.osdev("nvme0n2", Size="1024"),
                    ),
                ),
                xml.bridge(
                    "0000:4a:03.0",
                    "4e-4e",
                    xml.device(
                        "0000:4e:00.0",
                        "gpu",
                        '<info name="PCIDevice" value="GH100"/>',
                        xml.osdev("cuda0", GPUModel="H100"),
                        xml.osdev("opencl0d0", GPUModel="chip"),
                        xml.osdev("nvml0", GPUModel="H100", NVIDIAUUID="GPU-7f2c"),
                        gbps="0.000000",
                    ),
                ),
            ),
            kind="port",
        ),
    )
    node_1 = xml.host("59-5a", xml.bridge("0000:59:01.0", "5a-5a", xml.device("0000:5a:00.0", "gpu"), kind="port"))
    far = xml.host("c7-c8", xml.bridge("0000:c7:01.0", "c8-c8", xml.device("0000:c8:00.0", "ssd"), kind="port"))
    if version == 1:
        nodes = [xml.part("NUMANode", 0, 1, node_0), xml.part("NUMANode", 1, 2, node_1)]
        sockets = [
            xml.part("Package", 0, 3, *nodes),
            xml.part("NUMANode", 2, 4, xml.part("Package", 1, 4), far),  # beside the socket that is all of the node
        ]
    else:
        nodes = [
            xml.part("Group", 0, 1, xml.part("NUMANode", 0, 1), node_0),
            xml.part("Group", 1, 2, xml.part("NUMANode", 1, 2), node_1),
        ]
        sockets = [xml.part("Package", 0, 3, *nodes), xml.part("Package", 1, 4, xml.part("NUMANode", 2, 4), far)]
    return xml.file(*sockets)


VERSIONS = pytest.mark.parametrize("version", [1, 2, 3])


@VERSIONS
def test_a_machine_with_sub_numa_clustering(version: int):
    listing = parse(clustered(version))
    server = listing.server()
    assert listing.source == {1: "hwloc XML 1", 2: "hwloc XML 2.0", 3: "hwloc XML 3.0"}[version]
    assert listing.name == "testhost"
    assert server.gpus == ("0000:4e:00.0", "0000:5a:00.0")
    assert server.ssds == ("0000:4b:00.0", "0000:c8:00.0")
    near, far = server.ssd_devices
    gpu, neighbour = server.gpu_devices
    assert (gpu.numa_node, gpu.socket, gpu.root_complex) == (0, 0, "pci0000:48")
    assert (neighbour.numa_node, neighbour.socket) == (1, 0)
    assert (far.numa_node, far.socket) == (2, 1)
    assert [hop.address for hop in gpu.bridges] == ["0000:48:01.0", "0000:49:00.0", "0000:4a:03.0"]
    assert distance(gpu, near) is Distance.PIX
    assert distance(neighbour, near) is Distance.NODE
    assert distance(neighbour, far) is Distance.SYS
    assert near.link.gbps == 7.876923
    assert gpu.link.gbps is None  # 0 is: not known
    assert gpu.bridges[0].link.gbps == 63.015385
    assert {hop.acs for hop in gpu.bridges} == {None}
    assert server.fact(gpu.address) == Facts(model="H100", uuid="GPU-7f2c")
    assert server.fact(near.address) == Facts(model="SSD 9", serial="S1", bytes=(1875374424 + 1024) << 10)


def test_every_version_says_the_same_of_one_machine():
    def answers(listing: Listing) -> list[object]:
        return [(d.address, d.vendor, d.class_code[:4], d.numa_node, d.socket, d.path, d.link) for d in listing.devices]

    first, *others = [parse(clustered(version)) for version in (1, 2, 3)]
    for other in others:
        assert answers(other) == answers(first)
        assert other.facts == first.facts
        assert other.unsaid == first.unsaid


def test_version_3_alone_says_the_programming_interface():
    assert {d.class_code for d in parse(clustered(2)).devices} == {"0604", "0302", "0108"}
    assert {d.class_code for d in parse(clustered(3)).devices} == {"060400", "030200", "010802"}
    converted = clustered(3).replace(b"2127] 00 02", b"2127] 00 00")  # hwloc 3 writes so what it read from version 2
    assert {d.class_code for d in parse(converted).devices} == {"060400", "030200", "0108"}
    assert len(parse(converted).server().ssds) == 2


def test_bridges_are_devices_too():
    listing = parse(clustered(2))
    assert sum(device.is_bridge for device in listing.devices) == 6
    assert len(listing.devices) == 10


def test_a_bmc_is_no_gpu():
    xml = Xml(2)
    assert parse(xml.file(xml.host("00-00", xml.device("0000:00:02.0", "vga")))).server().gpus == ()


@VERSIONS
def test_what_is_attached_to_the_whole_machine_is_nowhere_in_particular(version: int):
    xml = Xml(version)
    sockets = [xml.part("Package", n, 1 << n, xml.part("NUMANode", n, 1 << n)) for n in (0, 1)]
    listing = parse(xml.file(*sockets, xml.host("00-00", xml.device("0000:00:05.0", "ssd"))))
    (device,) = listing.devices
    assert (device.numa_node, device.socket) == (None, None)
    assert any("socket 1 of 1" in sentence for sentence in listing.unsaid)


@VERSIONS
def test_the_only_socket_and_the_only_numa_node_have_everything(version: int):
    xml = Xml(version)
    socket = xml.part("Package", 3, 0b111, xml.part("NUMANode", 1, 0b10))
    (device,) = parse(xml.file(socket, xml.host("00-00", xml.device("0000:00:05.0", "ssd")))).devices
    assert (device.numa_node, device.socket) == (1, 3)


def test_a_part_with_several_numa_nodes_is_none_of_them():
    xml = Xml(2)
    nodes = [xml.part("NUMANode", 0, 1), xml.part("NUMANode", 2, 4)]  # memory of a socket, and of its HBM
    (device,) = parse(
        xml.file(xml.part("Package", 0, 5, *nodes, xml.host("00-00", xml.device("0000:00:05.0", "ssd"))))
    ).devices
    assert (device.numa_node, device.socket) == (None, 0)


@pytest.mark.parametrize(
    ("nodeset", "node"),
    [("0x00000001,,0x0", 64), ("0x00000010", 4), ("0xf...f,0x1", None), ("0x3", None), ("x", None), ("", None)],
)
def test_nodesets(nodeset: str, node: int | None):
    xml = Xml(2)
    content = xml.file(
        xml.part("NUMANode", 0, 1),
        xml.part("NUMANode", 1, 1),
        f'<object type="Group" nodeset="{nodeset}">'
        + xml.host("00-00", xml.device("0000:00:05.0", "ssd"))
        + "</object>",
    )
    assert parse(content).devices[0].numa_node == node


def test_without_any_bridge_the_path_is_unknown():
    xml = Xml(2)
    both = [xml.device("0000:4b:00.0", "ssd"), xml.device("0000:4e:00.0", "gpu")]
    listing = parse(xml.file(xml.part("Package", 0, 1, *both), xml.part("Package", 1, 2)))
    assert {(device.root_complex, device.path, device.socket) for device in listing.devices} == {("", None, 0)}
    assert any("bridges above 2 of 2" in sentence for sentence in listing.unsaid)
    assert distance(*listing.devices) is Distance.UNKNOWN


def test_without_bridges_in_between_the_path_is_unknown():
    """As hwloc 1 writes with --no-bridges: host bridges stay."""
    xml = Xml(1)
    direct = xml.device("0000:48:05.0", "gpu")
    listing = parse(xml.file(xml.host("48-4e", xml.device("0000:4b:00.0", "ssd"), direct)))
    assert [(device.root_complex, device.path) for device in listing.devices] == [
        ("pci0000:48", None),
        ("pci0000:48", ()),
    ]
    assert distance(*listing.devices) is Distance.UNKNOWN


def test_below_a_bridge_that_is_not_where_it_is_listed_nothing_is_known():
    xml = Xml(2)
    lost = xml.bridge("0000:4a:00.0", "4b-4b", xml.device("0000:4b:00.0", "ssd"))
    assert [device.path for device in parse(xml.file(xml.host("48-4e", lost))).devices] == [None, None]


def vmd(*domains: str, controllers: int = 1, version: int = 3) -> bytes:
    xml = Xml(version)
    own = [xml.device(f"0000:e0:{5 + n:02x}.5", "vmd") for n in range(controllers)]
    port = xml.bridge("0000:e0:01.0", "e2-e2", xml.device("0000:e2:00.0", "gpu"), kind="port")
    hidden = [
        xml.host("e0-e1", xml.bridge(f"{d}:e0:02.0", "e1-e1", xml.device(f"{d}:e1:00.0", "ssd"), kind="port"), domain=d)
        for d in domains
    ]
    return xml.file(xml.part("Package", 1, 1, xml.host("e0-e2", *own, port)), xml.part("Package", 2, 2), *hidden)


@pytest.mark.parametrize("version", [2, 3])
def test_one_vmd(version: int):
    listing = parse(vmd("10000", version=version))
    ssd = listing.server().device("10000:e1:00.0")
    assert (ssd.root_complex, ssd.socket, ssd.detached) == ("pci0000:e0", 1, False)
    assert [hop.address for hop in ssd.bridges] == ["0000:e0:05.5", "10000:e0:02.0"]
    assert distance(ssd, listing.server().device("0000:e2:00.0")) is Distance.PHB


@pytest.mark.parametrize(
    ("domains", "controllers"), [(("10000",), 2), (("10000", "10001"), 1), (("10000", "10001"), 2)]
)
def test_with_several_vmds_it_is_not_said_which_one(domains: tuple[str, ...], controllers: int):
    listing = parse(vmd(*domains, controllers=controllers))
    ssd = listing.server().device("10000:e1:00.0")
    assert (ssd.root_complex, ssd.detached) == ("pci10000:e0", True)
    assert [hop.address for hop in ssd.bridges] == ["10000:e0:02.0"]
    assert any("10000" in sentence for sentence in listing.unsaid)
    assert distance(ssd, listing.server().device("0000:e2:00.0")) is Distance.UNKNOWN


def test_a_vmd_with_nothing_behind_it_is_mentioned():
    assert any("0000:e0:05.5" in sentence for sentence in parse(vmd()).unsaid)


def test_names_hold_no_control_characters():
    xml = Xml(2)
    listing = parse(
        xml.file(xml.host("00-00", xml.device("0000:00:05.0", "ssd")), name="a&#10;b&#x9b;31m\u202e" + "c" * 9999)
    )
    assert listing.name.startswith("a b 31m c")
    assert len(listing.name) < 300


HEAD = b'<?xml version="1.0"?><!DOCTYPE topology SYSTEM "hwloc2.dtd"%s><topology version="2.0"><object type="Machine">'
BAD = {
    "empty": (b"", "no element found"),
    "not XML": (b"hello", "line 1"),
    "other XML": (b"<html><body/></html>", "starts with <html>"),
    "a version to come": (b'<topology version="4.0"/>', "'4.0' is not known"),
    "no PCI devices": (Xml(2).file(), "lists no PCI devices"),
    "several machines": (Xml(2).file(Xml(2).part("Machine", 1, 1)), "several machines"),
    "billion laughs": (
        HEAD % b' [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;"><!ENTITY c "&b;&b;&b;">]' + b"&c;",
        "declares",
    ),
    "external entity": (HEAD % b' [<!ENTITY a SYSTEM "file:///etc/passwd">]' + b"&a;", "declares"),
    "parameter entity": (HEAD % b' [<!ENTITY % a SYSTEM "http://192.0.2.1/a.dtd"> %a;]' + b"", "declares"),
    "attributes by default": (HEAD % b' [<!ATTLIST object type CDATA "Machine">]' + b"", "declares"),
    "deep nesting": (HEAD % b"" + b'<object type="Group">' * 100_000, "256 deep"),
    "too many elements": (HEAD % b"" + b"<a/>" * 1_000_001, "1000000 elements"),
    "one huge tag": (HEAD % b"" + b'<object type="' + b"a" * (3 << 20), "a tag of more than"),
    "Latin-1": (clustered(2).replace(b"testhost", b"\xe9"), "damaged"),
    "an encoding of Python's": (clustered(2).replace(b"UTF-8", b"rot13"), "'rot13' is not UTF-8"),
    "binary": (b"<\x00\x01\x02", "line 1"),
    "two devices with one address": (clustered(2).replace(b":5a:00.0", b":4b:00.0"), "have the address 0000:4b:00.0"),
    "no address": (clustered(2).replace(b' pci_busid="0000:4e:00.0"', b""), "pci_busid ''"),
    "a bad address": (clustered(2).replace(b"0000:4e:00.0", b"0000:4e:00.9"), "pci_busid '0000:4e:00.9'"),
    "bad ids": (clustered(2).replace(b"0302 [10de", b"0302 [zzzz"), "pci_type"),
    "bad buses": (clustered(2).replace(b"0000:[4a-4e]", b"4a-4e"), "bridge_pci '4a-4e'"),
    "a bad type of bridge": (clustered(2).replace(b'"1-1"', b'"2-2"'), "'2-2'"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files(name: str):
    content, message = BAD[name]
    with pytest.raises(BadDump) as caught:
        parse(content)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


@VERSIONS
def test_a_file_cut_off_anywhere_is_bad(version: int):
    content = clustered(version).rstrip()
    for step, damage in itertools.product(range(20), (b"", b'"', b"/>")):
        with pytest.raises(BadDump):
            parse(content[: len(content) * step // 20] + damage)
    with pytest.raises(BadDump, match=r"incomplete in line \d+"):
        parse(content[:-1])
