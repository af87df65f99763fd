"""What is in the image, and what is not."""

from __future__ import annotations

import json
import re
import subprocess
import tarfile
from email.parser import Parser
from pathlib import Path

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from image.conftest import REPO, Image
from kubeflash.host import pcinames
from kubeflash.host.commands import PACKAGES
from lab import container
from support.commands import programs

pytestmark = pytest.mark.image

CHECK = "/mnt/check-image"
TOOLS = re.compile(
    r"^(.*-)?(gcc|g\+\+|cc|c\+\+|cpp|clang|ld|as|make|rustc|go|pip\d*|pip3\..*|easy_install|strip|objdump|gdb|git|curl|wget"
    r"|ssh|nc|openssl)(-[\d.]+)?$"
)
BUILD_PACKAGES = re.compile(r"((gcc|g\+\+|cpp)(-\d+)?|binutils.*|make|python3.*-(venv|pip)|.*-dev)$")


@pytest.fixture
def copy(image: Image, tmp_path: Path) -> Image:
    """A copy of the image that a test may damage: of its Python environment, that is; all else is the same files."""
    root = tmp_path / "copy"
    subprocess.run(["cp", "-al", image.root, root], check=True)
    return Image(image.archive, container.Unpacked(root, image.unpacked.config))


def installed(root: Path) -> dict[str, str]:
    """Debian's packages in a root file system, with their versions."""
    argv = [
        "dpkg-query",
        f"--admindir={root}/var/lib/dpkg",
        "--show",
        "--showformat=${db:Status-Abbrev}|${Package}|${Version}\n",
    ]
    lines = subprocess.run(argv, check=True, capture_output=True, text=True).stdout.splitlines()
    return {name: version for status, name, version in (line.split("|") for line in lines) if status.startswith("ii")}


def distributions(site: Path) -> dict[str, str]:
    """Python's packages in a folder, with their versions."""
    parsed = [Parser().parsestr(path.read_text()) for path in site.glob("*.dist-info/METADATA")]
    return {normal(str(one["Name"])): str(one["Version"]) for one in parsed}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_the_archive_has_the_name_that_pods_ask_for(image):
    with tarfile.open(image.archive) as tar:
        file = tar.extractfile("manifest.json")
        assert file is not None
        (manifest,) = json.load(file)
    assert manifest["RepoTags"] == [f"docker.io/library/{container.name(REPO)}"]


def test_it_is_small(image):
    size = image.archive.stat().st_size >> 20
    assert size < 165, f"{size} MiB; docs/image.md says 147: what came in?"
    package = sum(path.stat().st_size for path in (image.site / "kubernetes").rglob("*") if path.is_file())
    assert package < 2 << 20, f"the kubernetes package is {package >> 20} MiB again"


def test_nothing_in_it_builds_or_fetches(image):
    folders = ("bin", "sbin", "usr/bin", "usr/sbin", "usr/local/bin", "usr/local/sbin", "opt/kubeflash/bin")
    found = [path.name for folder in folders for path in (image.root / folder).iterdir() if TOOLS.match(path.name)]
    assert found == []
    assert [name for name in installed(image.root) if BUILD_PACKAGES.match(name)] == []
    for module in ("pip", "setuptools", "ensurepip", "wheel", "hatchling"):
        assert list(image.root.glob(f"usr/lib/python3*/**/{module}")) == [], module
        assert list(image.site.glob(f"{module}*")) == [], module
    assert list((image.root / "var/lib/apt/lists").iterdir()) == []


def test_console_scripts_are_kubeflash_s_alone(image):
    scripts = {path.name for path in (image.root / "opt/kubeflash/bin").iterdir() if not path.name.startswith("python")}
    assert scripts == {"kubeflash-controller", "kubeflash-agent", "kubectl-flash", "kubectl_complete-flash"}


@pytest.mark.parametrize("program", sorted({*programs(), "modprobe"}))
def test_every_program_that_the_agent_runs_is_in_it(image, program):
    done = image.run("sh", "-c", f"command -v {program}", user=0)
    assert done.exit_code == 0, f"the Dockerfile lacks {PACKAGES.get(program, program)}"
    done = image.run(program, "version" if program == "nvme" else "--version", user=0)
    assert done.exit_code == 0, done.stderr_text


def test_devices_have_names_in_it(image):
    assert any((image.root / place).is_file() for place in pcinames._PLACES)


def test_nobody_s_secrets_or_settings_are_in_it(image):
    """What was lent to the build: a mirror, an index, certificates."""
    for path in (
        "root/.config",
        "root/certificates",
        "etc/apt/sources.list.d/host.list",
        "etc/apt/apt.conf.d/host",
        "src",
    ):
        assert not (image.root / path).exists(), path
    assert {path.name for path in (image.root / "root").iterdir()} <= {".bashrc", ".profile"}


def test_no_server_gets_its_identity_from_the_image(image):
    """nvme-cli makes a host NQN when it is installed, and so does Debian a machine id."""
    assert list((image.root / "etc/nvme").glob("host*")) == []
    machine_id = image.root / "etc/machine-id"
    assert not machine_id.exists() or machine_id.read_text().strip() in ("", "uninitialized")


# --- Python ---


def check(image: Image) -> list[str]:
    """What scripts/check-image says in the image."""
    done = image.run("/opt/kubeflash/bin/python", CHECK, mounts={"/mnt": REPO / "scripts"})
    lines = done.stderr_text.splitlines()
    assert done.exit_code == (1 if lines else 0), done.stderr_text
    return lines


def test_every_import_finds_its_module_and_all_is_compiled(image):
    assert check(image) == []


@pytest.mark.parametrize(
    ("lost", "said"),
    [
        ("kubernetes/config/exec_provider.py", "No module named 'kubernetes.config.exec_provider'"),
        ("kubeflash/cli/wipe.py", "No module named 'kubeflash.cli.wipe'|cannot import name 'wipe'"),
        ("kopf/_core/reactor/running.py", "No module named 'kopf._core.reactor.running'"),
    ],
)
def test_what_is_missing_is_found(copy, lost, said):
    (copy.site / lost).unlink()
    done = copy.run("/opt/kubeflash/bin/python", CHECK, mounts={"/mnt": REPO / "scripts"})
    assert done.exit_code == 1
    assert re.search(said, done.stderr_text), done.stderr_text


def test_an_import_that_stands_in_a_function_is_found_too(copy):
    module = copy.site / "kubeflash/cli/wipe.py"
    text = module.read_text()
    module.unlink()  # not the original's content
    module.write_text(
        text + "\n\ndef later():\n    from kubernetes.client.models import V1Pod\n    import kubernetes.aio\n"
    )
    first, second = check(copy)
    assert re.search(r"cli/wipe\.py:\d+: No module named 'kubernetes\.client\.models\.v1_pod'", first)
    assert re.search(r"cli/wipe\.py:\d+: No module named 'kubernetes\.aio'", second)


def test_what_is_not_compiled_is_found(copy):
    for name in ("kubeflash/__init__", "kopf/on"):
        (compiled,) = copy.site.glob(f"{name.replace('/', '/__pycache__/')}.*.pyc")
        compiled.unlink()
    source = f"/{(copy.site / 'kopf/on.py').relative_to(copy.root)}"
    argv = ["chroot", copy.root, "/opt/kubeflash/bin/python", "-m", "compileall", "-q", source]
    subprocess.run(argv, check=True)  # by time, as Python does it by itself
    by_time, none = check(copy)
    assert re.search(r"/kopf/__pycache__/on\.[^/]*pyc would be compared with its source$", by_time)
    assert re.search(r"/kubeflash/__init__\.py is not compiled$", none)


# --- the bill of materials ---


@pytest.fixture(scope="session")
def bill(image: Image) -> dict:
    return json.loads((image.root / container.BILL_OF_MATERIALS).read_text())


def test_the_bill_of_materials_lies_beside_the_archive(image):
    beside = image.archive.with_suffix(".cdx.json").read_bytes()
    assert beside == (image.root / container.BILL_OF_MATERIALS).read_bytes()


def test_it_has_what_is_in_the_image_and_nothing_else(image, bill):
    listed: dict[str, dict[str, str]] = {"deb": {}, "pypi": {}}
    for component in bill["components"]:
        if "purl" in component:
            listed[component["purl"].split(":")[1].split("/")[0]][component["name"]] = component["version"]
    assert listed["deb"] == installed(image.root)
    python = distributions(image.site)
    assert python.pop("kubeflash") == bill["metadata"]["component"]["version"]
    assert listed["pypi"] == python


def test_its_hashes_are_of_the_lock(bill):
    lock = (REPO / "requirements" / "runtime.txt").read_text()
    hashed = [one for one in bill["components"] if one.get("purl", "").startswith("pkg:pypi/")]
    assert hashed
    for component in hashed:
        (one,) = component["hashes"]
        assert f"--hash=sha256:{one['content']}" in lock, component["name"]


def test_every_package_s_licence_is_in_the_image(image):
    lacking = [
        name for name in installed(image.root) if not (image.root / "usr/share/doc" / name / "copyright").exists()
    ]
    assert lacking == []


def test_it_is_what_cyclonedx_says_a_bill_of_materials_is(image):
    text = (image.root / container.BILL_OF_MATERIALS).read_text()
    validator = JsonStrictValidator(SchemaVersion.V1_6)
    assert validator.validate_str(text) is None
    assert validator.validate_str(text.replace('"version": 1,', '"version": "one",')) is not None
