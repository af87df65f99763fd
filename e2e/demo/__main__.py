"""The demo: each step in one line of what and why, the real commands, and what came out.

Nothing is pretended: every figure printed is read back from the API server or from the virtual servers.
"""

from __future__ import annotations

import os
import signal
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from fleet import NAMESPACE, REPO, Fleet, attachment, condition, pool, volume
from lab import image
from lab.errors import LabError
from lab.lab import Lab
from lab.servers import boot

BOLD, DIM, GREEN, RESET = ("\033[1m", "\033[2m", "\033[32m", "\033[0m") if sys.stdout.isatty() else ("", "", "", "")
if os.environ.get("NO_COLOR"):
    BOLD = DIM = GREEN = RESET = ""

PICTURES = REPO / "build" / "demo"
FIO = (
    "fio --name=x --filename={device} --rw={rw} --bs={bs} --iodepth=8 --ioengine=libaio --direct=1 "
    "--runtime=3 --time_based --size=64M --output-format=terse --terse-version=3"
)
FIO_READ_KIB = 6  # terse v3: read bandwidth in KiB/s
FIO_READ_IOPS = 7

NEXT = """
What to try next, with DEMO_KEEP=1 make demo, from another terminal:
  make lab-shell                       a shell with kubectl and kubectl flash for this cluster
    kubectl get flash -A               everything of KubeFlash's
    kubectl flash topology             the servers' PCIe trees, pairs and faults
    kubectl explain flashvolume.spec   every field is explained
    kubectl describe flashpool fast    each refused SSD with its reason
  make lab-shell SERVER=gpu-a          a console on a server: lspci -tv, lsblk, nvme list
  make lab-down                        ends it all
"""


class Demo:
    """Prints, runs, times."""

    def __init__(self) -> None:
        self._fleet: Fleet | None = None
        self._number = 0

    def show(self, fleet: Fleet) -> None:
        """What the steps to come are about."""
        self._fleet = fleet

    @property
    def fleet(self) -> Fleet:
        """What it is about."""
        assert self._fleet is not None
        return self._fleet

    @contextmanager
    def step(self, title: str) -> Iterator[None]:
        """One step: its title, what happens in it, how long it took."""
        self._number += 1
        print(f"\n{BOLD}{self._number}. {title}{RESET}", flush=True)
        began = time.monotonic()
        yield
        print(f"   {DIM}{time.monotonic() - began:.1f} s{RESET}", flush=True)

    @staticmethod
    def say(text: str) -> None:
        """Something that came out."""
        print(textwrap.indent(text.rstrip(), "   "), flush=True)

    def kubectl(self, *words: str) -> None:
        """Shows a kubectl command and what it prints."""
        print(f"   {GREEN}$ kubectl {' '.join(words)}{RESET}", flush=True)
        self.say(self.fleet.kubectl(*words))

    def on(self, server: str, command: str, *, show: bool = True, timeout: float = 120) -> str:
        """Shows and runs a command on a server."""
        if show:
            print(f"   {GREEN}{server}# {command}{RESET}", flush=True)
        return self.fleet.servers[server].run(command, timeout=timeout).stdout_text

    def fio(self, server: str, device: str) -> None:
        """Reads a device: 1 MiB blocks for bandwidth, 4 KiB blocks for IOPS. Emulated: compare, do not quote."""
        wide = self.on(server, FIO.format(device=device, rw="read", bs="1M"), show=False).split(";")
        small = self.on(server, FIO.format(device=device, rw="randread", bs="4k"), show=False).split(";")
        mib, iops = int(wide[FIO_READ_KIB]) / 1024, int(small[FIO_READ_IOPS])
        self.say(
            f"fio on {server} {device}: {mib:.0f} MiB/s in 1 MiB reads, {iops} IOPS in 4 KiB random reads\n"
            "(an emulated SSD has no PCIe link to hold it up: the GB/s of the pairs are what such links would give)"
        )


def show_pictures(fleet: Fleet, demo: Demo) -> None:
    """Each server's tree and pairs on the terminal, and as a picture in a file."""
    PICTURES.mkdir(parents=True, exist_ok=True)
    for name in fleet.servers:
        demo.say(fleet.flash("topology", name, *(["--color", "always"] if BOLD else [])))
        picture = PICTURES / f"{name}.svg"
        picture.write_text(fleet.flash("topology", name, "-o", "svg"))
        demo.say(f"the same as a picture for a slide: {picture.relative_to(REPO)}\n")


def run(demo: Demo, fleet: Fleet) -> None:
    """The main job, step by step."""
    with demo.step("Two virtual GPU servers boot: PCIe switches, NVMe SSDs, stand-in GPUs, a real 6.12 kernel each"):
        fleet.servers.update(boot(fleet.lab, REPO, ("gpu-a", "gpu-b")))
        demo.say(demo.on("gpu-a", "lspci -tv"))
    with demo.step("KubeFlash is installed: CRDs and RBAC by kubectl apply, one controller, an agent on each server"):
        fleet.start()
        demo.say("waiting for both agents to tell what their servers have; emulated processors take some 30 s for it")
        for name in fleet.servers:
            fleet.wait_ready("flashnode", name, namespace=None)
        demo.kubectl("get", "flashnodes")
    with demo.step("kubectl flash topology: who hangs where in the PCIe tree, each GPU's own SSDs, and what is wrong"):
        show_pictures(fleet, demo)
    with demo.step("kubectl flash pairs: beside what resource.kubernetes.io/pcieRoot alone would say"):
        demo.say(fleet.flash("pairs", "gpu-a", "--matrix"))
        demo.say(fleet.flash("why", "gpu-a", "KFSYS"))
    with demo.step("A pool names SSDs by serial number, the system disk among them: that one is refused, untouched"):
        fleet.apply(pool("fast", "KFA0", "KFA1", "KFB0", "KFSYS"))
        fleet.wait_ready("flashpool", "fast", namespace=None)
        demo.kubectl("get", "flashpools")
        refused = (fleet.get("flashpool", "fast", None) or {})["status"].get("refused", [])
        demo.say("\n".join(f"refused {item['ssd']}: {item['reason']}" for item in refused))
    gpu = first_gpu(fleet, "gpu-a")
    with demo.step(f"A volume near GPU {gpu} of gpu-a: placed by the controller, carved by the agent as a partition"):
        fleet.apply(volume("kv-0", "512Mi", node="gpu-a", gpu=gpu))
        fleet.wait_ready("flashvolume", "kv-0")
        demo.kubectl("get", "flashvolumes", "-n", NAMESPACE, "-o", "wide")
        demo.say(demo.on("gpu-a", f"lsblk -o NAME,SIZE,PARTLABEL,PARTUUID {disk_of(fleet, 'KFA0')}"))
    with demo.step("Attached on its own server it is the local device: a file system, a file, its checksum"):
        fleet.apply(attachment("kv-0-on-a", "kv-0", "gpu-a"))
        device = fleet.wait_ready("flashattachment", "kv-0-on-a")["status"]["device"]
        demo.on("gpu-a", f"mkfs.xfs -q {device} && mkdir -p /mnt/kv && mount {device} /mnt/kv")
        demo.on("gpu-a", "dd if=/dev/urandom of=/mnt/kv/tokens bs=1M count=64 conv=fsync status=none")
        written = demo.on("gpu-a", "sha256sum < /mnt/kv/tokens").split()[0]
        demo.on("gpu-a", "umount /mnt/kv")
        demo.fio("gpu-a", device)
        fleet.delete("flashattachment", "kv-0-on-a")
    with demo.step(
        "Attached on the other server: its own subsystem, port and keys, over NVMe/TCP, authenticated both ways"
    ):
        fleet.apply(attachment("kv-0-on-b", "kv-0", "gpu-b"))
        found = fleet.wait_ready("flashattachment", "kv-0-on-b")
        device = found["status"]["device"]
        demo.kubectl("get", "flashattachments", "-n", NAMESPACE)
        demo.say(f"{found['status']['fabric']['nqn']}\nat {condition(found, 'Exported')['message']}")
        demo.on("gpu-b", f"mkdir -p /mnt/kv && mount {device} /mnt/kv")
        read = demo.on("gpu-b", "sha256sum < /mnt/kv/tokens").split()[0]
        if read != written:
            raise LabError(f"gpu-b read {read}, gpu-a wrote {written}")
        demo.say(f"sha256 {read[:16]}…: gpu-b read over the fabric what gpu-a wrote")
        demo.on("gpu-b", "umount /mnt/kv")
        demo.fio("gpu-b", device)
    with demo.step("Released in the right order: disconnected, fenced, wiped and proven zero, and only then free"):
        start = partition_start(fleet)
        fleet.delete("flashattachment", "kv-0-on-b")
        fleet.delete("flashvolume", "kv-0")
        demo.say(demo.on("gpu-a", "ls /sys/kernel/config/nvmet/subsystems /sys/kernel/config/nvmet/ports"))
        left = demo.on(
            "gpu-a",
            f"dd if={disk_of(fleet, 'KFA0')} bs=1M skip={start >> 20} count=512 status=none | tr -d '\\0' | wc -c",
        )
        demo.say(f"bytes that are not zero where the volume was: {left.strip()}")
        if left.strip() != "0":
            raise LabError("the volume's bytes were not wiped")
        demo.kubectl("get", "flashpools")


def first_gpu(fleet: Fleet, server: str) -> str:
    """Address of the first GPU of a server that has a neighbour SSD."""
    node = fleet.get("flashnode", server, None) or {}
    return next(
        str(gpu["address"])
        for gpu in node["status"]["gpus"]
        if gpu.get("nearest", {}).get("distance") in ("PIX", "PXB")
    )


def disk_of(fleet: Fleet, serial: str) -> str:
    """The device node that the SSD with this serial number has on gpu-a now."""
    command = f'for d in /sys/class/nvme/nvme*; do if grep -q "^{serial} *$" $d/serial; then ls -d $d/nvme*n*; fi; done'
    return "/dev/" + fleet.servers["gpu-a"].run(command).stdout_text.split("/")[-1].strip()


def partition_start(fleet: Fleet) -> int:
    """First byte of the demo's volume on its SSD."""
    node = fleet.get("flashnode", "gpu-a", None) or {}
    return next(int(item["start"]) for ssd in node["status"]["ssds"] for item in ssd.get("volumes", []))


def main() -> int:
    """Runs the demo; exit status 1, with what is known, when something is not as it should be."""
    began = time.monotonic()
    demo = Demo()
    kept = False
    try:
        image.app_image(REPO, image.server_image(REPO).tree)
        with ExitStack() as stack:
            with demo.step("A control plane: a real etcd and kube-apiserver, in a network namespace of the lab's own"):
                lab = stack.enter_context(Lab("lab"))
                fleet = Fleet(lab)
                demo.show(fleet)
                demo.say(fleet.kubectl("version").splitlines()[-1])
            run(demo, fleet)
            print(f"Done in {time.monotonic() - began:.0f} s.{NEXT}", flush=True)
            if os.environ.get("DEMO_KEEP"):
                kept = True
                print("It stays up: use it from another terminal. Ctrl-C, or make lab-down, ends it.", flush=True)
                signal.pause()
    except KeyboardInterrupt:
        if not kept:
            print("\nThe demo was interrupted.", file=sys.stderr)
            return 130
    except LabError as error:
        print(f"\nThe demo failed: {error}", file=sys.stderr)
        return 1
    print("Nothing is left running.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
