"""What this server's kernel can do for NVMe over fabrics."""

from __future__ import annotations

from pathlib import Path

from kubeflash.api.v1alpha1 import Kernel
from kubeflash.host.root import HostRoot
from kubeflash.host.sysfs import read_text


def read_kernel(root: HostRoot) -> Kernel:
    """The kernel's release and abilities; what cannot be seen counts as missing.

    A module that is not loaded yet counts when it could be: it is built in, or among the modules in /lib/modules, which
    in a container must be the host's. The initiator says by itself whether it knows authentication, once it is loaded.
    """
    release = read_text(root.proc / "sys" / "kernel" / "osrelease") or ""
    modules = root.path / "lib" / "modules" / release if release else None
    # loaded, and no folder of it: configfs is not mounted, so nothing can be exported
    can_export = root.nvmet.is_dir() if _loaded(root, "nvmet_tcp") else _available(modules, "nvmet-tcp")
    # read without having been written, the file lists the options that it knows
    options = read_text(root.dev / "nvme-fabrics") or ""
    return Kernel(
        release=release,
        nvmet_tcp=can_export,
        nvme_tcp=_loaded(root, "nvme_tcp") or _available(modules, "nvme-tcp"),
        authentication="dhchap_secret" in options,
    )


def _loaded(root: HostRoot, module: str) -> bool:
    return (root.sys / "module" / module).is_dir()


def _available(modules: Path | None, name: str) -> bool:
    """Whether a module is built in or can be loaded."""
    if modules is None:
        return False
    wanted = f"/{name}.ko".encode()  # followed by .xz, .zst or .gz where modules are compressed
    for index in ("modules.builtin", "modules.dep"):
        try:
            if wanted in (modules / index).read_bytes():
                return True
        except OSError:
            continue
    return False
