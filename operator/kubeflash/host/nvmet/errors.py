"""What goes wrong with nvmet, by type, each with what to do about it."""

from __future__ import annotations

from kubeflash.host.errors import HostError


class NvmetError(HostError):
    """nvmet refused something."""


class NvmetMissing(NvmetError):
    """The kernel's NVMe target is not loaded, or configfs is not mounted."""

    def __init__(self) -> None:
        super().__init__("nvmet is not there: `modprobe nvmet nvmet-tcp`, and mount configfs at /sys/kernel/config")


class ObjectDiffers(NvmetError):
    """An object of that name is there and is not what is wanted. It is not changed under a consumer: fence it first."""


class ObjectMissing(NvmetError):
    """An object that the step builds upon is not there: the order of steps was broken, or somebody removed it."""


class OutOfOrder(NvmetError):
    """The step would break the ordering contract: a consumer would be refused for good, or a write slip through."""


class ObjectInUse(NvmetError):
    """The kernel will not remove or change an object that is linked or enabled."""


class KeyRefusedByKernel(NvmetError):
    """The kernel does not take a DH-HMAC-CHAP key, hash or group."""


class DeviceMissing(NvmetError):
    """The block device of a namespace is not there."""


class DeviceRefused(NvmetError):
    """The block device of a namespace cannot be opened for export."""


class PortTaken(NvmetError):
    """Somebody else listens on that address and port number."""


class AddressNotUp(NvmetError):
    """The address to listen on is not on any interface of this server."""


class TransportMissing(NvmetError):
    """The kernel module of the transport is not loaded."""


class TlsRefused(NvmetError):
    """The transport, or this kernel's target, has no TLS."""


class ReadBackDiffers(NvmetError):
    """Something was written, and reads back otherwise."""
