"""What a PCI bridge says of itself in its configuration space (PCI Express Base Specification 5.0, chapter 7).

The kernel shows all of it to CAP_SYS_ADMIN, to others the first 64 bytes. Each four bytes that are read are a
transaction on the bus, so a few are read where they are needed, never the whole.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from kubeflash.topology.tree import Acs, HopKind

Read = Callable[[int, int], bytes]
"""Gives bytes (offset, length); fewer than asked for where they may not be read."""

_STATUS, _HAS_CAPABILITIES = 0x06, 0x10
_CAPABILITIES = 0x34
_PCI_EXPRESS = 0x10
_MOST_CAPABILITIES = 48  # as many as fit: a damaged list can be a ring
_PORT_TYPES: dict[int, HopKind] = {
    4: "RootPort",
    5: "SwitchUpstream",
    6: "SwitchDownstream",
    7: "Bridge",  # PCI Express to PCI
    8: "Bridge",  # PCI to PCI Express
}
_EXTENDED = 0x100
_MOST_EXTENDED = (4096 - _EXTENDED) // 8
_ACS, _ACS_CONTROL = 0x000D, 6
_REDIRECTS = 1 << 2 | 1 << 3 | 1 << 5  # P2P Request Redirect, P2P Completion Redirect, P2P Egress Control
_NOBODY = 0xFFFFFFFF
"""What is read of a device that has gone."""


def read_port(config: str) -> tuple[HopKind, Acs | None]:
    """What a bridge is and whether it redirects peer-to-peer requests, from its file `config` in sysfs."""
    try:
        fd = os.open(config, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return "Unknown", None

    def read(offset: int, length: int) -> bytes:
        return os.pread(fd, length, offset)

    try:
        kind = port_kind(read)
        return kind, None if kind == "Unknown" else port_acs(read)
    except OSError:
        return "Unknown", None
    finally:
        os.close(fd)


def port_kind(read: Read) -> HopKind:
    """What a bridge is, by the Device/Port Type of its PCI Express capability (7.5.3.2).

    Unknown is what may not be read, and what is no bridge.
    """
    status = _number(read, _STATUS, 2)
    if status is None:
        return "Unknown"
    position = _number(read, _CAPABILITIES, 1) if status & _HAS_CAPABILITIES else 0
    for _ in range(_MOST_CAPABILITIES):
        if position is None:
            return "Unknown"
        position &= 0xFC
        if position == 0:
            return "Bridge"  # conventional PCI: it has no PCI Express capability
        identity = _number(read, position, 1)
        if identity == _PCI_EXPRESS:
            flags = _number(read, position + 2, 2)
            return "Unknown" if flags is None else _PORT_TYPES.get(flags >> 4 & 0xF, "Unknown")
        position = None if identity is None else _number(read, position + 1, 1)
    return "Unknown"


def port_acs(read: Read) -> Acs | None:
    """Whether a port sends peer-to-peer requests up, by its Access Control Services capability (7.7.8).

    A port without that capability lets them through. None is where the extended configuration space may not, or cannot
    be read, or is damaged.
    """
    position = _EXTENDED
    for _ in range(_MOST_EXTENDED):
        header = _number(read, position, 4)
        if header is None or header == _NOBODY:
            return None
        identity, following = header & 0xFFFF, header >> 20 & 0xFFC
        if identity == _ACS:
            control = _number(read, position + _ACS_CONTROL, 2)
            if control is None or control == _NOBODY & 0xFFFF:
                return None
            return "Redirect" if control & _REDIRECTS else "Direct"
        if following == 0:
            return "Direct"
        if following < _EXTENDED:
            return None
        position = following
    return None


def _number(read: Read, offset: int, length: int) -> int | None:
    content = read(offset, length)
    return int.from_bytes(content, "little") if len(content) == length else None
