"""What the command lines of controller and agent share: options, logging, errors without tracebacks."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable

from kubeflash import __version__
from kubeflash.kube.errors import KubeError

log = logging.getLogger("kubeflash")

EXIT_FAILED = 1


def parser(name: str, description: str) -> argparse.ArgumentParser:
    """A parser with the options of every KubeFlash process."""
    result = argparse.ArgumentParser(prog=name, description=description)
    result.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    result.add_argument("--kubeconfig", help="file that says how to reach the API server (default: as kubectl)")
    result.add_argument(
        "--namespace", default="kubeflash-system", help="namespace that KubeFlash runs in (default: %(default)s)"
    )
    result.add_argument("--cluster-id", help="the cluster's id on the disks (default: the uid of kube-system)")
    result.add_argument("--log-level", default="INFO", choices=["DEBUG", "INFO", "WARNING", "ERROR"])
    return result


def prepare(options: argparse.Namespace) -> None:
    """Sets up logging."""
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


def guarded(main: Callable[[], int], expected: tuple[type[Exception], ...] = ()) -> int:
    """Runs a command: an expected failure becomes one line on stderr and exit status 1, never a traceback.

    What is not expected is a bug and keeps its traceback.
    """
    known: tuple[type[Exception], ...] = (KubeError, *expected)
    try:
        return main()
    except known as error:
        log.error("%s: %s", type(error).__name__, error)  # noqa: TRY400
        return EXIT_FAILED
