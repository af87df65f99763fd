"""What `-o json` and `-o yaml` print: one document a server. Field names as in the API; addresses with their domain."""

from __future__ import annotations

import json
from typing import Any

import yaml

from kubeflash.cli.terminal import harmless_json
from kubeflash.topology.analysis import Analysis, PairView
from kubeflash.topology.faults import Fault
from kubeflash.topology.server import Server
from kubeflash.topology.tree import UNSAID, Link, PciDevice

JSON = dict[str, Any]


def rendered(form: str, whole: JSON) -> str:
    """A document as JSON or YAML."""
    if form == "json":
        return harmless_json(json.dumps(whole, indent=2, ensure_ascii=False)) + "\n"
    return yaml.safe_dump(whole, sort_keys=False, allow_unicode=True)


def document(analysis: Analysis) -> JSON:
    """All that is known of a server, and all that follows from it. What is not said is left out, or says `unknown`."""
    server = analysis.server
    return {
        "name": server.name,
        "source": server.source,
        "gpus": [_device(server, device) for device in server.gpu_devices],
        "ssds": [_device(server, device) for device in server.ssd_devices],
        "pairs": [_pair(view) for view in analysis.pairs],
        "distances": [
            {"gpu": gpu, "ssd": ssd, "distance": str(how_far)} for (gpu, ssd), how_far in analysis.distances.items()
        ],
        "faults": [_fault(fault) for fault in analysis.faults],
        "pcieRoot": [
            {
                "gpu": view.gpu,
                "root": view.root,
                "sameRoot": [{"ssd": ssd, "distance": str(how_far)} for ssd, how_far in view.same_root],
                "verdict": view.verdict,
                "tells": view.tells,
            }
            for view in analysis.roots
        ],
        "notSaid": list(server.unsaid),
    }


def _device(server: Server, device: PciDevice) -> JSON:
    facts = server.fact(device.address)
    said: JSON = {
        "address": device.address,
        "vendor": device.vendor,
        "device": device.device,
        "class": device.class_code,
        "model": facts.model,
        "uuid": facts.uuid,
        "serial": facts.serial,
        "id": facts.id,
        "bytes": facts.bytes,
        "free": facts.free,
        "reason": facts.reason,
        "note": facts.note,
        "numaNode": device.numa_node,
        "socket": device.socket,
        "rootComplex": device.root_complex,
        "link": _link(device.link),
        "path": None
        if device.path is None
        else [
            _known({"address": hop.address, "kind": hop.kind, "acs": hop.acs, "link": _link(hop.link)})
            for hop in device.path
        ],
    }
    return _known(said)


def _known(said: JSON) -> JSON:
    return {name: value for name, value in said.items() if value not in (None, "")}


def _link(link: Link) -> JSON | None:
    if link == UNSAID:
        return None
    return _known(
        {
            "speed": link.speed,
            "width": link.width,
            "maxSpeed": link.max_speed,
            "maxWidth": link.max_width,
            "gbps": link.gbps,
        }
    )


def _pair(view: PairView) -> JSON:
    return {
        "gpu": view.gpu,
        "ssd": view.ssd,
        "distance": str(view.distance),
        "gbps": None if view.gbps is None else round(view.gbps, 3),
        "gbpsAlone": None if view.alone is None else round(view.alone, 3),
        "sharedWith": list(view.shared_with),
        "p2p": {"possible": view.peer_to_peer.possible, "why": view.peer_to_peer.why},
        "why": view.why,
        "faults": [_fault(fault) for fault in view.faults],
    }


def _fault(fault: Fault) -> JSON:
    return {
        "kind": fault.kind,
        "address": fault.address,
        "message": fault.message,
        "remedy": fault.remedy,
        "serious": fault.serious,
    }
