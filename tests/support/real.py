"""The virtual servers as tests look at them: their own sysfs and configfs, and the image files of their SSDs."""

from __future__ import annotations

import errno
import hashlib
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from fleet import JSON, Fleet, condition
from lab import image, spec
from lab.lab import Lab
from lab.servers import VirtualServer, boot

REPO = Path(__file__).parents[2]
BLOCK = 4096
MIB = 1 << 20
BY_ID = "/dev/disk/by-id/nvme-QEMU_NVMe_Ctrl_"


@contextmanager
def several_servers(
    *these: str | JSON, fill: Callable[[VirtualServer, Lab], None] | None = None, timeout: float = 240
) -> Iterator[Fleet]:
    """A lab with a control plane and these servers, by the names of their specifications or described here.

    `fill` is called with each before it is switched on.
    """
    image.app_image(REPO, image.server_image(REPO).tree)  # before the lab's network is entered
    specs = [one if isinstance(one, str) else spec.parse(one) for one in these]
    with Lab(f"machine-{os.getpid()}") as lab:
        prepare = None if fill is None else lambda server: fill(server, lab)
        yield Fleet(lab, boot(lab, REPO, specs, prepare=prepare, timeout=timeout))


@contextmanager
def lone_server(document: JSON, fill: Callable[[VirtualServer, Lab], None] | None = None) -> Iterator[Fleet]:
    """A lab with a control plane and one server of this description; `fill` is called before it is switched on."""
    with several_servers(document, fill=fill) as fleet:
        yield fleet


class RealServers:
    """As `scenarios.Servers`: looked up in the servers' own sysfs and configfs."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    def shell(self, server: str, command: str, *, timeout: float = 60) -> str:
        return self._fleet.servers[server].run(command, timeout=timeout).stdout_text

    def disk(self, server: str, serial: str) -> str:
        """The device node that the SSD with this serial number has now."""
        command = (
            f"for d in /sys/class/nvme/nvme*; do if grep -q '^{serial} *$' $d/serial; then ls -d $d/nvme*n*; fi; done"
        )
        return "/dev/" + self.shell(server, command).strip().rsplit("/", 1)[-1]

    def exports(self, server: str) -> set[str]:
        return set(self.shell(server, "ls /sys/kernel/config/nvmet/subsystems").split())

    def partitions(self, server: str) -> set[str]:
        links = self.shell(server, "ls /dev/disk/by-partuuid 2>/dev/null || true").split()
        types = self.shell(server, "lsblk -nro PARTUUID,PARTTYPE").splitlines()
        volumes = {line.split()[0] for line in types if "6b7562766f6c" in line}
        return volumes & set(links)

    def connections(self, server: str) -> set[str]:
        found = self.shell(server, "cat /sys/class/nvme/nvme*/subsysnqn 2>/dev/null || true").split()
        return {nqn for nqn in found if "kubeflash" in nqn}


def said(found: JSON, kind: str) -> tuple[str, str]:
    """Status and reason of a condition; empty words when there is none."""
    known = condition(found, kind)
    return known.get("status", ""), known.get("reason", "")


def ssd_of(node: JSON, ssd_id: str) -> JSON:
    """What a FlashNode says of one SSD; empty when it has none of that id."""
    ssds = node.get("status", {}).get("ssds", [])
    return next((item for item in ssds if item["id"] == ssd_id), {})


def place_of(fleet: Fleet, name: str) -> tuple[int, int]:
    """Start and bytes of a volume on its SSD."""
    found = fleet.get("flashvolume", name)
    node = fleet.get("flashnode", found["status"]["nodeName"], None)
    extents = ssd_of(node, found["status"]["ssd"])["volumes"]
    return next((item["start"], item["bytes"]) for item in extents if item["id"] == found["spec"]["id"])


# ---- Image files, read from outside


def digest(image: Path) -> str:
    """SHA-256 over position and content of every block of a sparse file that is not all zeroes: over every byte."""
    found = hashlib.sha256(f"{image.stat().st_size}\n".encode())
    for offset, block in _blocks(image):
        found.update(struct.pack("<Q", offset) + block)
    return found.hexdigest()


def _blocks(image: Path) -> Iterator[tuple[int, bytes]]:
    with image.open("rb") as file:
        at = 0
        while True:
            try:
                at = os.lseek(file.fileno(), at, os.SEEK_DATA) // BLOCK * BLOCK
            except OSError as error:
                if error.errno == errno.ENXIO:  # nothing but a hole up to the end
                    return
                raise
            end = os.lseek(file.fileno(), at, os.SEEK_HOLE)
            while at < end:
                block = os.pread(file.fileno(), BLOCK, at)
                if block.strip(b"\0"):
                    yield at, block
                at += BLOCK


def read_image(image: Path, start: int, count: int) -> bytes:
    """Bytes of an image file."""
    with image.open("rb") as file:
        file.seek(start)
        return file.read(count)


def write_image(image: Path, start: int, content: bytes) -> None:
    """Writes into an image file; the server is off, or the SSD is pulled out."""
    with image.open("r+b") as file:
        file.seek(start)
        file.write(content)


def whole_copies(image: Path) -> tuple[bool, bool]:
    """Whether the primary and the backup copy of the GPT on an image are whole: UEFI Specification 2.10, 5.3.2."""
    size = image.stat().st_size
    return _is_whole(image, 512), _is_whole(image, size - 512)


def entries(image: Path) -> tuple[bytes, bytes]:
    """The entries of both copies of a GPT of 256 entries, as sfdisk places them, whole or not."""
    size, count = image.stat().st_size, 256 * 128
    return read_image(image, 1024, count), read_image(image, size - 512 - count, count)


def _is_whole(image: Path, place: int) -> bool:
    header = read_image(image, place, 512)
    signature, length, checksum = header[:8], *struct.unpack_from("<II", header, 12)
    if signature != b"EFI PART" or not 92 <= length <= 512:
        return False
    first, count, each, entries_sum = struct.unpack_from("<QIII", header, 72)
    zeroed = header[:16] + bytes(4) + header[20:length]
    return zlib.crc32(zeroed) == checksum and zlib.crc32(read_image(image, first * 512, count * each)) == entries_sum
