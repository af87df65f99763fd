"""Carries out steps: for each kind of step the one host function that does it, identity checked right before."""

from __future__ import annotations

from collections.abc import Callable
from functools import singledispatchmethod
from pathlib import Path

from kubeflash.agent.observe import Observer
from kubeflash.domain import steps
from kubeflash.domain.dhchap import DhchapKeys
from kubeflash.domain.disk import Partition
from kubeflash.domain.exporting import NSID
from kubeflash.domain.names import NQN_PREFIX, attachment_uid, export_identity
from kubeflash.domain.sealing import SealBroken, unseal
from kubeflash.domain.tlspsk import TlsPsk, derive
from kubeflash.host import blank, claim, gpt, initiator, keyring, nvmet, partitions, readonly, wipe
from kubeflash.host.disconnect import disconnect
from kubeflash.host.errors import HostError
from kubeflash.host.holders import Holder, holders, in_words
from kubeflash.host.root import HostRoot
from kubeflash.host.wipe import Progress

DEVICE_SECONDS = 20.0
"""Seconds until the block device of a new connection must be there."""


class NotAsPlanned(HostError):
    """What the plan expected is not there any more. Nothing was done; the next pass plans anew."""


class Executor:
    """Applies steps on this server."""

    def __init__(self, root: HostRoot, observer: Observer, private: bytes) -> None:
        self._root, self._observer, self._private = root, observer, private
        self._nvmet = nvmet.KernelConfigfs(root)

    def apply(self, step: steps.Step, progress: Progress | None = None) -> None:
        """Carries out one step and reads back that it is so.

        Args:
            step: the step.
            progress: told how far a long one is: what is done, and what there is in all.

        Raises:
            HostError: when it could not be done; what was done before it stays and the next pass goes on from there.
        """
        try:
            self._apply(step, progress)
        except SealBroken as error:
            raise HostError(str(error)) from error

    @singledispatchmethod
    def _apply(self, step: steps.Step, progress: Progress | None) -> None:
        raise NotImplementedError(type(step).__name__)

    def _device(self, ssd: str) -> Path:
        return self._observer.device(self._observer.find(ssd))

    def _check(self, ssd: str, device: Path) -> Callable[[], None]:
        """Proves, right before a destructive call, that the device still is the SSD that the step names."""

        def check() -> None:
            now = self._device(ssd)
            if now != device:
                raise NotAsPlanned(f"SSD {ssd} is {now} now, no longer {device}: nothing was written")

        return check

    def _partition_device(self, ssd: str, disk_guid: str, partition: Partition) -> Path:
        """The device of a volume's partition, after looking that table, PARTUUID and kernel agree on it."""
        device = self._device(ssd)
        if partition not in gpt.expect(device, disk_guid).partitions:
            raise NotAsPlanned(f"SSD {ssd} does not hold volume {partition.uuid} where it was: nothing was written")
        known = partitions.find(self._root, device.name, partition)
        if known is None:
            raise NotAsPlanned(f"the kernel does not show volume {partition.uuid} on SSD {ssd}")
        return self._root.dev / known.device

    def _dhchap(self, sealed: str, *, wanted: bool) -> DhchapKeys | None:
        """The keys of authentication; None where it is not wanted.

        Raises:
            SealBroken: when it is wanted and they are not there. Nothing goes on without.
        """
        if not wanted:
            return None
        keys = unseal(sealed, self._private).dhchap
        if keys is None:
            raise SealBroken("the attachment has no keys for authentication, which it wants: make it anew")
        return keys

    def _psk(self, sealed: str, host_nqn: str, nqn: str) -> TlsPsk:
        """The TLS PSK of an attachment.

        Raises:
            SealBroken: when it has none.
        """
        configured = unseal(sealed, self._private).psk
        if configured is None:
            raise SealBroken("the attachment has no key for TLS, which it wants: make it anew")
        try:
            return derive(configured, host_nqn, nqn)
        except ValueError as error:
            raise SealBroken(f"the attachment's key for TLS is none ({error}): make it anew") from error

    def _free_device(self, volume_id: str, nqn: str, *, shared: bool) -> Path:
        """The device of a volume's partition, after looking that nobody has it who must not.

        nvmet opens a device that is mounted here, or exported to somebody else, without a word: two writers.
        """
        device = self._observer.volume_device(volume_id)
        others = [item for item in holders(self._root, device) if not _may_have(item, nqn, shared=shared)]
        if others:
            raise HostError(f"volume {volume_id} is {in_words(tuple(others))}: not exported")
        return device

    @_apply.register
    def _(self, step: steps.ClaimSsd, progress: Progress | None) -> None:
        del progress
        device = self._device(step.ssd)
        more = {"edge": blank.THOROUGH_EDGE, "samples": blank.THOROUGH_SAMPLES} if step.thorough else {}
        claim.create_table(self._root, device, step.label, check=self._check(step.ssd, device), **more)

    @_apply.register
    def _(self, step: steps.RepairTable, progress: Progress | None) -> None:
        del progress
        device = self._device(step.ssd)
        gpt.repair_table(self._root, device, disk_guid=step.disk_guid, check=self._check(step.ssd, device))

    @_apply.register
    def _(self, step: steps.TakeOver, progress: Progress | None) -> None:
        del progress
        device = self._device(step.ssd)
        claim.rewrite_label(self._root, device, step.old, step.new, check=self._check(step.ssd, device))

    @_apply.register
    def _(self, step: steps.WipeSsd, progress: Progress | None) -> None:
        device = self._device(step.ssd)
        same = self._check(step.ssd, device)

        def check() -> None:
            same()
            if blank.fingerprint(device) != step.fingerprint:
                raise NotAsPlanned(f"what is on SSD {step.ssd} is not what the admin was shown: nothing was wiped")

        wipe.wipe_disk(self._root, device, check=check, progress=progress)

    @_apply.register
    def _(self, step: steps.GrowPartition, progress: Progress | None) -> None:
        del progress
        gpt.grow_partition(
            self._root, self._device(step.ssd), step.partition, disk_guid=step.disk_guid, new_bytes=step.new_size
        )

    @_apply.register
    def _(self, step: steps.CarvePartition, progress: Progress | None) -> None:
        del progress
        gpt.add_partition(self._root, self._device(step.ssd), step.partition, disk_guid=step.disk_guid)

    @_apply.register
    def _(self, step: steps.ShowPartition, progress: Progress | None) -> None:
        del progress
        gpt.show_partition(self._root, self._device(step.ssd), step.partition, disk_guid=step.disk_guid)

    @_apply.register
    def _(self, step: steps.WipePartition, progress: Progress | None) -> None:
        device = self._partition_device(step.ssd, step.disk_guid, step.partition)

        def check() -> None:
            if self._partition_device(step.ssd, step.disk_guid, step.partition) != device:
                raise NotAsPlanned(f"volume {step.partition.uuid} is no longer {device}: nothing was wiped")

        if step.mode == "Discard":
            wipe.discard(self._root, device, check=check, progress=progress)
        else:
            wipe.zero(self._root, device, check=check, progress=progress)

    @_apply.register
    def _(self, step: steps.RemovePartition, progress: Progress | None) -> None:
        del progress
        gpt.delete_partition(self._root, self._device(step.ssd), step.partition, disk_guid=step.disk_guid)

    @_apply.register
    def _(self, step: steps.CreateHost, progress: Progress | None) -> None:
        del progress
        nvmet.create_host(self._nvmet, step.host_nqn, self._dhchap(step.sealed_keys, wanted=step.authentication))

    @_apply.register
    def _(self, step: steps.AddTlsKey, progress: Progress | None) -> None:
        del progress
        keyring.add_psk(self._root, self._psk(step.sealed_keys, step.host_nqn, step.nqn))

    @_apply.register
    def _(self, step: steps.CreateSubsystem, progress: Progress | None) -> None:
        del progress
        nvmet.create_subsystem(self._nvmet, step.nqn, serial=step.serial, model=step.model)

    @_apply.register
    def _(self, step: steps.AllowHost, progress: Progress | None) -> None:
        del progress
        nvmet.allow_host(self._nvmet, step.nqn, step.host_nqn)

    @_apply.register
    def _(self, step: steps.EnableNamespace, progress: Progress | None) -> None:
        del progress
        device = self._free_device(step.volume_id, step.nqn, shared=step.shared)
        nvmet.add_namespace(self._nvmet, step.nqn, NSID, device=str(device), uuid=step.volume_id)
        nvmet.enable_namespace(self._nvmet, step.nqn, NSID)

    @_apply.register
    def _(self, step: steps.ReplaceDevice, progress: Progress | None) -> None:
        del progress
        # whoever had it besides this export had it before the SSD was pulled out, and by a right of its own
        device = self._free_device(step.volume_id, step.nqn, shared=True)
        subsystem = nvmet.read_state(self._nvmet).subsystems.get(step.nqn)
        found = [item.device for item in subsystem.namespaces if item.nsid == step.nsid] if subsystem else []
        if not found or found[0] not in (step.device, str(device)):
            has = found[0] if found else "gone"
            raise NotAsPlanned(f"namespace {step.nsid} of {step.nqn} is {has}, no longer {step.device}: left alone")
        nvmet.replace_device(self._nvmet, step.nqn, step.nsid, device=str(device), uuid=step.volume_id)

    @_apply.register
    def _(self, step: steps.RevalidateNamespace, progress: Progress | None) -> None:
        del progress
        nvmet.revalidate(self._nvmet, step.nqn, step.nsid)

    @_apply.register
    def _(self, step: steps.CreatePort, progress: Progress | None) -> None:
        del progress
        nvmet.create_port(self._nvmet, step.number, step.portal, tls=step.tls)

    @_apply.register
    def _(self, step: steps.LinkPort, progress: Progress | None) -> None:
        del progress
        nvmet.link(self._nvmet, step.number, step.nqn, authenticated=step.authentication)

    @_apply.register
    def _(self, step: steps.DisallowHost, progress: Progress | None) -> None:
        del progress
        nvmet.disallow_host(self._nvmet, step.nqn, step.host_nqn)

    @_apply.register
    def _(self, step: steps.UnlinkPort, progress: Progress | None) -> None:
        del progress
        nvmet.unlink_port(self._nvmet, step.number, step.nqn)

    @_apply.register
    def _(self, step: steps.DisableNamespace, progress: Progress | None) -> None:
        del progress
        nvmet.disable_namespace(self._nvmet, step.nqn, step.nsid)

    @_apply.register
    def _(self, step: steps.RemoveSubsystem, progress: Progress | None) -> None:
        del progress
        nvmet.remove_subsystem(self._nvmet, step.nqn)

    @_apply.register
    def _(self, step: steps.RemovePort, progress: Progress | None) -> None:
        del progress
        nvmet.remove_port(self._nvmet, step.number)

    @_apply.register
    def _(self, step: steps.RemoveHost, progress: Progress | None) -> None:
        del progress
        nvmet.remove_host(self._nvmet, step.host_nqn)

    @_apply.register
    def _(self, step: steps.RemoveTlsKey, progress: Progress | None) -> None:
        del progress
        keyring.remove_psk(self._root, step.host_nqn, step.nqn)

    @_apply.register
    def _(self, step: steps.Connect, progress: Progress | None) -> None:
        del progress
        keys = self._dhchap(step.sealed_keys, wanted=step.authentication)
        tls_key = None
        if step.tls:
            tls_key = keyring.add_psk(self._root, self._psk(step.sealed_keys, step.host_nqn, step.nqn))
        target = initiator.Target(
            nqn=step.nqn,
            host_nqn=step.host_nqn,
            host_id=step.host_id,
            portal=step.portal,
            reconnect_seconds=step.reconnect_seconds,
            loss_seconds=step.loss_seconds,
            tls_key=tls_key,
        )
        instance = initiator.connect(self._root, target, keys)
        initiator.wait_for_device(self._root, step.nqn, step.volume_id, timeout=DEVICE_SECONDS, instance=instance)
        if step.several:
            initiator.spread(self._root, step.nqn)

    @_apply.register
    def _(self, step: steps.DropPath, progress: Progress | None) -> None:
        del progress
        found = [item for item in initiator.find(self._root, step.nqn) if item.instance == step.instance]
        if found and found[0].portal != step.portal:
            raise NotAsPlanned(f"nvme{step.instance} leads to {found[0].portal} now, not to {step.portal}: left alone")
        initiator.drop_path(self._root, step.nqn, step.instance)

    @_apply.register
    def _(self, step: steps.SetReadOnly, progress: Progress | None) -> None:
        del progress
        readonly.set_read_only(self._attached_device(step.volume_id, step.nqn), value=step.read_only)

    def _attached_device(self, volume_id: str, nqn: str) -> Path:
        """The device by which a volume is attached here: of its partition, or of its connection."""
        if not nqn:
            return self._observer.volume_device(volume_id)
        found = [item for item in initiator.find(self._root, nqn) if item.device and item.uuid == volume_id]
        if not found:
            raise NotAsPlanned(f"volume {volume_id} is not connected by {nqn} now")
        return self._root.path / (found[0].device or "").lstrip("/")

    @_apply.register
    def _(self, step: steps.Disconnect, progress: Progress | None) -> None:
        del progress
        disconnect(self._root, step.nqn, abandoned=step.abandoned)
        uid = attachment_uid(step.nqn)
        if uid:
            keyring.remove_psk(self._root, export_identity(uid).host_nqn, step.nqn)


def _may_have(holder: Holder, nqn: str, *, shared: bool) -> bool:
    """Whether a volume that somebody has may be exported by this subsystem all the same."""
    if holder.kind == "nvmet":
        return nqn in holder.who or (shared and f"nvmet subsystem {NQN_PREFIX}" in holder.who)
    return shared and holder.kind in ("process", "bind", "udev")
