"""What this server's kernel can do for NVMe over fabrics, and how that shows.

A module that is not loaded yet counts when it could be: it is built in, or among the modules in /lib/modules, which in
a container must be the host's. Whether authentication and TLS were built into the modules, they say by themselves once
they are loaded; before that, and of the target in most cases, only the kernel's configuration says it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from kubeflash.api.v1alpha1 import Ability, Kernel
from kubeflash.host.modules import CONFIGFS, Modules, cached, no_such_module
from kubeflash.host.root import HostRoot
from kubeflash.host.sysfs import read_text

_RELEASE = re.compile(r"[\w.+~-]{1,64}", re.ASCII)
_OPTIONS = (
    "CONFIG_NVME_HOST_AUTH",
    "CONFIG_NVME_AUTH",
    "CONFIG_NVME_TARGET_AUTH",
    "CONFIG_NVME_TCP_TLS",
    "CONFIG_NVME_TARGET_TCP_TLS",
)


def read_kernel(root: HostRoot, failures: Mapping[str, str] | None = None) -> Kernel:
    """The kernel's release and abilities; what cannot be seen counts as missing, and says so.

    Args:
        root: where /sys, /proc, /dev and /lib/modules are.
        failures: by module, why it could not be loaded (`modules.Loader.failures`).
    """
    release = read_text(root.proc / "sys" / "kernel" / "osrelease") or ""
    if not _RELEASE.fullmatch(release):
        return Kernel()
    kernel = _Running(root, release, Modules.read(root, release), failures or {})
    config = _Config.read(root, release)
    # read without having been written, the file lists the options that the initiator knows
    options = _split_options(read_text(root.dev / "nvme-fabrics"))
    nvmet = kernel.target("nvmet")
    tls = _both(_initiator(options, "tls", config, "CONFIG_NVME_TCP_TLS"), _target_tls(root, config))
    return Kernel(
        release=release,
        nvmet=nvmet,
        nvmet_tcp=_on(nvmet, kernel.target("nvmet-tcp")),
        nvmet_rdma=_on(nvmet, kernel.target("nvmet-rdma")),
        nvme_tcp=kernel.ability("nvme-tcp"),
        nvme_rdma=kernel.ability("nvme-rdma"),
        authentication=_both(
            _initiator(options, "dhchap_secret", config, "CONFIG_NVME_HOST_AUTH", "CONFIG_NVME_AUTH"),
            _target_authentication(root, kernel.modules, config),
        ),
        tls=_with_tlshd(root, _both(tls, kernel.ability("tls"))),
    )


@dataclass(frozen=True)
class _Running:
    """The running kernel: its modules, and which of them could not be loaded."""

    root: HostRoot
    release: str
    modules: Modules
    failures: Mapping[str, str] = field(default_factory=dict)

    def ability(self, name: str) -> Ability:
        """Whether a module is there, or could be."""
        modules, folder = self.modules, self.modules.folder
        if modules.is_loaded(name):
            return _yes(f"module {name} is loaded")
        if name in (modules.builtin or ()):
            return _yes(f"module {name} is built in")
        if name in self.failures:
            return _no(self.failures[name])
        if name in (modules.loadable or ()):
            return _yes(f"module {name} can be loaded from {folder}")
        if modules.loadable is None:
            words = f"module {name} is not loaded, and {folder} does not say whether it could be"
            return _no(f"{words}: in a container it must be the server's /lib/modules")
        return _no(no_such_module(self.root, name, folder, self.release))

    def target(self, name: str) -> Ability:
        """A module of the target. When it is loaded, configfs must be mounted too: nothing can be exported without."""
        if self.modules.is_loaded(name) and not self.root.nvmet.is_dir():
            where = self.root.nvmet.parent
            words = f"module {name} is loaded, but {self.root.nvmet} is not there"
            return _no(f"{words}: {self.failures.get(CONFIGFS) or f'mount -t configfs configfs {where}'}")
        return self.ability(name)


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
            values = cached(_settings, path)
            if values is not None:
                return cls(str(path), values)
        return cls("", frozenset())

    def says(self, *options: str) -> Ability | None:
        """Whether one of several options is set; None when nobody says."""
        if not self.path:
            return None
        found = next((option for option in options if option in self.values), None)
        return _yes(f"{found} in {self.path}") if found else _no(f"{options[0]} is not set in {self.path}")


def _settings(content: bytes) -> frozenset[str]:
    """Those of the options above that a kernel's configuration sets."""
    found = re.findall(rb"^(CONFIG_NVME_\w+)=[ym]$", content, re.MULTILINE)
    return frozenset(name for name in _OPTIONS if name.encode() in found)


def _split_options(text: str | None) -> frozenset[str] | None:
    """The options that the initiator knows, from a list such as `transport=%s,tls,dhchap_secret=%s`; None: not said."""
    return frozenset(option.partition("=")[0].strip() for option in text.split(",")) if text else None


def _initiator(options: frozenset[str] | None, option: str, config: _Config, *settings: str) -> Ability | None:
    """What the initiator says of an option, else what the configuration says; None when nobody does."""
    if options is None:
        return config.says(*settings)
    knows = option in options
    return Ability(available=knows, how=f"/dev/nvme-fabrics {'lists' if knows else 'does not list'} {option}")


def _target_authentication(root: HostRoot, modules: Modules, config: _Config) -> Ability | None:
    if (root.sys / "module" / "nvme_auth" / "holders" / "nvmet").exists():
        return _yes("module nvmet uses nvme-auth")
    said = config.says("CONFIG_NVME_TARGET_AUTH")
    if said is None and _is_separate(root, modules, "nvmet"):
        return _no("module nvmet does not use nvme-auth: it was built without CONFIG_NVME_TARGET_AUTH")
    return said


def _is_separate(root: HostRoot, modules: Modules, name: str) -> bool:
    """Whether a module is loaded, and neither it nor what it needs for authentication is built in: holders tell.

    A kernel without CONFIG_MODULE_UNLOAD keeps no holders, and no refcnt either.
    """
    shared = modules.builtin is None or modules.builtin & {"nvme-auth", "nvme-common"}
    return not shared and (root.sys / "module" / name / "refcnt").exists()


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
