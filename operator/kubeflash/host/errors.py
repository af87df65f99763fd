"""The root of everything that goes wrong on the machine. Messages say what to do."""

from __future__ import annotations


class HostError(Exception):
    """Something on this machine is not as needed, or failed."""
