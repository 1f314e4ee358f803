"""NannyML's car-loan data, and what NannyML itself says of them: car_loan.py FOLDER write|judge.

write: FOLDER/reference.parquet and analysis.parquet, targets included. judge: reads there the rows as the gateway knows
them, reference.parquet, drawn.parquet (those of the package) and analysis.parquet, and answers in FOLDER/answer.json:
statistics against the drawn rows and accuracy, a list of chunks each; and the columns that alarm with its defaults,
against the whole reference.
"""

import json
import sys
from pathlib import Path

import nannyml
import pandas as pd

CHUNK_ROWS = 5000


def write(folder):
    reference, analysis, targets = nannyml.load_synthetic_car_loan_dataset()
    reference.to_parquet(folder / "reference.parquet")
    analysis.merge(targets, on="id", validate="1:1").to_parquet(folder / "analysis.parquet")
    return {}


def judge(folder):
    reference, drawn, analysis = (
        pd.read_parquet(folder / f"{name}.parquet") for name in ("reference", "drawn", "analysis")
    )
    columns = list(drawn.columns)

    def calculated(rows, **methods):
        calculator = nannyml.UnivariateDriftCalculator(
            column_names=columns, treat_as_categorical=["label"], chunk_size=CHUNK_ROWS, **methods
        )
        return calculator.fit(rows).calculate(analysis[columns]).filter(period="analysis").to_df()

    methods = {
        "continuous_methods": ["kolmogorov_smirnov", "jensen_shannon"],
        "categorical_methods": ["chi2", "jensen_shannon"],
    }
    told = calculated(drawn, **methods)
    statistics = {
        column: {
            method: [float(value) for value in told[column, method, "value"]]
            for method in sorted({name for first, name, _ in told.columns if first == column})
        }
        for column in columns
    }
    default = calculated(reference[columns])
    alerts = {column: [bool(value) for value in default[column, "jensen_shannon", "alert"]] for column in columns}
    performance = nannyml.PerformanceCalculator(
        problem_type="classification_binary",
        y_true="repaid",
        y_pred="label",
        y_pred_proba="probabilities.1",
        metrics=["accuracy", "roc_auc"],
        chunk_size=CHUNK_ROWS,
    )
    scores = performance.fit(reference).calculate(analysis).filter(period="analysis").to_df()
    return {
        "version": nannyml.__version__,
        "statistics": statistics,
        "alerts": alerts,
        "accuracy": [float(value) for value in scores["accuracy", "value"]],
        "accuracy_alerts": [bool(value) for value in scores["accuracy", "alert"]],
        "auc": [float(value) for value in scores["roc_auc", "value"]],
    }


folder = Path(sys.argv[1])
answer = {"write": write, "judge": judge}[sys.argv[2]](folder)
(folder / "answer.json").write_text(json.dumps(answer))
