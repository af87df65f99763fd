from __future__ import annotations

import time

import pytest

from kubeflash.host.root import HostRoot
from kubeflash.host.sockets import Sockets, read_sockets
from support.sysfs_builder import MadeUpServer


@pytest.mark.parametrize("siblings", [True, False])
def test_two_sockets_of_one_node_each(server: MadeUpServer, siblings: bool):
    server.processors({0: "0-3,8-11", 1: "4-7,12-15"}, {0: "0-3,8-11", 1: "4-7,12-15"}, siblings=siblings)
    assert read_sockets(server.root) == Sockets({0: 0, 1: 1})


def test_sub_numa_clusters_are_one_socket(server: MadeUpServer):
    server.processors({0: "0-7", 1: "8-15"}, {0: "0-3", 1: "4-7", 2: "8-11", 3: "12-15"})
    assert read_sockets(server.root).nodes == {0: 0, 1: 0, 2: 1, 3: 1}


def test_a_node_of_several_sockets_says_none(server: MadeUpServer):
    """Firmware that interleaves nodes, numa=off, and QEMU that makes a socket of each CPU."""
    server.processors({0: "0", 1: "1", 2: "2", 3: "3"}, {0: "0-3"})
    found = read_sockets(server.root)
    assert found == Sockets({}), "that there is one node says nothing about which socket is near"
    assert found.node(-1) is None
    assert found.socket(found.node(0)) is None


def test_a_node_without_cpus_says_none(server: MadeUpServer):
    server.processors({0: "0-3", 1: "4-7"}, {0: "0-3", 1: "4-7", 2: ""})
    found = read_sockets(server.root)
    assert [found.socket(node) for node in (0, 1, 2, 7, None)] == [0, 1, None, None, None]


def test_a_machine_of_one_socket_has_it_everywhere(server: MadeUpServer):
    server.processors({0: "0-3"}, {0: "0-1", 1: "2-3", 2: ""})
    found = read_sockets(server.root)
    assert {found.socket(node) for node in (0, 1, 2, None)} == {0}
    assert found.node(-1) is None


def test_nodes_and_packages_have_any_numbers(server: MadeUpServer):
    server.processors({36: "0-3", 3002: "4-7"}, {0: "0-3", 8: "4-7"})
    assert read_sockets(server.root).nodes == {0: 36, 8: 3002}


def test_cpus_that_are_offline_do_not_count(server: MadeUpServer):
    server.processors({0: "0-3", 1: "4-7"}, {0: "0-3", 1: "4-7"})
    server.write("sys/devices/system/cpu/online", "1-3,6\n")
    server.write("sys/devices/system/node/node0/cpulist", "1-3\n")
    server.write("sys/devices/system/node/node1/cpulist", "6\n")
    assert read_sockets(server.root).nodes == {0: 0, 1: 1}


@pytest.mark.parametrize("package", ["-1", "rubbish", "", "0x0"])
def test_a_package_that_is_none_is_not_one(server: MadeUpServer, package: str):
    server.processors({0: "0-1"}, {0: "0-1"}, siblings=False)
    for cpu in (0, 1):
        server.write(f"sys/devices/system/cpu/cpu{cpu}/topology/physical_package_id", f"{package}\n")
    assert read_sockets(server.root) == Sockets({}, only_node=0)


def test_a_package_that_one_cpu_does_not_say_is_not_everybodys(server: MadeUpServer):
    server.processors({0: "0-1", 1: "2-3"}, {0: "0-1", 1: "2-3"}, siblings=False)
    (server.root.sys / "devices/system/cpu/cpu3/topology/physical_package_id").unlink()
    assert read_sockets(server.root) == Sockets({0: 0})


@pytest.mark.parametrize("garbage", ["rubbish", "0-", "-3", "0-99999999999", "3-0", "0,,1", "0-16384"])
def test_lists_of_cpus_can_be_garbage(server: MadeUpServer, garbage: str):
    server.processors({0: "0-3", 1: "4-7"}, {0: "0-3", 1: "4-7"})
    server.write("sys/devices/system/node/node1/cpulist", garbage)
    assert read_sockets(server.root).nodes == {0: 0}
    server.write("sys/devices/system/cpu/online", garbage)
    assert read_sockets(server.root).nodes == {}


def test_the_largest_list_takes_no_time(server: MadeUpServer):
    server.write("sys/devices/system/cpu/online", "0-16383")
    start = time.monotonic()
    assert read_sockets(server.root) == Sockets({})
    assert time.monotonic() - start < 5


def test_a_machine_that_says_nothing(tmp_path):
    assert read_sockets(HostRoot(tmp_path)) == Sockets({})
