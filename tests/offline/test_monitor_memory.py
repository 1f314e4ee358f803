"""What the monitor remembers: each row once, whenever it dies, and nothing of what is gone."""

from __future__ import annotations

import shutil
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as settings_of_hypothesis
from hypothesis import strategies as st

from gateway.offline.windows import load_memory
from gateway.settings import Settings
from tests.builders import classifier, write_package
from tests.offline.logs import Log, document, monitor_settings
from tests.offline.monitors import clean, run, samples, start


def test_a_new_monitor_goes_on_where_the_saved_one_was(settings: Settings, log: Log) -> None:
    write_package(settings.paths.models, classifier(), reference_rows=2000)
    first = start(settings)
    log.write(*samples(clean(rows=200)))
    run(first)
    first.save()
    log.write(*samples(clean(rows=50), start_row=200))
    first.step()  # read, but never saved: as lost as if it had been killed
    second = start(settings)
    log.close()
    log.write(*samples(clean(rows=50), start_row=250))
    run(second)
    found = document(settings, "iris").versions[0]
    assert (found.rows_total, found.window_rows) == (300, 300)


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("write"), st.integers(0, 1), st.integers(1, 30)),
            *(st.tuples(st.just(word)) for word in ("close", "step", "save", "kill", "tidy")),
        ),
        max_size=30,
    )
)
@settings_of_hypothesis(max_examples=40, deadline=None)
def test_whenever_it_dies_every_row_is_counted_once(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[Any, ...]]
) -> None:
    """A monitor that is dropped without saving stands for one that was killed."""
    root = tmp_path_factory.mktemp("gateway")
    settings = monitor_settings(root / "models", root / "state", window_rows=20)
    workers = [Log(settings, boot=f"w{index}", max_bytes=3000) for index in range(2)]
    monitor, written = start(settings), 0
    for step in (*steps, ("write", 0, 1)):
        match step:
            case ("write", worker, rows):
                workers[worker].write(*samples(clean(rows=rows), start_row=written))
                written += rows
            case ("close",):
                workers[0].close()
            case ("step",):
                monitor.step()
            case ("save",):
                monitor.save()
            case ("tidy",):
                monitor.tidy()
            case ("kill",):
                monitor = start(settings)
    while monitor.step():
        pass
    monitor.save()
    for worker in workers:
        worker.close()
    window = load_memory(settings.monitor_path / "memory.json", limit_rows=20).windows["iris", "1"]
    assert window.rows_total == written
    assert [row[1] for row in window.rows()] == [f"p{index:06d}" for index in range(max(0, written - 20), written)]


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b'{"schema":99}', b'{"schema":1,"offsets":{}}'])
def test_a_memory_that_cannot_be_read_is_made_anew_from_the_log(settings: Settings, log: Log, content: bytes) -> None:
    write_package(settings.paths.models, classifier(), reference_rows=200)
    log.write(*samples(clean(rows=150)))
    settings.monitor_path.mkdir(parents=True)
    (settings.monitor_path / "memory.json").write_bytes(content)
    run(start(settings))
    assert document(settings, "iris").versions[0].rows_total == 150


def test_a_new_monitor_reports_what_it_remembers_before_anything_new_comes(settings: Settings, log: Log) -> None:
    write_package(settings.paths.models, classifier(), reference_rows=200)
    log.write(*samples(clean(rows=150)))
    monitor = start(settings)
    run(monitor)
    monitor.save()
    (settings.drift_path / "iris.json").unlink()
    assert (monitor.has_unsaved, monitor.has_reports_due) == (False, False)
    again = start(settings)
    assert again.has_reports_due
    run(again)
    assert document(settings, "iris").versions[0].rows_total == 150


def test_versions_whose_package_is_gone_are_forgotten(settings: Settings, log: Log) -> None:
    for version in ("1", "2"):
        write_package(settings.paths.models, classifier(version=version), reference_rows=200)
    log.write(*samples(clean(rows=10)), *samples(clean(rows=10), version="2"))
    monitor = start(settings)
    run(monitor)
    shutil.rmtree(settings.paths.models / "iris" / "1")
    monitor.tidy()
    run(monitor)
    assert [found.version for found in document(settings, "iris").versions] == ["2"]
    shutil.rmtree(settings.paths.models / "iris")
    monitor.tidy()
    run(monitor)
    assert list(settings.drift_path.iterdir()) == []
