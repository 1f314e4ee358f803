"""The certificate and key of a port, and whose clients it takes: read and checked, or refused with what to do."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from pathlib import Path

from gateway.errors import InvalidSetting

_CERTIFICATE = ("tls_certificate", "a certificate, with those that it was signed by behind it", "CERTIFICATE")
_KEY = ("tls_key", "the private key of the certificate", "PRIVATE KEY")
_CLIENT_CA = ("tls_client_ca", "the certificates that those of clients are signed by", "CERTIFICATE")


def server_context(certificate: str, key: str, client_ca: str = "", *, section: str = "server") -> ssl.SSLContext:
    """What a server needs to speak TLS 1.2 or newer. Reads the files.

    certificate, key: paths of PEM files; one file may hold both. client_ca: path of a PEM file; with it, a client
    without a certificate signed by one of these gets no further than the handshake. section: of the settings that name
    them. Raises InvalidSetting naming the setting and the way out.
    """
    certificate_path, key_path = Path(certificate).expanduser(), Path(key).expanduser()
    chain = _read(certificate_path, section, *_CERTIFICATE)
    _read(key_path, section, *_KEY)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(certificate_path, key_path, password=_refuse_to_ask(key_path, section))
    except ssl.SSLError as error:
        raise _why(error, certificate_path, chain, key_path, section) from error
    if client_ca:
        _ask_clients(context, Path(client_ca).expanduser(), section)
    return context


def _ask_clients(context: ssl.SSLContext, path: Path, section: str) -> None:
    """Take only clients that one of the certificates in *path* vouches for."""
    trusted = _read(path, section, *_CLIENT_CA)
    try:
        context.load_verify_locations(cadata=trusted)
    except ssl.SSLError as error:
        raise _damaged(section, _CLIENT_CA[0], path, error) from error
    context.verify_mode = ssl.CERT_REQUIRED


def _read(path: Path, section: str, name: str, what: str, label: str) -> str:
    setting = f"{section}.{name}"
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


def _refuse_to_ask(path: Path, section: str) -> Callable[[], str]:
    """Called by OpenSSL for the passphrase of a key; without it, OpenSSL would ask at the terminal and wait."""

    def refuse() -> str:
        raise InvalidSetting(
            f"setting '{section}.{_KEY[0]}': the key in {path} has a passphrase; take it off with "
            f"`openssl pkey -in {path}`"
        )

    return refuse


def _why(error: ssl.SSLError, certificate: Path, chain: str, key: Path, section: str) -> InvalidSetting:
    if error.reason == "KEY_VALUES_MISMATCH":
        return InvalidSetting(
            f"setting '{section}.{_KEY[0]}': {key} is not the key of the certificate in {certificate}; name the two "
            f"that were made together, the server's own certificate first in its file"
        )
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=chain)
    except ssl.SSLError:
        return _damaged(section, _CERTIFICATE[0], certificate, error)
    return _damaged(section, _KEY[0], key, error)


def _damaged(section: str, name: str, path: Path, error: ssl.SSLError) -> InvalidSetting:
    return InvalidSetting(
        f"setting '{section}.{name}': OpenSSL refuses what {path} holds ({error.reason or error}); look at it with "
        f"`openssl {'pkey' if name == _KEY[0] else 'x509'} -noout -in {path}`"
    )
