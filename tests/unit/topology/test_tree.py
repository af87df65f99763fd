from __future__ import annotations

import random

import pytest

from kubeflash.topology.tree import Hop, PciDevice, PciTree, address_key


def device(address: str, *hops: str, root_complex: str = "pci0000:00") -> PciDevice:
    return PciDevice(address, "10de", "2330", "030200", None, root_complex, tuple(Hop(hop) for hop in hops))


ADDRESSES = ["0000:01:00.0", "0000:01:00.1", "0000:ff:1f.7", "0001:00:00.0", "ffff:00:00.0", "10000:e1:00.0"]


def test_addresses_are_ordered_as_numbers():
    shuffled = random.Random(1).sample(ADDRESSES, len(ADDRESSES))
    assert sorted(shuffled, key=address_key) == ADDRESSES


@pytest.mark.parametrize("address", ["", "4e:00.0", "0000:4e:00", "pci0000:00", "0000:xx:00.0"])
def test_what_is_no_address_is_refused(address: str):
    with pytest.raises(ValueError, match="no PCI address"):
        address_key(address)


def test_a_tree_is_the_same_in_any_order_and_knows_each_device_once():
    devices = [device(address) for address in ADDRESSES]
    tree = PciTree.of([*reversed(devices), *devices])
    assert list(tree) == devices
    assert len(tree) == len(ADDRESSES)
    assert tree == PciTree.of(devices)
    assert tree.get("10000:e1:00.0") == devices[-1]
    assert tree.get("0000:aa:00.0") is None


def test_what_is_below_a_bridge():
    near = device("0000:02:00.0", "0000:00:01.0", "0000:01:00.0")
    far = device("0000:82:00.0", "0000:80:01.0", root_complex="pci0000:80")
    tree = PciTree.of([far, near])
    assert tree.below("0000:01:00.0") == (near,)
    assert tree.below("pci0000:80") == (far,)
    assert tree.below("0000:03:00.0") == ()
    assert tree.root_complexes == ("pci0000:00", "pci0000:80")
