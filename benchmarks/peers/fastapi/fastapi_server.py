"""FastAPI with ONNX Runtime, as people write it: an async endpoint that runs the model and returns a dictionary."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import onnxruntime
from fastapi import FastAPI, Request
from pydantic import BaseModel

options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(os.environ["MODEL"], options)
app = FastAPI()


class Tensor(BaseModel):
    name: str
    shape: list[int]
    datatype: str
    data: list[float]


class Inference(BaseModel):
    inputs: list[Tensor]


def predict(data: list[float], shape: list[int]) -> dict[str, Any]:
    label, probabilities = session.run(None, {"input": np.array(data, dtype=np.float32).reshape(shape)})
    return {"label": label.tolist(), "probabilities": probabilities.tolist()}


@app.post("/validated")
async def validated(inference: Inference) -> dict[str, Any]:
    return predict(inference.inputs[0].data, inference.inputs[0].shape)


@app.post("/unvalidated")
async def unvalidated(request: Request) -> dict[str, Any]:
    tensor = (await request.json())["inputs"][0]
    return predict(tensor["data"], tensor["shape"])
