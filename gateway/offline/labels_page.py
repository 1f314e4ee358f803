"""What the drift page says of labels: how good the predictions were, and whether they get worse."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from gateway.offline import figures
from gateway.offline.markup import METRICS, badge, clock, length, number, share, short, table, time

_MAX_NAME = 40
_SHOWN_CHANGES = 3
_APART = ("rows", "classes")
_COUNTS = {
    "matched": "found their row",
    "repeated": "came again",
    "disputed": "rows were given different ones",
    "late": "came too late",
    "ambiguous": "did not say which row",
    "unmatched": "found no sampled row",
    "let_go": "rows waited no longer for want of room",
}


def version(section: Mapping[str, Any], name: str) -> Iterator[str]:
    """The part of the page on version *name*; nothing if no variant of it is known."""
    variants = [each for each in section.get("variants", ()) if each["version"] == name]
    if not variants:
        return
    yield (
        f'<h3>Performance by labels</h3><p class="soft">Of the newest {section["recent_rows"]} labelled rows of each '
        f"variant. A label counts if it comes within {length(section['wait_s'])}.</p>"
    )
    rows = []
    for each in variants:
        delay = each["delay_s"] or {}
        all_rows, labelled = each["over"] + each["waiting"], each["labelled"] + each["waiting_labelled"]
        delays = " / ".join(length(delay.get(name)) for name in ("p50", "p90", "p99")) if delay else "-"
        unusable = str(each["unusable"])
        rows.append((short(each["variant"], _MAX_NAME), f"{labelled} of {all_rows}", share(each["coverage"]),
                     unusable, delays))  # fmt: skip
    yield table(("variant", "rows with a label", "of those over", "unusable", "delay p50 / p90 / p99"), rows)
    if counts := _counts(section.get("labels", {})):
        yield f'<p class="soft">Labels of the model: {counts}.</p>'
    for each in variants:
        if unknown := each.get("unknown_classes"):
            names = ", ".join(f"{short(one['class'], _MAX_NAME)} ({one['rows']} rows)" for one in unknown)
            yield (
                f"<p>Labels of {short(each['variant'], _MAX_NAME)} name classes that the model does not have, and "
                f"count nowhere: {names}.</p>"
            )
        yield from _variant(each, section.get("slice_feature", ""))
    for each in section.get("versions", ()):
        if each["version"] == name:
            yield from _decay(each)
            yield from _detectors(each, section)


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{counts[name]} {words}" for name, words in _COUNTS.items() if counts.get(name))


def _variant(told: Mapping[str, Any], slice_feature: str) -> Iterator[str]:
    title = f"<h4>{short(told['variant'], _MAX_NAME)}</h4>"
    if told["scores"] is None:
        if told["reason"]:
            yield f"{title}<p>Performance is not known: {short(told['reason'], 200)}.</p>"
        return
    names = [name for name in told["scores"] if name not in _APART]
    headings = ["", "rows", *(METRICS.get(name, name) for name in names)]
    rows = [("all", str(told["scores"]["rows"]), *(number(told["scores"][name]) for name in names))]
    rows += [
        (f"{short(slice_feature, _MAX_NAME)} = {short(each['value'], _MAX_NAME)}", str(each["rows"]),
         *(number(each.get(name)) for name in names))
        for each in told["slices"]
    ]  # fmt: skip
    yield title + table(headings, rows)
    if classes := told["scores"].get("classes"):
        fields = ("precision", "recall", "f1")
        yield table(
            ("class", "rows", *(METRICS.get(name, name) for name in fields)),
            (
                (short(each["class"], _MAX_NAME), str(each["rows"]), *(number(each[name]) for name in fields))
                for each in classes
            ),
        )
    if (calibration := told.get("calibration")) is not None:
        yield _calibration(calibration)


def _calibration(told: Mapping[str, Any]) -> str:
    """How far chances are from what came true, as one figure and as a plot."""
    chance = f"the chance of {short(told['of'], _MAX_NAME)}" if told["of"] else "the highest chance of each row"
    bins = ", ".join(
        f'<span class="figure">{each["predicted"]:.2f} → {each["observed"]:.2f}</span>' for each in told["bins"]
    )
    return (
        f'<div class="card narrow"><h4><span>Calibration</span></h4><p class="soft">Expected calibration error '
        f"{number(told['ece'])}; chance alone would make it about {told['by_chance']:.2g}. Looked at: {chance}, in "
        f"bins of equally many rows; on the diagonal it means what it says.</p>{figures.reliability(told['bins'])}"
        f'<p class="soft">Said → came true: {bins}.</p></div>'
    )


def _decay(told: Mapping[str, Any]) -> Iterator[str]:
    """Windows of labelled rows, each metric held against its band."""
    metrics = told.get("metrics", ())
    if not metrics:
        return
    yield (
        f'<h3>Does it get worse?</h3><p class="soft">Windows of {told["window_rows"]} labelled rows, oldest first; '
        f"{told['filling_rows']} rows wait for the next one. The first windows (rings) give the mean and, 3 standard "
        "deviations on its bad side, the bound (dashed); it gets worse if 2 of the last 3 windows lie beyond it.</p>"
        '<div class="grid">'
    )
    for metric in metrics:
        label = METRICS.get(metric["name"], metric["name"])
        bound = f"bound {number(metric['bound'])}" if metric["bound"] is not None else "too few windows for a bound"
        yield (
            f'<div class="card"><h4><span>{short(label, _MAX_NAME)}</span>{badge(metric["verdict"])}</h4>'
            f'<p class="soft">Now {number(metric["value"])}, at first {number(metric["mean"])}; {bound}.</p>'
            f"{figures.decay(metric, told['reference'], told['windows'], clock)}</div>"
        )
    yield "</div>"


def _detectors(told: Mapping[str, Any], section: Mapping[str, Any]) -> Iterator[str]:
    """What detectors on the errors of single rows have found, each with its newest changes."""
    detectors = told.get("detectors", ())
    if not detectors:
        return
    alarms = "are told as drift is" if section.get("detectors_alarm") else "are shown, and no alarm"
    yield (
        "<h3>Detectors on single errors</h3>"
        f'<p class="soft">Changes for the worse {alarms}. Where errors come in clusters, such detectors see many.</p>'
    )
    rows = []
    for each in detectors:
        changes = "<br/>".join(
            f"{time(one['ts_ns'] / 1e9)}: {number(one['before'])} → {number(one['after'])}"
            for one in reversed(each["changes"][-_SHOWN_CHANGES:])
        )
        rows.append((short(each["name"], _MAX_NAME), badge(each["verdict"]), str(each["rows"]), str(each["found"]),
                     changes or short(each["reason"], 80) or "-"))  # fmt: skip
    yield table(("detector", "verdict", "rows", "changes", "mean error before → after, the newest first"), rows)
