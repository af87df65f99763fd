"""Kubernetes quantities of bytes: `500Gi` in, bytes inside, `500Gi` out."""

from __future__ import annotations

import re
from fractions import Fraction
from math import ceil
from typing import Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

_BINARY = {"Ki": 10, "Mi": 20, "Gi": 30, "Ti": 40, "Pi": 50, "Ei": 60}
_DECIMAL = {"": 0, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
_FORM = re.compile(r"(?P<number>[0-9]+(?:\.[0-9]+)?)(?P<suffix>Ki|Mi|Gi|Ti|Pi|Ei|k|M|G|T|P|E|)")

PATTERN = r"^[0-9]+(\.[0-9]+)?(Ki|Mi|Gi|Ti|Pi|Ei|k|M|G|T|P|E)?$"


def parse_quantity(text: str | int) -> int:
    """Bytes that a quantity such as `500Gi`, `1.5T` or `1048576` stands for, a fraction of a byte rounded up.

    Raises:
        ValueError: when it is not a non-negative quantity of bytes; the message shows a right one.
    """
    if isinstance(text, int) and not isinstance(text, bool):
        if text < 0:
            raise ValueError(f"{text} is negative; write a size such as 500Gi")
        return int(text)
    match = _FORM.fullmatch(text.strip()) if isinstance(text, str) else None
    if match is None:
        raise ValueError(f"{text!r} is not a quantity of bytes; write a number and a unit, such as 500Gi or 1.5T")
    suffix = match["suffix"]
    unit = 1 << _BINARY[suffix] if suffix in _BINARY else 10 ** _DECIMAL[suffix]
    return ceil(Fraction(match["number"]) * unit)


def format_quantity(count: int) -> str:
    """The shortest exact quantity of `count` bytes: the largest binary unit that divides it."""
    for suffix, shift in reversed(_BINARY.items()):
        if count and count % (1 << shift) == 0:
            return f"{count >> shift}{suffix}"
    return str(count)


def human_bytes(count: int) -> str:
    """`count` bytes for a reader: three figures and a binary unit, rounded down so that it never promises more."""
    for suffix, shift in reversed(_BINARY.items()):
        if count >= 1 << shift:
            tenths = count * 10 >> shift
            return f"{tenths // 10}{suffix}" if tenths >= 1000 or tenths % 10 == 0 else f"{tenths / 10:.1f}{suffix}"
    return str(count)


class Quantity(int):
    """Bytes, read from and written as a Kubernetes quantity."""

    def __str__(self) -> str:
        return format_quantity(int(self))

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_before_validator_function(
            lambda value: cls(parse_quantity(value)),
            core_schema.is_instance_schema(cls),
            serialization=core_schema.plain_serializer_function_ser_schema(str),
        )

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {
            "x-kubernetes-int-or-string": True,
            "anyOf": [{"type": "integer"}, {"type": "string"}],
            "pattern": PATTERN,
            "maxLength": 32,
        }
