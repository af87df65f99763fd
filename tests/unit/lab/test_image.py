from __future__ import annotations

import subprocess

import pytest

from lab import image
from lab.cpio import write_newc
from lab.errors import BuildError


def test_modules_are_loaded_after_what_they_need():
    dependencies = "kernel/a.ko: kernel/b-x.ko kernel/c.ko\nkernel/b-x.ko: kernel/c.ko\nkernel/c.ko:\n"
    assert image._load_order(dependencies, ["a", "b_x"]) == ["kernel/c.ko", "kernel/b-x.ko", "kernel/a.ko"]


def test_a_module_the_kernel_lacks_is_an_error():
    with pytest.raises(BuildError, match="no module d"):
        image._load_order("kernel/c.ko:\n", ["d"])


def test_a_signature_is_cut_off_and_nothing_else():
    signed = b"code" + b"s" * 300 + bytes(8) + (300).to_bytes(4, "big") + b"~Module signature appended~\n"
    assert image._unsigned(signed) == b"code"
    assert image._unsigned(b"code") == b"code"


def test_the_hash_of_a_folder_sees_names_bytes_and_execute_bits_but_not_pycache(tmp_path):
    (tmp_path / "a").write_text("x")
    hashes = [image.hash_tree(tmp_path)]
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "__pycache__" / "a.pyc").write_text("x")
    assert image.hash_tree(tmp_path) == hashes[0]
    (tmp_path / "a").chmod(0o755)
    hashes.append(image.hash_tree(tmp_path))
    (tmp_path / "a").write_text("y")
    hashes.append(image.hash_tree(tmp_path))
    (tmp_path / "a").rename(tmp_path / "b")
    hashes.append(image.hash_tree(tmp_path))
    assert len(set(hashes)) == 4


def test_the_archive_is_one_that_the_kernel_documents(tmp_path):
    archive = tmp_path / "initramfs"
    write_newc(archive, {"init": (0o755, b"#!"), "bin/deep/tool": (0o644, b"12345")})
    data = archive.read_bytes()
    entries = {}
    offset = 0
    while offset < len(data):
        assert data[offset : offset + 6] == b"070701"
        fields = [int(data[offset + 6 + 8 * n : offset + 14 + 8 * n], 16) for n in range(13)]
        name = data[offset + 110 : offset + 110 + fields[11] - 1].decode()
        start = (offset + 110 + fields[11] + 3) // 4 * 4
        entries[name] = (fields[1], data[start : start + fields[6]])
        offset = (start + fields[6] + 3) // 4 * 4
    assert list(entries) == ["bin", "bin/deep", "init", "bin/deep/tool", "TRAILER!!!"]
    assert entries["init"] == (0o100755, b"#!")
    assert entries["bin/deep/tool"] == (0o100644, b"12345")
    assert entries["bin"] == (0o040755, b"")


@pytest.mark.parametrize("script", sorted(path for path in image.GUEST.rglob("*") if path.is_file()), ids=str)
def test_scripts_of_the_servers_are_valid_shell(script):
    if script.read_text().startswith("#!"):
        subprocess.run(["sh", "-n", script], check=True, timeout=10)
