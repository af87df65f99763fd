"""Carrying out steps: what is refused before anything is done."""

from __future__ import annotations

from pathlib import Path

import pytest

from kubeflash.agent import execute
from kubeflash.agent.execute import Executor
from kubeflash.domain import dhchap, steps, tlspsk
from kubeflash.domain.dhchap import DhchapKeys
from kubeflash.domain.fabric import Portal
from kubeflash.domain.names import export_identity
from kubeflash.domain.sealing import ExportKeys, generate_private_key, public_key, seal
from kubeflash.host.errors import HostError
from kubeflash.host.holders import Holder
from kubeflash.host.root import HostRoot

PRIVATE = generate_private_key()
MINE, OTHER = (export_identity(f"0b5cbb5e-3a5b-4a53-9a3b-0e4f6c7b7f0{number}") for number in (1, 2))
PORTAL = Portal("tcp", "10.20.0.4", 4427)
KEYS = DhchapKeys(dhchap.generate(), dhchap.generate())


def sealed(keys: ExportKeys) -> str:
    return seal(keys, public_key(PRIVATE))


def connect(keys: ExportKeys, *, tls: bool, authentication: bool = True) -> steps.Connect:
    text = sealed(keys)
    return steps.Connect(
        MINE.nqn, MINE.host_nqn, MINE.host_id, PORTAL, "volume", text, 2, 600, authentication=authentication, tls=tls
    )


@pytest.mark.parametrize(
    ("step", "words"),
    [
        (steps.CreateHost(MINE.nqn, MINE.host_nqn, sealed(ExportKeys(psk=tlspsk.generate()))), "authentication"),
        (steps.AddTlsKey(MINE.nqn, MINE.host_nqn, sealed(ExportKeys(KEYS))), "TLS"),
        (steps.AddTlsKey(MINE.nqn, MINE.host_nqn, sealed(ExportKeys(psk=b"short"))), "32 bytes"),
        (connect(ExportKeys(psk=tlspsk.generate()), tls=True), "authentication"),
        (connect(ExportKeys(KEYS), tls=True), "TLS"),
        (connect(ExportKeys(), tls=True, authentication=False), "TLS"),
    ],
)
def test_nothing_is_done_without_the_keys_that_are_wanted(tmp_path: Path, step: steps.Step, words: str) -> None:
    executor = Executor(HostRoot(tmp_path), None, PRIVATE)
    with pytest.raises(HostError, match=words) as caught:
        executor.apply(step)
    assert "DHHC" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("kind", "who", "alone", "shared"),
    [
        ("nvmet", f"exported by nvmet subsystem {MINE.nqn} (namespace 1)", True, True),
        ("nvmet", f"exported by nvmet subsystem {OTHER.nqn} (namespace 1)", False, True),
        ("nvmet", "exported by nvmet subsystem nqn.2014-08.org:theirs (namespace 1)", False, False),
        ("process", "open in fio (pid 812)", False, True),
        ("bind", "handed out as a device at /x", False, True),
        ("mount", "mounted at /mnt", False, False),
        ("swap", "used as swap", False, False),
        ("block", "part of dm-0 (theirs)", False, False),
        ("loop", "behind loop device /dev/loop0", False, False),
        ("exclusive", "held exclusively (O_EXCL)", False, False),
    ],
)
def test_who_may_have_a_volume_that_is_exported(kind: str, who: str, alone: bool, shared: bool) -> None:
    holder = Holder(kind, who)
    assert execute._may_have(holder, MINE.nqn, shared=False) is alone
    assert execute._may_have(holder, MINE.nqn, shared=True) is shared
