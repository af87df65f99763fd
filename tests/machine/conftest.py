"""Two virtual servers for the tests of a module, and what tells why a test failed."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import pytest

from fleet import Fleet
from lab import image
from lab.lab import Lab
from lab.network import Network
from lab.servers import VirtualServer, boot

REPO = Path(__file__).parents[2]
CRASH = re.compile(r"\b(BUG: |Oops: |kernel BUG at|general protection fault)")
FAILURES = Path(os.environ.get("KUBEFLASH_LAB_LOGS", REPO / "build" / "failures"))


class Bare:
    """A room for servers in a network of their own, without a control plane."""

    def __init__(self) -> None:
        image.app_image(REPO, image.server_image(REPO).tree)  # before the network is entered
        self.network = Network()
        self.run_dir = Path(tempfile.mkdtemp(prefix="kubeflash-"))  # short: unix sockets' paths are limited
        self._servers: list[VirtualServer] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for server in self._servers:
            server.close()
        shutil.rmtree(self.run_dir)

    def add_server(self, server: VirtualServer) -> None:
        self._servers.append(server)
        server.start()


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[VirtualServer, VirtualServer]]:
    """gpu-a and gpu-b, booted; without a control plane."""
    with Bare() as room:
        booted = boot(room, REPO, ("gpu-a", "gpu-b"))
        yield booted["gpu-a"], booted["gpu-b"]


@pytest.fixture(scope="module")
def strangers(request: pytest.FixtureRequest) -> Iterator[VirtualServer]:
    """The server of that name alone, booted; its SSDs are filled first by the test module's ``fill(server)``."""
    with Bare() as room:
        yield boot(room, REPO, ("strangers",), prepare=request.module.fill)["strangers"]


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
        alone = [arguments["strangers"]] if "strangers" in arguments else []
        for server in (*arguments.get("servers", ()), *alone, *(fleet.servers.values() if fleet else ())):
            server.save_failure(FAILURES / item.name)
            if fleet and server.powered:
                log = server.run("tail -n 200 /var/log/agent.log; dmesg | tail -n 50", check=False).stdout
                (FAILURES / item.name / f"{server.name}-agent.log").write_bytes(log)
        if fleet and fleet.controller:
            shutil.copy(fleet.controller.log_file, FAILURES / item.name)
        report.sections.append(("servers", f"their logs are in {FAILURES / item.name}"))
        report.sections += [("kernel", text) for text in _crashes(FAILURES / item.name)]
    return report


def _crashes(folder: Path) -> Iterator[str]:
    """What kernels said when they crashed: all that comes after it fails for no other reason."""
    for log in sorted(folder.glob("*/dmesg.txt")):
        lines = log.read_text(errors="replace").splitlines()
        first = next((number for number, line in enumerate(lines) if CRASH.search(line)), None)
        if first is not None:
            yield f"that of {log.parent.name} has crashed:\n" + "\n".join(lines[first : first + 40])
