"""Ray Serve with ONNX Runtime: one replica, batching requests as its documentation shows."""

from __future__ import annotations

import os
import time
from typing import Any

import numpy as np
import onnxruntime
import ray
from ray import serve
from starlette.requests import Request


@serve.deployment(num_replicas=1, max_ongoing_requests=256, ray_actor_options={"num_cpus": 0.5})
class Model:
    def __init__(self, onnx: str, batching: bool) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(onnx, options)
        self.batching = batching

    def run(self, rows: list[Any]) -> list[dict[str, Any]]:
        labels, probabilities = self.session.run(None, {"input": np.array(rows, dtype=np.float32)})
        pairs = zip(labels.tolist(), probabilities.tolist(), strict=True)
        return [{"label": label, "probabilities": row} for label, row in pairs]

    @serve.batch(max_batch_size=32, batch_wait_timeout_s=0.01)
    async def run_together(self, rows: list[Any]) -> list[dict[str, Any]]:
        return self.run(rows)

    async def __call__(self, request: Request) -> dict[str, Any]:
        row = (await request.json())["inputs"][0]["data"]
        answer: dict[str, Any] = await self.run_together(row) if self.batching else self.run([row])[0]
        return answer


if __name__ == "__main__":
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, _temp_dir=os.environ["SCRATCH"])
    serve.start(http_options={"host": "127.0.0.1", "port": int(os.environ["PORT"])})
    serve.run(Model.bind(os.environ["MODEL"], os.environ["BATCHING"] == "1"), route_prefix="/")
    while True:
        time.sleep(3600)  # Ray serves from processes of its own; this one only keeps them alive
