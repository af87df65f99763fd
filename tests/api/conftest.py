"""One real etcd and kube-apiserver for all tests of this tier, with KubeFlash's kinds in it.

The lab moves this process into a network of its own and stays there, so all of a session share it. There is no
kube-controller-manager: a deleted namespace stays Terminating, so each test that wants one takes a new `namespace`.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterator
from typing import Any

import pytest

from api.objects import CRDS, body_of, delete_all, empty, send
from fleet import Fleet
from kubeflash.api.v1alpha1 import Resource
from kubeflash.kube.client import Client, load_configuration
from kubeflash.kube.errors import ServerError
from lab.controlplane import ControlPlane
from lab.lab import Lab

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


@pytest.fixture(scope="module")
def emptied(cluster: ControlPlane, client: Client) -> None:
    """A cluster without Nodes, objects of KubeFlash, Leases and events: what a module sees is its own."""
    empty(client)


@pytest.fixture(scope="module")
def fleet(lab: Lab, emptied: None) -> Iterator[Fleet]:
    """A controller that runs in this cluster, and what tests ask of both; no agents yet."""
    made = Fleet(lab)
    made.install()
    made.start_controller()
    yield made
    made.stop_controller()


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


@pytest.fixture(scope="module")
def clean(client: Client) -> Iterator[None]:
    """Leaves none of `api.objects` behind."""
    yield
    deadline = time.monotonic() + 30
    while True:
        try:
            delete_all(client)
        except ServerError:  # 429, "storage is (re)initializing": the kinds were applied anew a moment ago
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)
        else:
            return


@pytest.fixture(scope="session")
def make(client: Client) -> Any:
    """Makes an object, in namespace default where its kind has one; returns it as the API server answered."""

    def create(kind: type[Resource], spec: dict[str, Any], name: str = "") -> Any:
        return kind.from_json(send(client, "POST", body_of(kind, spec, name)))

    return create


@pytest.fixture(scope="session")
def kubectl(cluster: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Runs kubectl; its discovery cache is of this cluster, not of an earlier one at the same address."""
    cache = tmp_path_factory.mktemp("kubectl-cache")

    def run(*words: str, **options: Any) -> Any:
        return cluster.kubectl("--cache-dir", cache, *words, **options)

    return run
