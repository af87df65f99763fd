"""KubeFlash installed by Helm in a lab whose servers are Kubernetes nodes: what demo, cluster tests and benches share.

The charts, the image of the project's own Dockerfile, real kubelets: nothing here does what a user would not do.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from fleet import GPU_RULE, JSON, NAMESPACE, REPO, Fleet
from lab import binaries, node
from lab.container import operator_image
from lab.errors import LabError
from lab.helm import Helm
from lab.lab import Lab
from lab.node import NodeDisk
from lab.processes import Completed

CHARTS = REPO / "charts"
RELEASE = "kubeflash"
CRDS_RELEASE = "kubeflash-crds"
SYSTEM = "kubeflash-system"
SERVERS = ("gpu-a", "gpu-b")
VALUES = ("--set", f"agent.gpus={{{GPU_RULE}}}", "--set", "agent.updateStrategy.maxUnavailable=2")
"""The stand-in GPUs; and all agents are replaced at once, as an emulated one takes a minute to start."""
AGENTS = "app.kubernetes.io/component=agent"
CONTROLLERS = "app.kubernetes.io/component=controller"


def prepare(images: Sequence[Path] = (), *, older: bool = False) -> NodeDisk:
    """Build what such a cluster needs, before a lab's network is entered: KubeFlash's image among it.

    Args:
        images: more of them.
        older: see `lab.lab.ensure_programs`.

    Raises:
        BuildError: Something could not be built.
    """
    binaries.ensure("helm")
    return node.prepare(REPO, [operator_image(REPO), *images], older=older)


def system_namespace(name: str) -> JSON:
    """KubeFlash's own namespace: its agents are privileged, which Pod Security must allow."""
    labels = {"pod-security.kubernetes.io/enforce": "privileged"}
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}


class Cluster(Fleet):
    """A lab with kubelets; `start` installs KubeFlash by Helm."""

    def __init__(self, lab: Lab) -> None:
        """Takes a lab that is up, with ``kubelets``."""
        super().__init__(lab)
        self.namespace = SYSTEM
        self._helm = Helm(lab.run_dir / "helm", lab.control_plane.kubeconfig())

    def boot(self, disk: NodeDisk, names: Iterable[str] = SERVERS) -> None:
        """Boots the servers and waits until they are Ready nodes. Main thread only."""
        self.servers.update(node.boot_nodes(self.lab, REPO, tuple(names), disk))

    # --- Helm ---

    def helm(self, *words: str, check: bool = True, timeout: float = 300) -> Completed:
        """Runs helm as the lab's admin.

        Raises:
            CommandError: It failed, and `check` was asked for.
        """
        return self._helm(*words, timeout=timeout, check=check)

    def install(self) -> None:
        """Installs as the README says, and makes a namespace for volumes; without waiting for pods."""
        self.make_namespace(SYSTEM)
        self.install_crds()
        self.upgrade()
        self.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})

    def make_namespace(self, name: str) -> None:
        """Makes KubeFlash's own namespace."""
        self.apply(system_namespace(name))

    def install_crds(self, release: str = CRDS_RELEASE, namespace: str = SYSTEM, *options: str) -> None:
        """Installs or upgrades the CRDs."""
        self.helm("upgrade", "--install", release, str(CHARTS / "kubeflash-crds"), "-n", namespace, *options)

    def upgrade(self, *options: str, release: str = RELEASE, namespace: str = SYSTEM, chart: Path | None = None) -> str:
        """Installs or upgrades KubeFlash, which is in this namespace from then on; what Helm printed."""
        self.namespace = namespace
        words = ["upgrade", "--install", release, str(chart or CHARTS / "kubeflash"), "-n", namespace]
        return self.helm(*words, *VALUES, *options).stdout_text

    def start(self) -> None:
        """Installs everything and waits until all pods are Ready."""
        self.install()
        self.wait_rolled_out()

    def wait_rolled_out(self, *, timeout: float = 300) -> None:
        """Waits until the controllers and the agents of the newest template are Ready."""
        for what in ("deployment/kubeflash-controller", "daemonset/kubeflash-agent"):
            self.kubectl(
                "rollout", "status", what, "-n", self.namespace, f"--timeout={timeout:g}s", timeout=timeout + 10
            )

    # --- pods ---

    def pods(self, selector: str) -> list[JSON]:
        """KubeFlash's pods that are not being deleted, by name."""
        found = json.loads(self.kubectl("get", "pods", "-n", self.namespace, "-l", selector, "-o", "json"))["items"]
        alive = [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]
        return sorted(alive, key=lambda pod: str(pod["metadata"]["name"]))

    def leader(self) -> JSON:
        """The controller's pod that leads.

        Raises:
            LabError: None does.
        """
        lease = self.get("lease", "kubeflash-controller", self.namespace)
        holder = str(lease["spec"].get("holderIdentity") or "") if lease is not None else ""
        for pod in self.pods(CONTROLLERS):
            if holder.startswith(pod["metadata"]["name"]):
                return pod
        raise LabError(f"no controller's pod leads: the Lease says {holder!r}")

    def save_logs(self, folder: Path) -> None:
        """Keeps what the cluster says of itself, for whoever looks into a failure."""
        folder.mkdir(parents=True, exist_ok=True)
        asked: dict[str, tuple[str, ...]] = {
            "pods.txt": ("get", "pods,nodes", "-A", "-o", "wide"),
            "events.txt": ("get", "events", "-A", "--sort-by=.metadata.creationTimestamp"),
            "flash.yaml": ("get", "flashnodes,flashpools,flashvolumes,flashattachments", "-A", "-o", "yaml"),
            "describe.txt": ("describe", "pods", "-n", self.namespace),
        }
        for pod in ("deployment/kubeflash-controller", "daemonset/kubeflash-agent"):
            asked[f"{pod.split('/')[1]}.log"] = (
                *("logs", "-n", self.namespace, pod, "--all-pods", "--prefix", "--tail=500", "--all-containers"),
            )
        for name, words in asked.items():
            done = self.lab.control_plane.kubectl(*words, check=False, timeout=60)
            (folder / name).write_bytes(done.stdout + done.stderr)
