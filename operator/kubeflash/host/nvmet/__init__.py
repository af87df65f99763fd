"""Exports: the kernel's NVMe target, configured through configfs.

The tree (what KubeFlash uses of it)::

    /sys/kernel/config/nvmet
    ├── hosts
    │   └── HOST-NQN                     mkdir: a host that may be allowed somewhere
    │       ├── dhchap_key               the host's key; made 0644, and shows the key: chmod 0600 before writing
    │       ├── dhchap_ctrl_key          the controller's key, likewise
    │       ├── dhchap_hash              hmac(sha512)
    │       └── dhchap_dhgroup           ffdhe2048
    ├── subsystems
    │   └── NQN                          mkdir: a subsystem, one an attachment
    │       ├── attr_allow_any_host      0
    │       ├── attr_serial              at most 20 characters
    │       ├── attr_model               at most 40 characters
    │       ├── allowed_hosts
    │       │   └── HOST-NQN             link to the host
    │       └── namespaces
    │           └── 1                    mkdir
    │               ├── device_path      /dev/nvme0n1p3; not looked at before enable
    │               ├── device_uuid      the volume's id, as is
    │               ├── device_nguid     the volume's id
    │               ├── revalidate_size  1 tells the consumers of a size that changed; write-only
    │               └── enable           1 opens the device; 0 returns when no I/O is in flight any more
    └── ports
        └── 4427                         mkdir: a port, one an attachment, numbered as its TCP port
            ├── addr_trtype              tcp or rdma
            ├── addr_adrfam              ipv4 or ipv6
            ├── addr_traddr              10.20.0.4
            ├── addr_trsvcid             4427
            ├── addr_tsas                tls1.3 or none; tcp only, after addr_trtype, which resets it
            ├── addr_treq                required: with tls1.3, nothing but TLS gets in
            └── subsystems
                └── NQN                  link to the subsystem: the port listens from here on

The ordering contract
---------------------
Build: host and keys, subsystem, allowed host, namespace with its UUIDs, **enable**, read back, port, and the port's
**link last**. A port that listens before its subsystem is whole tells a reconnecting consumer "do not retry", and its
device is destroyed for good; a TCP port that refuses is retried.

Fence: allowed host, **every port's link**, **disable the namespace**, only then rmdir of namespace, subsystem, port and
host. Unlinking ends the consumer's controllers; disabling is the write barrier, and a volume is fenced when it has
returned. Disabling first would wait for a frozen consumer's keep-alive (52 s seen). `rmdir` of an enabled namespace
*succeeds* in the kernel, so it is refused here.

Every function takes the tree as its first argument (`KernelConfigfs(root)`), is idempotent, reads back what it wrote,
and changes nothing under a consumer: what is there and differs is `ObjectDiffers`. A crash between any two leaves what
the next pass goes on from. `disable_namespace` blocks while the SSD hangs: run it in a thread of its own and raise an
alarm.
"""

from __future__ import annotations

from kubeflash.host.nvmet.build import (
    add_namespace,
    allow_host,
    create_host,
    create_port,
    create_subsystem,
    enable_namespace,
    link,
    replace_device,
    revalidate,
)
from kubeflash.host.nvmet.configfs import Configfs, KernelConfigfs
from kubeflash.host.nvmet.errors import (
    AddressNotUp,
    DeviceMissing,
    DeviceRefused,
    KeyRefusedByKernel,
    NvmetError,
    NvmetMissing,
    ObjectDiffers,
    ObjectInUse,
    ObjectMissing,
    OutOfOrder,
    PortTaken,
    ReadBackDiffers,
    TlsRefused,
    TransportMissing,
)
from kubeflash.host.nvmet.fence import (
    disable_namespace,
    disallow_host,
    remove_host,
    remove_namespace,
    remove_port,
    remove_subsystem,
    unlink_port,
)
from kubeflash.host.nvmet.state import read_state

__all__ = [
    "AddressNotUp",
    "Configfs",
    "DeviceMissing",
    "DeviceRefused",
    "KernelConfigfs",
    "KeyRefusedByKernel",
    "NvmetError",
    "NvmetMissing",
    "ObjectDiffers",
    "ObjectInUse",
    "ObjectMissing",
    "OutOfOrder",
    "PortTaken",
    "ReadBackDiffers",
    "TlsRefused",
    "TransportMissing",
    "add_namespace",
    "allow_host",
    "create_host",
    "create_port",
    "create_subsystem",
    "disable_namespace",
    "disallow_host",
    "enable_namespace",
    "link",
    "read_state",
    "remove_host",
    "remove_namespace",
    "remove_port",
    "remove_subsystem",
    "replace_device",
    "revalidate",
    "unlink_port",
]
