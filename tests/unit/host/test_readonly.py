"""Write protection on what is no block device; `contract.reaching` has the real ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from kubeflash.host.readonly import ReadOnlyFailed, is_read_only, set_read_only
from kubeflash.host.root import HostRoot


def test_only_a_block_device_is_protected(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("x")
    for device, words in ((file, "no block device"), (tmp_path / "none", "cannot be opened")):
        with pytest.raises(ReadOnlyFailed, match=words):
            set_read_only(device, value=True)


def test_what_sysfs_says(tmp_path: Path) -> None:
    root = HostRoot(tmp_path)
    assert not is_read_only(root, "nvme0n1p3")
    folder = tmp_path / "sys/class/block/nvme0n1p3"
    folder.mkdir(parents=True)
    for text, read_only in (("1\n", True), ("0\n", False)):
        (folder / "ro").write_text(text)
        assert is_read_only(root, "nvme0n1p3") is read_only
