"""The server's own network addresses, and which TCP ports somebody listens on. No packet is sent, no tool is run."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import logging
import os
import socket
import struct
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from kubeflash.api.v1alpha1 import NodeAddress
from kubeflash.host.errors import HostError
from kubeflash.host.root import HostRoot

log = logging.getLogger(__name__)

# linux/rtnetlink.h, linux/netlink.h, linux/if_addr.h
_RTM_GETADDR, _RTM_NEWADDR, _RTM_DELADDR = 22, 20, 21
_RTMGRP_IPV4_IFADDR, _RTMGRP_IPV6_IFADDR = 0x10, 0x100
_NLM_F_REQUEST, _NLM_F_DUMP = 0x1, 0x300
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_IFA_ADDRESS, _IFA_LOCAL, _IFA_FLAGS = 1, 2, 8
_SCOPE_GLOBAL = 0
_TEMPORARY, _DUPLICATE, _DEPRECATED, _TENTATIVE = 0x01, 0x08, 0x20, 0x40
_NOT_TO_BE_USED = _TEMPORARY | _DUPLICATE | _DEPRECATED | _TENTATIVE
_HEADER = struct.Struct("=IHHII")
_ADDRESS_MESSAGE = struct.Struct("=BBBBI")
_ATTRIBUTE = struct.Struct("=HH")
_MOST_MESSAGES = 1000  # that are read at once, however fast addresses come and go

_POD_NETWORK = ("cali", "cilium", "cni", "docker", "flannel", "kube-", "lxc", "nodelocaldns", "tunl", "veth", "virbr")
"""Interfaces that belong to pods and Services. kube-proxy in IPVS mode gives every ClusterIP to `kube-ipvs0`."""
_OUTSIDE = {socket.AF_INET: "192.0.2.1", socket.AF_INET6: "2001:db8::1"}
"""Addresses that no network has (RFC 5737, RFC 3849): the way to them is the default route."""
_LISTEN = "0A"


class NoAddress(HostError):
    """The server has no way to another one, or cannot say which addresses it has."""


@dataclass(frozen=True)
class _Assigned:
    """An address as the kernel tells it over netlink."""

    address: str
    interface: int
    scope: int
    flags: int


def global_addresses() -> tuple[NodeAddress, ...]:
    """The addresses by which others can reach this server, in order, each with its interface.

    Left out are those of loopback and link scope, those that are about to go or not confirmed yet, and those of pods
    and Services.

    Raises:
        NoAddress: when the kernel does not answer.
    """
    found: dict[str, NodeAddress] = {}
    for item in _assigned():
        name = _interface_name(item.interface)
        if item.scope != _SCOPE_GLOBAL or item.flags & _NOT_TO_BE_USED or not name or name.startswith(_POD_NETWORK):
            continue
        found.setdefault(item.address, NodeAddress(address=item.address, interface=name))
    return tuple(sorted(found.values(), key=lambda item: _order(item.address)))


@asynccontextmanager
async def watching(changed: Callable[[], None]) -> AsyncIterator[None]:
    """Calls `changed` in the running loop when `global_addresses` has changed, inside of the `async with`.

    At the most once for all that the kernel told at a time, and not for what it tells besides: addresses of pods, and
    each router advertisement that lets an address live on. Links that come and go are not listened to: their addresses
    are told of by themselves, and each pod has a link. Where the kernel does not let us listen, a warning is logged and
    nothing is ever called: whoever listens also looks by itself from time to time.
    """
    try:
        listener = _open_changes()
    except OSError as error:
        log.warning("addresses that come and go are noticed when the agent looks by itself: %s", error)
        yield
        return
    loop = asyncio.get_running_loop()
    known = _now()

    def read() -> None:
        nonlocal known
        try:
            told = _tells(listener)
        except OSError as error:
            log.warning("addresses that come and go are noticed when the agent looks by itself: %s", error)
            loop.remove_reader(listener)
            told = True
        if told:
            before, known = known, _now()
            if known is None or known != before:
                changed()

    loop.add_reader(listener, read)
    try:
        yield
    finally:
        loop.remove_reader(listener)
        listener.close()


def _open_changes() -> socket.socket:
    """A non-blocking socket on which the kernel tells of addresses in this network namespace."""
    listener = socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE
    )
    try:
        listener.bind((0, _RTMGRP_IPV4_IFADDR | _RTMGRP_IPV6_IFADDR))
    except OSError:
        listener.close()
        raise
    return listener


def _tells(listener: socket.socket) -> bool:
    """Reads all messages that wait: whether one may be of an address by which others reach this server."""
    found = False
    for _ in range(_MOST_MESSAGES):
        try:
            content, sender = listener.recvfrom(1 << 16)
        except BlockingIOError:
            break
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            found = True  # messages were lost
            continue
        # the kernel's netlink port is 0; any process may send to ours
        found = found or (sender[0] == 0 and any(_concerns(kind, body) for kind, body in _messages(content)))
    return found


def _concerns(kind: int, body: bytes) -> bool:
    if kind not in (_RTM_NEWADDR, _RTM_DELADDR):
        return False
    item = parse_address(body)
    if item is None or item.scope != _SCOPE_GLOBAL:
        return False
    return not _interface_name(item.interface).startswith(_POD_NETWORK)


def _now() -> tuple[NodeAddress, ...] | None:
    try:
        return global_addresses()
    except NoAddress:
        return None


def address_toward(host: str, port: int) -> str:
    """The address from which this server would talk to another: its side of a connected UDP socket.

    A Service's address can be the server's own (kube-proxy in IPVS mode), and so can the API server's: then it is the
    address on the default route.

    Args:
        host: name or address.
        port: any port; nothing is sent to it.

    Raises:
        NoAddress: when the name is unknown or there is no route.
    """
    try:
        family, _, _, _, target = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
        own = _own_side(family, target)
        if own in {item.address for item in global_addresses()}:
            return own
        return _own_side(family, (_OUTSIDE[socket.AddressFamily(family)], port))
    except (OSError, KeyError) as error:
        raise NoAddress(f"no address of this server leads to {host}: {error}") from error


def listening_ports(root: HostRoot) -> frozenset[int]:
    """TCP ports on which anything listens, on whatever address; none when they cannot be read."""
    return frozenset(port for name in ("tcp", "tcp6") for port in _listening(root, name))


def _listening(root: HostRoot, name: str) -> Iterator[int]:
    try:
        with (root.proc / "net" / name).open() as lines:
            next(lines, None)  # the heading
            for line in lines:
                fields = line.split()
                if len(fields) < 4 or fields[3] != _LISTEN:
                    return  # the kernel lists those that listen first; of the others there can be very many
                yield int(fields[1].rpartition(":")[2], 16)
    except (OSError, ValueError):
        return


def _own_side(family: int, target: tuple[object, ...]) -> str:
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect(target)
        return str(probe.getsockname()[0])


def _interface_name(index: int) -> str:
    try:
        return socket.if_indextoname(index)
    except OSError:
        return ""


def _order(address: str) -> tuple[int, int]:
    parsed = ipaddress.ip_address(address)
    return parsed.version, int(parsed)


def _assigned() -> Iterator[_Assigned]:
    """All addresses, by one dump over netlink."""
    request = _ADDRESS_MESSAGE.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
    header = _HEADER.pack(_HEADER.size + len(request), _RTM_GETADDR, _NLM_F_REQUEST | _NLM_F_DUMP, 1, 0)
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE) as kernel:
            kernel.settimeout(5.0)
            kernel.bind((0, 0))
            kernel.send(header + request)
            while True:
                for kind, body in _messages(kernel.recv(1 << 17)):
                    if kind == _NLMSG_DONE:
                        return
                    if kind == _NLMSG_ERROR:
                        code = -struct.unpack_from("=i", body)[0]
                        raise NoAddress(f"the kernel does not list its addresses: {os.strerror(code)}")
                    if kind == _RTM_NEWADDR and (found := parse_address(body)):
                        yield found
    except OSError as error:
        raise NoAddress(f"the kernel does not list its addresses: {error}") from error


def _messages(content: bytes) -> Iterator[tuple[int, bytes]]:
    """Kind and body of each netlink message."""
    position = 0
    while position + _HEADER.size <= len(content):
        length, kind, *_ = _HEADER.unpack_from(content, position)
        if length < _HEADER.size:
            return
        yield kind, content[position + _HEADER.size : position + length]
        position += _aligned(length)


def parse_address(body: bytes) -> _Assigned | None:
    """One RTM_NEWADDR message; None for a family that is neither IPv4 nor IPv6."""
    family, _, flags, scope, interface = _ADDRESS_MESSAGE.unpack_from(body)
    if family not in (socket.AF_INET, socket.AF_INET6):
        return None
    attributes: dict[int, bytes] = {}
    position = _ADDRESS_MESSAGE.size
    while position + _ATTRIBUTE.size <= len(body):
        length, kind = _ATTRIBUTE.unpack_from(body, position)
        if length < _ATTRIBUTE.size:
            break
        attributes[kind] = body[position + _ATTRIBUTE.size : position + length]
        position += _aligned(length)
    # on a point-to-point link IFA_ADDRESS is the other side
    raw = attributes.get(_IFA_LOCAL) or attributes.get(_IFA_ADDRESS)
    if raw is None:
        return None
    if len(attributes.get(_IFA_FLAGS, b"")) == 4:  # all flags; the header has room for eight only
        flags = int(struct.unpack("=I", attributes[_IFA_FLAGS])[0])
    return _Assigned(socket.inet_ntop(family, raw), interface, scope, flags)


def _aligned(length: int) -> int:
    return (length + 3) & ~3
