"""Where models come from: one row per library, and how a model is loaded, adapted and read."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import joblib
from sklearn.exceptions import InconsistentVersionWarning

from gateway.errors import ConversionRefused, InvalidInput

if TYPE_CHECKING:
    from converters.trees import Ensemble


@dataclass(frozen=True, slots=True)
class Source:
    """One library. name: as people write it. library: its distribution and the extra that brings it.

    reader: the module that knows it, with ``read(estimator)``, and for libraries other than scikit-learn
    ``adapt(model)`` and ``load_file(path)``; imported only for its own models. suffixes: of its own files, which hold
    no code.
    """

    name: str
    library: str
    reader: str
    suffixes: tuple[str, ...] = ()

    def version(self) -> str:
        """The version of the library as it is imported, by whatever distribution it came."""
        return str(importlib.import_module(self.library.replace("-", "_")).__version__)


# By the top package of the model's class.
SOURCES: Mapping[str, Source] = {
    "sklearn": Source("scikit-learn", "scikit-learn", "converters.from_sklearn_trees"),
    "xgboost": Source("XGBoost", "xgboost", "converters.from_xgboost", (".json", ".ubj")),
    "lightgbm": Source("LightGBM", "lightgbm", "converters.from_lightgbm", (".txt",)),
    "catboost": Source("CatBoost", "catboost", "converters.from_catboost", (".cbm",)),
}


def load(path: Path, *, trust: bool) -> tuple[Any, list[str]]:
    """The model in a file, as the library gives it, and notes for the user.

    A joblib file runs the code inside it, hence nothing of it is read unless *trust*; a library's own file holds no
    code. Raises InvalidInput, or ConversionRefused without trust or without the library.
    """
    if not path.is_file():
        raise InvalidInput("model", f"no file {path}", "a joblib file, or a model file of a library")
    for source in SOURCES.values():
        if path.suffix in source.suffixes:
            return _reader(source).load_file(path), []
    if path.suffix == ".skops":
        return _load_skops(path, trust=trust), []
    if not trust:
        raise ConversionRefused(
            f"loading {path.name} runs whatever code is stored in it: if you know where the file comes from, "
            "say so with --trust"
        )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            model = joblib.load(path)
        except ModuleNotFoundError as error:
            raise ConversionRefused(f"{path.name} needs {error.name}, which is not installed here") from error
        except Exception as error:  # unpickling runs foreign code, which may raise anything
            raise InvalidInput("model", f"{path.name}: {told(error)}", "a joblib file that loads here") from error
    notes = {
        first_line(Exception(str(warning.message)))
        for warning in caught
        if issubclass(warning.category, InconsistentVersionWarning)
    }
    return model, sorted(notes)


def adapt(model: Any) -> Any:
    """*model* as an estimator of scikit-learn. Raises InvalidInput for one of a library that is asked and refuses."""
    source = source_of(model)
    if source is None or source is SOURCES["sklearn"]:
        return model
    return _reader(source).adapt(model)


def read(estimator: Any) -> Ensemble | None:
    """The trees of an adapted estimator, by the library whose it is; None if it has none that are known."""
    source = source_of(estimator)
    if source is None:
        return None
    ensemble: Ensemble | None = _reader(source).read(estimator)
    return ensemble


def source_of(model: Any) -> Source | None:
    """The library whose class a model is, or whose adapted form."""
    for each in type(model).__mro__:
        top, _, rest = each.__module__.partition(".")
        if top in SOURCES and not (top == "sklearn" and rest == "base"):
            return SOURCES[top]
        for source in SOURCES.values():
            if each.__module__ == source.reader:
                return source
    return None


def _reader(source: Source) -> Any:
    try:
        return importlib.import_module(source.reader)
    except ModuleNotFoundError as error:
        raise ConversionRefused(f"{error.name} is missing: pip install 'sluicegate[{source.library}]' first") from error


def _load_skops(path: Path, *, trust: bool) -> Any:
    """The estimator in a file of skops, which names every type that it needs before any is loaded."""
    try:
        import skops.io
    except ModuleNotFoundError as error:
        raise ConversionRefused(f"{error.name} is missing: pip install 'sluicegate[skops]' first") from error
    try:
        foreign = skops.io.get_untrusted_types(file=path)
        if foreign and not trust:
            listed = ", ".join(foreign[:10])
            raise ConversionRefused(
                f"{path.name} needs types that skops does not know as safe: {listed}. If you know where the file "
                "comes from, say so with --trust"
            )
        return skops.io.load(path, trusted=foreign)
    except ConversionRefused:
        raise
    except Exception as error:  # a broken archive, or what a trusted type raises
        raise InvalidInput("model", f"{path.name}: {told(error)}", "a skops file that loads here") from error


def first_line(error: Exception) -> str:
    """The first line of a foreign error's text, cut to what a person reads."""
    return str(error).strip().split("\n", 1)[0][:300]


def told(error: Exception) -> str:
    """A foreign error by its type and first line."""
    return f"{type(error).__name__}: {first_line(error)}"
