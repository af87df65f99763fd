"""Reading nvmet's tree."""

from __future__ import annotations

import errno

from kubeflash.domain.fabric import NvmetHost, NvmetNamespace, NvmetPort, NvmetState, NvmetSubsystem
from kubeflash.host.nvmet import tree
from kubeflash.host.nvmet.configfs import Configfs

HASH = "hmac(sha512)"
DH_GROUP = "ffdhe2048"
SECRET = 0o600
"""Mode of a file that holds a key."""
TSAS_TLS, TSAS_PLAIN = "tls1.3", "none"
TREQ_REQUIRED = "required"

_GONE = (errno.ENOENT, errno.ENODEV)


def read_state(fs: Configfs) -> NvmetState:
    """All of nvmet's tree, whoever made it. What vanishes while it is read is left out.

    Raises:
        NvmetError: when it cannot be read.
    """
    if not fs.available():
        return NvmetState(available=False)
    with tree.kernel("nvmet's tree cannot be read"):
        subsystems = (_read_subsystem(fs, nqn) for nqn in fs.listdir("subsystems"))
        ports = (_read_port(fs, name) for name in fs.listdir("ports") if name.isdigit())
        return NvmetState(
            hosts={nqn: NvmetHost(nqn, is_authenticated(fs, nqn)) for nqn in fs.listdir("hosts")},
            subsystems={item.nqn: item for item in subsystems if item is not None},
            ports={item.number: item for item in ports if item is not None},
        )


def is_authenticated(fs: Configfs, host_nqn: str) -> bool:
    """Whether a host has both keys, hidden from all but root, and hash and group as KubeFlash sets them, last.

    A crash between making a host and writing its keys leaves one that anybody may say to be.
    """
    path = tree.host(host_nqn)
    files = (f"{path}/dhchap_key", f"{path}/dhchap_ctrl_key")
    try:
        return (
            all(fs.read(file).strip() and fs.mode(file) == SECRET for file in files)
            and fs.read(f"{path}/dhchap_hash").strip() == HASH
            and fs.read(f"{path}/dhchap_dhgroup").strip() == DH_GROUP
        )
    except OSError as error:
        if error.errno in _GONE:  # or a kernel without authentication
            return False
        raise


def _read_subsystem(fs: Configfs, nqn: str) -> NvmetSubsystem | None:
    path = tree.subsystem(nqn)
    try:
        namespaces = (_read_namespace(fs, nqn, name) for name in fs.listdir(f"{path}/namespaces") if name.isdigit())
        return NvmetSubsystem(
            nqn=nqn,
            allow_any_host=fs.read(f"{path}/attr_allow_any_host").strip() != "0",
            allowed_hosts=frozenset(fs.listdir(f"{path}/allowed_hosts")),
            namespaces=tuple(item for item in namespaces if item is not None),
            serial=fs.read(f"{path}/attr_serial").strip(),
            model=fs.read(f"{path}/attr_model").strip(),
        )
    except OSError as error:
        if error.errno in _GONE:
            return None
        raise


def _read_namespace(fs: Configfs, nqn: str, name: str) -> NvmetNamespace | None:
    path = tree.namespace(nqn, int(name))
    try:
        uuid = fs.read(f"{path}/device_uuid").strip().lower()
        device = fs.read(f"{path}/device_path").strip()
        enabled = fs.read(f"{path}/enable").strip() == "1"
    except OSError as error:
        if error.errno in _GONE:
            return None
        raise
    return NvmetNamespace(
        nsid=int(name),
        device="" if device == "(null)" else device,
        uuid=uuid,
        enabled=enabled,
    )


def _read_port(fs: Configfs, name: str) -> NvmetPort | None:
    path = tree.port(int(name))
    try:
        return NvmetPort(
            number=int(name),
            transport=_written(fs.read(f"{path}/addr_trtype")),
            address=_written(fs.read(f"{path}/addr_traddr")),
            service=_written(fs.read(f"{path}/addr_trsvcid")),
            subsystems=frozenset(fs.listdir(f"{path}/subsystems")),
            tls=_takes_only_tls(fs, path),
        )
    except OSError as error:
        if error.errno in _GONE:
            return None
        raise


def _takes_only_tls(fs: Configfs, path: str) -> bool:
    try:
        words = fs.read(f"{path}/addr_tsas").strip(), fs.read(f"{path}/addr_treq").strip()
    except FileNotFoundError:  # a kernel from before there was TLS, or the port is gone
        return False
    return words == (TSAS_TLS, TREQ_REQUIRED)


def _written(text: str) -> str:
    """An attribute of a port; nobody has written it where the kernel says nothing or `not specified`."""
    return "" if text.strip() == "not specified" else text.strip()
