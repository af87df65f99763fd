"""Where a running lab keeps its files: one folder a lab, gone when the lab is.

``$KUBEFLASH_LAB_RUN`` or ``/run/kubeflash-lab``, then the lab's name. (Not ``$XDG_RUNTIME_DIR``: that folder is
removed at logout, under a lab in the background.)

    lock            held by the lab's process while it lives
    lab.json        who that is: see `Record`
    ledger.jsonl    every process it started: see `lab.processes`
    logs/           one file a process
    audit.log       what the API server was asked
    kubeconfigs/    0-admin.yaml, and others on demand
    pki/, etcd/     the control plane's
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TextIO

from lab.errors import AlreadyUp, LabError, LabTimeout, LeftBehind, NotUp
from lab.processes import Entry, Ledger, boot_id, reap, start_time, wait_until


def base() -> Path:
    """The folder of all labs' run directories. It need not exist."""
    return Path(os.environ.get("KUBEFLASH_LAB_RUN") or "/run/kubeflash-lab")


def of(name: str) -> Path:
    """The run directory of a lab. It need not exist.

    Raises:
        LabError: That is no name for a lab.
    """
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,39}", name):
        raise LabError(f"{name!r} is no name for a lab: small letters, digits and dashes, at most 40")
    return base() / name


def existing() -> Iterator[Path]:
    """Every lab's run directory, of dead labs too."""
    if base().is_dir():
        yield from sorted(path for path in base().iterdir() if path.is_dir())


@dataclass(frozen=True)
class Record:
    """What a ready lab tells of itself in ``lab.json``.

    Attributes:
        name: Its name.
        pid: Of its process, whose network namespace is the lab.
        started: That process's start time, in clock ticks since boot.
        boot: Which boot that was.
        clusterId: UID of the kube-system namespace.
        server: The API server's URL, good inside the lab's network.
        kubeconfig: The administrator's.
        kubectl: The executable.
        servers: Names of the virtual servers.
    """

    name: str
    pid: int
    started: int
    boot: str
    clusterId: str  # noqa: N815 - as in the file
    server: str
    kubeconfig: str
    kubectl: str
    servers: tuple[str, ...] = ()

    @property
    def process(self) -> Entry:
        """The lab's process."""
        return Entry(self.pid, self.started, self.boot, f"lab {self.name}")

    def write(self, run_dir: Path) -> None:
        """Put it into the run directory, whole or not at all."""
        part = run_dir / "lab.json.part"
        part.write_text(json.dumps(asdict(self), indent=2) + "\n")
        part.rename(run_dir / "lab.json")


def read(run_dir: Path) -> Record | None:
    """What a lab tells of itself; None before it is ready.

    Raises:
        LabError: The file is damaged.
    """
    path = run_dir / "lab.json"
    try:
        record = json.loads(path.read_text())
        return Record(**{**record, "servers": tuple(record["servers"])})
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError) as error:
        raise LabError(f"{path} is damaged ({error}): `python -m lab down`") from error


def live(run_dir: Path) -> Record:
    """What a lab that is up and ready tells of itself.

    Raises:
        NotUp: There is none.
    """
    record = read(run_dir)
    if record is None or not record.process.alive:
        raise NotUp(f"no lab {run_dir.name!r} is up: `python -m lab up`")
    return record


def claim(run_dir: Path) -> TextIO:
    """Make a run directory this process's own. What a dead lab of the same name left is ended and removed first.

    Returns:
        The lock: the directory is claimed until it is closed, or the process ends, however it ends.

    Raises:
        AlreadyUp: A living lab has it.
    """
    while True:
        run_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = (run_dir / "lock").open("a+")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            assert_free(run_dir)
            raise AlreadyUp(f"a lab {run_dir.name!r} is just coming up or going down: try again") from None
        if not _is_current(lock, run_dir):  # removed between our opening and our locking it
            lock.close()
            continue
        if len(list(run_dir.iterdir())) > 1:
            clear(run_dir)
            lock.close()
            continue
        lock.truncate(0)
        lock.write(f"{os.getpid()} {start_time(os.getpid())} {boot_id()}\n")
        lock.flush()
        return lock


def assert_free(run_dir: Path) -> None:
    """Tell early that a lab cannot be started here; `claim` decides.

    Raises:
        AlreadyUp: A living lab has the run directory.
    """
    if (there := holder(run_dir)) is not None:
        raise AlreadyUp(
            f"a lab {run_dir.name!r} is up already (pid {there.pid}):"
            " use it, end it (`python -m lab down`), or give this one another --name"
        )


def holder(run_dir: Path) -> Entry | None:
    """The living process that has claimed a run directory, ready or not; None when it is dead or there is none."""
    try:
        words = (run_dir / "lock").read_text().split()
    except FileNotFoundError:
        return None
    if len(words) != 3:
        return None
    entry = Entry(int(words[0]), int(words[1]), words[2], f"lab {run_dir.name}")
    return entry if entry.alive else None


def remove(run_dir: Path, *, timeout: float = 10.0) -> list[Entry]:
    """End what is left of a lab whose own process is dead, and remove its run directory. Nothing there is fine.

    Returns:
        The processes that had to be ended.

    Raises:
        AlreadyUp: Its process lives.
        LeftBehind: Something could not be ended, or is mounted; the directory is kept.
    """
    if not run_dir.exists():
        return []
    with (run_dir / "lock").open("a+") as lock:
        if not _lock_within(lock, timeout):
            raise AlreadyUp(f"the lab in {run_dir} lives: `python -m lab down`")
        return clear(run_dir)


def clear(run_dir: Path) -> list[Entry]:
    """End what is left of a lab, and remove its run directory. For whoever has claimed it.

    Returns:
        The processes that had to be ended.

    Raises:
        LeftBehind: Something could not be ended, or is mounted; the directory is kept.
    """
    ended = reap(run_dir)
    if mounted := mounts(run_dir):
        raise LeftBehind(f"still mounted: {', '.join(mounted)}; umount, then `python -m lab down` again")
    if alive := Ledger(run_dir).alive():
        raise LeftBehind(f"still running: {', '.join(map(str, alive))}")
    shutil.rmtree(run_dir)
    return ended


def mounts(below: Path) -> list[str]:
    """Mount points at or below a folder, in this process's mount namespace."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    points = [re.sub(r"\\(\d{3})", lambda match: chr(int(match[1], 8)), line.split()[4]) for line in lines]
    return [point for point in points if Path(point).is_relative_to(below)]


def _is_current(lock: TextIO, run_dir: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(lock.fileno()), (run_dir / "lock").stat())
    except FileNotFoundError:
        return False


def _lock_within(lock: TextIO, timeout: float) -> bool:
    def taken() -> bool:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    try:
        wait_until("lock", taken, timeout=timeout)
    except LabTimeout:
        return False
    return True
