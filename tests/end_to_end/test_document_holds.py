"""What schemathesis draws from the OpenAPI document of a real gateway, in short: no 5xx, nothing that is not told."""

from __future__ import annotations

from pathlib import Path

from fuzzing.by_document import hold

from tests.builders import classifier, write_mixed_package, write_package
from tests.live import LiveGateway

SEED = 7
COVERING = ("examples", "coverage")
WITHOUT = "versions|labels|classify|regress|(s|models)/paint|{"


def test_every_answer_is_one_that_the_document_tells(tmp_path: Path) -> None:
    write_package(tmp_path / "models", classifier(), golden=True)
    write_mixed_package(tmp_path / "models")
    with LiveGateway(tmp_path / "models", tmp_path / "state") as gateway:
        # What is left out here is asked by `make fuzz`, also with rows that are drawn.
        held = hold(gateway.data_url, seed=SEED, examples=1, seconds=60, phases=COVERING, without=WITHOUT)
    print(held)
    assert held.broken == {}, "\n".join(held.broken.values())
    assert len(held.operations) > 12
    assert set(held.statuses) <= {200, 304, 400, 404, 405}
    assert held.statuses[200] > 100
    assert held.statuses[400] > 100
