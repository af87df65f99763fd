"""What the drivers of GPUs say of them beside their place: model, unique id, number of the device node.

NVIDIA's driver says it in /proc::

    /proc/driver/nvidia/gpus/0000:4e:00.0/information
        Model:           NVIDIA H100 80GB HBM3
        GPU UUID:        GPU-7f2c...            `?` for each digit before the GPU is initialised
        Bus Location:    0000:4e:00.0
        Device Minor:    0                      of /dev/nvidia0

AMD's says it in sysfs, per compute node (`/sys/class/kfd/kfd/topology/nodes/1/properties`, with `unique_id`, `domain`,
and `location_id`: bus, device and function in 16 bits) and per device (`unique_id`, `product_name`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from kubeflash.host.pci import pci_folder
from kubeflash.host.pcinames import model_of
from kubeflash.host.root import HostRoot
from kubeflash.host.sysfs import list_names, read_text
from kubeflash.topology.reading import address_of, plain
from kubeflash.topology.tree import PciDevice, address_key

_UUID = re.compile(r"GPU-[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
_AMD = "1002"


@dataclass(frozen=True)
class GpuFacts:
    """What is known of a GPU. Empty or None is: not said.

    Attributes:
        uuid: as the maker's own tools say it, such as `GPU-7f2c...`.
        minor: number of its device node, such as 0 of /dev/nvidia0.
        model: in words, with the maker.
    """

    uuid: str = ""
    minor: int | None = None
    model: str = ""


NO_GPU_FACTS = GpuFacts()


def gpu_facts(root: HostRoot, gpus: Iterable[PciDevice]) -> dict[str, GpuFacts]:
    """What is known of these GPUs, by address. A driver that is not loaded says nothing: then pci.ids has the model."""
    every = list(gpus)
    said = dict(_nvidia(root))
    if any(gpu.vendor == _AMD for gpu in every):
        uuids = dict(_kfd(root))
        for gpu in every:
            if gpu.vendor == _AMD:
                said[gpu.address] = _amd(root, gpu, uuids.get(gpu.address, ""))
    return {gpu.address: _with_model(root, gpu, said.get(gpu.address, NO_GPU_FACTS)) for gpu in every}


def _with_model(root: HostRoot, gpu: PciDevice, facts: GpuFacts) -> GpuFacts:
    return facts if facts.model else replace(facts, model=model_of(root, gpu.vendor, gpu.device))


def _nvidia(root: HostRoot) -> Iterator[tuple[str, GpuFacts]]:
    """Address and facts of each GPU that NVIDIA's driver has."""
    folder = f"{root.proc}/driver/nvidia/gpus"
    for name in list_names(folder):
        text = read_text(f"{folder}/{name}/information") or ""
        lines = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in text.splitlines())}
        address = _address(name) or _address(lines.get("Bus Location", ""))
        if address is None:
            continue
        uuid, minor, model = (lines.get(key, "") for key in ("GPU UUID", "Device Minor", "Model"))
        yield (
            address,
            GpuFacts(
                uuid=uuid if _UUID.fullmatch(uuid) else "",
                minor=int(minor) if re.fullmatch(r"[0-9]{1,6}", minor) else None,
                model="" if model.lower() == "unknown" else _made_by("NVIDIA", model),
            ),
        )


def _address(text: str) -> str | None:
    """A PCI address as sysfs writes it, from one in capitals or with a longer domain."""
    try:
        return address_of(*address_key(text))
    except ValueError:
        return None


def _amd(root: HostRoot, gpu: PciDevice, uuid: str) -> GpuFacts:
    folder = pci_folder(root, gpu.address)
    own = read_text(f"{folder}/unique_id") or ""
    if not uuid and re.fullmatch(r"[0-9a-fA-F]{1,16}", own):
        uuid = _amd_uuid(int(own, 16))
    return GpuFacts(uuid=uuid, model=_made_by("AMD", read_text(f"{folder}/product_name") or ""))


def _made_by(maker: str, model: str) -> str:
    """A model with its maker, whether the driver says it (NVIDIA's does since 2021) or not."""
    model = plain(model)
    return f"{maker} {model}" if model and not model.startswith(maker) else model


def _kfd(root: HostRoot) -> Iterator[tuple[str, str]]:
    """Address and unique id of each GPU that AMD's compute driver has."""
    folder = f"{root.sys}/class/kfd/kfd/topology/nodes"
    for name in list_names(folder):
        words = [line.split() for line in (read_text(f"{folder}/{name}/properties") or "").splitlines()]
        numbers = {
            line[0]: int(line[1]) for line in words if len(line) == 2 and line[1].isascii() and line[1].isdecimal()
        }
        place, uuid = numbers.get("location_id", 0), _amd_uuid(numbers.get("unique_id", 0))
        if place and uuid:  # a processor is a node too, and has neither
            yield address_of(numbers.get("domain", 0), place >> 8 & 0xFF, place >> 3 & 0x1F, place & 0x7), uuid


def _amd_uuid(number: int) -> str:
    """As rocminfo writes it and ROCR_VISIBLE_DEVICES takes it; a GPU without an id has 0."""
    return f"GPU-{number:016x}" if number else ""
