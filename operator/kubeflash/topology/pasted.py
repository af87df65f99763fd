"""What terminals, mails and web pages do to text, undone: dumps are often copied out of one. Pure.

What is undone: colours, no-break spaces, HTML's tags and entities, `> ` before quoted lines, an indent of the whole.
"""

from __future__ import annotations

import re
from collections import Counter

from kubeflash.topology.errors import BadDump

_MOST_LINES = 1_000_000  # a server with 1000 functions has 80,000

_COLOUR = re.compile(rb"\x1b\[[0-9;?]{0,32}[A-Za-z]")
_TAG = re.compile(rb"</?(?:a|b|blockquote|br|code|details|div|font|i|p|pre|span|summary|tt)\b[^<>\n]{0,200}>")
_ENTITY = re.compile(rb"&(amp|lt|gt|quot|nbsp|#39|#x27|#160);")
_ENTITIES = {
    b"amp": b"&", b"lt": b"<", b"gt": b">", b"quot": b'"', b"nbsp": b" ", b"#39": b"'", b"#x27": b"'", b"#160": b" ",
}  # fmt: skip
_BEFORE_DEVICE = re.compile(
    rb"^((?:[ \t]{0,8}>){0,8})([ \t]{0,64})"
    rb"(?:Slot:[ \t]*|Device:[ \t]*)?(?:[0-9a-f]{4,8}:)?[0-9a-f]{2}:[0-9a-f]{2}\.[0-7](?:[ /\r]|$)",
    re.MULTILINE,
)


def unescaped(content: bytes) -> bytes:
    """The text that HTML with the usual entities stands for."""
    return _ENTITY.sub(lambda match: _ENTITIES[match[1]], content)


def unpasted(content: bytes) -> bytes:
    """The lines of lspci's text as lspci wrote them, as far as that can be told; the same number of lines.

    Raises:
        BadDump: when it has more lines than any server's.
    """
    if b"\n" not in content:
        content = content.replace(b"\r", b"\n")
    if content.count(b"\n") >= _MOST_LINES:
        raise BadDump(f"it has more than {_MOST_LINES} lines: that is no server's lspci")
    content = _COLOUR.sub(b"", content) if b"\x1b" in content else content
    content = _TAG.sub(b"", content)
    content = unescaped(content).replace(b"\xc2\xa0", b" ")
    before = Counter((match[1].count(b">"), match[2]) for match in _BEFORE_DEVICE.finditer(content))
    if not before or before[0, b""] == max(before.values()):
        return content
    quotes, indent = max(before, key=lambda one: before[one])
    # lines without the whole of it are left as they are: they are what stands around the dump
    quoted = re.compile(rb"^(?:[ \t]{0,8}>[ ]?){%d}" % quotes, re.MULTILINE)
    content = quoted.sub(b"", content) if quotes else content
    indent = indent[1:] if quotes and indent[:1] == b" " else indent
    return re.sub(rb"^" + re.escape(indent), b"", content, flags=re.MULTILINE) if indent else content
