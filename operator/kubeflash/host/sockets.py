"""Processor sockets of this machine: which one a NUMA node belongs to. From sysfs, in three files a socket and node.

The kernel says which CPUs a NUMA node has and which package a CPU is in. Firmware can divide one package into several
nodes (sub-NUMA clustering), make one node of several packages (node interleaving), and have nodes without CPUs (CXL
memory, HBM).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from kubeflash.host.root import HostRoot
from kubeflash.host.sysfs import list_names, read_int, read_text

_NODE = re.compile(r"node(\d{1,6})")
_RANGE = re.compile(r"(\d{1,6})(?:-(\d{1,6}))?")
_MOST_CPUS = 16384
"""No kernel is built for more; a list that says more is damaged."""


@dataclass(frozen=True)
class Sockets:
    """What is known of sockets and NUMA nodes.

    Attributes:
        nodes: the package of each NUMA node that has CPUs, all in one package.
        only_package: the package of a machine that has just one.
        only_node: the NUMA node of a kernel that runs with just one, on a machine that has not several packages: where
            the firmware does not tell nodes, or makes one of several packages, it says nothing about a device's place.
    """

    nodes: Mapping[int, int]
    only_package: int | None = None
    only_node: int | None = None

    def node(self, said: int | None) -> int | None:
        """The NUMA node of a device for which the firmware says `said`; -1 and None are nothing."""
        return said if said is not None and said >= 0 else self.only_node

    def socket(self, node: int | None) -> int | None:
        """The package of a device on a NUMA node; None when nobody says."""
        if self.only_package is not None:
            return self.only_package
        return None if node is None else self.nodes.get(node)


def read_sockets(root: HostRoot) -> Sockets:
    """Reads which sockets and NUMA nodes there are. What cannot be read, or is garbage, is not said."""
    packages = _packages(root)
    every = set(packages.values())
    nodes: dict[int, int] = {}
    folder = f"{root.sys}/devices/system/node"
    for name in list_names(folder):
        match = _NODE.fullmatch(name)
        inside = {packages.get(cpu) for cpu in _cpus(f"{folder}/{name}/cpulist")} if match else set()
        package = inside.pop() if len(inside) == 1 else None
        if match is not None and package is not None:
            nodes[int(match[1])] = package
    online = read_text(f"{folder}/online") or ""  # a list such as 0-1 is no number
    return Sockets(
        nodes,
        only_package=every.pop() if len(every) == 1 else None,
        only_node=int(online) if online.isascii() and online.isdecimal() and len(every - {None}) <= 1 else None,
    )


def _packages(root: HostRoot) -> dict[int, int | None]:
    """The package of each CPU that is online. One CPU of a package speaks for all in it."""
    folder = f"{root.sys}/devices/system/cpu"
    online = _cpus(f"{folder}/online")
    found: dict[int, int | None] = {}
    for cpu in sorted(online):
        if cpu in found:
            continue
        topology = f"{folder}/cpu{cpu}/topology"
        package = read_int(f"{topology}/physical_package_id")  # -1 where the firmware does not say
        # core_siblings_list is what kernels before 5.2 call it
        together = _cpus(f"{topology}/package_cpus_list") or _cpus(f"{topology}/core_siblings_list")
        members = (together & online) | {cpu}
        found.update(dict.fromkeys(members, package if package is not None and package >= 0 else None))
    return found


def _cpus(path: str) -> set[int]:
    """The CPUs in a list such as `0-15,32-47`; none when it cannot be read or is no such list."""
    found: set[int] = set()
    for part in (read_text(path) or "").split(","):
        match = _RANGE.fullmatch(part)
        if match is None:
            return set()
        first, last = int(match[1]), int(match[2] or match[1])
        if last >= _MOST_CPUS:
            return set()
        found.update(range(first, last + 1))
    return found
