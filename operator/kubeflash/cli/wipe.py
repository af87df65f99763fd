"""`kubectl flash wipe`: shows what is on an SSD, or in an orphan, and has the agent zero it by an admin's word."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from kubeflash.api.quantity import human_bytes
from kubeflash.api.v1alpha1 import Extent, FlashNode, FlashVolume, Ssd
from kubeflash.cli import cluster
from kubeflash.cli.asking import NotDone, confirm, say, wait_for
from kubeflash.cli.terminal import Terminal
from kubeflash.cli.text import count
from kubeflash.topology.faults import short

if TYPE_CHECKING:
    from kubeflash.kube.client import Client

JSON = dict[str, Any]


def run(options: argparse.Namespace, client: Client) -> str:
    """Wipes an SSD or an orphan, once it was confirmed; what was achieved.

    Raises:
        NotDone: when it is refused, not confirmed, or not done in time.
        KubeError: when the API server does not do it.
    """
    node = cluster.flash_node(client, options.node)
    found = cluster.find_extent(node, options.what)
    if found is not None:
        return _wipe_orphan(options, client, node, *found)
    ssd = cluster.find_ssd(node, options.what)
    if ssd is not None:
        return _wipe_ssd(options, client, node, ssd)
    ssds = ", ".join(item.id for item in node.status.ssds) or "none"
    ids = ", ".join(extent.id for _, extent in cluster.orphans(node)) or "none"
    raise NotDone(f"server {options.node} has no SSD and no orphan {options.what}; SSDs: {ssds}; orphans: {ids}")


# --- a whole SSD ---


def _wipe_ssd(options: argparse.Namespace, client: Client, node: FlashNode, ssd: Ssd) -> str:
    name, terminal = node.metadata.name, Terminal.of(sys.stdout, options.color)
    volumes = cluster.keyed(FlashVolume, client.list(FlashVolume.info))
    say(show_ssd(node, ssd, volumes, terminal))
    if is_blank(ssd):
        if not options.dry_run:
            cluster.write_spec(client, name, lambda now: _without(now, "ssds", ssd.id, None))
        return "It is blank: there is nothing to wipe.\n"
    may_wipe_ssd(node, ssd, volumes)
    others = _of_others(client, node, ssd, options.system_namespace)
    if others:
        raise NotDone(others)
    cluster.needs_agent(client, node, options.system_namespace)
    if options.dry_run:
        return f"Dry run: nothing was changed. The SSD's serial, {ssd.serial}, will be asked for.\n"
    confirm(ssd.serial, options.confirm, "the SSD's serial")

    def ask(now: FlashNode) -> JSON:
        same = now.ssd(ssd.id)
        if same is None or same.fingerprint != ssd.fingerprint or now.metadata.uid != node.metadata.uid:
            raise NotDone(f"what is on SSD {ssd.id} changed since it was shown: nothing was changed; look again")
        fresh = cluster.keyed(FlashVolume, client.list(FlashVolume.info))
        may_wipe_ssd(now, same, fresh)
        return {"wipe": {"ssds": {ssd.id: ssd.fingerprint}}}

    generation = cluster.write_spec(client, name, ask).metadata.generation

    def look() -> str:
        now = cluster.flash_node(client, name)
        seen = now.status.observed_generation >= generation
        same = now.ssd(ssd.id)
        if seen and same is not None and is_blank(same):
            return ""
        return progress(now, f"wipe SSD {ssd.id}", f"wipe {ssd.id}", seen=seen)

    _wait(options, client, look, ("ssds", ssd.id, ssd.fingerprint or ""))
    return f"SSD {ssd.id} of server {name} is wiped: it is blank.\n"


def is_blank(ssd: Ssd) -> bool:
    """Whether nothing at all is on it, not even the beginning of a claim."""
    return ssd.state == "Blank" and ssd.fingerprint is None


def may_wipe_ssd(node: FlashNode, ssd: Ssd, volumes: Mapping[str, FlashVolume]) -> None:
    """What the agent would deny, and what it cannot know: volumes by id, wherever they are placed.

    Raises:
        NotDone: when it may not be wiped.
    """
    holds = _volumes_on(node, ssd, volumes)
    if holds:
        first = holds[0].metadata
        raise NotDone(
            f"SSD {ssd.id} holds FlashVolumes {cluster.called(holds)}: delete them first, such as kubectl delete "
            f"flashvolume -n {first.namespace} {first.name}"
        )
    if ssd.held:
        raise NotDone(f"SSD {ssd.id} is {ssd.held}, on server {node.metadata.name}: end that first, it is not wiped")
    if ssd.fingerprint is None:
        raise NotDone(f"it cannot be told what is on SSD {ssd.id}, it is not wiped: {ssd.reason or 'it was not read'}")


def _volumes_on(node: FlashNode, ssd: Ssd, volumes: Mapping[str, FlashVolume]) -> list[FlashVolume]:
    """Those with bytes on an SSD, and those that were promised some."""
    ids = {extent.id for extent in ssd.volumes}
    place = (node.metadata.name, ssd.id)
    return [
        volume
        for _, volume in sorted(volumes.items())
        if ids & {volume.spec.id, volume.status.id} or (volume.status.node_name, volume.status.ssd) == place
    ]


def _of_others(client: Client, node: FlashNode, ssd: Ssd, system: str) -> str:
    """Why an SSD with another server's label is not ours to wipe: that one is there, and says that it has it."""
    if ssd.labelled is None:
        return ""
    for other in cluster.keyed(FlashNode, client.list(FlashNode.info)).values():
        if other.status.system_uuid != ssd.labelled or other.metadata.name == node.metadata.name:
            continue
        has = other.ssd(ssd.id) is not None
        if has and cluster.heartbeat_of(client, other, system).answers:
            return f"SSD {ssd.id} is of server {other.metadata.name}, whose agent says that it has it: wipe it there"
    return ""


def show_ssd(node: FlashNode, ssd: Ssd, volumes: Mapping[str, FlashVolume], terminal: Terminal) -> list[str]:
    """What an SSD is, what is on it, and what will be lost."""
    lines = terminal.wrap(
        f"SSD {ssd.id} of server {node.metadata.name}, at {short(ssd.address)}: {ssd.model or 'model unknown'}, serial "
        f"{ssd.serial}, {human_bytes(ssd.bytes)}, {ssd.state.lower()}",
        hanging="  ",
    )
    lines += terminal.wrap(ssd.reason, "  ") if ssd.reason else []
    lines += terminal.wrap(f"label of server {ssd.labelled}", "  ") if ssd.labelled else []
    lines += terminal.wrap(f"failing: {ssd.failing}", "  ") if ssd.failing else []
    lines += terminal.wrap(f"pool {ssd.pool} selects it" if ssd.pool else "no pool selects it", "  ")
    pairs = [f"{short(pair.gpu)} at {pair.distance}" for pair in node.status.pairs if pair.id == ssd.id]
    lines += terminal.wrap(f"paired with GPU {', '.join(pairs)}" if pairs else "in no pair with a GPU", "  ")
    holds = _volumes_on(node, ssd, volumes)
    lines += [line for volume in holds for line in terminal.wrap(_volume(volume), "  ", "    ")]
    known = {volume.spec.id or volume.status.id for volume in holds}
    left = [extent for extent in ssd.volumes if extent.id not in known]
    lines += [f"  orphan {extent.id}: {human_bytes(extent.bytes)}" for extent in left]
    if ssd.state != "Blank":
        lost = [f"everything on it, all {human_bytes(ssd.bytes)}"]
        lost += [f"{count(len(left), 'orphan')} with {human_bytes(_bytes(left))}"] if left else []
        words = terminal.wrap(f"WILL BE LOST: {'; '.join(lost)}. It is overwritten with zeroes and read back.")
        lines += [terminal.paint(line, "red") for line in words]
    return lines


def _volume(volume: FlashVolume) -> str:
    state = ", lost" if volume.status.lost is not None else ""
    return f"volume {volume.key}: {volume.spec.size}{state}"


def _bytes(extents: Iterable[Extent]) -> int:
    return sum(extent.bytes for extent in extents)


# --- an orphan ---


def _wipe_orphan(options: argparse.Namespace, client: Client, node: FlashNode, ssd: Ssd, extent: Extent) -> str:
    name, terminal = node.metadata.name, Terminal.of(sys.stdout, options.color)
    say(_show_orphan(node, ssd, extent, terminal))
    _may_wipe_orphan(client, name, ssd, extent)
    cluster.needs_agent(client, node, options.system_namespace)
    if options.dry_run:
        return "Dry run: nothing was changed. The orphan's id will be asked for.\n"
    confirm(extent.id, options.confirm, "the orphan's id")

    def ask(now: FlashNode) -> JSON:
        found = cluster.find_extent(now, extent.id)
        if found is None or found[0].id != ssd.id or now.metadata.uid != node.metadata.uid:
            raise NotDone(f"orphan {extent.id} is not on SSD {ssd.id} any more: nothing was changed")
        _may_wipe_orphan(client, name, *found)
        return {"wipe": {"orphans": {extent.id: ssd.id}}}

    generation = cluster.write_spec(client, name, ask).metadata.generation

    def look() -> str:
        now = cluster.flash_node(client, name)
        seen = now.status.observed_generation >= generation
        same = now.ssd(ssd.id)
        if seen and same is not None and all(item.id != extent.id for item in same.volumes):
            return ""
        return progress(now, extent.id, f"wipe {extent.id}", seen=seen)

    _wait(options, client, look, ("orphans", extent.id, ssd.id))
    return f"Orphan {extent.id} of SSD {ssd.id} on server {name} is wiped, and its {human_bytes(extent.bytes)} free.\n"


def _may_wipe_orphan(client: Client, node: str, ssd: Ssd, extent: Extent) -> None:
    volumes = cluster.keyed(FlashVolume, client.list(FlashVolume.info)).values()
    holders = [item for item in volumes if cluster.has_id(item, extent.id)]
    if holders or extent.volume is not None:
        names = cluster.called(holders) or extent.volume
        raise NotDone(f"{extent.id} is no orphan, it is FlashVolume {names}: kubectl delete flashvolume that")
    if ssd.labelled is not None:
        raise NotDone(
            f"SSD {ssd.id} carries the label of server {ssd.labelled}: kubectl flash adopt {node} {ssd.id} first, or "
            f"kubectl flash wipe {node} {ssd.id} for all of it"
        )


def _show_orphan(node: FlashNode, ssd: Ssd, extent: Extent, terminal: Terminal) -> list[str]:
    lines = terminal.wrap(
        f"Orphan {extent.id}: partition {extent.number} of SSD {ssd.id} ({ssd.model}, serial {ssd.serial}) of server "
        f"{node.metadata.name}, {human_bytes(extent.bytes)} at {extent.start}",
        hanging="  ",
    )
    words = f"WILL BE LOST: {human_bytes(extent.bytes)}. They are overwritten with zeroes and read back."
    lines += [terminal.paint(line, "red") for line in terminal.wrap(words)]
    return [*lines, f"To keep it: kubectl flash adopt {node.metadata.name} {extent.id} --name NAME -n NAMESPACE"]


# --- both ---


def progress(node: FlashNode, running: str, denied: str, *, seen: bool) -> str:
    """How far a server's agent is with what an admin asked for.

    Args:
        node: its FlashNode.
        running: what the step's description has in it.
        denied: what the step is called that the agent will not do.
        seen: whether the agent has seen the request.

    Raises:
        NotDone: when the agent denies it.
    """
    if node.spec.paused:
        return f"server {node.metadata.name} was paused meanwhile"
    if not seen:
        return f"waiting for the agent on server {node.metadata.name}"
    for step in node.status.plan:
        if step.what == denied and step.state == "Failed":
            raise NotDone(f"the agent on server {node.metadata.name} denies it: {step.message}")
        if running in step.what:
            state = "failed, and is tried again" if step.state == "Failed" else step.state.lower()
            return f"{state}: {step.what}{f': {step.message}' if step.message else ''}"
    return "waiting for the agent to look again"


def _wait(options: argparse.Namespace, client: Client, look: Callable[[], str], entry: tuple[str, str, str]) -> None:
    """Waits until it is done, or denied; then the request is taken back. One that goes on stays."""
    kind, key, value = entry
    name, patch = options.node, f'{{"spec":{{"wipe":{{"{kind}":{{"{key}":null}}}}}}}}'
    behind = (
        f"the agent goes on: kubectl flash plan {name}; to call it off, but for a step that runs already: "
        f"kubectl patch flashnode {name} --type=merge -p '{patch}'"
    )
    denied: NotDone | None = None
    try:
        wait_for(_Denials(look), timeout=options.timeout, behind=behind)
    except _Denied as error:
        denied = NotDone(str(error))
    cluster.write_spec(client, options.node, lambda now: _without(now, kind, key, value))
    if denied is not None:
        raise denied


class _Denied(Exception):
    """The agent will not do it."""


class _Denials:
    """Tells the agent's own no from a wait that ends early."""

    def __init__(self, look: Callable[[], str]) -> None:
        self._look = look

    def __call__(self) -> str:
        try:
            return self._look()
        except NotDone as error:
            raise _Denied(str(error)) from error


def _without(node: FlashNode, kind: str, key: str, value: str | None) -> JSON | None:
    """The patch that takes a request back; None when it is not there, or somebody asks for another."""
    wipe = node.spec.wipe
    requests = {"ssds": wipe.ssds, "orphans": wipe.orphans}[kind] if wipe is not None else {}
    if key not in requests or (value is not None and requests[key] != value):
        return None
    assert wipe is not None
    if len(wipe.ssds) + len(wipe.orphans) == 1:
        return {"wipe": None}
    return {"wipe": {kind: {key: None}}}
