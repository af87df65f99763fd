"""The life of an installation, while fio verifies a local volume and one over the fabric: nothing of it touches I/O.

The tests are in the order of an installation's life, each goes on from where the one before left off.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from cluster import AGENTS, CONTROLLERS, RELEASE, SYSTEM, Cluster
from fleet import NAMESPACE, attachment, condition, is_ready, pool, volume
from lab.errors import CommandError, LabError
from lab.processes import wait_until
from lab.servers import VirtualServer
from support.fabric import Fio, reconnects, wait_connected
from support.faults import REPO, Fault, Table
from support.real import MIB
from support.release import Release

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

TAKEOVER = 20
"""Seconds within which a new volume is Placed when the leader's node is lost."""
ELSEWHERE = "flash"
"""Another namespace and release."""

KEPT = "no I/O error and no reconnect; exports and connections stay the very ones they were"

TABLE = Table(
    "The life of an installation",
    {
        "install": Fault("helm install, on two emulated servers", "agents and controllers are Ready; a first volume"),
        "kubelet": Fault("the storage server's kubelet is killed", f"no pod is started again; {KEPT}"),
        "upgrade": Fault(
            "helm upgrade: the controllers first, the agents of the older version go on; then they are replaced",
            f"a volume is made while the versions differ, and after; {KEPT}",
        ),
        "rollback": Fault("helm rollback: controllers and agents are replaced", f"nothing is dropped; {KEPT}"),
        "elsewhere": Fault(
            "helm uninstall; installed again as another release in another namespace",
            f"volumes and exports stay; what is new is made anew; {KEPT}",
        ),
        "again": Fault("the same back to the first release's name and namespace", "the same"),
        "drain": Fault(
            "the node is cordoned and drained",
            f"it gets no new volumes, its agent and what it has stay, its controller goes elsewhere; {KEPT}",
        ),
        "lost": Fault(
            "the node of the leading controller is switched off hard",
            f"the other one takes over: a new volume is Placed within {TAKEOVER} s; local I/O is not disturbed",
        ),
    },
    REPO / "build" / "life.json",
)


EXPORTS = (
    "cd /sys/kernel/config/nvmet && { find . -printf '%p %l\\n' | sort; grep -rs '' . | sort; } > /run/exports && "
    "grep -c /dev/ /run/exports && sha256sum < /run/exports"
)


def exports(server: VirtualServer) -> str:
    """A digest of all that nvmet's tree says, keys included: two processes, where each costs a tenth of a second."""
    return server.run(EXPORTS, timeout=120).stdout_text


class Undisturbed:
    """fio on a local volume and on one over the fabric, and what the kernels have of them."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        local = cluster.get("flashattachment", "local-on-a")["status"]["device"]
        remote = cluster.get("flashattachment", "far-on-b")["status"]["device"]
        a, b = cluster.servers["gpu-a"], cluster.servers["gpu-b"]
        # Slow enough to leave the servers' one processor to their kubelets.
        self.runs = [Fio(a, local, "local", iops=10), Fio(b, remote, "far", iops=10)]
        for fio in self.runs:
            fio.start()
        self.tree = exports(a)
        self.reconnects = reconnects(b)

    def check(self) -> str:
        """Fails unless both go on, and exports and connections are the very ones they were; what was seen, in words."""
        took = [fio.wait_progress(MIB // 2) for fio in self.runs]
        assert exports(self.cluster.servers["gpu-a"]) == self.tree
        assert reconnects(self.cluster.servers["gpu-b"]) == self.reconnects
        near, far = took
        return (
            f"no I/O error, no reconnect, the same exports; the next 512 KiB took {near:.0f} s local, {far:.0f} s far"
        )


@pytest.fixture(scope="module")
def volumes(cluster: Cluster) -> Undisturbed:
    """KubeFlash is installed, both volumes are there, fio runs on them."""
    return installed_and_used(cluster)


def installed_and_used(cluster: Cluster) -> Undisturbed:
    """Installs KubeFlash on two servers, one of which lacks a module, and uses it."""
    hide_module(cluster, "gpu-b", "nvmet-tcp")
    began = time.monotonic()
    cluster.start()
    for name in cluster.servers:
        cluster.wait("flashnode", name, lambda it: it["status"].get("ssds"), namespace=None, timeout=240)
    cluster.apply(pool("fast", "KFA0", "KFA1", "KFB0"), volume("local", "96Mi", node="gpu-a"))
    cluster.wait_ready("flashvolume", "local", timeout=180)
    TABLE.seen("install", f"from helm install to the first volume {time.monotonic() - began:.0f} s")
    cluster.apply(
        volume("far", "96Mi", node="gpu-a"),
        attachment("local-on-a", "local", "gpu-a"),
        attachment("far-on-b", "far", "gpu-b"),
    )
    cluster.wait_ready("flashattachment", "local-on-a", timeout=180)
    wait_connected(cluster, "far-on-b")
    return Undisturbed(cluster)


def hide_module(cluster: Cluster, server: str, module: str) -> None:
    """Takes a module from a server, as one whose kernel's package lacks it."""
    cluster.servers[server].run(
        f"cd /lib/modules/$(uname -r) && mv $(find . -name {module}.ko) /root/ && depmod", timeout=120
    )


def new_volume(cluster: Cluster, name: str, *, timeout: float = 180) -> None:
    """A volume is made and becomes Ready: controller and agent work."""
    cluster.apply(volume(name, "16Mi", node="gpu-a"))
    cluster.wait_ready("flashvolume", name, timeout=timeout)


def version_of(cluster: Cluster, name: str) -> str:
    return str(cluster.get("flashnode", name, None)["status"].get("agent", {}).get("version"))


def restarts(cluster: Cluster) -> dict[str, int]:
    """How often the containers of KubeFlash's pods were started again."""
    return {
        pod["metadata"]["name"]: sum(item["restartCount"] for item in pod["status"].get("containerStatuses", []))
        for pod in (*cluster.pods(AGENTS), *cluster.pods(CONTROLLERS))
    }


def test_it_is_installed(cluster: Cluster, volumes: Undisturbed, kubernetes: str):
    nodes = cluster.lab.control_plane.read("/api/v1/nodes")["items"]
    assert {item["status"]["nodeInfo"]["kubeletVersion"] for item in nodes} == {kubernetes}
    assert {pod["spec"]["nodeName"] for pod in cluster.pods(AGENTS)} == {"gpu-a", "gpu-b"}
    assert {pod["spec"]["nodeName"] for pod in cluster.pods(CONTROLLERS)} == {"gpu-a", "gpu-b"}
    assert set(restarts(cluster).values()) == {0}
    volumes.check()


def test_a_server_without_a_module_says_so_and_the_others_work(cluster: Cluster, volumes: Undisturbed):
    labels = {
        name: cluster.lab.control_plane.read(f"/api/v1/nodes/{name}")["metadata"]["labels"] for name in cluster.servers
    }
    assert labels["gpu-a"]["kubeflash.io/target-tcp"] == "true"
    assert labels["gpu-b"]["kubeflash.io/target-tcp"] == "false"
    assert labels["gpu-b"]["kubeflash.io/initiator-tcp"] == "true"
    said = json.dumps(cluster.get("flashnode", "gpu-b", None)["status"]["linux"])
    assert "nvmet-tcp" in said
    with pytest.raises(CommandError) as found:
        cluster.flash("check")
    (fault,) = [line for line in found.value.stdout.splitlines() if line.startswith("FAULT")]
    assert "gpu-b" in fault
    assert "no module nvmet-tcp" in fault


def test_helm_test(cluster: Cluster, volumes: Undisturbed):
    """Once the module is there, the agent loads it by itself, and the installation is sound."""
    cluster.servers["gpu-b"].run(
        "cd /lib/modules/$(uname -r) && mv /root/nvmet-tcp.ko kernel/drivers/nvme/target/ && depmod", timeout=120
    )
    labels = "/api/v1/nodes/gpu-b"
    wait_until(
        "gpu-b is a target",
        lambda: cluster.lab.control_plane.read(labels)["metadata"]["labels"].get("kubeflash.io/target-tcp") == "true",
        timeout=180,
        interval=1,
    )
    found = cluster.helm("test", RELEASE, "-n", SYSTEM, "--logs")
    assert "Succeeded" in found.stdout_text


def test_the_kubelet_is_restarted(cluster: Cluster, volumes: Undisturbed):
    before = restarts(cluster)
    cluster.servers["gpu-a"].service_kill("kubelet")
    wait_until(
        "the kubelet says that its pods are Ready",
        lambda: all(is_ready(pod) for pod in cluster.pods(AGENTS)),
        timeout=120,
        interval=1,
    )
    new_volume(cluster, "after-kubelet")
    assert restarts(cluster) == before
    TABLE.seen("kubelet", volumes.check())


def leads(cluster: Cluster) -> bool:
    """Whether a controller leads that is not about to end."""
    try:
        return bool(cluster.leader())
    except LabError:
        return False


def test_an_upgrade_with_the_controllers_first(cluster: Cluster, volumes: Undisturbed, upgrade: Release):
    """Controllers of the new version work with agents of the old one; then each agent is replaced."""
    old = version_of(cluster, "gpu-a")
    cluster.helm("upgrade", "kubeflash-crds", str(upgrade.charts / "kubeflash-crds"), "-n", SYSTEM)
    cluster.upgrade("--set", "agent.updateStrategy.type=OnDelete", chart=upgrade.charts / "kubeflash")
    cluster.kubectl("rollout", "status", "deployment/kubeflash-controller", "-n", SYSTEM, "--timeout=240s", timeout=250)
    wait_until("one of the new controllers leads", lambda: leads(cluster), timeout=60, interval=1)
    assert cluster.leader()["spec"]["containers"][0]["image"].endswith(upgrade.version)
    new_volume(cluster, "while-skewed")
    assert version_of(cluster, "gpu-a") == old
    volumes.check()
    for pod in cluster.pods(AGENTS):
        cluster.kubectl("delete", "pod", pod["metadata"]["name"], "-n", SYSTEM, "--wait=false")
    for name in cluster.servers:
        cluster.wait(
            "flashnode",
            name,
            lambda it: it["status"].get("agent", {}).get("version") == upgrade.version,
            namespace=None,
            timeout=240,
        )
    new_volume(cluster, "after-upgrade")
    TABLE.seen("upgrade", volumes.check())


def test_a_rollback_replaces_the_agents_and_drops_nothing(cluster: Cluster, volumes: Undisturbed):
    """What the newer version wrote stays."""
    before = {name: cluster.get("flashvolume", name)["spec"]["id"] for name in ("local", "far", "after-upgrade")}
    cluster.helm("rollback", RELEASE, "1", "-n", SYSTEM)
    cluster.wait_rolled_out()
    assert {name: cluster.get("flashvolume", name)["spec"]["id"] for name in before} == before
    new_volume(cluster, "after-rollback")
    TABLE.seen("rollback", volumes.check())


@contextmanager
def drained(cluster: Cluster, node: str) -> Iterator[None]:
    """A node without any pod that may go elsewhere, and which gets none; uncordoned afterwards."""
    try:
        cluster.kubectl("drain", node, "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=180s", timeout=200)
        yield
    finally:
        cluster.kubectl("uncordon", node)


def test_a_drained_node_keeps_its_agent_and_its_volumes_and_gets_no_new_ones(cluster: Cluster, volumes: Undisturbed):
    cluster.apply(pool("only-a", "KFA2"))
    with drained(cluster, "gpu-a"):
        cluster.apply(volume("waits", "16Mi", pool="only-a"))  # one that names the node is placed
        waits = lambda it: "; 0 on servers that take new volumes" in condition(it, "Placed").get("message", "")  # noqa: E731
        cluster.wait("flashvolume", "waits", waits, timeout=60)
        why = " ".join(cluster.flash("why", "volume", "waits", "-n", NAMESPACE).split())
        assert "Node gpu-a is cordoned: kubectl uncordon gpu-a" in why
        assert [pod["spec"]["nodeName"] for pod in cluster.pods(AGENTS)].count("gpu-a") == 1
        TABLE.seen("drain", volumes.check())
    cluster.wait_ready("flashvolume", "waits", timeout=120)
    cluster.wait_rolled_out()


@pytest.mark.parametrize(
    ("release", "namespace"),
    [(ELSEWHERE, "flash-elsewhere"), pytest.param(RELEASE, SYSTEM, marks=pytest.mark.long)],
    ids=["elsewhere", "again"],
)
def test_uninstalled_and_installed_again(cluster: Cluster, volumes: Undisturbed, release: str, namespace: str):
    """Uninstalling leaves volumes and exports as they are; another release in another namespace goes on with them."""
    was = ELSEWHERE if release == RELEASE else RELEASE
    said = cluster.helm("uninstall", was, "-n", cluster.namespace, "--wait").stdout_text
    assert f"{was}-volumes-and-exports-stay" in said
    wait_until("no pod left", lambda: not cluster.pods(AGENTS) + cluster.pods(CONTROLLERS), timeout=120)
    volumes.check()
    cluster.make_namespace(namespace)
    cluster.upgrade(release=release, namespace=namespace)
    cluster.wait_rolled_out()
    new_volume(cluster, f"after-{release}")
    TABLE.seen("again" if release == RELEASE else "elsewhere", volumes.check())


def test_the_leaders_node_is_lost(cluster: Cluster, volumes: Undisturbed):
    """The second controller takes over. fio on the node that goes is ended first, on the other one it goes on."""
    local, far = volumes.runs
    said = far.stop()
    lost = cluster.leader()["spec"]["nodeName"]
    left = next(name for name in cluster.servers if name != lost)
    usual = cluster.seconds_to("Placed", volume("before-loss", "16Mi", node=left))
    ended = local.stop() if lost == "gpu-a" else None
    cluster.servers[lost].power_off_hard()
    took = cluster.seconds_to("Placed", volume("after-loss", "16Mi", node=left))
    assert took < TAKEOVER + 2 * usual, "what any volume takes on these emulated processors is not the takeover's"
    cluster.wait_ready("flashvolume", "after-loss")
    if ended is None:
        local.wait_progress(MIB // 2)
        ended = local.stop()
    TABLE.seen(
        "lost",
        f"Placed after {took:.1f} s; fio's longest request of all this time: {ended['longest']:.1f} s local, "
        f"{said['longest']:.1f} s far; {ended['verified'] + said['verified']} blocks verified",
    )
