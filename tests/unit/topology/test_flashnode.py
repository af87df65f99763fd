"""What a FlashNode's status tells of a server is the server."""

from __future__ import annotations

from dataclasses import replace

from kubeflash.api.v1alpha1 import FlashNode
from kubeflash.topology.analysis import analyse
from kubeflash.topology.flashnode import from_location, server_of, to_location
from kubeflash.topology.tree import UNSAID, Hop, Link, PciDevice
from support.objects import gpu_json, node, ssd_json
from support.trees import gpu, place

NAMELESS = {"vendor": "", "device": "", "class_code": ""}


def test_a_place_survives_the_api():
    behind_vmd = PciDevice(
        "10000:e1:00.0", "", "", "", 1, "pci0000:e0", (Hop("0000:e0:05.5"), Hop("10000:e0:02.0", "RootPort")), socket=1
    )
    assert from_location(to_location(behind_vmd)) == behind_vmd
    ssd = place("4a R4a:01.0 U4b:00.0 D4c:01.0 4e:00.0", acs={"4c:01.0": "Redirect"}, link=Link(2.5, 4, 32.0, None))
    assert from_location(to_location(ssd)) == replace(ssd, **NAMELESS)


def test_the_speed_of_a_gpu_that_idles_is_not_told_so_that_the_status_does_not_change_with_every_nap():
    awake = gpu("4a R4a:01.0 U4b:00.0 D4c:00.0 4d:00.0", ports={"4a:01.0": UNSAID, "4b:00.0": UNSAID})
    naps = []
    for speed in (2.5, 5.0):
        link = Link(speed, 16, 32.0, 16)
        ports = {"4a:01.0": UNSAID, "4b:00.0": UNSAID, "4c:00.0": link}
        asleep = gpu("4a R4a:01.0 U4b:00.0 D4c:00.0 4d:00.0", link=link, ports=ports)
        naps.append(to_location(asleep, gpu=True))
        assert from_location(naps[-1]).link == Link(None, 16, 32.0, 16)
    assert naps[0] == naps[1]
    assert from_location(to_location(awake, gpu=True)).link == awake.link


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
