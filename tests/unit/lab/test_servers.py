"""What a virtual server that is off remembers of its SSDs, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lab import network, servers, spec
from lab.errors import LabError
from lab.image import ServerImage
from lab.servers import VirtualServer

IMAGE = ServerImage(Path("/c/root"), Path("/c/root.ext4"), Path("/c/vmlinux"), Path("/c/initramfs"))


class Switches:
    def __init__(self):
        self.taps = {}
        self.cut = set()

    def add_tap(self, name, bridge=network.MAIN):
        self.taps[name] = bridge.name
        return name

    def del_tap(self, name):
        del self.taps[name]

    def set_link(self, name, *, up):
        self.cut ^= {name}
        assert (name in self.cut) is not up


def head(path, size):
    with path.open("rb") as file:
        return file.read(size)


@pytest.fixture
def switches():
    return Switches()


@pytest.fixture
def room(tmp_path, switches):
    def build(name):
        return VirtualServer(
            spec.load(name) if isinstance(name, str) else name,
            image=IMAGE,
            app=Path("/c/app"),
            run_dir=tmp_path,
            network=switches,
            hosts={},
        )

    return build


def test_an_image_file_is_there_before_the_first_start_and_keeps_what_is_written(room):
    server = room("strangers")
    path = server.image_file("KFC0", 32)
    assert path.stat().st_size == 64 << 20
    assert path.stat().st_blocks == 0
    with path.open("r+b") as file:
        file.write(b"here")
    assert server.image_file("KFC0", 32) == path
    assert head(path, 4) == b"here"


@pytest.mark.parametrize("number", [0, 33])
def test_a_namespace_that_is_not_there_is_refused(room, number):
    for act in (
        lambda server: server.image_file("KFC0", number),
        lambda server: server.break_ssd("KFC0", namespace=number),
        lambda server: server.mend_ssd("KFC0", namespace=number),
    ):
        with pytest.raises(LabError, match="numbered from 1"):
            act(room("strangers"))


@pytest.fixture
def devices(monkeypatch):
    """Serial number → the device that a server is started with, and all block nodes, of the last start."""
    seen = {}

    class Process:
        running = True

        def __init__(self, name, argv, *, run_dir):
            documents = [json.loads(word) for word in argv if word.startswith("{")]
            seen.clear()
            seen.update({one["serial"]: one for one in documents if one["driver"] == "nvme"})
            seen["nodes"] = {one["node-name"] for one in documents if "node-name" in one}

        def start(self):
            return self

        def stop(self, *, force):
            self.running = not force

    monkeypatch.setattr(servers, "ManagedProcess", Process)
    monkeypatch.setattr(servers, "run", lambda *_, **__: None)  # qemu-img
    return seen


def test_a_server_starts_with_what_is_wrong_with_its_ssds_and_not_with_what_was_taken_out(room, devices):
    a, b = room("gpu-a"), room("gpu-b")
    b.break_ssd("KFB1")
    b.set_smart_warning("KFB1", 4)
    b.start()
    assert devices["KFB1"]["smart_critical_warning"] == 4
    assert "fault-KFB1-n1" in devices["nodes"]
    b.power_off_hard()
    b.move_ssd("KFB1", a)
    b.start()
    assert set(devices) == {"KFB0", "nodes"}
    a.start()
    assert devices["KFB1"]["smart_critical_warning"] == 4
    assert "fault-KFB1-n1" in devices["nodes"]
    a.power_off_hard()
    a.mend_ssd("KFB1")
    a.set_smart_warning("KFB1", 0)
    a.start()
    assert "smart_critical_warning" not in devices["KFB1"]
    assert "fault-KFB1-n1" not in devices["nodes"]


def test_what_qemu_plugs_in_at_a_start_only_is_refused_by_a_server_that_is_on(room, devices):
    a, b = room("gpu-a"), room("gpu-b")
    a.start()
    with pytest.raises(LabError, match=r"gpu-a is on: QEMU takes SSD KFB1 \(dual port\) only at a start"):
        b.move_ssd("KFB1", a)
    assert "KFB1" in b.plugged()


def test_an_ssd_moves_with_its_bytes_and_back(room):
    a, b = room("gpu-a"), room("gpu-b")
    with b.image_file("KFB1").open("r+b") as file:
        file.write(b"b's")
    b.move_ssd("KFB1", a)
    assert a.plugged()["KFB1"] == "E0"
    assert "KFB1" not in b.plugged()
    assert head(a.image_file("KFB1"), 3) == b"b's"
    assert not (b.files.folder / "ssd-KFB1-n1.raw").exists()
    with pytest.raises(LabError, match="gpu-b has no SSD KFB1"):
        b.image_file("KFB1")
    a.move_ssd("KFB1", b, port="E0")
    assert b.plugged() == {"KFB0": "B0", "KFB1": "E0"}


def test_an_ssd_without_a_place_to_go_stays(room):
    a, b = room("gpu-a"), room("gpu-b")
    with pytest.raises(LabError, match="holds SSD KFA0"):
        b.move_ssd("KFB0", a, port="A0")
    with pytest.raises(LabError, match="no port g0"):
        b.move_ssd("KFB0", a, port="g0")
    with pytest.raises(LabError, match="has SSD KFB0 already"):
        b.move_ssd("KFB0", b)
    with pytest.raises(LabError, match="has no SSD KFA0"):
        b.move_ssd("KFA0", a)
    strangers = room("strangers")
    with pytest.raises(LabError, match="free: none"):
        b.move_ssd("KFB0", strangers)
    assert b.plugged() == {"KFB0": "B0", "KFB1": "B1"}


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda server: server.throttle_ssd("KFA0", 10), "is off"),
        (lambda server: server.throttle_ssd("KFA0", 0), "for ever"),
        (lambda server: server.throttle_ssd("KFX", 10), "has no SSD KFX"),
        (lambda server: server.break_ssd("KFX"), "has no SSD KFX"),
        (lambda server: server.mend_ssd("KFX"), "has no SSD KFX"),
        (lambda server: server.break_ssd("KFA0", reads=False, writes=False), "is none"),
        (lambda server: server.set_smart_warning("KFX", 1), "has no SSD KFX"),
        (lambda server: server.set_smart_warning("KFA0", 64), "0 to 63"),
        (lambda server: server.set_smart_warning("KFA0", -1), "0 to 63"),
    ],
)
def test_what_cannot_be_is_refused(room, act, message):
    with pytest.raises(LabError, match=message):
        act(room("gpu-a"))


def test_servers_are_prepared_before_any_of_them_is_switched_on(tmp_path, monkeypatch):
    happened = []

    class Room:
        run_dir = tmp_path
        network = Switches()

        def add_server(self, server):
            happened.append(("on", server.name))

    monkeypatch.setattr(servers.image, "server_image", lambda repo: IMAGE)
    monkeypatch.setattr(servers.image, "app_image", lambda repo, tree: Path("/c/app"))
    monkeypatch.setattr(servers, "start_all", lambda made, timeout: happened.append(("wait", len(made))))
    booted = servers.boot(
        Room(), Path("/repo"), ("strangers",), prepare=lambda server: happened.append(("prepare", server.name))
    )
    assert list(booted) == ["strangers"]
    assert happened == [("prepare", "strangers"), ("on", "strangers"), ("wait", 1)]


# ---- Cables


def described(name, **more):
    return spec.parse({"name": name, "address": "10.77.0.9/24", "numa": [{"node": 0}], **more})


def test_a_server_with_a_storage_address_has_a_cable_to_each_network(room, devices, switches):
    server = room(described("two", storage="10.78.0.9/24"))
    server.start()
    assert switches.taps == {"tap-two": network.MAIN.name, "sto-two": network.STORAGE.name}
    server.cut_cable(network="storage")
    assert switches.cut == {"sto-two"}
    server.power_off_hard()
    server.mend_cable(network="storage")
    server.cut_cable()
    assert switches.cut == {"tap-two"}
    server.start()
    assert len(switches.taps) == 2, "cables stay over power cuts"
    server.close()
    assert switches.taps == {}


def test_a_cable_that_is_not_there_is_not_cut(room, devices, switches):
    server = room(described("one"))
    with pytest.raises(LabError, match="no cable to network main; it has: none; start it first"):
        server.cut_cable()
    server.start()
    with pytest.raises(LabError, match="no cable to network storage; it has: main"):
        server.cut_cable(network="storage")
    assert switches.cut == set()
