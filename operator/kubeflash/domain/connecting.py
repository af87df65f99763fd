"""The consumer's side of attachments: what to connect, what to disconnect, and what is so. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from ipaddress import ip_address
from typing import Literal

from kubeflash.api.v1alpha1 import AttachmentConnection, AttachmentPath, FlashAttachment
from kubeflash.domain.fabric import Connection, Portal
from kubeflash.domain.names import is_ours, partition_link
from kubeflash.domain.steps import Connect, Disconnect, DropPath, RemoveTlsKey, SetReadOnly, Step

LIVE = "live"


@dataclass(frozen=True)
class Consumer:
    """What of attached volumes there is on a server.

    Attributes:
        connections: the NVMe-oF controllers that there are, whoever made them.
        partitions: kernel name of each volume on an SSD of this server, by volume id.
        read_only: ids of those whose partition the kernel holds read-only.
        fixed: ids of those whose whole SSD is read-only: that is not to be changed.
        tls_keys: pairs of host NQN and subsystem NQN that have a TLS key in the kernel, and no export here.
        exported: by id of an exclusive volume on this server, the NQNs by which it is exported still.
    """

    connections: Sequence[Connection]
    partitions: Mapping[str, str]
    read_only: Collection[str] = frozenset()
    exported: Mapping[str, Collection[str]] | None = None
    fixed: Collection[str] = frozenset()
    tls_keys: Collection[tuple[str, str]] = frozenset()

    def of(self, nqn: str) -> list[Connection]:
        """The paths to one subsystem."""
        return [item for item in self.connections if nqn and item.nqn == nqn]

    def stale(self, volume_id: str, nqn: str) -> list[str]:
        """NQNs of other attachments, ended ones, by which the volume is still connected here.

        The kernel ignores a second device with the same UUID.
        """
        return sorted(
            {item.nqn for item in self.connections if is_ours(item.nqn) and item.nqn != nqn and item.uuid == volume_id}
        )


@dataclass(frozen=True)
class AttachmentView:
    """One attachment at this server, as achieved: a device, or why there is none."""

    device: str | None
    reason: str
    message: str
    connection: AttachmentConnection | None = None


def plan_connections(attachments: Iterable[FlashAttachment], here: Consumer) -> tuple[Step, ...]:
    """The steps that bring the initiator to what the attachments of this server want.

    Args:
        attachments: all attachments of this server; the list must be complete, since what is not in it is disconnected.
        here: what there is; connections that are not KubeFlash's are left alone.
    """
    everything = list(attachments)
    wanted = {item.status.fabric.nqn: item for item in everything if item.status.fabric and not item.deleting}
    known = {item.status.fabric.nqn for item in everything if item.status.fabric}
    present = {connection.nqn for connection in here.connections if is_ours(connection.nqn)}
    steps: list[Step] = [Disconnect(nqn, abandoned=nqn not in known) for nqn in sorted(present - set(wanted))]
    for _, attachment in sorted(wanted.items()):
        steps += _connect(attachment, here)
    steps += _local_modes(everything, here)
    steps += [RemoveTlsKey(nqn, host) for host, nqn in sorted(here.tls_keys) if nqn not in known | present]
    return tuple(steps)


def _connect(attachment: FlashAttachment, here: Consumer) -> Iterator[Step]:
    """What is to be done about the paths of one attachment."""
    fabric, keys = attachment.status.fabric, attachment.status.keys
    keyed = fabric is not None and (fabric.authentication != "None" or fabric.tls != "None")
    if attachment.status.path != "Fabric" or fabric is None or not fabric.portals or (keyed and keys is None):
        return
    if here.stale(fabric.volume_id, fabric.nqn):
        return  # it is disconnected first
    mine = here.of(fabric.nqn)
    portals = [Portal.parse(text) for text in fabric.portals]
    for portal in portals:
        if not any(_leads(item, portal) for item in mine):
            yield Connect(
                nqn=fabric.nqn,
                host_nqn=fabric.host_nqn,
                host_id=fabric.host_id,
                portal=portal,
                volume_id=fabric.volume_id,
                sealed_keys=keys.consumer if keys is not None else "",
                reconnect_seconds=fabric.reconnect_seconds,
                loss_seconds=fabric.loss_seconds,
                authentication=fabric.authentication != "None",
                tls=fabric.tls == "Required",
                several=len(portals) > 1,
            )
    wanted = [item for item in mine if any(_leads(item, portal) for portal in portals)]
    if any(item.state == LIVE for item in wanted):  # never the last way there is
        for item in mine:
            if item not in wanted and item.portal is not None:
                yield DropPath(item.nqn, item.instance, item.portal)
    device = next((item for item in mine if item.device and item.uuid == fabric.volume_id), None)
    if device is not None and device.read_only != attachment.spec.read_only:
        yield SetReadOnly(fabric.volume_id, fabric.nqn, attachment.spec.read_only)


def _leads(connection: Connection, portal: Portal) -> bool:
    """Whether a path leads to a portal; the kernel may write its address otherwise."""
    there = connection.portal
    return there is not None and (there.transport, ip_address(there.address), there.port) == (
        portal.transport,
        ip_address(portal.address),
        portal.port,
    )


def _local_modes(attachments: Sequence[FlashAttachment], here: Consumer) -> Iterator[Step]:
    """Partitions that are to be read-only, and those that are not to be any more."""
    for volume_id in sorted(set(here.partitions) - set(here.fixed)):
        local = [item for item in attachments if item.status.path == "Local" and item.status.volume_id == volume_id]
        wanted = bool(local) and all(item.spec.read_only for item in local)
        if wanted != (volume_id in here.read_only):
            yield SetReadOnly(volume_id, "", wanted)


def view_attachment(
    attachment: FlashAttachment, here: Consumer, held: str | None, failure: str, now: datetime
) -> AttachmentView:
    """What is so about one attachment at this server, read back.

    Args:
        attachment: the attachment.
        here: what there is.
        held: who holds its device, empty for nobody, None when nobody has looked yet.
        failure: what the last try to connect or disconnect said.
        now: the time.
    """
    status = attachment.status
    if status.path == "Local":
        return _local(attachment, here, held, failure)
    fabric = status.fabric
    nqn = fabric.nqn if fabric else ""
    mine = here.of(nqn)
    connection = _connection(attachment, mine, now)
    path = next((item for item in mine if item.device), None)
    device = path.device if path is not None else None

    def say(reason: str, message: str, device: str | None = device) -> AttachmentView:
        return AttachmentView(device, reason, message, connection)

    if attachment.deleting:
        if not mine:
            return AttachmentView(None, "Disconnected", "")
        if held is None:
            return say("Looking", "looking who uses it")
        return say("InUse" if held else "Disconnecting", held or failure)
    stale = here.stale(status.volume_id or "", nqn)
    if stale:
        words = f"the volume is still connected here by an earlier attachment, which is ended first: {stale[0]}"
        return say("Stale", words)
    if not mine:
        return say(*_not_connected(attachment, failure))
    if connection is None or connection.state != "Live":
        until = f"; from {connection.lost_at:%H:%M:%S} UTC on it fails" if connection and connection.lost_at else ""
        states = ", ".join(sorted({item.state for item in mine}))
        return say("Reconnecting", f"the volume's server does not answer ({states}): I/O waits{until}")
    if path is None or path.uuid != status.volume_id or path.bytes == 0:
        return say("NoDevice", "connected, but no block device with the volume's UUID appeared", None)
    if path.read_only != attachment.spec.read_only:
        return say("SettingMode", failure or "its device is not read-only yet, or still is", None)
    return say("Connected", _paths_missing(attachment, mine, failure))


def _not_connected(attachment: FlashAttachment, failure: str) -> tuple[str, str]:
    """Why there is no connection at all."""
    fabric, before = attachment.status.fabric, attachment.status.connection
    if fabric is None or not fabric.portals:
        return "NotExported", "the volume's server has not exported it yet"
    if before is not None:
        words = (
            "it was connected, and is not any more: its server did not answer for too long, or this one was rebooted"
        )
        return "Lost", f"{words}; what is mounted on it must be mounted anew{f'; {failure}' if failure else ''}"
    return ("ConnectFailed", failure) if failure else ("Connecting", "its server is about to connect it")


def _paths_missing(attachment: FlashAttachment, mine: Sequence[Connection], failure: str) -> str:
    """Which of the paths do not work; empty when all do."""
    fabric = attachment.status.fabric
    portals = [Portal.parse(text) for text in fabric.portals] if fabric else []
    live = [item for item in mine if item.state == LIVE]
    broken = [str(portal) for portal in portals if not any(_leads(item, portal) for item in live)]
    if not broken:
        return ""
    why = f": {failure}" if failure else ""
    return f"{len(portals) - len(broken)} of {len(portals)} paths work, not {', '.join(broken)}{why}"


def _connection(attachment: FlashAttachment, mine: Sequence[Connection], now: datetime) -> AttachmentConnection | None:
    """The state of the connection; None of one that never was."""
    before, fabric = attachment.status.connection, attachment.status.fabric
    state: Literal["Live", "Reconnecting", "Lost"]
    if any(item.state == LIVE for item in mine):
        state = "Live"
    elif mine:
        state = "Reconnecting"
    elif before is not None and not attachment.deleting:
        state = "Lost"
    else:
        return None
    since = before.since if before is not None and before.state == state else now.replace(microsecond=0)
    lost_at = since + timedelta(seconds=fabric.loss_seconds) if state == "Reconnecting" and fabric else None
    paths = {str(item.portal or item.address): item.state for item in mine}
    return AttachmentConnection(
        state=state,
        since=since,
        lost_at=lost_at,
        paths=[AttachmentPath(portal=portal, state=paths[portal]) for portal in sorted(paths)],
    )


def _local(attachment: FlashAttachment, here: Consumer, held: str | None, failure: str) -> AttachmentView:
    volume_id = attachment.status.volume_id or ""
    link = partition_link(volume_id)
    if attachment.deleting:
        if held is None:
            return AttachmentView(link, "Looking", "looking who uses it")
        if held:
            return AttachmentView(link, "InUse", held)
        return AttachmentView(None, "Disconnected", "")
    if volume_id not in here.partitions:
        return AttachmentView(None, "NoDevice", "the volume's partition is not there")
    fenced = sorted((here.exported or {}).get(volume_id, ()))
    if fenced:
        words = f"the volume is still exported to another server, which is ended first: {fenced[0]}"
        return AttachmentView(None, "Fencing", words)
    if (volume_id in here.read_only) != attachment.spec.read_only and volume_id not in here.fixed:
        return AttachmentView(None, "SettingMode", failure or "its device is not read-only yet, or still is")
    return AttachmentView(link, "Connected", "")
