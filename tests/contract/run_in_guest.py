"""Runs contracts without pytest: in a virtual server, or in a PID namespace of its own. PASS, SKIP or FAIL for each.

    PYTHONPATH=operator:tests python3 -m contract.run_in_guest disks /dev/nvme0n1 [NAME...]
    PYTHONPATH=operator:tests python3 -m contract.run_in_guest exports /dev/nvme0n1 10.77.0.11 [NAME...]

The disk is overwritten. Ends with 1 when a contract failed, with 2 when all that ran were skipped.
"""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from contract import disks
from contract.common import Skipped, reset, settle
from kubeflash.host.root import HostRoot


def main(argv: list[str]) -> int:
    """Runs what the arguments name."""
    what, device, rest = argv[0], Path(argv[1]), argv[2:]
    root = HostRoot()
    jobs: list[tuple[str, Callable[[], None]]]
    if what == "disks":
        jobs = [(call.__name__, lambda call=call: _on_a_blank_disk(call, root, device)) for call in disks.CONTRACTS]
    else:
        from contract import exports  # noqa: PLC0415  a loop device needs none of it

        bench, rest = exports.Bench.real(root, device, rest[0]), rest[1:]
        jobs = [(call.__name__, lambda call=call: exports.run(call, bench)) for call in exports.CONTRACTS]
        if bench.can_connect:
            from contract import connecting, reaching, securing  # noqa: PLC0415

            for call in (*connecting.CONTRACTS, *securing.CONTRACTS, *reaching.CONTRACTS):
                jobs.append((call.__name__, lambda call=call: exports.run(call, bench)))
    wanted = {f"contract_{name.removeprefix('contract_')}" for name in rest}
    return _run([(name, call) for name, call in jobs if not wanted or name in wanted])


def _on_a_blank_disk(call: Callable[[HostRoot, Path], None], root: HostRoot, device: Path) -> None:
    reset(root, device)
    settle()
    try:
        call(root, device)
    finally:
        settle()
        reset(root, device)


def _run(jobs: list[tuple[str, Callable[[], None]]]) -> int:
    count = {"PASS": 0, "SKIP": 0, "FAIL": 0}
    for name, call in jobs:
        began, reason = time.monotonic(), ""
        try:
            call()
            result = "PASS"
        except Skipped as error:
            result, reason = "SKIP", str(error)
        except Exception:  # noqa: BLE001  any error is this contract's failure, and the next one still runs
            result, reason = "FAIL", traceback.format_exc()
        count[result] += 1
        print(f"{result} {name} {time.monotonic() - began:.2f}s {reason}", flush=True)  # noqa: T201
    print(" ".join(f"{key}={value}" for key, value in count.items()), flush=True)  # noqa: T201
    return 1 if count["FAIL"] else 0 if count["PASS"] else 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
