"""Helm, with nothing of the caller's own configuration, plugins or caches."""

from __future__ import annotations

from pathlib import Path

from lab import binaries
from lab.controlplane import clean_environment
from lab.processes import Completed, run


class Helm:
    """One Helm, for one cluster or for none."""

    def __init__(self, home: Path, kubeconfig: Path | None = None) -> None:
        """Find it, or build it: once, about 4 minutes.

        Args:
            home: A folder for what it keeps. One of a lab's own: labs follow each other at the same address, and what
                an earlier one knew is wrong of the next.
            kubeconfig: The way to the cluster; None for `helm template` alone.

        Raises:
            BuildError: It could not be built.
        """
        self.program = binaries.ensure("helm")
        self._home, self._kubeconfig = home, kubeconfig

    def __call__(self, *arguments: str | Path, timeout: float = 120, check: bool = True) -> Completed:
        """Run ``helm ARGUMENTS``.

        Raises:
            CommandError: It failed, and `check` was asked for.
            LabTimeout: Time was up.
        """
        own = {
            "HELM_CACHE_HOME": str(self._home / "cache"),
            "HELM_CONFIG_HOME": str(self._home / "config"),
            "HELM_DATA_HOME": str(self._home / "data"),
            "KUBECACHEDIR": str(self._home / "discovery"),
            "KUBECONFIG": str(self._kubeconfig or "/dev/null"),
        }
        return run([self.program, *arguments], timeout=timeout, env={**clean_environment(), **own}, check=check)
