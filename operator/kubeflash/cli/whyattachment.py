"""`kubectl flash why attachment`: both ends in one answer, in the order in which things happen. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property
from typing import Any

from kubeflash.api.v1alpha1 import Ability, Exported, Fabric, FlashAttachment, FlashNode, FlashVolume, PlannedStep
from kubeflash.cli import attachments, chain
from kubeflash.cli.attachments import State, state_of
from kubeflash.cli.chain import Link
from kubeflash.cli.cluster import Reading, unpause
from kubeflash.cli.terminal import Colour, Terminal
from kubeflash.cli.text import span
from kubeflash.domain.cluster import is_purged
from kubeflash.domain.conditions import find, holds
from kubeflash.domain.fabric import Portal
from kubeflash.domain.names import export_identity

JSON = dict[str, Any]
_WORKS = ("Attached", "Live")
_AT_THE_CONSUMER = ("SetReadOnly",)
"""Steps that name the volume, and are an attachment's all the same."""


@dataclass(frozen=True)
class _Case:
    """An attachment with all that it depends on, at one moment."""

    attachment: FlashAttachment
    reading: Reading

    @property
    def now(self) -> datetime:
        return self.reading.cluster.now

    @property
    def namespace(self) -> str:
        return self.attachment.metadata.namespace or ""

    @property
    def consumer(self) -> str:
        return self.attachment.spec.node_name

    @cached_property
    def volume(self) -> FlashVolume | None:
        return attachments.volume_of(self.attachment, self.reading.cluster.volumes)

    @property
    def storage(self) -> str | None:
        return self.volume.status.node_name if self.volume is not None else None

    @property
    def fabric(self) -> Fabric | None:
        return self.attachment.status.fabric

    @property
    def path(self) -> str | None:
        """What the controller chose, or will."""
        if self.attachment.status.path is not None or self.storage is None:
            return self.attachment.status.path
        return "Local" if self.storage == self.consumer else "Fabric"

    @cached_property
    def state(self) -> State:
        return state_of(self.attachment, self.volume, self.now)

    @property
    def works(self) -> bool:
        return self.state.word in _WORKS

    @property
    def exported(self) -> Exported | None:
        return attachments.export_of(self.attachment, self.volume)

    @cached_property
    def rivals(self) -> tuple[list[FlashAttachment], list[FlashAttachment]]:
        """Other attachments of the volume: those that came first, and those behind it."""
        everyone = self.reading.cluster.attachments_by_volume.get(f"{self.namespace}/{self.attachment.spec.volume}", [])
        mine = [item.metadata.uid == self.attachment.metadata.uid for item in everyone]
        place = mine.index(True) if True in mine else len(everyone)
        return everyone[:place], everyone[place + 1 :]

    @property
    def shared(self) -> bool:
        return self.volume is not None and self.volume.spec.sharing == "Shared"

    @property
    def transport(self) -> str:
        """What it goes by: of the export that is wanted, or of the pool while none is."""
        wanted = attachments.wanted_of(self.attachment, self.volume)
        if wanted is not None:
            return wanted.transport
        pool = self.reading.cluster.pools.get(self.volume.spec.pool) if self.volume is not None else None
        return pool.spec.export.transport if pool is not None else "tcp"

    @property
    def authenticates(self) -> bool:
        return self._security[0] != "None"

    @property
    def encrypts(self) -> bool:
        return self._security[1] != "None"

    @property
    def _security(self) -> tuple[str, str]:
        """Of the attachment, which keeps what it was made with; of the pool before that."""
        if self.fabric is not None:
            return self.fabric.authentication, self.fabric.tls
        pool = self.reading.cluster.pools.get(self.volume.spec.pool) if self.volume is not None else None
        return (pool.spec.security.authentication, pool.spec.security.tls) if pool is not None else ("?", "None")

    def node(self, name: str | None) -> FlashNode | None:
        return self.reading.cluster.nodes.get(name or "")


def document(attachment: FlashAttachment, reading: Reading) -> JSON:
    """All about one attachment: what the table says of it, the verdict, the chain, and what to do first."""
    case = _Case(attachment, reading)
    links = _chain(case)
    return {
        **attachments.document(attachment, case.volume, case.now),
        "verdict": _verdict(case),
        "chain": [link.to_json() for link in links],
        "whatToDo": _what_to_do(links),
        "unread": list(reading.unread),
    }


def left_over(namespace: str, name: str, reading: Reading) -> str:
    """Of an attachment that is gone: where its export still is; empty where nothing of it is left."""
    for volume in reading.cluster.volumes.values():
        exported = volume.status.exported.get(name)
        if volume.metadata.namespace == namespace and exported is not None:
            where = f"server {volume.status.node_name} still takes down"
            return f"{where} the export of one that had this name, for volume {volume.metadata.name}"
    return ""


def text(attachment: FlashAttachment, reading: Reading, terminal: Terminal) -> list[str]:
    """The same for people: the answer first, then the chain from the object to its device."""
    case = _Case(attachment, reading)
    links = _chain(case)
    remedy = _what_to_do(links)
    return [
        *chain.verdict(attachment.key, _verdict(case), _colour(case), terminal),
        *chain.lines(links, terminal),
        *chain.unread(reading.unread, terminal),
        *(terminal.wrap(f"→ what to do: {remedy}", hanging="  ") if remedy else []),
    ]


def _what_to_do(links: list[Link]) -> str:
    """The first in the order in which things happen: the others may wait for just that."""
    return next((link.remedy for link in links if link.mark == "Not" and link.remedy), "")


def _chain(case: _Case) -> list[Link]:
    if case.attachment.deleting:
        return [*_object(case), *_letting_go(case), *_fence(case), *_steps(case)]
    links = [*_object(case), *_rivals(case), *_volume(case)]
    if case.path == "Local":
        links += [
            Link("path", "Note", f"local: the volume is on {case.consumer} itself, nothing goes over the network")
        ]
    if case.path == "Fabric":
        links += [*_keys(case), *_export(case)]
    if case.volume is not None or case.node(case.consumer) is None:
        links += _connection(case, sound=all(link.mark != "Not" for link in links))
    return [*links, *_steps(case)]


# --- the verdict ---


def _verdict(case: _Case) -> str:
    state, attachment = case.state, case.attachment
    name, consumer, storage = attachment.spec.volume, case.consumer, case.storage or "?"
    word, age, device = state.word, state.age(case.now), attachment.status.device or "no device"
    ready = find(attachment.status.conditions, "Ready")
    said = ready.message if ready is not None else ""
    paths = attachments.paths_of(attachment)
    live = sum(path == "live" for path in paths.values())
    first = case.rivals[0][0] if case.rivals[0] else None
    has = f"attachment {first.metadata.name} at server {first.spec.node_name}" if first is not None else "another one"
    words = {
        "Attached": f"volume {name} is on server {consumer} itself, as {device}",
        "Live": f"server {consumer} has volume {name} of server {storage} as {device} since {age}, "
        f"{live} of {len(paths)} paths live",
        "Reconnecting": f"for {age} server {storage} does not answer {consumer}; I/O waits"
        + (f", and fails {state.until_lost(case.now)}" if state.lost_at is not None else ""),
        "Lost": f"since {age} I/O at server {consumer} fails: {storage} did not answer for too long; "
        "it is connected anew as soon as it does",
        "Waiting": f"{has} has volume {name}, which one server at a time can have",
        "Unseen": "the controller has not looked at it yet",
        "Connecting": f"server {consumer} has not brought the device yet, for {age}",
        "Detaching": f"it is being deleted for {age}; server {consumer} is to let go of it first",
        "InUse": f"it is being deleted for {age}, and somebody at server {consumer} holds its device: {_held(case)}",
        "Fencing": f"its export on server {storage} is taken down; nobody else gets the volume before that is done",
    }
    answer = f"{word}: {words[word]}" if word in words else f"not Ready: {word}: {said or 'no message'}"
    return answer if _is_known(case) else f"{answer}; so {consumer} said last, whose agent does not answer"


def _is_known(case: _Case) -> bool:
    """Whether the consumer, whose word the state is, can still be asked."""
    return case.state.word not in (*_WORKS, "Reconnecting", "Lost") or case.reading.heartbeat(case.consumer).answers


def _colour(case: _Case) -> Colour:
    return case.state.colour if _is_known(case) or case.state.colour == "red" else "yellow"


def _held(case: _Case) -> str:
    connected = find(case.attachment.status.conditions, "Connected")
    return (connected.message if connected is not None else "") or "nobody says who"


# --- the object, and who else wants the volume ---


def _object(case: _Case) -> Iterator[Link]:
    attachment, now = case.attachment, case.now
    made = attachment.metadata.creation_timestamp
    sharing = case.volume.spec.sharing if case.volume is not None else None
    parts = [f"volume {attachment.spec.volume}{f' ({sharing})' if sharing else ''} at server {case.consumer}"]
    parts += ["read-only" if attachment.spec.read_only else "read-write"]
    parts += [f"made {span((now - made).total_seconds())} ago"] if made is not None else []
    yield Link("attachment", "Note", "; ".join(parts))
    deleted = attachment.metadata.deletion_timestamp
    if deleted is not None:
        yield Link(
            "attachment", "Note", f"deleted {span((now - deleted).total_seconds())} ago: it is kept until it is safe"
        )
    if not case.reading.controller.answers:
        words = f"no controller decides: it {case.reading.controller.words}"
        yield Link("controller", "Not", words, "start the controller: nothing is decided before")


def _rivals(case: _Case) -> Iterator[Link]:
    """Who else has or waits for the volume, oldest first."""
    before, behind = case.rivals
    for number, item in enumerate((*before, *behind)):
        blocks = number == 0 and bool(before) and not case.shared
        state = state_of(item, case.volume, case.now)
        has = "shares it" if case.shared else "has it" if number == 0 and before else "waits for it"
        words = f"{item.metadata.name} at server {item.spec.node_name} {has}: {state.word} for {state.age(case.now)}"
        words += ", being deleted" if item.deleting else ""
        command = "kubectl flash why attachment" if item.deleting else "delete it first: kubectl delete flashattachment"
        remedy = f"{command} {item.metadata.name} -n {case.namespace}" if blocks else ""
        yield Link("others", "Not" if blocks else "Note", words, remedy)


# --- the volume and its server ---


def _volume(case: _Case) -> Iterator[Link]:
    name, volume = case.attachment.spec.volume, case.volume
    if volume is None:
        remedy = (
            f"make it, or delete this attachment; kubectl get flashvolumes -n {case.namespace} lists those there are"
        )
        yield Link("volume", "Not", f"there is no FlashVolume {name} in namespace {case.namespace}", remedy)
        return
    if volume.status.lost is not None:
        words = f"{name} is lost with server {volume.status.lost.node_name}, by an admin's word"
        yield Link("volume", "Not", words, "delete the attachment and the volume")
        return
    ask = f"kubectl flash why volume {name} -n {case.namespace}"
    if volume.deleting:
        yield Link("volume", "Not", f"{name} is being deleted", "delete this attachment: the volume waits for it")
    ready = find(volume.status.conditions, "Ready")
    said = f"{ready.reason}: {ready.message}" if ready is not None else "the controller has not looked at it yet"
    is_ready = ready is not None and ready.status == "True"
    if case.storage is None:
        yield Link("volume", "Not", f"{name} is on no server: {said}", ask)
        return
    carved = holds(volume.status.conditions, "Carved")
    parts = [f"{name} is on SSD {volume.status.ssd} of server {case.storage}"]
    parts += ["carved" if carved else "not carved yet", "Ready" if is_ready else f"not Ready: {said}"]
    so = carved and is_ready
    yield Link("volume", "So" if so else "Not", ", ".join(parts), "" if so else ask)
    if case.path != "Local":  # else it is the consumer, which comes later
        yield _agent("storage", case.storage, case)


def _agent(part: str, name: str, case: _Case) -> Link:
    """Whether a server's agent answers, and does anything."""
    nodes, beat = case.reading.cluster.nodes, case.reading.heartbeat(name)
    node = nodes.get(name)
    if node is None and not nodes:
        return Link(part, "Unknown", f"server {name}: no FlashNode is known")
    if node is None:
        known = ", ".join(sorted(nodes))
        return Link(
            part, "Not", f"there is no FlashNode {name}; there are: {known}", f"start the agent on server {name}"
        )
    if is_purged(node) and not beat.answers:
        return Link(part, "Not", f"an admin declared server {name} lost for good", "delete this attachment")
    if not beat.answers:
        remedy = f"bring server {name} back, or start its agent; if it is lost for good: kubectl flash purge {name}"
        return Link(part, "Not", f"the agent on {name} {beat.words}", remedy)
    if node.spec.paused:
        words = f"server {name} is paused (spec.paused): its agent changes nothing"
        return Link(part, "Note", words) if case.works else Link(part, "Not", words, unpause(name))
    return Link(part, "So", f"the agent on {name} {beat.words}")


def _said_last(name: str, link: Link, case: _Case) -> Link:
    """What a server says, which may not be so any more once its agent is silent."""
    if case.reading.heartbeat(name).answers:
        return link
    return replace(link, mark="Unknown" if link.mark == "So" else link.mark, words=f"said last: {link.words}")


def _kernel(part: str, name: str, needed: Mapping[str, tuple[str, str]], case: _Case) -> Iterator[Link]:
    """What a server's kernel lacks, of what is `needed`: by ability, what it is for and what to do."""
    node = case.node(name)
    if node is None:
        return
    linux = node.status.linux
    if linux is None:
        yield Link(part, "Unknown", f"the agent on {name} has not said what its kernel can do")
        return
    lacking = False
    for ability, (what, remedy) in needed.items():
        found: Ability = getattr(linux, ability)
        if not found.available:
            lacking = True
            words = f"the kernel of {name} cannot {what}: {found.how or 'it does not say why'}"
            yield Link(part, "Note" if case.works else "Not", words, "" if case.works else remedy)
    if not lacking:
        yield Link(part, "So", f"the kernel of {name} can do what it takes ({linux.words})")


# --- keys ---


def _keys(case: _Case) -> Iterator[Link]:
    fabric, keys = case.fabric, case.attachment.status.keys
    if not case.authenticates:
        words = "authentication is None: whoever reaches the port and knows the host NQN is taken for the consumer"
        yield Link(
            "keys", "Note", words, "to change it: security.authentication of the pool, then make the attachment anew"
        )
    if case.encrypts:
        yield from _tls(case)
    if not case.authenticates and not case.encrypts:
        return
    if keys is None:
        if fabric is not None or case.works:
            yield Link("keys", "Not", "no keys were made")
        else:
            yield Link("keys", "Not", "not made yet: the controller makes them once what is above is so")
        return
    for role, name, public in (
        ("storage", case.storage, keys.storage_key),
        ("consumer", case.consumer, keys.consumer_key),
    ):
        node = case.node(name)
        if name is None or node is None:
            yield Link("keys", "Unknown", f"sealed to {role} {name or 'unknown'}, whose FlashNode is not known")
        elif node.status.public_key != public:
            words = f"server {name} lost its private key and cannot read the keys that were sealed to it"
            yield Link("keys", "Not", words, _anew(case))
        else:
            yield Link("keys", "So", f"sealed to {role} {name}, which still has that key")


def _anew(case: _Case) -> str:
    name, space = case.attachment.metadata.name, case.namespace
    return f"make the attachment anew: kubectl delete flashattachment {name} -n {space}, then create it again"


def _tls(case: _Case) -> Iterator[Link]:
    """TLS is a kernel's and its tlshd's: both servers must have it."""
    for name in filter(None, (case.storage, case.consumer)):
        node = case.node(name)
        tls = node.status.linux.tls if node is not None and node.status.linux is not None else None
        if tls is None:
            yield Link("tls", "Unknown", f"whether {name} can do TLS is not known")
        elif tls.available:
            yield Link("tls", "So", f"TLS at {name}: {tls.how or 'it can'}")
        else:
            remedy = f"install and start tlshd (ktls-utils) on {name}, with a kernel that knows NVMe/TCP over TLS"
            words = f"no TLS at {name}: {tls.how or 'it does not say why'}"
            yield Link("tls", "Note" if case.works else "Not", words, "" if case.works else remedy)


# --- the export ---


def _export(case: _Case) -> Iterator[Link]:
    volume, storage, name = case.volume, case.storage, case.attachment.metadata.name
    if volume is None or storage is None:
        return
    exported, other = case.exported, volume.status.exported.get(name)
    module = f"nvmet-{case.transport}"
    load = f"modprobe {module} on {storage}, or install the kernel's package of more modules there"
    needed = {
        "nvmet": ("export disks over NVMe-oF", load),
        f"nvmet_{case.transport}": (f"export over NVMe/{case.transport.upper()}", load),
    }
    if case.authenticates:
        needed["authentication"] = _authentication(storage)
    yield from _kernel("export", storage, needed, case)
    if other is not None and exported is None:
        words = f"the export of an earlier attachment of this name is still there{_because(other.message)}"
        yield Link("export", "Not", words, f"it goes by itself; kubectl flash plan {storage} shows how far it is")
    if attachments.wanted_of(case.attachment, volume) is None:
        yield Link("export", "Not", "the controller does not want it yet: it waits for what is above")
    elif exported is None:
        yield Link("export", "Not", f"wanted; the agent on {storage} has not begun")
    if exported is None:
        return
    portals, why = ", ".join(exported.portals) or "no portal yet", _because(exported.message)
    if exported.fencing:
        link = Link("export", "Not", f"it is taken down: {portals}{why}")
    elif exported.ready:
        link = Link("export", "So", f"ready at {portals}{why}")
    else:
        remedy = f"the agent on {storage} tries again by itself; kubectl flash plan {storage} shows its steps"
        link = Link("export", "Not", f"not ready: {portals}{why}", remedy)
    yield _said_last(storage, link, case)


def _because(message: str) -> str:
    return f": {message}" if message else ""


def _authentication(name: str) -> tuple[str, str]:
    remedy = f"a kernel with NVMe authentication on {name}, or a pool with security.authentication: None"
    return "do NVMe in-band authentication (DH-HMAC-CHAP)", remedy


# --- the connection ---


def _connection(case: _Case, *, sound: bool) -> list[Link]:
    """The consumer's end; `sound`: all before it is as it must be."""
    consumer = case.consumer
    links = [_agent("consumer", consumer, case)]
    if case.path == "Fabric":
        load = f"modprobe nvme-tcp on {consumer}, or install the kernel's package of more modules there"
        needed = {"nvme_tcp": ("connect over NVMe/TCP", load)} if case.transport == "tcp" else {}
        if case.authenticates:
            needed["authentication"] = _authentication(consumer)
        links += _kernel("consumer", consumer, needed, case) if needed else []
        sound = sound and all(link.mark != "Not" for link in links)
        links += [_said_last(consumer, link, case) for link in _paths(case, sound=sound)]
    return links + [_said_last(consumer, link, case) for link in _device(case)]


def _paths(case: _Case, *, sound: bool) -> Iterator[Link]:
    """The connection as the consumer's kernel shows it, and each way to the volume."""
    connection, now = case.attachment.status.connection, case.now
    if connection is not None:
        since = span((now - connection.since).total_seconds())
        words = f"{connection.state} since {connection.since:%Y-%m-%d %H:%M:%S} UTC, for {since}"
        if connection.state == "Reconnecting":
            words += "; I/O waits"
            lost = State("", None, connection.lost_at)
            words += f", and fails {lost.until_lost(now)}, at {lost.lost_at:%H:%M:%S} UTC" if lost.lost_at else ""
        if connection.state == "Lost":
            words += "; I/O has failed: a file system on it must be mounted anew"
        yield Link("connection", "So" if connection.state == "Live" else "Not", words)
    for portal, said in attachments.paths_of(case.attachment).items():
        if said == "live":
            yield Link("connection", "So", f"{portal}: live")
        elif connection is not None or case.state.word not in ("Waiting", "Unseen"):
            remedy = _reach(portal, case) if sound else ""
            yield Link("connection", "Not", f"{portal}: {said or 'not connected'}", remedy)


def _device(case: _Case) -> Iterator[Link]:
    status, consumer = case.attachment.status, case.consumer
    connected, connection = find(status.conditions, "Connected"), status.connection
    so = connected is not None and connected.status == "True"
    if connected is None:
        if case.state.word not in ("Waiting", "Unseen"):
            yield Link("device", "Not", "nothing was said of it yet")
    elif not so and (connection is None or connected.reason != connection.state):
        yield Link("device", "Not", f"{connected.reason}{_because(connected.message)}", _held_remedy(case))
    if status.device is not None:
        how = "; its kernel refuses writes" if case.attachment.spec.read_only else ""
        yield Link("device", "So" if so else "Note", f"{status.device} at {consumer}{how}")
    elif so:
        yield Link("device", "Not", f"connected, and {consumer} names no device")


def _reach(portal: str, case: _Case) -> str:
    """What to look at where both ends do what they should, and still do not hear each other."""
    storage, exported = case.storage or "", case.exported
    if exported is None or not exported.ready or portal not in exported.portals:
        return ""
    try:
        where = Portal.parse(portal)
    except ValueError:
        return ""
    probe = f"nc -zv {where.address} {where.port}" if where.transport == "tcp" else f"ping {where.address}"
    return f"{storage} exports it there: look at the network between them, with {probe} on {case.consumer}"


def _held_remedy(case: _Case) -> str:
    connected = find(case.attachment.status.conditions, "Connected")
    if connected is None or connected.reason != "InUse":
        return ""
    return f"end what holds it on {case.consumer}: stop the process, or unmount; it is let go of by itself then"


# --- the end ---


def _letting_go(case: _Case) -> Iterator[Link]:
    """The consumer's part of a deletion, which comes first."""
    if attachments.has_let_go(case.attachment):
        yield Link("consumer", "So", f"{case.consumer} has let go of it")
        return
    yield _agent("consumer", case.consumer, case)
    connected = find(case.attachment.status.conditions, "Connected")
    if connected is not None and connected.reason == "InUse":
        yield Link("consumer", "Not", f"its device is in use: {_held(case)}", _held_remedy(case))
        if not case.reading.heartbeat(case.consumer).answers:
            words = "silence is no consent: while somebody may use the device, its export stays"
            yield Link("consumer", "Note", words)
    elif connected is not None and connected.message:
        yield Link("consumer", "Note", f"{connected.reason}: {connected.message}")
    if case.attachment.status.connection is not None:
        yield from (_said_last(case.consumer, link, case) for link in _paths(case, sound=False))


def _fence(case: _Case) -> Iterator[Link]:
    """The storage server's part of a deletion."""
    volume, storage = case.volume, case.storage
    if case.path != "Fabric":
        return
    if volume is None or storage is None or volume.status.lost is not None:
        yield Link("export", "So", "its volume is on no server any more: there is nothing to fence")
        return
    exported = case.exported
    if exported is None:
        yield Link("export", "So", f"there is no export on {storage} any more")
        return
    if attachments.wanted_of(case.attachment, volume) is not None:
        yield Link("export", "Note", f"still on {storage}: it is taken down once {case.consumer} has let go")
        return
    yield _agent("storage", storage, case)
    message = exported.message
    remedy = f"kubectl flash plan {storage} shows how far it is" if message else ""
    yield Link("export", "Not" if message else "Note", f"it is taken down on {storage}{_because(message)}", remedy)


# --- steps ---


def _steps(case: _Case) -> Iterator[Link]:
    """What both agents have still to do about it."""
    servers = list(dict.fromkeys(filter(None, (case.storage, case.consumer))))
    found = [
        Link("steps", "Not" if step.state == "Failed" else "Note", f"{name}: {chain.step_words(step)}")
        for name in servers
        if (node := case.node(name)) is not None
        for step in node.status.plan
        if _is_about(step, case)
    ]
    yield from found
    if not found and not case.works and all(map(case.node, servers)):
        yield Link("steps", "Note", f"nothing of it is planned on {' or '.join(servers)}")


def _is_about(step: PlannedStep, case: _Case) -> bool:
    """By what only this attachment has: its uid is in all of its NQNs; a port is known by its portal, or its number."""
    identity = export_identity(case.attachment.metadata.uid)
    if any(word in step.what for word in (identity.nqn, identity.host_nqn, case.attachment.metadata.uid)):
        return True
    if step.step in _AT_THE_CONSUMER:
        return bool(case.attachment.status.volume_id) and str(case.attachment.status.volume_id) in step.what
    portals = case.exported.portals if case.exported is not None else []
    return any(step.what.endswith((f" {portal}", f"port {portal.rpartition(':')[2]}")) for portal in portals)
