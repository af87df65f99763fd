"""Where the machine's files are: the only place that says `/sys`, so that a test can give a folder instead."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class HostRoot:
    """The machine, or a folder shaped like one."""

    path: Path = Path("/")

    @property
    def sys(self) -> Path:
        """Sysfs."""
        return self.path / "sys"

    @property
    def proc(self) -> Path:
        """Procfs; in a container it must be that of the host's PID namespace."""
        return self.path / "proc"

    @property
    def dev(self) -> Path:
        """Device nodes."""
        return self.path / "dev"

    @property
    def nvmet(self) -> Path:
        """The kernel's NVMe target in configfs."""
        return self.sys / "kernel" / "config" / "nvmet"
