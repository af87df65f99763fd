"""`make bench`: what KubeFlash costs and how long things take, on the lab's servers.

Emulated machines are slow and noisy: ratios within one run mean something, absolute figures little. Nothing here is an
assertion. Results go to bench/results.json, and as a table to stdout.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

from fleet import NAMESPACE, REPO, Fleet, attachment, is_ready, pool, volume
from kubeflash.api.v1alpha1 import FlashVolume
from kubeflash.kube.client import Client, load_configuration
from lab import image
from lab.errors import LabTimeout
from lab.lab import Lab
from lab.servers import boot
from results import report

IDLE_SECONDS = 60
REPEATS = 3
FIO = (
    "fio --name=x --filename={device} --rw={rw} --bs={bs} --iodepth=8 --ioengine=libaio --direct=1 "
    "--runtime=8 --time_based --size=256M --output-format=json"
)


def cpu_seconds(stat: str, ticks: int) -> float:
    """User and system time in /proc/PID/stat, in seconds."""
    fields = stat.rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / ticks


def rss_mib(status: str) -> float:
    """VmRSS in /proc/PID/status, in MiB."""
    return next(int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmRSS"))


def idle(fleet: Fleet) -> dict[str, float]:
    """CPU in percent of one core, and memory, of controller and agent while nothing changes."""
    server = fleet.servers["gpu-a"]
    agent = server.service_pid("agent")
    assert fleet.controller is not None
    controller = Path("/proc") / str(fleet.controller.pid)

    def read() -> tuple[float, float]:
        remote = server.run(f"cat /proc/{agent}/stat").stdout_text
        return (
            cpu_seconds((controller / "stat").read_text(), os.sysconf("SC_CLK_TCK")),
            cpu_seconds(remote, 100),
        )

    time.sleep(20)  # what starting set off is over
    before, began = read(), time.monotonic()
    time.sleep(IDLE_SECONDS)
    after, span = read(), time.monotonic() - began
    return {
        "controller_idle_cpu_percent": 100 * (after[0] - before[0]) / span,
        "agent_idle_cpu_percent_emulated": 100 * (after[1] - before[1]) / span,
        "controller_rss_mib": rss_mib((controller / "status").read_text()),
        "agent_rss_mib": rss_mib(server.run(f"cat /proc/{agent}/status").stdout_text),
    }


def median(action: Callable[[int], float]) -> float:
    """The median of several runs, in seconds."""
    return statistics.median(action(number) for number in range(REPEATS))


def apply_to_ready(fleet: Fleet, number: int) -> float:
    """Seconds from `kubectl apply` of a volume to Ready, looked for every 20 ms."""
    name = f"bench-{number}"
    client = Client(load_configuration(str(fleet.lab.control_plane.kubeconfig())))
    try:
        began = time.monotonic()
        fleet.apply(volume(name, "64Mi", pool="bench", node="gpu-a", ssd="KFA0-1"))
        while not is_ready(client.get(FlashVolume.info, name, NAMESPACE)):
            time.sleep(0.02)
            if time.monotonic() - began > 120:
                raise LabTimeout(f"{name} is not Ready after 120 s")
        return time.monotonic() - began
    finally:
        client.close()


SHELL = """set -e
disk=$(for d in /sys/class/nvme/nvme*; do if grep -q '^KFA0 *$' $d/serial; then ls -d $d/nvme*n*; fi; done)
disk=/dev/${disk##*/} id=$(cat /proc/sys/kernel/random/uuid)
begin=$(date +%s%N)
exec 9< $disk; flock 9
sfdisk --json $disk > /tmp/table
start=$(python3 -S -c "import json; p = json.load(open('/tmp/table'))['partitiontable']['partitions']
print(max(x['start'] + x['size'] for x in p))")
nr=$(python3 -S -c "import json; p = json.load(open('/tmp/table'))['partitiontable']['partitions']
print(1 + max(int(x['node'].rsplit('p', 1)[1]) for x in p))")
line="$nr : start=$start, size=131072, type=7d0f3c2e-5b1a-4f7e-9c7b-6b7562766f6c, uuid=$id, name=$id"
options="--quiet --no-reread --no-tell-kernel --wipe never --wipe-partitions never"
echo "$line" | sfdisk $options --append $disk
sfdisk --json $disk | grep -qi $id
partx -a --nr $nr $disk
until [ -e ${disk}p$nr ]; do sleep 0.02; done
end=$(date +%s%N)
partx -d --nr $nr $disk; sfdisk $options --delete $disk $nr
echo $(( (end - begin) / 1000000 ))
"""
"""The same steps by hand, in the same server: lock, read, append, read back, tell the kernel, wait for the device."""


def by_shell(fleet: Fleet, _: int) -> float:
    """Seconds of the same carving as a bare shell script on the server."""
    return int(fleet.servers["gpu-a"].run(SHELL, timeout=60).stdout_text.split()[-1]) / 1000


def attach_to_connected(fleet: Fleet, number: int) -> float:
    """Seconds from `kubectl apply` of a remote attachment to a device on the other server."""
    name = f"bench-{number}"
    began = time.monotonic()
    fleet.apply(attachment(name, name, "gpu-b"))
    fleet.wait_ready("flashattachment", name)
    took = time.monotonic() - began
    fleet.delete("flashattachment", name)
    return took


def kubectl_round_trip(fleet: Fleet, _: int) -> float:
    """Seconds of one `kubectl get`, which is in every figure above: the baseline."""
    began = time.monotonic()
    fleet.get("flashpool", "bench", None)
    return time.monotonic() - began


def kubectl_apply(fleet: Fleet, number: int) -> float:
    """Seconds of one `kubectl apply` of an object that nobody acts on: the API round trip in apply-to-Ready."""
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": f"trip-{number}", "namespace": NAMESPACE}}
    began = time.monotonic()
    fleet.apply(body)
    return time.monotonic() - began


def sigterm_to_exit(fleet: Fleet) -> dict[str, float]:
    """Seconds from SIGTERM to the end of the process: the agent on its emulated server, the controller here."""
    timed = "s=$(date +%s%N); sv -w 20 stop agent > /dev/null; echo $(( ($(date +%s%N) - s) / 1000000 ))"
    agent = int(fleet.servers["gpu-b"].run(timed, timeout=60).stdout_text) / 1000
    began = time.monotonic()
    fleet.stop_controller()
    return {"agent_sigterm_to_exit_s_emulated": agent, "controller_sigterm_to_exit_s": time.monotonic() - began}


def fio(fleet: Fleet, server: str, device: str) -> dict[str, float]:
    """Bandwidth in MiB/s of 1 MiB reads, and IOPS of 4 KiB random reads."""
    found = {}
    for key, rw, size in (("mib_s", "read", "1M"), ("iops", "randread", "4k")):
        text = fleet.servers[server].run(FIO.format(device=device, rw=rw, bs=size), timeout=120).stdout_text
        job = json.loads(text)["jobs"][0]["read"]
        found[key] = job["bw"] / 1024 if key == "mib_s" else job["iops"]
    return found


def data_path(fleet: Fleet) -> dict[str, float]:
    """The volume beside the raw SSD that it is on, and over the fabric beside local."""
    fleet.apply(volume("io", "512Mi", pool="bench", node="gpu-a", ssd="KFA0-1"))
    fleet.wait_ready("flashvolume", "io")
    fleet.apply(attachment("io-local", "io", "gpu-a"))
    local = fleet.wait_ready("flashattachment", "io-local")["status"]["device"]
    disk = fleet.servers["gpu-a"].run(f"lsblk -no PKNAME {local}").stdout_text.strip()
    pairs = [(f"/dev/{disk}", local), (local, f"/dev/{disk}")] * 2  # each comes first as often as the other
    found = [{device: fio(fleet, "gpu-a", device) for device in pair} for pair in pairs]
    runs = [(run[f"/dev/{disk}"], run[local]) for run in found]
    fleet.delete("flashattachment", "io-local")
    fleet.apply(attachment("io-fabric", "io", "gpu-b"))
    fabric = fio(fleet, "gpu-b", fleet.wait_ready("flashattachment", "io-fabric")["status"]["device"])
    fleet.delete("flashattachment", "io-fabric")
    fleet.delete("flashvolume", "io")
    return {
        "volume_to_raw_bandwidth_ratio": statistics.mean(own["mib_s"] / raw["mib_s"] for raw, own in runs),
        "volume_to_raw_iops_ratio": statistics.mean(own["iops"] / raw["iops"] for raw, own in runs),
        "fabric_mib_s_emulated": fabric["mib_s"],
        "fabric_iops_emulated": fabric["iops"],
    }


def main() -> int:
    """Measures everything and writes it down."""
    image.app_image(REPO, image.server_image(REPO).tree)
    with Lab(f"bench-{os.getpid()}") as lab:
        fleet = Fleet(lab, boot(lab, REPO, ("gpu-a", "gpu-b")))
        began = time.monotonic()
        fleet.start()
        for name in fleet.servers:
            fleet.wait_ready("flashnode", name, namespace=None, timeout=120)
        report({"install_to_flashnodes_ready_s": time.monotonic() - began})
        fleet.apply(pool("bench", "KFA0", "KFB0"))
        fleet.wait_ready("flashpool", "bench", namespace=None)
        report(idle(fleet))
        apply_to_ready(fleet, 99)  # claims the SSD, once
        report({"kubectl_get_s": median(lambda number: kubectl_round_trip(fleet, number))})
        carve = {
            "apply_to_ready_s": median(lambda number: apply_to_ready(fleet, number)),
            "shell_script_s": median(lambda number: by_shell(fleet, number)),
            "kubectl_apply_s": median(lambda number: kubectl_apply(fleet, number)),
        }
        ready, trip = carve["apply_to_ready_s"], carve["kubectl_apply_s"]
        report({**carve, "apply_to_ready_to_shell_ratio": (ready - trip) / carve["shell_script_s"]})
        report({"attach_to_connected_s": median(lambda number: attach_to_connected(fleet, number))})
        report(data_path(fleet))
        report(sigterm_to_exit(fleet))
    return 0


if __name__ == "__main__":
    sys.exit(main())
