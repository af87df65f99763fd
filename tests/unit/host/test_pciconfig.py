from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from kubeflash.host.pciconfig import port_acs, port_kind, read_port
from support.sysfs_builder import DOWNSTREAM, ENDPOINT, ROOT_PORT, TO_PCI, UPSTREAM, config_space

NEXT = 20  # where an extended capability's header says which one is next


def reader(content: bytes) -> Callable[[int, int], bytes]:
    return lambda offset, length: content[offset : offset + length]


@pytest.mark.parametrize(
    ("port_type", "kind"),
    [
        (ROOT_PORT, "RootPort"),
        (UPSTREAM, "SwitchUpstream"),
        (DOWNSTREAM, "SwitchDownstream"),
        (TO_PCI, "Bridge"),
        (8, "Bridge"),
        (None, "Bridge"),  # conventional PCI
        (ENDPOINT, "Unknown"),
        (15, "Unknown"),
    ],
)
def test_what_a_bridge_is(port_type: int | None, kind: str):
    assert port_kind(reader(config_space(port_type))) == kind


@pytest.mark.parametrize(
    "content",
    [
        b"",
        config_space(ROOT_PORT, readable=64),
        config_space(ROOT_PORT, readable=0x62),
        b"\xff" * 4096,  # a device that was pulled out
        config_space(None)[:0x41] + b"\x40" + config_space(None)[0x42:],  # capabilities in a ring
    ],
)
def test_what_cannot_be_read_is_unknown(content: bytes):
    assert port_kind(reader(content)) == "Unknown"


@pytest.mark.parametrize(
    ("extended", "expected"),
    [
        ({0x100: 0}, "Direct"),  # no extended capability at all
        ({0x100: 0x0001}, "Direct"),  # the last one, and not ACS
        ({0x100: 0x100 << NEXT | 0x0001}, None),  # a ring of one
        ({0x148: 0x100 << NEXT | 0x0003}, None),  # a ring of two
        ({0x100: 0x040 << NEXT | 0x0001}, None),  # back to where none are
        ({0x100: 0xFFFFFFFF}, None),  # gone
        ({0x148: 0xFFFFFFFF}, None),  # gone meanwhile
        ({0x148: 0xFFC << NEXT | 0x0003}, "Direct"),  # at the very end, of no meaning
        ({0x148: 0xFFC << NEXT | 0x0003, 0xFFC: 0x000D}, None),  # ACS that ends behind the end
        ({0x148: 0x160 << NEXT | 0x0003, 0x160: 0x000D, 0x164: 0xFFFFFFFF}, None),  # a control register of a ghost
        ({0x100: 0x160 << NEXT | 0x000B, 0x160: 0x1000D, 0x164: 0x001D007F}, "Redirect"),
    ],
)
def test_the_list_of_extended_capabilities_can_be_anything(extended: dict[int, int], expected: str | None):
    content = config_space(DOWNSTREAM, readable=4096, extended=extended)
    assert port_acs(reader(content)) == expected


@pytest.mark.parametrize("readable", [0, 64, 128, 256, 0x102, 0x14A, 0x162, 0x166])
def test_what_may_be_read_only_in_part_is_not_guessed(readable: int):
    assert port_acs(reader(config_space(DOWNSTREAM, acs=0x1D, readable=readable))) is None


def test_garbage_ends():
    chance = random.Random(4)
    for _ in range(2000):
        content = chance.randbytes(chance.choice((64, 256, 4096)))
        assert port_kind(reader(content)) in ("RootPort", "SwitchUpstream", "SwitchDownstream", "Bridge", "Unknown")
        assert port_acs(reader(content)) in ("Redirect", "Direct", None)


def test_a_file_that_is_not_there_or_cannot_be_read(tmp_path):
    assert read_port(str(tmp_path / "config")) == ("Unknown", None)
    assert read_port(str(tmp_path)) == ("Unknown", None)
    (tmp_path / "config").write_bytes(config_space(ROOT_PORT, readable=4096, acs=0x1D))
    assert read_port(str(tmp_path / "config")) == ("RootPort", "Redirect")
