"""The process in which a model is loaded that may run code: reads an order from stdin, tells what comes of it.

The order is one JSON document with ``tell``, a file descriptor that gets a JSON document per line: steps, then
``refused``, ``field`` or ``written``. What the model's code prints goes to stderr.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from pathlib import Path
from typing import Any

from gateway.errors import ConversionRefused, InvalidInput

_PATHS = ("model", "data", "out", "card")


def main() -> int:
    asked = json.load(sys.stdin)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core file would hold what was loaded
    os.dup2(2, 1)
    with os.fdopen(asked["tell"], "w", encoding="utf-8") as told:

        def tell(**word: Any) -> None:
            told.write(json.dumps(word) + "\n")
            told.flush()

        try:
            from converters.convert import Order, convert

            fields: dict[str, Any] = {
                k: Path(v) if k in _PATHS and v is not None else v for k, v in asked["order"].items()
            }
            convert(Order(**fields), progress=lambda step, done, steps: tell(step=step, done=done, steps=steps))
        except ImportError as error:
            tell(refused=f"{error.name} is missing: pip install 'sluicegate[convert]' first", report=None)
        except InvalidInput as error:
            tell(field=error.field, came=error.came, expected=error.expected)
        except ConversionRefused as error:
            tell(refused=str(error), report=error.report)
        else:
            tell(written=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
