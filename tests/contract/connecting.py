"""What KubeFlash relies on of the initiator: only on a real kernel, over the loopback of one virtual server.

One server is target and consumer at once, with one consumer at a time: two host NQNs on one machine would merge.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
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
from kubeflash.host.initiator import Target, connect, connections, find, wait_for_device
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
    export = Export(bench).up(bench.fs)
    words = in_words(holders(bench.root, bench.disk))
    assert words == f"exported by nvmet subsystem {export.nqn} (namespace 1)", words
    nvmet.disable_namespace(bench.fs, export.nqn, 1, while_linked=True)
    assert in_words(holders(bench.root, bench.disk)).startswith("configured for export in")


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
    began = time.monotonic()
    error = raises(kind, lambda: connect(bench.root, goal, keys))
    assert "DHHC" not in repr(error)
    assert type(error) is kind
    assert time.monotonic() - began < 30
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


def contract_a_rebuilt_export_is_found_again(bench: Bench) -> None:
    with connected(bench) as (export, device):
        export.down(bench.fs)
        time.sleep(3)
        export.up(bench.fs)
        _wait(lambda: [item.state for item in find(bench.root, export.nqn)] == ["live"], 30)
        found = wait_for_device(bench.root, export.nqn, export.volume_id, timeout=10)
        assert Path(found.device or "") == device


def _wait(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to that in time"
        time.sleep(0.1)


CONTRACTS = [value for name, value in list(globals().items()) if name.startswith("contract_")]
