"""Free extents always add up; a best fit never overlaps; nothing is placed outside the usable part."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from kubeflash.domain.allocation import Span, align_up, best_fit, free_number, free_spans, usable, with_reservations
from kubeflash.domain.disk import MIB, TABLE_ENTRIES

disks = st.integers(min_value=0, max_value=64).map(lambda mib: mib * MIB + 12345)
spans = st.builds(Span, st.integers(0, 70 * MIB), st.integers(0, 10 * MIB))


@given(disks, st.lists(spans, max_size=8))
def test_free_and_taken_cover_the_usable_part_without_overlap(disk, taken):
    free = free_spans(disk, taken)
    whole = usable(disk)
    for span in free:
        assert span.bytes > 0
        assert span.start % MIB == 0
        assert span.bytes % MIB == 0
        assert whole.start <= span.start
        assert span.end <= whole.end
        assert all(span.end <= other.start or other.end <= span.start for other in taken if other.bytes)
    assert list(free) == sorted(free)
    assert all(one.end < two.start for one, two in pairwise(free)), "neighbours are one extent"


@given(disks)
def test_an_empty_disk_is_one_extent_from_the_label_to_the_backup_table(disk):
    free = free_spans(disk, [])
    assert sum(span.bytes for span in free) == usable(disk).bytes
    assert all(span.start == 2 * MIB and span.end <= disk - MIB for span in free)


@given(disks, st.lists(spans, max_size=8), st.integers(1, 12 * MIB))
def test_best_fit_takes_the_start_of_the_smallest_extent_that_holds_it(disk, taken, count):
    free = free_spans(disk, taken)
    span = best_fit(free, count)
    fitting = [extent for extent in free if extent.bytes >= count]
    if span is None:
        assert not fitting
        return
    assert span.bytes == align_up(count)
    home = next(extent for extent in free if extent.start == span.start)
    assert home.bytes == min(extent.bytes for extent in fitting)


@given(disks, st.lists(st.integers(1, 8 * MIB), max_size=6))
def test_reservations_take_exactly_what_carving_will_take(disk, sizes):
    after = with_reservations(disk, [], sizes)
    taken = []
    for size in sorted(sizes, reverse=True):
        span = best_fit(free_spans(disk, taken), size)
        if span is not None:
            taken.append(span)
    assert after == free_spans(disk, taken)
    assert sum(s.bytes for s in after) + sum(s.bytes for s in taken) == usable(disk).bytes


def test_partition_numbers_start_behind_the_label_and_end_with_the_table():
    assert free_number([]) == 2
    assert free_number([1, 2, 4]) == 3
    assert free_number(range(1, TABLE_ENTRIES)) is None
