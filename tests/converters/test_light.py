"""Models and operator cases of the onnx package: served with the outputs that they expect, or refused with a reason.

All of them are counted by ``benchmarks/light.py``; here are a few of each kind. Those of single operators are made here
as they are there, since onnx computes all of its own to give one.
"""

from __future__ import annotations

import re
from typing import Any

import light
import numpy as np
import pytest
from onnx import helper

KINDS = [
    ("light", "^light_(squeezenet|shufflenet)$"),
    ("simple", "^test_(single_relu_model|expand_shape_model1|strnorm_model_monday_casesensintive_upper)$"),
    ("pytorch-converted", "^test_(Conv2d_dilated|BatchNorm2d_eval|Embedding)$"),
    ("pytorch-operator", "^test_operator_(addmm|params)$"),
]


def operator(node: Any, given: list[Any], expected: Any, *, opset: int = 18) -> light.Case:
    """A case of one operator with one output."""
    values = [
        [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
            for name, array in zip((name for name in names if name), arrays, strict=True)
        ]
        for names, arrays in ((node.input, given), (node.output, [expected]))
    ]
    graph = helper.make_graph([node], "g", *values)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    return light.Case("node", node.output[0], model.SerializeToString(), [(given, [expected])], 1e-3, 1e-7)


def made() -> list[light.Case]:
    ones, halves = np.ones((1, 128, 1), np.float32), np.ones((2, 3), np.float16)
    old = helper.make_node("Relu", ["x"], ["old"], consumed_inputs=[0])
    return [
        operator(helper.make_node("RandomUniformLike", ["x"], ["draws"]), [ones], ones),
        operator(
            helper.make_node("STFT", ["x", "step", "", "length"], ["dies"]),
            [ones, np.array(8), np.array(16)],
            np.ones((1, 15, 9, 2), np.float32),
        ),
        operator(helper.make_node("Neg", ["x"], ["off"]), [ones], ones),
        operator(old, [ones], -ones, opset=1),
        operator(helper.make_node("Neg", ["x"], ["halves"]), [halves], -halves),
    ]


@pytest.fixture(scope="module")
def outcomes() -> list[light.Outcome]:
    """What became of the cases: the chosen ones, those with gradients and sequences, those that are made here."""
    chosen = [case for kind, names in KINDS for case in light.cases(kind, names)]
    refused = light.cases("simple", "^test_(gradient_of_add|sequence_model[1-8])$")
    return list(light.judged([*chosen, *refused, *made()]))


def test_cases_are_reproduced(outcomes: list[light.Outcome]) -> None:
    chosen = [each for each in outcomes if any(re.search(names, each.case.name) for _, names in KINDS)]
    assert len(chosen) == 10
    assert [(each.case.name, each.what, each.reason) for each in chosen if each.what != "reproduced"] == []


def test_what_cannot_be_served_is_refused_with_the_reason(outcomes: list[light.Outcome]) -> None:
    (gradient,) = (each for each in outcomes if "gradient" in each.case.name)
    assert gradient.what == "refused"
    assert "Gradient" in gradient.reason
    assert {each.what for each in outcomes if "sequence" in each.case.name} <= {"reproduced", "refused"}


def test_an_answer_that_is_off_is_told_with_whose_it_is_and_a_death_ends_nothing_else(
    outcomes: list[light.Outcome],
) -> None:
    told = {each.case.name: (each.what, each.reason) for each in outcomes if each.case.kind == "node"}
    assert {name: what for name, (what, _) in told.items()} == {
        "draws": "random",
        "dies": "refused",
        "off": "runtime",
        "old": "wrong",
        "halves": "reproduced",
    }
    assert told["dies"][1] == "the process ended by SIGFPE, in conversion"
    assert told["off"][1] == "output 'off' is off in 128 of 128 values"
    assert "ONNX Runtime alone: " in told["old"][1], "it does not take so old an operator as it came"
