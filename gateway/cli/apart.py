"""A conversion in a process of its own: a model's file that runs code, or that the runtime dies of, does so there."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gateway.errors import ConversionRefused, InvalidInput

if TYPE_CHECKING:
    from converters.convert import Progress
    from gateway.models.manifest import Manifest

# What the process gets to know of its surroundings: where programs and libraries are, no tokens and no passwords.
_TOLD = (
    *("PATH", "HOME", "TMPDIR", "LANG", "LC_ALL", "PYTHONPATH", "PYTHONHASHSEED", "VIRTUAL_ENV", "LD_LIBRARY_PATH"),
    *("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "COVERAGE_PROCESS_START"),
)


@dataclass(frozen=True, slots=True)
class Written:
    """A package that the other process wrote, as it was found on disk."""

    path: Path
    manifest: Manifest


def convert_apart(order: Mapping[str, Any], progress: Progress) -> Written:
    """Have `converters.child` convert what *order* says, the fields of `converters.convert.Order`.

    Nothing of what it says is believed but that it is done: the package is read and checked from disk. The process, and
    what it has started in its group, is gone when this returns. Raises what the conversion raises, and
    ConversionRefused if the process dies.
    """
    from gateway.models.source import DirectorySource  # numpy: not for the sake of a list of verbs

    heard, told = os.pipe()
    last = ""

    def note(step: str, done: int, steps: int) -> None:
        nonlocal last
        last = step
        progress(step, done, steps)

    paths = {key: str(value.absolute()) for key, value in order.items() if isinstance(value, Path)}
    process = subprocess.Popen(
        [sys.executable, "-m", "converters.child"],
        stdin=subprocess.PIPE,
        pass_fds=(told,),
        start_new_session=True,
        env={name: os.environ[name] for name in _TOLD if name in os.environ},
    )
    try:
        os.close(told)
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError), process.stdin as given:  # it died at once: told below
            given.write(json.dumps({"tell": told, "order": {**order, **paths}}).encode())
        with open(heard, encoding="utf-8") as lines:
            done = _listened(lines, note)
        code = process.wait()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    if not done:
        name = Path(order["model"]).name
        how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
        where = f" at the step {last!r}" if last else ""
        raise ConversionRefused(f"the process that loaded {name} ended {how}{where}; nothing was written")
    package = DirectorySource(order["out"]).open(order["name"], order["version"])
    assert package.manifest is not None
    return Written(order["out"] / order["name"] / order["version"], package.manifest)


def _listened(lines: Any, progress: Progress) -> bool:
    """Whether it said that it is done. Raises what it says is wrong."""
    done = False
    for line in lines:
        word = json.loads(line)
        if "step" in word:
            progress(word["step"], word["done"], word["steps"])
        elif "refused" in word:
            raise ConversionRefused(word["refused"], report=word["report"])
        elif "field" in word:
            raise InvalidInput(word["field"], word["came"], word["expected"])
        else:
            done = True
    return done
