"""What a virtual server is made of, read from a YAML file in ``specs/``.

A file describes the server as its owner would: NUMA nodes, the root complexes on each, and what hangs behind their
ports. Lists under ``ports`` and ``switch`` hold one device a port, each a mapping with one of these keys:

- ``gpu: NAME`` — a stand-in GPU (a display controller: PCI class 0380, vendor 1234);
- ``ssd: NAME`` — an NVMe SSD; with ``serial`` and ``size``, and if wanted ``namespaces`` (a count, 1 unless told),
  ``dual_port: true`` (its namespaces belong to an NVMe subsystem, as those of many data-centre SSDs do) and
  ``system: true`` (it carries a partition table and a mounted file system: the disk a real server boots from);
- ``empty: NAME`` — a port to plug something into later;
- ``switch: [...]`` — a PCIe switch and what is behind it; switches may be nested.

With ``storage: 10.78.0.11/24`` beside ``address`` it has a second network card, in the storage network.

Pure: no input or output except in ``load``.
"""

from __future__ import annotations

import ipaddress
import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lab.errors import LabError

SPECS = Path(__file__).parent / "specs"

_UNITS = {"": 1, "Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30, "Ti": 1 << 40}
_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_DNS, "lab.kubeflash.io")


@dataclass(frozen=True)
class Gpu:
    """A stand-in GPU."""

    name: str


@dataclass(frozen=True)
class Ssd:
    """An NVMe SSD.

    Attributes:
        name: Its place in the specification, unique in a server.
        serial: Serial number, unique in the lab; at most 20 characters.
        size: Bytes of each namespace.
        namespaces: How many namespaces it has; may be 0.
        dual_port: Whether its namespaces belong to an NVMe subsystem. Linux then hangs the block device under the
            subsystem rather than under the PCI device.
        system: Whether the server puts a partition table and a mounted file system on it at boot.
    """

    name: str
    serial: str
    size: int
    namespaces: int = 1
    dual_port: bool = False
    system: bool = False

    def disks(self) -> tuple[str, ...]:
        """Names of the files behind its namespaces, in the order of namespace numbers from 1."""
        return tuple(f"ssd-{self.serial}-n{number}.raw" for number in range(1, self.namespaces + 1))


@dataclass(frozen=True)
class Empty:
    """A port with nothing in it."""

    name: str


@dataclass(frozen=True)
class Switch:
    """A PCIe switch: one device behind each of its downstream ports."""

    ports: tuple[Device, ...]


Device = Gpu | Ssd | Empty | Switch


@dataclass(frozen=True)
class Root:
    """A PCIe root complex: one device behind each of its root ports.

    Attributes:
        bus: Its bus number; 0 is the machine's own, whose NUMA node firmware does not tell (Linux says -1).
        node: The NUMA node it belongs to.
        ports: The devices, a root port for each.
    """

    bus: int
    node: int
    ports: tuple[Device, ...]


@dataclass(frozen=True)
class ServerSpec:
    """A virtual server.

    Attributes:
        name: Host name; also the Kubernetes node's.
        address: Its IPv4 address in the lab's network, with the prefix length.
        storage: That of its second network card in the storage network; empty when it has none.
        memory: Bytes, divided equally between the NUMA nodes.
        cpus: Virtual CPUs, dealt out to the NUMA nodes in order.
        nodes: Number of NUMA nodes.
        uuid: The DMI system UUID; the machine id is derived from it.
        roots: The PCIe root complexes.
    """

    name: str
    address: str
    memory: int
    cpus: int
    nodes: int
    uuid: uuid.UUID
    roots: tuple[Root, ...]
    storage: str = ""

    @property
    def ip(self) -> str:
        """The address without the prefix length."""
        return self.address.split("/")[0]

    @property
    def storage_ip(self) -> str:
        """The address in the storage network without the prefix length; empty when it has none."""
        return self.storage.split("/")[0]

    @property
    def machine_id(self) -> str:
        """What ``/etc/machine-id`` holds: 32 hexadecimal digits, the same at every boot."""
        return uuid.uuid5(_NAMESPACE, str(self.uuid)).hex

    def ssds(self) -> list[Ssd]:
        """Every SSD, in the order of the file."""
        return [device for root in self.roots for device in _leaves(root.ports) if isinstance(device, Ssd)]


def load(name: str) -> ServerSpec:
    """Read ``specs/NAME.yaml``.

    Raises:
        LabError: There is no such file, or it does not describe a server; the message says where.
    """
    path = SPECS / f"{name}.yaml"
    if not path.exists():
        known = ", ".join(sorted(file.stem for file in SPECS.glob("*.yaml")))
        raise LabError(f"no specification {name!r}; there are: {known}")
    return parse(yaml.safe_load(path.read_text()))


def parse(document: Mapping[str, Any]) -> ServerSpec:
    """Turn a specification's document into a server.

    Raises:
        LabError: The document does not describe a server.
    """
    reader = _Reader(document, "server")
    name = str(reader.take("name"))
    nodes = reader.take("numa")
    spec = ServerSpec(
        name=name,
        address=str(reader.take("address")),
        memory=_bytes(reader.take("memory", "1024Mi")),
        cpus=int(reader.take("cpus", 2)),
        nodes=len(nodes),
        uuid=uuid.UUID(str(reader.take("uuid", uuid.uuid5(_NAMESPACE, name)))),
        roots=tuple(root for node in nodes for root in _roots(node)),
        storage=str(reader.take("storage", "")),
    )
    reader.finish()
    _check(spec)
    return spec


def _roots(document: Mapping[str, Any]) -> Iterator[Root]:
    reader = _Reader(document, "numa")
    node = int(reader.take("node"))
    for item in reader.take("roots", []):
        root = _Reader(item, f"numa {node}: root")
        yield Root(int(root.take("bus")), node, tuple(map(_device, root.take("ports"))))
        root.finish()
    reader.finish()


def _device(document: Mapping[str, Any]) -> Device:
    reader = _Reader(document, f"device {document!r}")
    kind = next((key for key in ("gpu", "ssd", "empty", "switch") if key in document), None)
    device: Device
    match kind:
        case "gpu":
            device = Gpu(str(reader.take("gpu")))
        case "empty":
            device = Empty(str(reader.take("empty")))
        case "switch":
            device = Switch(tuple(map(_device, reader.take("switch"))))
        case "ssd":
            device = Ssd(
                name=str(reader.take("ssd")),
                serial=str(reader.take("serial")),
                size=_bytes(reader.take("size", "2Gi")),
                namespaces=int(reader.take("namespaces", 1)),
                dual_port=bool(reader.take("dual_port", False)),
                system=bool(reader.take("system", False)),
            )
        case _:
            raise LabError(f"device {document!r}: needs one of gpu, ssd, empty, switch")
    reader.finish()
    return device


def _check(spec: ServerSpec) -> None:
    devices = [device for root in spec.roots for device in _leaves(root.ports)]
    _unique("device name", [device.name for device in devices])
    _unique("serial number", [ssd.serial for ssd in spec.ssds()])
    _unique("root bus", [str(root.bus) for root in spec.roots])
    for address in filter(None, (spec.address, spec.storage)):
        _check_address(spec, address)
    if spec.cpus < spec.nodes and spec.cpus != 1:
        raise LabError(f"server {spec.name}: {spec.cpus} CPUs cannot be dealt out to {spec.nodes} NUMA nodes")
    if any(root.node >= spec.nodes for root in spec.roots):
        raise LabError(f"server {spec.name}: NUMA nodes must be numbered from 0 without gaps")
    for ssd in spec.ssds():
        if not 0 < len(ssd.serial) <= 20:
            raise LabError(f"SSD {ssd.name}: a serial number has 1 to 20 characters")
    if sum(ssd.system for ssd in spec.ssds()) > 1:
        raise LabError(f"server {spec.name}: at most one SSD can be the system disk")


def _check_address(spec: ServerSpec, address: str) -> None:
    try:
        length = ipaddress.IPv4Interface(address).network.prefixlen
    except ValueError as error:
        raise LabError(f"server {spec.name}: {address!r} is no address such as 10.77.0.11/24") from error
    if "/" not in address or length == 32:
        raise LabError(f"server {spec.name}: {address} needs its network's prefix length, such as /24")


def _unique(what: str, values: Sequence[str]) -> None:
    twice = sorted({value for value in values if values.count(value) > 1})
    if twice:
        raise LabError(f"{what} used twice: {', '.join(twice)}")


def _leaves(devices: Sequence[Device]) -> Iterator[Gpu | Ssd | Empty]:
    for device in devices:
        if isinstance(device, Switch):
            yield from _leaves(device.ports)
        else:
            yield device


def _bytes(text: object) -> int:
    match = re.fullmatch(r"(\d+)(Ki|Mi|Gi|Ti|)", str(text))
    if match is None:
        raise LabError(f"not a number of bytes: {text!r} (write for instance 2Gi)")
    return int(match[1]) * _UNITS[match[2]]


class _Reader:
    """Takes the keys out of a mapping and complains about missing and unknown ones."""

    def __init__(self, document: Mapping[str, Any], where: str) -> None:
        self._left = dict(document)
        self._where = where

    def take(self, key: str, default: Any = None) -> Any:
        value = self._left.pop(key, default)
        if value is None:
            raise LabError(f"{self._where}: {key} is missing")
        return value

    def finish(self) -> None:
        if self._left:
            raise LabError(f"{self._where}: unknown keys {', '.join(map(str, self._left))}")
