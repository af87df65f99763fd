"""The initiator on folders shaped like sysfs of Linux 6.12 with multipath, and on a fabrics device that plays."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from pathlib import Path

import pytest

from kubeflash.domain import dhchap
from kubeflash.domain.dhchap import DhchapKeys
from kubeflash.domain.fabric import Portal
from kubeflash.host import initiator_errors as errors
from kubeflash.host.initiator import Target, connect, connections, drop_path, find, spread, wait_for_device
from kubeflash.host.root import HostRoot

UID = "0b5cbb5e-3a5b-4a53-9a3b-0e4f6c7b7f01"
VOLUME = "5d6b4c40-3c43-4d4f-8a53-3f6c1b6f2a11"
NQN = f"nqn.2026-01.io.kubeflash:subsystem:{UID}"
GOAL = Target(NQN, f"nqn.2026-01.io.kubeflash:host:{UID}", UID, Portal("tcp", "10.20.0.4", 4427), 2, 600)
KEYS = DhchapKeys(dhchap.generate(), dhchap.generate())


def write(path: Path, **files: str) -> None:
    path.mkdir(parents=True, exist_ok=True)
    for name, value in files.items():
        (path / name).write_text(value + "\n")


@pytest.fixture
def root(tmp_path: Path) -> HostRoot:
    root = HostRoot(tmp_path)
    write(root.sys / "class/nvme/nvme0", transport="pcie", subsysnqn="nqn.vendor:ssd", state="live")
    write(root.sys / "class/nvme/nvme0/nvme0n1", size="8")
    write(
        root.sys / "class/nvme/nvme3",
        transport="tcp",
        subsysnqn=NQN,
        hostnqn=GOAL.host_nqn,
        state="live",
        address="traddr=10.20.0.4,trsvcid=4427,src_addr=10.20.0.5",
    )
    write(root.sys / "class/nvme/nvme3/nvme2c3n1")
    write(root.sys / "class/block/nvme2n1", size="2048", uuid=VOLUME.upper())
    return root


def test_connections(root: HostRoot) -> None:
    (found,) = connections(root)
    assert (found.instance, found.nqn, found.host_nqn, found.state) == (3, NQN, GOAL.host_nqn, "live")
    assert (found.transport, found.device, found.uuid, found.bytes) == ("tcp", "/dev/nvme2n1", VOLUME, 1 << 20)
    assert find(root, NQN) == (found,)
    assert find(root, NQN[:-1]) == ()


def test_without_multipath(root: HostRoot) -> None:
    (root.sys / "class/nvme/nvme3/nvme2c3n1").rename(root.sys / "class/nvme/nvme3/nvme3n1")
    write(root.sys / "class/block/nvme3n1", size="4096", uuid=VOLUME)
    assert connections(root)[0].device == "/dev/nvme3n1"


def test_live_without_a_device(root: HostRoot) -> None:
    (root.sys / "class/nvme/nvme3/nvme2c3n1").rmdir()
    (found,) = connections(root)
    assert (found.state, found.device, found.uuid, found.bytes) == ("live", None, None, 0)
    with pytest.raises(errors.DeviceNotSeen, match="no block device, perhaps since another connection"):
        wait_for_device(root, NQN, VOLUME, timeout=0)


def test_a_device_of_size_0_is_not_taken(root: HostRoot) -> None:
    write(root.sys / "class/block/nvme2n1", size="0")
    with pytest.raises(errors.DeviceNotSeen, match="0 bytes"):
        wait_for_device(root, NQN, VOLUME, timeout=0)


def test_no_initiator(tmp_path: Path) -> None:
    assert connections(HostRoot(tmp_path)) == ()
    with pytest.raises(errors.FabricsMissing, match="modprobe"):
        connect(HostRoot(tmp_path), GOAL, KEYS)


def test_the_line_and_the_instance(root: HostRoot) -> None:
    lines: list[str] = []

    def fabrics(device: Path, line: str) -> str:
        assert device == root.dev / "nvme-fabrics"
        lines.append(line)
        return "instance=7,cntlid=1\n"

    assert connect(root, GOAL, KEYS, fabrics=fabrics) == 7
    assert lines == [
        f"nqn={NQN},transport=tcp,traddr=10.20.0.4,trsvcid=4427,hostnqn={GOAL.host_nqn},hostid={UID},"
        f"reconnect_delay=2,ctrl_loss_tmo=600,keep_alive_tmo=5,"
        f"dhchap_secret={KEYS.host},dhchap_ctrl_secret={KEYS.controller}"
    ]


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOKEY, errors.KeyRefused),
        (errno.EKEYREJECTED, errors.KeyRefused),
        (errno.EPERM, errors.KeyRefused),
        (errno.EIO, errors.NotAllowed),
        (errno.ECONNREFUSED, errors.PortRefused),
        (errno.EALREADY, errors.AlreadyConnected),
        (errno.EINVAL, errors.OptionUnknown),
        (errno.ETIMEDOUT, errors.ServerUnreachable),
        (errno.EAGAIN, errors.ServerUnreachable),
        (errno.ESRCH, errors.HandshakeMissing),
        (errno.EHOSTUNREACH, errors.ServerUnreachable),
        (errno.ENOMEM, errors.ConnectFailed),
    ],
)
def test_errors_have_types_and_never_keys(root: HostRoot, number: int, kind: type[errors.ConnectFailed]) -> None:
    def fabrics(device: Path, line: str) -> str:
        assert "dhchap_secret=" in line
        raise OSError(number, os.strerror(number), str(device))

    with pytest.raises(errors.ConnectFailed) as caught:
        connect(root, GOAL, KEYS, fabrics=fabrics)
    assert type(caught.value) is kind
    assert errno.errorcode[number] in str(caught.value)
    assert "DHHC" not in repr(caught.value)


def test_options_cannot_be_smuggled_in(root: HostRoot) -> None:
    def fabrics(device: Path, line: str) -> str:
        raise AssertionError(f"{device}: {line}")

    for goal in (
        replace(GOAL, nqn="nqn.x,dhchap_secret="),
        replace(GOAL, host_id="a b"),
        replace(GOAL, portal=Portal("tcp", "", 1)),
    ):
        with pytest.raises(errors.ConnectFailed):
            connect(root, goal, KEYS, fabrics=fabrics)
    with pytest.raises(errors.KeyRefused):
        connect(root, GOAL, DhchapKeys(KEYS.host, "DHHC-1:00:x:"), fabrics=fabrics)


def _line(root: HostRoot, goal: Target, keys: DhchapKeys | None) -> str:
    lines: list[str] = []

    def fabrics(device: Path, line: str) -> str:
        lines.append(line)
        return "instance=7,cntlid=1\n"

    connect(root, goal, keys, fabrics=fabrics)
    return lines[0]


def test_without_authentication_there_are_no_keys(root: HostRoot) -> None:
    assert "dhchap" not in _line(root, GOAL, None)
    assert "tls" not in _line(root, GOAL, None)


def test_tls_is_a_serial_number(root: HostRoot) -> None:
    assert _line(root, replace(GOAL, tls_key=0x223A2F69), KEYS).endswith(f",tls_key={0x223A2F69},tls")
    with pytest.raises(errors.ConnectFailed, match="only tcp"):
        _line(root, replace(GOAL, tls_key=1, portal=Portal("rdma", "10.20.0.4", 4427)), KEYS)


def test_rdma_says_all_failures_alike(root: HostRoot) -> None:
    def fabrics(device: Path, line: str) -> str:
        assert "transport=rdma," in line
        raise OSError(errno.ECONNRESET, "reset")

    with pytest.raises(errors.PortRefused, match="rdma link"):
        connect(root, replace(GOAL, portal=Portal("rdma", "10.20.0.4", 4427)), KEYS, fabrics=fabrics)


def test_read_only(root: HostRoot) -> None:
    assert not connections(root)[0].read_only
    write(root.sys / "class/block/nvme2n1", ro="1")
    assert connections(root)[0].read_only


@pytest.fixture
def two_paths(root: HostRoot) -> HostRoot:
    write(root.sys / "class/nvme/nvme4", transport="tcp", subsysnqn=NQN, hostnqn=GOAL.host_nqn, state="live")
    write(root.sys / "class/nvme/nvme4/nvme2c4n1")
    write(root.sys / "class/nvme-subsystem/nvme-subsys2", subsysnqn=NQN, iopolicy="numa")
    write(root.sys / "class/nvme-subsystem/nvme-subsys0", subsysnqn="nqn.vendor:ssd", iopolicy="numa")
    return root


def test_io_is_spread_over_the_paths_of_one_subsystem(two_paths: HostRoot) -> None:
    for _ in range(2):
        spread(two_paths, NQN)
    folder = two_paths.sys / "class/nvme-subsystem"
    assert (folder / "nvme-subsys2/iopolicy").read_text().startswith("round-robin")
    assert (folder / "nvme-subsys0/iopolicy").read_text() == "numa\n"
    with pytest.raises(errors.PolicyRefused, match="not connected"):
        spread(two_paths, "nqn.none")
    (folder / "nvme-subsys2/iopolicy").unlink()
    with pytest.raises(errors.PolicyRefused, match="multipath"):
        spread(two_paths, NQN)


def test_the_last_path_is_not_dropped(two_paths: HostRoot) -> None:
    delete = two_paths.sys / "class/nvme/nvme3/delete_controller"
    delete.touch()
    for state in ("connecting", "deleting"):
        write(two_paths.sys / "class/nvme/nvme4", state=state)
        with pytest.raises(errors.LastPath, match="nvme3 is the only path"):
            drop_path(two_paths, NQN, 3)
    write(two_paths.sys / "class/nvme/nvme4", state="live", subsysnqn="nqn.other")
    with pytest.raises(errors.LastPath):
        drop_path(two_paths, NQN, 3)
    assert delete.read_text() == ""


def test_a_path_is_dropped_with_a_limit(two_paths: HostRoot) -> None:
    drop_path(two_paths, NQN, 9)  # gone
    drop_path(two_paths, "nqn.none", 3)  # another's by now
    delete = two_paths.sys / "class/nvme/nvme3/delete_controller"
    delete.touch()
    with pytest.raises(errors.DisconnectFailed, match="not deleted"):
        drop_path(two_paths, NQN, 3, timeout=0.3)
    assert delete.read_text() == "1"
    delete.unlink()
    delete.mkdir()
    with pytest.raises(errors.DisconnectFailed, match="cannot be deleted"):
        drop_path(two_paths, NQN, 3, timeout=5)


def test_a_device_is_waited_for_by_one_path(two_paths: HostRoot) -> None:
    for instance in (None, 3, 4):
        with pytest.raises(errors.DeviceNotSeen):  # nvme2n1 is no block device here
            wait_for_device(two_paths, NQN, VOLUME, timeout=0, instance=instance)
    with pytest.raises(errors.DeviceNotSeen, match="not connected"):
        wait_for_device(two_paths, NQN, VOLUME, timeout=0, instance=5)
