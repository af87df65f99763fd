"""What the controller says in objects' statuses."""

from __future__ import annotations

from collections.abc import Sequence

from kubeflash.api.v1alpha1 import FlashAttachment, FlashNode, FlashPool, FlashVolume, Model
from kubeflash.domain.cluster import Cluster
from kubeflash.domain.conditions import Finding
from kubeflash.kube.writes import Write, say

MANAGER = "kubeflash-controller"


def status_writes(
    resource: FlashAttachment | FlashNode | FlashPool | FlashVolume,
    status: Model,
    findings: Sequence[Finding],
    fields: tuple[str, ...],
    cluster: Cluster,
    *,
    at_times: tuple[str, ...] = (),
    guarded: bool = False,
) -> list[Write]:
    """What to write of an object's status, as of `kube.writes.say`; nothing when it says so already."""
    said = say(resource, status, findings, fields, manager=MANAGER, now=cluster.now, at_times=at_times, guarded=guarded)
    return [said] if said is not None else []
