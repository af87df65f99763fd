"""The lab's own certificate authority, by openssl's command line: a signature takes about 10 ms."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import ssl
from collections.abc import Sequence
from pathlib import Path

from lab.errors import LabError
from lab.processes import run

DAYS = 30
"""How long certificates hold: longer than any lab."""

_CONFIG = """
[req]
distinguished_name = subject
[subject]
[ca]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign, cRLSign
[server]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth
subjectAltName = $ENV::NAMES
[client]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = clientAuth
"""

_MAX_NAME = 64  # characters of a common name or an organisation, by X.509


class Authority:
    """A certificate authority in a folder: ``ca.crt``, ``ca.key``, and what it has signed.

    Private keys are readable by their owner only.
    """

    def __init__(self, folder: Path) -> None:
        """Make a new one.

        Raises:
            NotPossible: There is no openssl.
        """
        folder.mkdir(parents=True, mode=0o700)
        self._folder = folder
        self._config = folder / "openssl.cnf"
        self._config.write_text(_CONFIG)
        self.certificate = folder / "ca.crt"
        self._key = folder / "ca.key"
        self._request(self.certificate, self._key, "ca", "/CN=kubeflash-lab")

    @property
    def fingerprint(self) -> str:
        """SHA-256 of its certificate, in hexadecimal: names this lab and no other."""
        return hashlib.sha256(ssl.PEM_cert_to_DER_cert(self.certificate.read_text())).hexdigest()

    def server(self, name: str, addresses: Sequence[str], hosts: Sequence[str]) -> tuple[Path, Path]:
        """A serving certificate and its key.

        Args:
            name: Of the files.
            addresses: IP addresses it holds for.
            hosts: Host names it holds for.
        """
        names = ",".join([*(f"IP:{address}" for address in addresses), *(f"DNS:{host}" for host in hosts)])
        return self._sign(name, "server", f"/CN={name}", names)

    def client(self, name: str, user: str, groups: Sequence[str] = ()) -> tuple[Path, Path]:
        """A client certificate and its key, by which the API server knows a user and the user's groups.

        Args:
            name: Of the files.
            user: The user's name.
            groups: The user's groups.

        Raises:
            LabError: A name is too long for a certificate.
        """
        for word in (user, *groups):
            if not 0 < len(word) <= _MAX_NAME:
                raise LabError(f"{word!r} does not fit into a certificate: 1 to {_MAX_NAME} characters, please")
        parts = [*(f"O={_escape(group)}" for group in groups), f"CN={_escape(user)}"]
        return self._sign(name, "client", "".join(f"/{part}" for part in parts))

    def signing_key(self, name: str) -> tuple[Path, Path]:
        """A private key and its public half, to sign service account tokens with."""
        private, public = self._folder / f"{name}.key", self._folder / f"{name}.pub"
        run(["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", private], timeout=30)
        private.chmod(0o600)
        run(["openssl", "ec", "-in", private, "-pubout", "-out", public], timeout=30)
        return private, public

    def _sign(self, name: str, profile: str, subject: str, names: str = "DNS:unused") -> tuple[Path, Path]:
        certificate, key = self._folder / f"{name}.crt", self._folder / f"{name}.key"
        self._request(certificate, key, profile, subject, "-CA", self.certificate, "-CAkey", self._key, names=names)
        return certificate, key

    def _request(
        self, certificate: Path, key: Path, profile: str, subject: str, *signer: str | Path, names: str = "DNS:unused"
    ) -> None:
        argv: list[str | Path] = ["openssl", "req", "-x509", "-new", "-sha256", "-utf8", "-config", self._config]
        argv += ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-noenc", "-keyout", key]
        argv += ["-days", str(DAYS), "-set_serial", f"0x{secrets.token_hex(16)}", "-extensions", profile]
        argv += ["-subj", subject, "-out", certificate, *signer]
        run(argv, timeout=30, env={**os.environ, "NAMES": names})
        key.chmod(0o600)


def _escape(word: str) -> str:
    # In openssl's -subj, a slash or a plus begins the next part.
    return re.sub(r"([\\/+])", r"\\\1", word)
