"""No password is ever shown."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway import settings
from gateway.errors import InvalidSetting
from gateway.passwords import host_alone, is_redacted, redacted

# What people put into URLs, percent-encoded or not.
PASSWORDS = st.text("abcXYZ019-._~!$&'()*+,;=:@/%#? ", min_size=4).map(lambda text: f"pw{text}pw")


@given(PASSWORDS)
def test_a_password_is_left_out_however_badly_the_url_is_written(password: str) -> None:
    for url in (f"postgresql://ada:{password}@db.example:5432/flags?sslmode=require", f"mysql://ada:{password}@db"):
        shown = redacted(url)
        assert password not in shown
        assert shown.startswith(url.split(":", 1)[0] + "://ada:***@db")
        assert is_redacted(shown)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://h/d?user=u&password=hidden&a=b", "postgresql://h/d?user=u&password=***&a=b"),
        ("postgresql://h/d?sslpassword=hidden", "postgresql://h/d?sslpassword=***"),
        ("postgresql://u@h:5432/d", "postgresql://u@h:5432/d"),
        ("postgresql:///d?host=/run/postgresql", "postgresql:///d?host=/run/postgresql"),
        ("sqlite:////srv/flags.sqlite", "sqlite:////srv/flags.sqlite"),
    ],
)
def test_the_rest_of_the_url_is_shown(url: str, shown: str) -> None:
    assert redacted(url) == shown
    assert is_redacted(shown) == (shown != url)


@given(PASSWORDS)
def test_of_a_webhook_the_host_is_shown_at_most(secret: str) -> None:
    for url in (
        f"https://ada:{secret}@hook.example",
        f"https://hook.example:8443/{secret}",
        f"https://hook.example?{secret}",
    ):
        shown = host_alone(url)
        assert "pw" not in shown
        assert "ada" not in shown
        assert is_redacted(shown)
        assert host_alone(shown) == shown


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("", ""),
        ("https://hook.example", "https://hook.example"),
        ("http://[::1]:8080/", "http://[::1]:8080/"),
        ("https://hook.example:8443/services/T0/B0/x", "https://hook.example:8443/***"),
        ("https://ada:hidden@hook.example/", "https://hook.example/***"),
        ("https://hook.example/at@home", "https://***"),
    ],
)
def test_a_webhook_that_is_a_host_alone_is_shown_whole(url: str, shown: str) -> None:
    assert host_alone(url) == shown
    assert is_redacted(shown) == (shown != url)


def test_a_printed_webhook_is_not_taken_for_a_whole_one(tmp_path: Path) -> None:
    effective = settings.load(None, {}, {"audit.checkpoint_webhook": "https://hook.example/services/hidden"})
    printed = tmp_path / "printed.toml"
    printed.write_text(settings.to_toml(effective))
    assert 'checkpoint_webhook = "https://hook.example/***"' in printed.read_text()
    with pytest.raises(InvalidSetting, match=r"'audit\.checkpoint_webhook': all but the host was left out"):
        settings.load(printed, {}, {})
    whole = {"SLUICEGATE_AUDIT__CHECKPOINT_WEBHOOK": "https://hook.example/services/hidden"}
    assert settings.load(printed, whole, {}) == effective
    assert settings.from_plain(settings.to_plain(effective)) == effective, "control gets it whole"


def test_printed_settings_hold_no_password_and_are_not_taken_for_whole_ones() -> None:
    effective = settings.load(None, {}, {"flags.store": "postgresql://ada:hidden@h/d"})
    printed = settings.to_toml(effective)
    assert "hidden" not in printed
    assert 'store = "postgresql://ada:***@h/d"' in printed
    with pytest.raises(InvalidSetting, match="left out"):
        settings.load(None, {}, {"flags.store": "postgresql://ada:***@h/d"})
    with pytest.raises(InvalidSetting) as refused:
        settings.load(None, {}, {"flags.store": "postgre://ada:hidden@h/d"})
    assert "hidden" not in str(refused.value)
