"""What is promised is taken: to volumes that are not carved yet, and to those that have not grown yet."""

from __future__ import annotations

from typing import Any

import pytest

from kubeflash.domain.allocation import usable
from kubeflash.domain.disk import MIB
from kubeflash.domain.ledger import Ledger
from support.objects import node, ssd_json, uid, volume

PLACE = ("s0", "A-1")
WHOLE = usable(1 << 30).bytes // MIB


def ledger(*volumes: Any, labelled: str | None = None) -> Ledger:
    there = [
        {"id": uid(1001), "number": 2, "start": 2 * MIB, "bytes": 10 * MIB},
        {"id": uid(1002), "number": 3, "start": 100 * MIB, "bytes": 10 * MIB},
    ]
    return Ledger([node("s0", 1, [], [ssd_json("A", 0x13, volumes=there, labelled=labelled)])], volumes)


def here(number: int, **status: Any) -> Any:
    return volume(f"v{number}", number, status={"nodeName": "s0", "ssd": "A-1", **status})


GROWS, NEW = here(1, granted="50Mi", bytes=10 * MIB), here(3, granted="30Mi")


@pytest.mark.parametrize(
    ("volumes", "free"),
    [
        ([], [(12, 88), (110, 913)]),
        ([GROWS], [(52, 48), (110, 913)]),
        ([NEW], [(42, 58), (110, 913)]),
        ([GROWS, NEW], [(82, 18), (110, 913)]),
        ([here(1, granted="400Mi", bytes=10 * MIB)], [(402, 621)]),  # it cannot have that: nobody else gets it either
        ([volume("v3", 3, status={"nodeName": "s0", "ssd": "B-1", "granted": "30Mi"})], [(12, 88), (110, 913)]),
    ],
)
def test_what_is_free_is_what_nobody_has_and_nobody_is_promised(volumes, free):
    found = ledger(*volumes).free(PLACE)
    assert [(span.start // MIB, span.bytes // MIB) for span in found] == free


@pytest.mark.parametrize(
    ("volumes", "most", "behind"),
    [
        ([GROWS], 98, f"orphan {uid(1002)}"),
        ([GROWS, here(3, granted="88Mi")], 98, f"orphan {uid(1002)}"),
        ([GROWS, here(3, granted="40Mi")], 50, "a volume that is about to be carved"),
    ],
)
def test_a_volume_has_room_up_to_what_is_behind_it_or_will_be(volumes, most, behind):
    found = ledger(*volumes).room(PLACE, uid(1001))
    assert (found[0] // MIB, found[1]) == (most, behind)


def test_taking_a_volume_out_frees_its_promise_and_keeps_its_bytes():
    books = ledger(GROWS, NEW)
    before = books.free(PLACE)
    books.take(GROWS)
    books.take(NEW)
    assert books.free(PLACE) == ledger().free(PLACE)
    books.put(NEW)
    books.put(GROWS)
    assert books.free(PLACE) == before
    assert books.used("fast", "serving") == 80 * MIB
    assert books.used("fast", "serving", without=NEW) == 50 * MIB


def test_what_is_on_an_ssd_that_another_server_labelled_is_nobody_s_to_find():
    assert ledger(labelled="another").extents(uid(1001)) == []
    assert [place for place, _ in ledger().extents(uid(1001))] == [PLACE]
