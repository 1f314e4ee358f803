"""The A/B report: what may be concluded of canary and stable by now, as a document and as lines of text."""

from __future__ import annotations

import math
from typing import Any

from gateway.control.evidence import Signal
from gateway.control.judge import Judge
from gateway.control.statistics.matched import OTHER, MatchedBins
from gateway.control.window import output_value, run_seconds

ALPHA = 0.05
_MAX_CLASSES = 8
_WORDS = {"higher": "higher", "lower": "lower", "open": "undecided"}


def report(judge: Judge, *, alpha: float = ALPHA) -> dict[str, Any]:
    """The document of `rollout report`.

    All intervals together hold at all times with probability 1 - alpha: each metric has alpha / metrics (Bonferroni).
    Those of rates are exact; those of means and shares of classes asymptotic. None stands for "not known".
    """
    # The canary's fallbacks are judged against all bad events of stable: no difference of one thing in two arms.
    rates = [signal for name, signal in judge.signals.items() if signal.counts[0] and name != "fallbacks"]
    columns = {name: column.matched for name, column in judge.outputs.columns.items()}
    has_runs = judge.run_s.values[0] > 0
    classes = {name: _classes(matched) for name, matched in columns.items()}
    metrics = len(rates) + has_runs + sum(max(len(names), 1) for names in classes.values())
    part = alpha / max(metrics, 1)
    document: dict[str, Any] = {
        "alpha": alpha,
        "metrics": metrics,
        "alpha_per_metric": part,
        "exposure": _exposure(judge),
        "srm": _srm(judge),
        "rates": [_rate(signal, part) for signal in rates],
        "run_s": _mean(judge.run_s, run_seconds, part) if has_runs else None,
        "outputs": {name: _output(matched, classes[name], part) for name, matched in columns.items()},
        "findings": [finding.text for finding in judge.findings() if finding.tripped],
    }
    return document | {"conclusion": _conclusion(document)}


def _exposure(judge: Judge) -> dict[str, Any]:
    canary, stable = judge.requests
    share = canary / (canary + stable) if canary + stable else None
    fallbacks = judge.signals["fallbacks"].counts[1] if "fallbacks" in judge.signals else None
    return {"canary": canary, "stable": stable, "canary_share": share, "canary_fallbacks": fallbacks}


def _srm(judge: Judge) -> dict[str, Any]:
    keys, shares = judge.shares.totals()
    whole = sum(keys.values())
    return {
        "keys": keys,
        "configured": shares,
        "observed": {arm: count / whole for arm, count in keys.items()} if whole else {},
        "e_value": judge.shares.evidence,
        "threshold": 1 / judge.policy.srm_alpha,
        "mismatch": any(finding.signal == "srm" and finding.tripped for finding in judge.findings()),
    }


def _rate(signal: Signal, alpha: float) -> dict[str, Any]:
    n_c, b_c, n_s, b_s = signal.counts
    # The verdict may come from either, so each has half.
    low, high = (float(bound) for bound in signal.interval.difference(alpha / 2))
    ratio_low, ratio_high = signal.interval.ratio(alpha / 2)
    of_canary, of_stable = b_c / n_c, b_s / n_s
    return {
        "metric": "wrong" if signal.name == "accuracy" else signal.name,
        "canary": {"requests": n_c, "bad": b_c, "rate": of_canary},
        "stable": {"requests": n_s, "bad": b_s, "rate": of_stable},
        "difference": {"low": low, "high": high},
        "ratio": {
            "value": of_canary / of_stable if of_stable else None,
            "low": ratio_low,
            "high": ratio_high if math.isfinite(ratio_high) else None,
        },
        "verdict": _verdict(low, high, ratio_low, ratio_high),
    }


def _verdict(low: float, high: float, ratio_low: float, ratio_high: float) -> str:
    if low > 0 or ratio_low > 1:
        return "higher"
    return "lower" if high < 0 or ratio_high < 1 else "open"


def _mean(matched: MatchedBins, value: Any, alpha: float) -> dict[str, Any] | None:
    means, interval = matched.means(value), matched.mean(value, alpha)
    if means is None or interval is None:
        return None
    difference, low, high = interval
    return {
        "canary": means[0],
        "stable": means[1],
        "difference": {"value": difference, "low": low, "high": high},
        "verdict": "higher" if low > 0 else "lower" if high < 0 else "open",
    }


def _classes(matched: MatchedBins) -> list[str]:
    """The bins that are classes, the most frequent ones first; none if they are numbers, which have a mean."""
    names = [name for name in matched.shares() if name != OTHER]
    numbers = all(output_value(name) is not None for name in names) and any(name[0] in "pm" for name in names)
    return [] if numbers else names[:_MAX_CLASSES]


def _output(matched: MatchedBins, classes: list[str], alpha: float) -> dict[str, Any]:
    values = dict(zip(("canary", "stable"), matched.values, strict=True))
    if not classes:
        return {"values": values, "mean": _mean(matched, output_value, alpha)}
    shares, found = matched.shares(), []
    for name in classes:
        difference, low, high = matched.share(name, alpha)
        low, high = max(low, -1.0), min(high, 1.0)  # where little is known the interval is wider than shares can differ
        verdict = "higher" if low > 0 else "lower" if high < 0 else "open"
        bounds = {"value": difference, "low": low, "high": high}
        found.append(
            {"class": name, "canary": shares[name][0], "stable": shares[name][1], "difference": bounds,
             "verdict": verdict}
        )  # fmt: skip
    return {"values": values, "classes": found}


def _conclusion(document: dict[str, Any]) -> str:
    """What can and what cannot be said, in plain sentences."""
    if document["srm"]["mismatch"]:
        return "The split is not as configured: nothing else here can be relied on until that is explained."
    sure = f"{100 * (1 - document['alpha']):.3g} %"
    told = [(rate["metric"], rate["verdict"]) for rate in document["rates"]]
    if document["run_s"] is not None:
        told.append(("run time", document["run_s"]["verdict"]))
    for name, output in document["outputs"].items():
        if output.get("mean"):
            told.append((f"mean of {name}", output["mean"]["verdict"]))
        told += [(f"share of {name} = {of['class']}", of["verdict"]) for of in output.get("classes", [])]
    if not told:
        return "Nothing can be concluded: there was no traffic on both variants at the same time."
    parts = []
    for verdict in ("higher", "lower"):
        names = [name for name, found in told if found == verdict]
        if names:
            parts.append(
                f"With {sure} confidence for all metrics together, {verdict} in the canary: {', '.join(names)}."
            )
    still = [name for name, found in told if found == "open"]
    if still:
        parts.append(f"No difference is shown for {', '.join(still)}; that does not mean that there is none.")
    limits = [
        f"{rate['metric']} by more than {_short(100 * rate['difference']['high'])} points"
        for rate in document["rates"]
        if rate["verdict"] == "open" and rate["difference"]["high"] < 1
    ]
    if limits:
        parts.append(f"Ruled out is a rise of {', of '.join(limits)}.")
    return " ".join(parts)


def lines(document: dict[str, Any]) -> list[str]:
    """The report for reading."""
    exposure, srm = document["exposure"], document["srm"]
    share = exposure["canary_share"]
    found = [
        f"requests: canary {exposure['canary']}, stable {exposure['stable']}"
        + (f" ({100 * share:.3g} % on the canary)" if share is not None else "")
    ]
    if exposure["canary_fallbacks"]:
        found.append(f"answered by stable instead of the canary: {exposure['canary_fallbacks']}")
    if srm["observed"]:
        found.append(
            f"split: {100 * srm['observed'].get('canary', 0.0):.3g} % of the keys on the canary, "
            f"{100 * srm['configured'].get('canary', 0.0):.3g} % configured: "
            + ("MISMATCH" if srm["mismatch"] else "no mismatch")
        )
    found += [_rate_line(rate) for rate in document["rates"]]
    if document["run_s"] is not None:
        found.append("run time: " + _mean_line(document["run_s"], 1000.0, " ms"))
    for name, output in document["outputs"].items():
        if output.get("mean"):
            found.append(f"mean of {name}: " + _mean_line(output["mean"], 1.0, ""))
        found += [
            f"share of {name} = {of['class']}: " + _mean_line(of, 100.0, " %", " points")
            for of in output.get("classes", [])
        ]
    return [*found, *document["findings"], document["conclusion"]]


def _rate_line(rate: dict[str, Any]) -> str:
    difference, ratio = rate["difference"], rate["ratio"]
    high = "any" if ratio["high"] is None else f"{ratio['high']:.3g}"
    return (
        f"{rate['metric']}: canary {100 * rate['canary']['rate']:.3g} %, stable {100 * rate['stable']['rate']:.3g} %; "
        f"difference {_range(difference, 100.0)} points, ratio {ratio['low']:.3g} to {high}: {_WORDS[rate['verdict']]}"
    )


def _mean_line(mean: dict[str, Any], scale: float, unit: str, of_difference: str | None = None) -> str:
    unit_of_difference = unit if of_difference is None else of_difference
    return (
        f"canary {scale * mean['canary']:.3g}{unit}, stable {scale * mean['stable']:.3g}{unit}; "
        f"difference {_range(mean['difference'], scale)}{unit_of_difference}: {_WORDS[mean['verdict']]}"
    )


def _range(difference: dict[str, Any], scale: float) -> str:
    low, high = (_short(scale * difference[end]) for end in ("low", "high"))
    return f"{low if low.startswith('-') else f'+{low}'} to {high if high.startswith('-') else f'+{high}'}"


def _short(value: float) -> str:
    """Two digits, or all those before the point."""
    return f"{value:.0f}" if 100 <= abs(value) < 1e6 else f"{value:.2g}"
