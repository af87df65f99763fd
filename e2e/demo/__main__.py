"""The demo: each step in one line of what and why, the real commands, and what came out.

Nothing is pretended: every figure printed is read back from the API server or from the virtual servers.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import yaml

import cluster
from cluster import CHARTS, RELEASE, SYSTEM, VALUES, Cluster
from fleet import JSON, NAMESPACE, REPO, attachment, condition, pool, volume
from handmade import handmade
from kubeflash import __version__
from lab.errors import LabError
from lab.lab import Lab
from lab.node import NodeDisk

BOLD, DIM, GREEN, RESET = ("\033[1m", "\033[2m", "\033[32m", "\033[0m") if sys.stdout.isatty() else ("", "", "", "")
if os.environ.get("NO_COLOR"):
    BOLD = DIM = GREEN = RESET = ""

PICTURES = REPO / "build" / "demo"
FIO = (
    "fio --name=x --filename={device} --rw={rw} --bs={bs} --iodepth=8 --ioengine=libaio --direct=1 "
    "--runtime=3 --time_based --size=64M --output-format=terse --terse-version=3"
)
GROWN = 768 << 20
IMAGE = f"kubeflash:{__version__}"
FIO_READ_KIB = 6  # terse v3: read bandwidth in KiB/s
FIO_READ_IOPS = 7

NEXT = """
What to try next, with DEMO_KEEP=1 make demo, from another terminal:
  make lab-shell                       a shell with kubectl and kubectl flash for this cluster
    kubectl get flash -A               everything of KubeFlash's
    kubectl flash topology             the servers' PCIe trees, pairs and faults
    kubectl explain flashvolume.spec   every field is explained
    kubectl describe flashpool fast    each refused SSD with its reason
    kubectl flash wipe gpu-a KFSYS-1 --dry-run  what is on an SSD, and why it is not wiped
    kubectl flash purge gpu-b --dry-run         what it would mean if a server were lost for good
    kubectl flash purge --all --dry-run         what would go if all of KubeFlash's were to go
    helm get notes kubeflash -n kubeflash-system   what the installation says of itself
    kubectl flash attachments -A                what is attached where, live or not, and how it is guarded
  make lab-shell SERVER=gpu-a          a console on a server: lspci -tv, lsblk, nvme list
  make lab-down                        ends it all
"""


class Demo:
    """Prints, runs, times."""

    def __init__(self) -> None:
        self._fleet: Cluster | None = None
        self._number = 0

    def show(self, fleet: Cluster) -> None:
        """What the steps to come are about."""
        self._fleet = fleet

    @property
    def fleet(self) -> Cluster:
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

    def kubectl(self, *words: str, timeout: float = 60) -> None:
        """Shows a kubectl command and what it prints."""
        print(f"   {GREEN}$ {shlex.join(['kubectl', *words])}{RESET}", flush=True)
        self.say(self.fleet.kubectl(*words, timeout=timeout))

    def helm(self, *words: str) -> None:
        """Shows a helm command and what it prints."""
        shown = [word.replace(f"{REPO}/", "") for word in words]
        print(f"   {GREEN}$ {shlex.join(['helm', *shown])}{RESET}", flush=True)
        self.say(self.fleet.helm(*words).stdout_text)

    def apply(self, *objects: JSON) -> None:
        """Shows objects and applies them by kubectl."""
        manifest = yaml.safe_dump_all(objects, sort_keys=False)
        print(f"   {GREEN}$ kubectl apply -f - <<END{RESET}", flush=True)
        self.say(manifest)
        self.fleet.kubectl("apply", "-f", "-", stdin=manifest)

    def flash(self, *words: str, timeout: float = 60) -> None:
        """Shows a `kubectl flash` command and what it prints."""
        print(f"   {GREEN}$ kubectl flash {' '.join(words)}{RESET}", flush=True)
        self.say(self.fleet.flash(*words, timeout=timeout))

    def on(self, server: str, command: str, *, show: bool = True, timeout: float = 120) -> str:
        """Shows and runs a command on a server."""
        if show:
            print(f"   {GREEN}{server}# {command}{RESET}", flush=True)
        return self.fleet.servers[server].run(command, timeout=timeout).stdout_text

    def fio(self, server: str, device: str) -> tuple[float, int]:
        """Reads a device: MiB/s in 1 MiB blocks, IOPS in random 4 KiB blocks. Emulated: compare, do not quote."""
        wide = self.on(server, FIO.format(device=device, rw="read", bs="1M"), show=False).split(";")
        small = self.on(server, FIO.format(device=device, rw="randread", bs="4k"), show=False).split(";")
        mib, iops = int(wide[FIO_READ_KIB]) / 1024, int(small[FIO_READ_IOPS])
        self.say(f"fio on {server} {device}: {mib:.0f} MiB/s in 1 MiB reads, {iops} IOPS in 4 KiB random reads")
        return mib, iops

    def fio_beside(self, server: str, device: str, raw: str) -> None:
        """Reads a volume and the raw device that it is on, in turn, and compares."""
        (own_mib, own_iops), (raw_mib, raw_iops) = self.fio(server, device), self.fio(server, raw)
        ratios = f"{own_mib / raw_mib:.2f} of the bandwidth, {own_iops / raw_iops:.2f} of the IOPS"
        self.say(
            f"the volume beside the raw device: {ratios} (noisy here); a partition is the kernel's own\n"
            "(an emulated SSD has no PCIe link to hold it up: the GB/s of the pairs are what such links would give)"
        )

    def fio_beside_handmade(self, device: str, disk: str) -> None:
        """Reads a volume over the fabric and an export made by hand, in turn, and compares."""
        a, b = self.fleet.servers["gpu-a"], self.fleet.servers["gpu-b"]
        with handmade(a, b, disk) as hand:
            order = (device, hand.device, hand.device, device)  # neither is always the first
            found = [(name == device, *self.fio("gpu-b", name)) for name in order]
        own_mib, own_iops = (sum(item[column] for item in found if item[0]) for column in (1, 2))
        hand_mib, hand_iops = (sum(item[column] for item in found if not item[0]) for column in (1, 2))
        ratios = f"{own_mib / hand_mib:.2f} of the bandwidth, {own_iops / hand_iops:.2f} of the IOPS"
        self.say(f"the volume beside the export by hand: {ratios} (noisy here): the same kernel does both")

    @contextmanager
    def writing(self, server: str, *, seconds: int = 20) -> Iterator[None]:
        """Writes and verifies on a server meanwhile; ends the demo if a write or a check failed."""
        fio = (
            "fio --name=w --filename=/mnt/kv/writing --rw=randwrite --bs=64k --size=64M --direct=1 --ioengine=libaio "
            f"--iodepth=4 --rate_iops=20 --verify=crc32c --verify_backlog=64 --time_based --runtime={seconds}"
        )
        self.on(server, f"nohup {fio} > /tmp/writing.log 2>&1 & echo $! > /tmp/writing.pid; sleep 3")
        yield
        done = "timeout 240 sh -c 'while kill -0 $(cat /tmp/writing.pid) 2>/dev/null; do sleep 0.5; done'"
        self.on(server, done, show=False, timeout=260)
        last = self.on(
            server, "grep -c 'err= 0' /tmp/writing.log; grep -E 'err=|write: IO' /tmp/writing.log", show=False
        )
        self.say(last)
        if not last.startswith("1"):
            raise LabError(f"writing failed meanwhile: {last}")


def show_pictures(fleet: Cluster, demo: Demo) -> None:
    """Each server's tree and pairs on the terminal, and as a picture in a file."""
    PICTURES.mkdir(parents=True, exist_ok=True)
    for name in fleet.servers:
        demo.say(fleet.flash("topology", name, *(["--color", "always"] if BOLD else [])))
        picture = PICTURES / f"{name}.svg"
        picture.write_text(fleet.flash("topology", name, "-o", "svg"))
        demo.say(f"the same as a picture for a slide: {picture.relative_to(REPO)}\n")


def run(demo: Demo, fleet: Cluster, disk: NodeDisk) -> None:
    """The main job, step by step."""
    with demo.step(
        "Two virtual GPU servers boot: PCIe switches, NVMe SSDs, stand-in GPUs, a 6.12 kernel and a kubelet"
    ):
        fleet.boot(disk)
        demo.say(demo.on("gpu-a", "lspci -tv"))
        demo.kubectl("get", "nodes", "-o", "wide")
    began = time.monotonic()
    with demo.step("KubeFlash is installed by Helm: the CRDs, then controllers and an agent on each server"):
        demo.apply(cluster.system_namespace(SYSTEM))
        demo.helm("install", "kubeflash-crds", str(CHARTS / "kubeflash-crds"), "-n", SYSTEM)
        demo.helm("install", RELEASE, str(CHARTS / "kubeflash"), "-n", SYSTEM, *VALUES)
        demo.say("waiting for the pods; emulated processors take some 20 s to start each process")
        fleet.wait_rolled_out()
        demo.kubectl("get", "pods", "-n", SYSTEM, "-o", "wide")
        for name in fleet.servers:
            fleet.wait_ready("flashnode", name, namespace=None)
        demo.kubectl("get", "flashnodes")
    with demo.step("Is it sound? kubectl flash check says what is missing where; helm test asks the same"):
        demo.flash("check", "--wait", "1m", timeout=90)
        demo.kubectl("get", "nodes", "-L", "kubeflash.io/target-tcp,kubeflash.io/authentication")
    with demo.step("kubectl flash topology: who hangs where in the PCIe tree, each GPU's own SSDs, and what is wrong"):
        show_pictures(fleet, demo)
    with demo.step("kubectl flash pairs: beside what resource.kubernetes.io/pcieRoot alone would say"):
        demo.say(fleet.flash("pairs", "gpu-a", "--matrix"))
        demo.say(fleet.flash("why", "gpu-a", "KFSYS"))
    with demo.step("A pool names SSDs by serial number, the system disk among them: that one is refused, untouched"):
        demo.apply(pool("fast", "KFA0", "KFA1", "KFB0", "KFSYS"))
        fleet.wait_ready("flashpool", "fast", namespace=None)
        demo.kubectl("get", "flashpools")
        refused = (fleet.get("flashpool", "fast", None) or {})["status"].get("refused", [])
        demo.say("\n".join(f"refused {item['ssd']}: {item['reason']}" for item in refused))
    gpu = first_gpu(fleet, "gpu-a")
    with demo.step(f"A volume near GPU {gpu} of gpu-a: placed by the controller, carved by the agent as a partition"):
        fleet.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
        demo.apply(volume("kv-0", "512Mi", node="gpu-a", gpu=gpu))
        fleet.wait_ready("flashvolume", "kv-0")
        demo.say(f"from helm install to the first volume: {time.monotonic() - began:.0f} s")
        demo.kubectl("get", "flashvolumes", "-n", NAMESPACE, "-o", "wide")
        demo.say(demo.on("gpu-a", f"lsblk -o NAME,SIZE,PARTLABEL,PARTUUID {disk_of(fleet, 'KFA0')}"))
        demo.flash("why", "volume", "kv-0", "-n", NAMESPACE)
    with demo.step("Attached on its own server it is the local device: a file system, a file, its checksum, its speed"):
        fleet.apply(attachment("kv-0-on-a", "kv-0", "gpu-a"))
        device = fleet.wait_ready("flashattachment", "kv-0-on-a")["status"]["device"]
        demo.on("gpu-a", f"mkfs.xfs -q {device} && mkdir -p /mnt/kv && mount {device} /mnt/kv")
        demo.on("gpu-a", "dd if=/dev/urandom of=/mnt/kv/tokens bs=1M count=64 conv=fsync status=none")
        written = checksum(demo, "gpu-a")
        demo.fio_beside("gpu-a", device, disk_of(fleet, "KFA0"))
    with demo.step(
        "It grows while it is mounted: quota and the space behind it are asked, the partition grows, then xfs"
    ):
        demo.say(demo.on("gpu-a", "df -h /mnt/kv"))
        patch = '{"spec":{"size":"768Mi"}}'
        demo.kubectl("patch", "flashvolume", "kv-0", "-n", NAMESPACE, "--type=merge", "-p", patch)
        fleet.wait("flashvolume", "kv-0", lambda it: it["status"].get("bytes") == GROWN)
        demo.on("gpu-a", "xfs_growfs /mnt/kv > /dev/null")
        demo.say(demo.on("gpu-a", "df -h /mnt/kv"))
        must_be_same(demo, checksum(demo, "gpu-a"), written, "after growing")
    with demo.step("Every agent is replaced while gpu-a writes: the data path is the kernel's, nothing is noticed"):
        with demo.writing("gpu-a", seconds=60):
            demo.kubectl("rollout", "restart", "daemonset/kubeflash-agent", "-n", SYSTEM)
            fleet.wait_rolled_out()
        must_be_same(demo, checksum(demo, "gpu-a"), written, "after the roll-out")
        demo.on("gpu-a", "umount /mnt/kv")
        fleet.delete("flashattachment", "kv-0-on-a")
    with demo.step(
        "Attached on the other server: its own subsystem, port and keys, over NVMe/TCP, authenticated both ways"
    ):
        demo.apply(attachment("kv-0-on-b", "kv-0", "gpu-b"))
        found = fleet.wait_ready("flashattachment", "kv-0-on-b")
        device = found["status"]["device"]
        demo.kubectl("get", "flashattachments", "-n", NAMESPACE)
        demo.say(f"{found['status']['fabric']['nqn']}\nat {condition(found, 'Exported')['message']}")
        demo.flash("why", "attachment", "kv-0-on-b", "-n", NAMESPACE)
    with demo.step(
        "As fast as an export made by hand: fio on both, in the same run; the administrator's own stays his"
    ):
        demo.fio_beside_handmade(device, disk_of(fleet, "KFA2"))
    with demo.step("A pod on gpu-b mounts it: it has what gpu-a wrote"):
        demo.apply(reader("gpu-b", device))
        succeeded = "--for=jsonpath={.status.phase}=Succeeded"
        demo.kubectl("wait", "-n", NAMESPACE, "pod/reader", succeeded, "--timeout=180s", timeout=190)
        must_be_same(demo, fleet.kubectl("logs", "-n", NAMESPACE, "reader").split()[0], written, "read by the pod")
    with demo.step("Mounted by the server itself, to write for a while"):
        demo.on("gpu-b", f"mkdir -p /mnt/kv && mount {device} /mnt/kv")
        must_be_same(demo, checksum(demo, "gpu-b"), written, "read by gpu-b over the fabric")
    with demo.step("The cable is cut while gpu-b writes: I/O waits, nothing fails; mended, it goes on by itself"):
        with demo.writing("gpu-b"):
            fleet.servers["gpu-a"].cut_cable()
            fleet.wait("flashattachment", "kv-0-on-b", is_reconnecting)
            demo.flash("attachments", "-n", NAMESPACE)
            fleet.servers["gpu-a"].mend_cable()
            fleet.wait_ready("flashattachment", "kv-0-on-b")
            demo.flash("attachments", "-n", NAMESPACE)
        must_be_same(demo, checksum(demo, "gpu-b"), written, "after the cut")
    with demo.step(
        "The server that has the SSD reboots while gpu-b writes: its agent exports anew, I/O goes on by itself"
    ):
        with demo.writing("gpu-b"):
            fleet.servers["gpu-a"].reboot()
            fleet.wait_ready("flashattachment", "kv-0-on-b", timeout=300)  # containerd, kubelet, the agent's pod
        demo.flash("attachments", "-n", NAMESPACE)
        must_be_same(demo, checksum(demo, "gpu-b"), written, "after the reboot of gpu-a")
        demo.on("gpu-b", "umount /mnt/kv")
        demo.kubectl("get", "events", "-n", NAMESPACE, "--field-selector=involvedObject.name=kv-0-on-b")
    with demo.step("Released in the right order: disconnected, fenced, wiped and proven zero, and only then free"):
        start = partition_start(fleet)
        fleet.delete("flashattachment", "kv-0-on-b")
        fleet.delete("flashvolume", "kv-0")
        demo.say(demo.on("gpu-a", "ls /sys/kernel/config/nvmet/subsystems /sys/kernel/config/nvmet/ports"))
        left = demo.on(
            "gpu-a",
            f"dd if={disk_of(fleet, 'KFA0')} bs=1M skip={start >> 20} count={GROWN >> 20} status=none "
            "| tr -d '\\0' | wc -c",
            timeout=300,
        )
        demo.say(f"bytes that are not zero where the volume was: {left.strip()}")
        if left.strip() != "0":
            raise LabError("the volume's bytes were not wiped")
        demo.kubectl("get", "flashpools")
    with demo.step(
        "Removed: helm uninstall leaves what is on the disks and says so; purge --all before it leaves nothing"
    ):
        demo.flash("purge", "--all", "--dry-run")
        if not os.environ.get("DEMO_KEEP"):
            demo.helm("uninstall", RELEASE, "-n", SYSTEM)


def reader(node: str, device: str) -> JSON:
    """A pod that mounts a block device and prints its file's checksum: privileged, as there is no CSI driver yet."""
    script = "mkdir /run/kv && mount -o ro,norecovery /dev/kv /run/kv && sha256sum < /run/kv/tokens"
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "reader", "namespace": NAMESPACE},
        "spec": {
            "nodeName": node,
            "restartPolicy": "Never",
            "containers": [
                {
                    "name": "reader",
                    "image": IMAGE,
                    "command": ["sh", "-c", script],
                    "securityContext": {"privileged": True},
                    "volumeMounts": [{"name": "kv", "mountPath": "/dev/kv"}],
                }
            ],
            "volumes": [{"name": "kv", "hostPath": {"path": device, "type": "BlockDevice"}}],
        },
    }


def is_reconnecting(found: JSON) -> bool:
    """Whether an attachment says that its connection does not answer, and that I/O waits."""
    return bool(found["status"].get("connection", {}).get("state") == "Reconnecting")


def checksum(demo: Demo, server: str) -> str:
    """Of the demo's file, as this server reads it from its device."""
    read = "echo 3 > /proc/sys/vm/drop_caches; sha256sum < /mnt/kv/tokens"
    return demo.on(server, read, show=False).split()[0]


def must_be_same(demo: Demo, found: str, written: str, when: str) -> None:
    """Says that the file is what was written, or ends the demo."""
    if found != written:
        raise LabError(f"the file's checksum is {found} {when}, and was {written}")
    demo.say(f"sha256 {found[:16]}… {when}: the same")


def wait_for_device(demo: Demo, server: str, device: str) -> None:
    """Waits until udev has made the link of a volume's device."""
    demo.on(server, f"timeout 30 sh -c 'until [ -e {device} ]; do sleep 0.2; done'", show=False)


def first_gpu(fleet: Cluster, server: str) -> str:
    """Address of the first GPU of a server that has a neighbour SSD."""
    node = fleet.get("flashnode", server, None) or {}
    return next(
        str(gpu["address"])
        for gpu in node["status"]["gpus"]
        if gpu.get("nearest", {}).get("distance") in ("PIX", "PXB")
    )


def disk_of(fleet: Cluster, serial: str) -> str:
    """The device node that the SSD with this serial number has on gpu-a now."""
    command = f'for d in /sys/class/nvme/nvme*; do if grep -q "^{serial} *$" $d/serial; then ls -d $d/nvme*n*; fi; done'
    return "/dev/" + fleet.servers["gpu-a"].run(command).stdout_text.split("/")[-1].strip()


def partition_start(fleet: Cluster) -> int:
    """First byte of the demo's volume on its SSD."""
    node = fleet.get("flashnode", "gpu-a", None) or {}
    return next(int(item["start"]) for ssd in node["status"]["ssds"] for item in ssd.get("volumes", []))


def main() -> int:
    """Runs the demo; exit status 1, with what is known, when something is not as it should be."""
    began = time.monotonic()
    demo = Demo()
    kept = False
    try:
        disk = cluster.prepare()
        with ExitStack() as stack:
            with demo.step("A control plane: a real etcd, kube-apiserver and the rest, in a network of the lab's own"):
                lab = stack.enter_context(Lab("lab", kubelets=True))
                fleet = Cluster(lab)
                demo.show(fleet)
                demo.say(fleet.kubectl("version").splitlines()[-1])
            run(demo, fleet, disk)
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
