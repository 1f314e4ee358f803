"""The registry: how a version comes in from a directory that is still being written."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from gateway.codecs.native import NativeCodec
from gateway.metrics import ServingMetrics, process_registry
from gateway.models.manifest import MANIFEST_FILE, MODEL_FILE
from gateway.models.source import DirectorySource, Stamp
from gateway.serving.counts import Counts
from gateway.serving.registry import LiveVersion, Registry
from gateway.serving.runpool import RunPool
from gateway.settings import BatchSettings
from tests.builders import classifier, write_package

TIMEOUT_S = 20.0


class CopiedBetweenLooks(DirectorySource):
    """iris/1 is copied into it while it is looked at: model.onnx before look 2, the manifest before *look*."""

    def __init__(self, root: Path, whole: Path, look: int) -> None:
        super().__init__(root)
        self._target = root / "iris" / "1"
        self._whole = whole
        self._arrivals = {2: MODEL_FILE, look: MANIFEST_FILE}
        self._looks = 0

    def stamp(self, model: str, version: str) -> Stamp:
        self._looks += 1
        if name := self._arrivals.pop(self._looks, None):
            self._target.mkdir(parents=True, exist_ok=True)
            (self._target / name).write_bytes((self._whole / name).read_bytes())
        return super().stamp(model, version)


@pytest.mark.parametrize("look", [3, 5])
def test_a_package_that_comes_in_file_by_file_is_served_whole(tmp_path: Path, pool: RunPool, look: int) -> None:
    whole = write_package(tmp_path / "elsewhere", classifier("iris", "1"))

    async def load() -> LiveVersion:
        changed = asyncio.Event()
        metrics = ServingMetrics(process_registry())
        registry = Registry(
            CopiedBetweenLooks(tmp_path / "models", whole, look),
            [NativeCodec()],
            BatchSettings(),
            pool,
            Counts(metrics),
            metrics,
            on_change=changed.set,
            on_drop=lambda _live: None,
        )
        registry.reconcile({("iris", "1")})
        async with asyncio.timeout(TIMEOUT_S):
            while (live := registry.find("iris", "1")) is None:
                await changed.wait()
                changed.clear()
        registry.close()
        return live

    live = asyncio.run(load())
    assert [feature.name for feature in live.signature.features] == list(classifier().features)
