from __future__ import annotations

import gzip
import os

import pytest

from kubeflash.api.v1alpha1 import Ability, Kernel
from kubeflash.host.kernel import read_kernel
from kubeflash.host.root import HostRoot
from support.sysfs_builder import MadeUpServer

MODULES = "lib/modules/6.12.1-test"
CONFIG = "boot/config-6.12.1-test"
OPTIONS = "instance=-1,cntlid=-1,transport=%s,traddr=%s,dhchap_secret=%s,dhchap_ctrl_secret=%s,tls,concat\n"
DEBIAN = """CONFIG_NVME_AUTH=m
CONFIG_NVME_HOST_AUTH=y
CONFIG_NVME_TCP_TLS=y
CONFIG_NVME_TARGET=m
CONFIG_NVME_TARGET_TCP_TLS=y
CONFIG_NVME_TARGET_AUTH=y
"""
DEP = """kernel/drivers/nvme/target/nvmet.ko.xz: kernel/fs/configfs/configfs.ko.xz
kernel/drivers/nvme/target/nvmet-tcp.ko.xz: kernel/drivers/nvme/target/nvmet.ko.xz
kernel/drivers/nvme/target/nvmet-rdma.ko.xz: kernel/drivers/nvme/target/nvmet.ko.xz
kernel/drivers/nvme/host/nvme-tcp.ko.xz: kernel/drivers/nvme/host/nvme-fabrics.ko.xz
kernel/drivers/nvme/host/nvme-rdma.ko.xz: kernel/drivers/nvme/host/nvme-fabrics.ko.xz
kernel/net/tls/tls.ko.xz:
"""
ABILITIES = ("nvmet", "nvmet_tcp", "nvmet_rdma", "nvme_tcp", "nvme_rdma", "authentication", "tls")


def load(server: MadeUpServer, *modules: str) -> None:
    for module in modules:
        server.write(f"sys/module/{module}/refcnt", "0")
    if "nvmet" in modules:
        server.write("sys/kernel/config/nvmet/discovery_nqn", "")


def tlshd(server: MadeUpServer) -> None:
    server.write("proc/312/comm", "tlshd\n")


def abilities(kernel: Kernel) -> dict[str, Ability]:
    return {name: getattr(kernel, name) for name in ABILITIES}


def what(kernel: Kernel) -> set[str]:
    return {name for name, ability in abilities(kernel).items() if ability.available}


def test_a_server_that_can_do_all(server: MadeUpServer):
    load(server, "nvmet", "nvmet_tcp", "nvme_tcp")
    server.write("dev/nvme-fabrics", OPTIONS)
    server.write(f"{MODULES}/modules.dep", DEP)
    server.write(CONFIG, DEBIAN)
    tlshd(server)
    kernel = read_kernel(server.root)
    modules, config = server.root.path / MODULES, server.root.path / CONFIG
    assert kernel.release == "6.12.1-test"
    assert {name: ability.how for name, ability in abilities(kernel).items()} == {
        "nvmet": "module nvmet is loaded",
        "nvmet_tcp": "module nvmet-tcp is loaded",
        "nvmet_rdma": f"module nvmet-rdma can be loaded from {modules}",
        "nvme_tcp": "module nvme-tcp is loaded",
        "nvme_rdma": f"module nvme-rdma can be loaded from {modules}",
        "authentication": f"/dev/nvme-fabrics lists dhchap_secret; CONFIG_NVME_TARGET_AUTH in {config}",
        "tls": f"/dev/nvme-fabrics lists tls; CONFIG_NVME_TARGET_TCP_TLS in {config}; "
        f"module tls can be loaded from {modules}; tlshd runs",
    }
    assert what(kernel) == set(ABILITIES)
    assert kernel.words == "6.12: tcp rdma auth tls"


def test_a_target_whose_configfs_is_not_mounted_cannot_export(server: MadeUpServer):
    load(server, "nvmet_tcp", "nvme_tcp")
    server.write("sys/module/nvmet/refcnt", "0")
    kernel = read_kernel(server.root)
    assert what(kernel) == {"nvme_tcp"}
    assert kernel.nvmet_tcp.how.endswith(f"mount -t configfs configfs {server.root.sys / 'kernel/config'}")


def test_modules_that_are_built_in(server: MadeUpServer):
    server.write(f"{MODULES}/modules.builtin", DEP.replace(".xz", ""))
    server.write(f"{MODULES}/modules.dep", "")
    kernel = read_kernel(server.root)
    assert what(kernel) == {"nvmet", "nvmet_tcp", "nvmet_rdma", "nvme_tcp", "nvme_rdma"}
    assert kernel.nvme_tcp.how == "module nvme-tcp is built in"


def test_a_module_of_a_similar_name_is_another(server: MadeUpServer):
    server.write(f"{MODULES}/modules.dep", "kernel/drivers/nvme/host/nvme-tcp.ko: kernel/drivers/x/not-nvmet-tcp.ko\n")
    kernel = read_kernel(server.root)
    assert what(kernel) == {"nvme_tcp"}
    assert kernel.nvmet.how.startswith(
        f"there is no module nvmet in {server.root.path / MODULES}: install the package "
    )


def test_a_target_over_tcp_without_the_target_itself_is_none(server: MadeUpServer):
    server.write(f"{MODULES}/modules.dep", "kernel/x/nvmet-tcp.ko:\n")
    assert what(read_kernel(server.root)) == set()


def test_where_modules_cannot_be_seen_it_says_so(server: MadeUpServer):
    kernel = read_kernel(server.root)
    assert what(kernel) == set()
    assert kernel.nvme_tcp.how == (
        f"module nvme-tcp is not loaded, and {server.root.path / MODULES} does not say whether it could be: in a "
        "container it must be the server's /lib/modules"
    )
    assert kernel.words == "6.12"


# --- authentication and TLS: two sides ---


def test_an_initiator_without_either(server: MadeUpServer):
    server.write("dev/nvme-fabrics", "transport=%s,traddr=%s,tls_key=%d\n")
    server.write(CONFIG, DEBIAN)
    load(server, "tls")
    kernel = read_kernel(server.root)
    assert what(kernel) == set()
    assert kernel.authentication.how.startswith("/dev/nvme-fabrics does not list dhchap_secret; ")
    assert kernel.tls.how.startswith("/dev/nvme-fabrics does not list tls; ")


def test_a_target_without_either(server: MadeUpServer):
    tlshd(server)
    server.write("dev/nvme-fabrics", OPTIONS)
    server.write(CONFIG, DEBIAN.replace("CONFIG_NVME_TARGET_AUTH=y", "# CONFIG_NVME_TARGET_AUTH is not set"))
    load(server, "tls")
    kernel = read_kernel(server.root)
    assert what(kernel) == {"tls"}
    assert kernel.authentication.how.endswith(f"CONFIG_NVME_TARGET_AUTH is not set in {server.root.path / CONFIG}")


def test_a_target_that_nobody_speaks_for(server: MadeUpServer):
    tlshd(server)
    server.write("dev/nvme-fabrics", OPTIONS)
    load(server, "tls")
    kernel = read_kernel(server.root)
    assert what(kernel) == {"authentication", "tls"}
    assert "of the target it is not known" in kernel.authentication.how
    assert "of the target it is not known" in kernel.tls.how


def test_a_target_that_uses_the_module_for_it(server: MadeUpServer):
    tlshd(server)
    server.write("dev/nvme-fabrics", OPTIONS)
    load(server, "tls")
    server.write("sys/module/nvme_auth/holders/nvmet/refcnt", "")
    server.write("sys/module/nvme_keyring/holders/nvmet_tcp/refcnt", "")
    kernel = read_kernel(server.root)
    assert kernel.authentication.how == "/dev/nvme-fabrics lists dhchap_secret; module nvmet uses nvme-auth"
    assert kernel.tls.how == (
        "/dev/nvme-fabrics lists tls; module nvmet-tcp uses nvme-keyring; module tls is loaded; tlshd runs"
    )


def test_a_target_that_was_built_without_it(server: MadeUpServer):
    server.write("dev/nvme-fabrics", OPTIONS)
    load(server, "nvmet", "nvme_auth")
    assert read_kernel(server.root).authentication.available  # what is built in shows no holders: it cannot be told
    server.write(f"{MODULES}/modules.builtin", "kernel/drivers/nvme/common/nvme-auth.ko\n")
    assert read_kernel(server.root).authentication.available
    server.write(f"{MODULES}/modules.builtin", "kernel/fs/configfs/configfs.ko\n")
    refcnt = server.root.sys / "module/nvmet/refcnt"
    refcnt.unlink()
    assert read_kernel(server.root).authentication.available  # a kernel that keeps no holders
    refcnt.write_text("0")
    assert read_kernel(server.root).authentication == Ability(
        available=False,
        how="/dev/nvme-fabrics lists dhchap_secret; module nvmet does not use nvme-auth: it was built without "
        "CONFIG_NVME_TARGET_AUTH",
    )


def test_what_could_not_be_loaded_says_why(server: MadeUpServer):
    server.write(f"{MODULES}/modules.dep", DEP)
    kernel = read_kernel(server.root, {"nvmet-tcp": "refused", "nvme-tcp": "refused too"})
    assert what(kernel) == {"nvmet", "nvmet_rdma", "nvme_rdma"}
    assert (kernel.nvmet_tcp.how, kernel.nvme_tcp.how) == ("refused", "refused too")
    load(server, "nvme_tcp")  # by somebody else, meanwhile
    assert what(read_kernel(server.root, {"nvme-tcp": "refused too"})) >= {"nvme_tcp"}


def test_an_initiator_that_is_not_loaded(server: MadeUpServer):
    assert "load nvme-fabrics" in read_kernel(server.root).authentication.how
    server.write(CONFIG, DEBIAN)
    config = server.root.path / CONFIG
    authentication = read_kernel(server.root).authentication
    assert authentication.available
    assert authentication.how == f"CONFIG_NVME_HOST_AUTH in {config}; CONFIG_NVME_TARGET_AUTH in {config}"


def test_tls_needs_the_module(server: MadeUpServer):
    server.write("dev/nvme-fabrics", OPTIONS)
    server.write(CONFIG, DEBIAN)
    server.write(f"{MODULES}/modules.dep", DEP.replace("tls.ko", "else.ko"))
    kernel = read_kernel(server.root)
    assert not kernel.tls.available
    assert "there is no module tls" in kernel.tls.how


def test_tls_needs_the_program_that_shakes_hands(server: MadeUpServer):
    load(server, "nvmet", "nvmet_tcp", "nvme_tcp", "tls")
    server.write("dev/nvme-fabrics", OPTIONS)
    server.write(CONFIG, DEBIAN)
    server.write("proc/311/comm", "tlshd-something\n")
    tls = read_kernel(server.root).tls
    assert tls == Ability(
        available=False, how="tlshd does not run on this server: install ktls-utils, keyrings=.nvme in tlshd.conf"
    )
    tlshd(server)
    assert read_kernel(server.root).tls.available


# --- where the configuration is ---


@pytest.mark.parametrize("place", [CONFIG, f"{MODULES}/config", "proc/config.gz"])
def test_places_of_the_configuration(server: MadeUpServer, place: str):
    server.write(place, gzip.compress(DEBIAN.encode()) if place.endswith(".gz") else DEBIAN)
    assert place in read_kernel(server.root).authentication.how


@pytest.mark.parametrize(
    "content",
    [b"", b"rubbish", gzip.compress(DEBIAN.encode(), mtime=0)[:-20], b"\x1f\x8b\x08\xff"],
    ids=["empty", "rubbish", "cut short", "a header alone"],
)
def test_a_configuration_that_is_damaged(server: MadeUpServer, content: bytes):
    server.write("proc/config.gz", content)
    assert not read_kernel(server.root).authentication.available


def test_another_kernels_configuration_does_not_count(server: MadeUpServer):
    server.write("boot/config-6.1.0-other", DEBIAN)
    assert not read_kernel(server.root).authentication.available


def test_what_has_not_changed_is_not_read_again(server: MadeUpServer, monkeypatch: pytest.MonkeyPatch):
    file = server.write(CONFIG, DEBIAN)
    before = read_kernel(server.root)
    os.utime(file, ns=(1, 1))
    server.write(CONFIG, "")
    assert read_kernel(server.root) != before


def test_a_machine_that_says_nothing(tmp_path):
    assert read_kernel(HostRoot(tmp_path)) == Kernel()
    assert Kernel().words == ""
