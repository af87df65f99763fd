"""A root shell on a virtual server's console, in the terminal this program runs in."""

from __future__ import annotations

import os
import select
import shutil
import socket
import sys
import termios
import tty
from pathlib import Path

from lab import qemu
from lab.errors import LabError

_DETACH = b"\x1d"  # Ctrl-]


def attach_console(run_dir: Path, name: str) -> None:
    """Connect the terminal with a server's console until Ctrl-] is pressed or the server is switched off.

    Args:
        run_dir: The lab's.
        name: The server's.

    Raises:
        LabError: The server is off, or standard input is no terminal.
    """
    path = qemu.Files(run_dir, name).console_socket
    if not sys.stdin.isatty():
        raise LabError("the console needs a terminal as its standard input")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as console:
        try:
            console.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError) as error:
            raise LabError(f"server {name} is off: nobody listens at {path}") from error
        print(f"Console of {name}. Ctrl-] leaves it; the shell stays.", file=sys.stderr)
        size = shutil.get_terminal_size()
        console.sendall(f"\x15 stty rows {size.lines} columns {size.columns}\r".encode())
        terminal = sys.stdin.fileno()
        before = termios.tcgetattr(terminal)
        tty.setraw(terminal)
        try:
            _bridge(console, terminal)
        finally:
            termios.tcsetattr(terminal, termios.TCSADRAIN, before)
    print(file=sys.stderr)


def _bridge(console: socket.socket, terminal: int) -> None:
    line = console.fileno()
    while True:
        readable, _, _ = select.select([line, terminal], [], [])
        if line in readable:
            data = console.recv(1 << 16)
            if not data:
                return
            os.write(sys.stdout.fileno(), data)
        if terminal in readable:
            data = os.read(terminal, 1 << 12)
            if not data or _DETACH in data:
                return
            console.sendall(data)
