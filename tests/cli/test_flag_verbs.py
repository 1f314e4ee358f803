"""`sluicegate flags` and `cache purge`: listed, set, killed, flipped, imported, tried, refused."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from tests.cli.terminal import Terminal
from tests.control.process import ControlProcess, route, split


def warm(control: ControlProcess, model: str, *versions: str) -> None:
    control.write_status({model: dict.fromkeys(versions, "warm")})


def test_flags_are_listed_and_shown(control: ControlProcess, terminal: Terminal) -> None:
    warm(control, "seen", "1", "2")
    control.put("seen.route", route(targeting=split(0)))
    control.patch("seen.route", {"targeting": split(10)})
    row = next(line for line in terminal.ok("flags", "list").splitlines() if "seen.route" in line)
    for word in ("ENABLED", "stable=1", "canary=2", "canary 10 %", "stable 90 %"):
        assert word in row
    assert "seen.route" in terminal.json("flags", "list")["flags"]
    assert terminal.json("flags", "get", "seen")["targeting"] == split(10)
    assert "canary 10 %" in terminal.ok("flags", "get", "seen.route")
    assert "unknown_flag" not in terminal.fails("flags", "get", "none")
    assert "none.route" in terminal.err


def test_a_canary_is_declared_and_given_its_share_in_percent(control: ControlProcess, terminal: Terminal) -> None:
    control.put("iris.route", route(stable="1"))
    declared = terminal.json("flags", "set", "iris.route", "--declare", "canary=2", "--reason", "new version")
    assert declared["variants"] == {"stable": "1", "canary": "2"}
    assert "targeting" not in declared
    control.write_status({"iris": {"1": "warm", "2": "loading: 3 s so far"}})
    refused = terminal.fails("flags", "set", "iris.route", "canary=10", "--reason", "start")
    assert "version 2 is loading: 3 s so far" in refused
    assert "worker 0" in refused
    warm(control, "iris", "1", "2")
    assert "canary 10 %" in terminal.ok("flags", "set", "iris.route", "canary=10", "--reason", "start")
    fine = terminal.json("flags", "set", "iris", "canary=0.25%", "--reason", "less")
    assert fine["targeting"] == {"fractional": [["canary", 25], ["stable", 9975]]}
    assert "already" in terminal.ok("flags", "set", "iris", "canary=0.25", "--reason", "again")
    row = terminal.json("flags", "history", "iris")[0]
    assert (row["reason"], row["actor"]) == ("less", "admin")
    shown = terminal.ok("flags", "history", "iris.route", "--limit", "2")
    assert "canary 0.25 %" in shown
    assert "less" in shown


def test_the_kill_switch_is_pulled_and_undone(control: ControlProcess, terminal: Terminal) -> None:
    warm(control, "risky", "1", "2")
    control.put("risky.route", route(targeting=split(0)))
    terminal.ok("flags", "set", "risky", "canary=50", "--reason", "half")
    assert "DISABLED" in terminal.ok("flags", "kill", "risky")
    killed = control.client.get("/admin/v1/flags/risky.route").json()
    assert killed["state"] == "DISABLED"
    assert killed["targeting"] == {"fractional": [["canary", 5000], ["stable", 5000]]}
    assert "gives stable to all" in terminal.ok("flags", "set", "risky", "canary=40", "--reason", "less")
    assert terminal.json("flags", "enable", "risky.route", "--reason", "fixed")["state"] == "ENABLED"
    assert "to all" not in terminal.ok("flags", "set", "risky", "canary=50", "--reason", "half")
    assert terminal.json("flags", "history", "risky")[3]["reason"] == "kill switch"
    assert "none.route" in terminal.fails("flags", "kill", "none")


def test_blue_and_green_are_flipped(control: ControlProcess, terminal: Terminal) -> None:
    warm(control, "bg", "1", "2")
    control.put("bg.route", route("blue", blue="1", green="2"))
    for colour in ("green", "blue"):
        flipped = terminal.json("flags", "set", "bg.route", "--default", colour, "--reason", "flip")
        assert flipped["defaultVariant"] == colour


def test_options_are_set_in_their_own_words(control: ControlProcess, terminal: Terminal) -> None:
    sampling = terminal.json("flags", "set", "opt.sampling", "0.05", "--reason", "look closer")
    assert sampling["variants"][sampling["defaultVariant"]] == 0.05
    cache = terminal.json("flags", "set", "opt.cache", "enabled=false", "ttl_s=2.5", "--reason", "stale answers")
    assert cache["variants"][cache["defaultVariant"]] == {"enabled": False, "ttl_s": 2.5}
    batching = terminal.json("flags", "set", "opt.batching", "max_rows=16", "--reason", "memory")
    assert batching["variants"][batching["defaultVariant"]] == {"max_rows": 16}
    assert "from 0 to 1" in terminal.fails("flags", "set", "opt.sampling", "5", "--reason", "x")


def test_rules_of_sampling_are_set_by_their_names_and_a_number_stays_a_number(
    control: ControlProcess, terminal: Terminal
) -> None:
    rules = (
        "rate=0.01",
        "errors=true",
        "slow_s=0.2",
        "low_confidence=0.6",
        "keys=ann,bob",
        "headers=X-Tier:gold,x-a:1",
    )
    terminal.ok("flags", "set", "ruled.sampling", "0.05", "--reason", "as before")
    flag = terminal.json("flags", "set", "ruled.sampling", *rules, "outliers=true", "--reason", "look closer")
    assert flag["variants"][flag["defaultVariant"]] == {
        "rate": 0.01,
        "errors": True,
        "slow_s": 0.2,
        "low_confidence": 0.6,
        "keys": ["ann", "bob"],
        "headers": {"X-Tier": ["gold"], "x-a": ["1"]},
        "outliers": True,
    }
    control.put("mixed.sampling", {"state": "ENABLED", "variants": {"few": 0.1}, "defaultVariant": "few"})
    mixed = terminal.json("flags", "set", "mixed.sampling", "errors=true", "--reason", "x")
    assert mixed["variants"] == {"few": {"rate": 0.1}, "set": {"errors": True}}  # flagd wants them of one type
    mixed = terminal.json("flags", "set", "mixed.sampling", "0.5", "--reason", "x")
    assert mixed["variants"] == {"few": {"rate": 0.1}, "set": {"rate": 0.5}}
    assert "true or false" in terminal.fails("flags", "set", "ruled.sampling", "errors=yes", "--reason", "x")
    assert terminal.run("flags", "set", "ruled.sampling", "slow=1", "--reason", "x") == 2
    assert "sampling has no option 'slow'; it has rate, errors, slow_s" in terminal.err
    durable = terminal.json("flags", "set", "audited.sampling", "rate=1", "durable=true", "--reason", "x")
    assert durable["variants"]["set"] == {"rate": 1, "durable": True}
    terminal.usage("flags", "set", "ruled.sampling", "headers=x-tier", "--reason", "x")


def test_a_whole_flag_comes_from_a_file_or_stdin(
    control: ControlProcess, terminal: Terminal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "flag.json"
    path.write_text(json.dumps(route()))
    assert terminal.json("flags", "set", "whole.route", "--file", str(path), "--reason", "new")["state"] == "ENABLED"
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps({**route(), "state": "DISABLED"})))
    assert terminal.json("flags", "set", "whole", "--file", "-", "--reason", "off")["state"] == "DISABLED"
    path.write_text("{")
    assert "not valid JSON" in terminal.fails("flags", "set", "whole", "--file", str(path), "--reason", "x")
    assert "cannot read" in terminal.fails("flags", "set", "whole", "--file", "/nowhere", "--reason", "x")
    path.write_text(json.dumps(route(targeting={"exec": ["rm"]})))
    assert "exec" in terminal.fails("flags", "set", "whole", "--file", str(path), "--reason", "x")


def test_a_dry_run_shows_the_difference_and_changes_nothing(control: ControlProcess, terminal: Terminal) -> None:
    warm(control, "dry", "1", "2")
    control.put("dry.route", route())
    shown = terminal.ok("flags", "set", "dry", "canary=10", "--dry-run")
    assert "/targeting: nothing -> " in shown
    moved = terminal.json("flags", "set", "dry", "canary=10", "--dry-run")["movedKeys"]["moved"]
    assert f"{moved} of 10000 targeting keys would get another version\n  {moved} from stable 1 to canary 2" in shown
    assert "blocked" not in shown
    assert "targeting" not in control.client.get("/admin/v1/flags/dry.route").json()
    assert "nothing would change" in terminal.ok("flags", "set", "dry", "--default", "stable", "--dry-run")
    assert terminal.json("flags", "set", "dry", "canary=10", "--dry-run")["dryRun"] is True
    control.write_status({"dry": {"1": "warm", "2": "failed: sha256 differs"}})
    shown = terminal.ok("flags", "set", "dry", "canary=10", "--dry-run")
    assert "blocked by version_not_warm: version 2" in shown
    assert "\n  worker 0: version 2 is failed: sha256 differs" in shown


def test_flags_are_imported_from_a_file(models: Path, state: Path, terminal: Terminal, tmp_path: Path) -> None:
    path = tmp_path / "flags.json"
    path.write_text(json.dumps({"flags": {"iris.route": route(targeting=split(10))}}))
    with ControlProcess(models, state) as own:  # an import is about all flags there are
        there = ("--url", own.url, "--token-file", str(state / "admin.token"))
        own.put("old.route", route())
        own.write_status({"iris": {"1": "warm", "2": "failed: sha256 differs"}})
        own.put("iris.route", route())
        shown = terminal.ok("flags", "import", str(path), "--dry-run", *there)
        assert "/flags/iris.route/targeting: nothing -> " in shown
        assert "iris.route: " in shown
        assert "targeting keys would get another version" in shown
        assert "blocked by version_not_warm of iris.route: version 2" in shown
        assert "sha256 differs" in terminal.fails("flags", "import", str(path), "--reason", "x", *there)
        own.write_status({"iris": {"1": "warm", "2": "warm"}})
        shown = terminal.ok("flags", "import", str(path), "--reason", "commit 1a2b", *there)
        assert "iris.route: ENABLED" in shown
        assert "old.route: deleted" in shown
        assert "already so" in terminal.ok("flags", "import", str(path), "--reason", "again", *there)
        assert terminal.json("flags", "import", str(path), "--dry-run", *there)["changed"] is False
        assert terminal.usage("flags", "import", str(path), *there)


def test_cached_answers_are_purged_by_model_and_version(control: ControlProcess, terminal: Terminal) -> None:
    control.put("hot.route", route())
    assert "all answers of hot" in terminal.ok("cache", "purge", "hot", "--reason", "new features")
    found = terminal.json("cache", "purge", "hot", "--version", "2", "--reason", "wrong answers")
    assert (found["model"], found["version"]) == ("hot", "2")
    assert terminal.json("flags", "get", "hot.cache")["metadata"]["purged.2"] == found["revision"]
    assert terminal.json("flags", "history", "hot.cache")[0]["verb"] == "cache.purge"
    assert "names no version '9'" in terminal.fails("cache", "purge", "hot", "--version", "9", "--reason", "x")
    assert terminal.usage("cache", "purge", "hot")


@pytest.mark.parametrize(
    "arguments",
    [
        ("flags",),
        ("flags", "set", "iris"),
        ("flags", "set", "iris", "canary=10"),
        ("flags", "set", "iris", "canary", "--reason", "x"),
        ("flags", "set", "iris", "=10", "--reason", "x"),
        ("flags", "set", "iris", "canary=1", "--file", "f", "--reason", "x"),
        ("flags", "set", "iris.cache", "enabled=true", "--default", "x", "--reason", "x"),
        ("flags", "set", "iris.sampling", "0.1", "0.2", "--reason", "x"),
        ("flags", "set", "iris.nonsense", "1", "--reason", "x"),
        ("flags", "set", "iris.cache", "enable=false", "--reason", "x"),
        ("flags", "enable", "iris"),
        ("token", "create", "me"),
        ("token", "create", "me", "--scope", "root"),
        ("audit", "nonsense"),
    ],
)
def test_usage_errors_exit_with_2(control: ControlProcess, terminal: Terminal, arguments: tuple[str, ...]) -> None:
    if control.client.get("/admin/v1/flags/iris.route").status_code == 404:
        control.put("iris.route", route())
    assert terminal.usage(*arguments)


@pytest.mark.parametrize("share", ["ten", "-1", "101", "0.001", "nan", ""])
def test_a_share_that_is_none_is_refused(control: ControlProcess, terminal: Terminal, share: str) -> None:
    if control.client.get("/admin/v1/flags/iris.route").status_code == 404:
        control.put("iris.route", route())
    assert terminal.run("flags", "set", "iris", f"canary={share}", "--reason", "x") in (1, 2)
    assert "canary" in terminal.err


def test_a_conflict_is_told_and_nothing_is_overwritten(
    control: ControlProcess, terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    control.put("race.route", route())

    class SlowOperator(io.StringIO):
        """While the flag is typed in, somebody else changes it."""

        def read(self, size: int | None = -1) -> str:
            control.patch("race.route", {"state": "DISABLED"})
            return json.dumps(route())

    monkeypatch.setattr("sys.stdin", SlowOperator())
    assert "Somebody else changed it" in terminal.fails("flags", "set", "race", "--file", "-", "--reason", "mine")
    assert control.client.get("/admin/v1/flags/race.route").json()["state"] == "DISABLED"
