from __future__ import annotations

import os
import time

import pytest

from kubeflash.host.commands import CommandFailed, CommandTimedOut, Output, ToolMissing, run


def test_output_and_input() -> None:
    assert run(["sh", "-c", "cat; echo err >&2"], timeout=10, input="in") == Output("in", "err\n", 0)


def test_locale_is_c() -> None:
    assert run(["sh", "-c", "echo $LC_ALL"], timeout=10).stdout == "C\n"


def test_failure_says_what_was_said() -> None:
    with pytest.raises(CommandFailed) as caught:
        run(["sh", "-c", "echo 'no such disk' >&2; exit 3"], timeout=10)
    assert (caught.value.status, caught.value.stderr) == (3, "no such disk")
    assert "no such disk" in str(caught.value)


def test_statuses_that_are_no_failure() -> None:
    assert run(["sh", "-c", "exit 2"], timeout=10, ok=(0, 2)).status == 2


def test_missing_tool_names_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ToolMissing, match="install the package util-linux"):
        run(["partx", "--version"], timeout=10)


def test_a_command_has_open_what_it_shall_hold_and_nothing_else() -> None:
    held, other = os.pipe()
    try:
        assert run(["sh", "-c", f"[ -e /proc/self/fd/{held} ]"], timeout=10, holds=[held]).status == 0
        assert run(["sh", "-c", f"[ -e /proc/self/fd/{other} ]"], timeout=10, holds=[held], ok=(1,)).status == 1
    finally:
        os.close(held)
        os.close(other)


def test_limit() -> None:
    began = time.monotonic()
    with pytest.raises(CommandTimedOut) as caught:
        run(["sleep", "30"], timeout=0.1)
    assert not caught.value.stuck
    assert time.monotonic() - began < 5
