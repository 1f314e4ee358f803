"""BentoML with ONNX Runtime: one service, with an endpoint that batches adaptively and one that does not."""

from __future__ import annotations

import os
from typing import Any

import bentoml
import numpy as np
import onnxruntime


@bentoml.service(workers=1, traffic={"timeout": 60, "max_concurrency": 1024})
class Model:
    def __init__(self) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(os.environ["MODEL"], options)

    def predict(self, inputs: np.ndarray) -> list[dict[str, Any]]:
        labels, probabilities = self.session.run(None, {"input": inputs.astype(np.float32, copy=False)})
        pairs = zip(labels.tolist(), probabilities.tolist(), strict=True)
        return [{"label": label, "probabilities": row} for label, row in pairs]

    @bentoml.api(batchable=True, max_batch_size=32, max_latency_ms=1000)
    def batching(self, inputs: np.ndarray) -> list[dict[str, Any]]:
        return self.predict(inputs)

    @bentoml.api
    def plain(self, inputs: np.ndarray) -> list[dict[str, Any]]:
        return self.predict(inputs)
