"""deploy/kubeflash.yaml, for `kubectl apply`: the chart rendered with its defaults. `make manifest`.

The namespace comes with it, labelled as agents need it, which Helm cannot do. What only Helm reads is left out. And so
are the CustomResourceDefinitions, on purpose: `kubectl delete -f` of this file must not take all objects with it.
"""

from __future__ import annotations

import argparse
import difflib
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from lab.helm import Helm

REPO = Path(__file__).resolve().parent.parent
FILE = REPO / "deploy" / "kubeflash.yaml"
NAMESPACE = "kubeflash-system"
HEAD = f"""\
# generated from charts/kubeflash by `make manifest`; do not edit
# kubectl apply --server-side -f crds/ comes first. Settings: the chart, or deploy/kustomization.yaml.
---
apiVersion: v1
kind: Namespace
metadata:
  name: {NAMESPACE}
  labels:
    app.kubernetes.io/name: kubeflash
    app.kubernetes.io/part-of: kubeflash
    pod-security.kubernetes.io/enforce: privileged  # agents configure the server's kernel
"""


def manifest(helm: Helm) -> str:
    """The text of the file.

    Raises:
        CommandError: the chart does not render.
    """
    rendered = helm("template", "kubeflash", REPO / "charts" / "kubeflash", "--namespace", NAMESPACE, "--skip-tests")
    documents = re.split(r"^---\n", rendered.stdout_text, flags=re.MULTILINE)[1:]
    for_all = [text.strip() + "\n" for text in documents if "helm.sh/" not in text]
    return "---\n".join([HEAD, *for_all])


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes the file, or with --check compares it; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m manifest", description="Renders deploy/kubeflash.yaml.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 with a diff when it differs")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as home:
        wanted = manifest(Helm(Path(home)))
    if not options.check:
        FILE.write_text(wanted)
        return 0
    diff = difflib.unified_diff(
        FILE.read_text().splitlines(keepends=True), wanted.splitlines(keepends=True), f"{FILE}", f"{FILE} (generated)"
    )
    text = "".join(diff)
    sys.stdout.write(text)
    return 1 if text else 0


if __name__ == "__main__":
    sys.exit(main())
