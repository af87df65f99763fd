"""``python -m capture gpu-a gpu-b``: what virtual servers say of themselves, kept as fixtures of the tests.

Boots each of the lab's servers, one at a time, and writes to ``tests/fixtures/captured/NAME``:

- ``sysfs.json``: the part of /sys and /proc that tells the PCIe tree, NVMe SSDs, NUMA nodes and processors. Of a path
  its text, ``{"link": TARGET}``, or ``{"base64": ..., "size": BYTES}`` of binary content without the zeroes at its end;
- ``lspci-vvv.txt``, ``lspci-vvvnn.txt``, ``lspci-vmm.txt``: as root;
- ``hwloc2.xml``, ``hwloc1.xml``: what hwloc on this machine makes of ``sysfs.json``; left alone where there is none.

``--xml-only`` makes the last ones anew without booting anything.
"""

from __future__ import annotations

import argparse
import base64
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lab import image, spec
from lab.cache import say
from lab.network import Network
from lab.servers import VirtualServer, start_all

REPO = Path(__file__).resolve().parent.parent
CAPTURED = REPO / "tests" / "fixtures" / "captured"
LSPCI = ("-vvv", "-vvvnn", "-vmm")
HWLOC = {"hwloc2.xml": "0", "hwloc1.xml": "v1"}
"""File and export flags."""

Entry = str | dict[str, Any]


def main() -> int:
    """Captures the servers that are named."""
    parser = argparse.ArgumentParser(prog="python -m capture", description="Capture the lab's servers as fixtures.")
    parser.add_argument("servers", nargs="+", help="of e2e/lab/specs, such as gpu-a")
    parser.add_argument("--xml-only", action="store_true", help="make hwloc's files of what was captured before")
    arguments = parser.parse_args()
    if not arguments.xml_only:
        capture(arguments.servers)
    for name in arguments.servers:
        make_xml(CAPTURED / name)
    return 0


def capture(names: list[str]) -> None:
    """Boots servers, one after the other, and keeps what they say."""
    base = image.server_image(REPO)
    app = image.app_image(REPO, base.tree)
    network = Network()
    run_dir = Path(tempfile.mkdtemp(prefix="kubeflash-"))  # short: unix sockets' paths are limited
    try:
        for name in names:
            one = spec.load(name)
            server = VirtualServer(one, image=base, app=app, run_dir=run_dir, network=network, hosts={one.name: one.ip})
            try:
                start_all([server], timeout=240)
                keep(server, CAPTURED / name)
                server.shut_down()
            finally:
                server.close()
            say(f"captured {name}")
    finally:
        shutil.rmtree(run_dir)


def keep(server: VirtualServer, folder: Path) -> None:
    """Writes what a server that is up says to a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    packed = json.loads(server.run(["python3", "-"], input=guest_script().encode(), timeout=300).stdout)
    (folder / "sysfs.json").write_text(json.dumps(packed, indent=0, sort_keys=True) + "\n")
    for option in LSPCI:
        (folder / f"lspci{option}.txt").write_bytes(server.run(["lspci", option], timeout=120).stdout)


def guest_script() -> str:
    """A program that prints what `collect` finds on the machine that it runs on."""
    head = "from __future__ import annotations\nimport base64, json, os, re, sys\nfrom pathlib import Path\n"
    body = "\n".join(inspect.getsource(function) for function in (collect, entry))
    return f"{head}{body}\njson.dump(collect(Path('/')), sys.stdout)\n"


def collect(root: Path) -> dict[str, Entry]:
    """What tells a machine's PCIe tree, SSDs, NUMA nodes and processors, by path below `root`."""
    of_pci = re.compile(
        r"class|vendor|device|subsystem_vendor|subsystem_device|revision|modalias|config|numa_node|local_cpus"
        r"|local_cpulist|(current|max)_link_(speed|width)|(secondary|subordinate)_bus_number|sriov_(num|total)vfs"
        r"|driver|physfn"
    )
    of_nvme = re.compile(
        r"transport|serial|model|firmware_rev|state|cntlid|cntrltype|address|subsysnqn|subsystype|nsid|size|eui|nguid"
        r"|uuid|wwid|dev|hidden|ro|partition|start|(logical|physical)_block_size|iopolicy|device"
    )
    of_system = re.compile(
        r"online|possible|present|cpulist|cpumap|distance|meminfo|has_cpu|has_memory|(physical_package|die|core)_id"
        r"|(package|core)_cpus(_list)?|(core|thread)_siblings(_list)?|hostname|osrelease|ostype"
    )
    devices = root / "sys/devices"
    wanted: list[Path] = []
    for start in (*sorted(devices.glob("pci*")), devices / "virtual/nvme-subsystem"):
        for folder, names, files in os.walk(start):
            if re.fullmatch(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]", Path(folder).name):
                attributes = of_pci
            elif "nvme" in Path(folder).relative_to(start.parent).as_posix():
                attributes = of_nvme
            else:
                continue
            wanted += [Path(folder, name) for name in (*names, *files) if attributes.fullmatch(name)]
    for pattern in (
        "bus/pci/devices/*",
        "bus/pci/slots/*/address",
        "class/nvme/*",
        "class/nvme-subsystem/*",
        "class/block/nvme*",
        "class/dmi/id/product_uuid",
    ):
        wanted += sorted(root.glob(f"sys/{pattern}"))
    for pattern in (
        "sys/devices/system/node/*",
        "sys/devices/system/node/node*/*",
        "sys/devices/system/cpu/*",
        "sys/devices/system/cpu/cpu*/topology/*",
        "proc/sys/kernel/*",
    ):
        wanted += [path for path in sorted(root.glob(pattern)) if of_system.fullmatch(path.name)]
    entries = {path.relative_to(root).as_posix(): entry(path) for path in wanted}
    return {path: found for path, found in entries.items() if found is not None}


def entry(path: Path) -> Entry | None:
    """A link, or what a file holds; None when it cannot be read or is a folder."""
    if path.is_symlink():
        return {"link": os.readlink(path)}  # noqa: PTH115  as it is written
    try:
        content = path.read_bytes()
    except OSError:
        return None
    if path.name == "meminfo":
        content = content.splitlines(keepends=True)[0]  # the rest is of the moment
    if path.name != "config":
        return content.decode(errors="replace")
    return {"base64": base64.b64encode(content.rstrip(b"\0")).decode(), "size": len(content)}


def lay_out(packed: Mapping[str, Entry], folder: Path) -> None:
    """Makes the files and links of a `sysfs.json` below a folder."""
    for name, found in packed.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(found, str):
            path.write_text(found)
        elif "link" in found:
            path.symlink_to(found["link"])
        else:
            path.write_bytes(base64.b64decode(found["base64"]).ljust(found["size"], b"\0"))


def make_xml(folder: Path) -> None:
    """Lets hwloc describe the server in a folder, if there is a hwloc."""
    lstopo = shutil.which("lstopo-no-graphics") or shutil.which("lstopo")
    if lstopo is None:
        say("there is no lstopo here: install hwloc-nox for hwloc's files")
        return
    with tempfile.TemporaryDirectory() as made:
        packed = json.loads((folder / "sysfs.json").read_text())
        kernel = {key: str(packed[f"proc/sys/kernel/{key}"]).strip() for key in ("hostname", "osrelease", "ostype")}
        # where hwloc's own hwloc-gather-topology puts what uname says
        named = f"OSName: {kernel['ostype']}\nOSRelease: {kernel['osrelease']}\nHostName: {kernel['hostname']}\n"
        lay_out({**packed, "proc/hwloc-nofile-info": named}, Path(made))
        # hwloc asks the processor it runs on, the environment and other libraries too: here sysfs alone shall speak
        environment = {"HWLOC_FSROOT": made, "HWLOC_COMPONENTS": "linux,stop", "PATH": os.defpath}
        for name, flags in HWLOC.items():
            target = Path(made, name)
            argv = [lstopo, "--whole-io", "--of", "xml", "--export-xml-flags", flags, "--force", str(target)]
            subprocess.run(argv, env=environment, check=True, timeout=60)
            shutil.copyfile(target, folder / name)


if __name__ == "__main__":
    sys.exit(main())
