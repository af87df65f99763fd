"""What only an admin may ask, on a cluster in memory: what is shown, refused in one line, and written."""

from __future__ import annotations

import builtins
import copy
import io
import json
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
import yaml

from kubeflash.api.v1alpha1 import FlashNode, FlashVolume, Resource
from kubeflash.cli import adopt, asking, cluster, purgeall
from kubeflash.cli.__main__ import main
from kubeflash.kube import client as kube
from kubeflash.kube.errors import Conflict, Forbidden, NotFound, Unreachable
from support.objects import T0, attachment, gpu_json, node, pool, ssd_json, uid, volume

ORPHAN = uid(7000)
UUID = "uuid-a"


class FakeClient:
    """Objects by path; `agent` is what happens after each write."""

    def __init__(self) -> None:
        self.objects: dict[str, dict] = {}
        self.forbidden: set[str] = set()
        self.agent: Callable[[FakeClient], None] = lambda _: None
        self.on_get: Callable[[FakeClient], None] = lambda _: None
        self.deleted: Callable[[FakeClient], None] = lambda _: None
        self.keeps: Callable[[FakeClient, str], bool] = lambda *_: False
        self.missing: set[str] = set()
        self.written: list[tuple[str, dict]] = []

    def put(self, item: Resource | dict, plural: str = "") -> None:
        if isinstance(item, Resource):
            plural, item = item.info.plural, item.model_dump(mode="json", by_alias=True, exclude_none=True)
        meta = item["metadata"]
        self.objects[f"{plural}/{meta.get('namespace', '')}/{meta['name']}"] = item

    def lease(self, name: str, *, age: float = 3, holder: str = "h", namespace: str = "kubeflash-system") -> None:
        renewed = (datetime.now(UTC) - timedelta(seconds=age)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        spec = {"holderIdentity": holder, "leaseDurationSeconds": 40, "renewTime": renewed}
        self.put({"metadata": {"name": name, "namespace": namespace}, "spec": spec}, "leases")

    def node(self, name: str = "gpu-a") -> dict:
        return self.objects[f"flashnodes//{name}"]

    def get(self, info, name, namespace=None):
        self.on_get(self)
        return copy.deepcopy(self._at(f"{info.plural}/{namespace or ''}/{name}", info.plural))

    def _at(self, key: str, plural: str) -> dict:
        if plural in self.forbidden:
            raise Forbidden(f"{plural} is forbidden")
        if key not in self.objects:
            raise NotFound(f"no {key}")
        return self.objects[key]

    def list(self, info, field_selector=None, *, namespace=None) -> builtins.list[dict]:
        if info.plural in self.missing:
            raise NotFound(f"no kind {info.plural}")
        if info.plural in self.forbidden and (namespace is None or info.plural == "leases"):
            raise Forbidden(f"{info.plural} is forbidden")
        start = f"{info.plural}/{namespace}/" if namespace else f"{info.plural}/"
        return [copy.deepcopy(item) for key, item in sorted(self.objects.items()) if key.startswith(start)]

    def patch(self, resource, body):
        key = f"{resource.info.plural}/{resource.metadata.namespace or ''}/{resource.metadata.name}"
        item = self._at(key, resource.info.plural)
        if item["metadata"]["resourceVersion"] != resource.metadata.resource_version:
            raise Conflict("changed")
        merge(item, copy.deepcopy(body))
        item["metadata"]["generation"] += 1
        item["metadata"]["resourceVersion"] += "1"
        self.written.append(("PATCH", body))
        self.agent(self)
        return copy.deepcopy(item)

    def create(self, info, body, namespace=None):
        self.written.append(("POST", body))
        made = {**body, "metadata": {**body["metadata"], "uid": "made", "resourceVersion": "1", "generation": 1}}
        self.put(made, info.plural)
        self.agent(self)
        return made

    def call(self, method, path, *, body=None):
        self.written.append((method, {"path": path}))
        kind, name = path.split("/")[-2:]
        space = path.split("/namespaces/")[1].split("/")[0] if "/namespaces/" in path else ""
        key = f"{kind}/{space}/{name}"
        wanted = (body or {}).get("preconditions", {}).get("uid")
        if wanted not in (None, self.objects[key]["metadata"].get("uid")):
            raise Conflict("another uid")
        if not self.keeps(self, path):
            self.objects.pop(key)
        self.deleted(self)
        return {}

    def close(self) -> None:
        pass


def merge(item: dict, patch: dict) -> None:
    for key, value in patch.items():
        if value is None:
            item.pop(key, None)
        elif isinstance(value, dict):
            merge(item.setdefault(key, {}), value)
        else:
            item[key] = value


def ready(status: str = "True", reason: str = "AgentRunning") -> dict:
    since = "2026-01-01T00:00:00Z"
    return {"type": "Ready", "status": status, "reason": reason, "message": "", "lastTransitionTime": since}


def server(name: str, number: int, *ssds: dict, system_uuid: str = UUID, **spec) -> FlashNode:
    made = node(name, number, [gpu_json(0x12)], list(ssds)).model_dump(mode="json", by_alias=True, exclude_none=True)
    made["status"].update(systemUUID=system_uuid, conditions=[ready()], observedGeneration=1)
    return FlashNode.from_json({**made, "spec": spec})


def extent(volume_id: str, mib: int, **more) -> dict:
    return {"id": volume_id, "number": 2, "start": 2 << 20, "bytes": mib << 20, **more}


FOREIGN = ssd_json("F", 0x13, state="Foreign", reason="not blank: ext4", fingerprint="f0f0")
CLAIMED = ssd_json("C", 0x23, state="Claimed", fingerprint="c0c0", pool="fast", volumes=[extent(ORPHAN, 16)])
MOVED = ssd_json("M", 0x33, state="Foreign", reason="of server uuid-old", labelled="uuid-old", fingerprint="d0d0")


@pytest.fixture
def client(monkeypatch) -> FakeClient:
    made = FakeClient()
    made.put(server("gpu-a", 1, FOREIGN, CLAIMED, MOVED, ssd_json("B", 0x43)))
    made.put(pool("fast", 2, "C"))
    made.lease("agent-gpu-a")
    made.lease("kubeflash-controller")
    monkeypatch.setattr(kube, "load_configuration", lambda *_: None)
    monkeypatch.setattr(kube, "Client", lambda _: made)
    monkeypatch.setattr(asking, "INTERVAL", 0.001)
    monkeypatch.setattr(cluster, "WATCHED", 0.0)
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    return made


def run(capsys, *words: str, status: int = 0) -> str:
    """What it printed: on standard output, or of a failure the one line on standard error."""
    assert main(words) == status
    captured = capsys.readouterr()
    if status == 0:
        return " ".join(captured.out.split())
    lines = [line for line in captured.err.splitlines() if "kubectl flash: " in line]
    assert len(lines) == 1, captured.err
    return lines[0]


def requests(client: FakeClient) -> dict:
    return client.node()["spec"].get("wipe") or {}


# --- wipe ---


def wiped(client: FakeClient) -> None:
    """The agent does what it is asked for."""
    found = client.node()
    asked = found["spec"].get("wipe") or {}
    for ssd in found["status"]["ssds"]:
        if ssd["id"] in asked.get("ssds", {}):
            ssd.update(state="Blank", reason="")
            ssd.pop("fingerprint", None)
        ssd["volumes"] = [item for item in ssd.get("volumes", []) if item["id"] not in asked.get("orphans", {})]
    found["status"]["observedGeneration"] = found["metadata"]["generation"]


def test_wipe_writes_the_fingerprint_that_was_shown_and_takes_it_back_when_it_is_done(capsys, client):
    client.agent = wiped
    said = run(capsys, "wipe", "gpu-a", "13:00.0", "--confirm", "F")
    assert "SSD F-1 of server gpu-a, at 13:00.0: M 1, serial F, 1Gi, foreign not blank: ext4 no pool selects it" in said
    assert said.endswith("SSD F-1 of server gpu-a is wiped: it is blank.")
    assert [body["spec"] for _, body in client.written] == [{"wipe": {"ssds": {"F-1": "f0f0"}}}, {"wipe": None}]


def test_wipe_shows_orphans_as_lost_and_of_two_requests_takes_its_own_back(capsys, client):
    client.agent = wiped
    client.node()["spec"]["wipe"] = {"orphans": {"other": "C-1"}}
    said = run(capsys, "wipe", "gpu-a", "C", "--confirm", "C")
    assert f"orphan {ORPHAN}: 16Mi" in said
    assert "WILL BE LOST: everything on it, all 1Gi; 1 orphan with 16Mi." in said
    assert requests(client) == {"ssds": {}, "orphans": {"other": "C-1"}}


def test_wipe_of_an_orphan(capsys, client):
    client.agent = wiped
    assert "is wiped, and its 16Mi free" in run(capsys, "wipe", "gpu-a", ORPHAN, "--confirm", ORPHAN)
    assert client.written[0][1]["spec"] == {"wipe": {"orphans": {ORPHAN: "C-1"}}}
    assert requests(client) == {}


def test_wipe_dry_run_and_a_blank_ssd_write_nothing(capsys, client):
    assert "nothing was changed" in run(capsys, "wipe", "gpu-a", "F", "--dry-run")
    assert "nothing was changed" in run(capsys, "wipe", "gpu-a", ORPHAN, "--dry-run")
    assert "It is blank: there is nothing to wipe." in run(capsys, "wipe", "gpu-a", "B")
    assert client.written == []


def test_wipe_of_a_blank_ssd_takes_back_what_an_interrupted_one_left(capsys, client):
    client.node()["spec"]["wipe"] = {"ssds": {"B-1": "0000"}}
    run(capsys, "wipe", "gpu-a", "B")
    assert requests(client) == {}


def lost_volume() -> FlashVolume:
    lost = {"nodeName": "gpu-a", "ssd": "C-1", "since": "2026-01-01T00:00:00Z"}
    return volume("was", 5, spec={"id": ORPHAN}, status={"lost": lost})


REFUSED: dict[str, tuple[Callable[[FakeClient], object], tuple[str, ...], str]] = {
    "nobody types": (lambda _: None, ("F",), "type the SSD's serial on a terminal, or give it with --confirm"),
    "another serial": (lambda _: None, ("F", "--confirm", "C"), "--confirm C is not the SSD's serial, which is F"),
    "no such SSD": (lambda _: None, ("Z",), f"no SSD and no orphan Z; SSDs: F-1, C-1, M-1, B-1; orphans: {ORPHAN}"),
    "paused": (lambda c: c.node()["spec"].update(paused=True), ("F", "--confirm", "F"), "server gpu-a is paused"),
    "silent": (lambda c: c.lease("agent-gpu-a", age=200), ("F", "--confirm", "F"), "the agent on server gpu-a did not"),
    "no Lease": (
        lambda c: c.objects.pop("leases/kubeflash-system/agent-gpu-a"),
        ("F", "--confirm", "F"),
        "has no Lease",
    ),
    "no fingerprint": (
        lambda c: c.node()["status"]["ssds"][0].pop("fingerprint"),
        ("F", "--confirm", "F"),
        "it cannot be told what is on SSD F-1, it is not wiped: not blank: ext4",
    ),
    "one that is in use": (
        lambda c: c.node()["status"]["ssds"][0].update(held="mounted at /mnt"),
        ("F", "--dry-run"),
        "SSD F-1 is mounted at /mnt, on server gpu-a: end that first, it is not wiped",
    ),
    "a volume by id, on no server": (
        lambda c: c.put(volume("kv", 5, spec={"id": ORPHAN})),
        ("C", "--confirm", "C"),
        "SSD C-1 holds FlashVolumes serving/kv:",
    ),
    "a lost volume": (
        lambda c: c.put(lost_volume()),
        ("C", "--confirm", "C"),
        "holds FlashVolumes serving/was (Lost):",
    ),
    "a promised volume": (
        lambda c: c.put(volume("new", 5, status={"nodeName": "gpu-a", "ssd": "F-1"})),
        ("F", "--confirm", "F"),
        "SSD F-1 holds FlashVolumes serving/new:",
    ),
    "an orphan that a volume has": (
        lambda c: c.put(volume("kv", 5, spec={"id": ORPHAN})),
        (ORPHAN, "--confirm", ORPHAN),
        "is no orphan, it is FlashVolume serving/kv",
    ),
    "an orphan of a moved SSD": (
        lambda c: c.node()["status"]["ssds"][2].update(volumes=[extent(uid(8), 8)]),
        (uid(8), "--confirm", uid(8)),
        "SSD M-1 carries the label of server uuid-old: kubectl flash adopt gpu-a M-1 first",
    ),
    "volumes that may not be listed": (lambda c: c.forbidden.add("flashvolumes"), ("F", "--confirm", "F"), "forbidden"),
}


@pytest.mark.parametrize(("prepare", "words", "said"), REFUSED.values(), ids=REFUSED)
def test_wipe_is_refused_in_one_line_and_nothing_is_written(capsys, client, prepare, words, said):
    prepare(client)
    assert said in run(capsys, "wipe", "gpu-a", *words, status=1)
    assert client.written == []


def test_wipe_of_an_ssd_that_another_server_says_it_has(capsys, client):
    client.put(server("old", 9, ssd_json("M", 0x33, state="Claimed"), system_uuid="uuid-old"))
    client.lease("agent-old")
    assert "is of server old, whose agent says" in run(capsys, "wipe", "gpu-a", "M", "--confirm", "M", status=1)
    assert client.written == []


def test_wipe_by_typing(capsys, client, monkeypatch):
    class Tty(io.StringIO):
        def isatty(self) -> bool:
            return True

    client.agent = wiped
    monkeypatch.setattr(sys, "stdin", Tty("G\n"))
    assert "G was typed, and the SSD's serial is F: nothing was changed" in run(capsys, "wipe", "gpu-a", "F", status=1)
    monkeypatch.setattr(sys, "stdin", Tty(""))
    assert "nothing was changed" in run(capsys, "wipe", "gpu-a", "F", status=1)
    assert client.written == []
    monkeypatch.setattr(sys, "stdin", Tty("F\n"))
    assert "is wiped" in run(capsys, "wipe", "gpu-a", "F")


def test_wipe_that_the_agent_denies_is_taken_back(capsys, client):
    def deny(c: FakeClient) -> None:
        step = {"step": "WipeSsd", "what": "wipe F-1", "state": "Failed", "message": "it holds volumes x"}
        c.node()["status"].update(plan=[step], observedGeneration=c.node()["metadata"]["generation"])

    client.agent = deny
    said = run(capsys, "wipe", "gpu-a", "F", "--confirm", "F", status=1)
    assert "the agent on server gpu-a denies it: it holds volumes x" in said
    assert requests(client) == {}


def test_what_the_agent_said_before_it_saw_the_request_does_not_count(capsys, client):
    step = {"step": "WipeSsd", "what": "wipe F-1", "state": "Failed", "message": "an old no"}
    client.node()["status"]["plan"] = [step]
    said = run(capsys, "wipe", "gpu-a", "F", "--confirm", "F", "--timeout", "1s", status=1)
    assert "waiting for the agent" in said


def test_wipe_that_takes_too_long_goes_on(capsys, client):
    def slowly(c: FakeClient) -> None:
        step = {"step": "WipeSsd", "what": "wipe SSD F-1: zero all", "state": "Running", "message": "12%"}
        c.node()["status"].update(plan=[step], observedGeneration=c.node()["metadata"]["generation"])

    client.agent = slowly
    said = run(capsys, "wipe", "gpu-a", "F", "--confirm", "F", "--timeout", "1", status=1)
    assert (
        "not done after 1 s: running: wipe SSD F-1: zero all: 12%; the agent goes on: kubectl flash plan gpu-a" in said
    )
    assert """kubectl patch flashnode gpu-a --type=merge -p '{"spec":{"wipe":{"ssds":{"F-1":null}}}}'""" in said
    assert requests(client) == {"ssds": {"F-1": "f0f0"}}


def test_wipe_that_is_interrupted_goes_on(capsys, client):
    def interrupt(c: FakeClient) -> None:
        if c.written:
            raise KeyboardInterrupt

    client.on_get = interrupt
    assert "interrupted; the agent goes on" in run(capsys, "wipe", "gpu-a", "F", "--confirm", "F", status=1)
    assert requests(client) == {"ssds": {"F-1": "f0f0"}}


def test_an_api_server_that_is_gone_for_a_moment_is_waited_for(capsys, client):
    gone = [Unreachable("down"), Unreachable("down")]

    def flaky(c: FakeClient) -> None:
        if c.written and gone:
            raise gone.pop()

    client.agent, client.on_get = wiped, flaky
    assert "is wiped" in run(capsys, "wipe", "gpu-a", "F", "--confirm", "F")
    assert gone == []


def test_what_changed_since_it_was_shown_is_not_wiped(capsys, client):
    reads = []

    def swap(c: FakeClient) -> None:
        reads.append(1)
        if len(reads) == 3:  # shown, Lease, and now to be written
            c.node()["status"]["ssds"][0]["fingerprint"] = "other"

    client.on_get = swap
    assert "changed since it was shown" in run(capsys, "wipe", "gpu-a", "F", "--confirm", "F", status=1)
    assert client.written == []


def test_somebody_who_writes_at_the_same_time_is_no_failure(capsys, client):
    tries = []
    real = client.patch

    def patch(resource, body):
        tries.append(1)
        if len(tries) == 1:
            client.node()["metadata"]["resourceVersion"] = "77"
        return real(resource, body)

    client.patch, client.agent = patch, wiped
    assert "is wiped" in run(capsys, "wipe", "gpu-a", "F", "--confirm", "F")
    assert len(tries) == 3


# --- who answers ---


@pytest.mark.parametrize(
    ("age", "condition", "answers"),
    [(3, ready(), True), (50, ready(), True), (200, ready(), False), (3, ready("Unknown", "AgentSilent"), False)],
)
def test_who_answers(client, age, condition, answers):
    client.lease("agent-gpu-a", age=age)
    client.node()["status"]["conditions"] = [condition]
    found = cluster.flash_node(client, "gpu-a")
    assert cluster.heartbeat_of(client, found, "kubeflash-system").answers is answers
    assert cluster.read(client).cluster.answering == (frozenset({"gpu-a"}) if answers else frozenset())


@pytest.mark.parametrize("age", [3, 200])
def test_where_clock_and_controller_disagree_the_lease_is_watched(client, monkeypatch, age):
    monkeypatch.setattr(cluster, "WATCHED", 5.0)
    monkeypatch.setattr(cluster.time, "sleep", lambda _: client.lease("agent-gpu-a", age=age - 1))
    client.lease("agent-gpu-a", age=age)
    if age == 3:
        client.node()["status"]["conditions"] = [ready("Unknown", "AgentSilent")]
    assert cluster.heartbeat_of(client, cluster.flash_node(client, "gpu-a"), "kubeflash-system").answers


@pytest.mark.parametrize(
    ("said", "given", "answers"),
    [
        (["flash", "flash", "old"], None, True),
        (["flash", "old", "old"], None, False),
        ([None, None, None], None, False),
        ([None, None, None], "flash", True),
        (["flash", "flash", "flash"], "kubeflash-system", False),
    ],
    ids=["most say so", "few say so", "none says it", "given", "given, another"],
)
def test_leases_are_where_kubeflash_runs(capsys, client, said, given, answers):
    client.objects = {key: item for key, item in client.objects.items() if not key.startswith("leases/")}
    client.lease("agent-gpu-a", namespace="flash")
    for number, namespace in enumerate(said):
        client.put(server(f"gpu-{'abc'[number]}", number + 1, FOREIGN, system_uuid=f"uuid-{number}"))
        if namespace is not None:
            client.node(f"gpu-{'abc'[number]}")["status"]["agent"] = {"version": "0.1.0", "namespace": namespace}
    words = ["wipe", "gpu-a", "F", "--dry-run", *(["--system-namespace", given] if given else [])]
    said_of_it = run(capsys, *words, status=0 if answers else 1)
    assert ("will be asked for" if answers else "has no Lease") in said_of_it


def test_why_looks_for_leases_where_kubeflash_runs(capsys, client):
    client.put(volume("kv", 5, spec={"id": None}))
    client.objects = {key: item for key, item in client.objects.items() if not key.startswith("leases/")}
    client.lease("kubeflash-controller", namespace="flash")
    assert "no controller" in why(capsys)
    assert "no controller" not in why(capsys, "--system-namespace", "flash")
    client.node()["status"]["agent"] = {"version": "0.1.0", "namespace": "flash"}
    assert "no controller" not in why(capsys)


# --- adopt ---


def adopted(client: FakeClient) -> None:
    for key, item in client.objects.items():
        if key.startswith("flashvolumes/"):
            item["status"] = {"conditions": [ready(reason="Carved")]}


ADOPT = ("adopt", "gpu-a", ORPHAN, "--name", "again", "-n", "serving")


def test_adopt_lists(capsys, client):
    client.put(lost_volume())
    said = run(capsys, "adopt")
    assert f"gpu-a C-1 {ORPHAN} 16Mi serving/was" in said
    assert "gpu-a M-1 0 uuid-old" in said
    whole = json.loads(run(capsys, "adopt", "-o", "json"))
    assert whole["orphans"] == [
        {"node": "gpu-a", "ssd": "C-1", "id": ORPHAN, "bytes": 16 << 20, "was": ["serving/was"]}
    ]
    client.forbidden.add("flashvolumes")
    assert "whose orphans were is not known" in run(capsys, "adopt")


def test_adopt_makes_a_volume_with_the_id_and_size_of_the_orphan(capsys, client):
    client.agent = adopted
    assert "Adopted: FlashVolume serving/again of 16Mi in pool fast" in run(capsys, *ADOPT)
    [(method, body)] = client.written
    assert (method, body["spec"]) == ("POST", {"pool": "fast", "size": "16Mi", "id": ORPHAN})


def closed(client: FakeClient) -> None:
    client.objects["flashpools//fast"]["spec"].pop("allowedNamespaces")


ADOPT_REFUSED: dict[str, tuple[Callable[[FakeClient], object], str]] = {
    "a lost volume has it": (lambda c: c.put(lost_volume()), "it is lost; kubectl delete flashvolume was -n serving"),
    "a volume has it": (lambda c: c.put(volume("kv", 5, spec={"id": ORPHAN})), "FlashVolume serving/kv has id"),
    "the name is taken": (lambda c: c.put(volume("again", 6)), "there is a FlashVolume serving/again already"),
    "no pool": (lambda c: c.node()["status"]["ssds"][1].pop("pool"), "no pool selects SSD C-1"),
    "a closed pool": (closed, "would not be placed: FlashPool fast has no spec.allowedNamespaces"),
    "a silent agent": (lambda c: c.lease("agent-gpu-a", age=900), "would not become Ready"),
    "quota": (
        lambda c: c.objects["flashpools//fast"]["spec"].update(quota={"perNamespace": "1Mi"}),
        "would not be placed: other volumes of namespace serving have 0 of pool fast, and all may have 1Mi",
    ),
}


@pytest.mark.parametrize(("prepare", "said"), ADOPT_REFUSED.values(), ids=ADOPT_REFUSED)
def test_adopt_is_refused_before_anything_is_made(capsys, client, prepare, said):
    prepare(client)
    assert said in run(capsys, *ADOPT, status=1)
    assert client.written == []


def test_adopt_of_what_is_not_placed_says_why(capsys, client, monkeypatch):
    monkeypatch.setattr(adopt, "GRACE", 0.0)

    def refuse(c: FakeClient) -> None:
        no = {**ready("False", "FoundTwice"), "type": "Placed", "message": "its bytes are on two SSDs"}
        c.objects["flashvolumes/serving/again"]["status"] = {"conditions": [no]}

    client.agent = refuse
    said = run(capsys, *ADOPT, status=1)
    assert "FlashVolume serving/again was made, and is not placed: its bytes are on two SSDs" in said


def test_adopt_of_an_ssd(capsys, client):
    def take_over(c: FakeClient) -> None:
        if c.node()["spec"].get("adopt", {}).get("M-1") == "uuid-old":
            c.node()["status"]["ssds"][2].update(state="Claimed", reason="")
            c.node()["status"]["ssds"][2].pop("labelled", None)

    client.agent = take_over
    said = run(capsys, "adopt", "gpu-a", "M", "--confirm", "M")
    assert "system UUID uuid-old: no FlashNode has that" in said
    assert said.endswith("SSD M-1 is server gpu-a's now, with 0 volumes on it.")
    assert [body["spec"] for _, body in client.written] == [{"adopt": {"M-1": "uuid-old"}}, {"adopt": {"M-1": None}}]


@pytest.mark.parametrize(
    ("ssds", "said"), [([ssd_json("M", 0x33)], "it still has it"), ([], "taken over by itself in a moment")]
)
def test_adopt_of_an_ssd_whose_server_answers(capsys, client, ssds, said):
    client.put(server("old", 9, *ssds, system_uuid="uuid-old"))
    client.lease("agent-old")
    assert said in run(capsys, "adopt", "gpu-a", "M", "--confirm", "M", status=1)
    assert client.written == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("M", "--confirm", "X"), "--confirm X is not the SSD's serial"),
        (("F",), "SSD F-1 carries no label of another server of this cluster, it is foreign: not blank"),
        (("C",), "SSD C-1 is server gpu-a's already"),
        (("Z",), "no orphan and no SSD Z"),
        ((ORPHAN,), "--name NAME -n NAMESPACE"),
    ],
)
def test_adopt_of_what_cannot_be(capsys, client, words, said):
    assert said in run(capsys, "adopt", "gpu-a", *words, status=1)
    assert client.written == []


# --- purge ---


def gone(client: FakeClient) -> None:
    client.lease("agent-gpu-a", age=500)
    client.node()["status"]["conditions"] = [ready("Unknown", "AgentSilent")]


def purged(client: FakeClient) -> None:
    for key, item in client.objects.items():
        if key.startswith("flashvolumes/") and item["status"].pop("nodeName", None):
            item["status"]["lost"] = {"nodeName": "gpu-a", "ssd": item["status"].pop("ssd"), "since": T0.isoformat()}
    if "flashnodes//gpu-a" in client.objects:
        client.node()["status"]["conditions"].append({**ready(), "type": "Purged"})


def test_purge_waits_and_deletes_flashnode_and_lease(capsys, client):
    gone(client)
    client.agent = purged
    client.put(volume("kv", 5, status={"nodeName": "gpu-a", "ssd": "C-1"}))
    client.put(attachment("kv-on-b", 6, "kv", "gpu-b"))
    client.put(attachment("other-on-a", 7, "other", "gpu-a"))
    client.put(attachment("other-on-b", 8, "other", "gpu-b"))
    said = run(capsys, "purge", "gpu-a", "--confirm", UUID)
    assert "LOST WILL BE: 1 volume with 100Mi serving/kv: 100Mi on SSD C-1" in said
    assert "serving/kv-on-b of kv at server gpu-b" in said
    assert "Delete these FlashAttachments first: serving/kv-on-b, serving/other-on-a." in said
    assert "other-on-b" not in said
    assert client.written[0][1]["spec"] == {"purge": UUID}
    assert [method for method, _ in client.written] == ["PATCH", "DELETE", "DELETE"]
    assert "flashnodes//gpu-a" not in client.objects
    assert "leases/kubeflash-system/agent-gpu-a" not in client.objects
    assert "there is no FlashNode gpu-a; there are: none" in run(capsys, "purge", "gpu-a", status=1)


def test_purge_that_was_interrupted_between_flashnode_and_lease(capsys, client):
    del client.objects["flashnodes//gpu-a"]
    assert "it is not lost" in run(capsys, "purge", "gpu-a", status=1)
    client.lease("agent-gpu-a", age=500)
    assert "would be deleted" in run(capsys, "purge", "gpu-a", "--dry-run")
    assert "Lease is deleted too" in run(capsys, "purge", "gpu-a")


def test_purge_that_was_interrupted_before_the_flashnode_says_all_that_is_lost(capsys, client):
    gone(client)
    client.node()["spec"]["purge"] = UUID
    purged(client)
    client.put(lost_volume())
    said = run(capsys, "purge", "gpu-a", "--confirm", UUID)
    assert "serving/was: 100Mi on SSD C-1" in said
    assert "Lost: serving/was." in said
    assert [method for method, _ in client.written] == ["DELETE", "DELETE"]


def test_purge_of_one_ssd_waits_until_its_volumes_are_lost_and_takes_its_word_back(capsys, client):
    client.put(volume("kv", 5, status={"nodeName": "gpu-a", "ssd": "DEAD-1"}))
    client.put(volume("other", 6, status={"nodeName": "gpu-a", "ssd": "C-1"}))
    assert "will be asked for" in run(capsys, "purge", "gpu-a", "DEAD-1", "--dry-run")
    assert client.written == []
    assert "is not the SSD's id" in run(capsys, "purge", "gpu-a", "DEAD-1", "--confirm", "C-1", status=1)

    told: list[str] = []

    def lose(fake: FakeClient) -> None:
        if fake.node()["spec"]["lost"] == ["DEAD-1"]:
            told.append("DEAD-1")
        status = fake.objects["flashvolumes/serving/kv"]["status"]
        status.pop("nodeName", None)
        status["lost"] = {"nodeName": "gpu-a", "ssd": "DEAD-1", "since": T0.isoformat()}

    client.agent = lose
    said = run(capsys, "purge", "gpu-a", "DEAD-1", "--confirm", "DEAD-1")
    assert "LOST WILL BE: 1 volume with 100Mi serving/kv" in said
    assert "Lost: serving/kv." in said
    assert told == ["DEAD-1"]
    assert client.node()["spec"]["lost"] == [], "the word is taken back"
    assert "nothing waits for it" in run(capsys, "purge", "gpu-a", "A-9", status=1)


def test_an_ssd_that_works_is_not_purged(capsys, client):
    client.put(volume("kv", 5, status={"nodeName": "gpu-a", "ssd": "C-1"}))
    assert "SSD C-1 of server gpu-a works: it is not lost" in run(
        capsys, "purge", "gpu-a", "C-1", "--confirm", "C-1", status=1
    )


def test_purge_is_refused(capsys, client):
    assert "the agent on server gpu-a answers, 3 s ago: it is not lost" in run(
        capsys, "purge", "gpu-a", "--confirm", UUID, status=1
    )
    gone(client)
    assert "--confirm gpu-a is not the server's system UUID" in run(
        capsys, "purge", "gpu-a", "--confirm", "gpu-a", status=1
    )
    assert "nothing was changed" in run(capsys, "purge", "gpu-a", "--dry-run")
    client.node()["status"]["systemUUID"] = ""
    assert "kubectl delete flashnode gpu-a" in run(capsys, "purge", "gpu-a", "--confirm", "", status=1)
    assert client.written == []


def test_purge_of_a_server_that_answers_after_all_is_called_off(capsys, client):
    def answers(c: FakeClient) -> None:
        no = {**ready("False", "AgentAnswers"), "type": "Purged"}
        c.node()["status"]["conditions"].append(no)

    gone(client)
    client.agent = answers
    assert "answers after all: it is not purged" in run(capsys, "purge", "gpu-a", "--confirm", UUID, status=1)
    assert "purge" not in client.node()["spec"]


# --- purge --all ---

CLUSTER_ID = "3c0c6f2e-cluster"


@pytest.fixture
def whole(client: FakeClient, monkeypatch) -> FakeClient:
    """A volume that is attached, one that is not, an orphan, a pool: and a cluster that does what it is asked for."""
    monkeypatch.setattr(purgeall, "STUCK", 0.0)
    client.put({"metadata": {"name": "kube-system", "uid": CLUSTER_ID}}, "namespaces")
    client.put(volume("kv", 1, status={"nodeName": "gpu-a", "ssd": "C-1", "granted": 1 << 20, "id": uid(1001)}))
    client.put(volume("waits", 2))
    client.put(attachment("kv-on-a", 3, "kv", "gpu-a"))
    ssd_in(client, "C-1")["volumes"].append({**extent(uid(1001), 1), "number": 3})
    client.deleted = bytes_go
    client.agent = wiped
    return client


def ssd_in(client: FakeClient, ssd: str) -> dict:
    return next(item for item in client.node()["status"]["ssds"] if item["id"] == ssd)


def bytes_go(client: FakeClient) -> None:
    """The agent has looked at the SSD after a volume went: its partition is gone, and the fingerprint another."""
    left = {item["spec"].get("id") for key, item in client.objects.items() if key.startswith("flashvolumes/")}
    if "flashnodes//gpu-a" not in client.objects:
        return
    found = ssd_in(client, "C-1")
    if (on := [item for item in found["volumes"] if item["id"] in {*left, ORPHAN}]) != found["volumes"]:
        found.update(volumes=on, fingerprint="c1c1")


def done(client: FakeClient) -> list[str]:
    """What was written, in order and in short."""
    return [
        f"{method} {body['path'].rpartition('/kubeflash.io/v1alpha1/')[2]}"
        if "path" in body
        else f"{method} {json.dumps(body['spec'])}"
        for method, body in client.written
    ]


def test_purge_all_goes_from_attachments_to_servers(capsys, whole):
    said = run(capsys, "purge", "--all", "--confirm", CLUSTER_ID)
    assert "attachment serving/kv-on-a: volume kv at server gpu-a" in said
    assert "volume serving/kv: 1Mi on SSD C-1 of server gpu-a, attached by kv-on-a on gpu-a" in said
    assert "volume serving/waits: 100Mi, placed nowhere, attached by nobody" in said
    assert "SSD C-1 of server gpu-a, serial C, 1Gi: 1 volume, 1 orphan" in said
    assert "LOST WILL BE: 2 volumes with" in said
    assert "Left alone: SSD M-1 of server gpu-a carries the label of server uuid-old" in said
    assert done(whole) == [
        'PATCH {"maintenance": true}',
        "DELETE namespaces/serving/flashattachments/kv-on-a",
        "DELETE namespaces/serving/flashvolumes/kv",
        "DELETE namespaces/serving/flashvolumes/waits",
        'PATCH {"wipe": {"ssds": {"C-1": "c1c1"}}}',
        'PATCH {"wipe": {"ssds": {"C-1": null}}}',
        "DELETE flashpools/fast",
        "DELETE flashnodes/gpu-a",
    ]
    assert "Gone: 2 volumes; blank: 1 SSD." in said
    assert "helm uninstall kubeflash -n kubeflash-system" in said
    assert "kubectl delete crd flashnodes.kubeflash.io flashpools.kubeflash.io flashvolumes.kubeflash.io" in said


def test_the_phases_of_a_purge_of_all():
    assert purgeall.phases(purgeall.Everything()) == [purgeall.phases(purgeall.Everything())[0]]
    found = purgeall.Everything(pools=(pool("fast", 1),), servers=(server("gpu-a", 2),))
    assert [phase.act for phase in purgeall.phases(found)] == ["close", "pools", "servers"]
    node = server("gpu-a", 2, CLAIMED)
    found = purgeall.Everything(
        (attachment("a", 3, "v", "gpu-a"),), (volume("v", 4),), ((node, node.status.ssds[0]),), found.pools, (node,)
    )
    acts = [phase.act for phase in purgeall.phases(found)]
    assert acts == ["close", "detach", "release", "wipe", "pools", "servers"]


def test_purge_all_wants_the_clusters_id(capsys, whole):
    said = run(capsys, "purge", "--all", "--dry-run")
    assert f"nothing was changed. The cluster's id, {CLUSTER_ID}, will be asked for" in said
    assert f"is not the cluster's id, which is {CLUSTER_ID}" in run(
        capsys, "purge", "--all", "--confirm", "yes", status=1
    )
    assert "type the cluster's id on a terminal" in run(capsys, "purge", "--all", status=1)
    assert whole.written == []


def carved(c: FakeClient, ssd: str) -> None:
    c.put(volume("kv", 1, status={"nodeName": "gpu-a", "ssd": ssd, "bytes": 1 << 20, "id": uid(1001)}))


def silent_agent(c: FakeClient) -> None:
    c.put(server("gpu-b", 9))


def placed_elsewhere(c: FakeClient) -> None:
    c.put(volume("far", 7, status={"nodeName": "gpu-z", "ssd": "Z-1", "granted": 1 << 20}))


@pytest.mark.parametrize(
    ("prepare", "said"),
    [
        (lambda c: c.objects.pop("leases/kubeflash-system/kubeflash-controller"), "install KubeFlash again"),
        (lambda c: c.lease("kubeflash-controller", age=900), "no controller decides: it does not answer"),
        (lambda c: c.lease("agent-gpu-a", age=900), "no agent answers, and nobody else may touch a disk"),
        (silent_agent, "the agent on server gpu-b has no Lease: it does not run: start it; or if that server is lost"),
        (silent_agent, "kubectl flash purge gpu-b"),
        (lambda c: c.node()["spec"].update(paused=True), "server gpu-a is paused"),
        (lambda c: carved(c, "Z-1"), "volume serving/kv is on SSD Z-1, which server gpu-a cannot use"),
        (lambda c: carved(c, "F-1"), "if that SSD is lost for good: kubectl flash purge gpu-a F-1"),
        (placed_elsewhere, "which has no FlashNode: kubectl flash purge gpu-z"),
        (lambda c: c.forbidden.add("flashattachments"), "you may not list flashattachments"),
    ],
    ids=[
        "gone",
        "silent",
        "all agents",
        "an agent",
        "purge it",
        "paused",
        "no SSD",
        "foreign SSD",
        "no FlashNode",
        "RBAC",
    ],
)
def test_purge_all_is_refused_before_anything_is_changed(capsys, whole, prepare, said):
    prepare(whole)
    dry = run(capsys, "purge", "--all", "--dry-run")
    assert "As it is now it would be refused" in dry
    assert said in dry
    assert said in run(capsys, "purge", "--all", "--confirm", CLUSTER_ID, status=1)
    assert whole.written == []


def keep(*plurals: str) -> Callable[[FakeClient, str], bool]:
    return lambda _, path: any(f"/{plural}/" in path for plural in plurals)


def test_a_device_in_use_stops_a_purge_of_all_before_a_byte_is_lost(capsys, whole):
    whole.keeps = keep("flashattachments")
    item = whole.objects["flashattachments/serving/kv-on-a"]
    held = {**ready("False", "InUse"), "type": "Connected", "message": "mounted at /srv/kv"}
    item["status"] = {"conditions": [held]}
    said = run(capsys, "purge", "--all", "--confirm", CLUSTER_ID, status=1)
    assert "attachment serving/kv-on-a: its device is in use on server gpu-a: mounted at /srv/kv: end that" in said
    assert "spec.maintenance" in said
    assert done(whole) == ['PATCH {"maintenance": true}', "DELETE namespaces/serving/flashattachments/kv-on-a"]


def test_a_volume_whose_bytes_are_held_stops_a_purge_of_all(capsys, whole):
    whole.keeps = keep("flashvolumes")
    whole.node()["status"]["plan"] = [
        {"step": "WipePartition", "what": f"wipe volume {uid(1001)}", "state": "Failed", "message": "held: by dd (7)"}
    ]
    said = run(capsys, "purge", "--all", "--confirm", CLUSTER_ID, status=1)
    assert "volume serving/kv: held: by dd (7): end that" in said
    assert "wipe" not in whole.node()["spec"]


def test_what_was_made_meanwhile_is_not_purged(capsys, whole):
    def made(client: FakeClient) -> None:
        client.deleted = lambda _: None
        client.put(attachment("new", 30, "kv", "gpu-a"))

    whole.deleted = made
    said = run(capsys, "purge", "--all", "--confirm", CLUSTER_ID, status=1)
    assert "attachments were made meanwhile: serving/new; no volume was deleted" in said
    assert "flashvolumes/serving/kv" in whole.objects


def test_a_volume_that_took_the_name_of_one_that_was_shown_is_not_purged(capsys, whole):
    def replaced(client: FakeClient) -> None:
        client.objects["flashvolumes/serving/waits"]["metadata"]["uid"] = "another"

    whole.agent = replaced
    said = run(capsys, "purge", "--all", "--confirm", CLUSTER_ID, status=1)
    assert "volumes were made meanwhile: serving/waits" in said
    assert "flashvolumes/serving/waits" in whole.objects
    assert "flashpools//fast" in whole.objects


def test_the_partition_of_a_lost_volume_is_an_orphan_that_a_purge_of_all_wipes(capsys, whole):
    """Nobody takes it from the SSD when its volume is deleted: its server was lost, and came back."""
    lost = {"nodeName": "gpu-a", "ssd": "C-1", "since": "2026-01-01T00:00:00Z"}
    whole.put(volume("was", 5, spec={"id": ORPHAN}, status={"lost": lost}))
    said = run(capsys, "purge", "--all", "--confirm", CLUSTER_ID)
    assert "SSD C-1 of server gpu-a, serial C, 1Gi: 1 volume, 1 orphan" in said
    assert 'PATCH {"wipe": {"ssds": {"C-1": "c1c1"}}}' in done(whole)
    assert "Gone: 3 volumes; blank: 1 SSD." in said


def test_an_ssd_that_cannot_be_wiped_stops_a_purge_of_all(capsys, whole):
    whole.agent = lambda c: c.node()["status"].update(
        observedGeneration=c.node()["metadata"]["generation"],
        plan=[{"step": "WipeSsd", "what": "wipe SSD C-1", "state": "Failed", "message": "held: mounted at /rescue"}],
    )
    said = run(capsys, "purge", "--all", "--confirm", CLUSTER_ID, status=1)
    assert "SSD C-1 of server gpu-a: held: mounted at /rescue: end that, then run this again" in said
    assert "flashpools//fast" in whole.objects


def test_an_ssd_that_holds_what_was_not_shown_is_not_wiped(capsys, whole):
    def made(client: FakeClient) -> None:
        bytes_go(client)
        ssd_in(client, "C-1")["volumes"].append({**extent(uid(8000), 1), "number": 9})

    whole.deleted = made
    said = run(capsys, "purge", "--all", "--confirm", CLUSTER_ID, status=1)
    assert f"SSD C-1 of server gpu-a holds what was not shown: {uid(8000)}" in said
    assert ssd_in(whole, "C-1")["state"] == "Claimed"
    assert "flashpools//fast" in whole.objects


def test_an_agent_that_has_not_looked_since_is_waited_for(capsys, whole):
    looks = []

    def late(client: FakeClient) -> None:
        looks.append(1)
        if len(looks) > 20:
            bytes_go(client)

    whole.deleted = lambda _: None
    whole.on_get = late
    assert "Gone: 2 volumes" in run(capsys, "purge", "--all", "--confirm", CLUSTER_ID)
    assert 'PATCH {"wipe": {"ssds": {"C-1": "c1c1"}}}' in done(whole)


@pytest.mark.parametrize("lease", ["kubeflash-controller", "agent-gpu-a"])
def test_a_purge_of_all_does_not_wait_for_those_who_are_uninstalled(capsys, whole, monkeypatch, lease):
    monkeypatch.setattr(purgeall, "LOOK", 0.0)
    monkeypatch.setattr(purgeall, "SILENT", 0.01)
    whole.keeps = keep("flashvolumes")
    whole.deleted = lambda c: c.objects.pop(f"leases/kubeflash-system/{lease}", None)
    said = run(capsys, "purge", "--all", "--confirm", CLUSTER_ID, status=1)
    assert "has no Lease: it does not run, and nobody else can do this: install or start KubeFlash again" in said


def test_purge_all_without_kubeflash(capsys, client):
    client.objects = {"namespaces//kube-system": {"metadata": {"name": "kube-system", "uid": CLUSTER_ID}}}
    client.lease("kubeflash-controller")
    assert "Nothing of KubeFlash is in this cluster." in run(capsys, "purge", "--all")
    client.missing = {"flashnodes"}
    assert "KubeFlash's kinds are not in this cluster" in run(capsys, "purge", "--all", status=1)


# --- plan ---


def test_plan(capsys, tmp_path, client):
    client.put(server("gpu-b", 9, paused=True))
    client.node()["status"]["summary"] = {"orphans": 2}
    client.node()["status"]["plan"] = [
        {"step": "X", "what": "wipe volume v", "state": "Running", "message": "12%", "expects": "nobody"},
        {"step": "X", "what": "carve volume w", "state": "Failed", "message": "no space"},
    ]
    said = run(capsys, "plan")
    assert "gpu-a: 2 steps; 2 orphans: kubectl flash adopt lists them running wipe volume v 12% expects nobody" in said
    assert "failed carve volume w no space" in said
    assert "gpu-b: nothing to do paused (spec.paused): the agent prints" in said
    file = tmp_path / "nodes.yaml"
    file.write_text(yaml.safe_dump({"kind": "List", "items": [{"kind": "FlashNode", **client.node()}]}))
    assert "gpu-a: 2 steps" in run(capsys, "plan", "-f", str(file))
    assert "there is no server z in what was read; there are: gpu-a" in run(
        capsys, "plan", "-f", str(file), "z", status=1
    )
    file.write_text("PCI 00:00.0\n")
    assert "it holds no FlashNode" in run(capsys, "plan", "-f", str(file), status=1)


# --- why volume ---


def why(capsys, *words: str) -> str:
    return run(capsys, "why", "volume", "kv", "-n", "serving", *words)


def test_why_volume_of_one_that_nobody_has_looked_at(capsys, client):
    client.put(volume("kv", 5, spec={"id": None}))
    said = why(capsys)
    assert said.startswith("serving/kv: not Ready: the controller has not looked at it yet")
    assert "placement would be: Placed: SSD C-1 of server gpu-a" in said
    assert "the agent on gpu-a answers, 3 s ago" in said


def test_why_volume_says_what_may_not_be_read_and_goes_on(capsys, client):
    client.put(volume("kv", 5, spec={"id": None}))
    client.forbidden |= {"nodes", "namespaces", "leases", "flashattachments", "flashvolumes"}
    said = why(capsys)
    for plural in client.forbidden:
        assert f"? you may not list {plural} (RBAC)" in said
    assert "placement would be: Placed: SSD C-1" in said


def test_why_volume_shows_refused_and_draining_ssds_and_silent_servers(capsys, client):
    client.put(pool("fast", 2, "F", "B"))
    client.put(volume("kv", 5, spec={"near": {"node": "gpu-a", "gpu": "0000:12:00.0"}, "id": None}))
    client.put(volume("old", 6, status={"nodeName": "gpu-a", "ssd": "C-1"}))
    client.lease("agent-gpu-a", age=4000)
    client.lease("kubeflash-controller", age=4000)
    whole = json.loads(why(capsys, "-o", "json"))
    assert [(item["ssd"], item["reason"]) for item in whole["refused"]] == [("F-1", "not blank: ext4")]
    assert [(item["ssd"], item["volumes"]) for item in whole["draining"]] == [("C-1", ["serving/old"])]
    assert [(item["ssd"], item["whyNot"], item["distance"]) for item in whole["ssds"]] == [
        ("B-1", "the agent on server gpu-a does not answer", "PHB")
    ]
    assert whole["placement"]["reason"] == "NoSuitableSSD"
    said = why(capsys)
    assert "no controller decides" in said
    assert "DRAINING SSDs" in said


def test_why_volume_heeds_what_its_server_refused(capsys, client):
    status = {"nodeName": "gpu-a", "ssd": "C-1", "refused": {"C-1": "somebody wrote to it"}}
    client.put(volume("kv", 5, status=status))
    whole = json.loads(why(capsys, "-o", "json"))
    assert whole["ssds"][0]["whyNot"] == "its server refused: somebody wrote to it"


@pytest.mark.parametrize("reason", ["Lost", "PoolNotFound", "PoolDeleting", "NamespaceNotAllowed", "NotFound"])
def test_why_volume_of_one_that_no_ssd_would_help(capsys, client, reason):
    made = {
        "Lost": lambda: lost_volume().model_copy(update={"metadata": volume("kv", 5).metadata}),
        "PoolNotFound": lambda: volume("kv", 5, pool="nope"),
        "NotFound": lambda: volume("kv", 5, restored=True),
    }.get(reason, lambda: volume("kv", 5))()
    client.put(made)
    if reason == "NamespaceNotAllowed":
        closed(client)
    if reason == "PoolDeleting":
        client.objects["flashpools//fast"]["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    whole = json.loads(why(capsys, "-o", "json"))
    assert whole["placement"]["reason"] == reason
    assert whole["ssds"] == []
    assert f"placement none: {reason}" in why(capsys)


def test_why_volume_names_what_it_does_not_find(capsys, client):
    client.put(volume("kv", 5))
    assert "there is no FlashVolume kb in namespace serving; there are: kv" in run(
        capsys, "why", "volume", "serving/kb", status=1
    )
    assert "there is no FlashVolume kv in namespace other; elsewhere: serving/kv" in run(
        capsys, "why", "volume", "kv", "-n", "other", status=1
    )


# --- attachments, why attachment ---


def test_attachments_of_a_namespace_of_all_and_of_one_name(capsys, client):
    assert run(capsys, "attachments", "-n", "serving") == "There is no FlashAttachment in namespace serving."
    assert run(capsys, "attachments", "-A") == "There is no FlashAttachment in any namespace."
    assert json.loads(run(capsys, "attachments", "-A", "-o", "json")) == {"items": []}
    client.put(volume("kv", 5, status={"nodeName": "gpu-a"}))
    client.put(attachment("on-b", 6, "kv", "gpu-b"))
    client.put(attachment("on-a", 7, "kv", "gpu-a"))
    elsewhere = attachment("on-b", 8, "kv", "gpu-b").model_dump(mode="json", by_alias=True, exclude_none=True)
    client.put({**elsewhere, "metadata": {**elsewhere["metadata"], "namespace": "other"}}, "flashattachments")
    head = "NAME VOLUME FROM TO PATH STATE SINCE PATHS SECURITY DEVICE"
    assert run(capsys, "attachments", "-n", "serving").startswith(f"{head} on-a kv gpu-a gpu-a - Unseen ")
    assert run(capsys, "attachments", "-A").startswith(f"NAMESPACE {head} other on-b kv - gpu-b - Unseen ")
    assert "on-a" not in run(capsys, "attachments", "serving/on-b")
    assert json.loads(run(capsys, "attachments", "on-b", "-n", "serving", "-o", "json"))["to"] == "gpu-b"
    items = yaml.safe_load("\n".join([*lines_of(capsys, "attachments", "on-b", "-A", "-o", "yaml")]))["items"]
    assert [item["namespace"] for item in items] == ["other", "serving"]


def lines_of(capsys, *words: str) -> list[str]:
    assert main(words) == 0
    return capsys.readouterr().out.splitlines()


def test_why_attachment_and_its_document(capsys, client):
    client.put(volume("kv", 5, status={"nodeName": "gpu-a", "ssd": "C-1"}))
    client.put(attachment("on-b", 6, "kv", "gpu-b"))
    said = run(capsys, "why", "attachment", "serving/on-b")
    assert said.startswith("serving/on-b: Unseen: the controller has not looked at it yet")
    assert "! consumer there is no FlashNode gpu-b; there are: gpu-a" in said
    whole = json.loads(run(capsys, "why", "attachment", "on-b", "-n", "serving", "-o", "json"))
    assert (whole["state"], whole["from"], whole["unread"]) == ("Unseen", "gpu-a", [])
    assert whole["whatToDo"] == "kubectl flash why volume kv -n serving"


def test_why_attachment_says_what_may_not_be_read(capsys, client):
    client.put(volume("kv", 5, status={"nodeName": "gpu-a", "ssd": "C-1"}))
    client.put(attachment("on-b", 6, "kv", "gpu-b"))
    client.forbidden |= {"flashnodes", "flashpools", "nodes", "namespaces", "leases", "flashattachments"}
    said = run(capsys, "why", "attachment", "serving/on-b")
    assert "? you may not list flashnodes (RBAC): no server is known" in said
    assert "? consumer server gpu-b: no FlashNode is known" in said


def test_attachments_that_are_not_there_are_told_from_those_that_are(capsys, client):
    client.put(attachment("on-b", 6, "kv", "gpu-b"))
    for words in (("why", "attachment"), ("attachments",)):
        assert "there is no FlashAttachment on-c in namespace serving; there are: on-b" in run(
            capsys, *words, "serving/on-c", status=1
        )
        assert "no FlashAttachment on-b in namespace other; elsewhere: serving/on-b; there are: none" in run(
            capsys, *words, "on-b", "-n", "other", status=1
        )
    assert "there is no FlashAttachment on-c in any namespace" in run(capsys, "attachments", "on-c", "-A", status=1)
    exported = {"on-c": {"uid": uid(77), "fencing": True}}
    client.put(volume("kv", 5, status={"nodeName": "gpu-a", "exported": exported}))
    assert "server gpu-a still takes down the export of one that had this name, for volume kv" in run(
        capsys, "why", "attachment", "serving/on-c", status=1
    )
    client.forbidden.add("flashattachments")
    assert "in namespace other; there are: none" in run(capsys, "attachments", "on-b", "-n", "other", status=1)


@pytest.mark.parametrize(
    "words",
    [
        ("why", "attachment"),
        ("why", "attachment", "a/b", "-n", "c"),
        ("attachments", "-A", "-n", "c"),
        ("attachments", "a/b", "-A"),
        ("attachments", "a/"),
        ("why", "volume"),
        ("why", "volume", "a/b", "-n", "c"),
        ("why", "volume", "/b"),
        ("why", "gpu-a", "13:00.0", "-n", "serving"),
        ("wipe", "gpu-a"),
        ("wipe", "gpu-a", "F", "--timeout", "soon"),
        ("wipe", "gpu-a", "F", "--timeout", "0"),
        ("adopt", "gpu-a"),
        ("purge",),
        ("purge", "gpu-a", "--all"),
    ],
)
def test_bad_usage_is_status_two(capsys, client, words):
    with pytest.raises(SystemExit, match="2"):
        main(words)
    assert capsys.readouterr().err.startswith(f"usage: kubectl flash {words[0]}")


def test_a_server_called_volume_is_asked_about_from_a_file(capsys, tmp_path):
    made = server("volume", 1, FOREIGN).model_dump(mode="json", by_alias=True, exclude_none=True)
    file = tmp_path / "node.json"
    file.write_text(json.dumps({"kind": "FlashNode", **made}))
    assert run(capsys, "why", "-f", str(file), "volume", "F").startswith("13:00.0 M 1 (F): not usable: not blank: ext4")
