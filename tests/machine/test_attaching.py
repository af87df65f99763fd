"""A hundred attachments in random order between two real kernels: nothing is left, and nothing disagrees."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fleet import Fleet, pool, volume
from support import attaching
from support.real import RealServers

pytestmark = [pytest.mark.machine, pytest.mark.heavy, pytest.mark.long, pytest.mark.timeout(1800)]

SEED = 20261129
SHARED = {"v0": False, "v1": False, "v2": False, "v3": False, "s0": True, "s1": True}


@pytest.fixture(scope="module")
def servers(fleet: Fleet) -> Iterator[RealServers]:
    fleet.start()
    for name in fleet.servers:
        fleet.wait_ready("flashnode", name, namespace=None, timeout=240)
    fleet.apply(pool("random", "KFA0", "KFA1"))
    for name, shared in SHARED.items():
        wanted = volume(name, "16Mi", pool="random", node="gpu-a")
        wanted["spec"]["sharing"] = "Shared" if shared else "Exclusive"
        fleet.apply(wanted)
    for name in SHARED:
        fleet.wait_ready("flashvolume", name)
    yield RealServers(fleet)
    fleet.stop_controller()


def test_a_hundred_attachments_in_random_order_leave_nothing_and_kernel_and_api_agree(fleet: Fleet, servers):
    done = attaching.run(fleet, servers, SHARED, number=SEED, most=100, patience=240)
    assert done["attached"] == 100, done
    assert done["looked"] >= 3, done
    left = "ls /sys/kernel/config/nvmet/hosts /sys/kernel/config/nvmet/subsystems /sys/kernel/config/nvmet/ports"
    assert "kubeflash" not in servers.shell("gpu-a", left)
    assert servers.shell("gpu-a", "ls /sys/kernel/config/nvmet/ports").split() == []
    log = servers.shell("gpu-a", "dmesg") + servers.shell("gpu-b", "dmesg")
    assert not [line for line in log.splitlines() if "BUG:" in line or "Oops" in line or "blocked for more" in line]
