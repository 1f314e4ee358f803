"""PyTorch: modules become ONNX by PyTorch's own exporter, with rows as the first dimension, and answer beside it."""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from converters.from_sklearn import OPSET
from converters.ready import Module
from converters.rows import read_rows
from converters.sources import told
from gateway.errors import ConversionRefused, InvalidInput
from gateway.tensors import Array, Tensors

# A module as `torch.save` keeps it, and a program as `torch.export.save` does.
MODULES, PROGRAMS = (".pt", ".pth"), (".pt2",)
SUFFIXES = (*MODULES, *PROGRAMS)
# The exporter takes a dimension that is 1 for one that is always 1.
_EXAMPLE_ROWS = 3


@contextlib.contextmanager
def exported(path: Path, data: Path | None, target: str | None, *, trust: bool) -> Iterator[tuple[Path, Module | None]]:
    """The ONNX file of a model, and the module that it was made from; an ONNX file is its own, and has none.

    Raises InvalidInput for files and rows that make no sense, ConversionRefused without trust or PyTorch, or if the
    module cannot be exported.
    """
    if path.suffix not in SUFFIXES:
        yield path, None
        return
    if not path.is_file():
        raise InvalidInput("model", f"no file {path}", "a file that torch.save or torch.export.save wrote")
    if not trust:
        raise ConversionRefused(
            f"loading {path.name} may run code that is stored in it: if you know where the file comes from, say so "
            "with --trust"
        )
    try:
        import onnxscript  # noqa: F401  # what the exporter needs, and says so late
        import torch
    except ModuleNotFoundError as error:
        raise ConversionRefused(f"{error.name} is missing: pip install 'sluicegate[torch]' first") from error
    if path.suffix in PROGRAMS:
        model, names, arguments = _program(torch, path)
        answering = model.module()
    else:
        model = answering = _module(torch, path)
        names, arguments = _arguments(torch, model, data, target)
    given = dict(zip(names, (each.numpy() for each in arguments), strict=True))
    outputs = _named(_asked(torch, answering, names, given))
    with tempfile.TemporaryDirectory() as directory, _quiet():
        file = Path(directory) / f"{path.stem}.onnx"
        dynamic = None if path.suffix in PROGRAMS else tuple({0: torch.export.Dim("rows")} for _ in names)
        try:
            torch.onnx.export(
                model,
                () if path.suffix in PROGRAMS else tuple(arguments),
                file,
                input_names=list(names),
                output_names=list(outputs),
                opset_version=OPSET,
                dynamic_shapes=dynamic,
                external_data=False,
                dynamo=True,
                verbose=False,
            )
        except Exception as error:  # the exporter's own errors share no base class with those of what it calls
            raise ConversionRefused(f"PyTorch cannot export {path.name} to ONNX: {told(error)}") from error
        kind = "program" if path.suffix in PROGRAMS else type(model).__name__
        yield (
            file,
            Module(f"PyTorch {kind}", lambda tensors: _named(_asked(torch, answering, names, tensors))),
        )


def _module(torch: Any, path: Path) -> Any:
    try:
        model = torch.load(path, map_location="cpu", weights_only=False)
    except Exception as error:  # unpickling runs foreign code, which may raise anything
        raise InvalidInput("model", f"{path.name}: {told(error)}", "a module that loads here") from error
    if isinstance(model, torch.jit.ScriptModule):
        raise ConversionRefused(f"{path.name} is TorchScript, which PyTorch no longer exports: save the module itself")
    if isinstance(model, Mapping):
        raise InvalidInput("model", f"{path.name} with weights alone", "the whole module: torch.save(module, ...)")
    if not isinstance(model, torch.nn.Module):
        raise InvalidInput("model", f"{path.name}: a {type(model).__name__}", "a torch.nn.Module")
    return model.eval()


def _program(torch: Any, path: Path) -> tuple[Any, Sequence[str], Sequence[Any]]:
    """The program, the names of its inputs, and the example that it was made with."""
    try:
        with _quiet():
            program = torch.export.load(path)
    except Exception as error:  # a broken archive, or operators that are not here
        raise InvalidInput("model", f"{path.name}: {told(error)}", "a program that loads here") from error
    arguments, others = program.example_inputs
    if others or not all(isinstance(each, torch.Tensor) for each in arguments):
        raise ConversionRefused(f"{path.name} takes more than tensors by position: export it with those alone")
    return program, program.graph_signature.user_inputs, arguments


def _arguments(torch: Any, model: Any, data: Path | None, target: str | None) -> tuple[Sequence[str], Sequence[Any]]:
    """The names of what a module takes, and rows of the data as these: one matrix, or a column for each name."""
    if data is None:
        raise InvalidInput("data", "nothing", "rows of features: a module does not say what it takes")
    frame = read_rows(data).drop(columns=[target] if target is not None else [], errors="ignore")
    rows = frame.iloc[np.arange(_EXAMPLE_ROWS) % len(frame)]
    parameters = inspect.signature(model.forward).parameters.values()
    names = [each.name for each in parameters if each.default is each.empty and each.kind is not each.VAR_KEYWORD]
    try:
        if len(names) == 1:
            return names, [torch.tensor(rows.to_numpy(dtype=np.float32))]
        if names and set(names) <= set(frame.columns):
            return names, [torch.tensor(_column(rows[name])) for name in names]
    except (TypeError, ValueError) as error:
        raise InvalidInput("data", f"rows that hold texts: {error}", "numbers, which a module takes") from error
    raise InvalidInput("data", f"columns {list(frame.columns)[:10]}", f"a column for each of the module's {names}")


def _column(values: Any) -> Array:
    whole = values.dtype.kind in "iu"
    column: Array = values.to_numpy(dtype=np.int64 if whole else np.float32).reshape(-1, 1)
    return column


def _asked(torch: Any, answering: Any, names: Sequence[str], tensors: Tensors) -> Any:
    try:
        with torch.no_grad():
            return answering(*(torch.tensor(tensors[name]) for name in names))
    except Exception as error:  # a module may raise anything on rows that it cannot read
        raise ConversionRefused(f"the module itself fails on these rows: {told(error)}") from error


def _named(found: Any) -> Tensors:
    """A module's answers as arrays by name: its own in a dictionary, else ``output``, or ``output_0`` and so on."""
    if isinstance(found, Mapping):
        named = dict(found)
    elif isinstance(found, tuple | list):
        named = {f"output_{index}": each for index, each in enumerate(found)}
    else:
        named = {"output": found}
    try:
        return {str(name): each.numpy() for name, each in named.items()}
    except AttributeError as error:
        raise ConversionRefused("the module gives more than tensors, which is all that can be served") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter prints and warns of each step."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
