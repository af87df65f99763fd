"""The contract of disks on a loop device of this machine."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.register_assert_rewrite("contract.disks")

from contract import disks  # noqa: E402  after the line above, or its asserts say nothing
from kubeflash.host.root import HostRoot  # noqa: E402

SIZE = 320 << 20


def _why_not() -> str:
    if os.geteuid() != 0:
        return "loop devices need root"
    result = subprocess.run(["losetup", "-f"], capture_output=True, text=True, check=False)
    return f"no loop devices: {result.stderr.strip()}" if result.returncode != 0 else ""


@pytest.fixture
def loop(tmp_path: Path) -> Iterator[Path]:
    reason = _why_not()
    if reason:
        pytest.skip(reason)
    image = tmp_path / "disk.img"
    with image.open("wb") as file:
        file.truncate(SIZE)
    made = subprocess.run(["losetup", "-f", "--show", "-P", image], capture_output=True, text=True, check=True)
    device = Path(made.stdout.strip())
    try:
        yield device
    finally:
        subprocess.run(["partx", "-d", str(device)], check=False, capture_output=True)
        subprocess.run(["losetup", "-d", str(device)], check=True)


@pytest.mark.parametrize("contract", disks.CONTRACTS, ids=lambda contract: contract.__name__.removeprefix("contract_"))
def test_contract(contract: Callable[[HostRoot, Path], None], loop: Path) -> None:
    try:
        contract(HostRoot(), loop)
    except disks.Skipped as reason:
        pytest.skip(str(reason))
