"""The picture, on servers of many shapes: complete, well-formed, nothing outside, nothing over something else."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Iterator
from xml.etree import ElementTree as ET

import pytest

from kubeflash.api.v1alpha1 import Distance
from kubeflash.cli.picture import draw
from kubeflash.topology.analysis import Analysis
from kubeflash.topology.faults import Fault
from kubeflash.topology.server import Facts
from kubeflash.topology.tree import UNSAID
from support.shapes import (
    SHAPES,
    SVG,
    Shelf,
    box_of,
    cards,
    divided_sockets,
    eight_with_32,
    eight_with_one,
    nested,
    no_neighbours,
    switch,
    texts,
    two,
    unplaced,
)


@pytest.fixture(scope="module", params=SHAPES, ids=lambda shape: shape.__name__)
def shape(request) -> tuple[Analysis, str, ET.Element]:
    analysis = request.param()
    text = draw(analysis)
    return analysis, text, ET.fromstring(text)


def numbers_of_paths(root: ET.Element) -> Iterator[tuple[float, float]]:
    for element in root.iter(f"{SVG}path"):
        if element.get("class") == "line":
            values = [
                float(value)
                for value in re.findall(r"-?[0-9.]+", element.attrib["d"].replace("V", " ").replace("H", " "))
            ]
            yield from zip(values[::2], values[1::2], strict=True)


def test_every_device_has_one_card(shape):
    analysis, text, root = shape
    wanted = {*analysis.server.gpus, *analysis.server.ssds}
    assert set(cards(root)) == wanted
    assert text.count('class="card ') == len(wanted)
    shown = set(texts(root))
    assert {address.removeprefix("0000:") for address in wanted} <= shown
    assert {f"G{number}" for number in range(len(analysis.server.gpus))} <= shown
    assert {f"S{number}" for number in range(len(analysis.server.ssds))} <= shown


def test_every_pair_has_a_badge_with_distance_and_bandwidth(shape):
    analysis, _, root = shape
    shown = texts(root)
    for number, pair in enumerate(analysis.pairs):
        badge = [
            words for words in shown if words.split()[:1] == [f"P{number}"] and str(pair.distance) in words.split()
        ]
        assert len(badge) == 1, (number, badge)
        assert pair.gbps is None or f"{pair.gbps:.1f} GB/s" in badge[0]


def test_every_fault_is_marked_and_listed(shape):
    analysis, _, root = shape
    description = " ".join((root.findtext(f"{SVG}desc") or "").split())
    tips = [element.text or "" for element in root.iter(f"{SVG}title")]
    shown = "\n".join(texts(root))
    for fault in analysis.faults:
        assert f"{fault.kind} {fault.address}" in description
        assert any(fault.kind in tip for tip in tips)
        assert f"\n{fault.kind}" in shown


def test_no_mark_is_without_its_entry_in_the_list(shape):
    _, _, root = shape
    end = max(bottom for _, _, _, bottom in cards(root).values())
    placed, listed = set(), []
    for group in root.iter(f"{SVG}g"):
        number, sign = group.findtext(f"{SVG}text", ""), group.find(f"{SVG}path")
        if group.get("class") == "mark" and sign is not None:
            in_list = float(sign.attrib["d"].split()[1].partition("L")[0]) > end
            listed += [number] if in_list else []
            placed |= set() if in_list else {number}
    assert sorted(map(int, listed)) == list(range(1, len(listed) + 1))
    assert placed <= set(listed)


def test_what_is_wrong_stands_beside_a_good_verdict():
    def pills(make) -> list[tuple[str, str]]:
        root = ET.fromstring(draw(make()))
        boxes = [
            (float(r.attrib["x"]), r.attrib["fill"]) for r in root.iter(f"{SVG}rect") if r.get("class") == "verdict"
        ]
        said = {float(t.attrib["x"]): t.text or "" for t in root.iter(f"{SVG}text") if t.attrib["y"] == "51.0"}
        return [(fill, min((x - left, text) for x, text in said.items() if x > left)[1]) for left, fill in boxes]

    green, amber = "#e2f3ec", "#fff3cd"
    assert pills(two) == [(green, "2 of 2 GPUs with a neighbour SSD (PIX)"), (amber, "1 fault")]
    assert pills(eight_with_32) == [(green, "8 of 8 GPUs with a neighbour SSD (PIX)")]
    assert pills(no_neighbours) == [(amber, "no neighbour SSD: nearest is NODE")]


def test_a_switch_on_a_gpus_card_has_the_gpus_link():
    shelf = Shelf()
    shelf.add("gpu", f"{switch(0x4A, 0)} 4d:00.0", link=UNSAID)
    shelf.add("ssd", "4a R4a:02.0 60:00.0")
    card = shelf.devices[0]
    hops = tuple(dataclasses.replace(hop, on_card=hop.kind != "RootPort") for hop in card.bridges)
    shelf.devices[0] = dataclasses.replace(card, path=hops)
    shown = texts(ET.fromstring(draw(shelf.analysis())))
    assert "switch 4b:00.0, on the card" in shown
    assert shown.count("32 GT/s x16 · 63.0 GB/s") == 2
    assert "link not said" not in shown


def test_no_text_is_outside(shape):
    _, _, root = shape
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    for element in root.iter(f"{SVG}text"):
        left, top, right, bottom = box_of(element)
        assert left >= 0, element.text
        assert top >= 0, element.text
        assert right <= width, element.text
        assert bottom <= height, element.text


def test_no_rectangle_is_outside_of_the_box_around_it(shape):
    _, _, root = shape
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    boxes = [
        tuple(float(element.attrib[name]) for name in ("x", "y", "width", "height"))
        for element in root.iter(f"{SVG}rect")
        if "x" in element.attrib
    ]
    assert all(x >= 0 and y >= 0 and x + w <= width and y + h <= height for x, y, w, h in boxes)
    frames = ("region", "socket", "root", "vmd", "port", "switch", "group", "neighbours")
    outer = [
        (x, y, x + w, y + h)
        for element in root.iter(f"{SVG}rect")
        if element.get("class") in frames
        for x, y, w, h in [[float(element.attrib[name]) for name in ("x", "y", "width", "height")]]
    ]
    for one, other in itertools.combinations([*outer, *cards(root).values()], 2):
        apart = one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]
        inside = _within(one, other) or _within(other, one)
        assert apart or inside, (one, other)


def _within(inner: tuple[float, ...], outer: tuple[float, ...]) -> bool:
    return all(
        (
            inner[0] >= outer[0] - 0.2,
            inner[1] >= outer[1] - 0.2,
            inner[2] <= outer[2] + 0.2,
            inner[3] <= outer[3] + 0.2,
        )
    )


def test_cards_do_not_overlap(shape):
    _, _, root = shape
    for (_, one), (_, other) in itertools.combinations(cards(root).items(), 2):
        assert one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]


def test_no_text_runs_into_another(shape):
    """In a card, and in the heading: what is on one line is side by side."""
    _, _, root = shape
    found = [(element.text, box_of(element)) for element in root.iter(f"{SVG}text")]
    for (one, a), (other, b) in itertools.combinations(found, 2):
        across = min(a[2], b[2]) - max(a[0], b[0])
        down = min(a[3], b[3]) - max(a[1], b[1])
        height = min(a[3] - a[1], b[3] - b[1])
        assert across <= 4 or down <= height * 0.45, (one, other)


def test_lines_stay_in_the_picture(shape):
    _, _, root = shape
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    assert all(0 <= x <= width and 0 <= y <= height for x, y in numbers_of_paths(root))


def test_it_is_self_contained_and_titled(shape):
    _, text, root = shape
    names = {element.tag.removeprefix(SVG) for element in root.iter()}
    assert names <= {"svg", "title", "desc", "rect", "text", "path", "circle", "g"}
    assert not re.search(r"\b(href|url\(|style|on[a-z]+=)", text.replace("data-address", ""))
    assert text.count("http") == text.count("http://www.w3.org/2000/svg") == 1
    assert root.findtext(f"{SVG}title")
    assert root.findtext(f"{SVG}desc")


@pytest.mark.parametrize("make", SHAPES, ids=lambda make: make.__name__)
def test_the_same_server_gives_the_same_picture(make):
    assert draw(make()) == draw(make())


@pytest.mark.parametrize(
    ("make", "verdict"),
    [
        (two, "2 of 2 GPUs with a neighbour SSD (PIX)"),
        (nested, "16 of 16 GPUs with a neighbour SSD (PXB)"),
        (eight_with_one, "8 of 8 GPUs with a neighbour SSD (PHB: no shared PCIe switch)"),
        (no_neighbours, "no neighbour SSD: nearest is NODE"),
        (unplaced, "which SSD is a GPU's neighbour is not said by this source"),
    ],
)
def test_the_verdict(make, verdict):
    assert verdict in texts(ET.fromstring(draw(make())))


def test_neighbours_are_in_one_frame():
    analysis = eight_with_32()
    root = ET.fromstring(draw(analysis))
    frames = [
        (x, y, x + w, y + h)
        for element in root.iter(f"{SVG}rect")
        if element.get("class") == "neighbours"
        for x, y, w, h in [[float(element.attrib[name]) for name in ("x", "y", "width", "height")]]
    ]
    assert len(frames) == 8
    placed = cards(root)
    for pair in analysis.pairs:
        assert pair.distance is Distance.PIX
        assert any(_within(placed[pair.gpu], frame) and _within(placed[pair.ssd], frame) for frame in frames)


def test_a_full_server_fits_on_a_slide():
    _, _, width, height = map(float, ET.fromstring(draw(eight_with_32())).attrib["viewBox"].split())
    assert (width, height <= 900) == (1600, True)


def test_a_place_that_is_not_said_is_not_drawn_as_one():
    shown = texts(ET.fromstring(draw(unplaced())))
    assert "place not said by this source" in shown
    assert "somewhere below pci0000:8a, NUMA node 1" in shown
    assert not any(words.startswith(("host bridge", "switch")) for words in shown)


def test_a_refused_ssd_says_why():
    shown = " ".join(texts(ET.fromstring(draw(two()))))
    assert "refused: partition table" in shown


def test_an_ssd_that_no_pool_selects_says_so():
    shelf = Shelf()
    shelf.add("gpu", f"{switch(0x4A, 0)} 4e:00.0")
    shelf.add("ssd", f"{switch(0x4A, 1)} 4f:00.0", facts=Facts(bytes=1 << 40, note="blank, in no pool"))
    assert "1Ti, blank, in no pool" in " ".join(texts(ET.fromstring(draw(shelf.analysis()))))


def test_a_card_says_in_full_what_is_cut_off_on_it():
    shelf = Shelf()
    shelf.add("gpu", f"{switch(0x4A, 0)} 4e:00.0", facts=Facts(model="NVIDIA " + "very " * 20 + "long"))
    reason = "in use: " + "a reason of many words, " * 5 + "at last"
    shelf.add("ssd", f"{switch(0x4A, 1)} 4f:00.0", facts=Facts(model="KIOXIA KCM7", reason=reason))
    root = ET.fromstring(draw(shelf.analysis()))
    tips = {group.findtext(f"{SVG}title", ""): cards(group) for group in root.iter(f"{SVG}g")}
    gpu, ssd = (
        next(tip for tip, held in tips.items() if address in held) for address in ("0000:4e:00.0", "0000:4f:00.0")
    )
    assert gpu.startswith("G0 4e:00.0: NVIDIA very ")
    assert "very long;" in gpu
    assert ssd.startswith("S0 4f:00.0: KIOXIA KCM7;")
    assert ssd.endswith(f"refused: {reason}")
    assert not any("at last" in words for words in texts(root))


def test_one_remedy_for_differing_messages_says_of_which_device_each_is():
    shown = texts(ET.fromstring(draw(no_neighbours())))
    assert "G0, G1: no neighbour SSD: the nearest is at NODE" in shown
    assert "G2, G3: no neighbour SSD: the nearest is at SYS" in shown
    assert len([words for words in shown if words.startswith("→ move an SSD")]) == 1


def test_of_many_messages_with_one_remedy_the_last_are_counted():
    found = eight_with_one()
    faults = [Fault("Kind", address, f"message {n // 2}", "remedy") for n, address in enumerate(found.server.gpus)]
    everything = [*faults, Fault("Kind", "", "message 4", "remedy")]
    shown = texts(ET.fromstring(draw(dataclasses.replace(found, faults=tuple(everything)))))
    assert [words for words in shown if "message" in words] == [f"G{n}, G{n + 1}: message {n // 2}" for n in (0, 2, 4)]
    assert "+2 more" in shown
    whole = dataclasses.replace(found, faults=(everything[-1], faults[0]))
    assert {"message 4", "G0: message 0"} <= set(texts(ET.fromstring(draw(whole))))


@pytest.mark.parametrize(
    ("make", "counted"),
    [(two, "2 NUMA nodes"), (divided_sockets, "2 sockets"), (eight_with_32, "2 NUMA nodes"), (unplaced, "1 NUMA node")],
)
def test_the_heading_counts_nodes_or_where_they_differ_sockets(make, counted):
    assert any(words.startswith(f"{counted}   ·   ") for words in texts(ET.fromstring(draw(make()))))


def test_a_title_of_ones_own():
    assert ET.fromstring(draw(two(), title="Rack <7>")).findtext(f"{SVG}title", "").startswith("Rack <7>")
    assert "Rack <7>" in texts(ET.fromstring(draw(two(), title="Rack <7>")))


def test_a_server_without_gpus_or_ssds_is_still_a_picture():
    shelf = Shelf()
    assert "no GPU and no SSD" in texts(ET.fromstring(draw(shelf.analysis())))
    shelf.add("gpu", "64 R64:00.0 65:00.0")
    assert "no SSD" in texts(ET.fromstring(draw(shelf.analysis())))
