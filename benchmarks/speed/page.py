"""The page of results: bars first, then what was measured, part by part, each with its own day and machine."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from speed import against, bars, doors, features, open_loop, plots, rows, start
from speed.bars import Bar
from speed.rounds import Samples, ratios, values

NOT_MEASURED = "not measured"
_MB = 1_000_000
_LEAST_SHARE = 0.01  # files with less are left out of the profile
_INTRODUCTION = """# Results

Written by `make bench`. What is promised are ratios; absolute figures are those of the machine that a part was measured
on. All values are medians over interleaved rounds, with the lowest and the highest round in brackets. The server runs
on one core, the load generator on another. Requests are one-row JSON of the Open Inference Protocol unless a line says
otherwise. In the gateway everything is on unless a line says otherwise: a live 90/10 canary over two loaded versions
with sticky keys, validation, deadlines, metrics, 1 % sampling. The yardstick ("empty app") is an ASGI app on bare
uvicorn that reads the body and answers a constant. [README.md](README.md) says how all this is measured.
"""


def write(results: Mapping[str, Any], out: Path) -> None:
    """RESULTS.md in *out*, and its plots beside it."""
    shown = plots.draw(results, out / "plots")
    (out / "RESULTS.md").write_text(render(results, shown))


def render(results: Mapping[str, Any], shown: Sequence[str] = ()) -> str:
    """The page as Markdown. shown: file names of the plots that there are."""
    sections = [_INTRODUCTION, _when(results), _bars(bars.all_of(results)), _failures(results)]
    sections += [_plots(shown), _doors(results), _peers(results), _features(results), _rows(results)]
    sections += [_open_loop(results), _start(results), _profile(results)]
    return "\n".join(section for section in sections if section)


def spread(found: Sequence[float], digits: int = 2) -> str:
    """The median, with the lowest and the highest value in brackets."""
    if not found:
        return NOT_MEASURED
    middle = statistics.median(found)
    return f"{middle:.{digits}f} ({min(found):.{digits}f} to {max(found):.{digits}f})"


def verdict(bar: Bar) -> str:
    """Met, met with the goal beyond it, or missed by how much."""
    median = bar.median
    if median is None:
        return NOT_MEASURED
    if not bar.is_met:
        return f"**missed** by {bar.missed_by:.0%}"
    if bar.goal is None:
        return "met"
    reached = median >= bar.goal if bar.at_least else median <= bar.goal
    return "met, and the goal" if reached else "met"


def _table(heads: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    shown = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    shown += ["| " + " | ".join(line) + " |" for line in lines]
    return "\n".join(shown) + "\n"


_OTHER_ROUNDS = """
Where no bar asks for more, numbers of connections are swept in 3 rounds. An open-loop round takes 3 s, one beside a
peer 1 s, or longer for the slow ones.
"""


def _when(results: Mapping[str, Any]) -> str:
    lines = []
    for name, part in _by_when(results):
        machine = part["machine"]
        where = f"{machine['cpu']}, {machine['cores']} cores, Linux {machine['kernel']}, Python {machine['python']}"
        others = [sample["others"] for sample in _samples(part) if "others" in sample]
        busy = f"{statistics.median(others):.0%} (up to {max(others):.0%})" if others else ""
        lines.append(
            (name, machine["day"], machine["revision"], where, f"{part['rounds']} x {part['seconds']} s", busy)
        )
    heads = ("part", "day", "revision", "machine", "rounds for a bar", "others on the server's core")
    return "## When and where\n\n" + _table(heads, lines) + _OTHER_ROUNDS


def _by_when(results: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """The parts, that of the peers once for each time at which some of them were measured."""
    found: list[tuple[str, Mapping[str, Any]]] = []
    for name, part in results.items():
        if name != "peers":
            found.append((name, part))
            continue
        own = {key: part[key] for key in ("machine", "rounds", "seconds")}
        times: list[tuple[Mapping[str, Any], dict[str, Any]]] = []
        for peer, told in part.get("peers", {}).items():
            about = told.get("about", own)
            others = next((others for when, others in times if when == about), None)
            if others is None:
                times.append((about, others := {}))
            others[peer] = told
        for about, peers in times or [(own, {})]:
            whose = "" if len(times) < 2 else f": {', '.join(told['title'] for told in peers.values())}"
            found.append((f"{name}{whose}", {**about, "peers": peers}))
    return found


def _samples(part: Mapping[str, Any]) -> list[dict[str, float]]:
    """All samples of a part, whichever series they are of."""
    series = [*part.get("series", {}).values()]
    for peer in part.get("peers", {}).values():
        for place in peer.get("places", {}).values():
            series += place["series"].values()
    return [sample for samples in series for sample in samples if sample is not None]


def _bars(found: Iterable[Bar]) -> str:
    lines = []
    for bar in found:
        digits = 0 if abs(bar.median or 0) >= 100 else 2
        goal = "" if bar.goal is None else f" ({bar.goal:g})"
        sign = {(True, False): "≥", (True, True): ">", (False, False): "≤", (False, True): "<"}[
            bar.at_least, bar.strict
        ]
        measured = spread(bar.values, digits)
        lines.append((bar.number, bar.what, measured, f"{sign} {bar.limit:g}{goal}{bar.unit}", verdict(bar)))
    heads = ("", "what", "measured", "bar (goal)", "")
    return "## Bars\n\n" + _table(heads, lines)


def _failures(results: Mapping[str, Any]) -> str:
    told = [f"- {name}: {' '.join(text.split())}" for name, part in results.items() for text in part["failures"]]
    return "## What failed\n\n" + "\n".join(told) + "\n" if told else ""


def _plots(shown: Sequence[str]) -> str:
    return "".join(f"![{plots.ABOUT[name]}](plots/{name})\n\n" for name in shown)


def _figures(samples: Samples) -> list[str]:
    """Requests per second, three latencies and processor time, as of that machine."""
    if not values(samples, "p50_ms"):
        return [NOT_MEASURED] * 5
    shown = [f"{statistics.median(values(samples, 'requests_per_s')):,.0f}"]
    shown += [f"{statistics.median(values(samples, name)):.2f}" for name in ("p50_ms", "p99_ms", "p999_ms")]
    return [*shown, f"{statistics.median(values(samples, 'cpu_us')):.1f}"]


_FIGURES = ("requests/s", "p50 ms", "p99 ms", "p99.9 ms", "CPU µs per request")


def _doors(results: Mapping[str, Any]) -> str:
    series: Mapping[str, Samples] = results.get("doors", {}).get("series", {})
    lines = []
    for name, samples in series.items():
        kind, _, connections = name.rpartition("@")
        empty = series[f"{doors.EMPTY}@{connections}"]
        rate, cost = ratios(samples, empty, "requests_per_s"), ratios(samples, empty, "cpu_us")
        busy = statistics.median(values(samples, "busy") or [0.0])
        lines.append((connections, kind, spread(rate), spread(cost), *_figures(samples), f"{busy:.0%}"))
    heads = ("connections", "work", "requests/s over the empty app", "CPU over the empty app", *_FIGURES, "wrk's core")
    text = ("Closed loop, wrk: each connection asks again once it is answered. The last column is the share of its "
            "core that wrk used; near 100 %, wrk was the bound.\n\n")  # fmt: skip
    held = ", ".join(
        f"{name} {of_name['rss_bytes'] / _MB:.0f} (PSS {of_name['pss_bytes'] / _MB:.0f})"
        for name, of_name in results.get("doors", {}).get("memory", {}).items()
    )
    memory = f"\nResident memory after the load, MB: {held}.\n" if held else ""
    return "## Beside an empty app\n\n" + text + _table(heads, lines) + memory if series else ""


def _peers(results: Mapping[str, Any]) -> str:
    found: Mapping[str, Any] = results.get("peers", {}).get("peers", {})
    if not found:
        return ""
    heads = ("peer", "model, connections", "its best configuration", "pairs", "requests/s: ours over its",
             "p99: ours over its", "CPU per request: its over ours",
             *(f"its {figure}" for figure in _FIGURES))  # fmt: skip
    lines = []
    for peer in found.values():
        for place, pair in peer.get("places", {}).items():
            ours, theirs = (pair["series"][name] for name in (against.OURS, against.THEIRS))
            lines.append((
                peer["title"], place.replace("@", ", "), pair["configuration"],
                str(len(ratios(ours, theirs, "requests_per_s"))),
                spread(ratios(ours, theirs, "requests_per_s")), spread(ratios(ours, theirs, "p99_ms")),
                spread(ratios(theirs, ours, "cpu_us"), 1), *_figures(theirs),
            ))  # fmt: skip
    absent = [peer["title"] for peer in found.values() if not peer["set_up"]]
    note = f"\nNot set up, so not measured: {', '.join(absent)}.\n" if absent else ""
    text = ("All on the same core, one after the other, each in turns with this gateway, whose cache is off; the "
            "same ONNX files. Every server's predictions were compared with the model's own before and "
            "after.\n\n")  # fmt: skip
    return "## Beside other servers\n\n" + text + _table(heads, lines) + "\n" + _configurations(found) + note


def _configurations(found: Mapping[str, Any]) -> str:
    lines = []
    for peer in found.values():
        for name, told in peer.get("configurations", {}).items():
            trials = ", ".join(f"{place}: {rate:,.0f}" for place, rate in told.get("trials", {}).items())
            memory = [f"{told[key] / _MB:.0f}" if key in told else "" for key in ("rss_bytes", "pss_bytes")]
            start_s = f"{told['start_s']:.1f}" if "start_s" in told else "failed"
            lines.append((peer["title"], name, told["settings"], peer["versions"], start_s, *memory, trials))
    heads = ("peer", "configuration", "settings", "versions", "start s", "RSS MB", "PSS MB", "requests/s in a trial")
    return _table(heads, lines)


def _features(results: Mapping[str, Any]) -> str:
    series: Mapping[str, Samples] = results.get("features", {}).get("series", {})
    on = series.get(features.ON, [])
    lines = [(name, spread(ratios(samples, on, "cpu_us"), 3), *_figures(samples)) for name, samples in series.items()]
    text = ("Processor time of all of a gateway's processes. Two workers share the one core, with 32 connections each, "
            "64 in all; the others have 32.\n\n")  # fmt: skip
    return "## Features\n\n" + text + _table(("", "CPU over all on", *_FIGURES), lines) if series else ""


def _rows(results: Mapping[str, Any]) -> str:
    part = results.get("rows", {})
    series: Mapping[str, Samples] = part.get("series", {})
    lines = []
    for name, samples in series.items():
        loop = series[rows.LOOP.format(rows.MODEL_OF[name])] if name in rows.MODEL_OF else samples
        rate = values(samples, "rows_per_s")
        share = spread(ratios(samples, loop, "rows_per_s"))
        p99 = values(samples, "p99_ms")
        lines.append((name, share, f"{statistics.median(rate):,.0f}" if rate else NOT_MEASURED,
                      f"{statistics.median(p99):.2f}" if p99 else ""))  # fmt: skip
    best = ", ".join(f"{name} {batch}" for name, batch in part.get("best_batch", {}).items())
    text = (f"32 connections. The loop runs ONNX Runtime with one thread and nothing else, at its best batch size: "
            f"{best}. With a canary 32 connections give no such batches, and the weights of two versions take the "
            "place of each other in the processor's caches: the loop in turns is what is left of the model then."
            "\n\n")  # fmt: skip
    return "## Rows\n\n" + text + _table(("", "rows/s over the loop", "rows/s", "p99 ms"), lines) if series else ""


def _open_loop(results: Mapping[str, Any]) -> str:
    part = results.get("poisson", {})
    series: Mapping[str, Samples] = part.get("series", {})
    lines = []
    for name, samples in series.items():
        latencies = [spread(values(samples, key)) for key in ("p50_ms", "p99_ms", "p999_ms")]
        behind = f"{int(sum(values(samples, 'behind')))} of {len(values(samples, 'behind'))}"
        peak = part["peak_per_s"].get(name, 0.0)
        lines.append((name, f"{open_loop.SHARE_OF_PEAK * peak:,.0f}", *latencies,
                      spread(values(samples, "late_p99_ms")), behind))  # fmt: skip
    text = (f"Poisson arrivals over {open_loop.CONNECTIONS} connections, drawn beforehand, at half of what each server "
            "does closed loop with 32 connections; latency counts from the moment that a request was due. The last "
            "columns tell how late the generator itself sent, and in how many rounds it fell behind.\n\n")  # fmt: skip
    heads = ("", "requests/s", "p50 ms", "p99 ms", "p99.9 ms", "generator late, p99 ms", "rounds behind")
    return "## Open loop\n\n" + text + _table(heads, lines) if series else ""


def _start(results: Mapping[str, Any]) -> str:
    series: Mapping[str, Samples] = results.get("start", {}).get("series", {})
    lines = []
    for name, samples in series.items():
        memory = [spread([value / _MB for value in values(samples, key)], 1) for key in ("rss_bytes", "pss_bytes")]
        begun = values(samples, "start_s") if name != start.LOADED else []
        others = [spread(found) if (found := values(samples, key)) else "" for key in ("back_s", "cpu_s")]
        lines.append((name, spread(begun) if begun else "", *others, *memory))
    text = ("Everything on, two versions of iris loaded, one worker. `sluicegate serve` is the supervisor with worker, "
            "control, monitor and template, all starting on one core; the worker's start is that of the one which "
            "replaces a killed one, from its fork. Processor time is that of all until all are ready.\n\n")  # fmt: skip
    heads = ("", "start to first right answer, s", "kill to first right answer, s", "processor s", "RSS MB", "PSS MB")
    return "## Start and memory\n\n" + text + _table(heads, lines) if series else ""


def _profile(results: Mapping[str, Any]) -> str:
    shares: Mapping[str, Mapping[str, float]] = results.get("profile", {}).get("shares", {})
    if not shares:
        return ""
    places = {place for share in shares.values() for place in share}
    ordered = sorted(places, key=lambda place: -max(share.get(place, 0.0) for share in shares.values()))
    lines = [
        (place, *(f"{share.get(place, 0.0):.1%}" for share in shares.values()))
        for place in ordered
        if max(share.get(place, 0.0) for share in shares.values()) >= _LEAST_SHARE
    ]
    text = ("Everything on; 32 connections and the cache off unless a column says otherwise: the share of the worker's "
            "samples whose innermost Python frame was in that file; what C code does for it counts there. "
            "models/runtime.py is the model itself.\n\n")  # fmt: skip
    return "## Where the time goes\n\n" + text + _table(("", *shares), lines)
