"""Exports and connections of this server, between what was read, what was done, and the plans and reports. Pure."""

from __future__ import annotations

import time
from collections.abc import Iterable

from kubeflash.agent.jobs import Jobs
from kubeflash.agent.observation import Observation
from kubeflash.api.v1alpha1 import Exported, FlashAttachment, FlashVolume
from kubeflash.domain.connecting import Consumer
from kubeflash.domain.exporting import ExportPlan
from kubeflash.domain.names import export_identity
from kubeflash.domain.steps import LinkPort
from kubeflash.host.initiator_errors import DeviceHeld
from kubeflash.host.nvmet import PortTaken

REFUSED_SECONDS = 600.0
"""Seconds for which a port number that was refused is not tried again."""
STUCK_SECONDS = 30.0
"""Seconds after which a step of an export that has not returned is an alarm: an SSD that hangs holds up the fence."""


def consumer(observation: Observation, volumes: Iterable[FlashVolume]) -> Consumer:
    """What of attached volumes there is on this server; `volumes` are those placed on it."""
    exported: dict[str, list[str]] = {}
    here = list(volumes)
    exclusive = {item.spec.id for item in here if item.spec.sharing != "Shared"}
    exports = {export_identity(record.uid).nqn for item in here for record in item.status.exported.values()}
    exports |= {wanted.nqn for item in here for wanted in item.status.wanted.values()} | set(
        observation.nvmet.subsystems
    )
    for subsystem in observation.nvmet.subsystems.values():
        for namespace in subsystem.namespaces:
            if namespace.uuid in exclusive:
                exported.setdefault(namespace.uuid, []).append(subsystem.nqn)
    return Consumer(
        observation.connections,
        observation.partitions,
        observation.read_only,
        exported,
        observation.fixed,
        frozenset(key for key in observation.nvmet.tls_keys if key[1] not in exports),
    )


class RefusedPorts:
    """Port numbers that somebody else has, as the kernel said when they were to be linked.

    For TCP a race, for RDMA the only way to know. Remembered for a while: what failed is forgotten once its port is
    cleared away.
    """

    def __init__(self) -> None:
        self._until: dict[int, float] = {}

    def now(self, jobs: Jobs) -> frozenset[int]:
        """Those of now."""
        clock = time.monotonic()
        for item in jobs.failures.values():
            if isinstance(item.step, LinkPort) and isinstance(item.error, PortTaken):
                self._until[item.step.number] = clock + REFUSED_SECONDS
        self._until = {number: until for number, until in self._until.items() if until > clock}
        return frozenset(self._until)


def held_by(attachment: FlashAttachment, seen: str | None, jobs: Jobs) -> str | None:
    """Who holds the device of an attachment: what was seen, or what only an exclusive open could tell."""
    fabric = attachment.status.fabric
    failure = jobs.failures.get(fabric.nqn) if fabric is not None and not seen else None
    return failure.words if failure is not None and isinstance(failure.error, DeviceHeld) else seen


def exported_bytes(observation: Observation, volumes: Iterable[FlashVolume]) -> dict[str, int]:
    """By NQN: bytes of the volume that is exported there."""
    sizes = observation.sizes
    return {
        wanted.nqn: sizes[volume.spec.id]
        for volume in volumes
        if volume.spec.id in sizes
        for wanted in volume.status.wanted.values()
    }


def exported(volume: FlashVolume, plan: ExportPlan, jobs: Jobs) -> dict[str, Exported]:
    """The exports of a volume by attachment, as the plan records them, with what holds up those that are not ready."""
    found = dict(volume.status.exported)
    for (key, attachment), record in plan.records.items():
        if key == volume.key and record is None:
            found.pop(attachment, None)
        elif key == volume.key and record is not None:
            found[attachment] = record
    for name, record in found.items():
        words = "" if record.ready else _held_up(record, jobs)
        if words:
            found[name] = record.model_copy(update={"message": words})
    return found


def _held_up(record: Exported, jobs: Jobs) -> str:
    """What holds up an export that is to be built, or to be gone; empty when nothing does."""
    nqn = export_identity(record.uid).nqn
    running = jobs.running(nqn)
    if running is not None and time.monotonic() - running.since > STUCK_SECONDS:
        return f"for more than {STUCK_SECONDS:g} s now: {running.step.describe()}; does the SSD answer? See dmesg"
    return jobs.words(nqn)


def failure_of(attachment: FlashAttachment, jobs: Jobs) -> str:
    """What the last try to do something about an attachment said; empty when nothing failed."""
    fabric = attachment.status.fabric
    if fabric is None:
        return jobs.words(attachment.status.volume_id or "")
    return jobs.words(fabric.nqn, *(f"{fabric.nqn} {portal}" for portal in fabric.portals))
