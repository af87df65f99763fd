"""Short ways to write a server's PCIe tree in a test."""

from __future__ import annotations

from collections.abc import Mapping

from kubeflash.topology.analysis import Analysis, analyse
from kubeflash.topology.server import Facts, Server
from kubeflash.topology.tree import Acs, Hop, HopKind, Link, PciDevice, PciTree

KINDS: dict[str, HopKind] = {"R": "RootPort", "U": "SwitchUpstream", "D": "SwitchDownstream", "B": "Bridge"}
GEN5_X16 = Link(32.0, 16, 32.0, 16)
GEN5_X4 = Link(32.0, 4, 32.0, 4)
GEN4_X4 = Link(16.0, 4, 16.0, 4)


def full(address: str) -> str:
    return address if address.count(":") == 2 else f"0000:{address}"


def place(
    text: str,
    *,
    numa: int | None = 0,
    socket: int | None = None,
    link: Link = GEN5_X4,
    ports: Mapping[str, Link] | None = None,
    acs: Mapping[str, Acs] | None = None,
    kind: str = "0108",
) -> PciDevice:
    """`4a R4a:01.0 U4b:00.0 D4c:00.0 4e:00.0`: host bridge, bridges, device. Ports are Gen5 x16, without ACS."""
    bridge, *hops, address = text.split()
    return PciDevice(
        address=full(address),
        vendor="144d" if kind == "0108" else "10de",
        device="a824",
        class_code=kind,
        numa_node=numa,
        root_complex=f"pci0000:{bridge}",
        path=tuple(
            Hop(
                full(hop[1:]),
                KINDS.get(hop[0], "Unknown"),
                (ports or {}).get(hop[1:], GEN5_X16),
                (acs or {}).get(hop[1:], "Direct"),
            )
            for hop in hops
        ),
        socket=socket,
        link=link,
    )


def gpu(text: str, **more: object) -> PciDevice:
    return place(text, **{"kind": "0302", "link": GEN5_X16, **more})  # type: ignore[arg-type]


def server(*devices: PciDevice, facts: Mapping[str, Facts] | None = None, unsaid: tuple[str, ...] = ()) -> Server:
    """A server of these devices; those of class 0302 are its GPUs."""
    tree = PciTree.of(devices)
    return Server(
        name="made-up",
        source="a test",
        tree=tree,
        gpus=tuple(item.address for item in tree if item.class_code == "0302"),
        ssds=tuple(item.address for item in tree if item.class_code == "0108"),
        facts=facts or {},
        unsaid=unsaid,
    )


def analysed(*devices: PciDevice, **more: object) -> Analysis:
    return analyse(server(*devices, **more))  # type: ignore[arg-type]
