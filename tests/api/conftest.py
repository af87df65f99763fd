"""One real etcd and kube-apiserver for all tests of this tier, with KubeFlash's kinds in it.

The lab moves this process into a network of its own and stays there, so all of a session share it. There is no
kube-controller-manager: a deleted namespace stays Terminating, so each test that wants one takes a new `namespace`.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from kubeflash.kube.client import Client, load_configuration
from lab.controlplane import ControlPlane
from lab.lab import Lab

CRDS = Path(__file__).parents[2] / "crds"
_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    """The session's lab: up in a few seconds once its programs are built."""
    with Lab(f"pytest-{os.getpid()}") as up:
        yield up


@pytest.fixture(scope="session")
def cluster(lab: Lab) -> ControlPlane:
    """Its control plane, with crds/ applied and served."""
    control_plane = lab.control_plane
    control_plane.kubectl("apply", "--server-side", "-f", CRDS)
    control_plane.kubectl("wait", "--for=condition=Established", "--timeout=30s", "-f", CRDS)
    return control_plane


@pytest.fixture(scope="session")
def client(cluster: ControlPlane) -> Iterator[Client]:
    """KubeFlash's own client, as administrator."""
    made = Client(load_configuration(str(cluster.kubeconfig())))
    yield made
    made.close()


@pytest.fixture
def namespace(client: Client) -> str:
    """A namespace that no other test has."""
    name = f"test-{next(_numbers)}"
    client.call("POST", "/api/v1/namespaces", body={"metadata": {"name": name}})
    return name
