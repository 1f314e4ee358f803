"""A network that a package ships: magika's, which tells the kinds of files, served and held against magika itself.

Its ONNX file becomes a package as any other does. magika's own code then tells the kinds of the files of this Python's
library, once by ONNX Runtime and once with a gateway asked over HTTP in its place: kinds and scores have to be equal.
Other files are the rows on which the variants of the network are judged. magika lives in an environment of its own.

    .venv/bin/python benchmarks/file_kinds.py [--python PYTHON_WITH_MAGIKA]
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Console
from serving import serving

from converters.convert import Order, convert
from converters.quantize import Gate
from gateway.cli.package_view import decision_table, quantization_text

PEERS = Path(__file__).parent / "peers"
_ASKED, _JUDGED = 200, 600


def files(asked: int, judged: int) -> tuple[list[str], list[str]]:
    """Files to ask about, and others to judge variants by; the same ones each time on one machine."""
    library = Path(json.__file__).parent.parent
    found = sorted(
        str(path)
        for path in library.rglob("*")
        if path.is_file() and "site-packages" not in path.parts and 0 < path.stat().st_size < 4_000_000
    )
    random.Random(0).shuffle(found)
    return found[:asked], found[asked : asked + judged]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", metavar="FILE", help="a Python that has magika; else an environment is made")
    parser.add_argument("--files", type=int, default=_ASKED, help="how many files are asked about")
    parser.add_argument(
        "--judged", type=int, default=_JUDGED, help="rows to try it on; from 500 on, variants are judged"
    )
    options = parser.parse_args()
    python = options.python
    if python is None:
        subprocess.run([PEERS / "setup", "magika"], check=True)
        python = str(PEERS.parent.parent / ".peers" / "magika" / "bin" / "python")

    def magika(*arguments: str) -> str:
        done = subprocess.run(
            [python, PEERS / "magika" / "answers.py", *arguments], check=True, stdout=subprocess.PIPE, text=True
        )
        return done.stdout.strip()

    asked, judged = files(options.files, options.judged)
    screen = Console(width=150)
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        source = Path(magika("model"))
        magika("rows", str(root / "rows.npy"), *judged)
        rows = pd.DataFrame(np.load(root / "rows.npy")).rename(columns="b{}".format)
        rows.to_parquet(root / "rows.parquet", index=False)
        package = convert(Order(source, "magika", "1", root / "rows.parquet", root / "models", quantize="off"))
        signature = package.manifest.signature
        screen.print(f"{source.parent.name}: {source.stat().st_size:,} bytes, batched: {signature.batch_invariant}")
        with serving(root) as url:
            screen.print_json(magika("ask", url, *asked))
        if options.judged < Gate().min_rows:
            return
        manifest = convert(Order(source, "magika", "2", root / "rows.parquet", root / "judged")).manifest
        screen.print(f"variants, judged on {len(rows)} other files:")
        screen.print(decision_table(manifest.quantization))
        screen.print(quantization_text(manifest.quantization))


if __name__ == "__main__":
    main()
