"""A real etcd and kube-apiserver in the lab's network; for labs with kubelets the rest of a control plane, too.

What is else *not* there, on purpose: no kube-controller-manager, so deleted namespaces stay Terminating, owners'
deletion deletes no dependants, nobody makes the ``default`` service accounts or ConfigMaps with the CA, the
ClusterRoles ``admin``, ``edit`` and ``view`` stay empty, and Deployments get no pods; no scheduler, so pods stay
Pending unless they name their node. Tests make what they need. A cloud's part and kube-proxy are never there.
"""

from __future__ import annotations

import base64
import contextlib
import http
import http.client
import itertools
import json
import os
import re
import socket
import ssl
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lab.certificates import Authority
from lab.errors import LabError, LabTimeout, NotOurs
from lab.network import CONTROL_PLANE_ADDRESS
from lab.processes import Completed, ManagedProcess, run, wait_until

PORT = 6443
SERVICE_CIDR = "10.96.0.0/16"
API_SERVICE_ADDRESS = "10.96.0.1"
_ETCD = "http://127.0.0.1:2379"  # plain: nobody but the lab's own processes reaches the loopback
_ETCD_PEER = "http://127.0.0.1:2380"
_READY_TIMEOUT = 60.0  # seconds; 3 to 5 on a quiet machine
_PORT_TIMEOUT = 15.0  # seconds; kube-apiserver holds its port for up to 10 after SIGTERM
_API_SERVICE_HOSTS = (
    "kubernetes",
    "kubernetes.default",
    "kubernetes.default.svc",
    "kubernetes.default.svc.cluster.local",
)

AuditLevel = Literal["Metadata", "RequestResponse"]


@dataclass(frozen=True)
class Programs:
    """Executables.

    Attributes:
        etcd: 3.5 or later.
        kube_apiserver: 1.35 or later.
        kubectl: 1.36 or later.
        kube_controller_manager: Of kube-apiserver's version; None where no kubelet is.
        kube_scheduler: The same.
    """

    etcd: Path
    kube_apiserver: Path
    kubectl: Path
    kube_controller_manager: Path | None = None
    kube_scheduler: Path | None = None


class ControlPlane:
    """etcd, kube-apiserver, and what else there is a program of. Start, stop and resume from the main thread."""

    def __init__(
        self,
        programs: Programs,
        run_dir: Path,
        *,
        audit_level: AuditLevel = "Metadata",
        apiserver_arguments: Sequence[str] = (),
    ) -> None:
        """Make its keys and certificates; nothing is started.

        Args:
            programs: What to run.
            run_dir: The lab's run directory: everything is kept below it.
            audit_level: How much the audit log keeps of each request.
            apiserver_arguments: More of kube-apiserver's flags, such as ``--feature-gates=...``.
        """
        self.programs = programs
        self.run_dir = run_dir
        self.server_url = f"https://{CONTROL_PLANE_ADDRESS}:{PORT}"
        self.audit_log = run_dir / "audit.log"
        self._authority = Authority(run_dir / "pki")
        self.ca_file = self._authority.certificate
        self._signing, self._signed_by = self._authority.signing_key("service-accounts")
        self._minting = threading.RLock()
        self._numbers = itertools.count()
        self._kubeconfigs: dict[tuple[str, tuple[str, ...], str], Path] = {}
        self._etcd = ManagedProcess("etcd", self._etcd_argv(), run_dir=run_dir)
        self._apiserver = ManagedProcess(
            "kube-apiserver", [*self._apiserver_argv(audit_level), *apiserver_arguments], run_dir=run_dir
        )
        self._managers = self._make_managers()
        certificate, key = self._authority.client("probe", "kubeflash-lab:probe", ["system:masters"])
        self._tls = ssl.create_default_context(cafile=self.ca_file)
        self._tls.load_cert_chain(certificate, key)

    # --- life ---

    def start(self) -> None:
        """Start all, and wait until the API server is ready.

        Raises:
            ProcessDied: One ended instead.
            LabTimeout: One was not ready within a minute.
        """
        if not self._etcd.running:
            self._etcd.start()
            self._etcd.wait_ready(_etcd_healthy, timeout=_READY_TIMEOUT)
        self.resume()
        for manager in self._managers:
            if not manager.running:
                manager.start()

    def stop(self) -> None:
        """Stop all and wait until their ports are free. Safe to call again.

        Raises:
            LabTimeout: A port stayed taken.
        """
        with contextlib.ExitStack() as stack:  # etcd is stopped whatever becomes of the other
            stack.callback(self._stop_etcd)
            stack.callback(self.pause)
            for manager in self._managers:
                manager.stop()

    def restart(self) -> None:
        """Stop all and start them again, with all their data: identities stay good."""
        self.stop()
        self.start()

    def pause(self, *, abrupt: bool = False) -> None:
        """Take the API server away; etcd keeps running. Its clients see refused connections until `resume`.

        Args:
            abrupt: Kill it, as a power cut would, instead of letting it finish.
        """
        if self._apiserver.stop(force=abrupt) is not None:
            _wait_port_free(CONTROL_PLANE_ADDRESS, PORT)

    def resume(self) -> None:
        """Bring the API server back, and wait until it is ready.

        Raises:
            ProcessDied: It ended instead.
            LabTimeout: It was not ready within a minute.
        """
        if not self._apiserver.running:
            self._apiserver.start()
        self._apiserver.wait_ready(self.ready, timeout=_READY_TIMEOUT)

    def ready(self) -> bool:
        """Whether the API server says it is ready, and the namespaces every cluster has exist."""
        return self._get("/readyz") is not None and self._get("/api/v1/namespaces/kube-system") is not None

    @property
    def cluster_id(self) -> str:
        """The UID of the kube-system namespace, by which one cluster is told from another.

        Raises:
            LabError: The API server does not answer.
        """
        answer = self._get("/api/v1/namespaces/kube-system")
        if answer is None:
            raise LabError(f"{self.server_url} does not answer: start() or resume() the control plane first")
        return str(json.loads(answer)["metadata"]["uid"])

    def _stop_etcd(self) -> None:
        if self._etcd.stop() is not None:
            _wait_port_free("127.0.0.1", 2379)

    def _get(self, path: str) -> bytes | None:
        """The body of a successful answer, asked for as cluster administrator; None for any other end."""
        try:
            status, body = self._ask(path, timeout=5)
        except LabError:  # not listening yet, or hanging up: simply not ready
            return None
        return body if status == http.HTTPStatus.OK else None

    def _ask(self, path: str, timeout: float = 30) -> tuple[int, bytes]:
        connection = http.client.HTTPSConnection(CONTROL_PLANE_ADDRESS, PORT, timeout=timeout, context=self._tls)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read()
        except (OSError, http.client.HTTPException) as error:
            raise LabError(f"{self.server_url}{path}: {type(error).__name__}: {error}") from error
        finally:
            connection.close()

    # --- identities ---

    def kubeconfig(
        self,
        identity: str = "admin",
        groups: Sequence[str] = (),
        *,
        server: str | None = None,
    ) -> Path:
        """A kubeconfig file (mode 0600) for any identity.

        Args:
            identity: ``admin`` may do everything. ``system:serviceaccount:NAMESPACE:NAME`` gets a token of that
                service account, which must exist, good for a day; a new one each time. Any other user name gets a
                client certificate, and the same file when asked again.
            groups: Of a user with a certificate, such as ``system:nodes``. ``system:authenticated`` comes by itself.
            server: Another way to the API server, such as ``https://127.0.0.1:6443``; `server_url` when None.

        Raises:
            LabError: A name is too long for a certificate.
            CommandError: There is no such service account.
        """
        server = server or self.server_url
        wanted = (identity, tuple(groups), server)
        with self._minting:
            if wanted in self._kubeconfigs:
                return self._kubeconfigs[wanted]
            number = next(self._numbers)
            user: dict[str, str]
            if identity.startswith("system:serviceaccount:"):
                user = {"token": self.token(*identity.split(":")[2:])}
            else:
                if identity == "admin" and not groups:
                    groups = ["system:masters"]
                certificate, key = self._authority.client(f"client-{number}", identity, groups)
                user = {"client-certificate-data": _base64(certificate), "client-key-data": _base64(key)}
            cluster = {"server": server, "certificate-authority-data": _base64(self.ca_file)}
            name = re.sub(r"[^A-Za-z0-9.-]+", "-", identity)
            path = self.run_dir / "kubeconfigs" / f"{number}-{name}.yaml"
            write_private(path, json.dumps(_kubeconfig(identity, cluster, user), indent=2))
            if "token" not in user:  # a token is void once its service account is made anew
                self._kubeconfigs[wanted] = path
        return path

    def token(self, namespace: str, name: str, *, hours: int = 24, bound_to: tuple[str, str] | None = None) -> str:
        """A token of a service account, from the TokenRequest API.

        Args:
            namespace: The service account's.
            name: The service account's.
            hours: How long it is good for.
            bound_to: Kind (``Pod``, ``Node``, ``Secret``) and name of an object it dies with.

        Raises:
            CommandError: There is no such service account, or object.
        """
        bound = () if bound_to is None else ("--bound-object-kind", bound_to[0], "--bound-object-name", bound_to[1])
        done = self.kubectl("create", "token", name, "--namespace", namespace, "--duration", f"{hours}h", *bound)
        return done.stdout_text.strip()

    # --- use ---

    def kubectl(
        self,
        *arguments: str | Path,
        input: str | bytes | None = None,  # noqa: A002 - named as in subprocess
        timeout: float = 60,
        identity: str = "admin",
        groups: Sequence[str] = (),
        check: bool = True,
    ) -> Completed:
        """Run kubectl against this cluster, and no other: the caller's own configuration is out of its sight.

        Args:
            arguments: What follows ``kubectl --kubeconfig ...``.
            input: Its standard input, for ``apply -f -``.
            timeout: Seconds it may take.
            identity: See `kubeconfig`.
            groups: See `kubeconfig`.
            check: Whether a failure raises.

        Raises:
            CommandError: It failed, and `check` was asked for.
            LabTimeout: Time was up.
        """
        argv = [self.programs.kubectl, "--kubeconfig", self.kubeconfig(identity, groups), *arguments]
        return run(argv, input=input, timeout=timeout, env=clean_environment(), check=check)

    def apply(self, *objects: Mapping[str, Any], timeout: float = 60) -> None:
        """Server-side apply objects as administrator.

        Raises:
            CommandError: The API server refused one.
        """
        manifest = json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)})
        self.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", input=manifest, timeout=timeout)

    def read(self, path: str) -> dict[str, Any] | None:
        """One object as the API server has it, asked for as administrator: a hundredth of what a kubectl costs.

        For what is asked over and over; what a user would do is done by `kubectl`.

        Args:
            path: Such as ``/api/v1/namespaces/kube-system``.

        Returns:
            The object; None when there is none.

        Raises:
            LabError: The API server does not answer, or refuses.
        """
        status, body = self._ask(path)
        if status == http.HTTPStatus.NOT_FOUND:
            return None
        if status != http.HTTPStatus.OK:
            raise LabError(f"GET {path}: {status} {body.decode(errors='replace')[:500]}")
        found: dict[str, Any] = json.loads(body)
        return found

    def audit_events(self) -> Iterator[dict[str, Any]]:
        """Everything the API server was asked so far, in order: see the audit.k8s.io/v1 Event."""
        if self.audit_log.exists():
            with self.audit_log.open() as lines:
                for line in lines:
                    if line.endswith("\n"):  # the last one may be half written
                        yield json.loads(line)

    # --- command lines ---

    def _make_managers(self) -> list[ManagedProcess]:
        """The controller manager and the scheduler, one of each: nobody to elect a leader from."""
        common = ("--leader-elect=false", "--bind-address=127.0.0.1")
        managers = []
        if (program := self.programs.kube_controller_manager) is not None:
            kubeconfig = self.kubeconfig("system:kube-controller-manager")
            argv: list[str | Path] = [program, "--kubeconfig", kubeconfig, *common, "--use-service-account-credentials"]
            argv += ["--service-account-private-key-file", self._signing, "--root-ca-file", self.ca_file]
            managers.append(ManagedProcess("kube-controller-manager", argv, run_dir=self.run_dir))
        if (program := self.programs.kube_scheduler) is not None:
            kubeconfig = self.kubeconfig("system:kube-scheduler")
            argv = [program, "--kubeconfig", kubeconfig, *common]
            managers.append(ManagedProcess("kube-scheduler", argv, run_dir=self.run_dir))
        return managers

    def _etcd_argv(self) -> list[str | Path]:
        return [
            self.programs.etcd,
            *("--name", "lab", "--data-dir", self.run_dir / "etcd", "--unsafe-no-fsync", "--log-level", "warn"),
            *("--listen-client-urls", _ETCD, "--advertise-client-urls", _ETCD),
            *("--listen-peer-urls", _ETCD_PEER, "--initial-advertise-peer-urls", _ETCD_PEER),
            *("--initial-cluster", f"lab={_ETCD_PEER}"),
        ]

    def _apiserver_argv(self, audit_level: AuditLevel) -> list[str | Path]:
        addresses = (CONTROL_PLANE_ADDRESS, "127.0.0.1", API_SERVICE_ADDRESS)
        certificate, key = self._authority.server("kube-apiserver", addresses, ("localhost", *_API_SERVICE_HOSTS))
        kubelet_certificate, kubelet_key = self._authority.client(
            "kube-apiserver-to-kubelets", "kube-apiserver-kubelet-client", ["system:masters"]
        )
        policy = self.run_dir / "audit-policy.json"
        policy.write_text(json.dumps(_audit_policy(audit_level)))
        flags: dict[str, str | Path] = {
            "etcd-servers": _ETCD,
            "bind-address": "0.0.0.0",
            "advertise-address": CONTROL_PLANE_ADDRESS,
            "secure-port": str(PORT),
            "tls-cert-file": certificate,
            "tls-private-key-file": key,
            "client-ca-file": self.ca_file,
            "authorization-mode": "RBAC,Node",
            "enable-admission-plugins": "NodeRestriction",
            "allow-privileged": "true",
            "service-cluster-ip-range": SERVICE_CIDR,
            "service-account-issuer": "https://kubernetes.default.svc",
            "service-account-key-file": self._signed_by,
            "service-account-signing-key-file": self._signing,
            "kubelet-client-certificate": kubelet_certificate,
            "kubelet-client-key": kubelet_key,
            "kubelet-preferred-address-types": "InternalIP",
            "audit-policy-file": policy,
            "audit-log-path": self.audit_log,
            "audit-log-maxsize": "500",  # MB; then it is moved aside, and audit_events starts anew
            "audit-log-maxbackup": "1",
        }
        return [self.programs.kube_apiserver, *(f"--{flag}={value}" for flag, value in flags.items())]


def assert_ours(kubeconfig: Path, lab_json: Path, kubectl: Path) -> None:
    """Make sure that the cluster behind a kubeconfig is the one this lab started.

    Args:
        kubeconfig: To be used.
        lab_json: The lab's own record: ``lab.json`` in its run directory.
        kubectl: The executable.

    Raises:
        NotOurs: It is another cluster.
        CommandError: It does not answer.
    """
    ours = json.loads(lab_json.read_text())["clusterId"]
    argv: list[str | Path] = [
        kubectl,
        "--kubeconfig",
        kubeconfig,
        "get",
        "namespace",
        "kube-system",
        "-o",
        "jsonpath={.metadata.uid}",
    ]
    theirs = run(argv, timeout=30, env=clean_environment()).stdout_text
    if theirs != ours:
        raise NotOurs(
            f"{kubeconfig} leads to cluster {theirs or '(unknown)'}, but this lab's is {ours}: the lab touches no"
            " cluster that it did not start; use the kubeconfig of `python -m lab status`"
        )


def clean_environment() -> dict[str, str]:
    """This process's environment without what would lead kubectl to another cluster, or through a proxy."""
    hidden = {"KUBECONFIG", "KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT", "KUBERNETES_MASTER"}
    return {
        name: value
        for name, value in os.environ.items()
        if name not in hidden and name.lower() not in {"http_proxy", "https_proxy", "all_proxy"}
    }


def user_environment(kubectl: str | Path, kubeconfig: str | Path, *programs: Path) -> dict[str, str]:
    """What a user's shell has for a cluster: its kubeconfig; programs and the plugins of this Python on the PATH."""
    environment = clean_environment()
    folders = (Path(kubectl).parent, Path(sys.executable).parent, *(program.parent for program in programs))
    environment["PATH"] = os.pathsep.join([*map(str, folders), environment.get("PATH", os.defpath)])
    environment["KUBECONFIG"] = str(kubeconfig)
    return environment


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner can read, from its first byte on; whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    part = path.with_name(path.name + ".part")
    part.unlink(missing_ok=True)
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    part.rename(path)


def _kubeconfig(identity: str, cluster: Mapping[str, str], user: Mapping[str, str]) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "kubeflash-lab", "cluster": cluster}],
        "users": [{"name": identity, "user": user}],
        "contexts": [{"name": "lab", "context": {"cluster": "kubeflash-lab", "user": identity}}],
        "current-context": "lab",
    }


def _audit_policy(level: AuditLevel) -> dict[str, Any]:
    return {
        "apiVersion": "audit.k8s.io/v1",
        "kind": "Policy",
        "omitStages": ["RequestReceived"],
        "rules": [
            {"level": "None", "nonResourceURLs": ["/readyz*", "/livez*", "/healthz*"]},
            {"level": "Metadata", "resources": [{"group": "", "resources": ["secrets", "serviceaccounts/token"]}]},
            {"level": level},
        ],
    }


def _base64(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


def _etcd_healthy() -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", 2379, timeout=5)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):  # not listening yet
        return False
    finally:
        connection.close()


def _wait_port_free(address: str, port: int) -> None:
    def free() -> bool:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((address, port))
            except OSError:
                return False
        return True

    try:
        wait_until(f"port {port} of {address} free", free, timeout=_PORT_TIMEOUT)
    except LabTimeout as error:
        raise LabTimeout(f"{error}: see who holds it with `python -m lab shell -- ss -tlnp`") from None
