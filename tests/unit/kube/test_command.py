from __future__ import annotations

import base64
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import kubeflash

KEY = "DHHC-1:00:aHVzaCBodXNoIGh1c2ggaHVzaCBodXNoIGh1c2ggaHU+XjQy:"
SOURCE = Path(kubeflash.__file__).parents[1]

CHILD = """
import base64, resource, sys
from kubeflash.kube import command
hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))
key = base64.b64decode(sys.stdin.readline()).decode()
if sys.argv[1] == "prepared":
    command.prepare(command.parser("x", "x").parse_args([]))
print(key, flush=True)
sys.stdin.read()
"""

NOT_ROOT = """
import os
import kopf
from prometheus_client import ProcessCollector
from kubeflash.kube import command
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
command.prepare(command.parser("x", "x").parse_args([]))
memory = os.memfd_create("token")
os.write(memory, b"token")
assert open(f"/proc/self/fd/{memory}", "rb").read() == b"token"
assert os.readlink("/proc/self/ns/mnt")
assert open("/proc/self/mountinfo").read()
print(sorted(metric.name for metric in ProcessCollector(registry=None).collect()))
"""


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(SOURCE), *sys.path])}


def _killed(folder: Path, how: str, number: signal.Signals) -> tuple[bool, bytes]:
    """Whether a process that holds a key dumped core when it was killed, and what /proc showed of it before."""
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD, how],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=folder,
        env=_environment(),
    )
    with process.stdin, process.stdout:  # type: ignore[union-attr]
        process.stdin.write(f"{base64.b64encode(KEY.encode()).decode()}\n".encode())
        process.stdin.flush()
        assert process.stdout.readline().strip() == KEY.encode()
        shown = b"".join(Path(f"/proc/{process.pid}/{name}").read_bytes() for name in ("environ", "cmdline"))
        os.kill(process.pid, number)
        _, status = os.waitpid(process.pid, 0)
    process.returncode = -os.WTERMSIG(status)
    assert process.returncode == -number
    return os.WCOREDUMP(status), shown


@pytest.mark.skipif(os.getuid() != 0, reason="only root may read what /proc shows of a process that is not dumpable")
@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT])
def test_no_key_reaches_a_core_dump(tmp_path: Path, number: signal.Signals):
    dumped, shown = _killed(tmp_path, "prepared", number)
    assert not dumped
    assert list(tmp_path.iterdir()) == []
    assert KEY.encode() not in shown


def test_without_it_there_would_be_a_core_dump(tmp_path: Path):
    dumped, _ = _killed(tmp_path, "as it comes", signal.SIGABRT)
    if not dumped:
        pytest.skip("this machine makes no core dumps")
    for file in tmp_path.iterdir():  # where core_pattern is a plain name
        assert KEY.encode() in file.read_bytes()


@pytest.mark.skipif(os.getuid() != 0, reason="only root may become somebody else")
def test_who_is_not_root_can_still_read_what_it_needs_of_itself():
    done = subprocess.run(
        [sys.executable, "-c", NOT_ROOT], capture_output=True, text=True, env=_environment(), check=False
    )
    assert done.returncode == 0, done.stderr
    for name in ("process_cpu_seconds", "process_max_fds", "process_open_fds", "process_resident_memory_bytes"):
        assert name in done.stdout
