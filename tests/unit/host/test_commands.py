from __future__ import annotations

import os
import time

import pytest

from kubeflash.host.commands import PACKAGES, CommandFailed, CommandTimedOut, Output, ToolMissing, run
from support.commands import CODE, programs


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


def test_every_program_that_is_run_has_a_package_to_name():
    used = programs()
    assert {"sfdisk", "partx", "nvme"} <= set(used)
    assert set(used) - set(PACKAGES) == set(), used


def test_programs_are_run_in_one_place():
    importers = {str(path.relative_to(CODE)) for path in CODE.rglob("*.py") if "import subprocess" in path.read_text()}
    assert importers == {"host/commands.py", "cli/completion.py"}  # the latter asks kubectl, on a user's machine


@pytest.mark.parametrize(
    "body", ["run(argv)", "run([tool, '-a'])", "argv = ['a'] if x else ['b']\n    run(argv)", "run(make())"]
)
def test_a_program_that_cannot_be_told_from_the_code_is_not_passed_over(tmp_path, body):
    code = f"from kubeflash.host.commands import run\ndef work(argv, tool, x):\n    {body}\n"
    (tmp_path / "module.py").write_text(code)
    with pytest.raises(ValueError, match=r"module\.py:\d: which program"):
        programs(tmp_path)
