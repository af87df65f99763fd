"""Is a disk blank? Every check must say so, and a check that fails says no. Reading proves no blankness, it samples.

Why so many: `blkid` misses a GPT of which only the backup header is left; `blkid` and `wipefs` see no device-mapper
target, nvmet export, loop device or process; O_EXCL opens what nvmet exports; only reading finds data without a
signature. Measured: 256 random blocks and both ends take 0.2 s and found 20 MiB in 2 GiB three times of three; less
data slips through, which is why an admin names the SSD too.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from kubeflash.api.quantity import human_bytes
from kubeflash.host.blockdev import BLOCK, DirectDevice, all_zero, size_bytes, sysfs_folder
from kubeflash.host.commands import run
from kubeflash.host.errors import HostError
from kubeflash.host.holders import holders
from kubeflash.host.partitions import kernel_partitions
from kubeflash.host.root import HostRoot

MIB = 1 << 20
SAMPLES = 256
THOROUGH_EDGE = 64 * MIB
"""For pools that take every blank SSD, where no admin's word stands beside the reading."""
THOROUGH_SAMPLES = 2048
SIGNATURE = b"EFI PART"
_LIMIT = 60.0  # seconds for wipefs or blkid


@dataclass(frozen=True)
class Examination:
    """What was found on a disk. It is blank when there are no findings; each says what is there.

    Attributes:
        findings: all of it.
        held: those of them that say who uses the disk.
    """

    findings: tuple[str, ...]
    held: tuple[str, ...] = ()

    @property
    def blank(self) -> bool:
        """Whether nothing was found."""
        return not self.findings


def examine(root: HostRoot, device: Path, *, edge: int = MIB, samples: int = SAMPLES) -> Examination:
    """Looks at a whole disk by every check. Never raises for what is wrong with the disk: that is a finding.

    Args:
        root: the machine.
        device: the whole disk.
        edge: bytes at each end that must be zero, a multiple of 4096; a disk of less than two edges is read wholly.
        samples: number of blocks of 4096 bytes in between that must be zero, spread over the disk at random.
    """
    held = _guarded(_held, root, device)
    findings = [*_guarded(_size, root, device), *_guarded(_partitions, root, device), *held]
    for check in (_wipefs, _blkid):
        findings += _guarded(check, root, device)
    if not findings:  # reading says more only about what the others know nothing of
        findings += _guarded(lambda _, path: _content(path, edge, samples), root, device)
    return Examination(tuple(dict.fromkeys(findings)), tuple(held))


def held_findings(root: HostRoot, device: Path) -> tuple[str, ...]:
    """Only who uses the disk; a failure to find out is a finding."""
    return tuple(_guarded(_held, root, device))


def _guarded(check: Callable[[HostRoot, Path], Iterable[str]], root: HostRoot, device: Path) -> list[str]:
    """Runs a check; that it failed is a finding of its own."""
    try:
        return list(check(root, device))
    except (HostError, OSError, ValueError) as error:
        return [f"it cannot be examined, and so does not count as blank: {error}"]


def _size(root: HostRoot, device: Path) -> Iterator[str]:
    if size_bytes(root, device) < 4 * MIB:
        yield "it has no size, or less than 4 MiB: the SSD is broken, formatting, or not for data"
    if (sysfs_folder(root, device) / "ro").read_text().strip() != "0":
        yield "it is read-only: worn out (see its SMART log) or write-protected"


def _partitions(root: HostRoot, device: Path) -> Iterator[str]:
    for part in kernel_partitions(root, device.name):
        name = f' "{part.name}"' if part.name else ""
        yield f"partition {part.device}{name} of {human_bytes(part.bytes)}"


def _held(root: HostRoot, device: Path) -> Iterator[str]:
    for holder in holders(root, device):
        yield holder.who


def _wipefs(root: HostRoot, device: Path) -> Iterator[str]:
    del root
    for signature in signatures(device):
        yield f"{signature} signature"


def signatures(device: Path) -> tuple[str, ...]:
    """What wipefs knows on a device: `gpt`, `PMBR`, `ext4 ("data")`.

    Raises:
        CommandFailed, ValueError: when it cannot be said.
    """
    return parse_wipefs(run(["wipefs", "--no-act", "--json", str(device)], timeout=_LIMIT).stdout)


def parse_wipefs(text: str) -> tuple[str, ...]:
    """The signatures in what `wipefs --no-act --json` printed: nothing at all, or an object.

    Raises:
        ValueError: when it is something else.
    """
    if not text.strip():
        return ()
    try:
        entries = json.loads(text)["signatures"]
        return tuple(dict.fromkeys(_words(str(entry["type"]), entry.get("label")) for entry in entries))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"wipefs --json said something unexpected: {error!r}") from error


def _words(kind: str, label: object) -> str:
    return f'{kind} ("{label}")' if label else kind


def _blkid(root: HostRoot, device: Path) -> Iterator[str]:
    del root
    # 2 is nothing found; 0 something, 8 several things at once, 4 and others an error
    output = run(["blkid", "--probe", "--output", "export", str(device)], timeout=_LIMIT, ok=(0, 2, 8))
    if output.status == 8:
        yield "it has several signatures at once, which blkid cannot tell apart"
    elif output.status == 0:
        yield f"{parse_blkid(output.stdout)} signature"


def parse_blkid(text: str) -> str:
    """What kind of thing `blkid --probe --output export` found."""
    found = dict(line.partition("=")[::2] for line in text.splitlines())
    return _words(found.get("TYPE") or found.get("PTTYPE") or "unknown", found.get("LABEL"))


def fingerprint(device: Path) -> str:
    """16 hex digits over a disk's size and its first and last MiB, read past the page cache.

    Says whether what an admin was shown is still what is on the disk; no more than that.

    Raises:
        ReadFailed: when the disk cannot be read.
    """
    with DirectDevice(device) as disk:
        size = disk.size()
        edge = min(MIB, size)
        digest = hashlib.sha256(f"{size}\n".encode())
        for start in (0, size - edge):
            digest.update(disk.read(start, edge))
    return digest.hexdigest()[:16]


def _content(device: Path, edge: int, samples: int) -> Iterator[str]:
    with DirectDevice(device) as disk:
        size = disk.size()
        ends = [(0, size)] if 2 * edge >= size else [(0, edge), (size - edge, edge)]
        for start, length in ends:
            yield from _end(disk, start, length)
        offset = first_used(disk, edge, size - edge, samples)
        if offset is not None:
            yield f"data without a known signature at byte {offset}"


def _end(disk: DirectDevice, start: int, length: int) -> Iterator[str]:
    """What the first used MiB of an end of the disk holds. A header lies in one logical block, so in one MiB."""
    for offset in range(start, start + length, MIB):
        content = disk.read(offset, min(MIB, start + length - offset))
        if SIGNATURE in content:
            yield f"a header of a GPT is left at byte {offset + content.index(SIGNATURE)}"
            return
        if not all_zero(content):
            yield f"data without a known signature in the MiB from byte {offset}"
            return


def first_used(disk: DirectDevice, start: int, end: int, samples: int) -> int | None:
    """Position of a sampled block that is not zero, None when all are: one at random in each of `samples` equal parts.

    Raises:
        ReadFailed: when a block cannot be read.
    """
    blocks = (end - start) // BLOCK
    for number in range(min(samples, blocks)):
        low, high = number * blocks // samples, (number + 1) * blocks // samples
        if blocks <= samples:
            low, high = number, number + 1
        offset = start + (low + secrets.randbelow(high - low)) * BLOCK
        if not all_zero(disk.read(offset, BLOCK)):
            return offset
    return None
