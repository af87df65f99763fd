"""What must hold from end to end, told once: it runs on simulated servers and on virtual ones with real kernels."""

from __future__ import annotations

from typing import Protocol

from fleet import Fleet, attachment, condition, pool, volume
from kubeflash.api.v1alpha1 import Distance
from lab.processes import wait_until


class Servers(Protocol):
    """How a scenario looks at the servers themselves."""

    def exports(self, server: str) -> set[str]:
        """NQNs of KubeFlash's subsystems there."""

    def partitions(self, server: str) -> set[str]:
        """Ids of the volumes carved there."""

    def connections(self, server: str) -> set[str]:
        """NQNs of KubeFlash's that its initiator is connected to."""


def nearest_serial(fleet: Fleet, node: str, gpu: str) -> tuple[str, Distance]:
    """The serial of a GPU's nearest SSD, and how near, as its FlashNode says."""
    status = fleet.get("flashnode", node, None)["status"]
    near = next(item["nearest"] for item in status["gpus"] if item["address"] == gpu)
    serial = next(item["serial"] for item in status["ssds"] if item["id"] == near["ssd"])
    return serial, Distance(near["distance"])


def the_whole_thread(fleet: Fleet, servers: Servers, gpu: str, serial: str) -> None:
    """Pool, volume near a GPU, local attachment, attachment on the other server, release in the right order."""
    fleet.apply(pool("thread", serial))
    fleet.wait_ready("flashpool", "thread", namespace=None)
    fleet.apply(volume("t0", "64Mi", pool="thread", node="gpu-a", gpu=gpu))
    ready = fleet.wait_ready("flashvolume", "t0")
    volume_id = ready["spec"]["id"]
    assert ready["status"]["nodeName"] == "gpu-a"
    assert ready["status"]["bytes"] == 64 << 20
    assert ready["status"]["distance"] == "PIX"
    assert condition(ready, "Neighbour")["status"] == "True"
    wait_until("the volume has a device", lambda: volume_id in servers.partitions("gpu-a"), timeout=15)  # udev's work

    fleet.apply(attachment("t0-on-a", "t0", "gpu-a"))
    local = fleet.wait_ready("flashattachment", "t0-on-a")
    assert local["status"]["path"] == "Local"
    assert local["status"]["device"] == f"/dev/disk/by-partuuid/{volume_id}"
    assert servers.exports("gpu-a") == set()

    fleet.apply(attachment("t0-on-b", "t0", "gpu-b"))
    waiting = fleet.wait("flashattachment", "t0-on-b", lambda it: condition(it, "Ready").get("reason") == "VolumeInUse")
    assert "gpu-a by t0-on-a" in condition(waiting, "Ready")["message"]

    fleet.delete("flashattachment", "t0-on-a")
    remote = fleet.wait_ready("flashattachment", "t0-on-b")
    assert remote["status"]["path"] == "Fabric"
    assert remote["metadata"]["uid"] in remote["status"]["fabric"]["nqn"]
    assert servers.exports("gpu-a") == {remote["status"]["fabric"]["nqn"]}
    assert servers.connections("gpu-b") == servers.exports("gpu-a")

    fleet.kubectl("delete", "flashvolume", "t0", "-n", "serving", "--wait=false")
    held = fleet.wait("flashvolume", "t0", lambda it: condition(it, "Ready").get("reason") == "Attached")
    assert "t0-on-b on server gpu-b" in condition(held, "Ready")["message"]
    assert volume_id in servers.partitions("gpu-a"), "an attached volume is not touched"

    fleet.delete("flashattachment", "t0-on-b")
    assert servers.connections("gpu-b") == set()
    assert servers.exports("gpu-a") == set()
    fleet.wait_gone("flashvolume", "t0")
    assert volume_id not in servers.partitions("gpu-a")
    fleet.kubectl("delete", "flashpool", "thread")


def bad_input(fleet: Fleet, serial: str) -> None:
    """What cannot be is said, with what would have to change, and everything else goes on."""
    fleet.apply(pool("bad", "NO-SUCH-SERIAL"))
    said = fleet.wait("flashpool", "bad", lambda it: condition(it, "Ready").get("status") == "False", namespace=None)
    assert "NO-SUCH-SERIAL: no server has such an SSD" in condition(said, "Ready")["message"]
    fleet.apply(pool("good", serial))
    fleet.wait_ready("flashpool", "good", namespace=None)
    cases = {
        "no-pool": (volume("no-pool", "1Mi", pool="nope"), "PoolNotFound"),
        "no-node": (volume("no-node", "1Mi", pool="good", node="gpu-z"), "NodeNotFound"),
        "no-gpu": (volume("no-gpu", "1Mi", pool="good", node="gpu-a", gpu="0000:ff:1f.7"), "GPUNotFound"),
        "too-large": (volume("too-large", "100Ti", pool="good"), "NoSpace"),
        "empty-pool": (volume("empty-pool", "1Mi", pool="bad"), "PoolEmpty"),
    }
    fleet.apply(*(item for item, _ in cases.values()))
    for name, (_, reason) in cases.items():
        said = fleet.wait("flashvolume", name, lambda it, r=reason: condition(it, "Ready").get("reason") == r)
        assert condition(said, "Ready")["message"]
    fleet.apply(attachment("no-volume", "nope", "gpu-a"), attachment("no-server", "too-large", "gpu-z"))
    for name, reason in (("no-volume", "VolumeNotFound"), ("no-server", "NodeNotFound")):
        fleet.wait("flashattachment", name, lambda it, r=reason: condition(it, "Ready").get("reason") == r)
    fleet.kubectl("delete", "flashattachment", "no-volume", "no-server", "-n", "serving", "--timeout=30s")
    fleet.kubectl("delete", "flashvolume", *cases, "-n", "serving", "--timeout=30s")
    fleet.kubectl("delete", "flashpool", "bad", "good")
