"""Certificates for tests, signed by themselves, made by the openssl command."""

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


def self_signed(folder: Path, name: str = "server") -> Pair:
    """A new pair in *folder*, good for a day. Skips the test where there is no openssl, but in CI."""
    if shutil.which("openssl") is None:
        if os.environ.get("CI"):
            pytest.fail(INSTALL_IT)
        pytest.skip(INSTALL_IT)
    folder.mkdir(exist_ok=True)
    pair = Pair(folder / f"{name}.crt", folder / f"{name}.key")
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-days", "1", "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"),
            *("-addext", "keyUsage=critical,digitalSignature,keyCertSign"),
            *("-keyout", str(pair.key), "-out", str(pair.certificate)),
        ],
        check=True,
        capture_output=True,
    )
    return pair
