"""Requests that schemathesis draws from our own OpenAPI document, right and wrong ones, and what of it did not hold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import schemathesis
from schemathesis.config import SchemathesisConfig
from schemathesis.engine import Status, events, from_schema

# What JSON Schema cannot say may be refused with 400: as many values as a shape tells; and of paint, which has several
# inputs, as many rows of each.
_LOOSE = ("^/v2/models/", "/paint[/:]?")
# Numbers that are not finite are told so, as the docs have it: JSON has no word for them.
_NOT_FINITE = (b"NaN", b"Infinity")
_ABOUT_BODIES = ("positive_data_acceptance", "negative_data_rejection")
_TOLD = 1200


@dataclass(slots=True)
class Held:
    """What was asked and answered. broken: a line per kind of failure and operation."""

    requests: int = 0
    operations: set[str] = field(default_factory=set)
    statuses: Counter[int] = field(default_factory=Counter)
    checks: Counter[str] = field(default_factory=Counter)
    broken: dict[tuple[str, str, str], str] = field(default_factory=dict)

    def __str__(self) -> str:
        told = ", ".join(f"{count:,} x {status}" for status, count in sorted(self.statuses.items()))
        checks = f"{sum(self.checks.values()):,} checks of {len(self.checks)} kinds"
        return f"by the document: {self.requests:,} requests to {len(self.operations)} operations, {checks}: {told}"


def hold(
    url: str,
    *,
    seed: int,
    examples: int,
    seconds: int,
    key: str | None = None,
    phases: Iterable[str] = ("examples", "coverage", "fuzzing"),
    without: str = "",
) -> Held:
    """Ask the data port at *url* what its document says, and hold all answers against it.

    examples: drawn per operation, right and wrong ones each, besides what covers every keyword of a schema. seconds:
    the most that it may take. key: an API key, if the port asks for one; what comes without it must be refused.
    without: a pattern of paths that are left out.
    """
    document = f"{url}/openapi.json"
    schema = schemathesis.openapi.from_url(document, config=_config(seed, examples, seconds, key, phases),
                                           headers={} if key is None else {"x-api-key": key})  # fmt: skip
    held = Held()
    for event in from_schema(schema.exclude(path_regex=without) if without else schema).execute():
        if isinstance(event, events.ScenarioFinished):
            _take(held, event.recorder)
        elif isinstance(event, events.NonFatalError):
            held.broken[("error", str(event.label), "")] = str(event.value)[:_TOLD]
        elif isinstance(event, events.FatalError):
            raise event.exception
    return held


def _config(seed: int, examples: int, seconds: int, key: str | None, phases: Iterable[str]) -> SchemathesisConfig:
    wanted = set(phases)
    return SchemathesisConfig.from_dict(
        {
            "seed": seed,
            "max-time": seconds,
            # Not as a header of all requests: some are sent without it, or with another one, and must be refused.
            **({} if key is None else {"auth": {"openapi": {"key": {"api_key": key}}}}),
            "continue-on-failure": True,
            "phases": {
                **{name: {"enabled": name in wanted} for name in ("examples", "coverage", "stateful")},
                "fuzzing": {"enabled": "fuzzing" in wanted, "generation": {"max-examples": examples}},
            },
            "generation": {"mode": "all", "database": "none"},
            "operations": [
                {
                    "include-path-regex": path,
                    "checks": {"positive_data_acceptance": {"expected-statuses": ["2xx", "400", "404"]}},
                }
                for path in _LOOSE
            ],
        }
    )


def _take(held: Held, recorder: Any) -> None:
    held.operations.add(recorder.label)
    for identity, interaction in recorder.interactions.items():
        held.requests += 1
        response = interaction.response
        if response is not None:
            held.statuses[response.status_code] += 1
        for check in recorder.checks.get(identity, ()):
            held.checks[check.name] += 1
            is_failure = check.status is Status.FAILURE
            if is_failure and not (_is_not_finite(check, response) or _is_unsaid(check, interaction)):
                told = held.broken.setdefault((check.name, recorder.label, _title(check)), "")
                text = _text(interaction, response)
                if not told or len(text) < len(told):
                    held.broken[(check.name, recorder.label, _title(check))] = text


def _is_not_finite(check: Any, response: Any) -> bool:
    content = b"" if response is None else response.content
    return check.name == "response_schema_conformance" and any(word in content for word in _NOT_FINITE)


def _is_unsaid(check: Any, interaction: Any) -> bool:
    """Whether the document could not say if this body was right: of CSV, bytes and forms it only says what they are."""
    headers = {name.lower(): values for name, values in interaction.request.headers.items()}
    kind = "".join(headers.get("content-type", ())).partition(";")[0]
    is_json = kind in ("", "application/json") and "inference-header-content-length" not in headers
    return check.name in _ABOUT_BODIES and not is_json


def _title(check: Any) -> str:
    return str(check.failure_info.failure.title)


def _text(interaction: Any, response: Any) -> str:
    request = interaction.request
    body = (request.body or b"")[:_TOLD]
    answer = "no answer" if response is None else f"{response.status_code} {response.content[:300]!r}"
    return f"{request.method} {request.uri} {dict(request.headers)} {body!r} -> {answer}"
