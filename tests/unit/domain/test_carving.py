"""What is carved, released, refused: from any state of a disk the plan ends in the wished one, and stays there."""

from __future__ import annotations

from dataclasses import replace
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kubeflash.domain import steps
from kubeflash.domain.allocation import align_up, usable
from kubeflash.domain.carving import (
    CarvePlan,
    DiskView,
    Requests,
    Selection,
    SsdState,
    VolumeWish,
    judge,
    plan_volumes,
    volumes_of,
)
from kubeflash.domain.disk import LABEL_TYPE, MIB, VOLUME_TYPE, Label, Partition, PartitionTable

OWNER = Label("cluster-1", "server-1", "KFA0-1")
SIZE = 100 * MIB
LABEL_PART = Partition(1, MIB, MIB, "kubeflash", "aaaaaaaa-0000-0000-0000-000000000000", LABEL_TYPE)


def uuid(number: int) -> str:
    return str(UUID(int=number))


def wish(number: int, mib: int, *, released: bool = False, exported: bool = False) -> VolumeWish:
    return VolumeWish(f"ns/v{number}", uuid(number), OWNER.ssd, mib * MIB, released, exported)


def blank() -> DiskView:
    return DiskView(OWNER.ssd, SIZE)


def table(*parts: Partition, guid: str = OWNER.disk_guid) -> PartitionTable:
    return PartitionTable("gpt", guid, 34 * 512, SIZE - 34 * 512, (LABEL_PART, *parts))


def part(number: int, start: int, mib: int, volume: int) -> Partition:
    return Partition(number, start, mib * MIB, uuid(volume), uuid(volume), VOLUME_TYPE)


def claimed(*parts: Partition) -> DiskView:
    return DiskView(OWNER.ssd, SIZE, table(*parts), OWNER, shown=frozenset({1, *(p.number for p in parts)}))


def plan(disk: DiskView, *wishes: VolumeWish, selected: bool = True):
    return plan_volumes({disk.ssd: disk}, {disk.ssd: OWNER}, {disk.ssd: Selection("fast")} if selected else {}, wishes)


def apply(disk: DiskView, step: steps.Step) -> DiskView:
    """A disk as the step leaves it; it checks what the step expects, as the real one does."""
    match step:
        case steps.ClaimSsd():
            assert judge(disk, OWNER).state is SsdState.BLANK
            return claimed()
        case steps.CarvePartition(partition=new):
            assert disk.table is not None
            for other in disk.table.partitions:
                assert new.end <= other.start or other.end <= new.start, "overlap"
                assert other.number != new.number
            assert usable(SIZE).start <= new.start
            assert new.end <= usable(SIZE).end
            return replace(
                disk,
                table=replace(disk.table, partitions=(*disk.table.partitions, new)),
                shown=disk.shown | {new.number},
            )
        case steps.ShowPartition(partition=shown):
            return replace(disk, shown=disk.shown | {shown.number})
        case steps.WipePartition():
            return disk
        case steps.RemovePartition(partition=old):
            assert disk.table is not None
            kept = tuple(p for p in disk.table.partitions if p != old)
            return replace(disk, table=replace(disk.table, partitions=kept), shown=disk.shown - {old.number})
    raise AssertionError(step)


def test_a_blank_ssd_is_claimed_before_the_first_volume_is_carved():
    found = plan(blank(), wish(1, 10)).steps
    assert [type(step) for step in found] == [steps.ClaimSsd, steps.CarvePartition]
    assert found[1].partition == Partition(2, 2 * MIB, 10 * MIB, uuid(1), uuid(1), VOLUME_TYPE)


def test_without_a_volume_nothing_is_written_to_a_selected_blank_ssd():
    assert plan(blank()).steps == ()


@pytest.mark.parametrize(
    ("disk", "words"),
    [
        (replace(blank(), findings=("ext4 file system",)), "not blank: ext4"),
        (replace(blank(), trouble="two SSDs have this id"), "two SSDs"),
        (replace(claimed(), label=replace(OWNER, cluster_id="other")), "of cluster other"),
        (replace(claimed(), label=replace(OWNER, system_uuid="other")), "of server other"),
        (replace(claimed(), label=replace(OWNER, ssd="other")), "of SSD other"),
        (replace(claimed(), label=replace(OWNER, layout=2)), "version 2"),
        (replace(claimed(), label=None, table=table(guid="ffff")), "no label"),
        (replace(claimed(part(2, 2 * MIB, 5, 9)), label=None), "no label"),
    ],
)
def test_what_is_not_provably_ours_to_take_is_refused_with_its_reason(disk, words):
    found = plan(disk, wish(1, 10))
    assert found.steps == ()
    assert words in {**found.refused, **found.waiting}["ns/v1"]
    unclear = bool(disk.trouble) or (disk.label is not None)
    assert ("ns/v1" in found.waiting) is unclear, "the volume may be on it: it must not be placed elsewhere"


def test_two_volumes_with_one_id_are_both_left_alone():
    disk = claimed(part(2, 2 * MIB, 10, 1))
    copy = VolumeWish("other/copy", uuid(1), OWNER.ssd, 10 * MIB, released=True, exported=False)
    found = plan(disk, wish(1, 10), copy)
    assert found.steps == ()
    assert set(found.waiting) == {"ns/v1", "other/copy"}


def test_an_ssd_that_no_pool_selects_is_refused():
    found = plan(blank(), wish(1, 10), selected=False)
    assert found.steps == ()
    assert "no pool selects" in found.refused["ns/v1"]


def test_a_stranger_s_partition_on_a_claimed_disk_keeps_new_volumes_out_and_old_ones_alive():
    stranger = Partition(3, 50 * MIB, MIB, "data", uuid(77), "0fc63daf-8483-4772-8e79-3d69d8477de4")
    disk = claimed(part(2, 2 * MIB, 10, 1))
    disk = replace(disk, table=table(part(2, 2 * MIB, 10, 1), stranger))
    found = plan(disk, wish(1, 10), wish(2, 10))
    assert found.steps == ()
    assert set(found.refused) == {"ns/v2"}
    assert "partition 3" in found.refused["ns/v2"]


def test_a_claim_that_a_crash_left_without_its_label_goes_on():
    half = DiskView(OWNER.ssd, SIZE, table(), None, half_claimed=True, findings=("partition table (gpt)",))
    assert [type(step) for step in plan(half, wish(1, 10)).steps] == [steps.ClaimSsd, steps.CarvePartition]


def test_a_partition_that_a_crash_hid_from_the_kernel_is_shown():
    disk = replace(claimed(part(2, 2 * MIB, 10, 1)), shown=frozenset({1}))
    assert plan(disk, wish(1, 10)).steps == (steps.ShowPartition(OWNER.ssd, OWNER.disk_guid, part(2, 2 * MIB, 10, 1)),)


def test_a_released_volume_is_wiped_before_its_partition_goes_and_not_while_exported():
    disk = claimed(part(2, 2 * MIB, 10, 1))
    found = plan(disk, wish(1, 10, released=True)).steps
    assert [type(step) for step in found] == [steps.WipePartition, steps.RemovePartition]
    waiting = plan(disk, wish(1, 10, released=True, exported=True))
    assert waiting.steps == ()
    assert "export" in waiting.waiting["ns/v1"]


def test_a_volume_of_another_server_s_ssd_is_not_wiped_though_its_object_is_deleted():
    disk = replace(claimed(part(2, 2 * MIB, 10, 1)), label=replace(OWNER, system_uuid="other"))
    assert plan(disk, wish(1, 10, released=True)).steps == ()


def test_an_ssd_that_is_not_there_is_waited_for():
    found = plan_volumes({}, {}, {OWNER.ssd: Selection("fast")}, [wish(1, 10)])
    assert found.steps == ()
    assert "not in this server" in found.waiting["ns/v1"]


def test_too_large_is_refused_with_what_would_fit():
    found = plan(claimed(part(2, 2 * MIB, 90, 1)), wish(1, 90), wish(2, 20))
    assert found.steps == ()
    assert found.refused == {"ns/v2": "largest free extent 7Mi < 20Mi"}


@given(st.data())
def test_from_any_state_the_plan_ends_in_the_wished_one_whatever_step_a_crash_fell_on(data):
    sizes = data.draw(st.lists(st.integers(1, 40), max_size=5), label="sizes")
    disk = blank()
    state: dict[int, str] = {}
    for number in range(len(sizes)):
        state[number] = data.draw(st.sampled_from(["wanted", "deleting"]), label=f"volume {number}")
        first = [wish(n, sizes[n]) for n in range(number + 1)]
        for step in plan(disk, *first).steps:
            if data.draw(st.booleans(), label="crash"):
                break
            disk = apply(disk, step)
    wishes = [wish(n, sizes[n], released=state[n] == "deleting") for n in state]
    for _ in range(4):
        found = plan(disk, *wishes)
        for step in found.steps:
            disk = apply(disk, step)
    final = plan(disk, *wishes)
    assert final.steps == (), "applying twice changes nothing"
    present = {p.uuid: p.bytes for p in volumes_of(disk.table)}
    for item in wishes:
        if item.released or item.key in final.refused:
            assert item.id not in present
        else:
            assert present[item.id] == align_up(item.bytes)


def test_a_label_reads_back_and_its_table_s_guid_tells_owners_apart():
    assert Label.decode(OWNER.encode()) == OWNER
    assert Label.decode(bytes(4096)) is None
    guids = {OWNER.disk_guid, replace(OWNER, cluster_id="x").disk_guid, replace(OWNER, ssd="x").disk_guid}
    assert len(guids) == 3
    with pytest.raises(ValueError, match="does not hold a KubeFlash label"):
        Label.decode(b"hello".ljust(4096, b"\0"))


# --- a row a rule ---

FOREIGN_DISK = replace(blank(), findings=("ext4",), fingerprint="shown")
LOCKED = replace(blank(), trouble="it cannot be read: EIO")
OTHERS = replace(claimed(), label=replace(OWNER, system_uuid="other"))
UNLABELLED = replace(claimed(part(2, 2 * MIB, 10, 1)), label=None)
HOLDS_1 = claimed(part(2, 2 * MIB, 10, 1))
STRANGE = replace(
    HOLDS_1, table=table(part(2, 2 * MIB, 10, 1), Partition(3, 50 * MIB, MIB, "d", uuid(77), "0fc63daf-8483-4772"))
)


@pytest.mark.parametrize(
    ("disk", "fresh", "where", "words"),
    [
        (claimed(), False, "missing", "somebody deleted it"),
        (blank(), False, "missing", "somebody wiped it: it is blank"),
        (FOREIGN_DISK, False, "missing", "somebody wiped it: it is not blank: ext4"),
        (LOCKED, False, "waiting", "EIO"),
        (OTHERS, False, "waiting", "of server other"),
        (UNLABELLED, False, "waiting", "no label"),  # its partition is there: its data is not gone
        (FOREIGN_DISK, True, "refused", "not blank: ext4"),
        (LOCKED, True, "waiting", "EIO"),
        (OTHERS, True, "waiting", "of server other"),
        (UNLABELLED, True, "waiting", "no label"),
        (replace(STRANGE, table=table(STRANGE.table.partitions[-1])), True, "refused", "partition 3"),
    ],
)
def test_a_volume_that_is_not_there_is_missing_refused_or_waited_for(disk, fresh, where, words):
    found = plan(disk, replace(wish(1, 10), fresh=fresh))
    assert found.steps == ()
    said = {"missing": found.missing, "refused": found.refused, "waiting": found.waiting}
    assert {name for name, sentences in said.items() if sentences} == {where}
    assert words in said[where]["ns/v1"]


def test_new_bytes_are_given_at_the_word_of_the_controller_that_leads_alone():
    unconfirmed = replace(wish(2, 10), confirmed=False)
    found = plan(HOLDS_1, unconfirmed, wish(3, 10))
    assert [step.subject for step in found.steps] == [uuid(3)]
    assert "leads no longer" in found.waiting["ns/v2"]
    assert found.steps[0].partition.start == 22 * MIB, "its place is kept for it"
    grown = plan(HOLDS_1, replace(wish(1, 20), confirmed=False, fresh=False))
    assert grown.steps == ()
    assert "leads no longer" in grown.cramped["ns/v1"]
    released = plan(HOLDS_1, replace(wish(1, 10, released=True), confirmed=False))
    assert len(released.steps) == 2, "what is taken away was decided once and for all"


def test_what_failed_too_often_is_refused_while_it_is_new_and_holds_up_no_other():
    found = plan(HOLDS_1, replace(wish(2, 10), given_up="I/O error"), wish(3, 10))
    assert found.refused == {"ns/v2": "I/O error"}
    assert [step.subject for step in found.steps] == [uuid(3)]
    assert plan(HOLDS_1, replace(wish(1, 10), given_up="I/O error")) == CarvePlan(), "it is there after all"
    missing = plan(claimed(), replace(wish(1, 10), given_up="I/O error", fresh=False))
    assert missing.refused == {}
    assert set(missing.missing) == {"ns/v1"}


@pytest.mark.parametrize(
    ("disk", "selection", "steps_", "waits"),
    [
        (blank(), Selection("p"), [steps.ClaimSsd, steps.CarvePartition], False),
        (blank(), Selection("p", thorough=True), [], True),
        (replace(blank(), thorough=True), Selection("p", thorough=True), [steps.ClaimSsd, steps.CarvePartition], False),
        (claimed(), Selection("p", thorough=True), [steps.CarvePartition], False),
        (
            replace(blank(), half_claimed=True),
            Selection("p", thorough=True),
            [steps.ClaimSsd, steps.CarvePartition],
            False,
        ),
    ],
)
def test_what_nobody_named_is_read_more_thoroughly_before_it_is_claimed(disk, selection, steps_, waits):
    found = plan_volumes({disk.ssd: disk}, {disk.ssd: OWNER}, {disk.ssd: selection}, [wish(1, 10)])
    assert [type(step) for step in found.steps] == steps_
    assert all(step.thorough is selection.thorough for step in found.steps if isinstance(step, steps.ClaimSsd))
    assert bool(found.waiting) is waits


def test_a_damaged_table_is_repaired_before_anything_else_and_only_a_table_of_ours():
    damaged = replace(HOLDS_1, table=replace(HOLDS_1.table, damaged="backup"))
    found = plan(damaged, wish(1, 10, released=True), wish(2, 10))
    assert found.steps == (steps.RepairTable(OWNER.ssd, OWNER.disk_guid),)
    assert set(found.waiting) == {"ns/v1", "ns/v2"}
    theirs = replace(damaged, label=replace(OWNER, system_uuid="other"))
    assert plan(theirs, wish(2, 10)).steps == ()


@pytest.mark.parametrize(
    ("disk", "wishes", "shown", "words"),
    [
        (FOREIGN_DISK, [], "shown", None),
        (FOREIGN_DISK, [], "older", "not what was shown any more"),
        (LOCKED, [], "shown", "cannot be told what is on it: it cannot be read"),
        (replace(HOLDS_1, fingerprint="shown"), [], "shown", None),
        (replace(HOLDS_1, fingerprint="shown"), [wish(1, 10)], "shown", "it holds volumes ns/v1: delete them first"),
        (replace(OTHERS, fingerprint="shown"), [wish(1, 10)], "shown", "it holds volumes ns/v1"),
        (replace(FOREIGN_DISK), [wish(2, 10)], "shown", "it holds volumes ns/v2"),
        (blank(), [], "shown", ""),
        (None, [], "shown", "SSD KFA0-1 is not in this server now"),
    ],
)
def test_a_whole_ssd_is_wiped_only_as_it_was_shown_and_without_volumes(disk, wishes, shown, words):
    disks = {OWNER.ssd: disk} if disk is not None else {}
    found = plan_volumes(disks, {OWNER.ssd: OWNER}, {}, wishes, Requests(wipe_ssds={OWNER.ssd: shown}))
    if words is None:
        assert found.steps == (steps.WipeSsd(OWNER.ssd, "shown", SIZE),)
        assert found.denied == {}
    else:
        assert found.steps == ()
        assert words in found.denied.get(OWNER.ssd, "")
        assert bool(found.denied) is bool(words)


@pytest.mark.parametrize(
    ("disk", "wishes", "where", "wiped", "words"),
    [
        (HOLDS_1, [], OWNER.ssd, True, ""),
        (HOLDS_1, [], "elsewhere", False, "SSD elsewhere is not in this server now"),
        (HOLDS_1, [wish(1, 10)], OWNER.ssd, False, "it is volume ns/v1, no orphan"),
        (HOLDS_1, [replace(wish(1, 10), ssd="elsewhere")], OWNER.ssd, False, "it is volume ns/v1, no orphan"),
        (replace(OTHERS, table=HOLDS_1.table), [], OWNER.ssd, False, ""),
        (UNLABELLED, [], OWNER.ssd, False, ""),
        (claimed(), [], OWNER.ssd, False, ""),
    ],
)
def test_an_orphan_is_wiped_only_where_it_was_shown_and_while_it_is_one(disk, wishes, where, wiped, words):
    requests = Requests(wipe_orphans={uuid(1): where})
    found = plan_volumes({OWNER.ssd: disk}, {OWNER.ssd: OWNER}, {}, wishes, requests)
    expected = [steps.WipePartition, steps.RemovePartition] if wiped else []
    assert [type(step) for step in found.steps] == expected
    assert words in found.denied.get(uuid(1), "")
    assert bool(found.denied) is bool(words)


@pytest.mark.parametrize(
    ("label", "moved", "taken"),
    [
        (replace(OWNER, system_uuid="other"), "other", True),
        (replace(OWNER, system_uuid="other"), "third", False),
        (replace(OWNER, system_uuid="other"), None, False),
        (replace(OWNER, system_uuid="other", ssd="copy of"), "other", False),
        (replace(OWNER, system_uuid="other", cluster_id="b"), "other", False),
        (replace(OWNER, system_uuid="other", layout=2), "other", False),
        (OWNER, "other", False),
    ],
)
def test_an_ssd_that_came_from_another_server_is_taken_over_at_the_controller_s_word_alone(label, moved, taken):
    disk = replace(HOLDS_1, label=label)
    requests = Requests(moved={OWNER.ssd: moved} if moved else {})
    found = plan_volumes({OWNER.ssd: disk}, {OWNER.ssd: OWNER}, {}, [wish(1, 10)], requests)
    assert found.steps == ((steps.TakeOver(OWNER.ssd, label, OWNER),) if taken else ())


@pytest.mark.parametrize(
    ("others", "reserve", "wanted", "words"),
    [
        ([], 0, 97, None),
        ([], 0, 98, "the end of the SSD"),
        ([], 20, 78, None),
        ([], 20, 79, "what the pool's reserve leaves"),
        ([part(3, 40 * MIB, 5, 2)], 0, 38, None),
        ([part(3, 40 * MIB, 5, 2)], 0, 39, "partition 3"),
    ],
)
def test_a_volume_grows_into_the_free_space_behind_it(others, reserve, wanted, words):
    disk = claimed(part(2, 2 * MIB, 10, 1), *others)
    selected = {disk.ssd: Selection("p", reserve)}
    found = plan_volumes({disk.ssd: disk}, {disk.ssd: OWNER}, selected, [replace(wish(1, wanted), fresh=False)])
    if words is None:
        (step,) = found.steps
        assert step.new_size == wanted * MIB
    else:
        assert found.steps == ()
        assert words in found.cramped["ns/v1"]


def test_an_ssd_that_is_in_use_is_not_wiped_and_its_reason_does_not_offer_it():
    used = replace(blank(), findings=("mounted at /mnt",), held="mounted at /mnt", fingerprint="f")
    assert "in use: left alone" in judge(used, OWNER).reason
    found = plan_volumes({used.ssd: used}, {used.ssd: OWNER}, {}, [], Requests(wipe_ssds={used.ssd: "f"}))
    assert found.steps == ()
    assert found.denied == {used.ssd: "it is mounted at /mnt: end that first"}
