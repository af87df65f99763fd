from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from kubeflash.api.v1alpha1 import SsdHealth
from kubeflash.host import smart
from kubeflash.host.commands import CommandTimedOut
from kubeflash.host.nvme import NvmeSsd, find_ssds
from kubeflash.host.root import HostRoot
from kubeflash.host.smart import AGAIN, AGAIN_AFTER_HANG, Health, HealthWatch, parse, read_health
from support.sysfs_builder import MadeUpServer, Namespace

# the shape of nvme-cli 1.x: numbers, counters of 128 bits as fractions
OLD = {
    "critical_warning": 0,
    "temperature": 310,
    "avail_spare": 100,
    "spare_thresh": 10,
    "percent_used": 3,
    "data_units_read": 1765656.0,
    "data_units_written": 4445011.0,
    "power_on_hours": 6282.0,
    "media_errors": 0.0,
}
# of 2.x, and of some versions with the warnings one by one
NEW = OLD | {
    "critical_warning": {"value": 0, "available_spare": 0, "temp_threshold": 0, "ro": 0},
    "data_units_written": 4445011,
    "power_on_hours": 6282,
    "media_errors": 0,
}
SOUND = Health(
    percentage_used=3,
    available_spare=100,
    spare_threshold=10,
    media_errors=0,
    temperature_celsius=37,
    written_bytes=4445011 * 512_000,
    power_on_hours=6282,
)


@pytest.mark.parametrize(
    "log",
    [
        OLD,
        NEW,
        OLD | {"data_units_written": "4,445,011", "power_on_hours": "6282"},  # too large for a number, as a text
    ],
)
def test_the_log_of_a_sound_ssd(log: dict):
    assert parse(json.dumps(log)) == SOUND


@pytest.mark.parametrize(
    ("warning", "words"),
    [
        (1, ["spare"]),
        (2, ["temperature"]),
        (4, ["unreliable"]),
        (8, ["read-only"]),
        (16, ["backup power"]),
        (32, ["persistent memory"]),
        (9, ["spare", "read-only"]),
        (0xC0, ["0xc0"]),
        ({"value": 9}, ["spare", "read-only"]),
        ({"Value": 4, "reliability_degraded": 1}, ["unreliable"]),
        ({"available_spare": 1, "ro": 1, "temp_threshold": 0}, ["spare", "read-only"]),
        ("8", ["read-only"]),
    ],
)
def test_warnings_in_words(warning: object, words: list[str]):
    critical = parse(json.dumps(OLD | {"critical_warning": warning})).critical
    assert len(critical) == len(words)
    assert all(word in said for word, said in zip(words, critical, strict=True))


def test_what_is_missing_or_no_number_is_not_said():
    odd = {"critical_warning": None, "temperature": 0, "percent_used": "many", "avail_spare": -1, "media_errors": [1]}
    assert parse(json.dumps(odd)) == Health()
    assert parse('{"critical_warning": 0, "power_on_hours": Infinity, "spare_thresh": NaN}') == Health()
    assert parse(json.dumps({"critical_warning": 0, "media_errors": (1 << 128) - 1})).media_errors == (1 << 128) - 1


@pytest.mark.parametrize("text", ["", "[]", "null", "{}", "NVMe status: INVALID_OPCODE", '{"error": "no"}'])
def test_what_is_no_log(text: str):
    with pytest.raises(ValueError, match=r"SMART log|Expecting value"):
        parse(text)


def test_what_lasts_is_what_a_status_says():
    whole = SOUND.lasting
    assert whole == SsdHealth(percentage_used=3, available_spare=100, spare_threshold=10, media_errors=0)
    momentary = Health(temperature_celsius=70, written_bytes=1, power_on_hours=1, unknown="why")
    assert momentary.lasting == SsdHealth(unknown="why")
    assert Health(media_errors=1 << 127).lasting.media_errors == (1 << 63) - 1


# --- nvme-cli ---


@pytest.fixture
def nvme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Puts a command `nvme` on PATH that does what a shell script says."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    def make(script: str) -> None:
        (tmp_path / "nvme").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "nvme").chmod(0o755)

    return make


def test_nvme_cli_is_asked(nvme, tmp_path: Path):
    nvme(f"echo \"$*\" > {tmp_path}/asked; echo '{json.dumps(OLD)}'")
    assert read_health(HostRoot(), "nvme7") == SOUND
    assert (tmp_path / "asked").read_text() == "smart-log --output-format=json /dev/nvme7\n"


def test_why_nothing_is_known(nvme, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    nvme("echo 'NVMe status: Invalid Field in Command(0x4002)' >&2; echo more >&2; exit 1")
    failed = "nvme smart-log failed: "
    assert read_health(HostRoot(), "nvme0").unknown == f"{failed}NVMe status: Invalid Field in Command(0x4002)"
    nvme("""echo '{"error":"/dev/nvme0: No such file or directory"}'; echo 'Usage: nvme' >&2; exit 1""")
    assert read_health(HostRoot(), "nvme0").unknown == f"{failed}/dev/nvme0: No such file or directory"
    nvme("exit 3")
    assert read_health(HostRoot(), "nvme0").unknown == f"{failed}status 3"
    nvme("echo none")
    assert "Expecting value" in read_health(HostRoot(), "nvme0").unknown
    (tmp_path / "nvme").chmod(0o644)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "Permission denied" in read_health(HostRoot(), "nvme0").unknown
    (tmp_path / "nvme").unlink()
    assert read_health(HostRoot(), "nvme0").unknown == ("the command nvme is not there: install the package nvme-cli")


def test_an_ssd_that_does_not_answer_has_a_limit(nvme, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(smart, "LIMIT", 0.1)
    nvme("exec sleep 60")
    with pytest.raises(CommandTimedOut, match=r"took longer than 0\.1 s"):
        read_health(HostRoot(), "nvme0")


# --- asking now and then ---


class Ssds:
    """Made-up SSDs that count how often they are asked."""

    def __init__(self, server: MadeUpServer) -> None:
        self.server, self.now = server, 1000.0
        self.asked: list[str] = []
        self.hanging: set[str] = set()
        self.answer = SOUND
        self.watch = HealthWatch(server.root, self.ask, lambda: self.now)

    def ask(self, root: HostRoot, controller: str) -> Health:
        assert root == self.server.root
        self.asked.append(controller)
        if controller in self.hanging:
            self.now += 5
            raise CommandTimedOut(["nvme", "smart-log", controller], 5, stuck=False)
        return self.answer

    def find(self) -> tuple[NvmeSsd, ...]:
        return find_ssds(self.server.root)

    def look(self) -> dict[str, Health]:
        self.asked.clear()
        return self.watch.look(self.find())


@pytest.fixture
def ssds(server: MadeUpServer) -> Ssds:
    server.ssd("pci0000:00/0000:00:01.0", "A", [Namespace(1), Namespace(2)])
    server.ssd("pci0000:00/0000:00:02.0", "B")
    server.ssd("pci0000:00/0000:00:03.0", "C", [])
    return Ssds(server)


def test_each_controller_is_asked_once_in_a_while(ssds: Ssds):
    assert ssds.look() == dict.fromkeys(("A-1", "A-2", "B-1", "C-0"), SOUND)
    assert ssds.asked == ["nvme0", "nvme1", "nvme2"]
    ssds.now += AGAIN - 1
    ssds.answer = Health(critical=("worn",))
    assert ssds.look()["A-1"] == SOUND
    assert ssds.asked == []
    ssds.now += 1
    assert ssds.look()["A-1"] == ssds.answer
    assert ssds.asked == ["nvme0", "nvme1", "nvme2"]


def test_one_that_hangs_holds_up_the_others_until_next_time_and_is_left_alone_for_long(ssds: Ssds):
    ssds.hanging = {"nvme0"}
    found = ssds.look()
    assert ssds.asked == ["nvme0"]
    assert "took longer than 5 s" in found["A-1"].unknown
    assert found["B-1"].unknown == "it was not asked yet"
    assert ssds.look()["B-1"] == SOUND
    assert ssds.asked == ["nvme1", "nvme2"]
    ssds.now += AGAIN
    ssds.look()
    assert ssds.asked == ["nvme1", "nvme2"]
    ssds.now += AGAIN_AFTER_HANG
    ssds.hanging.clear()
    assert ssds.look()["A-1"] == SOUND


def test_one_that_hangs_later_keeps_no_old_answer(ssds: Ssds):
    ssds.look()
    ssds.now += AGAIN
    ssds.hanging = {"nvme0"}
    assert "took longer" in ssds.look()["A-1"].unknown
    assert ssds.look()["B-1"] == SOUND


def test_an_ssd_whose_controller_does_not_work_is_not_asked(server: MadeUpServer):
    server.ssd("pci0000:00/0000:00:01.0", "S", state="resetting")
    ssds = Ssds(server)
    assert ssds.look()["S-1"].unknown == "its controller is resetting"
    server.write("sys/devices/pci0000:00/0000:00:01.0/nvme/nvme0/state", "live\n")
    assert ssds.look()["S-1"] == SOUND


def test_an_answer_of_another_ssd_at_the_same_name_does_not_count(ssds: Ssds):
    found = ssds.find()
    transport = ssds.server.root.sys / "devices/pci0000:00/0000:00:02.0/nvme/nvme1/transport"
    transport.unlink()
    assert "pulled out" in ssds.watch.look(found)["B-1"].unknown
    transport.write_text("pcie\n")
    assert ssds.look()["B-1"] == SOUND, "it is asked again at once"
    ssds.server.write("sys/devices/pci0000:00/0000:00:02.0/nvme/nvme1/serial", "OTHER\n")
    ssds.answer = Health(critical=("worn",))
    assert ssds.look()["OTHER-1"] == ssds.answer


def test_what_is_forgotten_is_asked_anew(ssds: Ssds):
    ssds.look()
    ssds.watch.forget("nvme1")
    ssds.look()
    assert ssds.asked == ["nvme1"]
    ssds.look()
    assert ssds.asked == []
    ssds.watch.forget()
    ssds.look()
    assert ssds.asked == ["nvme0", "nvme1", "nvme2"]


def test_one_that_hangs_is_left_alone_though_it_is_forgotten(ssds: Ssds):
    ssds.look()
    ssds.hanging = {"nvme0"}
    ssds.watch.forget()
    assert "took longer" in ssds.look()["A-1"].unknown
    assert ssds.asked == ["nvme0"]
    ssds.watch.forget()
    assert ssds.look()["B-1"] == SOUND
    assert ssds.asked == ["nvme1", "nvme2"], "those that were due after it are still asked"
    ssds.watch.forget()
    ssds.look()
    assert ssds.asked == ["nvme1", "nvme2"]


def test_until_it_answers_anew_the_old_answer_holds(ssds: Ssds):
    ssds.look()
    ssds.hanging = {"nvme0"}
    ssds.watch.forget()
    assert ssds.look()["B-1"] == SOUND
