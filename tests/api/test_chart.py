"""The charts as an administrator meets them: Helm against a real API server. Nobody runs the pods here."""

from __future__ import annotations

import copy
import itertools
import json
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

import manifest
from api.objects import CRDS
from kubeflash import __version__
from kubeflash.api.v1alpha1 import KINDS
from lab.controlplane import ControlPlane
from lab.helm import Helm

pytestmark = pytest.mark.api

REPO = Path(__file__).parents[2]
CHART, KINDS_CHART = REPO / "charts" / "kubeflash", REPO / "charts" / "kubeflash-crds"
MINE = ("-l", "app.kubernetes.io/part-of=kubeflash")
POLICIES = "validatingadmissionpolicies,validatingadmissionpolicybindings"
CLUSTER_WIDE = f"clusterroles,clusterrolebindings,{POLICIES},customresourcedefinitions"
NAMES = sorted(f"{kind.info.plural}.kubeflash.io" for kind in KINDS)
_numbers = itertools.count(1)


# --- one Helm and one cluster, both bare


@pytest.fixture(scope="module")
def helm(lab, tmp_path_factory) -> Helm:
    return Helm(tmp_path_factory.mktemp("helm"), lab.control_plane.kubeconfig())


@pytest.fixture(scope="module")
def cluster(cluster: ControlPlane):
    """The session's cluster without anything of KubeFlash; with its kinds again when this module is done."""
    _strip(cluster)
    yield cluster
    _strip(cluster)
    cluster.kubectl("apply", "--server-side", "-f", CRDS)
    cluster.kubectl("wait", "--for=condition=Established", "--timeout=30s", "-f", CRDS)


def _strip(cluster: ControlPlane) -> None:
    cluster.kubectl("delete", CLUSTER_WIDE, *MINE, "--wait=false")
    for namespace in ("default", "kubeflash-system"):
        cluster.kubectl("delete", "roles,rolebindings", "-n", namespace, *MINE)
    deadline = time.monotonic() + 60
    while crd_names(cluster):
        assert time.monotonic() < deadline
        # The API server fails to empty a kind that was changed a moment ago; it tries ever later again, or at a change.
        cluster.kubectl("annotate", "--overwrite", "crd", *MINE, f"look={time.monotonic_ns()}", check=False)
        time.sleep(0.5)


@pytest.fixture
def bare(cluster: ControlPlane):
    """Nothing of KubeFlash, before and after."""
    yield cluster
    _strip(cluster)


@pytest.fixture
def namespace(cluster: ControlPlane) -> str:
    """A namespace that no other test has, as the README makes it."""
    name = f"chart-{next(_numbers)}"
    cluster.kubectl("create", "namespace", name)
    cluster.kubectl("label", "namespace", name, "pod-security.kubernetes.io/enforce=privileged")
    return name


@pytest.fixture
def installed(bare, helm, namespace) -> str:
    """Both charts installed; the namespace."""
    helm("install", "kubeflash-crds", KINDS_CHART, "-n", namespace)
    helm("install", "kubeflash", CHART, "-n", namespace)
    return namespace


def refused(helm: Helm, *words: Any) -> str:
    """What Helm says when it refuses, on one line."""
    done = helm(*words, check=False)
    assert done.exit_code != 0, done.stdout_text
    return " ".join(done.stderr_text.split())


def rendered(helm: Helm, *words: Any) -> list[dict[str, Any]]:
    done = helm("template", "kubeflash", CHART, "-n", "kubeflash-system", *words)
    return [item for item in yaml.safe_load_all(done.stdout_text) if item]


def one(documents: list[dict[str, Any]], kind: str, name: str) -> dict[str, Any]:
    [found] = [item for item in documents if (item["kind"], item["metadata"]["name"]) == (kind, name)]
    return found


def agent(documents: list[dict[str, Any]]) -> dict[str, Any]:
    return one(documents, "DaemonSet", "kubeflash-agent")["spec"]["template"]["spec"]


def controller(documents: list[dict[str, Any]]) -> dict[str, Any]:
    return one(documents, "Deployment", "kubeflash-controller")["spec"]["template"]["spec"]


def crd_names(cluster: ControlPlane) -> list[str]:
    listed = json.loads(cluster.kubectl("get", "crd", *MINE, "-o", "json").stdout_text)["items"]
    return sorted(item["metadata"]["name"] for item in listed)


# --- what is rendered


def test_the_manifest_and_the_kustomization_are_fresh(helm, cluster):
    assert manifest.FILE.read_text() == manifest.manifest(helm), "run `make manifest`"
    built = cluster.kubectl("kustomize", REPO / "deploy").stdout_text
    plain = list(yaml.safe_load_all(manifest.FILE.read_text()))
    assert sorted(map(str, yaml.safe_load_all(built))) != []
    key = lambda item: (item["kind"], item["metadata"].get("namespace", ""), item["metadata"]["name"])  # noqa: E731
    assert sorted(yaml.safe_load_all(built), key=key) == sorted(plain, key=key)
    assert not {"CustomResourceDefinition", "ConfigMap", "Pod"} & {item["kind"] for item in plain}


@pytest.mark.parametrize("how", ["client-side", "server-side"])
def test_helm_takes_over_what_kubectl_installed(bare, helm, how):
    system = ("-n", "kubeflash-system")
    bare.kubectl("apply", "--server-side", "-f", CRDS)
    bare.kubectl("apply", *(["--server-side"] if how == "server-side" else []), "-f", manifest.FILE)
    said = refused(helm, "install", "kubeflash", CHART, *system)
    assert "exists and cannot be imported into the current release: invalid ownership metadata" in said
    helm("install", "kubeflash", CHART, *system, "--take-ownership")
    helm("upgrade", "kubeflash", CHART, *system)
    bare.kubectl("apply", *(["--server-side"] if how == "server-side" else []), "-f", manifest.FILE)
    helm("uninstall", "kubeflash", *system)


HOST_PATHS = {
    ("/dev", "Directory", False): "SSDs, partitions, /dev/nvme-fabrics, /dev/kmsg",
    ("/sys", "Directory", False): "the PCIe tree; nvmet's configfs",
    ("/lib/modules", "Directory", True): "modules that could be loaded, and loading them",
    ("/boot", "Directory", True): "the kernel's configuration: authentication and TLS of its target",
    ("/etc/machine-id", "File", True): "the server's identity where its firmware has none",
    ("/var/lib/kubeflash", "DirectoryOrCreate", False): "the private key",
    ("/run/kubeflash", "DirectoryOrCreate", False): "the lock that keeps a server to one agent",
}


def test_the_agent_sees_these_paths_of_the_server_and_no_others(helm):
    spec = agent(rendered(helm))
    [container] = spec["containers"]
    mounts = {item["name"]: item for item in container["volumeMounts"]}
    seen = {
        (volume["hostPath"]["path"], volume["hostPath"]["type"], mounts[volume["name"]].get("readOnly", False))
        for volume in spec["volumes"]
    }
    assert seen == HOST_PATHS.keys()
    assert all(mounts[volume["name"]]["mountPath"] == volume["hostPath"]["path"] for volume in spec["volumes"])
    late = {item["mountPath"] for item in mounts.values() if item.get("mountPropagation") == "HostToContainer"}
    assert late == {"/dev", "/sys"}, "what is mounted on the server later is seen"
    assert not any(item.get("mountPropagation") == "Bidirectional" for item in mounts.values())
    assert (spec["hostNetwork"], spec["hostPID"], spec["dnsPolicy"]) == (True, True, "ClusterFirstWithHostNet")
    assert not spec.get("hostIPC")


def test_nobody_gets_a_wildcard_or_a_secret(helm):
    documents = rendered(helm)
    roles = [item for item in documents if item["kind"] in ("Role", "ClusterRole")]
    assert len(roles) == 11
    for role in roles:
        for rule in role["rules"]:
            assert "*" not in str(rule), role["metadata"]["name"]
            assert "secrets" not in rule["resources"], role["metadata"]["name"]
            assert not {"escalate", "bind", "impersonate"} & set(rule["verbs"]), role["metadata"]["name"]
    subjects = [
        (subject["kind"], subject["name"])
        for item in documents
        if item["kind"] in ("RoleBinding", "ClusterRoleBinding")
        for subject in item["subjects"]
    ]
    assert set(subjects) == {
        ("ServiceAccount", name) for name in ("kubeflash-controller", "kubeflash-agent", "kubeflash-check")
    }


def test_openshift_lets_each_pod_run_as_it_must(helm):
    assert not [item for item in rendered(helm) if "scc" in str(item.get("roleRef"))]
    documents = rendered(helm, "--api-versions", "security.openshift.io/v1")
    bound = {
        (item["subjects"][0]["name"], item["roleRef"]["name"], item["metadata"]["namespace"])
        for item in documents
        if "scc" in str(item.get("roleRef"))
    }
    assert bound == {
        ("kubeflash-agent", "system:openshift:scc:privileged", "kubeflash-system"),
        ("kubeflash-controller", "system:openshift:scc:nonroot-v2", "kubeflash-system"),
        ("kubeflash-check", "system:openshift:scc:nonroot-v2", "kubeflash-system"),
    }


def test_agents_run_on_machines_alone(helm):
    """A pod that waits for ever for a Node that is none would hold up every upgrade."""
    terms = agent(rendered(helm))["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    [term] = terms["nodeSelectorTerms"]
    said = {item["key"]: (item["operator"], item["values"]) for item in term["matchExpressions"]}
    assert said == {
        "kubernetes.io/arch": ("In", ["amd64", "arm64"]),
        "eks.amazonaws.com/compute-type": ("NotIn", ["fargate"]),
        "type": ("NotIn", ["virtual-kubelet"]),
    }


def test_the_test_of_a_release_looks_where_it_is(helm):
    done = helm("template", "kubeflash", CHART, "-n", "elsewhere")
    [container] = one(list(yaml.safe_load_all(done.stdout_text)), "Pod", "kubeflash-check")["spec"]["containers"]
    assert container["command"][-2:] == ["--system-namespace", "elsewhere"]


def test_what_the_processes_are_told(helm):
    documents = rendered(helm)
    [container] = agent(documents)["containers"]
    assert container["image"] == f"kubeflash:{__version__}"
    assert container["args"] == [
        "--node=$(NODE_NAME)",
        "--address=$(HOST_IP)",
        "--namespace=$(POD_NAMESPACE)",
        "--log-level=INFO",
        "--load-modules",
        "--serve=127.0.0.1:9808",
    ]
    [other] = controller(documents)["containers"]
    assert other["args"] == ["--namespace=$(POD_NAMESPACE)", "--log-level=INFO", "--serve=:8080"]
    assert agent(documents)["tolerations"] == [{"operator": "Exists"}]
    assert agent(documents)["priorityClassName"] == "system-node-critical"
    for one_of in (container, other):
        assert "cpu" not in one_of["resources"]["limits"]
        start = one_of["startupProbe"]
        assert start["periodSeconds"] * start["failureThreshold"] == 300
        assert start["httpGet"]["path"] == one_of["livenessProbe"]["httpGet"]["path"] == "/livez"
        assert one_of["readinessProbe"]["httpGet"]["path"] == "/readyz"
        assert one_of["livenessProbe"]["periodSeconds"] * one_of["livenessProbe"]["failureThreshold"] >= 120


def test_values_reach_the_processes(helm, tmp_path):
    values = {
        "image": {"repository": "registry.example/kubeflash", "digest": "sha256:" + "0" * 64},
        "clusterId": "former",
        "logLevel": "DEBUG",
        "apiServer": {"host": "10.9.0.1", "port": 6444},
        "imagePullSecrets": [{"name": "pull"}],
        "agent": {
            "gpus": ["1234:0380", "1002:1200"],
            "loadModules": False,
            "listenAddress": "",
            "port": 9999,
            "nodeSelector": {"nvidia.com/gpu.present": "true"},
            "updateStrategy": {"maxUnavailable": 3},
            "podAnnotations": {"note": "a"},
            "podLabels": {"team": "b"},
            "extraArgs": ["--run-dir=/run/kubeflash"],
        },
        "controller": {"networkPolicy": {"enabled": True}, "podDisruptionBudget": {"enabled": False}},
    }
    (tmp_path / "values.yaml").write_text(yaml.safe_dump(values))
    documents = rendered(helm, "--values", tmp_path / "values.yaml")
    daemons = one(documents, "DaemonSet", "kubeflash-agent")["spec"]
    spec = daemons["template"]["spec"]
    [container] = spec["containers"]
    assert container["image"] == "registry.example/kubeflash@sha256:" + "0" * 64
    assert container["args"] == [
        "--node=$(NODE_NAME)",
        "--address=$(HOST_IP)",
        "--namespace=$(POD_NAMESPACE)",
        "--log-level=DEBUG",
        "--cluster-id=former",
        "--serve=:9999",
        "--gpu=1234:0380",
        "--gpu=1002:1200",
        "--run-dir=/run/kubeflash",
    ]
    assert container["livenessProbe"]["httpGet"] == {"path": "/livez", "port": 9999}
    assert {"name": "KUBERNETES_SERVICE_HOST", "value": "10.9.0.1"} in container["env"]
    assert {"name": "KUBERNETES_SERVICE_PORT", "value": "6444"} in container["env"]
    assert spec["nodeSelector"] == {"kubernetes.io/os": "linux", "nvidia.com/gpu.present": "true"}
    assert spec["imagePullSecrets"] == [{"name": "pull"}]
    assert daemons["updateStrategy"]["rollingUpdate"] == {"maxSurge": 0, "maxUnavailable": 3}
    meta = daemons["template"]["metadata"]
    assert (meta["annotations"]["note"], meta["labels"]["team"]) == ("a", "b")
    kinds = {item["kind"] for item in documents}
    assert "NetworkPolicy" in kinds
    assert "PodDisruptionBudget" not in kinds


# --- what is refused before anything is done


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("agent.gpuz=1234:0380", "at '/agent': additional properties 'gpuz' not allowed"),
        ("agnet.port=1", "additional properties 'agnet' not allowed"),
        ("controller.replicas=two", "at '/controller/replicas': got string, want integer"),
        ("controller.replicas=0", "at '/controller/replicas': minimum: got 0, want 1"),
        ("agent.loadModules=maybe", "at '/agent/loadModules': got string, want boolean"),
        ("agent.port=70000", "at '/agent/port': maximum: got 70,000, want 65,535"),
        ("logLevel=LOUD", "at '/logLevel': value must be one of 'DEBUG', 'INFO', 'WARNING', 'ERROR'"),
        ("image.pullPolicy=Sometimes", "value must be one of 'Always', 'IfNotPresent', 'Never'"),
        ("image.repository=registry:5000/kubeflash:0.1.0", "at '/image/repository'"),
        ("image.repository=registry.example/kubeflash@sha256", "at '/image/repository'"),
        ("image.tag=1.0 final", "at '/image/tag': '1.0 final' does not match pattern"),
        ("agent.gpus[0]=nvidia", 'agent.gpus: "nvidia" is no vendor and class of PCI: four hexadecimal digits each'),
        ("agent.updateStrategy.maxUnavailable=0", "at '/agent/updateStrategy/maxUnavailable'"),
        ("agent.resources.limits.memory=lots", "at '/agent/resources/limits/memory'"),
        ("agent.tolerations[0].efect=NoSchedule", "additional properties 'efect' not allowed"),
        ("agent.extraArgs[0]=--node=other", 'agent.extraArgs: "--node=other" is set by the chart'),
        ("controller.extraArgs[0]=--serve=:1", 'controller.extraArgs: "--serve=:1" is set by the chart'),
        ("agent.podLabels.app\\.kubernetes\\.io/name=x", "agent.podLabels: app.kubernetes.io/name is the chart's own"),
    ],
)
def test_a_wrong_value_is_refused_and_explained(helm, setting, message):
    assert message in refused(helm, "template", "kubeflash", CHART, "--set", setting)


@pytest.mark.parametrize("chart", [CHART, KINDS_CHART], ids=["kubeflash", "kubeflash-crds"])
def test_a_cluster_that_is_too_old_is_refused(helm, chart):
    said = refused(helm, "template", "kubeflash", chart, "--kube-version", "1.28.4")
    assert "requires kubeVersion: >=1.32.0-0 which is incompatible with Kubernetes v1.28.4" in said
    helm("template", "kubeflash", chart, "--kube-version", "1.32.0-gke.100")


def test_without_the_kinds_nothing_is_installed(bare, helm, namespace):
    said = refused(helm, "install", "kubeflash", CHART, "-n", namespace)
    assert "The cluster does not know the kind flashattachments.kubeflash.io." in said
    assert f"helm upgrade --install kubeflash-crds charts/kubeflash-crds --namespace {namespace}" in said
    assert "kubectl apply --server-side -f crds/" in said
    assert bare.kubectl("get", "clusterroles", *MINE, "-o", "name").stdout_text == ""
    assert "does not know the kind" in refused(helm, "install", "kubeflash", CHART, "-n", namespace, "--dry-run=server")
    helm("install", "kubeflash", CHART, "-n", namespace, "--dry-run=client")


def test_over_older_kinds_nothing_is_upgraded_and_over_newer_ones_it_is(bare, helm, installed):
    def of_version(version: str) -> None:
        label = f"app.kubernetes.io/version={version}"
        bare.kubectl("label", "--overwrite", "crd", "flashnodes.kubeflash.io", label)

    of_version("0.0.9")
    said = refused(helm, "upgrade", "kubeflash", CHART, "-n", installed)
    assert (
        f"The kind flashnodes.kubeflash.io is of version 0.0.9, which is older than this chart's {__version__}" in said
    )
    assert "--force-conflicts -f crds/" in said
    bare.kubectl(
        "label", "crd", "flashnodes.kubeflash.io", "app.kubernetes.io/version-"
    )  # as before it was said at all
    assert "is of version 0.0.0" in refused(helm, "upgrade", "kubeflash", CHART, "-n", installed)
    of_version("99.0.0")
    helm("upgrade", "kubeflash", CHART, "-n", installed)


@pytest.mark.parametrize("level", ["baseline", "restricted"])
def test_a_namespace_in_which_no_agent_could_start_is_refused(bare, helm, namespace, level):
    helm("install", "kubeflash-crds", KINDS_CHART, "-n", namespace)
    label = f"pod-security.kubernetes.io/enforce={level}"
    bare.kubectl("label", "--overwrite", "namespace", namespace, label)
    said = refused(helm, "install", "kubeflash", CHART, "-n", namespace)
    assert f'Namespace {namespace} enforces Pod Security "{level}", and no agent could start there' in said
    mend = f"kubectl label --overwrite namespace {namespace} pod-security.kubernetes.io/enforce=privileged"
    assert mend in said
    bare.kubectl(*mend.split()[1:])
    helm("install", "kubeflash", CHART, "-n", namespace)


def test_a_second_installation_is_refused(bare, helm, installed):
    bare.kubectl("create", "namespace", f"{installed}-second")
    said = refused(helm, "install", "second", CHART, "-n", f"{installed}-second")
    assert "exists and cannot be imported into the current release" in said
    assert f'must equal "{installed}-second": current value is "{installed}"' in said


def test_the_controller_fits_pod_security_restricted_and_the_agent_does_not(bare, helm, cluster):
    name = f"restricted-{next(_numbers)}"
    bare.kubectl("create", "namespace", name)
    for account in ("kubeflash-controller", "kubeflash-agent", "kubeflash-check"):
        bare.kubectl("create", "serviceaccount", account, "-n", name)
    bare.kubectl("label", "namespace", name, "pod-security.kubernetes.io/enforce=restricted")
    documents = rendered(helm)
    check = one(documents, "Pod", "kubeflash-check")["spec"]

    def created(spec: dict[str, Any]) -> Any:
        body = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": name}, "spec": spec}
        return bare.kubectl("create", "--dry-run=server", "-f", "-", input=json.dumps(body), check=False)

    for spec in (controller(documents), check):
        done = created(spec)
        assert done.exit_code == 0, done.stderr_text
    assert 'violates PodSecurity "restricted' in created(agent(documents)).stderr_text


# --- the life of an installation


def test_what_is_installed_and_what_it_says(bare, helm, namespace):
    helm("install", "kubeflash-crds", KINDS_CHART, "-n", namespace)
    nodes = {
        "new": ("6.12.57+deb13-amd64", "amd64", "linux"),
        "old": ("5.14.0-570.el9.x86_64", "amd64", "linux"),
        "older": ("6.6.8", "arm64", "linux"),
        "arm": ("6.12.57+deb13-arm64", "arm64", "linux"),
        "strange": ("6.17.1", "s390x", "linux"),
        "panes": ("10.0.26100", "amd64", "windows"),
    }
    try:
        for name, (kernel, architecture, system) in nodes.items():
            labels = {"kubernetes.io/os": system, "gpu": str(name != "panes").lower()}
            bare.apply({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels}})
            told = {"kernelVersion": kernel, "architecture": architecture, "operatingSystem": system}
            patch = json.dumps({"status": {"nodeInfo": {**dict.fromkeys(INFO, ""), **told}}})
            bare.kubectl("patch", "node", name, "--subresource=status", "--type=merge", "-p", patch)
        notes = helm("install", "kubeflash", CHART, "-n", namespace).stdout_text
        assert "Agents are meant for 2 Nodes: arm, new" in notes
        assert "These Nodes are of several architectures (amd64, arm64)" in notes
        assert "image.repository is kubeflash, without a registry" in notes
        unfit = notes.split("These cannot take part:\n")[1].split("\n\n")[0].splitlines()
        assert [line.strip() for line in unfit] == [
            "old has Linux 5.14.0-570.el9.x86_64: 6.8 or later is needed",
            "older has Linux 6.6.8: 6.8 or later is needed",
            "strange is of architecture s390x, which the image is not for",
        ]
        assert f"helm test kubeflash --namespace {namespace} --logs" in notes
        assert "kind: FlashPool" in notes
        assert "enforce=privileged" not in notes
        one_kind = ("--set-string", "agent.nodeSelector.gpu=true", "--set", "image.repository=r.example/kubeflash")
        bare.kubectl("label", "--overwrite", "node", "arm", "gpu=none")
        said = helm("upgrade", "kubeflash", CHART, "-n", namespace, *one_kind).stdout_text
        assert "Agents are meant for 1 Node: new" in said
        assert "several architectures" not in said
        assert "without a registry" not in said
        bare.kubectl("delete", "node", "arm")
        none = helm("upgrade", "kubeflash", CHART, "-n", namespace, "--set", "agent.nodeSelector.gpu=none").stdout_text
        assert "No Node of this cluster fits agent.nodeSelector (gpu=none, kubernetes.io/os=linux)" in none
        node = {"apiVersion": "kubeflash.io/v1alpha1", "kind": "FlashNode", "metadata": {"name": "new"}}
        bare.apply(node)
        failing = {"type": "Ready", "status": "False", "reason": "KernelLacks", "message": "load nvmet"}
        condition = {**failing, "lastTransitionTime": "2026-01-01T00:00:00Z", "observedGeneration": 1}
        patch = json.dumps({"status": {"conditions": [condition]}})
        bare.kubectl("patch", "flashnode", "new", "--subresource=status", "--type=merge", "-p", patch)
        bare.kubectl("label", "namespace", namespace, "pod-security.kubernetes.io/enforce-")
        again = helm("upgrade", "kubeflash", CHART, "-n", namespace).stdout_text
        assert "FlashNodes that are not Ready, as they said before this:\n  new: load nvmet" in again
        assert f"kubectl label namespace {namespace} pod-security.kubernetes.io/enforce=privileged" in again
    finally:
        bare.kubectl("delete", "node", *nodes, "--ignore-not-found")


INFO = (
    "machineID", "systemUUID", "bootID", "kernelVersion", "osImage", "containerRuntimeVersion", "kubeletVersion",
    "kubeProxyVersion", "operatingSystem", "architecture",
)  # fmt: skip


def test_uninstalling_keeps_kinds_and_objects_says_so_and_another_release_takes_over(bare, helm, installed):
    pool = {
        "apiVersion": "kubeflash.io/v1alpha1",
        "kind": "FlashPool",
        "metadata": {"name": "kept"},
        "spec": {"ssds": {"serials": ["S"]}},
    }
    bare.apply(pool)
    said = helm("uninstall", "kubeflash", "-n", installed).stdout_text
    assert "[ConfigMap] kubeflash-volumes-and-exports-stay" in said
    left = bare.kubectl("get", CLUSTER_WIDE.replace(",customresourcedefinitions", ""), *MINE, "-o", "name")
    assert left.stdout_text == ""
    said = helm("uninstall", "kubeflash-crds", "-n", installed).stdout_text
    assert "These resources were kept due to the resource policy" in said
    assert said.count("[CustomResourceDefinition]") == len(KINDS)
    assert crd_names(bare) == NAMES
    bare.kubectl("get", "flashpool", "kept")

    other = f"{installed}-other"
    bare.kubectl("create", "namespace", other)
    said = refused(helm, "install", "kinds", KINDS_CHART, "-n", other)
    assert "exists and cannot be imported into the current release" in said
    helm("install", "kinds", KINDS_CHART, "-n", other, "--take-ownership")
    helm("install", "flash", CHART, "-n", other)
    binding = bare.kubectl("get", "clusterrolebinding", "kubeflash-agent", "-o", "jsonpath={.subjects[0].namespace}")
    assert binding.stdout_text == other
    helm("uninstall", "flash", "-n", other)
    helm("install", "flash", CHART, "-n", other)  # the same again: what it kept is its own


def test_kubectl_and_helm_write_the_kinds_side_by_side(bare, helm, namespace):
    for first in ("helm", "kubectl"):
        _strip(bare)
        if first == "helm":
            helm("install", f"by-{first}", KINDS_CHART, "-n", namespace)
            bare.kubectl("apply", "--server-side", "-f", CRDS)
        else:
            bare.kubectl("apply", "--server-side", "-f", CRDS)
            said = refused(helm, "install", f"by-{first}", KINDS_CHART, "-n", namespace)
            assert "invalid ownership metadata" in said
            helm("install", f"by-{first}", KINDS_CHART, "-n", namespace, "--take-ownership")
        helm("upgrade", f"by-{first}", KINDS_CHART, "-n", namespace)
        bare.kubectl("apply", "--server-side", "-f", CRDS)
        bare.kubectl("apply", "-f", CRDS)
        helm("upgrade", f"by-{first}", KINDS_CHART, "-n", namespace)


def newer(tmp_path: Path) -> tuple[Path, Path]:
    """The chart of the kinds, and crds/, with one more field in a FlashPool: a version that is to come."""
    chart, folder = tmp_path / "kubeflash-crds", tmp_path / "crds"
    for made, source in ((chart / "templates", KINDS_CHART / "templates"), (folder, Path(CRDS))):
        made.mkdir(parents=True)
        for file in source.glob("*.yaml"):
            body = yaml.safe_load(file.read_text())
            if body["spec"]["names"]["kind"] == "FlashPool":
                schema = body["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
                schema["properties"]["spec"]["properties"]["toCome"] = {"type": "string"}
            (made / file.name).write_text(yaml.safe_dump(copy.deepcopy(body)))
    (chart / "Chart.yaml").write_text((KINDS_CHART / "Chart.yaml").read_text())
    return chart, folder


def knows_the_field(cluster: ControlPlane) -> bool:
    shown = json.loads(cluster.kubectl("get", "crd", "flashpools.kubeflash.io", "-o", "json").stdout_text)
    schema = shown["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return "toCome" in schema["properties"]["spec"]["properties"]


def test_kinds_are_upgraded_by_helm_and_a_rollback_of_kubeflash_drops_no_field(bare, helm, installed, tmp_path):
    chart, _ = newer(tmp_path)
    helm("upgrade", "kubeflash-crds", chart, "-n", installed)
    assert knows_the_field(bare)
    helm("upgrade", "kubeflash", CHART, "-n", installed, "--set", "logLevel=DEBUG")
    helm("rollback", "kubeflash", "1", "-n", installed)
    assert knows_the_field(bare)
    arguments = "jsonpath={.spec.template.spec.containers[0].args}"
    now = bare.kubectl("get", "deployment", "kubeflash-controller", "-n", installed, "-o", arguments).stdout_text
    assert "--log-level=INFO" in now


def test_newer_kinds_over_another_s_older_ones_take_force_and_older_ones_over_newer_are_refused(
    bare, helm, namespace, tmp_path
):
    chart, folder = newer(tmp_path)
    release = ("upgrade", "--install", "kubeflash-crds")
    helm(*release, KINDS_CHART, "-n", namespace)
    done = bare.kubectl("apply", "--server-side", "-f", folder, check=False)
    assert 'conflict with "helm": .spec.versions' in done.stderr_text
    bare.kubectl("apply", "--server-side", "--force-conflicts", "-f", folder)
    assert knows_the_field(bare)
    said = refused(helm, *release, KINDS_CHART, "-n", namespace)
    assert 'conflict with "kubectl": .spec.versions' in said
    assert knows_the_field(bare)
    helm(*release, chart, "-n", namespace)

    _strip(bare)
    bare.kubectl("apply", "--server-side", "-f", CRDS)
    helm("install", "kinds", KINDS_CHART, "-n", namespace, "--take-ownership")
    said = refused(helm, "upgrade", "kinds", chart, "-n", namespace)
    assert 'conflict with "kubectl": .spec.versions' in said
    helm("upgrade", "kinds", chart, "-n", namespace, "--force-conflicts")
    assert knows_the_field(bare)
