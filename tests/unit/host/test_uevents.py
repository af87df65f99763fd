from __future__ import annotations

import asyncio
import errno
import os
import socket
from pathlib import Path

import pytest

from kubeflash.host import uevents
from kubeflash.host.uevents import NoUevents, Uevent, open_uevents, parse, receive

ADDED = (
    b"add@/devices/pci0000:00/0000:00:01.0/0000:01:00.0/nvme/nvme0/nvme0n1\0ACTION=add\0"
    b"DEVPATH=/devices/pci0000:00/0000:00:01.0/0000:01:00.0/nvme/nvme0/nvme0n1\0SUBSYSTEM=block\0MAJOR=259\0"
    b"MINOR=0\0DEVNAME=nvme0n1\0DEVTYPE=disk\0DISKSEQ=9\0SEQNUM=2431\0"
)


class Scripted:
    """A socket that gives what it was told to."""

    def __init__(self, *answers: bytes | int | tuple[bytes, int]) -> None:
        self._answers = list(answers)

    def recvfrom(self, _size: int) -> tuple[bytes, tuple[int, int]]:
        if not self._answers:
            raise BlockingIOError
        answer = self._answers.pop(0)
        if isinstance(answer, int):
            raise OSError(answer, os.strerror(answer))
        content, sender = answer if isinstance(answer, tuple) else (answer, 0)
        return content, (sender, 1)


def test_a_message_of_the_kernel():
    event = parse(ADDED)
    assert event is not None
    assert (event.action, event.subsystem, event.name) == ("add", "block", "nvme0n1")
    assert event.devpath.endswith("/nvme0n1")
    assert event.concerns_storage


def test_what_an_ssd_reports_of_itself_gets_through():
    path = "/devices/pci0000:00/0000:00:01.0/0000:01:00.0/nvme/nvme0"
    lines = f"change@{path}\0ACTION=change\0DEVPATH={path}\0SUBSYSTEM=nvme\0NVME_AEN=0x020001\0DEVNAME=nvme0\0"
    event = parse(f"{lines}SEQNUM=2500\0".encode())
    assert event is not None
    assert event.concerns_storage
    assert (event.name, event.reported) == ("nvme0", "0x020001")
    added = parse(ADDED)
    assert added is not None
    assert added.reported == ""


@pytest.mark.parametrize("content", [b"", b"libudev\0\xfe\xed\xca\xfe", b"\xff\xff", b"@/devices"])
def test_what_is_no_message_of_the_kernel(content: bytes):
    assert parse(content) is None


def test_variables_may_be_odd():
    assert parse(b"change@/devices/x\0NOVALUE\0A=b=c\0") == Uevent("change", "/devices/x")


@pytest.mark.parametrize(
    ("event", "concerns"),
    [
        (Uevent("remove", subsystem="nvme"), True),
        (Uevent("add", subsystem="pci"), True),
        (Uevent("change", subsystem="nvme-fabrics"), True),
        (Uevent("add", subsystem="block", name="nvme1n1p3"), True),
        (Uevent("change", subsystem="block", name="loop0"), False),
        (Uevent("change", subsystem="block", name="dm-3"), False),
        (Uevent("add", subsystem="net"), False),
    ],
)
def test_what_concerns_storage(event: Uevent, concerns: bool):
    assert event.concerns_storage is concerns


def test_lost_messages_mean_that_something_happened():
    assert receive(Scripted(errno.ENOBUFS, ADDED)) == [None, parse(ADDED)]


def test_messages_of_other_processes_are_not_believed():
    assert receive(Scripted((ADDED, 4711))) == []


def test_a_socket_that_broke_says_so():
    with pytest.raises(NoUevents):
        receive(Scripted(errno.EBADF))


def test_nothing_waits_on_a_new_socket():
    with open_uevents() as listener:
        receive(listener)
        assert not listener.getblocking()


def test_listening_tells_of_storage_only(monkeypatch: pytest.MonkeyPatch):
    ours, theirs = socket.socketpair()
    found: list[Uevent | None] = []
    messages = [[Uevent("add", subsystem="net"), Uevent("add", subsystem="pci"), None]]
    monkeypatch.setattr(uevents, "open_uevents", lambda: ours)
    monkeypatch.setattr(uevents, "receive", lambda listener: listener.recv(1) and messages.pop())

    async def listen() -> None:
        told = asyncio.Event()

        def changed(event: Uevent | None) -> None:
            found.append(event)
            if event is None:
                told.set()

        async with uevents.listening(changed):
            theirs.send(b"x")
            await asyncio.wait_for(told.wait(), timeout=10)

    with theirs:
        asyncio.run(listen())
    assert found == [Uevent("add", subsystem="pci"), None]
    assert ours.fileno() == -1


def test_without_messages_the_agent_goes_on(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    def refuse() -> socket.socket:
        raise NoUevents("not allowed")

    async def listen() -> None:
        async with uevents.listening(lambda _: None):
            pass

    monkeypatch.setattr(uevents, "open_uevents", refuse)
    asyncio.run(listen())
    assert "not allowed" in caplog.text


def test_this_kernel_tells_of_a_change():
    """A synthetic event, which the kernel sends for root, on a device that every Linux has."""
    trigger = Path("/sys/devices/virtual/mem/null/uevent")
    with open_uevents() as listener:
        try:
            trigger.write_text("change")
        except OSError:
            pytest.skip("only root may ask the kernel for an event")
        listener.settimeout(10)
        event = parse(listener.recv(8192))
    assert event is not None


def test_what_udev_asks_for_when_a_device_was_closed_is_told_from_what_the_kernel_says_by_itself():
    where = b"/devices/virtual/nvme-subsystem/nvme-subsys2/nvme2n1"
    words = b"change@" + where + b"\0ACTION=change\0SUBSYSTEM=block\0DEVNAME=nvme2n1"
    assert parse(words + b"\0SYNTH_UUID=0\0").asked_for
    assert not parse(words + b"\0RESIZE=1\0").asked_for
