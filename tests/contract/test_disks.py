"""The contract of disks on a loop device of this machine.

Each runs in a process and a PID namespace of its own: who holds a device is asked of every process, and on a machine
whose process 1 may not be looked at the honest answer is that nobody can say.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from contract import disks

SIZE = 320 << 20
OWN_PROCESSES = ("unshare", "--pid", "--fork", "--mount-proc")
TOP = Path(__file__).parents[2]


def _why_not() -> str:
    if os.geteuid() != 0:
        return "loop devices need root"
    for argv in (["losetup", "-f"], [*OWN_PROCESSES, "true"], ["sfdisk", "--version"]):
        try:
            result = subprocess.run(argv, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            return f"{argv[0]} is not installed"
        if result.returncode != 0:
            return f"{argv[0]}: {result.stderr.strip()}"
    return ""


def _in_memory() -> str | None:
    """A folder in memory, where there is room: thousands of flushes to a disk that others use take minutes."""
    try:
        room = os.statvfs("/dev/shm")
    except OSError:
        return None
    return "/dev/shm" if room.f_bavail * room.f_frsize > 2 * SIZE else None


@pytest.fixture(params=[512, 4096], ids=["512B", "4096B"])
def loop(request: pytest.FixtureRequest) -> Iterator[Path]:
    reason = _why_not()
    if reason:
        pytest.skip(reason)
    with tempfile.TemporaryDirectory(dir=_in_memory(), prefix="kubeflash-") as folder:
        image = Path(folder) / "disk.img"
        with image.open("wb") as file:
            file.truncate(SIZE)
        setup = ["losetup", "-f", "--show", "-P", "--sector-size", str(request.param), image]
        made = subprocess.run(setup, capture_output=True, text=True, check=True)
        device = Path(made.stdout.strip())
        try:
            yield device
        finally:
            subprocess.run(["partx", "-d", str(device)], check=False, capture_output=True)
            subprocess.run(["losetup", "-d", str(device)], check=True)


@pytest.mark.parametrize("name", [item.__name__.removeprefix("contract_") for item in disks.CONTRACTS])
def test_contract(name: str, loop: Path) -> None:
    result = subprocess.run(
        [*OWN_PROCESSES, sys.executable, "-m", "contract.run_in_guest", "disks", str(loop), name],
        env={**os.environ, "PYTHONPATH": f"{TOP / 'operator'}:{TOP / 'tests'}"},
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode == 2:
        pytest.skip(result.stdout.strip())
    assert result.returncode == 0, result.stdout + result.stderr
