"""The image that the Dockerfile makes, unpacked, and what runs its programs as a container would. Needs root."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from fleet import Fleet
from lab import container
from lab.lab import Lab
from lab.processes import Completed, run

REPO = Path(__file__).resolve().parents[2]
SERVICE_ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"


@dataclass(frozen=True)
class Image:
    """The image under test.

    Attributes:
        archive: What `ctr images import` takes.
        unpacked: Its root file system.
    """

    archive: Path
    unpacked: container.Unpacked

    @property
    def root(self) -> Path:
        """Its root file system, as a folder."""
        return self.unpacked.root

    @property
    def site(self) -> Path:
        """Where its Python packages are."""
        (found,) = self.root.glob("opt/kubeflash/lib/python3*/site-packages")
        return found

    def run(
        self,
        *words: str,
        user: int = container.NOBODY,
        mounts: Mapping[str, Path] | None = None,
        env: Mapping[str, str] | None = None,
        timeout: float = 60,
    ) -> Completed:
        """Runs a command in it to its end, whatever its exit status."""
        argv = self.unpacked.command(*words, user=user, mounts=mounts, env=env)
        return run(argv, timeout=timeout, check=False)


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    """Built if need be: 3 minutes once, half a minute for new code."""
    archive = container.operator_image(REPO)
    return Image(archive, container.unpack(archive, tmp_path_factory.mktemp("image") / "root"))


@pytest.fixture(scope="session")
def fleet(image: Image) -> Iterator[Fleet]:
    """A real API server with KubeFlash's kinds and roles, and no process of it yet. Up once the image is built."""
    with Lab(f"pytest-{os.getpid()}") as lab:
        made = Fleet(lab)
        made.install()
        yield made
