"""Devices come and go while they are read: whatever is missing or garbage harms nothing but itself."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kubeflash.host.inventory import Inventory, discover
from kubeflash.host.listing import read_listing
from kubeflash.host.root import HostRoot
from kubeflash.topology.devices import GpuRules
from support.sysfs_builder import DOWNSTREAM, ROOT_PORT, UPSTREAM, MadeUpServer, Namespace

GOING, STAYING = "pci0000:10", "pci0000:20"
Damage = Callable[[Path], None]


def furnish(server: MadeUpServer) -> HostRoot:
    """Two host bridges with a switch, a GPU, an SSD, a dual-port SSD and a share of one each."""
    server.processors({0: "0-1", 1: "2-3"}, {0: "0-1", 1: "2-3"})
    server.write("dev/nvme-fabrics", "transport=%s,dhchap_secret=%s")
    server.able()
    server.write("usr/share/misc/pci.ids", "10de  NVIDIA\n\t2330  [H100]\n")
    for number, (bridge, serial) in enumerate(((GOING, "GOING"), (STAYING, "STAYING"))):
        bus = 0x10 * (number + 1)
        root_port = f"{bridge}/0000:{bus:02x}:01.0"
        switch = server.ports(f"{root_port}/0000:{bus + 1:02x}:00.0", [ROOT_PORT, UPSTREAM], readable=4096, acs=0x1D)
        ports = [
            server.ports(f"{switch}/0000:{bus + 2:02x}:{place:02x}.0", [DOWNSTREAM], readable=4096)
            for place in range(3)
        ]
        gpu = server.gpu(f"{ports[0]}/0000:{bus + 3:02x}:00.0", numa=number)
        server.link(gpu, "32.0 GT/s PCIe x16")
        server.ssd(f"{ports[1]}/0000:{bus + 4:02x}:00.0", serial, [Namespace(1), Namespace(2)], numa=number)
        dual = [f"{ports[2]}/0000:{bus + 5:02x}:00.{function}" for function in (0, 1)]
        for path in dual:
            server.ssd(path, f"{serial}-DUAL", subsystem=9 + number, numa=number)
        server.share(dual[1], dual[0].rpartition("/")[2])
        information = (
            f"Model: NVIDIA H100\nGPU UUID: GPU-7f2c1a90-1b2c-4d5e-8f90-a1b2c3d4e5f{number}\nDevice Minor: 0\n"
        )
        server.write(f"proc/driver/nvidia/gpus/0000:{bus + 3:02x}:00.0/information", information)
    return server.root


def staying(found: Inventory) -> tuple[object, ...]:
    """All that is said of the devices on the host bridge that nothing happens to."""
    gpus = [gpu for gpu in found.gpus if gpu.root_complex == STAYING]
    return (
        gpus,
        [ssd for ssd in found.ssds if ssd.pci.root_complex == STAYING],
        {gpu.address: found.gpu_facts[gpu.address] for gpu in gpus},
    )


def files(root: HostRoot) -> list[Path]:
    """Every file and link of the machine."""
    return sorted(path for path in root.path.rglob("*") if path.is_symlink() or path.is_file())


def is_shared(path: Path, root: HostRoot) -> bool:
    """Whether it says something of all devices: of the machine, not of one."""
    text = path.relative_to(root.path).as_posix()
    return text.startswith(("sys/devices/system", "proc/sys", "lib", "boot", "usr", "dev", "sys/class/dmi"))


def is_of_staying(path: Path, root: HostRoot) -> bool:
    resolved = path.resolve().relative_to(root.path.resolve()).as_posix()
    text = f"{path.relative_to(root.path).as_posix()} {resolved}"
    return STAYING in text or "0000:23:00.0" in text or "nvme-subsys10" in text


def vanish(path: Path) -> None:
    del path  # it was taken away already


def become_unreadable(path: Path) -> None:
    """Opens, and cannot be read: EISDIR stands for EIO and ENODEV. (Tests run as root, whom no mode keeps out.)"""
    path.mkdir()


def become_garbage(path: Path) -> None:
    path.write_bytes(b"\xff\xfe\x00garbage -99999999999999999999\n")


def become_empty(path: Path) -> None:
    path.touch()


def become_a_link_to_nowhere(path: Path) -> None:
    path.symlink_to("../nowhere/at:all")


@contextmanager
def damaged(file: Path, damage: Damage) -> Iterator[None]:
    aside = file.with_name(f"{file.name}.aside")
    file.rename(aside)
    try:
        damage(file)
        yield
    finally:
        if file.is_dir() and not file.is_symlink():
            file.rmdir()
        else:
            file.unlink(missing_ok=True)
        aside.rename(file)


DAMAGES: tuple[Damage, ...] = (vanish, become_unreadable, become_garbage, become_empty, become_a_link_to_nowhere)


@pytest.fixture
def whole(tmp_path: Path) -> HostRoot:
    return furnish(MadeUpServer(tmp_path / "whole"))


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_every_single_file_in_turn(whole: HostRoot, damage: Damage):
    before = discover(whole, GpuRules())
    assert [len(part) for part in staying(before)] == [1, 3, 1]
    assert before.problems == ()
    for file in files(whole):
        if is_of_staying(file, whole):
            continue
        with damaged(file, damage):
            found = discover(whole, GpuRules())
            read_listing(whole)
        if is_shared(file, whole):
            assert [ssd.id for ssd in found.ssds] == [ssd.id for ssd in before.ssds], file
            assert [gpu.address for gpu in found.gpus] == [gpu.address for gpu in before.gpus], file
        else:
            assert staying(found) == staying(before), file
    assert discover(whole, GpuRules()) == before


# --- between listing and reading ---


class Clock:
    """Counts the calls to the kernel, and does something before one of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls, self.at, self.event = 0, -1, lambda: None
        for name in ("open", "read", "readlink", "listdir", "pread"):
            monkeypatch.setattr(os, name, self._counted(getattr(os, name)))

    def _counted(self, real: Callable) -> Callable:
        def call(*arguments, **options):
            self.calls += 1
            if self.calls == self.at:
                self.at = -1
                self.event()
            return real(*arguments, **options)

        return call

    def during(self, call: int, event: Callable[[], None]) -> None:
        self.calls, self.at, self.event = 0, call, event


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    with monkeypatch.context() as patch:
        yield Clock(patch)


class Tray:
    """All that is behind the first host bridge."""

    def __init__(self, root: HostRoot, aside: Path) -> None:
        aside.mkdir()
        links = [*root.sys.glob("bus/pci/devices/*"), *root.sys.glob("class/*/*")]
        self._links = {link: link.readlink() for link in links if link.is_symlink() and not is_of_staying(link, root)}
        folders = (
            root.sys / "devices" / GOING,
            root.sys / "devices/virtual/nvme-subsystem/nvme-subsys9",
            root.proc / "driver/nvidia/gpus/0000:13:00.0",
        )
        self._folders = {folder: aside / folder.name for folder in folders}

    def pull(self) -> None:
        for link in self._links:
            link.unlink(missing_ok=True)
        for folder, aside in self._folders.items():
            if not aside.exists():
                folder.rename(aside)

    def put_in(self) -> None:
        for folder, aside in self._folders.items():
            if aside.exists():
                aside.rename(folder)
        for link, target in self._links.items():
            if not link.is_symlink():
                link.symlink_to(target)


@pytest.fixture
def tray(whole: HostRoot, tmp_path: Path) -> Tray:
    return Tray(whole, tmp_path / "aside")


def test_a_tray_that_is_pulled_at_any_moment(whole: HostRoot, tray: Tray, clock: Clock):
    clock.during(-1, lambda: None)
    before = discover(whole, GpuRules())
    calls = clock.calls
    assert calls > 200
    for call in range(1, calls + 1):
        clock.during(call, tray.pull)
        found = discover(whole, GpuRules())
        assert staying(found) == staying(before), f"pulled at call {call}"
        tray.pull()  # where it was not read so far
        after = discover(whole, GpuRules())
        assert [gpu.root_complex for gpu in after.gpus] == [STAYING]
        assert {ssd.pci.root_complex for ssd in after.ssds} == {STAYING}
        assert after.problems == ()
        tray.put_in()
    assert discover(whole, GpuRules()) == before


def test_a_tray_that_is_put_in_at_any_moment(whole: HostRoot, tray: Tray, clock: Clock):
    clock.during(-1, lambda: None)
    before = discover(whole, GpuRules())
    calls = clock.calls
    for call in range(1, calls + 1):
        tray.pull()
        clock.during(call, tray.put_in)
        assert staying(discover(whole, GpuRules())) == staying(before), f"put in at call {call}"
        tray.put_in()
        assert discover(whole, GpuRules()) == before
