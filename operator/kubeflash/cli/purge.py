"""`kubectl flash purge`: a server, or one SSD, is lost for good, so that nothing waits for it any longer."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from kubeflash.api.quantity import human_bytes
from kubeflash.api.v1alpha1 import FlashAttachment, FlashNode, FlashVolume
from kubeflash.cli import cluster, purgeall
from kubeflash.cli.asking import NotDone, confirm, say, wait_for
from kubeflash.cli.terminal import Terminal
from kubeflash.cli.text import count
from kubeflash.domain.conditions import find
from kubeflash.domain.ledger import granted
from kubeflash.domain.names import agent_lease
from kubeflash.kube.builtin import LEASE
from kubeflash.kube.errors import Conflict, NotFound

if TYPE_CHECKING:
    from kubeflash.kube.client import Client

JSON = dict[str, Any]


def run(options: argparse.Namespace, client: Client) -> str:
    """Declares a server or an SSD lost, and waits until nothing is placed there; a server's objects are removed then.

    With --all it is everything that goes (`purgeall`).

    Raises:
        NotDone: when it is refused, not confirmed, or not done in time.
        KubeError: when the API server does not do it.
    """
    if options.all:
        return purgeall.run(options, client)
    name = options.node
    if options.ssd is not None:
        return _purge_ssd(options, client, cluster.flash_node(client, name))
    try:
        node = cluster.parsed(FlashNode, client.get(FlashNode.info, name))
    except NotFound:
        return _rest(options, client, name)
    terminal = Terminal.of(sys.stdout, options.color)
    volumes = cluster.keyed(FlashVolume, client.list(FlashVolume.info))
    attachments = cluster.keyed(FlashAttachment, client.list(FlashAttachment.info))
    say(show(node, volumes.values(), attachments.values(), terminal))
    uuid = node.status.system_uuid
    try:
        _refuse_if_it_answers(client, options.system_namespace, node)
    except NotDone as error:
        if options.dry_run:
            return f"Dry run: nothing was changed. As it is now it would be refused: {error}.\n"
        raise
    if not uuid:
        raise NotDone(f"no agent ever told the system UUID of server {name}: kubectl delete flashnode {name}")
    if options.dry_run:
        return f"Dry run: nothing was changed. The server's system UUID, {uuid}, will be asked for.\n"
    confirm(uuid, options.confirm, "the server's system UUID")

    def declare(now: FlashNode) -> JSON | None:
        if now.metadata.uid != node.metadata.uid or now.status.system_uuid != uuid:
            raise NotDone(f"FlashNode {name} is another server by now: nothing was changed; look again")
        _refuse_if_it_answers(client, options.system_namespace, now)
        return None if now.spec.purge == uuid else {"purge": uuid}

    cluster.write_spec(client, name, declare)
    answered: list[str] = []

    def look() -> str:
        try:
            now = cluster.parsed(FlashNode, client.get(FlashNode.info, name))
        except NotFound:
            return ""
        purged = find(now.status.conditions, "Purged")
        if purged is not None and purged.status == "True":
            return ""
        if purged is not None and purged.reason == "AgentAnswers":
            answered.append(purged.message)
            return ""
        return f"FlashNode {name}: {purged.message if purged is not None else 'waiting for the controller'}"

    behind = (
        f"the controller goes on; the same command finishes it. To call it off, which brings nothing back that is lost "
        f'already: kubectl patch flashnode {name} --type=merge -p \'{{"spec":{{"purge":null}}}}\''
    )
    wait_for(look, timeout=options.timeout, behind=behind)
    if answered:
        cluster.write_spec(client, name, lambda now: {"purge": None} if now.spec.purge == uuid else None)
        raise NotDone(f"the agent on server {name} answers after all: it is not purged")
    _remove(client, options.system_namespace, node)
    return _after(name, volumes.values(), attachments.values())


def _purge_ssd(options: argparse.Namespace, client: Client, node: FlashNode) -> str:
    """Declares one SSD of a server lost, whether the server answers or not."""
    name, terminal = node.metadata.name, Terminal.of(sys.stdout, options.color)
    known = cluster.find_ssd(node, options.ssd)
    ssd = known.id if known is not None else options.ssd
    if known is not None and known.state == "Claimed":
        raise NotDone(
            f"SSD {ssd} of server {name} works: it is not lost. Delete its volumes, which wipes them, or pull it first"
        )
    gone = [item for item in _volumes_of(name, _volumes(client)) if _place(item)[1] == ssd]
    if not gone:
        raise NotDone(f"no volume is placed on SSD {ssd} of server {name}: nothing waits for it")
    lines = terminal.wrap(f"SSD {ssd} of server {name}, {'which is not usable' if known else 'which is not there now'}")
    say([*lines, *_lost_lines(gone, terminal)])
    if options.dry_run:
        return f"Dry run: nothing was changed. The SSD's id, {ssd}, will be asked for.\n"
    confirm(ssd, options.confirm, "the SSD's id")
    cluster.write_spec(client, name, lambda now: {"lost": [*now.spec.lost, ssd]} if ssd not in now.spec.lost else None)

    def look() -> str:
        left = [item for item in _volumes(client) if (item.status.node_name, item.status.ssd) == (name, ssd)]
        return f"{count(len(left), 'volume')} still placed on SSD {ssd}: waiting for the controller" if left else ""

    behind = f"the controller goes on; the same command finishes it. To call it off, take {ssd} out of spec.lost of it"
    wait_for(look, timeout=options.timeout, behind=behind)
    cluster.write_spec(
        client, name, lambda now: {"lost": [item for item in now.spec.lost if item != ssd]} if now.spec.lost else None
    )
    return f"Lost: {', '.join(item.key for item in gone)}. Delete these FlashVolumes, and make new ones.\n"


def _purge_without_node(options: argparse.Namespace, client: Client, name: str, gone: list[FlashVolume]) -> str:
    """Volumes are placed on a server whose FlashNode was removed by force: one is made that says that all is lost."""
    terminal = Terminal.of(sys.stdout, options.color)
    say([f"Server {name}, whose FlashNode is gone", *_lost_lines(gone, terminal)])
    if options.dry_run:
        return f"Dry run: nothing was changed. The server's name, {name}, will be asked for.\n"
    confirm(name, options.confirm, "the server's name")
    ssds = sorted({item.status.ssd for item in gone if item.status.ssd})
    body = {
        "apiVersion": "kubeflash.io/v1alpha1",
        "kind": "FlashNode",
        "metadata": {"name": name},
        "spec": {"lost": ssds},
    }
    node = cluster.parsed(FlashNode, client.create(FlashNode.info, body))

    def look() -> str:
        left = [item for item in _volumes(client) if item.status.node_name == name]
        return f"{count(len(left), 'volume')} still placed on server {name}: waiting for the controller" if left else ""

    behind = f"the controller goes on; then delete FlashNode {name}"
    wait_for(look, timeout=options.timeout, behind=behind)
    _remove(client, options.system_namespace, node)
    return f"Lost: {', '.join(item.key for item in gone)}. Delete these FlashVolumes, and make new ones.\n"


def _volumes(client: Client) -> list[FlashVolume]:
    return list(cluster.keyed(FlashVolume, client.list(FlashVolume.info)).values())


def _lost_lines(gone: list[FlashVolume], terminal: Terminal) -> list[str]:
    """What will be lost, in red."""
    head = f"LOST WILL BE: {count(len(gone), 'volume')} with {human_bytes(sum(map(granted, gone)))}"
    lines = [terminal.paint(line, "red") for line in terminal.wrap(head if gone else "No volume is placed on it.")]
    return lines + [
        line
        for volume in gone
        for line in terminal.wrap(f"{volume.key}: {human_bytes(granted(volume))} on SSD {_place(volume)[1]}", "  ")
    ]


def show(
    node: FlashNode, volumes: Iterable[FlashVolume], attachments: Iterable[FlashAttachment], terminal: Terminal
) -> list[str]:
    """What it means that a server is lost for good."""
    name, status = node.metadata.name, node.status
    gone = _volumes_of(name, volumes)
    lines = terminal.wrap(f"Server {name}, system UUID {status.system_uuid or 'unknown'}", hanging="  ")
    for ssd in status.ssds:
        words = f"SSD {ssd.id}, serial {ssd.serial}, {human_bytes(ssd.bytes)}: {ssd.state.lower()}"
        words += f", {count(len(ssd.volumes), 'partition')} of KubeFlash" if ssd.volumes else ""
        lines += terminal.wrap(words, "  ", "    ")
    lines += _lost_lines(gone, terminal)
    for item in _attachments_of(name, gone, attachments):
        words = f"attachment {item.key} of {item.spec.volume} at server {item.spec.node_name} does not work any more"
        lines += terminal.wrap(words, "  ", "    ")
    return lines + terminal.wrap(
        "If the server ever comes back, its partitions are orphans: nothing on them is touched, and kubectl flash "
        "adopt makes volumes of them again."
    )


def _volumes_of(name: str, volumes: Iterable[FlashVolume]) -> list[FlashVolume]:
    """Those that are placed there, and those that an interrupted purge has made Lost already."""
    return sorted((item for item in volumes if _place(item)[0] == name), key=lambda item: item.key)


def _place(volume: FlashVolume) -> tuple[str | None, str | None]:
    lost = volume.status.lost
    return (lost.node_name, lost.ssd) if lost is not None else (volume.status.node_name, volume.status.ssd)


def _attachments_of(
    name: str, gone: Iterable[FlashVolume], attachments: Iterable[FlashAttachment]
) -> list[FlashAttachment]:
    """Those at the server, and those of its volumes at others."""
    lost = {volume.key for volume in gone}
    found = [item for item in attachments if item.spec.node_name == name or item.volume_key in lost]
    return sorted(found, key=lambda item: item.key)


def _refuse_if_it_answers(client: Client, system: str, node: FlashNode) -> None:
    beat = cluster.heartbeat_of(client, node, system)
    if beat.answers:
        raise NotDone(
            f"the agent on server {node.metadata.name} {beat.words}: it is not lost. Stop the agent there first, and "
            "wait a minute; or delete its volumes one by one"
        )


def _remove(client: Client, system: str, node: FlashNode) -> None:
    """Deletes the FlashNode, the very one, and the Lease of its agent."""
    from kubeflash.kube.client import path_of  # noqa: PLC0415  a second that no dump needs

    path = path_of(FlashNode.info, None, node.metadata.name)
    body = {"kind": "DeleteOptions", "apiVersion": "v1", "preconditions": {"uid": node.metadata.uid}}
    try:
        client.call("DELETE", path, body=body)
    except NotFound:
        pass
    except Conflict as error:
        raise NotDone(f"FlashNode {node.metadata.name} is another server by now: it was not deleted") from error
    _remove_lease(client, system, node.metadata.name)


def _remove_lease(client: Client, system: str, name: str) -> bool:
    from kubeflash.kube.client import path_of  # noqa: PLC0415  as above

    try:
        client.call("DELETE", path_of(LEASE, system, agent_lease(name)))
    except NotFound:
        return False
    return True


def _rest(options: argparse.Namespace, client: Client, name: str) -> str:
    """What an earlier purge left when it was interrupted after the FlashNode was deleted: the Lease."""
    from kubeflash.kube.leases import parse  # noqa: PLC0415  as above

    left = [item for item in _volumes(client) if item.status.node_name == name]
    try:
        lease = parse(client.get(LEASE, agent_lease(name), options.system_namespace))
    except NotFound:
        if left:
            return _purge_without_node(options, client, name, left)
        cluster.flash_node(client, name)  # says which there are
        raise NotDone(f"there is no FlashNode {name}") from None
    beat = cluster.heartbeat(None, lease, datetime.now(UTC))
    if beat.answers:
        raise NotDone(f"there is no FlashNode {name}, and its agent {beat.words}: it is not lost")
    if left:
        return _purge_without_node(options, client, name, left)
    if options.dry_run:
        return f"FlashNode {name} is gone; its agent's Lease would be deleted.\n"
    _remove_lease(client, options.system_namespace, name)
    return f"FlashNode {name} was gone; its agent's Lease is deleted too.\n"


def _after(name: str, volumes: Iterable[FlashVolume], attachments: Iterable[FlashAttachment]) -> str:
    gone = _volumes_of(name, volumes)
    lines = [f"Server {name} is purged: its FlashNode and its agent's Lease are deleted."]
    left = _attachments_of(name, gone, attachments)
    if left:  # first: without its volume a local one would wait for an agent that is gone
        lines.append(f"Delete these FlashAttachments first: {', '.join(item.key for item in left)}.")
    if gone:
        lines.append(f"Lost: {', '.join(item.key for item in gone)}. Delete these FlashVolumes, and make new ones.")
    return "\n".join(lines) + "\n"
