"""Who writes to a volume on a virtual server, who knocks at a port, and what the kernels say of their connections.

Writers run in the background in the server and leave what they have to say in files there: they go on while nobody
asks, whatever is cut, killed or frozen. Asking a frozen server raises `LabTimeout`.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from fleet import JSON, Fleet, is_ready
from lab.errors import LabError
from lab.processes import wait_until
from lab.servers import VirtualServer
from support import real, writing
from support.real import MIB

SCRIPT = "/run/kubeflash-tests/writing.py"
FOLDER = "/run/kubeflash-tests"


@dataclass(frozen=True)
class Report:
    """What a writer says.

    Attributes:
        running: whether it has not ended.
        writes: acknowledged ones.
        verified: those that were read back as they were written.
        errors: failed writes and reads.
        kinds: errors by kind, such as `write EIO`.
        mismatches: what was read back and is not what was written.
        late: writes that were begun after the first error, and acknowledged.
        longest: seconds that one write or read took, or takes by now.
        waiting: seconds that the oldest one in flight has waited.
    """

    running: bool
    writes: int = 0
    verified: int = 0
    errors: int = 0
    late: int = 0
    kinds: Mapping[str, int] = field(default_factory=dict)
    mismatches: Sequence[str] = ()
    longest: float = 0.0
    waiting: float = 0.0


class Writer:
    """Writes and reads back on a device, in the background, past the page cache; it goes on after errors.

    See `support.writing`. Its blocks say who wrote them, so that one strange block is seen.
    """

    def __init__(
        self,
        server: VirtualServer,
        device: str,
        name: str,
        *,
        owner: int = 1,
        at: int = 0,
        size: int = 8 * MIB,
        depth: int = 4,
        buffered: int = 0,
        pause: float = 0.15,
        give_up: int = 0,
        verify: bool = True,
    ) -> None:
        """Describes it.

        Args:
            server: Where it runs.
            device: What it writes to, between `at` and `at + size`.
            name: Unique on that server.
            owner: What its blocks say.
            at: See `device`.
            size: See `device`.
            depth: Writes in flight past the page cache.
            buffered: Writers besides that go through the page cache, and flush.
            pause: Seconds between two writes of one thread.
            give_up: After how many errors in a row a thread ends; 0 for never.
            verify: Whether each write is read back.
        """
        self.server, self.device, self.name = server, device, name
        self._folder = f"{FOLDER}/{name}"
        self._words = [
            *("--device", device, "--folder", self._folder, "--owner", str(owner)),
            *("--at", str(at), "--bytes", str(size), "--depth", str(depth), "--buffered", str(buffered)),
            *("--pause", str(pause), "--give-up", str(give_up), *(["--verify"] if verify else [])),
        ]

    def start(self, timeout: float = 60) -> Self:
        """Starts it, and waits for its first acknowledged writes."""
        bring_script(self.server)
        command = shlex.join(["python3", SCRIPT, "write", *self._words])
        self.server.run(
            f"rm -rf {self._folder}; mkdir -p {self._folder}; "
            f"{command} > {self._folder}/output 2>&1 < /dev/null & echo $! > {self._folder}.pid"
        )
        self.wait_writes(1, timeout=timeout)
        return self

    def report(self) -> Report:
        """What it says now."""
        script = (
            f"test -e /proc/$(cat {self._folder}.pid)/stat && echo runs || echo ended; cat {self._folder}/status.json"
        )
        state, _, text = self.server.run(script, check=False).stdout_text.partition("\n")
        if not text and state == "ended":
            output = self.server.run(f"cat {self._folder}/output", check=False).stdout_text
            raise LabError(f"writer {self.name} on {self.server.name} ended and said nothing: {output}")
        said = json.loads(text or "{}")
        running = state == "runs" and not said.get("ended", False)
        counts = {name: said[name] for name in Report.__dataclass_fields__ if name in said}
        return Report(running=running, **counts)

    def wait_writes(self, more: int = 20, *, timeout: float = 180) -> Report:
        """Waits until so many more of its writes are acknowledged."""
        goal = self.report().writes + more
        return self.wait(f"{more} more writes", lambda said: said.writes >= goal, timeout=timeout)

    def wait(self, what: str, reached: Callable[[Report], bool], *, timeout: float = 240) -> Report:
        """Waits until it says something."""
        wait_until(
            f"{self.name} on {self.server.name}: {what}", lambda: reached(self.report()), timeout=timeout, interval=0.5
        )
        return self.report()

    def wait_errors(self, *, timeout: float = 240) -> Report:
        """Waits for its first error."""
        return self.wait("an error", lambda said: said.errors > 0, timeout=timeout)

    def wait_ended(self, *, timeout: float = 300) -> Report:
        """Waits until it has given up."""
        return self.wait("its end", lambda said: not said.running, timeout=timeout)

    def stop(self, *, timeout: float = 120) -> Report:
        """Ends it, once what it has in flight is done; the last report."""
        self.server.run(f"kill -TERM $(cat {self._folder}.pid)", check=False)
        return self.wait_ended(timeout=timeout)

    def missing(self, device: str | None = None) -> list[str]:
        """Places, read from a device after its end, that do not have what was acknowledged to it."""
        words = ["python3", SCRIPT, "check", "--device", device or self.device, "--folder", self._folder]
        done = self.server.run(words, check=False, timeout=180)
        if done.exit_code not in (0, 1) or done.stderr_text:
            raise LabError(f"{shlex.join(words)}: {done.stderr_text}")
        return done.stdout_text.splitlines()


class Fio:
    """`fio --verify` on a device, in the background: random writes past the page cache, each block read back later.

    It ends at its first error, of a write, of a read or of what was read.
    """

    def __init__(
        self, server: VirtualServer, device: str, name: str, *, size: int = 16 * MIB, at: int = 0, iops: int = 40
    ) -> None:
        self.server, self.device, self.name = server, device, name
        self._files = f"{FOLDER}/{name}"
        self._words = [
            *("fio", f"--name={name}", f"--filename={device}", f"--offset={at}", f"--size={size}"),
            *("--rw=randwrite", "--bs=16k", "--direct=1", "--ioengine=libaio", "--iodepth=4", f"--rate_iops={iops}"),
            *("--verify=crc32c", "--verify_fatal=1", "--verify_backlog=64", "--verify_state_save=0"),
            *("--time_based", "--runtime=100000", "--thread", "--output-format=json", f"--output={self._files}.json"),
        ]

    def start(self) -> Self:
        """Starts it, and waits until it makes progress."""
        self.server.run(
            f"mkdir -p {FOLDER}; cd /tmp; {shlex.join(self._words)} > {self._files}.log 2>&1 < /dev/null & "
            f"echo $! > {self._files}.pid"
        )
        self.wait_progress(timeout=120)
        return self

    def moved(self) -> int:
        """Bytes that it has asked for, read and written, so far.

        Raises:
            LabError: It has ended.
        """
        text = self.server.run(f"cat /proc/$(cat {self._files}.pid)/io", check=False).stdout_text
        counts = dict(re.findall(r"(\w+): (\d+)", text))
        if not counts:
            raise LabError(f"fio {self.name} on {self.server.name} has ended: {self.said()}")
        return int(counts["read_bytes"]) + int(counts["write_bytes"])

    def said(self) -> str:
        """What it printed."""
        return self.server.run(f"cat {self._files}.log {self._files}.json", check=False).stdout_text

    def wait_progress(self, count: int = MIB, *, timeout: float = 240) -> float:
        """Waits until it has moved so many more bytes: more than what it can have in flight. The seconds that took."""
        before = self.moved()
        return wait_until(
            f"fio {self.name} goes on", lambda: self.moved() >= before + count, timeout=timeout, interval=0.5
        )

    def stop(self, *, timeout: float = 180) -> JSON:
        """Ends it; writes, verified blocks, errors, and the longest time one took in seconds.

        Raises:
            LabError: It saw an error.
        """
        self.moved()
        self.server.run(f"kill -INT $(cat {self._files}.pid)")
        gone = f"! test -e /proc/$(cat {self._files}.pid)/stat"
        wait_until(
            f"fio {self.name} has ended",
            lambda: self.server.run(gone, check=False).exit_code == 0,
            timeout=timeout,
            interval=0.5,
        )
        text = self.server.get_file(f"{self._files}.json").decode()
        (job,) = json.loads(text[text.index("{") :])["jobs"]
        longest = max(job[way]["clat_ns"]["max"] for way in ("read", "write")) / 1e9
        found = {
            "writes": job["write"]["total_ios"],
            "verified": job["read"]["total_ios"],
            "errors": job["error"] or job.get("total_err", 0),
            "longest": longest,
        }
        if found["errors"] or not found["verified"]:
            raise LabError(f"fio {self.name} on {self.server.name}: {found}: {self.said()}")
        return found


def bring_script(server: VirtualServer) -> None:
    """Puts the writer's script into a server."""
    server.put_file(SCRIPT, Path(writing.__file__).read_bytes())


def cover(server: VirtualServer, device: str, owner: int, size: int) -> None:
    """Writes an owner's pattern all over a volume, and waits until it is on the SSD."""
    bring_script(server)
    words = ["--device", device, "--owner", str(owner), "--bytes", str(size)]
    server.run(["python3", SCRIPT, "cover", *words], timeout=300)


def strange_blocks(image: Path, start: int, size: int, owner: int) -> list[str]:
    """Blocks of an image file, at a volume's place, that are not the owner's pattern, byte for byte: the first ten."""
    content = real.read_image(image, start, size)
    if content == writing.pattern(owner, 0, size):
        return []
    wrong = []
    for place in range(0, size, writing.BLOCK):
        found = content[place : place + writing.BLOCK]
        if found != writing.block(owner, 0, place):
            wrong.append(f"{place}: owner, sequence, place: {writing.told(found)}")
    return wrong[:10]


# ---- Connections


@dataclass(frozen=True)
class Link:
    """One NVMe-oF controller of a server's initiator, as its sysfs says."""

    instance: str
    nqn: str
    state: str
    address: str


def links(server: VirtualServer) -> list[Link]:
    """All NVMe-oF controllers of a server, of whatever NQN."""
    script = (
        "for c in /sys/class/nvme/nvme*; do "
        '[ "$(cat $c/transport 2>/dev/null)" = pcie ] && continue; '
        'echo "${c##*/} $(cat $c/subsysnqn) $(cat $c/state) $(cat $c/address)"; done 2>/dev/null'
    )
    rows = (line.split() for line in server.run(script, check=False).stdout_text.splitlines())
    return [Link(*row) for row in rows if len(row) == 4]


def reconnects(server: VirtualServer) -> int:
    """How many times a server's kernel said that it reconnects, or recovers from an error."""
    text = server.run("dmesg | grep -c -e 'starting error recovery' -e 'Reconnecting in' || true").stdout_text
    return int(text)


def exports_tree(server: VirtualServer) -> list[str]:
    """Every file and link of nvmet's tree on a server, each with what it says; keys as their digest alone."""
    script = (
        "cd /sys/kernel/config/nvmet && for f in $(find hosts subsystems ports | sort); do "
        'if [ -L "$f" ]; then echo "$f -> $(readlink "$f")"; '
        'elif [ -f "$f" ]; then echo "$f $(cat "$f" 2>/dev/null | sha256sum | cut -c1-16)"; else echo "$f"; fi; done'
    )
    return server.run(script, timeout=180).stdout_text.splitlines()


KNOCK = """
import errno, os, sys
line = sys.stdin.buffer.read()
descriptor = os.open("/dev/nvme-fabrics", os.O_RDWR)
try:
    os.write(descriptor, line)
    print(os.read(descriptor, 4096).decode().strip())
except OSError as error:
    print(errno.errorcode[error.errno])
"""


def knock(server: VirtualServer, portal: str, *flags: str, **options: str) -> str:
    """Tries to connect from a server, as the kernel does it: `connected nvmeN`, or the error's name.

    Args:
        server: Which one.
        portal: `tcp://address:port`.
        flags: Options without a value, such as `tls`.
        options: As /dev/nvme-fabrics names them; one of an empty value is left out.
    """
    transport, _, where = portal.partition("://")
    address, _, port = where.rpartition(":")
    words = {"transport": transport, "traddr": address, "trsvcid": port, "ctrl_loss_tmo": "5"} | options
    line = ",".join([*(f"{name}={value}" for name, value in words.items() if value), *flags])
    said = server.run(["python3", "-c", KNOCK], input=line.encode(), timeout=240).stdout_text.strip()
    instance = re.match(r"instance=(\d+)", said)
    return f"connected nvme{instance[1]}" if instance else said


def hang_up(server: VirtualServer, said: str) -> None:
    """Ends what `knock` connected; nothing when it did not."""
    if said.startswith("connected "):
        with suppress(LabError):  # gone by itself
            server.run(f"echo 1 > /sys/class/nvme/{said.split()[1]}/delete_controller")


# ---- The fleet


@contextmanager
def frozen(server: VirtualServer) -> Iterator[None]:
    """A server that is frozen meanwhile."""
    server.freeze()
    try:
        yield
    finally:
        server.thaw()


def connection(found: JSON) -> JSON:
    """What an attachment says of its connection; empty when nothing."""
    return found.get("status", {}).get("connection") or {}


def wait_connected(fleet: Fleet, name: str, *, timeout: float = 240) -> JSON:
    """Waits until an attachment over the fabric is Ready and its connection live."""
    live = lambda it: is_ready(it) and connection(it).get("state") == "Live"  # noqa: E731
    return fleet.wait("flashattachment", name, live, timeout=timeout)


def wait_state(fleet: Fleet, name: str, state: str, *, timeout: float = 240) -> JSON:
    """Waits until an attachment says that its connection is in this state."""
    there = lambda it: connection(it).get("state") == state  # noqa: E731
    return fleet.wait("flashattachment", name, there, timeout=timeout)
