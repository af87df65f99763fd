"""Virtual GPU servers: started, rebooted, frozen, cut off, pulled apart."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from lab import image, pcie, qemu, spec
from lab.cache import say
from lab.console import attach_console
from lab.errors import LabError, LabTimeout, ProcessDied, tail
from lab.guestagent import PATIENCE, GuestAgent
from lab.image import ServerImage
from lab.network import MAIN, STORAGE, Bridge
from lab.processes import Completed, ManagedProcess, run, wait_until
from lab.qemu import Fault
from lab.qmp import Qmp, QmpError
from lab.spec import ServerSpec, Ssd

__all__ = ["Cables", "VirtualServer", "attach_console", "boot", "start_all"]

READY = "/run/kubeflash-lab/ready"
FAILED = "/run/kubeflash-lab/failed"
HELD_BACK = "/etc/kubeflash-lab-no-storage-address"


class Cables(Protocol):
    """What a server needs of the lab's network."""

    def add_tap(self, name: str, bridge: Bridge = MAIN) -> str:
        """Make a network interface in one of the lab's bridges and return its name."""

    def del_tap(self, name: str) -> None:
        """Remove the interface."""

    def set_link(self, name: str, *, up: bool) -> None:
        """Switch the interface on or off."""


class Room(Protocol):
    """What servers stand in: `lab.lab.Lab`, or less."""

    @property
    def run_dir(self) -> Path:
        """For their files."""

    @property
    def network(self) -> Cables:
        """For their cables."""

    def add_server(self, server: VirtualServer) -> None:
        """Start one, and stop it in the end."""


class VirtualServer:
    """One server. Its disks outlive reboots and power losses, as a real server's do.

    Switch it on from the main thread: the kernel ends its process with the thread that started it. Everything else
    may come from any thread.
    """

    def __init__(
        self,
        spec: ServerSpec,
        *,
        image: ServerImage,
        app: Path,
        run_dir: Path,
        network: Cables,
        hosts: Mapping[str, str],
        gateway: str = "10.77.0.1",
        node: qemu.Membership | None = None,
    ) -> None:
        """Describe a server; nothing is started.

        Args:
            spec: What it is made of.
            image: What it starts from.
            app: The disk with KubeFlash's code; may be replaced (``server.app = …``) before the next start.
            run_dir: The lab's; its files go to a folder of its name in it, QEMU's log to ``logs/NAME.log``.
            network: The lab's network.
            hosts: Host name → IPv4 address, for its ``/etc/hosts``.
            gateway: Its default route.
            node: What makes it a Kubernetes node, at every boot; None for a server that is none.
        """
        self.spec = spec
        self.image = image
        self.app = app
        self.files = qemu.Files(run_dir, spec.name)
        self._run_dir = run_dir
        self._network = network
        self._hosts = dict(hosts)
        self._gateway = gateway
        self._node = node
        self._ports = pcie.layout(spec).ports
        self._plugged = dict(pcie.layout(spec).ssds)
        self._ssds = {ssd.serial: ssd for ssd in spec.ssds()}
        self._home = {ssd.serial: port for port, ssd in self._plugged.items()}
        self._faults: dict[tuple[str, int], Fault] = {}
        self._warnings: dict[str, int] = {}
        self._subsystems: set[str] = set()
        self._taps: dict[str, str] = {}
        self._process: ManagedProcess | None = None
        self._qmp: Qmp | None = None
        self._agent: GuestAgent | None = None

    # ---- Power

    @property
    def name(self) -> str:
        """Its host name."""
        return self.spec.name

    @property
    def ip(self) -> str:
        """Its IPv4 address."""
        return self.spec.ip

    @property
    def console_log(self) -> Path:
        """The file with all that was ever written to its console."""
        return self.files.console_log

    @property
    def powered(self) -> bool:
        """Whether QEMU runs; a frozen server is powered."""
        return self._process is not None and self._process.running

    def start(self) -> None:
        """Switch it on; ``wait_ready`` waits until it has booted. Main thread only.

        Raises:
            LabError: It is on already, this is not the main thread, or its files cannot be made.
        """
        if self.powered:
            raise LabError(f"{self.name} is on already")
        self._drop_connections()
        self._make_files()
        if not self._taps:
            self._taps["main"] = self._network.add_tap(f"tap-{self.name}"[:15])
            if self.spec.storage:
                self._taps["storage"] = self._network.add_tap(f"sto-{self.name}"[:15], STORAGE)
        argv = qemu.command_line(
            self.spec,
            self.image,
            self.app,
            self.files,
            self._taps,
            self._plugged,
            faults=self._faults,
            warnings=self._warnings,
            node=self._node,
        )
        self._subsystems = {ssd.serial for ssd in self._plugged.values() if ssd.dual_port}
        self._process = ManagedProcess(self.name, argv, run_dir=self._run_dir).start()
        self._agent = GuestAgent(self.files.agent_socket)

    def wait_ready(self, timeout: float = 120) -> float:
        """Wait until it has booted and answers; the seconds that took.

        Args:
            timeout: Seconds to wait.

        Raises:
            LabTimeout: It has not; the message ends with its console's last lines.
            ProcessDied: QEMU has ended.
            LabError: A step of the boot failed.
        """
        began = time.monotonic()
        agent = self._running_agent()
        while not self._booted(agent):
            if time.monotonic() - began > timeout:
                raise LabTimeout(f"{self.name} is not ready after {timeout:g} s\n{self._last_words()}")
            time.sleep(0.1)
        failures = agent.run(f"cat {FAILED} 2> /dev/null || true").stdout_text
        if failures:
            raise LabError(f"{self.name}: steps of its boot failed:\n{failures}")
        return time.monotonic() - began

    def reboot(self, timeout: float = 240) -> None:
        """Shut down in order and start again, with the same disks. Main thread only.

        Args:
            timeout: Seconds for all of it.

        Raises:
            LabTimeout: It does not go down and come up in time.
        """
        deadline = time.monotonic() + timeout
        self.shut_down(timeout)
        self.start()
        self.wait_ready(max(1.0, deadline - time.monotonic()))

    def shut_down(self, timeout: float = 90) -> None:
        """Stop the services, write everything to disk, switch off.

        Raises:
            LabTimeout: It is still on after so many seconds; the message ends with its console's last lines.
        """
        self.run(["runit-init", "0"])
        try:
            wait_until(f"{self.name} off", lambda: not self.powered, timeout=timeout)
        except LabTimeout as error:
            raise LabTimeout(f"{error}\n{self._last_words()}") from None
        self._drop_connections()

    def power_off_hard(self) -> None:
        """Pull the plug: what it had not written to its disks is gone. Nothing happens if it is off."""
        if self._process is not None:
            self._process.stop(force=True)
        self._drop_connections()

    def close(self) -> None:
        """Pull the plug and take its cables away; its files stay. Safe to call again."""
        self.power_off_hard()
        while self._taps:
            self._network.del_tap(self._taps.popitem()[1])

    def freeze(self) -> None:
        """Stop its processors, and its clocks with them: for its processes no time passes until ``thaw``."""
        self._monitor().execute("stop")

    def thaw(self) -> None:
        """Let its processors go on, and set its wall clock to the host's."""
        self._monitor().execute("cont")
        self._running_agent().set_clock()

    # ---- Commands and files

    def run(
        self,
        command: str | Sequence[str],
        *,
        timeout: float = PATIENCE,
        input: bytes | None = None,  # noqa: A002 - named as in subprocess
        check: bool = True,
        env: Mapping[str, str] | None = None,
    ) -> Completed:
        """Run a command in it as root, without its network: see `GuestAgent.run`."""
        try:
            return self._running_agent().run(command, timeout=timeout, input=input, check=check, env=env)
        except LabError as error:
            error.add_note(f"(on {self.name})")
            raise

    def put_file(self, path: str, data: bytes, mode: int = 0o644) -> None:
        """Write a file in it, whole or not at all: see `GuestAgent.put_file`."""
        self._running_agent().put_file(path, data, mode)

    def get_file(self, path: str) -> bytes:
        """Read a regular file in it: see `GuestAgent.get_file`."""
        return self._running_agent().get_file(path)

    # ---- Services

    def service(self, name: str, script: str, *, timeout: float = 30) -> None:
        """Install, or replace, a service and wait until it runs. It is restarted when it ends, and at every boot.

        Args:
            name: A word; its output is appended to ``/var/log/NAME.log``.
            script: For ``/bin/sh``; ends with ``exec COMMAND`` so that signals reach the command.
            timeout: Seconds to wait (the supervisor looks for new services every 5).

        Raises:
            CommandError: It does not start.
        """
        run_file = f"#!/bin/sh\nexec >> /var/log/{name}.log 2>&1\n{script.rstrip()}\n"
        replaced = self.run(["test", "-e", f"/etc/service/{name}/run"], check=False).exit_code == 0
        self.put_file(f"/etc/service/{name}/run", run_file.encode(), 0o755)
        self.run(["wait-service", name, str(int(timeout))], timeout=timeout + 30)
        if replaced:
            self.run(["sv", "-w", "20", "restart", name])

    def service_start(self, name: str) -> None:
        """Start a stopped service and wait until it runs.

        Raises:
            CommandError: It does not.
        """
        self.run(["sv", "-w", "20", "start", name])

    def service_stop(self, name: str, *, timeout: float = 30) -> None:
        """Stop a service: SIGTERM, and SIGKILL when the time is up. It stays down until it is started, or a boot.

        Raises:
            CommandError: It needed SIGKILL.
        """
        self.run(["sv", "-w", str(int(timeout)), "force-stop", name], timeout=timeout + 30)

    def service_kill(self, name: str, signal: str = "KILL") -> None:
        """Send a signal to a service; its supervisor starts it again, a second later at the earliest.

        Raises:
            CommandError: It does not run.
        """
        self.run(f'kill -{signal} "$(cat /etc/service/{name}/supervise/pid)"')

    def service_pid(self, name: str) -> int | None:
        """Process id of a service, or None while it does not run."""
        pid = self.run(f"cat /etc/service/{name}/supervise/pid").stdout_text.strip()
        return int(pid) if pid else None

    def service_log(self, name: str) -> str:
        """All that a service has printed."""
        return self.get_file(f"/var/log/{name}.log").decode(errors="replace")

    # ---- Cables and SSDs

    def cut_cable(self, *, network: str = "main", noticed: bool = False) -> None:
        """Cut a network cable.

        Args:
            network: ``main``, or ``storage`` for that of its second card.
            noticed: Whether its network card notices (no carrier); else frames vanish behind a switch.

        Raises:
            LabError: It has no such cable, or was never on.
        """
        self._network.set_link(self._cable(network), up=False)
        if noticed:
            self._monitor().execute("set_link", arguments={"name": qemu.CARDS[network], "up": False})

    def mend_cable(self, *, network: str = "main") -> None:
        """Undo ``cut_cable``, however it was cut.

        Raises:
            LabError: It has no such cable, or was never on.
        """
        self._network.set_link(self._cable(network), up=True)
        if self.powered:
            self._monitor().execute("set_link", arguments={"name": qemu.CARDS[network], "up": True})

    def hold_back_storage_address(self) -> None:
        """Let its second card boot without its address, until ``bring_storage_address``."""
        self.run(f"touch {HELD_BACK} && sync {HELD_BACK}")

    def bring_storage_address(self) -> None:
        """Give its second card its address, now and at every boot. Nothing happens if it has it.

        Raises:
            CommandError: It has no second card.
        """
        self.run(["ip", "address", "replace", self.spec.storage, "dev", "eth1"])
        self.run(["rm", "-f", HELD_BACK])

    def plugged(self) -> dict[str, str]:
        """Serial number → port of every SSD that is in it now."""
        return {ssd.serial: port for port, ssd in self._plugged.items()}

    def unplug_ssd(self, serial: str, *, surprise: bool = True, timeout: float = 60) -> None:
        """Pull an SSD out. Its content stays for ``plug_ssd``. Works on a server that is off, too.

        Args:
            serial: Which one.
            surprise: Whether it vanishes under its driver, which cannot write anything to it any more; else the slot
                is switched off in order first (writing ``power`` in ``/sys/bus/pci/slots``).
            timeout: Seconds to wait until it is gone.

        Raises:
            LabError: There is no such SSD in the server.
            LabTimeout: The slot does not let it go.
        """
        port = self._port_of(serial)
        if self.powered:
            monitor = self._monitor()
            monitor.forget_events()
            how = "surprise" if surprise else "orderly"
            self.run(["pull-ssd", str(self._ports[port].slot), how], timeout=timeout)
            device = pcie.ssd_id(serial)
            monitor.wait_event("DEVICE_DELETED", lambda data: data.get("device") == device, timeout)
            for number in _numbers(self._plugged[port]):
                self._let_go(self._plugged[port], number)
        del self._plugged[port]

    def plug_ssd(self, serial: str, *, port: str | None = None, size: int = 2 << 30, timeout: float = 60) -> None:
        """Put an SSD in and wait until it works. Works on a server that is off, too, without the wait.

        Args:
            serial: One that was pulled out of this server, with its content; or a new serial number for a blank one.
            port: The name of the port, as in the specification; the one it came from when None.
            size: Bytes of a blank one.
            timeout: Seconds to wait for it.

        Raises:
            LabError: There is no such port, or it is taken; or the SSD cannot be put into a server that is on.
            CommandError: The server's driver does not take it in time.
        """
        place = port or self._home.get(serial)
        ssd = self._ssds.get(serial) or Ssd(name=place or "", serial=serial, size=size)
        place = self._free_port(ssd, place)
        self._ssds[serial] = ssd
        self._home[serial] = place
        self._make_ssd(ssd)
        if self.powered:
            self._add_ssd(ssd, place)
        self._plugged[place] = ssd
        if self.powered:
            self.run(["wait-ssd", serial, str(ssd.namespaces), str(int(timeout))], timeout=timeout + 30)

    def move_ssd(
        self,
        serial: str,
        to: VirtualServer,
        *,
        port: str | None = None,
        surprise: bool = True,
        timeout: float = 60,
    ) -> None:
        """Pull an SSD out and put it into another server, with its content and whatever is wrong with it.

        It belongs to the other server from then on. Either of the two may be off.

        Args:
            serial: Which one.
            to: The other server.
            port: The name of a free port there; the first one when None.
            surprise: See `unplug_ssd`.
            timeout: Seconds to wait for either server.

        Raises:
            LabError: The other server has no such port free, or cannot take it while it is on. It stays where it is.
            LabTimeout: The slot does not let it go. It stays where it is.
            CommandError: The other server's driver does not take it in time. It is in the port.
        """
        ssd = self._plugged[self._port_of(serial)]
        if to is self:
            raise LabError(f"{self.name} has SSD {serial} already: unplug_ssd and plug_ssd move it to another port")
        place = to._free_port(ssd, port or next((name for name in to._ports if name not in to._plugged), None))
        self.unplug_ssd(serial, surprise=surprise, timeout=timeout)
        to.files.folder.mkdir(parents=True, exist_ok=True)
        for number in _numbers(ssd):
            self._make_ssd(ssd)
            shutil.move(self.files.namespace(ssd, number), to.files.namespace(ssd, number))
            if (fault := self._faults.pop((serial, number), None)) is not None:
                to._faults[serial, number] = fault
        if (warning := self._warnings.pop(serial, None)) is not None:
            to._warnings[serial] = warning
        to._ssds[serial] = self._ssds.pop(serial)
        del self._home[serial]
        to.plug_ssd(serial, port=place, timeout=timeout)

    def image_file(self, serial: str, namespace: int = 1) -> Path:
        """The file with the bytes of an SSD's namespace. Made, if the server was never on: it can be filled before.

        Read it at any time: all that the server was told is written is in it. Write to it only while the SSD is
        pulled out or the server is off.

        Args:
            serial: Of an SSD that is in this server, or was pulled out of it.
            namespace: Its number, from 1.

        Raises:
            LabError: There is no such SSD, or it has no such namespace.
        """
        ssd = self._ssds.get(serial)
        if ssd is None:
            raise LabError(f"{self.name} has no SSD {serial}; it has {', '.join(sorted(self._ssds)) or 'none'}")
        _check_namespace(ssd, namespace)
        self.files.folder.mkdir(parents=True, exist_ok=True)
        self._make_ssd(ssd)
        return self.files.namespace(ssd, namespace)

    # ---- Bad SSDs

    def throttle_ssd(self, serial: str, iops: int | None, *, writes_only: bool = False) -> None:
        """Slow an SSD down, until it is pulled out or the server is switched off.

        A request is held back whole, before any of it reaches the file. When the power is cut, what is held back is
        not in the file, and what the server was told is written is; of the request in between, if there is one, any
        part. Linux joins neighbouring pages into one request; with 4 in the disk's ``queue/max_sectors_kb`` none is
        larger than a page.

        Args:
            serial: Which one.
            iops: Requests a second, of each namespace; None for no limit.
            writes_only: Whether reads stay fast. Else whatever looks at the disk, such as udev, takes long, too.

        Raises:
            LabError: The server is off, there is no such SSD in it, or the number is below 1.
            QmpError: QEMU refused.
        """
        ssd = self._plugged[self._port_of(serial)]
        if iops is not None and iops < 1:
            raise LabError(f"SSD {serial}: {iops} requests a second would be for ever: break it instead, or say None")
        limits = {"bps": 0, "bps_rd": 0, "bps_wr": 0, "iops": 0, "iops_rd": 0, "iops_wr": 0}
        limits["iops_wr" if writes_only else "iops"] = iops or 0
        for number in _numbers(ssd):
            arguments = {"id": pcie.drive_holder(ssd, number), **limits}
            self._monitor().execute("block_set_io_throttle", arguments=arguments)

    def break_ssd(
        self,
        serial: str,
        *,
        reads: bool = True,
        writes: bool = True,
        sectors: Iterable[int] | None = None,
        namespace: int = 1,
    ) -> None:
        """Let requests of an SSD fail, until ``mend_ssd``; replaces what was wrong with it before.

        It stays broken whatever happens to the server, and wherever it is moved. Works on a server that is off, too.
        A failed read is NVMe's *Unrecovered Read Error*, a failed write a *Write Fault*. Linux tries neither again,
        logs *critical medium error, dev nvme…* and tells the program ENODATA.

        Args:
            serial: Which one.
            reads: Whether reads fail.
            writes: Whether writes fail.
            sectors: Only requests that touch one of these, in units of 512 bytes; all when None.
            namespace: Of which namespace, from 1.

        Raises:
            LabError: There is no such SSD in the server or no such namespace, or nothing is to fail.
            QmpError: QEMU refused.
        """
        ssd = self._plugged[self._port_of(serial)]
        fault = qemu.Fault(reads, writes, None if sectors is None else tuple(sectors))
        node = qemu.faulty_node(ssd, namespace, fault)
        self.mend_ssd(serial, namespace=namespace)
        if self.powered:
            self._monitor().execute("blockdev-add", arguments=node)
            self._stand_on(ssd, namespace, qemu.fault_node(ssd, namespace))
        self._faults[serial, namespace] = fault

    def mend_ssd(self, serial: str, *, namespace: int = 1) -> None:
        """Undo ``break_ssd``. Nothing happens if it is not broken.

        Raises:
            LabError: There is no such SSD in the server, or no such namespace.
        """
        ssd = self._plugged[self._port_of(serial)]
        _check_namespace(ssd, namespace)
        if (serial, namespace) in self._faults and self.powered:
            self._stand_on(ssd, namespace, qemu.file_node(ssd, namespace))
            self._drop_node(qemu.fault_node(ssd, namespace))
        self._faults.pop((serial, namespace), None)

    def set_smart_warning(self, serial: str, bits: int) -> None:
        """Set the critical warning of an SSD's SMART log. Like a fault, it stays until it is set anew.

        Args:
            serial: Which one.
            bits: As in the log: 1 spare blocks are low, 2 temperature, 4 not reliable, 8 read-only, 16 the backup
                of volatile memory has failed, 32 persistent memory; 0 for no warning.

        Raises:
            LabError: There is no such SSD in the server.
            QmpError: QEMU refused.
        """
        self._port_of(serial)
        if not 0 <= bits < 64:  # QEMU drops the bits it does not know without a word
            raise LabError(f"SSD {serial}: {bits} is no critical warning: 0 to 63")
        if self.powered:
            path = f"/machine/peripheral/{pcie.ssd_id(serial)}"
            arguments = {"path": path, "property": "smart_critical_warning", "value": bits}
            self._monitor().execute("qom-set", arguments=arguments)
        self._warnings[serial] = bits

    # ---- For whoever looks into a failure

    def save_failure(self, folder: Path) -> None:
        """Keep what tells why something failed: the console, QEMU's log, and the server's logs if it answers.

        Args:
            folder: A folder of the server's name is made in it.
        """
        target = folder / self.name
        target.mkdir(parents=True, exist_ok=True)
        for path in (self.files.console_log, self.files.early_log, self.files.qemu_log):
            if path.exists():
                shutil.copy(path, target)
        if not self.powered:
            return
        agent = self._running_agent()
        for name, command in _EVIDENCE.items():
            try:
                text = agent.run(command, timeout=20, check=False).stdout
            except LabError as error:
                text = f"could not be had: {error}\n".encode()
            (target / name).write_bytes(text)
            if text.startswith(b"could not be had"):
                break

    # ---- Inside

    def _make_files(self) -> None:
        for folder in (self.files.folder, self.files.console_log.parent):
            folder.mkdir(parents=True, exist_ok=True)
        self.files.facts.write_text(qemu.facts(self.spec, self._gateway))
        self.files.hosts.write_text(qemu.hosts_file(self._hosts))
        for path in (self.files.monitor_socket, self.files.agent_socket, self.files.console_socket):
            path.unlink(missing_ok=True)
        disks = [(self.files.root_disk, self.image.disk)]
        if self._node is not None:
            disks.append((self.files.node_disk, self._node.disk))
        for own, base in disks:
            if not own.exists():
                backing = ["-F", "raw", "-b", str(base)]
                run(["qemu-img", "create", "-q", "-f", "qcow2", *backing, str(own)], timeout=60)
        for ssd in self._plugged.values():
            self._make_ssd(ssd)

    def _port_of(self, serial: str) -> str:
        port = self.plugged().get(serial)
        if port is None:
            raise LabError(f"{self.name} has no SSD {serial}; it has {', '.join(sorted(self.plugged())) or 'none'}")
        return port

    def _free_port(self, ssd: Ssd, place: str | None) -> str:
        if place is None or place not in self._ports:
            free = sorted(set(self._ports) - set(self._plugged))
            raise LabError(f"{self.name}: no port {place} for SSD {ssd.serial}; free: {', '.join(free) or 'none'}")
        if place in self._plugged:
            raise LabError(f"{self.name}: port {place} holds SSD {self._plugged[place].serial}")
        if self.powered and pcie.needs_start(ssd) and ssd.serial not in self._subsystems:
            kind = "dual port" if ssd.dual_port else f"{ssd.namespaces} namespaces"
            raise LabError(
                f"{self.name} is on: QEMU takes SSD {ssd.serial} ({kind}) only at a start; switch the server off first"
            )
        return place

    def _let_go(self, ssd: Ssd, number: int) -> None:
        """Let QEMU close the file of a namespace that is pulled out: it may go elsewhere."""
        if ssd.dual_port:
            self._monitor().execute("blockdev-add", arguments=qemu.gone_node(ssd, number))
            self._stand_on(ssd, number, f"{qemu.gone_node(ssd, number)['node-name']}")
        else:
            self._drop_node(pcie.block_node(ssd, number))
        if (ssd.serial, number) in self._faults:
            self._drop_node(qemu.fault_node(ssd, number))
        self._drop_node(qemu.file_node(ssd, number))

    def _stand_on(self, ssd: Ssd, number: int, below: str) -> None:
        self._monitor().execute("blockdev-reopen", arguments={"options": [qemu.raw_node(ssd, number, below)]})

    def _drop_node(self, node: str, timeout: float = 30) -> None:
        deadline = time.monotonic() + timeout
        while True:
            try:
                self._monitor().execute("blockdev-del", arguments={"node-name": node})
            except QmpError as error:  # a device that QEMU says is deleted can hold its node a moment longer
                if "in use" not in str(error):
                    raise
                if time.monotonic() > deadline:
                    raise LabTimeout(f"{self.name}: {node} is still in use after {timeout:g} s: {error}") from error
                time.sleep(0.05)
            else:
                return

    def _make_ssd(self, ssd: Ssd) -> None:
        for number in _numbers(ssd):
            path = self.files.namespace(ssd, number)
            if not path.exists():
                with path.open("xb") as file:
                    file.truncate(ssd.size)

    def _add_ssd(self, ssd: Ssd, port: str) -> None:
        monitor = self._monitor()
        for number in _numbers(ssd):
            *below, top = qemu.block_nodes(self.files, ssd, number, self._faults.get((ssd.serial, number)))
            for node in below:
                monitor.execute("blockdev-add", arguments=node)
            if ssd.dual_port:  # its namespaces stayed, on nothing
                monitor.execute("blockdev-reopen", arguments={"options": [top]})
                self._drop_node(f"{qemu.gone_node(ssd, number)['node-name']}")
            else:
                monitor.execute("blockdev-add", arguments=top)
        for device in pcie.ssd_devices(ssd, self._ports[port].bus, self._warnings.get(ssd.serial, 0)):
            monitor.execute("device_add", arguments=device)

    def _cable(self, network: str) -> str:
        if network not in self._taps:
            has = ", ".join(self._taps) or "none; start it first"
            raise LabError(f"{self.name} has no cable to network {network}; it has: {has}")
        return self._taps[network]

    def _running_agent(self) -> GuestAgent:
        if self._agent is None:
            raise LabError(f"{self.name} is off")
        return self._agent

    def _monitor(self) -> Qmp:
        if not self.powered:
            raise LabError(f"{self.name} is off")
        if self._qmp is None:
            self._qmp = Qmp(self.files.monitor_socket)
        return self._qmp

    def _drop_connections(self) -> None:
        if self._qmp is not None:
            self._qmp.close()
        if self._agent is not None:
            self._agent.close()
        self._qmp = self._agent = None

    def _booted(self, agent: GuestAgent) -> bool:
        try:
            return agent.ping(timeout=2) and agent.run(["test", "-e", READY], check=False).exit_code == 0
        except LabTimeout:
            return False
        except LabError as error:
            # The connection breaks a moment before the process can be seen to have ended.
            with contextlib.suppress(LabTimeout):
                wait_until("QEMU gone", lambda: not self.powered, timeout=5)
            if self.powered:
                raise
            code = None if self._process is None else self._process.stop()
            raise ProcessDied(
                f"{self.name}: QEMU ended while booting (exit status {code}; 0: the server switched itself off,"
                f" as after a panic)\n{self._last_words()}"
            ) from error

    def _last_words(self) -> str:
        logs = (self.files.early_log, self.console_log, self.files.qemu_log)
        parts = [
            f"{path} ends:\n{tail(path.read_bytes()[-32_768:].decode(errors='replace'))}"
            for path in logs
            if path.exists() and path.stat().st_size
        ]
        return "\n".join(parts) or "its logs are empty"


def _numbers(ssd: Ssd) -> range:
    return range(1, ssd.namespaces + 1)


def _check_namespace(ssd: Ssd, number: int) -> None:
    if number not in _numbers(ssd):
        raise LabError(f"SSD {ssd.serial} has no namespace {number}: it has {ssd.namespaces}, numbered from 1")


_EVIDENCE = {
    "dmesg.txt": "dmesg",
    "processes.txt": "ps axfo pid,ppid,stat,wchan:24,etime,args",
    "devices.txt": "lsblk -o NAME,SIZE,SERIAL,FSTYPE,PARTLABEL,MOUNTPOINTS; lspci -tv; mount; nvme list-subsys",
    "services.txt": "sv status /etc/service/*",
    "logs.txt": "tail -n 1000 /var/log/*.log",
}
"""Files that ``save_failure`` writes, and the commands whose output goes there."""


def start_all(servers: Iterable[VirtualServer], timeout: float = 180) -> None:
    """Switch several servers on at once and wait until every one has booted. Main thread only.

    Args:
        servers: Those that are on already are waited for, too.
        timeout: Seconds for all of them.

    Raises:
        LabError: See `VirtualServer.start` and `VirtualServer.wait_ready`.
    """
    deadline = time.monotonic() + timeout
    all_servers = list(servers)
    for server in all_servers:
        if not server.powered:
            server.start()
    for server in all_servers:
        try:
            server.wait_ready(max(1.0, deadline - time.monotonic()))
        except ProcessDied as error:  # an emulated kernel can die of the emulator while it boots: once is bad luck
            say(f"{server.name} died while booting and is switched on again: {error}")
            server.start()
            server.wait_ready(max(1.0, deadline - time.monotonic()))


def boot(
    lab: Room,
    repo: Path,
    names: Sequence[str | ServerSpec],
    *,
    prepare: Callable[[VirtualServer], None] | None = None,
    node: Callable[[ServerSpec], qemu.Membership] | None = None,
    timeout: float = 240,
) -> dict[str, VirtualServer]:
    """Add the servers of these specifications to a lab and wait until they have booted. Main thread only.

    Args:
        lab: One that is up.
        repo: The repository's root. What servers start from must be built: see `image.server_image`.
        names: Of specifications, such as ``gpu-a``; or a specification itself.
        node: Makes each a Kubernetes node: see `cluster.membership`.
        prepare: Called with each server before it is switched on for the first time, to fill its SSDs' image files.
        timeout: Seconds for all of them.

    Raises:
        LabError: See `start_all`.
    """
    base = image.server_image(repo)
    app = image.app_image(repo, base.tree)
    specs = [spec.load(name) if isinstance(name, str) else name for name in names]
    hosts = {one.name: one.ip for one in specs}
    made = [
        VirtualServer(
            one,
            image=base,
            app=app,
            run_dir=lab.run_dir,
            network=lab.network,
            hosts=hosts,
            node=node(one) if node is not None else None,
        )
        for one in specs
    ]
    for server in made:
        if prepare is not None:
            prepare(server)
        lab.add_server(server)
    start_all(made, timeout)
    return {server.name: server for server in made}
