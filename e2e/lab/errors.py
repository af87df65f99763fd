"""What can go wrong in the lab. Every message says what to do about it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

TAIL_LINES = 30
"""Lines of a log or of standard error that a message ends with."""


def tail(text: str, lines: int = TAIL_LINES) -> str:
    """The last lines of an output, for the end of a message."""
    return "\n".join(text.rstrip().splitlines()[-lines:])


class LabError(Exception):
    """The lab cannot go on; the message says why and what to do."""


class NotPossible(LabError):
    """This machine lacks something the lab needs: root, a device, a program."""


class BuildError(LabError):
    """An artifact could not be built."""

    def __init__(self, message: str, *, output: str = "") -> None:
        super().__init__(f"{message}\n{tail(output)}" if output.strip() else message)
        self.output = output


class CommandError(LabError):
    """A command ended with a failure.

    Attributes:
        argv: What was run.
        exit_code: Its exit status; minus the signal's number when a signal ended it.
        stdout: What it printed.
        stderr: What it complained of.
    """

    def __init__(self, argv: Sequence[str], exit_code: int, stdout: str, stderr: str) -> None:
        said = tail(stderr) or tail(stdout) or "(it printed nothing)"
        super().__init__(f"{shlex.join(argv)}\nfailed with exit status {exit_code}:\n{said}")
        self.argv = tuple(argv)
        self.exit_code = exit_code
        self.stdout = stdout
        self.stderr = stderr


class LabTimeout(LabError):
    """Something did not happen in its time."""


class ProcessDied(LabError):
    """A process of the lab ended by itself; the message ends with its log."""


class AlreadyUp(LabError):
    """A lab of this name is running."""


class NotUp(LabError):
    """No lab of this name is running."""


class NotOurs(LabError):
    """A cluster, or a process, that the lab did not start: it is left alone."""


class LeftBehind(LabError):
    """Something outlived its lab."""
