"""`kubectl flash purge --all` on a real API server: what it shows, what stops it, and that nothing is left."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from fleet import NAMESPACE, Fleet, attachment, condition, pool, volume
from lab.errors import CommandError
from support.simulated import Network, SimulatedServer, gpu, ssd
from support.simulation import Simulation

SERVERS = ("srv-p", "srv-q")


@pytest.fixture(scope="module")
def simulation(fleet: Fleet) -> Iterator[Simulation]:
    network = Network()
    servers = {
        "srv-p": SimulatedServer("srv-p", "10.0.2.1", network, [gpu(1)], [ssd("PA", 1), ssd("PB", 2)]),
        "srv-q": SimulatedServer("srv-q", "10.0.2.2", network, [gpu(1)], [ssd("QA", 1)]),
    }
    try:
        with Simulation.running(fleet, servers, "kubeflash-agent-all") as made:
            yield made
    finally:
        fleet.kubectl("delete", "flashnode", *SERVERS, "--ignore-not-found", "--timeout=30s")


@pytest.fixture(scope="module")
def cluster_id(fleet: Fleet) -> str:
    return fleet.kubectl("get", "namespace", "kube-system", "-o", "jsonpath={.metadata.uid}")


def flat(text: str) -> str:
    return " ".join(text.split())


def refused(fleet: Fleet, *words: str) -> str:
    with pytest.raises(CommandError) as failed:
        fleet.flash(*words)
    (line,) = (line for line in str(failed.value).splitlines() if "kubectl flash: " in line)
    return line


def test_everything_goes_but_only_when_nobody_uses_it(fleet, simulation, cluster_id):
    fleet.apply(pool("all", "PA", "QA"), volume("near", "8Mi", pool="all", node="srv-p"))
    fleet.apply(volume("far", "8Mi", pool="all", node="srv-p"), attachment("far-on-q", "far", "srv-q"))
    fleet.apply(attachment("near-on-p", "near", "srv-p"))
    for name in ("near-on-p", "far-on-q"):
        fleet.wait_ready("flashattachment", name, timeout=30)
    far = fleet.get("flashvolume", "far")["spec"]["id"]
    before = {name: fleet.get("flashnode", name, None)["metadata"]["uid"] for name in SERVERS}

    shown = flat(fleet.flash("purge", "--all", "--dry-run"))
    assert "volume serving/far: 8Mi on SSD PA-1 of server srv-p, attached by far-on-q on srv-q" in shown
    assert "SSD PA-1 of server srv-p, serial PA, 1Gi: 2 volumes" in shown
    assert "LOST WILL BE: 2 volumes with 16Mi, everything on 1 SSD" in shown
    assert f"The cluster's id, {cluster_id}, will be asked for" in shown
    assert "is not the cluster's id" in refused(fleet, "purge", "--all", "--confirm", "srv-p")
    assert not fleet.get("flashnode", "srv-p", None)["spec"].get("maintenance")

    q = simulation.servers["srv-q"]
    q.held[far] = "mounted at /srv/far"
    said = refused(fleet, "purge", "--all", "--confirm", cluster_id)
    assert "attachment serving/far-on-q: its device is in use on server srv-q: mounted at /srv/far" in said
    assert {far, fleet.get("flashvolume", "near")["spec"]["id"]} <= simulation.partitions("srv-p")
    assert fleet.get("flashvolume", "far")["metadata"].get("deletionTimestamp") is None

    fleet.apply(volume("late", "8Mi", pool="all", node="srv-p"))
    q.held.clear()
    done = flat(fleet.flash("purge", "--all", "--confirm", cluster_id))
    assert "Gone: 3 volumes; blank: 1 SSD." in done
    assert "helm uninstall kubeflash -n kubeflash-system" in done
    for server in simulation.servers.values():
        for disk in server.disks.values():
            assert (disk.table, disk.label) == (None, None)
        assert server.nvmet.subsystems == {}
        assert server.connections == {}
    for kind in ("flashattachment", "flashvolume", "flashpool"):
        assert fleet.kubectl("get", kind, "-A", "-o", "name") == ""
    for name, uid in before.items():  # the agents run, and make theirs anew
        again = fleet.wait("flashnode", name, lambda it, old=uid: it["metadata"]["uid"] != old, namespace=None)
        assert not again["spec"].get("maintenance")
        assert not again["spec"].get("wipe")
        fleet.wait_ready("flashnode", name, namespace=None, timeout=30)
    assert "blank: 0 SSDs" in fleet.flash("purge", "--all", "--confirm", cluster_id)


def test_after_an_uninstall_it_says_who_must_do_it_and_does_not_wait(fleet, simulation, cluster_id):
    for name in SERVERS:
        fleet.wait_ready("flashnode", name, namespace=None, timeout=30)
    fleet.apply(pool("all", "PA"), volume("left", "8Mi", pool="all"))
    fleet.wait_ready("flashvolume", "left", timeout=30)
    fleet.stop_controller()
    try:
        began = time.monotonic()
        said = refused(fleet, "purge", "--all", "--confirm", cluster_id)
        assert time.monotonic() - began < 20
        assert "no controller decides" in said
        assert "install KubeFlash again" in said
        assert fleet.get("flashvolume", "left")["metadata"].get("deletionTimestamp") is None
        assert len(simulation.partitions("srv-p")) == 1
    finally:
        fleet.start_controller()
    leads = lambda it: it["spec"].get("holderIdentity")  # noqa: E731
    fleet.wait("lease", "kubeflash-controller", leads, namespace="kubeflash-system", timeout=60)
    assert "Gone: 1 volume" in fleet.flash("purge", "--all", "--confirm", cluster_id)
    assert simulation.partitions("srv-p") == set()
    assert condition(fleet.get("flashvolume", "left", NAMESPACE) or {}, "Ready") == {}
