"""What a server's kernel lacks for NVMe over fabrics, in words with what to do. Pure."""

from __future__ import annotations

import re

from kubeflash.api.v1alpha1 import Kernel

OLDEST = (6, 8)
"""The first Linux that KubeFlash is made for."""


def kernel_problems(kernel: Kernel) -> list[str]:
    """What an admin should know of, each a sentence; of RDMA and TLS nothing, which not every server needs.

    A kernel of which nothing is known lacks nothing.
    """
    if not kernel.release:
        return []
    found: list[str] = []
    version = re.match(r"([0-9]+)\.([0-9]+)", kernel.release)
    if version is not None and (int(version[1]), int(version[2])) < OLDEST:
        found.append(
            f"Linux {kernel.release} is older than {OLDEST[0]}.{OLDEST[1]}, which volumes over the fabric need: "
            "install a newer kernel and reboot; local volumes work"
        )
    export = next((item for item in (kernel.nvmet, kernel.nvmet_tcp) if not item.available), None)
    if export is not None:
        found.append(f"its kernel cannot export volumes to other servers: {export.how}")
    if not kernel.nvme_tcp.available:
        found.append(f"its kernel cannot use volumes of other servers: {kernel.nvme_tcp.how}")
    if not kernel.authentication.available:
        found.append(
            f"its kernel has no NVMe in-band authentication (DH-HMAC-CHAP): {kernel.authentication.how}; use a kernel "
            "with CONFIG_NVME_HOST_AUTH and CONFIG_NVME_TARGET_AUTH, or pools with security.authentication: None"
        )
    return found
