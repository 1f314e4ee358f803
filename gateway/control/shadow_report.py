"""What all workers together know of a shadow version: merged sums, intervals, and what can be concluded. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from gateway.control.status import WorkerStatus
from gateway.errors import InvalidFlag
from gateway.flags.compile import compile_options, compile_route
from gateway.flags.document import SHADOW, FlagDocument, route_key
from gateway.samples.pairs import RELATIVE_ERROR, OutputSums, PairSums, sums_from_json

SURE = 20.0  # an e-value from which on a finding is wrong in at most one of so many cases
# A short run's time is mostly chance: batches to be timed before their ratio is told.
_MIN_TIMED = 10
_Z_95 = 1.959963984540054  # of the normal distribution: 95 % lie within so many standard deviations


@dataclass(frozen=True, slots=True)
class ComparedVersions:
    """What *version* made of the requests that *base* had answered, over all workers, since the first of them began.

    since_s: Unix time. A worker that was replaced begins anew, and so do all with another package of either version.
    """

    version: str
    digest: str
    base: str
    base_digest: str
    since_s: float
    workers: int
    sums: PairSums = field(default_factory=PairSums)

    @property
    def run_time_ratio(self) -> float | None:
        """What a run costs the shadow against the other, with the same inputs; None while too few were timed."""
        sums = self.sums
        return sums.shadow_s / sums.base_s if sums.timed >= _MIN_TIMED and sums.base_s > 0 else None

    def to_json(self) -> dict[str, Any]:
        sums = self.sums
        return {
            "version": self.version,
            "digest": self.digest,
            "base": self.base,
            "base_digest": self.base_digest,
            "since": self.since_s,
            "workers": self.workers,
            "copies": sums.copies,
            "rows": sums.rows,
            "base_invalid_rows": sums.base_invalid,
            "failed": sums.failed,
            "dropped": sums.dropped,
            "run_time_ratio": self.run_time_ratio,
            "timed": sums.timed,
            "outputs": {name: _output(output) for name, output in sums.outputs.items()},
            "sentence": sentence(self),
        }


def merged(workers: Iterable[WorkerStatus], model: str) -> list[ComparedVersions]:
    """The comparisons of *model* that the status documents tell of, newest first; what makes no sense is left out.

    workers: as `read_workers` gives them; of a worker that is gone, what it last wrote counts until it is replaced.
    """
    found: dict[tuple[str, str, str, str], ComparedVersions] = {}
    for worker in workers:
        for shadowed in _entries(worker, model):
            for plain in shadowed.get("comparisons") or ():
                try:
                    one = _read(str(shadowed["version"]), plain)
                except (KeyError, TypeError, ValueError, AttributeError):  # of another release
                    continue
                key = (one.version, one.digest, one.base, one.base_digest)
                found[key] = _both(found[key], one) if key in found else one
    return sorted(found.values(), key=lambda one: -one.since_s)


def report(document: FlagDocument, workers: Iterable[WorkerStatus], model: str) -> dict[str, Any]:
    """For the admin API: what the flags say, what each worker does about it, and what came of it."""
    workers = list(workers)
    version, rate, note = _wanted(document, model)
    states = {
        str(worker.slot): str(entry.get("state"))
        for worker in workers
        if worker.live
        for entry in _entries(worker, model)
        if entry.get("version") == version
    }
    return {
        "model": model,
        "version": version,
        "rate": rate,
        "note": note,
        "workers": states,
        "comparisons": [one.to_json() for one in merged(workers, model)],
    }


def _wanted(document: FlagDocument, model: str) -> tuple[str | None, float, str]:
    """The version that shall run copies, the share, and why there is none, if so."""
    flag = document.flags.get(route_key(model))
    if flag is None:
        return None, 0.0, f"there is no flag {route_key(model)}"
    try:
        route, rate = compile_route(model, flag, document.bucketing), compile_options(document, model).shadow_rate
    except InvalidFlag as error:
        return None, 0.0, str(error)
    if route.shadow_version is not None:
        return route.shadow_version, rate, "" if rate else f"nothing is copied: set {model}.{SHADOW} to a share above 0"
    if SHADOW not in flag.variants:
        why = f"{route_key(model)} has no variant {SHADOW!r}"
    elif not flag.enabled:
        why = f"{route_key(model)} is DISABLED"
    else:
        why = f"clients could be given the variant {SHADOW!r}"
    return None, rate, f"nothing is copied: {why}"


def _entries(worker: WorkerStatus, model: str) -> list[Mapping[str, Any]]:
    told = worker.document.get("shadow") or []
    return [entry for entry in told if isinstance(entry, dict) and entry.get("model") == model]


def _read(version: str, plain: Mapping[str, Any]) -> ComparedVersions:
    digest, base, base_digest = (str(plain[name]) for name in ("digest", "base", "base_digest"))
    return ComparedVersions(version, digest, base, base_digest, float(plain["since"]), 1, sums_from_json(plain))


def _both(one: ComparedVersions, other: ComparedVersions) -> ComparedVersions:
    sums = PairSums()
    sums.merge(one.sums)
    sums.merge(other.sums)
    since_s = min(one.since_s, other.since_s)
    workers = one.workers + other.workers
    return ComparedVersions(one.version, one.digest, one.base, one.base_digest, since_s, workers, sums)


def wilson(hits: int, trials: int) -> tuple[float, float]:
    """The 95 % interval of a share of which *hits* of *trials* > 0 were seen. Wilson (1927), J. Am. Stat. Assoc. 22."""
    share, z2 = hits / trials, _Z_95**2
    middle = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    half = _Z_95 * math.sqrt(share * (1 - share) / trials + z2 / (4 * trials**2)) / (1 + z2 / trials)
    low = 0.0 if hits == 0 else max(0.0, middle - half)
    return low, 1.0 if hits == trials else min(1.0, middle + half)


def flips_evidence(flips: int, rows: int, limit: float) -> float:
    """The e-value of *flips* in *rows* against a share of flips of at most *limit* (0 to 1); 1 says nothing.

    It may be looked at after every row: under that share it ever reaches SURE with a chance of 1/SURE at most (Ville).
    The interval of `wilson` promises its 95 % for one look only. A mean of likelihood ratios over twelve shares above
    the limit (Wald 1945, Robbins 1970); rows are taken for independent.
    """
    if limit >= 1 or not rows:
        return 1.0
    if limit <= 0:
        return math.inf if flips else 1.0
    logs = []
    for halvings in range(1, 13):
        share = limit + (1 - limit) / 2**halvings
        logs.append(flips * math.log(share / limit) + (rows - flips) * math.log((1 - share) / (1 - limit)))
    largest = max(logs)
    return math.exp(min(700.0, largest + math.log(sum(math.exp(log - largest) for log in logs) / len(logs))))


def _output(sums: OutputSums) -> dict[str, Any]:
    plain: dict[str, Any] = {"kind": sums.kind, "rows": sums.rows}
    if sums.kind != "score":
        low, high = wilson(sums.flips, sums.rows) if sums.rows else (None, None)
        share = sums.flips / sums.rows if sums.rows else None
        plain |= {"flips": sums.flips, "flip_rate": share, "flip_rate_low": low, "flip_rate_high": high}
    if sums.kind != "label":
        changes = sums.changes
        quantiles = {name: changes.quantile(q) for name, q in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99))}
        plain["change"] = {**quantiles, "max": changes.largest, "relative_error": RELATIVE_ERROR}
        plain["mean_size"] = sums.size_sum / sums.rows if sums.rows else None
    return plain


# -- in words ---------------------------------------------------------------------------------------------


def sentence(found: ComparedVersions) -> str:
    """What can be concluded, in one sentence."""
    sums = found.sums
    parts = [] if sums.rows else ["nothing can be concluded yet, since no pair could be compared"]
    parts += [part for name, output in sums.outputs.items() if output.rows for part in _moves(name, output)]
    if sums.rows > sums.copies and any(output.flips for output in sums.outputs.values()):
        parts.append("rows of one request are not independent, so an interval may be too narrow")
    if sums.failed:
        failed, tried = sum(sums.failed.values()), sums.copies + sum(sums.failed.values())
        parts.append(f"it failed on {failed:,} of {tried:,} copies ({_counts(sums.failed)})")
    elif sums.copies:
        parts.append("it failed on none")
    if sums.base_invalid:
        parts.append(f"{sums.base_invalid:,} rows were left out, for which only version {found.base} gave no number")
    if found.run_time_ratio is not None:
        parts.append(f"a run costs it {found.run_time_ratio:.2f} times as much, with the same inputs")
    if sums.dropped:
        parts.append(f"{sum(sums.dropped.values()):,} copies were not run ({_counts(sums.dropped)})")
    rows = f" ({sums.rows:,} rows)" if sums.rows != sums.copies else ""
    begin = f"Version {found.version} ran {sums.copies:,} requests{rows} that version {found.base} had answered"
    return f"{begin}: {'; '.join(parts)}."


def _moves(name: str, output: OutputSums) -> list[str]:
    parts = []
    if output.kind != "score":
        what = "label" if output.kind == "label" else "likeliest class"
        low, high = wilson(output.flips, output.rows)
        if output.flips:
            interval = (
                f"{_percent(output.flips / output.rows)}; {_percent(low)} to {_percent(high)} with 95 % confidence"
            )
            parts.append(f"{output.flips:,} of {output.rows:,} rows got another {what} in {name!r} ({interval})")
        else:
            parts.append(
                f"none of {output.rows:,} rows got another {what} in {name!r} "
                f"(below {_percent(high)} with 95 % confidence)"
            )
    if output.kind != "label":
        changes = output.changes
        if changes.largest:
            p99 = changes.quantile(0.99) or 0.0
            parts.append(f"{name!r} moved by up to {changes.largest:.3g}, and by at most {p99:.3g} in 99 % of the rows")
        else:
            parts.append(f"{name!r} is the same in all rows")
    return parts


def _percent(share: float) -> str:
    return f"{share * 100:.2g} %" if share < 0.1 else f"{share * 100:.1f} %"


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {reason}" for reason, count in sorted(counts.items()))
