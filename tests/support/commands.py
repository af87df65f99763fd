"""The programs that KubeFlash runs, found in its code."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from pathlib import Path

CODE = Path(__file__).resolve().parents[2] / "operator" / "kubeflash"
_RUNNER = "kubeflash.host.commands"


def programs(code: Path = CODE) -> dict[str, str]:
    """What is given to `kubeflash.host.commands.run`, by program: where in the code.

    Raises:
        ValueError: when it cannot be told from the code which program a call runs: begin its list with a string.
    """
    found: dict[str, str] = {}
    for path in sorted(code.rglob("*.py")):
        tree = ast.parse(path.read_text())
        names = {alias.asname or alias.name for alias in _imported(tree) if alias.name == "run"}
        for scope in ast.walk(tree):
            if not isinstance(scope, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            for call in _calls(scope, names):
                where = f"{path.relative_to(code)}:{call.lineno}"
                found.setdefault(_program(call.args[0], scope, where), where)
    return found


def _imported(tree: ast.AST) -> Iterator[ast.alias]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == _RUNNER:
            yield from node.names


def _calls(scope: ast.AST, names: set[str]) -> Iterator[ast.Call]:
    for node in ast.walk(scope):
        if isinstance(node, ast.Call) and node.args:
            called = node.func
            by_module = isinstance(called, ast.Attribute) and ast.unparse(called) == "commands.run"
            if by_module or (isinstance(called, ast.Name) and called.id in names):
                yield node


def _program(argument: ast.expr, scope: ast.AST, where: str) -> str:
    lists: Sequence[ast.expr] = [argument]
    if isinstance(argument, ast.Name):
        assigned = (node for node in ast.walk(scope) if isinstance(node, ast.Assign))
        lists = [
            node.value
            for node in assigned
            if any(isinstance(target, ast.Name) and target.id == argument.id for target in node.targets)
        ]
    firsts = {_first(each) for each in lists}
    (first,) = firsts if len(firsts) == 1 else (None,)
    if first is None:
        raise ValueError(f"{where}: which program runs here? Begin its list with its name")
    return first


def _first(node: ast.expr) -> str | None:
    if isinstance(node, ast.List | ast.Tuple) and node.elts:
        head = node.elts[0]
        if isinstance(head, ast.Constant) and isinstance(head.value, str):
            return head.value
    return None
