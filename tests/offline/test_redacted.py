"""What is redacted in the log, held against a package that has it in plain: no verdict, no alarm, and no word of it."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from gateway.metrics import process_registry
from gateway.metrics_monitor import MonitorMetrics
from gateway.models.manifest import MANIFEST_FILE
from gateway.offline.monitor import Monitor
from gateway.offline.page import page
from gateway.redaction import parse_card, parse_setting
from gateway.samples.labels import Label, LabelLog
from gateway.samples.lines import LineBuilder
from gateway.settings import Settings
from gateway.tensors import Array, Feature, Signature, TensorSpec
from tests.offline.logs import Log, document, write_reference_package
from tests.puppet import FakeClock
from tests.samples.make import TEN_O_CLOCK_NS, sample_of

SIGNATURE = Signature(
    inputs=(TensorSpec("who", "BYTES", (-1, 2)), TensorSpec("dose", "FP64", (-1, 1))),
    outputs=(TensorSpec("label", "BYTES", (-1,), "label"),),
    features=(
        Feature("name", "who", 0, "categorical"),
        Feature("town", "who", 1, "categorical"),
        Feature("dose", "dose", 0),
    ),
)
NAMES, TOWNS, LABELS = ("secret-ann", "secret-bob"), ("open-york", "open-hull"), ("secret-yes", "secret-no")


def rows(count: int, seed: int) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    return {
        "name": rng.choice(NAMES, count),
        "town": rng.choice(TOWNS, count),
        "dose": rng.normal(size=count),
        "label": rng.choice(LABELS, count),
    }


def bytes_of(texts: Array) -> Array:
    return np.array([text.encode() for text in texts.tolist()], object)


def watched(settings: Settings, card: dict[str, str], windows: int = 3) -> tuple[Any, str]:
    """The monitor's document and page on traffic like the reference; each label that comes is what was predicted."""
    reference = {name: column.tolist() for name, column in rows(1000, 0).items()}
    package = write_reference_package(settings.paths.models, "clinic", "1", SIGNATURE, reference)
    manifest = json.loads((package / MANIFEST_FILE).read_text())
    manifest["card"] = {"stakes": "low", "redact": card}
    (package / MANIFEST_FILE).write_text(json.dumps(manifest))
    builder = LineBuilder(10_000, parse_setting(settings.sampling.redact), lambda: bytes(32))
    log = Log(settings)
    labels = LabelLog(settings.sample_log_path, boot="b1", max_bytes=10**6, max_age_s=3600)
    made = rows(300 * windows, 1)
    for index in range(300 * windows):
        at_ns = TEN_O_CLOCK_NS + index * 10**9
        who = np.array([[made[name][index].encode() for name in ("name", "town")]], object)
        inputs = {"who": who, "dose": made["dose"][index].reshape(1, 1)}
        outputs = {"label": bytes_of(made["label"][index : index + 1])}
        names: dict[str, Any] = {"model": "clinic", "prediction_id": f"p{index}", "ts_ns": at_ns}
        sample = sample_of(inputs, outputs, SIGNATURE, rows=1, **names)
        sample.redact = parse_card(card)
        log.write_raw("clinic", "1", at_ns, b"".join(builder.lines(sample)))
        labels.append([Label(f"p{index}", str(made["label"][index]), at_ns).to_line()], at_ns)
    log.close()
    clock = FakeClock(TEN_O_CLOCK_NS / 1e9 + 2 * 3600)
    monitor = Monitor(settings, MonitorMetrics(process_registry()), clock=clock)
    while monitor.step():
        pass
    monitor.report()
    found = document(settings, "clinic")
    return json.loads(found.to_json()), page(found)


@pytest.mark.parametrize("kind", ["hash", "drop"])
@pytest.mark.parametrize("by", ["feature", "tensor", "settings"])
def test_a_redacted_feature_is_no_drift_and_no_category_of_it_is_told(settings: Settings, kind: str, by: str) -> None:
    card = {"feature": {"name": kind, "label": kind}, "tensor": {"who": kind, "label": kind}, "settings": {}}[by]
    if by == "settings":
        setting = f"clinic.who = {kind}; *.label = {kind}"
        settings = replace(settings, sampling=replace(settings.sampling, redact=setting))
    found, html = watched(settings, card)
    (version,) = found["versions"]
    assert (version["status"], version["alarms"]) == ("stable", [])
    compared = {column["name"] for column in version["columns"]}
    assert compared == ({"town", "dose"} if by == "feature" else {"dose"})
    for text in (json.dumps({**found, "performance": None}), html):
        assert "secret-" not in text
    assert ("open-york" in html) == (by == "feature")
    # Hashes are equal to no label: what is not known is told, and not that all is wrong.
    (variant,) = found["performance"]["variants"]
    assert (variant["scores"], variant["reason"]) == (None, "'label' is redacted in the log")
    assert "metrics" not in found["performance"]["versions"][0]


def test_what_is_not_redacted_is_compared_and_told(settings: Settings) -> None:
    found, html = watched(settings, {})
    assert {column["name"] for column in found["versions"][0]["columns"]} == {"name", "town", "dose", "label"}
    assert "secret-ann" in html
    assert found["performance"]["variants"][0]["scores"]["accuracy"] == 1.0
