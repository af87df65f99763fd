"""Ways to a volume on a real kernel, in one virtual server: several paths, RDMA, an SSD put back, write protection."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from contract.common import mounted, raises, settle
from contract.connecting import connected, target
from contract.exports import Bench, Export, denied
from kubeflash.domain.fabric import Portal
from kubeflash.host import nvmet
from kubeflash.host.disconnect import disconnect
from kubeflash.host.initiator import connect, drop_path, find, spread, wait_for_device
from kubeflash.host.initiator_errors import LastPath, PolicyRefused, PortRefused, ServerUnreachable
from kubeflash.host.readonly import is_read_only, set_read_only

MIB = 1 << 20
SECOND_ADDRESS = "127.0.0.2"


# --- several paths ---


@contextmanager
def two_paths(bench: Bench) -> Iterator[tuple[Export, Path, tuple[int, int]]]:
    """An export with two portals, connected by both; the instances in that order."""
    export = Export(bench).up(bench.fs)
    second = Portal("tcp", SECOND_ADDRESS, bench.free_port())
    nvmet.create_port(bench.fs, second.port, second)
    nvmet.link(bench.fs, second.port, export.nqn)
    try:
        instances = []
        for portal in (export.portal, second):
            instance = connect(bench.root, replace(target(export), portal=portal), export.keys)
            wait_for_device(bench.root, export.nqn, export.volume_id, timeout=20, instance=instance)
            instances.append(instance)
        settle()
        spread(bench.root, export.nqn)
        found = find(bench.root, export.nqn)
        yield export, Path(found[0].device or ""), (instances[0], instances[1])
    finally:
        disconnect(bench.root, export.nqn)


class _Writer(threading.Thread):
    """Writes and reads back, all the time; `error` is the first thing that went wrong."""

    def __init__(self, device: Path) -> None:
        super().__init__(daemon=True)
        self.rounds, self.error, self.end = 0, "", False
        self._device = device
        self.start()

    def run(self) -> None:
        fd = os.open(self._device, os.O_RDWR | os.O_SYNC)
        try:
            while not self.end:
                words = os.urandom(4096)
                at = MIB + 4096 * (self.rounds % 256)
                os.pwrite(fd, words, at)
                os.posix_fadvise(fd, at, 4096, os.POSIX_FADV_DONTNEED)
                if os.pread(fd, 4096, at) != words:
                    self.error = f"round {self.rounds}: other bytes came back"
                    return
                self.rounds += 1
        except OSError as error:
            self.error = f"round {self.rounds}: {error}"
        finally:
            os.close(fd)

    def goes_on(self, rounds: int = 20) -> None:
        """Waits for so many rounds more."""
        wanted, deadline = self.rounds + rounds, time.monotonic() + 40
        while self.rounds < wanted:
            assert not self.error, self.error
            assert time.monotonic() < deadline, f"it hangs in round {self.rounds}"
            time.sleep(0.05)

    def stop(self) -> None:
        self.end = True
        self.join(20)
        assert not self.is_alive()
        assert not self.error, self.error


def contract_two_portals_are_two_paths_of_one_device(bench: Bench) -> None:
    with two_paths(bench) as (export, device, instances):
        found = find(bench.root, export.nqn)
        assert sorted(item.instance for item in found) == sorted(instances)
        assert {item.device for item in found} == {str(device)}
        assert {item.state for item in found} == {"live"}
        by_instance = {item.instance: item.portal for item in found}
        assert by_instance[instances[0]] == export.portal
        assert (by_instance[instances[1]] or export.portal).address == SECOND_ADDRESS
        (policy,) = [
            (item / "iopolicy").read_text().strip()
            for item in (bench.root.sys / "class" / "nvme-subsystem").iterdir()
            if (item / "subsysnqn").read_text().strip() == export.nqn
        ]
        assert policy == "round-robin"
        before = [_done(bench, instance) for instance in instances]
        writer = _Writer(device)
        writer.goes_on(40)
        writer.stop()
        after = [_done(bench, instance) for instance in instances]
        assert all(now > then for now, then in zip(after, before, strict=True)), (before, after)
        spread(bench.root, export.nqn)
    raises(PolicyRefused, lambda: spread(bench.root, export.nqn))


def _done(bench: Bench, instance: int) -> int:
    """Requests that went over a path."""
    (stat,) = (bench.root.sys / "class" / "nvme" / f"nvme{instance}").glob("nvme*c*n*/stat")
    fields = stat.read_text().split()
    return int(fields[0]) + int(fields[4])


def contract_one_path_is_dropped_while_io_goes_on(bench: Bench) -> None:
    with two_paths(bench) as (export, device, instances):
        writer = _Writer(device)
        try:
            writer.goes_on()
            drop_path(bench.root, export.nqn, instances[0])
            assert [item.instance for item in find(bench.root, export.nqn)] == [instances[1]]
            writer.goes_on()
            drop_path(bench.root, export.nqn, instances[0])  # gone already
            error = raises(LastPath, lambda: drop_path(bench.root, export.nqn, instances[1]))
            assert "only path" in str(error)
            drop_path(bench.root, "nqn.2026-01.io.kubeflash:subsystem:none", instances[1])
            writer.goes_on()
            again = connect(bench.root, target(export), export.keys)
            wait_for_device(bench.root, export.nqn, export.volume_id, timeout=20, instance=again)
            writer.goes_on()
        finally:
            writer.stop()


def contract_a_path_whose_server_ends_it_does_not_stop_io(bench: Bench) -> None:
    with two_paths(bench) as (export, device, instances):
        writer = _Writer(device)
        try:
            writer.goes_on()
            nvmet.unlink_port(bench.fs, export.port, export.nqn)
            writer.goes_on(60)
            states = {item.instance: item.state for item in find(bench.root, export.nqn)}
            assert states[instances[1]] == "live", states
            raises(LastPath, lambda: drop_path(bench.root, export.nqn, instances[1]))
            drop_path(bench.root, export.nqn, instances[0], timeout=30)
            writer.goes_on()
        finally:
            writer.stop()


def contract_a_rebuilt_export_is_reached_by_a_new_portal_while_the_old_one_does_not_answer(bench: Bench) -> None:
    """As after a reboot when somebody else has the port: nvmet begins to count its controllers anew."""
    with connected(bench) as (export, device):
        writer = _Writer(device)
        writer.goes_on()
        before = export.port, find(bench.root, export.nqn)[0].instance
        export.down(bench.fs)
        export.port = bench.free_port()
        export.portal = Portal("tcp", bench.address, export.port)
        export.up(bench.fs)
        instance = connect(bench.root, target(export), export.keys)
        wait_for_device(bench.root, export.nqn, export.volume_id, timeout=20, instance=instance)
        writer.goes_on()
        drop_path(bench.root, export.nqn, before[1], timeout=30)
        writer.goes_on()
        writer.stop()


# --- dead addresses ---


def contract_a_dead_address_is_given_up_in_seconds(bench: Bench) -> None:
    export = Export(bench)
    for address in ("192.0.2.1", bench.address.rpartition(".")[0] + ".247"):
        began = time.monotonic()
        goal = replace(target(export), portal=Portal("tcp", address, export.port))
        raises(ServerUnreachable, lambda goal=goal: connect(bench.root, goal, export.keys))
        assert time.monotonic() - began < 8  # 3.2 s: the kernel's NVMe/TCP repeats its SYN once
    with socket.create_server((bench.address, export.port)):
        began = time.monotonic()
        raises(ServerUnreachable, lambda: connect(bench.root, target(export), export.keys))
        assert time.monotonic() - began < 20  # 10 s: its limit for the first answer


# --- RDMA ---


@contextmanager
def soft_roce(bench: Bench) -> Iterator[None]:
    """An RDMA device in software on the interface that has the bench's address."""
    subprocess.run(["modprobe", "-a", "rdma_rxe", "nvme-rdma", "nvmet-rdma"], check=True)
    interface = subprocess.run(
        ["ip", "-o", "addr", "show", "to", bench.address], check=True, capture_output=True, text=True
    ).stdout.split()[1]
    subprocess.run(["rdma", "link", "add", "rxe0", "type", "rxe", "netdev", interface], check=True)
    try:
        yield
    finally:
        subprocess.run(["rdma", "link", "del", "rxe0"], check=True)


def contract_rdma(bench: Bench) -> None:
    with soft_roce(bench):
        export = Export(bench, transport="rdma")
        export.up(bench.fs, 6)
        error = raises(PortRefused, lambda: connect(bench.root, target(export), export.keys))
        assert "RDMA" in str(error)
        export.up(bench.fs)
        connect(bench.root, target(export), export.keys)
        try:
            found = wait_for_device(bench.root, export.nqn, export.volume_id, timeout=20)
            settle()
            assert (found.transport, found.portal) == ("rdma", export.portal)
            writer = _Writer(Path(found.device or ""))
            writer.goes_on()
            writer.stop()
        finally:
            disconnect(bench.root, export.nqn)
        nowhere = bench.free_port()
        nvmet.create_port(bench.fs, nowhere, Portal("rdma", "192.0.2.1", nowhere))
        raises(nvmet.AddressNotUp, lambda: nvmet.link(bench.fs, nowhere, export.nqn))
        other = bench.free_port()
        nvmet.create_port(bench.fs, other, export.portal)
        raises(nvmet.PortTaken, lambda: nvmet.link(bench.fs, other, export.nqn))
        export.down(bench.fs)


# --- an SSD that was put back ---


def contract_a_replaced_device_reaches_its_consumer(bench: Bench) -> None:
    with connected(bench) as (export, _):
        nvmet.replace_device(bench.fs, export.nqn, 1, device=bench.other, uuid=export.volume_id)
        _usable(bench, export)
        nvmet.disable_namespace(bench.fs, export.nqn, 1, while_linked=True)  # as a crash in between leaves it
        deadline = time.monotonic() + 20
        while any(item.device for item in find(bench.root, export.nqn)):
            assert time.monotonic() < deadline, "the consumer still has a device"
            time.sleep(0.1)
        assert [item.state for item in find(bench.root, export.nqn)] == ["live"]
        nvmet.add_namespace(bench.fs, export.nqn, 1, device=bench.device, uuid=export.volume_id)
        nvmet.enable_namespace(bench.fs, export.nqn, 1)
        _usable(bench, export)


def _usable(bench: Bench, export: Export) -> None:
    found = wait_for_device(bench.root, export.nqn, export.volume_id, timeout=20)
    settle()
    assert found.state == "live"
    writer = _Writer(Path(found.device or ""))
    writer.goes_on(3)
    writer.stop()


# --- write protection ---


def contract_a_read_only_device_refuses_writes(bench: Bench) -> None:
    with connected(bench) as (export, device):
        subprocess.run(["mkfs.ext4", "-q", "-F", str(device)], check=True)
        settle()
        fd = os.open(device, os.O_RDWR)
        try:
            for _ in range(2):
                set_read_only(device, value=True)
            assert is_read_only(bench.root, device.name)
            assert [item.read_only for item in find(bench.root, export.nqn)] == [True]
            denied(errno.EPERM, lambda: os.pwrite(fd, bytes(4096), MIB))
            denied(errno.EPERM, lambda: _write_anew(device))
            mount = ["mount", "--read-write", "-t", "ext4", str(device), "/mnt"]
            assert subprocess.run(mount, capture_output=True, check=False).returncode != 0
            subprocess.run(["mount", "--read-only", "-t", "ext4", str(device), "/mnt"], check=True)
            subprocess.run(["umount", "/mnt"], check=True)
            assert os.pread(fd, 4096, MIB)
            set_read_only(device, value=False)
            assert [item.read_only for item in find(bench.root, export.nqn)] == [False]
            os.pwrite(fd, bytes(4096), MIB)
        finally:
            os.close(fd)


def _write_anew(device: Path) -> None:
    """Opens it for writing, which the kernel allows, and writes."""
    fd = os.open(device, os.O_RDWR)
    try:
        os.pwrite(fd, bytes(4096), MIB)
    finally:
        os.close(fd)


def contract_write_protection_outlives_a_reconnect(bench: Bench) -> None:
    with connected(bench) as (export, device):
        set_read_only(device, value=True)
        export.down(bench.fs)
        time.sleep(3)
        export.up(bench.fs)
        deadline = time.monotonic() + 30
        while [item.state for item in find(bench.root, export.nqn)] != ["live"]:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        found = wait_for_device(bench.root, export.nqn, export.volume_id, timeout=20)
        assert (found.device, found.read_only) == (str(device), True)
        denied(errno.EPERM, lambda: _write_anew(device))


def contract_write_protection_comes_too_late_for_a_mount(bench: Bench) -> None:
    """What is mounted writable already goes on writing: the kernel only warns."""
    with connected(bench) as (_, device):
        with mounted(device) as folder:
            set_read_only(device, value=True)
            file = Path(folder) / "file"
            with file.open("wb") as stream:
                stream.write(b"words")
                os.fsync(stream.fileno())
            assert file.read_bytes() == b"words"
        set_read_only(device, value=False)


CONTRACTS = [value for name, value in list(globals().items()) if name.startswith("contract_")]
