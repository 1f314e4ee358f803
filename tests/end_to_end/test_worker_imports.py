"""A worker stays small: what it imports until it has answered, by its own record."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tests.builders import classifier, write_package
from tests.live import LiveGateway

# What is installed beside a worker and is none of its business, or costs more than it gives there.
ABSENT = frozenset(
    {
        *("scipy", "pyarrow", "sklearn", "pandas", "duckdb", "joblib", "onnx", "skl2onnx", "google"),
        *("httpx", "httpcore", "h11", "rich", "pygments", "locust", "gevent", "requests", "urllib3"),
        *("opentelemetry", "gateway.serving.spans"),
        *("yaml", "websockets", "wsproto", "dotenv", "jinja2"),
        *("numpy.random", "numpy.ma", "numpy.fft", "numpy.polynomial", "numpy.testing", "numpy.f2py"),
        *("gateway.control", "gateway.offline", "converters"),
        *("gateway.serving.openapi", "gateway.codecs.schemas", "flask", "flask_swagger_ui"),
    }
)


def imported(log: str) -> set[str]:
    """All modules that the processes of *log* imported, each also by the names of the packages that it is in."""
    found: set[str] = set()
    for name in re.findall(r"^import time: +\d+ \| +\d+ \| +([\w.]+)$", log, re.MULTILINE):
        parts = name.split(".")
        found |= {".".join(parts[:length]) for length in range(1, len(parts) + 1)}
    return found


def test_a_worker_imports_what_it_serves_with_and_nothing_else(models: Path, state: Path) -> None:
    write_package(models, classifier())
    with LiveGateway(models, state, role="control"):
        pass  # it has written the flags that a worker needs
    row = dict.fromkeys(classifier().features, 1.0)
    with LiveGateway(models, state, role="serving", environment={"PYTHONPROFILEIMPORTTIME": "1"}) as gateway:
        assert gateway.data.post("/predict/iris", json={"rows": [row]}).status_code == 200
        gateway.stop()
        found = imported(gateway.log)
    assert {"numpy", "onnxruntime", "uvloop", "gateway.serving.fastdoor"} <= found, "the record is one of a worker"
    unwanted = found & ABSENT
    assert not unwanted


def test_the_supervisor_and_the_exporter_do_without_what_computes() -> None:
    """They only count and tell, and nothing answers before the supervisor has begun."""
    modules = "gateway.cli.serve, gateway.supervisor, gateway.metrics, gateway.metric_files, gateway.exporter"
    code = f"import sys, {modules}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "prometheus_client" in done.stdout.split()
    assert not {"numpy", "onnxruntime", "asyncio", "uvicorn", "starlette"} & set(done.stdout.split())
