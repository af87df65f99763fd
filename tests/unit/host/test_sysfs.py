from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from kubeflash.host.sysfs import device_path, list_names, read_int, read_text


def test_text_is_stripped_of_spaces_and_nuls(tmp_path: Path):
    (tmp_path / "serial").write_bytes(b"  S64H NE0R  \0\0\n")
    assert read_text(tmp_path / "serial") == "S64H NE0R"


def test_bytes_that_are_no_text_are_marked(tmp_path: Path):
    (tmp_path / "model").write_bytes(b"A\xffB\n")
    assert read_text(tmp_path / "model") == "A\ufffdB"


@pytest.mark.parametrize("code", [errno.ENOENT, errno.ENODEV, errno.EIO, errno.EACCES, errno.EINVAL])
@pytest.mark.parametrize("step", ["open", "read"])
def test_what_cannot_be_read_is_none(tmp_path: Path, code: int, step: str, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object) -> None:
        raise OSError(code, "gone")

    (tmp_path / "size").write_text("1")
    monkeypatch.setattr(os, step, fail)
    assert read_text(tmp_path / "size") is None
    assert read_int(tmp_path / "size") is None


@pytest.mark.parametrize(("text", "base", "value"), [("12\n", 10, 12), ("0x10de\n", 16, 0x10DE), ("-1", 10, -1)])
def test_numbers(tmp_path: Path, text: str, base: int, value: int):
    (tmp_path / "n").write_text(text)
    assert read_int(tmp_path / "n", base) == value


@pytest.mark.parametrize("text", ["", "\n", "none", "0x10de", "1 2"])
def test_what_is_no_number_is_none(tmp_path: Path, text: str):
    (tmp_path / "n").write_text(text)
    assert read_int(tmp_path / "n") is None


def test_names_of_a_folder_that_is_not_there(tmp_path: Path):
    assert list_names(tmp_path / "nothing") == []


def test_links_lead_to_devices_and_nowhere_else(tmp_path: Path):
    folder = tmp_path / "class" / "nvme"
    folder.mkdir(parents=True)
    (folder / "file").touch()
    for name, target in {
        "nvme0": "../../devices/pci0000:00/0000:00:01.0/nvme/nvme0",
        "outside": "../../../etc",
        "absolute": "/sys/devices/pci0000:00",
        "elsewhere": "../../module/nvme",
    }.items():
        (folder / name).symlink_to(target)
    assert device_path(tmp_path, "class/nvme/nvme0") == "devices/pci0000:00/0000:00:01.0/nvme/nvme0"
    for name in ("outside", "absolute", "elsewhere", "file", "missing"):
        assert device_path(tmp_path, f"class/nvme/{name}") is None
