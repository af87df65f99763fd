"""Exports and connections between plans and reports: what holds them up is said, by whom the volume is had still."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import pytest

from kubeflash.agent import fabric
from kubeflash.agent.jobs import Failure, Running
from kubeflash.api.v1alpha1 import Exported
from kubeflash.domain.exporting import ExportPlan
from kubeflash.domain.names import export_identity
from kubeflash.domain.steps import DisableNamespace, Disconnect, LinkPort
from kubeflash.host.initiator_errors import DeviceHeld
from kubeflash.host.nvmet import AddressNotUp, PortTaken
from support.objects import attachment, uid, volume

NQN = export_identity(uid(20)).nqn
RECORD = Exported(uid=uid(20), portals=["tcp://10.0.0.1:4420"], fencing=True)


@dataclass
class Doing:
    """Jobs, as far as is asked here."""

    step: Running | None = None
    failures: dict[str, Failure] = field(default_factory=dict)

    def running(self, subject: str) -> Running | None:
        return self.step if self.step is not None and subject == self.step.step.subject else None

    def words(self, *subjects: str) -> str:
        return next((self.failures[item].words for item in subjects if item in self.failures), "")


def exported(jobs: Doing, record: Exported | None = RECORD) -> dict[str, Exported]:
    had = volume("v", 10, status={"exported": {"a": RECORD.to_json()}})
    return fabric.exported(had, ExportPlan((), {("serving/v", "a"): record}), jobs)


@pytest.mark.parametrize(("age", "words"), [(1, ""), (31, "does the SSD answer?")])
def test_a_step_that_does_not_return_is_an_alarm_after_a_while(age, words):
    running = Running(DisableNamespace(NQN, 1), time.monotonic() - age)
    assert words in exported(Doing(running))["a"].message
    assert bool(exported(Doing(running))["a"].message) is bool(words)


def test_what_failed_is_said_of_an_export_that_is_not_ready_and_of_no_other():
    failed = Doing(failures={NQN: Failure("no such device", DisableNamespace(NQN, 1), OSError(), 1, 0.0)})
    assert exported(failed)["a"].message == "no such device"
    ready = RECORD.model_copy(update={"ready": True, "fencing": False})
    assert exported(failed, ready)["a"].message == ""


def test_what_the_plan_drops_is_gone():
    assert exported(Doing(), None) == {}


def test_only_a_number_that_somebody_has_is_chosen_anew():
    taken = Failure("taken", LinkPort(NQN, 4420), PortTaken("taken"), 1, 0.0)
    late = Failure("late", LinkPort("other", 4421), AddressNotUp("late"), 1, 0.0)
    refused = fabric.RefusedPorts()
    assert refused.now(Doing(failures={NQN: taken, "other": late})) == {4420}
    assert refused.now(Doing()) == {4420}, "clearing the port away makes Jobs forget what failed"


def test_the_failure_of_any_path_is_an_attachment_s():
    names = export_identity(uid(20))
    where = {"volumeId": uid(1), "nqn": NQN, "hostNQN": names.host_nqn, "hostID": names.host_id}
    item = attachment("a", 20, "v", "gpu-b", status={"fabric": {**where, "portals": ["tcp://10.0.0.1:4420"]}})
    subject = f"{NQN} tcp://10.0.0.1:4420"
    failed = Doing(failures={subject: Failure("refused", LinkPort(NQN, 1), OSError(), 1, 0.0)})
    assert fabric.failure_of(item, failed) == "refused"
    assert fabric.failure_of(item, Doing()) == ""


def test_who_holds_a_device_that_only_an_exclusive_open_could_tell_is_said():
    names = export_identity(uid(20))
    where = {"volumeId": uid(1), "nqn": NQN, "hostNQN": names.host_nqn, "hostID": names.host_id}
    item = attachment("a", 20, "v", "gpu-b", status={"fabric": where}, deleting=True)
    held = Doing(failures={NQN: Failure("held exclusively", Disconnect(NQN), DeviceHeld("held exclusively"), 1, 0.0)})
    assert fabric.held_by(item, "", held) == "held exclusively"
    assert fabric.held_by(item, "mounted at /x", held) == "mounted at /x"
    flush = Doing(failures={NQN: Failure("no flush", Disconnect(NQN), OSError(), 1, 0.0)})
    assert fabric.held_by(item, "", flush) == ""
