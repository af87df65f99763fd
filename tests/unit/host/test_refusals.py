from __future__ import annotations

import errno
import logging
import os
from pathlib import Path

import pytest

from kubeflash.host.kernellog import KernelLog
from kubeflash.host.refusals import REFUSALS, Reason, Refusal, RefusalLog
from kubeflash.host.root import HostRoot

OURS = "nqn.2026-01.io.kubeflash:subsystem:8c22a814-732a-407a-99a0-320f83c49f12"
HOST = "nqn.2026-01.io.kubeflash:host:8c22a814-732a-407a-99a0-320f83c49f12"
# as Linux 6.12 wrote them
CREATED = f"nvmet: creating nvm controller 1 for subsystem {OURS} for NQN {HOST} with DH-HMAC-CHAP."
MISMATCH = "nvmet: ctrl 1 qid 0 host response mismatch"
NOT_ALLOWED = f"nvmet: connect by host {HOST} for subsystem {OURS} not allowed"
NO_SUBSYSTEM = "nvmet: connect request for invalid subsystem nqn.2026-01.io.kubeflash:subsystem:none!"


class Kmsg:
    """A kernel's log, at the end of which more is written."""

    def __init__(self) -> None:
        self.records: list[bytes] = []
        self.broken = 0

    def write(self, *texts: str, priority: int = 6) -> None:
        self.records += [f"{priority},7,1000000,-;{text}\n SUBSYSTEM=nvme\n".encode() for text in texts]

    def __call__(self) -> bytes:
        if self.broken:
            raise OSError(self.broken, os.strerror(self.broken))
        if not self.records:
            raise BlockingIOError(errno.EAGAIN, "empty")
        return self.records.pop(0)


class Bench:
    """A log of refusals, its kernel's log and its clock."""

    def __init__(self) -> None:
        self.kmsg, self.now = Kmsg(), 1000.0
        self.log = RefusalLog(HostRoot(Path("/nowhere")), self.kmsg, lambda: self.now)

    def told(self, *texts: str) -> tuple[Refusal, ...]:
        self.kmsg.write(*texts)
        return self.log.look()


@pytest.fixture
def bench() -> Bench:
    return Bench()


def counted() -> dict[str, float]:
    (metric,) = REFUSALS.collect()
    return {item.labels["reason"]: item.value for item in metric.samples if item.name.endswith("_total")}


def test_what_the_kernel_refused(bench: Bench):
    before = counted()
    assert bench.told(CREATED, MISMATCH, "nvmet: ctrl 1 qid 0 failure1 (1)", "nvmet: ctrl 1 fatal error occurred!") == (
        Refusal(Reason.KEY_REFUSED, HOST, OURS, 1),
    )
    assert bench.told(NOT_ALLOWED) == (Refusal(Reason.NOT_ALLOWED, HOST, OURS, 1),)
    assert bench.told(NO_SUBSYSTEM) == (Refusal(Reason.NO_SUBSYSTEM, "", "nqn.2026-01.io.kubeflash:subsystem:none", 1),)
    assert counted() == {reason: count + 1 for reason, count in before.items()}
    assert set(before) == {"not_allowed", "no_subsystem", "key_refused"}


def test_the_same_is_told_once_a_minute_and_counted_meanwhile(bench: Bench):
    assert [item.count for item in bench.told(NOT_ALLOWED, NOT_ALLOWED)] == [2]
    assert bench.told(NOT_ALLOWED) == ()
    bench.now += 59
    assert bench.told(*[NOT_ALLOWED] * 30) == ()
    bench.now += 2
    assert [item.count for item in bench.log.look()] == [31]
    assert bench.log.look() == ()


def test_others_subsystems_do_not_count(bench: Bench):
    before = counted()
    assert (
        bench.told(
            f"nvmet: connect by host {HOST} for subsystem nqn.2024-01.com.other:x not allowed",
            "nvmet: connect request for invalid subsystem nqn.2024-01.com.other:x!",
            f"nvmet: creating nvm controller 3 for subsystem nqn.2024-01.com.other:x for NQN {HOST}.",
            "nvmet: ctrl 3 qid 0 host response mismatch",
        )
        == ()
    )
    assert counted() == before


def test_of_a_controller_that_was_not_seen_it_cannot_be_told_whose_it_is(bench: Bench):
    assert bench.told("nvmet: ctrl 9 qid 2 host response mismatch") == (Refusal(Reason.KEY_REFUSED, "", "", 1),)


def test_a_number_belongs_to_its_last_controller(bench: Bench):
    bench.told(CREATED)
    other = CREATED.replace(HOST, "nqn.other")
    assert [item.host_nqn for item in bench.told(other, MISMATCH)] == ["nqn.other"]


@pytest.mark.parametrize(
    ("chosen", "shown"),
    [
        (f"nqn.x for subsystem {OURS} not allowed", None),
        ("nqn.x with DH-HMAC-CHAP. for NQN y", None),
        (r"nqn.x\x0a\x1b[31m", None),
        ("nqn.\x1b[31m\u202e", "nqn.?[31m?"),
        ("x" * 5000, "x" * 223),
    ],
)
def test_a_host_chooses_its_name_but_not_what_is_made_of_it(bench: Bench, chosen: str, shown: str | None):
    expected = shown or chosen
    assert bench.told(f"nvmet: connect by host {chosen} for subsystem {OURS} not allowed") == (
        Refusal(Reason.NOT_ALLOWED, expected, OURS, 1),
    )
    assert bench.told(CREATED.replace(HOST, chosen), MISMATCH) == (Refusal(Reason.KEY_REFUSED, expected, OURS, 1),)


def test_records_that_are_not_the_kernels_are_not_believed(bench: Bench):
    bench.kmsg.write(NOT_ALLOWED, priority=14)
    bench.kmsg.write(f"eth0: {NOT_ALLOWED}")
    assert bench.log.look() == ()


def test_a_flood_of_different_hosts_is_bounded(bench: Bench):
    before = counted()
    for round_ in range(5):
        hosts = [f"nqn.stranger:{round_}-{number}" for number in range(500)]
        told = bench.told(*[NOT_ALLOWED.replace(HOST, host) for host in hosts[:250]])
        told += bench.told(*[NOT_ALLOWED.replace(HOST, host) for host in hosts[250:]])
        assert len(told) <= 65
        assert all(len(kept) <= 65 for kept in (bench.log._waiting, bench.log._told))
        bench.now += 61
    many = CREATED.replace("controller 1 ", "controller {} ")
    bench.told(*[many.format(number) for number in range(6000)])
    assert len(bench.log._controllers) == 4096
    assert counted()["not_allowed"] == before["not_allowed"] + 2500


def test_no_more_than_is_told_is_lost_in_a_flood(bench: Bench):
    told = bench.told(*[NOT_ALLOWED.replace(HOST, f"nqn.{number}") for number in range(500)])
    assert sum(item.count for item in told) == 500
    assert [item.count for item in told if not item.host_nqn] == [436]


def test_a_log_that_cannot_be_read_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING):
        refusals = RefusalLog(HostRoot(tmp_path))
        assert [refusals.look() for _ in range(3)] == [(), (), ()]
    assert len(caplog.records) == 1
    assert "refused connections are not counted" in caplog.text


def test_it_begins_with_what_comes_after_it():
    """On this machine's own log."""
    try:
        reader = KernelLog(HostRoot(), past=False)
        assert list(reader.new()) == []
    except OSError:
        pytest.skip("the kernel's log cannot be read here")


def test_in_words():
    assert str(Refusal(Reason.KEY_REFUSED, "h", "s", 3)) == (
        "refused to connect host h to s: it does not have the key (3 times)"
    )
    assert str(Refusal(Reason.NO_SUBSYSTEM, "", "", 1)) == (
        "refused to connect some host to some export: there is no such export at this port (any more)"
    )
