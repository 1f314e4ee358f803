"""The JSON Schema of manifest.json, which ships with the gateway, held against what is written and what is verified."""

from __future__ import annotations

import functools
import importlib.resources
import json
from typing import Any

import jsonschema

SCHEMA_FILE = "manifest.schema.json"


@functools.cache
def _validator() -> Any:
    document = json.loads(importlib.resources.files("gateway.models").joinpath(SCHEMA_FILE).read_bytes())
    return jsonschema.Draft202012Validator(document)


def faults(manifest: bytes) -> list[str]:
    """What in a manifest.json is not as the schema says: ``signature.inputs.0.datatype: 'X' is not one of ...``."""
    found = _validator().iter_errors(json.loads(manifest))
    return [f"{'.'.join(map(str, error.absolute_path)) or 'all'}: {error.message[:200]}" for error in found]
