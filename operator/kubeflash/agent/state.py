"""The agent's own files: its private key, the only state it holds, and the lock that keeps it to one a server."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kubeflash.domain.sealing import generate_private_key
from kubeflash.host.errors import HostError

KEY_BYTES = 32


class AgentRunning(HostError):
    """Another agent runs on this server."""


class StateUnusable(HostError):
    """The agent's folder cannot be used, or its key file is damaged."""


@contextmanager
def only_agent(run_dir: Path) -> Iterator[None]:
    """Holds the server's agent lock.

    Raises:
        AgentRunning: when another process holds it; says which.
        StateUnusable: when the lock file cannot be made.
    """
    path = run_dir / "agent.lock"
    try:
        run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StateUnusable(f"{path}: {error.strerror}; the agent runs as root, or give it a --run-dir") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            pid = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
            raise AgentRunning(
                f"another agent (pid {pid}) runs on this server and holds {path}: one a server; stop that one first"
            ) from error
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def load_private_key(state_dir: Path) -> bytes:
    """This server's X25519 private key, made on first use, readable by root alone. For `only_agent`.

    Raises:
        StateUnusable: when it cannot be read or written, or is not a key.
    """
    if (known := read_private_key(state_dir)) is not None:
        return known
    path = state_dir / "private.key"
    key = generate_private_key()
    try:
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        _write_new(path, key)
    except OSError as error:
        raise _unusable(path, error) from error
    return key


def read_private_key(state_dir: Path) -> bytes | None:
    """The key, if one was made; nothing is changed.

    Raises:
        StateUnusable: when it cannot be read, or is not a key.
    """
    path = state_dir / "private.key"
    try:
        key = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _unusable(path, error) from error
    if len(key) != KEY_BYTES:
        raise StateUnusable(
            f"{path} holds {len(key)} bytes, a key has {KEY_BYTES}: move it away; attachments over the fabric "
            "of this server must then be made anew"
        )
    return key


def _unusable(path: Path, error: OSError) -> StateUnusable:
    return StateUnusable(f"{path}: {error.strerror}; the agent runs as root, or give it a --state-dir")


def _write_new(path: Path, key: bytes) -> None:
    """Whole or not at all, 0600 before it holds anything, and safe from a power cut: its public half is told soon."""
    partial = path.with_suffix(".partial")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.write(descriptor, key)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    partial.rename(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
