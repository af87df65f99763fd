"""What people read: at 80 columns, with nothing left out that matters."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest

from kubeflash.api.v1alpha1 import FlashNode
from kubeflash.cli import text
from kubeflash.cli.__main__ import _node_says
from kubeflash.cli.data import document
from kubeflash.cli.sources import from_node
from kubeflash.cli.terminal import Terminal, harmless_json
from kubeflash.topology.analysis import analyse
from kubeflash.topology.server import Facts
from kubeflash.topology.tree import Link
from support.objects import gpu_json, node, ssd_json
from support.trees import analysed, gpu, place

NARROW = Terminal(80)
G0 = gpu("4a R4a:01.0 U4b:00.0 D4c:00.0 4d:00.0")
S0 = place("4a R4a:01.0 U4b:00.0 D4c:01.0 4e:00.0")
FACTS = {
    G0.address: Facts(model="NVIDIA H100 80GB HBM3", uuid="GPU-7f2c0d2e-1111-2222-3333-444455556666"),
    S0.address: Facts(model="SAMSUNG MZWLO3T8HCLS-00A07", id="eui.0025384b31b0f1a2", bytes=1 << 41, free=3 << 39),
}


def test_the_tree_of_a_server():
    lines = text.topology(analysed(G0, S0, facts=FACTS), NARROW)
    assert lines[:3] == ["made-up   1 NUMA node   1 GPU   1 SSD", "NUMA 0", "└─ pci0000:4a"]
    whole = "\n".join(lines)
    assert re.search(r"├─ GPU 4d:00.0 +NVIDIA H\S* .*63\.0 GB/s", whole)
    assert re.search(r"└─ SSD 4e:00.0 +SAMSUNG .*15\.8 GB/s +PIX +free 1\.5Ti", whole)
    assert "4d:00.0  4e:00.0  PIX       15.8  yes  same switch 4b:00.0" in lines


def test_a_fault_stands_below_its_device_and_with_its_remedy_at_the_end():
    slow = place(
        "4a R4a:01.0 U4b:00.0 D4c:01.0 4e:00.0", link=Link(16.0, 4, 32.0, 4), ports={"4c:01.0": Link(16.0, 4, 32.0, 4)}
    )
    lines = text.topology(analysed(G0, slow), NARROW)
    below = lines.index(next(line for line in lines if "SSD 4e:00.0" in line)) + 1
    assert lines[below].strip() == "! trained at 16 GT/s, can do 32 GT/s: half the bandwidth is lost"
    assert "! 4e:00.0: trained at 16 GT/s, can do 32 GT/s: half the bandwidth is lost" in lines
    assert any(line.startswith("  → reseat the SSD") for line in lines)


def test_a_fault_of_a_switch_stands_below_it():
    half = Link(32.0, 8, 32.0, 16)
    ports = {"4a:01.0": half, "4b:00.0": half}
    one = gpu("4a R4a:01.0 U4b:00.0 D4c:00.0 4d:00.0", ports=ports, acs={"4c:00.0": "Redirect"})
    other = place("4a R4a:01.0 U4b:00.0 D4c:01.0 4e:00.0", ports=ports, acs={"4c:01.0": "Redirect"})
    lines = [line.strip(" │") for line in text.topology(analysed(one, other), NARROW)]
    at = next(number for number, line in enumerate(lines) if "switch 4b:00.0" in line)
    assert lines[at].split()[-2:] == ["31.5", "GB/s"]
    assert lines[at + 1] == "! trained at x8, can do x16: half the bandwidth is lost"
    assert lines[at + 2].startswith("! 4c:00.0, 4c:01.0: ACS redirects")
    assert "GPU 4d:00.0" in lines[at + 4]


def test_the_pairs_of_an_uplink_that_they_share_stand_below_the_switch_that_it_leads_to():
    ways = "4a R4a:01.0 U4b:00.0 D4c:00.0 U50:00.0 D51:{n:02x}.0 {b:02x}:00.0"
    gpus = [gpu("4a R4a:01.0 U4b:00.0 D4c:01.0 " + f"{0x60 + n:02x}:00.0") for n in range(1)]
    ssds = [place(ways.format(n=n, b=0x52 + n), ports={"4c:00.0": Link(8.0, 4, 8.0, 4)}) for n in range(4)]
    lines = [line.strip(" │") for line in text.topology(analysed(*gpus, *ssds), NARROW)]
    at = next(number for number, line in enumerate(lines) if "switch 50:00.0" in line)
    below = lines[at + 1 : next(number for number, line in enumerate(lines) if "SSD 52:00.0" in line)]
    assert sum(line.startswith("! 4 pairs share this uplink") for line in below) == 1
    assert sum(line.startswith("! 4 pairs share this uplink") for line in lines) == 1


def test_a_switch_on_a_gpus_card_has_the_gpus_link():
    way = "4a R4a:01.0 U4b:00.0 D4c:00.0 4d:00.0"
    analysis = analysed(
        replace(gpu(way), path=tuple(replace(h, on_card=h.address != "0000:4a:01.0") for h in G0.bridges)), S0
    )
    lines = text.topology(analysis, NARROW)
    assert any(re.search(r"switch 4b:00.0, on the card +63\.0 GB/s", line) for line in lines), lines
    assert any(re.search(r"GPU 4d:00.0 .* 63\.0 GB/s", line) for line in lines)


def test_an_ssd_that_no_pool_selects_does_not_look_like_one_in_use():
    ssds = [ssd_json("A", 0x13), ssd_json("B", 0x14, state="Claimed", pool="fast", free=1 << 30)]
    ssds += [ssd_json("C", 0x15, state="Claimed"), ssd_json("D", 0x16, state="Foreign", reason="mounted")]
    lines = text.topology(analyse(from_node(node("gpu-a", 1, [gpu_json(0x12)], ssds)).server), NARROW)
    ends = [next(line for line in lines if f"SSD {bus}:00.0" in line).rpartition("  ")[2] for bus in (13, 14, 15, 16)]
    assert ends == ["blank, in no pool", "free 1Gi", "claimed, in no pool", "left alone"]


def test_why_says_a_reason_once_and_counts_in_english():
    volume = {"id": "v", "number": 1, "start": 0, "bytes": 1 << 20}
    ssds = [
        ssd_json("A", 0x13, state="Foreign", reason="mounted at /"),
        ssd_json("B", 0x14, state="Claimed", pool="p", free=9),
    ]
    ssds[1]["volumes"] = [volume]
    source = from_node(node("gpu-a", 1, [gpu_json(0x12)], ssds))
    for address, once in (("0000:13:00.0", "mounted at /"), ("0000:14:00.0", "1 volume")):
        said = " ".join(text.why(analyse(source.server), address, NARROW, tuple(_node_says(source, address))))
        assert said.count(once) == 1
        assert "1 volumes" not in said


def test_what_has_no_model_is_called_by_its_ids():
    assert text.why(analysed(G0, S0), S0.address, NARROW)[0] == "4e:00.0 144d:a824: SSD of GPU 4d:00.0"


def test_what_is_the_same_of_several_gpus_is_said_once():
    gpus = [gpu(f"{n}a R{n}a:01.0 {n}b:00.0", numa=1) for n in range(5, 8)]
    lines = text.topology(analysed(*gpus, S0), NARROW)
    assert "! 5b:00.0, 6b:00.0, 7b:00.0: no neighbour SSD: the nearest is at SYS" in lines
    assert any("no GPU of this server has a neighbour SSD: the nearest is SYS" in line for line in lines)


def test_what_became_worse_and_what_is_not_said_stand_at_the_end():
    lines = text.pairs(analysed(G0, S0, unsaid=("nobody says ACS.",)), NARROW, ("GPU 4d:00.0 had more",))
    assert "! GPU 4d:00.0 had more" in lines
    assert lines[-1] == "? nobody says ACS."


def test_pairs_beside_what_pcie_root_alone_would_say():
    lines = text.pairs(analysed(G0, S0, place("4a R4a:02.0 50:00.0")), NARROW, matrix=True)
    assert "4d:00.0  pci0000:4a  4e:00.0:PIX 50:00.0:PHB  cannot tell 1 at PIX from 1 at" in "\n".join(lines)
    assert [line for line in lines if line.startswith("50:00.0")] == ["50:00.0  PHB"]


@pytest.mark.parametrize(
    ("devices", "facts", "words"),
    [
        ([G0], {}, "the server has no NVMe SSD"),
        ([S0], {}, "no GPU that counts as one"),
        ([G0, S0], {S0.address: Facts(reason="mounted")}, "all SSDs are left alone (4e:00.0)"),
    ],
)
def test_why_there_are_no_pairs(devices, facts, words: str):
    assert words in " ".join(text.pairs(analysed(*devices, facts=facts), NARROW))


def test_everything_about_one_device():
    foreign = {**FACTS, S0.address: Facts(model="SAMSUNG MZQL2", serial="S64H", reason="partition 1 is mounted at /")}
    analysis = analysed(G0, S0, place("5a R5a:01.0 5b:00.0", numa=1), facts=foreign)
    lines = text.why(analysis, S0.address, NARROW)
    assert lines[0] == "4e:00.0 SAMSUNG MZQL2 (S64H): not usable: partition 1 is mounted at /"
    assert "  other GPUs: 4d:00.0 PIX" in lines
    lines = text.why(analysed(G0, S0, facts=FACTS), G0.address, NARROW)
    whole = " ".join(" ".join(lines).split())
    assert "GPU with SSD 4e:00.0" in whole
    assert "pci0000:4a > root port 4a:01.0 > switch 4b:00.0 > port 4c:00.0 > 4d:00.0" in whole
    assert "4e:00.0: PIX, 15.8 GB/s: same switch 4b:00.0" in whole
    assert "peer-to-peer: yes" in whole


def large(gpus: int, ssds: int):
    made = [
        gpu(f"{n:02x} R{n:02x}:01.0 U{n + 0x40:02x}:00.0 D{n + 0x60:02x}:00.0 {n + 0x80:02x}:00.0") for n in range(gpus)
    ]
    for number in range(ssds):
        n = number % gpus
        made.append(
            place(
                f"{n:02x} R{n:02x}:01.0 U{n + 0x40:02x}:00.0 "
                f"D{n + 0x60:02x}:{number // gpus + 1:02x}.0 {number + 0xA0:02x}:00.0"
            )
        )
    facts = {
        item.address: Facts(model="A MODEL WITH A VERY LONG NAME INDEED " * 3, id="eui." + "0" * 32, free=1 << 42)
        for item in made
    }
    return analysed(*made, facts=facts)


@pytest.mark.parametrize("columns", [40, 80, 132])
@pytest.mark.parametrize(
    "analysis", [large(8, 32), large(16, 16), analysed(G0, S0, facts=FACTS)], ids=["8x32", "16x16", "1x1"]
)
def test_no_line_is_too_long(analysis, columns: int):
    terminal = Terminal(columns)
    lines = [*text.topology(analysis, terminal), *text.pairs(analysis, terminal, matrix=True)]
    lines += text.why(analysis, analysis.server.ssds[0], terminal)
    tolerated = 80 if columns == 40 else columns  # fewer than 80 columns may cost a line break
    assert max(map(len, lines)) <= tolerated


def test_a_hostile_name_is_harmless():
    facts = {S0.address: Facts(model="\x1b[2J\x07EVIL\n")}
    assert not any(re.search(r"[\x00-\x1f]", line) for line in text.topology(analysed(G0, S0, facts=facts), NARROW))


def test_nothing_that_a_flashnode_says_reaches_the_terminal_as_it_is():
    """An agent on a server that was broken into writes what it likes."""
    evil = "\x1b]0;X\x07\x9b2J\u202e"
    body = node("gpu-a", 1, [gpu_json(0x12)], [ssd_json("A", 0x13), ssd_json("B", 0x23)]).to_json()
    hostile = FlashNode.model_validate(_poisoned(body, evil))
    source = from_node(hostile)
    analysis = analyse(source.server, previous=source.previous)
    lines = [*text.topology(analysis, NARROW, source.history), *text.pairs(analysis, NARROW, (evil,), matrix=True)]
    for address in (*source.server.gpus, *source.server.ssds):
        lines += text.why(analysis, address, NARROW, tuple(_node_says(source, address)))
    assert not re.search(r"[\x00-\x1f\x7f-\x9f\u202e]", "".join(lines))
    drawn = harmless_json(json.dumps(document(analysis), ensure_ascii=False))
    assert not re.search(r"[\x7f-\x9f\u202e]", drawn)
    assert json.loads(drawn) == json.loads(json.dumps(document(analysis)))


def _poisoned(value, evil: str):
    """The same with every free text of it turned hostile."""
    free = {"model", "uuid", "id", "serial", "reason", "firmware", "why", "name"}
    if isinstance(value, dict):
        return {
            key: item + evil if key in free and isinstance(item, str) else _poisoned(item, evil)
            for key, item in value.items()
        }
    return [_poisoned(item, evil) for item in value] if isinstance(value, list) else value


def test_a_place_that_the_source_does_not_say_has_its_own_region():
    lost = replace(S0, root_complex="", path=None, numa_node=None)
    assert "place not said by this source" in text.topology(analysed(G0, lost), NARROW)
