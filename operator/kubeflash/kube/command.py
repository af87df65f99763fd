"""What the command lines of controller and agent share: options, logging, errors without tracebacks."""

from __future__ import annotations

import argparse
import ctypes
import logging
import resource
import sys
from collections.abc import Callable
from contextlib import suppress

from kubeflash import __version__
from kubeflash.kube.errors import KubeError
from kubeflash.kube.serving import CannotServe

log = logging.getLogger("kubeflash")

EXIT_FAILED = 1

_PR_SET_DUMPABLE = 4  # linux/prctl.h


def parser(name: str, description: str) -> argparse.ArgumentParser:
    """A parser with the options of every KubeFlash process."""
    result = argparse.ArgumentParser(prog=name, description=description)
    result.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    result.add_argument("--kubeconfig", help="file that says how to reach the API server (default: as kubectl)")
    result.add_argument(
        "--namespace", default="kubeflash-system", help="namespace that KubeFlash runs in (default: %(default)s)"
    )
    result.add_argument("--cluster-id", help="the cluster's id on the disks (default: the uid of kube-system)")
    result.add_argument(
        "--serve",
        metavar="HOST:PORT",
        help="answer /livez, /readyz and /metrics there over HTTP; without HOST on all addresses (default: nowhere)",
    )
    result.add_argument("--log-level", default="INFO", choices=["DEBUG", "INFO", "WARNING", "ERROR"])
    return result


def prepare(options: argparse.Namespace) -> None:
    """Sets up logging; keeps the process's memory to itself."""
    forbid_dumps()
    logging.basicConfig(
        level=options.log_level,
        format="%(asctime)s %(levelname)-7s %(name)s: %(message)s",
        stream=sys.stderr,
    )
    if options.log_level != "DEBUG":
        for noisy in ("kopf", "urllib3", "asyncio"):
            logging.getLogger(noisy).setLevel(logging.ERROR)
        # Each watch tells of each try while the API server is gone; the heartbeat says it once.
        logging.getLogger("kopf._cogs.clients").setLevel(logging.CRITICAL)


def forbid_dumps() -> None:
    """Sees to it that the keys in this process's memory never reach a disk in a core dump. Where it cannot, it goes on.

    A limit of 0 is not enough: the kernel does not heed it where `core_pattern` is a pipe, as with systemd-coredump. A
    process that is not dumpable is dumped in neither way, and no other process of its user can read its memory. Root
    still can (gdb, py-spy). Processes that it starts inherit the limit and are dumpable again: none is given a key.
    """
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):  # no libc to be found, or one without prctl
            ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def guarded(main: Callable[[], int], expected: tuple[type[Exception], ...] = ()) -> int:
    """Runs a command: an expected failure becomes one line on stderr and exit status 1, never a traceback.

    What is not expected is a bug and keeps its traceback.
    """
    known: tuple[type[Exception], ...] = (KubeError, CannotServe, *expected)
    try:
        return main()
    except known as error:
        log.error("%s: %s", type(error).__name__, error)  # noqa: TRY400
        return EXIT_FAILED
