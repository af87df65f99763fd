"""What the agent reads of SSDs that are not as they should be: no disk is opened that would not answer."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from kubeflash.agent.observe import EXAMINE_AGAIN, Observer
from kubeflash.agent.process import Agent
from kubeflash.api.v1alpha1 import FlashNode
from kubeflash.domain.carving import DiskView, SsdState, judge
from kubeflash.host.smart import Health
from kubeflash.host.uevents import Uevent
from kubeflash.topology.devices import GpuRules
from support.sysfs_builder import MadeUpServer

PATH = "pci0000:00/0000:00:01.0"


class Watched(Observer):
    """Counts the disks that it would open."""

    def __init__(self, server: MadeUpServer) -> None:
        super().__init__(server.root, GpuRules(), ("192.0.2.1", 6443))
        self.opened: list[str] = []

    def _read_disk(self, ssd, kernel, *, thorough):
        self.opened.append(ssd.device_name)
        return DiskView(ssd.id, ssd.bytes, findings=("read",))

    def look(self) -> DiskView:
        self.opened.clear()
        (view,) = self.observe().disks.values()
        return view


@pytest.fixture
def server(tmp_path: Path) -> MadeUpServer:
    return MadeUpServer(tmp_path)


@pytest.fixture
def observer(server: MadeUpServer, monkeypatch: pytest.MonkeyPatch) -> Watched:
    monkeypatch.setattr("kubeflash.agent.observe.HealthWatch.look", lambda _, ssds: {ssd.id: Health() for ssd in ssds})
    return Watched(server)


def become(server: MadeUpServer, state: str) -> None:
    server.write(f"sys/devices/{PATH}/nvme/nvme0/state", f"{state}\n")


def test_an_ssd_without_namespaces_is_foreign_with_what_to_do(server: MadeUpServer, observer: Watched):
    server.ssd(PATH, "EMPTY", [])
    view = observer.look()
    assert observer.opened == []
    verdict = judge(view, observer.owner(view.ssd))
    assert verdict.state is SsdState.FOREIGN
    assert "nvme create-ns" in verdict.reason
    assert observer.observe().partitions == {}
    observer.forget_device("nvme0n1")
    observer.forget_device("")
    observer.forget_device(None)


@pytest.mark.parametrize("state", ["dead", "resetting", "connecting"])
def test_a_disk_whose_controller_does_not_work_is_not_opened(server: MadeUpServer, observer: Watched, state: str):
    server.ssd(PATH, "S", state=state)
    assert state in observer.look().trouble
    assert observer.opened == []


def test_a_reset_of_some_seconds_changes_nothing(
    server: MadeUpServer, observer: Watched, monkeypatch: pytest.MonkeyPatch
):
    server.ssd(PATH, "S")
    before = observer.look()
    assert observer.opened == ["nvme0n1"]
    become(server, "resetting")
    assert observer.look() == before
    become(server, "live")
    assert observer.look() == before
    assert observer.opened == []
    become(server, "resetting")
    clock = time.monotonic() + EXAMINE_AGAIN
    monkeypatch.setattr("kubeflash.agent.observe.time.monotonic", lambda: clock)
    assert "resetting" in observer.look().trouble
    become(server, "dead")
    assert "dead" in observer.look().trouble
    assert observer.opened == []


def test_what_was_read_before_it_was_to_be_forgotten_is_read_again(
    server: MadeUpServer, observer: Watched, monkeypatch
):
    """Somebody writes to the disk while it is read, and the kernel says so: the old view must not stand."""
    server.ssd(PATH, "S")
    read = observer._read_disk

    def written_meanwhile(ssd, kernel, *, thorough):
        observer.forget(ssd.id)
        return read(ssd, kernel, thorough=thorough)

    monkeypatch.setattr(observer, "_read_disk", written_meanwhile)
    observer.look()
    monkeypatch.undo()
    monkeypatch.setattr("kubeflash.agent.observe.HealthWatch.look", lambda _, ssds: {ssd.id: Health() for ssd in ssds})
    observer.look()
    assert observer.opened == ["nvme0n1"]
    observer.look()
    assert observer.opened == [], "what nobody has touched is not read again"


def test_the_health_of_each_ssd_is_in_the_observation(server: MadeUpServer, observer: Watched):
    server.ssd(PATH, "S")
    assert observer.observe().health == {"S-1": Health()}


class Looked(Exception):
    """The server was looked at."""


class Passing:
    """An agent whose passes do nothing but ask for modules."""

    def __init__(self) -> None:
        self.loaded = 0
        self.jobs = SimpleNamespace(busy=frozenset())
        self._observer = SimpleNamespace(load_modules=self._load)

    def _load(self) -> None:
        self.loaded += 1

    async def _look_for_former(self) -> None:
        pass

    async def _observe(self) -> None:
        raise Looked


@pytest.mark.parametrize(("paused", "loads"), [(False, 1), (True, 0)], ids=["works", "paused"])
def test_modules_are_loaded_before_the_server_is_looked_at_and_not_while_it_is_paused(paused, loads):
    agent, node = Passing(), FlashNode.from_json({"metadata": {"name": "n"}, "spec": {"paused": paused}})
    with pytest.raises(Looked):
        asyncio.run(Agent._pass(agent, node))
    assert agent.loaded == loads


def test_what_could_not_be_loaded_is_in_the_inventory(server: MadeUpServer):
    loader = SimpleNamespace(failures={"nvmet": "nobody may"}, load=lambda: None)
    found = Observer(server.root, GpuRules(), ("192.0.2.1", 6443), loader).inventory()
    assert found.kernel.nvmet.how == "nobody may"
    assert any("nobody may" in problem for problem in found.problems)


def test_the_address_that_is_given_is_the_server_s_whichever_way_leads_to_the_api_server(server: MadeUpServer):
    observer = Observer(server.root, GpuRules(), ("127.0.0.1", 6443), None, "10.20.0.7")
    assert observer.observe().internal == "10.20.0.7"


class Woken:
    """As much of an agent as hears of devices."""

    def __init__(self, *own: str) -> None:
        self.feed = SimpleNamespace(changed=asyncio.Event())
        self._observer = SimpleNamespace(forget_device=lambda name: name in own, forget_health=lambda: None)


@pytest.mark.parametrize(
    ("name", "asked_for", "wakes"),
    [("nvme0n1", True, True), ("nvme9n1", True, False), ("nvme9n1", False, True), ("nvme0n1", False, True)],
)
def test_whoever_closes_the_device_of_a_connection_does_not_wake_the_agent(name, asked_for, wakes):
    agent = Woken("nvme0n1")
    Agent.machine_changed(agent, Uevent("change", subsystem="block", name=name, asked_for=asked_for))
    assert agent.feed.changed.is_set() is wakes
