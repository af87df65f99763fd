"""What KubeFlash relies on of the initiator: only on a real kernel, over the loopback of one virtual server.

One server is target and consumer at once, with one consumer at a time: two host NQNs on one machine would merge.
"""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from uuid import uuid4

from contract.common import GUID, claimed, mounted, opener, raises, reset, settle, volume
from contract.exports import Bench, Export
from kubeflash.domain import dhchap
from kubeflash.domain.dhchap import DhchapKeys
from kubeflash.host import gpt, nvmet
from kubeflash.host.blockdev import size_bytes
from kubeflash.host.disconnect import disconnect
from kubeflash.host.holders import holders, in_words
from kubeflash.host.initiator import Target, connect, connections, exchange, find, wait_for_device
from kubeflash.host.initiator_errors import (
    AlreadyConnected,
    ConnectFailed,
    DeviceHeld,
    DeviceNotSeen,
    KeyRefused,
    NotAllowed,
    OptionUnknown,
    PortRefused,
)
from kubeflash.host.pathwatch import PathWatch
from kubeflash.host.refusals import Reason, Refusal, RefusalLog

MIB = 1 << 20


def target(export: Export) -> Target:
    """Who connects to what."""
    names = export.names
    return Target(export.nqn, names.host_nqn, names.host_id, export.portal, reconnect_seconds=2, loss_seconds=60)


@contextmanager
def connected(bench: Bench, steps: int = 7) -> Iterator[tuple[Export, Path]]:
    """A built export with its consumer."""
    export = Export(bench).up(bench.fs, steps)
    connect(bench.root, target(export), export.keys)
    try:
        found = wait_for_device(bench.root, export.nqn, export.volume_id, timeout=20)
        settle()
        yield export, Path(found.device or "")
    finally:
        disconnect(bench.root, export.nqn)


def contract_connect_and_disconnect(bench: Bench) -> None:
    export = Export(bench).up(bench.fs)
    instance = connect(bench.root, target(export), export.keys)
    found = wait_for_device(bench.root, export.nqn, export.volume_id, timeout=20)
    assert found.instance == instance
    assert (found.state, found.transport, found.host_nqn) == ("live", "tcp", export.names.host_nqn)
    assert f"traddr={bench.address}" in found.address
    assert f"trsvcid={export.port}" in found.address
    assert found.uuid == export.volume_id
    assert found.bytes > 0
    assert found in connections(bench.root)
    settle()
    disconnect(bench.root, export.nqn)
    assert find(bench.root, export.nqn) == ()
    assert not Path(found.device or "").exists()
    disconnect(bench.root, export.nqn)
    disconnect(bench.root, "nqn.2026-01.io.kubeflash:subsystem:none")


def contract_local_ssds_are_no_connections(bench: Bench) -> None:
    assert connections(bench.root) == ()
    assert list((bench.root.sys / "class" / "nvme").iterdir())


def contract_what_is_written_is_on_the_disk(bench: Bench) -> None:
    words = os.urandom(4096)
    with connected(bench) as (_, device):
        fd = os.open(device, os.O_WRONLY)
        os.pwrite(fd, words, 8 * MIB)
        os.close(fd)
    assert bench.disk is not None
    fd = os.open(bench.disk, os.O_RDONLY | os.O_DIRECT)
    os.close(fd)
    with bench.disk.open("rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        file.seek(8 * MIB)
        assert file.read(4096) == words


def contract_a_grown_volume_is_seen_after_revalidating(bench: Bench) -> None:
    assert bench.disk is not None
    reset(bench.root, bench.disk)
    claimed(bench.root, bench.disk)
    part = volume()
    known = gpt.add_partition(bench.root, bench.disk, part, disk_guid=GUID)
    whole, bench.device = bench.device, str(bench.root.dev / known.device)
    try:
        with connected(bench) as (export, device):
            gpt.grow_partition(bench.root, bench.disk, part, disk_guid=GUID, new_bytes=2 * part.bytes)
            assert size_bytes(bench.root, device) == part.bytes
            nvmet.revalidate(bench.fs, export.nqn, 1)
            _wait(lambda: size_bytes(bench.root, device) == 2 * part.bytes, 20)
            export.down(bench.fs)
        settle()
    finally:
        bench.device = whole
        reset(bench.root, bench.disk)


def contract_an_export_is_a_holder(bench: Bench) -> None:
    assert bench.disk is not None
    disk = bench.disk
    export = Export(bench).up(bench.fs)
    # udev may still be looking at what the contract before has written: it is a holder, too, for a moment.
    expected = f"exported by nvmet subsystem {export.nqn} (namespace 1)"
    _wait(lambda: in_words(holders(bench.root, disk)) == expected, 20, lambda: in_words(holders(bench.root, disk)))
    nvmet.disable_namespace(bench.fs, export.nqn, 1, while_linked=True)
    assert in_words(holders(bench.root, disk)).startswith("configured for export in")


def contract_a_held_device_is_not_disconnected(bench: Bench) -> None:
    with connected(bench) as (export, device):
        with opener(device) as pid:
            error = raises(DeviceHeld, lambda: disconnect(bench.root, export.nqn))
            assert f"(pid {pid})" in str(error)
        with mounted(device) as folder:
            error = raises(DeviceHeld, lambda: disconnect(bench.root, export.nqn))
            assert f"mounted at {folder}" in str(error)
        assert [item.state for item in find(bench.root, export.nqn)] == ["live"]


def _fails(bench: Bench, kind: type[ConnectFailed], goal: Target, keys: DhchapKeys) -> None:
    error = raises(ConnectFailed, lambda: connect(bench.root, goal, keys))
    assert "DHHC" not in repr(error)
    # Where nvmet hangs up over a key before its answer is sent, the initiator waits for 60 s, and says EIO.
    assert type(error) in ((KeyRefused, NotAllowed) if kind is KeyRefused else (kind,))
    assert find(bench.root, goal.nqn) == ()


def contract_wrong_keys_are_refused(bench: Bench) -> None:
    export = Export(bench).up(bench.fs)
    _fails(bench, KeyRefused, target(export), replace(export.keys, host=dhchap.generate()))
    _fails(bench, KeyRefused, target(export), replace(export.keys, controller=dhchap.generate()))
    _fails(bench, KeyRefused, target(export), replace(export.keys, host="DHHC-1:00:damaged:"))


def contract_strangers_are_refused(bench: Bench) -> None:
    export = Export(bench).up(bench.fs)
    other = str(uuid4())
    stranger = replace(target(export), host_nqn=f"nqn.2026-01.io.kubeflash:host:{other}", host_id=other)
    _fails(bench, NotAllowed, stranger, export.keys)
    _fails(bench, NotAllowed, replace(target(export), nqn="nqn.2026-01.io.kubeflash:subsystem:none"), export.keys)


def contract_nothing_listens_before_the_link(bench: Bench) -> None:
    export = Export(bench).up(bench.fs, 6)
    _fails(bench, PortRefused, target(export), export.keys)


def contract_connecting_twice_is_said(bench: Bench) -> None:
    with connected(bench) as (export, _):
        raises(AlreadyConnected, lambda: connect(bench.root, target(export), export.keys))
        assert len(find(bench.root, export.nqn)) == 1
        mixed = replace(target(export), host_id=str(uuid4()))
        raises(OptionUnknown, lambda: connect(bench.root, mixed, export.keys))


def contract_a_second_device_with_the_uuid_is_not_taken(bench: Bench) -> None:
    with connected(bench) as (first, _):
        second = Export(bench)
        second.volume_id = first.volume_id
        second.up(bench.fs)
        connect(bench.root, target(second), second.keys)
        try:
            error = raises(DeviceNotSeen, lambda: wait_for_device(bench.root, second.nqn, second.volume_id, timeout=3))
            assert "no block device" in str(error)
        finally:
            disconnect(bench.root, second.nqn)


def contract_another_uuid_is_not_taken(bench: Bench) -> None:
    with connected(bench) as (export, _):
        wrong = str(uuid4())
        error = raises(DeviceNotSeen, lambda: wait_for_device(bench.root, export.nqn, wrong, timeout=1))
        assert "not the volume" in str(error)
    error = raises(DeviceNotSeen, lambda: wait_for_device(bench.root, export.nqn, export.volume_id, timeout=0.2))
    assert "not connected" in str(error)


def contract_a_fenced_consumer_can_be_disconnected(bench: Bench) -> None:
    with connected(bench) as (export, device):
        began = time.monotonic()
        export.down(bench.fs)
        assert time.monotonic() - began < 10, "the fence took too long"
        assert nvmet.read_state(bench.fs).subsystems == {}
        with opener(device):
            raises(DeviceHeld, lambda: disconnect(bench.root, export.nqn))
        began = time.monotonic()
        disconnect(bench.root, export.nqn)
        assert time.monotonic() - began < 20, "disconnecting took too long"


@contextmanager
def _reader(device: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that reads, past the page cache, until that fails; then it prints the error's number and ends."""
    code = (
        "import mmap, os, sys\n"
        f"fd = os.open({str(device)!r}, os.O_RDONLY | os.O_DIRECT)\n"
        "buffer = mmap.mmap(-1, 4096)\n"
        "print('reads', flush=True)\n"
        "while True:\n"
        "    try:\n"
        "        os.preadv(fd, [buffer], 0)\n"
        "    except OSError as error:\n"
        "        print(error.errno, flush=True)\n"
        "        break\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"reads\n"
        try:
            yield process
        finally:
            process.kill()


def _is_gone(bench: Bench, nqn: str, device: Path) -> bool:
    listed = (bench.root.sys / "class" / "block" / device.name).exists()
    return find(bench.root, nqn) == () and not listed and not device.exists()


def contract_an_abandoned_connection_ends_under_its_holders(bench: Bench) -> None:
    with connected(bench) as (export, device), _reader(device) as reader:
        held = os.open(device, os.O_RDWR)
        try:
            os.pwrite(held, b"only in the page cache", 8 * MIB)
            export.down(bench.fs)
            with opener(device):
                began = time.monotonic()
                disconnect(bench.root, export.nqn, abandoned=True)
                assert 10 <= time.monotonic() - began < 30, "it was too quick, or took too long"
                assert reader.stdout is not None
                assert reader.stdout.readline() == f"{errno.EIO}\n".encode()
                assert reader.wait(timeout=5) == 0
                assert time.monotonic() - began < 30
            assert _error(lambda: os.fsync(held)) == errno.EIO, "it was told that its data is safe"
            # the device has no size any more: what is asked of it from now on is behind its end
            assert _error(lambda: os.pwrite(held, bytes(4096), 0)) == errno.ENOSPC
        finally:
            os.close(held)
        assert _is_gone(bench, export.nqn, device)


def _error(call: Callable[[], object]) -> int | None:
    error = raises(OSError, call)
    return error.errno if isinstance(error, OSError) else None


def contract_an_abandoned_connection_ends_under_a_mounted_file_system(bench: Bench) -> None:
    with connected(bench) as (export, device):
        with mounted(device) as folder:
            (folder / "written").write_text("and not yet on the disk")
            export.down(bench.fs)
            began = time.monotonic()
            disconnect(bench.root, export.nqn, abandoned=True)
            assert time.monotonic() - began < 30, "disconnecting took too long"
            assert _is_gone(bench, export.nqn, device)
            raises(OSError, lambda: _written_through(folder / "new"))
        assert not folder.exists()


def _written_through(path: Path) -> None:
    with path.open("w") as file:
        file.write("new")
        file.flush()
        os.fsync(file.fileno())


def contract_an_abandoned_connection_that_is_live_stays(bench: Bench) -> None:
    with connected(bench) as (export, device):
        with opener(device) as pid:
            began = time.monotonic()
            error = raises(DeviceHeld, lambda: disconnect(bench.root, export.nqn, abandoned=True))
            assert f"(pid {pid})" in str(error)
            assert time.monotonic() - began < 8, "it waited though the connection is live"
        assert [item.state for item in find(bench.root, export.nqn)] == ["live"]
        disconnect(bench.root, export.nqn, abandoned=True)
        assert _is_gone(bench, export.nqn, device)


def contract_an_abandoned_connection_that_comes_back_stays(bench: Bench) -> None:
    with connected(bench) as (export, device), opener(device):
        export.down(bench.fs)
        with ThreadPoolExecutor() as aside:
            asked = aside.submit(raises, DeviceHeld, partial(disconnect, bench.root, export.nqn, abandoned=True))
            time.sleep(2)
            export.up(bench.fs)
            assert "open in" in str(asked.result(timeout=30))
        assert [item.state for item in find(bench.root, export.nqn)] == ["live"]


def contract_an_abandoned_connection_that_nobody_holds_ends_at_once(bench: Bench) -> None:
    with connected(bench) as (export, device):
        export.down(bench.fs)
        began = time.monotonic()
        disconnect(bench.root, export.nqn, abandoned=True)
        assert time.monotonic() - began < 8, "it waited for nobody"
        assert _is_gone(bench, export.nqn, device)


def contract_refusals_are_told(bench: Bench) -> None:
    export = Export(bench).up(bench.fs)
    refusals = RefusalLog(bench.root)
    names, other = export.names, str(uuid4())
    # on a busy server nvmet may close the connection before its answer is sent: EIO, after 60 s
    raises(ConnectFailed, lambda: connect(bench.root, target(export), replace(export.keys, host=dhchap.generate())))
    assert refusals.look() == (Refusal(Reason.KEY_REFUSED, names.host_nqn, export.nqn, 1),)
    odd = f"nqn.x for subsystem {export.nqn} not allowed \u00e9\x1b"
    _fails(bench, NotAllowed, replace(target(export), host_nqn="nqn.x", host_id=other), export.keys)
    _fails_as(bench, export, odd, str(uuid4()))
    assert [(item.reason, item.nqn) for item in refusals.look()] == [(Reason.NOT_ALLOWED, export.nqn)] * 2
    none = "nqn.2026-01.io.kubeflash:subsystem:none"
    _fails(bench, NotAllowed, replace(target(export), nqn=none), export.keys)
    _fails(bench, NotAllowed, replace(target(export), nqn="nqn.2024-01.com.other:x"), export.keys)
    assert refusals.look() == (Refusal(Reason.NO_SUBSYSTEM, "", none, 1),)
    connect(bench.root, target(export), export.keys)
    disconnect(bench.root, export.nqn)
    assert refusals.look() == ()


def _fails_as(bench: Bench, export: Export, host_nqn: str, host_id: str) -> None:
    """A stranger whose name has blanks in it, which `connect` would not take."""
    goal = target(export)
    line = (
        f"nqn={goal.nqn},transport=tcp,traddr={goal.portal.address},trsvcid={goal.portal.port},"
        f"hostnqn={host_nqn},hostid={host_id}"
    )
    error = raises(OSError, lambda: exchange(bench.root.dev / "nvme-fabrics", line))
    assert isinstance(error, OSError)
    assert error.errno == errno.EIO


def contract_a_lost_path_is_seen_without_a_uevent(bench: Bench) -> None:
    with connected(bench) as (export, _):
        paths = PathWatch(bench.root)
        assert [paths.changed(), paths.changed(), paths.any] == [False, False, True]
        export.down(bench.fs)
        _wait(paths.changed, 10)
        assert not paths.changed()
        export.up(bench.fs)
        _wait(paths.changed, 30)
        assert [item.state for item in find(bench.root, export.nqn)] == ["live"]


def contract_a_rebuilt_export_is_found_again(bench: Bench) -> None:
    with connected(bench) as (export, device):
        export.down(bench.fs)
        time.sleep(3)
        export.up(bench.fs)
        _wait(lambda: [item.state for item in find(bench.root, export.nqn)] == ["live"], 30)
        found = wait_for_device(bench.root, export.nqn, export.volume_id, timeout=10)
        assert Path(found.device or "") == device


def _wait(condition: Callable[[], bool], seconds: float, seen: Callable[[], object] = lambda: "") -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"it did not come to that in time: {seen()}"
        time.sleep(0.1)


CONTRACTS = [value for name, value in list(globals().items()) if name.startswith("contract_")]
