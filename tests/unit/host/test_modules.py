"""Loading kernel modules: what is missing and nothing else, and what is said where it cannot be."""

from __future__ import annotations

from pathlib import Path

import pytest

from kubeflash.host.commands import CommandFailed, CommandTimedOut, Output, ToolMissing
from kubeflash.host.kernel import read_kernel
from kubeflash.host.modules import AGAIN_AFTER_HANG, AGAIN_SECONDS, Loader
from support.sysfs_builder import MadeUpServer

FOLDER = "lib/modules/6.12.1-test"
DEP = """kernel/drivers/nvme/host/nvme-fabrics.ko.xz:
kernel/drivers/nvme/host/nvme-tcp.ko.xz: kernel/drivers/nvme/host/nvme-fabrics.ko.xz
kernel/drivers/nvme/host/nvme-rdma.ko.xz:
kernel/drivers/nvme/target/nvmet.ko.xz:
kernel/drivers/nvme/target/nvmet-tcp.ko.xz: kernel/drivers/nvme/target/nvmet.ko.xz
kernel/drivers/nvme/target/nvmet-rdma.ko.xz:
"""
NEEDS = {"nvme-tcp": ("nvme-fabrics",), "nvmet-tcp": ("nvmet",)}


class Shell:
    """modprobe and mount of a made-up server; `says` is what modprobe says of a module instead of loading it."""

    def __init__(self, server: MadeUpServer) -> None:
        self.server = server
        self.asked: list[str] = []
        self.argv: list[list[str]] = []
        self.says: dict[str, str] = {}
        self.silent: set[str] = set()
        self.hang: set[str] = set()
        self.mounts = True

    def __call__(self, argv: list[str], *, timeout: float) -> Output:
        self.argv.append(argv)
        self.asked.append(argv[0] if argv[0] == "mount" else argv[-1])
        if argv[0] == "mount":
            if not self.mounts:
                raise CommandFailed(argv, 32, "permission denied")
            self.server.write("sys/kernel/config/nvmet/discovery_nqn", "")
        elif argv[-1] in self.hang:
            raise CommandTimedOut(argv, timeout, stuck=True)
        elif argv[-1] in self.says:
            raise CommandFailed(argv, 1, self.says[argv[-1]])
        elif argv[-1] not in self.silent:
            for name in (*NEEDS.get(argv[-1], ()), argv[-1]):
                self.server.write(f"sys/module/{name.replace('-', '_')}/initstate", "live")
        return Output("", "", 0)


@pytest.fixture
def server(tmp_path: Path) -> MadeUpServer:
    made = MadeUpServer(tmp_path)
    made.write(f"{FOLDER}/modules.dep", DEP)
    return made


@pytest.fixture
def shell(server: MadeUpServer) -> Shell:
    return Shell(server)


@pytest.fixture
def loader(server: MadeUpServer, shell: Shell) -> Loader:
    return Loader(server.root, shell, lambda: 0.0)


def test_what_is_missing_is_loaded_and_configfs_mounted(shell: Shell, loader: Loader):
    loader.load()
    assert shell.asked == ["nvme-fabrics", "nvme-tcp", "nvmet", "nvmet-tcp", "mount"]
    assert loader.failures == {}
    assert shell.argv[-1] == ["mount", "-t", "configfs", "configfs", str(shell.server.root.sys / "kernel/config")]


def test_what_is_loaded_or_built_in_is_left_alone(server: MadeUpServer, shell: Shell, loader: Loader):
    server.write("sys/module/nvme_fabrics/refcnt", "0")
    server.write("sys/module/nvmet/refcnt", "0")
    server.write("sys/kernel/config/nvmet/discovery_nqn", "")
    server.write(f"{FOLDER}/modules.builtin", "kernel/drivers/nvme/host/nvme-tcp.ko\n")
    loader.load()
    assert shell.asked == ["nvmet-tcp"]
    loader.load()
    assert shell.asked == ["nvmet-tcp"]


def test_rdma_modules_only_where_a_device_is(server: MadeUpServer, shell: Shell):
    now = [0.0]
    loader = Loader(server.root, shell, lambda: now[0])
    (server.root.sys / "class/infiniband").mkdir()
    loader.load()
    assert not {"nvme-rdma", "nvmet-rdma"} & set(shell.asked)
    server.write("sys/class/infiniband/mlx5_0/node_type", "1")
    now[0] += AGAIN_SECONDS
    loader.load()
    assert {"nvme-rdma", "nvmet-rdma"} <= set(shell.asked)


def test_what_fails_is_tried_again_once_a_minute_and_mends(server: MadeUpServer, shell: Shell):
    now = [1000.0]
    loader = Loader(server.root, shell, lambda: now[0])
    shell.says["nvmet-tcp"] = "modprobe: ERROR: could not insert 'nvmet_tcp': Exec format error"
    loader.load()
    assert set(loader.failures) == {"nvmet-tcp"}
    kernel = read_kernel(server.root, loader.failures)
    assert (kernel.nvmet.available, kernel.nvmet_tcp.available, kernel.nvme_tcp.available) == (True, False, True)
    assert "Exec format error" in kernel.nvmet_tcp.how
    shell.asked.clear()
    now[0] += AGAIN_SECONDS - 1
    loader.load()
    assert shell.asked == []
    now[0] += 1
    shell.says.clear()
    loader.load()
    assert shell.asked == ["nvmet-tcp"]
    assert loader.failures == {}
    assert read_kernel(server.root, loader.failures).nvmet_tcp.available


def test_a_module_that_hangs_in_the_kernel_is_left_alone_for_an_hour(server: MadeUpServer, shell: Shell):
    """Each try costs half a minute, and one more process: the server's agent has other things to do."""
    now = [1000.0]
    loader = Loader(server.root, shell, lambda: now[0])
    shell.hang.add("nvmet")
    loader.load()
    assert shell.asked == ["nvme-fabrics", "nvme-tcp", "nvmet"], "nvmet-tcp would hang in the same"
    assert "the next try is in an hour" in loader.failures["nvmet"]
    shell.asked.clear()
    now[0] += AGAIN_AFTER_HANG - 1
    loader.load()
    assert shell.asked == []
    now[0] += 1
    shell.hang.clear()
    loader.load()
    assert shell.asked == ["nvmet", "nvmet-tcp", "mount"]
    assert loader.failures == {}


LOCKED = "sys/kernel/security/lockdown"
STATUS = "proc/self/status"
DENIED = "modprobe: ERROR: could not insert 'nvmet': Operation not permitted"


@pytest.mark.parametrize(
    ("files", "says", "words"),
    [
        ({STATUS: "CapEff:\t00000000a80425fb\n"}, DENIED, "its pod must be privileged"),
        ({LOCKED: "none [integrity] confidentiality\n"}, DENIED, "is locked down and takes signed modules only"),
        ({STATUS: "CapEff:\t000001ffffffffff\n", LOCKED: "[none] integrity"}, DENIED, "Operation not permitted; dmesg"),
        ({}, "modprobe: ERROR: could not insert 'nvmet': Key was rejected by service", "mokutil --import"),
        ({}, "modprobe: ERROR: could not insert 'nvmet': Required key not available", "Secure Boot"),
        ({}, "Error running install command '/bin/false' for module nvmet: retcode 1", "/etc/modprobe.d of the server"),
        ({"proc/sys/kernel/modules_disabled": "1\n"}, "never asked", "/etc/modules-load.d/kubeflash.conf"),
    ],
    ids=["no capability", "lockdown", "who knows", "key rejected", "no key", "forbidden", "modules disabled"],
)
def test_what_cannot_be_loaded_says_why_and_how_to_mend_it(server, shell, loader, files, says, words):
    for path, content in files.items():
        server.write(path, content)
    shell.says["nvmet"] = says
    shell.says["nvmet-tcp"] = says
    loader.load()
    assert words in loader.failures["nvmet"]
    assert words in read_kernel(server.root, loader.failures).nvmet_tcp.how
    if "modules_disabled" in "".join(files):
        assert shell.asked == []
    else:
        assert read_kernel(server.root, loader.failures).nvme_tcp.available  # each for itself


@pytest.mark.parametrize(
    ("release", "words"),
    [
        ("ID=ubuntu\nID_LIKE=debian\n", "apt install linux-modules-extra-6.12.1-test"),
        ('NAME="Rocky Linux"\nID="rocky"\nID_LIKE="rhel centos fedora"\n', "kernel-modules-extra-6.12.1-test"),
        ('ID="sles"\nID_LIKE="suse"\n', "kernel-default"),
        ("ID=talos\n", "or a kernel that has it"),
    ],
    ids=["ubuntu", "rocky", "sles", "talos"],
)
def test_of_a_module_that_is_not_there_the_hosts_package_is_named(server, shell, loader, release, words):
    server.write("etc/os-release", "ID=debian\n")  # the image's
    server.write("proc/1/root/etc/os-release", release)
    server.write(f"{FOLDER}/modules.dep", "".join(line for line in DEP.splitlines(True) if "target" not in line))
    loader.load()
    assert shell.asked == ["nvme-fabrics", "nvme-tcp"]
    assert loader.failures["nvmet-tcp"].startswith("there is no module nvmet-tcp in ")
    assert words in loader.failures["nvmet-tcp"]


def test_debians_cloud_kernel(server: MadeUpServer, shell: Shell):
    release = "6.12.1-cloud-amd64"
    server.write("proc/sys/kernel/osrelease", f"{release}\n")
    server.write("proc/1/root/etc/os-release", "ID=debian\n")
    server.write(f"lib/modules/{release}/modules.dep", "")
    loader = Loader(server.root, shell)
    loader.load()
    assert "instead of the cloud kernel" in loader.failures["nvmet"]


def test_modules_of_the_host_that_are_not_mounted(server: MadeUpServer, shell: Shell, loader: Loader):
    (server.root.path / FOLDER / "modules.dep").unlink()
    loader.load()
    assert shell.asked == []
    assert "must be the server's /lib/modules" in loader.failures["nvme-tcp"]
    assert "reboot" in loader.failures["nvme-tcp"]


def test_what_the_host_forbids_is_asked_of_its_own_modprobe_d(server: MadeUpServer, shell: Shell, loader: Loader):
    server.write("proc/1/root/etc/modprobe.d/no.conf", "blacklist nvmet\n")
    shell.silent |= {"nvmet", "nvmet-tcp"}
    loader.load()
    assert shell.argv[0] == [
        *("modprobe", "-b", "-C", str(server.root.proc / "1/root/etc/modprobe.d"), "--", "nvme-fabrics")
    ]
    assert "blacklist" in loader.failures["nvmet"]


def test_configfs_that_cannot_be_mounted(server: MadeUpServer, shell: Shell, loader: Loader):
    shell.mounts = False
    loader.load()
    words = read_kernel(server.root, loader.failures).nvmet.how
    assert "permission denied" in words
    assert words.endswith(f"mount -t configfs configfs {server.root.sys / 'kernel/config'} on the server")


def test_an_image_without_modprobe_says_so(server: MadeUpServer):
    def run(argv: list[str], *, timeout: float) -> Output:
        raise ToolMissing(argv[0])

    loader = Loader(server.root, run)
    loader.load()
    assert "install the package kmod" in loader.failures["nvmet"]
