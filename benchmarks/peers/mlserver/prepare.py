"""Writes MLServer's settings: prepare.py FOLDER MODEL ONNX PORT PORT2 PORT3 PARALLEL_WORKERS MAX_BATCH_SIZE."""

from __future__ import annotations

import json
import sys
from pathlib import Path

folder, model, onnx, http_port, grpc_port, metrics_port, workers, batch = sys.argv[1:]
settings = {"host": "127.0.0.1", "http_port": int(http_port), "grpc_port": int(grpc_port),
            "metrics_port": int(metrics_port), "parallel_workers": int(workers), "debug": False}  # fmt: skip
described = {"name": model, "implementation": "mlserver_runtime.OnnxModel", "parameters": {"uri": onnx}}
if int(batch) > 1:
    described |= {"max_batch_size": int(batch), "max_batch_time": 0.01}
Path(folder, "settings.json").write_text(json.dumps(settings))
Path(folder, "model-settings.json").write_text(json.dumps(described))
