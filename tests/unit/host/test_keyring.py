"""The kernel's keyring on a kernel that plays; `contract.securing` has the real one."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from kubeflash.domain import tlspsk
from kubeflash.domain.names import export_identity
from kubeflash.domain.tlspsk import TlsPsk, derive
from kubeflash.host import keyring
from kubeflash.host.keyring import SystemCalls, add_psk, remove_psk, tls_keys
from kubeflash.host.root import HostRoot

NAMES = export_identity("0b5cbb5e-3a5b-4a53-9a3b-0e4f6c7b7f01")
PSK = derive(tlspsk.generate(), NAMES.host_nqn, NAMES.nqn)
ROOT = HostRoot(Path("/nowhere"))
PROC_KEYS = """01b8952e I------     2 perm 1f0b0000     0     0 keyring   .machine: empty
2b4d7a31 I--Q---     1 perm 3b010000     0     0 psk       NVMe1R01 nqn.h .nvme: 32
223a2f69 I------     1 perm 1f1f0000     0     0 keyring   .nvme: 1
"""


class Kernel:
    """A keyring; adding over a key that is there replaces it, as the real one does without possession."""

    def __init__(self) -> None:
        self.held: dict[int, tuple[str, str, bytes]] = {7: ("user", "a stranger's", b"x")}
        self.error: int | None = None
        self.vanishing: set[int] = set()

    def keyring(self, root: HostRoot) -> int:
        if self.error is not None:
            raise OSError(self.error, os.strerror(self.error))
        return 1

    def keys(self, ring: int) -> list[int]:
        return [*self.held, *self.vanishing]

    def describe(self, serial: int) -> tuple[str, str]:
        if serial in self.vanishing:
            raise OSError(errno.EKEYREVOKED, "gone")
        return self.held[serial][:2]

    def add(self, ring: int, description: str, payload: bytes) -> int:
        serial = max(self.held) + 1
        self.held[serial] = ("psk", description, payload)
        return serial

    def read(self, ring: int, serial: int) -> bytes:
        return self.held[serial][2]

    def unlink(self, ring: int, serial: int) -> None:
        del self.held[serial]


def test_a_key_is_added_once() -> None:
    kernel = Kernel()
    kernel.vanishing.add(99)
    serial = add_psk(ROOT, PSK, kernel=kernel)
    assert add_psk(ROOT, PSK, kernel=kernel) == serial
    assert kernel.held[serial] == ("psk", PSK.identity, PSK.key)
    with pytest.raises(keyring.KeyDiffers, match="remove it first") as caught:
        add_psk(ROOT, TlsPsk(PSK.identity, bytes(32)), kernel=kernel)
    assert PSK.key.hex() not in repr(caught.value)


def test_all_keys_of_an_export_are_removed_and_nobody_elses() -> None:
    kernel = Kernel()
    strangers = derive(tlspsk.generate(), "nqn.2014-08.org.nvmexpress:uuid:1", "nqn.theirs")
    for psk in (PSK, derive(tlspsk.generate(), NAMES.host_nqn, NAMES.nqn), strangers):
        add_psk(ROOT, psk, kernel=kernel)
    assert tls_keys(ROOT, kernel=kernel) == {(NAMES.host_nqn, NAMES.nqn)}
    for _ in range(2):
        remove_psk(ROOT, NAMES.host_nqn, NAMES.nqn, kernel=kernel)
    assert tls_keys(ROOT, kernel=kernel) == frozenset()
    assert [item[1] for item in kernel.held.values()] == ["a stranger's", strangers.identity]


def test_without_a_keyring() -> None:
    kernel = Kernel()
    kernel.error = errno.ENOENT
    assert tls_keys(ROOT, kernel=kernel) == frozenset()
    remove_psk(ROOT, NAMES.host_nqn, NAMES.nqn, kernel=kernel)
    with pytest.raises(keyring.KeyringMissing, match="modprobe"):
        add_psk(ROOT, PSK, kernel=kernel)


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.EPERM, keyring.KeyNotAllowed),
        (errno.ENOSYS, keyring.KeyNotAllowed),
        (errno.ENODEV, keyring.KeyringMissing),
        (errno.EDQUOT, keyring.KeyringError),
        (errno.ENOMEM, keyring.KeyringError),
    ],
)
def test_errors_have_types(number: int, kind: type[keyring.KeyringError]) -> None:
    kernel = Kernel()
    kernel.error = number
    for call in (
        lambda: add_psk(ROOT, PSK, kernel=kernel),
        lambda: remove_psk(ROOT, NAMES.host_nqn, NAMES.nqn, kernel=kernel),
        lambda: tls_keys(ROOT, kernel=kernel),
    ):
        with pytest.raises(keyring.KeyringError) as caught:
            call()
        assert type(caught.value) is kind


def test_the_keyring_is_looked_up(tmp_path: Path) -> None:
    root = HostRoot(tmp_path)
    assert tls_keys(root) == frozenset()
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "keys").write_text(PROC_KEYS)
    assert SystemCalls().keyring(root) == 0x223A2F69
    (tmp_path / "proc" / "keys").write_text(PROC_KEYS.replace("keyring   .nvme", "keyring   .nvme2"))
    with pytest.raises(FileNotFoundError):
        SystemCalls().keyring(root)
