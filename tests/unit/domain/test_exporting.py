"""Exports: built in the one safe order from wherever a crash left them, fenced completely, strangers untouched."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from kubeflash.api.v1alpha1 import Exported, NodeAddress, WantedExport
from kubeflash.domain import steps
from kubeflash.domain.exporting import ExportWish, Ground, addresses_for, choose_port, plan_exports
from kubeflash.domain.fabric import NvmetHost, NvmetNamespace, NvmetPort, NvmetState, NvmetSubsystem, Portal
from kubeflash.domain.names import attachment_uid, export_identity, is_ours

VOLUME = "6f3c0000-0000-4000-8000-000000000001"
ADDRESSES = (NodeAddress(address="10.77.0.11", interface="eth0"),)
DEVICE = "nvme0n1p2"


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


def wish(
    number: int = 1, *, want: bool = True, recorded: Exported | None = None, device: str | None = DEVICE, **changes
) -> ExportWish:
    return ExportWish("ns/v", f"a{number}", VOLUME, wanted(number, **changes) if want else None, recorded, device)


def recorded(number: int = 1, port: int = 4420) -> Exported:
    return Exported(uid=uid(number), portals=[f"tcp://10.77.0.11:{port}"])


def plan(wishes, state=None, listening=(), refused=(), addresses=ADDRESSES):
    state = state if state is not None else NvmetState()
    internal = addresses[0].address if addresses else ""
    return plan_exports(wishes, state, Ground(addresses, internal, listening, refused))


def at(*addresses: str) -> tuple[NodeAddress, ...]:
    return tuple(NodeAddress(address=address, interface="e") for address in addresses)


class Kernel:
    """nvmet as far as its tree goes: refuses what the kernel refuses, so that a wrong order fails."""

    def __init__(self, state: NvmetState) -> None:
        self.state = state
        self.history: list[steps.Step] = []

    def apply(self, step: steps.Step) -> None:
        hosts, subsystems, ports = dict(self.state.hosts), dict(self.state.subsystems), dict(self.state.ports)
        tls = set(self.state.tls_keys)
        assert is_ours(step.nqn), "a stranger's object is touched"
        match step:
            case steps.CreateHost(host_nqn=host, authentication=keyed):
                hosts[host] = NvmetHost(host, keyed)
            case steps.AddTlsKey(nqn=nqn, host_nqn=host):
                tls.add((host, nqn))
            case steps.RemoveTlsKey(nqn=nqn, host_nqn=host):
                assert nqn not in subsystems, "a consumer could still need it"
                tls.remove((host, nqn))
            case steps.CreateSubsystem(nqn=nqn):
                subsystems[nqn] = NvmetSubsystem(nqn, False, frozenset(), ())
            case steps.AllowHost(nqn=nqn, host_nqn=host):
                assert host in hosts
                subsystems[nqn] = replace(subsystems[nqn], allowed_hosts=subsystems[nqn].allowed_hosts | {host})
            case steps.EnableNamespace(nqn=nqn, volume_id=volume):
                subsystems[nqn] = replace(
                    subsystems[nqn], namespaces=(NvmetNamespace(1, f"/dev/{DEVICE}", volume, enabled=True),)
                )
            case steps.ReplaceDevice(nqn=nqn, nsid=nsid, volume_id=volume):
                namespaces = (NvmetNamespace(nsid, f"/dev/{DEVICE}", volume, enabled=True),)
                subsystems[nqn] = replace(subsystems[nqn], namespaces=namespaces)
            case steps.CreatePort(number=number, portal=portal, tls=only_tls):
                assert number not in ports or not ports[number].subsystems
                ports[number] = NvmetPort(
                    number, portal.transport, portal.address, str(portal.port), frozenset(), only_tls
                )
            case steps.LinkPort(nqn=nqn, number=number, authentication=keyed):
                subsystem = subsystems[nqn]
                assert all(hosts[host].authenticated == keyed for host in subsystem.allowed_hosts), "anybody gets in"
                assert not ports[number].tls or any(known == nqn for _, known in tls), "nobody could connect"
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
                del hosts[host]
            case _:
                raise AssertionError(step)
        self.state = NvmetState(True, hosts, subsystems, ports, frozenset(tls))
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
    found = plan([wish(recorded=recorded(), device=None)])
    assert found.steps == ()
    assert "partition is not there" in found.records[("ns/v", "a1")].message


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
        hosts={"nqn.2014-08.org.example:host": NvmetHost("nqn.2014-08.org.example:host", False)},
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


def test_a_number_that_a_stranger_took_is_chosen_anew_and_the_stranger_s_is_left():
    for port in (
        NvmetPort(4420, "tcp", "127.0.0.1", "4420", frozenset()),
        NvmetPort(4420, "rdma", "10.77.0.11", "4420", frozenset()),
        NvmetPort(4420, "tcp", "10.77.0.11", "4420", frozenset({"nqn.2014-08.org.example:theirs"})),
    ):
        state = NvmetState(ports={4420: port})
        found = plan([wish(recorded=recorded())], state)
        assert found.steps == ()
        assert found.records[("ns/v", "a1")].portals == ["tcp://10.77.0.11:4421"]
        assert plan([wish(want=False, recorded=recorded())], state).steps == ()


def test_a_number_that_somebody_listens_on_is_chosen_anew_only_before_it_is_linked():
    kernel = Kernel(NvmetState())
    build(kernel, wish(recorded=recorded()))
    linked = plan([wish(recorded=recorded())], kernel.state, listening=[4420])
    assert linked.records[("ns/v", "a1")].portals == recorded().portals, "it is our own that listens"
    found = plan([wish(recorded=recorded())], listening=[4420])
    assert found.records[("ns/v", "a1")].portals == ["tcp://10.77.0.11:4421"]


def test_a_port_that_the_kernel_would_not_link_is_cleared_away_before_another_number_is_chosen():
    kernel = Kernel(NvmetState())
    for step in plan([wish(recorded=recorded())]).steps[:-1]:
        kernel.apply(step)
    found = plan([wish(recorded=recorded())], kernel.state, refused=[4420])
    assert [type(step) for step in found.steps] == [steps.RemovePort]
    kernel.apply(found.steps[0])
    again = plan([wish(recorded=recorded())], kernel.state, refused=[4420])
    assert again.records[("ns/v", "a1")].portals == ["tcp://10.77.0.11:4421"]


def test_a_host_that_a_crash_left_without_its_keys_gets_them_before_anybody_is_let_in():
    state = NvmetState(hosts={wanted().host_nqn: NvmetHost(wanted().host_nqn, authenticated=False)})
    assert isinstance(plan([wish(recorded=recorded())], state).steps[0], steps.CreateHost)


def test_without_authentication_the_host_has_no_keys_and_that_is_whole():
    kernel = Kernel(NvmetState())
    open_ = wish(recorded=recorded(), authentication="None")
    build(kernel, open_)
    assert not kernel.state.hosts[wanted().host_nqn].authenticated
    assert plan([open_], kernel.state).steps == ()


def test_tls_needs_its_key_before_the_port_is_linked_and_the_key_goes_with_the_export():
    kernel = Kernel(NvmetState())
    guarded = wish(recorded=recorded(), tls="Required")
    build(kernel, guarded)
    assert kernel.state.ports[4420].tls
    assert plan([guarded], kernel.state).steps == ()
    rebooted = replace(kernel.state, tls_keys=frozenset())
    assert [type(step) for step in plan([guarded], rebooted).steps] == [steps.AddTlsKey]
    for step in plan([wish(want=False, recorded=recorded())], kernel.state).steps:
        kernel.apply(step)
    assert kernel.state == NvmetState()


def test_tls_keys_of_this_server_s_own_connections_stay():
    elsewhere = (export_identity(uid(7)).host_nqn, export_identity(uid(7)).nqn)
    with_them = plan([wish(recorded=recorded())], NvmetState(tls_keys=frozenset({elsewhere}))).steps
    assert with_them == plan([wish(recorded=recorded())]).steps


def test_rdma_is_the_same_code():
    found = plan([wish(transport="rdma")])
    assert found.records[("ns/v", "a1")].portals == ["rdma://10.77.0.11:4420"]
    kernel = Kernel(NvmetState())
    build(kernel, wish(recorded=found.records[("ns/v", "a1")], transport="rdma"))
    assert kernel.state.ports[4420].transport == "rdma"


def test_a_stranger_on_our_allow_list_is_taken_off():
    kernel = Kernel(NvmetState())
    build(kernel, wish(recorded=recorded()))
    mine = kernel.state.subsystems[wanted().nqn]
    spoilt = replace(mine, allowed_hosts=mine.allowed_hosts | {"nqn.2014-08.org.example:host"})
    state = replace(kernel.state, subsystems={mine.nqn: spoilt})
    assert plan([wish(recorded=recorded())], state).steps == (
        steps.DisallowHost(mine.nqn, "nqn.2014-08.org.example:host"),
    )


def test_an_ssd_that_came_back_by_another_name_is_given_to_its_namespace_again():
    kernel = Kernel(NvmetState())
    build(kernel, wish(recorded=recorded()))
    gone = plan([wish(recorded=recorded(), device=None)], kernel.state)
    assert gone.steps == (), "nothing is done to the consumer while there is nothing to give"
    back = plan([wish(recorded=recorded(), device="nvme1n2p2")], kernel.state)
    assert back.steps == (steps.ReplaceDevice(wanted().nqn, 1, VOLUME, f"/dev/{DEVICE}"),)


def test_an_exclusive_volume_is_not_exported_while_another_export_of_it_is_there():
    kernel = Kernel(NvmetState())
    build(kernel, wish(1, recorded=recorded(1)))
    both = [wish(1, want=False, recorded=recorded(1)), wish(2, recorded=recorded(2, 4421))]
    found = plan(both, kernel.state)
    assert {attachment_uid(step.nqn) for step in found.steps} == {uid(1)}
    assert "waiting until another export of the volume is gone" in found.records[("ns/v", "a2")].message
    assert found.records[("ns/v", "a1")].fencing
    for step in found.steps:
        kernel.apply(step)
    assert {attachment_uid(step.nqn) for step in plan(both, kernel.state).steps} == {uid(2)}


def test_a_shared_volume_is_exported_to_several():
    kernel = Kernel(NvmetState())
    both = [wish(1, recorded=recorded(1), shared=True), wish(2, recorded=recorded(2, 4421), shared=True)]
    for step in plan(both, kernel.state).steps:
        kernel.apply(step)
    assert set(kernel.state.subsystems) == {wanted(1).nqn, wanted(2).nqn}
    for step in plan([wish(1, want=False, recorded=recorded(1), shared=True), both[1]], kernel.state).steps:
        assert attachment_uid(step.nqn) == uid(1), "fencing one touches the other"


NETS = ["10.1.0.0/16", "10.2.0.0/16"]


def portals(found) -> list[str]:
    return found.records[("ns/v", "a1")].portals


def test_every_network_gets_a_portal_also_one_that_comes_up_late():
    first = plan([wish(networks=NETS)], addresses=at("10.1.0.1", "10.9.0.1"))
    assert portals(first) == ["tcp://10.1.0.1:4420"]
    later = plan([wish(networks=NETS, recorded=first.records[("ns/v", "a1")])], addresses=at("10.1.0.1", "10.2.0.1"))
    assert portals(later) == ["tcp://10.1.0.1:4420", "tcp://10.2.0.1:4421"]


def test_an_address_that_is_not_up_yet_is_waited_for_and_the_others_serve():
    known = Exported(uid=uid(1), portals=["tcp://10.1.0.1:4420", "tcp://10.2.0.1:4421"])
    kernel = Kernel(NvmetState())
    some = wish(networks=NETS, recorded=known)
    found = plan([some], kernel.state, addresses=at("10.2.0.1"))
    assert "waiting for address 10.1.0.1" in found.records[("ns/v", "a1")].message
    assert portals(found) == known.portals, "numbers are stable"
    for step in found.steps:
        kernel.apply(step)
    assert set(kernel.state.ports) == {4421}
    assert plan([some], kernel.state, addresses=at("10.2.0.1")).records[("ns/v", "a1")].ready
    for step in plan([some], kernel.state, addresses=at("10.1.0.1", "10.2.0.1")).steps:
        kernel.apply(step)
    assert set(kernel.state.ports) == {4420, 4421}


def test_a_new_address_takes_the_place_and_number_of_one_in_its_network_that_is_gone():
    known = Exported(uid=uid(1), portals=["tcp://10.1.0.1:4425", "tcp://10.2.0.1:4421"])
    found = plan([wish(networks=NETS, recorded=known)], addresses=at("10.1.0.77", "10.2.0.1"))
    assert sorted(portals(found)) == ["tcp://10.1.0.77:4425", "tcp://10.2.0.1:4421"]


def test_two_exports_never_share_a_port_number():
    found = plan([wish(1), wish(2)])
    portals = [record.portals[0] for record in found.records.values()]
    assert len(set(portals)) == 2


def test_an_attachment_made_anew_under_the_same_name_waits_until_the_old_one_is_fenced():
    kernel = Kernel(NvmetState())
    build(kernel, wish(1, recorded=recorded(1)))
    renewed = ExportWish("ns/v", "a1", VOLUME, wanted(2), recorded(1), DEVICE)
    found = plan([renewed], kernel.state)
    for step in found.steps:
        assert attachment_uid(step.nqn) == uid(1)
        kernel.apply(step)
    assert plan([renewed], kernel.state).records == {("ns/v", "a1"): None}


def test_when_no_number_or_no_address_is_left_it_says_so():
    full = plan([wish()], listening=range(4420, 4430)).records[("ns/v", "a1")]
    assert "all port numbers of 4420-4429 are taken" in full.message
    elsewhere = wish(networks=["192.0.2.0/24"])
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


def test_a_number_that_two_exports_have_on_record_is_kept_by_the_one_that_has_its_address_here():
    """An SSD came from a server whose numbers began where this one's do."""
    came = Exported(uid=uid(1), portals=["tcp://10.77.0.99:4420"])
    both = [wish(1, recorded=came, networks=["10.77.0.0/24"]), wish(2, recorded=recorded(2))]
    found = plan(both)
    assert found.records[("ns/v", "a1")].portals == ["tcp://10.77.0.11:4421"]
    assert ("ns/v", "a2") not in found.records, "nothing changes for it"
