"""Two virtual servers for the tests of a module, and what tells why a test failed."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from fleet import Fleet
from lab import image, spec
from lab.lab import Lab
from lab.network import Network
from lab.servers import VirtualServer, boot, start_all

REPO = Path(__file__).parents[2]
FAILURES = Path(os.environ.get("KUBEFLASH_LAB_LOGS", REPO / "build" / "failures"))


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[VirtualServer, VirtualServer]]:
    """gpu-a and gpu-b, booted, in a network of their own; without a control plane."""
    base = image.server_image(REPO)
    app = image.app_image(REPO, base.tree)
    specs = [spec.load(name) for name in ("gpu-a", "gpu-b")]
    hosts = {one.name: one.ip for one in specs}
    network = Network()
    run_dir = Path(tempfile.mkdtemp(prefix="kubeflash-"))  # short: unix sockets' paths are limited
    first, second = (
        VirtualServer(one, image=base, app=app, run_dir=run_dir, network=network, hosts=hosts) for one in specs
    )
    try:
        start_all([first, second])
        yield first, second
    finally:
        first.close()
        second.close()
        shutil.rmtree(run_dir)


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    """A lab with a control plane, gpu-a and gpu-b, for KubeFlash to be installed in."""
    image.app_image(REPO, image.server_image(REPO).tree)  # before the lab's network is entered
    with Lab(f"machine-{os.getpid()}") as lab:
        yield Fleet(lab, boot(lab, REPO, ("gpu-a", "gpu-b")))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Keep the servers' logs when a test fails, in ``$KUBEFLASH_LAB_LOGS`` or ``build/failures``."""
    report = yield
    if report.when == "call" and report.failed:
        arguments = getattr(item, "funcargs", {})
        fleet = arguments.get("fleet")
        for server in (*arguments.get("servers", ()), *(fleet.servers.values() if fleet else ())):
            server.save_failure(FAILURES / item.name)
            if fleet and server.powered:
                log = server.run("tail -n 200 /var/log/agent.log; dmesg | tail -n 50", check=False).stdout
                (FAILURES / item.name / f"{server.name}-agent.log").write_bytes(log)
        if fleet and fleet.controller:
            shutil.copy(fleet.controller.log_file, FAILURES / item.name)
        report.sections.append(("servers", f"their logs are in {FAILURES / item.name}"))
    return report
