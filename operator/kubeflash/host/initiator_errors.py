"""What goes wrong with connecting and disconnecting, by type, each with what to do about it."""

from __future__ import annotations

import errno

from kubeflash.host.errors import HostError


class InitiatorError(HostError):
    """The NVMe-oF initiator refused or failed something."""


class FabricsMissing(InitiatorError):
    """The kernel's NVMe-oF initiator is not loaded."""


class ConnectFailed(InitiatorError):
    """A connect failed."""


class KeyRefused(ConnectFailed):
    """Authentication failed: a key is missing or is not the server's."""


class NotAllowed(ConnectFailed):
    """The server does not let this host in, or has no such subsystem."""


class PortRefused(ConnectFailed):
    """Nothing listens at the address and port number."""


class ServerUnreachable(ConnectFailed):
    """The address cannot be reached, or does not answer."""


class HandshakeMissing(ConnectFailed):
    """Nobody does the TLS handshake for this server's kernel."""


class AlreadyConnected(ConnectFailed):
    """There is a connection to this subsystem and address already."""


class OptionUnknown(ConnectFailed):
    """The kernel does not know an option, or host NQN and host id do not belong together."""


class DeviceNotSeen(InitiatorError):
    """Connected, but the expected block device did not appear."""


class DeviceHeld(InitiatorError):
    """A device that was to be disconnected is used by somebody."""


class FlushFailed(InitiatorError):
    """What was written to a device could not be made durable before disconnecting it."""


class DisconnectFailed(InitiatorError):
    """A connection is still there after it was deleted."""


class LastPath(InitiatorError):
    """A path was to be dropped that is the only one left."""


class PolicyRefused(InitiatorError):
    """The kernel does not spread I/O over a subsystem's paths."""


_SENSE: dict[int, tuple[type[ConnectFailed], str]] = {
    errno.ENOKEY: (KeyRefused, "the server wants a key and none was given, or one is damaged"),
    errno.EKEYREJECTED: (KeyRefused, "a key is not the one of the other side: make the attachment anew"),
    errno.EPERM: (KeyRefused, "a key is malformed: make the attachment anew"),
    errno.EIO: (
        NotAllowed,
        "the server does not let this host in, does not have the subsystem, or hung up over a key (see dmesg there)",
    ),
    errno.ESRCH: (
        HandshakeMissing,
        "tlshd does not run on this server: install ktls-utils, keyrings=.nvme in tlshd.conf",
    ),
    errno.ECONNREFUSED: (
        PortRefused,
        "nothing listens there: does the server's agent run, and has it linked the port?",
    ),
    errno.ECONNRESET: (PortRefused, "the server ended the connection: does the port want TLS?"),
    errno.EALREADY: (AlreadyConnected, "this subsystem is connected already"),
    errno.EINVAL: (OptionUnknown, "an unknown option, or host NQN and host id are not one to one on this server"),
    errno.EAGAIN: (
        ServerUnreachable,
        "it accepted and said nothing more: is it an NVMe/TCP port, does the server hang?",
    ),
    errno.ETIMEDOUT: (ServerUnreachable, "no answer: is the server up, is a firewall in between, does it want no TLS?"),
    errno.EHOSTUNREACH: (ServerUnreachable, "no way to the server: is its link up?"),
    errno.ENETUNREACH: (ServerUnreachable, "no route to the server's network"),
    errno.EHOSTDOWN: (ServerUnreachable, "the server does not answer on its network"),
    errno.EADDRNOTAVAIL: (ServerUnreachable, "the address cannot be reached from any address of this server"),
}


_RDMA_RESET = (PortRefused, "nothing listens there by RDMA, or the address cannot be reached by it: see `rdma link`")


def connect_error(what: str, error: OSError, transport: str = "tcp") -> ConnectFailed:
    """The error of a connect by its number. `what` names the target, and holds no key."""
    number = error.errno or 0
    kind, remedy = _SENSE.get(number, (ConnectFailed, "see dmesg"))
    if transport == "rdma" and number == errno.ECONNRESET:  # what RDMA says of every address and port that fails
        kind, remedy = _RDMA_RESET
    return kind(f"{what}: {remedy} ({errno.errorcode.get(number, str(number))})")
