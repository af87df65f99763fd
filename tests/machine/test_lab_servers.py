"""The virtual servers do what tests ask of them. One boot for all tests; those that switch servers off come last."""

from __future__ import annotations

import base64
import time
import uuid
import zlib

import pytest

from lab.errors import CommandError, LabError, LabTimeout

pytestmark = [pytest.mark.machine, pytest.mark.timeout(300)]

BY_ID = "/dev/disk/by-id/nvme-QEMU_NVMe_Ctrl_"

PCI_PATHS = """
for controller in /sys/class/nvme/nvme*; do
    [ -e "$controller/device/class" ] || continue
    echo "$(tr -d ' ' < "$controller/serial") $(cat "$controller/device/numa_node") $(readlink -f "$controller/device")"
done
for device in /sys/bus/pci/devices/*; do
    [ "$(cat "$device/class")" = 0x038000 ] || continue
    echo "gpu $(cat "$device/numa_node") $(readlink -f "$device")"
done
"""


@pytest.fixture
def a(servers):
    return servers[0]


@pytest.fixture
def b(servers):
    return servers[1]


def text(server, command, **options):
    return server.run(command, **options).stdout_text.strip()


def serials(server):
    return set(text(server, "cat /sys/class/nvme/nvme*/serial").split())


# ---- Commands


def test_output_error_and_exit_status_are_told_apart(a):
    done = a.run("echo out; echo err >&2; exit 3", check=False)
    assert (done.stdout, done.stderr, done.exit_code) == (b"out\n", b"err\n", 3)


def test_a_failure_shows_its_standard_error(a):
    with pytest.raises(CommandError, match="No such file"):
        a.run(["cat", "/nowhere"])


def test_a_signal_is_told_as_one(a):
    assert a.run("kill -9 $$", check=False).exit_code == -9


def test_bytes_pass_unchanged_and_words_are_not_split(a):
    data = bytes(range(256)) * 1000
    assert a.run(["cat"], input=data).stdout == data
    assert a.run(["printf", "%s|", "a b", "$HOME", ""]).stdout == b"a b|$HOME||"


def test_what_takes_too_long_is_killed_with_its_children(a):
    with pytest.raises(LabTimeout, match="began"):
        a.run("echo began; sleep 4242 & sleep 4242", timeout=1)
    assert a.run(["pgrep", "-x", "-f", "sleep 4242"], check=False).exit_code == 1


def test_files_come_and_go_with_their_modes(a):
    data = bytes(range(256)) * 20000
    a.put_file("/var/tmp/new/file", data, 0o640)
    assert a.get_file("/var/tmp/new/file") == data
    assert text(a, ["stat", "-c", "%a", "/var/tmp/new/file"]) == "640"
    with pytest.raises(LabError, match="/nowhere"):
        a.get_file("/nowhere")


def test_python_finds_kubeflash_and_what_it_needs(a):
    a.run(["python3", "-c", "import kopf, kubernetes, nacl.secret, pydantic, yaml, kubeflash"], timeout=120)


# ---- Hardware


def test_ssds_and_gpus_are_where_the_specification_puts_them(a):
    found = [line.split() for line in text(a, PCI_PATHS).splitlines()]
    paths = {name: path.split("/")[3:] for name, _, path in found if name != "gpu"}
    nodes = {name: node for name, node, _ in found if name != "gpu"}
    gpus = sorted(path.split("/")[3:] for name, _, path in found if name == "gpu")
    assert nodes == {"KFA0": "0", "KFA1": "0", "KFSYS": "0", "KFA2": "1"}
    near, middle, far = gpus  # g0 and g1 on bus 10, g2 on bus 80
    assert paths["KFA0"][:3] == near[:3]  # root complex, root port, upstream port: the same switch
    assert paths["KFA1"][:3] == middle[:3]
    assert len(paths["KFA1"]) == len(middle) + 2  # another switch between
    assert paths["KFA2"][0] == far[0] == "pci0000:80"
    assert paths["KFA2"][1] != far[1]  # another root port
    assert len(paths["KFA2"]) == 3


def test_a_dual_port_ssd_hangs_under_its_subsystem(b):
    assert "/nvme-subsystem/" in text(b, f"readlink -f /sys/class/block/$(basename $(readlink -f {BY_ID}KFB1))")
    assert "/pci0000:10/" in text(b, f"readlink -f /sys/class/block/$(basename $(readlink -f {BY_ID}KFB0))")


def test_the_system_disk_is_mounted(a):
    assert text(a, "findmnt -no FSTYPE /mnt/system") == "ext4"
    assert text(a, f"lsblk -no PARTLABEL {BY_ID}KFSYS") == "system"


def test_memory_and_processors_belong_to_numa_nodes(a):
    assert text(a, "cat /sys/devices/system/node/online; cat /sys/devices/system/node/node1/cpulist") == "0-1\n1"


def test_a_server_has_its_own_identity(servers):
    for server in servers:
        assert text(server, "hostname") == server.name
        assert text(server, "cat /sys/class/dmi/id/product_uuid").lower() == str(server.spec.uuid)
        assert text(server, "cat /etc/machine-id") == server.spec.machine_id


@pytest.mark.parametrize("surprise", [True, False])
def test_an_ssd_is_pulled_out_and_put_back(a, surprise):
    a.run(f"echo precious | dd of={BY_ID}KFA1 bs=512 conv=sync oflag=direct status=none")
    a.unplug_ssd("KFA1", surprise=surprise)
    assert "KFA1" not in serials(a)
    with pytest.raises(LabError, match="KFA1"):
        a.unplug_ssd("KFA1")
    a.plug_ssd("KFA1")
    assert "KFA1" in serials(a)
    assert text(a, f"head -c 9 {BY_ID}KFA1") == "precious"


def test_an_ssd_that_is_torn_out_takes_unwritten_data_along(a):
    a.run(f"mkfs.ext4 -qF {BY_ID}KFA2 && mkdir -p /mnt/torn && mount {BY_ID}KFA2 /mnt/torn")
    a.run("echo safe > /mnt/torn/safe; sync; echo lost > /mnt/torn/lost")
    a.unplug_ssd("KFA2")
    assert a.run("touch /mnt/torn/new && sync -f /mnt/torn", check=False).exit_code != 0
    a.run("umount /mnt/torn")
    a.plug_ssd("KFA2")
    assert text(a, f"mount {BY_ID}KFA2 /mnt/torn && cat /mnt/torn/*; ls -I lost+found /mnt/torn") == "safe\nsafe"
    a.run(f"umount /mnt/torn; wipefs -qa {BY_ID}KFA2")


def test_a_dual_port_ssd_comes_back_with_its_namespace(b):
    b.unplug_ssd("KFB1")
    b.plug_ssd("KFB1")
    assert text(b, f"blockdev --getsize64 {BY_ID}KFB1") == str(2 << 30)


def test_a_new_ssd_goes_into_an_empty_port(a):
    with pytest.raises(LabError, match="holds SSD KFA0"):
        a.plug_ssd("KFNEW", port="A0")
    a.plug_ssd("KFNEW", port="E1", size=64 << 20)
    assert text(a, f"blockdev --getsize64 {BY_ID}KFNEW") == str(64 << 20)
    assert a.plugged()["KFNEW"] == "E1"
    a.unplug_ssd("KFNEW")


# ---- Network and time


def test_servers_reach_each_other_until_the_cable_is_cut(a, b):
    def ping():
        return a.run(["ping", "-c1", "-W3", "gpu-b"], check=False).exit_code == 0

    assert ping()
    a.cut_cable()
    assert not ping()
    assert text(a, "cat /sys/class/net/eth0/carrier") == "1"
    a.mend_cable()
    assert ping()
    b.cut_cable(noticed=True)
    assert text(b, "cat /sys/class/net/eth0/carrier") == "0"
    assert not ping()
    b.mend_cable()
    assert ping()


def test_a_frozen_server_does_not_answer_and_knows_the_time_afterwards(a):
    a.freeze()
    try:
        with pytest.raises(LabTimeout, match="frozen"):
            a.run("true", timeout=1)
    finally:
        a.thaw()
    assert abs(float(text(a, "date +%s.%N")) - time.time()) < 5


def test_nvme_over_tcp_with_authentication_works(a, b):
    def key():
        secret = uuid.uuid4().bytes * 2
        return "DHHC-1:00:" + base64.b64encode(secret + zlib.crc32(secret).to_bytes(4, "little")).decode() + ":"

    subsystem, host_id, namespace = "nqn.2025-01.test:one", uuid.uuid4(), uuid.uuid4()
    host = f"nqn.2014-08.org.nvmexpress:uuid:{host_id}"
    host_key, controller_key = key(), key()
    a.run(f"""set -e; cd /sys/kernel/config/nvmet
        mkdir hosts/{host} subsystems/{subsystem} subsystems/{subsystem}/namespaces/1 ports/1
        cd hosts/{host}; echo '{host_key}' > dhchap_key; echo '{controller_key}' > dhchap_ctrl_key
        echo 'hmac(sha512)' > dhchap_hash; echo ffdhe2048 > dhchap_dhgroup
        cd ../../subsystems/{subsystem}; ln -s ../../hosts/{host} allowed_hosts/
        readlink -f {BY_ID}KFA0 > namespaces/1/device_path; echo {namespace} > namespaces/1/device_uuid
        echo 1 > namespaces/1/enable
        cd ../../ports/1; echo tcp > addr_trtype; echo ipv4 > addr_adrfam; echo {a.ip} > addr_traddr
        echo 4420 > addr_trsvcid; ln -s ../../subsystems/{subsystem} subsystems/""")
    options = (
        f"nqn={subsystem},transport=tcp,traddr={a.ip},trsvcid=4420,hostnqn={host},hostid={host_id},"
        f"dhchap_secret={host_key},dhchap_ctrl_secret={controller_key}"
    )
    b.run(["sh", "-c", "exec 3<> /dev/nvme-fabrics; cat >&3; cat <&3"], input=options.encode())
    disk = f"/dev/disk/by-id/nvme-uuid.{namespace}"
    b.run(f"udevadm settle; timeout 20 sh -c 'until [ -e {disk} ]; do sleep 0.2; done'")
    b.run(f"echo over the wire | dd of={disk} bs=512 conv=sync oflag=direct status=none")
    assert text(a, f"dd if={BY_ID}KFA0 bs=512 count=1 iflag=direct status=none | head -c 13") == "over the wire"[:13]
    b.run(["nvme", "disconnect", "-n", subsystem])
    a.run(f"""cd /sys/kernel/config/nvmet; rm ports/1/subsystems/{subsystem}
        echo 0 > subsystems/{subsystem}/namespaces/1/enable; rm subsystems/{subsystem}/allowed_hosts/{host}
        rmdir ports/1 subsystems/{subsystem}/namespaces/1 subsystems/{subsystem} hosts/{host}""")


# ---- Services and power


def test_a_service_runs_is_restarted_and_stops(a):
    a.service("demo", "echo started\nexec sleep 4243")
    pid = a.service_pid("demo")
    assert pid is not None
    assert "started" in a.service_log("demo")
    a.service_kill("demo")
    deadline = time.monotonic() + 20
    while a.service_pid("demo") in {pid, None}:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    a.service_stop("demo")
    assert a.service_pid("demo") is None
    a.service_start("demo")
    assert a.service_pid("demo") is not None


def test_a_reboot_keeps_files_services_and_ssds(a):
    a.put_file("/root/kept", b"kept")
    booted = text(a, "cat /proc/sys/kernel/random/boot_id")
    a.unplug_ssd("KFA2")
    a.reboot()
    assert text(a, "cat /proc/sys/kernel/random/boot_id") != booted
    assert a.get_file("/root/kept") == b"kept"
    assert a.service_pid("demo") is not None
    assert serials(a) == {"KFA0", "KFA1", "KFSYS"}
    a.plug_ssd("KFA2")


def test_a_power_cut_loses_what_was_not_written(a):
    a.put_file("/root/written", b"written")
    a.run("sync; echo lost > /root/lost")
    a.power_off_hard()
    assert not a.powered
    with pytest.raises(LabError, match="is off"):
        a.run("true")
    a.unplug_ssd("KFA1")
    a.start()
    a.wait_ready()
    assert a.get_file("/root/written") == b"written"
    assert a.run(["test", "-s", "/root/lost"], check=False).exit_code != 0
    assert "KFA1" not in serials(a)


def test_evidence_is_kept_of_a_server_that_is_on_and_of_one_that_is_off(servers, tmp_path):
    on, off = servers
    off.power_off_hard()
    for server in servers:
        server.save_failure(tmp_path)
    assert "boot:" in (tmp_path / off.name / f"{off.name}-console.log").read_text()
    assert "Linux version" in (tmp_path / on.name / "dmesg.txt").read_text()
