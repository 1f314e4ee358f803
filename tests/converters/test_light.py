"""Models and operator cases of the onnx package: served with the outputs that they expect, or refused with a reason.

All of them are counted by ``benchmarks/light.py``; here are a few of each kind.
"""

from __future__ import annotations

import light
import pytest


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("light", "^light_(squeezenet|shufflenet)$"),
        ("simple", "^test_(single_relu_model|expand_shape_model1|strnorm_model_monday_casesensintive_upper)$"),
        ("pytorch-converted", "^test_(Conv2d_dilated|BatchNorm2d_eval|Embedding)$"),
        ("pytorch-operator", "^test_operator_(addmm|params)$"),
    ],
)
def test_cases_are_reproduced(kind: str, names: str) -> None:
    outcomes = [light.tried(case) for case in light.cases(kind, names)]
    assert len(outcomes) == names.count("|") + 1
    assert [(each.case.name, each.what, each.reason) for each in outcomes if each.what != "reproduced"] == []


def test_what_cannot_be_served_is_refused_with_the_reason() -> None:
    (gradient,) = (light.tried(case) for case in light.cases("simple", "^test_gradient_of_add$"))
    assert gradient.what == "refused"
    assert "Gradient" in gradient.reason
    sequences = [light.tried(case) for case in light.cases("simple", "^test_sequence_model[1-8]$")]
    assert {outcome.what for outcome in sequences} <= {"reproduced", "refused"}


def test_an_answer_that_is_off_would_be_told() -> None:
    (case,) = light.cases("simple", "^test_single_relu_model$")
    (inputs, outputs), *_ = case.pairs
    wrong = light.Case(case.kind, case.name, case.model, [(inputs, [outputs[0] + 1])], case.rtol, case.atol)
    assert light.tried(wrong).what == "wrong"
