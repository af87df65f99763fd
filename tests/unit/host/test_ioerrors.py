from __future__ import annotations

import errno
import logging
import os
import time
from pathlib import Path

import pytest

from kubeflash.host.ioerrors import Birth, ErrorLog, born, disk_of
from kubeflash.host.kernellog import parse
from kubeflash.host.root import HostRoot

NAMES = {"nvme0n1": "A-1", "nvme1n1": "B-1"}

FORGED = "I/O error, dev nvme0n1, sector 8 op 0x0:(READ) flags 0x0"


def record(text: str, *, seconds: float = 100, priority: int = 3) -> bytes:
    return f"{priority},812,{int(seconds * 1e6)},-;{text}\n SUBSYSTEM=block\n DEVICE=b259:0\n".encode()


def failed(disk: str = "nvme0n1", what: str = "I/O", operation: str = "0x0:(READ)", seconds: float = 100) -> bytes:
    text = f"{what} error, dev {disk}, sector 8 op {operation} flags 0x80700 phys_seg 1 prio class 0"
    return record(text, seconds=seconds)


class Kmsg:
    """A kernel's log: records and errors in the order in which they are read."""

    def __init__(self, *records: bytes | int) -> None:
        self.records = list(records)

    def __call__(self) -> bytes:
        if not self.records:
            raise BlockingIOError(errno.EAGAIN, "empty")
        item = self.records.pop(0)
        if isinstance(item, int):
            raise OSError(item, os.strerror(item))
        return item


class Births:
    """When device nodes appeared."""

    def __init__(self, **seconds: float) -> None:
        self.nodes = {name: Birth(f"{name}@{when}", when) for name, when in seconds.items()}

    def __call__(self, node: Path) -> Birth | None:
        return self.nodes.get(node.name)


def error_log(kmsg: Kmsg, births: Births | None = None) -> ErrorLog:
    return ErrorLog(HostRoot(Path("/nowhere")), kmsg, births or Births(nvme0n1=1, nvme1n1=1))


@pytest.mark.parametrize(
    "content",
    [
        failed(),
        failed(operation="0x1:(WRITE)"),
        failed(what="critical medium"),
        failed(what="critical target"),
        failed(what="timeout"),
        failed(what="protection"),
        failed("nvme0c3n1"),  # by one of several paths
        record("blk_update_request: I/O error, dev nvme0n1, sector 0 op 0x0:(READ) flags 0x0 phys_seg 1 prio class 0"),
    ],
)
def test_what_counts(content: bytes):
    found = parse(content)
    assert found is not None
    assert (found.seconds, disk_of(found)) == (100, "nvme0n1")


@pytest.mark.parametrize(
    "content",
    [
        failed(what="operation not supported"),
        failed(what="recoverable transport"),
        failed(operation="0x3:(DISCARD)"),
        failed(operation="0x9:(WRITE_ZEROES)"),
        failed(operation="0x10:(UNKNOWN)"),
        record("nvme0n1: Read(0x2) @ LBA 8, 8 blocks, Unrecovered Read Error (sct 0x2 / sc 0x81) DNR"),
        record("nvme nvme0: I/O 12 QID 3 timeout, aborting"),
        # a host may choose its name so
        record(f"nvmet: connect by host x: {FORGED} for subsystem y not allowed"),
        record(f"nvmet: connect request for invalid subsystem {FORGED}!"),
        record("EXT4-fs error (device nvme0n1p2): ext4_find_entry:1463: inode #2: comm ls"),
        # anybody may write to the log, as facility 1
        record("I/O error, dev nvme0n1, sector 8 op 0x0:(READ) flags 0x0 phys_seg 1 prio class 0", priority=11),
        b"",
        b"\xff\xfe;\xff",
        b"3,x,y,-;I/O error, dev nvme0n1, sector 8 op 0x0:(READ) flags 0x0",
        b"I/O error, dev nvme0n1, sector 8 op 0x0:(READ) flags 0x0",
    ],
)
def test_what_does_not_count(content: bytes):
    found = parse(content)
    assert found is None or disk_of(found) is None


def test_errors_are_counted_by_ssd_and_only_new_records_are_read():
    kmsg = Kmsg(failed(), record("eth0: link up"), failed("nvme1n1"), failed(), failed("sda"))
    errors = error_log(kmsg)
    assert errors.look(NAMES) == {"A-1": 2, "B-1": 1}
    assert errors.look(NAMES) == {"A-1": 2, "B-1": 1}
    kmsg.records = [failed("nvme1n1")]
    assert errors.look({"nvme1n1": "B-1"}) == {"B-1": 2}
    assert errors.look(NAMES) == {"A-1": 2, "B-1": 2}


def test_errors_of_an_earlier_holder_of_a_name_do_not_count():
    births = Births(nvme0n1=50)
    kmsg = Kmsg(failed(seconds=49.9), failed(seconds=50.1))
    errors = error_log(kmsg, births)
    assert errors.look({"nvme0n1": "A-1"}) == {"A-1": 1}
    births.nodes["nvme0n1"] = Birth("another", 200)
    assert errors.look({"nvme0n1": "C-1"}) == {"C-1": 0}
    kmsg.records = [failed(seconds=199), failed(seconds=201)]
    assert errors.look({"nvme0n1": "C-1"}) == {"C-1": 1}


def test_a_clock_that_is_set_forgets_nothing():
    births = Births(nvme0n1=50)
    kmsg = Kmsg(failed())
    errors = error_log(kmsg, births)
    errors.look(NAMES)
    births.nodes["nvme0n1"] = Birth(births.nodes["nvme0n1"].node, -3600)
    kmsg.records = [failed()]
    assert errors.look(NAMES)["A-1"] == 2


def test_an_ssd_without_a_node_has_no_errors():
    errors = error_log(Kmsg(failed()), Births())
    assert errors.look(NAMES) == {"A-1": 0, "B-1": 0}


def test_records_that_were_overwritten_are_survived():
    assert error_log(Kmsg(failed(), errno.EPIPE, failed())).look(NAMES)["A-1"] == 2


def test_a_flood_does_not_keep_a_look_for_ever(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("kubeflash.host.kernellog._MOST_RECORDS", 10)
    kmsg = Kmsg(*[failed()] * 15)
    errors = error_log(kmsg)
    assert [errors.look(NAMES)["A-1"] for _ in range(3)] == [10, 15, 15]


def test_a_log_that_cannot_be_read_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    errors = ErrorLog(HostRoot(tmp_path))
    with caplog.at_level(logging.WARNING):
        assert [errors.look(NAMES) for _ in range(3)] == [{}, {}, {}]
    assert [item.getMessage() for item in caplog.records] == [
        f"I/O errors are not counted: the kernel's log cannot be read: [Errno 2] No such file or directory: "
        f"'{tmp_path}/dev/kmsg'"
    ]


def test_the_log_of_this_machine():
    errors = ErrorLog(HostRoot())
    found = errors.look({"loop0": "x"})
    assert found in ({}, {"x": found.get("x", 0)})
    assert errors.look({"loop0": "x"}).keys() == found.keys()


def test_the_birth_of_a_node_is_not_its_last_change(tmp_path: Path):
    node = tmp_path / "nvme0n1"
    assert born(node) is None
    node.touch()
    first = born(node)
    assert first is not None
    if not first.node:
        pytest.skip("the file system keeps no time of birth")
    assert abs(first.seconds - time.monotonic()) < 60
    node.write_text("changed")
    os.utime(node, (1, 1))
    again = born(node)
    assert again is not None
    assert again.node == first.node
    assert abs(again.seconds - first.seconds) < 1
    node.rename(tmp_path / "gone")
    node.touch()
    other = born(node)
    assert other is not None
    assert other.node != first.node
