"""DH-HMAC-CHAP keys (NVMe in-band authentication): made here, shown nowhere.

The format is that of NVMe TP 8006 and `nvme gen-dhchap-key`: `DHHC-1:HH:BASE64:`, where HH says how the key was
transformed (00: not at all, 01 to 03: SHA-256, -384, -512) and BASE64 holds the key followed by its CRC-32, least
significant byte first. The kernel refuses a wrong CRC when it is used, not when it is written.
"""

from __future__ import annotations

import re
import secrets
from base64 import b64decode, b64encode
from binascii import Error as Base64Error
from dataclasses import dataclass, field
from zlib import crc32

KEY_BYTES = 32
_SHAPE = re.compile(r"DHHC-1:(0[0-3]):([A-Za-z0-9+/]+=*):")
_LENGTHS = {"00": (32, 48, 64), "01": (32,), "02": (48,), "03": (64,)}


@dataclass(frozen=True)
class DhchapKeys:
    """The keys of one attachment. They never show in `repr`, a log or an argument list.

    Attributes:
        host: by which the consumer proves itself to the server.
        controller: by which the server proves itself to the consumer.
    """

    host: str = field(repr=False)
    controller: str = field(repr=False)

    def __repr__(self) -> str:
        return "DhchapKeys(redacted)"

    __str__ = __repr__


def generate() -> str:
    """A new random key of 32 bytes, untransformed."""
    return encode(secrets.token_bytes(KEY_BYTES))


def encode(key: bytes) -> str:
    """The text of an untransformed key."""
    return f"DHHC-1:00:{b64encode(key + crc32(key).to_bytes(4, 'little')).decode()}:"


def check(key: str) -> None:
    """Proves that a key is one that the kernel will take.

    Raises:
        ValueError: when it is not; the message never holds the key.
    """
    match = _SHAPE.fullmatch(key)
    if match is None:
        raise ValueError("a DH-HMAC-CHAP key looks like DHHC-1:00:<base64>: and this is none")
    try:
        content = b64decode(match[2], validate=True)
    except Base64Error as error:
        raise ValueError("the base64 in the DH-HMAC-CHAP key is damaged") from error
    secret, checksum = content[:-4], content[-4:]
    if len(secret) not in _LENGTHS[match[1]]:
        raise ValueError(f"the DH-HMAC-CHAP key has {len(secret)} bytes, which its header does not allow")
    if crc32(secret).to_bytes(4, "little") != checksum:
        raise ValueError("the checksum in the DH-HMAC-CHAP key is wrong: it was damaged on the way")
