"""Certificates for tests, signed by themselves or by one of them, made by the openssl command."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

INSTALL_IT = "openssl is not installed; on Debian: apt-get install openssl"


@dataclass(frozen=True, slots=True)
class Pair:
    """PEM files of a certificate for 127.0.0.1 and of its private key."""

    certificate: Path
    key: Path

    @property
    def settings(self) -> dict[str, str]:
        """The settings of [server] that name the pair."""
        return {"tls_certificate": str(self.certificate), "tls_key": str(self.key)}


def self_signed(folder: Path, name: str = "server", subject: str = "127.0.0.1") -> Pair:
    """A new pair in *folder*, good for a day. Skips the test where there is no openssl, but in CI.

    subject: of those that are trusted side by side, each needs its own.
    """
    if shutil.which("openssl") is None:
        if os.environ.get("CI"):
            pytest.fail(INSTALL_IT)
        pytest.skip(INSTALL_IT)
    folder.mkdir(exist_ok=True)
    pair = Pair(folder / f"{name}.crt", folder / f"{name}.key")
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-days", "1", "-subj", f"/CN={subject}", "-addext", "subjectAltName=IP:127.0.0.1"),
            *("-addext", "keyUsage=critical,digitalSignature,keyCertSign"),
            *("-keyout", str(pair.key), "-out", str(pair.certificate)),
        ],
        check=True,
        capture_output=True,
    )
    return pair


def signed_by(authority: Pair, name: str, subject: str) -> Pair:
    """A new pair beside *authority*, signed by it, good for a day: what a client shows."""
    folder = authority.certificate.parent
    pair, request = Pair(folder / f"{name}.crt", folder / f"{name}.key"), folder / f"{name}.csr"
    for command in (
        [
            *("openssl", "req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-subj", f"/CN={subject}", "-keyout", str(pair.key), "-out", str(request)),
        ],
        [
            *("openssl", "x509", "-req", "-in", str(request), "-days", "1", "-CAcreateserial"),
            *("-CA", str(authority.certificate), "-CAkey", str(authority.key), "-out", str(pair.certificate)),
        ],
    ):
        subprocess.run(command, check=True, capture_output=True)
    return pair
