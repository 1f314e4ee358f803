"""Writes TorchServe's archive and settings: prepare.py FOLDER MODEL ONNX PORT PORT2 PORT3 BATCH_SIZE DELAY_MS."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

folder, model, onnx, inference, management, metrics, batch, delay_ms = sys.argv[1:]
here = Path(__file__).parent
archiver = Path(sys.executable).with_name("torch-model-archiver")
subprocess.run([archiver, "--model-name", model, "--version", "1.0", "--handler", here / "torchserve_model.py",
                "--extra-files", onnx, "--export-path", folder, "--force"], check=True)  # fmt: skip
described = {"1.0": {"defaultVersion": True, "marName": f"{model}.mar", "minWorkers": 1, "maxWorkers": 1,
                     "batchSize": int(batch), "maxBatchDelay": int(delay_ms), "responseTimeout": 60}}  # fmt: skip
# As it comes it writes lines to five logs for each request.
Path(folder, "log4j2.xml").write_text(
    '<Configuration><Appenders><Console name="out"><PatternLayout pattern="%p %c - %m%n"/></Console></Appenders>'
    '<Loggers><Root level="error"><AppenderRef ref="out"/></Root></Loggers></Configuration>\n'
)
Path(folder, "config.properties").write_text(
    f"inference_address=http://127.0.0.1:{inference}\nmanagement_address=http://127.0.0.1:{management}\n"
    f"metrics_address=http://127.0.0.1:{metrics}\nmodel_store={folder}\nload_models={model}.mar\n"
    f"default_workers_per_model=1\njob_queue_size=1000\ndisable_token_authorization=true\n"
    f"models={json.dumps({model: described})}\n"
)
