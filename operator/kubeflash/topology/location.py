"""Between the API's words for where a device hangs and the tree's."""

from __future__ import annotations

from kubeflash.topology.tree import from_location, to_location

__all__ = ["from_location", "to_location"]
