"""What did not change is not written; what a writer says no more is."""

from __future__ import annotations

from kubeflash.api.v1alpha1 import FlashVolumeStatus
from kubeflash.domain.conditions import merge, true
from kubeflash.kube.writes import differs, status_json
from support.objects import T0, volume

FIELDS = ("nodeName", "ssd", "wanted")
READY = merge([], [true("Ready", "Carved")], generation=1, now=T0)


def intent(**fields):
    return status_json(FlashVolumeStatus(**fields), FIELDS, READY)


def current(**status):
    return volume("v", 1, status={"conditions": [item.to_json() for item in READY], **status}).status


def test_only_the_writer_s_own_part_is_said():
    assert set(intent(node_name="a", bytes=5)) == {"nodeName", "conditions"}


def test_the_same_is_not_written_whatever_others_say():
    assert not differs(current(nodeName="a", bytes=5), intent(node_name="a"), FIELDS, ("Ready",))


def test_a_change_and_a_withdrawal_are_written():
    assert differs(current(nodeName="a"), intent(node_name="b"), FIELDS, ("Ready",))
    assert differs(current(nodeName="a", ssd="S"), intent(node_name="a"), FIELDS, ("Ready",))
    assert differs(current(nodeName="a"), intent(node_name="a"), FIELDS, ("Ready", "Placed")) is False
    placed = merge([], [true("Placed", "Placed")], generation=1, now=T0)[0].to_json()
    said = volume("v", 1, status={"conditions": [READY[0].to_json(), placed]}).status
    assert differs(said, intent(), FIELDS, ("Ready", "Placed")), "a condition that is said no more goes"
    assert not differs(said, intent(), FIELDS, ("Ready",)), "somebody else's condition is theirs"
