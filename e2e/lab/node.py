"""What makes a virtual server a Kubernetes node: a disk with a kubelet and the images that its pods start from.

Images are imported here, by the root image's own containerd, rather than by each server: seconds instead of a minute.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from lab import binaries, cache, image, spec
from lab.controlplane import ControlPlane
from lab.errors import BuildError, LabError
from lab.lab import Lab, ensure_programs
from lab.processes import run, wait_until
from lab.qemu import Membership
from lab.servers import VirtualServer, boot

PAUSE_IMAGE = "lab.kubeflash.io/pause:1"
"""What containerd's configuration in ``guest/root`` names: the process that holds a pod's namespaces."""
DISK_SIZE = "6G"
"""Sparse: images, and the writable layers of containers."""

MEMORY = 1536 << 20
"""Bytes that a node has at least: containerd, kubelet and KubeFlash's two processes want some 600 MB of them."""

_RECIPE = "1"

_IMPORT = """
set -eu
tree=$1 store=$2 scratch=$3
shift 3
mkdir "$scratch/root"
mount -t tmpfs scratch "$scratch"
mkdir "$scratch/upper" "$scratch/work" "$scratch/root"
mount -t overlay overlay -o "lowerdir=$tree,upperdir=$scratch/upper,workdir=$scratch/work" "$scratch/root"
root=$scratch/root
mount -t proc proc "$root/proc"
mount --rbind /sys "$root/sys"
mount --rbind /dev "$root/dev"
mount -t tmpfs run "$root/run"
mkdir -p "$root/var/lib/containerd" "$root/mnt/images"
mount --bind "$store" "$root/var/lib/containerd"
printf 'version = 2\\ndisabled_plugins = ["io.containerd.grpc.v1.cri"]\\n' > "$root/run/config.toml"
for image; do
    number=$((${number:-0} + 1))
    : > "$root/mnt/images/$number.tar"
    mount --bind "$image" "$root/mnt/images/$number.tar"
done
chroot "$root" sh -euc '
containerd --config /run/config.toml --log-level warn > /run/containerd.log 2>&1 &
containerd=$!
trap "cat /run/containerd.log >&2; kill $containerd; wait $containerd || true" EXIT
tries=0
until ctr --timeout 2s version > /dev/null 2>&1; do
    tries=$((tries + 1))
    [ "$tries" -lt 100 ] && kill -0 $containerd || { echo "containerd does not answer" >&2; exit 1; }
    sleep 0.1
done
for image in /mnt/images/*.tar; do
    ctr -n k8s.io images import "$image" >&2
done
ctr -n k8s.io images list -q
'
"""


@dataclass(frozen=True)
class NodeDisk:
    """A disk that makes a server a node.

    Attributes:
        disk: ext4, raw and sparse: the backing file of every server's own, never written.
        images: Names of the images on it, as containerd has them.
    """

    disk: Path
    images: tuple[str, ...]


def node_disk(tree: Path, kubelet: Path, images: Sequence[Path]) -> NodeDisk:
    """Build, or find in the cache, the disk with a kubelet and imported images: some 15 s, or nothing.

    Args:
        tree: `image.ServerImage.tree`: whose containerd imports them.
        kubelet: The program.
        images: Archives, OCI's or Docker's, in cached folders: told apart by their paths and sizes.

    Raises:
        BuildError: An image cannot be imported; the message ends with what containerd said.
    """
    parts = [_RECIPE, _IMPORT, DISK_SIZE, str(tree), str(kubelet)]
    parts += [f"{path} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in images]
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]

    def build(out: Path) -> None:
        _build(out, tree, kubelet, images)

    folder = cache.artifact("node-disk", key, build, about="about 15 s", offline=True)
    return NodeDisk(folder / "node.ext4", tuple((folder / "images").read_text().split()))


def prepare(repo: Path, images: Sequence[Path], *, older: bool = False) -> NodeDisk:
    """Build, or find in the cache, all that a lab with kubelets needs: before its network is entered.

    Args:
        repo: The repository's root.
        images: See `node_disk`.
        older: See `lab.ensure_programs`.

    Raises:
        BuildError: Something could not be built.
    """
    ensure_programs(kubelets=True, older=older)
    kubelet = binaries.ensure("kubelet", older=older)
    tree = image.server_image(repo).tree
    image.app_image(repo, tree)
    return node_disk(tree, kubelet, images)


def boot_nodes(
    lab: Lab, repo: Path, names: Sequence[str], disk: NodeDisk, *, timeout: float = 300
) -> dict[str, VirtualServer]:
    """Add servers to a lab that are nodes of its cluster, and wait until they are Ready. Main thread only.

    Args:
        lab: One that is up, with ``kubelets``.
        repo: The repository's root.
        names: Of their specifications, such as ``gpu-a``.
        disk: See `prepare`.
        timeout: Seconds for all of them to boot, and again to be Ready.

    Raises:
        LabError: See `servers.boot`.
        LabTimeout: A node is not Ready in time.
    """
    specs = [spec.load(name) for name in names]
    specs = [replace(one, memory=max(one.memory, MEMORY), cpus=1) for one in specs]
    join = partial(membership, lab.control_plane, disk)
    servers = boot(lab, repo, specs, node=join, timeout=timeout)
    for name in servers:
        wait_until(f"node {name} Ready", partial(node_ready, lab.control_plane, name), timeout=timeout, interval=0.5)
    return servers


def membership(control_plane: ControlPlane, disk: NodeDisk, server: spec.ServerSpec) -> Membership:
    """What makes a server a node of this cluster."""
    kubeconfig = control_plane.kubeconfig(f"system:node:{server.name}", groups=["system:nodes"])
    return Membership(disk.disk, kubeconfig, control_plane.ca_file)


def node_ready(control_plane: ControlPlane, name: str) -> bool:
    """Whether a Node is there and Ready."""
    node = control_plane.read(f"/api/v1/nodes/{name}")
    conditions = node["status"].get("conditions", []) if node is not None else []
    return any(item["type"] == "Ready" and item["status"] == "True" for item in conditions)


def _build(out: Path, tree: Path, kubelet: Path, images: Iterable[Path]) -> None:
    content = out / "content"
    store = content / "containerd"
    store.mkdir(parents=True)
    scratch = out / "scratch"
    scratch.mkdir()
    pause = out / "pause.tar"
    _pause_image(tree, pause)
    script = ["unshare", "--mount", "sh", "-c", _IMPORT, "sh", str(tree), str(store), str(scratch), str(pause)]
    try:
        listed = run([*script, *map(str, images)], timeout=600).stdout_text
        (out / "images").write_text(listed)
        run(["cp", "--reflink=auto", str(kubelet), str(content / "kubelet")], timeout=60)
        disk = out / "node.ext4"
        run(["truncate", "--size", DISK_SIZE, str(disk)], timeout=60)
        options = ["-q", "-L", "node", "-m", "0", "-E", "lazy_itable_init=1,lazy_journal_init=1,root_owner=0:0"]
        run(["mkfs.ext4", *options, "-d", str(content), str(disk)], timeout=300)
        run(["rm", "-rf", "--one-file-system", str(content), str(scratch), str(pause)], timeout=120)
    except LabError as error:
        raise BuildError(str(error)) from error


def _pause_image(tree: Path, archive: Path) -> None:
    """An image that does nothing, made of Debian's catatonit: a Docker archive of one layer."""
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        _add(tar, "pause", (tree / "usr/bin/catatonit").read_bytes(), 0o755)
    digest = hashlib.sha256(layer.getvalue()).hexdigest()
    config = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Entrypoint": ["/pause", "-P"]},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
        }
    ).encode()
    manifest = json.dumps([{"Config": "config.json", "RepoTags": [PAUSE_IMAGE], "Layers": ["layer.tar"]}]).encode()
    with tarfile.open(archive, mode="w") as tar:
        for name, content in (("layer.tar", layer.getvalue()), ("config.json", config), ("manifest.json", manifest)):
            _add(tar, name, content, 0o644)


def _add(tar: tarfile.TarFile, name: str, content: bytes, mode: int) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(content), mode
    tar.addfile(entry, io.BytesIO(content))
