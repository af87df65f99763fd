"""The command line: sources told by content, formats, errors in one line, never a traceback."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from kubeflash.cli import completion
from kubeflash.cli.__main__ import main
from support.objects import gpu_json, node, ssd_json
from support.sysfs_builder import DOWNSTREAM, ROOT_PORT, UPSTREAM, MadeUpServer

COMMANDS = ["topology", "pairs", "why", "attachments", "plan", "wipe", "adopt", "purge", "check", "completion"]
SWITCH = "pci0000:4a/0000:4a:01.0/0000:4b:00.0/0000:4c:0{n}.0"
# a synthetic server
HWLOC = """<?xml version="1.0"?><!DOCTYPE topology SYSTEM "hwloc2.dtd">
<topology version="2.0"><object type="Machine" os_index="0" nodeset="0x1"><info name="HostName" value="synthetic"/>
<object type="Package" os_index="0" nodeset="0x1">
<object type="Bridge" bridge_type="0-1" bridge_pci="0000:[4a-4e]">
<object type="Bridge" bridge_type="1-1" bridge_pci="0000:[4b-4e]"
  pci_busid="0000:4a:01.0"
  pci_type="0604 [8086:352a] [8086:0000] 04">
<object type="Bridge" bridge_type="1-1" bridge_pci="0000:[4c-4e]"
  pci_busid="0000:4b:00.0"
  pci_type="0604 [1000:c030] [1000:0000] b0">
<object type="Bridge" bridge_type="1-1" bridge_pci="0000:[4d-4d]"
  pci_busid="0000:4c:00.0"
  pci_type="0604 [1000:c030] [1000:0000] b0">
<object type="PCIDev"
  pci_busid="0000:4d:00.0"
  pci_type="0302 [10de:2330] [10de:16c0] a1" pci_link_speed="63.015385"/></object>
<object type="Bridge" bridge_type="1-1" bridge_pci="0000:[4e-4e]"
  pci_busid="0000:4c:01.0"
  pci_type="0604 [1000:c030] [1000:0000] b0">
<object type="PCIDev"
  pci_busid="0000:4e:00.0"
  pci_type="0108 [144d:a824] [144d:a801] 00" pci_link_speed="7.876923"/></object>
</object></object></object></object></object></topology>
"""


def flash_node(name: str = "gpu-a") -> dict:
    made = node(
        name, 1, [gpu_json(0x12)], [ssd_json("A", 0x13), ssd_json("B", 0x23, state="Foreign", reason="mounted at /")]
    )
    return {
        "apiVersion": "kubeflash.io/v1alpha1",
        "kind": "FlashNode",
        "metadata": {"name": name},
        "status": made.status.to_json(),
    }


@pytest.fixture
def dump(tmp_path: Path) -> str:
    (tmp_path / "dump.xml").write_text(HWLOC)
    return str(tmp_path / "dump.xml")


def out(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(words) == 0
    return capsys.readouterr().out


def test_json_of_a_dump(capsys, dump):
    found = json.loads(out(capsys, "topology", "-f", dump, "-o", "json"))
    assert [item["address"] for item in found["gpus"]] == ["0000:4d:00.0"]
    assert [item["address"] for item in found["ssds"]] == ["0000:4e:00.0"]
    assert found["distances"] == [{"gpu": "0000:4d:00.0", "ssd": "0000:4e:00.0", "distance": "PIX"}]
    [pair] = found["pairs"]
    assert (pair["gpu"], pair["ssd"], pair["distance"], pair["gbps"]) == ("0000:4d:00.0", "0000:4e:00.0", "PIX", 7.877)
    assert yaml.safe_load(out(capsys, "pairs", "-f", dump, "-o", "yaml")) == found


def test_a_picture_of_a_dump(capsys, dump):
    drawn = out(capsys, "topology", "-f", dump, "-o", "svg", "--title", "Rack 7 & more")
    assert drawn.startswith("<svg")
    assert "Rack 7 &amp; more" in drawn


def test_standard_input_and_text(capsys, monkeypatch, dump):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(HWLOC.encode())))
    text = out(capsys, "topology", "-f", "-")
    assert "\x1b" not in text
    assert text == out(capsys, "topology", "-f", dump)
    assert "\x1b[32mPIX" in out(capsys, "topology", "-f", dump, "--color", "always")


def test_what_the_kernel_of_a_server_lacks_is_said(capsys, tmp_path):
    file, body = tmp_path / "node.json", flash_node()
    file.write_text(json.dumps(body))
    assert main(["topology", "-f", str(file)]) == 0
    assert "kernel cannot" not in capsys.readouterr().out
    lacks = {"available": False, "how": "there is no module nvmet-tcp: apt install linux-modules-extra-6.12"}
    body["status"]["linux"]["nvmetTcp"] = lacks
    file.write_text(json.dumps(body))
    assert main(["topology", "-f", str(file)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert f"! its kernel cannot export volumes to other servers: {lacks['how']}" in said


@pytest.mark.parametrize("form", ["json", "yaml", "list"])
def test_a_flashnode_in_a_file(capsys, tmp_path, form):
    body = flash_node() if form != "list" else {"kind": "List", "items": [flash_node()]}
    file = tmp_path / "node"
    file.write_text(yaml.safe_dump(body) if form == "yaml" else json.dumps(body))
    text = out(capsys, "pairs", "-f", str(file))
    assert "12:00.0  13:00.0  PIX" in text
    why = out(capsys, "why", "-f", str(file), "B")
    assert why.startswith("23:00.0 M 1 (B): not usable: mounted at /\n")


def test_several_servers(capsys, tmp_path, dump):
    file = tmp_path / "nodes.json"
    file.write_text(json.dumps({"kind": "List", "items": [flash_node("a"), flash_node("b")]}))
    found = json.loads(out(capsys, "pairs", "-f", str(file), "-f", dump, "-o", "json"))
    assert [item["name"] for item in found["items"]] == ["a", "b", "synthetic"]
    assert main(["topology", "-f", str(file), "-o", "svg"]) == 1
    assert "a picture shows one server: name one of a, b" in capsys.readouterr().err
    assert out(capsys, "topology", "-f", str(file), "b", "-o", "svg").startswith("<svg")
    assert [
        item["name"] for item in json.loads(out(capsys, "pairs", "-f", str(file), "b", "a", "-o", "json"))["items"]
    ] == [
        "b",
        "a",
    ]
    assert main(["why", "-f", str(file), "12:00.0"]) == 1
    assert "why looks at one server: name one of a, b, before 12:00.0" in capsys.readouterr().err
    assert out(capsys, "why", "-f", str(file), "b", "12:00.0").startswith("12:00.0")
    assert main(["pairs", "-f", str(file), "c"]) == 1
    assert "there is no server c in what was read; there are: a, b" in capsys.readouterr().err


@pytest.fixture
def machine(tmp_path: Path) -> MadeUpServer:
    made = MadeUpServer(tmp_path / "machine")
    made.numa("0-1")
    made.ports(SWITCH.format(n=0), [ROOT_PORT, UPSTREAM, DOWNSTREAM])
    made.gpu(SWITCH.format(n=0) + "/0000:4d:00.0", numa=0)
    made.ports(SWITCH.format(n=1), [DOWNSTREAM])
    made.ssd(SWITCH.format(n=1) + "/0000:4e:00.0", "SERIAL", numa=0)
    return made


@pytest.mark.parametrize("part", [".", "sys"])
def test_a_copy_of_sys_or_of_the_whole(capsys, machine, part):
    found = json.loads(out(capsys, "topology", "--sysfs", str(machine.root.path / part), "-o", "json"))
    assert found["distances"] == [{"gpu": "0000:4d:00.0", "ssd": "0000:4e:00.0", "distance": "PIX"}]
    assert found["ssds"][0]["serial"] == "SERIAL"


def test_this_very_machine(capsys):
    assert "source" in json.loads(out(capsys, "topology", "--local", "-o", "json"))
    assert out(capsys, "topology", "--local")


@pytest.mark.parametrize("name", ["4d:00.0", "0000:4d:00.0", "4D:00.0"])
def test_a_device_has_many_names(capsys, dump, name):
    assert out(capsys, "why", "-f", dump, name).startswith("4d:00.0")


ERRORS = {
    "no such file": (["-f", "/no/such/file"], "/no/such/file: No such file or directory"),
    "a folder": (["-f", "/"], "/: Is a directory"),
    "no copy of sys": (["--sysfs", "/etc"], "/etc holds neither"),
    "another server's name": (["gpu-a", "--local"], "there is no server gpu-a in what was read"),
    "no kubeconfig": (["--kubeconfig", "/no/such/kubeconfig"], "no way to the API server"),
    "an SSD as a GPU": (["--local", "--gpu", "144d:0108"], "would make GPUs of storage controllers"),
    "a rule for GPUs": (["--local", "--gpu", "nvidia"], "'nvidia' is no vendor and class"),
}


@pytest.mark.parametrize(("words", "said"), ERRORS.values(), ids=ERRORS)
def test_errors_are_one_line_and_status_one(capsys, words, said):
    assert main(["topology", *words]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert said in captured.err


CONTENTS = {
    "empty": (b"", "it is empty"),
    "prose": (b"hello world\n", "neither hwloc XML nor lspci text"),
    "binary": (b"\x7fELF\0\0", "an ELF program"),
    "truncated": (HWLOC[:900].encode(), "damaged or incomplete"),
    "a bomb": (b'<!DOCTYPE a [<!ENTITY b "c">]><topology>&b;</topology>', ""),
    "no GPU": (HWLOC.replace("0302", "0200").encode(), "there is no GPU among its"),
    "no SSD": (HWLOC.replace("0108", "0200").encode(), "there is no NVMe SSD"),
    "another kind": (b'{"kind": "Pod"}', "it holds a Pod, no FlashNode"),
    "half of JSON": (b'{"kind": "FlashNode"', "no valid JSON"),
    "deep JSON": (b'{"a":' * 100_000, "no valid JSON"),
    "YAML with aliases": (b"kind: FlashNode\nmetadata: &a {name: x}\nspec: *a\n", "aliases"),
    "a FlashNode that does not fit": (
        b'{"kind": "FlashNode", "metadata": {}}',
        "does not fit the schema: metadata.name",
    ),
    "its own answer": (b'{"gpus": [], "ssds": [], "distances": []}', "it is an answer of kubectl flash"),
    "a list of nothing": (b'{"kind": "List", "items": []}', "it holds no FlashNode"),
    "an empty FlashNode": (b'{"kind": "FlashNode", "metadata": {"name": "x"}}', "there is no GPU"),
}


@pytest.mark.parametrize(("content", "said"), CONTENTS.values(), ids=CONTENTS)
@pytest.mark.parametrize("command", ["topology", "pairs"])
def test_bad_dumps_are_one_line_and_status_one(capsys, tmp_path, command, content, said):
    file = tmp_path / "dump"
    file.write_bytes(content)
    assert main([command, "-f", str(file)]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"kubectl flash: {file}: ")
    assert captured.err.count("\n") == 1
    assert said in captured.err


def test_why_wants_a_device_that_is_there(capsys, dump):
    assert main(["why", "-f", dump, "99:00.0"]) == 1
    assert "has no GPU or SSD 99:00.0; GPUs: 4d:00.0; SSDs: 4e:00.0" in capsys.readouterr().err
    assert main(["why", "4e:00.0"]) == 1
    assert "why wants NODE DEVICE" in capsys.readouterr().err


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_examples(capsys, command):
    with pytest.raises(SystemExit, match="0"):
        main([command, "--help"])
    assert "kubectl" in capsys.readouterr().out.split("examples:")[1]


def test_as_a_module_and_into_a_pipe_that_closes(dump):
    argv = [sys.executable, "-m", "kubeflash.cli", "topology", "-f", dump]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True, env=environment)
    assert "4d:00.0" in done.stdout
    closing = subprocess.Popen([*argv, "-o", "json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    closing.stdout.close()
    assert closing.stderr.read() == b""
    assert closing.wait(60) == 0
    closing.stderr.close()


def test_output_that_cannot_be_written_is_one_line(dump):
    argv = [sys.executable, "-m", "kubeflash.cli", "topology", "-f", dump]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(argv, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stderr == "kubectl flash: the output could not be written: No space left on device\n"


def test_what_a_command_does_not_know_shows_its_own_usage(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["pairs", "--bogus"])
    said = capsys.readouterr().err
    assert said.startswith("usage: kubectl flash pairs")
    assert "unrecognized arguments: --bogus" in said


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ([""], COMMANDS),
        (["t"], ["topology"]),
        (["wipe", "--dry"], ["--dry-run"]),
        (["adopt", "--na"], ["--name", "--namespace"]),
        (["adopt", "--name", ""], []),
        (["purge", "--confirm", ""], []),
        (["completion", "z"], ["zsh"]),
        (["topology", "-o", ""], ["text", "json", "yaml", "svg"]),
        (["topology", "-f", ""], []),
        (["why", "--sys"], ["--sysfs", "--system-namespace"]),
        (["pairs", "--m"], ["--matrix"]),
        (["why", "--l"], ["--local"]),
        (["attachments", "--a"], ["--all-namespaces"]),
    ],
)
def test_what_completion_offers(capsys, words, offered):
    assert completion.candidates(words) == offered
    assert main([completion.COMMAND, *words]) == 0
    assert capsys.readouterr().out.split() == offered


def test_completion_offers_servers_and_survives_without_a_cluster(monkeypatch, tmp_path):
    kubectl = tmp_path / "kubectl"
    kubectl.write_text(
        """#!/bin/sh
        case "$*" in
            "get flashnodes -o name "*) printf 'flashnode.kubeflash.io/gpu-a\\nflashnode.kubeflash.io/gpu-b\\n';;
            "get flashnode gpu-b -o jsonpath="*) echo 0000:4e:00.0 10000:e1:00.0;;
            "get flashnode gpu-b -o go-template="*labelled*) echo MOVED 6f3c;;
            "get flashnode gpu-b -o go-template="*) echo MINE MOVED 6f3c;;
            "get flashvolumes --all-namespaces "*) echo serving/kv-1 serving/kv-0;;
            "get flashattachments --all-namespaces "*) echo serving/kv-1-on-b serving/kv-0-on-b;;
            "get namespaces -o name "*) echo namespace/serving;;
        esac
        """
    )
    kubectl.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    assert completion.candidates(["topology", ""]) == ["gpu-a", "gpu-b"]
    assert completion.candidates(["topology", "gpu-a", ""]) == ["gpu-b"]
    assert completion.candidates(["why", "gpu-b"]) == ["gpu-b"]
    assert completion.candidates(["why", "--color", "never", "gpu-b", ""]) == ["10000:e1:00.0", "4e:00.0"]
    assert completion.candidates(["why", "v"]) == ["volume"]
    assert completion.candidates(["why", "volume", ""]) == ["serving/kv-0", "serving/kv-1"]
    assert completion.candidates(["why", "a"]) == ["attachment"]
    assert completion.candidates(["why", "attachment", "serving/kv-0"]) == ["serving/kv-0-on-b"]
    assert completion.candidates(["attachments", ""]) == ["serving/kv-0-on-b", "serving/kv-1-on-b"]
    assert completion.candidates(["attachments", "serving/kv-0-on-b", ""]) == []
    assert completion.candidates(["attachments", "-n", ""]) == ["serving"]
    assert completion.candidates(["wipe", ""]) == ["gpu-a", "gpu-b"]
    assert completion.candidates(["wipe", "gpu-b", ""]) == ["6f3c", "MINE", "MOVED"]
    assert completion.candidates(["adopt", "gpu-b", ""]) == ["6f3c", "MOVED"]
    assert completion.candidates(["adopt", "gpu-b", "6f3c", "-n", ""]) == ["serving"]
    assert completion.candidates(["purge", "gpu-b", ""]) == []
    kubectl.unlink()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert completion.candidates(["topology", ""]) == []


@pytest.mark.parametrize(("shell", "check"), [("bash", ["bash", "-n"]), ("zsh", None), ("fish", None)])
def test_completion_scripts(capsys, tmp_path, shell, check):
    script = out(capsys, "completion", shell)
    assert "__complete" in script
    if check is not None:
        file = tmp_path / "completion"
        file.write_text(script)
        subprocess.run([*check, file], check=True, timeout=10)


def test_kubectl_is_told_not_to_offer_files(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["kubectl_complete-flash", "topology", "-o", "s"])
    assert completion.for_kubectl() == 0
    assert capsys.readouterr().out == "svg\n:4\n"
