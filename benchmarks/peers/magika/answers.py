"""What magika says of files, by itself and by a gateway: answers.py model | rows OUT FILE... | ask URL FILE...

model: prints where its ONNX file lies. rows: writes the numbers that it makes of each file that it asks its network
about, as an array [files, 2048]. ask: prints as JSON how many files there were, for how many the network was asked, how
many kinds differ, and how far scores are apart, once with all files in one request and once with each in its own; and
how far magika's own answers are apart between the two.
"""

import json
import sys
import urllib.request
from pathlib import Path

import numpy as np
from magika import Magika


class Gateway:
    """Answers in place of ONNX Runtime's session, over HTTP."""

    def __init__(self, url):
        self.url = url
        self.rows = 0

    def run(self, names, inputs):
        rows = np.asarray(inputs["bytes"], np.int32)
        self.rows += len(rows)
        tensor = {"name": "bytes", "datatype": "INT32", "shape": list(rows.shape), "data": rows.ravel().tolist()}
        request = urllib.request.Request(
            f"{self.url}/v2/models/magika/infer",
            json.dumps({"inputs": [tensor]}).encode(),
            {"content-type": "application/json", "x-request-timeout-ms": "60000"},
        )
        with urllib.request.urlopen(request, timeout=90) as reply:
            found = json.load(reply)["outputs"][0]
        assert [found["name"]] == names
        return [np.array(found["data"], np.float32).reshape(found["shape"])]


class Recorder:
    """Answers as the session does, and keeps what it was asked."""

    def __init__(self, session):
        self.session = session
        self.kept = []

    def run(self, names, inputs):
        self.kept += inputs["bytes"]
        return self.session.run(names, inputs)


def told(results):
    return [(each.prediction.dl.label, each.prediction.output.label, each.prediction.score) for each in results]


def compared(expected, found):
    kinds = sum(one[:2] != other[:2] for one, other in zip(expected, found, strict=True))
    return {
        "kinds_differ": kinds,
        "scores_apart": max(abs(one[2] - other[2]) for one, other in zip(expected, found, strict=True)),
    }


what, *arguments = sys.argv[1:]
own = Magika()
if what == "model":
    print(own._model_path)
elif what == "rows":
    own._onnx_session = recorder = Recorder(own._onnx_session)
    own.identify_paths([Path(name) for name in arguments[1:]])
    np.save(arguments[0], np.array(recorder.kept, np.int32))
else:
    paths = [Path(name) for name in arguments[1:]]
    expected = told(own.identify_paths(paths))
    asking = Magika()
    asking._onnx_session = gateway = Gateway(arguments[0])
    answer = {"files": len(paths), "together": compared(expected, told(asking.identify_paths(paths)))}
    answer["asked_the_network"] = gateway.rows
    alone, asked_alone = (told([each.identify_path(path) for path in paths]) for each in (own, asking))
    answer["singly"] = compared(alone, asked_alone)
    answer["magika_itself_singly_and_together"] = compared(expected, alone)
    answer["kinds"] = len({kind for kind, _, _ in expected})
    print(json.dumps(answer))
