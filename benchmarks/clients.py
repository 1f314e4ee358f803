"""The KServe SDK's own client against real gateways, through both doors: `make clients`.

Every call that it has, in both of its protocols; answers are held against the models' own arithmetic, refusals against
what a user must be able to read. Exit code 1: something is not as it has to be.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # for the gateways of tests/

import numpy as np
import onnx
from onnx import TensorProto, helper
from speed import machine

from gateway.models.manifest import MODEL_FILE
from tests.builders import IR_VERSION, OPSETS, classifier, write_mixed_package, write_package
from tests.live import LiveGateway

ROOT = Path(__file__).parents[1]
CALLS = Path(__file__).parent / "peers" / "kserve" / "kserve_calls.py"
IRIS = classifier("iris", "1", classes=("setosa", "versicolor", "virginica"))
ROWS = [[5.5, 3.25, 1.5, 0.25], [6.5, 3.0, 5.25, 2.5]]


def write_half(root: Path) -> None:
    """A model of FP16: y = x + x."""
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT16, [None, 4])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT16, [None, 4])]
    graph = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"])], "half", inputs, outputs)
    target = root / "half" / "1"
    target.mkdir(parents=True)
    onnx.save(helper.make_model(graph, opset_imports=OPSETS, ir_version=IR_VERSION), target / MODEL_FILE)


def wrong(told: Any) -> Iterator[str]:
    """What is not right about the answers to all calls, each with what came."""
    answer = IRIS.answer(ROWS)
    labels, probabilities = answer["label"].tolist(), answer["probabilities"]

    def is_close(found: Any, expected: Any) -> bool:
        flat = np.asarray(expected).ravel()
        return len(found) == len(flat) and np.allclose(found, flat, atol=1e-6)

    def is_iris(rows: Sequence[Any]) -> bool:
        return [row["label"] for row in rows] == labels and is_close(
            [value for row in rows for value in row["probabilities"]], probabilities
        )

    def is_tensor(found: Any, identity: str, *, binary: bool) -> bool:
        whole = found["outputs"]
        return (
            (found["id"], found["binary"]) == (identity, binary)
            and is_close(whole["probabilities"], probabilities)
            and whole.get("label", labels) == labels
        )

    v1, v2 = told["v1"], told["v2"]
    columns = v1["infer with headers"]["outputs"]
    checks = {
        "v1 live": v1["live"] is True,
        "v1 ready": v1["ready"] is True,
        "v1 ready of nobody": "Latest(nobody), '404 " in v1["ready of nobody"],
        "v1 infer": is_iris(v1["infer"]["predictions"]),
        "v1 infer with headers": columns["label"] == labels
        and is_close(np.ravel(columns["probabilities"]), probabilities),
        "v1 a graph": is_iris(v1["a graph"]["predictions"]),
        "v1 wrong": "inputs.input.shape" in v1["wrong"] and "'400 " in v1["wrong"],
        "v1 explain": "'501 " in v1["explain"],
        "v2 live": v2["live"] is True,
        "v2 ready": v2["ready"] is True,
        "v2 model ready": v2["model ready"] is True,
        "v2 ready of nobody": v2["ready of nobody"] is False,
        "v2 JSON": is_tensor(v2["JSON"], "a", binary=False),
        "v2 binary in": is_tensor(v2["binary in"], "b", binary=False),
        "v2 binary out": is_tensor(v2["binary out"], "c", binary=True),
        "v2 both, one output": is_tensor(v2["both, one output"], "d", binary=True)
        and list(v2["both, one output"]["outputs"]) == ["probabilities"],
        **{f"v2 {how}": v2[how]["outputs"] == {"value": [32.5, 11.0]} for how in ("texts as JSON", "texts as bytes")},
        "v2 halves": v2["halves"]["outputs"] == {"y": [2 * value for row in ROWS for value in row]},
        "v2 wrong": "inputs.input.shape" in v2["wrong"] and "'400 " in v2["wrong"],
        "v2 explain": v2["explain"] == "UnsupportedProtocol",
    }
    for name, is_right in checks.items():
        protocol, _, call = name.partition(" ")
        if not is_right:
            yield f"{name}: {json.dumps(told[protocol][call])[:400]}"
    if len(checks) != len(v1) + len(v2):
        yield f"{len(checks)} checks of {len(v1) + len(v2)} calls"


def asked(python: Path, url: str) -> Any:
    """What all calls of the client gave."""
    done = subprocess.run([python, CALLS, url, json.dumps(ROWS)], capture_output=True, text=True, timeout=300)
    if done.returncode:
        sys.exit(f"the client failed:\n{done.stderr[-4000:]}")
    return json.loads(done.stdout)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    usual = ROOT / ".peers" / "kserve" / "bin" / "python"
    parser.add_argument("--python", type=Path, default=usual, help="that has the SDK (default: of peers/setup kserve)")
    options = parser.parse_args()
    broken: list[str] = []
    calls = 0
    with tempfile.TemporaryDirectory(prefix="clients-") as folder:
        root = Path(folder)
        write_package(root / "models", IRIS)
        write_mixed_package(root / "models")
        write_half(root / "models")
        for door in ("fast", "asgi"):
            with LiveGateway(root / "models", root / door, settings={"server": {"door": door}}) as live:
                told = asked(options.python, live.data_url)
            calls += sum(map(len, told.values()))
            broken += [f"{door}: {text}" for text in wrong(told)]
    about = machine.describe()
    pinned = (CALLS.parent / "requirements.txt").read_text().partition("\n")[0]
    print(f"{pinned}, {about['cpu']}, {about['cores']} cores, {about['day']}: {calls} calls, {len(broken)} wrong")
    print("\n".join(broken))
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
