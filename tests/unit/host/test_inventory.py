"""The whole discovery: on made-up servers, and on this very machine."""

from __future__ import annotations

import time

from kubeflash.host.inventory import discover
from kubeflash.host.root import HostRoot
from kubeflash.topology.devices import GpuRules
from kubeflash.topology.pairing import pair
from support.sysfs_builder import DOWNSTREAM, ROOT_PORT, UPSTREAM, MadeUpServer, Namespace


def eight_gpu_server(server: MadeUpServer) -> None:
    """8 GPUs and 32 SSDs: a switch for each GPU and 4 SSDs, 4 switches a socket, and 200 devices of other kinds."""
    server.numa("0-1")
    for number in range(8):
        bus = 0x20 * number
        numa = number // 4
        switch = f"pci0000:{bus:02x}/0000:{bus:02x}:01.0/0000:{bus + 1:02x}:00.0"
        server.ports(switch, [ROOT_PORT, UPSTREAM])
        for place in range(5):
            port = server.ports(f"{switch}/0000:{bus + 2:02x}:{place:02x}.0", [DOWNSTREAM])
            path = f"{port}/0000:{bus + 3 + place:02x}:00.0"
            if place == 0:
                server.gpu(path, numa=numa)
            else:
                server.ssd(path, f"S{number}{place}", [Namespace()], numa=numa)
        for other in range(25):
            server.pci(f"pci0000:{bus:02x}/0000:{bus:02x}:{other + 2:02x}.0", "8086", "0b00", "088000", numa=numa)


def test_a_server_of_eight_gpus(server: MadeUpServer):
    server.able()
    eight_gpu_server(server)
    found = discover(server.root, GpuRules())
    assert (len(found.gpus), len(found.ssds), found.problems) == (8, 32, ())
    assert found.system_uuid == "4c4c4544-0042-3510-8054-b4c04f4d3732"
    assert found.kernel.release == "6.12.1-test"
    assert found.switched
    assert set(found.gpu_facts) == {gpu.address for gpu in found.gpus}
    pairs = pair(found.gpus, [ssd.pci for ssd in found.ssds])
    assert {item.distance for item in pairs} == {"PIX"}
    assert len({item.gpu for item in pairs}) == 8


def test_discovery_is_cheap(server: MadeUpServer):
    eight_gpu_server(server)
    took = []
    for _ in range(5):
        start = time.thread_time()
        discover(server.root, GpuRules())
        took.append(time.thread_time() - start)
    assert min(took) < 0.1  # seconds of processor time: far from what it takes, and far below what anybody would notice


def test_what_an_admin_should_know(server: MadeUpServer):
    server.write("sys/class/dmi/id/product_uuid", "Not Settable\n")
    for number in (1, 2):
        port = server.ports(f"pci0000:00/0000:00:{number:02x}.0", [ROOT_PORT], readable=64)
        server.ssd(f"{port}/0000:{number:02x}:00.0", "TWIN")
    found = discover(server.root, GpuRules())
    assert found.system_uuid == ""
    twins, identity, bridges = found.problems[:2], found.problems[2], found.problems[3]
    assert all("TWIN-1" in problem for problem in twins)
    assert "machine-id" in identity
    assert "CAP_SYS_ADMIN" in bridges


def test_a_switch_on_a_card_or_none_is_no_switch(server: MadeUpServer):
    port = server.ports("pci0000:00/0000:00:01.0", [ROOT_PORT])
    server.gpu(f"{port}/0000:01:00.0")
    card = server.ports("pci0000:00/0000:00:02.0/0000:02:00.0/0000:03:00.0", [ROOT_PORT, UPSTREAM, DOWNSTREAM])
    server.gpu(f"{card}/0000:04:00.0")
    server.ssd(f"{server.ports('pci0000:00/0000:00:03.0', [ROOT_PORT])}/0000:05:00.0", "S")
    assert not discover(server.root, GpuRules()).switched


def test_an_empty_ssd_is_a_problem_with_what_to_do(server: MadeUpServer):
    server.ssd("pci0000:00/0000:00:01.0", "EMPTY", [])
    server.able()
    (problem,) = discover(server.root, GpuRules()).problems
    assert "EMPTY-0" in problem
    assert "nvme create-ns" in problem


def test_what_the_kernel_lacks_is_a_problem_with_what_to_do(server: MadeUpServer):
    server.able()
    why = "module nvmet could not be loaded: nobody may"
    (problem,) = discover(server.root, GpuRules(), {"nvmet": why}).problems
    assert problem == f"its kernel cannot export volumes to other servers: {why}"


def test_an_empty_machine(tmp_path):
    found = discover(HostRoot(tmp_path), GpuRules())
    assert (found.gpus, found.ssds, found.system_uuid) == ((), (), "")


def test_this_very_machine():
    found = discover(HostRoot(), GpuRules.parse(["1234:0380"]))
    assert found.kernel.release
    assert len({ssd.id for ssd in found.ssds}) == len(found.ssds)
    assert all(device.root_complex.startswith("pci") for device in found.gpus)
