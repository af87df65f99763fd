"""What the agent says is what is so: what cannot be read is neither released nor refused."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kubeflash.agent.report import is_gone
from kubeflash.domain.disk import Label
from kubeflash.domain.steps import CarvePartition, ClaimSsd, RemovePartition
from support.objects import volume
from support.simulated import Network, SimulatedServer, ssd

V = volume("v", 1, deleting=True, status={"nodeName": "a", "ssd": "S-1", "release": True})


@pytest.fixture
def server():
    made = SimulatedServer("a", "10.0.0.1", Network(), [], [ssd("S", 1)])
    made.cluster_id = "c"
    made.apply(ClaimSsd("S-1", made.owner("S-1")))
    return made


def carve(server):
    from kubeflash.domain.disk import MIB, VOLUME_TYPE, Partition  # noqa: PLC0415

    part = Partition(2, 2 * MIB, MIB, V.spec.id, V.spec.id, VOLUME_TYPE)
    server.apply(CarvePartition("S-1", server.owner("S-1").disk_guid, part))
    return part


def test_a_volume_is_released_when_its_ssd_was_read_and_does_not_hold_it(server):
    part = carve(server)
    assert not is_gone(V, server.observe())
    server.apply(RemovePartition("S-1", server.owner("S-1").disk_guid, part))
    assert is_gone(V, server.observe())


def test_an_ssd_that_is_away_unreadable_or_another_s_releases_nothing(server):
    disk = server.disks["S-1"]
    server.disks["S-1"] = replace(disk, table=None, label=None, trouble="it cannot be read: EIO")
    assert not is_gone(V, server.observe())
    server.disks["S-1"] = replace(disk, label=Label("other", server.system_uuid, "S-1"))
    assert not is_gone(V, server.observe())
    observed = server.observe()
    assert not is_gone(V, replace(observed, disks={}))
