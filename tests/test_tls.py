"""Certificate and key: what can be used is used, what cannot is refused by the name of its setting."""

from __future__ import annotations

import ssl
import subprocess
from pathlib import Path

import pytest

from gateway import settings, tls
from gateway.cli import main
from gateway.errors import InvalidSetting
from tests import certificates


def refusal(certificate: Path, key: Path) -> str:
    with pytest.raises(InvalidSetting) as caught:
        tls.server_context(str(certificate), str(key))
    return str(caught.value)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> certificates.Pair:
    return certificates.self_signed(tmp_path_factory.mktemp("pair"))


def test_a_pair_makes_a_context_that_takes_nothing_older_than_tls_1_2(
    pair: certificates.Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tls.server_context(str(pair.certificate), str(pair.key)).minimum_version == ssl.TLSVersion.TLSv1_2
    monkeypatch.setenv("HOME", str(pair.key.parent))
    assert tls.server_context("~/server.crt", "~/server.key")


def test_one_file_may_hold_both(pair: certificates.Pair, tmp_path: Path) -> None:
    both = tmp_path / "both.pem"
    both.write_bytes(pair.key.read_bytes() + pair.certificate.read_bytes())
    assert tls.server_context(str(both), str(both))


def test_a_file_that_is_missing_unreadable_or_no_pem_is_named_with_its_setting(
    pair: certificates.Pair, tmp_path: Path
) -> None:
    missing, text = tmp_path / "missing.pem", tmp_path / "text.pem"
    text.write_bytes(b"\xff\x00 no PEM\n")
    for setting, arguments in (
        ("server.tls_certificate", lambda wrong: (wrong, pair.key)),
        ("server.tls_key", lambda wrong: (pair.certificate, wrong)),
    ):
        assert f"'{setting}': there is no file {missing}; name a PEM file" in refusal(*arguments(missing))
        assert f"'{setting}': cannot read {tmp_path}: Is a directory; let the user" in refusal(*arguments(tmp_path))
        assert f"'{setting}': {text} holds no PEM" in refusal(*arguments(text))
    assert f"'server.tls_key': {pair.certificate} holds no PEM private key" in refusal(
        pair.certificate, pair.certificate
    )


def test_a_damaged_file_is_told_from_a_good_one(pair: certificates.Pair, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.pem"
    for setting, good in (("server.tls_certificate", pair.certificate), ("server.tls_key", pair.key)):
        lines = good.read_text().splitlines()
        lines[1] = lines[1][::-1]
        damaged.write_text("\n".join(lines) + "\n")
        files = (damaged, pair.key) if good == pair.certificate else (pair.certificate, damaged)
        assert f"'{setting}': OpenSSL refuses what {damaged} holds" in refusal(*files)


def test_a_key_of_another_certificate_is_refused(pair: certificates.Pair, tmp_path: Path) -> None:
    other = certificates.self_signed(tmp_path, "other")
    told = refusal(pair.certificate, other.key)
    assert f"'server.tls_key': {other.key} is not the key of the certificate in {pair.certificate}" in told


def test_a_key_with_a_passphrase_is_refused_instead_of_asking_for_it(pair: certificates.Pair, tmp_path: Path) -> None:
    locked = tmp_path / "locked.key"
    subprocess.run(
        ["openssl", "pkey", "-in", pair.key, "-aes256", "-passout", "pass:secret", "-out", locked],
        check=True,
        capture_output=True,
    )
    assert f"'server.tls_key': the key in {locked} has a passphrase; take it off" in refusal(pair.certificate, locked)


def test_the_authorities_of_clients_are_read_and_their_refusals_name_their_setting(
    pair: certificates.Pair, tmp_path: Path
) -> None:
    def refused(path: Path, section: str = "server") -> str:
        with pytest.raises(InvalidSetting) as caught:
            tls.server_context(str(pair.certificate), str(pair.key), str(path), section=section)
        return str(caught.value)

    context = tls.server_context(str(pair.certificate), str(pair.key), str(pair.certificate))
    assert context.verify_mode == ssl.CERT_REQUIRED
    assert tls.server_context(str(pair.certificate), str(pair.key)).verify_mode == ssl.CERT_NONE
    assert "'control.tls_client_ca': there is no file" in refused(tmp_path / "none.pem", "control")
    assert "'server.tls_client_ca': " in refused(pair.key)
    damaged = tmp_path / "damaged.pem"
    lines = pair.certificate.read_text().splitlines()
    damaged.write_text("\n".join([lines[0], lines[1][::-1], *lines[2:]]) + "\n")
    assert f"'server.tls_client_ca': OpenSSL refuses what {damaged} holds" in refused(damaged)


@pytest.mark.parametrize("section", ["server", "control"])
def test_who_asks_clients_for_certificates_needs_one_itself(section: str) -> None:
    with pytest.raises(InvalidSetting, match=f"'{section}.tls_client_ca' needs '{section}.tls_certificate'"):
        settings.load(None, {}, {f"{section}.tls_client_ca": "x.pem"})


@pytest.mark.parametrize("section", ["server", "control"])
@pytest.mark.parametrize(("given", "missing"), [("tls_certificate", "tls_key"), ("tls_key", "tls_certificate")])
def test_one_without_the_other_is_refused(section: str, given: str, missing: str) -> None:
    with pytest.raises(InvalidSetting, match=f"'{section}.{given}' needs '{section}.{missing}'"):
        settings.load(None, {}, {f"{section}.{given}": "x.pem"})


def test_serve_ends_before_it_starts_anything(models: Path, state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = models.with_name("settings.toml")
    config.write_text('[server]\nport = 0\ntls_certificate = "nowhere.crt"\ntls_key = "nowhere.key"\n')
    options = ["serve", "--config", str(config), "--models", str(models), "--state", str(state)]
    assert main(options) == 1
    assert "sluicegate: setting 'server.tls_certificate': there is no file nowhere.crt" in capsys.readouterr().err
    assert not state.exists()
