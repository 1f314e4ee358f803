"""Redaction: what is named is dropped, hashed with a key or put into a range; whatever is unclear is refused."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.redaction import HASH_PREFIX, load_key, parse_card, parse_rule, parse_setting, rules_for

KEY = bytes(32)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (17.9, "< 18"),
        (18, "[18, 30)"),
        (29.99, "[18, 30)"),
        (65, ">= 65"),
        ("Infinity", ">= 65"),
        ("-Infinity", "< 18"),
        (None, None),
        ("old", None),
    ],
)
def test_a_bucket_gives_the_range_that_a_number_is_in(value: Any, expected: str | None) -> None:
    assert parse_rule("bucket 18 30 65").replace("age", value, KEY) == expected


@given(st.floats(allow_nan=False), st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=5, unique=True))
def test_every_number_is_in_the_range_that_its_label_says(number: float, edges: list[float]) -> None:
    edges.sort()
    label = parse_rule("bucket " + " ".join(map(repr, edges))).replace("x", number, KEY)
    if label.startswith("< "):
        assert number < float(label[2:])
    elif label.startswith(">= "):
        assert number >= float(label[3:])
    else:
        low, high = map(float, label.strip("[)").split(", "))
        assert low <= number < high


def test_a_hash_depends_on_the_key_the_name_and_the_value_and_on_nothing_else() -> None:
    rule = parse_rule("hash")
    one = rule.replace("email", "a@b", KEY)
    assert one == parse_rule("hash").replace("email", "a@b", KEY)
    assert one.startswith(HASH_PREFIX)
    others = {
        rule.replace("email", "a@c", KEY),
        rule.replace("name", "a@b", KEY),
        rule.replace("email", "a@b", b"1" * 32),
    }
    assert len({one, *others}) == 4
    assert rule.replace("email", None, KEY) is None  # missing is missing
    assert rule.replace("n", 1.5, KEY) != rule.replace("n", 1.25, KEY)


@pytest.mark.parametrize(
    "text", ["", "keep", "drop it", "bucket", "bucket 3 2", "bucket 1 1", "bucket x", "bucket nan", 7, None]
)
def test_a_rule_that_is_none_is_refused(text: Any) -> None:
    with pytest.raises(ValueError, match="expected drop, hash"):
        parse_rule(text)


def test_the_card_and_the_settings_are_added_up_and_the_stricter_rule_holds() -> None:
    card = parse_card({"age": "bucket 18", "email": "drop", "zip": "hash"})
    setting = parse_setting(" m.age=hash; *.email = hash;m.first name=drop; other.zip=drop ;")
    rules = rules_for("m", card, setting)
    assert {name: rule.kind for name, rule in rules.items()} == {
        "age": "hash",
        "email": "drop",
        "zip": "hash",
        "first name": "drop",
    }
    assert {name: rule.kind for name, rule in rules_for("x", {}, setting).items()} == {"email": "hash"}


def test_a_rule_for_a_tensor_is_one_for_each_of_its_columns_unless_theirs_is_stricter() -> None:
    card = parse_card({"table": "hash", "age": "bucket 18", "zip": "drop", "alone": "hash"})
    rules = rules_for("m", card, parse_setting("m.chances = drop"), {"table": ["age", "zip"], "chances": ["chances.0"]})
    assert {name: rule.kind for name, rule in rules.items()} == {
        "table": "hash",
        "age": "hash",
        "zip": "drop",
        "alone": "hash",
        "chances": "drop",
        "chances.0": "drop",
    }


@pytest.mark.parametrize("text", ["age=drop", "m.age", "m.age=keep", ".age=drop", "m.=drop"])
def test_a_setting_that_names_nothing_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"form MODEL|drop, hash"):
        parse_setting(text)


@pytest.mark.parametrize("plain", [[], {"a": "x"}, {"a": 1}])
def test_a_card_that_is_wrong_is_refused(plain: Any) -> None:
    with pytest.raises(ValueError, match="redact"):
        parse_card(plain)


def test_all_who_ask_for_the_key_at_once_get_the_same_one_and_only_its_owner_may_read_it(tmp_path: Path) -> None:
    path = tmp_path / "state" / "redaction.key"
    keys: list[bytes] = []
    children = [threading.Thread(target=lambda: keys.append(_key_of_a_process(path))) for _ in range(4)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert len(set(keys)) == 1
    assert keys[0] == load_key(path) == path.read_bytes()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(path.parent) == ["redaction.key"]
    path.write_bytes(b"short")
    with pytest.raises(OSError, match="expected 32"):
        load_key(path)


def _key_of_a_process(path: Path) -> bytes:
    import subprocess
    import sys

    code = "import sys; from gateway.redaction import load_key; from pathlib import Path; "
    code += "sys.stdout.buffer.write(load_key(Path(sys.argv[1])))"
    return subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, check=True).stdout
