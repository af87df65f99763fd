"""The kernel modules that NVMe over fabrics needs: which there are, and loading those that are missing.

In a container /lib/modules must be the host's, at the same path. modprobe is the image's; what the host's modprobe.d
forbids is not loaded all the same: that is read through /proc/1/root, which takes the host's PID namespace.
"""

from __future__ import annotations

import gzip
import logging
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Protocol

from kubeflash.host import commands
from kubeflash.host.errors import HostError
from kubeflash.host.root import HostRoot
from kubeflash.host.sysfs import read_text

log = logging.getLogger(__name__)

NEEDED = ("nvme-fabrics", "nvme-tcp", "nvmet", "nvmet-tcp")
"""In the order in which they are loaded. What they need, modprobe loads with them: nvme-auth, configfs."""
RDMA = ("nvme-rdma", "nvmet-rdma")
"""Only where there is an RDMA device."""
CONFIGFS = "configfs"
AGAIN_SECONDS = 45.0
"""Seconds between two tries to load what is missing: less than between two looks, so that each look tries."""
AGAIN_AFTER_HANG = 3600.0
"""The same after one that did not end: each costs `_SECONDS`, in which nothing else is done for the server."""
_KNOWN = (*NEEDED, *RDMA, "nvme-auth", "nvme-common", "tls")
_LIMIT = 16 << 20  # bytes of a file; they have 300 KB to 1 MB
_SECONDS = 30.0
_CAP_SYS_MODULE = 16  # linux/capability.h
_CONFIGS = ("etc/modprobe.d", "run/modprobe.d", "usr/lib/modprobe.d", "lib/modprobe.d")


@dataclass(frozen=True)
class Modules:
    """The modules of the running kernel: those that are loaded, and those that could be. None: nobody says."""

    loaded: Path
    folder: Path
    builtin: frozenset[str] | None
    loadable: frozenset[str] | None

    @classmethod
    def read(cls, root: HostRoot, release: str) -> Modules:
        """Those of the kernel of this release."""
        folder = root.path / "lib" / "modules" / release
        return cls(
            root.sys / "module",
            folder,
            cached(_listed, folder / "modules.builtin"),
            cached(_listed, folder / "modules.dep"),
        )

    def is_loaded(self, name: str) -> bool:
        """Whether the kernel has it now."""
        return (self.loaded / name.replace("-", "_")).is_dir()

    def is_there(self, name: str) -> bool:
        """Whether nothing need be loaded."""
        return self.is_loaded(name) or name in (self.builtin or ())


class Run(Protocol):
    """`commands.run`, or what stands for it in a test."""

    def __call__(self, argv: list[str], *, timeout: float) -> commands.Output:
        """Runs a command to its end; raises `HostError`."""


class Loader:
    """Loads what is missing, and knows why what is still missing could not be loaded.

    Args:
        root: where /sys, /proc and /lib/modules are.
        run: runs a command.
        clock: seconds, from a clock that never goes back.

    Attributes:
        failures: by module (and `configfs`, which must be mounted), why it is not there and how to mend that.
    """

    def __init__(self, root: HostRoot, run: Run = commands.run, clock: Callable[[], float] = time.monotonic) -> None:
        self._root, self._run, self._clock = root, run, clock
        self._next = float("-inf")
        self._hung = False
        self.failures: dict[str, str] = {}

    def load(self) -> None:
        """Loads what is missing and could be there. What fails is tried again when `AGAIN_SECONDS` are over."""
        release = read_text(self._root.proc / "sys" / "kernel" / "osrelease") or ""
        modules = Modules.read(self._root, release)
        missing = [name for name in self._wanted() if not modules.is_there(name)]
        if not missing and not self._configfs_missing(modules):
            self.failures.clear()
            return
        if self._clock() < self._next:
            return
        found: dict[str, str] = {}
        self._hung = False
        for name in missing:
            if words := self._load(name, modules, release):
                found[name] = words
            if self._hung:  # those after it need it
                break
        self._next = self._clock() + (AGAIN_AFTER_HANG if self._hung else AGAIN_SECONDS)
        if words := self._mount_configfs(modules):
            found[CONFIGFS] = words
        for name, words in found.items():
            if self.failures.get(name) != words:
                log.warning("%s", words)
        self.failures = found

    def _wanted(self) -> tuple[str, ...]:
        devices = self._root.sys / "class" / "infiniband"
        return (*NEEDED, *RDMA) if devices.is_dir() and any(devices.iterdir()) else NEEDED

    def _load(self, name: str, modules: Modules, release: str) -> str:
        """Loads one; else why it is not there."""
        if known := self._hopeless(name, modules, release):
            return known
        folders = [item for part in _CONFIGS for item in self._of_host(part)]
        argv = ["modprobe", "-b", *(word for item in folders for word in ("-C", str(item))), "--", name]
        try:
            self._run(argv, timeout=_SECONDS)
        except commands.CommandTimedOut as error:
            self._hung = True
            return f"{self._why(name, str(error))}; the next try is in an hour, or when the agent is started again"
        except HostError as error:
            return self._why(name, str(error))
        if modules.is_loaded(name):
            log.info("loaded module %s", name)
            return ""
        return (
            f"module {name} was not loaded, and modprobe did not say why: is it on a blacklist in /etc/modprobe.d of "
            f"the server? Take it off, or modprobe {name} there"
        )

    def _hopeless(self, name: str, modules: Modules, release: str) -> str:
        """Why modprobe need not even be tried; empty when it may do."""
        if modules.loadable is None:
            return (
                f"module {name} is not loaded, and {modules.folder} cannot be read: in a container it must be the "
                "server's /lib/modules; if the server has none for its kernel, its kernel was updated: reboot it"
            )
        if name not in modules.loadable:
            return no_such_module(self._root, name, modules.folder, release)
        if read_text(self._root.proc / "sys" / "kernel" / "modules_disabled") == "1":
            return (
                f"module {name} cannot be loaded: kernel.modules_disabled is 1 until the server reboots; have it load "
                f"{name} before that is set, by a line in /etc/modules-load.d/kubeflash.conf"
            )
        return ""

    def _why(self, name: str, words: str) -> str:
        """What modprobe's failure means, and how to mend it."""
        head = f"module {name} could not be loaded"
        if "Key was rejected" in words or "Required key not available" in words:
            return (
                f"{head}: the kernel does not accept its signature (Secure Boot): use the distribution's own module, "
                "or sign it with a key that is enrolled with mokutil --import"
            )
        if "Operation not permitted" in words:
            if not self._may_load():
                return f"{head}: the agent lacks CAP_SYS_MODULE: its pod must be privileged, or modprobe {name} there"
            lockdown = read_text(self._root.sys / "kernel" / "security" / "lockdown") or ""
            if "[integrity]" in lockdown or "[confidentiality]" in lockdown:
                return (
                    f"{head}: the kernel is locked down and takes signed modules only: use the distribution's own "
                    "module, or sign it with a key that is enrolled with mokutil --import"
                )
        if "install command" in words:
            return (
                f"{head}: an install line in /etc/modprobe.d of the server forbids it: take it away, or modprobe there"
            )
        return f"{head}: {words}; dmesg on the server may say more; modprobe {name} there"

    def _may_load(self) -> bool:
        text = read_text(self._root.proc / "self" / "status") or ""
        masks = [line.split()[1] for line in text.splitlines() if line.startswith("CapEff:")]
        return not masks or bool(int(masks[0], 16) >> _CAP_SYS_MODULE & 1)

    def _of_host(self, part: str) -> Iterator[Path]:
        """A folder of the host, from a container that shares its PID namespace."""
        folder = self._root.proc / "1" / "root" / part
        try:
            if folder.is_dir():
                yield folder
        except PermissionError:
            return

    def _configfs_missing(self, modules: Modules) -> bool:
        return modules.is_loaded("nvmet") and not self._root.nvmet.is_dir()

    def _mount_configfs(self, modules: Modules) -> str:
        """Mounts configfs where nvmet is loaded and does not show there; else why it is not there."""
        if not self._configfs_missing(modules):
            return ""
        where = str(self._root.nvmet.parent)
        try:
            self._run(["mount", "-t", "configfs", "configfs", where], timeout=_SECONDS)
        except HostError as error:
            return f"configfs could not be mounted: {error}; mount -t configfs configfs {where} on the server"
        if self._root.nvmet.is_dir():
            log.info("mounted configfs at %s", where)
            return ""
        return f"configfs is mounted at {where}, and nvmet does not show there: see dmesg on the server"


def no_such_module(root: HostRoot, name: str, folder: Path, release: str) -> str:
    """That a kernel has no such module, and which package has it."""
    return f"there is no module {name} in {folder}: {_package(root, release)}"


def _package(root: HostRoot, release: str) -> str:
    """Where a distribution keeps the modules that its small kernel package leaves out."""
    systems = _systems(root)
    if "ubuntu" in systems:
        return f"apt install linux-modules-extra-{release}"
    if "debian" in systems and "cloud" in release:
        return "install Debian's linux-image package instead of the cloud kernel, which leaves it out, and reboot"
    if systems & {"rhel", "fedora", "centos"}:
        return f"dnf install kernel-modules-{release} kernel-modules-extra-{release}"
    if systems & {"suse", "sles", "opensuse"}:
        return "zypper install kernel-default instead of kernel-default-base, and reboot"
    return (
        "install the package with the rest of the distribution kernel's modules (such as linux-modules-extra or "
        "kernel-modules-extra), or a kernel that has it"
    )


def _systems(root: HostRoot) -> frozenset[str]:
    """ID and ID_LIKE of the host's os-release: in a container the root of process 1 is the host's."""
    for path in (root.proc / "1" / "root" / "etc" / "os-release", root.path / "etc" / "os-release"):
        if text := read_text(path):
            fields = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
            return frozenset(f"{fields.get('ID', '')} {fields.get('ID_LIKE', '')}".replace('"', "").lower().split())
    return frozenset()


def _listed(content: bytes) -> frozenset[str]:
    """Those of the modules above that modules.builtin or modules.dep lists."""
    # .ko is followed by .xz, .zst or .gz where modules are compressed
    return frozenset(name for name in _KNOWN if f"/{name}.ko".encode() in content)


def cached(read: Callable[[bytes], frozenset[str]], path: Path) -> frozenset[str] | None:
    """What a file says, read again only when it has changed; None when it cannot be read."""
    try:
        status = path.stat()
        return _read(read, path, status.st_mtime_ns, status.st_size)
    except (OSError, EOFError, zlib.error):
        return None


@lru_cache(maxsize=8)
def _read(read: Callable[[bytes], frozenset[str]], path: Path, mtime: int, size: int) -> frozenset[str]:
    del mtime, size
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        return read(file.read(_LIMIT))
