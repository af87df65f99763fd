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
from kubeflash.domain.fabric import NvmetHost, Portal
from kubeflash.domain.names import MODEL, export_identity
from kubeflash.host import nvmet
from kubeflash.host.nvmet.configfs import Configfs, KernelConfigfs
from kubeflash.host.readonly import set_read_only
from kubeflash.host.root import HostRoot

NOWHERE = "192.0.2.1"  # TEST-NET-1: no machine has it


class Export:
    """One attachment's export, with the steps that build and fence it, in order."""

    def __init__(self, bench: Bench, port: int = 0, *, transport: str = "tcp", tls: bool = False) -> None:
        self.uid = str(uuid4())
        self.volume_id = str(uuid4())
        self.names = export_identity(self.uid)
        self.nqn = self.names.nqn
        self.keys: DhchapKeys | None = DhchapKeys(dhchap.generate(), dhchap.generate())
        self.device = bench.device
        self.port = port or bench.free_port()
        self.portal = Portal(transport, bench.address, self.port)
        self.tls = tls

    def build(self) -> list[Callable[[Configfs], object]]:
        """The steps, link last."""
        return [
            lambda fs: nvmet.create_host(fs, self.names.host_nqn, self.keys),
            lambda fs: nvmet.create_subsystem(fs, self.nqn, serial=self.names.serial, model=MODEL),
            lambda fs: nvmet.allow_host(fs, self.nqn, self.names.host_nqn),
            lambda fs: nvmet.add_namespace(fs, self.nqn, 1, device=self.device, uuid=self.volume_id),
            lambda fs: nvmet.enable_namespace(fs, self.nqn, 1),
            lambda fs: nvmet.create_port(fs, self.port, self.portal, tls=self.tls),
            lambda fs: nvmet.link(fs, self.port, self.nqn, authenticated=self.keys is not None),
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
        other: another name of it.
        address: an address that is up.
        disk: the disk behind `device`, for contracts that need a real one.
    """

    fs: Configfs
    device: str
    address: str
    other: str = ""
    root: HostRoot = field(default_factory=HostRoot)
    disk: Path | None = None
    can_connect: bool = False
    _port: int = 24420

    @classmethod
    def real(cls, root: HostRoot, device: Path, address: str) -> Bench:
        """The kernel's tree."""
        for module in ("nvmet", "nvmet-tcp", "nvme-tcp"):
            subprocess.run(["modprobe", module], check=False)
        link = Path("/run/contract-disk")
        link.unlink(missing_ok=True)
        link.symlink_to(device)
        can_connect = (root.dev / "nvme-fabrics").exists()
        return cls(KernelConfigfs(root), str(device), address, str(link), root, device, can_connect)

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

    @contextmanager
    def write_protected(self) -> Iterator[None]:
        """The device refuses writes."""
        if self.disk is None:
            getattr(self.fs, "read_only").add(self.device)  # noqa: B009  the fake's alone
            yield
            getattr(self.fs, "read_only").discard(self.device)  # noqa: B009
            return
        set_read_only(self.disk, value=True)
        try:
            yield
        finally:
            set_read_only(self.disk, value=False)


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
        "subsystems/nqn.s/attr_cntlid_min": "1",
        "subsystems/nqn.s/attr_cntlid_max": "65519",
        "subsystems/nqn.s/namespaces/1/device_path": "(null)",
        "subsystems/nqn.s/namespaces/1/device_nguid": "00000000-0000-0000-0000-000000000000",
        "subsystems/nqn.s/namespaces/1/enable": "0",
        "ports/7/addr_trtype": "",
        "ports/7/addr_adrfam": "",
        "ports/7/addr_traddr": "",
        "ports/7/addr_trsvcid": "",
        "ports/7/addr_tsas": "",
        "ports/7/addr_treq": "not specified",
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
    for name in ("addr_trtype", "addr_adrfam", "addr_traddr", "addr_trsvcid", "addr_tsas", "addr_treq"):
        present = fs.read(f"ports/{export.port}/{name}").strip()
        denied(errno.EACCES, lambda name=name, present=present: fs.write(f"ports/{export.port}/{name}", present))
    denied(errno.ENOTEMPTY, lambda: fs.rmdir(f"ports/{export.port}"))
    nvmet.disallow_host(fs, export.nqn, export.names.host_nqn)
    nvmet.disable_namespace(fs, export.nqn, 1, while_linked=True)
    nvmet.remove_namespace(fs, export.nqn, 1)
    denied(errno.EBUSY, lambda: fs.rmdir(f"subsystems/{export.nqn}"))


def contract_the_security_of_a_port(bench: Bench) -> None:
    fs = bench.fs
    fs.mkdir("ports/7")
    port = "ports/7/"

    def says(tsas: str, treq: str) -> None:
        found = fs.read(f"{port}addr_tsas").strip(), fs.read(f"{port}addr_treq").strip()
        assert found == (tsas, treq), found

    denied(errno.EINVAL, lambda: fs.write(f"{port}addr_tsas", "tls1.3"))  # of no transport yet
    fs.write(f"{port}addr_trtype", "tcp")
    says("none", "not specified")
    denied(errno.EINVAL, lambda: fs.write(f"{port}addr_tsas", "tls1.2"))
    denied(errno.EINVAL, lambda: fs.write(f"{port}addr_treq", "bogus"))
    fs.write(f"{port}addr_tsas", "tls1.3")
    says("tls1.3", "required")
    denied(errno.EINVAL, lambda: fs.write(f"{port}addr_treq", "not specified"))
    fs.write(f"{port}addr_treq", "not required")
    fs.write(f"{port}addr_tsas", "tls1.3")
    says("tls1.3", "not required")
    fs.write(f"{port}addr_tsas", "none")
    says("none", "not specified")
    fs.write(f"{port}addr_tsas", "tls1.3")
    fs.write(f"{port}addr_trtype", "rdma")
    says("connected", "required")
    denied(errno.EINVAL, lambda: fs.write(f"{port}addr_tsas", "none"))


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
    low, high = (int(bench.fs.read(f"subsystems/{export.nqn}/attr_cntlid_{end}")) for end in ("min", "max"))
    assert (high - low, low > 1) == (63, True)
    port = state.ports[export.port]
    assert (port.transport, port.address, port.service) == ("tcp", bench.address, str(export.port))
    assert port.subsystems == {export.nqn}
    assert state.hosts == {export.names.host_nqn: NvmetHost(export.names.host_nqn, authenticated=True)}
    assert not port.tls


def contract_building_twice_changes_nothing(bench: Bench) -> None:
    export = Export(bench).up(bench.fs)
    before = nvmet.read_state(bench.fs)
    export.up(bench.fs)
    assert nvmet.read_state(bench.fs) == before


def contract_fencing_leaves_nothing(bench: Bench) -> None:
    export = Export(bench).up(bench.fs)
    export.down(bench.fs)
    state = nvmet.read_state(bench.fs)
    assert (dict(state.hosts), dict(state.subsystems), dict(state.ports)) == ({}, {}, {})
    export.down(bench.fs)


def contract_fencing_works_from_every_step_of_building(bench: Bench) -> None:
    for steps in range(8):
        export = Export(bench).up(bench.fs, steps)
        export.down(bench.fs)
        state = nvmet.read_state(bench.fs)
        assert (dict(state.hosts), dict(state.subsystems), dict(state.ports)) == ({}, {}, {}), steps


def contract_one_export_does_not_touch_another(bench: Bench) -> None:
    stays = Export(bench).up(bench.fs)
    before = nvmet.read_state(bench.fs)
    Export(bench).up(bench.fs).down(bench.fs)
    assert nvmet.read_state(bench.fs) == before
    assert bench.fs.listdir(f"ports/{stays.port}/subsystems") == [stays.nqn]


def contract_keys_are_hidden_and_never_changed(bench: Bench) -> None:
    fs, export = bench.fs, Export(bench)
    assert export.keys is not None
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


def contract_a_half_made_host_is_seen_and_completed(bench: Bench) -> None:
    fs, export = bench.fs, Export(bench)
    assert export.keys is not None
    host, path = export.names.host_nqn, f"hosts/{export.names.host_nqn}"

    def authenticated() -> bool:
        return nvmet.read_state(fs).hosts[host].authenticated

    for step in (
        lambda: fs.mkdir(path),
        lambda: fs.chmod(f"{path}/dhchap_key", 0o600),
        lambda: fs.chmod(f"{path}/dhchap_ctrl_key", 0o600),
        lambda: fs.write(f"{path}/dhchap_key", export.keys.host),
        lambda: fs.write(f"{path}/dhchap_ctrl_key", export.keys.controller),
        lambda: fs.write(f"{path}/dhchap_hash", "hmac(sha512)"),
    ):
        step()
        assert not authenticated()
    nvmet.create_host(fs, host, export.keys)
    assert authenticated()
    fs.chmod(f"{path}/dhchap_key", 0o644)  # whoever reads it may say to be this host
    assert not authenticated()
    nvmet.create_host(fs, host, export.keys)
    assert authenticated()


def contract_a_host_without_keys(bench: Bench) -> None:
    fs, export = bench.fs, Export(bench)
    keys, export.keys = export.keys, None
    export.up(fs)
    export.up(fs)
    state = nvmet.read_state(fs)
    assert state.hosts == {export.names.host_nqn: NvmetHost(export.names.host_nqn, authenticated=False)}
    assert state.ports[export.port].subsystems == {export.nqn}
    nvmet.create_host(fs, "nqn.h2", keys)
    error = raises(nvmet.ObjectDiffers, lambda: nvmet.create_host(fs, "nqn.h2", None))
    assert "DHHC" not in repr(error)
    assert nvmet.read_state(fs).hosts["nqn.h2"].authenticated


def contract_nothing_listens_where_a_host_lacks_its_keys(bench: Bench) -> None:
    fs, export = bench.fs, Export(bench)
    keys, export.keys = export.keys, None
    export.up(fs, 6)
    for more in (lambda: None, lambda: nvmet.create_host(fs, "nqn.h2", keys), lambda: fs.mkdir("hosts/nqn.h3")):
        more()
        raises(nvmet.OutOfOrder, lambda: nvmet.link(fs, export.port, export.nqn, authenticated=True))
    assert fs.listdir(f"ports/{export.port}/subsystems") == []
    export.keys = keys
    export.up(fs)
    assert fs.listdir(f"ports/{export.port}/subsystems") == [export.nqn]
    raises(nvmet.ObjectMissing, lambda: nvmet.link(fs, 9, export.nqn))


def contract_a_port_that_takes_only_tls(bench: Bench) -> None:
    fs, export = bench.fs, Export(bench, tls=True)
    export.up(fs)
    export.up(fs)
    port = nvmet.read_state(fs).ports[export.port]
    assert (port.transport, port.tls, port.subsystems) == ("tcp", True, {export.nqn})
    assert fs.read(f"ports/{export.port}/addr_treq").strip() == "required"
    raises(nvmet.ObjectDiffers, lambda: nvmet.create_port(fs, export.port, export.portal, tls=False))
    assert nvmet.read_state(fs).ports[export.port] == port
    nvmet.unlink_port(fs, export.port, export.nqn)
    nvmet.create_port(fs, export.port, export.portal, tls=False)
    assert not nvmet.read_state(fs).ports[export.port].tls
    fs.write(f"ports/{export.port}/addr_tsas", "tls1.3")
    fs.write(f"ports/{export.port}/addr_treq", "not required")
    assert not nvmet.read_state(fs).ports[export.port].tls  # it takes both
    nvmet.create_port(fs, export.port, export.portal, tls=True)
    assert nvmet.read_state(fs).ports[export.port].tls
    rdma = Portal("rdma", bench.address, 9)
    raises(nvmet.TlsRefused, lambda: nvmet.create_port(fs, 9, rdma, tls=True))
    assert 9 not in nvmet.read_state(fs).ports


def contract_a_port_for_rdma(bench: Bench) -> None:
    fs, export = bench.fs, Export(bench, transport="rdma")
    for _ in range(2):
        export.up(fs, 6)
    port = nvmet.read_state(fs).ports[export.port]
    assert (port.transport, port.address, port.service) == ("rdma", bench.address, str(export.port))
    assert (port.tls, port.subsystems) == (False, frozenset())
    raises(nvmet.TransportMissing, lambda: nvmet.create_port(fs, 9, Portal("pigeon", bench.address, 9)))


def contract_a_dead_device_is_replaced(bench: Bench) -> None:
    fs, export = bench.fs, Export(bench).up(bench.fs)
    new = bench.other
    raises(nvmet.ObjectDiffers, lambda: nvmet.replace_device(fs, export.nqn, 1, device=new, uuid=str(uuid4())))
    assert nvmet.read_state(fs).subsystems[export.nqn].namespaces[0].device == bench.device
    for device in (new, new, bench.device):
        nvmet.replace_device(fs, export.nqn, 1, device=device, uuid=export.volume_id)
        (namespace,) = nvmet.read_state(fs).subsystems[export.nqn].namespaces
        assert (namespace.device, namespace.enabled, namespace.uuid) == (device, True, export.volume_id)
    missing = "/dev/no-such-device"
    raises(nvmet.DeviceMissing, lambda: nvmet.replace_device(fs, export.nqn, 1, device=missing, uuid=export.volume_id))
    assert not nvmet.read_state(fs).subsystems[export.nqn].namespaces[0].enabled
    assert fs.listdir(f"ports/{export.port}/subsystems") == [export.nqn]
    nvmet.add_namespace(fs, export.nqn, 1, device=new, uuid=export.volume_id)  # the next pass, while it is linked
    nvmet.enable_namespace(fs, export.nqn, 1)
    (namespace,) = nvmet.read_state(fs).subsystems[export.nqn].namespaces
    assert (namespace.device, namespace.enabled) == (new, True)
    raises(nvmet.ObjectMissing, lambda: nvmet.replace_device(fs, export.nqn, 2, device=new, uuid=export.volume_id))


def contract_a_read_only_device_is_not_exported(bench: Bench) -> None:
    fs, export = bench.fs, Export(bench).up(bench.fs, 4)
    with bench.write_protected():
        denied(errno.EACCES, lambda: fs.write(f"subsystems/{export.nqn}/namespaces/1/enable", "1"))
        error = raises(nvmet.DeviceRefused, lambda: nvmet.enable_namespace(fs, export.nqn, 1))
        assert "read-only" in str(error)
    nvmet.enable_namespace(fs, export.nqn, 1)


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
