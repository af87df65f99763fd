"""What is exported and connected on a server, as the plans see it: nvmet's tree and the initiator's controllers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class NvmetHost:
    """One host of nvmet. `authenticated`: both keys are there, so that nobody gets in without them."""

    nqn: str
    authenticated: bool


@dataclass(frozen=True)
class NvmetNamespace:
    """One namespace of a subsystem. `uuid` is lower case; `device` is the path written to `device_path`."""

    nsid: int
    device: str
    uuid: str
    enabled: bool


@dataclass(frozen=True)
class NvmetSubsystem:
    """One subsystem of nvmet."""

    nqn: str
    allow_any_host: bool
    allowed_hosts: frozenset[str]
    namespaces: tuple[NvmetNamespace, ...]
    serial: str = ""
    model: str = ""


@dataclass(frozen=True)
class NvmetPort:
    """One port of nvmet. `number` is its directory's name; attributes are empty while nobody has written them.

    Attributes:
        tls: whether it takes nothing but TLS 1.3.
    """

    number: int
    transport: str
    address: str
    service: str
    subsystems: frozenset[str]
    tls: bool = False


@dataclass(frozen=True)
class NvmetState:
    """All of nvmet's configfs tree, and the TLS keys of the kernel that belong to it.

    Attributes:
        available: False where the module is not loaded.
        tls_keys: pairs of host NQN and subsystem NQN that have a TLS key in the kernel's keyring; ours alone.
    """

    available: bool = True
    hosts: Mapping[str, NvmetHost] = field(default_factory=dict)
    subsystems: Mapping[str, NvmetSubsystem] = field(default_factory=dict)
    ports: Mapping[int, NvmetPort] = field(default_factory=dict)
    tls_keys: frozenset[tuple[str, str]] = frozenset()


@dataclass(frozen=True)
class Portal:
    """Where a subsystem listens: `tcp://address:port`, an IPv6 address in brackets."""

    transport: str
    address: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.address}]" if ":" in self.address else self.address
        return f"{self.transport}://{host}:{self.port}"

    @classmethod
    def parse(cls, text: str) -> Portal:
        """Reads what `str` wrote.

        Raises:
            ValueError: when it is not `transport://address:port`.
        """
        transport, separator, rest = text.partition("://")
        host, colon, port = rest.rpartition(":")
        if not separator or not colon or not port.isdigit():
            raise ValueError(f"{text!r} is not a portal such as tcp://10.20.0.4:4427")
        return cls(transport, host.strip("[]"), int(port))


@dataclass(frozen=True)
class Connection:
    """One NVMe-oF controller of this server's initiator.

    Attributes:
        instance: N of `/sys/class/nvme/nvmeN`.
        state: as sysfs says it: new, live, connecting, resetting, deleting, dead.
        address: as sysfs says it, such as `traddr=10.20.0.4,trsvcid=4427,src_addr=10.20.0.5`.
        device: block device such as `/dev/nvme3n1`, the same for all paths; None while there is none.
        uuid: UUID of its namespace, lower case, None while there is none.
        bytes: size of the block device in bytes.
        read_only: whether the kernel refuses writes to the block device.
    """

    instance: int
    nqn: str
    host_nqn: str
    state: str
    transport: str
    address: str
    device: str | None
    uuid: str | None
    bytes: int
    read_only: bool = False

    @property
    def portal(self) -> Portal | None:
        """Where it leads; None when the kernel does not say it in a form that is known."""
        options = dict(item.partition("=")[::2] for item in self.address.split(","))
        service = options.get("trsvcid", "")
        if not options.get("traddr") or not service.isdigit():
            return None
        return Portal(self.transport, options["traddr"], int(service))
