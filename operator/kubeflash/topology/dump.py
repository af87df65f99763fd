"""A description of a server in a file, of whatever format: told by its content. Pure."""

from __future__ import annotations

import codecs
import re

from kubeflash.topology import hwloc, lspci
from kubeflash.topology.errors import BadDump
from kubeflash.topology.pasted import unescaped, unpasted
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
_TOPOLOGY = re.compile(rb"(?:<!DOCTYPE topology[^<>]{0,200}>\s{0,200})?<topology[\s>]")
_END_OF_TOPOLOGY = b"</topology>"
_MARKUP = re.compile(rb"\s*<[?!a-zA-Z]")
_OTHERS = (
    (re.compile(rb"^[ \t>]{0,64}-(?:\+-)?\[[0-9a-f]{4,8}(?::[0-9a-f]{2})?\]-", re.MULTILINE), "lspci's tree (-t)"),
    (re.compile(rb"^[ \t>]{0,64}Machine(?: L#0)? \(", re.MULTILINE), "lstopo's text, not its XML"),
    (re.compile(rb"^[ \t>]{0,64}GPU0[ \t]{1,64}X[ \t]", re.MULTILINE), "nvidia-smi's matrix"),
)
_REMEDY = "make a dump with lstopo --whole-io topo.xml, or with lspci -vvv as root"


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
    if b"&lt;topology" in content and b"<topology" not in content:
        content = unescaped(content)
    start = _TOPOLOGY.search(content)
    if start is not None:
        return hwloc.parse(_alone(content, start.start()))
    text = unpasted(content)
    if lspci.recognises(text):
        return lspci.parse(text)
    if _MARKUP.match(content):
        return hwloc.parse(content)
    # further formats are told apart here
    if not content.strip():
        raise BadDump("it is empty")
    what = next((name for pattern, name in _OTHERS if pattern.search(text)), "neither hwloc XML nor lspci text")
    raise BadDump(f"it is {what}: {_REMEDY}")


def _alone(content: bytes, start: int) -> bytes:
    """The XML of hwloc without what stands around it, such as a prompt; each line keeps its number."""
    within = start > 0 and not content.startswith((b"<?", b"<!"))
    if within:
        content = b"\n" * content.count(b"\n", 0, start) + content[start:]
    head, end, after = content.rpartition(_END_OF_TOPOLOGY)
    after = after.strip()
    return head + end if end and after and (within or not after.startswith(b"<")) else content
