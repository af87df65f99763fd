from __future__ import annotations

import pytest

from lab import spec
from lab.errors import LabError


def server(**changes):
    document = {
        "name": "s",
        "address": "10.77.0.9/24",
        "numa": [{"node": 0, "roots": [{"bus": 0, "ports": [{"ssd": "A", "serial": "K1", "size": "1Gi"}]}]}],
    }
    return {**document, **changes}


def with_ports(*ports):
    return server(numa=[{"node": 0, "roots": [{"bus": 0, "ports": list(ports)}]}])


def test_a_server_has_defaults_and_stable_identities():
    one, again, other = (spec.parse(server(name=name)) for name in ("s", "s", "t"))
    assert (one.memory, one.cpus, one.nodes, one.ip) == (1 << 30, 2, 1, "10.77.0.9")
    assert one.uuid == again.uuid != other.uuid
    assert one.machine_id == again.machine_id != other.machine_id
    assert len(one.machine_id) == 32


def test_a_second_card_has_an_address_of_its_own():
    assert spec.parse(server(storage="10.78.0.9/24")).storage_ip == "10.78.0.9"
    assert spec.parse(server()).storage_ip == ""


def test_nested_switches_are_read():
    parsed = spec.parse(with_ports({"switch": [{"gpu": "g"}, {"switch": [{"ssd": "A", "serial": "K1"}]}]}))
    assert parsed.roots[0].ports == (spec.Switch((spec.Gpu("g"), spec.Switch((spec.Ssd("A", "K1", 2 << 30),)))),)


def test_strangers_have_room_for_many_foreign_disks():
    strangers = spec.load("strangers")
    rooms = strangers.ssds()[0]
    assert (rooms.namespaces, rooms.size) == (32, 64 << 20)
    assert strangers.ssds()[1].system
    assert len(rooms.disks()) == 32


@pytest.mark.parametrize("name", ["gpu-a", "gpu-b", "gpu-c", "strangers"])
def test_the_specifications_in_the_repository_are_good(name):
    assert spec.load(name).name == name


def test_no_address_or_serial_number_is_used_twice_in_the_lab():
    specs = [spec.load(path.stem) for path in spec.SPECS.glob("*.yaml")]
    serials = [ssd.serial for one in specs for ssd in one.ssds()]
    assert len(set(serials)) == len(serials)
    addresses = [address for one in specs for address in (one.ip, one.storage_ip) if address]
    assert len(set(addresses)) == len(addresses)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (server(colour="red"), "unknown keys colour"),
        (server(memory="much"), "not a number of bytes"),
        (server(storage="10.78.0"), "no address such as"),
        (server(storage="10.78.0.9"), "prefix length"),
        (server(cpus=0), "dealt out"),
        (with_ports({"disk": "A"}), "needs one of"),
        (with_ports({"ssd": "A"}), "serial is missing"),
        (with_ports({"gpu": "g", "serial": "K1"}), "unknown keys serial"),
        (with_ports({"gpu": "g"}, {"gpu": "g"}), "device name used twice: g"),
        (with_ports({"ssd": "A", "serial": "K"}, {"ssd": "B", "serial": "K"}), "serial number used twice: K"),
        (with_ports({"ssd": "A", "serial": "K" * 21}), "1 to 20 characters"),
        (
            with_ports({"ssd": "A", "serial": "1", "system": True}, {"ssd": "B", "serial": "2", "system": True}),
            "at most one",
        ),
        (server(numa=[{"node": 1, "roots": [{"bus": 0, "ports": []}]}]), "without gaps"),
    ],
)
def test_what_describes_no_server_is_refused(document, message):
    with pytest.raises(LabError, match=message):
        spec.parse(document)


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(LabError, match="gpu-a, gpu-b"):
        spec.load("nobody")
