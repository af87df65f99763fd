from __future__ import annotations

from pathlib import Path

import pytest

from kubeflash.host.root import HostRoot, NoMachineCopied
from support.sysfs_builder import MadeUpServer


def test_a_copy_of_a_root(server: MadeUpServer):
    assert HostRoot.of(server.root.path) == server.root


def test_a_copy_of_sys_alone(server: MadeUpServer):
    server.write("sys/proc/sys/kernel/hostname", "not this one")
    root = HostRoot.of(server.root.sys)
    assert root.sys == server.root.sys
    assert root.nvmet == server.root.nvmet
    assert not any(path.exists() for path in (root.proc, root.dev, root.path / "etc", root.path / "lib"))


@pytest.mark.parametrize("folder", ["", "sys/bus", "missing"])
def test_what_is_no_copy(tmp_path: Path, folder: str):
    (tmp_path / "sys/bus").mkdir(parents=True)
    with pytest.raises(NoMachineCopied, match="give a copy of /sys, or of /") as failed:
        HostRoot.of(tmp_path / folder)
    assert "\n" not in str(failed.value)


def test_a_file_is_no_copy(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(NoMachineCopied):
        HostRoot.of(tmp_path / "file")
