"""Settings: where they come from, which one wins, and how a wrong one is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway import reload, settings
from gateway.errors import InvalidSetting
from gateway.settings import Settings

# Printable or not, quotes, newlines, other scripts: all that a path may hold, but for NUL and lone surrogates.
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=20)


@st.composite
def overrides(draw: st.DrawFn) -> dict[str, object]:
    """Some settings with values that they may have."""
    possible: dict[str, st.SearchStrategy[object]] = {
        "server.host": TEXTS,
        "server.port": st.integers(0, 65535),
        "server.workers": st.integers(1, 256),
        "server.drain_timeout_s": st.floats(0, 3600),
        "paths.models": TEXTS.map(lambda text: Path("/" + text)),
        "batching.inline_budget_s": st.floats(0, 1),
        "cache.max_bytes": st.integers(0, 2**40),
        "sampling.rate": st.floats(0, 1),
        "monitor.max_false_discovery_rate": st.floats(1e-6, 0.5),
        "log.level": st.sampled_from(["debug", "info", "warning", "error", "critical"]),
    }
    chosen = draw(st.sets(st.sampled_from(sorted(possible))))
    return {key: draw(possible[key]) for key in chosen}


def test_without_any_source_the_defaults_hold() -> None:
    assert settings.load(None, {}, {}) == Settings()


@given(overrides())
def test_what_print_config_prints_loads_back_to_the_same_settings(
    tmp_path_factory: pytest.TempPathFactory, chosen: dict[str, object]
) -> None:
    effective = settings.load(None, {}, chosen)
    file = tmp_path_factory.mktemp("settings") / "printed.toml"
    file.write_text(settings.to_toml(effective), encoding="utf-8")
    assert settings.load(file, {}, {}) == effective


@given(overrides())
def test_a_child_reads_the_settings_of_its_parent(chosen: dict[str, object]) -> None:
    effective = settings.load(None, {}, chosen)
    assert settings.from_plain(settings.to_plain(effective)) == effective


def test_the_command_line_wins_over_the_environment_and_that_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "sluicegate.toml"
    file.write_text("[server]\nport = 1\nworkers = 2\nkeep_alive_s = 3\n")
    environment = {"SLUICEGATE_SERVER__PORT": "11", "SLUICEGATE_SERVER__WORKERS": "12"}
    effective = settings.load(file, environment, {"server.port": 21, "server.host": None})
    assert (effective.server.port, effective.server.workers, effective.server.keep_alive_s) == (21, 12, 3)
    assert effective.server.host == Settings().server.host, "an option that was not given overrides nothing"


def test_the_environment_reaches_every_kind_of_setting() -> None:
    environment = {
        "SLUICEGATE_SAMPLING__RATE": "0.25",
        "SLUICEGATE_CACHE__MAX_BYTES": "0",
        "SLUICEGATE_PATHS__STATE": "~/gateway",
        "SLUICEGATE_LOG__LEVEL": "debug",
        "PATH": "/bin",
    }
    effective = settings.load(None, environment, {})
    assert effective.sampling.rate == 0.25
    assert effective.cache.max_bytes == 0
    assert effective.paths.state == Path.home() / "gateway"
    assert effective.log.level == "debug"


@pytest.mark.parametrize(
    ("listen", "address"),
    [("", None), ("127.0.0.1:0", ("127.0.0.1", 0)), ("[::]:9091", ("::", 9091)), ("db.example:80", ("db.example", 80))],
)
def test_the_port_of_the_metrics_is_an_address_or_none(listen: str, address: tuple[str, int] | None) -> None:
    assert settings.load(None, {"SLUICEGATE_METRICS__LISTEN": listen}, {}).metrics.address == address


@pytest.mark.parametrize("listen", ["9091", ":9091", "host:", "host:65536", "host:-1", "host:http"])
def test_what_is_no_address_of_the_metrics_is_refused(listen: str) -> None:
    with pytest.raises(InvalidSetting, match=r"metrics\.listen.*HOST:PORT"):
        settings.load(None, {"SLUICEGATE_METRICS__LISTEN": listen}, {})


def test_a_misspelt_variable_is_refused_with_the_variable_that_is_nearest() -> None:
    with pytest.raises(InvalidSetting, match=r"'server\.port' \(SLUICEGATE_SERVER__PORT\)"):
        settings.load(None, {"SLUICEGATE_SERVER_PORT": "1"}, {})


def test_variables_of_the_remote_verbs_are_no_settings() -> None:
    assert settings.load(None, {"SLUICEGATE_URL": "http://x", "SLUICEGATE_TOKEN": "t"}, {}) == Settings()


@pytest.mark.parametrize(
    ("wrong", "right"), [("server.prot", "server.port"), ("cache.max_byte", "cache.max_bytes"), ("server", "server.")]
)
def test_an_unknown_setting_is_refused_with_the_nearest_right_one(wrong: str, right: str) -> None:
    with pytest.raises(InvalidSetting) as refused:
        settings.load(None, {}, {wrong: 1})
    assert repr(wrong) in str(refused.value)
    assert right in str(refused.value).split("nearest known one is ")[1]


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("server.port", 65536, "0 to 65535"),
        ("server.port", "eighty", "a whole number"),
        ("server.workers", 1.5, "a whole number"),
        ("server.workers", True, "a whole number"),
        ("server.workers", 0, "1 to 256"),
        ("server.host", 8, "text"),
        ("sampling.rate", 1.01, "0 to 1"),
        ("sampling.rate", float("nan"), "a number"),
        ("sampling.rate", "much", "a number"),
        ("monitor.min_effect", [0.1], "a number"),
        ("cache.ttl_s", float("inf"), "0.001 to 1e+09"),
        ("log.level", "loud", "one of debug"),
        ("flags.store", "mysql://db", "sqlite:///PATH"),
    ],
)
def test_a_wrong_value_is_refused_with_its_name_and_what_was_expected(key: str, value: object, expected: str) -> None:
    with pytest.raises(InvalidSetting) as refused:
        settings.load(None, {}, {key: value})
    assert key in str(refused.value)
    assert expected in str(refused.value)


def test_a_wrong_value_is_refused_with_the_place_that_it_came_from(tmp_path: Path) -> None:
    file = tmp_path / "own.toml"
    file.write_text("[server]\nport = -1\n")
    with pytest.raises(InvalidSetting, match=r"own\.toml"):
        settings.load(file, {}, {})
    with pytest.raises(InvalidSetting, match="environment variable SLUICEGATE_SERVER__PORT"):
        settings.load(None, {"SLUICEGATE_SERVER__PORT": "-1"}, {})
    with pytest.raises(InvalidSetting, match="command line"):
        settings.load(None, {}, {"server.port": -1})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("port = 1\n", "'port' must stand inside a section"),
        ("[server\n", "not valid TOML"),
        ("[server]\nport = \n", "not valid TOML"),
    ],
)
def test_a_file_that_makes_no_sense_is_refused(tmp_path: Path, text: str, expected: str) -> None:
    file = tmp_path / "own.toml"
    file.write_text(text)
    with pytest.raises(InvalidSetting, match=expected):
        settings.load(file, {}, {})


def test_a_file_that_is_not_there_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(InvalidSetting, match=r"cannot read the settings file .*absent\.toml: No such file"):
        settings.load(tmp_path / "absent.toml", {}, {})


def test_settings_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(InvalidSetting, match="deadline_s"):
        settings.load(None, {}, {"limits.deadline_s": 61, "limits.max_deadline_s": 60})
    with pytest.raises(InvalidSetting, match="min_window_rows"):
        settings.load(None, {}, {"monitor.min_window_rows": 2000})


def test_paths_follow_the_state_directory() -> None:
    effective = settings.load(None, {}, {"paths.state": "/var/lib/sluicegate"})
    assert effective.flag_store_path == Path("/var/lib/sluicegate/flags.sqlite")
    assert effective.admin_token_path == Path("/var/lib/sluicegate/admin.token")
    elsewhere = settings.load(None, {}, {"flags.store": "sqlite:////srv/flags.sqlite"})
    assert elsewhere.flag_store_path == Path("/srv/flags.sqlite")


@pytest.mark.parametrize(("store", "kept"), [("", []), ("postgresql://u@h/d", ["server.api_keys"])])
def test_api_keys_are_switched_on_by_a_rolling_restart_where_the_workers_read_them_themselves(
    store: str, kept: list[str]
) -> None:
    plain = settings.to_plain(settings.Settings())
    plain["flags"]["store"] = store
    before = settings.from_plain(plain)
    plain["server"]["api_keys"] = "required"
    found, told = reload.take_over(before, settings.from_plain(plain))
    assert told == kept
    assert found.server.api_keys == ("off" if kept else "required")
