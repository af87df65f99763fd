"""Who is kept away from a volume, and by what: on real kernels, from a server that it was not meant for.

gpu-a has the volumes, gpu-b is their consumer, gpu-c the attacker: root of a server of the same cluster, with an agent
of its own, who reads every object. What only root of gpu-a or gpu-b could know (keys) is given to it by the tests, to
see that it does not help. The tests share the fleet, and the first one's attachments stay for the others.
"""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from fleet import JSON, NAMESPACE, Fleet, attachment, condition, pool, volume
from kubeflash.domain import dhchap
from lab.errors import LabTimeout
from lab.processes import wait_until
from lab.servers import VirtualServer
from support import fabric, rawnvme, real, writing
from support.fabric import Writer, hang_up, knock, wait_connected
from support.faults import Fault, Table

pytestmark = [pytest.mark.machine, pytest.mark.heavy, pytest.mark.timeout(1200)]

STRANGER = "nqn.2014-08.org.nvmexpress:uuid:0d1c1c6e-7b1e-4a52-9d55-0e1b5ad00001"
STRANGER_ID = "0d1c1c6e-7b1e-4a52-9d55-0e1b5ad00001"
AUTHENTICATION_REQUIRED = "0x191"
KEY_REFUSED = {"EKEYREJECTED", "EIO"}
"""What the initiator says; EIO where the target hangs up before its answer is sent, as a busy machine does."""

TABLE = Table(
    "Who is kept away",
    {
        "no-key": Fault("a host without a key, as the consumer", "refused by the target's kernel"),
        "raw": Fault(
            "a host that does not authenticate itself whatever it is told, as the consumer, by hand-made packets",
            "every command after the connect is refused by the target's kernel",
        ),
        "wrong-key": Fault("a host with a wrong key, as the consumer", "refused by the target's kernel, told as event"),
        "other-key": Fault(
            "a host with the key of another attachment of the same server", "refused by the target's kernel, told"
        ),
        "unlisted": Fault("the right key, from a host NQN that is not the attachment's", "refused, told as event"),
        "impostor": Fault(
            "a server that has the address and does not have the controller's key", "refused by the consumer's kernel"
        ),
        "replay": Fault(
            "keys and identity of an attachment that is gone, against the next one of the same volume and server",
            "each combination refused by the target's kernel, told as event",
        ),
        "seal": Fault(
            "another server's agent takes the sealed keys out of the attachment", "its private key does not open them"
        ),
        "none": Fault(
            "a pool with security.authentication None",
            "whoever knows the host NQN gets in: a condition and a Warning event say so",
        ),
        "tls": Fault(
            "a host without TLS, with the right keys, where the pool says tls Required",
            "refused; the wire shows nothing",
        ),
        "lost-key": Fault(
            "a server loses its private key", "the attachments that must be made anew say so; I/O goes on meanwhile"
        ),
        "nowhere": Fault(
            "argument lists, environments, logs, kernel logs, events and objects are searched for every key",
            "no key is found outside the kernel's own files, which are 0600",
        ),
    },
)


@dataclass(frozen=True)
class Secrets:
    """All there is to know of an attachment's connection."""

    portal: str
    nqn: str
    host_nqn: str
    host_id: str
    host: str
    controller: str

    def as_consumer(self) -> dict[str, str]:
        """Options of a connect as its consumer, without keys."""
        return {"nqn": self.nqn, "hostnqn": self.host_nqn, "hostid": self.host_id}

    def with_keys(self) -> dict[str, str]:
        """The keys of both directions."""
        return {"dhchap_secret": self.host, "dhchap_ctrl_secret": self.controller}


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    """A lab with gpu-a, gpu-b and gpu-c, KubeFlash in it, and two attachments at gpu-b."""
    with real.several_servers("gpu-a", "gpu-b", "gpu-c", timeout=300) as fleet:
        fleet.start()
        for name in fleet.servers:
            fleet.wait_ready("flashnode", name, namespace=None, timeout=240)
        fleet.apply(
            pool("guarded", "KFA0"),
            pool("open", "KFA1", security={"authentication": "None"}),
            pool("secret", "KFA2", security={"tls": "Required"}),
        )
        for name in ("s0", "s1"):
            attached(fleet, name, "guarded")
        yield fleet
        fleet.stop_controller()


def attached(fleet: Fleet, name: str, pool: str) -> JSON:
    """A volume of gpu-a's, attached at gpu-b; the attachment."""
    fleet.apply(volume(name, "16Mi", pool=pool, node="gpu-a"))
    fleet.wait_ready("flashvolume", name, timeout=180)
    fleet.apply(attachment(f"{name}-on-b", name, "gpu-b"))
    return wait_connected(fleet, f"{name}-on-b")


@pytest.fixture
def attacker(fleet: Fleet) -> VirtualServer:
    return fleet.servers["gpu-c"]


def secrets_of(fleet: Fleet, name: str) -> Secrets:
    """All of an attachment, its keys as root of the storage server reads them."""
    of = fleet.get("flashattachment", name)["status"]["fabric"]
    folder = f"/sys/kernel/config/nvmet/hosts/{of['hostNQN']}"
    read = fleet.servers["gpu-a"].run(f"cat {folder}/dhchap_key {folder}/dhchap_ctrl_key").stdout_text.split()
    keys = read if len(read) == 2 else ("", "")
    return Secrets(of["portals"][0], of["nqn"], of["hostNQN"], of["hostID"], *keys)


@contextmanager
def told(fleet: Fleet, *needles: str) -> Iterator[None]:
    """What is tried inside is told of afterwards, in an event that has these words."""
    yield
    there = lambda: any(  # noqa: E731
        all(needle in item["note"] for needle in needles) for item in fleet.events("ConnectionRefused")
    )
    wait_until(f"an event with {needles}", there, timeout=90, interval=1)


def test_the_right_keys_open_the_door(fleet: Fleet, attacker):
    """Else the refusals below would show nothing. Who has them is told apart from the consumer by nobody."""
    known = secrets_of(fleet, "s0-on-b")
    said = knock(attacker, known.portal, **known.as_consumer(), **known.with_keys())
    hang_up(attacker, said)
    assert said.startswith("connected")


def test_without_a_key(fleet: Fleet, attacker):
    known = secrets_of(fleet, "s0-on-b")
    said = knock(attacker, known.portal, **known.as_consumer())
    hang_up(attacker, said)
    assert said == "ENOKEY"
    TABLE.seen("no-key", said)


def raw(server: VirtualServer, known: Secrets) -> JSON:
    """What a host that does not authenticate itself is answered."""
    script = f"{fabric.FOLDER}/rawnvme.py"
    server.put_file(script, Path(rawnvme.__file__).read_bytes())
    address, _, port = known.portal.removeprefix("tcp://").rpartition(":")
    done = server.run(["python3", script, address, port], input=json.dumps(known.as_consumer()).encode(), timeout=120)
    return json.loads(done.stdout_text)


def test_a_host_that_skips_authentication(fleet: Fleet, attacker):
    known = secrets_of(fleet, "s0-on-b")
    start, size = real.place_of(fleet, "s0")
    image = fleet.servers["gpu-a"].image_file("KFA0")
    before = real.read_image(image, start, size)
    said = raw(attacker, known)
    assert (said["connect"], said["wants authentication"]) == ("0x000", True)
    asked = {name: answer for name, answer in said.items() if name in {"identify", "read", "write"}}
    assert asked
    assert all(answer == AUTHENTICATION_REQUIRED or "Error" in answer for answer in asked.values()), said
    assert real.read_image(image, start, size) == before
    TABLE.seen("raw", ", ".join(f"{name}: {answer}" for name, answer in asked.items()))


def test_with_a_wrong_key(fleet: Fleet, attacker):
    known = secrets_of(fleet, "s0-on-b")
    wrong = {"dhchap_secret": dhchap.generate(), "dhchap_ctrl_secret": known.controller}
    with told(fleet, "does not have the key", known.nqn):
        said = knock(attacker, known.portal, **known.as_consumer(), **wrong)
        hang_up(attacker, said)
    assert said in KEY_REFUSED
    TABLE.seen("wrong-key", said)


def test_with_the_key_of_another_attachment(fleet: Fleet, attacker):
    known, other = secrets_of(fleet, "s1-on-b"), secrets_of(fleet, "s0-on-b")
    with told(fleet, "does not have the key", known.nqn):
        said = knock(attacker, known.portal, **known.as_consumer(), **other.with_keys())
        hang_up(attacker, said)
    assert said in KEY_REFUSED
    TABLE.seen("other-key", said)


def test_with_the_right_key_and_another_name(fleet: Fleet, attacker):
    known = secrets_of(fleet, "s0-on-b")
    with told(fleet, "not the host that the export was made for", STRANGER):
        said = knock(attacker, known.portal, nqn=known.nqn, hostnqn=STRANGER, hostid=STRANGER_ID, **known.with_keys())
        hang_up(attacker, said)
    assert said == "EIO"
    other = secrets_of(fleet, "s1-on-b")
    mixed = knock(attacker, known.portal, **(other.as_consumer() | {"nqn": known.nqn}), **other.with_keys())
    hang_up(attacker, mixed)
    assert mixed == "EIO", "the consumer of one attachment is nobody to another"
    TABLE.seen("unlisted", said)


def test_a_server_that_does_not_have_the_controller_s_key(fleet: Fleet, attacker):
    """Seen from a consumer: its kernel turns away from a target that cannot prove itself."""
    known = secrets_of(fleet, "s0-on-b")
    keys = {"dhchap_secret": known.host, "dhchap_ctrl_secret": dhchap.generate()}
    said = knock(attacker, known.portal, **known.as_consumer(), **keys)
    hang_up(attacker, said)
    assert not said.startswith("connected")
    TABLE.seen("impostor", said)


def test_the_keys_of_an_attachment_that_is_gone(fleet: Fleet, attacker):
    """On s1, which has another attachment afterwards."""
    old = secrets_of(fleet, "s1-on-b")
    fleet.delete("flashattachment", "s1-on-b")
    fleet.apply(attachment("s1-on-b", "s1", "gpu-b"))
    wait_connected(fleet, "s1-on-b")
    new = secrets_of(fleet, "s1-on-b")
    assert {old.nqn, old.host_nqn, old.host, old.controller}.isdisjoint({new.nqn, new.host_nqn, new.host})
    tries = {
        "the old subsystem at the old port": (old.portal, old.as_consumer()),
        "the old subsystem at the new port": (new.portal, old.as_consumer()),
        "the new subsystem as the old host": (new.portal, old.as_consumer() | {"nqn": new.nqn}),
        "the new subsystem as the new host": (new.portal, new.as_consumer()),
    }
    said = {}
    for what, (portal, who) in tries.items():
        said[what] = knock(attacker, portal, **who, **old.with_keys())
        hang_up(attacker, said[what])
    assert said["the old subsystem at the old port"] in {"ECONNREFUSED", "EIO"}
    assert said["the old subsystem at the new port"] == "EIO"
    assert said["the new subsystem as the old host"] == "EIO"
    assert said["the new subsystem as the new host"] in KEY_REFUSED
    with told(fleet, "no such export", old.nqn), told(fleet, old.host_nqn), told(fleet, "the key", new.nqn):
        pass
    TABLE.seen("replay", "; ".join(f"{what}: {answer}" for what, answer in said.items()))


OPEN = """
import json, sys
from kubeflash.domain.sealing import SealBroken, unseal
private = open("/var/lib/kubeflash/private.key", "rb").read()
for sealed in json.load(sys.stdin):
    try:
        unseal(sealed, private)
        print("opened")
    except SealBroken as error:
        print(type(error).__name__)
"""


def test_the_seal_opens_to_its_server_alone(fleet: Fleet):
    keys = fleet.get("flashattachment", "s0-on-b")["status"]["keys"]
    sealed = json.dumps([keys["storage"], keys["consumer"]]).encode()
    said = {}
    for name, server in fleet.servers.items():
        said[name] = server.run(["python3", "-c", OPEN], input=sealed, timeout=120).stdout_text.split()
        assert server.run("stat -c %a /var/lib/kubeflash/private.key").stdout_text.strip() == "600"
    assert said == {
        "gpu-a": ["opened", "SealBroken"],
        "gpu-b": ["SealBroken", "opened"],
        "gpu-c": ["SealBroken", "SealBroken"],
    }
    TABLE.seen("seal", "; ".join(f"{name}: {' and '.join(answer)}" for name, answer in said.items()))


def test_a_pool_without_authentication_says_so_aloud(fleet: Fleet, attacker):
    found = attached(fleet, "o0", "open")
    secured = condition(found, "Secured")
    assert (secured["status"], secured["reason"]) == ("False", "NoAuthentication")
    there = lambda: bool(fleet.events("NoAuthentication", about="o0-on-b"))  # noqa: E731
    wait_until("an event", there, timeout=60, interval=1)
    assert condition(fleet.get("flashattachment", "s0-on-b"), "Secured")["status"] == "True"
    known = secrets_of(fleet, "o0-on-b")
    assert known.host == ""
    answers = raw(attacker, known)
    assert answers["read"] == "0x000", "whoever reaches the port gets in: as it is said"
    fleet.delete("flashattachment", "o0-on-b")
    fleet.delete("flashvolume", "o0")
    TABLE.seen("none", f"Secured: False, {secured['reason']}; a stranger's read was answered {answers['read']}")


@contextmanager
def wire(interface: str, needle: bytes) -> Iterator[list[int]]:
    """Counts frames on a server's cable, and those that hold some bytes."""
    counts = [0, 0]
    ended = threading.Event()
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as tap:
        tap.bind((interface, 0))
        tap.settimeout(0.2)

        def listen() -> None:
            while not ended.is_set():
                try:
                    frame = tap.recv(65536)
                except TimeoutError:
                    continue
                counts[0] += 1
                counts[1] += needle in frame

        thread = threading.Thread(target=listen)
        thread.start()
        try:
            yield counts
        finally:
            ended.set()
            thread.join()


def written_at_b(fleet: Fleet, found: JSON, name: str) -> list[int]:
    """Frames on gpu-b's cable while it writes to a device, and those in which what it writes can be read."""
    with wire("tap-gpu-b", writing.MAGIC) as counts:
        writer = Writer(fleet.servers["gpu-b"], found["status"]["device"], name).start()
        writer.wait_writes(50)
        said = writer.stop()
    assert (said.errors, said.mismatches) == (0, [])
    return counts


def try_door(server: VirtualServer, known: Secrets, *flags: str) -> str:
    """Knocks with all but a TLS key; what the kernel says, if it says something in time."""
    try:
        said = knock(server, known.portal, *flags, **known.as_consumer(), **known.with_keys())
    except LabTimeout:
        return "no answer"
    hang_up(server, said)
    return said


def test_with_tls_nobody_reads_along_and_nobody_gets_in_without(fleet: Fleet, attacker):
    plain = written_at_b(fleet, fleet.get("flashattachment", "s0-on-b"), "plain")
    assert plain[1] > 50, "without TLS the wire shows all: else this would show nothing"
    found = attached(fleet, "t0", "secret")
    assert "TLS" in condition(found, "Secured")["message"]
    hidden = written_at_b(fleet, found, "hidden")
    assert hidden[0] > 50
    assert hidden[1] == 0
    known = secrets_of(fleet, "t0-on-b")
    said = {}
    for what, flags in {"without TLS": (), "with TLS and no key for it": ("tls",)}.items():
        said[what] = try_door(attacker, known, *flags)
    own_key = f"--hmac=1 --identity=1 --subsysnqn={known.nqn} --hostnqn={known.host_nqn} --insert"
    attacker.run(f"nvme gen-tls-key {own_key}")  # one of its own making, by the right name
    said["with TLS and a wrong key for it"] = try_door(attacker, known, "tls")
    assert not any(answer.startswith("connected") for answer in said.values()), said
    TABLE.seen(
        "tls",
        "; ".join(f"{what}: {answer}" for what, answer in said.items())
        + f"; what was written was in {hidden[1]} of {hidden[0]} frames, without TLS in {plain[1]} of {plain[0]}",
    )


SEARCH = """
import glob, json, os, subprocess, sys
secrets = {name: text.encode() for name, text in json.load(sys.stdin).items()}
mine = f"/proc/{os.getpid()}/"
places = ["/proc/[0-9]*/cmdline", "/proc/[0-9]*/environ", "/var/log/**", "/tmp/**", "/run/**", "/etc/kubeflash/*"]
files = [path for place in places for path in glob.glob(place, recursive=True)]
found, looked = [], 0
def look(where, content):
    global looked
    looked += 1
    found.extend(f"{name} in {where}" for name, secret in secrets.items() if secret in content)
for path in files:
    if not path.startswith(mine) and os.path.isfile(path):
        try:
            look(path, open(path, "rb").read())
        except OSError:
            pass
look("the kernel's log", subprocess.run(["dmesg"], capture_output=True).stdout)
print(json.dumps({"found": found, "looked": looked}))
"""
PSK = """
import base64, json, sys
from kubeflash.domain.sealing import unseal
private = open("/var/lib/kubeflash/private.key", "rb").read()
keys = unseal(json.load(sys.stdin), private)
print(json.dumps([base64.b64encode(private).decode(), base64.b64encode(keys.psk).decode(), keys.psk.hex()]))
"""


def all_keys(fleet: Fleet) -> dict[str, str]:
    """Every secret there is, by a name; of DH-HMAC-CHAP keys the part that is the key."""
    keys = {}
    for name in ("s0-on-b", "s1-on-b", "t0-on-b"):
        known = secrets_of(fleet, name)
        keys[f"{name}: host key"] = known.host.split(":")[2][:40]
        keys[f"{name}: controller key"] = known.controller.split(":")[2][:40]
    for server, end in (("gpu-a", "storage"), ("gpu-b", "consumer")):
        sealed = json.dumps(fleet.get("flashattachment", "t0-on-b")["status"]["keys"][end]).encode()
        done = fleet.servers[server].run(["python3", "-c", PSK], input=sealed, timeout=120)
        private, psk, digits = json.loads(done.stdout_text)
        keys |= {f"{server}: private key": private[:40], "TLS key": psk[:40], "TLS key in hexadecimal": digits}
    return keys


def test_no_key_is_anywhere_to_be_read(fleet: Fleet):
    """After all others: whatever went wrong in them was logged."""
    keys = all_keys(fleet)
    looked = 0
    for name, server in fleet.servers.items():
        done = server.run(["python3", "-c", SEARCH], input=json.dumps(keys).encode(), timeout=240)
        said = json.loads(done.stdout_text)
        assert said["found"] == [], name
        looked += said["looked"]
        modes = server.run("stat -c %a /sys/class/nvme/nvme*/dhchap*secret 2>/dev/null", check=False).stdout_text
        assert set(modes.split()) <= {"600"}
        limits = server.run("cat /proc/$(cat /etc/service/agent/supervise/pid)/limits").stdout_text
        assert ["Max", "core", "file", "size", "0"] in [line.split()[:5] for line in limits.splitlines()]
    process = Path(f"/proc/{fleet.controller.pid}")
    texts = {str(path): path.read_bytes() for path in (process / "cmdline", process / "environ")}
    texts |= {str(path): path.read_bytes() for path in fleet.lab.run_dir.glob("**/*.log")}
    kinds = "flashnodes,flashpools,flashvolumes,flashattachments,events.v1.events.k8s.io,leases,configmaps,secrets"
    texts["objects"] = fleet.kubectl("get", kinds, "-A", "-o", "json").encode()
    texts["metadata"] = fleet.kubectl("get", kinds, "-A", "-o", "json", "--show-managed-fields").encode()
    assert NAMESPACE.encode() in texts["objects"]
    for where, content in texts.items():
        assert [name for name, key in keys.items() if key.encode() in content] == [], where
    limits = (process / "limits").read_text()
    assert ["Max", "core", "file", "size", "0"] in [line.split()[:5] for line in limits.splitlines()]
    TABLE.seen("nowhere", f"{len(keys)} keys in {looked + len(texts)} files, lists and objects: none found")


def test_a_server_that_lost_its_private_key_says_which_attachments_must_be_made_anew(fleet: Fleet):
    """The last one: its attachments are of no use afterwards."""
    server = fleet.servers["gpu-b"]
    writer = Writer(server, fleet.get("flashattachment", "s0-on-b")["status"]["device"], "keyless").start()
    server.run("rm /var/lib/kubeflash/private.key")
    server.service_kill("agent")
    lost = lambda it: condition(it, "Ready").get("reason") == "KeysLost"  # noqa: E731
    said = fleet.wait("flashattachment", "s0-on-b", lost, timeout=180)
    assert "gpu-b" in condition(said, "Ready")["message"]
    writer.wait_writes(50)
    still = writer.stop()
    assert (still.errors, still.mismatches) == (0, [])
    fleet.delete("flashattachment", "s0-on-b")
    fleet.apply(attachment("s0-again", "s0", "gpu-b"))
    wait_connected(fleet, "s0-again")
    TABLE.seen("lost-key", f"KeysLost was said; {still.writes} writes meanwhile, 0 errors; made anew, it was connected")
