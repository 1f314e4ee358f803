"""Rows per second of heavier models through the gateway, beside a bare ONNX Runtime loop at its best batch size."""

from __future__ import annotations

from functools import partial
from typing import Any

from speed import bare_loop, servers
from speed.asks import many_rows, one_row
from speed.models import CANARY
from speed.rounds import Bench, Contender, as_part

MLP_ONE, MLP_BINARY, FOREST_JSON = "mlp, one-row JSON", "mlp, 32-row binary", "forest, 32-row JSON"
LOOP = "bare loop, {}"
ROWS_PER_REQUEST = {MLP_ONE: 1, MLP_BINARY: 32, FOREST_JSON: 32}
MODEL_OF = {MLP_ONE: "mlp", MLP_BINARY: "mlp", FOREST_JSON: "forest"}
PACK = 32
# What 32 connections give to two versions at 90/10, if all of them always wait: more rows at once there are not, and
# two sets of weights push each other out of the processor's caches.
SPLIT = (29, 3)
IN_TURNS = "bare loop, mlp, two versions in turns, 29 and 3 rows"
MODEL_OF[IN_TURNS] = "mlp"


def measure(bench: Bench) -> dict[str, Any]:
    """Samples have rows_per_s. best_batch: rows per run of the bare loop, by model."""
    models = bench.models("mlp", "forest")
    best = {name: bare_loop.best_batch(model.onnx, model.rows_path) for name, model in models.items()}
    bench.tell(f"best batch sizes of the bare loop: {best}")
    mlp, forest = models["mlp"], models["forest"]
    to_mlp, to_forest = servers.infer_path("mlp"), servers.infer_path("forest")
    with servers.gateway(bench.root, "rows", models, servers.CACHE_OFF) as server:
        contenders = [
            Contender(MLP_ONE, server, one_row(to_mlp, mlp.rows[0])),
            Contender(MLP_BINARY, server, many_rows(to_mlp, mlp.rows, PACK, binary=True)),
            Contender(FOREST_JSON, server, many_rows(to_forest, forest.rows, PACK, binary=False)),
        ]
        for name, model in models.items():
            loop = partial(_loop, bare_loop.Loop(model.onnx, model.rows_path, best[name]), float(bench.seconds))
            contenders.append(Contender(LOOP.format(name), measure=loop))
        in_turns = bare_loop.Loop(mlp.onnx, mlp.rows_path, SPLIT[0], (mlp.folder / CANARY / "model.onnx", SPLIT[1]))
        contenders.append(Contender(IN_TURNS, measure=partial(_loop, in_turns, float(bench.seconds))))
        series = bench.interleave(contenders, what="rows")
        for model in models.values():
            try:
                servers.check_gateway(server, model, canary=True)
            except servers.WrongAnswer as error:
                bench.fail("rows, after the load", error)
    for name, count in ROWS_PER_REQUEST.items():
        for sample in series[name]:
            if sample is not None:
                sample["rows_per_s"] = sample["requests_per_s"] * count
    return as_part(series, best_batch=best)


def _loop(loop: bare_loop.Loop, seconds: float) -> dict[str, float]:
    return {"rows_per_s": loop.rows_per_s(seconds)}
