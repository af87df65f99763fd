"""The lab's network: an anonymous network namespace that the lab's own process moves into.

It has no name that could be left behind and vanishes with its last process; fixed addresses and ports cannot collide
with anything, and nothing inside reaches the internet. Another process joins with ``nsenter --net -t PID``.
Whatever has to be downloaded or built comes first: see `lab.cache`.

    kf0  10.77.0.0/24   servers, and the control plane at 10.77.0.1
    kf1  10.78.0.0/24   the storage network, of servers that have a second network card
"""

from __future__ import annotations

import ctypes
import json
import os
import threading
from dataclasses import dataclass
from pathlib import Path

from lab.errors import LabError, NotPossible
from lab.processes import run

CONTROL_PLANE_ADDRESS = "10.77.0.1"
INSIDE = "KUBEFLASH_LAB_NETWORK"
"""Environment variable of a lab's process and all it starts: which network namespace the lab's is."""

_CLONE_NEWNET = 0x40000000
_COMMAND_TIMEOUT = 10.0  # seconds; each takes milliseconds


@dataclass(frozen=True)
class Bridge:
    """A switch that servers plug into.

    Attributes:
        name: The interface's.
        address: The lab's own address on it, with its prefix length.
        mac: Given, because a bridge otherwise takes another one whenever a port comes or goes.
    """

    name: str
    address: str
    mac: str


MAIN = Bridge("kf0", f"{CONTROL_PLANE_ADDRESS}/24", "02:4b:46:00:00:01")
STORAGE = Bridge("kf1", "10.78.0.1/24", "02:4b:46:01:00:01")

_entered = False


def entered() -> bool:
    """Whether this process lives in a lab's network: it moved there, or was started inside."""
    return os.environ.get(INSIDE) == identity()


def identity() -> str:
    """Tells the network namespace this process is in from all others on the machine."""
    return str(Path("/proc/self/ns/net").stat().st_ino)


def check_machine() -> None:
    """Whether a lab can have its network here.

    Raises:
        NotPossible: This is not root, or the kernel offers no tap devices.
    """
    if os.geteuid() != 0:
        raise NotPossible("the lab makes a network namespace and tap devices: run it as root")
    if not Path("/dev/net/tun").exists():
        raise NotPossible("no /dev/net/tun, so servers could have no network cards: modprobe tun")


def enter() -> None:
    """Move this process into a network namespace of its own, with its loopback up. Once; then nothing happens.

    Raises:
        NotPossible: See `check_machine`; or the kernel refused.
        LabError: This is not the main thread, or there are others: they would stay outside.
    """
    global _entered  # noqa: PLW0603 - a process lives in one network, as it has one working folder
    if _entered:
        return
    check_machine()
    others = [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]
    if threading.current_thread() is not threading.main_thread() or others:
        raise LabError(f"enter the lab's network before starting threads (there are: {', '.join(others)})")
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNET) != 0:
        problem = os.strerror(ctypes.get_errno())
        raise NotPossible(f"unshare(CLONE_NEWNET): {problem}; the lab needs CAP_SYS_ADMIN, in a container too")
    _entered = True
    os.environ[INSIDE] = identity()
    _ip("link", "set", "lo", "up")


class Network:
    """The bridges and cables inside the namespace."""

    def __init__(self) -> None:
        """Move into the namespace (see `enter`) and bring up the main bridge.

        Raises:
            LabError: See `enter`.
        """
        enter()
        self.add_bridge(MAIN)

    def add_bridge(self, bridge: Bridge) -> None:
        """Bring up a bridge, unless it is there."""
        if bridge.name in links():
            return
        _ip("link", "add", "name", bridge.name, "address", bridge.mac, "type", "bridge")
        _ip("address", "add", bridge.address, "dev", bridge.name)
        _ip("link", "set", bridge.name, "up")

    def add_tap(self, name: str, bridge: Bridge = MAIN) -> str:
        """Make a tap device, plugged into a bridge (made if need be), cable in; returns its name.

        Args:
            name: At most 15 characters.
            bridge: Where it is plugged in.

        Raises:
            CommandError: There is such a device already, or the name is no good.
        """
        self.add_bridge(bridge)
        _ip("tuntap", "add", "dev", name, "mode", "tap")
        _ip("link", "set", name, "master", bridge.name, "up")
        return name

    def del_tap(self, name: str) -> None:
        """Remove a tap device, if it is there."""
        if name in links():
            _ip("link", "delete", name)

    def set_link(self, name: str, *, up: bool) -> None:
        """Pull out (`up` False) or plug in a cable.

        Raises:
            CommandError: There is no such device.
        """
        _ip("link", "set", name, "up" if up else "down")


def links() -> dict[str, str]:
    """Network interfaces of the namespace this process is in: name to kind (``bridge``, ``tun``, or nothing)."""
    listed = json.loads(_ip("-json", "-details", "link", "show"))
    return {link["ifname"]: link.get("linkinfo", {}).get("info_kind", "") for link in listed}


def _ip(*words: str) -> str:
    return run(["ip", *words], timeout=_COMMAND_TIMEOUT).stdout_text
