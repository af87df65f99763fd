"""Keys and TLS on a real kernel, over the loopback of one virtual server with tlshd: one keyring for both ends."""

from __future__ import annotations

import os
import subprocess
import time
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from zlib import crc32

from contract.common import Skipped, raises, settle
from contract.connecting import target
from contract.exports import Bench, Export
from kubeflash.domain import dhchap, tlspsk
from kubeflash.domain.dhchap import DhchapKeys
from kubeflash.host import keyring, nvmet
from kubeflash.host.disconnect import disconnect
from kubeflash.host.initiator import Target, connect, find, wait_for_device
from kubeflash.host.initiator_errors import (
    ConnectFailed,
    HandshakeMissing,
    KeyRefused,
    NotAllowed,
    PortRefused,
    ServerUnreachable,
)

MIB = 1 << 20


@contextmanager
def secured(bench: Bench, *, device: str | None = None, dhchap_too: bool = True) -> Iterator[tuple[Export, Target]]:
    """An export that takes nothing but TLS, its key in the kernel, and who may connect to it."""
    if subprocess.run(["pgrep", "-x", "tlshd"], check=False, capture_output=True).returncode != 0:
        raise Skipped("tlshd does not run")
    export = Export(bench, tls=True)
    export.device = device or export.device
    if not dhchap_too:
        export.keys = None
    names = export.names
    psk = tlspsk.derive(tlspsk.generate(), names.host_nqn, names.nqn)
    serial = keyring.add_psk(bench.root, psk)
    export.up(bench.fs)
    try:
        yield export, replace(target(export), tls_key=serial)
    finally:
        disconnect(bench.root, export.nqn)
        export.down(bench.fs)
        keyring.remove_psk(bench.root, names.host_nqn, names.nqn)


def _use(bench: Bench, export: Export, goal: Target) -> None:
    """Connects, writes, reads what is on the disk, disconnects."""
    connect(bench.root, goal, export.keys)
    found = wait_for_device(bench.root, export.nqn, export.volume_id, timeout=20)
    settle()
    words = os.urandom(4096)
    fd = os.open(found.device or "", os.O_WRONLY)
    os.pwrite(fd, words, 8 * MIB)
    os.fsync(fd)
    os.close(fd)
    disconnect(bench.root, export.nqn)
    with Path(export.device).open("rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        file.seek(8 * MIB)
        assert file.read(4096) == words


def _refused(bench: Bench, kind: type[ConnectFailed], goal: Target, keys: DhchapKeys | None) -> None:
    """Refused with that error, or, for a wrong key, with the one of a server that hung up before it said why: 61 s."""
    began = time.monotonic()
    error = raises(ConnectFailed, lambda: connect(bench.root, goal, keys))
    hung_up = kind is KeyRefused and isinstance(error, NotAllowed)
    assert type(error) is kind or hung_up, repr(error)
    assert "DHHC" not in repr(error)
    assert time.monotonic() - began < (90 if hung_up else 30)
    assert find(bench.root, goal.nqn) == ()


# --- authentication ---


def contract_without_authentication(bench: Bench) -> None:
    export = Export(bench)
    export.keys = None
    _use(bench, export.up(bench.fs), target(export))


def contract_another_attachments_keys_are_refused(bench: Bench) -> None:
    mine, other = Export(bench).up(bench.fs), Export(bench).up(bench.fs)
    _refused(bench, KeyRefused, target(mine), other.keys)
    _refused(bench, KeyRefused, target(mine), None)
    _use(bench, mine, target(mine))


def contract_an_old_key_is_refused_after_the_export_was_made_anew(bench: Bench) -> None:
    export = Export(bench).up(bench.fs)
    old = export.keys
    _use(bench, export, target(export))
    export.down(bench.fs)
    export.keys = DhchapKeys(dhchap.generate(), dhchap.generate())
    export.up(bench.fs)
    _refused(bench, KeyRefused, target(export), old)
    _use(bench, export, target(export))


# --- TLS ---


def contract_tls_keys_are_as_nvme_cli_makes_them(bench: Bench) -> None:
    """Up to 2.14 nvme-cli derives otherwise than the specification says: `legacy`."""
    said = subprocess.run(["nvme", "version"], check=True, capture_output=True, text=True).stdout
    major, minor = (int(word) for word in said.split()[2].split(".")[:2])
    names, secret = Export(bench).names, tlspsk.generate()
    text = f"NVMeTLSkey-1:01:{b64encode(secret + crc32(secret).to_bytes(4, 'little')).decode()}:"
    words = ["--identity=1", f"--hostnqn={names.host_nqn}", f"--subsysnqn={names.nqn}", f"--keydata={text}"]
    ours = tlspsk.derive(secret, names.host_nqn, names.nqn, legacy=(major, minor) < (2, 15))
    try:
        shown = subprocess.run(["nvme", "check-tls-key", *words], check=True, capture_output=True, text=True).stdout
        assert shown.strip() == ours.identity, shown
        subprocess.run(["nvme", "check-tls-key", *words, "--insert"], check=True, capture_output=True)
        kernel = keyring.SystemCalls()
        ring = kernel.keyring(bench.root)
        (serial,) = [item for item in kernel.keys(ring) if kernel.describe(item) == ("psk", ours.identity)]
        assert kernel.read(ring, serial) == ours.key
        assert keyring.add_psk(bench.root, ours) == serial
    finally:
        keyring.remove_psk(bench.root, names.host_nqn, names.nqn)


def contract_the_kernels_keyring(bench: Bench) -> None:
    names = Export(bench).names
    pair, secret = (names.host_nqn, names.nqn), tlspsk.generate()
    psk = tlspsk.derive(secret, *pair)
    before = keyring.tls_keys(bench.root)
    serial = keyring.add_psk(bench.root, psk)
    try:
        assert keyring.add_psk(bench.root, psk) == serial
        assert keyring.tls_keys(bench.root) == before | {pair}
        error = raises(keyring.KeyDiffers, lambda: keyring.add_psk(bench.root, replace(psk, key=bytes(32))))
        assert secret.hex() not in repr(error)
        keyring.add_psk(bench.root, tlspsk.derive(tlspsk.generate(), *pair))
    finally:
        for _ in range(2):
            keyring.remove_psk(bench.root, *pair)
    assert keyring.tls_keys(bench.root) == before


def contract_tls_together_with_authentication(bench: Bench) -> None:
    with secured(bench) as (export, goal):
        connect(bench.root, goal, export.keys)
        (found,) = find(bench.root, export.nqn)
        key = bench.root.sys / "class" / "nvme" / f"nvme{found.instance}" / "tls_key"
        assert int(key.read_text(), 16) == goal.tls_key
        disconnect(bench.root, export.nqn)
        _use(bench, export, goal)
        _refused(bench, KeyRefused, goal, None)


def contract_tls_alone(bench: Bench) -> None:
    with secured(bench, dhchap_too=False) as (export, goal):
        _use(bench, export, goal)


def contract_who_does_not_speak_tls_is_refused(bench: Bench) -> None:
    with secured(bench) as (export, goal):
        _refused(bench, PortRefused, replace(goal, tls_key=None), export.keys)
        plain = Export(bench).up(bench.fs)
        _refused(bench, ServerUnreachable, replace(target(plain), tls_key=goal.tls_key), plain.keys)


def contract_a_tls_key_that_the_server_does_not_have_is_refused(bench: Bench) -> None:
    with secured(bench) as (export, goal):
        keyring.remove_psk(bench.root, export.names.host_nqn, export.nqn)
        _refused(bench, NotAllowed, goal, export.keys)


def contract_tls_does_not_say_which_consumer_it_is(bench: Bench) -> None:
    """nvmet (6.12) does not compare the names in the TLS key with those of the connection: only DH-HMAC-CHAP does."""
    with secured(bench) as (export, goal), secured(bench) as (other, other_goal):
        mixed = replace(goal, tls_key=other_goal.tls_key)
        assert other.nqn not in (mixed.nqn, mixed.host_nqn)
        _use(bench, export, mixed)
        _refused(bench, KeyRefused, mixed, None)  # other keys, too; but that takes up to 306 s, see initiator.py


def contract_tls_finds_a_rebuilt_export_again(bench: Bench) -> None:
    with secured(bench) as (export, goal):
        connect(bench.root, goal, export.keys)
        before = wait_for_device(bench.root, export.nqn, export.volume_id, timeout=20)
        settle()
        export.down(bench.fs)
        assert nvmet.read_state(bench.fs).subsystems == {}
        time.sleep(3)
        export.up(bench.fs)
        deadline = time.monotonic() + 40
        while [item.state for item in find(bench.root, export.nqn)] != ["live"]:
            assert time.monotonic() < deadline, find(bench.root, export.nqn)
            time.sleep(0.2)
        assert wait_for_device(bench.root, export.nqn, export.volume_id, timeout=20).device == before.device


def contract_without_tlshd_there_is_no_tls(bench: Bench) -> None:
    with secured(bench) as (export, goal):
        subprocess.run(["sv", "-w", "10", "stop", "tlshd"], check=True, capture_output=True)
        try:
            _refused(bench, HandshakeMissing, goal, export.keys)
        finally:
            subprocess.run(["sv", "-w", "10", "start", "tlshd"], check=True, capture_output=True)
            time.sleep(1)


CONTRACTS = [value for name, value in list(globals().items()) if name.startswith("contract_")]
