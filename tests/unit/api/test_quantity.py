"""Quantities are exact; what a reader is shown never promises more than there is."""

from __future__ import annotations

import re
from fractions import Fraction
from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from kubeflash.api.quantity import PATTERN, Quantity, format_quantity, human_bytes, parse_quantity

UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15, "E": 10**18} | {
    name: 1 << 10 * (place + 1) for place, name in enumerate(["Ki", "Mi", "Gi", "Ti", "Pi", "Ei"])
}
BYTES = st.integers(0, 1 << 63)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("0", 0),
        ("500Gi", 500 << 30),
        ("1.5T", 1_500_000_000_000),
        ("1048576", 1 << 20),
        (1048576, 1 << 20),
        ("0.5", 1),
        ("0.1Ki", 103),
        (" 1Mi ", 1 << 20),
    ],
)
def test_parse(text, count):
    assert parse_quantity(text) == count


@pytest.mark.parametrize("text", ["", "Gi", "-1", "1 Gi", "1gi", "1KB", "1e3", ".5Gi", "1.Gi", "1_0", "\u0661Gi"])
def test_what_is_no_quantity_is_refused_with_a_right_one(text):
    with pytest.raises(ValueError, match="500Gi"):
        parse_quantity(text)
    assert not re.fullmatch(PATTERN, text)


def test_a_negative_number_is_refused():
    with pytest.raises(ValueError, match="-5 is negative"):
        parse_quantity(-5)


@given(st.from_regex(PATTERN, fullmatch=True))
def test_all_that_the_schema_lets_through_is_read_exactly_a_fraction_of_a_byte_rounded_up(text):
    number, unit = re.fullmatch(r"([0-9.]+)(.*)", text).groups()
    assert parse_quantity(text) == ceil(Fraction(number) * UNITS[unit])


@given(BYTES)
def test_what_is_formatted_reads_back_the_same(count):
    text = format_quantity(count)
    assert parse_quantity(text) == count
    assert re.fullmatch(PATTERN, text)


@given(st.integers(1, 1023), st.sampled_from(["Ki", "Mi", "Gi", "Ti", "Pi"]))
def test_formatting_takes_the_largest_unit(number, unit):
    assert format_quantity(number * UNITS[unit]) == f"{number}{unit}"


@given(BYTES)
def test_human_bytes_never_promise_more_and_lose_less_than_a_tenth_of_the_first_figure(count):
    shown = human_bytes(count)
    assert parse_quantity(shown) <= count
    assert parse_quantity(shown) > count * 9 // 10 or count == 0
    assert len(shown) <= 6


@pytest.mark.parametrize(
    ("count", "shown"),
    [
        (0, "0"),
        (1023, "1023"),
        (1024, "1Ki"),
        (14 << 40, "14Ti"),
        ((14 << 40) - 1, "13.9Ti"),
        (3840755982336, "3.4Ti"),
        ((1 << 40) - 1, "1023Gi"),
        (100 << 30 | 1 << 29, "100Gi"),
    ],
)
def test_human_bytes(count, shown):
    assert human_bytes(count) == shown


@given(BYTES, BYTES)
def test_human_bytes_keep_the_order(one, other):
    small, large = sorted((one, other))
    assert parse_quantity(human_bytes(small)) <= parse_quantity(human_bytes(large))


@given(BYTES)
def test_a_quantity_in_a_model_is_bytes_inside_and_text_outside(count):
    adapter = TypeAdapter(Quantity)
    assert adapter.validate_python(adapter.dump_python(Quantity(count))) == count
    assert adapter.validate_python(count) == count
    assert isinstance(adapter.validate_python("1Gi"), Quantity)
    assert str(Quantity(1 << 30)) == "1Gi"


@pytest.mark.parametrize("wrong", [None, 1.5, True, [], {}, "much"])
def test_what_else_json_may_hold_is_a_validation_error(wrong):
    with pytest.raises(ValidationError):
        TypeAdapter(Quantity).validate_python(wrong)
