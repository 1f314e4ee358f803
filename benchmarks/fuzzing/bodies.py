"""Bodies as clients send them, by target, and what becomes of them when a hand slips: strategies of Hypothesis."""

from __future__ import annotations

import copy
import json
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

from fuzzing.targets import Target
from tests.builders import IRIS_FEATURES

ROW = (5.1, 3.5, 1.4, 0.2)
LENGTH_HEADER = "inference-header-content-length"

# Values that JSON allows, or nearly, and that a reader may trip over.
_ODD: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**53 + 1, 2**63 - 1, 2**63, 2**64, -(2**63) - 1, 10**40, 0.1, -0.0, 1e308),
    *(
        1e-320,
        float("nan"),
        float("inf"),
        float("-inf"),
        "",
        " ",
        "0",
        "1",
        "NaN",
        "iris",
        "stable",
        "é",
        "\0",
        "\ud800",
    ),
    *("x" * 5000, "../../etc/passwd", "%s%n{0}", "\U0001f600", [], {}, [[]], [None], [[1], [1, 2]], {"": {}}),
    *({"var": "x"}, {"fractional": [["stable", 50], ["canary", 50]]}, {"if": [True, "canary"]}, ["stable", "canary"]),
    *("http://127.0.0.1:1/", "http://[::1", "2026-11-26T00:00:00Z", "@deep", "@wide", "@twice"),
)
# Text that json cannot write: put in the place of the string that stands for it.
_RAW: Mapping[bytes, bytes] = {
    b'"@deep"': b"[" * 3000 + b"]" * 3000,
    b'"@wide"': b"[" + b"0," * 20_000 + b"0]",
    b'"@twice"': b'{"a":1,"a":2}',
}


@dataclass(frozen=True, slots=True)
class Payload:
    """A body and the headers that belong to it."""

    body: bytes
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Seed:
    """A body that is right. within: the part of the document that may be changed; () for all of it.

    after: bytes after the document, as of binary tensors, whose header then says how long the document is.
    """

    document: Any
    within: tuple[str, ...] = ()
    after: bytes | None = None


def _tensor(rows: int, **parts: Any) -> dict[str, Any]:
    return {"name": "input", "shape": [rows, len(ROW)], "datatype": "FP32", **parts}


def _binary(rows: int, **parameters: Any) -> Seed:
    blob = struct.pack(f"<{4 * rows}f", *ROW * rows)
    document = {"inputs": [_tensor(rows, parameters={"binary_data_size": len(blob)})], "parameters": parameters}
    return Seed(document, after=blob)


_OIP = (
    Seed({"inputs": [_tensor(1, data=list(ROW))]}),
    Seed({"id": "7", "inputs": [_tensor(3, data=[list(ROW)] * 3)], "outputs": [{"name": "probabilities"}]}),
    Seed({"inputs": [_tensor(200, data=list(ROW) * 200)], "parameters": {}}),
    _binary(1),
    _binary(5, binary_data_output=True),
)
_NATIVE = (
    Seed({"rows": [dict(zip(IRIS_FEATURES, ROW, strict=True))]}),
    Seed({"rows": [dict(zip(IRIS_FEATURES, ROW, strict=True))] * 9}),
    Seed({"columns": list(IRIS_FEATURES), "rows": [list(ROW)] * 2}),
    Seed({"columns": list(IRIS_FEATURES), "rows": [list(ROW)] * 300}),
)
_LABEL = {"prediction_id": "0" * 32, "label": 1, "row": 0}
_FEEDBACK = (
    Seed(_LABEL),
    Seed([_LABEL, {**_LABEL, "label": {"label": 2}, "weight": 0.5, "source": "desk", "event_ts_ns": 10**18}]),
    Seed(_LABEL, after=b"\n" + json.dumps(_LABEL).encode() + b"\n"),
)
_FLAG = {
    "state": "ENABLED",
    "variants": {"stable": "2", "canary": "1"},
    "defaultVariant": "stable",
    "targeting": {"fractional": [{"var": "targetingKey"}, ["canary", 10], ["stable", 90]]},
}
_SHARE = {
    "state": "ENABLED",
    "variants": {"some": 0.5, "durable": {"rate": 1, "durable": True}},
    "defaultVariant": "some",
}
_SMALL = {"state": "ENABLED", "variants": {"on": {"enabled": True, "ttl_s": 5}}, "defaultVariant": "on"}
_FLAGS = tuple(map(Seed, (_FLAG, _SHARE, _SMALL)))
# Only what hangs below a flag of a model that nobody relies on: the others are the innocents'.
_DOCUMENTS = (
    Seed({"flags": {"maple.sampling": _SHARE}}, within=("flags", "maple.sampling")),
    Seed({"flags": {"maple.route": _FLAG}}, within=("flags", "maple.route")),
)
_PLANS = (
    Seed({"strategy": "canary", "version": "1", "steps": [{"weight_percent": 5, "min_time_s": 0, "min_requests": 0}]}),
    Seed({"strategy": "shadow", "version": "1", "shadow_rate": 0.5, "min_pairs": 1, "max_flip_rate": 0.1}),
    Seed({"strategy": "bluegreen", "version": "1", "judge": {"alpha": 0.01}, "promote": "manual"}),
    Seed({"strategy": "experiment", "version": "1", "fallback": False, "on_breaker": "pause"}),
)
_CONTEXTS = (
    Seed({"context": {"targetingKey": "user-1", "protocol": "oip", "headers": {"x-tier": "gold"}}}),
    Seed({"context": {"headers.x-tier": "gold"}}),
)
_KEY = {"name": "app", "models": ["iris"], "rate_per_s": 10, "burst": 20, "expires_in_s": 60}
_WEBHOOK = {"url": "http://127.0.0.1:1/hook", "events": ["flag.*"], "description": "a desk"}

_NAMED = dict(zip(IRIS_FEATURES, ROW, strict=True))
_TFS = (
    Seed({"instances": [list(ROW)]}),
    Seed({"instances": [{"input": list(ROW)}] * 3, "signature_name": "serving_default"}),
    Seed({"inputs": {"input": [list(ROW)] * 2}}),
    Seed({"inputs": [list(ROW)] * 300}),
)
_EXAMPLES = (Seed({"examples": [_NAMED] * 2}), Seed({"context": _NAMED, "examples": [{}]}))
_MLFLOW = (
    Seed({"dataframe_split": {"columns": list(IRIS_FEATURES), "data": [list(ROW)] * 2, "index": [0, 1]}}),
    Seed({"dataframe_records": [_NAMED] * 2, "params": {"outputs": ["probabilities"]}}),
    Seed({"instances": [list(ROW)]}),
    Seed({"inputs": {"input": [list(ROW)]}}),
)
_TORCHSERVE = (Seed({"data": list(ROW)}), Seed([list(ROW)] * 3), Seed(_NAMED), Seed({"data": [_NAMED] * 2}))
_INDEX = (Seed({}), Seed({"ready": True}))
# Whatever the body is, they answer that they do not do this, or only that they were asked.
_WITHOUT = (
    *(
        ("OPTIONS", "/"),
        ("POST", "/v2/repository/models/{model}/load"),
        ("POST", "/v2/repository/models/{model}/unload"),
    ),
    *((method, "/v1/models/{rest:path}") for method in ("PATCH", "POST", "PUT")),
    *(("POST", f"/v1/models/{{model}}{pin}:explain") for pin in ("", "/versions/{version}", "/labels/{label}")),
    *((method, f"/explanations/{{model}}{pin}") for method in ("POST", "PUT") for pin in ("", "/{version}")),
    *(
        (method, f"/models{pin}")
        for method in ("OPTIONS", "PATCH", "POST", "PUT")
        for pin in ("", "/{model}", "/{model}/{version}")
    ),
)

SEEDS: Mapping[tuple[str, str], tuple[Seed, ...]] = {
    **{
        ("POST", f"/v1/models/{{model}}{pin}:{verb}"): known
        for verb, known in (("predict", _TFS), ("classify", _EXAMPLES), ("regress", _EXAMPLES))
        for pin in ("", "/versions/{version}", "/labels/{label}")
    },
    **dict.fromkeys(_WITHOUT, (Seed({}),)),
    ("POST", "/invocations"): _MLFLOW,
    ("POST", "/models/{model}/invocations"): _MLFLOW,
    ("POST", "/predictions/{model}"): _TORCHSERVE,
    ("POST", "/predictions/{model}/{version}"): _TORCHSERVE,
    ("POST", "/v2/repository/index"): _INDEX,
    ("POST", "/predict/{model}"): _NATIVE,
    ("POST", "/v2/models/{model}/infer"): _OIP,
    ("POST", "/v2/models/{model}/versions/{version}/infer"): _OIP,
    ("POST", "/v1/feedback"): _FEEDBACK,
    ("PUT", "/admin/v1/flags/{key}"): _FLAGS,
    ("PATCH", "/admin/v1/flags/{key}"): (*_FLAGS, Seed({"variants": {"canary": "1"}}), Seed({"targeting": None})),
    ("PUT", "/admin/v1/flags"): _DOCUMENTS,
    ("PATCH", "/admin/v1/flags"): _DOCUMENTS,
    ("POST", "/admin/v1/flags:import"): _DOCUMENTS,
    ("POST", "/admin/v1/models/{model}/rollouts"): _PLANS,
    ("POST", "/admin/v1/models/{model}/cache:purge"): (Seed({}), Seed({"version": "1"})),
    ("POST", "/admin/v1/tokens"): (Seed({"name": "ci", "scope": "viewer"}),),
    ("POST", "/admin/v1/keys"): (Seed(_KEY),),
    ("POST", "/admin/v1/keys/{id}:rotate"): (Seed({"grace_s": 1}),),
    ("POST", "/admin/v1/webhooks"): (Seed(_WEBHOOK),),
    ("POST", "/ofrep/v1/evaluate/flags"): _CONTEXTS,
    ("POST", "/ofrep/v1/evaluate/flags/{key}"): _CONTEXTS,
}
_UNKNOWN = (Seed({}), Seed({"name": "x", "rows": [1, 2]}))


def seeds(target: Target) -> tuple[Seed, ...]:
    """Right bodies of a target; of one that nobody has told of here, JSON all the same."""
    return SEEDS.get((target.method, target.path), _UNKNOWN)


@st.composite
def payloads(draw: Callable[..., Any], target: Target, base: Mapping[str, Any] | None = None) -> Payload:
    """A body for *target*, right or a little wrong. base: a document that it is laid over, one level deep in flags."""
    seed = draw(st.sampled_from(seeds(target)))
    document = seed.document
    for _ in range(draw(st.sampled_from((0, 0, 1, 1, 2, 3)))):
        document = _changed(draw, document, seed.within)
    if base is not None and target.method != "PATCH":
        document = {**base, "flags": {**base["flags"], **document["flags"]}}
    text = _text(document)
    if seed.after is None:
        return Payload(text)
    if "inputs" not in seed.document:
        return Payload(text + seed.after)
    length = draw(st.sampled_from((len(text), len(text), len(text), 0, 1, len(text) + 1, 10**9, -1)))
    return Payload(text + seed.after, ((LENGTH_HEADER, str(length)),))


def _text(document: Any) -> bytes:
    text = json.dumps(document).encode()
    for sign, raw in _RAW.items():
        text = text.replace(sign, raw)
    return text


def _changed(draw: Callable[..., Any], document: Any, within: tuple[str, ...]) -> Any:
    """A copy in which one place is another: replaced, left out, repeated or renamed."""
    whole = copy.deepcopy({"": document})
    holder, name = whole, ""
    for step in within:
        holder, name = holder[name], step
    places = list(_places(holder, name))
    parent, key = places[draw(st.integers(0, len(places) - 1))]
    how = draw(st.sampled_from(("replace", "replace", "leave out", "repeat", "rename")))
    if how == "leave out" and parent is not holder:
        del parent[key]
    elif how == "repeat" and isinstance(parent, list):
        parent.insert(key, copy.deepcopy(parent[key]))
    elif how == "rename" and isinstance(parent, dict) and parent is not holder:
        parent[draw(st.sampled_from(("", "x", str(key)[:-1], str(key).upper(), "a.b", "@twice")))] = parent.pop(key)
    else:
        parent[key] = draw(st.sampled_from(_ODD))
    return whole[""]


def _places(holder: Any, name: Any) -> list[tuple[Any, Any]]:
    """Everything that hangs below one place, as what holds it and under which name; of long lists the begin."""
    found = [(holder, name)]
    value = holder[name]
    if isinstance(value, dict):
        for key in value:
            found += _places(value, key)
    elif isinstance(value, list):
        for index in range(min(len(value), 5)):
            found += _places(value, index)
    return found
