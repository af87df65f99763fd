"""What can be wrong with a description of a server."""

from __future__ import annotations


class TopologyError(ValueError):
    """A description of a server cannot be used. The message is one line: what is wrong, where, and what to do."""


class BadDump(TopologyError):
    """A dump (hwloc XML, lspci text) is damaged, incomplete, too large, or no dump at all."""


class BadGpuRule(TopologyError):
    """What an admin wrote to describe further GPUs cannot be read."""
