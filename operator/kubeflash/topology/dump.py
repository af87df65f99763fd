"""A description of a server in a file, of whatever format: told by its content. Pure."""

from __future__ import annotations

import codecs
import re

from kubeflash.topology import hwloc, lspci
from kubeflash.topology.errors import BadDump
from kubeflash.topology.server import Listing

LIMIT = 64 << 20
"""Bytes that are read at most; the largest servers' dumps have some 3 MiB."""

_FOREIGN = (
    (b"\x1f\x8b", "gzip: unpack it first"),
    (b"\x28\xb5\x2f\xfd", "zstd: unpack it first"),
    (b"\xfd7zXZ\0", "xz: unpack it first"),
    (b"BZh", "bzip2: unpack it first"),
    (b"PK\x03\x04", "zip: unpack it first"),
    (b"\x7fELF", "an ELF program, not a dump"),
    (codecs.BOM_UTF16_LE, "UTF-16: save it as UTF-8"),
    (codecs.BOM_UTF16_BE, "UTF-16: save it as UTF-8"),
    (b"<\0", "UTF-16: save it as UTF-8"),
    (b"\0<", "UTF-16: save it as UTF-8"),
)
_XML = re.compile(rb"\s*<[?!a-zA-Z]")


def read_dump(content: bytes) -> Listing:
    """The server that a dump describes: hwloc's XML, or lspci's text.

    Raises:
        BadDump: when it is neither, too large, damaged, incomplete or hostile.
    """
    if len(content) > LIMIT:
        raise BadDump(f"it is larger than {LIMIT >> 20} MiB: that is no dump of a server")
    for magic, what in _FOREIGN:
        if content.startswith(magic):
            raise BadDump(f"it is {what}")
    content = content.removeprefix(codecs.BOM_UTF8)
    null = content.find(b"\0")
    if null >= 0:
        raise BadDump(f"it is binary: there is a NUL at byte {null}")
    if _XML.match(content):
        return hwloc.parse(content)
    if lspci.recognises(content):
        return lspci.parse(content)
    # further formats are told apart here
    raise BadDump("it is empty" if not content.strip() else "it is neither hwloc XML nor lspci text")
