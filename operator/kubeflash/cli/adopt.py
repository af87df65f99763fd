"""`kubectl flash adopt`: makes volumes of orphans, and takes over SSDs of servers that cannot be asked any more."""

from __future__ import annotations

import argparse
import sys
import time
from typing import TYPE_CHECKING, Any

from kubeflash.api.quantity import format_quantity, human_bytes
from kubeflash.api.v1alpha1 import Extent, FlashNode, FlashVolume, Ssd
from kubeflash.cli import cluster, data
from kubeflash.cli.asking import NotDone, confirm, say, wait_for
from kubeflash.cli.terminal import Terminal
from kubeflash.cli.text import count
from kubeflash.domain.conditions import find, holds
from kubeflash.domain.placement import Refusal, consider
from kubeflash.kube.errors import Conflict, Forbidden, NotFound
from kubeflash.topology.faults import short

if TYPE_CHECKING:
    from kubeflash.kube.client import Client

GRACE = 10.0
"""Seconds that a volume may be refused before that counts: the controller may not have seen all yet."""

JSON = dict[str, Any]


def run(options: argparse.Namespace, client: Client) -> str:
    """Lists orphans, makes a volume of one, or takes over an SSD; what was achieved.

    Raises:
        NotDone: when it is refused, not confirmed, or not done in time.
        KubeError: when the API server does not do it.
    """
    if not options.words:
        return _list(options, client)
    node = cluster.flash_node(client, options.words[0])
    what = options.words[1]
    found = cluster.find_extent(node, what)
    if found is not None:
        return _adopt_orphan(options, client, node, *found)
    ssd = cluster.find_ssd(node, what)
    if ssd is not None:
        return _adopt_ssd(options, client, node, ssd)
    raise NotDone(f"server {node.metadata.name} has no orphan and no SSD {what}: kubectl flash adopt lists them")


# --- what there is ---


def _list(options: argparse.Namespace, client: Client) -> str:
    nodes = cluster.keyed(FlashNode, client.list(FlashNode.info))
    unread = ""
    try:
        volumes = list(cluster.keyed(FlashVolume, client.list(FlashVolume.info)).values())
    except Forbidden:
        volumes, unread = [], "You may not list flashvolumes (RBAC): whose orphans were is not known."
    found: list[JSON] = [
        {
            "node": name,
            "ssd": ssd.id,
            "id": extent.id,
            "bytes": extent.bytes,
            "was": [item.key for item in volumes if cluster.has_id(item, extent.id)],
        }
        for name, node in sorted(nodes.items())
        for ssd, extent in cluster.orphans(node)
    ]
    moved: list[JSON] = [
        {
            "node": name,
            "ssd": ssd.id,
            "labelled": ssd.labelled,
            "volumes": len(ssd.volumes),
            "bytes": sum(extent.bytes for extent in ssd.volumes),
        }
        for name, node in sorted(nodes.items())
        for ssd in node.status.ssds
        if ssd.labelled is not None
    ]
    if options.output != "text":
        return data.rendered(options.output, {"orphans": found, "moved": moved})
    terminal = Terminal.of(sys.stdout, options.color)
    lines: list[str] = []
    if found:
        head = ("NODE", "SSD", "ID", "SIZE", "WAS")
        lines += terminal.table(
            head,
            [
                [
                    (text, None)
                    for text in (
                        row["node"],
                        row["ssd"],
                        row["id"],
                        human_bytes(row["bytes"]),
                        ", ".join(row["was"]) or "-",
                    )
                ]
                for row in found
            ],
        )
    else:
        lines += ["There is no orphan."]
    if moved:
        lines += ["", terminal.paint("SSDs WITH ANOTHER SERVER'S LABEL", "bold")]
        lines += terminal.table(
            ("NODE", "SSD", "VOLUMES", "LABEL OF SERVER"),
            [
                [(row["node"], None), (row["ssd"], None), (str(row["volumes"]), None), (row["labelled"], None)]
                for row in moved
            ],
        )
    return "\n".join([*lines, *([unread] if unread else [])]) + "\n"


# --- an orphan ---


def _adopt_orphan(options: argparse.Namespace, client: Client, node: FlashNode, ssd: Ssd, extent: Extent) -> str:
    from kubeflash.kube.client import path_of  # noqa: PLC0415  a second that no dump needs

    name = node.metadata.name
    if node.spec.wipe is not None and extent.id in node.spec.wipe.orphans:
        raise NotDone(
            f"kubectl flash wipe was asked for orphan {extent.id}: call that off first, kubectl patch flashnode {name} "
            f'--type=merge -p \'{{"spec":{{"wipe":{{"orphans":{{"{extent.id}":null}}}}}}}}\''
        )
    if not options.name or not options.namespace:
        raise NotDone(
            f"an orphan becomes a FlashVolume: say kubectl flash adopt {name} {extent.id} --name NAME -n NAMESPACE"
        )
    if ssd.labelled is not None:
        raise NotDone(
            f"SSD {ssd.id} carries the label of server {ssd.labelled}: take it over first, kubectl flash adopt {name} "
            f"{ssd.id}; FlashVolumes that exist come with it"
        )
    pool = options.pool or ssd.pool
    if pool is None:
        raise NotDone(f"no pool selects SSD {ssd.id}: make one that does, and name it with --pool")
    reading = cluster.read(client, options.namespace, system=options.system_namespace)
    holders = [item for item in reading.cluster.volumes.values() if cluster.has_id(item, extent.id)]
    if holders:
        which = holders[0]
        way = (
            f"it is lost; kubectl delete flashvolume {which.metadata.name} -n {which.metadata.namespace} first, which "
            "touches no data"
            if which.status.lost is not None
            else f"kubectl flash why volume {which.key} says how it is"
        )
        raise NotDone(f"FlashVolume {which.key} has id {extent.id}: {way}")
    cluster_says = reading.heartbeats[name]
    if not cluster_says.answers:
        raise NotDone(f"the agent on server {name} {cluster_says.words}: the volume would not become Ready")
    body: JSON = {
        "apiVersion": "kubeflash.io/v1alpha1",
        "kind": "FlashVolume",
        "metadata": {"name": options.name, "namespace": options.namespace},
        "spec": {"pool": pool, "size": format_quantity(extent.bytes), "id": extent.id},
    }
    key = f"{options.namespace}/{options.name}"
    if key in reading.cluster.volumes:
        raise NotDone(f"there is a FlashVolume {key} already: choose another --name")
    outcome = consider(cluster.parsed(FlashVolume, body), reading.cluster).outcome
    if isinstance(outcome, Refusal):
        raise NotDone(f"FlashVolume {key} would not be placed: {outcome.message}")
    said = f"FlashVolume {key} of {human_bytes(extent.bytes)} in pool {pool}, with the data on SSD {ssd.id} of {name}"
    try:
        if options.dry_run:
            client.call("POST", path_of(FlashVolume.info, options.namespace), body=body, query={"dryRun": "All"})
            return f"Dry run: nothing was made. It would be {said}.\n"
        client.create(FlashVolume.info, body, options.namespace)
    except Conflict as error:
        raise NotDone(f"there is a FlashVolume {key} already: choose another --name") from error
    except NotFound as error:
        raise NotDone(f"there is no namespace {options.namespace}") from error
    refused_since: list[float] = []

    def look() -> str:
        volume = cluster.parsed(FlashVolume, client.get(FlashVolume.info, options.name, options.namespace))
        if holds(volume.status.conditions, "Ready"):
            return ""
        placed, ready = find(volume.status.conditions, "Placed"), find(volume.status.conditions, "Ready")
        if placed is not None and placed.status == "False":
            refused_since.append(time.monotonic())
            if refused_since[-1] - refused_since[0] > GRACE:
                raise NotDone(f"FlashVolume {key} was made, and is not placed: {placed.message}")
        else:
            refused_since.clear()
        return f"FlashVolume {key}: {ready.message if ready is not None else 'waiting for the controller'}"

    wait_for(look, timeout=options.timeout, behind=f"it goes on by itself: kubectl flash why volume {key}")
    return f"Adopted: {said}. It is Ready.\n"


# --- an SSD that came from another server ---


def _adopt_ssd(options: argparse.Namespace, client: Client, node: FlashNode, ssd: Ssd) -> str:
    name, terminal = node.metadata.name, Terminal.of(sys.stdout, options.color)
    if ssd.labelled is None:
        if ssd.state == "Claimed":
            raise NotDone(f"SSD {ssd.id} is server {name}'s already; its orphans: kubectl flash adopt")
        raise NotDone(
            f"SSD {ssd.id} carries no label of another server of this cluster, it is {ssd.state.lower()}"
            + (f": {ssd.reason}" if ssd.reason else "")
        )
    whose = ssd.labelled
    nodes = cluster.keyed(FlashNode, client.list(FlashNode.info))
    former = [item for item in nodes.values() if item.status.system_uuid == whose and item.metadata.name != name]
    volumes = cluster.keyed(FlashVolume, client.list(FlashVolume.info))
    say(_show_ssd(node, ssd, former, volumes, terminal))
    for other in former:
        beat = cluster.heartbeat_of(client, other, options.system_namespace)
        if beat.answers and other.ssd(ssd.id) is not None:
            raise NotDone(
                f"the agent on server {other.metadata.name} {beat.words}, and says that it has SSD {ssd.id}: it still "
                "has it. Nothing was changed"
            )
        if beat.answers:
            raise NotDone(
                f"the agent on server {other.metadata.name} {beat.words}, and does not have SSD {ssd.id} any more: it "
                "is taken over by itself in a moment; kubectl flash plan shows it"
            )
        say(terminal.wrap(f"The agent on server {other.metadata.name} {beat.words}.", "  "))
    cluster.needs_agent(client, node, options.system_namespace)
    if options.dry_run:
        return f"Dry run: nothing was changed. The SSD's serial, {ssd.serial}, will be asked for.\n"
    confirm(ssd.serial, options.confirm, "the SSD's serial")

    def ask(now: FlashNode) -> JSON:
        same = now.ssd(ssd.id)
        if same is None or same.labelled != whose or now.metadata.uid != node.metadata.uid:
            raise NotDone(f"SSD {ssd.id} is not what was shown any more: nothing was changed; look again")
        return {"adopt": {ssd.id: whose}}

    cluster.write_spec(client, name, ask)
    state: list[Ssd] = []

    def look() -> str:
        now = cluster.flash_node(client, name)
        same = now.ssd(ssd.id)
        if same is None:
            return f"SSD {ssd.id} is not in server {name} now"
        if same.labelled is None:
            state[:] = [same]
            return _still_elsewhere(client, now, same)
        step = next((item for item in now.status.plan if f"take over SSD {ssd.id} " in item.what), None)
        if step is None:
            return f"waiting for controller and agent: SSD {ssd.id} carries the label of server {whose}"
        return f"{step.state.lower()}: {step.what}{f': {step.message}' if step.message else ''}"

    behind = (
        f"it goes on by itself: kubectl flash plan {name}; to call it off: kubectl patch flashnode {name} --type=merge "
        f'-p \'{{"spec":{{"adopt":{{"{ssd.id}":null}}}}}}\''
    )
    wait_for(look, timeout=options.timeout, behind=behind)
    cluster.write_spec(  # not before the volumes have followed: they do so at this word
        client, name, lambda now: {"adopt": {ssd.id: None}} if now.spec.adopt.get(ssd.id) == whose else None
    )
    if state[-1].state != "Claimed":
        raise NotDone(f"SSD {ssd.id} has server {name}'s label now, and is not usable: {state[-1].reason}")
    return f"SSD {ssd.id} is server {name}'s now, with {count(len(state[-1].volumes), 'volume')} on it.\n"


def _still_elsewhere(client: Client, node: FlashNode, ssd: Ssd) -> str:
    """Which volumes on an SSD that was taken over are another server's so far; empty when there are none."""
    there = {extent.id for extent in ssd.volumes}
    volumes = cluster.keyed(FlashVolume, client.list(FlashVolume.info))
    waiting = [
        key
        for key, volume in volumes.items()
        if volume.spec.id in there
        and volume.status.ssd == ssd.id
        and volume.status.node_name not in (None, node.metadata.name)
    ]
    return f"waiting for the controller: {', '.join(sorted(waiting))} will follow" if waiting else ""


def _show_ssd(
    node: FlashNode, ssd: Ssd, former: list[FlashNode], volumes: dict[str, FlashVolume], terminal: Terminal
) -> list[str]:
    lines = terminal.wrap(
        f"SSD {ssd.id} of server {node.metadata.name}, at {short(ssd.address)}: {ssd.model or 'model unknown'}, serial "
        f"{ssd.serial}, {human_bytes(ssd.bytes)}",
        hanging="  ",
    )
    names = ", ".join(item.metadata.name for item in former) or "no FlashNode has that"
    lines += terminal.wrap(f"It carries the label of the server with system UUID {ssd.labelled}: {names}.", "  ")
    for extent in ssd.volumes:
        holders = [item for item in volumes.values() if cluster.has_id(item, extent.id)]
        what = f"volume {cluster.called(holders)}" if holders else "orphan"
        lines += terminal.wrap(f"{what} {extent.id}: {human_bytes(extent.bytes)}", "  ", "    ")
    words = (
        f"Server {node.metadata.name} becomes the owner of all {count(len(ssd.volumes), 'partition')} on it, and its "
        "volumes are served from here. Do this only if that server does not have the SSD any more: one that wrote to "
        "it too would destroy it."
    )
    return lines + [terminal.paint(line, "red") for line in terminal.wrap(words)]
