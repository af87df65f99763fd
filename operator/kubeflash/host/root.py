"""Where the machine's files are: the only place that says `/sys`, so that a test can give a folder instead."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kubeflash.host.errors import HostError

_NOWHERE = Path("/dev/null")
"""Nothing can be below it, whatever a copy of /sys lies beside."""


class NoMachineCopied(HostError):
    """A folder holds no copy of a machine's /sys."""


@dataclass(frozen=True)
class HostRoot:
    """The machine, or a folder shaped like one.

    Attributes:
        path: what stands for `/`.
        sysfs: what stands for `/sys`, where that is not below `path`.
    """

    path: Path = Path("/")
    sysfs: Path | None = None

    @classmethod
    def of(cls, copy: Path) -> HostRoot:
        """A machine of which /sys, or / with sys and perhaps proc, was copied.

        Raises:
            NoMachineCopied: when the folder holds neither, or may not be read.
        """
        try:
            if (copy / "bus" / "pci" / "devices").is_dir():
                return cls(_NOWHERE, sysfs=copy)
            if (copy / "sys" / "bus" / "pci" / "devices").is_dir():
                return cls(copy)
        except OSError as error:
            raise NoMachineCopied(f"{copy} cannot be read: {error.strerror}") from error
        raise NoMachineCopied(
            f"{copy} holds neither sys/bus/pci/devices nor bus/pci/devices: give a copy of /sys, or of /"
        )

    @property
    def sys(self) -> Path:
        """Sysfs."""
        return self.path / "sys" if self.sysfs is None else self.sysfs

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
