"""Packages tried in a child before a worker loads them for the first time: what kills the child kills no worker.

A file per package, named by its digest, says that it was tried with this ONNX Runtime; it is its own lock, so that of
all workers one tries. So a restart, or a further worker, costs a look at a file.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.metadata
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from gateway.errors import PackageInvalid
from gateway.models.source import Package
from gateway.settings import BatchSettings


class Prober:
    """Called in the threads of loads, which it may hold up for `load_timeout_s`."""

    def __init__(self, settings: BatchSettings, models: Path, folder: Path) -> None:
        self._settings = settings
        self._models = models
        self._folder = folder
        self._stamp = f"onnxruntime {importlib.metadata.version('onnxruntime')}\n".encode()

    def __call__(self, package: Package) -> None:
        """Raise PackageInvalid if *package* fails in a child, and has not been tried before."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            fd = os.open(self._folder / package.digest, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise PackageInvalid(f"it cannot be tried: {self._folder} cannot be written: {error.strerror}") from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            if os.read(fd, 1024) == self._stamp:
                return
            refused = self._ask_a_child(package)
            if refused:
                raise PackageInvalid(f"{package.model}/{package.version} failed when a child tried it: {refused}")
            os.ftruncate(fd, 0)
            os.pwrite(fd, self._stamp, 0)
        finally:
            os.close(fd)

    def _ask_a_child(self, package: Package) -> str:
        """Why the package cannot be loaded; empty if it can."""
        settings = self._settings
        orders = {
            "models": str(self._models.absolute()),
            "model": package.model,
            "version": package.version,
            "digest": package.digest,
            "intra_op_threads": settings.intra_op_threads,
            "max_batch_rows": settings.max_batch_rows,
            "memory_bytes": settings.trial_memory_bytes,
            "cpu_s": settings.load_timeout_s,
        }
        with subprocess.Popen(
            [sys.executable, "-m", "gateway.serving.trial"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # a Ctrl-C is for those who serve
        ) as child:
            assert child.stdin is not None
            assert child.stdout is not None
            try:
                with contextlib.suppress(BrokenPipeError):  # it died before it could read; what of is told below
                    os.write(child.stdin.fileno(), json.dumps(orders).encode() + b"\n")
                child.wait(settings.load_timeout_s)
            except subprocess.TimeoutExpired:
                child.kill()
                return f"it was not done after {settings.load_timeout_s:g} s"
            lines = child.stdout.read().splitlines()
        if child.returncode:
            return f"the child ended by {_why(child.returncode)}"
        try:
            verdict = json.loads(lines[-1])
            return str(verdict["refused"])
        except (IndexError, ValueError, KeyError, TypeError):
            return "the child said nothing that could be read"


def _why(returncode: int) -> str:
    return signal.Signals(-returncode).name if returncode < 0 else f"exit code {returncode}"
