"""One meaning, whatever the source: all say the same of one server, or that they do not know.

Made-up servers (`fixtures/servers`) are shown as each source would show them; captured ones (`fixtures/captured`) are
what our virtual servers, their lspci and hwloc really said. What is expected stands beside each, written by hand; which
source may not know what is said here once more (`is_silent`), and not taken from the code.
"""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import pytest
import yaml

from kubeflash.api.v1alpha1 import Distance
from kubeflash.host.listing import read_listing
from kubeflash.host.root import HostRoot
from kubeflash.topology.analysis import analyse
from kubeflash.topology.devices import NVME_CLASS, GpuRules
from kubeflash.topology.distance import distance
from kubeflash.topology.dump import read_dump
from kubeflash.topology.flashnode import from_location, to_location
from kubeflash.topology.links import lane_gbps
from kubeflash.topology.server import Listing, Server
from kubeflash.topology.tree import PciDevice
from support.made_servers import (
    CAPTURED,
    Function,
    Made,
    captured_names,
    hwloc,
    lspci,
    lspci_vmm,
    made,
    made_names,
    write_captured,
    write_sysfs,
)

RULES = GpuRules.parse(["1234:0380"])
Table = dict[tuple[str, str], str]

DUMPS: Mapping[str, Callable[[Made], bytes]] = {
    "lspci -vvv": lambda server: lspci(server, numbers=False),
    "lspci -vvvnn": lambda server: lspci(server, numbers=True),
    "lspci -vmm": lspci_vmm,
    "hwloc 1": lambda server: hwloc(server, 1),
    "hwloc 2": lambda server: hwloc(server, 2),
    "hwloc 3": lambda server: hwloc(server, 3),
}
SOURCES = ("sysfs", *DUMPS)
CAPTURED_FILES = {
    "lspci -vvv": "lspci-vvv.txt",
    "lspci -vvvnn": "lspci-vvvnn.txt",
    "lspci -vmm": "lspci-vmm.txt",
    "hwloc 1": "hwloc1.xml",
    "hwloc 2": "hwloc2.xml",
}


class Shown:
    """What sources say of made-up servers; each is asked once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._listings: dict[tuple[str, str], Listing] = {}

    def sysfs(self, name: str) -> HostRoot:
        folder = self._folder / name
        return HostRoot(folder) if folder.exists() else write_sysfs(made(name), folder)

    def listing(self, name: str, source: str) -> Listing:
        key = name, source
        if key not in self._listings:
            sysfs = source == "sysfs"
            self._listings[key] = read_listing(self.sysfs(name)) if sysfs else read_dump(DUMPS[source](made(name)))
        return self._listings[key]

    def server(self, name: str, source: str) -> Server:
        return self.listing(name, source).server(RULES)


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Shown:
    return Shown(tmp_path_factory.mktemp("servers"))


def table(server: Server) -> Table:
    return {
        (gpu.address, ssd.address): distance(gpu, ssd).value for gpu in server.gpu_devices for ssd in server.ssd_devices
    }


def expected(server: Made) -> Table:
    gpus, ssds = server.named("gpu"), server.named("ssd")
    return {
        (gpus[gpu].address, ssds[ssd].address): said
        for gpu, row in server.expected.items()
        for ssd, said in row.items()
    }


def pairs_of(server: Made) -> Iterable[tuple[Function, Function]]:
    return itertools.product(server.named("gpu").values(), server.named("ssd").values())


# --- what a source may not know ---


def socket_of(server: Made, function: Function) -> int | None:
    return next((index for index, nodes in enumerate(server.sockets) if function.node in nodes), None)


def are_apart(one: Function, other: Function) -> bool:
    return one.node is not None and other.node is not None and one.node != other.node


def is_silent(source: str, server: Made, gpu: Function, ssd: Function) -> bool:
    """Whether a source cannot know the distance of a GPU and an SSD of this server."""
    if source == "sysfs":
        return False
    if source == "lspci -vmm":  # it lists no bridges: different NUMA nodes are all that it can tell
        return not are_apart(gpu, ssd)
    domains = {function.domain for function in server.functions if function.domain >= 0x10000}
    if ssd.domain in domains and len(domains) > 1:  # whose domain it is, is nowhere but in sysfs
        return not are_apart(gpu, ssd)
    # lspci leaves out a NUMA node that the firmware does not say, even where the kernel has one alone
    return source.startswith("lspci") and gpu.root_complex != ssd.root_complex and gpu.node is None


def lists_shares(source: str) -> bool:
    """Whether a source shows SR-IOV functions without saying that they are shares of others."""
    return source.startswith("hwloc") or source == "lspci -vmm"


def allowed(source: str, server: Made) -> Table:
    """What a source shall say of a server."""
    said = expected(server)
    if lists_shares(source):
        for share in server.named("share").values():
            assert share.owner is not None
            said |= {(gpu, share.address): far for (gpu, ssd), far in said.items() if ssd == share.owner.address}
    ssds = [ssd for ssd in server.functions if ssd.what == "ssd" or (ssd.what == "share" and lists_shares(source))]
    for gpu, ssd in itertools.product(server.named("gpu").values(), ssds):
        key = gpu.address, ssd.address
        if is_silent(source, server, gpu, ssd):
            said[key] = "unknown"
        elif source.startswith("lspci") and said[key] == "NODE" and are_apart(gpu, ssd):
            # it knows no sockets, so NUMA nodes stand for them, as in nvidia-smi's own words: wrong with sub-NUMA
            # clustering, which lspci cannot tell from several sockets
            said[key] = "SYS"
    return said


# --- made-up servers ---


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("name", made_names())
def test_every_source_says_the_same_distances(name: str, source: str, shown: Shown):
    assert table(shown.server(name, source)) == allowed(source, made(name))


def test_only_where_sub_numa_clustering_is_does_lspci_take_nodes_for_sockets():
    wrong = {
        name
        for name in made_names()
        for key, said in allowed("lspci -vvv", made(name)).items()
        if said not in ("unknown", expected(made(name))[key])
    }
    assert wrong == {"snc"}


@pytest.mark.parametrize("name", made_names())
def test_a_fixture_says_that_it_is_synthetic_and_agrees_with_itself(name: str):
    server = made(name)
    head = (CAPTURED.parent / "servers" / f"{name}.yaml").read_text().splitlines()[0]
    assert head.startswith("# SYNTHETIC")
    assert server.named("gpu")
    for gpu, ssd in pairs_of(server):
        said = server.expected[gpu.name][ssd.name]
        shared = [one for one, other in zip(gpu.chain, ssd.chain, strict=False) if one is other]
        assert (said in ("PIX", "PXB")) == bool(shared), (gpu.name, ssd.name)
        assert (said == "PHB") == (gpu.root_complex == ssd.root_complex and not shared), (gpu.name, ssd.name)
        one, other = socket_of(server, gpu), socket_of(server, ssd)
        assert (said == "SYS") == (one is not None and other is not None and one != other), (gpu.name, ssd.name)


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("name", made_names())
def test_every_source_lists_the_same_devices(name: str, source: str, shown: Shown):
    server = made(name)
    found = {device.address: device for device in shown.listing(name, source).devices}
    assert sorted(found) == sorted(function.address for function in server.functions)
    for function in server.functions:
        device = found[function.address]
        assert device.vendor == function.kind.vendor
        assert device.class_code[:4] == function.kind.class_code[:4]
        if device.path is not None:
            ours = [hop.address for hop in device.local_path]
            assert ours == [bridge.address for bridge in function.chain]


@pytest.mark.parametrize("source", [source for source in SOURCES if source != "lspci -vmm"])
@pytest.mark.parametrize("name", made_names())
def test_every_source_says_the_same_links(name: str, source: str, shown: Shown):
    """Also what each port is, and how ACS is set; hwloc says of all this only how fast a link is."""
    ours = {function.address: function for function in made(name).functions}
    listed = shown.server(name, source)
    for device in (*listed.gpu_devices, *listed.ssd_devices):
        for address, link in [(device.address, device.link), *((hop.address, hop.link) for hop in device.local_path)]:
            function = ours[address]
            trained = function.trained or (None, None)
            if source.startswith("hwloc"):
                gbps = function.trained and pytest.approx(
                    lane_gbps(function.trained[0]) * function.trained[1], rel=0.02
                )
                assert link.gbps == gbps
            else:
                assert (link.speed, link.width) == trained
                assert (link.max_speed, link.max_width) == function.best
        for hop in device.local_path:
            function = ours[hop.address]
            if source.startswith("hwloc"):
                assert (hop.kind, hop.acs) == ("Unknown", None)
                continue
            assert hop.kind == {4: "RootPort", 5: "SwitchUpstream", 6: "SwitchDownstream"}[function.port_type or 0]
            said = {"redirect": "Redirect", "off": "Direct"}.get(function.acs)
            if hop.kind != "SwitchUpstream":
                assert hop.acs == said


@pytest.mark.parametrize(
    ("name", "source"),
    [
        (name, source)
        for name in made_names()
        for source in DUMPS
        if allowed(source, made(name)) == expected(made(name))
    ],
)
def test_pairs_do_not_depend_on_the_source(name: str, source: str, shown: Shown):
    """Where a source knows all distances. lspci, which knows links and ACS too, also finds the same faults."""
    theirs, ours = analyse(shown.server(name, source)), analyse(shown.server(name, "sysfs"))
    said = [(pair.gpu, pair.ssd, pair.distance) for pair in theirs.pairs]
    assert said == [(pair.gpu, pair.ssd, pair.distance) for pair in ours.pairs]
    if source != "lspci -vmm":  # it lists no bridges
        assert theirs.server.has_switches == ours.server.has_switches
    if source in ("lspci -vvv", "lspci -vvvnn"):
        assert theirs.faults == ours.faults
        assert theirs.pairs == ours.pairs


@pytest.mark.parametrize("name", ["dgx2-like", "mi300x-like", "multifunction", "relaxed", "sriov", "vmd"])
def test_without_root_the_place_of_a_bridge_tells_what_it_is(name: str, tmp_path: Path):
    root = write_sysfs(made(name), tmp_path)
    for config in (root.sys / "devices").rglob("config"):
        config.write_bytes(config.read_bytes()[:64])  # what the kernel shows to others
    server = read_listing(root).server(RULES)
    assert {hop.kind for device in server.gpu_devices for hop in device.local_path} == {"Unknown"}
    assert table(server) == expected(made(name))


@pytest.mark.parametrize("name", made_names())
def test_a_flashnode_says_what_sysfs_says(name: str, shown: Shown):
    assert through_flashnode(shown.server(name, "sysfs")) == expected(made(name))


def through_flashnode(server: Server) -> Table:
    """The distances after devices have been written into a FlashNode's status and read from it."""

    def there_and_back(device: PciDevice, class_code: str, *, gpu: bool) -> PciDevice:
        return from_location(to_location(device, gpu=gpu), class_code)

    gpus = [there_and_back(device, device.class_code, gpu=True) for device in server.gpu_devices]
    ssds = [there_and_back(device, NVME_CLASS, gpu=False) for device in server.ssd_devices]
    return {(gpu.address, ssd.address): distance(gpu, ssd).value for gpu in gpus for ssd in ssds}


def test_buses_are_numbered_depth_first_as_linux_does():
    """The captured gpu-a is described here as in the lab's specification: it must get the numbers that Linux gave."""
    server = made("lab-gpu-a")
    captured = yaml.safe_load((CAPTURED / "gpu-a" / "expect.yaml").read_text())["names"]
    ours = {**server.named("gpu"), **server.named("ssd")}
    assert {name: function.address for name, function in ours.items()} == captured


# --- the writers beside the real tools ---

LSPCI = shutil.which("lspci")
LSTOPO = shutil.which("lstopo-no-graphics") or shutil.which("lstopo")


def comparable(listing: Listing) -> list[tuple[object, ...]]:
    """A listing without names, which follow the pci.ids of the machine that a tool runs on."""
    return sorted(
        (
            device.address,
            device.vendor,
            device.class_code,
            device.numa_node,
            device.socket,
            device.root_complex,
            device.path,
            device.link,
            device.detached,
        )
        for device in listing.devices
    )


@pytest.mark.skipif(LSPCI is None, reason="there is no lspci")
@pytest.mark.parametrize("source", [source for source in DUMPS if source.startswith("lspci")])
@pytest.mark.parametrize("name", made_names())
def test_lspci_itself_says_of_a_made_up_sysfs_what_we_make_up_for_it(name: str, source: str, shown: Shown):
    sysfs = shown.sysfs(name).sys / "bus/pci"
    argv = [LSPCI, "-A", "linux-sysfs", "-O", f"sysfs.path={sysfs}", source.partition(" ")[2]]
    real = subprocess.run(list(filter(None, argv)), capture_output=True, check=True).stdout
    assert comparable(read_dump(real)) == comparable(shown.listing(name, source))


@pytest.mark.skipif(LSTOPO is None, reason="there is no lstopo")
@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("name", [name for name in made_names() if not name.startswith("vmd")])
def test_hwloc_itself_says_of_a_made_up_sysfs_what_we_make_up_for_it(name: str, version: int, shown: Shown):
    """Not of VMDs: few builds of hwloc show what is behind one."""
    environment = {"HWLOC_FSROOT": str(shown.sysfs(name).path), "HWLOC_COMPONENTS": "linux,stop", "PATH": os.defpath}
    flags = "v1" if version == 1 else "0"
    argv = [LSTOPO, "--whole-io", "--of", "xml", "--export-xml-flags", flags, "-"]
    real = subprocess.run(list(filter(None, argv)), capture_output=True, check=True, env=environment).stdout
    assert comparable(read_dump(real)) == comparable(shown.listing(name, f"hwloc {version}"))


# --- captured servers ---


def captured_listing(name: str, source: str, folder: Path) -> Listing:
    if source == "sysfs":
        return read_listing(write_captured(name, folder))
    return read_dump((CAPTURED / name / CAPTURED_FILES[source]).read_bytes())


def captured_expected(name: str) -> Table:
    document = yaml.safe_load((CAPTURED / name / "expect.yaml").read_text())
    names = document["names"]
    return {(names[gpu], names[ssd]): said for gpu, row in document["expect"].items() for ssd, said in row.items()}


@pytest.mark.parametrize("source", ["sysfs", *CAPTURED_FILES])
@pytest.mark.parametrize("name", captured_names())
def test_every_source_says_the_same_of_a_captured_server(name: str, source: str, tmp_path: Path):
    said = table(captured_listing(name, source, tmp_path).server(RULES))
    known = captured_expected(name)
    if source == "lspci -vmm":
        known = {key: expected if expected == "SYS" else "unknown" for key, expected in known.items()}
    assert said == known


@pytest.mark.parametrize("name", captured_names())
def test_sysfs_and_lspci_say_the_same_of_the_ports_of_a_captured_server(name: str, tmp_path: Path):
    ours = captured_listing(name, "sysfs", tmp_path).server(RULES)
    theirs = captured_listing(name, "lspci -vvvnn", tmp_path).server(RULES)
    for one in (*ours.gpu_devices, *ours.ssd_devices):
        other = theirs.device(one.address)
        assert one.link == other.link
        assert [hop.address for hop in one.bridges] == [hop.address for hop in other.bridges]
        for mine, its in zip(one.bridges, other.bridges, strict=True):
            assert (mine.kind, mine.link) == (its.kind, its.link)
            assert mine.acs == its.acs or mine.kind == "SwitchUpstream"  # an upstream port redirects nothing
        assert one.numa_node == other.numa_node
    assert ours.has_switches == theirs.has_switches


@pytest.mark.parametrize("name", captured_names())
def test_a_captured_server_comes_back_from_a_flashnode(name: str, tmp_path: Path):
    assert through_flashnode(captured_listing(name, "sysfs", tmp_path).server(RULES)) == captured_expected(name)


@pytest.mark.parametrize("name", captured_names())
def test_a_captured_server_says_its_name(name: str, tmp_path: Path):
    assert captured_listing(name, "sysfs", tmp_path).name == name
    assert captured_listing(name, "hwloc 1", tmp_path).name == name
    assert captured_listing(name, "hwloc 2", tmp_path).name == name


def test_all_distances_occur():
    said = {value for name in made_names() for value in expected(made(name)).values()}
    assert said == {item.value for item in Distance}
