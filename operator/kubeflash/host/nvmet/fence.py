"""Fencing and taking down an export: one function for each step, in the order of the contract (see the package)."""

from __future__ import annotations

import errno

from kubeflash.host.nvmet import tree
from kubeflash.host.nvmet.configfs import Configfs
from kubeflash.host.nvmet.errors import ObjectInUse, OutOfOrder


def disallow_host(fs: Configfs, nqn: str, host_nqn: str) -> None:
    """Takes a host off a subsystem's allow-list: no new connection. A live one goes on writing."""
    tree.remove_link(fs, f"{tree.subsystem(nqn)}/allowed_hosts/{tree.name(host_nqn)}")


def unlink_port(fs: Configfs, number: int, nqn: str) -> None:
    """Unlinks a subsystem from a port: its live controllers there end. No write barrier."""
    tree.remove_link(fs, f"{tree.port(number)}/subsystems/{tree.name(nqn)}")


def disable_namespace(fs: Configfs, nqn: str, nsid: int, *, while_linked: bool = False) -> None:
    """The write barrier: returns when no I/O of any consumer is in flight any more.

    Blocks while the SSD hangs, so run it in a thread of its own, and raise an alarm when it does not return.

    Args:
        fs: nvmet's tree.
        nqn: the subsystem.
        nsid: the namespace.
        while_linked: for a device that is dead and shall be replaced under its consumers; blocks for up to their
            keep-alive time when one of them is frozen.

    Raises:
        OutOfOrder: when the subsystem is still linked to a port.
    """
    path = tree.namespace(nqn, nsid)
    if not fs.exists(path):
        return
    ports = linked_ports(fs, nqn)
    if ports and not while_linked:
        raise OutOfOrder(f"{nqn} is still linked to port {', '.join(map(str, ports))}: unlink it first")
    tree.attribute(fs, f"{path}/enable", "0")


def linked_ports(fs: Configfs, nqn: str) -> tuple[int, ...]:
    """Numbers of the ports that a subsystem is linked to."""
    with tree.kernel("nvmet's ports cannot be read"):
        names = [name for name in fs.listdir("ports") if name.isdigit()]
        return tuple(sorted(int(name) for name in names if fs.exists(f"ports/{name}/subsystems/{tree.name(nqn)}")))


def remove_namespace(fs: Configfs, nqn: str, nsid: int) -> None:
    """Removes a namespace.

    Raises:
        OutOfOrder: when it is enabled: the kernel would remove it all the same.
    """
    path = tree.namespace(nqn, nsid)
    if not fs.exists(path):
        return
    with tree.kernel(f"{path}/enable cannot be read"):
        enabled = fs.read(f"{path}/enable").strip()
    if enabled != "0":
        raise OutOfOrder(f"{path} is enabled: disable it first")
    tree.remove(fs, path)


def remove_subsystem(fs: Configfs, nqn: str) -> None:
    """Removes a subsystem and its namespaces, which must be disabled.

    Raises:
        OutOfOrder: when it is linked to a port, a host is allowed, or a namespace is enabled.
    """
    path = tree.subsystem(nqn)
    if not fs.exists(path):
        return
    with tree.kernel(f"{path} cannot be read", {errno.ENOENT: ObjectInUse}):
        hosts = fs.listdir(f"{path}/allowed_hosts")
        namespaces = fs.listdir(f"{path}/namespaces")
    ports = linked_ports(fs, nqn)
    if hosts or ports:
        raise OutOfOrder(f"{nqn} still allows {len(hosts)} hosts and is linked to {len(ports)} ports: end that first")
    for nsid in namespaces:
        remove_namespace(fs, nqn, int(nsid))
    tree.remove(fs, path)


def remove_port(fs: Configfs, number: int) -> None:
    """Removes a port.

    Raises:
        ObjectInUse: when a subsystem is linked to it.
    """
    path = tree.port(number)
    if not fs.exists(path):
        return
    with tree.kernel(f"{path} cannot be read"):
        subsystems = fs.listdir(f"{path}/subsystems")
    if subsystems:
        raise ObjectInUse(f"{path} still has {', '.join(subsystems)} linked to it")
    tree.remove(fs, path)


def remove_host(fs: Configfs, host_nqn: str) -> None:
    """Removes a host, and with it its keys.

    Raises:
        ObjectInUse: when a subsystem still allows it.
    """
    tree.remove(fs, tree.host(host_nqn))
