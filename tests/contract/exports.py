"""What KubeFlash relies on of nvmet: the same checks on `support.fake_nvmet` and on the kernel in a virtual server.

Standard library and kubeflash only.
"""

from __future__ import annotations

import errno
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID, uuid4

from contract.common import raises
from kubeflash.domain import dhchap
from kubeflash.domain.dhchap import DhchapKeys
from kubeflash.domain.fabric import Portal
from kubeflash.domain.names import MODEL, export_identity
from kubeflash.host import nvmet
from kubeflash.host.nvmet.configfs import Configfs, KernelConfigfs
from kubeflash.host.root import HostRoot

NOWHERE = "192.0.2.1"  # TEST-NET-1: no machine has it


class Export:
    """One attachment's export, with the steps that build and fence it, in order."""

    def __init__(self, bench: Bench, port: int = 0) -> None:
        self.uid = str(uuid4())
        self.volume_id = str(uuid4())
        self.names = export_identity(self.uid)
        self.nqn = self.names.nqn
        self.keys = DhchapKeys(dhchap.generate(), dhchap.generate())
        self.device = bench.device
        self.port = port or bench.free_port()
        self.portal = Portal("tcp", bench.address, self.port)

    def build(self) -> list[Callable[[Configfs], object]]:
        """The steps, link last."""
        return [
            lambda fs: nvmet.create_host(fs, self.names.host_nqn, self.keys),
            lambda fs: nvmet.create_subsystem(fs, self.nqn, serial=self.names.serial, model=MODEL),
            lambda fs: nvmet.allow_host(fs, self.nqn, self.names.host_nqn),
            lambda fs: nvmet.add_namespace(fs, self.nqn, 1, device=self.device, uuid=self.volume_id),
            lambda fs: nvmet.enable_namespace(fs, self.nqn, 1),
            lambda fs: nvmet.create_port(fs, self.port, self.portal),
            lambda fs: nvmet.link(fs, self.port, self.nqn),
        ]

    def fence(self) -> list[Callable[[Configfs], object]]:
        """The steps, the disable before anything is removed."""
        return [
            lambda fs: nvmet.disallow_host(fs, self.nqn, self.names.host_nqn),
            lambda fs: nvmet.unlink_port(fs, self.port, self.nqn),
            lambda fs: nvmet.disable_namespace(fs, self.nqn, 1),
            lambda fs: nvmet.remove_subsystem(fs, self.nqn),
            lambda fs: nvmet.remove_port(fs, self.port),
            lambda fs: nvmet.remove_host(fs, self.names.host_nqn),
        ]

    def up(self, fs: Configfs, steps: int = 7) -> Export:
        """Builds it, or the first steps of it."""
        for step in self.build()[:steps]:
            step(fs)
        return self

    def down(self, fs: Configfs) -> None:
        """Fences it."""
        for step in self.fence():
            step(fs)


@dataclass
class Bench:
    """A tree, and the machine around it.

    Attributes:
        device: a block device that is there.
        address: an address that is up.
        disk: the disk behind `device`, for contracts that need a real one.
    """

    fs: Configfs
    device: str
    address: str
    root: HostRoot = field(default_factory=HostRoot)
    disk: Path | None = None
    can_connect: bool = False
    _port: int = 24420

    @classmethod
    def real(cls, root: HostRoot, device: Path, address: str) -> Bench:
        """The kernel's tree."""
        for module in ("nvmet", "nvmet-tcp", "nvme-tcp"):
            subprocess.run(["modprobe", module], check=False)
        return cls(KernelConfigfs(root), str(device), address, root, device, (root.dev / "nvme-fabrics").exists())

    def free_port(self) -> int:
        """A TCP port number that nothing uses."""
        self._port += 1
        return self._port

    @contextmanager
    def somebody_listens(self, port: int) -> Iterator[None]:
        """A stranger on a TCP port."""
        if self.disk is None:
            getattr(self.fs, "listening").add((self.address, str(port)))  # noqa: B009  the fake's alone
            yield
            return
        with socket.create_server((self.address, port)):
            yield


def run(contract: Callable[[Bench], None], bench: Bench) -> None:
    """Runs a contract; what it leaves behind is removed."""
    try:
        contract(bench)
    finally:
        sweep(bench.fs)


def sweep(fs: Configfs) -> None:
    """Takes down everything in the tree."""
    state = nvmet.read_state(fs)
    for subsystem in state.subsystems.values():
        for host in subsystem.allowed_hosts:
            nvmet.disallow_host(fs, subsystem.nqn, host)
        for port in state.ports.values():
            nvmet.unlink_port(fs, port.number, subsystem.nqn)
        for namespace in subsystem.namespaces:
            nvmet.disable_namespace(fs, subsystem.nqn, namespace.nsid)
        nvmet.remove_subsystem(fs, subsystem.nqn)
    for number in state.ports:
        nvmet.remove_port(fs, number)
    for host in state.hosts:
        nvmet.remove_host(fs, host)


def denied(number: int, call: Callable[[], object]) -> None:
    """The kernel says no, with this error number."""
    error = raises(OSError, call)
    got = error.errno if isinstance(error, OSError) else None
    assert got == number, f"{errno.errorcode.get(got or 0, got)} instead of {errno.errorcode[number]}"


# --- the kernel's own ways, which the fake must have too ---


def contract_fresh_objects_look_like_this(bench: Bench) -> None:
    fs = bench.fs
    for path in ("hosts/nqn.h", "subsystems/nqn.s", "subsystems/nqn.s/namespaces/1", "ports/7"):
        fs.mkdir(path)
        denied(errno.EEXIST, lambda path=path: fs.mkdir(path))
    for path, value in {
        "hosts/nqn.h/dhchap_key": "",
        "hosts/nqn.h/dhchap_ctrl_key": "",
        "hosts/nqn.h/dhchap_hash": "hmac(sha256)",
        "hosts/nqn.h/dhchap_dhgroup": "null",
        "subsystems/nqn.s/attr_allow_any_host": "0",
        "subsystems/nqn.s/attr_model": "Linux",
        "subsystems/nqn.s/namespaces/1/device_path": "(null)",
        "subsystems/nqn.s/namespaces/1/device_nguid": "00000000-0000-0000-0000-000000000000",
        "subsystems/nqn.s/namespaces/1/enable": "0",
        "ports/7/addr_trtype": "",
        "ports/7/addr_adrfam": "",
        "ports/7/addr_traddr": "",
        "ports/7/addr_trsvcid": "",
    }.items():
        assert fs.read(path).strip() == value, (path, fs.read(path))
    assert UUID(fs.read("subsystems/nqn.s/namespaces/1/device_uuid").strip()).int  # a random one
    assert len(fs.read("subsystems/nqn.s/attr_serial").strip()) == 20
    assert fs.mode("hosts/nqn.h/dhchap_key") == 0o644
    assert fs.listdir("subsystems/nqn.s/allowed_hosts") == []
    assert fs.listdir("ports/7/subsystems") == []


def contract_the_kernel_refuses(bench: Bench) -> None:
    fs = bench.fs
    denied(errno.ENOENT, lambda: fs.mkdir("subsystems/nqn.none/namespaces/1"))
    denied(errno.ENOENT, lambda: fs.rmdir("hosts/nqn.none"))
    denied(errno.ENOENT, lambda: fs.unlink("ports/none"))
    for path in ("hosts/nqn.h", "subsystems/nqn.s", "subsystems/nqn.s/namespaces/1", "ports/7"):
        fs.mkdir(path)
    denied(errno.EINVAL, lambda: fs.mkdir("subsystems/nqn.s/namespaces/0"))
    denied(errno.EFAULT, lambda: fs.write("hosts/nqn.h/dhchap_key", ""))
    denied(errno.EINVAL, lambda: fs.write("hosts/nqn.h/dhchap_key", "\n"))
    denied(errno.EINVAL, lambda: fs.write("hosts/nqn.h/dhchap_key", "secret"))
    denied(errno.EINVAL, lambda: fs.write("hosts/nqn.h/dhchap_hash", "md5"))
    denied(errno.EINVAL, lambda: fs.write("subsystems/nqn.s/attr_serial", "x" * 21))
    denied(errno.EINVAL, lambda: fs.write("subsystems/nqn.s/attr_model", "x" * 41))
    fs.symlink("hosts/nqn.h", "subsystems/nqn.s/allowed_hosts/nqn.h")
    denied(errno.EEXIST, lambda: fs.symlink("hosts/nqn.h", "subsystems/nqn.s/allowed_hosts/nqn.h"))
    denied(errno.EINVAL, lambda: fs.write("subsystems/nqn.s/attr_allow_any_host", "1"))
    denied(errno.EBUSY, lambda: fs.rmdir("hosts/nqn.h"))
    denied(errno.ENOTEMPTY, lambda: fs.rmdir("subsystems/nqn.s"))
    denied(errno.EINVAL, lambda: fs.write("ports/7/addr_trtype", "pigeon"))


def contract_enabled_namespaces_are_fixed_but_removable(bench: Bench) -> None:
    fs, export = bench.fs, Export(bench).up(bench.fs, 5)
    path = f"subsystems/{export.nqn}/namespaces/1"
    for name, value in (("device_path", "/dev/x"), ("device_uuid", str(uuid4())), ("device_nguid", str(uuid4()))):
        denied(errno.EBUSY, lambda name=name, value=value: fs.write(f"{path}/{name}", value))
    fs.rmdir(path)  # the trap that remove_namespace is for
    assert not fs.exists(path)


def contract_linked_ports_are_fixed(bench: Bench) -> None:
    fs, export = bench.fs, Export(bench).up(bench.fs)
    for name in ("addr_trtype", "addr_adrfam", "addr_traddr", "addr_trsvcid"):
        present = fs.read(f"ports/{export.port}/{name}").strip()
        denied(errno.EACCES, lambda name=name, present=present: fs.write(f"ports/{export.port}/{name}", present))
    denied(errno.ENOTEMPTY, lambda: fs.rmdir(f"ports/{export.port}"))
    nvmet.disallow_host(fs, export.nqn, export.names.host_nqn)
    nvmet.disable_namespace(fs, export.nqn, 1, while_linked=True)
    nvmet.remove_namespace(fs, export.nqn, 1)
    denied(errno.EBUSY, lambda: fs.rmdir(f"subsystems/{export.nqn}"))


# --- what nvmet.py promises ---


def contract_an_export_is_built_and_read_back(bench: Bench) -> None:
    export = Export(bench).up(bench.fs)
    state = nvmet.read_state(bench.fs)
    subsystem = state.subsystems[export.nqn]
    (namespace,) = subsystem.namespaces
    assert (namespace.nsid, namespace.device, namespace.uuid, namespace.enabled) == (
        1,
        bench.device,
        export.volume_id,
        True,
    )
    assert (subsystem.allow_any_host, subsystem.allowed_hosts) == (False, {export.names.host_nqn})
    assert (subsystem.serial, subsystem.model) == (export.names.serial, MODEL)
    port = state.ports[export.port]
    assert (port.transport, port.address, port.service) == ("tcp", bench.address, str(export.port))
    assert port.subsystems == {export.nqn}
    assert state.hosts == {export.names.host_nqn}


def contract_building_twice_changes_nothing(bench: Bench) -> None:
    export = Export(bench).up(bench.fs)
    before = nvmet.read_state(bench.fs)
    export.up(bench.fs)
    assert nvmet.read_state(bench.fs) == before


def contract_fencing_leaves_nothing(bench: Bench) -> None:
    export = Export(bench).up(bench.fs)
    export.down(bench.fs)
    state = nvmet.read_state(bench.fs)
    assert (state.hosts, dict(state.subsystems), dict(state.ports)) == (frozenset(), {}, {})
    export.down(bench.fs)


def contract_fencing_works_from_every_step_of_building(bench: Bench) -> None:
    for steps in range(8):
        export = Export(bench).up(bench.fs, steps)
        export.down(bench.fs)
        state = nvmet.read_state(bench.fs)
        assert (state.hosts, dict(state.subsystems), dict(state.ports)) == (frozenset(), {}, {}), steps


def contract_one_export_does_not_touch_another(bench: Bench) -> None:
    stays = Export(bench).up(bench.fs)
    before = nvmet.read_state(bench.fs)
    Export(bench).up(bench.fs).down(bench.fs)
    assert nvmet.read_state(bench.fs) == before
    assert bench.fs.listdir(f"ports/{stays.port}/subsystems") == [stays.nqn]


def contract_keys_are_hidden_and_never_changed(bench: Bench) -> None:
    fs, export = bench.fs, Export(bench)
    host = export.names.host_nqn
    nvmet.create_host(fs, host, export.keys)
    for name, key in (("dhchap_key", export.keys.host), ("dhchap_ctrl_key", export.keys.controller)):
        assert fs.mode(f"hosts/{host}/{name}") == 0o600
        assert fs.read(f"hosts/{host}/{name}").strip() == key
    assert fs.read(f"hosts/{host}/dhchap_hash").strip() == "hmac(sha512)"
    assert fs.read(f"hosts/{host}/dhchap_dhgroup").strip() == "ffdhe2048"
    other = DhchapKeys(dhchap.generate(), dhchap.generate())
    error = raises(nvmet.ObjectDiffers, lambda: nvmet.create_host(fs, host, other))
    assert "DHHC" not in repr(error)
    damaged = DhchapKeys("DHHC-1:00:abcd:", other.controller)
    error = raises(nvmet.KeyRefusedByKernel, lambda: nvmet.create_host(fs, "nqn.h2", damaged))
    assert "abcd" not in repr(error)


def contract_link_comes_last(bench: Bench) -> None:
    fs = bench.fs
    for steps in range(1, 5):
        export = Export(bench).up(fs, steps)
        nvmet.create_port(fs, export.port, export.portal)
        kind = nvmet.OutOfOrder if steps > 1 else nvmet.ObjectMissing
        raises(kind, lambda export=export: nvmet.link(fs, export.port, export.nqn))
        assert fs.listdir(f"ports/{export.port}/subsystems") == []
        sweep(fs)


def contract_removal_comes_after_disabling(bench: Bench) -> None:
    fs, export = bench.fs, Export(bench).up(bench.fs)
    raises(nvmet.OutOfOrder, lambda: nvmet.disable_namespace(fs, export.nqn, 1))
    raises(nvmet.OutOfOrder, lambda: nvmet.remove_namespace(fs, export.nqn, 1))
    raises(nvmet.OutOfOrder, lambda: nvmet.remove_subsystem(fs, export.nqn))
    raises(nvmet.ObjectInUse, lambda: nvmet.remove_port(fs, export.port))
    raises(nvmet.ObjectInUse, lambda: nvmet.remove_host(fs, export.names.host_nqn))
    nvmet.disallow_host(fs, export.nqn, export.names.host_nqn)
    nvmet.unlink_port(fs, export.port, export.nqn)
    raises(nvmet.OutOfOrder, lambda: nvmet.remove_subsystem(fs, export.nqn))
    assert nvmet.read_state(fs).subsystems[export.nqn].namespaces[0].enabled
    export.down(fs)


def contract_what_differs_is_left_alone(bench: Bench) -> None:
    fs, export = bench.fs, Export(bench).up(bench.fs)
    before = nvmet.read_state(fs)
    raises(nvmet.ObjectDiffers, lambda: nvmet.add_namespace(fs, export.nqn, 1, device=bench.device, uuid=str(uuid4())))
    raises(nvmet.ObjectDiffers, lambda: nvmet.add_namespace(fs, export.nqn, 1, device="/dev/x", uuid=export.volume_id))
    elsewhere = Portal("tcp", NOWHERE, export.port)
    raises(nvmet.ObjectDiffers, lambda: nvmet.create_port(fs, export.port, elsewhere))
    raises(nvmet.NvmetError, lambda: nvmet.create_subsystem(fs, export.nqn, serial="x" * 21, model=MODEL))
    assert nvmet.read_state(fs) == before


def contract_errors_have_types(bench: Bench) -> None:
    fs = bench.fs
    export = Export(bench)
    export.device = "/dev/no-such-device"
    export.up(fs, 4)
    raises(nvmet.DeviceMissing, lambda: nvmet.enable_namespace(fs, export.nqn, 1))
    assert not nvmet.read_state(fs).subsystems[export.nqn].namespaces[0].enabled
    nvmet.add_namespace(fs, export.nqn, 1, device=bench.device, uuid=export.volume_id)  # the SSD is back
    nvmet.enable_namespace(fs, export.nqn, 1)
    raises(nvmet.ObjectMissing, lambda: nvmet.enable_namespace(fs, export.nqn, 2))
    raises(nvmet.ObjectMissing, lambda: nvmet.allow_host(fs, export.nqn, "nqn.none"))
    raises(nvmet.ObjectMissing, lambda: nvmet.add_namespace(fs, "nqn.none", 1, device="/dev/x", uuid=export.volume_id))
    nowhere = bench.free_port()
    nvmet.create_port(fs, nowhere, Portal("tcp", NOWHERE, nowhere))
    raises(nvmet.AddressNotUp, lambda: nvmet.link(fs, nowhere, export.nqn))
    assert fs.listdir(f"ports/{nowhere}/subsystems") == []
    nvmet.create_port(fs, export.port, export.portal)
    with bench.somebody_listens(export.port):
        raises(nvmet.PortTaken, lambda: nvmet.link(fs, export.port, export.nqn))
    for wrong in ("", "a/b", "..", "x" * 224):
        raises(nvmet.NvmetError, lambda wrong=wrong: nvmet.create_subsystem(fs, wrong, serial="s", model="m"))


def contract_a_taken_port_number_is_said(bench: Bench) -> None:
    first = Export(bench).up(bench.fs)
    second = Export(bench).up(bench.fs, 5)
    number = bench.free_port()
    nvmet.create_port(bench.fs, number, first.portal)
    raises(nvmet.PortTaken, lambda: nvmet.link(bench.fs, number, second.nqn))
    assert nvmet.read_state(bench.fs).ports[number].subsystems == frozenset()


def contract_a_returned_ssd_is_put_back_under_its_consumers(bench: Bench) -> None:
    fs, export = bench.fs, Export(bench).up(bench.fs)
    nvmet.disable_namespace(fs, export.nqn, 1, while_linked=True)
    nvmet.add_namespace(fs, export.nqn, 1, device=bench.device, uuid=export.volume_id)
    nvmet.enable_namespace(fs, export.nqn, 1)
    nvmet.revalidate(fs, export.nqn, 1)
    nvmet.disable_namespace(fs, export.nqn, 1, while_linked=True)
    raises(nvmet.OutOfOrder, lambda: nvmet.revalidate(fs, export.nqn, 1))


def contract_a_grown_device_is_told_to_consumers(bench: Bench) -> None:
    fs, export = bench.fs, Export(bench)
    raises(nvmet.ObjectMissing, lambda: nvmet.revalidate(fs, export.nqn, 1))
    export.up(fs, 4)
    raises(nvmet.OutOfOrder, lambda: nvmet.revalidate(fs, export.nqn, 1))
    export.up(fs)
    before = nvmet.read_state(fs)
    for _ in range(2):
        nvmet.revalidate(fs, export.nqn, 1)
    raises(nvmet.ObjectMissing, lambda: nvmet.revalidate(fs, export.nqn, 2))
    assert nvmet.read_state(fs) == before


def contract_strangers_are_read_as_they_are(bench: Bench) -> None:
    fs = bench.fs
    for path in ("hosts/nqn.h", "subsystems/nqn.s", "subsystems/nqn.s/namespaces/3", "ports/9"):
        fs.mkdir(path)
    fs.write("subsystems/nqn.s/attr_allow_any_host", "1")
    state = nvmet.read_state(fs)
    assert state.subsystems["nqn.s"].allow_any_host
    (namespace,) = state.subsystems["nqn.s"].namespaces
    assert (namespace.nsid, namespace.device, namespace.enabled) == (3, "", False)
    port = state.ports[9]
    assert (port.transport, port.address, port.service, port.subsystems) == ("", "", "", frozenset())


CONTRACTS = [value for name, value in list(globals().items()) if name.startswith("contract_")]
