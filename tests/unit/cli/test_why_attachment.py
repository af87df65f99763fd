"""`kubectl flash why attachment`: for each way to fail: the verdict, where the chain breaks, what to do first."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from kubeflash.api.v1alpha1 import FlashAttachment, FlashNode, FlashPool, FlashVolume
from kubeflash.cli import whyattachment
from kubeflash.cli.cluster import Heartbeat, Reading
from kubeflash.cli.terminal import Terminal
from kubeflash.domain.cluster import Cluster
from kubeflash.domain.names import export_identity
from support.objects import T0, make, uid

NOW = T0 + timedelta(hours=2)
MINE = uid(9)
IDENTITY = export_identity(MINE)
PORTALS = ["tcp://10.20.0.4:4427", "tcp://10.21.0.4:4427"]
ANSWERS = Heartbeat(True, "answers, 3 s ago")
SILENT = Heartbeat(False, "does not answer since 2026-01-01 01:50 UTC")


def condition(kind: str, status: str, reason: str, message: str = "", ago: int = 600) -> dict[str, Any]:
    since = (NOW - timedelta(seconds=ago)).isoformat()
    return {"type": kind, "status": status, "reason": reason, "message": message, "lastTransitionTime": since}


def can(**lacks: str) -> dict[str, Any]:
    names = ("nvmet", "nvmetTcp", "nvmetRdma", "nvmeTcp", "authentication", "tls")
    return {
        "release": "6.12.1-amd64",
        **{name: {"available": name not in lacks, "how": lacks.get(name, "a module")} for name in names},
    }


class Scene:
    """An attachment of gpu-a's volume at gpu-b, Live by two paths; a test changes what is not so."""

    def __init__(self) -> None:
        self.spec: dict[str, Any] = {"volume": "kv-0", "nodeName": "gpu-b"}
        self.deleting = False
        self.status: dict[str, Any] = {
            "path": "Fabric",
            "volumeId": uid(1000),
            "device": "/dev/nvme3n1",
            "fabric": {
                "volumeId": uid(1000),
                "nqn": IDENTITY.nqn,
                "hostNQN": IDENTITY.host_nqn,
                "hostID": MINE,
                "portals": PORTALS,
            },
            "keys": {"storage": "x", "storageKey": "key-a", "consumer": "y", "consumerKey": "key-b"},
            "conditions": [condition("Ready", "True", "Connected"), condition("Connected", "True", "Connected")],
        }
        self.connect("Live", 3600, "live", "live")
        self.wanted: dict[str, Any] | None = {
            "uid": MINE,
            "nqn": IDENTITY.nqn,
            "hostNQN": IDENTITY.host_nqn,
            "hostID": MINE,
            "ports": "4420-5443",
        }
        self.exported: dict[str, Any] | None = {"uid": MINE, "portals": PORTALS, "ready": True}
        self.volume_spec: dict[str, Any] = {"pool": "fast", "size": "100Mi", "id": uid(1000)}
        self.volume_status: dict[str, Any] = {
            "id": uid(1000),
            "nodeName": "gpu-a",
            "ssd": "C-1",
            "conditions": [condition("Ready", "True", "Ready"), condition("Carved", "True", "Carved")],
        }
        self.has_volume = True
        self.volume_deleting = False
        self.nodes: dict[str, dict[str, Any]] = {
            name: {"spec": {}, "status": {"publicKey": key, "linux": can(), "plan": []}}
            for name, key in (("gpu-a", "key-a"), ("gpu-b", "key-b"))
        }
        self.beats = {"gpu-a": ANSWERS, "gpu-b": ANSWERS}
        self.controller = ANSWERS
        self.others: list[FlashAttachment] = []
        self.pool: dict[str, Any] = {}

    def connect(self, state: str, ago: int, *paths: str, lost_in: int | None = None) -> None:
        self.status["connection"] = {
            "state": state,
            "since": (NOW - timedelta(seconds=ago)).isoformat(),
            "paths": [{"portal": portal, "state": path} for portal, path in zip(PORTALS, paths, strict=False)],
            **({"lostAt": (NOW + timedelta(seconds=lost_in)).isoformat()} if lost_in is not None else {}),
        }

    def not_ready(self, reason: str, message: str, *, connected: tuple[str, str] | None = None) -> None:
        self.status["conditions"] = [condition("Ready", "False", reason, message)]
        if connected is not None:
            self.status["conditions"].append(condition("Connected", "False", *connected))

    def bare(self, reason: str, message: str, connected: tuple[str, str] | None = None) -> None:
        """Nothing was built yet."""
        self.wanted = self.exported = None
        self.status = {}
        self.not_ready(reason, message, connected=connected)

    def unconnected(self, reason: str, message: str) -> None:
        """The export is there, and the consumer has no device."""
        self.status.pop("connection")
        self.status.pop("device")
        self.not_ready(reason, message, connected=(reason, message))

    def local(self) -> None:
        self.spec["nodeName"] = "gpu-a"
        self.wanted = self.exported = None
        self.status = {
            "path": "Local",
            "volumeId": uid(1000),
            "device": f"/dev/disk/by-partuuid/{uid(1000)}",
            "conditions": [condition("Ready", "True", "Connected"), condition("Connected", "True", "Connected")],
        }

    def delete(self, *connected: str, withdrawn: bool = False) -> None:
        self.deleting = True
        self.not_ready("Detaching", "it is being detached", connected=(connected[0], " ".join(connected[1:])))
        if withdrawn:
            self.wanted = None

    def made(self) -> tuple[FlashAttachment, Reading]:
        mine = make(FlashAttachment, "kv-0-on-b", 9, spec=self.spec, status=self.status, deleting=self.deleting, age=60)
        volume_status = {
            **self.volume_status,
            "wanted": {"kv-0-on-b": self.wanted} if self.wanted is not None else {},
            "exported": {"kv-0-on-b": self.exported} if self.exported is not None else {},
        }
        volumes = [
            make(FlashVolume, "kv-0", 8, spec=self.volume_spec, status=volume_status, deleting=self.volume_deleting)
        ]
        nodes = {name: FlashNode.from_json({"metadata": {"name": name}, **node}) for name, node in self.nodes.items()}
        pool = make(FlashPool, "fast", 7, spec={"ssds": {"all": True}, **self.pool})
        cluster = Cluster(
            now=NOW,
            pools={"fast": pool},
            nodes=nodes,
            volumes={item.key: item for item in volumes if self.has_volume},
            attachments={item.key: item for item in (mine, *self.others)},
            answering=frozenset(name for name, beat in self.beats.items() if beat.answers),
        )
        return mine, Reading(cluster, self.beats, self.controller)

    def document(self) -> dict[str, Any]:
        return whyattachment.document(*self.made())

    def text(self, columns: int = 120) -> str:
        return "\n".join(whyattachment.text(*self.made(), Terminal(columns)))


@pytest.fixture
def scene() -> Scene:
    return Scene()


def other(name: str, number: int, node: str, *, age: int, deleting: bool = False, path: str | None = "Fabric") -> Any:
    status: dict[str, Any] = {"conditions": [condition("Ready", "True", "Connected")]}
    status |= {"path": path} if path is not None else {}
    return make(
        FlashAttachment,
        name,
        number,
        spec={"volume": "kv-0", "nodeName": node},
        status=status,
        age=age,
        deleting=deleting,
    )


def waiting(scene: Scene, *, deleting: bool = False) -> None:
    scene.bare("VolumeInUse", "FlashVolume kv-0 is attached at server gpu-a by first")
    scene.others = [
        other("third", 21, "gpu-a", age=10, path=None),
        other("first", 20, "gpu-a", age=900, deleting=deleting),
    ]


def reconnecting(scene: Scene) -> None:
    scene.connect("Reconnecting", 168, "connecting", "connecting", lost_in=432)
    scene.not_ready("Reconnecting", "I/O waits", connected=("Reconnecting", "I/O waits"))


def lost(scene: Scene) -> None:
    scene.connect("Lost", 300, "dead")
    scene.not_ready("Lost", "I/O has failed", connected=("Lost", "I/O has failed"))
    scene.beats["gpu-a"] = SILENT


def fencing(scene: Scene, message: str = "") -> None:
    scene.delete("Disconnected", withdrawn=True)
    scene.exported = {"uid": MINE, "portals": PORTALS, "fencing": True, "message": message}


def failing_step(scene: Scene) -> None:
    scene.exported = {"uid": MINE, "portals": PORTALS[:1], "message": "the port is taken"}
    scene.unconnected("NotExported", "the port is taken")
    steps = [
        ("CreatePort", f"export: create port 4427 for {PORTALS[0]}", "Failed", "the port is taken"),
        ("LinkPort", f"export: link {IDENTITY.nqn} to port 4427; it listens from now on", "Pending", ""),
        ("CreatePort", "export: create port 4428 for tcp://10.20.0.4:4428", "Pending", ""),
        ("CarvePartition", "carve volume else", "Running", ""),
    ]
    scene.nodes["gpu-a"]["status"]["plan"] = [
        {"step": step, "what": what, "state": state, "message": message} for step, what, state, message in steps
    ]


def tls(scene: Scene, **lacks: str) -> None:
    scene.status["fabric"]["tls"] = "Required"
    scene.unconnected("ConnectFailed", "no TLS")
    scene.nodes["gpu-b"]["status"]["linux"] = can(**lacks)


def unlinked(scene: Scene) -> None:
    scene.volume_status |= {"nodeName": None, "conditions": [condition("Ready", "False", "NoSuitableSSD", "too large")]}
    scene.bare("VolumeNotReady", "FlashVolume kv-0 is not Ready: too large")


def earlier(scene: Scene) -> None:
    scene.bare("NotExported", "the volume's server builds the export")
    scene.exported = {"uid": uid(66), "fencing": True, "message": "I/O in flight"}


# name: what is done to the scene; the verdict; broken parts, in order; what to do
BROKEN: dict[str, tuple[Callable[[Scene], object], str, list[str], str]] = {
    "nothing": (lambda _: None, "Live: server gpu-b has volume kv-0 of server gpu-a as /dev/nvme3n1 since 1h", [], ""),
    "local": (
        Scene.local,
        f"Attached: volume kv-0 is on server gpu-a itself, as /dev/disk/by-partuuid/{uid(1000)}",
        [],
        "",
    ),
    "one path down": (
        lambda s: s.connect("Live", 60, "live", "connecting"),
        "Live: server gpu-b has volume kv-0 of server gpu-a as /dev/nvme3n1 since 1m, 1 of 2 paths live",
        ["connection tcp://10.21.0.4:4427: connecting"],
        "gpu-a exports it there: look at the network between them, with nc -zv 10.21.0.4 4427 on gpu-b",
    ),
    "a path without a controller": (
        lambda s: s.connect("Live", 60, "live"),
        "Live: server gpu-b has volume kv-0",
        ["connection tcp://10.21.0.4:4427: not connected"],
        "gpu-a exports it there",
    ),
    "the network": (
        reconnecting,
        "Reconnecting: for 2m48s server gpu-a does not answer gpu-b; I/O waits, and fails in 7m12s",
        [
            "connection Reconnecting since 2026-01-01 01:57:12 UTC, for 2m48s; I/O waits, and fails in 7m12s",
            "connection tcp://10.20.0.4:4427: connecting",
            "connection tcp://10.21.0.4:4427: connecting",
        ],
        "gpu-a exports it there: look at the network between them, with nc -zv 10.20.0.4 4427 on gpu-b",
    ),
    "the storage server": (
        lost,
        "Lost: since 5m I/O at server gpu-b fails: gpu-a did not answer for too long; it is connected anew",
        [
            "storage the agent on gpu-a does not answer since",
            "connection Lost since",
            "connection tcp://10.20.0.4:4427: dead",
            "connection tcp://10.21.0.4:4427: not connected",
        ],
        "bring server gpu-a back, or start its agent; if it is lost for good: kubectl flash purge gpu-a",
    ),
    "the consumer is silent": (
        lambda s: s.beats.update({"gpu-b": SILENT}),
        "Live: server gpu-b has volume kv-0 of server gpu-a as /dev/nvme3n1 since 1h, 2 of 2 paths "
        "live; so gpu-b said last",
        ["consumer the agent on gpu-b does not answer since"],
        "bring server gpu-b back",
    ),
    "paused": (
        lambda s: (s.unconnected("Connecting", "x"), s.nodes["gpu-b"].update(spec={"paused": True})),
        "Connecting: server gpu-b has not brought the device yet, for 10m",
        [
            "consumer server gpu-b is paused",
            "connection tcp://10.20.0.4:4427: not connected",
            "connection tcp://10.21.0.4:4427: not connected",
            "device Connecting: x",
        ],
        """kubectl patch flashnode gpu-b --type=merge -p '{"spec":{"paused":false}}'""",
    ),
    "keys": (
        lambda s: (
            s.nodes["gpu-b"]["status"].update(publicKey="new"),
            s.not_ready("KeysLost", "server gpu-b has another key"),
        ),
        "not Ready: KeysLost: server gpu-b has another key",
        ["keys server gpu-b lost its private key", "device nothing was said of it yet"],
        "make the attachment anew: kubectl delete flashattachment kv-0-on-b -n serving",
    ),
    "tlshd": (
        lambda s: tls(s, tls="tlshd does not run"),
        "not Ready: ConnectFailed: no TLS",
        [
            "tls no TLS at gpu-b: tlshd does not run",
            "connection tcp://10.20.0.4:4427: not connected",
            "connection tcp://10.21.0.4:4427: not connected",
            "device ConnectFailed: no TLS",
        ],
        "install and start tlshd (ktls-utils) on gpu-b",
    ),
    "the storage server's kernel": (
        lambda s: (
            s.nodes["gpu-a"]["status"].update(linux=can(nvmetTcp="no such module")),
            setattr(s, "exported", None),
            s.status["fabric"].update(portals=[]),
            s.unconnected("NotExported", "the volume's server builds the export"),
        ),
        "not Ready: NotExported: the volume's server builds the export",
        [
            "export the kernel of gpu-a cannot export over NVMe/TCP: no such module",
            "export wanted; the agent on gpu-a has not begun",
            "device NotExported",
        ],
        "modprobe nvmet-tcp on gpu-a",
    ),
    "RDMA at the storage server": (
        lambda s: (
            s.nodes["gpu-a"]["status"].update(linux=can(nvmetRdma="no RDMA device")),
            s.wanted.update(transport="rdma"),
            setattr(s, "exported", None),
            s.status["fabric"].update(portals=[]),
            s.unconnected("NotExported", "no RDMA device"),
        ),
        "not Ready: NotExported: no RDMA device",
        ["export the kernel of gpu-a cannot export over NVMe/RDMA", "export wanted", "device NotExported"],
        "modprobe nvmet-rdma on gpu-a",
    ),
    "the consumer's kernel": (
        lambda s: (
            s.unconnected("ConnectFailed", "refused"),
            s.nodes["gpu-b"]["status"].update(linux=can(nvmeTcp="no such module", authentication="not built")),
        ),
        "not Ready: ConnectFailed: refused",
        [
            "consumer the kernel of gpu-b cannot connect over NVMe/TCP: no such module",
            "consumer the kernel of gpu-b cannot do NVMe in-band authentication (DH-HMAC-CHAP): not built",
            "connection tcp://10.20.0.4:4427: not connected",
            "connection tcp://10.21.0.4:4427: not connected",
            "device ConnectFailed: refused",
        ],
        "modprobe nvme-tcp on gpu-b",
    ),
    "a step": (
        failing_step,
        "not Ready: NotExported: the port is taken",
        [
            "export not ready: tcp://10.20.0.4:4427: the port is taken",
            "connection tcp://10.20.0.4:4427: not connected",
            "connection tcp://10.21.0.4:4427: not connected",
            "device NotExported: the port is taken",
            "steps gpu-a: failed: export: create port 4427 for tcp://10.20.0.4:4427: the port is taken",
        ],
        "the agent on gpu-a tries again by itself; kubectl flash plan gpu-a shows its steps",
    ),
    "an earlier one": (
        earlier,
        "not Ready: NotExported",
        [
            "keys not made yet",
            "export the export of an earlier attachment of this name is still there: I/O in flight",
            "export the controller does not want it yet",
            "device nothing was said of it yet",
        ],
        "it goes by itself; kubectl flash plan gpu-a shows how far it is",
    ),
    "waits": (
        waiting,
        "Waiting: attachment first at server gpu-a has volume kv-0, which one server at a time can have",
        [
            "others first at server gpu-a has it: Connected for 10m",
            "keys not made yet",
            "export the controller does not want",
        ],
        "delete it first: kubectl delete flashattachment first -n serving",
    ),
    "waits for one that ends": (
        lambda s: waiting(s, deleting=True),
        "Waiting: attachment first at server gpu-a has volume kv-0",
        ["others first at server gpu-a has it: Detaching for 2h, being deleted", "keys", "export"],
        "kubectl flash why attachment first -n serving",
    ),
    "no volume": (
        lambda s: (s.bare("VolumeNotFound", "there is no FlashVolume kv-0"), setattr(s, "has_volume", False)),
        "not Ready: VolumeNotFound: there is no FlashVolume kv-0",
        ["volume there is no FlashVolume kv-0 in namespace serving"],
        "make it, or delete this attachment; kubectl get flashvolumes -n serving lists those there are",
    ),
    "a volume on no server": (
        unlinked,
        "not Ready: VolumeNotReady: FlashVolume kv-0 is not Ready: too large",
        ["volume kv-0 is on no server: NoSuitableSSD: too large", "device"],
        "kubectl flash why volume kv-0 -n serving",
    ),
    "a volume that is lost": (
        lambda s: (
            s.volume_status.update(lost={"nodeName": "gpu-a", "ssd": "C-1", "since": "2026-01-01T00:00:00Z"}),
            s.not_ready("VolumeLost", "it is lost", connected=("Lost", "x")),
            s.connect("Lost", 60),
        ),
        "not Ready: VolumeLost: it is lost",
        [
            "volume kv-0 is lost with server gpu-a",
            "connection Lost",
            "connection tcp://10.20",
            "connection tcp://10.21",
        ],
        "delete the attachment and the volume",
    ),
    "a volume that is deleted": (
        lambda s: setattr(s, "volume_deleting", True),
        "Live: server gpu-b",
        ["volume kv-0 is being deleted"],
        "delete this attachment: the volume waits for it",
    ),
    "no such server": (
        lambda s: (s.spec.update(nodeName="gpu-z"), s.bare("NodeNotFound", "there is no FlashNode gpu-z")),
        "not Ready: NodeNotFound: there is no FlashNode gpu-z",
        [
            "keys not made yet",
            "export the controller",
            "consumer there is no FlashNode gpu-z; there are: gpu-a, gpu-b",
            "device",
        ],
        "start the agent on server gpu-z",
    ),
    "no controller": (
        lambda s: (
            setattr(s, "controller", Heartbeat(False, "has no Lease: it does not run")),
            s.status.clear(),
            setattr(s, "wanted", None),
            setattr(s, "exported", None),
        ),
        "Unseen: the controller has not looked at it yet",
        [
            "controller no controller decides: it has no Lease",
            "keys not made yet",
            "export the controller does not want it",
        ],
        "start the controller: nothing is decided before",
    ),
    "in use": (
        lambda s: s.delete("InUse", "mounted at /kv"),
        "InUse: it is being deleted for 2h, and somebody at server gpu-b holds its device: mounted at /kv",
        ["consumer its device is in use: mounted at /kv"],
        "end what holds it on gpu-b: stop the process, or unmount; it is let go of by itself then",
    ),
    "in use at a silent server": (
        lambda s: (s.delete("InUse", "mounted at /kv"), s.beats.update({"gpu-b": SILENT})),
        "InUse: it is being deleted for 2h",
        ["consumer the agent on gpu-b does not answer", "consumer its device is in use: mounted at /kv"],
        "bring server gpu-b back, or start its agent; if it is lost for good: kubectl flash purge gpu-b",
    ),
    "detaching": (
        lambda s: s.delete("Disconnecting"),
        "Detaching: it is being deleted for 2h; server gpu-b is to let go of it first",
        [],
        "",
    ),
    "fencing": (fencing, "Fencing: its export on server gpu-a is taken down; nobody else gets the volume", [], ""),
    "fencing that hangs": (
        lambda s: fencing(s, "I/O in flight does not end"),
        "Fencing: its export on server gpu-a is taken down",
        ["export it is taken down on gpu-a: I/O in flight does not end"],
        "kubectl flash plan gpu-a shows how far it is",
    ),
    "fencing at a silent server": (
        lambda s: (fencing(s), s.beats.update({"gpu-a": SILENT})),
        "Fencing: its export on server gpu-a is taken down",
        ["storage the agent on gpu-a does not answer"],
        "bring server gpu-a back",
    ),
}


@pytest.mark.parametrize(("change", "verdict", "broken", "remedy"), BROKEN.values(), ids=BROKEN)
def test_where_the_chain_breaks_and_what_to_do_first(scene, change, verdict, broken, remedy):
    change(scene)
    whole = scene.document()
    assert whole["verdict"].startswith(verdict)
    found = [f"{link['part']} {link['words']}" for link in whole["chain"] if link["mark"] == "Not"]
    assert len(found) == len(broken), found
    for said, begins in zip(found, broken, strict=True):
        assert said.startswith(begins)
    assert whole["whatToDo"].startswith(remedy)
    assert bool(whole["whatToDo"]) == bool(remedy)


def test_the_answer_comes_first_and_what_to_do_last(scene):
    reconnecting(scene)
    scene.beats["gpu-a"] = SILENT
    lines = scene.text().splitlines()
    assert lines[0].startswith("serving/kv-0-on-b: Reconnecting: for 2m48s")
    assert lines[1] == "· attachment volume kv-0 (Exclusive) at server gpu-b; read-write; made 2h1m ago"
    assert lines[3] == "! storage    the agent on gpu-a does not answer since 2026-01-01 01:50 UTC"
    assert lines[4].startswith("             → bring server gpu-a back")
    assert "?            said last: ready at tcp://10.20.0.4:4427, tcp://10.21.0.4:4427" in lines
    assert lines[-1].startswith("→ what to do: bring server gpu-a back")
    assert "what to do" not in Scene().text()


def test_everything_is_in_the_order_in_which_it_happens(scene):
    parts = dict.fromkeys(link["part"] for link in scene.document()["chain"])
    assert list(parts) == ["attachment", "volume", "storage", "keys", "export", "consumer", "connection", "device"]
    fencing(scene)
    parts = dict.fromkeys(link["part"] for link in scene.document()["chain"])
    assert list(parts) == ["attachment", "consumer", "storage", "export", "steps"]


def test_steps_of_both_ends_that_are_about_it(scene):
    failing_step(scene)
    scene.nodes["gpu-b"]["status"]["plan"] = [
        {"step": "Connect", "what": f"connect to {IDENTITY.nqn} at {PORTALS[0]}", "state": "Pending"},
        {"step": "SetReadOnly", "what": f"make the device of volume {uid(1000)} read-only", "state": "Running"},
    ]
    steps = [link["words"] for link in scene.document()["chain"] if link["part"] == "steps"]
    assert [words.split(": ")[0] for words in steps] == ["gpu-a", "gpu-a", "gpu-b", "gpu-b"]
    assert "running: make the device" in steps[3]


def test_what_is_not_guarded_is_said_aloud(scene):
    scene.status["fabric"]["authentication"] = "None"
    scene.status.pop("keys")
    said = scene.text(200)
    assert "· keys       authentication is None: whoever reaches the port and knows the host NQN" in said
    assert "sealed to" not in said
    assert "what to do:" not in said


def test_a_shared_volume_waits_for_nobody(scene):
    scene.volume_spec["sharing"] = "Shared"
    scene.others = [other("first", 20, "gpu-a", age=900), other("late", 21, "gpu-a", age=10)]
    scene.spec["readOnly"] = True
    said = scene.text()
    assert "· attachment volume kv-0 (Shared) at server gpu-b; read-only" in said
    assert "· others     first at server gpu-a shares it" in said
    assert "·            late at server gpu-a shares it" in said
    assert "/dev/nvme3n1 at gpu-b; its kernel refuses writes" in said
    assert "what to do" not in said


def test_where_no_server_may_be_read_nothing_is_called_missing(scene):
    scene.nodes, scene.beats = {}, {}
    marks = {link["part"]: link["mark"] for link in scene.document()["chain"]}
    assert (marks["storage"], marks["consumer"], marks["keys"]) == ("Unknown", "Unknown", "Unknown")
    assert "Not" not in marks.values()


def test_what_is_left_of_one_that_is_gone(scene):
    scene.exported = {"uid": MINE, "fencing": True}
    _, reading = scene.made()
    assert "server gpu-a still takes down the export" in whyattachment.left_over("serving", "kv-0-on-b", reading)
    assert whyattachment.left_over("serving", "another", reading) == ""
    assert whyattachment.left_over("else", "kv-0-on-b", reading) == ""
