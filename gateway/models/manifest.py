"""The model package's manifest: what a version is, what it takes and gives, and what its files must hash to."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gateway import redaction
from gateway.errors import PackageInvalid
from gateway.tensors import DTYPES, Feature, Signature, TensorSpec

SCHEMA = 1
MODEL_FILE = "model.onnx"
MANIFEST_FILE = "manifest.json"
REFERENCE_FILE = "reference.parquet"
GOLDEN_FILE = "golden.json"
CARD_FILE = "card.md"

# Names become directory names, URL segments and metric labels.
NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
VERSION_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


@dataclass(frozen=True, slots=True)
class Manifest:
    """The contents of manifest.json. files: name -> sha256 in hex of every other file of the package.

    The loosely typed parts (framework, lineage, parity, quantization, metrics, reference, card) are written by the
    converters and shown to people; serving reads only name, version, files and signature.
    """

    name: str
    version: str
    files: Mapping[str, str]
    signature: Signature
    created: str = ""
    framework: Mapping[str, Any] = field(default_factory=dict)
    libraries: Mapping[str, str] = field(default_factory=dict)
    lineage: Mapping[str, Any] = field(default_factory=dict)
    parity: Mapping[str, Any] = field(default_factory=dict)
    quantization: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    reference: Mapping[str, Any] = field(default_factory=dict)
    card: Mapping[str, Any] = field(default_factory=dict)

    @property
    def redact(self) -> redaction.Rules:
        """What of its predictions may not be written as it is; `parse` has checked it."""
        return redaction.parse_card(self.card.get("redact"))

    def to_json(self) -> bytes:
        """The bytes of manifest.json, ending in a newline."""
        plain = {"schema": SCHEMA, **dataclasses.asdict(self)}
        return json.dumps(plain, indent=1, allow_nan=False).encode() + b"\n"


_OBJECTS = ("files", "framework", "libraries", "lineage", "parity", "quantization", "metrics", "reference", "card")


def version_order(version: str) -> tuple[int, int, str]:
    """Sort key of versions: numbers by value, then other texts by alphabet."""
    return (1, int(version), "") if version.isdecimal() else (0, 0, version)


def parse(raw: bytes, *, where: str) -> Manifest:
    """Read manifest.json. Raises PackageInvalid naming *where* and the field that is wrong."""
    try:
        plain = json.loads(raw)
        if not isinstance(plain, dict):
            raise TypeError("not a JSON object")
        if plain.get("schema") != SCHEMA:
            raise ValueError(f"schema is {plain.get('schema')!r}, this gateway reads {SCHEMA}")
        known = {f.name for f in dataclasses.fields(Manifest)}
        fields = {key: value for key, value in plain.items() if key in known}
        fields["signature"] = _signature(plain["signature"])
        manifest = Manifest(**fields)
        _check(manifest)
    except KeyError as error:
        raise PackageInvalid(f"{where}: {error.args[0]!r} is missing") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise PackageInvalid(f"{where} is not valid JSON: {error}") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise PackageInvalid(f"{where}: {error}") from error
    return manifest


def sha256_of(path: Path) -> str:
    """SHA-256 of a file in hex. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _signature(plain: Mapping[str, Any]) -> Signature:
    classes = plain.get("classes")
    return Signature(
        inputs=tuple(_tensor_spec(spec) for spec in plain["inputs"]),
        outputs=tuple(_tensor_spec(spec) for spec in plain["outputs"]),
        features=tuple(_feature(feature) for feature in plain.get("features", ())),
        classes=None if classes is None else tuple(classes),
        batchable=bool(plain.get("batchable", True)),
        batch_invariant=bool(plain.get("batch_invariant", True)),
        cacheable=bool(plain.get("cacheable", True)),
    )


def _tensor_spec(plain: Mapping[str, Any]) -> TensorSpec:
    if plain["datatype"] not in DTYPES:
        raise ValueError(f"datatype {plain['datatype']!r} is not known")
    if not all(isinstance(size, int) and size >= -1 for size in plain["shape"]):
        raise ValueError(f"shape of {plain['name']!r} must be whole numbers of at least -1, got {plain['shape']}")
    return TensorSpec(plain["name"], plain["datatype"], tuple(plain["shape"]), plain.get("role", "value"))


def _feature(plain: Mapping[str, Any]) -> Feature:
    categories = plain.get("categories")
    return Feature(
        name=plain["name"],
        input=plain["input"],
        column=plain["column"],
        kind=plain.get("kind", "numeric"),
        categories=None if categories is None else tuple(categories),
        missing_allowed=bool(plain.get("missing_allowed", False)),
    )


def _check(manifest: Manifest) -> None:
    for field_name in _OBJECTS:
        found = getattr(manifest, field_name)
        if not isinstance(found, dict):
            raise ValueError(f"{field_name} must be an object, got {type(found).__name__}")
    if not NAME_PATTERN.fullmatch(manifest.name):
        raise ValueError(f"name must match {NAME_PATTERN.pattern}, got {manifest.name!r}")
    if not VERSION_PATTERN.fullmatch(manifest.version):
        raise ValueError(f"version must match {VERSION_PATTERN.pattern}, got {manifest.version!r}")
    if MODEL_FILE not in manifest.files:
        raise ValueError(f"files must list {MODEL_FILE}")
    signature = manifest.signature
    if unknown := manifest.redact.keys() - signature.names():  # a wrong name would let the right one through
        raise ValueError(f"card.redact names {min(unknown)!r}, which the model has not")
    if not signature.inputs or not signature.outputs:
        raise ValueError("signature must have at least one input and one output")
    inputs = {spec.name: spec for spec in signature.inputs}
    places: set[tuple[str, int]] = set()
    for feature in signature.features:
        spec = inputs.get(feature.input)
        if spec is None:
            raise ValueError(f"feature {feature.name!r} names the unknown input {feature.input!r}")
        width = spec.shape[1] if len(spec.shape) == 2 and spec.shape[1] >= 0 else 1
        if type(feature.column) is not int or not 0 <= feature.column < width:
            raise ValueError(f"feature {feature.name!r} is column {feature.column!r} of {feature.input!r}, of {width}")
        if (feature.input, feature.column) in places:
            raise ValueError(f"feature {feature.name!r} shares column {feature.column} of {feature.input!r}")
        places.add((feature.input, feature.column))
