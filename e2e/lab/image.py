"""The disks that virtual servers start from: a Debian root with its kernel, and KubeFlash's own code.

Two images, because they change at different rates. The root image holds Debian, a kernel and KubeFlash's Python
dependencies; it takes minutes to build and is kept by the hash of what it is made of. The application image holds
only ``operator/kubeflash``, takes about a second, and is attached to every server as a second, read-only disk.

Everything here needs root, and the first build needs Debian's mirror and PyPI: build before the lab enters its
network namespace.
"""

from __future__ import annotations

import hashlib
import shutil
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lab import cache
from lab.cpio import write_newc
from lab.errors import BuildError, LabError
from lab.processes import run

SUITE = "trixie"

PACKAGES = (
    "busybox-static",
    "ca-certificates",
    "catatonit",
    "e2fsprogs",
    "fdisk",
    "fio",
    "gdisk",
    "iproute2",
    "iputils-ping",
    "kmod",
    "ktls-utils",
    "mount",
    "nvme-cli",
    "pciutils",
    "procps",
    "python3",
    "qemu-guest-agent",
    "rdma-core",
    "runit",
    "udev",
    "util-linux",
    "xfsprogs",
)
"""What a server needs to run the agent by itself."""

NODE_PACKAGES = ("containerd", "containernetworking-plugins", "iptables", "runc")
"""What it needs besides to be a Kubernetes node; the kubelet comes with `node.node_disk`."""

KERNEL_PACKAGE = "linux-image-amd64"

DROPPED_MODULES = (
    "sound",
    "drivers/accel",
    "drivers/bluetooth",
    "drivers/comedi",
    "drivers/gpu",
    "drivers/hid",
    "drivers/hwmon",
    "drivers/iio",
    "drivers/input",
    "drivers/isdn",
    "drivers/media",
    "drivers/mmc",
    "drivers/mtd",
    "drivers/net/ethernet",
    "drivers/net/usb",
    "drivers/net/wireless",
    "drivers/staging",
    "drivers/thunderbolt",
    "drivers/usb",
    "drivers/video",
    "net/bluetooth",
    "net/mac80211",
    "net/wireless",
)
"""Folders of ``/lib/modules/*/kernel`` with no emulated device behind them: most of the modules' bytes."""

INITRAMFS_MODULES = ("virtio_blk", "virtio_net", "crc32c_generic", "ext4")

DISK_SIZE = "8G"
"""Size of the root disk, sparse: leaves room for container images."""

PLATFORMS = tuple(f"manylinux_2_{minor}_x86_64" for minor in (41, 39, 36, 34, 31, 28, 27, 26, 24, 17, 12, 5))
"""The wheels that run on Debian 13 (glibc 2.41)."""

GUEST = Path(__file__).parent / "guest"
DEPS = "opt/kubeflash/deps"
APP = "/opt/kubeflash/app"

_RECIPE = "2"
"""Counted up when the functions below come to build something else: part of every artifact's key."""

_COMPILE = ("python3", "-m", "compileall", "-q", "-j", "2", "--invalidation-mode", "unchecked-hash")

_FETCH_KERNEL = """
set -eu
export APT_CONFIG="$MMDEBSTRAP_APT_CONFIG"
kernel=$(apt-cache depends --important {package} | sed -n 's/^  Depends: //p' | head -n 1)
cd "$1/tmp"
apt-get --quiet --option APT::Sandbox::User=root download "$kernel"
dpkg-deb --extract ./*.deb "$1"
rm ./*.deb
"""

_MAKE_DISK = """
set -eu
mount -t overlay overlay -o "lowerdir=$1" "$2"
truncate --size "$4" "$3"
mkfs.ext4 -q -L root -E lazy_itable_init=1,lazy_journal_init=1,root_owner=0:0 -d "$2" "$3"
"""

_COMPILE_APP = """
set -eu
mount --bind "$2" "$1/mnt"
chroot "$1" {compile} -s /mnt -p {app} /mnt
"""


@dataclass(frozen=True)
class ServerImage:
    """What QEMU needs to start a server, and the tree whose Python compiles the application.

    Attributes:
        tree: Debian's root file system as a folder (without KubeFlash's dependencies).
        disk: The root disk, ext4, raw and sparse: the backing file of every server's overlay, never written.
        kernel: The uncompressed kernel. QEMU enters it directly, which saves the seconds of unpacking it.
        initramfs: Finds the root disk and hands over to it.
    """

    tree: Path
    disk: Path
    kernel: Path
    initramfs: Path


def server_image(repo: Path) -> ServerImage:
    """Build, or find in the cache, what virtual servers start from: about 2 minutes, or nothing.

    Args:
        repo: The repository's root, for ``requirements/runtime.txt``.

    Raises:
        BuildError: A step failed; the message ends with its standard error.
    """
    requirements = repo / "requirements" / "runtime.txt"
    recipe = (_RECIPE, SUITE, KERNEL_PACKAGE, _FETCH_KERNEL, *PACKAGES, *NODE_PACKAGES, *DROPPED_MODULES)
    debian_key = _key(recipe)
    deps_key = _key((debian_key, requirements.read_text(), *PLATFORMS))
    image_key = _key((deps_key, DISK_SIZE, *INITRAMFS_MODULES, _MAKE_DISK, hash_tree(GUEST)))

    tree = cache.artifact("debian", debian_key, _build_debian, about="about 1 min") / "root"
    deps = cache.artifact("python-deps", deps_key, lambda out: _build_deps(out, tree, requirements))
    image = cache.artifact("server-image", image_key, lambda out: _build_image(out, tree, deps))
    return ServerImage(tree, image / "root.ext4", image / "vmlinux", image / "initramfs")


def app_image(repo: Path, tree: Path) -> Path:
    """Build, or find in the cache, the read-only disk with ``operator/kubeflash``, compiled by the servers' Python.

    Servers mount it at ``/opt/kubeflash/app``. Takes 1-2 seconds for new code.

    Args:
        repo: The repository's root.
        tree: ``ServerImage.tree``.

    Raises:
        BuildError: The code does not compile, or the image could not be made.
    """
    source = repo / "operator" / "kubeflash"
    key = _key((_RECIPE, _COMPILE_APP, hash_tree(source), str(tree)))
    return cache.artifact("app-image", key, lambda out: _build_app(out, tree, source), offline=True) / "app.ext4"


def hash_tree(folder: Path) -> str:
    """SHA-256 over the names, execute bits and bytes of a folder's files; ``__pycache__`` does not count."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            head = f"{path.relative_to(folder)}\0{path.stat().st_mode & 0o111}\0{path.stat().st_size}\0"
            digest.update(head.encode() + path.read_bytes())
    return digest.hexdigest()


def debian_mirror() -> str:
    """The Debian mirror this machine's own apt uses.

    Raises:
        BuildError: Its apt has no Debian source.
    """
    lines = _step(
        ["apt-get", "indextargets", "--format", "$(SITE)", "Created-By: Packages", "Label: Debian"], timeout=60
    ).split()
    if not lines:
        raise BuildError("apt has no source labelled Debian: run apt-get update, or add one")
    return lines[0]


def _build_debian(out: Path) -> None:
    packages = ",".join(PACKAGES + NODE_PACKAGES)
    root = out / "root"
    bootstrap = [
        *("unshare", "--mount"),  # whatever it mounts is gone with it, however it ends
        *("mmdebstrap", "--mode=root", "--variant=essential", "--format=directory", "--components=main"),
        *(f"--include={packages}", '--aptopt=APT::Install-Recommends "false"'),
        *(f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("doc", "man", "locale", "info")),
        f"--customize-hook={_FETCH_KERNEL.format(package=KERNEL_PACKAGE)}",
        *(SUITE, str(root), debian_mirror()),
    ]
    _step(bootstrap, timeout=1200)
    for name in ("etc/resolv.conf", "etc/hostname", "etc/apt/sources.list"):
        (root / name).unlink(missing_ok=True)
    _prepare_modules(root)
    _step(["chroot", str(root), *_COMPILE, "-f", "/usr/lib/python3.13", "/usr/lib/python3"], timeout=300)


def _prepare_modules(root: Path) -> None:
    """Drop the modules nobody needs, unpack the rest and take their signatures off.

    Unpacking and checking them takes seconds of every boot under emulation.
    """
    modules = _only((root / "usr/lib/modules").iterdir())
    for name in DROPPED_MODULES:
        shutil.rmtree(modules / "kernel" / name, ignore_errors=True)
    packed = [str(path) for path in sorted(modules.rglob("*.ko.xz"))]
    for start in range(0, len(packed), 500):
        _step(["xz", "--decompress", *packed[start : start + 500]], timeout=300)
    for path in modules.rglob("*.ko"):
        path.write_bytes(_unsigned(path.read_bytes()))
    _step(["chroot", str(root), "depmod", modules.name], timeout=120)


def _unsigned(module: bytes) -> bytes:
    """A kernel module without the signature at its end (see the kernel's ``include/linux/module_signature.h``)."""
    magic = b"~Module signature appended~\n"
    if not module.endswith(magic):
        return module
    header = len(module) - len(magic) - 12  # a struct of 12 bytes, the last four of which are the signature's length
    (length,) = struct.unpack_from(">I", module, header + 8)
    return module[: header - length]


def _build_deps(out: Path, tree: Path, requirements: Path) -> None:
    target = out / DEPS
    install = [
        *("python3", "-m", "pip", "install", "--quiet", "--no-compile", "--no-deps", "--target", str(target)),
        *("--python-version", "3.13", "--implementation", "cp"),
        *(word for abi in ("cp313", "abi3", "none") for word in ("--abi", abi)),
        *(word for platform in PLATFORMS for word in ("--platform", platform)),
        *("--only-binary=:all:", "--require-hashes", "--root-user-action=ignore", "-r", str(requirements)),
    ]
    _step(install, timeout=900)
    shutil.rmtree(target / "bin", ignore_errors=True)
    script = _COMPILE_APP.format(compile=" ".join(_COMPILE), app="/" + DEPS)
    _step(_private_mounts(script, tree, target), timeout=600)


def _build_image(out: Path, tree: Path, deps: Path) -> None:
    boot = out / "boot"
    extra = out / "extra"
    mounted = out / "mounted"
    mounted.mkdir()
    shutil.copytree(GUEST / "root", extra)
    for name in ("opt/kubeflash/app", "mnt/system"):
        (extra / name).mkdir(parents=True)
    for path in [extra, *extra.rglob("*")]:
        path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
    layers = ":".join(map(str, (extra, deps, tree)))
    _step(_private_mounts(_MAKE_DISK, layers, mounted, out / "root.ext4", DISK_SIZE), timeout=300)
    shutil.rmtree(extra)
    mounted.rmdir()

    boot.mkdir()
    _unpack_kernel(_only((tree / "boot").glob("vmlinuz-*")), out / "vmlinux", boot)
    shutil.rmtree(boot)
    _build_initramfs(tree, out / "initramfs")


def _unpack_kernel(vmlinuz: Path, vmlinux: Path, scratch: Path) -> None:
    """Cut the zstd payload out of a bzImage (see the kernel's ``Documentation/arch/x86/boot.rst``)."""
    image = vmlinuz.read_bytes()
    setup_sectors = image[0x1F1] or 4
    offset, length = struct.unpack_from("<II", image, 0x248)
    start = (setup_sectors + 1) * 512 + offset
    payload = image[start : start + length - 4]  # its last four bytes are the unpacked size
    if payload[:4] != b"\x28\xb5\x2f\xfd":
        raise BuildError(f"{vmlinuz.name}: the kernel is not packed with zstd; teach _unpack_kernel the new format")
    packed = scratch / "vmlinux.zst"
    packed.write_bytes(payload)
    _step(["zstd", "--quiet", "--decompress", "--force", str(packed), "-o", str(vmlinux)], timeout=120)


def _build_initramfs(tree: Path, initramfs: Path) -> None:
    modules = _only((tree / "usr/lib/modules").iterdir())
    order = _load_order((modules / "modules.dep").read_text(), INITRAMFS_MODULES)
    names = [Path(path).name for path in order]
    files: dict[str, tuple[int, bytes]] = {
        "init": (0o755, (GUEST / "initramfs" / "init").read_bytes()),
        "bin/busybox": (0o755, (tree / "usr/bin/busybox").read_bytes()),
        "modules/order": (0o644, "".join(f"{name}\n" for name in names).encode()),
    }
    for path in order:
        files[f"modules/{Path(path).name}"] = (0o644, (modules / path).read_bytes())
    write_newc(initramfs, files)


def _load_order(modules_dep: str, wanted: Iterable[str]) -> list[str]:
    """Paths of modules and of all they need, each after what it needs; built-in ones are not in ``modules.dep``."""
    needs: dict[str, tuple[str, list[str]]] = {}
    for line in modules_dep.splitlines():
        path, _, rest = line.partition(":")
        needs[_module_name(path)] = (path, rest.split())
    order: list[str] = []

    def add(name: str) -> None:
        path, dependencies = needs[name]
        for dependency in dependencies:
            add(_module_name(dependency))
        if path not in order:
            order.append(path)

    for name in wanted:
        if name not in needs:
            raise BuildError(f"the kernel has no module {name}")
        add(name)
    return order


def _module_name(path: str) -> str:
    return Path(path).name.split(".")[0].replace("-", "_")


def _build_app(out: Path, tree: Path, source: Path) -> None:
    content = out / "content"
    shutil.copytree(source, content / "kubeflash", ignore=shutil.ignore_patterns("__pycache__"))
    script = _COMPILE_APP.format(compile=" ".join(_COMPILE), app=APP)
    _step(_private_mounts(script, tree, content), timeout=120)
    disk = out / "app.ext4"
    with disk.open("wb") as file:
        file.truncate(32 << 20)
    options = ["-q", "-L", "app", "-m", "0", "-O", "^has_journal", "-E", "root_owner=0:0"]
    _step(["mkfs.ext4", *options, "-d", str(content), str(disk)], timeout=60)
    shutil.rmtree(content)


def _private_mounts(script: str, *arguments: str | Path) -> list[str]:
    return ["unshare", "--mount", "sh", "-c", script, "sh", *map(str, arguments)]


def _step(argv: Sequence[str], timeout: float) -> str:
    try:
        return run(argv, timeout=timeout).stdout_text
    except LabError as error:
        raise BuildError(str(error)) from error


def _key(parts: Iterable[str]) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _only(paths: Iterable[Path]) -> Path:
    found = sorted(paths)
    if len(found) != 1:
        raise BuildError(f"expected exactly one of: {', '.join(map(str, found)) or 'nothing'}")
    return found[0]
