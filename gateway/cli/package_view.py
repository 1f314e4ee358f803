"""How a model package looks on a terminal: its signature, parity, decision and quality as tables."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from gateway.models.manifest import Manifest

# What a file or a pipe gets; a terminal says its own width.
_PLAIN_WIDTH = 160


def console() -> Console:
    """Writes to stdout and takes texts as they are, since names of features may look like markup."""
    from rich.console import Console

    width = None if sys.stdout.isatty() else _PLAIN_WIDTH
    return Console(width=width, markup=False, highlight=False, emoji=False)


def say(out: Console, text: str) -> None:
    """Print a sentence, which may be longer than the screen is wide and is not broken by us."""
    out.print(text, soft_wrap=True)


def parity_table(parity: Mapping[str, Any]) -> Table:
    """What was compared when the model was converted."""
    table = _table(
        "ONNX against the original", "compared on", "rows", "labels differ", "ties", "off by too much", "most"
    )
    titles = {
        "float32_rows": "rows rounded to float32",
        "raw_rows": "rows as they are",
        "boundary_rows": "rows on thresholds",
        "edge_rows": "rows at the edges of numbers",
    }
    for key, title in titles.items():
        found = parity.get(key)
        if found:
            wrong = f"{found['over_tolerance']} (over {_allowed(found)})"
            numbers = (found["rows"], found["mismatches"], found["ties"], wrong, f"{found['max_difference']:.2g}")
            table.add_row(title, *map(str, numbers))
    alone = parity.get("batch_invariance")
    if alone:
        wrong = f"{alone['over_tolerance']} (over {_allowed(alone)})"
        numbers = (alone["rows"], alone["label_changes"], "", wrong, f"{alone['max_difference']:.2g}")
        table.add_row("a row alone and in company", *map(str, numbers))
    return table


def parity_notes(parity: Mapping[str, Any]) -> Iterator[str]:
    """What else the conversion found, a sentence each."""
    words = {
        "missing_numbers": ("missing numbers", "refused for"),
        "missing_texts": ("missing texts", "refused for"),
        "unseen_texts": ("texts never seen", "not known to be right for"),
    }
    for key, (what, otherwise) in words.items():
        trial = parity.get(key)
        if trial and trial["tried"]:
            allowed = len(trial["allowed"])
            rest = f", {otherwise} {trial['tried'] - allowed}" if allowed < trial["tried"] else ""
            because = f" (ONNX answers otherwise for {len(trial['onnx_differs'])})" if trial["onnx_differs"] else ""
            yield f"{what}: allowed for {allowed} of {trial['tried']} features{rest}{because}"
    yield from parity.get("notes", ())
    for row in [*parity.get("float32_rows", {}).get("first", ()), *parity.get("raw_rows", {}).get("first", ())]:
        yield f"row {row['row']}: original {row['original']!r}, ONNX {row['onnx']!r}, apart by {row['difference']:.3g}"


def decision_table(quantization: Mapping[str, Any]) -> Table:
    """The variants that were tried, and which is served."""
    table = _table(
        "Quantization",
        "variant",
        "bytes",
        "us, batch 1",
        "us, batch 32",
        "max / mean change",
        "flips",
        "metric",
        "verdict",
    )
    for candidate in quantization.get("candidates", ()):
        latency = candidate["latency_us"]
        flips = "" if candidate["flips"] is None else f"{candidate['flips']} ({candidate['flip_rate']:.2%})"
        table.add_row(
            candidate["method"],
            str(candidate["size_bytes"]),
            *(f"{latency[batch]:.1f}" if batch in latency else "" for batch in ("1", "32")),
            f"{candidate['max_change']:.2g} / {candidate['mean_change']:.2g}",
            flips,
            _points(candidate["metric_drop_points"]),
            f"{candidate['verdict']}: {candidate['reason']}",
        )
    return table


def quantization_text(quantization: Mapping[str, Any]) -> str:
    """``served as static int8: 1.6x as fast at batch 1 ... (AMD EPYC, avx512_vnni)``."""
    cpu = quantization.get("cpu", {})
    flags = ", ".join([str(cpu.get("model", "")), *cpu.get("flags", ())])
    return f"served as {quantization['chosen']}: {quantization['reason']} ({flags})"


def metrics_table(metrics: Mapping[str, Any]) -> Table:
    """How good the original and the served model are."""
    table = _table(f"Quality on {metrics['rows']} rows", "figure", "original", "served")
    for figure, value in metrics["original"].items():
        table.add_row(figure, f"{value:.4f}", f"{metrics['served'][figure]:.4f}")
    return table


def slices_table(slices: Sequence[Mapping[str, Any]]) -> Table:
    """How good the served model is on parts of the rows."""
    figures = list(slices[0]["served"])
    table = _table("Quality by slice", "column", "is", "rows", *figures)
    for each in slices:
        rows = f"{each['rows']}{' (few)' if each.get('few_rows') else ''}"
        table.add_row(each["column"], each["value"], rows, *(f"{each['served'][figure]:.4f}" for figure in figures))
    return table


def print_manifest(out: Console, manifest: Manifest) -> None:
    """All that a person may want to know of a package."""
    signature = manifest.signature
    say(out, f"{manifest.name} {manifest.version}: {manifest.framework.get('estimator', 'unknown estimator')}")
    tensors = _table("Inputs and outputs", "", "name", "datatype", "shape")
    for kind, specs in (("input", signature.inputs), ("output", signature.outputs)):
        for spec in specs:
            tensors.add_row(kind, spec.name, spec.datatype, str(list(spec.shape)))
    out.print(tensors)
    features = _table("Features", "feature", "input", "kind", "missing allowed", "categories")
    for feature in signature.features:
        place = feature.input if len(signature.inputs) > 1 else f"{feature.input}[{feature.column}]"
        known = "" if feature.categories is None else _shortened(", ".join(feature.categories))
        features.add_row(feature.name, place, feature.kind, "yes" if feature.missing_allowed else "no", known)
    out.print(features)
    if signature.classes is not None:
        say(out, f"classes: {', '.join(map(str, signature.classes))}")
    if manifest.card:
        card = _table("Card", "", "")
        for key, value in manifest.card.items():
            card.add_row(key, "\n".join(map(str, value)) if isinstance(value, list) else str(value))
        out.print(card)
    print_report(out, manifest)
    origin = {"created": manifest.created, **manifest.lineage, **manifest.libraries}
    lineage = _table("Lineage", "", "")
    for key, value in origin.items():
        lineage.add_row(key, "unknown" if value is None else str(value))
    out.print(lineage)


def print_report(out: Console, manifest: Manifest) -> None:
    """Parity, decision and quality."""
    if manifest.parity:
        out.print(parity_table(manifest.parity))
        for note in parity_notes(manifest.parity):
            say(out, note)
    if manifest.quantization:
        if manifest.quantization.get("candidates"):
            out.print(decision_table(manifest.quantization))
        say(out, quantization_text(manifest.quantization))
    if manifest.metrics:
        out.print(metrics_table(manifest.metrics))
        say(out, manifest.metrics["note"])
        if manifest.metrics.get("slices"):
            out.print(slices_table(manifest.metrics["slices"]))


def _points(drop: float | None) -> str:
    """``+0.11 points`` for a metric that got better by that much."""
    return "" if drop is None else f"{round(-drop, 2) or 0.0:+.2f} points"


def _allowed(found: Mapping[str, Any]) -> str:
    relative = found.get("relative")
    return f"{found['tolerance']:.2g}" + (f" + {relative:.0e} x value" if relative else "")


def _shortened(text: str) -> str:
    return text if len(text) <= 60 else text[:59] + "…"


def _table(title: str, *columns: str) -> Table:
    from rich.table import Table

    table = Table(title=title, title_justify="left", show_header=any(columns))
    for column in columns:
        table.add_column(column)
    return table
