"""The consumer's side of attachments: what to connect, what to disconnect, and what is so. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from kubeflash.api.v1alpha1 import FlashAttachment
from kubeflash.domain.fabric import Connection, Portal
from kubeflash.domain.names import is_ours, partition_link
from kubeflash.domain.steps import Connect, Disconnect, Step


@dataclass(frozen=True)
class AttachmentView:
    """One attachment at this server, as achieved: a device, or why there is none."""

    device: str | None
    reason: str
    message: str


def plan_connections(attachments: Iterable[FlashAttachment], connections: Sequence[Connection]) -> tuple[Step, ...]:
    """The steps that bring the initiator to what the attachments of this server want.

    Args:
        attachments: all attachments of this server; the list must be complete, since what is not in it is disconnected.
        connections: the NVMe-oF controllers that there are; those that are not KubeFlash's are left alone.
    """
    wanted: dict[str, Connect] = {}
    for attachment in attachments:
        connect = _connect(attachment)
        if connect is not None and not attachment.deleting:
            wanted[connect.nqn] = connect
    present = {connection.nqn for connection in connections if is_ours(connection.nqn)}
    steps: list[Step] = [Disconnect(nqn) for nqn in sorted(present - set(wanted))]
    steps += [wanted[nqn] for nqn in sorted(set(wanted) - present)]
    return tuple(steps)


def _connect(attachment: FlashAttachment) -> Connect | None:
    fabric, keys = attachment.status.fabric, attachment.status.keys
    if attachment.status.path != "Fabric" or fabric is None or keys is None or not fabric.portals:
        return None
    return Connect(
        nqn=fabric.nqn,
        host_nqn=fabric.host_nqn,
        host_id=fabric.host_id,
        portal=Portal.parse(fabric.portals[0]),
        volume_id=fabric.volume_id,
        sealed_keys=keys.consumer,
        reconnect_seconds=fabric.reconnect_seconds,
        loss_seconds=fabric.loss_seconds,
    )


def view_attachment(
    attachment: FlashAttachment,
    connections: Sequence[Connection],
    local_partitions: Mapping[str, str],
    held: str | None,
    failure: str,
) -> AttachmentView:
    """What is so about one attachment at this server, read back.

    Args:
        attachment: the attachment.
        connections: the NVMe-oF controllers that there are.
        local_partitions: block device of each volume on an SSD of this server, by volume id.
        held: who holds its device, empty for nobody, None when nobody has looked yet.
        failure: what the last try to connect or disconnect said.
    """
    status = attachment.status
    if status.path == "Local":
        present = status.volume_id is not None and status.volume_id in local_partitions
        return _local(attachment, present, held)
    nqn = status.fabric.nqn if status.fabric else ""
    mine = [connection for connection in connections if connection.nqn == nqn]
    if attachment.deleting:
        if not mine:
            return AttachmentView(None, "Disconnected", "")
        return AttachmentView(mine[0].device, "InUse" if held else "Disconnecting", held or failure)
    if not mine:
        waiting = "the volume's server has not exported it yet"
        return AttachmentView(None, "ConnectFailed" if failure else "NotExported", failure or waiting)
    connection = mine[0]
    if connection.state != "live":
        message = f"the connection is {connection.state}: the volume's server does not answer; I/O waits"
        return AttachmentView(connection.device, "Reconnecting", message)
    if connection.device is None or connection.uuid != status.volume_id or connection.bytes == 0:
        return AttachmentView(None, "NoDevice", "connected, but no block device with the volume's UUID appeared")
    return AttachmentView(connection.device, "Connected", "")


def _local(attachment: FlashAttachment, present: bool, held: str | None) -> AttachmentView:
    volume_id = attachment.status.volume_id or ""
    if attachment.deleting:
        if held is None:
            return AttachmentView(partition_link(volume_id), "Disconnecting", "looking who uses it")
        if held:
            return AttachmentView(partition_link(volume_id), "InUse", held)
        return AttachmentView(None, "Disconnected", "")
    if not present:
        return AttachmentView(None, "NoDevice", "the volume's partition is not there")
    return AttachmentView(partition_link(volume_id), "Connected", "")
