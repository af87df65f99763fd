"""`make bench-fabric`: a volume over the fabric beside an export made by hand, and what KubeFlash costs meanwhile.

Both in the same run and in turn: each comes first as often as the other. Emulated machines are slow and noisy: ratios
mean something, absolute figures little. Results go to bench/results.json, and as a table to stdout.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path

from fleet import NAMESPACE, REPO, Fleet, attachment, pool, volume
from handmade import handmade
from lab import image
from lab.lab import Lab
from lab.servers import boot
from results import report
from run_bench import cpu_seconds

FIO = (
    "fio --name=x --filename={device} --rw={rw} --bs={bs} --iodepth=8 --ioengine=libaio --direct=1 "
    "--runtime=10 --time_based --size=256M --output-format=json"
)
CASES = (("read_mib_s", "read", "1M"), ("write_mib_s", "write", "1M"), ("read_iops", "randread", "4k"))


def fio(fleet: Fleet, device: str) -> dict[str, float]:
    """What each of CASES gives on gpu-b."""
    found = {}
    for key, rw, size in CASES:
        text = fleet.servers["gpu-b"].run(FIO.format(device=device, rw=rw, bs=size), timeout=120).stdout_text
        job = json.loads(text)["jobs"][0]["write" if rw == "write" else "read"]
        found[key] = job["iops"] if key.endswith("iops") else job["bw"] / 1024
    return found


def part_of(fleet: Fleet, name: str) -> str:
    """The partition of a volume on gpu-a."""
    link = fleet.get("flashvolume", name)["status"]["device"]
    return fleet.servers["gpu-a"].run(f"readlink -f {link}").stdout_text.strip()


def beside(fleet: Fleet, rounds: int) -> dict[str, float]:
    """The ratio of volume to export by hand, on two partitions of the same SSD."""
    own = fleet.wait_ready("flashattachment", "own")["status"]["device"]
    found: list[tuple[dict[str, float], dict[str, float]]] = []
    with handmade(fleet.servers["gpu-a"], fleet.servers["gpu-b"], part_of(fleet, "hand")) as hand:
        for number in range(rounds):
            order = (own, hand.device) if number % 2 == 0 else (hand.device, own)
            each = {device: fio(fleet, device) for device in order}
            found.append((each[own], each[hand.device]))
    return {
        f"fabric_to_handmade_{key}_ratio": statistics.mean(own[key] for own, _ in found)
        / statistics.mean(hand[key] for _, hand in found)
        for key, _, _ in CASES
    }


def attach(fleet: Fleet, repeats: int) -> dict[str, float]:
    """Apply-to-Ready of an attachment over the fabric, and the same steps by shell; medians, in turn."""
    ours, theirs, trips = [], [], []
    for number in range(repeats):
        began = time.monotonic()
        body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": f"trip-{number}", "namespace": NAMESPACE}}
        fleet.apply(body)
        trips.append(time.monotonic() - began)
        began = time.monotonic()
        fleet.apply(attachment(f"again-{number}", "again", "gpu-b"))
        fleet.wait_ready("flashattachment", f"again-{number}")
        ours.append(time.monotonic() - began)
        fleet.delete("flashattachment", f"again-{number}")
        with handmade(fleet.servers["gpu-a"], fleet.servers["gpu-b"], part_of(fleet, "hand")) as hand:
            theirs.append(hand.seconds)
    median, shell, trip = statistics.median(ours), statistics.median(theirs), statistics.median(trips)
    return {
        "fabric_attach_to_connected_s": median,
        "fabric_attach_by_shell_s": shell,
        "fabric_attach_to_shell_ratio": (median - trip) / shell,
    }


def cpu(fleet: Fleet) -> dict[str, float]:
    """CPU seconds so far of the controller and both agents."""
    assert fleet.controller is not None
    stat = (Path("/proc") / str(fleet.controller.pid) / "stat").read_text()
    found = {"controller": cpu_seconds(stat, os.sysconf("SC_CLK_TCK"))}
    for name, server in fleet.servers.items():
        text = server.run(f"cat /proc/{server.service_pid('agent')}/stat").stdout_text
        found[f"agent_{name[-1]}"] = cpu_seconds(text, 100)
    return found


def reads(fleet: Fleet) -> dict[str, float]:
    """Read system calls of each process so far: looking at a server takes thousands, whatever else the server does."""
    assert fleet.controller is not None
    read = {"controller": (Path("/proc") / str(fleet.controller.pid) / "io").read_text()}
    for name, server in fleet.servers.items():
        read[f"agent_{name[-1]}"] = server.run(f"cat /proc/{server.service_pid('agent')}/io").stdout_text
    return {name: int(text.split("syscr: ")[1].split()[0]) for name, text in read.items()}


def while_busy(fleet: Fleet, seconds: int) -> dict[str, float]:
    """CPU of KubeFlash's processes in percent of a core, and what they read: idle but connected, and under fio."""
    device = fleet.wait_ready("flashattachment", "own")["status"]["device"]
    found: dict[str, float] = {}
    for key in ("idle", "fio"):
        time.sleep(15)  # what came before is over
        had = reads(fleet)
        before, began = cpu(fleet), time.monotonic()
        if key == "fio":
            job = FIO.format(device=device, rw="randrw", bs="64k").replace("--runtime=10", f"--runtime={seconds}")
            fleet.servers["gpu-b"].run(f"{job} > /dev/null", timeout=seconds + 120)
        else:
            time.sleep(seconds)
        after, span = cpu(fleet), time.monotonic() - began
        found |= {f"{name}_cpu_percent_{key}": 100 * (after[name] - before[name]) / span for name in before}
        now = reads(fleet)
        found |= {f"{name}_reads_per_s_{key}": (now[name] - had[name]) / span for name in had}
    return found


def main() -> int:
    """Measures everything and writes it down."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--busy-seconds", type=int, default=300)
    parser.add_argument("--only-busy", action="store_true", help="only KubeFlash's own cost")
    options = parser.parse_args()
    image.app_image(REPO, image.server_image(REPO).tree)
    with Lab(f"bench-{os.getpid()}") as lab:
        fleet = Fleet(lab, boot(lab, REPO, ("gpu-a", "gpu-b")))
        fleet.start()
        for name in fleet.servers:
            fleet.wait_ready("flashnode", name, namespace=None, timeout=240)
        fleet.apply(pool("bench", "KFA0"))
        fleet.apply(*(volume(name, "320Mi", pool="bench", node="gpu-a") for name in ("own", "hand", "again")))
        for name in ("own", "hand", "again"):
            fleet.wait_ready("flashvolume", name)
        if not options.only_busy:
            report(attach(fleet, 5))
        fleet.apply(attachment("own", "own", "gpu-b"))
        if not options.only_busy:
            report(beside(fleet, options.rounds))
        report(while_busy(fleet, options.busy_seconds))
    return 0


if __name__ == "__main__":
    sys.exit(main())
