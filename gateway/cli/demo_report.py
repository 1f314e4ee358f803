"""What the demo prints at its end: figures, shares, drift, and the lines with which to go on."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gateway.cli.demo_gateway import DemoGateway, Metrics
from gateway.cli.demo_traffic import CANCER, SHIFT_TEXT, SHIFTS, Counts, Subject

if TYPE_CHECKING:
    from rich.console import Console

Drift = Mapping[str, Any]  # a drift document


@dataclass(frozen=True, slots=True)
class Outcome:
    """All that the demo saw. drift_before: breast-cancer's report just before the shift; drift: reports at the end."""

    seconds: float
    phases: Sequence[str]
    counts: Counts
    metrics: Metrics
    drift_before: Drift | None
    drift: Mapping[str, Drift]


def problems(outcome: Outcome) -> list[str]:
    """Why this demo failed; empty if it did not."""
    counts = outcome.counts
    found = []
    if not counts.requests:
        found.append("no prediction was answered")
    if counts.failed or counts.wrong:
        found.append(f"{counts.failed} requests failed, {counts.wrong} answers were wrong")
        found += [f"  for example {message}" for message in counts.messages]
    written = int(outcome.metrics.total("sluicegate_samples_written_total"))
    if written != counts.rows and not counts.failed:
        found.append(f"{written} of {counts.rows} rows are in the sample log")
    judged = [version for version in _versions(outcome.drift.get(CANCER)) if version["status"] != "insufficient"]
    if not judged:
        found.append(f"the drift monitor has not seen enough rows of {CANCER}")
    for version in judged:
        missed = [name for name in SHIFTS if name not in _drifted(version)]
        if missed:
            found.append(f"{CANCER} {version['version']}: the monitor missed the shift of {', '.join(missed)}")
    return found


def print_outcome(screen: Console, outcome: Outcome) -> None:
    """The tables."""
    _print_figures(screen, outcome)
    _print_shares(screen, outcome)
    _print_drift(screen, outcome)


def _print_figures(screen: Console, outcome: Outcome) -> None:
    from rich.table import Table

    counts, metrics = outcome.counts, outcome.metrics
    table = Table(title=f"{outcome.seconds:.0f} seconds of real rows", title_justify="left", show_header=False)
    table.add_row(
        "requests", f"{counts.requests} with {counts.rows} rows, {counts.requests / outcome.seconds:.0f} per s"
    )
    table.add_row("failures", f"{counts.failed} failed, {counts.wrong} wrong")
    table.add_row(
        "largest difference to ONNX Runtime's own answer",
        f"{counts.largest_difference:.1g} in {counts.rows} predictions",
    )
    table.add_row("targeting keys, each with one variant per flag revision", str(_keys(counts)))
    table.add_row("latency of the client, p50 / p99", " / ".join(f"{_latency_ms(counts, p):.1f} ms" for p in (50, 99)))
    results = {name: int(metrics.total("sluicegate_cache_total", result=name)) for name in ("hit", "shared", "miss")}
    answered = sum(results.values())
    share = f" ({results['hit'] / answered:.1%})" if answered else ""
    table.add_row("cache", f"{results['hit']} hits{share}, {results['shared']} shared, {results['miss']} misses")
    for model, version in _served(metrics):
        table.add_row(f"batches of {model} {version}", _batches(metrics, model, version))
    written = int(metrics.total("sluicegate_samples_written_total"))
    table.add_row("sampled rows", f"{written} of {counts.rows}")
    screen.print(table)


def _print_shares(screen: Console, outcome: Outcome) -> None:
    from rich.table import Table

    variants = outcome.counts.variants
    names = sorted({variant for _phase, model, variant in variants if model == CANCER}, reverse=True)
    table = Table(title=f"{CANCER}: requests by variant", title_justify="left")
    for column in ("phase", *names):
        table.add_column(column, justify="left" if column == "phase" else "right")
    for phase in outcome.phases:
        own = [variants[phase, CANCER, name] for name in names]
        table.add_row(phase, *(f"{count} ({count / max(1, sum(own)):.1%})" for count in own))
    screen.print(table)


def _print_drift(screen: Console, outcome: Outcome) -> None:
    from rich.table import Table

    table = Table(title=f"What the drift monitor found (half way: {SHIFT_TEXT})", title_justify="left")
    for column in ("model", "version", "when", "rows", "verdict", "drifted, with effect (0 to 1)"):
        table.add_column(column)
    for version in _versions(outcome.drift_before):
        table.add_row(CANCER, version["version"], "before the shift", *_findings(version))
    for model, document in outcome.drift.items():
        for version in _versions(document):
            table.add_row(model, version["version"], "at the end", *_findings(version))
    screen.print(table)


def _findings(version: Mapping[str, Any]) -> tuple[str, str, str]:
    drifted = sorted(_drifted(version).items(), key=lambda item: -item[1])
    return str(version["window_rows"]), version["status"], ", ".join(f"{name} {effect:.2f}" for name, effect in drifted)


def _versions(document: Drift | None) -> list[dict[str, Any]]:
    return [] if document is None else list(document["versions"])


def _drifted(version: Mapping[str, Any]) -> dict[str, float]:
    """Drifted features and outputs and their effects."""
    return {column["name"]: column["effect"] for column in version["columns"] if column["verdict"] == "drifted"}


def _served(metrics: Metrics) -> list[tuple[str, str]]:
    found = metrics.values("sluicegate_batch_rows_count")
    return sorted({(labels["model"], labels["version"]) for labels, _value in found})


def _batches(metrics: Metrics, model: str, version: str) -> str:
    """How large the runs were, by the histograms of the workers."""
    labels = {"model": model, "version": version}
    runs = metrics.total("sluicegate_batch_rows_count", **labels)
    if not runs:
        return "no run"
    rows = metrics.total("sluicegate_batch_rows_sum", **labels) / runs
    requests = metrics.total("sluicegate_batch_requests_sum", **labels) / runs
    largest = [bound for bound, count in metrics.buckets("sluicegate_batch_rows", **labels).items() if count][-1]
    several = int(runs) - metrics.buckets("sluicegate_batch_requests", **labels).get("1.0", 0)
    return (
        f"{runs:.0f} runs, on average {rows:.1f} rows of {requests:.1f} requests; {several} runs shared by several "
        f"requests; the largest had up to {float(largest):g} rows"
    )


def _keys(counts: Counts) -> int:
    return len({key for _model, key, _revision in counts.sticky})


def _latency_ms(counts: Counts, percent: int) -> float:
    ordered = sorted(counts.latencies_s)
    return 1000 * ordered[min(len(ordered) - 1, len(ordered) * percent // 100)] if ordered else 0.0


# -- how to go on --------------------------------------------------------------------------------------


def print_lines(screen: Console, gateway: DemoGateway, subject: Subject, directory: Path) -> None:
    """URLs, and curl lines that work as they stand."""
    row = directory / "row.json"
    named = dict(zip(subject.features, subject.rows[0, 0].tolist(), strict=True))
    row.write_text(json.dumps({"rows": [named]}))
    flag = f"{gateway.control_url}/admin/v1/flags/{CANCER}.route"
    token = f'-H "authorization: Bearer $(cat {shlex.quote(str(gateway.token_path))})"'
    write = f"{token} -H 'if-match: *' -X PATCH"
    canary = json.dumps({"targeting": {"fractional": [["canary", 25], ["stable", 75]]}})
    kill = json.dumps({"state": "DISABLED"})
    lines = {
        "predictions": gateway.data_url,
        "admin": f"{gateway.control_url} (token in {gateway.token_path})",
        "a prediction": f"curl -s {gateway.data_url}/predict/{CANCER} -d @{shlex.quote(str(row))}",
        "who gets which version": f"curl -s {flag} {token}",
        "25 % canary": f"curl -s {flag} {write} -H 'x-change-reason: more' -d '{canary}'",
        "kill switch: all back to stable": f"curl -s {flag} {write} -H 'x-change-reason: enough' -d '{kill}'",
    }
    for what, line in lines.items():
        screen.print(f"{what}:\n  {line}", soft_wrap=True)
