"""`python -m kubeflash.controller`: the controller process."""

from __future__ import annotations

import sys
from functools import partial

from kubeflash.controller import process
from kubeflash.kube import command, runtime
from kubeflash.kube.client import Client, load_configuration
from kubeflash.kube.errors import KubeError
from kubeflash.kube.serving import parse_address


def main() -> int:
    """Runs the controller; its exit status."""
    parser = command.parser("kubeflash-controller", "Places FlashVolumes, wants exports, makes keys. One leads.")
    options = parser.parse_args()
    command.prepare(options)

    def body() -> int:
        address = parse_address(options.serve) if options.serve else None
        client = Client(load_configuration(options.kubeconfig))
        return runtime.execute(partial(process.main, client, options.namespace), address, expected=(KubeError,))

    return command.guarded(body)


if __name__ == "__main__":
    sys.exit(main())
