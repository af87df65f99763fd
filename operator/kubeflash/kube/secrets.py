"""A kubeconfig's certificates and private key, held in memory.

The kubernetes package writes what a kubeconfig holds inline to files in /tmp, since TLS libraries want paths, and
removes them when the interpreter ends by itself: a process that is killed, or ends at once, leaves a client's private
key there. Here they become files without a name (`memfd_create`), which end with the process, however it ends.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from kubernetes.client.configuration import Configuration

MEMORY = Path("/dev/shm")  # noqa: S108  the kernel's, and a container's even where all else is read-only
"""Where the package may write meanwhile: to no disk. Where there is none, to the folder for temporary files."""

_FIELDS = ("ssl_ca_cert", "cert_file", "key_file")
_in_memory: dict[str, str] = {}
"""What the package wrote, and where it is now."""


def keep_in_memory(configuration: Configuration, load: Callable[[str], None]) -> None:
    """Loads a configuration; what was written to the folder that `load` is given is in memory afterwards.

    Files that a kubeconfig only names stay where they are.

    Args:
        configuration: what `load` fills.
        load: fills it, given a folder for files.
    """
    where = MEMORY if os.access(MEMORY, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="kubeflash-", dir=where) as folder:
        load(folder)
        for field in _FIELDS:
            path = getattr(configuration, field)
            if path and Path(path).parent == Path(folder):
                _in_memory[path] = _unnamed(Path(path).read_bytes())
                setattr(configuration, field, _in_memory[path])


def path_of(path: str | None) -> str | None:
    """Where a file of a configuration is now: the package sets its own path again whenever a token is looked up."""
    return _in_memory.get(path, path) if path else path


def _unnamed(content: bytes) -> str:
    descriptor = os.memfd_create("kubeflash-tls")
    with open(descriptor, "wb", closefd=False) as file:
        file.write(content)
    return f"/proc/self/fd/{descriptor}"
