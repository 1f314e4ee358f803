"""LitServe with ONNX Runtime: one API server and one inference worker."""

from __future__ import annotations

import os
from typing import Any

import litserve
import numpy as np
import onnxruntime


class Model(litserve.LitAPI):
    def setup(self, device: str) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(os.environ["MODEL"], options)

    def decode_request(self, request):  # type: ignore[no-untyped-def]  # LitServe reads annotations as FastAPI does
        return np.array(request["inputs"][0]["data"], dtype=np.float32)

    def batch(self, inputs: list[Any]) -> Any:
        return np.stack(inputs)

    def predict(self, rows: Any) -> Any:
        labels, probabilities = self.session.run(None, {"input": np.atleast_2d(rows)})
        answers = [{"label": int(a), "probabilities": b.tolist()} for a, b in zip(labels, probabilities, strict=True)]
        return answers if rows.ndim == 2 else answers[0]

    def unbatch(self, output: Any) -> Any:
        return output

    def encode_response(self, output: dict[str, Any]) -> dict[str, Any]:
        return output


if __name__ == "__main__":
    size = int(os.environ["BATCH"])
    api = Model(max_batch_size=size, batch_timeout=0.01 if size > 1 else 0.0)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1, fast_queue=os.environ["FAST"] == "1")
    server.run(host="127.0.0.1", port=int(os.environ["PORT"]), num_api_servers=1, generate_client_file=False,
               log_level="warning")  # fmt: skip
