"""A kubeconfig's private key is on no disk, whether the process ends in order or not."""

from __future__ import annotations

import base64
import json
import os
import tempfile
from pathlib import Path

import pytest

from kubeflash.kube import secrets
from kubeflash.kube.client import load_configuration
from kubeflash.kube.errors import KubeconfigInvalid
from kubeflash.kube.secrets import path_of


def kubeconfig(path: Path, **user: object) -> str:
    body = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
        "clusters": [{"name": "k", "cluster": {"server": "https://k:6443", "certificate-authority-data": text("CA")}}],
        "users": [{"name": "u", "user": user}],
    }
    path.write_text(json.dumps(body))
    return str(path)


def text(content: str) -> str:
    return base64.b64encode(content.encode()).decode()


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr(secrets, "MEMORY", folder)
    monkeypatch.setattr(
        tempfile, "tempdir", str(tmp_path / "read-only")
    )  # as in a container: nothing can be written there
    return folder


def test_inline_keys_are_held_in_memory(tmp_path, temporary):
    file = kubeconfig(
        tmp_path / "config", **{"client-certificate-data": text("CERT"), "client-key-data": text("PRIVATE")}
    )
    for _ in range(2):  # the package remembers what it wrote the first time
        made = load_configuration(file)
        assert [Path(it).read_text() for it in (made.ssl_ca_cert, made.cert_file, made.key_file)] == [
            "CA",
            "CERT",
            "PRIVATE",
        ]
        assert list(temporary.iterdir()) == []


def test_files_that_are_named_stay_where_they_are(tmp_path, temporary):
    (tmp_path / "key").write_text("PRIVATE")
    (tmp_path / "cert").write_text("CERT")
    file = kubeconfig(
        tmp_path / "config", **{"client-certificate": str(tmp_path / "cert"), "client-key": str(tmp_path / "key")}
    )
    made = load_configuration(file)
    assert (made.cert_file, made.key_file) == (str(tmp_path / "cert"), str(tmp_path / "key"))


def test_they_are_found_after_a_token_was_renewed(tmp_path, temporary):
    said = {
        "apiVersion": "client.authentication.k8s.io/v1",
        "kind": "ExecCredential",
        "status": {"token": "OLD", "expirationTimestamp": "2001-01-01T00:00:00Z"},
    }
    (tmp_path / "said").write_text(json.dumps(said))
    plugin = {"apiVersion": said["apiVersion"], "command": "cat", "args": [str(tmp_path / "said")]}
    made = load_configuration(kubeconfig(tmp_path / "config", exec={**plugin, "interactiveMode": "Never"}))
    (tmp_path / "said").write_text(json.dumps(said).replace("OLD", "NEW"))
    assert made.get_api_key_with_prefix("BearerToken") == "Bearer NEW"
    assert Path(path_of(made.ssl_ca_cert) or "").read_text() == "CA"
    assert list(temporary.iterdir()) == []


def test_nothing_is_left_by_a_kubeconfig_that_cannot_be_used(tmp_path, temporary):
    file = kubeconfig(tmp_path / "config", **{"client-key-data": "this is no base64!"})
    with pytest.raises(KubeconfigInvalid):
        load_configuration(file)
    assert list(temporary.iterdir()) == []


def test_children_do_not_inherit_them(tmp_path, temporary):
    made = load_configuration(kubeconfig(tmp_path / "config", **{"client-key-data": text("PRIVATE")}))
    assert not os.get_inheritable(int(Path(made.ssl_ca_cert).name))


def test_where_memory_has_no_folder_the_one_for_temporary_files_does(tmp_path, temporary, monkeypatch):
    monkeypatch.setattr(secrets, "MEMORY", tmp_path / "none")
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    made = load_configuration(kubeconfig(tmp_path / "config"))
    assert Path(made.ssl_ca_cert or "").read_text() == "CA"
    assert list(temporary.iterdir()) == []
