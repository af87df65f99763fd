"""What a FlashNode's status tells of a server is the server."""

from __future__ import annotations

from dataclasses import replace

from kubeflash.api.v1alpha1 import FlashNode
from kubeflash.topology.analysis import analyse
from kubeflash.topology.flashnode import from_location, server_of, to_location
from kubeflash.topology.tree import Hop, Link, PciDevice
from support.objects import gpu_json, node, ssd_json
from support.trees import GEN4_X4, analysed, gpu, place

NAMELESS = {"vendor": "", "device": "", "class_code": ""}


def test_a_place_survives_the_api():
    behind_vmd = PciDevice(
        "10000:e1:00.0", "", "", "", 1, "pci0000:e0", (Hop("0000:e0:05.5"), Hop("10000:e0:02.0", "RootPort")), socket=1
    )
    assert from_location(to_location(behind_vmd)) == behind_vmd
    ssd = place("4a R4a:01.0 U4b:00.0 D4c:01.0 4e:00.0", acs={"4c:01.0": "Redirect"}, link=Link(2.5, 4, 32.0, None))
    assert from_location(to_location(ssd)) == replace(ssd, **NAMELESS)


def test_a_nap_of_a_gpu_does_not_change_the_status():
    told, pairs = [], []
    ssd = place("4a R4a:01.0 U4b:00.0 D4c:01.0 4e:00.0")
    for speed in (2.5, 5.0, 8.0, 16.0, 32.0):
        link = Link(speed, 16, 32.0, 16)
        one = gpu("4a R4a:01.0 U4b:00.0 D4c:00.0 4d:00.0", link=link, ports={"4c:00.0": link})
        told.append(to_location(one, gpu=True))
        [pair] = analysed(one, ssd).pairs
        pairs.append((pair.gbps, [fault for fault in pair.faults if fault.serious]))
    assert told == told[:1] * 5
    assert pairs == pairs[:1] * 5
    back = from_location(told[0])
    assert back.link == Link(None, 16, 32.0, 16)
    assert back.path[-1].link == Link(None, 16, 32.0, 16)
    assert back.path[0].link.speed == 32.0, "the link above the switch is not the GPU's"


def test_a_nap_of_a_gpu_with_a_switch_on_its_card_does_not_change_the_status():
    told, pairs = [], []
    for speed in (2.5, 16.0):
        sleeping = Link(speed, 16, 16.0, 16)
        ports = {"20:03.1": sleeping, "25:00.0": sleeping, "26:00.0": Link(2.5, 1, 2.5, 1)}
        one = gpu("20 R20:03.1 U25:00.0 D26:00.0 27:00.0", link=Link(2.5, 1, 2.5, 1), ports=ports)
        one = replace(one, path=tuple(replace(hop, on_card=hop.address != "0000:20:03.1") for hop in one.path))
        told.append(to_location(one, gpu=True))
        assert [hop.on_card for hop in from_location(told[-1]).path] == [False, True, True]
        [pair] = analysed(one, place("20 R20:01.1 21:00.0", link=GEN4_X4, ports={"20:01.1": GEN4_X4})).pairs
        pairs.append((round(pair.gbps, 1), [fault for fault in pair.faults if fault.serious]))
    assert told[0] == told[1]
    assert pairs == [(7.9, [])] * 2


def test_a_server_of_a_flash_node():
    ssds = [ssd_json("A", 0x13), {**ssd_json("A", 0x13, state="Foreign", reason="mounted"), "id": "A-2"}]
    ssds += [ssd_json("B", 0x23, state="Foreign", reason="partition 1 is mounted at /")]
    made = node("gpu-a", 1, [gpu_json(0x12), gpu_json(0x22)], ssds)
    there = server_of(made)
    assert (there.name, there.gpus, there.ssds) == (
        "gpu-a",
        ("0000:12:00.0", "0000:22:00.0"),
        ("0000:13:00.0", "0000:23:00.0"),
    )
    assert there.fact("0000:13:00.0").bytes == 2 << 30
    assert there.fact("0000:13:00.0").reason == ""
    assert there.fact("0000:23:00.0").reason == "partition 1 is mounted at /"
    assert there.fact("0000:12:00.0").model == "NVIDIA 2330"
    assert {(pair.gpu, pair.ssd): str(pair.distance) for pair in analyse(there).pairs} == {
        ("0000:12:00.0", "0000:13:00.0"): "PIX",
        ("0000:22:00.0", "0000:13:00.0"): "PHB",
    }


def test_whether_there_are_switches_is_believed():
    made = node("gpu-a", 1, [gpu_json(0x12)], [ssd_json("A", 0x13)])
    body = {"metadata": {"name": "gpu-a"}, "status": {**made.status.to_json(), "switched": False}}
    assert server_of(made).has_switches
    assert not server_of(FlashNode.from_json(body)).has_switches
