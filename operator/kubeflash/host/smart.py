"""What an SSD says of its own health: its SMART log, read by nvme-cli.

By a command of its own and not by an ioctl of ours: an SSD that does not answer keeps who asks in the kernel for
minutes, and a process can be left behind.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from kubeflash.api.v1alpha1 import SsdHealth
from kubeflash.host.commands import CommandTimedOut, Output, run
from kubeflash.host.errors import HostError
from kubeflash.host.nvme import LIVE, NvmeSsd, controller_address
from kubeflash.host.root import HostRoot
from kubeflash.topology.reading import plain

LIMIT = 5.0
"""Seconds for one SSD to answer; a sound one takes some ms."""
AGAIN = 300.0
"""Seconds after which an SSD is asked again."""
AGAIN_AFTER_HANG = 3600.0
"""The same of one that did not answer in time: each question can leave a process waiting in the kernel."""

_WARNINGS = (
    "its spare blocks are below their threshold",
    "its temperature is out of bounds",
    "it is unreliable: many media errors, or an internal error",
    "it is read-only",
    "its backup power (capacitor) failed",
    "its persistent memory region is read-only or unreliable",
)
"""Bits 0 to 5 of Critical Warning (NVM Express Base Specification 2.0, figure 207)."""
_WARNING_NAMES = ("available_spare", "temp_threshold", "reliability_degraded", "ro", "vmbu_failed", "pmr_ro")
"""nvme-cli's names of the same bits."""
_DATA_UNIT = 512_000  # bytes
_FREEZING = 273  # K
_LARGEST = (1 << 63) - 1
"""Whole numbers of the API have 64 bits; a drive's counters have 128."""


@dataclass(frozen=True)
class Health:
    """An SSD's SMART log. None is: not said.

    Attributes:
        critical: critical warnings, in words; empty for a sound SSD, and when nothing is known.
        percentage_used: percent of the rated endurance; may exceed 100.
        available_spare: percent of the spare blocks that are left.
        spare_threshold: percent of spare blocks below which the SSD warns.
        media_errors: unrecovered data integrity errors.
        temperature_celsius: now.
        written_bytes: by hosts, over its life.
        power_on_hours: over its life.
        unknown: why nothing is known; empty when the log was read.
    """

    critical: tuple[str, ...] = ()
    percentage_used: int | None = None
    available_spare: int | None = None
    spare_threshold: int | None = None
    media_errors: int | None = None
    temperature_celsius: int | None = None
    written_bytes: int | None = None
    power_on_hours: int | None = None
    unknown: str = ""

    @property
    def lasting(self) -> SsdHealth:
        """What does not change all the time, for a status that is not to be written all the time."""
        return SsdHealth(
            critical=list(self.critical),
            percentage_used=self.percentage_used,
            available_spare=self.available_spare,
            spare_threshold=self.spare_threshold,
            media_errors=None if self.media_errors is None else min(self.media_errors, _LARGEST),
            unknown=self.unknown,
        )


def read_health(root: HostRoot, controller: str) -> Health:
    """Asks an SSD, given by the kernel's name of its controller such as nvme0.

    A log that cannot be read is no failure: `unknown` says why.

    Raises:
        CommandTimedOut: when it does not answer in time.
    """
    try:
        asked = ["nvme", "smart-log", "--output-format=json", str(root.dev / controller)]
        output = run(asked, timeout=LIMIT, ok=range(256))
        if output.status != 0:
            return Health(unknown=plain(f"nvme smart-log failed: {_complaint(output)}"))
        return parse(output.stdout)
    except CommandTimedOut:
        raise
    except (HostError, OSError, ValueError) as error:
        return Health(unknown=plain(str(error)))


def _complaint(output: Output) -> str:
    """What nvme-cli complains of: 2.x says it as JSON, and its usage beside; 1.x on standard error."""
    try:
        return str(json.loads(output.stdout)["error"])
    except (ValueError, KeyError, TypeError):
        return (output.stderr.strip() or output.stdout.strip() or f"status {output.status}").splitlines()[0]


def parse(text: str) -> Health:
    """The log as nvme-cli 1.x and 2.x print it as JSON.

    Raises:
        ValueError: when it is no such log.
    """
    log = json.loads(text)
    if not isinstance(log, dict) or "critical_warning" not in log:
        raise ValueError("nvme smart-log printed no SMART log")
    kelvin = _number(log, "temperature", "Temperature")
    units = _number(log, "data_units_written")
    return Health(
        critical=_critical(log["critical_warning"]),
        percentage_used=_number(log, "percent_used", "percentage_used"),
        available_spare=_number(log, "avail_spare", "available_spare"),
        spare_threshold=_number(log, "spare_thresh", "available_spare_threshold"),
        media_errors=_number(log, "media_errors"),
        temperature_celsius=None if kelvin is None or kelvin == 0 else kelvin - _FREEZING,
        written_bytes=None if units is None else units * _DATA_UNIT,
        power_on_hours=_number(log, "power_on_hours"),
    )


def _critical(said: Any) -> tuple[str, ...]:
    """The warnings: a number, or, of some versions, an object with the number and an entry for each bit."""
    if isinstance(said, dict):
        value = _number(said, "value", "Value")
        bits = (
            sum(1 << bit for bit, name in enumerate(_WARNING_NAMES) if _number(said, name)) if value is None else value
        )
    else:
        bits = _number({"value": said}, "value") or 0
    known = tuple(words for bit, words in enumerate(_WARNINGS) if bits >> bit & 1)
    rest = bits >> len(_WARNINGS)
    return (*known, f"it warns of something unknown (bits {rest << len(_WARNINGS):#x})") if rest else known


def _number(log: Mapping[str, Any], *names: str) -> int | None:
    """The first of these entries that is a whole number from 0 on. Counters of 128 bits can be texts or fractions."""
    for name in names:
        said = log.get(name)
        if isinstance(said, str):
            said = said.replace(",", "")
        try:
            value = float(said) if isinstance(said, int | float | str) else math.nan
        except (ValueError, OverflowError):
            continue
        if math.isfinite(value) and value >= 0:
            return said if isinstance(said, int) else int(value)
    return None


@dataclass(frozen=True)
class _Answer:
    """What an SSD said, and when it is to be asked again; `hung` when it did not answer in time."""

    health: Health
    due: float
    hung: bool = False


class HealthWatch:
    """Asks the SSDs now and then, so that looking costs nothing.

    Args:
        root: the machine.
        ask: reads the log of one controller.
        clock: seconds, always growing.
    """

    def __init__(
        self,
        root: HostRoot,
        ask: Callable[[HostRoot, str], Health] = read_health,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._root, self._ask, self._clock = root, ask, clock
        self._answers: dict[tuple[str, str, str], _Answer] = {}
        self._forgotten: list[str] = []

    def forget(self, controller: str = "") -> None:
        """Has the next look ask anew: one controller such as nvme0, or all. For when an SSD reports something.

        One that did not answer in time is left alone as long as ever. May be called while another thread looks.
        """
        self._forgotten.append(controller)

    def look(self, ssds: Iterable[NvmeSsd]) -> dict[str, Health]:
        """The health of each SSD, by id. Namespaces of one controller have the same.

        One that does not answer delays this by its limit, and those that are due after it until next time.
        """
        every = list(ssds)
        forgotten, self._forgotten = self._forgotten, []
        if forgotten:
            self._answers = {
                key: replace(said, due=-math.inf) if not said.hung and {"", key[0]} & set(forgotten) else said
                for key, said in self._answers.items()
            }
        known = {_key(ssd): self._answers.get(_key(ssd)) for ssd in every}
        self._answers = {key: answer for key, answer in known.items() if answer is not None}
        for key, ssd in {_key(ssd): ssd for ssd in every}.items():
            answer = known[key]
            if answer is not None and self._clock() < answer.due:
                continue
            try:
                self._answers[key] = self._question(ssd)
            except CommandTimedOut as error:
                self._answers[key] = _Answer(Health(unknown=str(error)), self._clock() + AGAIN_AFTER_HANG, True)
                break
        return {ssd.id: self._answers.get(_key(ssd), _NOT_ASKED).health for ssd in every}

    def _question(self, ssd: NvmeSsd) -> _Answer:
        if ssd.state != LIVE:  # it would not answer
            return _Answer(Health(unknown=f"its controller is {ssd.state}"), self._clock())
        health = self._ask(self._root, ssd.controller)
        if controller_address(self._root, ssd.controller) != ssd.pci.address:
            return _Answer(Health(unknown="it was pulled out meanwhile"), self._clock())
        return _Answer(health, self._clock() + AGAIN)


_NOT_ASKED = _Answer(Health(unknown="it was not asked yet"), 0.0)


def _key(ssd: NvmeSsd) -> tuple[str, str, str]:
    """Which SSD is at a controller's name now."""
    return ssd.controller, ssd.pci.address, ssd.serial
