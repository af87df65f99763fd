from __future__ import annotations

import asyncio
import contextlib
import shutil
from pathlib import Path

import pytest

from kubeflash.host import pathwatch
from kubeflash.host.pathwatch import PathWatch, watch
from kubeflash.host.root import HostRoot


class Controllers:
    """Controllers in a tree."""

    def __init__(self, folder: Path) -> None:
        self.root = HostRoot(folder)
        self._class = folder / "sys" / "class" / "nvme"
        self._removed = 0

    def add(self, instance: int, state: str = "live", transport: str = "tcp") -> None:
        folder = self._class / f"nvme{instance}"
        folder.mkdir(parents=True)
        (folder / "transport").write_text(f"{transport}\n")
        (folder / "state").write_text(f"{state}\n")

    def state(self, instance: int, state: str) -> None:
        (self._class / f"nvme{instance}" / "state").write_text(f"{state}\n")

    def remove(self, instance: int) -> None:
        # its inode is not given out again at once
        self._removed += 1
        (self._class / f"nvme{instance}").rename(self._class.parent / f"old{self._removed}")

    def remove_class(self) -> None:
        shutil.rmtree(self._class)


@pytest.fixture
def controllers(tmp_path: Path) -> Controllers:
    return Controllers(tmp_path)


def test_a_state_that_changes_is_seen_once(controllers: Controllers):
    controllers.add(0, transport="pcie")
    controllers.add(4)
    paths = PathWatch(controllers.root)
    assert [paths.changed(), paths.changed(), paths.any] == [False, False, True]
    controllers.state(4, "connecting")
    assert [paths.changed(), paths.changed()] == [True, False]
    controllers.state(4, "live")
    assert [paths.changed(), paths.changed()] == [True, False]


def test_connections_come_and_go(controllers: Controllers):
    paths = PathWatch(controllers.root)
    assert not paths.changed(), "there is no such class"
    controllers.add(4)
    assert [paths.changed(), paths.any] == [True, True]
    controllers.remove(4)
    assert [paths.changed(), paths.any] == [True, False]
    controllers.remove_class()
    assert not paths.changed()


def test_local_ssds_do_not_count(controllers: Controllers):
    controllers.add(0, transport="pcie")
    paths = PathWatch(controllers.root)
    paths.changed()
    controllers.state(0, "resetting")
    controllers.add(1, transport="apple-nvme")
    assert [paths.changed(), paths.any] == [False, False]


def test_a_number_may_become_anothers(controllers: Controllers):
    controllers.add(4, transport="pcie")
    paths = PathWatch(controllers.root)
    paths.changed()
    controllers.remove(4)
    controllers.add(4)
    assert [paths.changed(), paths.any] == [True, True]
    controllers.remove(4)
    controllers.add(4, transport="pcie")
    assert [paths.changed(), paths.any] == [True, False]


def test_a_look_reads_one_file_for_each_connection(controllers: Controllers, monkeypatch: pytest.MonkeyPatch):
    for instance in range(8):
        controllers.add(instance, transport="tcp" if instance < 3 else "pcie")
    read: list[str] = []
    real = pathwatch._read
    monkeypatch.setattr(pathwatch, "_read", lambda path: read.append(path) or real(path))
    paths = PathWatch(controllers.root)
    paths.changed()
    assert len(read) == 8 + 3
    read.clear()
    paths.changed()
    assert sorted(Path(path).parts[-2:] for path in read) == [(f"nvme{number}", "state") for number in range(3)]


def test_watching_looks_often_only_where_there_is_something_to_see(
    controllers: Controllers, monkeypatch: pytest.MonkeyPatch
):
    slept: list[float] = []
    calls: list[int] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        match len(slept):
            case 1:
                controllers.add(4)
            case 2:
                controllers.state(4, "connecting")
            case 4:
                controllers.remove(4)
            case 5:
                raise asyncio.CancelledError

    monkeypatch.setattr(pathwatch.asyncio, "sleep", sleep)
    with contextlib.suppress(asyncio.CancelledError):
        asyncio.run(watch(controllers.root, lambda: calls.append(len(slept))))
    assert slept == [10, 2, 2, 2, 10]
    assert calls == [1, 2, 4]


def test_of_this_machine():
    assert not PathWatch(HostRoot()).changed()
