"""Everything that the KServe SDK's InferenceRESTClient can ask, asked of a gateway; what came back is printed as JSON.

Runs in an environment of its own: kserve_calls.py URL ROWS, rows as a JSON array of arrays for the model iris. What was
refused is printed as the client's own words. `benchmarks/clients.py` knows what is right.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable
from typing import Any

import httpx
import numpy as np
from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig
from kserve.protocol.infer_type import RequestedOutput


async def told(call: Awaitable[Any]) -> Any:
    """What a call gives back, or the words in which the client says that it was refused."""
    try:
        return await call
    except httpx.HTTPStatusError as error:
        return str(error)


async def by_v1(url: str, rows: list[list[float]]) -> dict[str, Any]:
    async with InferenceRESTClient(RESTConfig(protocol="v1")) as client:
        return {
            "live": await told(client.is_server_live(url)),
            "ready": await told(client.is_model_ready(url, "iris")),
            "ready of nobody": await told(client.is_model_ready(url, "nobody")),
            "infer": await told(client.infer(url, {"instances": rows}, model_name="iris")),
            "infer with headers": await told(
                client.infer(url, {"inputs": rows}, model_name="iris", headers={"x-targeting-key": "k"}, timeout=5)
            ),
            "a graph": await told(
                client.infer(f"{url}/v1/models/iris:predict", {"instances": rows}, is_graph_endpoint=True)
            ),
            "wrong": await told(client.infer(url, {"instances": [[1.0]]}, model_name="iris")),
            "explain": await told(client.explain(url, "iris", {"instances": rows})),
        }


def tensor(name: str, array: Any, datatype: str, *, binary: bool) -> InferInput:
    found = InferInput(name, list(array.shape), datatype)
    found.set_data_from_numpy(array, binary_data=binary)
    return found


async def inferred(client: InferenceRESTClient, url: str, request: InferRequest) -> Any:
    """The outputs of an answer, as the client reads them, and its id. (It does not read which version answered.)"""
    headers: dict[str, str] = {}
    try:
        found = await client.infer(url, request, model_name=request.model_name, response_headers=headers)
    except httpx.HTTPStatusError as error:
        return str(error)
    outputs = {output.name: output.as_numpy() for output in found.outputs}
    return {
        "id": found.id,
        "binary": "inference-header-content-length" in {name.lower() for name in headers},
        "outputs": {
            name: [value.decode() if isinstance(value, bytes) else value for value in array.ravel().tolist()]
            for name, array in outputs.items()
        },
    }


async def by_v2(url: str, rows: list[list[float]]) -> dict[str, Any]:
    matrix = np.array(rows, np.float32)

    def iris(*, binary: bool, **more: Any) -> InferRequest:
        return InferRequest("iris", [tensor("input", matrix, "FP32", binary=binary)], **more)

    def paint(*, binary: bool) -> InferRequest:
        colours = np.array([["red"], ["blue"]], dtype=object)
        sizes = np.array([[2.5], [1.0]], np.float32)
        inputs = [tensor("size", sizes, "FP32", binary=True), tensor("colour", colours, "BYTES", binary=binary)]
        return InferRequest("paint", inputs)

    def halves() -> InferRequest:
        return InferRequest("half", [tensor("x", matrix.astype(np.float16), "FP16", binary=True)],
                            parameters={"binary_data_output": True})  # fmt: skip

    wanted = [RequestedOutput("probabilities", {"binary_data": True})]
    async with InferenceRESTClient(RESTConfig(protocol="v2")) as client:
        return {
            "live": await told(client.is_server_live(url)),
            "ready": await told(client.is_server_ready(url)),
            "model ready": await told(client.is_model_ready(url, "iris")),
            "ready of nobody": await told(client.is_model_ready(url, "nobody")),
            "JSON": await inferred(client, url, iris(binary=False, request_id="a")),
            "binary in": await inferred(client, url, iris(binary=True, request_id="b")),
            "binary out": await inferred(
                client, url, iris(binary=False, request_id="c", parameters={"binary_data_output": True})
            ),
            "both, one output": await inferred(client, url, iris(binary=True, request_id="d", request_outputs=wanted)),
            "texts as JSON": await inferred(client, url, paint(binary=False)),
            "texts as bytes": await inferred(client, url, paint(binary=True)),
            "halves": await inferred(client, url, halves()),
            "wrong": await inferred(
                client, url, InferRequest("iris", [tensor("input", matrix[:, :3], "FP32", binary=True)])
            ),
            "explain": await told(_explained(client, url)),
        }


async def _explained(client: InferenceRESTClient, url: str) -> Any:
    try:
        return await client.explain(url, "iris", {})
    except Exception as error:  # V2 has none: the client says so by itself
        return type(error).__name__


async def main() -> None:
    url, rows = sys.argv[1], json.loads(sys.argv[2])
    json.dump({"v1": await by_v1(url, rows), "v2": await by_v2(url, rows)}, sys.stdout)


if __name__ == "__main__":
    asyncio.run(main())
