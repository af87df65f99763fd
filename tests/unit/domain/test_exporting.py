"""Exports: built in the one safe order from wherever a crash left them, fenced completely, strangers untouched."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from kubeflash.api.v1alpha1 import Exported, NodeAddress, WantedExport
from kubeflash.domain import steps
from kubeflash.domain.exporting import ExportWish, addresses_for, choose_port, plan_exports
from kubeflash.domain.fabric import NvmetNamespace, NvmetPort, NvmetState, NvmetSubsystem, Portal
from kubeflash.domain.names import attachment_uid, export_identity, is_ours

VOLUME = "6f3c0000-0000-4000-8000-000000000001"
ADDRESSES = (NodeAddress(address="10.77.0.11", interface="eth0"),)


def uid(number: int) -> str:
    return f"00000000-0000-4000-8000-{number:012d}"


def wanted(number: int = 1, **changes) -> WantedExport:
    identity = export_identity(uid(number))
    return WantedExport(
        uid=uid(number),
        nqn=identity.nqn,
        host_nqn=identity.host_nqn,
        host_id=identity.host_id,
        sealed_keys="c2VhbGVk",
        ports="4420-4429",
    ).model_copy(update=changes)


def wish(number: int = 1, *, want: bool = True, recorded: Exported | None = None, carved: bool = True) -> ExportWish:
    return ExportWish("ns/v", f"a{number}", VOLUME, wanted(number) if want else None, recorded, carved)


def recorded(number: int = 1, port: int = 4420) -> Exported:
    return Exported(uid=uid(number), portals=[f"tcp://10.77.0.11:{port}"])


def plan(wishes, state=None, listening=()):
    state = state if state is not None else NvmetState()
    return plan_exports(wishes, state, addresses=ADDRESSES, internal="10.77.0.11", listening=listening)


class Kernel:
    """nvmet as far as its tree goes: refuses what the kernel refuses, so that a wrong order fails."""

    def __init__(self, state: NvmetState) -> None:
        self.state = state
        self.history: list[steps.Step] = []

    def apply(self, step: steps.Step) -> None:
        hosts, subsystems, ports = set(self.state.hosts), dict(self.state.subsystems), dict(self.state.ports)
        assert is_ours(step.nqn), "a stranger's object is touched"
        match step:
            case steps.CreateHost(host_nqn=host):
                hosts.add(host)
            case steps.CreateSubsystem(nqn=nqn):
                subsystems[nqn] = NvmetSubsystem(nqn, False, frozenset(), ())
            case steps.AllowHost(nqn=nqn, host_nqn=host):
                assert host in hosts
                subsystems[nqn] = replace(subsystems[nqn], allowed_hosts=subsystems[nqn].allowed_hosts | {host})
            case steps.EnableNamespace(nqn=nqn, volume_id=volume):
                subsystems[nqn] = replace(
                    subsystems[nqn], namespaces=(NvmetNamespace(1, "/dev/x", volume, enabled=True),)
                )
            case steps.CreatePort(number=number, portal=portal):
                assert number not in ports or not ports[number].service
                ports[number] = NvmetPort(number, "tcp", portal.address, str(portal.port), frozenset())
            case steps.LinkPort(nqn=nqn, number=number):
                subsystem = subsystems[nqn]
                assert subsystem.allowed_hosts, "linked before the host is allowed: the consumer is refused for good"
                assert subsystem.namespaces[0].enabled, "linked before the namespace is enabled: size 0"
                ports[number] = replace(ports[number], subsystems=ports[number].subsystems | {nqn})
            case steps.DisallowHost(nqn=nqn, host_nqn=host):
                subsystems[nqn] = replace(subsystems[nqn], allowed_hosts=subsystems[nqn].allowed_hosts - {host})
            case steps.UnlinkPort(nqn=nqn, number=number):
                assert not subsystems[nqn].allowed_hosts, "unlinked while the host may still come back"
                ports[number] = replace(ports[number], subsystems=ports[number].subsystems - {nqn})
            case steps.DisableNamespace(nqn=nqn):
                assert all(nqn not in port.subsystems for port in ports.values()), "a frozen initiator would block it"
                changed = tuple(replace(ns, enabled=False) for ns in subsystems[nqn].namespaces)
                subsystems[nqn] = replace(subsystems[nqn], namespaces=changed)
            case steps.RemoveSubsystem(nqn=nqn):
                assert not any(ns.enabled for ns in subsystems[nqn].namespaces), "no barrier against late writes"
                assert all(nqn not in port.subsystems for port in ports.values())
                del subsystems[nqn]
            case steps.RemovePort(number=number):
                assert not ports[number].subsystems
                del ports[number]
            case steps.RemoveHost(host_nqn=host):
                assert all(host not in subsystem.allowed_hosts for subsystem in subsystems.values())
                hosts.remove(host)
            case _:
                raise AssertionError(step)
        self.state = NvmetState(True, frozenset(hosts), subsystems, ports)
        self.history.append(step)


def build(kernel: Kernel, item: ExportWish) -> None:
    for step in plan([item], kernel.state).steps:
        kernel.apply(step)


def test_a_port_number_is_recorded_before_anything_is_built():
    found = plan([wish()])
    assert found.steps == ()
    assert found.records == {("ns/v", "a1"): recorded()}


def test_the_whole_export_is_built_host_first_link_last_and_then_reported_ready():
    found = plan([wish(recorded=recorded())])
    assert [type(step) for step in found.steps] == [
        steps.CreateHost,
        steps.CreateSubsystem,
        steps.AllowHost,
        steps.EnableNamespace,
        steps.CreatePort,
        steps.LinkPort,
    ]
    kernel = Kernel(NvmetState())
    build(kernel, wish(recorded=recorded()))
    after = plan([wish(recorded=recorded())], kernel.state)
    assert after.steps == ()
    assert after.records[("ns/v", "a1")].ready


def test_nothing_is_built_before_the_volume_is_there():
    assert plan([wish(recorded=recorded(), carved=False)]).steps == ()


@given(st.integers(0, 6), st.integers(0, 7))
def test_a_crash_after_any_step_of_building_or_fencing_is_gone_on_from(built, fenced):
    kernel = Kernel(NvmetState())
    for step in plan([wish(recorded=recorded())], kernel.state).steps[:built]:
        kernel.apply(step)
    gone = wish(want=False, recorded=recorded())
    for step in plan([gone], kernel.state).steps[:fenced]:
        kernel.apply(step)
    for step in plan([gone], kernel.state).steps:
        kernel.apply(step)
    assert kernel.state == NvmetState(), "nothing of it is left"
    assert plan([gone], kernel.state).records == {("ns/v", "a1"): None}


def test_an_export_is_fenced_in_the_order_that_leaves_no_late_write():
    kernel = Kernel(NvmetState())
    build(kernel, wish(recorded=recorded()))
    found = plan([wish(want=False, recorded=recorded())], kernel.state).steps
    assert [type(step) for step in found] == [
        steps.DisallowHost,
        steps.UnlinkPort,
        steps.DisableNamespace,
        steps.RemoveSubsystem,
        steps.RemovePort,
        steps.RemoveHost,
    ]


def test_what_is_ours_and_wanted_by_nobody_is_fenced():
    kernel = Kernel(NvmetState())
    build(kernel, wish(recorded=recorded()))
    for step in plan([], kernel.state).steps:
        kernel.apply(step)
    assert kernel.state == NvmetState()


def strangers() -> NvmetState:
    theirs = NvmetSubsystem(
        "nqn.2014-08.org.example:theirs", True, frozenset(), (NvmetNamespace(1, "/dev/y", "u", True),)
    )
    return NvmetState(
        hosts=frozenset({"nqn.2014-08.org.example:host"}),
        subsystems={theirs.nqn: theirs},
        ports={
            4420: NvmetPort(4420, "tcp", "0.0.0.0", "9999", frozenset({theirs.nqn})),
            7: NvmetPort(7, "tcp", "0.0.0.0", "4421", frozenset({theirs.nqn})),
        },
    )


def test_strangers_stay_untouched_and_their_numbers_are_skipped():
    state = strangers()
    found = plan([wish()], state, listening=[4422])
    assert found.records[("ns/v", "a1")].portals == ["tcp://10.77.0.11:4423"]
    kernel = Kernel(state)
    mine = wish(recorded=recorded(port=4423))
    build(kernel, mine)
    for step in plan([wish(want=False, recorded=recorded(port=4423))], kernel.state).steps:
        kernel.apply(step)
    assert kernel.state == state


def test_a_recorded_port_that_a_stranger_took_meanwhile_is_said_and_not_linked_to():
    found = plan([wish(recorded=recorded(port=4420))], strangers())
    assert found.steps == ()
    assert "somebody else uses nvmet port 4420" in found.records[("ns/v", "a1")].message


def test_a_stranger_s_port_at_our_number_is_neither_linked_to_nor_removed():
    for port in (
        NvmetPort(4423, "tcp", "127.0.0.1", "4423", frozenset()),
        NvmetPort(4423, "rdma", "10.77.0.11", "4423", frozenset()),
    ):
        state = NvmetState(ports={4423: port})
        assert plan([wish(recorded=recorded(port=4423))], state).steps == ()
        assert plan([wish(want=False, recorded=recorded(port=4423))], state).steps == ()


def test_two_exports_never_share_a_port_number():
    found = plan([wish(1), wish(2)])
    portals = [record.portals[0] for record in found.records.values()]
    assert len(set(portals)) == 2


def test_an_attachment_made_anew_under_the_same_name_waits_until_the_old_one_is_fenced():
    kernel = Kernel(NvmetState())
    build(kernel, wish(1, recorded=recorded(1)))
    renewed = ExportWish("ns/v", "a1", VOLUME, wanted(2), recorded(1), True)
    found = plan([renewed], kernel.state)
    for step in found.steps:
        assert attachment_uid(step.nqn) == uid(1)
        kernel.apply(step)
    assert plan([renewed], kernel.state).records == {("ns/v", "a1"): None}


def test_when_no_number_or_no_address_is_left_it_says_so():
    full = plan([wish()], listening=range(4420, 4430)).records[("ns/v", "a1")]
    assert "all port numbers of 4420-4429 are taken" in full.message
    elsewhere = ExportWish("ns/v", "a1", VOLUME, wanted(networks=["192.0.2.0/24"]), None, True)
    nowhere = plan([elsewhere]).records[("ns/v", "a1")]
    assert "no address of this server lies in 192.0.2.0/24; it has: 10.77.0.11" in nowhere.message


def test_addresses_and_ports():
    many = [NodeAddress(address=a, interface="e") for a in ("10.1.0.1", "10.2.0.1", "fd00::1")]
    assert addresses_for([], many, "10.9.0.1") == ("10.9.0.1",)
    assert addresses_for(["10.2.0.0/16", "fd00::/64"], many, "10.9.0.1") == ("10.2.0.1", "fd00::1")
    assert choose_port("5-7", {5, 6}) == 7
    assert choose_port("5-6", {5, 6}) is None


@given(st.sampled_from(["10.0.0.1", "fd00::1"]), st.integers(1, 65535))
def test_a_portal_reads_back(address, port):
    portal = Portal("tcp", address, port)
    assert Portal.parse(str(portal)) == portal
