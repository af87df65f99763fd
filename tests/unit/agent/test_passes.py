"""Whole passes of an agent on a simulated server: what comes in between must not make it say what is not so."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from kubeflash.agent import process
from kubeflash.agent.process import Agent
from kubeflash.api.v1alpha1 import FlashNode, FlashVolume, Resource
from kubeflash.domain.conditions import find
from kubeflash.domain.sealing import generate_private_key
from kubeflash.domain.steps import CarvePartition
from support.objects import make, pool, uid, volume
from support.simulated import Network, SimulatedServer, ssd

ID = uid(1001)
PLACED = {"nodeName": "a", "ssd": "S-1", "granted": "10Mi", "grantedBy": "me"}


class Api:
    """An API server that takes every status as it is written."""

    configuration = None

    def __init__(self) -> None:
        self.version = 1

    def get(self, info: Any, name: str, namespace: str | None = None) -> dict[str, Any]:
        assert info.plural == "leases"
        return {"metadata": {"name": name}, "spec": {"holderIdentity": "me"}}

    def apply_status(self, resource: Resource, status: dict[str, Any], manager: str, **_: Any) -> dict[str, Any]:
        before = resource.to_json()
        ours = {"bytes", "device", "refused", "conditions"} if isinstance(resource, FlashVolume) else set()
        kept = {name: value for name, value in before.get("status", {}).items() if name not in ours}
        return told(self, {**before, "status": {**kept, **status}})


def told(api: Api, body: dict[str, Any]) -> dict[str, Any]:
    api.version += 1
    return {**body, "metadata": {**body["metadata"], "resourceVersion": str(api.version)}}


class Scene:
    """An agent, its server and what the API server has told it."""

    def __init__(self) -> None:
        self.api = Api()
        self.server = SimulatedServer("a", "10.0.0.1", Network(), [], [ssd("S", 1), ssd("T", 2)])
        self.server.cluster_id = "c"
        self.agent = Agent(self.api, "a", self.server, self.server, generate_private_key())
        self.tell(make(FlashNode, "a", 90))

    def tell(self, resource: Resource) -> None:
        self.agent.feed.put(type(resource), told(self.api, resource.to_json()))

    def forget(self) -> None:
        """The volume is not placed here any more."""
        self.agent.feed.of(FlashVolume).clear()

    @property
    def volume(self) -> FlashVolume:
        return self.agent.feed.of(FlashVolume)["serving/v"]

    def carved(self) -> str:
        said = find(self.volume.status.conditions, "Carved")
        return said.reason if said is not None else ""

    def carvings(self) -> int:
        return sum(isinstance(step, CarvePartition) for step in self.server.history)


@pytest.fixture
def scene() -> Scene:
    return Scene()


def test_a_volume_that_was_refused_is_not_carved_until_it_was_placed_anew(scene):
    """The controller is about to place it on another SSD: it must not be on both."""

    async def body() -> None:
        scene.tell(volume("v", 1, size="10Mi", status=PLACED))
        await scene.agent.reconcile()
        assert scene.carved() == "Refused"
        assert scene.volume.status.refused == {"S-1": "no pool selects SSD S-1 on this server"}
        scene.tell(pool("fast", 2, "S", "T"))  # told of a moment too late
        await scene.agent.reconcile()
        assert scene.carved() == "Refused"
        assert scene.carvings() == 0
        scene.forget()
        await scene.agent.reconcile()
        scene.tell(volume("v", 1, size="10Mi", status=PLACED))
        await scene.agent.reconcile()
        assert scene.carved() == "Carved"

    asyncio.run(body())


def test_what_an_ssd_refused_is_carved_on_another_one(scene):
    async def body() -> None:
        scene.tell(volume("v", 1, size="10Mi", status=PLACED))
        await scene.agent.reconcile()
        scene.tell(pool("fast", 2, "S", "T"))
        scene.tell(volume("v", 1, size="10Mi", status={**PLACED, "ssd": "T-1"}))
        await scene.agent.reconcile()
        assert scene.carved() == "Carved"
        assert scene.volume.status.refused == {}

    asyncio.run(body())


def test_a_volume_that_moved_since_the_plan_was_made_is_not_said_to_be_refused_there(scene):
    async def body() -> None:
        scene.tell(volume("v", 1, size="10Mi", status=PLACED))
        plan = await scene.agent.plan_now()
        assert "serving/v" in plan.carve.refused
        scene.tell(volume("v", 1, size="10Mi", status={**PLACED, "ssd": "T-1"}))
        await scene.agent._report(scene.agent.feed.of(FlashNode)["a"], scene.server.observe(), plan)
        assert scene.volume.status.refused == {}
        assert scene.volume.status.conditions == []

    asyncio.run(body())


async def carving_yet_to_come(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """The volume is placed, and its SSD is being claimed, which takes longer than a pass waits."""
    monkeypatch.setattr(process, "PATIENCE", 0.1)
    scene.server.slow["ClaimSsd"] = 1
    scene.tell(pool("fast", 2, "S", "T"))
    scene.tell(volume("v", 1, size="10Mi", status=PLACED))
    await scene.agent.reconcile()
    assert [type(step).__name__ for step in scene.agent.jobs.under_way()] == ["ClaimSsd", "CarvePartition"]


def test_a_volume_is_not_refused_while_its_carving_is_yet_to_come(scene, monkeypatch):
    """The pool lets go of the SSD at that moment: were the volume refused, it would be on another SSD, too."""

    async def body() -> None:
        await carving_yet_to_come(scene, monkeypatch)
        scene.tell(pool("fast", 2, "T"))
        while scene.agent.jobs.busy:
            await scene.agent.reconcile()
            assert scene.volume.status.refused == {}
            await asyncio.sleep(0.1)
        await scene.agent.reconcile()
        assert scene.carved() == "Carved"

    asyncio.run(body())


def test_a_volume_is_not_released_while_its_carving_is_yet_to_come(scene, monkeypatch):
    """It was deleted meanwhile: were it let go now, its partition would come, and nobody would have it."""

    async def body() -> None:
        await carving_yet_to_come(scene, monkeypatch)
        scene.tell(volume("v", 1, size="10Mi", status={**PLACED, "release": True}, deleting=True))
        for _ in range(60):
            await scene.agent.reconcile()
            if scene.carved() == "Released":
                break
            assert scene.carved() == "Releasing"
            await asyncio.sleep(0.1)
        assert scene.carved() == "Released"
        await asyncio.sleep(0.1)
        assert scene.agent.jobs.busy == frozenset()
        assert scene.carvings() == 1
        assert scene.server.partitions() == {}

    asyncio.run(body())
