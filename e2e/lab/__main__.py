"""``python -m lab``: a lab from the command line."""

from __future__ import annotations

import argparse
import importlib
import os
import select
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from lab import binaries, network, rundir
from lab.cache import say
from lab.controlplane import user_environment
from lab.errors import LabError, LabTimeout, NotUp, ProcessDied
from lab.lab import Lab, ensure_programs
from lab.processes import Ledger, wait_until

if TYPE_CHECKING:
    from lab.node import NodeDisk

REPO = Path(__file__).resolve().parents[2]
COMMAND = "PYTHONPATH=e2e .venv/bin/python -m lab"
CONTROL_PLANE_SECONDS = 120.0
"""How long `up` waits for the control plane."""
SERVER_SECONDS = 180.0
"""How long it waits besides for each virtual server."""
DOWN_SECONDS = 60.0
"""How long `down` waits for a lab to end by itself."""


class Shape(NamedTuple):
    """Whether servers are Kubernetes nodes, and whether Kubernetes is the older one."""

    kubelets: bool = False
    older: bool = False


NO_KUBELETS = Shape()


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    command: list[str] = []
    if words and words[0] == "shell" and "--" in words:
        split = words.index("--")
        words, command = words[:split], words[split + 1 :]
    arguments = _parser().parse_args(words)
    shape = Shape(getattr(arguments, "kubelets", False), getattr(arguments, "older", False))
    try:
        match arguments.command:
            case "build":
                return build(arguments.servers, arguments.programs, shape)
            case "up" if arguments.foreground:
                return up_foreground(arguments.name, arguments.servers, arguments.ready_fd, shape)
            case "up":
                return up(arguments.name, arguments.servers, shape)
            case "status":
                return status(arguments.name)
            case "shell" if arguments.server:
                return console(arguments.name, arguments.server)
            case "shell":
                shell(arguments.name, command)
            case "down":
                return down(arguments.name)
            case "sweep":
                return sweep()
            case _:
                return leftovers()
    except LabError as error:
        say(f"lab: {error}")
        return 1
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m lab", description=sys.modules["lab"].__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    named = argparse.ArgumentParser(add_help=False)
    named.add_argument("--name", default="lab", help="one machine can have several labs (default: %(default)s)")

    one = commands.add_parser("build", help="build whatever a lab needs and is not in the cache")
    one.add_argument("--servers", action="store_true", help="what virtual servers start from, too")
    one.add_argument("--kubelets", action="store_true", help="what servers need that are Kubernetes nodes, too")
    one.add_argument("--older", action="store_true", help=f"of Kubernetes {binaries.OLDER_KUBERNETES}")
    one.add_argument("programs", nargs="*", help=f"these programs, of: {', '.join(binaries.PROGRAMS)}")

    one = commands.add_parser("up", parents=[named], help="start a lab")
    one.add_argument("--servers", default=(), type=_names, metavar="A,B", help="with these virtual servers")
    one.add_argument("--kubelets", action="store_true", help="which are nodes of the cluster, with KubeFlash's image")
    one.add_argument("--older", action="store_true", help=f"with Kubernetes {binaries.OLDER_KUBERNETES}")
    one.add_argument("--foreground", action="store_true", help="stay until Ctrl-C")
    one.add_argument("--ready-fd", type=int, help=argparse.SUPPRESS)

    commands.add_parser("status", parents=[named], help="tell whether a lab is up, and how to use it")

    one = commands.add_parser(
        "shell", parents=[named], help="a shell in the lab's network; with `-- COMMAND...`, only that command"
    )
    one.add_argument("server", nargs="?", help="the console of this virtual server instead")

    commands.add_parser("down", parents=[named], help="end a lab, also what is left of one that was killed")
    commands.add_parser("sweep", help="remove what killed labs left; exit status 1 if a lab is up")
    commands.add_parser("leftovers", help="print whatever outlived a lab; exit status 1 if there is anything")
    return parser


def _names(text: str) -> tuple[str, ...]:
    return tuple(filter(None, text.split(",")))


def build(servers: bool, programs: Sequence[str], shape: Shape = NO_KUBELETS) -> int:
    """Build what is missing in the cache."""
    for program in programs:
        print(binaries.ensure(program, older=shape.older))
    if shape.kubelets:
        prepare_nodes(shape)
    elif not programs:
        ensure_programs(older=shape.older)
    if servers:
        image = importlib.import_module("lab.image")
        image.app_image(REPO, image.server_image(REPO).tree)
    return 0


def prepare_nodes(shape: Shape) -> NodeDisk:
    """What a lab with kubelets needs, helm included, with the image of this repository's Dockerfile on the nodes."""
    node, container = importlib.import_module("lab.node"), importlib.import_module("lab.container")
    binaries.ensure("helm")
    disk: NodeDisk = node.prepare(REPO, [container.operator_image(REPO)], older=shape.older)
    return disk


def up(name: str, servers: tuple[str, ...], shape: Shape = NO_KUBELETS) -> int:
    """Start a lab in the background and wait until it is ready."""
    network.check_machine()
    rundir.assert_free(rundir.of(name))
    build(bool(servers), (), shape)  # here, where its progress is seen
    began = time.monotonic()
    reader, writer = os.pipe()
    argv = [sys.executable, "-m", "lab", "up", "--foreground", "--name", name, "--ready-fd", str(writer)]
    if servers:
        argv += ["--servers", ",".join(servers)]
    argv += ["--kubelets"] * shape.kubelets + ["--older"] * shape.older
    supervisor = subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,  # what it has to say comes through the pipe, or goes to its log
        pass_fds=[writer],
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(REPO / "e2e"), os.environ.get("PYTHONPATH", "")])},
    )
    os.close(writer)
    try:
        answer = _read_all(reader, CONTROL_PLANE_SECONDS + SERVER_SECONDS * len(servers))
    except BaseException:
        supervisor.terminate()  # it takes its lab down in order
        raise
    finally:
        os.close(reader)
    if answer != "ready":
        code = supervisor.wait(DOWN_SECONDS)
        raise ProcessDied(answer or f"the lab's process ended (exit status {code}) and did not say why")
    supervisor.returncode = 0  # it lives on: nobody here waits for it
    say(f"lab {name!r} is up after {time.monotonic() - began:.1f} s")
    return status(name)


def _read_all(reader: int, timeout: float) -> str:
    """All that is written to a pipe until its other end is closed."""
    deadline = time.monotonic() + timeout
    parts: list[bytes] = []
    while True:
        if not select.select([reader], [], [], max(0.0, deadline - time.monotonic()))[0]:
            raise LabTimeout(f"the lab was not ready within {timeout:g} s and is taken down; see $KUBEFLASH_LAB_LOGS")
        part = os.read(reader, 65_536)
        if not part:
            return b"".join(parts).decode(errors="replace")
        parts.append(part)


def up_foreground(name: str, servers: tuple[str, ...], ready_fd: int | None, shape: Shape = NO_KUBELETS) -> int:
    """Be the process that a lab lives and dies with."""

    def tell(message: str) -> None:
        nonlocal ready_fd
        if ready_fd is not None:
            os.write(ready_fd, message.encode())
            os.close(ready_fd)
            ready_fd = None

    try:
        disk = prepare_nodes(shape) if shape.kubelets else None
        if servers and disk is None:
            build(True, ())
        with Lab(name, kubelets=shape.kubelets, older=shape.older) as lab:
            if ready_fd is not None:
                _redirect_output(lab.run_dir / "logs" / "lab.log")
            if disk is not None:
                importlib.import_module("lab.node").boot_nodes(lab, REPO, servers, disk)
            elif servers:
                importlib.import_module("lab.servers").boot(lab, REPO, servers, timeout=SERVER_SECONDS * len(servers))
            tell("ready")
            status(name)
            say("Ctrl-C takes it down.")
            while True:
                signal.pause()
    except KeyboardInterrupt:
        say(f"lab {name!r} is down")
        return 0
    except BaseException as error:
        tell(f"{type(error).__name__}: {error}")
        raise


def _redirect_output(log_file: Path) -> None:
    with log_file.open("ab") as log:
        sys.stdout.flush()
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)


def status(name: str) -> int:
    """Tell how a lab is; exit status 1 when it is not up."""
    run_dir = rundir.of(name)
    try:
        record = rundir.live(run_dir)
    except NotUp as error:
        if holder := rundir.holder(run_dir):
            print(f"{holder} is coming up or going down")
        elif run_dir.exists():
            print(f"lab {name!r} was killed: `python -m lab down --name {name}` removes what is left in {run_dir}")
        else:
            print(error)
        return 1
    option = "" if name == "lab" else f" --name {name}"
    print(f"lab {name!r} is up: process {record.pid}, cluster {record.clusterId}")
    print(f"  API server  {record.server} (inside the lab's network)")
    print(f"  kubeconfig  {record.kubeconfig}")
    print(f"  servers     {', '.join(record.servers) or 'none'}")
    print(f"  logs        {run_dir}/logs, {run_dir}/audit.log")
    for entry in Ledger(run_dir).alive():
        print(f"  process     {entry}")
    print(f"use it:    {COMMAND} shell{option} -- kubectl get namespaces")
    print(f"a shell:   {COMMAND} shell{option} [SERVER]")
    print(f"end it:    {COMMAND} down{option}")
    return 0


def console(name: str, server: str) -> int:
    """Attach to a virtual server's console."""
    run_dir = rundir.of(name)
    record = rundir.live(run_dir)
    if server not in record.servers:
        raise NotUp(f"lab {name!r} has no server {server!r}; it has: {', '.join(record.servers) or 'none'}")
    importlib.import_module("lab.servers").attach_console(run_dir, server)
    return 0


def shell(name: str, command: Sequence[str]) -> NoReturn:
    """Become a shell, or a command, inside a lab's network."""
    run_dir = rundir.of(name)
    record = rundir.live(run_dir)
    helm = binaries.built("helm")
    environment = user_environment(record.kubectl, record.kubeconfig, *([helm] if helm else []))
    environment["KUBEFLASH_LAB"] = name
    environment[network.INSIDE] = str(Path(f"/proc/{record.pid}/ns/net").stat().st_ino)
    if not command:
        startup = run_dir / "bashrc"
        startup.write_text(f'[ -f ~/.bashrc ] && . ~/.bashrc\nPS1={shlex.quote(f"(lab {name}) ")}"$PS1"\n')
        command = ["bash", "--rcfile", str(startup), "-i"]
    os.execvpe("nsenter", ["nsenter", f"--net=/proc/{record.pid}/ns/net", "--", *command], environment)


def down(name: str) -> int:
    """End a lab, and whatever is left of it. Fine when there is none."""
    run_dir = rundir.of(name)
    if (holder := rundir.holder(run_dir)) is not None:
        say(f"lab: ending {name}: servers power down, the control plane stops (at the most {DOWN_SECONDS:.0f} s)")
        holder.send(signal.SIGTERM)
        try:
            wait_until(f"{holder} down", lambda: not holder.alive, timeout=DOWN_SECONDS)
        except LabTimeout as error:
            say(f"lab: {error}; killing it")
            holder.send(signal.SIGKILL)
            wait_until(f"{holder} dead", lambda: not holder.alive, timeout=10)
    for entry in rundir.remove(run_dir):
        say(f"ended {entry}")
    return 0


def sweep() -> int:
    """End and remove what labs left that were killed, so that `leftovers` tells of what comes after; 1 if one lives."""
    living = []
    for run_dir in rundir.existing():
        if (there := rundir.holder(run_dir)) is not None:
            living.append(f"lab {run_dir.name!r} is up (pid {there.pid}): end it first, `make lab-down`")
            continue
        say(f"lab: {run_dir.name!r} was killed; what it left is removed")
        for entry in rundir.remove(run_dir):
            say(f"ended {entry}")
    print("\n".join(living), end="\n" if living else "")
    return 1 if living else 0


def leftovers() -> int:
    """Print whatever labs left on this machine, running ones included; exit status 1 if there is anything."""
    found = [f"run directory {run_dir}" for run_dir in rundir.existing()]
    for run_dir in rundir.existing():
        found += [f"process {entry} of {run_dir.name}" for entry in Ledger(run_dir).alive()]
    found += [f"mount {point}" for point in rundir.mounts(rundir.base())]
    # Labs give their network namespaces no names, and keep their links in them: these would be mistakes.
    named = Path("/run/netns")
    found += [f"named network namespace {path.name}" for path in named.glob("kubeflash*")]
    if not network.entered():
        found += [f"network interface {name}" for name in network.links() if name in {"kf0", "kf1"}]
    print("\n".join(found), end="\n" if found else "")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
