from __future__ import annotations

import pytest

from kubeflash.domain import tlspsk
from kubeflash.domain.tlspsk import derive, names_of

HOST, NQN = "nqn.psk-test-host", "nqn.psk-test-subsys"
CONFIGURED = bytes.fromhex("5512dbb6737d0106f65975b773dfb011ffc344bcf442e2dd6d8bc4870b5d5b03")


def test_the_identity_is_the_one_of_libnvmes_own_tests() -> None:
    """libnvme 1.15, test/psk.c: the first of `test_data_identity`, and of `test_data_identity_compat`."""
    assert derive(CONFIGURED, HOST, NQN).identity == (
        f"NVMe1R01 {HOST} {NQN} iSbjiStwJ/1TrTvDlt2fjFmzvsytOJelidNnA+X5lEU="
    )
    assert derive(CONFIGURED, HOST, NQN, legacy=True).identity == (
        f"NVMe1R01 {HOST} {NQN} 66GuqV08TsAGII39teWUfwQwizjv06Jy8jOcX3NAAzM="
    )


def test_what_nvme_cli_2_13_put_into_a_kernel() -> None:
    """Seen on Debian 13; `contract.securing` looks again."""
    uid = "0b5cbb5e-3a5b-4a53-9a3b-0e4f6c7b7f01"
    host, nqn = f"nqn.2026-01.io.kubeflash:host:{uid}", f"nqn.2026-01.io.kubeflash:subsystem:{uid}"
    psk = derive(bytes(range(1, 33)), host, nqn, legacy=True)
    assert psk.identity == f"NVMe1R01 {host} {nqn} IwhToC0LeQHqVEX7jmtcXQLGYyEhiSZVxPXrbjMKxwI="
    assert psk.key.hex() == "96a20f86bfc239fc68f8b200f331cdebfba6112c1a058c69ece3f3d8c604c366"


def test_everything_goes_into_the_key() -> None:
    keys = {
        derive(configured, host, nqn).key
        for configured in (CONFIGURED, tlspsk.generate())
        for host in (HOST, "nqn.other")
        for nqn in (NQN, "nqn.other")
    }
    assert len(keys) == 8
    assert {len(key) for key in keys} == {32}
    assert derive(CONFIGURED, HOST, NQN) == derive(CONFIGURED, HOST, NQN)
    assert tlspsk.generate() != tlspsk.generate()


def test_a_key_shows_nowhere() -> None:
    psk = derive(CONFIGURED, HOST, NQN)
    assert repr(psk) == f"TlsPsk(identity={psk.identity!r})"
    for configured, host in ((CONFIGURED[:-1], HOST), (CONFIGURED, "a b"), (CONFIGURED, ""), (CONFIGURED, "x" * 224)):
        with pytest.raises(ValueError, match=r"32 bytes|NQN") as caught:
            derive(configured, host, NQN)
        assert configured.hex()[:16] not in str(caught.value)


@pytest.mark.parametrize(
    ("identity", "names"),
    [
        (derive(CONFIGURED, HOST, NQN).identity, (HOST, NQN)),
        (f"NVMe0R01 {HOST} {NQN}", (HOST, NQN)),
        (f"NVMe1G02 {HOST} {NQN} digest=", (HOST, NQN)),
        (f"NVMe1R01 {HOST}", None),
        ("opal-boot-pin", None),
        ("", None),
    ],
)
def test_names_of_an_identity(identity: str, names: tuple[str, str] | None) -> None:
    assert names_of(identity) == names
