"""nvmet's configfs as the kernel behaves (6.12), in memory: what `contract.exports` runs on beside the real one."""

from __future__ import annotations

import errno
import os
import re
import uuid
from dataclasses import dataclass, field

NULL_UUID = str(uuid.UUID(int=0))
HASHES = ("hmac(sha256)", "hmac(sha384)", "hmac(sha512)")
GROUPS = ("null", "ffdhe2048", "ffdhe3072", "ffdhe4096", "ffdhe6144", "ffdhe8192")

HOST = re.compile(r"hosts/[^/]+")
SUBSYSTEM = re.compile(r"subsystems/[^/]+")
NAMESPACE = re.compile(r"subsystems/[^/]+/namespaces/[^/]+")
PORT = re.compile(r"ports/[^/]+")
ALLOWED = re.compile(r"subsystems/[^/]+/allowed_hosts/[^/]+")
LINKED = re.compile(r"ports/[^/]+/subsystems/[^/]+")

HOST_FILES = {"dhchap_key": "", "dhchap_ctrl_key": "", "dhchap_hash": HASHES[0], "dhchap_dhgroup": GROUPS[0]}
SUBSYSTEM_FILES = {
    "attr_allow_any_host": "0",
    "attr_serial": "0123456789abcdef0123",
    "attr_model": "Linux",
    "attr_cntlid_min": "1",
    "attr_cntlid_max": "65519",
}
NAMESPACE_FILES = {
    "device_path": "(null)",
    "device_uuid": NULL_UUID,
    "device_nguid": NULL_UUID,
    "enable": "0",
    "revalidate_size": "",
}
PORT_FILES = {
    "addr_trtype": "",
    "addr_adrfam": "",
    "addr_traddr": "",
    "addr_trsvcid": "",
    "addr_tsas": "",
    "addr_treq": "not specified",
}
TSAS = {"tcp": "none", "rdma": "connected"}  # what writing the transport sets it to
TREQS = ("not specified", "required", "not required")


def fail(number: int, path: str) -> OSError:
    """The kernel's error."""
    return OSError(number, os.strerror(number), path)


@dataclass
class FakeNvmet:
    """The tree. `devices`, `read_only`, `addresses`, `transports` and `listening` are the machine around it.

    `sizes` has the bytes of a device where a test cares, `seen` what the consumers of a namespace take it for.
    """

    devices: set[str] = field(default_factory=set)
    read_only: set[str] = field(default_factory=set)
    sizes: dict[str, int] = field(default_factory=dict)
    seen: dict[str, int] = field(default_factory=dict)
    addresses: set[str] = field(default_factory=lambda: {"127.0.0.1", "0.0.0.0"})
    transports: set[str] = field(default_factory=lambda: {"tcp"})
    listening: set[tuple[str, str]] = field(default_factory=set)
    loaded: bool = True
    folders: set[str] = field(default_factory=lambda: {"hosts", "subsystems", "ports"})
    files: dict[str, str] = field(default_factory=dict)
    modes: dict[str, int] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)

    def available(self) -> bool:
        return self.loaded

    def exists(self, path: str) -> bool:
        return path in self.folders or path in self.files or path in self.links

    def listdir(self, path: str) -> list[str]:
        if path not in self.folders:
            raise fail(errno.ENOENT, path)
        below = [*self.folders, *self.files, *self.links]
        return sorted(item.rpartition("/")[2] for item in below if item.rpartition("/")[0] == path)

    def mkdir(self, path: str) -> None:
        parent, _, name = path.rpartition("/")
        if not self.loaded or parent not in self.folders:
            raise fail(errno.ENOENT, path)
        if self.exists(path):
            raise fail(errno.EEXIST, path)
        if HOST.fullmatch(path):
            self._make(path, HOST_FILES)
        elif SUBSYSTEM.fullmatch(path):
            self._make(path, SUBSYSTEM_FILES, "namespaces", "allowed_hosts")
        elif NAMESPACE.fullmatch(path):
            if not name.isdigit() or int(name) == 0:
                raise fail(errno.EINVAL, path)
            self._make(path, {**NAMESPACE_FILES, "device_uuid": str(uuid.uuid4())})
        elif PORT.fullmatch(path):
            if not name.isdigit() or int(name) > 0xFFFF:
                raise fail(errno.EINVAL, path)
            self._make(path, PORT_FILES, "subsystems")
        else:
            raise fail(errno.EPERM, path)

    def _make(self, path: str, files: dict[str, str], *folders: str) -> None:
        self.folders |= {path, *(f"{path}/{name}" for name in folders)}
        for name, value in files.items():
            self.files[f"{path}/{name}"] = value
            self.modes[f"{path}/{name}"] = 0o644

    def rmdir(self, path: str) -> None:
        if path not in self.folders:
            raise fail(errno.ENOENT, path)
        if not any(pattern.fullmatch(path) for pattern in (HOST, SUBSYSTEM, NAMESPACE, PORT)):
            raise fail(errno.EPERM, path)
        if any(NAMESPACE.fullmatch(item) and item.startswith(f"{path}/") for item in self.folders):
            raise fail(errno.ENOTEMPTY, path)
        if any(link.startswith(f"{path}/") for link in self.links):
            raise fail(errno.ENOTEMPTY, path)
        if path in self.links.values():
            raise fail(errno.EBUSY, path)
        # an enabled namespace goes all the same: the kernel asks nobody
        self.folders = {item for item in self.folders if item != path and not item.startswith(f"{path}/")}
        for store in (self.files, self.modes):
            for item in [item for item in store if item.startswith(f"{path}/")]:
                del store[item]

    def read(self, path: str) -> str:
        if path not in self.files:
            raise fail(errno.ENOENT, path)
        if path.endswith("/revalidate_size"):
            raise fail(errno.EACCES, path)
        return self.files[path]

    def mode(self, path: str) -> int:
        if path not in self.modes:
            raise fail(errno.ENOENT, path)
        return self.modes[path]

    def chmod(self, path: str, mode: int) -> None:
        self.mode(path)
        self.modes[path] = mode

    def write(self, path: str, value: str) -> None:
        if path not in self.files:
            raise fail(errno.ENOENT, path)
        owner, _, name = path.rpartition("/")
        if not value:
            raise fail(errno.EFAULT, path)
        if name in HOST_FILES:
            self.files[path] = self._host_value(path, name, value)
        elif name in SUBSYSTEM_FILES:
            self._subsystem(path, name, value)
        elif name in NAMESPACE_FILES:
            self._namespace(owner, name, value)
        else:
            if any(link.startswith(f"{owner}/subsystems/") for link in self.links):
                raise fail(errno.EACCES, path)
            self._port(owner, name, value)

    def _port(self, owner: str, name: str, value: str) -> None:
        transport, tsas = self.files[f"{owner}/addr_trtype"], self.files[f"{owner}/addr_tsas"]
        if name == "addr_trtype":
            if value not in ("tcp", "rdma", "loop", "fc"):
                raise fail(errno.EINVAL, owner)
            self.files[f"{owner}/addr_tsas"] = TSAS.get(value, "")
        elif name == "addr_tsas":
            if transport != "tcp" or value not in ("none", "tls1.3"):
                raise fail(errno.EINVAL, owner)
            treq = self.files[f"{owner}/addr_treq"]
            if value == "none":
                treq = "not specified"
            elif treq == "not specified":
                treq = "required"
            self.files[f"{owner}/addr_treq"] = treq
        elif name == "addr_treq" and (value not in TREQS or (tsas == "tls1.3" and value == "not specified")):
            raise fail(errno.EINVAL, owner)
        self.files[f"{owner}/{name}"] = value

    def _host_value(self, path: str, name: str, value: str) -> str:
        if name == "dhchap_hash" and value not in HASHES:
            raise fail(errno.EINVAL, path)
        if name == "dhchap_dhgroup" and value not in GROUPS:
            raise fail(errno.EINVAL, path)
        if name in ("dhchap_key", "dhchap_ctrl_key") and not re.match(r"DHHC-1:0[0-3]:", value):
            raise fail(errno.EINVAL, path)
        return value

    def _subsystem(self, path: str, name: str, value: str) -> None:
        owner = path.rpartition("/")[0]
        if name.startswith("attr_cntlid"):
            low, high = (int(self.files[f"{owner}/attr_cntlid_{end}"]) for end in ("min", "max"))
            number = int(value)
            if number == 0 or (number > high if name.endswith("min") else number < low):
                raise fail(errno.EINVAL, path)
            self.files[path] = value
            return
        limit = {"attr_serial": 20, "attr_model": 40, "attr_allow_any_host": 1}[name]
        if not 0 < len(value) <= limit:
            raise fail(errno.EINVAL, path)
        if name == "attr_allow_any_host" and value == "1" and self.listdir(f"{owner}/allowed_hosts"):
            raise fail(errno.EINVAL, path)
        self.files[path] = value

    def _namespace(self, owner: str, name: str, value: str) -> None:
        enabled = self.files[f"{owner}/enable"] == "1"
        if name == "enable":
            device = self.files[f"{owner}/device_path"]
            if value not in ("0", "1"):
                raise fail(errno.EINVAL, owner)
            if value == "1" and not enabled and device not in self.devices:
                raise fail(errno.ENOENT, owner)
            if value == "1" and not enabled and device in self.read_only:
                raise fail(errno.EACCES, owner)
            if value == "1" and not enabled:
                self.seen[owner] = self.sizes.get(device, 0)
            self.files[f"{owner}/enable"] = value
        elif name == "revalidate_size":
            if not enabled or value != "1":
                raise fail(errno.EINVAL, owner)
            self.seen[owner] = self.sizes.get(self.files[f"{owner}/device_path"], 0)
        elif enabled:
            raise fail(errno.EBUSY, owner)
        else:
            self.files[f"{owner}/{name}"] = value

    def symlink(self, target: str, link: str) -> None:
        if target not in self.folders:
            raise fail(errno.ENOENT, link)
        if self.exists(link):
            raise fail(errno.EEXIST, link)
        if link.rpartition("/")[0] not in self.folders:
            raise fail(errno.ENOENT, link)
        if ALLOWED.fullmatch(link) and HOST.fullmatch(target):
            if self.files[f"{link.partition('/allowed_hosts/')[0]}/attr_allow_any_host"] == "1":
                raise fail(errno.EINVAL, link)
        elif LINKED.fullmatch(link) and SUBSYSTEM.fullmatch(target):
            self._listen(link)
        else:
            raise fail(errno.EPERM, link)
        self.links[link] = target

    def _listen(self, link: str) -> None:
        port = link.partition("/subsystems/")[0]
        if any(item.startswith(f"{port}/subsystems/") for item in self.links):
            return
        address, service = self.files[f"{port}/addr_traddr"], self.files[f"{port}/addr_trsvcid"]
        if self.files[f"{port}/addr_trtype"] not in self.transports:
            raise fail(errno.EINVAL, link)
        if address not in self.addresses:
            raise fail(errno.EADDRNOTAVAIL, link)
        if (address, service) in self.listening:
            raise fail(errno.EADDRINUSE, link)
        self.listening.add((address, service))

    def unlink(self, path: str) -> None:
        if path not in self.links:
            raise fail(errno.ENOENT, path)
        del self.links[path]
        port = path.partition("/subsystems/")[0]
        if LINKED.fullmatch(path) and not any(item.startswith(f"{port}/subsystems/") for item in self.links):
            self.listening.discard((self.files[f"{port}/addr_traddr"], self.files[f"{port}/addr_trsvcid"]))


class Killed(BaseException):
    """The process ends here; nothing catches it."""


@dataclass
class Crashing:
    """A tree whose user is killed right after its `after`-th change."""

    fs: FakeNvmet
    after: int
    changes: int = 0

    def __getattr__(self, name: str) -> object:
        call = getattr(self.fs, name)
        if name not in ("mkdir", "rmdir", "write", "chmod", "symlink", "unlink"):
            return call

        def counted(*args: object) -> None:
            call(*args)
            self.changes += 1
            if self.changes == self.after:
                raise Killed

        return counted
