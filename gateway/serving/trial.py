"""A child process that loads one package within bounds, so that what the package does happens to nobody else.

Its orders come on stdin, as one line of JSON; its verdict goes to stdout, as the last line. When stdin ends, whoever
gave the orders is gone, and so is this. See probing.
"""

from __future__ import annotations

import json
import math
import os
import resource
import sys
import threading
from pathlib import Path

from gateway.errors import GatewayError, PackageInvalid
from gateway.models.source import DirectorySource, Package
from gateway.serving.loading import load

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
# How ONNX Runtime says that it got no memory.
_NO_MEMORY = ("alloc", "memory")


def main() -> int:
    """Returns the exit code: 0 with a verdict on stdout."""
    orders = json.loads(_first_line())
    threading.Thread(target=_leave_with_asker, name="lifeline", daemon=True).start()
    _confine(orders["memory_bytes"], orders["cpu_s"])
    refused = ""
    try:
        _try(orders)
    except MemoryError:
        refused = _too_much(orders, "no memory was left")
    except GatewayError as error:
        text = str(error)
        refused = _too_much(orders, text) if any(word in text for word in _NO_MEMORY) else text
    sys.stdout.write("\n" + json.dumps({"digest": orders["digest"], "refused": refused}) + "\n")
    return 0


def _try(orders: dict[str, str | int]) -> None:
    def check(package: Package) -> None:
        if package.digest != orders["digest"]:
            raise PackageInvalid("the package was changed while it was tried")

    loaded = load(
        DirectorySource(Path(str(orders["models"]))),
        str(orders["model"]),
        str(orders["version"]),
        intra_op_threads=int(orders["intra_op_threads"]),
        max_batch_rows=int(orders["max_batch_rows"]),
        on_package=check,
        on_runtime=lambda _runtime: None,
    )
    if any(word in loaded.trouble for word in _NO_MEMORY):
        raise PackageInvalid(loaded.trouble)


def _too_much(orders: dict[str, str | int], text: str) -> str:
    return f"it takes more than the {orders['memory_bytes']} bytes of batching.trial_memory_bytes: {text}"


def _confine(memory_bytes: int, cpu_s: float) -> None:
    """From here on: so much more memory, so much processor time, and no core file."""
    used_bytes = int(Path("/proc/self/statm").read_text().split()[0]) * _PAGE_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (used_bytes + memory_bytes,) * 2)
    seconds = math.ceil(sum(os.times()[:2]) + cpu_s)
    resource.setrlimit(resource.RLIMIT_CPU, (seconds,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _first_line() -> bytes:
    """Of stdin. Not by Python's own file, whose lock the other thread would hold when this process ends."""
    read = b""
    while b"\n" not in read:
        some = os.read(0, 65536)
        if not some:
            os._exit(1)
        read += some
    return read


def _leave_with_asker() -> None:
    while os.read(0, 65536):
        pass
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
