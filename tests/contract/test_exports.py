"""The contract of nvmet, on the fake and, where this machine's kernel has one, on the real tree."""

from __future__ import annotations

from collections.abc import Callable

import pytest

pytest.register_assert_rewrite("contract.exports")

from contract import exports  # noqa: E402  after the line above, or its asserts say nothing
from contract.exports import Bench, Export  # noqa: E402
from kubeflash.host import nvmet  # noqa: E402
from support.fake_nvmet import Crashing, FakeNvmet, Killed  # noqa: E402

DEVICE = "/dev/nvme0n1p3"
OTHER = "/dev/nvme2n1p3"


def fake() -> Bench:
    return Bench(FakeNvmet(devices={DEVICE, OTHER}), DEVICE, "127.0.0.1", OTHER)


@pytest.mark.parametrize("contract", exports.CONTRACTS, ids=lambda item: item.__name__.removeprefix("contract_"))
def test_contract_on_the_fake(contract: Callable[[Bench], None]) -> None:
    exports.run(contract, fake())


def test_only_revalidating_shows_a_grown_device_on_the_fake() -> None:
    bench = fake()
    fs, export = bench.fs, Export(bench)
    fs.sizes[DEVICE] = 1 << 20
    export.up(fs)
    namespace = f"subsystems/{export.nqn}/namespaces/1"
    fs.sizes[DEVICE] = 2 << 20
    nvmet.enable_namespace(fs, export.nqn, 1)
    assert fs.seen == {namespace: 1 << 20}
    nvmet.revalidate(fs, export.nqn, 1)
    assert fs.seen == {namespace: 2 << 20}


def test_without_the_module() -> None:
    fs = FakeNvmet(loaded=False, folders=set())
    assert not nvmet.read_state(fs).available
    with pytest.raises(nvmet.NvmetMissing):
        nvmet.create_subsystem(fs, "nqn.s", serial="s", model="m")


def _crash(bench: Bench, steps: list[Callable[[object], object]], after: int) -> bool:
    """Runs the steps, killed right after the given change; whether it came to that."""
    crashing = Crashing(bench.fs, after)
    try:
        for step in steps:
            step(crashing)
    except Killed:
        return True
    return False


def _normal(bench: Bench) -> tuple[object, object]:
    return nvmet.read_state(bench.fs), dict(bench.fs.modes)


def test_killed_after_every_change_of_building() -> None:
    bench = fake()
    export = Export(bench).up(bench.fs)
    wished = _normal(bench)
    exports.sweep(bench.fs)
    after = 0
    while True:
        after += 1
        killed = _crash(bench, export.build(), after)
        if nvmet.read_state(bench.fs).ports.get(export.port) and bench.fs.listdir(f"ports/{export.port}/subsystems"):
            namespace = nvmet.read_state(bench.fs).subsystems[export.nqn].namespaces[0]
            assert namespace.enabled, "it listened before it was whole"
        export.up(bench.fs)
        assert _normal(bench) == wished, after
        exports.sweep(bench.fs)
        if not killed:
            break
    assert after > 15


@pytest.mark.parametrize("kind", ["open", "tls", "rdma"])
def test_killed_after_every_change_of_building_another_kind(kind: str) -> None:
    bench = fake()
    bench.fs.transports.add("rdma")
    export = Export(bench, transport="rdma" if kind == "rdma" else "tcp", tls=kind == "tls")
    export.keys = None if kind == "open" else export.keys
    export.up(bench.fs)
    wished = _normal(bench)
    exports.sweep(bench.fs)
    killed, after = True, 0
    while killed:
        after += 1
        killed = _crash(bench, export.build(), after)
        state = nvmet.read_state(bench.fs)
        port = state.ports.get(export.port)
        if port is not None and port.subsystems:
            assert port.tls == export.tls, "it listened without TLS"
            assert state.hosts[export.names.host_nqn].authenticated == (export.keys is not None)
        export.up(bench.fs)
        assert _normal(bench) == wished, after
        exports.sweep(bench.fs)


def test_killed_after_every_change_of_replacing_a_device() -> None:
    bench = fake()
    export = Export(bench)

    def replace(fs: object) -> None:
        nvmet.replace_device(fs, export.nqn, 1, device=OTHER, uuid=export.volume_id)

    def enable(fs: object) -> None:  # what is planned for a namespace that is disabled
        nvmet.add_namespace(fs, export.nqn, 1, device=OTHER, uuid=export.volume_id)
        nvmet.enable_namespace(fs, export.nqn, 1)

    for again in (replace, enable):
        killed, after = True, 0
        while killed:
            after += 1
            export.up(bench.fs)
            killed = _crash(bench, [replace], after)
            (namespace,) = nvmet.read_state(bench.fs).subsystems[export.nqn].namespaces
            (again if not namespace.enabled else replace)(bench.fs)
            (namespace,) = nvmet.read_state(bench.fs).subsystems[export.nqn].namespaces
            assert (namespace.device, namespace.enabled, namespace.uuid) == (OTHER, True, export.volume_id)
            assert bench.fs.listdir(f"ports/{export.port}/subsystems") == [export.nqn]
            exports.sweep(bench.fs)
        assert after == 4  # disable, device_path, enable, and one more that is not reached


def test_killed_after_every_change_of_building_then_fenced() -> None:
    bench = fake()
    export = Export(bench)
    after = 0
    while True:
        after += 1
        killed = _crash(bench, export.build(), after)
        export.down(bench.fs)
        assert (bench.fs.files, bench.fs.links) == ({}, {}), after
        if not killed:
            break


def test_killed_after_every_change_of_fencing() -> None:
    bench = fake()
    export = Export(bench)
    after = 0
    while True:
        after += 1
        export.up(bench.fs)
        killed = _crash(bench, export.fence(), after)
        state = nvmet.read_state(bench.fs)
        if export.nqn not in state.subsystems:
            assert not any(port.subsystems for port in state.ports.values())
        export.down(bench.fs)
        assert (bench.fs.files, bench.fs.links, bench.fs.listening) == ({}, {}, set()), after
        if not killed:
            break
    assert after > 5
