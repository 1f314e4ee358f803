"""The table of all estimators in docs/converters.md: whole, and true where it is tried again."""

from __future__ import annotations

from pathlib import Path

import pytest
from estimator_recipes import claimed
from estimators import BEGIN, END, PAGE, outcomes

# One of each kind and of each repair; the command tries all.
TRIED = [
    *("LogisticRegression", "LinearDiscriminantAnalysis", "TunedThresholdClassifierCV", "VotingClassifier", "RFE"),
    *("MultiTaskLasso", "PLSRegression", "AdaBoostRegressor", "BaggingClassifier"),
    *("IsolationForest", "LocalOutlierFactor", "SGDOneClassSVM"),
    *("StandardScaler", "PCA", "KBinsDiscretizer", "OneHotEncoder", "PowerTransformer", "SimpleImputer"),
    *("RandomTreesEmbedding", "ColumnTransformer", "TfidfVectorizer", "KMeans", "GaussianMixture"),
    *("GaussianProcessClassifier", "LabelEncoder", "MultiOutputClassifier", "NearestNeighbors"),
]


@pytest.fixture(scope="module")
def table() -> dict[str, str]:
    """The last column of the table, by estimator."""
    lines = PAGE.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    return {row[0]: row[-1] for row in rows[1:]}


def test_every_estimator_that_skl2onnx_claims_is_in_the_table_and_none_is_wrong(table: dict[str, str]) -> None:
    assert table.keys() == claimed().keys()
    assert not [name for name, result in table.items() if "wrong" in result]
    assert not [name for name, result in table.items() if "passes" not in result and "refused: " not in result]


@pytest.mark.parametrize("name", TRIED)
def test_what_the_table_says_is_so(name: str, table: dict[str, str], tmp_path: Path) -> None:
    for outcome in outcomes(tmp_path, {name: claimed()[name]}):
        assert outcome.verdict != "wrong", outcome
        assert outcome.verdict in table[name], outcome
