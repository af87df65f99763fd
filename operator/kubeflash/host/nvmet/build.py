"""Building an export: one function for each step, in the order of the contract (see the package)."""

from __future__ import annotations

import errno
from secrets import randbelow
from uuid import UUID

from kubeflash.domain.dhchap import DhchapKeys
from kubeflash.domain.dhchap import check as check_key
from kubeflash.domain.fabric import Portal
from kubeflash.host.nvmet import state, tree
from kubeflash.host.nvmet.configfs import Configfs
from kubeflash.host.nvmet.errors import (
    AddressNotUp,
    DeviceMissing,
    DeviceRefused,
    KeyRefusedByKernel,
    NvmetError,
    ObjectDiffers,
    ObjectMissing,
    OutOfOrder,
    PortTaken,
    ReadBackDiffers,
    TlsRefused,
    TransportMissing,
)
from kubeflash.host.nvmet.fence import disable_namespace
from kubeflash.host.nvmet.state import DH_GROUP, HASH, SECRET
from kubeflash.host.nvmet.tree import with_remedy

CONTROLLERS = 64
"""Controller numbers of one export: one a path, and as many again while they are replaced."""
RANGES = 1000
"""Ranges of them; NVMe has numbers up to 65519."""
SERIAL_LENGTH = 20
MODEL_LENGTH = 40


def create_host(fs: Configfs, host_nqn: str, keys: DhchapKeys | None) -> None:
    """A host with its keys, readable by root alone before the first of them is written.

    Args:
        fs: nvmet's tree.
        host_nqn: the host. What a crash left of it is completed.
        keys: None for a host that need not prove who it is.

    Raises:
        ObjectDiffers: when it has other keys, or none are wanted: they are never changed in place, the host must be
            removed first.
        KeyRefusedByKernel: when the kernel does not take them.
    """
    if keys is None:
        _create_open_host(fs, host_nqn)
        return
    for key in (keys.host, keys.controller):
        try:
            check_key(key)
        except ValueError as error:
            raise KeyRefusedByKernel(f"keys of {host_nqn}: {error}") from error
    path = tree.host(host_nqn)
    tree.make(fs, path)
    secrets = {f"{path}/dhchap_key": keys.host, f"{path}/dhchap_ctrl_key": keys.controller}
    for file in secrets:
        with tree.kernel(f"{file} cannot be hidden from others", {errno.ENOENT: _no_authentication}):
            fs.chmod(file, SECRET)
            mode = fs.mode(file)
        if mode != SECRET:
            raise ReadBackDiffers(f"{file} was given mode 0600 and has {mode:04o}: no key is written there")
    for file, key in secrets.items():
        _write_secret(fs, file, key)
    refused = {errno.EINVAL: with_remedy(KeyRefusedByKernel, "this kernel has no such algorithm, see dmesg")}
    tree.attribute(fs, f"{path}/dhchap_hash", HASH, refused)
    tree.attribute(fs, f"{path}/dhchap_dhgroup", DH_GROUP, refused)


def _create_open_host(fs: Configfs, host_nqn: str) -> None:
    path = tree.host(host_nqn)
    tree.make(fs, path)
    for file in ("dhchap_key", "dhchap_ctrl_key"):
        with tree.kernel(f"{path}/{file} cannot be read"):
            try:
                present = fs.read(f"{path}/{file}").strip()
            except FileNotFoundError:  # a kernel without authentication
                continue
        if present:
            raise ObjectDiffers(f"{path}/{file} holds a key and none is wanted: remove the host first")


def _no_authentication(what: str) -> NvmetError:
    return KeyRefusedByKernel(f"{what}: this kernel has no NVMe authentication (CONFIG_NVME_TARGET_AUTH)")


def _write_secret(fs: Configfs, file: str, key: str) -> None:
    """Writes a key; no message ever holds it."""
    with tree.kernel(f"{file} cannot be read"):
        present = fs.read(file).strip()
    if present == key:
        return
    if present:
        raise ObjectDiffers(f"{file} holds another key: keys are not changed in place, remove the host first")
    with tree.kernel(f"{file} cannot be written", {errno.EINVAL: KeyRefusedByKernel, errno.ENOKEY: KeyRefusedByKernel}):
        fs.write(file, key)
        present = fs.read(file).strip()
    if present != key:
        raise ReadBackDiffers(f"{file} was written and does not read back")


def create_subsystem(fs: Configfs, nqn: str, *, serial: str, model: str) -> None:
    """A subsystem that nobody may connect to yet.

    Raises:
        NvmetError: when serial or model are too long for NVMe.
        ObjectDiffers: when it is there with others.
    """
    if not 0 < len(serial) <= SERIAL_LENGTH or not 0 < len(model) <= MODEL_LENGTH:
        raise NvmetError(f"serial {serial!r} or model {model!r} is longer than {SERIAL_LENGTH} or {MODEL_LENGTH}")
    path = tree.subsystem(nqn)
    tree.make(fs, path)
    differs = {errno.EINVAL: with_remedy(ObjectDiffers, "somebody was connected to it already: fence it first")}
    tree.attribute(fs, f"{path}/attr_allow_any_host", "0")
    tree.attribute(fs, f"{path}/attr_serial", serial)
    tree.attribute(fs, f"{path}/attr_model", model, differs)
    _number_controllers(fs, path)


def _number_controllers(fs: Configfs, path: str) -> None:
    """Gives a new subsystem's controllers numbers of their own, from a random range.

    nvmet would give the lowest that is free on the server. After a reboot that is the one by which a consumer still
    knows its controller at another portal of the same subsystem, and its kernel rejects a second one with that number
    (`nvme_validate_cntlid`): it could not change over to a new portal.
    """
    with tree.kernel(f"{path}/attr_cntlid_min cannot be read"):
        if fs.read(f"{path}/attr_cntlid_min").strip() != "1":
            return
    first = CONTROLLERS * (1 + randbelow(RANGES))
    tree.attribute(fs, f"{path}/attr_cntlid_max", str(first + CONTROLLERS - 1))  # first: never below the other
    tree.attribute(fs, f"{path}/attr_cntlid_min", str(first))


def allow_host(fs: Configfs, nqn: str, host_nqn: str) -> None:
    """Puts a host on a subsystem's allow-list.

    Raises:
        ObjectMissing: when one of them is not there.
    """
    tree.make_link(
        fs,
        tree.host(host_nqn),
        f"{tree.subsystem(nqn)}/allowed_hosts/{tree.name(host_nqn)}",
        {errno.EINVAL: with_remedy(ObjectDiffers, "the subsystem allows any host; attr_allow_any_host must be 0")},
    )


def add_namespace(fs: Configfs, nqn: str, nsid: int, *, device: str, uuid: str) -> None:
    """A namespace on a block device, not enabled yet; `device` is not opened before it is.

    The kernel gives a fresh namespace a random UUID. The path is written last, so a namespace with a path has its own.
    A namespace that is not enabled may be given another device: an SSD that was put back has a new name.

    Raises:
        ObjectDiffers: when it is enabled with another device or UUID.
    """
    path = tree.namespace(nqn, nsid)
    wanted = str(UUID(uuid))
    tree.make(fs, path)
    tree.attribute(fs, f"{path}/device_uuid", wanted)
    tree.attribute(fs, f"{path}/device_nguid", wanted)
    tree.attribute(fs, f"{path}/device_path", device)


def enable_namespace(fs: Configfs, nqn: str, nsid: int) -> None:
    """Opens the namespace's device, which may take as long as the device does, and reads back.

    Raises:
        DeviceMissing: when the device is not there.
        DeviceRefused: when it cannot be opened.
        OutOfOrder: when it has no device yet.
    """
    path = tree.namespace(nqn, nsid)
    with tree.kernel(f"{path} cannot be read", {errno.ENOENT: ObjectMissing}):
        device = fs.read(f"{path}/device_path").strip()
    if not device.startswith("/"):  # it is written last, so with it the UUIDs are there
        raise OutOfOrder(f"{path} has no device yet: add_namespace first")
    missing = with_remedy(DeviceMissing, f"the device {device} is not there: was the SSD pulled out?")
    refused = with_remedy(DeviceRefused, f"the device {device} cannot be opened for export, see dmesg")
    errors = dict.fromkeys((errno.ENOENT, errno.ENXIO, errno.ENODEV), missing)
    errors |= dict.fromkeys((errno.EBUSY, errno.EPERM, errno.EIO, errno.EINVAL), refused)
    errors[errno.EACCES] = with_remedy(DeviceRefused, f"the device {device} is read-only, see `blockdev --getro`")
    tree.attribute(fs, f"{path}/enable", "1", errors)


def replace_device(fs: Configfs, nqn: str, nsid: int, *, device: str, uuid: str) -> None:
    """Gives a namespace its device anew, under its consumers: the SSD was pulled out, put back, and has a new name.

    Until then nvmet holds the dead device: consumers are connected, and get errors. Afterwards they see the same UUID
    under a new block device name. Killed in between, the namespace is disabled while it is linked: `add_namespace` and
    `enable_namespace` go on from there. Blocks for up to the keep-alive time of a consumer that is frozen.

    Raises:
        ObjectMissing: when the namespace is not there.
        ObjectDiffers: when it has another UUID. Nothing was done.
        DeviceMissing, DeviceRefused: when the device cannot be opened; the namespace is disabled then.
    """
    path = tree.namespace(nqn, nsid)
    with tree.kernel(f"{path} cannot be read", {errno.ENOENT: ObjectMissing}):
        present = fs.read(f"{path}/device_path").strip()
        enabled = fs.read(f"{path}/enable").strip() == "1"
        found = fs.read(f"{path}/device_uuid").strip().lower()
    if enabled and found != str(UUID(uuid)):
        raise ObjectDiffers(f"{path} has the UUID {found}, not {uuid}: it is another volume's")
    if enabled and present != device:
        disable_namespace(fs, nqn, nsid, while_linked=True)
    add_namespace(fs, nqn, nsid, device=device, uuid=uuid)
    enable_namespace(fs, nqn, nsid)


def revalidate(fs: Configfs, nqn: str, nsid: int) -> None:
    """Makes the consumers see the size that the device has now, at once; by itself nvmet never says that it grew.

    Raises:
        ObjectMissing: when the namespace is not there.
        OutOfOrder: when it is not enabled.
    """
    path = tree.namespace(nqn, nsid)
    with tree.kernel(f"{path} cannot be told of its new size", {errno.EINVAL: OutOfOrder, errno.ENOENT: ObjectMissing}):
        fs.write(f"{path}/revalidate_size", "1")


def create_port(fs: Configfs, number: int, portal: Portal, *, tls: bool = False) -> None:
    """A port that does not listen yet.

    Args:
        fs: nvmet's tree.
        number: its name in configfs.
        portal: where it will listen.
        tls: whether it takes nothing but TLS 1.3.

    Raises:
        ObjectDiffers: when it is there, linked, with another address or another security.
        TlsRefused: when the transport or the kernel has no TLS.
    """
    if not 1 <= number <= 65535:
        raise NvmetError(f"{number} cannot be the number of a port")
    if tls and portal.transport != "tcp":
        raise TlsRefused(f"{portal} cannot have TLS: only tcp has. Set spec.security.tls of the pool to None")
    path = tree.port(number)
    tree.make(fs, path)
    unknown = {errno.EINVAL: with_remedy(TransportMissing, "nvmet knows no such transport")}
    tree.attribute(fs, f"{path}/addr_trtype", portal.transport, unknown)
    tree.attribute(fs, f"{path}/addr_adrfam", "ipv6" if ":" in portal.address else "ipv4")
    tree.attribute(fs, f"{path}/addr_traddr", portal.address)
    tree.attribute(fs, f"{path}/addr_trsvcid", str(portal.port))
    if portal.transport == "tcp":
        _secure(fs, path, tls=tls)


def _secure(fs: Configfs, path: str, *, tls: bool) -> None:
    """Whether a port takes TLS; it would take both by the two together saying so."""
    if not tls:
        with tree.kernel(f"{path}/addr_tsas cannot be read"):
            try:
                plain = fs.read(f"{path}/addr_tsas").strip() == state.TSAS_PLAIN
            except FileNotFoundError:  # a kernel from before there was TLS
                plain = True
        if not plain:
            tree.attribute(fs, f"{path}/addr_tsas", state.TSAS_PLAIN)
        return
    no_tls = with_remedy(TlsRefused, "this kernel has no TLS for nvmet-tcp (CONFIG_NVME_TARGET_TCP_TLS), see dmesg")
    refused = dict.fromkeys((errno.EINVAL, errno.ENOENT), no_tls)
    tree.attribute(fs, f"{path}/addr_tsas", state.TSAS_TLS, refused)
    tree.attribute(fs, f"{path}/addr_treq", state.TREQ_REQUIRED, refused)


def link(fs: Configfs, number: int, nqn: str, *, authenticated: bool = True) -> None:
    """Links a subsystem to a port: it listens from here on. Refused before all else of the export is in place.

    Args:
        fs: nvmet's tree.
        number: the port.
        nqn: the subsystem.
        authenticated: whether all its hosts must have their keys.

    Raises:
        OutOfOrder: when no host is allowed, any host is, one lacks its keys, or a namespace is missing or not enabled.
        PortTaken: when somebody else listens on that address and port number.
        AddressNotUp: when no interface has the address, or none with RDMA.
        TransportMissing: when the transport's kernel module is not loaded.
    """
    _must_be_whole(fs, nqn, authenticated=authenticated)
    where = "see which by `ss -tlnp`, and in ports/*/addr_trsvcid"
    rdma = _transport(fs, number) == "rdma"
    address = "no RDMA device has this address, see `rdma link`: is the link up?"
    if not rdma:
        address = "no interface has this address: is the link up?"
    missing = with_remedy(TransportMissing, f"`modprobe nvmet-{'rdma' if rdma else 'tcp'}`, see dmesg")
    no_address = with_remedy(AddressNotUp, address)
    tree.make_link(
        fs,
        tree.subsystem(nqn),
        f"{tree.port(number)}/subsystems/{tree.name(nqn)}",
        {
            errno.EADDRINUSE: with_remedy(PortTaken, f"somebody else listens there: {where}"),
            errno.EADDRNOTAVAIL: no_address,
            errno.ENODEV: no_address,
            errno.EINVAL: missing,
        },
    )


def _transport(fs: Configfs, number: int) -> str:
    with tree.kernel(f"{tree.port(number)} cannot be read", {errno.ENOENT: ObjectMissing}):
        return fs.read(f"{tree.port(number)}/addr_trtype").strip()


def _must_be_whole(fs: Configfs, nqn: str, *, authenticated: bool) -> None:
    path = tree.subsystem(nqn)
    with tree.kernel(f"{path} cannot be read", {errno.ENOENT: ObjectMissing}):
        open_to_all = fs.read(f"{path}/attr_allow_any_host").strip() != "0"
        hosts = fs.listdir(f"{path}/allowed_hosts")
        enabled = [fs.read(f"{path}/namespaces/{nsid}/enable").strip() for nsid in fs.listdir(f"{path}/namespaces")]
        keyless = [host for host in hosts if not state.is_authenticated(fs, host)]
    if open_to_all or not hosts or not enabled or set(enabled) != {"1"}:
        raise OutOfOrder(
            f"{nqn} is not whole (any host: {open_to_all}, hosts: {len(hosts)}, namespaces enabled: {enabled}): "
            "linked now, it would turn its consumer away for good"
        )
    if authenticated and keyless:
        raise OutOfOrder(f"{nqn} allows {', '.join(keyless)}, which has no keys: linked now, it would let anybody in")
