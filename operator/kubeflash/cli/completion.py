"""Completion in a shell: candidates for the word under the cursor, and the scripts that ask for them.

`kubectl` asks plugins by a program of its own, `kubectl_complete-flash` ("Extend kubectl with plugins" in the
documentation of Kubernetes): it prints the candidates, then a colon and a number that says what else the shell may do.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

COMMAND = "__complete"
SHELLS = ("bash", "zsh", "fish")
_COMMANDS = ("topology", "pairs", "why", "attachments", "plan", "wipe", "adopt", "purge", "check", "completion")
_EVERYWHERE = ("--color", "--kubeconfig", "--context", "--help")
_SOURCES = ("--local", "--sysfs", "--file", "--output", "--gpu")
_ASKING = ("--dry-run", "--confirm", "--timeout", "--system-namespace")
_OPTIONS = {
    "topology": _SOURCES,
    "pairs": (*_SOURCES, "--matrix"),
    "why": (*_SOURCES, "--namespace", "--system-namespace"),
    "attachments": ("--namespace", "--all-namespaces", "--output"),
    "plan": ("--file", "--output"),
    "wipe": _ASKING,
    "adopt": ("--name", "--namespace", "--pool", "--output", *_ASKING),
    "purge": ("--all", *_ASKING),
    "check": ("--wait", "--output", "--system-namespace"),
}
_FILES = ("-f", "--file", "--sysfs", "--kubeconfig")
_VALUES = {
    "-o": ("text", "json", "yaml", "svg"),
    "--output": ("text", "json", "yaml", "svg"),
    "--color": ("auto", "always", "never"),
}
_ASKED = {
    "-n": "namespaces",
    "--namespace": "namespaces",
    "--system-namespace": "namespaces",
    "--pool": "flashpools",
}
"""Options whose values kubectl knows."""
_FREE = ("--gpu", "--context", "--title", "--name", "--confirm", "--timeout", "--wait")
"""Options whose values nobody offers; a confirmation is to be typed."""
_SECOND = ("why", "wipe", "adopt")
"""Commands with a second word, which is something of the server that the first one names."""
_MOST = {"purge": 1, "attachments": 1, "check": 0}
_OBJECTS = {"volume": "flashvolumes", "attachment": "flashattachments"}
_NO_FILES = ":4"  # cobra's ShellCompDirectiveNoFileComp
_FILES_TOO = ":0"
_SECONDS = "2s"
_SCRIPTS = {
    "bash": """_kubectl_flash() {
    local IFS=$'\\n' word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]}
    case $before in -f|--file|--sysfs|--kubeconfig) COMPREPLY=($(compgen -f -- "$word")); return;; esac
    COMPREPLY=($(compgen -W "$(kubectl-flash __complete "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null)" -- "$word"))
}
complete -F _kubectl_flash kubectl-flash
""",
    "zsh": """#compdef kubectl-flash
_kubectl_flash() {
    case ${words[CURRENT-1]} in -f|--file|--sysfs|--kubeconfig) _files; return;; esac
    compadd -- ${(f)"$(kubectl-flash __complete "${(@)words[2,CURRENT]}" 2>/dev/null)"}
}
compdef _kubectl_flash kubectl-flash
""",
    "fish": """function __kubectl_flash
    set -l words (commandline -opc) (commandline -ct)
    kubectl-flash __complete $words[2..] 2>/dev/null
end
complete -c kubectl-flash -f -a '(__kubectl_flash)'
complete -c kubectl-flash -s f -l file -r -F
complete -c kubectl-flash -l sysfs -r -F
""",
}


def script(shell: str) -> str:
    """The script to source in a shell of this kind."""
    return _SCRIPTS[shell]


def candidates(words: Sequence[str]) -> list[str]:
    """What may stand in place of the last word, which is the one under the cursor."""
    current = words[-1] if words else ""
    before = words[-2] if len(words) > 1 else ""
    if before in _FILES:
        return []
    if before in _VALUES:
        return _starting(_VALUES[before], current)
    command = next((word for word in words[:-1] if word in _COMMANDS), None)
    if command is None:
        return _starting(_COMMANDS, current)
    if command == "completion":
        return _starting(SHELLS, current)
    if before in _ASKED:
        return _starting(_names(_ASKED[before]), current)
    if before in _FREE:
        return []
    if current.startswith("-"):
        return _starting((*_OPTIONS[command], *_EVERYWHERE), current)
    plain = _plain(words[:-1])
    named = plain[plain.index(command) + 1 :]
    if len(named) == 1 and command in _SECOND:
        return _starting(_second(command, named[0]), current)
    if (named and command in _SECOND) or len(named) >= _MOST.get(command, len(words)):
        return []
    if command == "why":
        return _starting([*_OBJECTS, *_nodes()], current)
    if command == "attachments":
        return _starting(_keys("flashattachments"), current)
    return _starting([node for node in _nodes() if node not in named], current)


def _plain(words: Sequence[str]) -> list[str]:
    """The words that are neither options nor their values."""
    before = ("", *words)
    return [
        word
        for word, last in zip(words, before, strict=False)
        if not word.startswith("-") and last not in (*_FILES, *_VALUES, *_ASKED, *_FREE)
    ]


def _starting(offers: Sequence[str], current: str) -> list[str]:
    return [offer for offer in offers if offer.startswith(current)]


def _nodes() -> list[str]:
    """Names of the cluster's FlashNodes."""
    return _names("flashnodes")


def _names(kind: str) -> list[str]:
    return [line.rpartition("/")[2] for line in _ask(kind, "-o", "name")]


def _keys(kind: str) -> list[str]:
    """Objects of all namespaces, each as namespace/name."""
    path = "{range .items[*]}{.metadata.namespace}/{.metadata.name} {end}"
    return sorted(_ask(kind, "--all-namespaces", "-o", f"jsonpath={path}"))


def _second(command: str, first: str) -> list[str]:
    """What a command may be about, on the server that its first word names."""
    if command == "why" and first in _OBJECTS:
        return _keys(_OBJECTS[first])
    if command == "why":
        return _devices(first)
    which = "{{if .labelled}}{{.serial}} {{end}}" if command == "adopt" else "{{.serial}} "
    orphans = "{{range .volumes}}{{if not .volume}}{{.id}} {{end}}{{end}}"
    template = f"{{{{range .status.ssds}}}}{which}{orphans}{{{{end}}}}"
    return sorted(_ask("flashnode", first, "-o", f"go-template={template}"))


def _devices(node: str) -> list[str]:
    """Addresses of a server's GPUs and SSDs, as short as they are shown."""
    path = "{.status.gpus[*].address} {.status.ssds[*].address}"
    return sorted({address.removeprefix("0000:") for address in _ask("flashnode", node, "-o", f"jsonpath={path}")})


def _ask(*words: str) -> list[str]:
    """The words that kubectl answers; none when the cluster does not answer at once, or kubectl is not there."""
    argv = ["kubectl", "get", *words, f"--request-timeout={_SECONDS}"]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=5, check=False, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired):
        return []  # completion that fails offers nothing; the command itself will say what is wrong
    return done.stdout.split()


def for_kubectl() -> int:
    """`kubectl_complete-flash`: what kubectl runs to complete `kubectl flash ...`."""
    words = sys.argv[1:]
    print("\n".join([*candidates(words), _FILES_TOO if len(words) > 1 and words[-2] in _FILES else _NO_FILES]))
    return 0


if __name__ == "__main__":
    sys.exit(for_kubectl())
