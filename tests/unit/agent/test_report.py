"""What the agent says is what is so: what cannot be read is neither released nor refused."""

from __future__ import annotations

from dataclasses import replace

import pytest

import kubeflash
from kubeflash.agent.report import Voice, VolumeState, is_gone, report_node
from kubeflash.api.v1alpha1 import AgentInfo, FlashNode
from kubeflash.domain.disk import Label
from kubeflash.domain.steps import CarvePartition, ClaimSsd, RemovePartition
from kubeflash.kube.events import event
from support.objects import T0, node, volume
from support.simulated import Network, SimulatedServer, gpu, ssd

QUIET = VolumeState()
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
    assert not is_gone(V, server.observe(), QUIET)
    server.apply(RemovePartition("S-1", server.owner("S-1").disk_guid, part))
    assert is_gone(V, server.observe(), QUIET)


def test_an_ssd_that_is_away_unreadable_or_another_s_releases_nothing(server):
    disk = server.disks["S-1"]
    server.disks["S-1"] = replace(disk, table=None, label=None, trouble="it cannot be read: EIO")
    assert not is_gone(V, server.observe(), QUIET)
    server.disks["S-1"] = replace(disk, label=Label("other", server.system_uuid, "S-1"))
    assert not is_gone(V, server.observe(), QUIET)
    observed = server.observe()
    assert not is_gone(V, replace(observed, disks={}), QUIET)


def reported(server, before=None):
    """The status that the agent writes, as JSON; None when there is nothing to write."""
    known = before or node("a", 1, [], [])
    written = report_node(known, server.observe(), {}, {}, plan=[], voice=Voice("key", "kubeflash-system"), now=T0)
    return None if written is None else written.status


def test_a_flashnode_tells_pairs_in_the_words_of_the_api():
    server = SimulatedServer("a", "10.0.0.1", Network(), [gpu(1)], [ssd("S", 1)])
    [pair] = reported(server)["pairs"]
    assert pair == {
        "gpu": "0000:12:00.0",
        "ssd": "0000:13:00.0",
        "id": "S-1",
        "distance": "PIX",
        "p2p": {"why": "whether ACS redirects it is not known"},
        "why": "same switch 10:00.0",
        "faults": [],
    }
    [best] = reported(server)["best"]
    assert (best["gpu"], best["id"], best["distance"]) == ("0000:12:00.0", "S-1", "PIX")


def test_what_did_not_change_is_not_written():
    server = SimulatedServer("a", "10.0.0.1", Network(), [gpu(1)], [ssd("S", 1)])
    known = node("a", 1, [], [])
    written = known.model_validate({"metadata": {"name": "a", "generation": 1}, "status": reported(server, known)})
    assert reported(server, written) is None


def test_pairs_leave_out_what_is_somebody_else_s():
    server = SimulatedServer("a", "10.0.0.1", Network(), [gpu(1)], [ssd("S", 1), ssd("T", 2)])
    server.disks["S-1"] = replace(server.disks["S-1"], findings=("ext4",))
    status = reported(server)
    assert [(pair["id"], pair["distance"]) for pair in status["pairs"]] == [("T-1", "PHB")]
    sound = next(item for item in status["conditions"] if item["type"] == "TopologySound")
    assert (sound["status"], sound["reason"]) == ("False", "NoNeighbour")
    assert "13:00.0: kubectl flash why" in sound["message"]


def test_a_note_that_is_too_long_for_an_event_is_cut_to_the_bytes_that_the_api_server_takes():
    body = event(
        node("a", 1, [], []), kind="Normal", reason="R", action="A", note="→" * 1000, component="agent", now=T0
    )
    assert len(body["note"].encode()) <= 1024
    assert body["note"].endswith("→…")


def test_a_flashnode_says_which_agent_speaks_and_where_kubeflash_runs():
    server = SimulatedServer("a", "10.0.0.1", Network(), [], [])
    assert reported(server)["agent"] == {"version": kubeflash.__version__, "namespace": "kubeflash-system"}


def test_another_version_or_namespace_is_said_anew():
    server = SimulatedServer("a", "10.0.0.1", Network(), [], [])
    before = FlashNode.from_json({**node("a", 1, [], []).to_json(), "status": reported(server)})
    assert reported(server, before) is None
    agent = AgentInfo(version="0.0.9", namespace="kubeflash-system")
    older = before.model_copy(update={"status": before.status.model_copy(update={"agent": agent})})
    assert reported(server, older)["agent"]["version"] == kubeflash.__version__
