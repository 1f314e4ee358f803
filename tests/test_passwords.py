"""No password is ever shown."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway import settings
from gateway.errors import InvalidSetting
from gateway.passwords import is_redacted, redacted

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
