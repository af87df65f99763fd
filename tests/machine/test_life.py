"""What becomes of volumes in time: they grow, move, outlive reboots and bad SSDs, and leave as they were asked to."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from fleet import NAMESPACE, Fleet, attachment, condition, is_ready, pool, volume
from lab.processes import wait_until
from support import real
from support.real import BY_ID, MIB, RealServers

pytestmark = [pytest.mark.machine, pytest.mark.heavy, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def living(fleet: Fleet) -> Iterator[RealServers]:
    fleet.start()
    for name in fleet.servers:
        fleet.wait_ready("flashnode", name, namespace=None, timeout=180)
    yield RealServers(fleet)
    fleet.stop_controller()


def grow(fleet: Fleet, name: str, size: str) -> None:
    patch = json.dumps({"spec": {"size": size}})
    fleet.kubectl("patch", "flashvolume", name, "-n", NAMESPACE, "--type=merge", "-p", patch)


def bytes_of(link: str) -> str:
    return f"blockdev --getsize64 {link}"


def look_again(fleet: Fleet, node: str) -> None:
    """Has the agent look at its server now, and not within a minute: any change of its FlashNode does."""
    fleet.kubectl("annotate", "flashnode", node, "look=again", "--overwrite")
    fleet.kubectl("annotate", "flashnode", node, "look-")


def test_a_mounted_volume_and_an_exported_one_on_the_same_ssd_grow_while_they_are_used(fleet: Fleet, living):
    fleet.apply(pool("life", "KFA1"), volume("mounted", "320Mi", pool="life"))
    fleet.wait_ready("flashvolume", "mounted", timeout=180)
    fleet.apply(attachment("mounted-here", "mounted", "gpu-a"))
    device = fleet.wait_ready("flashattachment", "mounted-here")["status"]["device"]
    living.shell("gpu-a", f"mkfs.xfs -q {device} && mkdir -p /mnt/m && mount {device} /mnt/m", timeout=180)
    written = living.shell(
        "gpu-a", "dd if=/dev/urandom of=/mnt/m/f bs=1M count=8 conv=fsync status=none; sha256sum < /mnt/m/f"
    )
    before = int(living.shell("gpu-a", "findmnt -nbo SIZE /mnt/m"))
    grow(fleet, "mounted", "448Mi")
    fleet.wait("flashvolume", "mounted", lambda it: it["status"]["bytes"] == 448 * MIB)
    living.shell("gpu-a", "xfs_growfs /mnt/m > /dev/null")
    assert int(living.shell("gpu-a", "findmnt -nbo SIZE /mnt/m")) - before > 120 * MIB
    assert living.shell("gpu-a", "sha256sum < /mnt/m/f") == written

    fleet.apply(volume("exported", "32Mi", pool="life"))  # behind it
    fleet.wait_ready("flashvolume", "exported")
    fleet.apply(attachment("exported-there", "exported", "gpu-b"))
    device = fleet.wait_ready("flashattachment", "exported-there")["status"]["device"]
    living.shell("gpu-b", f"printf remote | dd of={device} seek=31 bs=1M conv=sync,fsync status=none")
    grow(fleet, "exported", "64Mi")
    grow(fleet, "mounted", "512Mi")
    fleet.wait("flashvolume", "exported", lambda it: it["status"]["bytes"] == 64 * MIB)
    assert living.shell("gpu-b", bytes_of(device)).strip() == str(64 * MIB), "told before the consumer can see it"
    assert (
        living.shell("gpu-b", f"dd if={device} skip=31 bs=1M count=1 iflag=direct status=none | head -c 6") == "remote"
    )
    living.shell("gpu-b", f"dd if=/dev/zero of={device} seek=63 bs=1M count=1 oflag=direct status=none")
    refused = fleet.wait("flashvolume", "mounted", lambda it: real.said(it, "Resized")[0] == "False")
    assert "behind it is volume serving/exported" in condition(refused, "Resized")["message"]
    assert is_ready(refused)
    assert refused["status"]["bytes"] == 448 * MIB
    assert living.shell("gpu-a", "sha256sum < /mnt/m/f") == written


def test_a_released_volume_leaves_zeroes_or_its_bytes_as_its_pool_says(fleet: Fleet, living):
    image = fleet.servers["gpu-a"].image_file("KFA0")
    fleet.apply(pool("leaving", "KFA0", wipe="Discard"))
    fleet.apply(*(volume(name, "16Mi", pool="leaving") for name in ("discarded", "left")))
    for name in ("discarded", "left"):
        link = fleet.wait_ready("flashvolume", name)["status"]["device"]
        living.shell(
            "gpu-a", f"until [ -e {link} ]; do sleep 0.2; done; dd if=/dev/urandom of={link} bs=1M count=16 "
            "conv=fsync status=none"
        )  # fmt: skip
    places = {name: real.place_of(fleet, name) for name in ("discarded", "left")}
    before = {name: real.read_image(image, *place) for name, place in places.items()}
    assert all(before.values())
    fleet.delete("flashvolume", "discarded")
    assert not real.read_image(image, *places["discarded"]).strip(b"\0")
    assert real.read_image(image, *places["left"]) == before["left"]
    fleet.kubectl("patch", "flashpool", "leaving", "--type=merge", "-p", '{"spec":{"wipe":"None"}}')
    fleet.delete("flashvolume", "left")
    assert real.read_image(image, *places["left"]) == before["left"]
    assert living.partitions("gpu-a").isdisjoint({"left"})
    listed = json.loads(living.shell("gpu-a", f"sfdisk -J {living.disk('gpu-a', 'KFA0')}"))["partitiontable"]
    assert [item["name"] for item in listed["partitions"]] == ["kubeflash"]


def test_data_without_a_signature_is_wiped_at_an_admin_s_word_and_its_ssd_is_used(fleet: Fleet, living):
    server = fleet.servers["gpu-a"]
    server.plug_ssd("KFUSED", port="E0", size=64 * MIB)
    living.shell("gpu-a", f"dd if=/dev/urandom of={BY_ID}KFUSED bs=1M seek=20 count=1 conv=fsync status=none")
    living.shell("gpu-a", f"printf precious | dd of={BY_ID}KFUSED bs=1 seek=5000 conv=notrunc,fsync status=none")
    fleet.apply(pool("used", "KFUSED"), volume("after", "16Mi", pool="used"))
    unknown = lambda it: "data without a known signature" in json.dumps(it["status"].get("refused"))  # noqa: E731
    fleet.wait("flashpool", "used", unknown, namespace=None, timeout=90)
    assert "wiped: it is blank" in fleet.flash("wipe", "gpu-a", "KFUSED-1", "--confirm", "KFUSED", timeout=180)
    fleet.wait_ready("flashvolume", "after")
    assert not real.read_image(server.image_file("KFUSED"), 20 * MIB, MIB).strip(b"\0")
    assert not fleet.get("flashnode", "gpu-a", None)["spec"].get("wipe")


def failing(fleet: Fleet, node: str, ssd: str, words: str) -> None:
    """Waits until a FlashNode says so of an SSD."""
    there = lambda it: words in real.ssd_of(it, ssd).get("failing", "")  # noqa: E731
    fleet.wait("flashnode", node, there, namespace=None, timeout=90)


def test_volumes_on_a_failing_ssd_say_so_and_it_gets_no_new_ones(fleet: Fleet, living):
    server = fleet.servers["gpu-b"]
    fleet.apply(pool("broken", "KFB0"), pool("warned", "KFB1"))
    fleet.apply(volume("on-broken", "64Mi", pool="broken"), volume("on-warned", "64Mi", pool="warned"))
    links = {name: fleet.wait_ready("flashvolume", name)["status"]["device"] for name in ("on-broken", "on-warned")}
    start, _ = real.place_of(fleet, "on-broken")
    server.break_ssd("KFB0", writes=False, sectors=[start // 512 + 1000])
    living.shell("gpu-b", f"until [ -e {links['on-broken']} ]; do sleep 0.2; done")
    assert server.run(f"dd if={links['on-broken']} of=/dev/null bs=1M iflag=direct", check=False).exit_code != 0
    # Linux asks SSDs for no word of SMART warnings; without one they are seen within five minutes.
    controller = "/dev/$(basename $(dirname $(grep -l '^KFB1 ' /sys/class/nvme/nvme*/serial)))"
    living.shell("gpu-b", f"nvme set-feature {controller} --feature-id=0x0b --value=0x1ff")
    server.set_smart_warning("KFB1", 4)
    look_again(fleet, "gpu-b")
    failing(fleet, "gpu-b", "KFB0-1", "I/O error")
    failing(fleet, "gpu-b", "KFB1-1", "SMART: it is unreliable")
    for name, words in (("on-broken", "I/O error"), ("on-warned", "SMART: it is unreliable")):
        sick = fleet.wait("flashvolume", name, lambda it: real.said(it, "Healthy") == ("False", "SSDFailing"))
        assert words in condition(sick, "Healthy")["message"]
        assert is_ready(sick), "what is there can be read as far as the SSD goes"
    fleet.apply(volume("new-on-broken", "1Mi", pool="broken"), volume("new-on-warned", "1Mi", pool="warned"))
    for name in ("new-on-broken", "new-on-warned"):
        waits = fleet.wait("flashvolume", name, lambda it: condition(it, "Ready").get("reason") == "NoSuitableSSD")
        assert "nodeName" not in waits["status"]
    server.mend_ssd("KFB0")
    server.set_smart_warning("KFB1", 0)
    fleet.kubectl("delete", "flashvolume", "new-on-broken", "new-on-warned", "-n", NAMESPACE, "--timeout=60s")
    living.shell("gpu-b", f"dd if={links['on-broken']} of=/dev/null bs=1M iflag=direct status=none", timeout=120)


def test_an_ssd_that_moves_to_another_server_takes_its_volumes_along_and_the_rest_outlives_the_reboot(
    fleet: Fleet, living
):
    """Moved as admins do it, while the server is off: what stays in it has outlived a reboot."""
    home, other = fleet.servers["gpu-a"], fleet.servers["gpu-b"]
    fleet.apply(pool("moving", "KFA2"), volume("moved", "320Mi", pool="moving"))
    link = fleet.wait_ready("flashvolume", "moved")["status"]["device"]
    living.shell("gpu-a", f"until [ -e {link} ]; do sleep 0.2; done; mkfs.xfs -q {link}", timeout=180)
    living.shell("gpu-a", f"mkdir -p /mnt/o && mount {link} /mnt/o")
    written = living.shell(
        "gpu-a", "dd if=/dev/urandom of=/mnt/o/f bs=1M count=8 conv=fsync status=none; sha256sum < /mnt/o/f"
    )
    stays = living.shell("gpu-a", "sha256sum < /mnt/m/f; umount /mnt/o /mnt/m")
    exported = fleet.get("flashattachment", "exported-there")["status"]["device"]
    home.shut_down(timeout=120)
    home.move_ssd("KFA2", other)
    home.start()
    home.wait_ready(240)

    there = lambda it: it["status"].get("nodeName") == "gpu-b" and is_ready(it)  # noqa: E731
    moved = fleet.wait("flashvolume", "moved", there, timeout=300)
    assert real.said(moved, "Placed") == ("True", "Moved")
    fleet.apply(attachment("moved-there", "moved", "gpu-b"))
    local = fleet.wait_ready("flashattachment", "moved-there")
    assert local["status"]["path"] == "Local"
    device = local["status"]["device"]
    read = living.shell("gpu-b", f"mkdir -p /mnt/o && mount {device} /mnt/o && sha256sum < /mnt/o/f", timeout=120)
    living.shell("gpu-b", "umount /mnt/o")
    assert read == written

    mounted = fleet.wait_ready("flashattachment", "mounted-here", timeout=120)["status"]["device"]
    wait = f"until [ -e {mounted} ]; do sleep 0.2; done"
    assert living.shell("gpu-a", f"{wait}; mount {mounted} /mnt/m && sha256sum < /mnt/m/f", timeout=120) == stays
    living.shell("gpu-a", "umount /mnt/m")
    again = fleet.wait_ready("flashattachment", "exported-there", timeout=120)["status"]["device"]
    assert again == exported
    read = f"dd if={exported} skip=31 bs=1M count=1 iflag=direct status=none | head -c 6"
    assert living.shell("gpu-b", read, timeout=180) == "remote"
    assert living.shell("gpu-b", bytes_of(exported)).strip() == str(64 * MIB)
    wait_until("all volumes ready", lambda: not_ready(fleet) == [], timeout=120, interval=0.5)


def not_ready(fleet: Fleet) -> list[str]:
    found = json.loads(fleet.kubectl("get", "flashvolumes", "-A", "-o", "json"))["items"]
    assert found
    return [item["metadata"]["name"] for item in found if not is_ready(item)]
