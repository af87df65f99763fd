from __future__ import annotations

import asyncio
import errno
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
from pathlib import Path

import pytest

import kubeflash
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


def told(address: str, *, kind: int = 20, scope: int = 0, interface: int = 2) -> bytes:
    """A message of the kernel that an address came (20) or went (21)."""
    body = struct.pack("=BBBBI", socket.AF_INET, 24, 0, scope, interface) + attribute(2, socket.inet_aton(address))
    return struct.pack("=IHHII", 16 + len(body), kind, 0, 0, 0) + body


class Telling:
    """The kernel's messages about addresses, and the addresses that there are."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.kernel, self._ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._ours.setblocking(False)
        self.addresses = ["10.0.0.9"]
        self.answers = True
        self.sender = 0
        self.fails: list[int] = []
        self.calls = 0
        monkeypatch.setattr(addresses, "_open_changes", lambda: self)
        monkeypatch.setattr(addresses, "_interface_name", lambda index: {2: "eth0", 3: "veth0", 4: ""}[index])
        monkeypatch.setattr(addresses, "_assigned", self._assigned)

    def _assigned(self):
        if not self.answers:
            raise NoAddress("the kernel does not answer")
        return (addresses._Assigned(item, 2, 0, 0) for item in self.addresses)

    def fileno(self) -> int:
        return self._ours.fileno()

    def recvfrom(self, size: int) -> tuple[bytes, tuple[int, int]]:
        if self.fails:
            raise OSError(number := self.fails.pop(), os.strerror(number))
        return self._ours.recv(size), (self.sender, 0)

    def close(self) -> None:
        self._ours.close()
        self.kernel.close()

    def changed(self) -> None:
        self.calls += 1

    async def tells(self, *messages: bytes) -> int:
        """How often somebody was called since."""
        before = self.calls
        for message in messages:
            self.kernel.send(message)
        for _ in range(5):
            await asyncio.sleep(0)
        return self.calls - before


@pytest.fixture
def telling(monkeypatch: pytest.MonkeyPatch) -> Telling:
    return Telling(monkeypatch)


def test_addresses_that_come_and_go_are_told_once_a_burst(telling: Telling):
    async def look() -> None:
        async with addresses.watching(telling.changed):
            telling.addresses = ["10.0.0.9", "10.0.0.10"]
            assert await telling.tells(told("10.0.0.10"), told("10.0.0.11"), told("10.0.0.11", kind=21)) == 1
            telling.addresses = ["10.0.0.9"]
            assert await telling.tells(told("10.0.0.10", kind=21)) == 1
            assert await telling.tells(told("10.0.0.9")) == 0, "told of an address that only lives on"

    asyncio.run(look())


def test_addresses_of_pods_and_links_and_what_others_send_is_not_looked_at(telling: Telling):
    async def look() -> None:
        async with addresses.watching(telling.changed):
            telling.addresses = []
            assert await telling.tells(told("10.1.0.1", interface=3), told("10.1.0.1", scope=253), b"", b"x" * 7) == 0
            telling.sender = 4711
            assert await telling.tells(told("10.0.0.9", kind=21)) == 0
            telling.sender = 0
            assert await telling.tells(told("10.0.0.9", kind=21, interface=4)) == 1, "its link is gone, too"

    asyncio.run(look())


def test_lost_messages_and_addresses_that_cannot_be_listed_count_as_changes(telling: Telling):
    async def look() -> None:
        async with addresses.watching(telling.changed):
            telling.fails, telling.addresses = [errno.ENOBUFS], []
            assert await telling.tells(b"") == 1
            telling.answers = False
            assert await telling.tells(told("10.0.0.9")) == 1
            assert await telling.tells(told("10.0.0.9")) == 1

    asyncio.run(look())


def test_a_socket_that_broke_is_said_and_not_read_again(telling: Telling, caplog: pytest.LogCaptureFixture):
    async def look() -> None:
        async with addresses.watching(telling.changed):
            telling.fails, telling.addresses = [errno.EBADF], []
            assert await telling.tells(b"") == 1
            telling.addresses = ["10.0.0.9"]
            assert await telling.tells(told("10.0.0.9")) == 0

    asyncio.run(look())
    assert len(caplog.records) == 1


def test_where_the_kernel_refuses_it_is_said_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    def refuse() -> socket.socket:
        raise PermissionError(errno.EPERM, "not permitted")

    async def look() -> None:
        async with addresses.watching(lambda: pytest.fail("called")):
            await asyncio.sleep(0)

    monkeypatch.setattr(addresses, "_open_changes", refuse)
    asyncio.run(look())
    assert len(caplog.records) == 1


IN_A_NETWORK_OF_ITS_OWN = """
import asyncio, subprocess
from kubeflash.host import addresses

def ip(words):
    subprocess.run(["ip", *words.split()], check=True)

async def main():
    heard = asyncio.Event()
    async def is_heard(words, seconds=10):
        heard.clear()
        ip(words)
        try:
            await asyncio.wait_for(heard.wait(), seconds)
            return True
        except TimeoutError:
            return False
    for name in ("test0", "veth0", "eth1"):
        ip(f"link add {name} type bridge")
    async with addresses.watching(heard.set):
        ip("link set test0 up")
        ip("link set eth1 up")
        assert await is_heard("addr add 10.9.0.1/24 dev test0")
        assert not await is_heard("addr add 10.9.1.1/24 dev veth0", 0.5), "of a pod"
        assert await is_heard("addr add 2001:db8::5/64 dev test0 nodad")
        assert [item.address for item in addresses.global_addresses()] == ["10.9.0.1", "2001:db8::5"]
        assert not await is_heard("addr change 2001:db8::5/64 dev test0 nodad valid_lft 900 preferred_lft 800", 0.5)
        assert await is_heard("addr del 10.9.0.1/24 dev test0")
        assert await is_heard("link del test0")
        assert addresses.global_addresses() == ()
    assert not await is_heard("addr add 10.9.2.1/24 dev eth1", 0.5), "after its end"

asyncio.run(main())
"""


@pytest.mark.skipif(os.getuid() != 0 or not shutil.which("ip"), reason="needs root and iproute2")
def test_the_kernel_tells_of_addresses():
    path = os.pathsep.join([str(Path(kubeflash.__file__).parents[1]), *sys.path])
    done = subprocess.run(
        ["unshare", "--net", sys.executable, "-c", IN_A_NETWORK_OF_ITS_OWN],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
        check=False,
    )
    if "Unknown device type" in done.stderr or "Operation not" in done.stderr:
        pytest.skip("this kernel makes no bridges")
    assert done.returncode == 0, done.stderr
