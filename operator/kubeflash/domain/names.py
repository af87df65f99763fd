"""Names that KubeFlash gives on the fabric. All of an attachment's come from its uid and so are never used twice."""

from __future__ import annotations

from dataclasses import dataclass

SYSTEM_NAMESPACE = "kubeflash-system"
NQN_PREFIX = "nqn.2026-01.io.kubeflash:"
MODEL = "KubeFlash"
LEADER_LEASE = "kubeflash-controller"
"""The Lease that the controller holds that leads."""


@dataclass(frozen=True)
class ExportIdentity:
    """Who may reach what: one attachment's subsystem and its only host."""

    nqn: str
    host_nqn: str
    host_id: str
    serial: str


def export_identity(attachment_uid: str) -> ExportIdentity:
    """The fabric identity of the attachment with this uid.

    A fenced identity that is allowed again replays its queued writes over the next owner's data, so identities come
    from something that no later attachment has. Host NQN and host id are one to one, as the kernel demands.
    """
    return ExportIdentity(
        nqn=f"{NQN_PREFIX}subsystem:{attachment_uid}",
        host_nqn=f"{NQN_PREFIX}host:{attachment_uid}",
        host_id=attachment_uid,
        serial=f"KF{attachment_uid.replace('-', '')[:18]}",
    )


def is_ours(nqn: str) -> bool:
    """Whether KubeFlash made this NQN. What it did not make it never touches."""
    return nqn.startswith(NQN_PREFIX)


def attachment_uid(nqn: str) -> str | None:
    """The attachment's uid in one of KubeFlash's NQNs, None in anybody else's."""
    return nqn.rsplit(":", 1)[1] if is_ours(nqn) else None


def partition_link(volume_id: str) -> str:
    """The device node of a volume on its own server, made by udev from the partition's PARTUUID."""
    return f"/dev/disk/by-partuuid/{volume_id}"


def agent_lease(node: str) -> str:
    """The Lease that the agent on a server renews: its heartbeat."""
    return f"agent-{node}"


def agent_lease_node(lease: str) -> str | None:
    """The FlashNode whose agent's Lease this is, None for any other Lease."""
    return lease.removeprefix("agent-") if lease.startswith("agent-") else None
