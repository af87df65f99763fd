"""Which PCI devices are GPUs and which are SSDs, by vendor and class. Pure: the same for sysfs and for every dump."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from kubeflash.topology.errors import BadGpuRule
from kubeflash.topology.tree import PciDevice

VENDORS = {"10de": "NVIDIA", "1002": "AMD", "8086": "Intel"}
"""Makers of GPUs. A BMC's VGA is of others: ASPEED 1a03, Matrox 102b."""
CLASSES = frozenset({"0300", "0302", "0380", "1200"})
"""VGA, 3D and other display controllers, and processing accelerators (AMD Instinct)."""
EXTRA = frozenset({("1da3", "1200")})
"""Makers of GPUs and of much else, each with the one class that counts: Habana (Intel Gaudi)."""
NVME_CLASS = "0108"
"""Non-volatile memory controller; with programming interface 02 it is NVM Express."""
_BMC_GRAPHICS = frozenset({("1002", "4752"), ("1002", "515e"), ("1002", "5969")})
"""AMD's own name on the VGA of older BMCs: Rage XL, ES1000."""
_IN_PROCESSORS = frozenset({"0000:00:02.0", "0000:00:0b.0"})
"""Where Intel's processors have their graphics (class 0300) and NPU (1200)."""
_NEVER_GPUS = {"01": "storage controllers", "02": "network cards", "06": "bridges"}
"""By the first two digits of the class, what a device is that can be no GPU."""
_RULE = re.compile(r"([0-9a-f]{4}):([0-9a-f]{4})")


@dataclass(frozen=True)
class GpuRules:
    """What counts as a GPU: one of these vendors with one of these classes, or one of these pairs.

    Attributes:
        vendors: PCI vendor ids, four hex digits, lower case.
        classes: PCI classes with subclass, four hex digits.
        extra: further vendors, each with the one class in which it makes GPUs.
    """

    vendors: frozenset[str] = frozenset(VENDORS)
    classes: frozenset[str] = CLASSES
    extra: frozenset[tuple[str, str]] = EXTRA

    @classmethod
    def parse(cls, extra: Iterable[str]) -> GpuRules:
        """The usual rules, and entries such as `1234:0380` (vendor and class).

        Raises:
            BadGpuRule: when an entry is not of this form, or its class is one that no GPU has.
        """
        pairs: set[tuple[str, str]] = set()
        for entry in extra:
            match = _RULE.fullmatch(entry.strip().lower())
            if match is None:
                raise BadGpuRule(
                    f"{entry!r} is no vendor and class of GPUs: write four hex digits each, such as 1234:0380"
                )
            if match[2][:2] in _NEVER_GPUS:
                raise BadGpuRule(
                    f"{entry!r} would make GPUs of {_NEVER_GPUS[match[2][:2]]}: "
                    "GPUs have classes such as 0300, 0302, 0380, 1200"
                )
            pairs.add((match[1], match[2]))
        return cls(extra=EXTRA | pairs)

    def accept(self, vendor: str, device: str, class_code: str) -> bool:
        """Whether a device with these ids is a GPU."""
        kind = class_code[:4]
        if (vendor, kind) in self.extra:
            return True
        return vendor in self.vendors and kind in self.classes and (vendor, device) not in _BMC_GRAPHICS

    def is_gpu(self, device: PciDevice) -> bool:
        """Whether a device counts as a GPU of the server.

        A share of a GPU (SR-IOV virtual function) is not counted beside it. What is part of an Intel processor is left
        out: on every platform that has them, its graphics is function 00:02.0 and its NPU 00:0b.0, on the root bus. A
        card of Intel's is behind a port; other vendors' devices on a root bus are cards that a virtual machine was
        given.
        """
        if device.physical_function or not self.accept(device.vendor, device.device, device.class_code):
            return False
        return not (device.vendor == "8086" and device.address in _IN_PROCESSORS and not device.bridges)


def is_nvme(device: PciDevice) -> bool:
    """Whether a device is an NVMe controller. A source that says class and subclass alone is believed."""
    return device.class_code.startswith(NVME_CLASS) and device.class_code[4:] in ("", "02")
