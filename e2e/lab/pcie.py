"""A server's PCIe tree as QEMU devices. Pure.

Every device is a mapping that serves both on the command line (``-device JSON``) and in QMP's ``device_add``, so
that what is plugged in later is what would have been there from the start.

All ports are native PCIe hot-plug ports (``ACPI_HOTPLUG_OFF`` belongs on the command line): a real server's pciehp
driver handles them. Slot numbers are unique in a server: Linux names them in ``/sys/bus/pci/slots``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lab.errors import LabError
from lab.spec import Device, Empty, Gpu, ServerSpec, Ssd, Switch

ACPI_HOTPLUG_OFF = ("-global", "ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off")

QemuDevice = Mapping[str, str | int | bool]


@dataclass(frozen=True)
class Port:
    """A port that holds, or can hold, an SSD.

    Attributes:
        name: The name of the device that the specification puts here: stays the port's when that is unplugged.
        bus: QEMU's name of the bus behind it.
        slot: Its slot number in ``/sys/bus/pci/slots``.
    """

    name: str
    bus: str
    slot: int


@dataclass(frozen=True)
class Layout:
    """A PCIe tree without its SSDs, which come and go.

    Attributes:
        devices: Root complexes, ports, switches and GPUs, each after what it hangs on.
        ports: Port name → port, but for those of GPUs.
        ssds: The SSDs and the name of the port each starts in.
    """

    devices: tuple[QemuDevice, ...]
    ports: Mapping[str, Port]
    ssds: Mapping[str, Ssd]


def layout(spec: ServerSpec) -> Layout:
    """Lay a server's PCIe tree out.

    Raises:
        LabError: It does not fit on one machine's PCIe bus.
    """
    builder = _Builder()
    for root in spec.roots:
        bus = "pcie.0"
        if root.bus != 0:
            bus = f"pxb{root.bus}"
            builder.devices.append(
                {"driver": "pxb-pcie", "id": bus, "bus": "pcie.0", "bus_nr": root.bus, "numa_node": root.node}
            )
        for device in root.ports:
            builder.add_behind_port("pcie-root-port", bus, device)
    return Layout(tuple(builder.devices), builder.ports, builder.ssds)


def all_devices(
    spec: ServerSpec, plugged: Mapping[str, Ssd], warnings: Mapping[str, int] | None = None
) -> list[QemuDevice]:
    """Everything a server starts with.

    Args:
        spec: The server.
        plugged: Port name → the SSD in it now; at the first start ``layout(spec).ssds``.
        warnings: Serial number → the critical warning of the SSD's SMART log; the others have none.
    """
    tree = layout(spec)
    devices: list[QemuDevice] = list(tree.devices)
    for name, ssd in plugged.items():
        devices += subsystem_devices(ssd)
        devices += ssd_devices(ssd, tree.ports[name].bus, (warnings or {}).get(ssd.serial, 0))
        devices += subsystem_namespaces(ssd)
    return devices


def ssd_devices(ssd: Ssd, bus: str, warning: int = 0) -> list[QemuDevice]:
    """The devices of an SSD in a port, in the order they must be added; the first one's id is ``ssd_id``.

    Their block nodes are called as ``block_node`` says, and must exist.

    Args:
        ssd: Which one.
        bus: QEMU's name of the bus behind the port.
        warning: The critical warning of its SMART log, from the start.
    """
    controller: dict[str, str | int | bool] = {
        "driver": "nvme",
        "id": ssd_id(ssd.serial),
        "serial": ssd.serial,
        "bus": bus,
    }
    if warning:
        controller["smart_critical_warning"] = warning
    if ssd.dual_port:
        controller["subsys"] = f"subsys-{ssd.serial}"
    elif ssd.namespaces == 1:
        controller["drive"] = block_node(ssd, 1)
    else:
        return [controller, *_namespaces(ssd, ssd_id(ssd.serial))]
    return [controller]


def subsystem_devices(ssd: Ssd) -> list[QemuDevice]:
    """The devices of a dual-port SSD that stay when it is unplugged; they must exist before ``ssd_devices``.

    Namespaces of a subsystem can only be added once it has a controller, so these are for the command line, where
    QEMU attaches them to every controller that comes.
    """
    if not ssd.dual_port:
        return []
    return [{"driver": "nvme-subsys", "id": f"subsys-{ssd.serial}", "nqn": f"lab-{ssd.serial}"}]


def subsystem_namespaces(ssd: Ssd) -> list[QemuDevice]:
    """The namespaces of a dual-port SSD, to follow its first controller on the command line."""
    return _namespaces(ssd, ssd_id(ssd.serial)) if ssd.dual_port else []


def ssd_id(serial: str) -> str:
    """QEMU's name of an SSD's controller."""
    return f"ssd-{serial}"


def block_node(ssd: Ssd, number: int) -> str:
    """QEMU's name of the block node behind a namespace, numbered from 1."""
    return f"disk-{ssd.serial}-n{number}"


def drive_holder(ssd: Ssd, number: int) -> str:
    """QEMU's name of the device that a namespace's block node hangs on."""
    return ssd_id(ssd.serial) if ssd.namespaces == 1 and not ssd.dual_port else f"ns-{ssd.serial}-n{number}"


def needs_start(ssd: Ssd) -> bool:
    """Whether an SSD can only be put into a server that is off: QEMU hot-plugs neither subsystems nor namespaces."""
    return ssd.dual_port or ssd.namespaces > 1


def numa_arguments(spec: ServerSpec) -> list[str]:
    """QEMU's arguments for CPUs and memory, divided between the NUMA nodes; a single CPU is all node 0's."""
    megabytes = spec.memory >> 20
    share = megabytes // spec.nodes
    sockets = min(spec.cpus, spec.nodes)
    arguments = ["-m", f"{share * spec.nodes}M", "-smp", f"{spec.cpus},sockets={sockets},maxcpus={spec.cpus}"]
    if spec.cpus % sockets:
        raise LabError(f"server {spec.name}: {spec.cpus} CPUs do not divide between {spec.nodes} NUMA nodes")
    per_node = spec.cpus // sockets
    for node in range(spec.nodes):
        first = node * per_node
        cpus = f",cpus={first}-{first + per_node - 1}" if node < sockets else ""
        arguments += ["-object", f"memory-backend-ram,id=memory{node},size={share}M"]
        arguments += ["-numa", f"node,nodeid={node},memdev=memory{node}{cpus}"]
    return arguments


def _namespaces(ssd: Ssd, controller: str) -> list[QemuDevice]:
    return [
        {
            "driver": "nvme-ns",
            "id": drive_holder(ssd, number),
            "bus": controller,
            "nsid": number,
            "drive": block_node(ssd, number),
        }
        for number in range(1, ssd.namespaces + 1)
    ]


class _Builder:
    def __init__(self) -> None:
        self.devices: list[QemuDevice] = []
        self.ports: dict[str, Port] = {}
        self.ssds: dict[str, Ssd] = {}
        self._slots = 0
        self._switches = 0

    def add_behind_port(self, driver: str, bus: str, device: Device) -> None:
        """A port on a bus, and the device behind it."""
        self._slots += 1
        if self._slots > 255:
            raise LabError("more than 255 PCIe ports")
        slot = self._slots
        port = f"port{slot}"
        self.devices.append({"driver": driver, "id": port, "bus": bus, "chassis": slot, "slot": slot})
        match device:
            case Switch():
                self._switches += 1
                upstream = f"switch{self._switches}"
                self.devices.append({"driver": "x3130-upstream", "id": upstream, "bus": port})
                for child in device.ports:
                    self.add_behind_port("xio3130-downstream", upstream, child)
            case Gpu():
                self.devices.append({"driver": "bochs-display", "id": f"gpu-{device.name}", "bus": port})
            case Ssd():
                self.ports[device.name] = Port(device.name, port, slot)
                self.ssds[device.name] = device
            case Empty():
                self.ports[device.name] = Port(device.name, port, slot)
