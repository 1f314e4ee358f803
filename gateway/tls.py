"""The certificate and key of the public port: read and checked, with refusals that say what to do."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from pathlib import Path

from gateway.errors import InvalidSetting

_CERTIFICATE = ("server.tls_certificate", "a certificate, with those that it was signed by behind it", "CERTIFICATE")
_KEY = ("server.tls_key", "the private key of the certificate", "PRIVATE KEY")


def server_context(certificate: str, key: str) -> ssl.SSLContext:
    """What a server needs to speak TLS 1.2 or newer. Reads both files.

    certificate, key: paths of PEM files; one file may hold both. Raises InvalidSetting naming the setting and the way
    out.
    """
    certificate_path, key_path = Path(certificate).expanduser(), Path(key).expanduser()
    chain = _read(certificate_path, *_CERTIFICATE)
    _read(key_path, *_KEY)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(certificate_path, key_path, password=_refuse_to_ask(key_path))
    except ssl.SSLError as error:
        raise _why(error, certificate_path, chain, key_path) from error
    return context


def _read(path: Path, setting: str, what: str, label: str) -> str:
    try:
        text = path.read_text(encoding="ascii", errors="replace")
    except FileNotFoundError as error:
        raise InvalidSetting(f"setting {setting!r}: there is no file {path}; name a PEM file with {what}") from error
    except OSError as error:
        raise InvalidSetting(
            f"setting {setting!r}: cannot read {path}: {error.strerror}; let the user who runs this read it"
        ) from error
    if "-----BEGIN " not in text or f"{label}-----" not in text:
        raise InvalidSetting(f"setting {setting!r}: {path} holds no PEM {label.lower()}; name a PEM file with {what}")
    return text


def _refuse_to_ask(path: Path) -> Callable[[], str]:
    """Called by OpenSSL for the passphrase of a key; without it, OpenSSL would ask at the terminal and wait."""

    def refuse() -> str:
        raise InvalidSetting(
            f"setting {_KEY[0]!r}: the key in {path} has a passphrase; take it off with `openssl pkey -in {path}`"
        )

    return refuse


def _why(error: ssl.SSLError, certificate: Path, chain: str, key: Path) -> InvalidSetting:
    if error.reason == "KEY_VALUES_MISMATCH":
        return InvalidSetting(
            f"setting {_KEY[0]!r}: {key} is not the key of the certificate in {certificate}; name the two that were "
            f"made together, the server's own certificate first in its file"
        )
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=chain)
    except ssl.SSLError:
        setting, path = _CERTIFICATE[0], certificate
    else:
        setting, path = _KEY[0], key
    return InvalidSetting(
        f"setting {setting!r}: OpenSSL refuses what {path} holds ({error.reason or error}); look at it with "
        f"`openssl {'x509' if path == certificate else 'pkey'} -noout -in {path}`"
    )
