"""The drift document as one page for people: a file that needs nothing but a browser."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from gateway.offline import alarms_page, course_page, figures, labels_page
from gateway.offline.drift import ColumnDrift
from gateway.offline.markup import TESTS, badge, chance, clock, number, share, short, table, text, time
from gateway.offline.outside import Outside
from gateway.offline.report import BesideReport, DriftDocument, VersionReport
from gateway.offline.together import Together

_MAX_NAME = 80

_STYLE = """
:root { color-scheme: light dark; --page: #fff; --card: #f6f7f9; --ink: #1b1f24; --soft: #59636e; --rule: #d1d9e0;
  --ref: #b4bcc6; --now: #0b62d6; --bad: #c2260f; --good: #1a7f37; --c0: #c2260f; --c1: #0b62d6; --c2: #1a7f37;
  --c3: #8250df; --c4: #9a6700; }
@media (prefers-color-scheme: dark) {
  :root { --page: #0f1318; --card: #181d24; --ink: #e6eaef; --soft: #9aa5b1; --rule: #343c46; --ref: #56616e;
    --now: #6cb0ff; --bad: #ff8070; --good: #58c878; --c0: #ff8070; --c1: #6cb0ff; --c2: #58c878; --c3: #c3a0ff;
    --c4: #e0b040; } }
body { margin: 0 auto; max-width: 76rem; padding: 1.5rem; background: var(--page); color: var(--ink);
  font: 15px/1.45 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: 0; } h2 { font-size: 1.2rem; margin: 2.2rem 0 .3rem; }
h3 { font-size: 1rem; margin: 1.6rem 0 .4rem; } p { margin: .3rem 0; max-width: 60rem; }
h1, h2, h3, h4, p, li, dd { overflow-wrap: anywhere; }
.soft { color: var(--soft); } .drifted, .alarm { color: var(--bad); } .stable { color: var(--good); }
.badge { border: 1px solid currentColor; border-radius: 1rem; padding: 0 .6rem; font-size: .8rem; font-weight: 600;
  white-space: nowrap; align-self: flex-start; }
.alarms { list-style: none; padding: 0; margin: .6rem 0; }
.alarms li { border-left: 4px solid var(--bad); background: var(--card); padding: .6rem .9rem; margin: .5rem 0; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(20rem, 1fr)); gap: 1rem; }
.card { background: var(--card); border: 1px solid var(--rule); border-radius: .5rem; padding: .8rem; min-width: 0; }
.card h4 { margin: 0; font-size: .95rem; display: flex; gap: .5rem; justify-content: space-between; }
dl { display: grid; grid-template-columns: auto 1fr; gap: 0 .8rem; margin: .4rem 0 0; font-size: .85rem; }
dt { color: var(--soft); } dd { margin: 0; text-align: right; font-variant-numeric: tabular-nums; }
code { font-size: .85em; overflow-wrap: anywhere; }
svg { max-width: 100%; height: auto; display: block; margin: .5rem 0; overflow: visible; }
.card svg { width: 100%; max-width: 24rem; }
svg text { fill: var(--soft); font: 11px system-ui, sans-serif; }
.axis { stroke: var(--rule); } .floor { stroke: var(--soft); stroke-dasharray: 4 4; }
.ref { fill: var(--ref); } polyline.now { fill: none; stroke: var(--now); stroke-width: 2; }
rect.now, circle.now { fill: var(--now); } circle.now.drifted { fill: var(--bad); }
.line { fill: none; stroke-width: 1.5; opacity: .6; } .dot { stroke-width: 1.5; } .dot.calm { fill: var(--page); }
.c0 { fill: var(--c0); stroke: var(--c0); } .c1 { fill: var(--c1); stroke: var(--c1); }
.c2 { fill: var(--c2); stroke: var(--c2); } .c3 { fill: var(--c3); stroke: var(--c3); }
.c4 { fill: var(--c4); stroke: var(--c4); } .line.c0, .line.c1, .line.c2, .line.c3, .line.c4 { fill: none; }
.dot.calm { fill: var(--page); }
.band { opacity: .55; } .median { stroke: var(--ink); stroke-width: 1.5; } rect.share { stroke: none; }
.legend span { display: inline-block; width: .8em; height: .8em; margin: 0 .3em 0 1em; vertical-align: -.05em; }
.wide { overflow-x: auto; margin: .5rem 0; }
.wide svg { min-width: 36rem; } .figure { white-space: nowrap; }
table { border-collapse: collapse; font-size: .85rem; }
th, td { padding: .2rem .7rem; border-bottom: 1px solid var(--rule); text-align: right; white-space: nowrap;
  font-variant-numeric: tabular-nums; }
thead th { color: var(--soft); font-weight: normal; } tr > :first-child { text-align: left; padding-left: 0; }
h4 { font-size: .95rem; margin: .8rem 0 0; }
.narrow { max-width: 26rem; margin: .8rem 0; } .narrow svg { max-width: 20rem; }
@media print { .card { break-inside: avoid; } }
"""


def page(document: DriftDocument) -> str:
    """*document* as HTML that is also well-formed XML. It loads nothing, runs nothing, and holds no link."""
    title = f"Drift of {document.model}"
    body = "".join(part for version in document.versions for part in _version(document, version))
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"/>'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\"/>"
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>'
        f"<title>{text(title)}</title><style>{_STYLE}</style></head><body>"
        f'<h1>{text(title)}</h1><p class="soft">Written {time(document.written_at)}. {text(_rules(document))}</p>'
        f"{body or '<p>No version was watched yet.</p>'}</body></html>\n"
    )


def _rules(document: DriftDocument) -> str:
    rules, alarm = document.rules, document.alarm_rule
    length = f"{document.window_s:g} s, at most" if document.window_s else "the newest"
    return (
        f"A window is {length} {document.window_rows} rows. A column has drifted in it if q is at most "
        f"{rules.max_false_discovery_rate:g} and the effect at least {rules.min_effect:g}; with fewer than "
        f"{rules.min_rows} rows nothing is said. It alarms if it drifted in {alarm.drifted} of the {alarm.windows} "
        "newest finished windows, which have no row in common."
    )


def _version(document: DriftDocument, version: VersionReport) -> Iterator[str]:
    yield f"<h2>Version {text(version.version)} {badge(version.status)}</h2>"
    window = f"{version.window_rows} rows"
    if version.window_rows:
        window += f", {time(version.window_from_ns / 1e9)} to {time(version.window_to_ns / 1e9)}"
    yield (
        f'<p>{text(version.reason)}.</p><p class="soft">Window: {window}. Reference: {version.reference_rows} rows. '
        f"{_ever(version)} Package <code>{text(version.digest)}</code>.</p>"
    )
    if listed := "".join(alarms_page.listed(document, version)):
        yield f'<h3>Alarms</h3><ul class="alarms">{listed}</ul>'
    elif version.columns:
        yield "<h3>Alarms</h3><p>None.</p>"
    if version.beside is not None:
        yield from _beside(version.beside)
    if plot := figures.timeline(version.timeline, document.rules.min_effect, clock):
        yield (
            '<h3>Windows one after the other</h3><p class="soft">Effect of the columns that moved most, in each '
            "finished window; a full dot is drift, the dashed line the smallest effect that counts.</p>"
            f'<div class="wide">{plot}</div>'
        )
    if version.together is not None:
        yield from _together(version.together)
    elif version.together_reason:
        yield (
            f"<h3>All features together {badge('insufficient')}</h3>"
            f'<p class="soft">{text(version.together_reason)}.</p>'
        )
    if document.performance is not None:
        yield from labels_page.version(document.performance, version.version)
    if version.outside is not None:
        yield from _outside(version.outside, [(one.from_ns, one.to_ns, one.outside) for one in version.timeline])
    if version.outside_outputs is not None:
        shares = [(one.from_ns, one.to_ns, one.outside_outputs) for one in version.timeline]
        yield from _outside(version.outside_outputs, shares, of_outputs=True)
    if version.courses is not None:
        yield from course_page.courses(version.courses, {column.name: column.effect for column in version.columns})
    if version.columns:
        yield from _quality(version.columns)
        yield (
            '<h3>Columns now, against the reference</h3><p class="legend soft"><span style="background: var(--ref)">'
            '</span>reference<span style="background: var(--now)"></span>window</p><div class="grid">'
        )
        order = {"drifted": 0, "stable": 1, "insufficient": 2}
        for column in sorted(version.columns, key=lambda one: (order[one.verdict], -(one.effect or 0.0))):
            yield _card(column)
        yield "</div>"


def _ever(version: VersionReport) -> str:
    late = f", {version.late_rows} of them after their window was finished" if version.late_rows else ""
    return f"{version.rows_total} rows ever{late}."


def _beside(found: BesideReport) -> Iterator[str]:
    yield (
        f"<h3>Beside version {text(found.baseline)} at the same time {badge(found.status)}</h3>"
        f'<p>{text(found.reason)}.</p><p class="soft">{found.window_rows} rows against {found.baseline_rows} of '
        f"version {text(found.baseline)}. A change of the traffic reaches both, and is not seen here. Of outputs only "
        "what lies beyond the difference of the two references counts.</p>"
    )
    drifted = [column for column in found.columns if column.verdict == "drifted"]
    if drifted:
        yield f'<div class="grid">{"".join(_card(column) for column in drifted)}</div>'


def _outside(
    found: Outside, windows: Sequence[tuple[int, int, float | None]], *, of_outputs: bool = False
) -> Iterator[str]:
    """windows: of each finished one from and to (Unix time in nanoseconds), and its share."""
    title, what = "Rows unlike", "have a feature beyond its range or a category that it does not have"
    if of_outputs:
        title, what = "Answers unlike", "have a number among their outputs that is beyond its range"
    ids = ", ".join(f"<code>{text(one)}</code>" for one in found.prediction_ids)
    words = "more than chance explains" if found.is_above else "as was to be expected"
    yield (
        f"<h3>{title} all of the reference {badge('above' if found.is_above else 'within')}</h3>"
        f'<p>{found.rows} rows, {share(found.share)}, {what}: {words}.</p><p class="soft">'
        f"Expected {share(found.expected)}; only one window in a thousand has more "
        f"than {share(found.bound)} by chance. Shown only; it never alarms.</p>"
        f"<p>The newest of them: {ids or 'none'}.</p>"
    )
    metric = {"name": "outside", "mean": found.expected, "bound": found.bound}
    points = [{"from_ns": from_ns, "to_ns": to_ns, "outside": share_then} for from_ns, to_ns, share_then in windows]
    which = "rows with an output" if of_outputs else "rows"
    if plot := figures.decay(metric, (), points, clock, title=f"share of {which} outside, window by window"):
        yield f'<div class="card narrow">{plot}</div>'


def _quality(columns: Sequence[ColumnDrift]) -> Iterator[str]:
    """The columns with values that are missing, out of range, new or of another type; in the document's order."""
    rows = []
    for column in columns:
        shown = column.measures
        outside, wrong = (shown.outside, shown.wrong_type) if shown is not None else (0.0, 0.0)
        if column.missing_ref or column.missing_cur or outside or wrong:
            fresh = ", ".join(short(one, 30) for one in shown.new_categories) if shown is not None else ""
            rows.append((short(column.name, _MAX_NAME), f"{column.missing_ref:.1%} → {column.missing_cur:.1%}",
                         share(outside), share(wrong), fresh or "-"))  # fmt: skip
    yield "<h3>Data quality</h3>"
    if rows:
        yield table(("column", "missing", "out of range, or new", "wrong type", "new categories"), rows)
    else:
        yield "<p>No value is missing, beyond the reference, new, or of the wrong type.</p>"


def _together(found: Together) -> Iterator[str]:
    words = "inside of the band, as ever"
    if found.is_outside:
        words = "outside of the band; features do not go together as they did"
    yield (
        f'<h3>All features together</h3><p class="soft">How far rows lie from their reconstruction by '
        f"{found.components} principal components of {found.columns} features: {number(found.error)}, {words}. "
        f"The band is that of the reference. Shown only; it never alarms.</p>{figures.band(found)}"
    )


def _card(column: ColumnDrift) -> str:
    facts: list[tuple[str, str]] = []
    if column.test:
        facts.append((TESTS.get(column.test, column.test), number(column.statistic)))
        facts += [("effect", number(column.effect)), ("p", chance(column.p)), ("q", chance(column.q))]
    plot = ""
    if (shown := column.measures) is not None:
        plot = figures.histogram(shown.histogram, f"{column.name}: reference and window")
        facts += [("PSI", number(shown.psi)), ("Jensen-Shannon", number(shown.jensen_shannon))]
        if column.kind == "numeric":
            facts += [("Wasserstein, sd", number(shown.wasserstein)), ("out of range", f"{shown.outside:.1%}")]
            facts += [("wrong type", f"{shown.wrong_type:.1%}")] if shown.wrong_type else []
        else:
            facts.append(("in new categories", f"{shown.outside:.1%}"))
            if shown.new_categories:
                facts.append(("new", ", ".join(short(one, 30) for one in shown.new_categories)))
    facts.append(("missing", f"{column.missing_ref:.1%} → {column.missing_cur:.1%}"))
    facts.append(("rows", f"{column.n_ref} → {column.n_cur}"))
    listed = "".join(f"<dt>{text(name)}</dt><dd>{value}</dd>" for name, value in facts)
    kind = "feature" if column.role == "input" else "output"
    return (
        f'<div class="card"><h4><span>{short(column.name, _MAX_NAME)}</span>{badge(column.verdict)}</h4>'
        f'<p class="soft">{kind}, {column.kind}: {text(column.reason)}</p>{plot}<dl>{listed}</dl></div>'
    )
