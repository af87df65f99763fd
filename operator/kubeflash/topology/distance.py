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

from kubeflash.api.v1alpha1 import Distance
from kubeflash.topology.tree import PciDevice, Step


def distance(one: PciDevice, other: PciDevice) -> Distance:
    """How far two devices of one server are apart; the same from either side.

    - PIX: at most one switch on the way: behind one switch, behind one root port, or functions of one device.
    - PXB: several switches, no host bridge.
    - PHB: through the host bridge that both hang on: two root ports of it, or devices on its own bus.
    - NODE: different host bridges of one processor socket. Where nobody says which sockets there are, NUMA nodes stand
      for them, as in nvidia-smi's own words; where both are known, a socket that is divided into several NUMA nodes
      (sub-NUMA clustering) is one.
    - SYS: across sockets.
    - unknown: the source does not say enough. (A kernel that runs with a single NUMA node does say so:
      `kubeflash.host.pci` fills it in, and such a server has NODE.)

    A bridge that does not say what it is (`Unknown`) is taken for what the structure makes it: a root port below the
    host bridge, then upstream and downstream ports of switches by turns.
    """
    if one.slot == other.slot:
        return Distance.PIX
    if one.root_complex != other.root_complex:
        return _across(one, other)
    if not one.root_complex or one.path is None or other.path is None:
        return Distance.SYS if _apart(one, other) else Distance.UNKNOWN
    mine, its = one.way, other.way
    shared = common(mine, its)
    if shared == 0:
        return Distance.PHB
    return Distance.PIX if len(_crossed(mine, its, shared)) <= 1 else Distance.PXB


def _across(one: PciDevice, other: PciDevice) -> Distance:
    """The distance of devices on host bridges that have different names."""
    if _apart(one, other):
        return Distance.SYS
    if not one.root_complex or not other.root_complex or one.detached or other.detached:
        return Distance.UNKNOWN  # it may be the same host bridge after all
    if one.socket is not None and other.socket is not None:
        return Distance.NODE
    return Distance.NODE if one.numa_node is not None and one.numa_node == other.numa_node else Distance.UNKNOWN


def _apart(one: PciDevice, other: PciDevice) -> bool:
    """Whether they are known to be on different sockets."""
    if one.socket is not None and other.socket is not None:
        return one.socket != other.socket
    return one.numa_node is not None and other.numa_node is not None and one.numa_node != other.numa_node


def common(mine: tuple[Step, ...], its: tuple[Step, ...]) -> int:
    """How many bridges two ways have in common, from the top."""
    count = 0
    for one, other in zip(mine, its, strict=False):
        if one.hop.address != other.hop.address:
            break
        count += 1
    return count


def _crossed(mine: tuple[Step, ...], its: tuple[Step, ...], shared: int) -> set[str]:
    """The switches on the way between two devices that have `shared` bridges in common."""
    crossed = {step.switch for step in (*mine[shared:], *its[shared:])}
    parting = mine[shared - 1]
    if parting.kind == "SwitchUpstream":  # they part on the switch's inner bus; else on the link below a port
        crossed.add(parting.switch)
    return crossed
