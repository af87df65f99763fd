"""How far apart two PCIe devices are, as `nvidia-smi topo -m` defines it.

PIX: at most one switch between them. PXB: several switches, but no host bridge. PHB: through one host bridge. NODE:
different host bridges of one NUMA node. SYS: across NUMA nodes. (Source: the legend that nvidia-smi prints.)
"""

from __future__ import annotations

from collections.abc import Sequence

from kubeflash.api.v1alpha1 import Distance
from kubeflash.topology.tree import Hop, PciDevice


def distance(one: PciDevice, other: PciDevice) -> Distance:
    """The distance of two devices of one server. Symmetric.

    Where the firmware names no NUMA node for one of two devices under different host bridges, they may be on one socket
    or not; then it is SYS, since a guess must not make a stranger look near.
    """
    if one.root_complex != other.root_complex:
        known = one.numa_node is not None and other.numa_node is not None
        return Distance.NODE if known and one.numa_node == other.numa_node else Distance.SYS
    common = _common(one.path, other.path)
    if common == 0:
        # Only functions of one device on the root bus itself meet before the host bridge.
        same_device = not one.path and not other.path and one.slot == other.slot
        return Distance.PIX if same_device else Distance.PHB
    return Distance.PIX if _switches(one.path, other.path, common) <= 1 else Distance.PXB


def _common(one: Sequence[Hop], other: Sequence[Hop]) -> int:
    """How many bridges the two paths share, from the top."""
    count = 0
    for mine, its in zip(one, other, strict=False):
        if mine.address != its.address:
            break
        count += 1
    return count


def _switches(one: Sequence[Hop], other: Sequence[Hop], common: int) -> int:
    """Switches that lie between two devices whose paths share their first `common` bridges.

    A switch is an upstream port with the downstream ports behind it. Where the paths part at downstream ports of one
    switch, its upstream port is the last bridge that they share; it counts once. Every further upstream port below, on
    either side, is one more.
    """
    below = [*one[common:], *other[common:]]
    if any(hop.kind == "Unknown" for hop in (*one, *other)):
        return _switches_by_structure(one, other, common)
    parts_in_a_switch = one[common - 1].kind == "SwitchUpstream"
    return int(parts_in_a_switch) + sum(hop.kind == "SwitchUpstream" for hop in below)


def _switches_by_structure(one: Sequence[Hop], other: Sequence[Hop], common: int) -> int:
    """The same where nobody says what the bridges are: root port first, then upstream and downstream in turn."""
    parts_in_a_switch = common >= 2 and common % 2 == 0
    upstream = sum(index % 2 == 1 for path in (one, other) for index in range(common, len(path)))
    return int(parts_in_a_switch) + upstream
