"""An export's keys sealed to a server: only the holder of its private key reads them (libsodium sealed boxes).

Keys go from the controller, which makes them, to two agents, through objects that many may read. A server that was
broken into opens only its own.
"""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from binascii import Error as Base64Error
from dataclasses import dataclass, field

from nacl.exceptions import CryptoError
from nacl.public import PrivateKey, PublicKey, SealedBox

from kubeflash.domain.dhchap import DhchapKeys


@dataclass(frozen=True)
class ExportKeys:
    """The secrets of one attachment. They never show in `repr`, a log or an argument list.

    Attributes:
        dhchap: keys of authentication; None where it is not used.
        psk: the configured pre-shared key of TLS, 32 bytes; None where it is not used.
    """

    dhchap: DhchapKeys | None = None
    psk: bytes | None = field(default=None, repr=False)

    def __repr__(self) -> str:
        return "ExportKeys(redacted)"

    __str__ = __repr__


class SealBroken(Exception):
    """A sealed box cannot be opened with this server's private key, or a public key is none."""


def generate_private_key() -> bytes:
    """A new X25519 private key: 32 bytes."""
    return bytes(PrivateKey.generate())


def public_key(private: bytes) -> str:
    """The public key that goes with a private key, base64."""
    return b64encode(bytes(PrivateKey(private).public_key)).decode()


def seal(keys: ExportKeys, public: str) -> str:
    """The keys, readable only with the private key that goes with `public` (base64); base64.

    Raises:
        SealBroken: when `public` is no X25519 public key.
    """
    try:
        box = SealedBox(PublicKey(b64decode(public, validate=True)))
    except (Base64Error, CryptoError, ValueError, TypeError) as error:
        raise SealBroken(f"{public!r} is not a server's public key: {error}") from error
    content: dict[str, str] = {}
    if keys.dhchap is not None:
        content |= {"host": keys.dhchap.host, "controller": keys.dhchap.controller}
    if keys.psk is not None:
        content["psk"] = b64encode(keys.psk).decode()
    text = json.dumps(content).encode()
    return b64encode(box.encrypt(text)).decode()


def unseal(sealed: str, private: bytes) -> ExportKeys:
    """What `seal` sealed.

    Raises:
        SealBroken: when it was sealed to another key, or garbled. Such an attachment must be made anew.
    """
    try:
        content = json.loads(SealedBox(PrivateKey(private)).decrypt(b64decode(sealed, validate=True)))
        psk = b64decode(content["psk"], validate=True) if "psk" in content else None
        dhchap = DhchapKeys(host=content["host"], controller=content["controller"]) if "host" in content else None
        return ExportKeys(dhchap, psk)
    except (Base64Error, CryptoError, ValueError, KeyError, TypeError) as error:
        raise SealBroken(
            "the keys were not sealed to this server's private key (was it lost?): delete the attachment, make it anew"
        ) from error
