"""What terminals, mails and pages do to text makes no difference."""

from __future__ import annotations

import html
import re
from collections.abc import Callable

import pytest

from kubeflash.topology.dump import read_dump
from kubeflash.topology.pasted import unpasted
from unit.topology.test_lspci import MACHINES, SWITCHED, places


def each(change: Callable[[str], str]) -> Callable[[str], str]:
    return lambda text: "".join(f"{change(line)}\n" for line in text.split("\n"))


WAYS: dict[str, Callable[[str], str]] = {
    "as it is": lambda text: text,
    "a prompt before and after": lambda text: f"# lspci -vvv\n{text}\n# nvidia-smi -L\nGPU 0: NVIDIA H100\n",
    "fenced": lambda text: f"My server:\n\n```console\n{text}```\nthanks\n",
    "indented": each(lambda line: f"    {line}"),
    "indented, but for empty lines": each(lambda line: f"    {line}" if line else ""),
    "indented by a tab": each(lambda line: f"\t{line}"),
    "quoted": each(lambda line: f"> {line}"),
    "quoted, ends trimmed": each(lambda line: f"> {line}".rstrip()),
    "quoted twice": each(lambda line: f">> {line}"),
    "quoted twice, apart": each(lambda line: f"> > {line}"),
    "quoted without a space": each(lambda line: f">{line}"),
    "quoted and indented": each(lambda line: f">     {line}"),
    "an indent that was lost": each(lambda line: line.lstrip()),
    "no-break spaces": lambda text: text.replace("\t", "\u00a0 \u00a0 \u00a0 \u00a0 "),
    "carriage returns": lambda text: text.replace("\n", "\r\n"),
    "carriage returns alone": lambda text: text.replace("\n", "\r"),
    "empty lines between all": lambda text: text.replace("\n", "\n\n"),
    "no empty lines": lambda text: re.sub("\n+", "\n", text),
    "colours": lambda text: re.sub(r"(?m)^(\S+)", "\x1b[1;32m\\1\x1b[0m", text),
    "HTML": lambda text: f"<pre>{html.escape(text)}</pre>",
    "HTML, quoted": each(lambda line: f'<span class="q">&gt; {html.escape(line)}</span><br>'),
    "HTML with folds": lambda text: f"<details><summary>lspci</summary>\n\n```\n{html.escape(text)}```\n</details>\n",
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("text", [SWITCHED, MACHINES["-vmm"]], ids=["-vvv", "-vmm"])
def test_the_same_machine(way: str, text: str):
    expected, found = read_dump(text.encode()), read_dump(WAYS[way](text).encode())
    assert places(found) == places(expected)
    assert {d.address: (d.class_code, d.numa_node, d.link) for d in found.devices} == {
        d.address: (d.class_code, d.numa_node, d.link) for d in expected.devices
    }
    assert found.facts == expected.facts


@pytest.mark.parametrize(
    "text", [b"", b"hello\n", b"a > b\n\tc\n", b"00:05.0 x: <access denied>\n    > 00:06.0 y: z\n"]
)
def test_what_is_not_pasted_is_left_as_it_is(text: bytes):
    assert unpasted(text) == text
