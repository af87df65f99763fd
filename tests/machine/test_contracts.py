"""The contracts of exports and connections on the kernel of a virtual server, and what takes two of them."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest

from contract import connecting, exports, reaching, securing
from lab.servers import VirtualServer

pytestmark = [pytest.mark.machine, pytest.mark.timeout(900)]

REPO = Path(__file__).parents[2]
PLACE = "/var/tmp/contracts"
PYTHON = f"cd {PLACE} && PYTHONPATH=/opt/kubeflash/app:/opt/kubeflash/deps:tests exec python3"
BY_ID = "/dev/disk/by-id/nvme-QEMU_NVMe_Ctrl_"

TARGET = """
import json, sys
from pathlib import Path
from contract.exports import Bench, Export
from kubeflash.domain import tlspsk
from kubeflash.host import keyring
from kubeflash.host.root import HostRoot
bench = Bench.real(HostRoot(), Path(sys.argv[1]).resolve(), sys.argv[2])
export = Export(bench, tls=True)
names, secret = export.names, tlspsk.generate()
keyring.add_psk(bench.root, tlspsk.derive(secret, names.host_nqn, names.nqn))
export.up(bench.fs)
keys = [export.keys.host, export.keys.controller]
print(json.dumps([export.uid, export.volume_id, str(export.portal), keys, secret.hex()]))
"""

CONSUMER = """
import json, sys
from contract.common import settle
from kubeflash.domain import tlspsk
from kubeflash.domain.dhchap import DhchapKeys
from kubeflash.domain.fabric import Portal
from kubeflash.domain.names import export_identity
from kubeflash.host import keyring
from kubeflash.host.disconnect import disconnect
from kubeflash.host.initiator import Target, connect, wait_for_device
from kubeflash.host.initiator_errors import ConnectFailed, ServerUnreachable
from kubeflash.host.root import HostRoot
uid, volume_id, portal, keys, secret = json.load(sys.stdin)
root, names = HostRoot(), export_identity(uid)
def attempt(secret):
    for _ in range(3):
        said = once(secret)
        if said != ServerUnreachable.__name__:
            break  # the kernel gives a handshake 10 s, which busy neighbours may take from it
    return said
def once(secret):
    serial = keyring.add_psk(root, tlspsk.derive(secret, names.host_nqn, names.nqn))
    goal = Target(names.nqn, names.host_nqn, names.host_id, Portal.parse(portal), 2, 60, tls_key=serial)
    try:
        connect(root, goal, DhchapKeys(*keys))
        found = wait_for_device(root, names.nqn, volume_id, timeout=20)
        settle()
        with open(found.device, "r+b", buffering=0) as device:
            device.write(b"over TLS".ljust(4096))
        disconnect(root, names.nqn)
        return found.state
    except ConnectFailed as error:
        return type(error).__name__
    finally:
        keyring.remove_psk(root, names.host_nqn, names.nqn)
right = bytes.fromhex(secret)
print(json.dumps([attempt(tlspsk.generate()), attempt(right), attempt(tlspsk.generate())]))
"""


@pytest.fixture(scope="module")
def ready(servers: tuple[VirtualServer, VirtualServer]) -> tuple[VirtualServer, VirtualServer]:
    """Both servers, with the contracts on them."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        for name in ("tests/contract", "tests/support"):
            tar.add(REPO / name, name, filter=lambda item: None if "__pycache__" in item.name else item)
    for server in servers:
        server.run(f"mkdir -p {PLACE} && tar -xzf - -C {PLACE}", input=archive.getvalue())
    return servers


@pytest.mark.parametrize(
    "module", [exports, connecting, securing, reaching], ids=lambda item: item.__name__.split(".")[1]
)
def test_contracts(ready: tuple[VirtualServer, VirtualServer], module: object) -> None:
    server = ready[1]
    names = " ".join(call.__name__ for call in getattr(module, "CONTRACTS"))  # noqa: B009  a module's
    done = server.run(
        f"{PYTHON} -m contract.run_in_guest exports $(readlink -f {BY_ID}KFB0) {server.ip} {names}",
        check=False,
        timeout=800,
    )
    assert done.exit_code == 0, done.stdout_text + done.stderr.decode()
    assert " SKIP=0 " in done.stdout_text, done.stdout_text


def test_a_wrong_tls_key_is_refused_by_another_server(ready: tuple[VirtualServer, VirtualServer]) -> None:
    a, b = ready
    for server, script in ((a, TARGET), (b, CONSUMER)):
        server.put_file(f"{PLACE}/script.py", script.encode())
    export = a.run(f"{PYTHON} script.py {BY_ID}KFA0 {a.ip}", timeout=200).stdout
    states = json.loads(b.run(f"{PYTHON} script.py", input=export, timeout=200).stdout)
    assert states[1] == "live"
    assert states[0] == states[2] != "live", states
    assert a.run(f"head -c 8 {BY_ID}KFA0").stdout == b"over TLS"
