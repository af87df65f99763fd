from __future__ import annotations

from base64 import b64decode, b64encode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kubeflash.domain import dhchap
from kubeflash.domain.dhchap import DhchapKeys

# `nvme gen-dhchap-key --secret=0001…1e1f --hmac=0` of nvme-cli 2.13
RECORDED = "DHHC-1:00:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh+KfiaR:"


def test_a_known_key() -> None:
    assert dhchap.encode(bytes(range(32))) == RECORDED
    dhchap.check(RECORDED)


def test_generated_keys_are_good_and_different() -> None:
    keys = {dhchap.generate() for _ in range(20)}
    assert len(keys) == 20
    for key in keys:
        dhchap.check(key)


@given(st.binary(min_size=32, max_size=32), st.integers(0, 35), st.integers(1, 255))
def test_any_damaged_byte_is_noticed(secret: bytes, place: int, change: int) -> None:
    content = bytearray(b64decode(dhchap.encode(secret).split(":")[2]))
    content[place] ^= change
    with pytest.raises(ValueError, match="checksum"):
        dhchap.check(f"DHHC-1:00:{b64encode(bytes(content)).decode()}:")


@pytest.mark.parametrize(
    "key",
    ["", "secret", "DHHC-1:00:AAAA", "DHHC-1:04:AAAA:", "DHHC-1:00:AAAA:", RECORDED + "\n", RECORDED[:-3] + "==:"],
)
def test_what_is_no_key(key: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011  the next line looks at the message
        dhchap.check(key)
    assert not key or key not in str(caught.value)


def test_keys_do_not_show() -> None:
    keys = DhchapKeys("host-secret", "controller-secret")
    for text in (repr(keys), str(keys), f"{keys}", repr([keys])):
        assert "secret" not in text
