"""Where a server's description comes from: the cluster, this machine, a copy of its /sys, a dump, standard input."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from kubeflash.api.v1alpha1 import FlashNode
from kubeflash.domain.kernel import kernel_problems
from kubeflash.domain.pairs import became_worse
from kubeflash.host.errors import HostError
from kubeflash.host.listing import read_listing
from kubeflash.host.root import HostRoot
from kubeflash.topology.devices import GpuRules
from kubeflash.topology.dump import LIMIT, read_dump
from kubeflash.topology.errors import BadDump, TopologyError
from kubeflash.topology.flashnode import server_of
from kubeflash.topology.server import Server, require_both

OBJECT_LIMIT = 8 << 20
"""Bytes of a FlashNode or a list of them in a file; one has some ten thousand."""


class SourceError(TopologyError):
    """A server's description cannot be had."""


@dataclass(frozen=True)
class Source:
    """A server, and what is known of it beside its hardware.

    Attributes:
        node: the FlashNode that it comes from, if it does.
        previous: GPU and SSD of its pairs as the agent made them.
        history: what became worse, a sentence each.
    """

    server: Server
    node: FlashNode | None = None
    previous: tuple[tuple[str, str], ...] = ()
    history: tuple[str, ...] = ()

    @property
    def lacks(self) -> tuple[str, ...]:
        """What its kernel cannot do, a sentence each; nothing of a server that no agent tells of."""
        linux = self.node.status.linux if self.node is not None else None
        return tuple(kernel_problems(linux)) if linux is not None else ()


def from_node(node: FlashNode) -> Source:
    """The server that a FlashNode tells of."""
    status = node.status
    worse = became_worse(status.best, status.pairs, (gpu.address for gpu in status.gpus))
    return Source(server_of(node), node, tuple((item.gpu, item.ssd) for item in status.pairs), tuple(worse))


def named(sources: Sequence[Source], names: Sequence[str]) -> list[Source]:
    """Those of these servers that have these names, in the order of the names; all of them when none is given.

    Raises:
        SourceError: when one is not among them.
    """
    if not names:
        return list(sources)
    known = sorted({source.server.name for source in sources if source.server.name})
    for name in names:
        if name not in known:
            there = f"there are: {', '.join(known)}" if known else "it names no server: leave the name away"
            raise SourceError(f"there is no server {name} in what was read; {there}")
    return [source for name in names for source in sources if source.server.name == name]


def from_machine(path: Path | None, rules: GpuRules) -> Source:
    """This machine, or the one whose /sys, or whose / with sys and proc, is copied at `path`.

    Raises:
        SourceError: when `path` holds no such copy, or nothing to compare is in it.
    """
    try:
        root = HostRoot.of(path) if path is not None else HostRoot()
        server = read_listing(root).server(rules)
    except HostError as error:
        raise SourceError(str(error)) from error
    return Source(server if path is None else _checked(server, str(path)))


def from_file(name: str, rules: GpuRules) -> list[Source]:
    """The servers that a file, or standard input (`-`), tells of: hwloc XML, lspci text, FlashNodes as JSON or YAML.

    Raises:
        SourceError: one line: what is wrong with it.
    """
    shown = "standard input" if name == "-" else name
    content = _read(name, shown)
    try:
        nodes = _flash_nodes(content)
        if nodes is not None:
            found = map(from_node, nodes)
            return [Source(_checked(item.server, shown), item.node, item.previous, item.history) for item in found]
        return [Source(_checked(read_dump(content).server(rules), shown))]
    except SourceError:
        raise
    except TopologyError as error:
        raise SourceError(f"{shown}: {error}") from error


def nodes_from_file(name: str) -> list[FlashNode]:
    """The FlashNodes of a file, or of standard input (`-`), as `kubectl get -o json|yaml` prints them.

    Raises:
        SourceError: one line: what is wrong with it.
    """
    shown = "standard input" if name == "-" else name
    content = _read(name, shown)
    try:
        nodes = _flash_nodes(content)
    except TopologyError as error:
        raise SourceError(f"{shown}: {error}") from error
    if nodes is None:
        raise SourceError(f"{shown}: it holds no FlashNode: give the output of kubectl get flashnodes -o yaml")
    return nodes


def _checked(server: Server, shown: str) -> Server:
    try:
        return require_both(server)
    except TopologyError as error:
        raise SourceError(f"{shown}: {error}") from error


def _read(name: str, shown: str) -> bytes:
    """The whole of a file, up to one byte more than is allowed."""
    try:
        if name == "-":
            return sys.stdin.buffer.read(LIMIT + 1)
        with Path(name).open("rb") as file:
            return file.read(LIMIT + 1)
    except OSError as error:
        raise SourceError(f"{shown}: {error.strerror or error}") from error


def _flash_nodes(content: bytes) -> list[FlashNode] | None:
    """The FlashNodes of what `kubectl get flashnodes -o json|yaml` printed; None when it is nothing of the kind.

    Raises:
        BadDump: when it is, and cannot be used.
    """
    start = content.lstrip(b"\xef\xbb\xbf \t\r\n")[:4096]
    is_json = start.startswith(b"{")
    if not is_json and b"\nkind:" not in b"\n" + start and b"\napiVersion:" not in b"\n" + start:
        return None
    if len(content) > OBJECT_LIMIT:
        raise BadDump(f"it is larger than {OBJECT_LIMIT >> 20} MiB, too large for FlashNodes: ask for fewer at once")
    try:
        text = content.decode("utf-8-sig")
        body = json.loads(text) if is_json else yaml.load(text, _NoAliases)  # noqa: S506  a SafeLoader
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        first = (str(error) or type(error).__name__).splitlines()[0]
        raise BadDump(f"it is no valid {'JSON' if is_json else 'YAML'}: {first}") from error
    bodies = body.get("items", [body]) if isinstance(body, dict) else []
    if not isinstance(bodies, list) or not bodies:
        raise BadDump("it holds no FlashNode: give the output of kubectl get flashnodes -o yaml")
    return [_flash_node(item) for item in bodies]


def _flash_node(body: Any) -> FlashNode:
    kind = body.get("kind") if isinstance(body, dict) else None
    if kind is None and isinstance(body, dict) and {"gpus", "distances"} <= body.keys():
        raise BadDump(
            "it is an answer of kubectl flash, which says less than it was asked about: give what it was read from"
        )
    if kind != "FlashNode":
        raise BadDump(f"it holds a {kind or 'thing without a kind'}, no FlashNode")
    try:
        return FlashNode.from_json(body)
    except (ValidationError, RecursionError) as error:
        first = error.errors()[0] if isinstance(error, ValidationError) else None
        where = ".".join(map(str, first["loc"])) if first else ""
        words = first["msg"] if first else "it is nested too deeply"
        raise BadDump(f"its FlashNode does not fit the schema: {where}: {words}") from error


class _NoAliases(yaml.SafeLoader):
    """YAML without references to other parts of it: a few lines of them can stand for gigabytes."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("it uses aliases, which kubectl never writes")
        return super().compose_node(parent, index)


def from_cluster(names: Sequence[str], kubeconfig: str | None, context: str | None) -> list[Source]:
    """The servers of these FlashNodes, of all when none is named. Raises as `nodes_from_cluster`."""
    return [from_node(node) for node in nodes_from_cluster(names, kubeconfig, context)]


def nodes_from_cluster(names: Sequence[str], kubeconfig: str | None, context: str | None) -> list[FlashNode]:
    """These FlashNodes, all when none is named.

    Raises:
        SourceError: when there is no such FlashNode, or none at all.
        KubeError: when the API server does not answer as asked.
    """
    from kubeflash.kube.client import Client, load_configuration  # noqa: PLC0415  a second that no dump needs
    from kubeflash.kube.errors import NotFound  # noqa: PLC0415

    client = Client(load_configuration(kubeconfig, context))
    try:
        bodies = [client.get(FlashNode.info, name) for name in names] if names else client.list(FlashNode.info)
    except NotFound as error:
        known = _names(client.list(FlashNode.info))
        missing = ", ".join(name for name in names if name not in known) or "it"
        there = ", ".join(known) or "none, or the kind is not known: kubectl apply --server-side -f crds/"
        raise SourceError(f"there is no FlashNode {missing}; there are: {there}") from error
    finally:
        client.close()
    if not bodies:
        raise SourceError("there is no FlashNode in this cluster yet: does the agent run on its servers?")
    return [FlashNode.from_json(body) for body in sorted(bodies, key=lambda body: body["metadata"]["name"])]


def _names(bodies: Iterable[dict[str, Any]]) -> list[str]:
    return sorted(body["metadata"]["name"] for body in bodies)
