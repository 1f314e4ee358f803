"""TorchServe with ONNX Runtime: what takes a batch of bodies and gives a list of answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime


class OnnxModel:
    def initialize(self, context: Any) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        path = Path(context.system_properties["model_dir"], "model.onnx")
        self.session = onnxruntime.InferenceSession(str(path), options)

    def handle(self, requests: list[dict[str, Any]], context: Any) -> list[dict[str, Any]]:
        rows = []
        for request in requests:
            body = request.get("body") or request.get("data")
            document = body if isinstance(body, dict) else json.loads(body)
            rows.append(document["inputs"][0]["data"])
        labels, probabilities = self.session.run(None, {"input": np.array(rows, dtype=np.float32)})
        pairs = zip(labels.tolist(), probabilities.tolist(), strict=True)
        return [{"label": label, "probabilities": row} for label, row in pairs]
