"""KubeFlash running in the lab: the controller beside the API server, an agent on every server.

What the demo, the machine tests and the benches share. Objects go in by `kubectl apply`, as an administrator would do
it. They come back by requests of the lab's own: what waits for them asks again and again.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml

from lab.controlplane import user_environment
from lab.errors import LabTimeout
from lab.lab import Lab
from lab.processes import ManagedProcess, run
from lab.servers import VirtualServer

REPO = Path(__file__).resolve().parent.parent
NAMESPACE = "serving"
GPU_RULE = "1234:0380"  # the stand-in GPUs: QEMU's bochs-display
JSON = dict[str, Any]

KUBEFLASH = "/apis/kubeflash.io/v1alpha1"
ADDRESSES = {
    "flashattachment": KUBEFLASH + "/namespaces/{namespace}/flashattachments/{name}",
    "flashnode": KUBEFLASH + "/flashnodes/{name}",
    "flashpool": KUBEFLASH + "/flashpools/{name}",
    "flashvolume": KUBEFLASH + "/namespaces/{namespace}/flashvolumes/{name}",
    "lease": "/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases/{name}",
}
"""Where the API server has the kinds that are waited for."""

AGENT = """export KUBECONFIG=/etc/kubeflash/kubeconfig
exec python3 -m kubeflash.agent --node {name} --gpu {gpu} {options}
"""


class Fleet:
    """A lab with KubeFlash installed."""

    def __init__(self, lab: Lab, servers: Mapping[str, VirtualServer] | None = None) -> None:
        """Takes a lab that is up, and its servers by name; nothing is installed yet."""
        self.lab = lab
        self.servers = dict(servers or {})
        self.controller: ManagedProcess | None = None

    # --- installing and processes ---

    def install(self) -> None:
        """Applies CRDs, the manifest and a namespace for volumes.

        Without kubelets nobody runs the manifest's pods: its roles are lent to the processes that the lab starts.
        """
        self.kubectl("apply", "--server-side", "-f", str(REPO / "crds"))
        self.kubectl("wait", "--for=condition=Established", "--timeout=30s", "-f", str(REPO / "crds"))
        self.kubectl("apply", "-f", str(REPO / "deploy" / "kubeflash.yaml"), "-f", str(REPO / "e2e" / "bindings.yaml"))
        self.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})

    def start_controller(self, *options: str) -> ManagedProcess:
        """Starts the controller in the lab's network, with an identity that has its role and no more."""
        self.controller = self.another_controller("controller", *options)
        return self.controller

    def another_controller(self, name: str, *options: str) -> ManagedProcess:
        """Starts a controller under a name of its own: whoever starts it ends it."""
        kubeconfig = self.lab.control_plane.kubeconfig("kubeflash-controller")
        argv = [sys.executable, "-m", "kubeflash.controller", "--kubeconfig", str(kubeconfig), *options]
        # A borrowed environment has another checkout's package installed: this one's is meant.
        environment = {**os.environ, "PYTHONPATH": str(REPO / "operator")}
        return ManagedProcess(name, argv, run_dir=self.lab.run_dir, env=environment).start()

    def stop_controller(self) -> None:
        """Ends the controller with SIGTERM."""
        if self.controller is not None:
            self.controller.stop()
            self.controller = None

    def kill_controller(self) -> None:
        """Ends the controller with SIGKILL: it gives nothing back."""
        if self.controller is not None:
            self.controller.stop(force=True)
            self.controller = None

    def start_agent(self, name: str, options: str = "") -> None:
        """Installs the agent on a server as a service that comes back after a reboot."""
        server = self.servers[name]
        kubeconfig = self.lab.control_plane.kubeconfig(f"kubeflash-agent-{name}", groups=("kubeflash:agents",))
        server.run(["mkdir", "-m", "0700", "-p", "/etc/kubeflash"])
        server.put_file("/etc/kubeflash/kubeconfig", kubeconfig.read_bytes(), 0o600)
        server.service("agent", AGENT.format(name=name, gpu=GPU_RULE, options=options), timeout=60)

    def start(self) -> None:
        """Installs and starts everything."""
        self.install()
        self.start_controller()
        with ThreadPoolExecutor(len(self.servers) or 1) as pool:
            list(pool.map(self.start_agent, self.servers))

    # --- objects ---

    def kubectl(self, *words: str, stdin: str | None = None, timeout: float = 60) -> str:
        """Runs kubectl as the lab's admin; what it printed."""
        done = self.lab.control_plane.kubectl(*words, input=stdin.encode() if stdin else None, timeout=timeout)
        return done.stdout_text

    def flash(self, *words: str, timeout: float = 60) -> str:
        """Runs `kubectl flash` as the lab's admin, by way of kubectl as a user does it; what it printed.

        Raises:
            CommandError: It failed.
        """
        kubectl = self.lab.control_plane.programs.kubectl
        environment = user_environment(kubectl, self.lab.control_plane.kubeconfig())
        return run([kubectl, "flash", *words], timeout=timeout, env=environment).stdout_text

    def apply(self, *objects: JSON) -> None:
        """`kubectl apply` of objects."""
        self.kubectl("apply", "-f", "-", stdin=yaml.safe_dump_all(objects))

    def get(self, kind: str, name: str, namespace: str | None = NAMESPACE) -> JSON | None:
        """One object, None when there is none. Not by kubectl: what waits asks five times a second."""
        return self.lab.control_plane.read(ADDRESSES[kind].format(namespace=namespace, name=name))

    def delete(self, kind: str, name: str, *, timeout: float = 120) -> None:
        """`kubectl delete`, waiting until it is gone."""
        self.kubectl("delete", kind, name, "-n", NAMESPACE, f"--timeout={int(timeout)}s", timeout=timeout + 10)

    def release(self, kind: str, name: str) -> None:
        """`kubectl delete`, without waiting."""
        self.kubectl("delete", kind, name, "-n", NAMESPACE, "--wait=false")

    def events(self, *reasons: str, about: str | None = None) -> list[JSON]:
        """The events of every namespace: those with one of these reasons, if any; those about objects of this name.

        Not every event names what it regards: the API server itself makes such (KubernetesDefaultServiceCIDRError).
        """
        found: list[JSON] = json.loads(self.kubectl("get", "events.v1.events.k8s.io", "-A", "-o", "json"))["items"]
        return [
            item
            for item in found
            if (not reasons or item["reason"] in reasons)
            and (about is None or item.get("regarding", {}).get("name") == about)
        ]

    def wait_alive(self, *names: str, timeout: float = 300) -> None:
        """Waits until the agents of these servers have renewed their Leases."""
        for name in names:
            lease = ("lease", f"agent-{name}", "kubeflash-system")
            known = self.get(*lease)
            before = known["spec"].get("renewTime") if known is not None else None
            renewed = lambda it, before=before: it["spec"].get("renewTime") != before  # noqa: E731
            self.wait(*lease[:2], renewed, namespace=lease[2], timeout=timeout)

    def wait(
        self,
        kind: str,
        name: str,
        reached: Callable[[JSON], object],
        *,
        timeout: float = 120,
        namespace: str | None = NAMESPACE,
        interval: float = 0.2,
    ) -> JSON:
        """Waits until an object is as wished; the object.

        Raises:
            LabTimeout: It is not in time; the message has its last conditions.
        """
        deadline = time.monotonic() + timeout
        while True:
            found = self.get(kind, name, namespace)
            found = {"status": {}, **found} if found is not None else None  # one that is new has none yet
            if found is not None and reached(found):
                return found
            if time.monotonic() > deadline:
                said = found["status"].get("conditions") if found and "status" in found else found
                raise LabTimeout(f"{kind} {name} is not as expected after {timeout:g} s; it says {json.dumps(said)}")
            time.sleep(interval)

    def wait_gone(self, kind: str, name: str, *, timeout: float = 60) -> None:
        """Waits until an object is gone."""
        deadline = time.monotonic() + timeout
        while (found := self.get(kind, name)) is not None:
            if time.monotonic() > deadline:
                raise LabTimeout(f"{kind} {name} is still there after {timeout:g} s: {json.dumps(found.get('status'))}")
            time.sleep(0.2)

    def seconds_to(self, reached: str, wanted: JSON) -> float:
        """Applies a new volume; the seconds until this condition of it is True."""
        began = time.monotonic()
        self.apply(wanted)
        name = wanted["metadata"]["name"]
        self.wait("flashvolume", name, lambda it: condition(it, reached).get("status") == "True")
        return time.monotonic() - began

    def wait_ready(self, kind: str, name: str, *, timeout: float = 120, namespace: str | None = NAMESPACE) -> JSON:
        """Waits until an object is Ready."""
        return self.wait(kind, name, is_ready, timeout=timeout, namespace=namespace)


def condition(found: JSON, kind: str) -> JSON:
    """One condition of an object; empty when it has none."""
    conditions = found.get("status", {}).get("conditions", [])
    return next((item for item in conditions if item["type"] == kind), {})


def is_ready(found: JSON) -> bool:
    """Whether an object is Ready."""
    return condition(found, "Ready").get("status") == "True"


def pool(name: str, *serials: str, **spec: Any) -> JSON:
    """A pool of the SSDs with these serial numbers, for every namespace."""
    return {
        "apiVersion": "kubeflash.io/v1alpha1",
        "kind": "FlashPool",
        "metadata": {"name": name},
        "spec": {"ssds": {"serials": list(serials)}, "allowedNamespaces": {}, **spec},
    }


def volume(name: str, size: str, *, pool: str = "fast", sharing: str = "", **near: str) -> JSON:
    """A volume, near what is given."""
    spec: JSON = {"pool": pool, "size": size}
    if sharing:
        spec["sharing"] = sharing
    if near:
        spec["near"] = near
    return {
        "apiVersion": "kubeflash.io/v1alpha1",
        "kind": "FlashVolume",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": spec,
    }


def attachment(name: str, volume: str, node: str) -> JSON:
    """An attachment of a volume at a server."""
    return {
        "apiVersion": "kubeflash.io/v1alpha1",
        "kind": "FlashAttachment",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {"volume": volume, "nodeName": node},
    }
