"""What KubeFlash relies on of disks: the same checks on a loop device here and on an NVMe SSD in a virtual server.

Each `contract_*` gets the machine and a blank disk of at least 200 MiB that it may do anything with.
"""

from __future__ import annotations

from contract import carving, crashing, examining, mending, strange, wiping

CONTRACTS = [
    *examining.CONTRACTS,
    *strange.CONTRACTS,
    *carving.CONTRACTS,
    *mending.CONTRACTS,
    *wiping.CONTRACTS,
    *crashing.CONTRACTS,
]
