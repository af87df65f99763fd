"""What sfdisk, wipefs and blkid print, recorded from util-linux 2.38 and 2.41."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from kubeflash.domain.disk import LABEL_TYPE, MIB, Partition
from kubeflash.host.blank import parse_blkid, parse_wipefs
from kubeflash.host.gpt import PartitionDiffers, TableUnreadable, parse_table, script_line
from kubeflash.host.partitions import kernel_partitions
from kubeflash.host.root import HostRoot

SFDISK = """{
   "partitiontable": {
      "label": "gpt",
      "id": "53F5E457-890B-1D49-94BA-E8D4198CE8E9",
      "device": "/dev/nvme0n1",
      "unit": "sectors",
      "firstlba": 2048,
      "lastlba": 409534,
      "table-length": "256",
      "sectorsize": 512,
      "partitions": [
         {
            "node": "/dev/nvme0n1p1",
            "start": 2048,
            "size": 2048,
            "type": "7D0F3C2E-5B1A-4F7E-9C7B-6B75626C6162",
            "uuid": "48A83C99-9EE6-7145-AB2C-BD746AAF13E8",
            "name": "kubeflash"
         },{
            "node": "/dev/nvme0n1p200",
            "start": 8192,
            "size": 2048,
            "type": "0FC63DAF-8483-4772-8E79-3D69D8477DE4",
            "uuid": "11111111-890B-1D49-94BA-E8D4198CE8E9"
         }
      ]
   }
}
"""
DOS = """{
   "partitiontable": {
      "label": "dos",
      "id": "0xda06b9c1",
      "device": "/dev/loop0",
      "unit": "sectors",
      "sectorsize": 512
   }
}
"""


def test_gpt() -> None:
    table = parse_table(SFDISK)
    assert (table.kind, table.disk_guid) == ("gpt", "53f5e457-890b-1d49-94ba-e8d4198ce8e9")
    assert (table.first_usable, table.end_usable) == (MIB, 409535 * 512)
    assert table.partitions[0] == Partition(
        1, MIB, MIB, "kubeflash", "48a83c99-9ee6-7145-ab2c-bd746aaf13e8", LABEL_TYPE
    )
    assert (table.partitions[1].number, table.partitions[1].name) == (200, "")


def test_disks_of_4096_byte_blocks() -> None:
    table = parse_table(SFDISK.replace('"sectorsize": 512', '"sectorsize": 4096'))
    assert table.partitions[0].start == 8 * MIB
    assert table.end_usable == 409535 * 4096


def test_dos() -> None:
    table = parse_table(DOS)
    assert (table.kind, table.disk_guid, table.partitions, table.end_usable) == ("dos", "0xda06b9c1", (), 0)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"partitiontable": {"label": "gpt"}}'])
def test_anything_else_is_an_error(text: str) -> None:
    with pytest.raises(TableUnreadable):
        parse_table(text)


def test_line_of_a_script() -> None:
    part = Partition(7, 2 * MIB, 3 * MIB, "kubeflash", "48a83c99-9ee6-7145-ab2c-bd746aaf13e8", LABEL_TYPE)
    assert script_line(part, 512) == (
        f'7 : start=4096, size=6144, type={LABEL_TYPE}, uuid=48a83c99-9ee6-7145-ab2c-bd746aaf13e8, name="kubeflash"\n'
    )
    assert script_line(part, 4096).startswith("7 : start=512, size=768,")
    for name in ('a", size=9', "a\nb", "x" * 37):
        with pytest.raises(PartitionDiffers):
            script_line(Partition(7, 2 * MIB, MIB, name, part.uuid, part.type_guid), 512)


def test_a_partition_that_is_being_removed_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in (1, 2):
        folder = tmp_path / f"sys/class/block/nvme0n1/nvme0n1p{number}"
        folder.mkdir(parents=True)
        for name, said in {"partition": number, "uevent": "", "start": 2048, "size": 2048, "dev": "259:1"}.items():
            (folder / name).write_text(f"{said}\n")
    read = Path.read_text

    def going(path: Path, *arguments: str) -> str:
        if path.match("nvme0n1p1/uevent"):
            raise OSError(errno.ENODEV, "No such device")  # as sysfs says of what was open when it went
        return read(path, *arguments)

    monkeypatch.setattr(Path, "read_text", going)
    assert [part.number for part in kernel_partitions(HostRoot(tmp_path), "nvme0n1")] == [2]


def test_wipefs() -> None:
    assert parse_wipefs("") == ()
    assert parse_wipefs('{\n   "signatures": [\n\n   ]\n}\n') == ()
    entry = '{"device": "loop0", "offset": "0x200", "type": "gpt", "uuid": null, "label": null}'
    ext4 = '{"device": "loop0", "offset": "0x438", "type": "ext4", "uuid": "x", "label": "data"}'
    assert parse_wipefs(f'{{"signatures": [{entry},{entry},{ext4}]}}') == ("gpt", 'ext4 ("data")')
    for wrong in ("nothing", "{}", '{"signatures": [1]}', "[]"):
        with pytest.raises(ValueError):  # noqa: PT011  any says the same here: not blank
            parse_wipefs(wrong)


def test_blkid() -> None:
    assert parse_blkid("DEVNAME=/dev/loop0\nLABEL=data\nTYPE=ext4\nUSAGE=filesystem\n") == 'ext4 ("data")'
    assert parse_blkid("PTUUID=53f5e457\nPTTYPE=gpt\n") == "gpt"
    assert parse_blkid("") == "unknown"
