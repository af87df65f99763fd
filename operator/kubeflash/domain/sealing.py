"""DH-HMAC-CHAP keys sealed to a server: only the holder of its private key reads them (libsodium sealed boxes).

Keys go from the controller, which makes them, to two agents, through objects that many may read. A server that was
broken into opens only its own.
"""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from binascii import Error as Base64Error

from nacl.exceptions import CryptoError
from nacl.public import PrivateKey, PublicKey, SealedBox

from kubeflash.domain.dhchap import DhchapKeys


class SealBroken(Exception):
    """A sealed box cannot be opened with this server's private key, or a public key is none."""


def generate_private_key() -> bytes:
    """A new X25519 private key: 32 bytes."""
    return bytes(PrivateKey.generate())


def public_key(private: bytes) -> str:
    """The public key that goes with a private key, base64."""
    return b64encode(bytes(PrivateKey(private).public_key)).decode()


def seal(keys: DhchapKeys, public: str) -> str:
    """The keys, readable only with the private key that goes with `public` (base64); base64.

    Raises:
        SealBroken: when `public` is no X25519 public key.
    """
    try:
        box = SealedBox(PublicKey(b64decode(public, validate=True)))
    except (Base64Error, CryptoError, ValueError, TypeError) as error:
        raise SealBroken(f"{public!r} is not a server's public key: {error}") from error
    text = json.dumps({"host": keys.host, "controller": keys.controller}).encode()
    return b64encode(box.encrypt(text)).decode()


def unseal(sealed: str, private: bytes) -> DhchapKeys:
    """What `seal` sealed.

    Raises:
        SealBroken: when it was sealed to another key, or garbled. Such an attachment must be made anew.
    """
    try:
        content = json.loads(SealedBox(PrivateKey(private)).decrypt(b64decode(sealed, validate=True)))
        return DhchapKeys(host=content["host"], controller=content["controller"])
    except (Base64Error, CryptoError, ValueError, KeyError, TypeError) as error:
        raise SealBroken(
            "the keys were not sealed to this server's private key (was it lost?): delete the attachment, make it anew"
        ) from error
