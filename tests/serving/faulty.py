"""A rig whose version 2 is a candidate that can be made to fail, and what its callers must see of that."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gateway.flags.compile import compile_route
from gateway.flags.document import parse
from tests.puppet import FaultyRuntime
from tests.serving.rig import FLAG, Caller, Rig

SPLIT_FLAG: dict[str, Any] = {
    **FLAG,
    "metadata": {},
    "targeting": {
        "if": [
            {"!=": [{"var": "headers.x-variant"}, None]},
            {"var": "headers.x-variant"},
            {"fractional": [["canary", 50], ["stable", 50]]},
        ]
    },
}
PLAIN_FLAG = {**SPLIT_FLAG, "targeting": {"fractional": [["canary", 50], ["stable", 50]]}}


def keys_of(variant: str) -> list[str]:
    route = compile_route("m", parse({"flags": {"m.route": PLAIN_FLAG}}).flags["m.route"])
    return [key for key in map(str, range(200)) if route.decide(key, "p", {}, "oip").variant == variant]


CANARY_KEYS, STABLE_KEYS = keys_of("canary"), keys_of("stable")
FAULTS = ["raise", "nan", "inf", "shape", "type", "rows"]


class FaultyRig(Rig):
    """A rig whose version 2 is a candidate that can be made to fail."""

    def __init__(self, root: Path, flag: dict[str, Any] = PLAIN_FLAG, **more: Any) -> None:
        super().__init__(root, puppet=FaultyRuntime, **more)
        self.adopt(flag)

    @property
    def canary(self) -> FaultyRuntime:
        runtime = self.runtimes["2"]
        assert isinstance(runtime, FaultyRuntime)
        return runtime

    @property
    def stable(self) -> FaultyRuntime:
        runtime = self.runtimes["1"]
        assert isinstance(runtime, FaultyRuntime)
        return runtime

    def told(self, variant: str = "canary") -> dict[str, Any]:
        self.guards.signals.flush()
        (found,) = [arm for arm in self.guards.to_json()["signals"] if arm["variant"] == variant]
        return {name: found[name] for name in ("eligible", "errors", "timeouts", "invalid", "fallbacks", "keys")}

    def breaker(self) -> dict[str, Any]:
        (found,) = self.guards.to_json()["breakers"]
        return {name: found[name] for name in ("variant", "version", "state", "opened")}


def check_fell_back(caller: Caller) -> None:
    assert caller.outputs() == [2 * value for value in caller.values]
    headers = caller.headers
    assert (headers["x-model-version"], headers["x-model-variant"]) == ("1", "stable")
    assert list(headers)[-2:] == ["x-cache", "x-model-fallback"]
    assert headers["x-model-fallback"] == "stable"


def check_own(caller: Caller, version: str = "2") -> None:
    assert caller.outputs() == [2 * value for value in caller.values]
    assert caller.headers["x-model-version"] == version
    assert "x-model-fallback" not in caller.headers
