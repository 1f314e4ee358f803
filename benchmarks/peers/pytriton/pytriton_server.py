"""PyTriton with ONNX Runtime: Triton's HTTP front before a Python function."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import onnxruntime
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(os.environ["MODEL"], options)
features = session.get_inputs()[0].shape[1]
classes = session.get_outputs()[1].shape[1]


@batch
def predict(**inputs: Any) -> dict[str, Any]:
    label, probabilities = session.run(None, {"input": inputs["input"]})
    return {"label": label[:, np.newaxis], "probabilities": probabilities}


if __name__ == "__main__":
    delay_us = int(os.environ["DELAY_US"])
    config = TritonConfig(http_address="127.0.0.1", http_port=int(os.environ["PORT"]), allow_grpc=False,
                          grpc_port=int(os.environ["PORT2"]), allow_metrics=False)  # fmt: skip
    with Triton(config=config) as triton:
        triton.bind(
            model_name=os.environ["NAME"],
            infer_func=predict,
            inputs=[Tensor(name="input", shape=(features,), dtype=np.float32)],
            outputs=[Tensor(name="label", shape=(1,), dtype=np.int64),
                     Tensor(name="probabilities", shape=(classes,), dtype=np.float32)],
            config=ModelConfig(max_batch_size=32, batcher=DynamicBatcher(max_queue_delay_microseconds=delay_us)),
        )  # fmt: skip
        triton.serve()
