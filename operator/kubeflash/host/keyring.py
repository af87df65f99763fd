"""TLS keys in the kernel's `.nvme` keyring, by its own system calls: a key is never in an argument list.

The keyring belongs to the module nvme-keyring. It is root's: adding to it and unlinking from it needs no more. Reading
a key, or updating it, needs *possession* (keyrings(7)), so for as long as that takes the keyring is linked into the
keyring of this thread. A key that is unlinked ends no connection; connections hold their own reference.

Keys are found by reading the keyring and describing each: `/proc/keys` has whole descriptions too (6.12), but shows
what the keyring does not hold. Only the keyring itself is looked up there.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

from kubeflash.domain.names import is_ours
from kubeflash.domain.tlspsk import TlsPsk, names_of
from kubeflash.host.errors import HostError
from kubeflash.host.root import HostRoot

KEY_TYPE = "psk"
RING = ".nvme"
_THREAD_KEYRING = -1  # KEY_SPEC_THREAD_KEYRING
_DESCRIBE, _LINK, _UNLINK, _READ = 6, 8, 9, 11  # keyctl(2)
_CALLS: Mapping[str, tuple[int, int]] = {  # numbers of add_key and keyctl
    "x86_64": (248, 250),
    "aarch64": (217, 219),
}
_GONE = (errno.ENOKEY, errno.EKEYREVOKED, errno.EKEYEXPIRED, errno.ENOENT)


class KeyringError(HostError):
    """The kernel's keyring refused something."""


class KeyringMissing(KeyringError):
    """There is no `.nvme` keyring: the module that makes it is not loaded."""


class KeyNotAllowed(KeyringError):
    """This process may not use the kernel's keys: it runs without privileges, or its container forbids it."""


class KeyDiffers(KeyringError):
    """A key of that name is there and has other bytes. It is not changed under a connection: remove it first."""


class KernelKeys(Protocol):
    """The edge to the kernel's keys. All calls raise OSError as the kernel gave it."""

    def keyring(self, root: HostRoot) -> int:
        """The serial number of the `.nvme` keyring; FileNotFoundError when there is none."""

    def keys(self, ring: int) -> list[int]:
        """Serial numbers of the keys in a keyring."""

    def describe(self, serial: int) -> tuple[str, str]:
        """Type and description of a key."""

    def add(self, ring: int, description: str, payload: bytes) -> int:
        """Adds a key of type psk and returns its serial number."""

    def read(self, ring: int, serial: int) -> bytes:
        """What a key of a keyring holds."""

    def unlink(self, ring: int, serial: int) -> None:
        """Takes a key out of a keyring."""


class SystemCalls:
    """The kernel's own `KernelKeys`."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)

    def keyring(self, root: HostRoot) -> int:
        """The serial number of the `.nvme` keyring; FileNotFoundError when there is none."""
        for line in (root.proc / "keys").read_text(errors="surrogateescape").splitlines():
            fields = line.split(maxsplit=8)  # proc_keys(5)
            if len(fields) == 9 and fields[7] == "keyring" and fields[8].rpartition(":")[0] == RING:
                serial = int(fields[0], 16)
                return serial - (1 << 32) if serial >= 1 << 31 else serial
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), RING)

    def keys(self, ring: int) -> list[int]:
        """Serial numbers of the keys in a keyring."""
        content = self._fill(_READ, ring)
        return [int.from_bytes(content[at : at + 4], "little", signed=True) for at in range(0, len(content), 4)]

    def describe(self, serial: int) -> tuple[str, str]:
        """Type and description of a key."""
        text = self._fill(_DESCRIBE, serial).rstrip(b"\0").decode(errors="surrogateescape")
        kind, _, _, _, description = text.split(";", 4)
        return kind, description

    def add(self, ring: int, description: str, payload: bytes) -> int:
        """Adds a key of type psk and returns its serial number."""
        add_key = _numbers()[0]
        return self._call(add_key, KEY_TYPE.encode(), description.encode(), payload, len(payload), ring)

    def read(self, ring: int, serial: int) -> bytes:
        """What a key of a keyring holds."""
        with self._possessed(ring):
            return self._fill(_READ, serial)

    def unlink(self, ring: int, serial: int) -> None:
        """Takes a key out of a keyring."""
        self._control(_UNLINK, serial, ring)

    @contextmanager
    def _possessed(self, ring: int) -> Iterator[None]:
        self._control(_LINK, ring, _THREAD_KEYRING)
        try:
            yield
        finally:
            self._control(_UNLINK, ring, _THREAD_KEYRING)

    def _fill(self, operation: int, serial: int) -> bytes:
        """What an operation writes; it answers with the length that it has, or would have had."""
        size = 4096
        while True:
            buffer = ctypes.create_string_buffer(size)
            length = self._control(operation, serial, buffer, size)
            if length <= size:
                return buffer.raw[:length]
            size = length

    def _control(self, operation: int, *arguments: int | ctypes.Array[ctypes.c_char]) -> int:
        return self._call(_numbers()[1], operation, *arguments)

    def _call(self, number: int, *arguments: int | bytes | ctypes.Array[ctypes.c_char]) -> int:
        values = [ctypes.c_long(item) if isinstance(item, int) else item for item in arguments]
        result: int = self._libc.syscall(ctypes.c_long(number), *values)
        if result == -1:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        return result


def _numbers() -> tuple[int, int]:
    machine = platform.machine()
    if machine not in _CALLS:
        raise OSError(errno.ENOSYS, f"the numbers of the system calls for keys are not known for {machine}")
    return _CALLS[machine]


def add_psk(root: HostRoot, psk: TlsPsk, *, kernel: KernelKeys | None = None) -> int:
    """Puts a TLS PSK into the keyring, reads it back, and returns its serial number. Idempotent.

    Raises:
        KeyringMissing, KeyNotAllowed: see there.
        KeyDiffers: when a key of that identity is there with other bytes.
    """
    kernel = kernel or SystemCalls()
    with _kernel(f"the TLS key {psk.identity} cannot be put into the kernel's keyring"):
        ring = kernel.keyring(root)
        serial = next((item for item, identity in _listed(kernel, ring) if identity == psk.identity), None)
        if serial is None:
            serial = kernel.add(ring, psk.identity, psk.key)
        same = kernel.read(ring, serial) == psk.key
    if not same:
        raise KeyDiffers(f"the kernel has another TLS key called {psk.identity}: end what uses it, remove it first")
    return serial


def remove_psk(root: HostRoot, host_nqn: str, nqn: str, *, kernel: KernelKeys | None = None) -> None:
    """Takes every TLS key of this host and subsystem out of the keyring, whatever its bytes. Idempotent.

    A connection that uses one goes on; the next handshake fails.

    Raises:
        KeyNotAllowed, KeyringError: when one is still there.
    """
    kernel = kernel or SystemCalls()
    with _kernel(f"the TLS key of {nqn} cannot be removed from the kernel's keyring"):
        try:
            ring = kernel.keyring(root)
        except FileNotFoundError:
            return
        for serial in _keys_of(kernel, ring, host_nqn, nqn):
            try:
                kernel.unlink(ring, serial)
            except OSError as error:
                if error.errno not in _GONE:
                    raise
        left = _keys_of(kernel, ring, host_nqn, nqn)
    if left:
        raise KeyringError(f"the TLS key of {nqn} was taken out of the kernel's keyring and is still there")


def tls_keys(root: HostRoot, *, kernel: KernelKeys | None = None) -> frozenset[tuple[str, str]]:
    """Pairs of host NQN and subsystem NQN that have a TLS key here; KubeFlash's own alone. None without a keyring.

    Raises:
        KeyNotAllowed, KeyringError: when the keyring cannot be read.
    """
    kernel = kernel or SystemCalls()
    with _kernel("the kernel's keyring of NVMe cannot be read"):
        try:
            ring = kernel.keyring(root)
        except (FileNotFoundError, NotADirectoryError):
            return frozenset()
        pairs = [names_of(identity) for _, identity in _listed(kernel, ring)]
    return frozenset(pair for pair in pairs if pair is not None and is_ours(pair[0]) and is_ours(pair[1]))


def _keys_of(kernel: KernelKeys, ring: int, host_nqn: str, nqn: str) -> list[int]:
    return [serial for serial, identity in _listed(kernel, ring) if names_of(identity) == (host_nqn, nqn)]


def _listed(kernel: KernelKeys, ring: int) -> list[tuple[int, str]]:
    """Serial numbers and identities of the TLS keys in a keyring; what vanishes meanwhile is left out."""
    found = []
    for serial in kernel.keys(ring):
        try:
            kind, description = kernel.describe(serial)
        except OSError as error:
            if error.errno in _GONE:
                continue
            raise
        if kind == KEY_TYPE:
            found.append((serial, description))
    return found


@contextmanager
def _kernel(what: str) -> Iterator[None]:
    """Turns the kernel's error numbers into types; `what` holds an identity at most, never a key."""
    try:
        yield
    except OSError as error:
        reason = f"{what}: {error.strerror} ({errno.errorcode.get(error.errno or 0, str(error.errno))})"
        if error.errno == errno.ENOENT:
            raise KeyringMissing(
                f"{what}: there is no {RING} keyring: `modprobe nvme-tcp` (or nvme-keyring)"
            ) from error
        if error.errno == errno.ENODEV:
            raise KeyringMissing(f"{what}: the kernel knows no keys of type {KEY_TYPE}: `modprobe nvme-tcp`") from error
        if error.errno in (errno.EPERM, errno.EACCES, errno.ENOSYS):
            raise KeyNotAllowed(f"{reason}: root, and a container without a seccomp profile, is needed") from error
        if error.errno == errno.EDQUOT:
            raise KeyringError(f"{reason}: too many keys; see /proc/sys/kernel/keys/root_maxkeys") from error
        raise KeyringError(reason) from error
