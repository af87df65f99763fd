"""The whole product on two virtual servers: real kernels, NVMe behind PCIe switches, NVMe/TCP between them."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import pytest

from fleet import JSON, NAMESPACE, Fleet, attachment, condition, pool, volume
from support import scenarios
from support.real import RealServers

SETTLE = 45


@pytest.fixture(scope="module")
def walking(fleet: Fleet) -> Iterator[RealServers]:
    fleet.start()
    for name in fleet.servers:
        fleet.wait_ready("flashnode", name, namespace=None, timeout=240)
    yield RealServers(fleet)
    fleet.stop_controller()


def gpu_with(fleet: Fleet, serial: str) -> str:
    status = fleet.get("flashnode", "gpu-a", None)["status"]
    ssd_id = next(item["id"] for item in status["ssds"] if item["serial"] == serial)
    return next(gpu["address"] for gpu in status["gpus"] if gpu.get("nearest", {}).get("ssd") == ssd_id)


def test_discovery_finds_what_the_description_says(fleet: Fleet, walking):
    status = fleet.get("flashnode", "gpu-a", None)["status"]
    ssds = {item["serial"]: item for item in status["ssds"]}
    assert set(ssds) == {"KFA0", "KFA1", "KFA2", "KFSYS"}
    assert {serial: item["state"] for serial, item in ssds.items()} == {
        "KFA0": "Blank",
        "KFA1": "Blank",
        "KFA2": "Blank",
        "KFSYS": "Foreign",
    }
    assert "mounted at" in ssds["KFSYS"]["reason"]
    by_id = {item["id"]: serial for serial, item in ssds.items()}
    nearest = [(by_id[gpu["nearest"]["ssd"]], gpu["nearest"]["distance"], gpu["numaNode"]) for gpu in status["gpus"]]
    assert sorted(nearest) == [("KFA0", "PIX", 0), ("KFA1", "PXB", 0), ("KFA2", "PHB", 1)]
    abilities = ("nvmet", "nvmetTcp", "nvmeTcp", "authentication", "tls")
    assert {name: status["linux"][name]["available"] for name in abilities} == dict.fromkeys(abilities, True)
    assert all(status["linux"][name]["how"] for name in (*abilities, "nvmetRdma"))
    assert status["internalAddress"] == "10.77.0.11"
    assert all(hop["kind"] != "Unknown" for gpu in status["gpus"] for hop in gpu["path"])
    assert ssds["KFA0"]["link"]["maxWidth"] >= 1
    assert ssds["KFA0"]["health"]["percentageUsed"] == 0
    assert [(item["distance"], item["p2p"].get("possible")) for item in status["pairs"]] == [
        ("PIX", True),
        ("PXB", True),
        ("PHB", None),
    ]


def distances_there(walking: RealServers, command: str) -> dict[tuple[str, str], str]:
    found = json.loads(walking.shell("gpu-a", f"{command} --gpu 1234:0380 -o json", timeout=120))
    return {(item["gpu"], item["ssd"]): item["distance"] for item in found["distances"]}


def test_the_cluster_the_machine_itself_and_its_lspci_say_the_same(fleet: Fleet, walking):
    found = json.loads(fleet.flash("topology", "gpu-a", "-o", "json"))
    told = {(item["gpu"], item["ssd"]): item["distance"] for item in found["distances"]}
    assert len(told) == 12
    assert set(told.values()) == {"PIX", "PXB", "PHB", "SYS"}
    here = "python3 -m kubeflash.cli topology"
    assert distances_there(walking, f"{here} --local") == told
    assert distances_there(walking, f"lspci -vvv | {here} -f -") == told
    assert distances_there(walking, f"lspci -vvvnn | {here} -f -") == told


def test_the_whole_thread(fleet: Fleet, walking):
    scenarios.the_whole_thread(fleet, walking, gpu_with(fleet, "KFA0"), "KFA0")


def test_bad_input(fleet: Fleet, walking):
    scenarios.bad_input(fleet, "KFA1")


def test_the_system_disk_is_refused_and_not_one_byte_of_it_changes(fleet: Fleet, walking):
    disk = walking.disk("gpu-a", "KFSYS")
    before = walking.shell("gpu-a", f"sync; head -c 1048576 {disk} | sha256sum; sfdisk -J {disk}")
    fleet.apply(pool("greedy", "KFSYS"))
    said = fleet.wait("flashpool", "greedy", lambda it: it.get("status", {}).get("refused"), namespace=None)
    assert "mounted at" in said["status"]["refused"][0]["reason"]
    assert condition(said, "Ready")["status"] == "False"
    fleet.apply(volume("greedy", "1Mi", pool="greedy"))
    fleet.wait("flashvolume", "greedy", lambda it: condition(it, "Ready").get("reason") == "PoolEmpty")
    assert walking.shell("gpu-a", f"sync; head -c 1048576 {disk} | sha256sum; sfdisk -J {disk}") == before
    fleet.delete("flashvolume", "greedy")
    fleet.kubectl("delete", "flashpool", "greedy")


def test_data_without_a_signature_is_not_blank(fleet: Fleet, walking):
    disk = walking.disk("gpu-a", "KFA2")
    walking.shell("gpu-a", f"printf engine-cache | dd of={disk} bs=1 seek=4096 conv=notrunc,fsync status=none")
    fleet.apply(pool("dirty", "KFA2"))
    try:
        said = fleet.wait(
            "flashpool", "dirty", lambda it: it.get("status", {}).get("refused"), namespace=None, timeout=90
        )
        assert "not blank" in said["status"]["refused"][0]["reason"]
    finally:
        walking.shell("gpu-a", f"dd if=/dev/zero of={disk} bs=4096 seek=1 count=1 conv=notrunc,fsync status=none")
    fleet.wait_ready("flashpool", "dirty", namespace=None, timeout=90)
    fleet.kubectl("delete", "flashpool", "dirty")


def test_what_one_server_wrote_the_other_reads(fleet: Fleet, walking):
    fleet.apply(pool("data", "KFA0"), volume("d0", "320Mi", pool="data", node="gpu-a", gpu=gpu_with(fleet, "KFA0")))
    fleet.wait_ready("flashvolume", "d0")
    fleet.apply(attachment("d0-on-a", "d0", "gpu-a"))
    device = fleet.wait_ready("flashattachment", "d0-on-a")["status"]["device"]
    walking.shell("gpu-a", f"mkfs.xfs -q {device} && mkdir -p /mnt/t && mount {device} /mnt/t", timeout=120)
    written = walking.shell(
        "gpu-a", "dd if=/dev/urandom of=/mnt/t/f bs=1M count=16 conv=fsync status=none; sha256sum < /mnt/t/f"
    )

    fleet.kubectl("delete", "flashattachment", "d0-on-a", "-n", NAMESPACE, "--wait=false")
    held = fleet.wait("flashattachment", "d0-on-a", lambda it: condition(it, "Ready").get("reason") == "InUse")
    assert "/mnt/t" in condition(held, "Ready")["message"], "a mounted device is not taken away, and it says by whom"
    walking.shell("gpu-a", "umount /mnt/t")
    fleet.wait_gone("flashattachment", "d0-on-a", timeout=120)

    fleet.apply(attachment("d0-on-b", "d0", "gpu-b"))
    device = fleet.wait_ready("flashattachment", "d0-on-b")["status"]["device"]
    read = walking.shell("gpu-b", f"mkdir -p /mnt/t && mount {device} /mnt/t && sha256sum < /mnt/t/f", timeout=120)
    assert read == written

    fleet.kubectl("delete", "flashattachment", "d0-on-b", "-n", NAMESPACE, "--wait=false")
    held = fleet.wait("flashattachment", "d0-on-b", lambda it: condition(it, "Ready").get("reason") == "InUse")
    assert "/mnt/t" in condition(held, "Ready")["message"]
    assert walking.shell("gpu-b", "sha256sum < /mnt/t/f") == written, "the export stays while it is held"
    walking.shell("gpu-b", "umount /mnt/t")
    fleet.wait_gone("flashattachment", "d0-on-b", timeout=120)


def test_keys_are_root_s_alone_and_in_no_argument_list_or_log(fleet: Fleet, walking):
    fleet.apply(attachment("d0-again", "d0", "gpu-b"))
    fleet.wait_ready("flashattachment", "d0-again")
    modes = walking.shell(
        "gpu-a",
        "stat -c %a /sys/kernel/config/nvmet/hosts/*/dhchap_key /sys/kernel/config/nvmet/hosts/*/dhchap_ctrl_key",
    )
    assert set(modes.split()) == {"600"}
    secret = walking.shell("gpu-a", "cat /sys/kernel/config/nvmet/hosts/*/dhchap_key").strip()
    assert secret.startswith("DHHC-1:")
    for server in ("gpu-a", "gpu-b"):
        assert secret not in fleet.servers[server].service_log("agent")
        assert secret not in walking.shell(server, "cat /proc/*/cmdline 2>/dev/null | tr '\\0' ' '")
    assert secret not in fleet.controller.log_file.read_text()
    assert secret not in json.dumps(fleet.get("flashattachment", "d0-again"))
    assert secret not in json.dumps(fleet.get("flashvolume", "d0"))
    identity = fleet.get("flashattachment", "d0-again")["status"]["fabric"]
    portal = identity["portals"][0].removeprefix("tcp://").split(":")
    stranger = fleet.servers["gpu-b"].run(
        f"nvme connect -t tcp -a {portal[0]} -s {portal[1]} -n {identity['nqn']} -q nqn.2014-08.org.example:stranger",
        check=False,
    )
    assert stranger.exit_code != 0, "a host that is not on the list is refused"
    fleet.delete("flashattachment", "d0-again")


def test_released_bytes_are_zero(fleet: Fleet, walking):
    status = fleet.get("flashnode", "gpu-a", None)["status"]
    ssd = next(item for item in status["ssds"] if item["serial"] == "KFA0")
    (extent,) = ssd["volumes"]
    fleet.delete("flashvolume", "d0")
    disk = walking.disk("gpu-a", "KFA0")
    first, count = extent["start"] >> 20, extent["bytes"] >> 20
    left = walking.shell(
        "gpu-a",
        f"dd if={disk} bs=1M skip={first} count={count} status=none iflag=direct | tr -d '\\0' | wc -c",
        timeout=120,
    )
    assert left.strip() == "0"
    fleet.kubectl("delete", "flashpool", "data")


def test_an_ssd_that_is_pulled_or_put_in_is_seen_within_seconds(fleet: Fleet, walking):
    server = fleet.servers["gpu-a"]
    before = fleet.get("flashnode", "gpu-a", None)["status"]
    server.unplug_ssd("KFA1")
    gone = lambda it: "KFA1" not in {ssd["serial"] for ssd in it["status"]["ssds"]}  # noqa: E731
    without = fleet.wait("flashnode", "gpu-a", gone, namespace=None, timeout=SETTLE)
    assert condition(without, "TopologySound")["reason"] == "PairsWorse"
    assert "had KFA1-1 at PXB" in condition(without, "TopologySound")["message"]
    left = set(paired_in(before)) - set(paired_in(without["status"]))
    assert {ssd for _, ssd in left} == {"KFA1-1"}, "no other pair moves"
    server.plug_ssd("KFA1")
    # The kernel shows a controller a moment before its namespace, and only a namespace can be paired.
    paired = lambda it: paired_in(it["status"]) == paired_in(before)  # noqa: E731
    fleet.wait("flashnode", "gpu-a", paired, namespace=None, timeout=SETTLE)
    deadline = time.monotonic() + SETTLE
    while not {"was", "is"} <= told_of(fleet, "KFA1-1 at PXB"):
        assert time.monotonic() < deadline, "no event says that the SSD left its GPU, and that it came back"
        time.sleep(0.5)


def paired_in(status: JSON) -> list[tuple[str, str]]:
    """Each pair's GPU and SSD, in their order."""
    return [(item["gpu"], item["id"]) for item in status["pairs"]]


def told_of(fleet: Fleet, pair: str) -> set[str]:
    """On which side of the arrow "was → is" the events about pairs name this one."""
    found = json.loads(fleet.kubectl("get", "events.v1.events.k8s.io", "-n", "default", "-o", "json"))["items"]
    sides = [item["note"].partition("→") for item in found if item["reason"] == "PairsChanged"]
    return {side for was, _, now in sides for side, text in (("was", was), ("is", now)) if pair in text}


def test_the_agent_leaves_on_sigterm_and_takes_its_lease_up_again(fleet: Fleet, walking):
    server = fleet.servers["gpu-b"]
    server.service_stop("agent")  # raises when SIGKILL was needed
    stopped = fleet.get("lease", "agent-gpu-b", "kubeflash-system")["spec"]
    assert stopped["holderIdentity"] == str(fleet.servers["gpu-b"].spec.uuid), "an upgrade must not look like a death"
    server.service_start("agent")
    renewed = lambda it: it["spec"]["renewTime"] > stopped["renewTime"]  # noqa: E731
    fleet.wait("lease", "agent-gpu-b", renewed, namespace="kubeflash-system", timeout=240)


def test_a_second_agent_on_one_server_is_refused_in_one_line(fleet: Fleet, walking):
    second = fleet.servers["gpu-a"].run(
        "KUBECONFIG=/etc/kubeflash/kubeconfig python3 -m kubeflash.agent --node gpu-a", check=False, timeout=240
    )
    assert second.exit_code == 1
    assert "another agent (pid" in second.stderr_text
    assert "Traceback" not in second.stderr_text


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--kubeconfig /nowhere", "KubeconfigInvalid"),
        ("--kubeconfig /etc/kubeflash/kubeconfig --gpu nonsense", "four hex digits"),
    ],
)
def test_a_wrong_start_is_one_line_and_no_traceback(fleet: Fleet, walking, options, words):
    wrong = fleet.servers["gpu-b"].run(f"python3 -m kubeflash.agent {options}", check=False, timeout=240)
    assert wrong.exit_code == 1
    assert words in wrong.stderr_text
    assert "Traceback" not in wrong.stderr_text


def test_a_plan_is_printed_and_not_carried_out(fleet: Fleet, walking):
    fleet.servers["gpu-a"].service_stop("agent")
    fleet.apply(pool("planned", "KFA2"), volume("p0", "1Mi", pool="planned"))
    fleet.wait("flashvolume", "p0", lambda it: condition(it, "Placed").get("status") == "True")
    done = fleet.servers["gpu-a"].run(
        "KUBECONFIG=/etc/kubeflash/kubeconfig python3 -m kubeflash.agent --node gpu-a --plan", timeout=240
    )
    assert "claim SSD" in done.stdout_text
    assert "carve volume" in done.stdout_text
    assert walking.partitions("gpu-a") == set()
    fleet.servers["gpu-a"].service_start("agent")
    fleet.wait_ready("flashvolume", "p0", timeout=240)
    fleet.delete("flashvolume", "p0")
    fleet.kubectl("delete", "flashpool", "planned")


def test_io_goes_on_while_the_api_server_is_gone_and_all_is_well_30_s_after_its_return(fleet: Fleet, walking):
    fleet.apply(pool("out", "KFA0"))
    fleet.wait_ready("flashpool", "out", namespace=None)
    usual = fleet.seconds_to("Ready", volume("o0", "64Mi", pool="out", node="gpu-a"))
    fleet.apply(attachment("o0-on-b", "o0", "gpu-b"))
    device = fleet.wait_ready("flashattachment", "o0-on-b")["status"]["device"]
    fleet.lab.control_plane.pause()
    fio = (
        f"fio --name=x --filename={device} --rw=randwrite --verify=crc32c --bs=64k --size=48M --direct=1 "
        "--ioengine=libaio --time_based --runtime=45 --verify_backlog=64"
    )
    walking.shell("gpu-b", fio, timeout=150)
    fleet.lab.control_plane.resume()
    after = fleet.seconds_to("Ready", volume("o1", "1Mi", pool="out", node="gpu-a"))
    assert after < 30 + usual, "what any volume takes on these emulated processors is not the outage's"
    fleet.delete("flashattachment", "o0-on-b")
    fleet.kubectl("delete", "flashvolume", "o0", "o1", "-n", NAMESPACE, "--timeout=60s")
    fleet.kubectl("delete", "flashpool", "out")


def test_after_a_reboot_of_its_server_a_volume_is_there_and_its_export_is_rebuilt(fleet: Fleet, walking):
    fleet.apply(pool("boot", "KFA0"), volume("b0", "64Mi", pool="boot", node="gpu-a"))
    before = fleet.wait_ready("flashvolume", "b0")
    fleet.apply(attachment("b0-on-b", "b0", "gpu-b"))
    attached = fleet.wait_ready("flashattachment", "b0-on-b")
    device = attached["status"]["device"]
    walking.shell("gpu-b", f"printf survives | dd of={device} bs=4096 conv=fsync,sync status=none")
    paired = fleet.get("flashnode", "gpu-a", None)["status"]["pairs"]
    fleet.servers["gpu-a"].reboot()
    read = fleet.servers["gpu-b"].run(f"dd if={device} bs=8 count=1 iflag=fullblock status=none", timeout=180)
    assert read.stdout_text == "survives", "the consumer's device waited and goes on"
    now = fleet.wait_ready("flashattachment", "b0-on-b", timeout=240)
    assert now["status"]["fabric"]["portals"] == attached["status"]["fabric"]["portals"]
    assert fleet.get("flashvolume", "b0")["spec"]["id"] == before["spec"]["id"]
    assert fleet.get("flashnode", "gpu-a", None)["status"]["pairs"] == paired, "pairs are the same from boot to boot"
    fleet.delete("flashattachment", "b0-on-b")
    fleet.delete("flashvolume", "b0")
    fleet.kubectl("delete", "flashpool", "boot")
