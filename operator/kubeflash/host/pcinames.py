"""What pci.ids, the list of PCI devices that lspci reads, calls a device; nothing where there is no such file."""

from __future__ import annotations

import os
import re
from functools import lru_cache

from kubeflash.host.root import HostRoot
from kubeflash.topology.devices import VENDORS
from kubeflash.topology.reading import plain

_PLACES = ("usr/share/misc/pci.ids", "usr/share/hwdata/pci.ids")
_LIMIT = 16 << 20  # bytes; it has 1.5 MB
_MARKETED = re.compile(r"\[(.+)\]")
"""What a product is sold as stands in brackets behind the name of its chip: `GH100 [H100 SXM5 80GB]`."""


def model_of(root: HostRoot, vendor: str, device: str) -> str:
    """The model with its maker, such as `NVIDIA H100 SXM5 80GB`; empty when it is not listed.

    The list is read once for each kind of device, and again when it has changed.
    """
    for place in _PLACES:
        path = root.path / place
        try:
            status = path.stat()
        except OSError:
            continue
        name = _look_up(os.fspath(path), status.st_mtime_ns, status.st_size, vendor, device)
        if name:
            return f"{VENDORS.get(vendor, '')} {name}".strip()
    return ""


@lru_cache(maxsize=64)
def _look_up(path: str, mtime: int, size: int, vendor: str, device: str) -> str:
    del mtime, size  # with them, a list that was updated is another
    try:
        with open(path, "rb") as file:  # noqa: PTH123  the path is a key
            content = b"\n" + file.read(_LIMIT)
    except OSError:
        return ""
    start = content.find(f"\n{vendor}  ".encode())
    if start < 0:
        return ""
    following = re.compile(rb"\n[^\t#\n]").search(content, start + 1)
    block = content[start : following.start() if following else len(content)]
    line = re.search(rf"\n\t{device}  ([^\n]*)".encode(), block)
    name = plain(line[1].decode(errors="replace")) if line else ""
    marketed = _MARKETED.search(name)
    return marketed[1] if marketed else name
