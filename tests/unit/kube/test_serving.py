"""What a process says of itself, asked over HTTP as a kubelet asks."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

import kubeflash
from kubeflash.kube import runtime, serving
from kubeflash.kube.errors import Forbidden, Invalid, KubeError, NotYet, Unreachable
from kubeflash.kube.feed import Feed
from kubeflash.kube.serving import CannotServe, Health, parse_address
from support.asking import ask

SOURCE = Path(kubeflash.__file__).parents[1]
LOCAL = "127.0.0.1"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOCAL, 0))
        return probe.getsockname()[1]


def served(health: Health, body) -> object:
    """The result of `body(port)`, while `health` is served."""

    async def whole():
        port = free_port()
        async with serving.serving((LOCAL, port), health):
            return await body(port)

    return asyncio.run(whole())


def answers(health: Health, *paths: str) -> list[tuple[int, str]]:
    async def body(port: int) -> list[tuple[int, str]]:
        return [await asyncio.to_thread(ask, port, path) for path in paths]

    return served(health, body)


def test_from_the_start_it_lives_and_is_not_ready():
    assert answers(Health(), "/livez", "/readyz") == [(200, "ok\n"), (503, "it starts\n")]


def test_readiness_names_every_reason_and_comes_when_all_are_gone():
    health = Health()
    health.say(serving.START)
    health.say("pass", "Unreachable: no answer")
    health.say("lease", "not renewed")
    assert answers(health, "/readyz") == [(503, "Unreachable: no answer; not renewed\n")]
    health.say("pass")
    health.say("lease", "")
    assert answers(health, "/readyz", "/livez") == [(200, "ok\n"), (200, "ok\n")]


def test_a_loop_that_does_not_go_round_is_said_dead_and_lives_again_when_it_does(monkeypatch):
    health = Health()
    now = time.monotonic()
    monkeypatch.setattr(serving.time, "monotonic", lambda: now + serving.STUCK_SECONDS - 1)
    assert health.stuck == ""
    monkeypatch.setattr(serving.time, "monotonic", lambda: now + serving.STUCK_SECONDS + 1)
    assert answers(health, "/livez") == [(503, "its loop has not gone round for 601 s\n")]
    health.beat()
    assert health.stuck == ""


def test_the_limit_is_far_beyond_a_quiet_loop():
    assert serving.STUCK_SECONDS >= 2 * runtime.RESYNC


def test_metrics_are_prometheus_text():
    ((status, text),) = answers(Health(), "/metrics")
    assert status == 200
    assert "process_resident_memory_bytes " in text
    assert "# TYPE kubeflash_" in text or "# TYPE process_cpu_seconds_total counter" in text


def test_what_blocks_in_a_thread_holds_up_no_answer():
    async def body(port: int) -> tuple[int, str]:
        blocking = asyncio.create_task(asyncio.to_thread(time.sleep, 0.5))
        found = await asyncio.to_thread(ask, port, "/livez", 0.4)
        assert not blocking.done()
        await blocking
        return found

    assert served(Health(), body) == (200, "ok\n")


def test_a_loop_that_hangs_does_not_answer():
    async def body(port: int) -> object:
        asking = asyncio.create_task(asyncio.to_thread(ask, port, "/livez", 0.2))
        await asyncio.sleep(0)
        time.sleep(0.6)  # noqa: ASYNC251 - a loop that hangs is what this is about
        return (await asyncio.gather(asking, return_exceptions=True))[0]

    assert isinstance(served(Health(), body), TimeoutError)


def test_without_an_address_nothing_listens():
    async def body() -> None:
        async with serving.serving(None, Health()):
            pass

    asyncio.run(body())


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("0.0.0.0:8080", ("0.0.0.0", 8080)),
        (":8080", ("", 8080)),
        ("[::1]:80", ("::1", 80)),
        ("localhost:0", ("localhost", 0)),
    ],
)
def test_addresses(text, address):
    assert parse_address(text) == address


@pytest.mark.parametrize(
    "text", ["8080", "[]:8080", "0.0.0.0", "0.0.0.0:", "a:b", "a:70000", "::1:80", "[::1]", "a:-1", "a:1.0"]
)
def test_what_is_no_address_says_what_one_looks_like(text):
    with pytest.raises(CannotServe, match="give HOST:PORT, such as"):
        parse_address(text)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_without_a_host_all_addresses_are_served(host):
    try:
        socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
    except OSError as error:
        pytest.skip(f"this machine has no {host}: {error}")

    async def body() -> None:
        port = free_port()
        async with serving.serving(("", port), Health()):
            (await asyncio.to_thread(socket.create_connection, (host, port), 5)).close()

    asyncio.run(body())


def taken(port: int, host: str = LOCAL) -> str:
    async def body() -> None:
        async with serving.serving((host, port), Health()):
            pass

    with pytest.raises(CannotServe) as failed:
        asyncio.run(body())
    return str(failed.value)


def test_a_port_that_is_taken_and_an_address_of_another_machine():
    with socket.create_server((LOCAL, 0)) as other:
        port = other.getsockname()[1]
        assert taken(port) == (
            f"--serve 127.0.0.1:{port}: another program listens there, see `ss -tlnp`: end that one, or give another "
            "port"
        )
    assert "this machine has no such address" in taken(1, "192.0.2.1")


# ---- as a process


def environment() -> dict[str, str]:
    hidden = ("KUBECONFIG", "KUBERNETES_SERVICE_HOST")
    known = {name: value for name, value in os.environ.items() if name not in hidden}
    return {**known, "PYTHONPATH": os.pathsep.join([str(SOURCE), *sys.path])}


@pytest.fixture
def nowhere(tmp_path: Path) -> list[str]:
    """Options that lead to an API server that does not answer."""
    file = tmp_path / "kubeconfig"
    file.write_text(
        "{apiVersion: v1, kind: Config, current-context: c, contexts: [{name: c, context: {cluster: c, user: u}}],"
        f" clusters: [{{name: c, cluster: {{server: 'http://127.0.0.1:{free_port()}'}}}}],"
        " users: [{name: u, user: {}}]}"
    )
    return ["--kubeconfig", str(file)]


@pytest.fixture
def agent(tmp_path: Path) -> list[str]:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "machine-id").write_text("0123456789abcdef0123456789abcdef\n")
    places = (("--root", "."), ("--state-dir", "state"), ("--run-dir", "run"))
    return ["kubeflash.agent", *(word for name, place in places for word in (name, str(tmp_path / place)))]


def waiting(argv: list[str]) -> None:
    """A process that waits for an API server lives, is not ready, and ends at once when it is told."""
    port = free_port()
    command = [sys.executable, "-m", *argv, "--serve", f"{LOCAL}:{port}"]
    process = subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 60
        while True:
            assert process.poll() is None, process.stderr.read()
            try:
                status, words = ask(port, "/readyz")
            except OSError:
                words = ""
            if words.startswith("waiting for the API server: "):
                break
            assert time.monotonic() < deadline, words
            time.sleep(0.1)
        assert status == 503
        assert ask(port, "/livez") == (200, "ok\n")
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0, process.stderr.read()
        assert time.monotonic() - began < 5
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def test_a_controller_that_waits_for_the_api_server_answers(nowhere):
    waiting(["kubeflash.controller", *nowhere])


def test_an_agent_that_waits_for_the_api_server_answers(nowhere, agent):
    waiting([*agent, *nowhere])


@pytest.mark.parametrize("which", ["controller", "agent"])
def test_what_it_cannot_listen_on_is_one_line_and_exit_1(which, nowhere, agent):
    argv = [sys.executable, "-m", *(agent if which == "agent" else ["kubeflash.controller"]), *nowhere, "--serve"]
    with socket.create_server((LOCAL, 0)) as other:
        for address, words in (
            (f"{LOCAL}:{other.getsockname()[1]}", "another program listens there"),
            ("x", "HOST:PORT"),
        ):
            done = subprocess.run([*argv, address], env=environment(), capture_output=True, text=True, check=False)
            assert done.returncode == 1
            assert words in done.stderr
            assert len(done.stderr.splitlines()) == 1, done.stderr


BUG = """
import asyncio, time
from kubeflash.kube import runtime

async def main(health, stop):
    asyncio.get_running_loop().run_in_executor(None, time.sleep, 60)
    raise KeyError("what nobody thought of")

runtime.execute(main, None)
"""


def test_a_bug_ends_the_process_even_while_a_thread_is_stuck():
    """A wipe of an hour, or a disk that hangs: the process would sit there, its lock given up and nothing at work."""
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", BUG], env=environment(), capture_output=True, text=True, check=False)
    assert time.monotonic() - began < 40
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "what nobody thought of" in done.stderr


# ---- what the loop says


class Lists:
    """A client of which every list fails, or succeeds."""

    configuration = None
    fails: Exception | None = None

    def list_at(self, info, field_selector=None):
        if self.fails is not None:
            raise self.fails
        return [], 1


def test_the_loop_says_how_its_last_pass_went_and_what_it_was_not_allowed(monkeypatch):
    monkeypatch.setattr(runtime, "BACKOFF", (0.0,))
    monkeypatch.setattr(runtime, "RESYNC", 0.0)
    client, health, seen = Lists(), Health(), []
    health.say(serving.START)
    feed = Feed(client, [])
    outcomes = iter([KubeError("first"), "second", None])

    async def reconcile() -> float:
        seen.append(health.unready)
        outcome = next(outcomes)
        if outcome is None:
            raise StopAsyncIteration  # ends the loop: no such thing happens in a pass
        if isinstance(outcome, KubeError):
            raise outcome
        feed.forbidden = outcome
        return 0.0

    beats: list[int] = []
    monkeypatch.setattr(health, "beat", lambda: beats.append(len(seen)))
    with pytest.raises(StopAsyncIteration):
        asyncio.run(_as_task(runtime._loop(feed, reconcile, health)))
    assert seen == ["", "KubeError: first", "second"]
    assert beats == [0, 1, 2], "each round is a sign of life, also after one that failed"


async def _as_task(loop):
    await loop


def persisted(*failures: Exception) -> tuple[bool, list[str]]:
    """What came of it, and what was said before each try."""
    health, left, said = Health(), list(failures), []

    async def attempt() -> None:
        said.append(health.unready)
        if left:
            raise left.pop(0)

    async def body() -> bool:
        return await runtime.persist(attempt, health, asyncio.Event())

    done = asyncio.run(body())
    return done, [*said, health.unready]


def test_what_an_admin_or_time_mends_is_waited_for_and_said(monkeypatch):
    monkeypatch.setattr(runtime, "BACKOFF", (0.0,))
    done, said = persisted(Unreachable("gone"), Forbidden("may not"), NotYet("older"))
    assert done
    assert said == ["it starts", "waiting for the API server: gone", "may not", "older", ""]


def test_what_waiting_does_not_mend_is_raised():
    with pytest.raises(Invalid):
        persisted(Invalid("never"))
