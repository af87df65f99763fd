"""The virtual servers do what tests ask of them. One boot for all tests; those that switch servers off come last."""

from __future__ import annotations

import base64
import json
import struct
import time
import uuid
import zlib

import pytest

from lab.errors import CommandError, LabError, LabTimeout

pytestmark = [pytest.mark.machine, pytest.mark.heavy, pytest.mark.long, pytest.mark.timeout(300)]

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


def dd(server, serial, *options):
    """One dd in direct mode, of a file or from one; whether it succeeded."""
    done = server.run(["dd", "bs=4k", "status=none", *(one.format(f"{BY_ID}{serial}") for one in options)], check=False)
    assert done.exit_code == 0 or b"No data available" in done.stderr, done.stderr
    return done.exit_code == 0


def reads(server, serial, block=0):
    return dd(server, serial, "if={}", "of=/dev/null", "count=1", "iflag=direct", f"skip={block}")


def writes(server, serial, block=0):
    return dd(server, serial, "if=/dev/zero", "of={}", "count=1", "oflag=direct", f"seek={block}")


def gpt(path):
    """Both copies of a disk's partition table, the first one first: header and entries."""
    with path.open("rb") as file:
        file.seek(512)
        first = file.read(512), file.read(32 * 512)
        file.seek(-33 * 512, 2)
        entries = file.read(32 * 512)
        return first, (file.read(512), entries)


def is_whole(header, entries):
    size, crc = struct.unpack_from("<II", header, 12)
    zeroed = header[:16] + bytes(4) + header[20:size]
    return zlib.crc32(zeroed) == crc and zlib.crc32(entries) == struct.unpack_from("<I", header, 88)[0]


def wait_for(condition, seconds=20, pause=0.1):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(pause)


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


def test_processors_lack_the_instruction_that_the_emulator_gets_wrong(a):
    assert a.run("grep -cw cx8 /proc/cpuinfo").stdout_text.strip() == "2"
    assert a.run("grep -cw cx16 /proc/cpuinfo", check=False).stdout_text.strip() == "0"


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


# ---- Bad SSDs


def test_a_broken_ssd_fails_what_it_is_told_to_until_it_is_mended(a):
    assert writes(a, "KFA1", 2)
    disk = text(a, f"basename $(readlink -f {BY_ID}KFA1)")
    a.break_ssd("KFA1", writes=False, sectors=[19])
    assert not reads(a, "KFA1", 2)
    assert f"critical medium error, dev {disk}, sector 16 op 0x0:(READ)" in text(a, "dmesg")
    assert reads(a, "KFA1", 1)
    assert reads(a, "KFA1", 3)
    assert writes(a, "KFA1", 2)
    a.break_ssd("KFA1", reads=False)
    assert reads(a, "KFA1", 2)
    assert not writes(a, "KFA1")
    a.break_ssd("KFA1")
    assert not reads(a, "KFA1")
    assert reads(a, "KFA0")
    a.mend_ssd("KFA1")
    a.mend_ssd("KFA1")
    assert reads(a, "KFA1")
    assert writes(a, "KFA1")
    with pytest.raises(LabError, match="no namespace 2"):
        a.break_ssd("KFA1", namespace=2)


def test_a_smart_warning_is_in_the_log_and_is_an_event_for_who_asked_for_it(a):
    disk = f"{BY_ID}KFA2"

    def warning():
        return json.loads(text(a, f"nvme smart-log {disk} --output-format=json"))["critical_warning"]

    assert warning() == 0
    a.run("udevadm monitor --kernel --property --subsystem-match=nvme > /tmp/events 2>&1 & echo $! > /tmp/monitor")
    wait_for(lambda: text(a, "cat /tmp/events") != "")
    a.set_smart_warning("KFA2", 4)
    assert warning() == 4
    a.set_smart_warning("KFA2", 0)
    controller = text(a, f"readlink -f {disk}").removesuffix("n1")
    a.run(f"nvme set-feature {controller} --feature-id=0x0b --value=0x1ff")  # Linux does not ask for them
    a.set_smart_warning("KFA2", 8)
    wait_for(lambda: "NVME_AEN=" in text(a, "cat /tmp/events"))
    a.run("kill $(cat /tmp/monitor)")
    assert text(a, "grep NVME_AEN /tmp/events") == "NVME_AEN=0x020001", "not one event, of the second warning"
    assert warning() == 8
    a.set_smart_warning("KFA2", 0)


def test_a_throttled_ssd_is_slow(a):
    def seconds():
        began = time.monotonic()
        assert dd(a, "KFA1", "if={}", "of=/dev/null", "count=10", "iflag=direct")
        return time.monotonic() - began

    a.throttle_ssd("KFA1", 5)
    assert seconds() > 1.5
    a.throttle_ssd("KFA1", 5, writes_only=True)
    assert seconds() < 1
    a.throttle_ssd("KFA1", None)


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


def test_an_ssd_moves_to_another_server_with_its_content_and_its_faults(a, b):
    b.run(f"echo belongs to b | dd of={BY_ID}KFB0 bs=512 conv=sync oflag=direct status=none")
    b.break_ssd("KFB0", writes=False, sectors=[64])
    b.set_smart_warning("KFB0", 4)
    with pytest.raises(LabError, match="holds SSD KFA0"):
        b.move_ssd("KFB0", a, port="A0")
    with pytest.raises(LabError, match=r"KFB1 \(dual port\) only at a start"):
        b.move_ssd("KFB1", a)
    b.move_ssd("KFB0", a)
    assert serials(b) == {"KFB1"}
    assert text(a, f"head -c 12 {BY_ID}KFB0") == "belongs to b"
    assert not reads(a, "KFB0", 8)
    assert "0x4" in text(a, f"nvme smart-log {BY_ID}KFB0 | grep ^critical_warning")
    with a.image_file("KFB0").open("rb") as file:
        assert file.read(12) == b"belongs to b"
    with pytest.raises(LabError, match="gpu-b has no SSD KFB0"):
        b.image_file("KFB0")


def test_a_reboot_keeps_files_services_and_ssds(a):
    a.put_file("/root/kept", b"kept")
    booted = text(a, "cat /proc/sys/kernel/random/boot_id")
    a.unplug_ssd("KFA2")
    a.reboot()
    assert text(a, "cat /proc/sys/kernel/random/boot_id") != booted
    assert a.get_file("/root/kept") == b"kept"
    assert a.service_pid("demo") is not None
    assert serials(a) == {"KFA0", "KFA1", "KFSYS", "KFB0"}
    assert text(a, f"head -c 12 {BY_ID}KFB0") == "belongs to b"
    assert not reads(a, "KFB0", 8)
    assert "0x4" in text(a, f"nvme smart-log {BY_ID}KFB0 | grep ^critical_warning")
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


def test_a_power_cut_in_the_middle_of_sfdisk_leaves_a_torn_partition_table(b):
    disk, file = f"{BY_ID}KFB1", b.image_file("KFB1")
    b.run(f"echo 'size=100M, name=one' | sfdisk --quiet --label gpt {disk}")
    old = gpt(file)
    assert is_whole(*old[0])
    assert is_whole(*old[1])
    b.throttle_ssd("KFB1", 1, writes_only=True)
    b.run(f"echo 'size=100M, name=two' | sfdisk --quiet --append {disk} > /dev/null 2>&1 &")
    # It writes the second copy first, then the entries of the first copy, its header last: a second between them.
    wait_for(lambda: gpt(file)[0] != old[0], pause=0.01)
    b.power_off_hard()
    torn = gpt(file)
    assert torn[0][0] == old[0][0], "what was held back was written"
    assert not is_whole(*torn[0])
    assert is_whole(*torn[1])
    assert torn[1] != old[1]


def test_an_ssd_moves_out_of_a_server_that_is_off_and_does_not_come_back_in_it(a, b):
    assert not b.powered
    torn = gpt(b.image_file("KFB1"))
    a.move_ssd("KFB0", b)
    assert "KFB0" not in serials(a)
    with b.image_file("KFB0").open("r+b") as file:
        file.write(b"from outside")
    b.move_ssd("KFB0", a)
    assert text(a, f"head -c 12 {BY_ID}KFB0") == "from outside"
    b.start()
    b.wait_ready()
    assert serials(b) == {"KFB1"}
    assert gpt(b.image_file("KFB1")) == torn
    assert b.run(f"dd if={BY_ID}KFB1 bs=512 skip=1 count=33 status=none").stdout == b"".join(torn[0])


def test_evidence_is_kept_of_a_server_that_is_on_and_of_one_that_is_off(servers, tmp_path):
    on, off = servers
    off.power_off_hard()
    for server in servers:
        server.save_failure(tmp_path)
    assert "boot:" in (tmp_path / off.name / f"{off.name}-console.log").read_text()
    assert "Linux version" in (tmp_path / on.name / "dmesg.txt").read_text()


# ---- A server of strangers' disks


def fill(server):
    """Before it is switched on: a text in one of the namespaces."""
    with server.image_file("KFC0", 7).open("r+b") as file:
        file.write(b"somebody was here")


def test_a_server_with_many_small_namespaces_starts_from_files_that_were_filled_before(strangers):
    found = json.loads(text(strangers, "lsblk --json --bytes --nodeps --output NAME,SIZE,SERIAL"))["blockdevices"]
    small = [disk for disk in found if disk["serial"] == "KFC0"]
    assert len(small) == 32
    assert {disk["size"] for disk in small} == {64 << 20}
    assert text(strangers, f"head -c 17 {BY_ID}KFC0_7") == "somebody was here"
    paths = {line.split()[0]: line.split()[2].split("/")[3:] for line in text(strangers, PCI_PATHS).splitlines()}
    assert paths["KFC0"][:3] == paths["gpu"][:3]


def test_namespaces_break_one_by_one_and_none_is_plugged_into_a_server_that_is_on(strangers):
    strangers.break_ssd("KFC0", namespace=3)
    assert not reads(strangers, "KFC0_3")
    assert reads(strangers, "KFC0_4")
    strangers.throttle_ssd("KFC0", 1000)
    strangers.unplug_ssd("KFC0")
    with pytest.raises(LabError, match=r"32 namespaces\) only at a start"):
        strangers.plug_ssd("KFC0")
