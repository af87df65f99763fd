"""Which bridges sit on a GPU's own card. Pure.

Some GPUs (AMD's Instinct MI50, Intel's Arc and Flex) bring a PCIe switch of their own. The card's upstream port is what
is plugged into the slot, at the end of the link that sleeps while the GPU idles. The links inside of the card are no
links of the server: Intel's say 2.5 GT/s x1 whatever they carry.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import replace

from kubeflash.topology.tree import PciDevice, PciTree


def mark_cards(tree: PciTree, gpus: Collection[str]) -> PciTree:
    """The tree, with the bridges on the ways of the GPUs marked that are on their cards.

    A switch is a card's own when GPU, switch and all that is below it (audio, management) are of one maker, and no
    other GPU is below it.

    Args:
        tree: all devices of a server, bridges too.
        gpus: addresses of its GPUs.
    """
    below: defaultdict[str, list[PciDevice]] = defaultdict(list)
    for device in tree:
        for step in device.way if not device.is_bridge else ():
            if step.is_switch:
                below[step.switch].append(device)
    there = [gpu for address in gpus if (gpu := tree.get(address)) is not None]
    slots = {gpu.slot for gpu in there}
    return PciTree.of([*tree, *(_marked(gpu, tree, below, slots) for gpu in there)])


def _marked(gpu: PciDevice, tree: PciTree, below: Mapping[str, list[PciDevice]], slots: set[str]) -> PciDevice:
    own: set[str] = set()
    for step in reversed(gpu.way):
        port, behind = tree.get(step.hop.address), below.get(step.switch, [])
        makers = {port.vendor if port is not None else "", *(device.vendor for device in behind)}
        if makers != {gpu.vendor} or not gpu.vendor or {device.slot for device in behind} & slots != {gpu.slot}:
            break
        own.add(step.hop.address)
    if not own:
        return gpu
    hops = tuple(replace(hop, on_card=True) if hop.address in own else hop for hop in gpu.bridges)
    return replace(gpu, path=hops)
