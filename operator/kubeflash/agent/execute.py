"""Carries out steps: for each kind of step the one host function that does it, identity checked right before."""

from __future__ import annotations

from functools import singledispatchmethod
from pathlib import Path

from kubeflash.agent.observe import Observer
from kubeflash.domain import steps
from kubeflash.domain.sealing import SealBroken, unseal
from kubeflash.host import blank, gpt, initiator, nvmet, wipe
from kubeflash.host.errors import HostError
from kubeflash.host.root import HostRoot


class NotAsPlanned(HostError):
    """What the plan expected is not there any more. Nothing was done; the next pass plans anew."""


class Executor:
    """Applies steps on this server."""

    def __init__(self, root: HostRoot, observer: Observer, private: bytes) -> None:
        self._root, self._observer, self._private = root, observer, private

    def apply(self, step: steps.Step) -> None:
        """Carries out one step and reads back that it is so.

        Raises:
            HostError: when it could not be done; what was done before it stays and the next pass goes on from there.
        """
        ssd = getattr(step, "ssd", None)
        try:
            self._apply(step)
        except SealBroken as error:
            raise HostError(str(error)) from error
        finally:
            if ssd is not None:
                self._observer.forget(ssd)

    @singledispatchmethod
    def _apply(self, step: steps.Step) -> None:
        raise NotImplementedError(type(step).__name__)

    def _device(self, ssd: str) -> Path:
        return self._observer.device(self._observer.find(ssd))

    def _partition_device(self, ssd: str, disk_guid: str, volume_id: str) -> Path:
        """The device of a volume's partition, after looking that table, PARTUUID and kernel agree on it."""
        found = self._observer.find(ssd)
        table = gpt.read_table(self._observer.device(found))
        part = next((p for p in table.partitions if p.uuid == volume_id), None) if table else None
        if table is None or part is None or table.disk_guid != disk_guid:
            raise NotAsPlanned(f"SSD {ssd} does not hold volume {volume_id} in a table of this server any more")
        if gpt.kernel_partitions(self._root, found.device_name).get(part.number) != volume_id:
            raise NotAsPlanned(f"the kernel does not show volume {volume_id} as partition {part.number} of SSD {ssd}")
        return self._root.dev / f"{found.device_name}p{part.number}"

    @_apply.register
    def _(self, step: steps.ClaimSsd) -> None:
        device = self._device(step.ssd)
        table = gpt.read_table(device)
        half_claimed = table is not None and table.disk_guid == step.label.disk_guid
        if not half_claimed:
            found = blank.examine(self._root, device)
            if not found.blank:
                raise NotAsPlanned(f"SSD {step.ssd} is not blank any more: {'; '.join(found.findings)}")
        gpt.create_table(device, step.label)

    @_apply.register
    def _(self, step: steps.CarvePartition) -> None:
        gpt.add_partition(self._device(step.ssd), step.partition, disk_guid=step.disk_guid)

    @_apply.register
    def _(self, step: steps.ShowPartition) -> None:
        gpt.tell_kernel(self._device(step.ssd), step.partition)

    @_apply.register
    def _(self, step: steps.WipePartition) -> None:
        device = self._partition_device(step.ssd, step.disk_guid, step.partition.uuid)
        wipe.zero(self._root, device)
        wipe.prove_zero(device)

    @_apply.register
    def _(self, step: steps.RemovePartition) -> None:
        gpt.delete_partition(self._device(step.ssd), step.partition, disk_guid=step.disk_guid)

    @_apply.register
    def _(self, step: steps.CreateHost) -> None:
        nvmet.create_host(self._root, step.host_nqn, unseal(step.sealed_keys, self._private))

    @_apply.register
    def _(self, step: steps.CreateSubsystem) -> None:
        nvmet.create_subsystem(self._root, step.nqn, serial=step.serial, model=step.model)

    @_apply.register
    def _(self, step: steps.AllowHost) -> None:
        nvmet.allow_host(self._root, step.nqn, step.host_nqn)

    @_apply.register
    def _(self, step: steps.EnableNamespace) -> None:
        machine = self._observer.observe()
        name = machine.partitions.get(step.volume_id)
        if name is None:
            raise NotAsPlanned(f"volume {step.volume_id} is on no SSD of this server now")
        nvmet.enable_namespace(self._root, step.nqn, self._root.dev / name, step.volume_id)

    @_apply.register
    def _(self, step: steps.CreatePort) -> None:
        nvmet.create_port(self._root, step.number, step.portal)

    @_apply.register
    def _(self, step: steps.LinkPort) -> None:
        nvmet.link_port(self._root, step.number, step.nqn)

    @_apply.register
    def _(self, step: steps.DisallowHost) -> None:
        nvmet.disallow_host(self._root, step.nqn, step.host_nqn)

    @_apply.register
    def _(self, step: steps.UnlinkPort) -> None:
        nvmet.unlink_port(self._root, step.number, step.nqn)

    @_apply.register
    def _(self, step: steps.DisableNamespace) -> None:
        nvmet.disable_namespace(self._root, step.nqn, step.nsid)

    @_apply.register
    def _(self, step: steps.RemoveSubsystem) -> None:
        nvmet.remove_subsystem(self._root, step.nqn)

    @_apply.register
    def _(self, step: steps.RemovePort) -> None:
        nvmet.remove_port(self._root, step.number)

    @_apply.register
    def _(self, step: steps.RemoveHost) -> None:
        nvmet.remove_host(self._root, step.host_nqn)

    @_apply.register
    def _(self, step: steps.Connect) -> None:
        target = initiator.Target(
            nqn=step.nqn,
            host_nqn=step.host_nqn,
            host_id=step.host_id,
            portal=step.portal,
            reconnect_seconds=step.reconnect_seconds,
            loss_seconds=step.loss_seconds,
        )
        initiator.connect(self._root, target, unseal(step.sealed_keys, self._private))
        initiator.wait_for_device(self._root, step.nqn, step.volume_id)

    @_apply.register
    def _(self, step: steps.Disconnect) -> None:
        initiator.disconnect(self._root, step.nqn)
