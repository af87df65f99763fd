from __future__ import annotations

import io

import pytest

from kubeflash.cli.terminal import NARROW, Terminal, clean, shorten


class Tty(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("stream", "wanted", "environment", "coloured"),
    [
        (Tty(), "auto", {}, True),
        (Tty(), "auto", {"NO_COLOR": "1"}, False),
        (Tty(), "auto", {"NO_COLOR": ""}, True),
        (Tty(), "auto", {"TERM": "dumb"}, False),
        (Tty(), "always", {"NO_COLOR": "1"}, True),
        (Tty(), "never", {}, False),
        (io.StringIO(), "auto", {}, False),
        (io.StringIO(), "always", {}, True),
    ],
)
def test_colour_only_on_a_terminal_that_wants_it(monkeypatch, stream, wanted, environment, coloured):
    for name in ("NO_COLOR", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    terminal = Terminal.of(stream, wanted)
    assert terminal.coloured is coloured
    assert (terminal.paint("x", "red") == "x") is not coloured


def test_what_is_no_terminal_has_eighty_columns(monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    assert Terminal.of(io.StringIO()).columns == NARROW
    monkeypatch.setenv("COLUMNS", "120")
    assert Terminal.of(io.StringIO()).columns == 120


def test_a_device_cannot_command_the_terminal():
    assert clean("SSD\x1b[2J\r\n\u202e\x9b31m") == "SSD�[2J����31m"
    assert clean("SAMSUNG MZWLO3T8 é 三星") == "SAMSUNG MZWLO3T8 é 三星"


def test_a_table_fits_and_wraps_its_last_column():
    words = "a reason that is much longer than what is left of the line, and so goes on in the next one"
    lines = Terminal(60).table(("GPU", "WHY"), [[("4e:00.0", "green"), (words, None)]])
    assert lines[0] == "GPU      WHY"
    assert max(map(len, lines)) <= 60
    assert " ".join(" ".join(lines[1:]).split()) == f"4e:00.0 {words}"


def test_colours_do_not_move_columns():
    row = [("PIX", "green"), ("yes", "red"), ("why", None)]
    plain = Terminal(80).table(("A", "B", "C"), [row])
    coloured = Terminal(80, coloured=True).table(("A", "B", "C"), [row])
    assert coloured[1] == "\x1b[32mPIX\x1b[0m  \x1b[31myes\x1b[0m  why"
    assert plain[1] == "PIX  yes  why"


@pytest.mark.parametrize(("text", "width", "expected"), [("abc", 3, "abc"), ("abcd", 3, "ab…"), ("abcd", 0, "…")])
def test_shortened_text_says_so(text: str, width: int, expected: str):
    assert shorten(text, width) == expected
