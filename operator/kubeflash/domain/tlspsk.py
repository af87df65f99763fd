"""Pre-shared keys of NVMe/TCP over TLS 1.3: made here, shown nowhere.

Source: NVM Express NVMe over TCP Transport Specification, revision 1.1, section 3.6.1 (PSK, PSK identity and their
derivation; from TP 8018); HKDF is RFC 5869, HKDF-Expand-Label RFC 8446 section 7.1. The hash is SHA-256 throughout.

    configured PSK  32 random bytes; what a seal holds
    retained PSK    of the configured one and the host's NQN
    identity        NVMe1R01 HOST-NQN NQN DIGEST: names the TLS PSK in the kernel's keyring and in the handshake
    TLS PSK         of the retained one and the digest: what the kernel gets

The kernel (6.12) takes identity and bytes as they are given and derives nothing: both ends must do alike. nvme-cli
before 2.15 does not: its HKDF-Expand-Label has the length least significant byte first, and label and context without
their lengths (later ones do that under `--compat`). `legacy` does the same, so that it can be compared.
"""

from __future__ import annotations

import hmac
import secrets
from base64 import b64encode
from dataclasses import dataclass, field
from hashlib import sha256

KEY_BYTES = 32
"""Of a configured PSK and of all that is derived of it."""

_VERSION, _HASH = "NVMe1R", "01"  # version 1 of the identity, a retained PSK, SHA-256


@dataclass(frozen=True)
class TlsPsk:
    """The TLS PSK of one host and one subsystem. The key never shows in `repr`.

    Attributes:
        identity: what it is called in the kernel's keyring; no secret.
        key: 32 bytes.
    """

    identity: str
    key: bytes = field(repr=False)


def generate() -> bytes:
    """A new configured PSK: 32 random bytes."""
    return secrets.token_bytes(KEY_BYTES)


def derive(configured: bytes, host_nqn: str, nqn: str, *, legacy: bool = False) -> TlsPsk:
    """The TLS PSK of a configured one.

    Args:
        configured: 32 bytes.
        host_nqn: the host.
        nqn: the subsystem.
        legacy: as nvme-cli before 2.15 derives it.

    Raises:
        ValueError: when it has another length, or a name is none; the message never holds the key.
    """
    if len(configured) != KEY_BYTES:
        raise ValueError(f"a configured TLS PSK has {KEY_BYTES} bytes, and this one {len(configured)}")
    for name in (host_nqn, nqn):
        if not name or name.split() != [name] or len(name) > 223:
            raise ValueError(f"{name!r} cannot be an NQN: it is empty, too long, or has a blank in it")
    retained = _expand(_extract(configured), "HostNQN", host_nqn, legacy=legacy)
    message = f"{host_nqn} {nqn} NVMe-over-Fabrics"
    digest = b64encode(hmac.digest(retained, message.encode(), sha256)).decode()
    key = _expand(_extract(retained), "nvme-tls-psk", f"{_HASH} {digest}", legacy=legacy)
    return TlsPsk(f"{_VERSION}{_HASH} {host_nqn} {nqn} {digest}", key)


def names_of(identity: str) -> tuple[str, str] | None:
    """Host NQN and subsystem NQN of an identity of any version and hash; None when it is none."""
    head, *words = identity.split(" ")
    if not head.startswith(("NVMe0", "NVMe1")) or len(words) not in (2, 3) or not all(words):
        return None
    return words[0], words[1]


def _extract(key: bytes) -> bytes:
    """HKDF-Extract with a salt of zeroes."""
    return hmac.digest(bytes(sha256().digest_size), key, sha256)


def _expand(key: bytes, label: str, context: str, *, legacy: bool) -> bytes:
    """HKDF-Expand-Label to one block, the size of the hash."""
    full, rest = f"tls13 {label}".encode(), context.encode()
    if legacy:
        info = KEY_BYTES.to_bytes(2, "little") + full + rest
    else:
        info = KEY_BYTES.to_bytes(2, "big") + bytes([len(full)]) + full + bytes([len(rest)]) + rest
    return hmac.digest(key, info + b"\x01", sha256)
