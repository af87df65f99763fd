"""`kubectl flash`, also `python -m kubeflash.cli`: what GPU servers have, who is whose neighbour, and why."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import yaml

from kubeflash import __version__
from kubeflash.api.quantity import human_bytes
from kubeflash.cli import completion, data, picture, text
from kubeflash.cli.sources import Source, SourceError, from_cluster, from_file, from_machine, named
from kubeflash.cli.terminal import Terminal, clean, harmless_json
from kubeflash.kube.errors import KubeError
from kubeflash.topology.analysis import Analysis, analyse
from kubeflash.topology.devices import GpuRules
from kubeflash.topology.errors import TopologyError
from kubeflash.topology.faults import short
from kubeflash.topology.tree import address_key

EXIT_FAILED = 1
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
  kubectl flash why -f nodes.yaml gpu-a 61:00.0""",
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
    try:
        output = _run(options)
    except (TopologyError, KubeError) as error:
        line = " ".join(str(error).split())
        print(f"kubectl flash: {clean(line)}", file=sys.stderr)
        return EXIT_FAILED
    return _write(output)


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
        description="GPU servers, their NVMe SSDs, and who is whose neighbour in the PCIe tree.",
        epilog="kubectl flash COMMAND --help has examples.",
    )
    result.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = result.add_subparsers(dest="command", required=True, metavar="COMMAND")
    described = {
        "topology": "the PCIe tree of a server, its pairs, and what is wrong with it",
        "pairs": "which SSD is whose, beside what resource.kubernetes.io/pcieRoot alone would say",
        "why": "all about one GPU or SSD: is it usable, whose is it, how far are the others",
        "completion": "a script that completes this command in your shell",
    }
    for name, words in described.items():
        command = commands.add_parser(
            name,
            help=words,
            description=words[0].upper() + words[1:] + ".",
            epilog=_EXAMPLES[name],
            formatter_class=argparse.RawDescriptionHelpFormatter,
            usage="%(prog)s [options] [NODE] DEVICE" if name == "why" else None,
        )
        command.set_defaults(parser=command)
        if name == "completion":
            command.add_argument("shell", choices=completion.SHELLS)
            continue
        _add_source(command, why=name == "why")
        if name != "why":
            command.add_argument("--title", default="", help="heading of the picture (default: the server's name)")
        if name == "pairs":
            command.add_argument("--matrix", action="store_true", help="all distances too")
    return result


def _add_source(command: argparse.ArgumentParser, *, why: bool) -> None:
    if why:
        command.add_argument(
            "words", nargs="+", metavar="[NODE] DEVICE", help="a server, and an address, id, serial or UUID"
        )
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
    command.add_argument("--color", choices=("auto", "always", "never"), default="auto", help="default: on a terminal")
    command.add_argument("--kubeconfig", metavar="FILE", help="as for kubectl")
    command.add_argument("--context", metavar="NAME", help="as for kubectl")


def _run(options: argparse.Namespace) -> str:
    if options.command == "completion":
        return completion.script(options.shell)
    if options.command == "why":
        *names, device = options.words
        return _why(options, names, device)
    return _all(options, _sources(options, options.words))


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
            lines = text.topology(analysis, terminal, source.history)
        blocks.append("\n".join(lines))
    return "\n\n\n".join(blocks) + "\n"


def _data(form: str, documents: list[data.JSON]) -> str:
    """One server is an object, several are a list in one."""
    whole = documents[0] if len(documents) == 1 else {"items": documents}
    if form == "json":
        return harmless_json(json.dumps(whole, indent=2, ensure_ascii=False)) + "\n"
    return yaml.safe_dump(whole, sort_keys=False, allow_unicode=True)


def _names(sources: Iterable[Source]) -> str:
    return ", ".join(source.server.name or "one without a name" for source in sources)


def _why(options: argparse.Namespace, names: list[str], device: str) -> str:
    from_elsewhere = options.local or options.sysfs is not None or options.file
    if len(names) > 1 or (not names and not from_elsewhere):
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
