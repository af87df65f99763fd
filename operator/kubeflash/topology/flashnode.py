"""Devices and servers as a FlashNode's status tells of them, there and back. Pure."""

from __future__ import annotations

from dataclasses import replace

from kubeflash.api.v1alpha1 import FlashNode, PathHop, PciLink, PciLocation, Ssd
from kubeflash.topology.devices import NVME_CLASS, VENDORS
from kubeflash.topology.links import edges
from kubeflash.topology.server import Facts, Server
from kubeflash.topology.tree import UNSAID, Hop, Link, PciDevice, PciTree


def to_location(device: PciDevice, *, gpu: bool = False) -> PciLocation:
    """What a FlashNode's status tells of a device's place.

    Args:
        device: the device.
        gpu: it is a GPU: the momentary speed of its link is left out, on both ends. A status that changed whenever a
            GPU falls asleep would be written all the time.
    """
    asleep: set[str] = set()
    if gpu:
        asleep = {edge.upper for _, edge in edges(device) if edge.lower == device.address}
        asleep |= {hop.address for hop in device.bridges if hop.on_card}
    return PciLocation(
        address=device.address,
        numa_node=device.numa_node,
        socket=device.socket,
        root_complex=device.root_complex,
        link=_to_api(device.link, asleep=gpu),
        path=[
            PathHop(
                address=hop.address,
                kind=hop.kind,
                link=_to_api(hop.link, asleep=hop.address in asleep),
                acs=hop.acs,
                on_card=hop.on_card or None,
            )
            for hop in device.bridges
        ],
    )


def from_location(location: PciLocation, class_code: str = "") -> PciDevice:
    """The device that a FlashNode's status tells of: its place, without its ids."""
    return PciDevice(
        address=location.address,
        vendor="",
        device="",
        class_code=class_code,
        numa_node=location.numa_node,
        socket=location.socket,
        root_complex=location.root_complex,
        link=_from_api(location.link),
        path=tuple(
            Hop(hop.address, hop.kind, _from_api(hop.link), hop.acs, bool(hop.on_card)) for hop in location.path
        ),
    )


def server_of(node: FlashNode) -> Server:
    """The server that a FlashNode tells of: its GPUs and SSDs, and the bridges above them.

    An SSD with several namespaces is one device: its bytes are added up, and it is left alone when all of them are.
    """
    status = node.status
    devices = [
        replace(from_location(gpu, gpu.device_class), vendor=gpu.vendor, device=gpu.device) for gpu in status.gpus
    ]
    facts = {
        gpu.address: Facts(
            model=gpu.model or f"{VENDORS.get(gpu.vendor, gpu.vendor)} {gpu.device}".strip(), uuid=gpu.uuid
        )
        for gpu in status.gpus
    }
    for address in dict.fromkeys(ssd.address for ssd in status.ssds):
        namespaces = [ssd for ssd in status.ssds if ssd.address == address]
        first = next((ssd for ssd in namespaces if ssd.state != "Foreign"), namespaces[0])
        free = [ssd.free for ssd in namespaces if ssd.free is not None]
        devices.append(from_location(first, NVME_CLASS))
        facts[address] = Facts(
            model=first.model,
            serial=first.serial,
            id=first.id,
            bytes=sum(ssd.bytes for ssd in namespaces),
            free=sum(free) if free else None,
            reason="" if first.state != "Foreign" else first.reason or "it is not KubeFlash's",
            note="" if first.state == "Foreign" or any(ssd.pool for ssd in namespaces) else _poolless(first),
        )
    return Server(
        name=node.metadata.name,
        source="FlashNode",
        tree=PciTree.of(devices),
        gpus=tuple(gpu.address for gpu in status.gpus),
        ssds=tuple(dict.fromkeys(ssd.address for ssd in status.ssds)),
        facts=facts,
        kernel=status.linux.words if status.linux is not None else "",
        switched=status.switched,
    )


def _poolless(ssd: Ssd) -> str:
    """Of an SSD that could be used and is not: it must not look like one that is."""
    return f"{ssd.state.lower()}, in no pool"


def _to_api(link: Link, *, asleep: bool) -> PciLink | None:
    if link == UNSAID:
        return None
    return PciLink(
        speed=None if asleep else _mega(link.speed),
        width=link.width,
        max_speed=_mega(link.max_speed),
        max_width=link.max_width,
    )


def _from_api(link: PciLink | None) -> Link:
    if link is None:
        return UNSAID
    return Link(_giga(link.speed), link.width, _giga(link.max_speed), link.max_width)


def _mega(gigatransfers: float | None) -> int | None:
    return None if gigatransfers is None else round(1000 * gigatransfers)


def _giga(megatransfers: int | None) -> float | None:
    return None if megatransfers is None else megatransfers / 1000
