"""Modules of PyTorch: what is served answers as the module does, for one row and for many, and over HTTP by names.

Run by ``make torch``, in an environment that has PyTorch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from converters.convert import Converted, Order, convert
from gateway.errors import ConversionRefused, InvalidInput
from gateway.models.source import DirectorySource
from gateway.serving.loading import load
from gateway.tensors import Tensors
from tests.converters.bench import Rows, cancer
from tests.live import LiveGateway


class Network(nn.Module):  # type: ignore[misc]  # PyTorch is not where types are checked
    """A normalized network over a matrix, with what training uses and answering must not."""

    def __init__(self, width: int = 30, hidden: int = 32) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.BatchNorm1d(width), nn.Linear(width, hidden), nn.ReLU(), nn.Dropout(0.5), nn.Linear(hidden, 2)
        )

    def forward(self, rows: Any) -> Any:
        return self.layers(rows).softmax(dim=1)


class Columns(nn.Module):  # type: ignore[misc]  # PyTorch is not where types are checked
    """Takes a whole number and a number by name, and gives two things by name."""

    def __init__(self) -> None:
        super().__init__()
        self.places = nn.Embedding(8, 4)
        self.last = nn.Linear(5, 1)

    def forward(self, place: Any, area: Any) -> Any:
        joined = torch.cat([self.places(place).squeeze(1), area], dim=1)
        return {"price": self.last(joined), "rank": joined.argmax(dim=1)}


class Several(nn.Module):  # type: ignore[misc]  # PyTorch is not where types are checked
    def forward(self, rows: Any) -> Any:
        return rows.sum(dim=1), rows * 2


class Strange(nn.Module):  # type: ignore[misc]  # PyTorch is not where types are checked
    def forward(self, rows: Any) -> Any:
        return rows, "and a text"


def fitted(rows: Rows, hidden: int = 32) -> Network:
    """A network after a few steps over the rows, still in the mode in which it was trained."""
    torch.manual_seed(0)
    network = Network(rows.features.shape[1], hidden)
    given = torch.tensor(rows.features.to_numpy(np.float32))
    truth = torch.tensor(rows.truth.to_numpy())
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    for _ in range(40):
        optimizer.zero_grad()
        nn.functional.nll_loss((network(given) + 1e-6).log(), truth).backward()
        optimizer.step()
    return network


def kept(directory: Path, rows: Any) -> Path:
    path = directory / "rows.parquet"
    rows.to_parquet(path, index=False)
    return path


def packaged(path: Path, data: Path | None, **changes: Any) -> Converted:
    changes = {"name": "net", "version": "1", "trust": True, **changes}
    return convert(Order(path, changes.pop("name"), changes.pop("version"), data, path.parent / "models", **changes))


def served(package: Converted, inputs: Tensors) -> Tensors:
    """What a worker gives, after the golden pairs."""
    source = DirectorySource(package.path.parent.parent)
    name, version = package.path.parts[-2:]
    return load(source, name, version, intra_op_threads=1, on_runtime=lambda _: None).runtime.run(inputs)


@pytest.fixture(scope="module")
def network() -> Network:
    return fitted(cancer())


def test_a_module_answers_as_it_does_in_pytorch_for_any_number_of_rows(network: Network, tmp_path: Path) -> None:
    rows = cancer()
    torch.save(network, tmp_path / "net.pt")
    table = rows.features.assign(truth=rows.truth)
    package = packaged(tmp_path / "net.pt", kept(tmp_path, table), target="truth")
    manifest = package.manifest
    assert manifest.framework == {"name": "PyTorch", "estimator": "PyTorch Network", "task": "unknown"}
    assert manifest.libraries["torch"] == torch.__version__
    assert manifest.signature.batchable
    assert [feature.name for feature in manifest.signature.features] == list(rows.features.columns)
    assert manifest.metrics["original"]["accuracy"] > 0.9
    matrix = rows.features.to_numpy(np.float32)
    network.eval()
    for count in (1, 2, 7, len(matrix)):
        with torch.no_grad():
            expected = network(torch.tensor(matrix[:count])).numpy()
        found = served(package, {"rows": matrix[:count]})["output"]
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_a_program_brings_its_code_with_it_and_its_batch_may_be_open_or_fixed(network: Network, tmp_path: Path) -> None:
    matrix = cancer().features.to_numpy(np.float32)
    network.eval()
    for version, shapes in enumerate(({"rows": {0: torch.export.Dim("batch")}}, None)):
        program = torch.export.export(network, (torch.tensor(matrix[:3]),), dynamic_shapes=shapes)
        torch.export.save(program, tmp_path / "net.pt2")
        data = kept(tmp_path, cancer().features) if shapes else None
        package = packaged(tmp_path / "net.pt2", data, version=str(version))
        assert package.manifest.signature.batchable == (shapes is not None)
        with torch.no_grad():
            expected = network(torch.tensor(matrix[:3])).numpy()
        np.testing.assert_allclose(served(package, {"rows": matrix[:3]})["output"], expected, rtol=1e-5, atol=1e-5)


def test_columns_by_name_and_answers_by_name_over_http(network: Network, tmp_path: Path) -> None:
    rows = cancer().features
    table = rows[["mean area"]].rename(columns={"mean area": "area"}).assign(place=np.arange(len(rows)) % 8)
    torch.manual_seed(0)
    columns = Columns()
    torch.save(columns, tmp_path / "columns.pt")
    torch.save(network, tmp_path / "net.pt")
    package = packaged(tmp_path / "columns.pt", kept(tmp_path, table), name="columns")
    packaged(tmp_path / "net.pt", kept(tmp_path, rows))
    assert {spec.name: spec.datatype for spec in package.manifest.signature.inputs} == {
        "place": "INT64",
        "area": "FP32",
    }
    with torch.no_grad():
        given = {"place": table["place"].to_numpy(), "area": table["area"].to_numpy(np.float32)}
        answers = columns(*(torch.tensor(given[name].reshape(-1, 1)) for name in ("place", "area")))
        expected = network.eval()(torch.tensor(rows.to_numpy(np.float32))).numpy()
    with LiveGateway(tmp_path / "models", tmp_path / "state") as gateway:
        reply = gateway.data.post("/predict/columns", json={"rows": table.to_dict(orient="records")})
        told = reply.json()["predictions"]
        np.testing.assert_allclose([each["price"] for each in told], answers["price"].numpy()[:, 0], rtol=1e-5)
        assert [each["rank"] for each in told] == answers["rank"].tolist()
        reply = gateway.data.post("/predict/net", json={"rows": rows.to_dict(orient="records")})
        assert reply.status_code == 200, reply.text
        found = [list(each["output"].values()) if isinstance(each["output"], dict) else each["output"]
                 for each in reply.json()["predictions"]]  # fmt: skip
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_several_answers_get_numbers(tmp_path: Path) -> None:
    torch.save(Several(), tmp_path / "net.pt")
    package = packaged(tmp_path / "net.pt", kept(tmp_path, cancer().features))
    outputs = served(package, {"rows": np.eye(30, dtype=np.float32)})
    np.testing.assert_allclose(outputs["output_0"], np.ones(30))
    np.testing.assert_allclose(outputs["output_1"], 2 * np.eye(30))


def test_a_large_module_is_served_as_int8(tmp_path: Path) -> None:
    rows = cancer()
    torch.save(fitted(rows, hidden=512), tmp_path / "net.pt")
    table = kept(tmp_path, rows.features.assign(truth=rows.truth))
    gate = {"max_flip_rate": 0.02}
    package = packaged(tmp_path / "net.pt", table, target="truth", quantize="static", gate=gate)
    manifest = package.manifest
    assert manifest.quantization["chosen"].startswith("static int8")
    assert manifest.signature.batch_invariant
    assert manifest.metrics["served"]["accuracy"] >= manifest.metrics["original"]["accuracy"] - 0.005
    served(package, {"rows": rows.features.to_numpy(np.float32)})


def test_what_cannot_be_taken_is_refused_by_name(network: Network, tmp_path: Path) -> None:
    data = kept(tmp_path, cancer().features)
    torch.save(network, tmp_path / "net.pt")
    with pytest.raises(ConversionRefused, match="--trust"):
        packaged(tmp_path / "net.pt", data, trust=False)
    with pytest.raises(InvalidInput, match="does not say what it takes"):
        packaged(tmp_path / "net.pt", None)
    torch.save(network.state_dict(), tmp_path / "weights.pt")
    with pytest.raises(InvalidInput, match="weights alone"):
        packaged(tmp_path / "weights.pt", data)
    torch.save(Strange(), tmp_path / "strange.pt")
    with pytest.raises(ConversionRefused, match="more than tensors"):
        packaged(tmp_path / "strange.pt", data)
    (tmp_path / "broken.pt").write_bytes(b"no")
    with pytest.raises(InvalidInput, match=r"broken\.pt"):
        packaged(tmp_path / "broken.pt", data)
    assert not (tmp_path / "models").exists()
