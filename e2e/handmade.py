"""The same export and connection as KubeFlash makes, made by hand: what it is measured against in the same run.

With DH-HMAC-CHAP in both directions, as an administrator would do it with a shell, configfs and nvme-cli. The keys
stand in nvme-cli's argument list here, which KubeFlash's never do.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from lab.servers import VirtualServer

NQN = "nqn.2014-08.org.example:handmade"
HOST_NQN = "nqn.2014-08.org.example:handmade-host"
HOST_ID = "9f0e2d4c-6b8a-4c1d-8e7f-0123456789ab"
NVMET = "/sys/kernel/config/nvmet"

_KEYS = "set -e; for key in ctrl host; do nvme gen-dhchap-key --hmac=0; done"

_EXPORT = f"""set -e
cd {NVMET}
mkdir hosts/{HOST_NQN}
chmod 600 hosts/{HOST_NQN}/dhchap_*key
printf %s {{host}} > hosts/{HOST_NQN}/dhchap_key
printf %s {{ctrl}} > hosts/{HOST_NQN}/dhchap_ctrl_key
printf 'hmac(sha512)' > hosts/{HOST_NQN}/dhchap_hash
printf ffdhe2048 > hosts/{HOST_NQN}/dhchap_dhgroup
mkdir subsystems/{NQN}
ln -s {NVMET}/hosts/{HOST_NQN} subsystems/{NQN}/allowed_hosts/
mkdir subsystems/{NQN}/namespaces/1
printf %s {{device}} > subsystems/{NQN}/namespaces/1/device_path
printf 1 > subsystems/{NQN}/namespaces/1/enable
mkdir ports/{{port}}
printf tcp > ports/{{port}}/addr_trtype
printf ipv4 > ports/{{port}}/addr_adrfam
printf %s {{address}} > ports/{{port}}/addr_traddr
printf %s {{port}} > ports/{{port}}/addr_trsvcid
ln -s {NVMET}/subsystems/{NQN} ports/{{port}}/subsystems/
"""

_CONNECT = f"""set -e
nvme connect -t tcp -a {{address}} -s {{port}} -n {NQN} -q {HOST_NQN} -I {HOST_ID} \
  --dhchap-secret={{host}} --dhchap-ctrl-secret={{ctrl}} > /dev/null
for i in $(seq 200); do
  for s in /sys/class/nvme-subsystem/*; do
    if grep -qx {NQN} $s/subsysnqn; then
      d=$(ls $s | grep -E '^nvme[0-9]+n[0-9]+$' || true)
      if [ -n "$d" ] && [ -b /dev/$d ]; then echo /dev/$d; exit 0; fi
    fi
  done
  sleep 0.05
done
exit 1
"""

_DISCONNECT = f"nvme disconnect -n {NQN} > /dev/null"

_FENCE = f"""set -e
cd {NVMET}
rm subsystems/{NQN}/allowed_hosts/{HOST_NQN} ports/{{port}}/subsystems/{NQN}
printf 0 > subsystems/{NQN}/namespaces/1/enable
rmdir subsystems/{NQN}/namespaces/1 subsystems/{NQN} ports/{{port}} hosts/{HOST_NQN}
"""


@dataclass(frozen=True)
class HandMade:
    """A connection by hand.

    Attributes:
        device: the block device at the consumer.
        seconds: what exporting and connecting took.
    """

    device: str
    seconds: float


@contextmanager
def handmade(storage: VirtualServer, consumer: VirtualServer, device: str, *, port: int = 4419) -> Iterator[HandMade]:
    """Exports a device of one server to another by hand; taken down again at the end.

    Args:
        storage: the server that has the device.
        consumer: the one that connects.
        device: block device at `storage`, used by nobody.
        port: TCP port number, outside of the pools' range.
    """
    ctrl, host = storage.run(_KEYS, timeout=60).stdout_text.split()
    words = {"host": host, "ctrl": ctrl, "device": device, "port": port, "address": storage.ip}
    began = time.monotonic()
    storage.run(_EXPORT.format(**words), timeout=60)
    try:
        made = consumer.run(_CONNECT.format(**words), timeout=60).stdout_text.strip()
        try:
            yield HandMade(made, time.monotonic() - began)
        finally:
            consumer.run(_DISCONNECT, timeout=60)
    finally:
        storage.run(_FENCE.format(**words), timeout=60)
