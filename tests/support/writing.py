"""Writes that can be told apart: runs in a virtual server, with nothing but Python; `support.fabric` is its other end.

    python3 writing.py write --device /dev/nvme0n1 --folder /run/w --owner 1 --bytes 16777216 …
    python3 writing.py cover --device /dev/nvme0n1 --owner 2 --bytes 67108864
    python3 writing.py check --device /dev/nvme0n1 --folder /run/w

Every block of 4 KiB says, all over, who wrote it, as which of its writes, and to which place. `write` has many writes
in flight, each in a thread of its own, past the page cache; some threads (`--buffered`) leave theirs to the page cache
and flush. It goes on after errors, keeps count of everything in `status.json`, and ends by SIGTERM, or when every
thread has had so many errors in a row. `check` reads whether all that was acknowledged is there: `acknowledged.json`,
which `write` leaves at its end, says what.
"""

from __future__ import annotations

import argparse
import errno
import json
import mmap
import os
import signal
import struct
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

BLOCK = 4096
HEAD = struct.Struct("<8sQQQ")
MAGIC = b"KFWRITER"
PIECE = 1 << 20


def block(owner: int, sequence: int, place: int) -> bytes:
    """What a writer writes to a place, as which of its writes."""
    return HEAD.pack(MAGIC, owner, sequence, place) * (BLOCK // HEAD.size)


def pattern(owner: int, start: int, count: int) -> bytes:
    """What `cover` leaves between two places."""
    return b"".join(block(owner, 0, place) for place in range(start, start + count, BLOCK))


def told(content: bytes) -> tuple[int, int, int] | None:
    """Owner, sequence and place of a block; None when it is not one of a writer's, whole."""
    magic, owner, sequence, place = HEAD.unpack_from(content)
    return (owner, sequence, place) if content == block(owner, sequence, place) and magic == MAGIC else None


class Worker(threading.Thread):
    """One write in flight, over and over, to the blocks of a stripe in turn."""

    def __init__(self, job: Job, places: range, *, buffered: bool) -> None:
        super().__init__(daemon=True)
        self.job, self.places, self.buffered = job, places, buffered
        self.writes = self.verified = self.errors = self.in_a_row = self.late = 0
        self.kinds: Counter[str] = Counter()
        self.mismatches: list[str] = []
        self.busy_since: float | None = None
        self.longest = 0.0
        self.last_success = 0.0
        self.sequence = 0
        self.acknowledged: dict[int, int] = {}
        self.tried: dict[int, int] = {}

    def run(self) -> None:
        flags = os.O_RDWR | (0 if self.buffered or self.job.cached else os.O_DIRECT)
        descriptor = os.open(self.job.device, flags)
        memory = mmap.mmap(-1, BLOCK)  # aligned, as O_DIRECT wants it
        try:
            while not self.job.stopping.is_set() and not self.given_up():
                for turn in self.turns():
                    self.act(descriptor, memory, turn)
                    self.job.stopping.wait(self.job.pause if not self.in_a_row else max(0.1, self.job.pause))
        finally:
            os.close(descriptor)

    def turns(self) -> Iterator[tuple[int, ...]]:
        """The places of each write: one, or of a buffered worker all of its stripe."""
        groups = [tuple(self.places)] if self.buffered else [(place,) for place in self.places]
        for group in groups:
            if self.job.stopping.is_set() or self.given_up():
                return
            yield group

    def given_up(self) -> bool:
        return 0 < self.job.give_up <= self.in_a_row

    def act(self, descriptor: int, memory: mmap.mmap, places: tuple[int, ...]) -> None:
        self.sequence += 1
        began = self.busy_since = time.monotonic()
        try:
            for place in places:
                self.tried[place] = self.sequence
                memory[:] = block(self.job.owner, self.sequence, place)
                all_of(os.pwritev(descriptor, [memory], place), BLOCK)
            if self.buffered:
                os.fsync(descriptor)
        except OSError as error:
            self.failed("write", places[0], error)
            return
        finally:
            self.longest = max(self.longest, time.monotonic() - began)
            self.busy_since = None
        self.in_a_row = 0
        self.writes += 1
        self.last_success = time.monotonic()
        if self.job.first_error is not None and began > self.job.first_error:
            self.late += 1
        for place in places:
            self.acknowledged[place] = self.sequence
        if self.job.verify and not self.buffered:
            self.verify(descriptor, memory, places[0])

    def verify(self, descriptor: int, memory: mmap.mmap, place: int) -> None:
        began = self.busy_since = time.monotonic()
        try:
            got = os.preadv(descriptor, [memory], place)
        except OSError as error:
            self.failed("read", place, error)
            return
        finally:
            self.longest = max(self.longest, time.monotonic() - began)
            self.busy_since = None
        if got == BLOCK and memory[:] == block(self.job.owner, self.sequence, place):
            self.verified += 1
        else:
            self.mismatches.append(f"{place}: {told(memory[:])} instead of sequence {self.sequence}")
            self.job.log(f"MISMATCH {self.mismatches[-1]}")

    def failed(self, what: str, place: int, error: OSError) -> None:
        kind = errno.errorcode.get(error.errno or 0, str(error.errno))
        if self.job.first_error is None:
            self.job.first_error = time.monotonic()
        self.errors += 1
        self.in_a_row += 1
        self.kinds[f"{what} {kind}"] += 1
        self.job.log(f"{what} of {place} failed: {kind}")


class Job:
    """All workers of one writer, and what is told of them."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.device, self.folder, self.owner = options.device, Path(options.folder), options.owner
        self.verify, self.pause, self.give_up, self.cached = (
            options.verify,
            options.pause,
            options.give_up,
            options.cached,
        )
        self.stopping = threading.Event()
        self.first_error: float | None = None
        self.began = time.monotonic()
        self.folder.mkdir(parents=True, exist_ok=True)
        blocks, count = options.bytes // BLOCK, options.depth + options.buffered
        stripes = [range(options.at + n * BLOCK, options.at + blocks * BLOCK, count * BLOCK) for n in range(count)]
        self.workers = [Worker(self, stripe, buffered=n >= options.depth) for n, stripe in enumerate(stripes)]

    def log(self, line: str) -> None:
        with (self.folder / "log").open("a") as file:
            file.write(f"{time.monotonic() - self.began:.3f} {line}\n")

    def run(self) -> None:
        for worker in self.workers:
            worker.start()
        while any(worker.is_alive() for worker in self.workers):
            self.tell(ended=False)
            time.sleep(0.25)
        acknowledged = {
            place: (worker.acknowledged.get(place, 0), tried)
            for worker in self.workers
            for place, tried in worker.tried.items()
        }
        put(self.folder / "acknowledged.json", json.dumps({"owner": self.owner, "places": acknowledged}))
        self.tell(ended=True)

    def tell(self, *, ended: bool) -> None:
        now = time.monotonic()
        waits = [now - since for worker in self.workers if (since := worker.busy_since) is not None]
        kinds: Counter[str] = sum((worker.kinds.copy() for worker in self.workers), Counter())
        status = {
            "writes": sum(worker.writes for worker in self.workers),
            "verified": sum(worker.verified for worker in self.workers),
            "errors": sum(worker.errors for worker in self.workers),
            "late": sum(worker.late for worker in self.workers),
            "kinds": dict(kinds),
            "mismatches": [text for worker in self.workers for text in worker.mismatches][:20],
            "longest": max([*(worker.longest for worker in self.workers), *waits], default=0.0),
            "waiting": max(waits, default=0.0),
            "since_success": now - max([worker.last_success for worker in self.workers], default=0.0),
            "ended": ended,
        }
        put(self.folder / "status.json", json.dumps(status))


def all_of(wrote: int, count: int) -> None:
    """Raises OSError when a write was a short one."""
    if wrote != count:
        raise OSError(errno.EIO, f"{wrote} bytes written of {count}")


def put(path: Path, text: str) -> None:
    """Writes a file whole or not at all."""
    partial = path.with_suffix(".new")
    partial.write_text(text)
    partial.rename(path)


def write(options: argparse.Namespace) -> int:
    """Writes until told to stop, or given up."""
    job = Job(options)
    signal.signal(signal.SIGTERM, lambda *_: job.stopping.set())
    job.run()
    return 0


def cover(options: argparse.Namespace) -> int:
    """Writes an owner's pattern from the start of a device."""
    descriptor = os.open(options.device, os.O_RDWR | (0 if options.cached else os.O_DIRECT))
    memory = mmap.mmap(-1, PIECE)
    for start in range(0, options.bytes, PIECE):
        count = min(PIECE, options.bytes - start)
        memory[:count] = pattern(options.owner, start, count)
        with memoryview(memory) as view, view[:count] as piece:
            all_of(os.pwritev(descriptor, [piece], start), count)
    os.fsync(descriptor)
    os.close(descriptor)
    return 0


def check(options: argparse.Namespace) -> int:
    """Prints each place that does not have what was acknowledged, or was tried after that; fails if there is any."""
    known = json.loads((Path(options.folder) / "acknowledged.json").read_text())
    descriptor = os.open(options.device, os.O_RDONLY | (0 if options.cached else os.O_DIRECT))
    memory = mmap.mmap(-1, BLOCK)
    wrong = 0
    for text, (acknowledged, tried) in known["places"].items():
        if not acknowledged:
            continue
        place = int(text)
        found = told(memory[:]) if os.preadv(descriptor, [memory], place) == BLOCK else None
        if found is None or found[::2] != (known["owner"], place) or not acknowledged <= found[1] <= tried:
            wrong += 1
            sys.stdout.write(f"{place}: {found} instead of sequence {acknowledged} to {tried}\n")
    os.close(descriptor)
    return 1 if wrong else 0


def main(argv: list[str] | None = None) -> int:
    """Runs one command; its exit status."""
    parser = argparse.ArgumentParser()
    parser.add_argument("command", choices=["write", "cover", "check"])
    parser.add_argument("--device", required=True)
    parser.add_argument("--folder", default="/run/writer")
    parser.add_argument("--owner", type=int, default=1)
    parser.add_argument("--at", type=int, default=0)
    parser.add_argument("--bytes", type=int, default=0)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--buffered", type=int, default=0)
    parser.add_argument("--pause", type=float, default=0.02)
    parser.add_argument("--give-up", type=int, default=0)
    parser.add_argument("--verify", action="store_true")
    parser.add_argument("--cached", action="store_true", help="all of it through the page cache: for tests on files")
    options = parser.parse_args(argv)
    return {"write": write, "cover": cover, "check": check}[options.command](options)


if __name__ == "__main__":
    sys.exit(main())
