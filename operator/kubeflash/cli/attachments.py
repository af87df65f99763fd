"""`kubectl flash attachments`: what is attached where, and how that is at this moment, a line each."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from kubeflash.api.v1alpha1 import Exported, Fabric, FlashAttachment, FlashVolume, WantedExport
from kubeflash.cli import cluster, data
from kubeflash.cli.terminal import Colour, Terminal
from kubeflash.cli.text import span
from kubeflash.domain.conditions import find, holds
from kubeflash.kube.errors import Forbidden

if TYPE_CHECKING:  # a second of imports that no dump needs
    from kubeflash.kube.client import Client

JSON = dict[str, Any]
_OF_THE_CONNECTION = ("Connected", "Connecting", "Reconnecting", "Lost", "ConnectFailed", "NotExported")
"""Ready's reasons that repeat what the consumer says, whose word of now is in the connection itself."""
_COLOURS: Mapping[str, Colour] = {
    "Attached": "green",
    "Live": "green",
    **dict.fromkeys(("Connecting", "Detaching", "Fencing", "Reconnecting", "Unseen", "Waiting"), "yellow"),
}
_UNCUT = 10_000
"""Columns of a table whose rows are one line each, whatever the terminal has."""


@dataclass(frozen=True)
class State:
    """How an attachment is.

    Attributes:
        word: Attached, Connecting, Live, Reconnecting, Lost, Detaching, Fencing, InUse, Waiting, Unseen; else the
            reason why it is not Ready.
        since: since when, as far as anybody saw it.
        lost_at: of one that reconnects: when I/O begins to fail.
    """

    word: str
    since: datetime | None
    lost_at: datetime | None = None

    @property
    def colour(self) -> Colour:
        """Green works, yellow is on its way, red needs somebody."""
        return _COLOURS.get(self.word, "red")

    def age(self, now: datetime) -> str:
        """How long it has been so."""
        return span((now - self.since).total_seconds()) if self.since is not None else "-"

    def until_lost(self, now: datetime) -> str:
        """How long I/O still waits, in words: in 7m12s; empty where it does not wait."""
        if self.lost_at is None:
            return ""
        left = (self.lost_at - now).total_seconds()
        return f"in {span(left)}" if left > 0 else "at any moment"


def state_of(attachment: FlashAttachment, volume: FlashVolume | None, now: datetime) -> State:
    """How an attachment is, in one word, from what all three say: the controller, the consumer, the storage server.

    Args:
        attachment: the attachment.
        volume: its FlashVolume, None where there is none.
        now: the time here; nothing is so since later, whatever a server's clock says.
    """
    status = attachment.status
    ready, connection = find(status.conditions, "Ready"), status.connection
    changed = ready.last_transition_time if ready is not None else attachment.metadata.creation_timestamp
    if attachment.deleting:
        return State(_ending(attachment, volume), attachment.metadata.deletion_timestamp)
    exported = export_of(attachment, volume)
    if exported is not None and exported.fencing:
        return State("Fencing", changed)
    if ready is None:
        return State("Unseen", changed)
    if ready.reason == "VolumeInUse":
        return State("Waiting", changed)
    if ready.status == "True" and status.path == "Local":
        return State("Attached", changed)
    believed = ready.status == "True" or ready.reason in _OF_THE_CONNECTION
    if connection is not None and believed and (connection.state != "Live" or _is_connected(attachment)):
        return State(connection.state, min(connection.since, now), connection.lost_at if _waits(attachment) else None)
    if ready.reason == "NotExported" and exported is not None and exported.ready:
        return State("Connecting", changed)  # exported by now; controller or consumer have not heard of it yet
    return State(ready.reason, changed)


def _is_connected(attachment: FlashAttachment) -> bool:
    return holds(attachment.status.conditions, "Connected")


def _waits(attachment: FlashAttachment) -> bool:
    connection = attachment.status.connection
    return connection is not None and connection.state == "Reconnecting"


def _ending(attachment: FlashAttachment, volume: FlashVolume | None) -> str:
    """First the consumer lets go, then its export is fenced: until then it may still write."""
    connected = find(attachment.status.conditions, "Connected")
    exported = export_of(attachment, volume)
    if exported is not None and (exported.fencing or has_let_go(attachment) or wanted_of(attachment, volume) is None):
        return "Fencing"
    return "InUse" if connected is not None and connected.reason == "InUse" else "Detaching"


def has_let_go(attachment: FlashAttachment) -> bool:
    """Whether the consumer of a deleted attachment says that it has its device no more."""
    connected = find(attachment.status.conditions, "Connected")
    return connected is not None and connected.reason == "Disconnected"


def export_of(attachment: FlashAttachment, volume: FlashVolume | None) -> Exported | None:
    """Its own export, as the storage server has it; not that of an earlier attachment of this name."""
    return volume.status.export_of(attachment.metadata) if volume is not None else None


def wanted_of(attachment: FlashAttachment, volume: FlashVolume | None) -> WantedExport | None:
    """Its own export, as the controller wants it."""
    return volume.status.wanted_of(attachment.metadata) if volume is not None else None


def paths_of(attachment: FlashAttachment) -> dict[str, str | None]:
    """The kernel's state of each way to the volume, by portal; None of a portal that it has no controller for."""
    status = attachment.status
    found: dict[str, str | None] = dict.fromkeys(status.fabric.portals if status.fabric is not None else ())
    if status.connection is not None:
        found.update({path.portal: path.state for path in status.connection.paths})
    return found


def security_words(fabric: Fabric) -> str:
    """How the connection is guarded, in a word."""
    parts = ["auth"] if fabric.authentication != "None" else []
    parts += ["tls"] if fabric.tls != "None" else []
    return "+".join(parts) or "none!"


def volume_of(attachment: FlashAttachment, volumes: Mapping[str, FlashVolume]) -> FlashVolume | None:
    """The FlashVolume that it attaches."""
    return volumes.get(attachment.volume_key)


def document(attachment: FlashAttachment, volume: FlashVolume | None, now: datetime) -> JSON:
    """For programs: one attachment. What is not so is null."""
    status, state = attachment.status, state_of(attachment, volume, now)
    ready = find(status.conditions, "Ready")
    return {
        "namespace": attachment.metadata.namespace,
        "name": attachment.metadata.name,
        "volume": attachment.spec.volume,
        "from": volume.status.node_name if volume is not None else None,
        "to": attachment.spec.node_name,
        "path": status.path,
        "state": state.word,
        "since": state.since.isoformat() if state.since is not None else None,
        "lostAt": state.lost_at.isoformat() if state.lost_at is not None else None,
        "message": ready.message if ready is not None else "",
        "readOnly": attachment.spec.read_only,
        "paths": [{"portal": portal, "state": said} for portal, said in paths_of(attachment).items()],
        "security": None
        if status.fabric is None
        else {"authentication": status.fabric.authentication, "tls": status.fabric.tls},
        "device": status.device,
    }


def text(
    attachments: Iterable[FlashAttachment],
    volumes: Mapping[str, FlashVolume],
    now: datetime,
    terminal: Terminal,
    *,
    namespaces: bool = False,
) -> list[str]:
    """For people: a line each, uncut, as kubectl prints objects; `namespaces`: with that column."""
    head = ("NAME", "VOLUME", "FROM", "TO", "PATH", "STATE", "SINCE", "PATHS", "SECURITY", "DEVICE")
    rows = []
    for item in attachments:
        row = _row(item, volume_of(item, volumes), now)
        rows.append([(item.metadata.namespace or "-", None), *row] if namespaces else row)
    return replace(terminal, columns=_UNCUT).table(("NAMESPACE", *head) if namespaces else head, rows)


def _row(item: FlashAttachment, volume: FlashVolume | None, now: datetime) -> list[tuple[str, Colour | None]]:
    status, state = item.status, state_of(item, volume, now)
    paths = paths_of(item) if status.path == "Fabric" else {}
    live = sum(said == "live" for said in paths.values())
    fabric = status.fabric if status.path == "Fabric" else None
    secured = security_words(fabric) if fabric is not None else "-"
    return [
        (item.metadata.name, None),
        (item.spec.volume, None),
        ((volume.status.node_name if volume is not None else None) or "-", None),
        (item.spec.node_name, None),
        (status.path or "-", None),
        (f"{state.word}, lost {state.until_lost(now)}" if state.lost_at is not None else state.word, state.colour),
        (state.age(now), None),
        (f"{live}/{len(paths)}" if paths else "-", "red" if live < len(paths) else None),
        (secured, "red" if secured == "none!" else None),
        (status.device or "-", None),
    ]


def run(options: argparse.Namespace, client: Client, namespace: str | None, name: str | None) -> str:
    """Lists attachments: of one namespace, or of all of them (None); one where it is named.

    Raises:
        NotDone: when there is none of that name.
        KubeError: as `Client.list`.
    """
    found = cluster.keyed(FlashAttachment, client.list(FlashAttachment.info, namespace=namespace))
    chosen = [found[key] for key in sorted(found) if name is None or found[key].metadata.name == name]
    if name is not None and not chosen:
        raise cluster.not_there(
            FlashAttachment, _everywhere(client, namespace) if namespace else found, namespace, name
        )
    volumes = cluster.keyed(FlashVolume, client.list(FlashVolume.info, namespace=namespace))
    now = datetime.now(UTC)
    if options.output != "text":
        documents = [document(item, volume_of(item, volumes), now) for item in chosen]
        one = name is not None and namespace is not None
        return data.rendered(options.output, documents[0] if one else {"items": documents})
    if not chosen:
        where = f"in namespace {namespace}" if namespace is not None else "in any namespace"
        return f"There is no FlashAttachment {where}.\n"
    terminal = Terminal.of(sys.stdout, options.color)
    return "\n".join(text(chosen, volumes, now, terminal, namespaces=namespace is None)) + "\n"


def _everywhere(client: Client, namespace: str) -> dict[str, FlashAttachment]:
    """All attachments; those of the namespace where no others may be listed."""
    try:
        return cluster.keyed(FlashAttachment, client.list(FlashAttachment.info))
    except Forbidden:
        return cluster.keyed(FlashAttachment, client.list(FlashAttachment.info, namespace=namespace))
