from __future__ import annotations

import pytest

from lab import pcie, spec
from lab.errors import LabError
from lab.spec import Empty, Gpu, Root, ServerSpec, Ssd, Switch

SSD = Ssd("A", "K1", 1 << 30)


def server(*roots, nodes=1, cpus=2):
    plain = spec.parse({"name": "s", "address": "10.77.0.9/24", "numa": [{"node": 0}]})
    return ServerSpec(plain.name, plain.address, 1 << 30, cpus, nodes, plain.uuid, roots)


def chain(devices, last):
    """Drivers from a device up to its root complex."""
    by_id = {device["id"]: device for device in devices if "id" in device}
    found = []
    name = last
    while name in by_id:
        found.append(by_id[name]["driver"])
        name = by_id[name].get("bus", by_id[name].get("subsys"))
    return [*found, name]


def test_a_device_on_bus_0_hangs_on_a_root_port_of_the_machine():
    devices = pcie.layout(server(Root(0, 0, (Gpu("g"),)))).devices
    assert chain(devices, "gpu-g") == ["bochs-display", "pcie-root-port", "pcie.0"]


def test_another_bus_is_an_expander_with_its_numa_node():
    devices = pcie.layout(server(Root(0x80, 1, (Gpu("g"),)), nodes=2)).devices
    assert devices[0] == {"driver": "pxb-pcie", "id": "pxb128", "bus": "pcie.0", "bus_nr": 128, "numa_node": 1}
    assert chain(devices, "gpu-g") == ["bochs-display", "pcie-root-port", "pxb-pcie", "pcie.0"]


def test_switches_have_an_upstream_port_and_a_downstream_port_for_each_device():
    tree = Switch((Gpu("g0"), Switch((Gpu("g1"),))))
    devices = pcie.layout(server(Root(0, 0, (tree,)))).devices
    switch = ["xio3130-downstream", "x3130-upstream"]
    assert chain(devices, "gpu-g0") == ["bochs-display", *switch, "pcie-root-port", "pcie.0"]
    assert chain(devices, "gpu-g1") == ["bochs-display", *switch, *switch, "pcie-root-port", "pcie.0"]


@pytest.mark.parametrize("name", ["gpu-a", "gpu-b", "strangers"])
def test_everything_is_added_after_what_it_hangs_on_and_slots_are_unique(name):
    one = spec.load(name)
    devices = pcie.all_devices(one, pcie.layout(one).ssds)
    seen = {"pcie.0"}
    for device in devices:
        assert device.get("bus", "pcie.0") in seen
        assert device.get("subsys", "pcie.0") in seen
        seen.add(device["id"])
    slots = [device["slot"] for device in devices if "slot" in device]
    assert len(set(slots)) == len(slots)


def test_an_ssd_is_in_its_port_and_an_unplugged_one_is_not():
    one = server(Root(0, 0, (SSD, Empty("E"))))
    tree = pcie.layout(one)
    assert tree.ssds == {"A": SSD}
    assert list(tree.ports) == ["A", "E"]
    assert "nvme" in [device["driver"] for device in pcie.all_devices(one, {"A": SSD})]
    assert "nvme" not in [device["driver"] for device in pcie.all_devices(one, {})]
    (moved,) = (device for device in pcie.all_devices(one, {"E": SSD}) if device["driver"] == "nvme")
    assert moved["bus"] == tree.ports["E"].bus


def test_a_plain_ssd_holds_its_only_namespace():
    assert pcie.ssd_devices(SSD, "port1") == [
        {"driver": "nvme", "id": "ssd-K1", "serial": "K1", "bus": "port1", "drive": "disk-K1-n1"}
    ]


def test_the_port_of_a_gpu_is_none_for_ssds():
    assert list(pcie.layout(server(Root(0, 0, (Switch((Gpu("g"), SSD)),)))).ports) == ["A"]


def test_a_smart_warning_is_there_from_the_start_and_only_in_its_ssd():
    other = Ssd("B", "K2", 1 << 30)
    one = server(Root(0, 0, (SSD, other)))
    found = {
        device["serial"]: device.get("smart_critical_warning")
        for device in pcie.all_devices(one, {"A": SSD, "B": other}, {"K2": 4})
        if device["driver"] == "nvme"
    }
    assert found == {"K1": None, "K2": 4}


@pytest.mark.parametrize(
    ("ssd", "holders", "start"),
    [
        (SSD, ["ssd-K1"], False),
        (Ssd("A", "K1", 1 << 30, namespaces=0), [], False),
        (Ssd("A", "K1", 1 << 30, namespaces=2), ["ns-K1-n1", "ns-K1-n2"], True),
        (Ssd("A", "K1", 1 << 30, dual_port=True), ["ns-K1-n1"], True),
    ],
)
def test_who_holds_the_drives_and_whether_that_can_be_plugged_in(ssd, holders, start):
    one = server(Root(0, 0, (ssd,)))
    assert [device["id"] for device in pcie.all_devices(one, {"A": ssd}) if "drive" in device] == holders
    assert [pcie.drive_holder(ssd, number) for number in range(1, ssd.namespaces + 1)] == holders
    assert pcie.needs_start(ssd) == start


@pytest.mark.parametrize("count", [0, 2])
def test_an_ssd_can_have_no_or_several_namespaces(count):
    several = Ssd("A", "K1", 1 << 30, namespaces=count)
    controller, *namespaces = pcie.ssd_devices(several, "port1")
    assert "drive" not in controller
    assert [namespace["nsid"] for namespace in namespaces] == list(range(1, count + 1))


def test_the_namespaces_of_a_dual_port_ssd_stay_when_its_controller_goes():
    dual = Ssd("A", "K1", 1 << 30, dual_port=True)
    one = server(Root(0, 0, (dual,)))
    drivers = [device["driver"] for device in pcie.all_devices(one, {"A": dual})]
    assert drivers == ["pcie-root-port", "nvme-subsys", "nvme", "nvme-ns"]
    (controller,) = pcie.ssd_devices(dual, "port1")
    assert controller["subsys"] == "subsys-K1"


def test_memory_and_cpus_are_divided_between_numa_nodes():
    words = " ".join(pcie.numa_arguments(server(nodes=2, cpus=4)))
    assert "size=512M" in words
    assert "node,nodeid=0,memdev=memory0,cpus=0-1" in words
    assert "node,nodeid=1,memdev=memory1,cpus=2-3" in words


def test_a_single_cpu_is_the_first_numa_node_s():
    words = " ".join(pcie.numa_arguments(server(nodes=2, cpus=1)))
    assert "-smp 1,sockets=1,maxcpus=1" in words
    assert "node,nodeid=0,memdev=memory0,cpus=0-0" in words
    assert words.endswith("node,nodeid=1,memdev=memory1")


def test_cpus_that_cannot_be_divided_are_refused():
    with pytest.raises(LabError, match="3 CPUs"):
        pcie.numa_arguments(server(nodes=2, cpus=3))
