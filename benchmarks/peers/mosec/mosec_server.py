"""mosec with ONNX Runtime: one worker process behind its Rust front, with or without dynamic batching."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import onnxruntime
import orjson
from mosec import Server, Worker


class Model(Worker):
    def __init__(self) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(os.environ["MODEL"], options)

    def run(self, rows: list[Any]) -> list[dict[str, Any]]:
        labels, probabilities = self.session.run(None, {"input": np.array(rows, dtype=np.float32)})
        pairs = zip(labels.tolist(), probabilities.tolist(), strict=True)
        return [{"label": label, "probabilities": row} for label, row in pairs]


class One(Model):
    def forward(self, data: Any) -> Any:
        return self.run([data["inputs"][0]["data"]])[0]


class Batch(Model):
    def forward(self, data: list[Any]) -> list[Any]:
        return self.run([each["inputs"][0]["data"] for each in data])


class Orjson:
    """In place of mosec's own JSON."""

    def deserialize(self, data: bytes) -> Any:
        return orjson.loads(data)

    def serialize(self, data: Any) -> bytes:
        return orjson.dumps(data)


class OneOrjson(Orjson, One):
    pass


class BatchOrjson(Orjson, Batch):
    pass


WORKERS = {worker.__name__: worker for worker in (Batch, BatchOrjson, OneOrjson)}

if __name__ == "__main__":
    server = Server()
    server.append_worker(WORKERS[os.environ["WORKER"]], max_batch_size=int(os.environ["BATCH"]))
    server.run()
