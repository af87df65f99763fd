"""How far two PCIe devices are apart, in the words of `nvidia-smi topo -m` (the legend that it prints). Pure.

What counts is the switches that a packet crosses on the shortest way between the two. A switch is an upstream port with
all its downstream ports, however many of them the way touches::

    pci0000:4a                        host bridge
    └─ 4a:01.0                        root port
       └─ 4b:00.0                     upstream port   ┐
          ├─ 4c:00.0 ── 4d:00.0 GPU   downstream port │ a switch
          ├─ 4c:01.0 ── 4e:00.0 SSD   downstream port │        GPU and this SSD: one switch, PIX
          └─ 4c:02.0                  downstream port ┘
             └─ 4f:00.0               upstream port   ┐ another
                └─ 50:00.0 ── SSD     downstream port ┘        GPU and this SSD: two switches, PXB
"""

from __future__ import annotations

from dataclasses import dataclass

from kubeflash.api.v1alpha1 import Distance
from kubeflash.topology.tree import HopKind, PciDevice

_BELOW: dict[HopKind, HopKind] = {
    "RootPort": "SwitchUpstream",
    "SwitchUpstream": "SwitchDownstream",
    "SwitchDownstream": "SwitchUpstream",
    "Bridge": "Bridge",
}
"""What a bridge that does not say what it is must be, by what is above it."""


def distance(one: PciDevice, other: PciDevice) -> Distance:
    """How far two devices of one server are apart; the same from either side.

    - PIX: at most one switch on the way: behind one switch, behind one root port, or functions of one device.
    - PXB: several switches, no host bridge.
    - PHB: through the host bridge that both hang on: two root ports of it, or devices on its own bus.
    - NODE: different host bridges of one NUMA node.
    - SYS: anything else. Two host bridges of which one has no known NUMA node count as SYS: a guess must not make a
      stranger look near. (A kernel that runs with a single NUMA node does say so: `kubeflash.host.pci` fills it in, and
      such a server has NODE.)

    A bridge that does not say what it is (`Unknown`) is taken for what the structure makes it: a root port below the
    host bridge, then upstream and downstream ports of switches by turns.
    """
    if one.root_complex != other.root_complex:
        known = one.numa_node is not None and other.numa_node is not None
        return Distance.NODE if known and one.numa_node == other.numa_node else Distance.SYS
    if one.slot == other.slot:
        return Distance.PIX
    mine, its = _way(one), _way(other)
    shared = _shared(mine, its)
    if shared == 0:
        return Distance.PHB
    crossed = {step.switch for step in (*mine[shared:], *its[shared:])}
    parting = mine[shared - 1]
    if parting.kind == "SwitchUpstream":  # they part on the switch's inner bus; else on the link below a port
        crossed.add(parting.switch)
    return Distance.PIX if len(crossed) <= 1 else Distance.PXB


@dataclass(frozen=True)
class _Step:
    """One bridge of a way, known for what it is. `switch` names the switch that it is a port of, or the bridge."""

    address: str
    kind: HopKind
    switch: str


def _way(device: PciDevice) -> list[_Step]:
    """The bridges that traffic between the host bridge and the device crosses, from the top."""
    way: list[_Step] = []
    for hop in device.local_path:
        expected = _BELOW[way[-1].kind] if way else "RootPort"
        kind = expected if hop.kind == "Unknown" else hop.kind
        switch = hop.address
        if kind == "SwitchDownstream":
            # An upstream port can be hidden from a virtual machine: then the ports of one bus are one switch.
            under_upstream = bool(way) and way[-1].kind == "SwitchUpstream"
            switch = way[-1].switch if under_upstream else hop.address.rpartition(":")[0]
        way.append(_Step(hop.address, kind, switch))
    return way


def _shared(mine: list[_Step], its: list[_Step]) -> int:
    """How many bridges both ways have in common, from the top."""
    count = 0
    while count < min(len(mine), len(its)) and mine[count].address == its[count].address:
        count += 1
    return count
