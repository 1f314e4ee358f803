"""The page's part on days and hours: whatever a column is called and whatever it lacks, it stays a well-formed page."""

from __future__ import annotations

from xml.etree import ElementTree

from gateway.offline.course import Course, Courses, Looks, Span
from gateway.offline.course_page import courses

HOSTILE = "<script>\"x'&\u202e"


def test_hostile_names_and_spans_without_values_are_drawn_as_well_formed_text() -> None:
    days, hours = (Span(0, 1), Span(86_400, 1)), (Span(86_400, 1),)
    nothing = Looks((None,), (None,), (None,), (None,))
    by_day = Looks((0.0, None), (None, 1.0), (None, 2.0), (None, 3.0))
    shares = Looks((0.0, 0.0), shares=((0.5, 0.2),))
    full = Looks((0.0,), shares=((1.0,),))
    columns = (
        Course(HOSTILE, "input", "numeric", (), nothing, by_day, Looks((0.0,), (1.0,), (1.0,), (1.0,))),
        Course("c", "input", "categorical", (HOSTILE,), Looks((0.0,), shares=((0.5,),)), shares, full),
        Course("e", "input", "categorical", (), Looks((None,)), Looks((1.0, 1.0)), Looks((1.0,))),
        Course(
            "n", "input", "numeric", (), nothing, Looks((1.0, 1.0), (None, None), (None, None), (None, None)), nothing
        ),
    )
    drawn = "".join(courses(Courses(0.01, 1, 2, days, hours, columns), {"n": 0.5}))
    root = ElementTree.fromstring(f"<page>{drawn}</page>")
    assert "<script" not in drawn
    assert "\u202e" not in drawn
    names = [heading.findtext("span") for heading in root.iter("h4")]
    assert names == ["n", HOSTILE.replace("\u202e", "\ufffd"), "c", "e"]
    assert len(list(root.iter("svg"))) == 4
    assert "1 rows came when" in drawn
    assert "2 rows are of a time that has not come yet" in drawn
