"""Folders shaped like /sys, for tests: links and attributes as the kernel makes them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kubeflash.host.root import HostRoot

ENDPOINT, ROOT_PORT, UPSTREAM, DOWNSTREAM, TO_PCI, INTEGRATED_ENDPOINT = 0, 4, 5, 6, 7, 9
NVME_CLASS = "010802"


@dataclass(frozen=True)
class Namespace:
    """A namespace of a made-up SSD; attributes that are None are not there."""

    nsid: int = 1
    sectors: int | None = 2_000_000
    eui: str | None = None
    nguid: str | None = None
    dev: str | None = None


def config_space(
    port_type: int | None, *, readable: int = 256, acs: int | None = None, extended: Mapping[int, int] | None = None
) -> bytes:
    """Configuration space with a power management capability, and a PCI Express one of this type unless None.

    Args:
        port_type: Device/Port Type.
        readable: bytes of it that may be read; of more than 256, the rest is the extended configuration space.
        acs: the ACS control register; None is a port without that capability.
        extended: words of 32 bits to put into it, by offset.
    """
    content = bytearray(4096)
    content[0x06] = 0x10
    content[0x34] = 0x40
    content[0x40:0x44] = bytes([0x01, 0x00 if port_type is None else 0x60, 0x03, 0x00])
    if port_type is not None:
        content[0x60:0x64] = bytes([0x10, 0x00, (port_type << 4 | 0x2) & 0xFF, 0x01])
    words = {0x100: 0x148 << 20 | 2 << 16 | 0x0001}  # advanced error reporting, then
    words[0x148] = 0x160 << 20 | 1 << 16 | 0x0003  # a serial number, then ACS if there is one
    words |= {0x148: 1 << 16 | 0x0003} if acs is None else {0x160: 1 << 16 | 0x000D, 0x164: acs << 16 | 0x007F}
    for offset, word in (words | dict(extended or {})).items():
        content[offset : offset + 4] = word.to_bytes(4, "little")
    return bytes(content[:readable])


def cpu_list(text: str) -> list[int]:
    """The numbers in a list such as `0-3,8`."""
    ranges = [part.partition("-") for part in text.split(",") if part]
    return [cpu for first, _, last in ranges for cpu in range(int(first), int(last or first) + 1)]


class MadeUpServer:
    """Makes the files of one server below a folder. Devices are placed by their path below /sys/devices."""

    def __init__(self, path: Path) -> None:
        self.root = HostRoot(path)
        self._minor = 0
        self._controllers = 0
        for folder in ("sys/bus/pci/devices", "sys/class/nvme", "sys/class/nvme-subsystem", "sys/class/block"):
            (path / folder).mkdir(parents=True)
        self.write("proc/sys/kernel/osrelease", "6.12.1-test\n")
        self.write("sys/class/dmi/id/product_uuid", "4C4C4544-0042-3510-8054-B4C04F4D3732\n")

    def write(self, path: str, content: str | bytes) -> Path:
        """Writes a file below the root."""
        file = self.root.path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
        return file

    def able(self) -> None:
        """Gives it a kernel that lacks nothing for NVMe over fabrics, though it has loaded nothing."""
        modules = ("target/nvmet", "target/nvmet-tcp", "host/nvme-tcp", "host/nvme-fabrics")
        lines = "".join(f"kernel/drivers/nvme/{name}.ko.xz:\n" for name in modules)
        self.write("lib/modules/6.12.1-test/modules.dep", lines)
        self.write("boot/config-6.12.1-test", "CONFIG_NVME_HOST_AUTH=y\nCONFIG_NVME_TARGET_AUTH=y\n")

    def numa(self, online: str) -> None:
        """Says which NUMA nodes the kernel has, such as `0-1`."""
        self.write("sys/devices/system/node/online", f"{online}\n")

    def processors(self, packages: Mapping[int, str], nodes: Mapping[int, str], *, siblings: bool = True) -> None:
        """The CPUs, as lists such as `0-3,8-11`, of each processor package and of each NUMA node.

        `siblings` False leaves out the lists of CPUs of one package.
        """
        for package, cpus in packages.items():
            for cpu in cpu_list(cpus):
                topology = f"sys/devices/system/cpu/cpu{cpu}/topology"
                self.write(f"{topology}/physical_package_id", f"{package}\n")
                if siblings:
                    self.write(f"{topology}/package_cpus_list", f"{cpus}\n")
        self.write("sys/devices/system/cpu/online", ",".join(packages.values()) + "\n")
        for node, cpus in nodes.items():
            self.write(f"sys/devices/system/node/node{node}/cpulist", f"{cpus}\n")
        self.numa(",".join(map(str, nodes)))

    def pci(
        self,
        path: str,
        vendor: str,
        device: str,
        class_code: str,
        *,
        numa: int | None = None,
        port_type: int | None = ENDPOINT,
        readable: int = 256,
        acs: int | None = None,
    ) -> str:
        """A PCI device; its path is returned. `numa` None leaves the attribute at -1."""
        folder = f"sys/devices/{path}"
        base, sub, interface = (class_code[place : place + 2].upper() for place in (0, 2, 4))
        ids = f"v0000{vendor.upper()}d0000{device.upper()}sv00000000sd00000000"
        self.write(f"{folder}/modalias", f"pci:{ids}bc{base}sc{sub}i{interface}\n")
        self.write(f"{folder}/numa_node", f"{-1 if numa is None else numa}\n")
        self.write(f"{folder}/config", config_space(port_type, readable=readable, acs=acs))
        self._link(f"sys/bus/pci/devices/{path.rpartition('/')[2]}", folder)
        return path

    def ports(self, path: str, types: Sequence[int], *, readable: int = 256, acs: int | None = None) -> str:
        """The last of a path's components as bridges of these types; the path is returned."""
        parts = path.split("/")
        for index, port_type in enumerate(types, len(parts) - len(types)):
            bridge = "/".join(parts[: index + 1])
            self.pci(bridge, "1000", "c030", "060400", port_type=port_type, readable=readable, acs=acs)
        return path

    def link(self, path: str, now: str, best: str | None = None) -> None:
        """Says how the link of a device is trained, such as `16.0 GT/s PCIe x8`, and what it could be."""
        for prefix, said in (("current", now), ("max", best or now)):
            speed, _, width = said.rpartition(" x")
            self.write(f"sys/devices/{path}/{prefix}_link_speed", f"{speed}\n")
            self.write(f"sys/devices/{path}/{prefix}_link_width", f"{width}\n")

    def share(self, path: str, owner: str) -> None:
        """Makes a device a virtual function (SR-IOV) of another one, given by address."""
        (self.root.path / f"sys/devices/{path}/physfn").symlink_to(f"../{owner}")

    def gpu(self, path: str, *, numa: int | None = None) -> str:
        """An NVIDIA GPU."""
        return self.pci(path, "10de", "2330", "030200", numa=numa)

    def ssd(
        self,
        path: str,
        serial: str,
        namespaces: Sequence[Namespace] = (Namespace(),),
        *,
        numa: int | None = None,
        subsystem: int | None = None,
        nqn: str | None = None,
        state: str = "live",
    ) -> str:
        """An NVMe SSD; the controller's name is returned.

        With `subsystem`, its namespaces are multipath heads in that subsystem, and the controller has hidden paths.
        """
        self.pci(path, "144d", "a824", NVME_CLASS, numa=numa)
        name = self._controller(f"{path}/nvme", transport="pcie", serial=serial)
        self.write(f"sys/devices/{path}/nvme/{name}/state", f"{state}\n")
        self.write(f"sys/devices/{path}/nvme/{name}/cntrltype", "io\n")
        if nqn is None:
            nqn = f"nqn.2014-08.org.nvmexpress:{serial}-{path if subsystem is None else subsystem}"
        self.write(f"sys/devices/{path}/nvme/{name}/subsysnqn", f"{nqn}\n")
        for namespace in namespaces:
            home = f"sys/devices/{path}/nvme/{name}"
            if subsystem is None:
                self._namespace(f"{home}/{name}n{namespace.nsid}", namespace)
            else:
                head = f"sys/devices/virtual/nvme-subsystem/nvme-subsys{subsystem}/nvme{subsystem}n{namespace.nsid}"
                if not (self.root.path / head).exists():
                    self._namespace(head, namespace)
                hidden = f"{home}/nvme{subsystem}c{name.removeprefix('nvme')}n{namespace.nsid}"
                self.write(f"{hidden}/hidden", "1\n")
                self.write(f"{hidden}/size", f"{namespace.sectors}\n")
        return name

    def fabric_controller(self, serial: str = "FABRIC") -> str:
        """A controller over TCP with one namespace, as an initiator has it."""
        name = self._controller("virtual/nvme-fabrics/ctl", transport="tcp", serial=serial)
        self._namespace(f"sys/devices/virtual/nvme-fabrics/ctl/{name}/{name}n1", Namespace())
        return name

    def _controller(self, parent: str, *, transport: str, serial: str) -> str:
        name = f"nvme{self._controllers}"
        self._controllers += 1
        folder = f"sys/devices/{parent}/{name}"
        self.write(f"{folder}/transport", f"{transport}\n")
        self.write(f"{folder}/serial", f"{serial:<20}\n")
        self.write(f"{folder}/model", f"{'MADE UP MODEL':<40}\n")
        self.write(f"{folder}/firmware_rev", f"{'1.0':<8}\n")
        self._link(f"sys/class/nvme/{name}", folder)
        return name

    def _namespace(self, folder: str, namespace: Namespace) -> None:
        self._minor += 1
        attributes = {
            "nsid": str(namespace.nsid),
            "size": None if namespace.sectors is None else str(namespace.sectors),
            "eui": namespace.eui,
            "nguid": namespace.nguid,
            "dev": namespace.dev or f"259:{self._minor}",
        }
        for name, value in attributes.items():
            if value is not None:
                self.write(f"{folder}/{name}", f"{value}\n")
        self._link(f"sys/class/block/{folder.rpartition('/')[2]}", folder)

    def _link(self, link: str, target: str) -> None:
        path = self.root.path / link
        path.symlink_to(os.path.relpath(self.root.path / target, path.parent))
