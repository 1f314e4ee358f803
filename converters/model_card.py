"""The model card that people read, written from what the manifest says: purpose, data, quality, limits, decisions."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gateway.models.manifest import Manifest

UNSTATED = "Not stated: `sluicegate convert --card` takes it."
_MOST_FEATURES = 50


def card(manifest: Manifest) -> bytes:
    """card.md: Markdown with a head that model hubs read. Nothing stands here that does not stand in the manifest."""
    return "\n".join([*_head(manifest), *_body(manifest)]).encode() + b"\n"


def _head(manifest: Manifest) -> Iterator[str]:
    task = manifest.framework.get("task")
    yield "---"
    yield "library_name: onnx"
    if task in ("classifier", "regressor"):
        yield f"pipeline_tag: tabular-{'classification' if task == 'classifier' else 'regression'}"
    yield f"tags: {json.dumps(['sluicegate', 'onnx', 'tabular', str(manifest.framework.get('name', 'unknown'))])}"
    yield "---"


def _body(manifest: Manifest) -> Iterator[str]:
    given, framework = manifest.card, manifest.framework
    yield f"# {manifest.name} {manifest.version}"
    yield ""
    made_of = f"{framework.get('name')}, {framework.get('task')}"
    yield f"{_text(framework.get('estimator', 'unknown'))} ({made_of}), as ONNX. "
    yield f"Written {manifest.created}. Owner: {_text(given.get('owner') or 'not stated')}. "
    yield f"Stakes: {given.get('stakes', 'not stated')}."
    yield from _section("Intended use", [_text(given["intended_use"]) if given.get("intended_use") else UNSTATED])
    limits = given.get("limitations") or []
    limits = limits if isinstance(limits, list) else [limits]
    yield from _section(
        "Limitations", [f"- {_text(each)}" for each in [*(limits or [UNSTATED]), *_found_limits(manifest)]]
    )
    yield from _section("Data", list(_data(manifest)))
    yield from _section("Quality", list(_quality(manifest.metrics)))
    yield from _section("ONNX against the original", list(_parity(manifest.parity)))
    yield from _section("Quantization", list(_quantization(manifest.quantization)))
    origin = {**manifest.lineage, **manifest.libraries}
    rows = [(key, _plain(value)) for key, value in origin.items() if value is not None]
    yield from _section("Origin", list(_table(("what", "which"), rows)))


def _section(title: str, lines: Sequence[str]) -> Iterator[str]:
    yield ""
    yield f"## {title}"
    yield ""
    yield from lines


def _found_limits(manifest: Manifest) -> Iterator[str]:
    """What the conversion found, and people should know."""
    features = manifest.signature.features
    if closed := [feature.name for feature in features if not feature.missing_allowed]:
        yield f"A value may not be missing in {len(closed)} of {len(features)} features; such rows are refused."
    if listed := [feature.name for feature in features if feature.categories is not None]:
        yield f"Texts that were never seen are refused in: {', '.join(listed[:10])}."
    if not manifest.signature.batch_invariant:
        yield "A row's answer depends on the rows beside it: it is served without batching."
    for note in manifest.parity.get("notes", ()):
        yield str(note)


def _data(manifest: Manifest) -> Iterator[str]:
    lineage, reference = manifest.lineage, manifest.reference
    if lineage.get("data"):
        yield f"`{lineage['data']}`, {reference.get('rows', 'unknown')} rows, SHA-256 `{lineage['data_sha256']}`."
    else:
        yield "No rows were given."
    shown = list(reference.get("features", {}).items())
    if shown:
        yield ""
        kinds = [(name, each["kind"], _range(each), f"{each['missing_rate']:.2%}") for name, each in shown]
        yield from _table(("feature", "kind", "values", "missing"), kinds[:_MOST_FEATURES])
        if len(kinds) > _MOST_FEATURES:
            yield ""
            yield f"and {len(kinds) - _MOST_FEATURES} more features."


def _range(histogram: Mapping[str, Any]) -> str:
    if histogram["kind"] == "categorical":
        return f"{histogram['distinct']} texts, most often {', '.join(list(histogram['counts'])[:3])}"
    quantiles = histogram["quantiles"]
    return f"{quantiles['0']:.4g} to {quantiles['1']:.4g}, median {quantiles['0.5']:.4g}" if quantiles else "none"


def _quality(metrics: Mapping[str, Any]) -> Iterator[str]:
    if not metrics:
        yield "Not measured: no true answers were given (`--target`)."
        return
    yield f"On {metrics['rows']} rows with a true answer in `{metrics['target']}`; {metrics['note']}."
    yield ""
    overall = [(key, f"{value:.4f}", f"{metrics['served'][key]:.4f}") for key, value in metrics["original"].items()]
    yield from _table(("figure", "original", "served"), overall)
    if slices := metrics.get("slices"):
        figures = list(slices[0]["served"])
        yield ""
        rows = [
            (
                each["column"],
                each["value"],
                f"{each['rows']}{' (few)' if each.get('few_rows') else ''}",
                *(f"{each['served'][figure]:.4f}" for figure in figures),
            )
            for each in slices
        ]
        yield from _table(("slice", "is", "rows", *figures), rows)
    else:
        yield ""
        yield "Not measured by slice: `--slice COLUMN` does."


def _parity(parity: Mapping[str, Any]) -> Iterator[str]:
    rows = []
    for key, what in (
        ("float32_rows", "rows rounded to float32"),
        ("raw_rows", "rows as they are"),
        ("boundary_rows", "rows on thresholds"),
        ("edge_rows", "rows at the edges of numbers"),
    ):
        if found := parity.get(key):
            off = found["mismatches"] + found["over_tolerance"]
            rows.append((what, str(found["rows"]), str(off), str(found["ties"]), f"{found['max_difference']:.2g}"))
    if rows:
        yield from _table(("compared on", "rows", "off", "ties", "most apart"), rows)
    else:
        yield f"Compared: {parity.get('of', 'nothing')}."


def _quantization(quantization: Mapping[str, Any]) -> Iterator[str]:
    if not quantization:
        yield "None was tried."
        return
    yield f"Served as {quantization['chosen']}: {quantization['reason']}."
    if candidates := quantization.get("candidates"):
        yield ""
        rows = [
            (
                each["method"],
                str(each["size_bytes"]),
                *(f"{each['latency_us'][batch]:.1f}" if batch in each["latency_us"] else "" for batch in ("1", "32")),
                "" if each["flip_rate"] is None else f"{each['flip_rate']:.2%}",
                f"{each['verdict']}: {each['reason']}",
            )
            for each in candidates
        ]
        yield from _table(("variant", "bytes", "us, batch 1", "us, batch 32", "flips", "verdict"), rows)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(columns)} |"
    yield f"|{'---|' * len(columns)}"
    for row in rows:
        yield f"| {' | '.join(_text(cell) for cell in row)} |"


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _text(value: Any) -> str:
    """A text of others in one line of Markdown, where it can be neither markup nor the end of a cell."""
    flat = " ".join(str(value).split())
    for sign in "\\`|<[":
        flat = flat.replace(sign, f"\\{sign}")
    return flat
