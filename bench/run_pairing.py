"""`make bench-pairing`: how long it takes to pair GPUs with SSDs, on trees of several shapes. No server is needed.

The goals: 8 GPUs with 32 SSDs under 1 ms, 16 with 64 under 10 ms. Nothing here is an assertion. Results are added to
bench/results.json, in milliseconds: the median of runs that each start from devices nobody has looked at before.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

from kubeflash.topology.pairing import pair
from kubeflash.topology.tree import Hop, Link, PciDevice
from results import report

RUNS = 51
GEN5_X16 = Link(32.0, 16, 32.0, 16)
GEN5_X4 = Link(32.0, 4, 32.0, 4)
NARROW = Link(32.0, 2, 32.0, 4)
Server = tuple[list[PciDevice], list[PciDevice]]


def device(address: str, root: str, numa: int, path: list[Hop], link: Link) -> PciDevice:
    """A GPU or SSD."""
    return PciDevice(address, "", "", "", numa, root, tuple(path), link=link)


def switches(gpus: int, ssds: int) -> Server:
    """A switch a GPU, with its share of the SSDs on it."""
    every_gpu: list[PciDevice] = []
    every_ssd: list[PciDevice] = []
    for number in range(gpus):
        bus = 16 * (number % 16)
        root, numa = f"pci{number // 16:04x}:{bus:02x}", int(number >= gpus // 2)
        domain = f"{number // 16:04x}"
        up = [
            Hop(f"{domain}:{bus:02x}:01.0", "RootPort", GEN5_X16, "Direct"),
            Hop(f"{domain}:{bus + 1:02x}:00.0", "SwitchUpstream", GEN5_X16),
        ]
        for slot in range(1 + ssds // gpus):
            port = Hop(f"{domain}:{bus + 2:02x}:{slot:02x}.0", "SwitchDownstream", GEN5_X16, "Direct")
            link = GEN5_X4 if slot else GEN5_X16
            made = device(f"{domain}:{bus + 3 + slot:02x}:00.0", root, numa, [*up, port], link)
            (every_ssd if slot else every_gpu).append(made)
    return every_gpu, every_ssd


def no_switches(gpus: int, ssds: int) -> Server:
    """Every device on a host bridge of its own: all those of a NUMA node are equally far, every fifth SSD is narrow."""

    def made(number: int, domain: int, link: Link) -> PciDevice:
        root = f"pci{domain:04x}:{number:02x}"
        path = [Hop(f"{domain:04x}:{number:02x}:01.0", "RootPort", GEN5_X16, "Direct")]
        return device(f"{domain:04x}:{number + 128:02x}:00.0", root, number % 2, path, link)

    return [made(number, 0, GEN5_X16) for number in range(gpus)], [
        made(number, 1, GEN5_X4 if number % 5 else NARROW) for number in range(ssds)
    ]


def uneven(gpus: int, ssds: int) -> Server:
    """As `no_switches`, with a GPU that trained at a quarter of its width: the general method, slower, has to do it."""
    every_gpu, every_ssd = no_switches(gpus, ssds)
    first = every_gpu[0]
    narrow = device(first.address, first.root_complex, 0, list(first.bridges), Link(8.0, 2, 32.0, 16))
    return [narrow, *every_gpu[1:]], every_ssd


def milliseconds(make: Callable[[], Server], *, again: bool) -> float:
    """The median time of pairing; `again`: with the pairs that there were, as an agent does it all day."""
    previous = [(item.gpu, item.ssd) for item in pair(*make())] if again else []
    spans = []
    for _ in range(RUNS):
        server = make()
        began = time.perf_counter()
        pair(*server, previous=previous)
        spans.append(1000 * (time.perf_counter() - began))
    return statistics.median(spans)


def main() -> int:
    """Measures all shapes and writes them down."""
    for gpus, ssds in ((8, 32), (16, 64)):
        for shape in (switches, no_switches, uneven):
            for again in (False, True):
                name = f"pair_{gpus}x{ssds}_{shape.__name__}{'_again' if again else ''}_ms"
                report({name: milliseconds(lambda make=shape, g=gpus, s=ssds: make(g, s), again=again)})  # type: ignore[misc]
    return 0


if __name__ == "__main__":
    sys.exit(main())
