"""`kubectl flash why volume`: where a volume is and why, or why it is nowhere; by the functions that place it. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from kubeflash.api.quantity import Quantity, format_quantity, human_bytes
from kubeflash.api.v1alpha1 import (
    FlashAttachment,
    FlashPool,
    FlashVolume,
    LabelSelector,
    PlannedStep,
    Ssd,
)
from kubeflash.cli.chain import below, condition_words, named, step_words, unread, verdict
from kubeflash.cli.cluster import Reading
from kubeflash.cli.terminal import Colour, Terminal, clean
from kubeflash.domain.allocation import align_up
from kubeflash.domain.cluster import Cluster
from kubeflash.domain.conditions import find
from kubeflash.domain.ledger import granted, identity
from kubeflash.domain.placement import Candidate, Placement, Refusal, consider, settle, whereabouts
from kubeflash.domain.pools import allows

JSON = dict[str, Any]
_REASONS = {
    "Placed": "chosen for it",
    "Settled": "its bytes are there",
    "Found": "its bytes were found there",
    "Moved": "its SSD is in that server now",
}
_NO_CHOICE = ("Lost", "NotFound", "FoundTwice", "FoundElsewhere", "IdTaken")
"""Outcomes that no free SSD would change."""
_OF_THE_SSD = ("ClaimSsd", "RepairTable", "TakeOver", "WipeSsd")


def document(volume: FlashVolume, reading: Reading) -> JSON:
    """All about one volume, from its object down to its device. What is not so is left out, or null."""
    cluster = reading.cluster
    outcome = _outcome(volume, cluster)
    place = (outcome.node, outcome.ssd) if isinstance(outcome, Placement) else None
    return {
        "volume": _volume(volume),
        "controller": {"leads": reading.controller.answers, "words": reading.controller.words},
        "pool": _pool(volume, cluster, refusal=outcome if isinstance(outcome, Refusal) else None),
        "placement": _placement(volume, outcome, cluster),
        "ssds": _ssds(volume, outcome, cluster),
        **_left_out(volume, cluster),
        "server": _server(volume, place, reading) if place is not None else None,
        "attachments": [_attachment(item, reading) for item in cluster.attachments_by_volume.get(volume.key, [])],
        "unread": list(reading.unread),
    }


def _outcome(volume: FlashVolume, cluster: Cluster) -> Placement | Refusal:
    """Where it is or would go; of one that is being deleted, where it still is."""
    if volume.deleting and volume.status.lost is None:
        there = whereabouts(volume, cluster)
        return there or Refusal("Deleting", "it is being deleted, and is on no SSD")
    return settle(volume, replace(cluster))  # a ledger of its own: settling takes the volume out of it


def _volume(volume: FlashVolume) -> JSON:
    status = volume.status
    return {
        "name": volume.metadata.name,
        "namespace": volume.metadata.namespace,
        "id": identity(volume),
        "size": str(volume.spec.size),
        "bytes": status.bytes,
        "near": volume.spec.near.to_json() if volume.spec.near is not None else None,
        "deleting": volume.deleting,
        "finalizers": list(volume.metadata.finalizers),
        "lost": status.lost.to_json() if status.lost is not None else None,
        "conditions": [item.to_json() for item in status.conditions],
    }


def _pool(volume: FlashVolume, cluster: Cluster, refusal: Refusal | None) -> JSON:
    pool = cluster.pools.get(volume.spec.pool)
    if pool is None:
        return {"name": volume.spec.pool, "exists": False, "message": refusal.message if refusal is not None else ""}
    namespace = volume.metadata.namespace or ""
    labels = cluster.namespace_labels.get(namespace, {})
    return {
        "name": pool.metadata.name,
        "exists": True,
        "deleting": pool.deleting,
        "allowed": allows(pool, namespace, labels, cluster.own_namespace),
        "allowedBy": _allowed_by(pool, namespace, cluster),
        "quota": _quota(volume, pool, cluster),
    }


def _allowed_by(pool: FlashPool, namespace: str, cluster: Cluster) -> str:
    if namespace == cluster.own_namespace:
        return "it is KubeFlash's own namespace"
    selector = pool.spec.allowed_namespaces
    if selector is None:
        return f"spec.allowedNamespaces is absent: only {cluster.own_namespace}"
    return f"spec.allowedNamespaces: {_selector(selector)}"


def _selector(selector: LabelSelector) -> str:
    parts = [f"{key}={value}" for key, value in sorted(selector.match_labels.items())]
    parts += [
        " ".join([item.key, item.operator, *([f"({', '.join(item.values)})"] if item.values else [])])
        for item in selector.match_expressions
    ]
    return ", ".join(parts) or "every namespace"


def _quota(volume: FlashVolume, pool: FlashPool, cluster: Cluster) -> JSON | None:
    if pool.spec.quota is None:
        return None
    used = cluster.ledger.used(pool.metadata.name, volume.metadata.namespace or "", without=volume)
    wants = max(align_up(volume.spec.size), granted(volume) if volume.status.node_name is not None else 0)
    limit = pool.spec.quota.per_namespace
    return {"perNamespace": str(limit), "usedByOthers": str(Quantity(used)), "this": str(Quantity(wants))}


def _placement(volume: FlashVolume, outcome: Placement | Refusal, cluster: Cluster) -> JSON:
    if isinstance(outcome, Refusal):
        return {"reason": outcome.reason, "message": outcome.message}
    placed = find(volume.status.conditions, "Placed")
    status = volume.status
    here = (status.node_name, status.ssd) == (outcome.node, outcome.ssd)
    said = placed if here and placed is not None and placed.status == "True" else None
    ssd = _ssd_of(cluster, outcome.node, outcome.ssd)
    return {
        "node": outcome.node,
        "ssd": outcome.ssd,
        "serial": ssd.serial if ssd is not None else None,
        "address": ssd.address if ssd is not None else None,
        "reason": outcome.reason if here or said is None else said.reason,
        "since": said.last_transition_time.isoformat() if said is not None else None,
        "decided": here,
        "message": outcome.words,
        "distance": outcome.distance,
        "p2p": outcome.p2p.to_json() if outcome.p2p is not None else None,
    }


def _ssd_of(cluster: Cluster, node: str, ssd: str) -> Ssd | None:
    server = cluster.nodes.get(node)
    return server.ssd(ssd) if server is not None else None


def _ssds(volume: FlashVolume, outcome: Placement | Refusal, cluster: Cluster) -> list[JSON]:
    """Every SSD of the pool as a volume like this one sees it that has no place yet: best first."""
    if isinstance(outcome, Refusal) and outcome.reason in _NO_CHOICE:
        return []
    status = volume.status
    anew = volume.model_copy(
        update={
            "spec": volume.spec.model_copy(update={"id": None}),
            "status": status.model_copy(update={"id": None, "bytes": None, "node_name": None, "ssd": None}),
        }
    )
    apart = replace(cluster)
    apart.ledger.take(volume)
    place = (outcome.node, outcome.ssd) if isinstance(outcome, Placement) else None
    here = place if place == (status.node_name, status.ssd) else None
    found = consider(anew, apart)
    best = next((item for item in found.candidates if not item.why_not), None)
    return [_candidate(item, here, best=item is best) for item in found.candidates]


def _candidate(item: Candidate, here: tuple[str, str] | None, *, best: bool) -> JSON:
    one = item.item
    return {
        "node": one.node,
        "ssd": one.ssd.id,
        "serial": one.ssd.serial,
        "address": one.ssd.address,
        "state": one.ssd.state,
        "here": (one.node, one.ssd.id) == here,
        "best": best,
        "whyNot": item.why_not,
        "distance": item.distance,
        "own": item.own,
        "neighbourOf": item.gpus,
        "free": one.free_bytes,
        "largest": one.largest,
        "failing": one.ssd.failing,
    }


def _left_out(volume: FlashVolume, cluster: Cluster) -> JSON:
    view = cluster.views.get(volume.spec.pool)
    return {
        "refused": [item.to_json() for item in view.refused] if view is not None else [],
        "draining": [item.to_json() for item in view.draining] if view is not None else [],
    }


def _server(volume: FlashVolume, place: tuple[str, str], reading: Reading) -> JSON:
    """The server that it is on: its agent, what that says, and the bytes themselves."""
    name, ssd_id = place
    node, beat = reading.cluster.nodes.get(name), reading.heartbeat(name)
    ssd = _ssd_of(reading.cluster, name, ssd_id)
    carved = find(volume.status.conditions, "Carved")
    volume_id = identity(volume) or ""
    extent = next((item for item in ssd.volumes if item.id == volume_id), None) if ssd is not None else None
    return {
        "name": name,
        "exists": node is not None,
        "answers": beat.answers,
        "words": beat.words,
        "paused": node is not None and node.spec.paused,
        "maintenance": node is not None and node.spec.maintenance,
        "carved": carved.to_json() if carved is not None else None,
        "plan": [step.to_json() for step in _steps(node.status.plan if node is not None else (), volume, ssd_id)],
        "partition": extent.to_json() if extent is not None else None,
        "device": volume.status.device,
    }


def _steps(plan: Iterable[PlannedStep], volume: FlashVolume, ssd: str) -> Iterator[PlannedStep]:
    """The steps that this volume waits for: its own, its exports', and those of its SSD as a whole."""
    mine = [identity(volume) or "?", *(item.uid for item in volume.status.wanted.values())]
    mine += [item.uid for item in volume.status.exported.values()]
    for step in plan:
        whole = step.step in _OF_THE_SSD and ssd in step.what
        if whole or any(word in step.what for word in mine):
            yield step


def _attachment(item: FlashAttachment, reading: Reading) -> JSON:
    ready = find(item.status.conditions, "Ready")
    return {
        "name": item.metadata.name,
        "node": item.spec.node_name,
        "answers": reading.heartbeat(item.spec.node_name).answers,
        "path": item.status.path,
        "device": item.status.device,
        "deleting": item.deleting,
        "ready": ready is not None and ready.status == "True",
        "reason": ready.reason if ready is not None else "Unseen",
        "message": ready.message if ready is not None else "the controller has not looked at it yet",
    }


# --- for people ---


def text(volume: FlashVolume, reading: Reading, terminal: Terminal) -> list[str]:
    """The same for people: the answer first, then the chain from the object to its device."""
    whole = document(volume, reading)
    return [
        *_verdict(volume, whole, terminal),
        *_object_lines(volume, whole, terminal),
        *_pool_lines(volume, whole, terminal),
        *_placement_lines(whole, terminal),
        *_server_lines(whole, terminal),
        *_attachment_lines(whole, terminal),
        *_ssd_lines(volume, whole, terminal),
        *unread(whole["unread"], terminal),
    ]


def _verdict(volume: FlashVolume, whole: JSON, terminal: Terminal) -> list[str]:
    ready = find(volume.status.conditions, "Ready")
    colour: Colour
    if ready is None:
        words, colour = "not Ready: the controller has not looked at it yet", "yellow"
    elif ready.status == "True":
        place = whole["placement"]
        words, colour = f"Ready, on SSD {place.get('ssd')} of server {place.get('node')}", "green"
    else:
        words, colour = f"not Ready: {ready.reason}: {ready.message}", "red"
    return verdict(volume.key, words, colour, terminal)


def _object_lines(volume: FlashVolume, whole: JSON, terminal: Terminal) -> list[str]:
    status = volume.status
    parts = [str(volume.spec.size), f"id {whole['volume']['id'] or 'none yet'}"]
    parts += [f"{format_quantity(status.bytes)} carved"] if status.bytes is not None else []
    near = whole["volume"]["near"]
    parts += (
        ["near " + ", ".join(f"{key} {value}" for key, value in near.items())] if near else ["anywhere in the pool"]
    )
    parts += [f"being deleted since {volume.metadata.deletion_timestamp:%Y-%m-%d %H:%M} UTC"] if volume.deleting else []
    lines = named("object", "; ".join(parts), terminal)
    ready = find(status.conditions, "Ready")
    for item in status.conditions:
        if item.type != "Ready" and not (ready is not None and item.message and item.message == ready.message):
            lines += below(condition_words(item), terminal)
    if not whole["controller"]["leads"]:
        lines += named("controller", f"no controller decides: it {whole['controller']['words']}", terminal)
    return lines


def _pool_lines(volume: FlashVolume, whole: JSON, terminal: Terminal) -> list[str]:
    pool = whole["pool"]
    if not pool["exists"]:
        words = f"there is no FlashPool {pool['name']}"
        return named("pool", pool["message"] if words in pool["message"] else words, terminal)
    verb = "allows" if pool["allowed"] else "DOES NOT ALLOW"
    parts = [f"{pool['name']} {verb} namespace {volume.metadata.namespace} ({pool['allowedBy']})"]
    parts += ["it is being deleted"] if pool["deleting"] else []
    quota = pool["quota"]
    parts += [
        f"quota {quota['perNamespace']}: {quota['usedByOthers']} by other volumes, {quota['this']} for this one"
        if quota is not None
        else "no quota"
    ]
    return named("pool", "; ".join(parts), terminal)


def _placement_lines(whole: JSON, terminal: Terminal) -> list[str]:
    place = whole["placement"]
    if "node" not in place:
        return named("placement", f"none: {place['reason']}: {place['message']}", terminal)
    verb = "" if place["decided"] else "would be: "
    parts = [f"{verb}{place['reason']}: SSD {place['ssd']} of server {place['node']}"]
    parts += [_REASONS[place["reason"]]] if place["reason"] in _REASONS else []
    parts += [place["message"]] if place["message"] and place["message"] not in parts else []
    parts += [f"{place['distance']} from the GPU"] if place["distance"] is not None else []
    if place["p2p"] is not None:
        possible = {True: "possible", False: "not possible", None: "cannot be said"}[place["p2p"].get("possible")]
        parts += [f"peer-to-peer {possible}: {place['p2p']['why']}"]
    return named("placement", "; ".join(parts), terminal)


def _server_lines(whole: JSON, terminal: Terminal) -> list[str]:
    server = whole["server"]
    if server is None:
        return []
    parts = [f"the agent on {server['name']} {server['words']}"]
    parts += ["paused (spec.paused): it changes nothing"] if server["paused"] else []
    parts += ["in maintenance: nothing new is placed there"] if server["maintenance"] else []
    lines = named("server", "; ".join(parts), terminal)
    carved = server["carved"]
    said = f"Carved {carved['status']}: {carved['reason']}" if carved is not None else "it has said nothing of it yet"
    lines += named("agent", said, terminal)
    for step in server["plan"]:
        lines += below(step_words(PlannedStep.model_validate(step)), terminal)
    part = server["partition"]
    if part is not None:
        words = f"partition {part['number']}, {human_bytes(part['bytes'])} at {part['start']}"
        lines += named("device", f"{words}; {server['device'] or 'no device yet'}", terminal)
    return lines


def _attachment_lines(whole: JSON, terminal: Terminal) -> list[str]:
    lines: list[str] = []
    for number, item in enumerate(whole["attachments"]):
        state = f"Ready, {item['device']}" if item["ready"] else f"not Ready: {item['reason']}: {item['message']}"
        path = f" by {item['path']}" if item["path"] else ""
        silent = "" if item["answers"] else "; the agent there does not answer"
        going = ", being deleted" if item["deleting"] else ""
        words = f"{item['name']} at server {item['node']}{path}{going}: {state}{silent}"
        lines += named("attached" if number == 0 else "", words, terminal)
    return lines


def _ssd_lines(volume: FlashVolume, whole: JSON, terminal: Terminal) -> list[str]:
    lines: list[str] = []
    if whole["ssds"]:
        head = ("SSD", "NODE", "DISTANCE", "FREE", "LARGEST", "GPUs", "WHY")
        rows: list[list[tuple[str, Colour | None]]] = [
            [
                (item["ssd"], None),
                (item["node"], None),
                (str(item["distance"] or "-"), None),
                (human_bytes(item["free"]), None),
                (human_bytes(item["largest"]), None),
                (str(item["neighbourOf"]), None),
                _why(item, volume),
            ]
            for item in whole["ssds"]
        ]
        title = f"SSDs OF POOL {clean(whole['pool']['name'])}, as for a new volume, best first"
        lines += ["", terminal.paint(title, "bold"), *terminal.table(head, rows)]
    for name in ("refused", "draining"):
        if whole[name]:
            lines += ["", terminal.paint(f"{name.upper()} SSDs", "bold")]
            rows = [[(item["ssd"], None), (item["node"] or "-", None), (item["reason"], None)] for item in whole[name]]
            lines += terminal.table(("SSD", "NODE", "WHY"), rows)
    return lines


def _why(item: JSON, volume: FlashVolume) -> tuple[str, Colour | None]:
    near = volume.spec.near is not None and volume.spec.near.gpu is not None
    said = [f"failing: {item['failing']}"] if item["failing"] else []
    if near and item["own"]:
        said.append("one of the GPU's own")
    if not near and item["neighbourOf"] == 0:
        said.append("no GPU's neighbour: nothing is wasted")
    if item["here"]:
        return "; ".join(["it is here", *([item["whyNot"]] if item["whyNot"] else []), *said]), "green"
    if item["whyNot"]:
        return item["whyNot"], "red"
    rank = "the best" if item["best"] else "possible, others are better"
    return "; ".join([rank, *said]), "green" if item["best"] else None
