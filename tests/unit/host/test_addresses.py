from __future__ import annotations

import json
import shutil
import socket
import struct
import subprocess

import pytest

from kubeflash.host import addresses
from kubeflash.host.addresses import NoAddress, address_toward, global_addresses, listening_ports, parse_address
from kubeflash.host.root import HostRoot
from support.sysfs_builder import MadeUpServer


def message(family: int, raw: bytes, *, flags: int = 0, scope: int = 0, more: bytes = b"") -> bytes:
    """An RTM_NEWADDR message as the kernel sends it."""
    return struct.pack("=BBBBI", family, 24, flags, scope, 2) + attribute(1, raw) + more


def attribute(kind: int, content: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(content), kind) + content + bytes(-len(content) % 4)


def test_an_address_and_its_flags():
    raw = socket.inet_pton(socket.AF_INET6, "2001:db8::5")
    found = parse_address(message(socket.AF_INET6, raw, more=attribute(8, struct.pack("=I", 0x180))))
    assert found is not None
    assert (found.address, found.interface, found.scope, found.flags) == ("2001:db8::5", 2, 0, 0x180)


def test_of_a_point_to_point_link_our_side_counts():
    ours, theirs = (socket.inet_aton(f"10.0.0.{number}") for number in (1, 2))
    found = parse_address(message(socket.AF_INET, theirs, more=attribute(2, ours)))
    assert found is not None
    assert found.address == "10.0.0.1"


def test_other_families_and_damaged_messages():
    assert parse_address(message(7, b"\0" * 4)) is None
    assert parse_address(struct.pack("=BBBBI", socket.AF_INET, 24, 0, 0, 2) + b"\0\0\0\0") is None


def test_which_addresses_are_told(monkeypatch: pytest.MonkeyPatch):
    assigned = [
        addresses._Assigned("10.0.0.9", 2, 0, 0),
        addresses._Assigned("10.0.0.10", 2, 0, 0),
        addresses._Assigned("2001:db8::5", 2, 0, 0x80),
        addresses._Assigned("2001:db8::6", 2, 0, 0x01),
        addresses._Assigned("fe80::1", 2, 253, 0),
        addresses._Assigned("127.0.0.1", 1, 254, 0),
        addresses._Assigned("10.96.0.1", 3, 0, 0),
        addresses._Assigned("10.244.0.1", 4, 0, 0),
        addresses._Assigned("10.9.9.9", 99, 0, 0),
    ]
    names = {1: "lo", 2: "eth0", 3: "kube-ipvs0", 4: "cni0"}
    monkeypatch.setattr(addresses, "_assigned", lambda: iter(assigned))
    monkeypatch.setattr(addresses, "_interface_name", lambda index: names.get(index, ""))
    assert [(item.address, item.interface) for item in global_addresses()] == [
        ("10.0.0.9", "eth0"),
        ("10.0.0.10", "eth0"),
        ("2001:db8::5", "eth0"),
    ]


@pytest.mark.skipif(shutil.which("ip") is None, reason="iproute2 is not installed")
def test_this_machine_has_what_ip_says():
    said = json.loads(subprocess.run(["ip", "-json", "addr"], check=True, capture_output=True, text=True).stdout)
    expected = {
        item["local"]
        for link in said
        for item in link["addr_info"]
        if item["scope"] == "global" and not {"temporary", "deprecated", "tentative", "dadfailed"} & item.keys()
    }
    ours = {item.address for item in global_addresses()}
    assert ours <= expected
    skipped = {
        item["local"]
        for link in said
        for item in link["addr_info"]
        if link["ifname"].startswith(addresses._POD_NETWORK)
    }
    assert expected - ours <= skipped


def test_an_unknown_name_leads_nowhere():
    with pytest.raises(NoAddress, match="name\\.invalid"):
        address_toward("name.invalid", 443)


def test_our_side_toward_our_own_address():
    for item in global_addresses():
        assert address_toward(item.address, 4420) == item.address


def test_a_service_address_of_our_own_is_not_ours(monkeypatch: pytest.MonkeyPatch):
    sides = {"10.96.0.1": "10.96.0.1", "192.0.2.1": "10.0.0.9"}
    monkeypatch.setattr(addresses, "_own_side", lambda _family, target: sides[target[0]])
    monkeypatch.setattr(addresses, "_assigned", lambda: iter([addresses._Assigned("10.0.0.9", 2, 0, 0)]))
    monkeypatch.setattr(addresses, "_interface_name", lambda _: "eth0")
    assert address_toward("10.96.0.1", 443) == "10.0.0.9"


TCP = """\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1389 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1
   1: 00000000:1144 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 2 1
   2: 0100007F:C001 0100007F:1389 01 00000000:00000000 00:00000000 00000000     0        0 3 1
"""
TCP6 = """\
  sl  local_address                         remote_address                        st tx_queue rx_queue
   0: 00000000000000000000000000000000:0016 00000000000000000000000000000000:0000 0A 00000000:00000000
"""


def test_ports_that_are_listened_on(server: MadeUpServer):
    server.write("proc/net/tcp", TCP)
    server.write("proc/net/tcp6", TCP6)
    assert listening_ports(server.root) == {5001, 4420, 22}


def test_ports_cannot_be_read(tmp_path):
    assert listening_ports(HostRoot(tmp_path)) == frozenset()


def test_this_machine_listens_where_we_do():
    with socket.create_server(("127.0.0.1", 0)) as here:
        assert here.getsockname()[1] in listening_ports(HostRoot())
