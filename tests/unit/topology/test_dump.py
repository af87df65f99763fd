from __future__ import annotations

import codecs
import contextlib
import gzip
import html
import time

import pytest

from kubeflash.topology.dump import LIMIT, read_dump
from kubeflash.topology.errors import BadDump

LSPCI = b"00:05.0 3D controller: NVIDIA Corporation Device 2330\n\tControl: I/O-\n"
HWLOC = (
    b'<?xml version="1.0" encoding="UTF-8"?>\n<topology version="2.0"><object type="Machine">'
    b'<object type="PCIDev" pci_busid="0000:00:05.0" pci_type="0302 [10de:2330] [10de:16c0] a1"/></object></topology>'
)


@pytest.mark.parametrize("before", [b"", codecs.BOM_UTF8])
@pytest.mark.parametrize(
    ("content", "source"), [(LSPCI, "lspci -vvv"), (b"$ lspci -vvv\n" + LSPCI, "lspci -vvv"), (HWLOC, "hwloc XML 2.0")]
)
def test_the_format_is_found_out(before: bytes, content: bytes, source: str):
    listing = read_dump(before + content)
    assert listing.source == source
    assert listing.server().gpus == ("0000:00:05.0",)


@pytest.mark.parametrize("before", [b"\n", b" \n\n", b"$ lstopo --of xml\n", b"Here it is:\n\n```xml\n"])
@pytest.mark.parametrize("after", [b"", b"\n\n", b"\n```\nthanks\n", b"\n$ "])
@pytest.mark.parametrize("start", [HWLOC, HWLOC.replace(b"\n", b'\n<!DOCTYPE topology SYSTEM "hwloc2.dtd">\n', 1)])
def test_xml_out_of_a_terminal_or_a_page(before: bytes, after: bytes, start: bytes):
    assert read_dump(before + start + after).server().gpus == ("0000:00:05.0",)


def test_xml_of_a_page():
    page = b"<html><pre>" + html.escape(HWLOC.decode()).encode() + b"</pre></html>"
    assert read_dump(page).server().gpus == ("0000:00:05.0",)


def test_lines_keep_their_numbers():
    with pytest.raises(BadDump, match="in line 4"):
        read_dump(b"$ lstopo --of xml\n\n" + HWLOC[:-20])


FOREIGN = {
    "empty": (b"", "empty"),
    "blank": (b" \n\t\n", "empty"),
    "text": (b"hello", "neither hwloc XML nor lspci"),
    "lspci -tv": (b"$ lspci -tv\n-+-[0000:00]-+-00.0  Intel Corporation\n", "lspci's tree (-t): make a dump with"),
    "lspci -t, one root": (b"-[0000:00]-+-00.0\n           +-01.0\n", "lspci's tree (-t): make a dump with"),
    "lstopo's text": (b"Machine (504GB total)\n  Package L#0\n", "lstopo's text, not its XML"),
    "nvidia-smi topo -m": (b"\tGPU0\tGPU1\nGPU0\t X \tNV12\n", "nvidia-smi's matrix"),
    "two topologies": (HWLOC + b"\n" + HWLOC, "in line 3: make one file a machine"),
    "NCCL's topology": (b'<system version="1"><cpu numaid="0"/></system>', "starts with <system>"),
    "JSON": (b'{"kind": "FlashNode"}', "neither hwloc XML nor lspci"),
    "HTML": (b"<!DOCTYPE html><html></html>", "starts with <html>"),
    "gzip": (gzip.compress(LSPCI), "gzip"),
    "xz": (b"\xfd7zXZ\x00", "xz"),
    "ELF": (b"\x7fELF\x02\x01", "ELF"),
    "UTF-16 from PowerShell": (LSPCI.decode().encode("utf-16"), "UTF-16"),
    "UTF-16, big-endian": (codecs.BOM_UTF16_BE + HWLOC.decode().encode("utf-16-be"), "UTF-16"),
    "UTF-16 XML without a mark": (HWLOC.decode().encode("utf-16-le"), "UTF-16"),
    "NULs": (LSPCI + b"\0", f"NUL at byte {len(LSPCI)}"),
    "too large": (bytes(LIMIT + 1), "larger than 64 MiB"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_other_things(name: str):
    content, message = FOREIGN[name]
    with pytest.raises(BadDump) as caught:
        read_dump(content)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


XML = b'<?xml version="1.0"?><topology version="2.0"><object type="Machine">'
HOSTILE = {  # a start, and what fills the rest of 64 MiB
    "one line": (b"a", b"a"),
    "one line after a device": (LSPCI, b"a"),
    "empty lines": (LSPCI, b"\n"),
    "headers that nearly match": (LSPCI, b"00:06.0 " + b" (rev 0 (prog-if 0" * 800 + b"\n"),
    "paths that nearly match": (LSPCI, b"00:06.0" + b"/00:07.0" * 1800 + b"! x\n"),
    "links that nearly match": (LSPCI, b"\tLnkCap: " + b"Speed 1" * 2000 + b"\n"),
    "an attribute": (XML + b'<object type="', b"a"),
    "an attribute that looks like tags": (XML + b'<object type="', b"aaa>"),
    "a comment": (XML + b"<!--", b"aaa>"),
    "attributes": (XML, b"<object " + b" ".join(b'a%d=""' % n for n in range(80_000)) + b"/>"),
    "elements": (XML, b"<a/>"),
    "nodesets": (XML, b'<object nodeset="' + b"0x1," * 200_000 + b'"/>'),
    "spaces": (b" ", b" "),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_64_mib_of_ill_will_end_soon(name: str):
    start, unit = HOSTILE[name]
    content = start + unit * ((LIMIT - len(start)) // len(unit))
    began = time.monotonic()
    with contextlib.suppress(BadDump):
        read_dump(content)
    assert time.monotonic() - began < 30  # some 2 s on an idle machine: what grows with the square takes hours
