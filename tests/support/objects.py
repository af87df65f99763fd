"""Short ways to make objects in tests."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from kubeflash.api.v1alpha1 import (
    FINALIZER,
    FlashAttachment,
    FlashNode,
    FlashPool,
    FlashVolume,
    Resource,
)

T0 = datetime(2026, 1, 1, tzinfo=UTC)


def uid(number: int) -> str:
    return f"00000000-0000-4000-8000-{number:012d}"


def make(
    kind: type[Resource],
    name: str,
    number: int,
    *,
    spec: dict[str, Any] | None = None,
    status: dict[str, Any] | None = None,
    deleting: bool = False,
    finalized: bool = True,
    age: int = 0,
) -> Any:
    meta: dict[str, Any] = {
        "name": name,
        "uid": uid(number),
        "resourceVersion": "1",
        "generation": 1,
        "creationTimestamp": (T0 - timedelta(seconds=age)).isoformat(),
    }
    if kind.info.scope == "Namespaced":
        meta["namespace"] = "serving"
        if finalized:
            meta["finalizers"] = [FINALIZER]
    if deleting:
        meta["deletionTimestamp"] = T0.isoformat()
    return kind.from_json({"metadata": meta, "spec": spec or {}, "status": status or {}})


def location(bus: int, numa: int = 0) -> dict[str, Any]:
    """A device behind the switch at `bus`."""
    return {
        "address": f"0000:{bus:02x}:00.0",
        "numaNode": numa,
        "rootComplex": "pci0000:00",
        "path": [
            {"address": f"0000:00:{bus >> 4:02x}.0", "kind": "RootPort"},
            {"address": f"0000:{bus & 0xF0:02x}:00.0", "kind": "SwitchUpstream"},
            {"address": f"0000:{(bus & 0xF0) + 1:02x}:{bus & 0xF:02x}.0", "kind": "SwitchDownstream"},
        ],
    }


def gpu_json(bus: int) -> dict[str, Any]:
    return {**location(bus), "vendor": "10de", "device": "2330", "deviceClass": "030200"}


def ssd_json(
    serial: str, bus: int, *, gib: int = 1, state: str = "Blank", reason: str = "", **more: Any
) -> dict[str, Any]:
    return {
        **location(bus),
        "id": f"{serial}-1",
        "serial": serial,
        "model": "M 1",
        "bytes": gib << 30,
        "namespaceId": 1,
        "state": state,
        "reason": reason,
        **more,
    }


ABILITIES = ("nvmet", "nvmetTcp", "nvmetRdma", "nvmeTcp", "nvmeRdma", "authentication", "tls")


def kernel_json(*lacking: str) -> dict[str, Any]:
    """A kernel that can do everything but this."""
    able = {name: {"available": name not in lacking, "how": f"how {name} shows"} for name in ABILITIES}
    return {"release": "6.12", **able}


def node(
    name: str,
    number: int,
    gpus: list[dict[str, Any]],
    ssds: list[dict[str, Any]],
    key: str = "",
    lacking: tuple[str, ...] = (),
) -> FlashNode:
    status = {"systemUUID": name, "publicKey": key, "gpus": gpus, "ssds": ssds, "linux": kernel_json(*lacking)}
    return make(FlashNode, name, number, status=status)


def pool(name: str, number: int, *serials: str, age: int = 0, **spec: Any) -> FlashPool:
    return make(
        FlashPool, name, number, age=age, spec={"ssds": {"serials": list(serials)}, "allowedNamespaces": {}, **spec}
    )


def volume(
    name: str, number: int, *, size: str = "100Mi", pool: str = "fast", restored: bool = False, **more: Any
) -> FlashVolume:
    """A volume with an id that the controller made; with one that came with the object where it is `restored`."""
    spec = {"pool": pool, "size": size, "id": uid(1000 + number), **more.pop("spec", {})}
    status = {**({} if restored else {"id": spec["id"]}), **more.pop("status", {})}
    return make(FlashVolume, name, number, spec=spec, status=status, **more)


def attachment(name: str, number: int, volume: str, node_name: str, **more: Any) -> FlashAttachment:
    return make(FlashAttachment, name, number, spec={"volume": volume, "nodeName": node_name}, **more)
