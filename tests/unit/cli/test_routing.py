"""Lines of pairs in pictures: past everything, over nothing, each in its own place, with its badge on it."""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Iterator
from functools import cache
from xml.etree import ElementTree as ET

import pytest

from kubeflash.cli.picture import draw, drawing
from kubeflash.cli.picture.channels import Meeting, Turn, dig
from kubeflash.cli.picture.looks import Style
from kubeflash.topology.analysis import Analysis
from support.comparison import analyses
from support.shapes import SHAPES, SVG, Shelf, box_of, cards

Point = tuple[float, float]
Segment = tuple[Point, Point]
Rect = tuple[float, float, float, float]
FRAMES = ("socket", "region", "root", "vmd", "port", "switch", "group", "neighbours")


def drawn(analysis: Analysis) -> ET.Element:
    return ET.fromstring(draw(analysis))


@cache
def fixtures() -> dict[str, Analysis]:
    return {f"{name}-{kind}": analysis for name, kind, analysis in analyses()}


def scattered(seed: int) -> Analysis:
    """A server that nobody would build: what hangs where is drawn by lot, so that lines go everywhere."""
    lot = random.Random(seed)
    shelf = Shelf()
    gpus, ssds = lot.randint(1, 9), lot.randint(1, 9)
    roots = lot.randint(1, 6)
    numa = [lot.choice((0, 1, 2, 3)) for _ in range(roots)]
    for number in range(gpus + ssds):
        root = lot.randrange(roots)
        bus, at = 0x10 + 0x20 * root, 0x10 + 0x20 * root + 8 + number
        port = f"{bus:02x} R{bus:02x}:{number + 8:02x}.0"
        shared = f"{bus:02x} R{bus:02x}:01.0 U{bus + 1:02x}:00.0 D{bus + 2:02x}:{number:02x}.0"
        nested = f"{shared[:23]}D{bus + 2:02x}:1f.0 U{bus + 3:02x}:00.0 D{bus + 4:02x}:{number:02x}.0"
        bare = f"{bus:02x}"
        way = lot.choice((port, shared, nested, bare))
        device = f"{bus:02x}:{number + 9:02x}.0" if way == bare else f"{at:02x}:00.0"
        shelf.add("gpu" if number < gpus else "ssd", f"{way} {device}", numa=numa[root], socket=numa[root] // 2)
    return shelf.analysis()


def cramped(seed: int) -> ET.Element:
    """In a style that nobody would choose: rows below rows, so that many lines go round something."""
    styles = [Style(1.5, brief=False, deepest=4, regions=4), Style(1.75, brief=True, deepest=2, regions=1)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drawing, "best_style", lambda *_: styles[seed % 2])
        return drawn(scattered(seed))


def pictures() -> Iterator:
    for shape in SHAPES:
        yield pytest.param(lambda shape=shape: drawn(shape()), id=shape.__name__)
    for name in fixtures():
        yield pytest.param(lambda name=name: drawn(fixtures()[name]), id=name)
    for seed in range(40):
        yield pytest.param(lambda seed=seed: drawn(scattered(seed)), id=f"scattered-{seed}")
        yield pytest.param(lambda seed=seed: cramped(seed), id=f"cramped-{seed}")


@pytest.fixture(scope="module", params=list(pictures()))
def picture(request) -> ET.Element:
    return request.param()


def lines(root: ET.Element) -> dict[str, list[Segment]]:
    """By pair: the straight parts of its line, corners as if they were sharp."""
    found: dict[str, list[Segment]] = {}
    for path in root.iter(f"{SVG}path"):
        if path.get("class") != "line":
            continue
        segments = found[path.attrib["data-pair"]] = []
        for part in path.attrib["d"].split("M")[1:]:
            corners = re.sub(r"L[^LQ]+(?=Q)", "", part)  # a corner is where the control point is
            points = [(float(x), float(y)) for x, y in re.findall(r"(?:^|[LQ])(-?[0-9.]+) (-?[0-9.]+)", corners)]
            segments += itertools.pairwise(points)
    return found


def rect(element: ET.Element) -> Rect:
    x, y, w, h = (float(element.attrib[name]) for name in ("x", "y", "width", "height"))
    return x, y, x + w, y + h


def crosses(segment: Segment, box: Rect, inset: float = 0.0) -> bool:
    (ax, ay), (bx, by) = segment
    left, top, right, bottom = box[0] + inset, box[1] + inset, box[2] - inset, box[3] - inset
    return max(ax, bx) > left and min(ax, bx) < right and max(ay, by) > top and min(ay, by) < bottom


def inside(point: Point, box: Rect) -> bool:
    return box[0] - 1 <= point[0] <= box[2] + 1 and box[1] - 1 <= point[1] <= box[3] + 1


def on_a_card(root: ET.Element, point: Point) -> bool:
    return any(inside(point, card) for card in cards(root).values())


def badges(root: ET.Element) -> dict[str, list[Rect]]:
    """By pair: its badges, in an SSD's card and on its line."""
    found: dict[str, list[Rect]] = {}
    for group in root.iter(f"{SVG}g"):
        if group.get("class") == "pair":
            found.setdefault(group.attrib["data-pair"], []).append(rect(group.find(f"{SVG}rect")))  # type: ignore[arg-type]
    return found


def test_lines_go_straight(picture):
    for segments in lines(picture).values():
        assert segments
        assert all(a[0] == b[0] or a[1] == b[1] for a, b in segments)


def test_lines_go_from_card_to_card(picture):
    for segments in lines(picture).values():
        assert len({point for segment in segments for point in segment if on_a_card(picture, point)}) == 2


def test_no_line_is_behind_or_in_a_box_that_it_has_no_end_in(picture):
    boxes = [rect(e) for e in picture.iter(f"{SVG}rect") if e.get("class") in FRAMES]
    for pair, segments in lines(picture).items():
        ends = [end for end in (point for segment in segments for point in segment) if on_a_card(picture, end)]
        for box in boxes:
            if not any(inside(end, box) for end in ends):
                assert not any(crosses(segment, box, 0.5) for segment in segments), (pair, box)


def test_no_line_enters_a_card(picture):
    for segments in lines(picture).values():
        assert not any(crosses(segment, card, 0.5) for segment in segments for card in cards(picture).values())


def test_no_line_is_over_or_under_a_text_but_its_own(picture):
    own = badges(picture)
    found = [(element.text, box_of(element)) for element in picture.iter(f"{SVG}text")]
    for pair, segments in lines(picture).items():
        for text, box in found:
            middle = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
            if not any(inside(middle, badge) for badge in own[pair]):
                assert not any(crosses(segment, box, 0.5) for segment in segments), (pair, text)


def test_no_line_is_under_another_ones_badge(picture):
    found = badges(picture)
    for pair, segments in lines(picture).items():
        for other, boxes in found.items():
            if other != pair:
                assert not any(crosses(segment, box) for segment in segments for box in boxes), (pair, other)


def test_lines_share_no_place(picture):
    """Where two run in parallel there is room between them; else they cross at right angles."""
    for (one, mine), (other, theirs) in itertools.combinations(lines(picture).items(), 2):
        for a, b in itertools.product(mine, theirs):
            for along in (0, 1):
                across = 1 - along
                if a[0][across] == a[1][across] and b[0][across] == b[1][across]:
                    (a1, a2), (b1, b2) = sorted(p[along] for p in a), sorted(p[along] for p in b)
                    beside = min(a2, b2) - max(a1, b1) > -1
                    assert not beside or abs(a[0][across] - b[0][across]) > 2.5, (one, other, a, b)


def test_each_badge_is_on_its_own_line(picture):
    found = badges(picture)
    for pair, segments in lines(picture).items():
        cards = [rect(e) for e in picture.iter(f"{SVG}rect") if "card" in e.get("class", "").split()]
        on_line = [
            b for b in found[pair] if not any(inside((b[0], b[1]), c) and inside((b[2], b[3]), c) for c in cards)
        ]
        assert len(on_line) == 1
        assert any(crosses(segment, on_line[0]) for segment in segments)


def test_a_line_that_meets_nobody_has_its_badge_in_its_middle():
    channel = dig([], [Meeting(7, 100, 300, 80)], [], (0, 1000), 1)
    assert (channel.ways[7].badge, channel.ways[7].left, channel.ways[7].right) == (160, 100, 300)
    assert channel.height == 22


def test_short_lines_are_above_and_those_that_fit_share_a_lane():
    meetings = [Meeting(0, 0, 500, 50), Meeting(1, 10, 100, 50), Meeting(2, 300, 400, 50)]
    ways = dig([], meetings, [], (0, 1000), 1).ways
    assert ways[1].y == ways[2].y < ways[0].y


def test_a_badge_makes_way_for_lines_that_only_pass():
    way = dig([], [Meeting(0, 100, 300, 80)], [150, 200], (0, 1000), 1).ways[0]
    assert way.badge == 207  # nearest to the middle, and on the line
    assert (way.left, way.right) == (100, 300)


def test_a_badge_in_a_lane_makes_way_for_a_line_that_goes_to_a_lane_below():
    meetings = [Meeting(0, 0, 100, 20), Meeting(1, 50, 200, 20), Meeting(2, 150, 400, 200)]
    ways = dig([], meetings, [], (0, 1000), 1).ways
    assert ways[0].y == ways[2].y < ways[1].y
    assert ways[2].badge == 207


def test_a_badge_without_room_on_its_line_gets_a_leader():
    channel = dig([], [Meeting(0, 100, 130, 80)], [50, 90, 140, 180], (0, 400), 1)
    way = channel.ways[0]
    assert (way.badge, way.left, way.right, channel.leaders, channel.lacking) == (187, 100, 267, 1, 0)


def test_room_that_is_lacking_is_said():
    channel = dig([], [Meeting(0, 100, 130, 80)], range(20, 200, 40), (0, 200), 1)
    assert channel.lacking == 80


def test_turns_have_the_uppermost_lanes():
    channel = dig([Turn(0, 10, 90), Turn(1, 20, 80)], [Meeting(2, 30, 60, 20)], [], (0, 100), 1)
    assert [channel.ways[pair].y for pair in range(3)] == [4.5, 13.5, 29]
    assert channel.height == 40
