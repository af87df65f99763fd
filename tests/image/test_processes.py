"""KubeFlash's processes as they run in a cluster: from the image, its root read-only, the controller as nobody."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from fleet import Fleet, pool
from image.conftest import Image
from kubeflash import __version__
from lab.container import NOBODY
from lab.errors import LabTimeout
from lab.processes import ManagedProcess
from support.made_servers import made, write_sysfs

pytestmark = pytest.mark.image

NAMESPACE = "kubeflash-system"
SERVICE_ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"


@contextmanager
def running(fleet: Fleet, image: Image, folder: Path, *words: str, **options: Any) -> Iterator[ManagedProcess]:
    """Runs a process of KubeFlash's as a pod of its service account would; `folder` is for its token."""
    control_plane = fleet.lab.control_plane
    cluster = yaml.safe_load(control_plane.kubeconfig().read_text())["clusters"][0]["cluster"]
    folder.mkdir(mode=0o755)
    (folder / "token").write_text(control_plane.token(NAMESPACE, words[0], bound_to=options.get("bound_to")))
    (folder / "ca.crt").write_bytes(base64.b64decode(cluster["certificate-authority-data"]))
    host, _, port = cluster["server"].removeprefix("https://").rpartition(":")
    argv = image.unpacked.command(
        *words,
        user=options.get("user", NOBODY),
        mounts={SERVICE_ACCOUNT: folder, **options.get("mounts", {})},
        env={"KUBERNETES_SERVICE_HOST": host, "KUBERNETES_SERVICE_PORT": port},
    )
    process = ManagedProcess(words[0], argv, run_dir=fleet.lab.run_dir).start()
    try:
        yield process
    except LabTimeout as error:
        raise AssertionError(f"{error}\n{process.log_tail()}") from error
    finally:
        process.stop(force=True)  # what is between kills it: the program is the first of its own process namespace


@pytest.mark.parametrize(
    ("program", "user"), [("kubeflash-controller", NOBODY), ("kubeflash-agent", 0), ("kubectl-flash", NOBODY)]
)
def test_programs_tell_their_version(image, program, user):
    done = image.run(program, "--version", user=user)
    assert done.exit_code == 0, done.stderr_text
    assert __version__ in done.stdout_text


def test_nothing_can_be_written_in_these_tests(image):
    done = image.run("sh", "-c", "id -u; touch /x; touch /tmp/x; touch /opt/kubeflash/x")
    assert done.stdout_text == f"{NOBODY}\n"
    assert done.stderr_text.count("Read-only file system") == 3
    assert image.run("touch", "/x", user=0).exit_code != 0


def test_outside_a_cluster_the_controller_says_in_one_line_what_it_lacks(image):
    done = image.run("kubeflash-controller")
    assert done.exit_code == 1
    (line,) = done.stderr_text.splitlines()
    assert "KubeconfigInvalid" in line
    assert "temporary" not in line


def test_the_controller_leads_as_nobody(image, fleet, tmp_path):
    with running(fleet, image, tmp_path / "token", "kubeflash-controller", "--namespace", NAMESPACE) as process:
        held = lambda it: it["spec"].get("holderIdentity")  # noqa: E731
        fleet.wait("lease", "kubeflash-controller", held, namespace=NAMESPACE, timeout=60)
        fleet.apply(pool("fast", "NONE"))
        fleet.wait("flashpool", "fast", lambda it: it["status"].get("conditions"), namespace=None, timeout=60)
        assert "Traceback" not in process.log_tail()
        assert "Read-only" not in process.log_tail()


def test_the_agent_reports_its_server(image, fleet, tmp_path):
    write_sysfs(made("lab-gpu-a"), tmp_path / "server")
    for folder in ("state", "run"):
        (tmp_path / folder).mkdir()
    options = ("--node", "gpu-a", "--namespace", NAMESPACE, "--root", "/mnt", "--gpu", "1234:0380")
    mounts = {"/mnt": tmp_path / "server", "/var/lib/kubeflash": tmp_path / "state", "/run/kubeflash": tmp_path / "run"}
    fleet.apply({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "gpu-a"}})
    root = {"user": 0, "mounts": mounts, "bound_to": ("Node", "gpu-a")}
    with running(fleet, image, tmp_path / "token", "kubeflash-agent", *options, **root) as process:
        node = fleet.wait("flashnode", "gpu-a", lambda it: it["status"].get("gpus"), namespace=None, timeout=60)
        assert len(node["status"]["ssds"]) > 1
        assert "Traceback" not in process.log_tail()
