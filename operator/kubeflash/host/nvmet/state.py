"""Reading nvmet's tree."""

from __future__ import annotations

import errno

from kubeflash.domain.fabric import NvmetNamespace, NvmetPort, NvmetState, NvmetSubsystem
from kubeflash.host.nvmet import tree
from kubeflash.host.nvmet.configfs import Configfs

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
            hosts=frozenset(fs.listdir("hosts")),
            subsystems={item.nqn: item for item in subsystems if item is not None},
            ports={item.number: item for item in ports if item is not None},
        )


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
        )
    except OSError as error:
        if error.errno in _GONE:
            return None
        raise


def _written(text: str) -> str:
    """An attribute of a port; nobody has written it where the kernel says nothing or `not specified`."""
    return "" if text.strip() == "not specified" else text.strip()
