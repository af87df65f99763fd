from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kubeflash.host import disconnect as module
from kubeflash.host.disconnect import disconnect
from kubeflash.host.holders import Holder, HoldersUnknown
from kubeflash.host.initiator_errors import DeviceHeld
from kubeflash.host.root import HostRoot

NQN = "nqn.2026-01.io.kubeflash:subsystem:one"


class Connected:
    """A tree with connections to one subsystem, and who holds its device."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = HostRoot(folder)
        self.holders: tuple[Holder, ...] | Exception = (Holder("mount", "mounted at /data"),)
        self.deleted: list[str] = []
        (folder / "dev").mkdir()
        (folder / "dev" / "nvme4n1").touch()
        block = folder / "sys" / "class" / "block" / "nvme4n1"
        block.mkdir(parents=True)
        (block / "size").write_text("2048\n")
        monkeypatch.setattr(module, "_NOT_A_BLIP", 0.3)
        monkeypatch.setattr(module, "holders", self._holders)
        monkeypatch.setattr(module, "_write", self._delete)

    def path(self, instance: int, state: str) -> None:
        folder = self.root.sys / "class" / "nvme" / f"nvme{instance}"
        (folder / f"nvme4c{instance}n1").mkdir(parents=True)
        for name, value in {"transport": "tcp", "subsysnqn": NQN, "state": state}.items():
            (folder / name).write_text(f"{value}\n")

    def state(self, instance: int, state: str) -> None:
        attribute = self.root.sys / "class" / "nvme" / f"nvme{instance}" / "state"
        new = attribute.with_name("new-state")
        new.write_text(f"{state}\n")
        new.rename(attribute)

    def _holders(self, *_args: object, **_options: object) -> tuple[Holder, ...]:
        if isinstance(self.holders, Exception):
            raise self.holders
        return self.holders

    def _delete(self, path: Path) -> None:
        self.deleted.append(path.parent.name)
        shutil.rmtree(path.parent)


@pytest.fixture
def connected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Connected:
    return Connected(tmp_path, monkeypatch)


@contextmanager
def shortly(connected: Connected, instance: int, *states: str) -> Iterator[None]:
    """A path has these states, one every 0.15 s."""

    def change() -> None:
        for state in states:
            time.sleep(0.15)
            connected.state(instance, state)

    thread = threading.Thread(target=change)
    thread.start()
    try:
        yield
    finally:
        thread.join()


def test_a_held_device_stays_however_long_its_server_is_gone(connected: Connected):
    connected.path(4, "connecting")
    with pytest.raises(DeviceHeld, match="mounted at /data"):
        disconnect(connected.root, NQN)
    assert connected.deleted == []


def test_an_abandoned_connection_ends_under_its_holders_on_all_paths(
    connected: Connected, caplog: pytest.LogCaptureFixture
):
    connected.path(4, "connecting")
    connected.path(5, "connecting")
    began = time.monotonic()
    disconnect(connected.root, NQN, abandoned=True)
    assert time.monotonic() - began >= 0.3
    assert connected.deleted == ["nvme4", "nvme5"]
    assert "mounted at /data" in caplog.text


def test_an_abandoned_connection_with_one_live_path_stays(connected: Connected):
    connected.path(4, "connecting")
    connected.path(5, "live")
    with pytest.raises(DeviceHeld):
        disconnect(connected.root, NQN, abandoned=True)
    assert connected.deleted == []


def test_a_blip_is_no_reason(connected: Connected):
    connected.path(4, "connecting")
    with shortly(connected, 4, "live", "connecting"), pytest.raises(DeviceHeld):
        disconnect(connected.root, NQN, abandoned=True)
    assert connected.deleted == []


def test_there_must_be_time_to_wait(connected: Connected):
    connected.path(4, "connecting")
    began = time.monotonic()
    with pytest.raises(DeviceHeld):
        disconnect(connected.root, NQN, abandoned=True, timeout=0.2)
    assert time.monotonic() - began < 2
    assert connected.deleted == []


def test_who_holds_it_need_not_be_known_of_an_abandoned_connection(connected: Connected):
    connected.path(4, "connecting")
    connected.holders = HoldersUnknown("cannot read the mounts of process 1")
    with pytest.raises(HoldersUnknown):
        disconnect(connected.root, NQN)
    disconnect(connected.root, NQN, abandoned=True)
    assert connected.deleted == ["nvme4"]


def test_what_nobody_holds_is_not_waited_for(connected: Connected, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "_NOT_A_BLIP", 60)
    connected.path(4, "connecting")
    connected.holders = ()
    disconnect(connected.root, NQN, abandoned=True)
    assert connected.deleted == ["nvme4"]
    disconnect(connected.root, NQN, abandoned=True)
