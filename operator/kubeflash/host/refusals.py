"""Whom nvmet turned away: a consumer with an old identity or a wrong key, or a stranger who tries.

nvmet counts nothing and tells nobody: it only logs. A host without any key is let in as far as authentication and then
gives up by itself; of that the kernel logs nothing.

Host NQNs, and the NQNs of subsystems that are not there, were chosen by whoever connects.
"""

from __future__ import annotations

import logging
import re
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from prometheus_client import Counter

from kubeflash.domain.names import is_ours
from kubeflash.host.kernellog import KernelLog, Reader
from kubeflash.host.root import HostRoot

log = logging.getLogger(__name__)

_LONGEST = 223  # bytes of an NQN (NVMe base specification, 4.5)
_REPEAT = 60.0  # seconds until the same refusal is told of again; a consumer tries every 2 s
_MOST = 64  # different refusals that are kept apart
_MOST_CONTROLLERS = 4096

# drivers/nvme/target: core.c, auth.c, fabrics-cmd-auth.c. A subsystem that refuses or has a controller is in configfs:
# of its name whoever connects chose nothing, so it is looked for from the end where a host's NQN stands before it.
_CREATED = re.compile(r"nvmet: creating \S+ controller (\d+) for subsystem (\S+) for NQN (.*)\.")
_SECURED = re.compile(r"(?: T10-PI is enabled| with DH-HMAC-CHAP|, TLS)+$")
_NOT_ALLOWED = re.compile(r"nvmet: connect by host (.*) for subsystem (\S+) not allowed")
_NO_SUBSYSTEM = re.compile(r"nvmet: connect request for invalid subsystem (.*)!")
_KEY_REFUSED = re.compile(r"nvmet: ctrl (\d+) qid \d+ (?:host response mismatch|no host key)")


class Reason(StrEnum):
    """Why nvmet refused a connection.

    Attributes:
        NOT_ALLOWED: the subsystem does not allow this host.
        NO_SUBSYSTEM: there is no such subsystem at this port: its attachment is gone.
        KEY_REFUSED: the host did not prove that it has the key.
    """

    NOT_ALLOWED = "not_allowed"
    NO_SUBSYSTEM = "no_subsystem"
    KEY_REFUSED = "key_refused"


REFUSALS = Counter(
    "kubeflash_export_refusals_total",
    "Connections to KubeFlash's exports that nvmet refused, by reason, since the agent started.",
    ("reason",),
)
for _reason in Reason:
    REFUSALS.labels(_reason.value)


@dataclass(frozen=True)
class Refusal:
    """Connections that were refused for the same reason.

    Attributes:
        host_nqn: as the host says of itself, printable; empty when the kernel does not say it, or for many.
        nqn: the subsystem; empty as above.
        count: how many there were since this was told last.
    """

    reason: Reason
    host_nqn: str
    nqn: str
    count: int

    def __str__(self) -> str:
        """In words, for an event or a log."""
        who = f"host {self.host_nqn}" if self.host_nqn else "some host"
        what = f"to {self.nqn}" if self.nqn else "to some export"
        why = {
            Reason.NOT_ALLOWED: "it is not the host that the export was made for",
            Reason.NO_SUBSYSTEM: "there is no such export at this port (any more)",
            Reason.KEY_REFUSED: "it does not have the key",
        }
        times = f" ({self.count} times)" if self.count > 1 else ""
        return f"refused to connect {who} {what}: {why[self.reason]}{times}"


_Key = tuple[Reason, str, str]


class RefusalLog:
    """Tells of refusals since it was made: each one when it is new, then at the most once a minute.

    Refusals by subsystems that are not KubeFlash's do not count. However many different hosts try, 64 of a minute are
    told apart; the others are told of by their reason alone.

    Args:
        root: the machine.
        reader: gives one record, or raises as a read of a non-blocking /dev/kmsg does.
        clock: seconds.
    """

    def __init__(
        self, root: HostRoot, reader: Reader | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._log, self._clock = KernelLog(root, reader, past=False), clock
        self._controllers: OrderedDict[str, tuple[str, str]] = OrderedDict()
        self._waiting: dict[_Key, int] = {}
        self._told: OrderedDict[_Key, float] = OrderedDict()
        self._said = False
        self._take()

    def look(self) -> tuple[Refusal, ...]:
        """What is to be told now; nothing when the kernel's log cannot be read. Does not block."""
        self._take()
        now = self._clock()
        while self._told and next(iter(self._told.values())) <= now - _REPEAT:
            self._told.popitem(last=False)
        due = [key for key in self._waiting if key not in self._told]
        self._told.update(dict.fromkeys(due, now))
        return tuple(Refusal(*key, count=self._waiting.pop(key)) for key in due)

    def _take(self) -> None:
        try:
            for record in self._log.new():
                self._heed(record.text)
        except OSError as error:
            if not self._said:
                log.warning("refused connections are not counted: the kernel's log cannot be read: %s", error)
                self._said = True

    def _heed(self, text: str) -> None:
        if not text.startswith("nvmet: "):
            return
        if match := _CREATED.fullmatch(text):
            self._controllers.pop(match[1], None)
            self._controllers[match[1]] = _SECURED.sub("", match[3]), match[2]
            if len(self._controllers) > _MOST_CONTROLLERS:
                self._controllers.popitem(last=False)
        elif match := _NOT_ALLOWED.fullmatch(text):
            self._count(Reason.NOT_ALLOWED, match[1], match[2])
        elif match := _NO_SUBSYSTEM.fullmatch(text):
            self._count(Reason.NO_SUBSYSTEM, "", match[1])
        elif match := _KEY_REFUSED.match(text):
            self._count(Reason.KEY_REFUSED, *self._controllers.get(match[1], ("", "")))

    def _count(self, reason: Reason, host_nqn: str, nqn: str) -> None:
        if nqn and not is_ours(nqn):
            return
        REFUSALS.labels(reason.value).inc()
        key = reason, _printable(host_nqn), _printable(nqn)
        known = self._waiting.keys() | self._told.keys()
        if key not in known and len(known) >= _MOST:
            key = reason, "", ""
        self._waiting[key] = self._waiting.get(key, 0) + 1


def _printable(text: str) -> str:
    return "".join(char if char.isascii() and char.isprintable() else "?" for char in text[:_LONGEST])
