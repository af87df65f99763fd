"""`kubectl flash`, also `python -m kubeflash.cli`: GPU servers and volumes: what is, why, and admins' work."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from kubeflash import __version__
from kubeflash.api.quantity import human_bytes
from kubeflash.api.v1alpha1 import FlashAttachment, FlashVolume
from kubeflash.cli import completion, data, picture, text
from kubeflash.cli.asking import NotDone, duration
from kubeflash.cli.sources import (
    Source,
    SourceError,
    from_cluster,
    from_file,
    from_machine,
    named,
    nodes_from_cluster,
    nodes_from_file,
)
from kubeflash.cli.terminal import Terminal, clean
from kubeflash.kube.errors import KubeError
from kubeflash.topology.analysis import Analysis, analyse
from kubeflash.topology.devices import GpuRules
from kubeflash.topology.errors import TopologyError
from kubeflash.topology.faults import short
from kubeflash.topology.tree import address_key

EXIT_FAILED = 1
INTERRUPTED = 130
PURGE_SECONDS, PURGE_ALL_SECONDS = 300.0, 7200.0
"""Seconds that purge waits unless it is told otherwise: for the controller, or until all SSDs are overwritten."""
_OBJECTS = ("volume", "attachment")
"""What `why` is asked about by kind and name."""
FORMATS = ("text", "json", "yaml", "svg")
_EXAMPLES = {
    "topology": """examples:
  kubectl flash topology gpu-a         a server; without a name: all of them
  kubectl flash topology --local       this machine, without a cluster
  kubectl flash topology -f dump.xml   what lstopo dump.xml wrote elsewhere
  sudo lspci -vvv | kubectl flash topology -f -
  kubectl flash topology gpu-a -o svg > gpu-a.svg""",
    "pairs": """examples:
  kubectl flash pairs                  the pairs of all servers
  kubectl flash pairs gpu-a --matrix   and all distances
  kubectl flash pairs -f dump.xml -o json""",
    "why": """examples:
  kubectl flash why gpu-a 61:00.0      why an SSD is used or not, and whose it is
  kubectl flash why gpu-a GPU-7f2c0d   a GPU, by the beginning of its UUID
  kubectl flash why -f dump.xml 4e:00.0
  kubectl flash why -f nodes.yaml gpu-a 61:00.0
  kubectl flash why volume kv-0 -n serving     where a volume is, or why it is nowhere
  kubectl flash why volume serving/kv-0 -o json
  kubectl flash why attachment kv-0-on-b -n serving    both ends: what holds it up, and what to do
A server that is called "volume" or "attachment" is asked about from a file: -f.""",
    "attachments": """examples:
  kubectl flash attachments -n serving     what is attached where, and how that is now
  kubectl flash attachments -A             of all namespaces
  kubectl flash attachments kv-0-on-b -n serving -o json
Attached, Live: it works. Connecting, Detaching, Fencing: on its way. Waiting: another one has the volume.
Reconnecting: I/O waits until it is lost. Lost: I/O failed. InUse: deleted, and somebody holds the device.
Any other word is the reason why it is not Ready: kubectl flash why attachment NAME says more.""",
    "plan": """examples:
  kubectl flash plan                   what the agents of all servers have still to do
  kubectl flash plan gpu-a
  kubectl flash plan -f nodes.yaml     of what kubectl get flashnodes -o yaml printed""",
    "wipe": """examples:
  kubectl flash wipe gpu-a S64HNE0T    by serial, id or PCI address: shows the SSD, asks, and wipes it
  kubectl flash wipe gpu-a S64HNE0T --dry-run
  kubectl flash wipe gpu-a 6f3c2a10-…  an orphan, by its id (kubectl flash adopt lists them)""",
    "adopt": """examples:
  kubectl flash adopt                  lists all orphans, and SSDs with another server's label
  kubectl flash adopt gpu-a 6f3c2a10-… --name kv-0 -n serving
                                       makes a FlashVolume of an orphan, with its data
  kubectl flash adopt gpu-b S64HNE0T   takes over an SSD of a server that is gone, with its volumes""",
    "purge": """examples:
  kubectl flash purge gpu-a --dry-run  shows what it means
  kubectl flash purge gpu-a            the server is lost for good: asks, and lets nothing wait for it any longer
  kubectl flash purge gpu-a S64HNE0R-1  so is one SSD, which is broken or was thrown away
  kubectl flash purge --all --dry-run  shows every volume, attachment and SSD, and who uses them
  kubectl flash purge --all            removes them, wipes the SSDs, and says how to uninstall KubeFlash""",
    "check": """examples:
  kubectl flash check                  is the installation sound; what is missing where, and how to mend it
  kubectl flash check --wait 5m        after an installation: until it is, or for 5 minutes
  kubectl flash check -o json
The exit status is 1 when there is a FAULT; a NOTE is no fault.""",
    "completion": """examples:
  source <(kubectl-flash completion bash)
  kubectl-flash completion fish > ~/.config/fish/completions/kubectl-flash.fish
kubectl itself completes `kubectl flash` by kubectl_complete-flash on the PATH.""",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; its exit status: 0, 1 for what failed (one line on stderr), 2 for bad usage."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] == [completion.COMMAND]:
        print("\n".join(completion.candidates(words[1:])))
        return 0
    options = _parse(words)
    sound = True
    try:
        if options.command == "check":
            output, sound = _check(options)
        else:
            output = _run(options)
    except (TopologyError, KubeError, NotDone) as error:
        line = " ".join(str(error).split())
        print(f"kubectl flash: {clean(line)}", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        print("kubectl flash: interrupted", file=sys.stderr)
        return INTERRUPTED
    return _write(output) or (0 if sound else EXIT_FAILED)


def _parse(words: Sequence[str]) -> argparse.Namespace:
    """What was asked; what a command does not know is refused with that command's own usage."""
    options, unknown = parser().parse_known_args(words)
    if unknown:
        options.parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    return options


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(
        prog="kubectl flash",
        description="GPU servers, their NVMe SSDs, who is whose neighbour in the PCIe tree, and the volumes on them.",
        epilog="kubectl flash COMMAND --help has examples.",
    )
    result.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = result.add_subparsers(dest="command", required=True, metavar="COMMAND")
    described = {
        "topology": "the PCIe tree of a server, its pairs, and what is wrong with it",
        "pairs": "which SSD is whose, beside what resource.kubernetes.io/pcieRoot alone would say",
        "why": "all about one GPU or SSD, one volume or one attachment: what is so, why, and what to do",
        "attachments": "which volume is attached where, and how: live, reconnecting until when, lost, fenced",
        "plan": "what the agents have still to do, and what failed",
        "wipe": "zero an SSD that is not blank, or an orphan, after showing what will be lost",
        "adopt": "list orphans, make a volume of one, or take over an SSD of a server that is gone",
        "purge": "declare a server, or an SSD, lost for good; or with --all be rid of everything of KubeFlash",
        "check": "is this installation of KubeFlash sound; what is missing where, and how to mend it",
        "completion": "a script that completes this command in your shell",
    }
    for name, words in described.items():
        command = commands.add_parser(
            name,
            help=words,
            description=words[0].upper() + words[1:] + ".",
            epilog=_EXAMPLES[name],
            formatter_class=argparse.RawDescriptionHelpFormatter,
            usage=_USAGES.get(name),
        )
        command.set_defaults(parser=command)
        if name in _ADDED:
            _ADDED[name](command)
            continue
        if name == "completion":
            command.add_argument("shell", choices=completion.SHELLS)
            continue
        _add_source(command, why=name == "why")
        if name != "why":
            command.add_argument("--title", default="", help="heading of the picture (default: the server's name)")
        if name == "pairs":
            command.add_argument("--matrix", action="store_true", help="all distances too")
    return result


def _add_attachments(command: argparse.ArgumentParser) -> None:
    command.add_argument("name", nargs="?", metavar="[NAMESPACE/]NAME", help="one attachment (default: all)")
    command.add_argument("-n", "--namespace", metavar="NAMESPACE", help="of the attachments (default: the context's)")
    command.add_argument("-A", "--all-namespaces", action="store_true", help="of all namespaces")
    _add_output(command)
    _add_cluster(command)


def _add_check(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--wait", type=duration, metavar="TIME", help="go on until it is sound, for so long at the most"
    )
    _add_output(command)
    _add_system_namespace(command)
    _add_cluster(command)


def _add_plan(command: argparse.ArgumentParser) -> None:
    command.add_argument("words", nargs="*", metavar="NODE", help="names of servers (default: all)")
    command.add_argument(
        "-f", "--file", action="append", metavar="FILE", help="FlashNodes as JSON or YAML; - is standard input"
    )
    _add_output(command)
    _add_cluster(command)


def _add_wipe(command: argparse.ArgumentParser) -> None:
    command.add_argument("node", metavar="NODE", help="name of the server")
    command.add_argument("what", metavar="SSD|ORPHAN-ID", help="an SSD's id, serial or PCI address, or an orphan's id")
    _add_asking(command, "the SSD's serial, or the orphan's id", "30m")


def _add_adopt(command: argparse.ArgumentParser) -> None:
    command.add_argument("words", nargs="*", metavar="NODE ORPHAN-ID|SSD", help="what to adopt (default: list it)")
    command.add_argument("--name", metavar="NAME", help="of the FlashVolume that an orphan becomes")
    command.add_argument("-n", "--namespace", metavar="NAMESPACE", help="of that FlashVolume")
    command.add_argument("--pool", metavar="POOL", help="of that FlashVolume (default: the pool of its SSD)")
    _add_output(command)
    _add_asking(command, "the SSD's serial", "5m")


def _add_purge(command: argparse.ArgumentParser) -> None:
    command.add_argument("node", nargs="?", metavar="NODE", help="name of the server")
    command.add_argument("ssd", nargs="?", metavar="SSD", help="id of one SSD that is lost (default: the whole server)")
    command.add_argument(
        "--all", action="store_true", help="everything: all attachments, volumes, data on SSDs, and pools"
    )
    _add_asking(
        command, "the server's system UUID, the SSD's id, or with --all the cluster's", None, "5m, with --all 2h"
    )


def _add_asking(command: argparse.ArgumentParser, what: str, timeout: str | None, shown: str = "%(default)s") -> None:
    command.add_argument("--dry-run", action="store_true", help="shows what would be done, and stops")
    command.add_argument("--confirm", metavar="WORD", help=f"{what}, instead of typing it")
    command.add_argument(
        "--timeout", type=duration, default=timeout, metavar="TIME", help=f"how long to wait (default: {shown})"
    )
    _add_system_namespace(command)
    _add_cluster(command)


def _add_output(command: argparse.ArgumentParser) -> None:
    command.add_argument("-o", "--output", choices=FORMATS[:3], default="text", help="default: %(default)s")


def _add_system_namespace(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--system-namespace",
        metavar="NAMESPACE",
        help="where KubeFlash runs (default: where its agents say that they do, else kubeflash-system)",
    )


def _add_cluster(command: argparse.ArgumentParser) -> None:
    command.add_argument("--color", choices=("auto", "always", "never"), default="auto", help="default: on a terminal")
    command.add_argument("--kubeconfig", metavar="FILE", help="as for kubectl")
    command.add_argument("--context", metavar="NAME", help="as for kubectl")


_ADDED = {
    "attachments": _add_attachments,
    "plan": _add_plan,
    "wipe": _add_wipe,
    "adopt": _add_adopt,
    "purge": _add_purge,
    "check": _add_check,
}
_USAGES = {
    "purge": "%(prog)s NODE [SSD] [options]\n       %(prog)s --all [--dry-run] [options]",
    "why": "%(prog)s [options] [NODE] DEVICE\n       %(prog)s volume [NAMESPACE/]NAME [-n NAMESPACE] [options]\n"
    "       %(prog)s attachment [NAMESPACE/]NAME [-n NAMESPACE] [options]",
    "adopt": "%(prog)s [-o text|json|yaml]\n       %(prog)s NODE ORPHAN-ID --name NAME -n NAMESPACE [options]\n"
    "       %(prog)s NODE SSD [options]",
}


def _add_source(command: argparse.ArgumentParser, *, why: bool) -> None:
    if why:
        command.add_argument(
            "words",
            nargs="+",
            metavar="[NODE] DEVICE",
            help="a server, and an address, id, serial or UUID; or: volume NAME, attachment NAME",
        )
        command.add_argument("-n", "--namespace", metavar="NAMESPACE", help="of that object (default: the context's)")
        _add_system_namespace(command)
    else:
        command.add_argument("words", nargs="*", metavar="NODE", help="names of servers (default: all)")
    source = command.add_mutually_exclusive_group()
    source.add_argument("--local", action="store_true", help="this machine, without a cluster; as root it says more")
    source.add_argument(
        "--sysfs", type=Path, metavar="DIR", help="a copy of a machine's /sys, or of its / with sys and proc"
    )
    source.add_argument(
        "-f",
        "--file",
        action="append",
        metavar="FILE",
        help="hwloc XML, lspci -vvv text, or FlashNodes as JSON or YAML; - is standard input; may be repeated",
    )
    command.add_argument(
        "-o", "--output", choices=FORMATS[:3] if why else FORMATS, default="text", help="default: %(default)s"
    )
    command.add_argument(
        "--gpu",
        action="append",
        default=[],
        metavar="VENDOR:CLASS",
        help="count devices of this PCI vendor and class as GPUs too, such as 1234:0380; may be repeated",
    )
    _add_cluster(command)


def _run(options: argparse.Namespace) -> str:
    if options.command == "completion":
        return completion.script(options.shell)
    if options.command == "plan":
        return _plan(options)
    if options.command == "attachments":
        return _attachments(options)
    if options.command in ("wipe", "adopt", "purge"):
        return _administer(options)
    if options.command == "why":
        if options.words[0] in _OBJECTS and not _from_elsewhere(options):
            return _why_object(options)
        if options.namespace is not None:
            options.parser.error("-n goes with why volume NAME and why attachment NAME")
        *names, device = options.words
        return _why(options, names, device)
    return _all(options, _sources(options, options.words))


def _plan(options: argparse.Namespace) -> str:
    from kubeflash.cli import plan  # noqa: PLC0415  only this command wants it

    if options.file:
        nodes = [node for name in options.file for node in nodes_from_file(name)]
        known = sorted({node.metadata.name for node in nodes})
        for name in options.words:
            if name not in known:
                raise SourceError(f"there is no server {name} in what was read; there are: {', '.join(known)}")
        nodes = [node for node in nodes if not options.words or node.metadata.name in options.words]
    else:
        nodes = nodes_from_cluster(options.words, options.kubeconfig, options.context)
    if options.output != "text":
        return _data(options.output, [plan.document(node) for node in nodes])
    return "\n".join(plan.text(nodes, Terminal.of(sys.stdout, options.color))) + "\n"


def _check(options: argparse.Namespace) -> tuple[str, bool]:
    """What `check` prints, and whether the installation is sound."""
    from kubeflash.cli import check, cluster  # noqa: PLC0415  only this command wants them

    client = cluster.connect(options.kubeconfig, options.context)
    try:
        return check.run(options, client)
    finally:
        client.close()


def _administer(options: argparse.Namespace) -> str:
    """The commands that change something: they say what they will do before they ask."""
    from kubeflash.cli import adopt, cluster, purge, wipe  # noqa: PLC0415  only these commands want them

    if options.command == "adopt" and len(options.words) not in (0, 2):
        options.parser.error("adopt wants NODE and an orphan's id or an SSD; or nothing, to list them")
    if options.command == "purge":
        if options.all == (options.node is not None):
            options.parser.error("purge wants NODE, or --all")
        options.timeout = options.timeout or (PURGE_ALL_SECONDS if options.all else PURGE_SECONDS)
    client = cluster.connect(options.kubeconfig, options.context)
    try:
        options.system_namespace = cluster.system_namespace(client, options.system_namespace)
        return {"wipe": wipe.run, "adopt": adopt.run, "purge": purge.run}[options.command](options, client)
    finally:
        client.close()


def _why_object(options: argparse.Namespace) -> str:
    """`why volume` and `why attachment`."""
    from kubeflash.cli import cluster, whyattachment, whyvolume  # noqa: PLC0415  only these want them

    what, *words = options.words
    if len(words) != 1:
        options.parser.error(
            f"why {what} wants one NAME or NAMESPACE/NAME, such as kubectl flash why {what} serving/kv-0"
        )
    given, name = _object_name(options, words[0])
    client = cluster.connect(options.kubeconfig, options.context)
    try:
        namespace = given or cluster.default_namespace(options.kubeconfig, options.context)
        key = f"{namespace}/{name}"
        reading = cluster.read(
            client, namespace, refusals_of=key if what == "volume" else None, system=options.system_namespace
        )
    finally:
        client.close()
    terminal = Terminal.of(sys.stdout, options.color)
    as_text = options.output == "text"
    if what == "attachment":
        attachments = reading.cluster.attachments
        if key not in attachments:
            left = whyattachment.left_over(namespace, name, reading)
            raise cluster.not_there(FlashAttachment, attachments, namespace, name, left)
        if as_text:
            return "\n".join(whyattachment.text(attachments[key], reading, terminal)) + "\n"
        return data.rendered(options.output, whyattachment.document(attachments[key], reading))
    volumes = reading.cluster.volumes
    if key not in volumes:
        raise cluster.not_there(FlashVolume, volumes, namespace, name)
    if as_text:
        return "\n".join(whyvolume.text(volumes[key], reading, terminal)) + "\n"
    return data.rendered(options.output, whyvolume.document(volumes[key], reading))


def _object_name(options: argparse.Namespace, word: str) -> tuple[str | None, str]:
    """Namespace, where one is given, and name of an object: by NAMESPACE/NAME or by -n."""
    namespace, slash, name = word.rpartition("/")
    if slash and options.namespace not in (None, namespace):
        options.parser.error(f"{word} is not in namespace {options.namespace}: give one of them")
    if not name or (slash and not namespace):
        options.parser.error(f"{word!r} is no NAME and no NAMESPACE/NAME")
    return namespace or options.namespace, name


def _attachments(options: argparse.Namespace) -> str:
    from kubeflash.cli import attachments, cluster  # noqa: PLC0415  only this command wants them

    given, name = _object_name(options, options.name) if options.name is not None else (options.namespace, None)
    if options.all_namespaces and given is not None:
        options.parser.error(f"-A is all namespaces, not {given}: give one of them")
    client = cluster.connect(options.kubeconfig, options.context)
    try:
        namespace = given or cluster.default_namespace(options.kubeconfig, options.context)
        return attachments.run(options, client, None if options.all_namespaces else namespace, name)
    finally:
        client.close()


def _from_elsewhere(options: argparse.Namespace) -> bool:
    """Whether it is about something else than the cluster."""
    return bool(options.local or options.sysfs is not None or options.file)


def _sources(options: argparse.Namespace, names: Sequence[str]) -> list[Source]:
    rules = GpuRules.parse(options.gpu)
    if options.local:
        return named([from_machine(None, rules)], names)
    if options.sysfs is not None:
        return named([from_machine(options.sysfs, rules)], names)
    if options.file:
        return named([source for name in options.file for source in from_file(name, rules)], names)
    return from_cluster(names, options.kubeconfig, options.context)


def _all(options: argparse.Namespace, sources: Sequence[Source]) -> str:
    analyses = [analyse(source.server, previous=source.previous) for source in sources]
    if options.output == "svg":
        if len(analyses) != 1:
            raise SourceError(f"a picture shows one server: name one of {_names(sources)}")
        return picture.draw(analyses[0], title=options.title)
    if options.output != "text":
        return _data(options.output, [data.document(analysis) for analysis in analyses])
    terminal = Terminal.of(sys.stdout, options.color)
    blocks: list[str] = []
    for source, analysis in zip(sources, analyses, strict=True):
        if options.command == "pairs":
            lines = text.pairs(analysis, terminal, source.history, matrix=options.matrix)
        else:
            lines = text.topology(analysis, terminal, (*source.history, *source.lacks))
        blocks.append("\n".join(lines))
    return "\n\n\n".join(blocks) + "\n"


def _data(form: str, documents: list[data.JSON]) -> str:
    """One server is an object, several are a list in one."""
    whole = documents[0] if len(documents) == 1 else {"items": documents}
    return data.rendered(form, whole)


def _names(sources: Iterable[Source]) -> str:
    return ", ".join(source.server.name or "one without a name" for source in sources)


def _why(options: argparse.Namespace, names: list[str], device: str) -> str:
    if len(names) > 1 or (not names and not _from_elsewhere(options)):
        raise SourceError("why wants NODE DEVICE, such as kubectl flash why gpu-a 4e:00.0")
    sources = _sources(options, names)
    if len(sources) != 1:
        raise SourceError(f"why looks at one server: name one of {_names(sources)}, before {device}")
    source = sources[0]
    analysis = analyse(source.server, previous=source.previous)
    address = find_device(analysis, device)
    if options.output != "text":
        return _data(options.output, [_about(analysis, address)])
    terminal = Terminal.of(sys.stdout, options.color)
    return "\n".join(text.why(analysis, address, terminal, tuple(_node_says(source, address)))) + "\n"


def _about(analysis: Analysis, address: str) -> data.JSON:
    """The parts of a server's document that concern one device."""
    whole = data.document(analysis)
    device = next(item for item in (*whole["gpus"], *whole["ssds"]) if item["address"] == address)
    related = {
        name: [item for item in whole[name] if address in (item["gpu"], item["ssd"])] for name in ("pairs", "distances")
    }
    return {"server": whole["name"], "device": device, **related}


def find_device(analysis: Analysis, wanted: str) -> str:
    """The address of the GPU or SSD that is meant: by address, short or long, id, serial, or a UUID's beginning.

    Raises:
        SourceError: when it is none, or several.
    """
    server = analysis.server
    known = (*server.gpus, *server.ssds)
    by_address = [address for address in known if _same_address(address, wanted)]
    by_name = [
        address
        for address in known
        if wanted in (server.fact(address).id, server.fact(address).serial)
        or (len(wanted) >= len("GPU-0000") and server.fact(address).uuid.lower().startswith(wanted.lower()))
    ]
    found = by_address or by_name
    if len(found) == 1:
        return found[0]
    if found:
        raise SourceError(f"{wanted} is {', '.join(map(short, found))}: give the address of one")
    raise SourceError(
        f"{server.name or 'the server'} has no GPU or SSD {wanted}; "
        f"GPUs: {', '.join(map(short, server.gpus)) or 'none'}; SSDs: {', '.join(map(short, server.ssds)) or 'none'}"
    )


def _same_address(address: str, wanted: str) -> bool:
    try:
        return address_key(address) == address_key(wanted if wanted.count(":") == 2 else f"0000:{wanted}")
    except ValueError:
        return False


def _node_says(source: Source, address: str) -> Iterable[str]:
    """What a FlashNode says of a device beside its facts: each namespace of an SSD, with its pool and health."""
    for ssd in source.node.status.ssds if source.node is not None else ():
        if ssd.address != address:
            continue
        words = [f"{ssd.id} (namespace {ssd.namespace_id}): {human_bytes(ssd.bytes)}, {ssd.state.lower()}"]
        words += [ssd.reason] if ssd.reason and ssd.reason != source.server.fact(address).reason else []
        words += [f"pool {ssd.pool}" if ssd.pool else "no pool selects it"]
        if ssd.free is not None:
            words.append(f"free {human_bytes(ssd.free)}, {text.count(len(ssd.volumes), 'volume')}")
        if ssd.health is not None:
            words += [f"SMART: {ssd.health.words}"]
        yield "; ".join(words)


def _write(output: str) -> int:
    """Prints; a reader that has seen enough (`| head`) is no failure."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")
    try:
        sys.stdout.write(output)
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still buffered has nowhere to go
        if isinstance(error, BrokenPipeError):
            return 0
        print(f"kubectl flash: the output could not be written: {error.strerror or error}", file=sys.stderr)
        return EXIT_FAILED
    return 0


if __name__ == "__main__":
    sys.exit(main())
