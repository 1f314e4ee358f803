"""Log lines, for machines and for people."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest

from gateway import logs


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _root_logger_is_put_back() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def test_a_machine_gets_one_json_object_a_line_with_the_part_and_the_extras() -> None:
    stream = io.StringIO()
    logs.set_up("worker-0", stream=stream)
    logging.getLogger("gateway.x").warning("%s is\nslow", "iris", extra={"run_s": 0.5, "odd": object})
    (line,) = stream.getvalue().splitlines()
    record = json.loads(line)
    assert record.pop("ts").endswith("Z")
    assert record == {
        "level": "warning",
        "part": "worker-0",
        "logger": "gateway.x",
        "message": "iris is\nslow",
        "run_s": 0.5,
        "odd": str(object),
    }


def test_an_exception_stays_on_its_line() -> None:
    stream = io.StringIO()
    logs.set_up("control", stream=stream)
    try:
        raise ValueError("what went wrong")
    except ValueError:
        logging.getLogger("gateway.x").exception("it failed")
    (line,) = stream.getvalue().splitlines()
    assert "ValueError: what went wrong" in json.loads(line)["exception"]


def test_a_person_gets_a_readable_line() -> None:
    stream = Terminal()
    logs.set_up("supervisor", stream=stream)
    logging.getLogger("gateway.x").info("ready", extra={"port": 8080})
    assert stream.getvalue().endswith(" info    supervisor: ready port=8080\n")


def test_lines_below_the_level_are_left_out() -> None:
    stream = io.StringIO()
    logs.set_up("supervisor", level="error", stream=stream)
    logging.getLogger("gateway.x").warning("never mind")
    assert stream.getvalue() == ""
