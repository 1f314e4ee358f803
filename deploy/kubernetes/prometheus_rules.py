"""Print the rules of deploy/prometheus as objects of the Prometheus operator; the base has what this prints.

python deploy/kubernetes/prometheus_rules.py > deploy/kubernetes/base/rules.yaml
"""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

_RULES = Path(__file__).parents[1] / "prometheus"
_HEAD = """\
# Made of deploy/prometheus by deploy/kubernetes/prometheus_rules.py: change them there, and make this anew.
"""
_OBJECT = """\
---
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: {name}
spec:
"""


def objects() -> str:
    """One object per file: names of groups may repeat between files, and not in one."""
    made = _HEAD
    for path in (_RULES / "sluicegate.rules.yml", _RULES / "sluicegate.alerts.yml"):
        made += _OBJECT.format(name=path.stem.replace(".", "-"))
        made += textwrap.indent(path.read_text(), "  ")
    return made


if __name__ == "__main__":
    sys.stdout.write(objects())
