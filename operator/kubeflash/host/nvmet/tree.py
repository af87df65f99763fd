"""What the functions of nvmet share: paths, writing with read-back, and the kernel's error numbers as types."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from kubeflash.host.nvmet.configfs import Configfs
from kubeflash.host.nvmet.errors import (
    NvmetError,
    NvmetMissing,
    ObjectDiffers,
    ObjectInUse,
    ObjectMissing,
    ReadBackDiffers,
)

Errors = Mapping[int, Callable[[str], NvmetError]]


@contextmanager
def kernel(what: str, errors: Errors | None = None) -> Iterator[None]:
    """Turns the kernel's error numbers into types; `what` says what was tried, and never holds a key."""
    try:
        yield
    except OSError as error:
        kind = (errors or {}).get(error.errno or 0, NvmetError)
        raise kind(f"{what}: {error.strerror} ({errno.errorcode.get(error.errno or 0, error.errno)})") from error


def with_remedy(kind: type[NvmetError], remedy: str) -> Callable[[str], NvmetError]:
    """An error of that type that also says what to do."""
    return lambda what: kind(f"{what}: {remedy}")


def name(text: str) -> str:
    """A name of an object, proven to be one name and no path."""
    if not text or "/" in text or text in (".", "..") or len(text) > 223:
        raise NvmetError(f"{text!r} cannot be a name in nvmet")
    return text


def host(nqn: str) -> str:
    """Path of a host."""
    return f"hosts/{name(nqn)}"


def subsystem(nqn: str) -> str:
    """Path of a subsystem."""
    return f"subsystems/{name(nqn)}"


def namespace(nqn: str, nsid: int) -> str:
    """Path of a namespace."""
    return f"{subsystem(nqn)}/namespaces/{nsid}"


def port(number: int) -> str:
    """Path of a port."""
    return f"ports/{number}"


def make(fs: Configfs, path: str) -> None:
    """Makes an object unless it is there."""
    try:
        fs.mkdir(path)
    except FileExistsError:
        return
    except FileNotFoundError as error:
        if not fs.available():
            raise NvmetMissing from error
        raise ObjectMissing(f"{path} cannot be made: what it belongs to is not there") from error
    except OSError as error:
        raise NvmetError(f"{path} cannot be made: {error.strerror}") from error


def remove(fs: Configfs, path: str) -> None:
    """Removes an object unless it is gone, and reads back that it is."""
    try:
        fs.rmdir(path)
    except FileNotFoundError:
        return
    except OSError as error:
        if error.errno in (errno.EBUSY, errno.ENOTEMPTY):
            raise ObjectInUse(f"{path} cannot be removed: something is linked to it or still in it") from error
        raise NvmetError(f"{path} cannot be removed: {error.strerror}") from error
    if fs.exists(path):
        raise ReadBackDiffers(f"{path} was removed and is still there")


def attribute(fs: Configfs, path: str, value: str, errors: Errors | None = None) -> None:
    """Writes an attribute unless it says so already, and reads it back."""
    with kernel(f"{path} cannot be read", {errno.ENOENT: ObjectMissing}):
        present = fs.read(path).strip()
    if present == value:
        return
    busy: dict[int, Callable[[str], NvmetError]] = {
        errno.EBUSY: with_remedy(ObjectDiffers, f"it is {present!r} and enabled"),
        errno.EACCES: with_remedy(ObjectDiffers, f"it is {present!r} and linked"),
    }
    with kernel(f"{path} cannot be set to {value!r}", {**busy, **(errors or {})}):
        fs.write(path, value)
    with kernel(f"{path} cannot be read"):
        present = fs.read(path).strip()
    if present != value:
        raise ReadBackDiffers(f"{path} was set to {value!r} and reads {present!r}")


def make_link(fs: Configfs, target: str, place: str, errors: Errors) -> None:
    """Makes a link unless it is there, and reads it back."""
    if fs.exists(place):
        return
    if not fs.exists(target):
        raise ObjectMissing(f"{target} is not there, and so cannot be linked to {place}")
    missing: dict[int, Callable[[str], NvmetError]] = {errno.ENOENT: ObjectMissing}
    try:
        with kernel(f"{place} cannot be linked", {**missing, **errors}):
            fs.symlink(target, place)
    except NvmetError as error:
        if not isinstance(error.__cause__, FileExistsError):
            raise
    if not fs.exists(place):
        raise ReadBackDiffers(f"{place} was linked and is not there")


def remove_link(fs: Configfs, place: str) -> None:
    """Removes a link, and reads back that it is gone."""
    with kernel(f"{place} cannot be unlinked"):
        try:
            fs.unlink(place)
        except FileNotFoundError:
            return
    if fs.exists(place):
        raise ReadBackDiffers(f"{place} was unlinked and is still there")
