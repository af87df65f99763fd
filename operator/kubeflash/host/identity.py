"""Which server this is: an identity that outlives reinstallation, renaming and the loss of its Node."""

from __future__ import annotations

from uuid import UUID

from kubeflash.host.errors import HostError
from kubeflash.host.root import HostRoot
from kubeflash.host.sysfs import read_text

_BOGUS = frozenset(
    {
        "03000200-0400-0500-0006-000700080009",  # AMI's firmware, as delivered to board makers
        "00020003-0004-0005-0006-000700080009",  # the same in the other byte order
        "12345678-1234-5678-90ab-cddeefaabbcc",
        "12345678-1234-5678-1234-567812345678",
        "fefefefe-fefe-fefe-fefe-fefefefefefe",
    }
)
"""UUIDs that many servers share, since their makers left them as they came."""


class NoIdentity(HostError):
    """Nothing on this server says durably which one it is."""


def system_uuid(root: HostRoot) -> str:
    """The DMI system UUID, else the machine id in the form of a UUID; lower case.

    The machine id belongs to an installation: the disks of a reinstalled server are then another server's. In a
    container it must be that of the host.

    Raises:
        NoIdentity: when the server has neither.
    """
    dmi = _genuine(read_text(root.sys / "class" / "dmi" / "id" / "product_uuid"))
    machine = _genuine(read_text(root.path / "etc" / "machine-id"))
    found = dmi or machine
    if found is None:
        raise NoIdentity(
            "the server has no identity: no DMI system UUID of its own in /sys/class/dmi/id/product_uuid (readable by "
            "root) and no /etc/machine-id: run systemd-machine-id-setup"
        )
    return found


def _genuine(text: str | None) -> str | None:
    """The UUID that a text says; None for none, and for those that say nothing."""
    try:
        uuid = str(UUID(text or ""))
    except ValueError:  # "Not Settable", "uninitialized"
        return None
    same_digit = len(set(uuid) - {"-"}) == 1  # all zeroes, all f
    return None if same_digit or uuid in _BOGUS else uuid
