from __future__ import annotations

from kubeflash.api.v1alpha1 import Kernel
from kubeflash.host.kernel import read_kernel
from kubeflash.host.root import HostRoot
from support.sysfs_builder import MadeUpServer

MODULES = "lib/modules/6.12.1-test"
OPTIONS = "instance=-1,cntlid=-1,transport=%s,traddr=%s,dhchap_secret=%s,dhchap_ctrl_secret=%s\n"


def test_modules_that_are_loaded(server: MadeUpServer):
    server.write("sys/module/nvmet_tcp/refcnt", "0")
    server.write("sys/module/nvme_tcp/refcnt", "0")
    server.write("sys/kernel/config/nvmet/discovery_nqn", "")
    server.write("dev/nvme-fabrics", OPTIONS)
    assert read_kernel(server.root) == Kernel(release="6.12.1-test", nvmet_tcp=True, nvme_tcp=True, authentication=True)


def test_a_target_whose_configfs_is_not_mounted_cannot_export(server: MadeUpServer):
    server.write("sys/module/nvmet_tcp/refcnt", "0")
    assert not read_kernel(server.root).nvmet_tcp


def test_modules_that_can_be_loaded_or_are_built_in(server: MadeUpServer):
    server.write(f"{MODULES}/modules.dep", "kernel/drivers/nvme/target/nvmet-tcp.ko.xz: kernel/x.ko.xz\n")
    server.write(f"{MODULES}/modules.builtin", "kernel/drivers/nvme/host/nvme-tcp.ko\n")
    kernel = read_kernel(server.root)
    assert (kernel.nvmet_tcp, kernel.nvme_tcp) == (True, True)


def test_a_module_of_a_similar_name_is_another(server: MadeUpServer):
    server.write(f"{MODULES}/modules.dep", "kernel/drivers/nvme/host/nvme-tcp.ko: kernel/drivers/x/not-nvmet-tcp.ko\n")
    kernel = read_kernel(server.root)
    assert (kernel.nvmet_tcp, kernel.nvme_tcp) == (False, True)


def test_an_initiator_without_authentication(server: MadeUpServer):
    server.write("dev/nvme-fabrics", "transport=%s,traddr=%s\n")
    assert not read_kernel(server.root).authentication


def test_a_machine_that_says_nothing(tmp_path):
    assert read_kernel(HostRoot(tmp_path)) == Kernel()
