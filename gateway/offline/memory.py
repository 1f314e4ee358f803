"""How the monitor's process holds its memory: what is given back goes back to the system, whoever had it."""

from __future__ import annotations

import ctypes
import gc
import sys
from contextlib import suppress
from importlib.abc import MetaPathFinder
from typing import Any

_ARENA_MAX = -8  # malloc.h
# Objects made and not freed before the collector looks at the young ones, not 700. Rows that wait for labels come by
# the thousand and stay: nearly all that it looked through would still be in use.
_YOUNG_OBJECTS = 50_000


def keep_small(*, without_pandas: bool = True) -> None:
    """Let all that computes here use one heap, and load no pandas; to be said once, before there are threads.

    Arrow's own allocator keeps what it had, and numpy cannot use it; each thread's arena does likewise.
    without_pandas: false for who uses river, which cannot do without it.
    """
    gc.set_threshold(_YOUNG_OBJECTS, *gc.get_threshold()[1:])
    if without_pandas:
        sys.meta_path.insert(0, _NoPandas())
    with suppress(AttributeError, OSError):  # only glibc has arenas
        ctypes.CDLL(None).mallopt(_ARENA_MAX, 1)
    with suppress(ImportError):  # then there are no batches either
        import pyarrow

        pyarrow.set_memory_pool(pyarrow.system_memory_pool())


class _NoPandas(MetaPathFinder):
    """Arrow loads pandas, where it is installed, to make a numpy array of a column: 40 MB for nothing.

    A None in sys.modules would say so, too, but scikit-learn takes what is there for pandas.
    """

    def find_spec(self, fullname: str, _path: Any = None, _target: Any = None) -> None:
        if fullname == "pandas":
            raise ModuleNotFoundError("the monitor does without it", name=fullname)


def release() -> None:
    """Give back to the system what was needed for batches: kept for later ones, it comes to a hundred MB in the end."""
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
