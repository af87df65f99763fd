"""The lab itself: a real control plane, and nothing left of it afterwards."""

from __future__ import annotations

import json
import os
import signal
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lab import rundir
from lab.controlplane import ControlPlane, assert_ours
from lab.errors import AlreadyUp, CommandError, LabError, NotOurs
from lab.lab import Lab
from lab.network import links
from lab.processes import Completed, Ledger, run, start_time, wait_until

pytestmark = pytest.mark.api

REPO = Path(__file__).parents[2]
SECRETS = "/api/v1/namespaces/default/secrets"


@pytest.fixture
def control_plane(lab: Lab) -> Iterator[ControlPlane]:
    """The session's, given back running."""
    yield lab.control_plane
    lab.control_plane.start()


@pytest.fixture
def other(tmp_path: Path) -> Iterator[dict[str, str]]:
    """Environment of labs of the test's own: ended whatever happens."""
    environment = {**os.environ, "KUBEFLASH_LAB_RUN": str(tmp_path), "PYTHONPATH": str(REPO / "e2e")}
    yield environment
    command(environment, "down")


def command(environment: dict[str, str], *words: str) -> Completed:
    return run([sys.executable, "-m", "lab", *words], timeout=180, env=environment, check=False)


def status_of(control_plane: ControlPlane, path: str) -> int:
    """What an anonymous request gets."""
    context = ssl.create_default_context(cafile=control_plane.ca_file)
    try:
        with urllib.request.urlopen(control_plane.server_url + path, timeout=10, context=context) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def reachable(control_plane: ControlPlane) -> bool:
    return control_plane.kubectl("get", "--raw", "/readyz", check=False).exit_code == 0


def objects(control_plane: ControlPlane) -> None:
    """A namespace with a service account."""
    control_plane.apply(
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "identities"}},
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "robot", "namespace": "identities"}},
    )


def test_it_is_ready_and_its_certificate_is_good(control_plane: ControlPlane):
    assert control_plane.ready()
    assert status_of(control_plane, "/readyz") == 200
    assert status_of(control_plane, SECRETS) in {401, 403}
    version = json.loads(control_plane.kubectl("version", "-o", "json").stdout)["serverVersion"]
    assert (version["major"], int(version["minor"]) >= 35) == ("1", True)


def test_kubectl_applies_and_reads(control_plane: ControlPlane):
    objects(control_plane)
    config = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c", "namespace": "identities"}}
    control_plane.apply({**config, "data": {"a": "1"}})
    control_plane.apply({**config, "data": {"a": "2"}})
    done = control_plane.kubectl("get", "configmap", "c", "-n", "identities", "-o", "jsonpath={.data.a}")
    assert done.stdout_text == "2"
    where = "/api/v1/namespaces/identities/configmaps"
    assert control_plane.read(f"{where}/c")["data"] == {"a": "2"}
    assert control_plane.read(f"{where}/none") is None
    with pytest.raises(CommandError, match="NotFound"):
        control_plane.kubectl("get", "configmap", "none", "-n", "identities")


@pytest.mark.parametrize(
    ("identity", "groups"),
    [("somebody", ()), ("system:serviceaccount:identities:robot", ()), ("system:node:gpu-a", ("system:nodes",))],
)
def test_rbac_denies_whoever_has_no_rights(control_plane: ControlPlane, identity: str, groups: tuple[str, ...]):
    objects(control_plane)
    who = json.loads(control_plane.kubectl("auth", "whoami", "-o", "json", identity=identity, groups=groups).stdout)
    info = who["status"]["userInfo"]
    assert info["username"] == identity
    assert set(groups) <= set(info["groups"])
    with pytest.raises(CommandError, match=f'(?s)Forbidden.*User "{identity}" cannot list resource "secrets"'):
        control_plane.kubectl("get", "secrets", "-n", "default", identity=identity, groups=groups)


def test_a_group_may_what_its_binding_says(control_plane: ControlPlane):
    control_plane.kubectl("create", "clusterrole", "viewer", "--verb=list", "--resource=configmaps")
    control_plane.kubectl("create", "clusterrolebinding", "viewers", "--clusterrole=viewer", "--group=viewers")
    control_plane.kubectl("get", "configmaps", "-n", "default", identity="guest", groups=["viewers"])
    with pytest.raises(CommandError, match='User "guest" cannot create resource "configmaps"'):
        control_plane.kubectl("create", "configmap", "x", identity="guest", groups=["viewers"])


def test_a_node_may_not_touch_another_node(control_plane: ControlPlane):
    for name in ("gpu-a", "gpu-b"):
        control_plane.apply({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}})
    node = {"identity": "system:node:gpu-a", "groups": ["system:nodes"]}
    control_plane.kubectl("annotate", "node", "gpu-a", "a=b", **node)
    with pytest.raises(CommandError, match="only its own Node object"):
        control_plane.kubectl("annotate", "node", "gpu-b", "a=b", **node)


def test_kubeconfigs_are_private_and_kept(control_plane: ControlPlane):
    path = control_plane.kubeconfig("somebody")
    assert path.stat().st_mode & 0o777 == 0o600
    assert control_plane.kubeconfig("somebody") == path
    assert control_plane.kubeconfig("somebody", ["a group"]) != path


def test_a_service_account_made_anew_gets_a_good_token(control_plane: ControlPlane):
    objects(control_plane)
    robot = "system:serviceaccount:identities:robot"
    control_plane.kubectl("auth", "whoami", identity=robot)
    control_plane.kubectl("delete", "serviceaccount", "robot", "-n", "identities")
    objects(control_plane)
    control_plane.kubectl("auth", "whoami", identity=robot)


def test_identities_can_be_made_in_many_threads(control_plane: ControlPlane):
    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(lambda n: control_plane.kubectl("auth", "whoami", identity=f"user-{n}"), range(4)))
    assert all(f"user-{n}" in one.stdout_text for n, one in enumerate(done))


def test_the_users_own_kubeconfig_is_not_used(
    control_plane: ControlPlane, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "production"))
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    assert reachable(control_plane)


def test_audit_log_tells_who_did_what(control_plane: ControlPlane):
    control_plane.kubectl("get", "secrets", "-n", "default", identity="auditee", check=False)
    seen = [event for event in control_plane.audit_events() if event["user"]["username"] == "auditee"]
    denied = [event for event in seen if event.get("objectRef", {}).get("resource") == "secrets"]
    assert {(event["verb"], event["responseStatus"]["code"]) for event in denied} == {("list", 403)}


def test_the_api_server_goes_away_and_comes_back_with_its_data(control_plane: ControlPlane):
    objects(control_plane)
    before = control_plane.cluster_id
    before_kubeconfig = control_plane.kubeconfig("system:serviceaccount:identities:robot")
    for abrupt in (False, True):
        control_plane.pause(abrupt=abrupt)
        assert not control_plane.ready()
        with pytest.raises(CommandError, match="refused"):
            control_plane.kubectl("get", "namespaces", timeout=30)
        with pytest.raises(LabError, match="Refused"):
            control_plane.read("/api/v1/namespaces/default")
        control_plane.resume()
        assert control_plane.ready()
    control_plane.restart()
    assert control_plane.cluster_id == before
    kubectl = control_plane.programs.kubectl
    who = run([kubectl, "--kubeconfig", before_kubeconfig, "auth", "whoami"], timeout=30)  # its token is still good
    assert "system:serviceaccount:identities:robot" in who.stdout_text


def test_a_strange_cluster_is_not_touched(lab: Lab, tmp_path: Path):
    kubeconfig = lab.control_plane.kubeconfig()
    lab.assert_ours(kubeconfig)
    record = json.loads((lab.run_dir / "lab.json").read_text())
    kubectl = lab.control_plane.programs.kubectl
    (tmp_path / "lab.json").write_text(json.dumps({**record, "clusterId": "another"}))
    with pytest.raises(NotOurs, match="the lab touches no cluster that it did not start"):
        assert_ours(kubeconfig, tmp_path / "lab.json", kubectl)


def test_a_cable_can_be_cut(lab: Lab):
    tap = lab.network.add_tap("tap-test")
    assert links()[tap] == "tun"

    def flags() -> list[str]:
        shown: list[str] = json.loads(run(["ip", "-json", "link", "show", tap], timeout=10).stdout)[0]["flags"]
        return shown

    assert "UP" in flags()
    lab.network.set_link(tap, up=False)
    assert "UP" not in flags()
    lab.network.set_link(tap, up=True)
    assert "UP" in flags()
    lab.network.del_tap(tap)
    lab.network.del_tap(tap)
    assert tap not in links()


def test_one_lab_of_a_name(lab: Lab):
    with pytest.raises(AlreadyUp, match=f"pid {os.getpid()}"):
        Lab(lab.name).__enter__()
    assert lab.control_plane.ready()


# --- labs of their own, by the command line ---


def test_up_use_down(other: dict[str, str], tmp_path: Path):
    up = command(other, "up")
    assert up.exit_code == 0, up.stderr_text
    record = rundir.read(tmp_path / "lab")
    assert record is not None
    uid = command(other, "shell", "--", "kubectl", "get", "ns", "kube-system", "-o", "jsonpath={.metadata.uid}")
    assert uid.stdout_text == record.clusterId
    assert command(other, "shell", "--", "kubectl", "flash", "--version").stdout_text.startswith("kubectl flash ")
    assert command(other, "shell", "--", "sh", "-c", "exit 7").exit_code == 7
    inside = json.loads(command(other, "shell", "--", "ip", "-json", "link", "show").stdout)
    assert {link["ifname"] for link in inside} == {"lo", "kf0"}  # and nothing that leads out
    assert command(other, "status").exit_code == 0
    again = command(other, "up")
    assert again.exit_code == 1
    assert f"is up already (pid {record.pid})" in again.stderr_text
    assert command(other, "leftovers").exit_code == 1
    assert command(other, "down").exit_code == 0
    assert command(other, "status").exit_code == 1
    left = command(other, "leftovers")
    assert (left.stdout_text, left.exit_code) == ("", 0)
    assert command(other, "down").exit_code == 0  # again: nothing to do, and that is fine


def test_kill_9_leaves_no_process_and_down_removes_the_rest(other: dict[str, str], tmp_path: Path):
    assert command(other, "up").exit_code == 0
    record = rundir.read(tmp_path / "lab")
    assert record is not None
    processes = Ledger(tmp_path / "lab").alive()
    assert {entry.what for entry in processes} == {"etcd", "kube-apiserver"}
    record.process.send(signal.SIGKILL)
    for entry in (record.process, *processes):
        wait_until(f"{entry} gone", lambda entry=entry: not entry.alive, timeout=10)
    assert "was killed" in command(other, "status").stdout_text
    assert command(other, "leftovers").stdout_text == f"run directory {tmp_path}/lab\n"
    assert command(other, "down").exit_code == 0
    assert command(other, "leftovers").stdout_text == ""


def test_sweep_removes_what_killed_labs_left_and_no_living_one(other: dict[str, str], tmp_path: Path):
    assert command(other, "up").exit_code == 0
    record = rundir.read(tmp_path / "lab")
    assert record is not None
    refused = command(other, "sweep")
    assert (refused.exit_code, f"is up (pid {record.pid})" in refused.stdout_text) == (1, True)
    assert record.process.alive
    record.process.send(signal.SIGKILL)
    wait_until("lab dead", lambda: not record.process.alive, timeout=10)
    assert command(other, "sweep").exit_code == 0
    assert command(other, "leftovers").stdout_text == ""
    assert command(other, "sweep").stderr_text == ""


def test_up_after_kill_9(other: dict[str, str], tmp_path: Path):
    assert command(other, "up").exit_code == 0
    first = rundir.read(tmp_path / "lab")
    assert first is not None
    first.process.send(signal.SIGKILL)
    wait_until("lab dead", lambda: not first.process.alive, timeout=10)
    assert command(other, "up").exit_code == 0
    second = rundir.read(tmp_path / "lab")
    assert second is not None
    assert second.clusterId != first.clusterId


def test_down_ends_a_lab_that_is_still_coming_up(other: dict[str, str], tmp_path: Path):
    argv = [sys.executable, "-m", "lab", "up", "--foreground"]
    with subprocess.Popen(argv, env=other, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        wait_until("etcd up", lambda: bool(Ledger(tmp_path / "lab").alive()), timeout=60)
        assert command(other, "down").exit_code == 0
        process.communicate(timeout=30)
    assert command(other, "leftovers").stdout_text == ""


@pytest.mark.parametrize("number", ["SIGTERM", "SIGINT"])
def test_a_signal_takes_everything_down_in_order(other: dict[str, str], tmp_path: Path, number: str):
    other["KUBEFLASH_LAB_LOGS"] = str(tmp_path.parent / "kept logs")
    argv = [sys.executable, "-m", "lab", "up", "--foreground"]
    with subprocess.Popen(argv, env=other, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        wait_until("lab ready", lambda: rundir.read(tmp_path / "lab") is not None, timeout=60)
        processes = Ledger(tmp_path / "lab").alive()
        process.send_signal(signal.Signals[number])
        _, said = process.communicate(timeout=60)
        assert process.returncode == 0, said
    assert [entry for entry in processes if start_time(entry.pid) == entry.started] == []
    assert not (tmp_path / "lab").exists()
    assert (tmp_path.parent / "kept logs" / "lab" / "kube-apiserver.log").stat().st_size > 0


def test_a_server_that_will_not_start_takes_the_lab_down(other: dict[str, str], tmp_path: Path):
    script = (
        "import pathlib\nfrom lab.lab import Lab\nclosed = pathlib.Path(__import__('sys').argv[1])\n"
        "class Broken:\n    name = 'broken'\n"
        "    def start(self):\n        raise RuntimeError('no such disk')\n"
        "    def close(self):\n        closed.touch()\n"
        "with Lab() as lab:\n    lab.add_server(Broken())\n"
    )
    done = run([sys.executable, "-c", script, tmp_path / "closed"], timeout=120, env=other, check=False)
    assert "RuntimeError: no such disk" in done.stderr_text
    assert (tmp_path / "closed").exists()
    assert not (tmp_path / "lab").exists()


def test_an_api_server_that_will_not_start_says_why(other: dict[str, str], tmp_path: Path):
    script = "from lab.lab import Lab\nwith Lab(apiserver_arguments=['--no-such-flag']):\n    pass\n"
    done = run([sys.executable, "-c", script], timeout=120, env=other, check=False)
    assert "ProcessDied" in done.stderr_text
    assert "unknown flag: --no-such-flag" in done.stderr_text
    assert not (tmp_path / "lab").exists()
