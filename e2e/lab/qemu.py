"""The command line of one virtual server. Pure, but for the files it names.

There is no KVM where the lab runs, so everything here is chosen to be cheap under emulation (TCG).
"""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lab import pcie
from lab.errors import LabError
from lab.image import ServerImage
from lab.spec import ServerSpec, Ssd

KERNEL_ARGUMENTS = (
    "console=hvc0",
    "earlycon=uart8250,io,0x3f8",  # until the console's driver is there: an early panic would else be silent
    "loglevel=6",
    "rdinit=/init",
    "net.ifnames=0",
    "panic=-1",  # with -no-reboot: a panic ends QEMU, so a wait for the server fails at once
    "mitigations=off",
    "nowatchdog",
    "no_timer_check",  # it counts timer ticks, and panics when a busy host delays them
    "rcupdate.rcu_cpu_stall_suppress=1",  # a busy host makes a virtual CPU look stalled
    "rcupdate.rcu_expedited=1",
    "tsc=reliable",  # it is the host's; else Linux falls back to a clock that costs an exit a reading
    "audit=0",
)

# One thread for all processors of a server: with one each, a processor now and then runs a stale translation of a
# breakpoint that the kernel set while patching itself, and the server dies at boot ("Oops: int3").
ACCELERATOR = "tcg,thread=single"
CPU = "max,la57=off,avx=off,avx2=off,cx16=off"
"""Every page walk has a level less; vector string functions are slower than plain ones when emulated. And no
cmpxchg16b: QEMU 7.2 leaves bits of the comparison before it in the flags. When it changes processors just then, the
direction flag may be among them, and the kernel copies backwards over its own stack (an Oops with EFLAGS that no
processor has, such as 21688646)."""

_SOCKET_PATH_LIMIT = 107


@dataclass(frozen=True)
class Files:
    """The files of one server in the lab's run directory. They outlive its reboots.

    Attributes:
        run_dir: The lab's.
        name: The server's.
    """

    run_dir: Path
    name: str

    @property
    def folder(self) -> Path:
        """Where all but the logs are."""
        return self.run_dir / self.name

    @property
    def root_disk(self) -> Path:
        """The server's own changes over the root image."""
        return self.folder / "root.qcow2"

    @property
    def console_log(self) -> Path:
        """All that was ever written to its console."""
        return self.run_dir / "logs" / f"{self.name}-console.log"

    @property
    def early_log(self) -> Path:
        """What the kernel said at the last start, before it had a driver for the console."""
        return self.run_dir / "logs" / f"{self.name}-early.log"

    @property
    def console_socket(self) -> Path:
        """A root shell."""
        return self.folder / "console.sock"

    @property
    def monitor_socket(self) -> Path:
        """QMP."""
        return self.folder / "qmp.sock"

    @property
    def agent_socket(self) -> Path:
        """The guest agent."""
        return self.folder / "agent.sock"

    @property
    def qemu_log(self) -> Path:
        """QEMU's own complaints."""
        return self.run_dir / "logs" / f"{self.name}.log"

    @property
    def facts(self) -> Path:
        """What the server is told about itself, as shell variables."""
        return self.folder / "facts"

    @property
    def hosts(self) -> Path:
        """Its ``/etc/hosts``."""
        return self.folder / "hosts"

    @property
    def node_disk(self) -> Path:
        """The server's own changes over the disk that makes it a Kubernetes node."""
        return self.folder / "node.qcow2"

    def namespace(self, ssd: Ssd, number: int) -> Path:
        """The file behind a namespace of an SSD, numbered from 1."""
        return self.folder / f"ssd-{ssd.serial}-n{number}.raw"

    def check(self) -> None:
        """Refuse a folder whose sockets' paths the kernel would not take.

        Raises:
            LabError: The folder's name is too long.
        """
        longest = max((self.console_socket, self.monitor_socket, self.agent_socket), key=lambda path: len(str(path)))
        if len(str(longest)) > _SOCKET_PATH_LIMIT:
            raise LabError(f"{longest}: longer than a unix socket's path may be ({_SOCKET_PATH_LIMIT} bytes)")


@dataclass(frozen=True)
class Fault:
    """What is wrong with a namespace of an SSD: requests of these kinds fail.

    Attributes:
        reads: Whether reads do.
        writes: Whether writes do. Flushes do not: QEMU flushes when the fault is taken away, and would refuse to.
        sectors: Only requests that touch one of these, in units of 512 bytes; None for all requests.
    """

    reads: bool = True
    writes: bool = True
    sectors: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Membership:
    """What makes a server a node of a cluster.

    Attributes:
        disk: Backing file of the disk with its kubelet and images.
        kubeconfig: The kubelet's.
        ca: Certificate of the authority that its callers' certificates are signed by.
    """

    disk: Path
    kubeconfig: Path
    ca: Path

    def files(self) -> tuple[tuple[str, Path], ...]:
        """What the server reads of it at boot, by QEMU's names of such files."""
        return (("opt/kubeflash/kubelet", self.kubeconfig), ("opt/kubeflash/ca", self.ca))


CARDS = {"main": "cable", "storage": "cable-storage"}
"""The network cards that a server can have, by network: QEMU's names of them, in the order of eth0, eth1."""


def mac_address(name: str, network: str = "main") -> str:
    """A stable, locally administered MAC address for a server's card in a network."""
    seed = name if network == "main" else f"{name} {network}"
    tail = hashlib.sha256(seed.encode()).digest()[:3]
    return ":".join(f"{byte:02x}" for byte in b"\x52\x54\x00" + tail)


def facts(spec: ServerSpec, gateway: str) -> str:
    """What ``/etc/runit/1`` in the server reads: shell variables."""
    system = next((ssd.serial for ssd in spec.ssds() if ssd.system), "")
    return (
        f"NAME={spec.name}\nADDRESS={spec.address}\nGATEWAY={gateway}\nSTORAGE={spec.storage}\n"
        f"MACHINE_ID={spec.machine_id}\nSYSTEM_SERIAL={system}\n"
    )


def hosts_file(hosts: Mapping[str, str]) -> str:
    """``/etc/hosts`` for host name → IPv4 address."""
    lines = ["127.0.0.1 localhost", "::1 localhost", *(f"{ip} {name}" for name, ip in hosts.items())]
    return "".join(f"{line}\n" for line in lines)


def block_nodes(files: Files, ssd: Ssd, number: int, fault: Fault | None = None) -> list[dict[str, object]]:
    """The block nodes behind a namespace of an SSD, each after what it stands on: for ``blockdev-add``, too.

    The device holds the last one, ``pcie.block_node``; that stands on the file, or on a fault that stands on the file.
    Nothing is kept back in QEMU: a write that the server was told is done is in the file, whatever becomes of QEMU.
    """
    file: dict[str, object] = {
        "node-name": file_node(ssd, number),
        "driver": "file",
        "filename": str(files.namespace(ssd, number)),
        "discard": "unmap",
    }
    if fault is None:
        return [file, raw_node(ssd, number, file_node(ssd, number))]
    return [file, faulty_node(ssd, number, fault), raw_node(ssd, number, fault_node(ssd, number))]


def raw_node(ssd: Ssd, number: int, below: str) -> dict[str, object]:
    """The block node a namespace's device holds, standing on the node ``below``; for ``blockdev-reopen``, too."""
    return {
        "node-name": pcie.block_node(ssd, number),
        "driver": "raw",
        "discard": "unmap",
        "detect-zeroes": "unmap",
        "file": below,
    }


def faulty_node(ssd: Ssd, number: int, fault: Fault) -> dict[str, object]:
    """The block node that fails requests, standing on the file.

    Raises:
        LabError: The fault fails nothing.
    """
    kinds = ["read"] * fault.reads + ["write", "write-zeroes", "discard"] * fault.writes
    rules = [
        {"event": "none", "iotype": kind, "errno": errno.EIO, "once": False, **where}
        for kind in kinds
        for where in ([{}] if fault.sectors is None else [{"sector": sector} for sector in fault.sectors])
    ]
    if not rules:
        raise LabError(f"SSD {ssd.serial}: a fault of neither reads nor writes, or of no sector, is none")
    return {
        "node-name": fault_node(ssd, number),
        "driver": "blkdebug",
        "image": file_node(ssd, number),
        "inject-error": rules,
    }


def gone_node(ssd: Ssd, number: int) -> dict[str, object]:
    """What a namespace stands on whose file was taken away: QEMU cannot take out the namespaces of a subsystem."""
    return {"node-name": f"gone-{ssd.serial}-n{number}", "driver": "null-co", "size": ssd.size}


def file_node(ssd: Ssd, number: int) -> str:
    """QEMU's name of the file behind a namespace."""
    return f"file-{ssd.serial}-n{number}"


def fault_node(ssd: Ssd, number: int) -> str:
    """QEMU's name of the fault of a namespace."""
    return f"fault-{ssd.serial}-n{number}"


def command_line(
    spec: ServerSpec,
    image: ServerImage,
    app: Path,
    files: Files,
    taps: Mapping[str, str],
    plugged: Mapping[str, Ssd],
    *,
    faults: Mapping[tuple[str, int], Fault] | None = None,
    warnings: Mapping[str, int] | None = None,
    node: Membership | None = None,
) -> list[str]:
    """Everything QEMU is started with.

    Args:
        spec: The server.
        image: What it starts from.
        app: The disk with KubeFlash's code.
        files: Its files, which exist.
        taps: Network, of `CARDS` → the network interface of the host that its cable there ends in.
        plugged: Port name → the SSD in it.
        faults: Serial number and number of a namespace → what is wrong with it.
        warnings: See `pcie.all_devices`.
        node: What makes it a Kubernetes node; None for a server that is none.
    """
    files.check()
    app_disk = {
        "node-name": "app",
        "driver": "raw",
        "read-only": True,
        "file": {"driver": "file", "filename": str(app)},
    }
    blocks: list[Mapping[str, object]] = [_own_disk("root", files.root_disk), app_disk]
    if node is not None:
        blocks.append(_own_disk("node", files.node_disk))
    for ssd in plugged.values():
        for number in range(1, ssd.namespaces + 1):
            blocks += block_nodes(files, ssd, number, (faults or {}).get((ssd.serial, number)))
    devices: list[Mapping[str, object]] = [
        {"driver": "virtio-blk-pci", "drive": "root", "serial": "root"},
        {"driver": "virtio-blk-pci", "drive": "app", "serial": "app"},
        *([{"driver": "virtio-blk-pci", "drive": "node", "serial": "node"}] if node is not None else []),
        *(_card(spec.name, network) for network in CARDS if network in taps),
        {"driver": "virtio-serial-pci", "id": "ports"},
        {"driver": "virtconsole", "chardev": "console"},
        {"driver": "virtserialport", "chardev": "agent", "name": "org.qemu.guest_agent.0"},
        *pcie.all_devices(spec, plugged, warnings),
    ]
    return [
        "qemu-system-x86_64",
        *("-name", spec.name, "-uuid", str(spec.uuid)),
        *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        *("-machine", "q35,hpet=off", "-accel", ACCELERATOR, "-cpu", CPU),
        *pcie.ACPI_HOTPLUG_OFF,
        *pcie.numa_arguments(spec),
        *("-kernel", str(image.kernel), "-initrd", str(image.initramfs)),
        *("-append", " ".join(KERNEL_ARGUMENTS)),
        *("-fw_cfg", f"name=opt/kubeflash/server,file={files.facts}"),
        *("-fw_cfg", f"name=opt/kubeflash/hosts,file={files.hosts}"),
        *(word for name, path in (node.files() if node else ()) for word in ("-fw_cfg", f"name={name},file={path}")),
        *("-qmp", f"unix:{files.monitor_socket},server=on,wait=off"),
        *("-serial", f"file:{files.early_log}"),
        *("-chardev", _console(files), "-chardev", f"socket,id=agent,path={files.agent_socket},server=on,wait=off"),
        *(word for network, tap in taps.items() for word in ("-netdev", _cable(network, tap))),
        *(word for block in blocks for word in ("-blockdev", json.dumps(block))),
        *(word for device in devices for word in ("-device", json.dumps(device))),
    ]


def _own_disk(name: str, path: Path) -> dict[str, object]:
    """A disk of the server's own over one that all start from."""
    return {
        "node-name": name,
        "driver": "qcow2",
        "discard": "unmap",
        "cache": {"no-flush": True},  # QEMU's death loses nothing; only the host's would
        "file": {"driver": "file", "filename": str(path), "discard": "unmap"},
    }


def _card(server: str, network: str) -> dict[str, object]:
    mac = mac_address(server, network)
    return {"driver": "virtio-net-pci", "id": CARDS[network], "netdev": f"net-{network}", "mac": mac, "romfile": ""}


def _cable(network: str, tap: str) -> str:
    return f"tap,id=net-{network},ifname={tap},script=no,downscript=no"


def _console(files: Files) -> str:
    return f"socket,id=console,path={files.console_socket},server=on,wait=off,logfile={files.console_log},logappend=on"
