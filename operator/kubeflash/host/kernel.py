"""What this server's kernel can do for NVMe over fabrics, and how that shows.

A module that is not loaded yet counts when it could be: it is built in, or among the modules in /lib/modules, which in
a container must be the host's. Whether authentication and TLS were built into the modules, they say by themselves once
they are loaded; before that, and of the target in most cases, only the kernel's configuration says it.
"""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from kubeflash.api.v1alpha1 import Ability, Kernel
from kubeflash.host.root import HostRoot
from kubeflash.host.sysfs import read_text

_LIMIT = 16 << 20  # bytes of a file; they have 300 KB to 1 MB
_MODULES = ("nvmet", "nvmet-tcp", "nvmet-rdma", "nvme-tcp", "nvme-rdma", "tls")
_RELEASE = re.compile(r"[\w.+~-]{1,64}", re.ASCII)
_OPTIONS = (
    "CONFIG_NVME_HOST_AUTH",
    "CONFIG_NVME_AUTH",
    "CONFIG_NVME_TARGET_AUTH",
    "CONFIG_NVME_TCP_TLS",
    "CONFIG_NVME_TARGET_TCP_TLS",
)


def read_kernel(root: HostRoot) -> Kernel:
    """The kernel's release and abilities; what cannot be seen counts as missing, and says so."""
    release = read_text(root.proc / "sys" / "kernel" / "osrelease") or ""
    if not _RELEASE.fullmatch(release):
        return Kernel()
    modules, config = _Modules.read(root, release), _Config.read(root, release)
    # read without having been written, the file lists the options that the initiator knows
    options = _split_options(read_text(root.dev / "nvme-fabrics"))
    nvmet = _target(root, modules, "nvmet")
    tls = _both(_initiator(options, "tls", config, "CONFIG_NVME_TCP_TLS"), _target_tls(root, config))
    return Kernel(
        release=release,
        nvmet=nvmet,
        nvmet_tcp=_on(nvmet, _target(root, modules, "nvmet-tcp")),
        nvmet_rdma=_on(nvmet, _target(root, modules, "nvmet-rdma")),
        nvme_tcp=modules.ability("nvme-tcp"),
        nvme_rdma=modules.ability("nvme-rdma"),
        authentication=_both(
            _initiator(options, "dhchap_secret", config, "CONFIG_NVME_HOST_AUTH", "CONFIG_NVME_AUTH"),
            _target_authentication(root, config),
        ),
        tls=_with_tlshd(root, _both(tls, modules.ability("tls"))),
    )


@dataclass(frozen=True)
class _Modules:
    """The modules of the running kernel: those that are loaded, and those that could be. None: nobody says."""

    loaded: Path
    folder: Path
    builtin: frozenset[str] | None
    loadable: frozenset[str] | None

    @classmethod
    def read(cls, root: HostRoot, release: str) -> _Modules:
        folder = root.path / "lib" / "modules" / release
        return cls(
            root.sys / "module",
            folder,
            _cached(_listed, folder / "modules.builtin"),
            _cached(_listed, folder / "modules.dep"),
        )

    def is_loaded(self, name: str) -> bool:
        return (self.loaded / name.replace("-", "_")).is_dir()

    def ability(self, name: str) -> Ability:
        """Whether a module is there, or could be."""
        if self.is_loaded(name):
            return _yes(f"module {name} is loaded")
        if name in (self.builtin or ()):
            return _yes(f"module {name} is built in")
        if name in (self.loadable or ()):
            return _yes(f"module {name} can be loaded from {self.folder}")
        if self.loadable is None:
            return _no(f"module {name} is not loaded, and {self.folder} does not say whether it could be")
        return _no(f"there is no module {name} in {self.folder}")


@dataclass(frozen=True)
class _Config:
    """The kernel's configuration, as far as it matters here. `path` is empty where none can be read."""

    path: str
    values: frozenset[str]

    @classmethod
    def read(cls, root: HostRoot, release: str) -> _Config:
        for path in (
            root.path / "boot" / f"config-{release}",
            root.path / "lib" / "modules" / release / "config",
            root.proc / "config.gz",
        ):
            values = _cached(_settings, path)
            if values is not None:
                return cls(str(path), values)
        return cls("", frozenset())

    def says(self, *options: str) -> Ability | None:
        """Whether one of several options is set; None when nobody says."""
        if not self.path:
            return None
        found = next((option for option in options if option in self.values), None)
        return _yes(f"{found} in {self.path}") if found else _no(f"{options[0]} is not set in {self.path}")


def _listed(content: bytes) -> frozenset[str]:
    """Those of the modules above that modules.builtin or modules.dep lists."""
    # .ko is followed by .xz, .zst or .gz where modules are compressed
    return frozenset(name for name in _MODULES if f"/{name}.ko".encode() in content)


def _settings(content: bytes) -> frozenset[str]:
    """Those of the options above that a kernel's configuration sets."""
    found = re.findall(rb"^(CONFIG_NVME_\w+)=[ym]$", content, re.MULTILINE)
    return frozenset(name for name in _OPTIONS if name.encode() in found)


def _cached(read: Callable[[bytes], frozenset[str]], path: Path) -> frozenset[str] | None:
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


def _split_options(text: str | None) -> frozenset[str] | None:
    """The options that the initiator knows, from a list such as `transport=%s,tls,dhchap_secret=%s`; None: not said."""
    return frozenset(option.partition("=")[0].strip() for option in text.split(",")) if text else None


def _target(root: HostRoot, modules: _Modules, name: str) -> Ability:
    """A module of the target. When it is loaded, configfs must be mounted too: nothing can be exported without."""
    if modules.is_loaded(name) and not root.nvmet.is_dir():
        return _no(f"module {name} is loaded, but {root.nvmet} is not there: mount configfs")
    return modules.ability(name)


def _initiator(options: frozenset[str] | None, option: str, config: _Config, *settings: str) -> Ability | None:
    """What the initiator says of an option, else what the configuration says; None when nobody does."""
    if options is None:
        return config.says(*settings)
    knows = option in options
    return Ability(available=knows, how=f"/dev/nvme-fabrics {'lists' if knows else 'does not list'} {option}")


def _target_authentication(root: HostRoot, config: _Config) -> Ability | None:
    if (root.sys / "module" / "nvme_auth" / "holders" / "nvmet").exists():
        return _yes("module nvmet uses nvme-auth")
    return config.says("CONFIG_NVME_TARGET_AUTH")


def _target_tls(root: HostRoot, config: _Config) -> Ability | None:
    if (root.sys / "module" / "nvme_keyring" / "holders" / "nvmet_tcp").exists():
        return _yes("module nvmet-tcp uses nvme-keyring")
    return config.says("CONFIG_NVME_TARGET_TCP_TLS")


def _both(initiator: Ability | None, target: Ability | None) -> Ability:
    """What initiator and target together can. A target that nobody speaks for is taken at the initiator's word."""
    if initiator is None:
        words = "of the initiator it is not known: load nvme-fabrics"
        return _no(f"{words}; of the target: {target.how}" if target else words)
    if target is None:
        return Ability(
            available=initiator.available, how=f"{initiator.how}; of the target it is not known: no configuration"
        )
    return Ability(available=initiator.available and target.available, how=f"{initiator.how}; {target.how}")


def _with_tlshd(root: HostRoot, ability: Ability) -> Ability:
    """TLS also needs the program that shakes hands for the kernel, which must find keys in the kernel's keyring."""
    if not ability.available:
        return ability
    if not any(read_text(comm) == "tlshd" for comm in root.proc.glob("[0-9]*/comm")):
        return _no("tlshd does not run on this server: install ktls-utils, keyrings=.nvme in tlshd.conf")
    return _yes(f"{ability.how}; tlshd runs")


def _on(base: Ability, ability: Ability) -> Ability:
    """An ability that needs another one."""
    return ability if base.available else base


def _yes(how: str) -> Ability:
    return Ability(available=True, how=how)


def _no(how: str) -> Ability:
    return Ability(available=False, how=how)
