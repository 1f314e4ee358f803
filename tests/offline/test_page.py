"""The drift page: whole, self-contained, in plain words, and safe with names that somebody made up."""

from __future__ import annotations

import re
from dataclasses import asdict, replace
from html.parser import HTMLParser
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as settings_of_hypothesis
from hypothesis import strategies as st

from gateway.offline.decay import Decay
from gateway.offline.detectors import ErrorWatch
from gateway.offline.drift import Column, Rules, compare
from gateway.offline.groups import Group, told_of
from gateway.offline.history import AlarmRule, FinishedWindow, alarms, finding, timeline
from gateway.offline.measures import measure
from gateway.offline.outside import outside_of
from gateway.offline.page import page
from gateway.offline.report import DriftDocument, VersionReport, status_of
from gateway.offline.scores import Judged
from gateway.offline.targets import Target
from gateway.offline.together import Fit
from tests.samples.make import TEN_O_CLOCK_NS

RULES = Rules(100, 0.05, 0.08)
HOSTILE = [
    "<script>alert(1)</script>",
    "</title></style><img src=x onerror=alert(1)>",
    '"><svg onload="alert(1)">',
    "a' style='x",
    "\x00\x08\x1b[31m\u202ecod.exe\ud800",
    "&lt;&#60;",
    "]]>",
    "x" * 5000,
]


def columns(names: tuple[str, ...], seed: int) -> list[Column]:
    """A shifted column, a calm one, categories with a new one, an output; named so."""
    rng = np.random.default_rng(seed)
    numbers = [
        Column(name, "input", "numeric", rng.normal(size=1000), rng.normal(shift, size=300))
        for name, shift in zip(names, (0.8, 0.0), strict=False)
    ]
    then = rng.choice([names[3], "blue", "green"], size=1000).astype(object)
    now = rng.choice([names[4], "blue", "green"], size=300).astype(object)
    label = rng.choice(["a", "b"], size=1000).astype(object)
    return [*numbers, Column(names[2], "input", "categorical", then, now),
            Column("label", "output", "categorical", label, label[:300])]  # fmt: skip


def document(
    names: tuple[str, ...] = ("dose", "age", "colour", "red", "ultraviolet"), model: str = "iris"
) -> DriftDocument:
    """What a monitor would have written after three windows."""
    history = []
    for window in range(3):
        every = columns(names, window)
        ids = [f"{names[0][:20]}-{index}" for index in range(300)]
        findings = tuple(finding(drift, one, ids) for drift, one in zip(compare(every, RULES), every, strict=True))
        start_ns = TEN_O_CLOCK_NS + window * 10**12
        history.append(FinishedWindow(start_ns, start_ns + 10**12, 300, 300, findings, 0.1 * window))
    found = tuple(
        replace(drift, measures=measure(one)) for drift, one in zip(compare(every, RULES), every, strict=True)
    )
    alarmed, quiet = alarms(history, AlarmRule(2, 3))
    together = Fit(every[:3]).judge(every[:3])
    status, reason = status_of(found)
    version = VersionReport(
        "3", "d1", status, reason, 300, history[-1].from_ns, history[-1].to_ns, 900, 1000, found, tuple(alarmed),
        tuple(quiet), 0, timeline(history), together, outside=outside_of(every, ids),
    )  # fmt: skip
    empty = VersionReport("4", "d2", "no reference", "the package has no manifest.json", 0, 0, 0, 0, 0, ())
    return DriftDocument(
        model, TEN_O_CLOCK_NS / 1e9, 300, RULES, (version, empty), AlarmRule(2, 3),
        performance=performance(names),
    )  # fmt: skip


def performance(names: tuple[str, ...]) -> dict[str, Any]:
    """What labels would have told of version 3: a model that got worse after four windows."""
    target = Target("label", "label", True, names[:3], ("p0", "p1", "p2"))
    decay = Decay("d1")
    rows = []
    for index in range(320):
        truth = names[index % 3] if index < 160 or index % 2 else names[(index + 1) % 3]
        scores = [0.8 if column == index % 3 else 0.1 for column in range(3)]
        rows.append(Judged(TEN_O_CLOCK_NS + index * 10**9, f"p{index}", 0, names[index % 3], scores, truth, 1.0,
                           names[3 + index % 2], 60.0))  # fmt: skip
        decay.add(rows[-1], target, window_rows=40, reference_windows=4)
    group = Group("d1", over=400, labelled=320)
    told = told_of(rows, target, by_slice=True)
    counts = {"waiting": 5, "waiting_labelled": 0, "unusable": 1,
              "unknown_classes": [{"class": names[0], "rows": 1}]}  # fmt: skip
    known = {"version": "3", "variant": "stable", "reason": "", **group.told(), **counts, **told}
    unknown = {"version": "3", "variant": names[0], "reason": names[1], **Group("d0").told(), **counts,
               **told_of((), "no manifest")}  # fmt: skip
    watch = ErrorWatch("d1", ("adwin", "ddm"), 3600.0, is_classes=True)
    for row in rows:
        watch.add(row)
    detectors = [{**one, "changes": [asdict(change) for change in one["changes"]]}
                 for one in (watch.told("adwin"), watch.told("ddm"))]  # fmt: skip
    version = {"version": "3", "window_rows": 40, **told_of(rows, target), **decay.told(4), "detectors": detectors}
    return {
        "wait_s": 3600.0, "recent_rows": 5000, "slice_feature": names[2], "labels": {"matched": 320, "late": 4},
        "variants": [known, unknown], "versions": [version],
    }  # fmt: skip


class Elements(HTMLParser):
    """Every element and attribute as a browser's parser sees them."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str]] = []
        self.words = ""
        self.feed(content)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.words += data


def test_the_page_says_in_words_what_alarmed_by_how_much_and_where_to_look() -> None:
    words = re.sub(r"\s+", " ", Elements(page(document())).words)
    assert "Drift of iris" in words
    assert "dose (feature) has other values than in the reference: in 3 of the last 3 windows." in words
    assert "colour (feature) has its categories in other shares than in the reference" in words
    assert "Features that moved in the same window: colour (" in words
    assert "Predictions to look at: dose-" in words
    assert "10:33:20 UTC to 2026-03-01 10:50:00 UTC, 300 rows against 1000" in words
    assert "ultraviolet" in words  # the new category
    assert "no reference" in words
    assert re.search(r"Rows unlike all of the reference above\d+ rows, \d+\.\d%, have a feature beyond", words)
    assert "more than chance explains" in words


def test_what_labels_say_is_told_per_variant_class_and_slice_with_coverage_delay_and_decay() -> None:
    words = re.sub(r"\s+", " ", Elements(page(document())).words)
    assert "320 of 40580.0%160 s / 60 s / 60 s" in words  # rows with a label, of those over, unusable, delays
    assert "Labels of the model: 320 found their row, 4 came too late." in words
    assert "Labels of stable name classes that the model does not have, and count nowhere: dose (1 rows)." in words
    assert "colour = red160" in words
    assert "dose106" in words  # a class and its rows
    assert "Performance is not known: age." in words
    assert "Expected calibration error 0.05; chance alone would make it about 0.018. Looked at: the highest" in words
    assert "Said → came true: 0.80 → 0.75." in words
    assert "Changes for the worse are shown, and no alarm." in words
    assert "adwindrifted3201" in words  # the name, its verdict, rows, changes
    assert "accuracydriftedNow 0.5, at first 1; bound 0.983." in words


def test_every_column_is_drawn_and_so_are_the_windows_one_after_the_other() -> None:
    tree = ElementTree.fromstring(page(document()).removeprefix("<!DOCTYPE html>\n"))
    titles = [title.text for svg in tree.iter("svg") for title in svg.iter("title")]
    assert {f"{name}: reference and window" for name in ("dose", "age", "colour", "label")} < set(titles)
    assert "effect of each column, window by window" in titles
    assert "accuracy by labels, window by window" in titles
    assert "share of rows outside, window by window" in titles
    assert "chance said, and share that came true" in titles
    assert "reconstruction error of the window, and the band of the reference" in titles


@pytest.mark.parametrize("hostile", HOSTILE)
def test_hostile_names_stay_text_and_nothing_is_loaded_or_run(hostile: str) -> None:
    names = tuple(f"{hostile}{index}" for index in range(5))
    calm, content = page(document()), page(document(names, model=hostile))
    ElementTree.fromstring(content.removeprefix("<!DOCTYPE html>\n"))
    content.encode("utf-8")
    found, expected = Elements(content), Elements(calm)
    assert found.tags == expected.tags
    assert {name for name, _ in found.attributes} == {name for name, _ in expected.attributes}
    assert found.tags.isdisjoint({"script", "link", "img", "iframe", "a", "object", "image", "use"})
    assert {name for name, _ in found.attributes}.isdisjoint({"src", "href", "onload", "onerror", "xlink:href"})
    assert "url(" not in calm
    assert "@import" not in calm
    assert "://" not in calm


@given(st.text(max_size=40))
@settings_of_hypothesis(max_examples=20, deadline=None)
def test_any_name_gives_a_well_formed_page(name: str) -> None:
    ElementTree.fromstring(page(document((name, name + "2", name + "3", name, name + "5"))).split("\n", 1)[1])


def test_a_model_that_nobody_asked_has_a_page_too() -> None:
    content = page(replace(document(), versions=()))
    assert "No version was watched yet." in content
