"""Strangers' disks, and strangers' uses of disks: a pool that takes every blank SSD takes none of them, nor a byte."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator

import pytest
import yaml

from fleet import NAMESPACE, Fleet, condition, is_ready, pool, volume
from kubeflash.domain.disk import LABEL_START, VOLUME_TYPE, Label, Partition
from kubeflash.host.claim import label_partition
from kubeflash.host.gpt import script_line
from lab.lab import Lab
from lab.processes import wait_until
from lab.servers import VirtualServer
from lab.spec import SPECS
from support import real
from support.real import BY_ID, MIB
from support.strangers import STRANGERS, WORDS, write

pytestmark = [pytest.mark.machine, pytest.mark.heavy, pytest.mark.timeout(900)]

OTHER_CLUSTER, OTHER_SERVER = "0b5e55ed-0000-4000-8000-000000000001", "0b5e55ed-0000-4000-8000-000000000002"
SMALL, LARGE = 64 * MIB, 320 * MIB
UNSIGNED = "data without a known signature"

# What is on each namespace, and the words of the reason for which it is refused.
BYTES = {
    **{f"KFC0-{number}": (name, WORDS.get(name, UNSIGNED)) for number, name in enumerate(STRANGERS, 1)},
    "KFC0-19": ("ext4", "ext4 signature"),
    "KFC0-20": ("gpt", "partition nvme"),
    "KFC0-21": ("another cluster's", f"of cluster {OTHER_CLUSTER}"),
    "KFC0-22": ("another server's", f"of server {OTHER_SERVER}"),
    "KFC0-23": ("a copy", "it carries the label of SSD KFC0-99: it is a copy"),
    "KFC1-2": ("data in the first 64 MiB", f"{UNSIGNED} in the MiB from byte {32 * MIB}"),
    "KFC1-3": ("data in the last 64 MiB", f"{UNSIGNED} in the MiB from byte {LARGE - 32 * MIB}"),
}
USES = {
    "KFC0-24": ("mkdir /mnt/far && unshare --mount sh -c 'mount -o ro,noload DISK /mnt/far && exec sleep 99999' &",
                r"mounted at /mnt/far in the mount namespace of sleep \(pid \d+\)"),
    "KFC0-25": ("mkswap -q DISK && swapon --priority 0 DISK", "used as swap"),
    "KFC0-26": ("modprobe dm_mod && dmsetup create --noudevsync theirs --table '0 131072 linear DISK 0'",
                r"part of dm-\d+ \(theirs\)"),
    "KFC0-27": ("modprobe loop && losetup --find DISK", r"behind loop device /dev/loop\d+"),
    "KFC0-28": ("cd /sys/kernel/config/nvmet/subsystems && mkdir theirs theirs/namespaces/1 && "
                "printf %s DISK > theirs/namespaces/1/device_path && echo 1 > theirs/namespaces/1/enable",
                r"exported by nvmet subsystem theirs \(namespace 1\)"),
    "KFC0-29": ("sleep 99999 < DISK &", r"open in sleep \(pid \d+\)"),
    "KFC0-30": ("sleep 99999 < $(echo DISK | sed s/nvme/ng/) &", r"open in sleep \(pid \d+\)"),
    "KFC1-1": ("mkfs.xfs -q DISK", "xfs signature"),
    "KFC1-4": ("mkdir /mnt/near && mount -o ro,noload DISK /mnt/near", "mounted at /mnt/near"),
}  # fmt: skip
BLANK = ("KFC0-31", "KFC0-32")


def image_of(server: VirtualServer, ssd: str):
    serial, _, number = ssd.partition("-")
    return server.image_file(serial, int(number))


def fill(server: VirtualServer, lab: Lab) -> None:
    """Before the server is switched on."""
    cluster, uuid = lab.control_plane.cluster_id, str(server.spec.uuid)
    for ssd in (f"KFC0-{number}" for number in range(1, len(STRANGERS) + 1)):
        write(str(image_of(server, ssd)), BYTES[ssd][0], SMALL)
    for ssd in ("KFC0-19", "KFC0-24", "KFC1-4"):
        subprocess.run(["mkfs.ext4", "-q", "-F", image_of(server, ssd)], check=True)
    table = ["sfdisk", "--quiet", "--label", "gpt", image_of(server, "KFC0-20")]
    subprocess.run(table, input=b"size=32MiB, name=theirs\n", check=True)
    for ssd, label in (
        ("KFC0-21", Label(OTHER_CLUSTER, OTHER_SERVER, "KFC0-21")),
        ("KFC0-22", Label(cluster, OTHER_SERVER, "KFC0-22")),
        ("KFC0-23", Label(cluster, uuid, "KFC0-99")),
    ):
        kubeflash(image_of(server, ssd), label)
    real.write_image(image_of(server, "KFC1-2"), 32 * MIB + 4321, b"precious")
    real.write_image(image_of(server, "KFC1-3"), LARGE - 32 * MIB + 4321, b"precious")


def kubeflash(image, label: Label) -> None:
    """An SSD with the table and label of some KubeFlash, and a volume on it."""
    data = Partition(2, 2 * MIB, 8 * MIB, label.disk_guid, label.disk_guid, VOLUME_TYPE)
    lines = "".join(script_line(part, 512) for part in (label_partition(label), data))
    script = f"label: gpt\nlabel-id: {label.disk_guid}\ntable-length: 256\nunit: sectors\n\n{lines}"
    subprocess.run(["sfdisk", "--quiet", image], input=script.encode(), check=True)
    real.write_image(image, LABEL_START, label.encode())
    real.write_image(image, data.start, b"somebody's volume" * 100)


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    """The server of strangers, its disks filled and in use, KubeFlash not installed yet."""
    description = yaml.safe_load((SPECS / "strangers.yaml").read_text())
    large = {"ssd": "C1", "serial": "KFC1", "size": "320Mi", "namespaces": 4}
    description["numa"][0]["roots"][0]["ports"].append(large)
    with real.lone_server(description, fill) as fleet:
        yield fleet


@pytest.fixture(scope="module")
def server(fleet: Fleet) -> VirtualServer:
    return fleet.servers["strangers"]


def link_of(ssd: str) -> str:
    return BY_ID + ssd.replace("-", "_")


@pytest.fixture(scope="module")
def before(server: VirtualServer) -> dict[str, str]:
    """What each stranger's SSD holds, byte by byte, once it is used as strangers use it."""
    for ssd, (command, _) in USES.items():
        disk = server.run(f"readlink -f {link_of(ssd)}").stdout_text.strip()
        words = command.replace("DISK", disk)
        server.run(words.replace(" &", " > /dev/null 2>&1 &") if words.endswith("&") else words, timeout=120)
    server.run("until grep -q /mnt/far /proc/*/mounts; do sleep 0.2; done; udevadm settle; sync", timeout=90)
    assert set(BLANK).isdisjoint({*BYTES, *USES})
    return {ssd: real.digest(image_of(server, ssd)) for ssd in (*BYTES, *USES)}


@pytest.fixture(scope="module")
def system_disk(server: VirtualServer) -> bytes:
    """The table of the disk that the server boots from."""
    return real.read_image(server.image_file("KFCSYS"), 0, MIB)


def reasons(fleet: Fleet) -> dict[str, str]:
    """By SSD: why the pool refuses it."""
    found = fleet.get("flashpool", "every", None)["status"].get("refused", [])
    return {item["ssd"]: item["reason"] for item in found}


def test_a_pool_of_every_blank_ssd_takes_the_blank_ones_and_says_of_each_other_what_is_there(
    fleet: Fleet, server, before, system_disk
):
    fleet.install()
    # a server that does not answer: silence is no consent to taking its SSD over
    fleet.apply({"apiVersion": "kubeflash.io/v1alpha1", "kind": "FlashNode", "metadata": {"name": "silent"}})
    silent = json.dumps({"status": {"systemUUID": OTHER_SERVER}})
    fleet.kubectl("patch", "flashnode", "silent", "--subresource=status", "--type=merge", "-p", silent)
    fleet.start_controller()
    fleet.start_agent("strangers")
    fleet.wait_ready("flashnode", "strangers", namespace=None, timeout=400)
    fleet.apply(pool("every", ssds={"all": True}))
    fleet.apply(*(volume(f"v{number}", "28Mi", pool="every") for number in range(5)))
    ready = lambda: [name for name in names if is_ready(fleet.get("flashvolume", name))]  # noqa: E731
    names = [f"v{number}" for number in range(5)]
    wait_until("the blank SSDs are full", lambda: len(ready()) == 4, timeout=400, interval=1)
    ssds = [fleet.get("flashvolume", name)["status"]["ssd"] for name in ready()]
    assert sorted(ssds) == sorted([*BLANK, *BLANK])
    (left,) = set(names) - set(ready())
    waits = fleet.wait("flashvolume", left, lambda it: condition(it, "Ready").get("reason") == "NoSpace", timeout=60)
    assert "nodeName" not in waits["status"]

    told = {item["id"]: item for item in fleet.get("flashnode", "strangers", None)["status"]["ssds"]}
    refused = reasons(fleet)
    words = {ssd: re.escape(text) for ssd, (_, text) in BYTES.items()} | {ssd: text for ssd, (_, text) in USES.items()}
    words["KFCSYS-1"] = "mounted at /mnt/system"
    assert set(refused) == set(words)
    for ssd, wanted in words.items():
        assert told[ssd]["state"] == "Foreign", ssd
        assert re.search(wanted, refused[ssd]), (ssd, refused[ssd])
        assert told[ssd]["reason"] == refused[ssd]
        assert not told[ssd].get("volumes") or ssd == "KFC0-22", ssd


def test_a_partition_that_somebody_added_by_hand_is_left_alone_and_leaves_the_volumes_alone(fleet: Fleet, server):
    volumes = {name: fleet.get("flashvolume", f"v{name}") for name in range(5)}
    ssd = volumes[min(name for name, found in volumes.items() if is_ready(found))]["status"]["ssd"]
    extents = real.ssd_of(fleet.get("flashnode", "strangers", None), ssd)["volumes"]
    first, second = (item["volume"].partition("/")[2] for item in sorted(extents, key=lambda item: item["start"]))
    image, (start, end) = image_of(server, ssd), (60 * MIB, 62 * MIB)
    assert max(item["start"] + item["bytes"] for item in extents) <= start
    link = f"/dev/disk/by-partuuid/{fleet.get('flashvolume', first)['spec']['id']}"
    server.run(f"until [ -e {link} ]; do sleep 0.2; done; mkfs.ext4 -q {link} && mkdir /mnt/v && mount {link} /mnt/v")
    server.run("echo precious > /mnt/v/file && sync -f /mnt/v")
    line = f"start={start // 512}, size={(end - start) // 512}, type=linux, name=theirs"
    server.run(f"echo '{line}' | sfdisk --quiet --append --no-reread {link_of(ssd)} && partx -a --nr 4 {link_of(ssd)}")
    server.run(f"printf by-hand | dd of={link_of(ssd)}-part4 conv=fsync status=none")
    theirs = real.read_image(image, start, end - start)

    foreign = lambda it: real.ssd_of(it, ssd)["state"] == "Foreign"  # noqa: E731
    node = fleet.wait("flashnode", "strangers", foreign, namespace=None, timeout=90)
    assert "added partition 4 that is not KubeFlash's: no new volumes" in real.ssd_of(node, ssd)["reason"]
    assert real.ssd_of(node, ssd)["volumes"] == extents
    fleet.kubectl("patch", "flashvolume", second, "-n", NAMESPACE, "--type=merge", "-p", '{"spec":{"size":"32Mi"}}')
    small = fleet.wait("flashvolume", second, lambda it: real.said(it, "Resized")[0] == "False", timeout=90)
    assert is_ready(small)
    assert small["status"]["bytes"] == 28 * MIB
    fleet.delete("flashvolume", second, timeout=180)
    begin, count = next((it["start"], it["bytes"]) for it in extents if it["volume"] == f"{NAMESPACE}/{second}")
    assert not real.read_image(image, begin, count).strip(b"\0")
    refused = fleet.wait("flashpool", "every", lambda it: ssd in reasons(fleet), namespace=None, timeout=60)
    assert refused["status"]["summary"]["ssds"] == 1
    (left,) = (f"v{name}" for name, found in volumes.items() if not is_ready(found))
    waits = fleet.wait("flashvolume", left, lambda it: condition(it, "Ready").get("reason") == "NoSpace", timeout=60)
    assert "nodeName" not in waits["status"]
    assert is_ready(fleet.get("flashvolume", first))
    assert server.run("cat /mnt/v/file; umount /mnt/v").stdout == b"precious\n"
    assert real.read_image(image, start, end - start) == theirs


def test_not_one_byte_of_a_stranger_has_changed(fleet: Fleet, server, before, system_disk):
    server.run("grep -q /mnt/near /proc/mounts && swapon --show=NAME --noheadings && test -b /dev/mapper/theirs")
    server.power_off_hard()
    assert {ssd: real.digest(image_of(server, ssd)) for ssd in before} == before
    assert real.read_image(server.image_file("KFCSYS"), 0, MIB) == system_disk
    fleet.stop_controller()
