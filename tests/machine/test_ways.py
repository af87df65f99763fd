"""Other ways to a volume: RDMA in software, read-only on either path, beside a stranger's export."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from fleet import NAMESPACE, Fleet, attachment, condition, pool, volume
from handmade import NQN, NVMET, handmade
from support.real import RealServers

pytestmark = [pytest.mark.machine, pytest.mark.heavy, pytest.mark.timeout(900)]

SOFT_ROCE = "modprobe -a rdma_rxe nvme-rdma nvmet-rdma; rdma link add rxe0 type rxe netdev eth0; rdma link show"


@pytest.fixture(scope="module")
def servers(fleet: Fleet) -> Iterator[RealServers]:
    """KubeFlash on two servers that have RDMA in software; with two volumes on gpu-a."""
    for server in fleet.servers.values():
        server.run(SOFT_ROCE, timeout=120)
    fleet.start()
    for name in fleet.servers:
        fleet.wait_ready("flashnode", name, namespace=None, timeout=240)
    fleet.apply(pool("roce", "KFA0", export={"transport": "rdma"}), pool("plain", "KFA1"))
    fleet.apply(volume("r0", "32Mi", pool="roce"), volume("p0", "32Mi", pool="plain", node="gpu-a"))
    for name in ("r0", "p0"):
        fleet.wait_ready("flashvolume", name)
    yield RealServers(fleet)
    fleet.stop_controller()


def test_over_rdma_it_is_the_same_and_what_was_written_is_read(fleet: Fleet, servers):
    fleet.apply(attachment("r0-on-b", "r0", "gpu-b"))
    found = fleet.wait_ready("flashattachment", "r0-on-b")
    assert found["status"]["fabric"]["portals"][0].startswith("rdma://10.77.0.11:")
    assert [path["state"] for path in found["status"]["connection"]["paths"]] == ["live"]
    device = found["status"]["device"]
    servers.shell("gpu-b", f"dd if=/dev/urandom of={device} bs=1M count=8 oflag=direct status=none", timeout=120)
    written = servers.shell("gpu-b", f"dd if={device} bs=1M count=8 iflag=direct status=none | sha256sum", timeout=120)
    transport = servers.shell("gpu-b", "cat /sys/class/nvme/nvme*/transport").split()
    assert "rdma" in transport
    fleet.delete("flashattachment", "r0-on-b")
    fleet.apply(attachment("r0-on-a", "r0", "gpu-a"))
    local = fleet.wait_ready("flashattachment", "r0-on-a")["status"]["device"]
    assert servers.shell("gpu-a", f"dd if={local} bs=1M count=8 iflag=direct status=none | sha256sum") == written
    fleet.delete("flashattachment", "r0-on-a")
    left = servers.shell("gpu-a", "ls /sys/kernel/config/nvmet/ports /sys/kernel/config/nvmet/hosts")
    assert "kubeflash" not in left


@pytest.mark.parametrize("node", ["gpu-a", "gpu-b"])
def test_a_read_only_device_is_read_and_not_written_and_the_next_one_is_writable_again(fleet: Fleet, servers, node):
    wanted = attachment(f"ro-{node}", "p0", node)
    wanted["spec"]["readOnly"] = True
    fleet.apply(wanted)
    device = fleet.wait_ready("flashattachment", f"ro-{node}")["status"]["device"]
    tried = fleet.servers[node].run(f"dd if=/dev/zero of={device} bs=4096 count=1 oflag=direct", check=False)
    assert tried.exit_code != 0
    assert "Operation not permitted" in tried.stderr_text
    servers.shell(node, f"dd if={device} of=/dev/null bs=1M count=4 iflag=direct status=none")
    servers.shell(node, f"blockdev --setrw {device}")
    seen = lambda _: "1" in servers.shell(node, f"blockdev --getro {device}")  # noqa: E731  the agent's next look
    fleet.kubectl("annotate", "--overwrite", "flashnode", node, "look=again")
    fleet.wait("flashattachment", f"ro-{node}", seen, timeout=60)
    fleet.delete("flashattachment", f"ro-{node}")
    fleet.apply(attachment(f"rw-{node}", "p0", node))
    device = fleet.wait_ready("flashattachment", f"rw-{node}")["status"]["device"]
    servers.shell(node, f"dd if=/dev/zero of={device} bs=4096 count=1 oflag=direct status=none")
    fleet.delete("flashattachment", f"rw-{node}")


def test_a_stranger_s_export_in_our_range_stays_as_it_is_and_his_number_is_skipped(fleet: Fleet, servers):
    storage, consumer = fleet.servers["gpu-a"], fleet.servers["gpu-b"]
    tree = f"cd {NVMET}; find . | sort; cat ports/4420/addr_* hosts/*handmade*/dhchap_* 2>/dev/null"
    with handmade(storage, consumer, servers.disk("gpu-a", "KFA2"), port=4420) as theirs:
        before = storage.run(tree).stdout_text
        assert NQN in before
        fleet.apply(attachment("beside", "p0", "gpu-b"))
        found = fleet.wait_ready("flashattachment", "beside")
        assert found["status"]["fabric"]["portals"] == ["tcp://10.77.0.11:4421"]
        fleet.delete("flashattachment", "beside")
        assert storage.run(tree).stdout_text == before
        servers.shell("gpu-b", f"dd if={theirs.device} of=/dev/null bs=1M count=4 iflag=direct status=none")


def test_what_a_server_s_kernel_cannot_do_is_said_before_anything_is_made(fleet: Fleet, servers):
    fleet.servers["gpu-b"].run("sv down tlshd", timeout=60)
    try:
        fleet.kubectl("annotate", "--overwrite", "flashnode", "gpu-b", "look=tlshd")
        lacks = lambda it: not it["status"]["linux"]["tls"]["available"]  # noqa: E731
        node = fleet.wait("flashnode", "gpu-b", lacks, namespace=None, timeout=90)
        assert "tlshd does not run on this server" in json.dumps(node["status"]["linux"]["tls"])
        fleet.apply(pool("guarded", "KFA2", security={"tls": "Required"}), volume("g0", "16Mi", pool="guarded"))
        fleet.wait_ready("flashvolume", "g0")
        fleet.apply(attachment("g0-on-b", "g0", "gpu-b"))
        said = fleet.wait(
            "flashattachment", "g0-on-b", lambda it: condition(it, "Ready").get("reason") == "KernelLacks"
        )
        assert "server gpu-b lacks tls" in condition(said, "Ready")["message"]
        assert "keys" not in said["status"]
    finally:
        fleet.servers["gpu-b"].run("sv up tlshd", timeout=60)
    fleet.kubectl("annotate", "--overwrite", "flashnode", "gpu-b", "look=tlshd-again")
    fleet.wait_ready("flashattachment", "g0-on-b")
    fleet.delete("flashattachment", "g0-on-b")
    fleet.kubectl("delete", "flashvolume", "g0", "-n", NAMESPACE, "--timeout=60s")
