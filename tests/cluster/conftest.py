"""Two virtual servers that are Kubernetes nodes, and KubeFlash installed there by Helm: once for all of these tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import cluster as installed
from cluster import Cluster
from lab import binaries
from lab.lab import Lab
from support.release import Release, next_release

REPO = Path(__file__).parents[2]
FAILURES = Path(os.environ.get("KUBEFLASH_LAB_LOGS", REPO / "build" / "failures"))

OLDER = bool(os.environ.get("KUBEFLASH_OLDER"))


@pytest.fixture(scope="session")
def kubernetes() -> str:
    """The version that all of Kubernetes has."""
    return binaries.OLDER_KUBERNETES if OLDER else binaries.KUBERNETES


@pytest.fixture(scope="session")
def upgrade() -> Release:
    """The same code as a later release: a chart and an image of its own."""
    return next_release()


@pytest.fixture(scope="session")
def cluster(upgrade: Release) -> Iterator[Cluster]:
    """gpu-a and gpu-b, Ready nodes; nothing is installed yet."""
    disk = installed.prepare([upgrade.image], older=OLDER)
    with Lab(f"cluster-{os.getpid()}", kubelets=True, older=OLDER) as lab:
        found = Cluster(lab)
        found.boot(disk)
        yield found


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Keep what cluster and servers say when a test fails, in ``$KUBEFLASH_LAB_LOGS`` or ``build/failures``."""
    report = yield
    found = getattr(item, "funcargs", {}).get("cluster")
    if report.when == "call" and report.failed and found is not None:
        folder = FAILURES / item.name
        found.save_logs(folder)
        for server in found.servers.values():
            server.save_failure(folder)
        report.sections.append(("cluster", f"its logs are in {folder}"))
    return report
