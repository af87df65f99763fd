"""The agent's own files: one agent a server, a key that nobody else reads."""

from __future__ import annotations

import os
import stat

import pytest

from kubeflash.agent import state
from kubeflash.agent.state import AgentRunning, StateUnusable, load_private_key, only_agent, read_private_key


def test_a_second_agent_is_told_who_the_first_one_is(tmp_path):
    with only_agent(tmp_path), pytest.raises(AgentRunning, match=f"pid {os.getpid()}"), only_agent(tmp_path):
        pass
    with only_agent(tmp_path):  # the lock ends with its holder
        pass


def test_the_key_is_made_once_and_is_root_s_alone(tmp_path):
    key = load_private_key(tmp_path / "state")
    assert load_private_key(tmp_path / "state") == key
    file = tmp_path / "state" / "private.key"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700


def test_reading_the_key_makes_none(tmp_path):
    assert read_private_key(tmp_path / "state") is None
    assert not (tmp_path / "state").exists()
    assert read_private_key(tmp_path) is None
    assert load_private_key(tmp_path) == read_private_key(tmp_path)


def test_a_damaged_key_is_said_and_not_replaced(tmp_path):
    (tmp_path / "private.key").write_bytes(b"short")
    with pytest.raises(StateUnusable, match="holds 5 bytes"):
        load_private_key(tmp_path)
    assert (tmp_path / "private.key").read_bytes() == b"short"


def test_a_crash_while_the_key_is_written_leaves_no_half_key(tmp_path, monkeypatch):
    def crash(_):
        raise OSError(5, "power cut")

    monkeypatch.setattr(state.os, "fsync", crash)
    with pytest.raises(StateUnusable, match="power cut"):
        load_private_key(tmp_path)
    assert not (tmp_path / "private.key").exists()
