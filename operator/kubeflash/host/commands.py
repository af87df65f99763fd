"""Running the few tools that KubeFlash uses: always by argument list, with a limit, in the C locale."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from kubeflash.host.errors import HostError

# Debian's names; util-linux of other distributions holds sfdisk too.
PACKAGES = {
    "sfdisk": "fdisk (Debian, Ubuntu) or util-linux",
    "partx": "util-linux",
    "wipefs": "util-linux",
    "blkid": "util-linux",
    "blkdiscard": "util-linux",
    "nvme": "nvme-cli",
    "modprobe": "kmod",
    "mount": "mount (Debian, Ubuntu) or util-linux",
}
_GRACE = 2.0  # seconds for a killed command to end; one that hangs in the kernel does not


@dataclass(frozen=True)
class Output:
    """What a command said."""

    stdout: str
    stderr: str
    status: int


class CommandFailed(HostError):
    """A command ended with a status that means failure."""

    def __init__(self, argv: Sequence[str], status: int, stderr: str) -> None:
        self.argv = tuple(argv)
        self.status = status
        self.stderr = stderr.strip()
        super().__init__(f"{shlex.join(argv)} ended with status {status}: {self.stderr or 'it said nothing'}")


class CommandTimedOut(HostError):
    """A command was not done in time. It was killed; `stuck` says that it did not even end then."""

    def __init__(self, argv: Sequence[str], timeout: float, stuck: bool) -> None:
        self.argv = tuple(argv)
        self.stuck = stuck
        end = ", and does not end when killed: the kernel waits for the device (see dmesg)" if stuck else ""
        super().__init__(f"{shlex.join(argv)} took longer than {timeout:g} s{end}")


class ToolMissing(HostError):
    """A command is not installed."""

    def __init__(self, tool: str) -> None:
        self.tool = tool
        super().__init__(f"the command {tool} is not there: install the package {PACKAGES.get(tool, tool)}")


def run(
    argv: Sequence[str],
    *,
    timeout: float,
    input: str | None = None,  # noqa: A002  the name that subprocess has
    ok: Collection[int] = (0,),
    holds: Collection[int] = (),
) -> Output:
    """Runs a command to its end.

    Args:
        argv: command and arguments; they may show in errors, so no secrets.
        timeout: limit in seconds; the call returns at most 2 s later, even when the command hangs in the kernel.
        input: text for its standard input; none means an empty one.
        ok: statuses that are no failure.
        holds: file descriptors that the command has open as well, such as a lock that must not end before it does: a
            command outlives this process when that is killed, or when the kernel waits for the device.

    Raises:
        ToolMissing: when the command is not installed.
        CommandTimedOut: when it was not done in time.
        CommandFailed: when its status is none of `ok`.
    """
    environment = {**os.environ, "LC_ALL": "C", "LANGUAGE": ""}
    try:
        process = subprocess.Popen(
            list(argv),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            text=True,
            errors="replace",
            pass_fds=tuple(holds),
        )
    except FileNotFoundError as error:
        raise ToolMissing(argv[0]) from error
    try:
        stdout, stderr = process.communicate(input or "", timeout=timeout)
    except subprocess.TimeoutExpired as error:
        raise CommandTimedOut(argv, timeout, stuck=not _kill(process)) from error
    except BaseException:
        _kill(process)
        raise
    if process.returncode not in ok:
        raise CommandFailed(argv, process.returncode, stderr)
    return Output(stdout, stderr, process.returncode)


def _kill(process: subprocess.Popen[str]) -> bool:
    """Kills a command; whether it ended."""
    process.kill()
    try:
        process.communicate(timeout=_GRACE)
    except subprocess.TimeoutExpired:
        return False
    return True
