"""Where model packages come from: a directory of ``<model>/<version>/`` folders, checked before use."""

from __future__ import annotations

import hashlib
import json
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from gateway.errors import PackageInvalid
from gateway.models.manifest import (
    GOLDEN_FILE,
    MANIFEST_FILE,
    MODEL_FILE,
    NAME_PATTERN,
    VERSION_PATTERN,
    Manifest,
    parse,
    sha256_of,
    version_order,
)

# What the stamp of a package is made of: size and modification time of the files that a load reads.
Stamp = tuple[tuple[int, int] | None, ...]


@dataclass(frozen=True, slots=True)
class Package:
    """One version, read and checked. manifest is None for a bare directory that holds only model.onnx.

    digest: sha256 in hex that changes whenever the answers could.
    """

    model: str
    version: str
    model_bytes: bytes
    manifest: Manifest | None
    golden: Mapping[str, Any] | None
    digest: str


class ModelSource(Protocol):
    """Gives packages by model and version. Every method may block: call it off the event loop."""

    def versions(self) -> dict[str, list[str]]:
        """All models with their versions in rising order."""
        ...

    def open(self, model: str, version: str) -> Package:
        """Read and check one package. Raises PackageInvalid."""
        ...

    def stamp(self, model: str, version: str) -> Stamp:
        """A value that differs once the package's files have changed."""
        ...


class DirectorySource:
    """Packages below one directory."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def versions(self) -> dict[str, list[str]]:
        """All directories that hold a model.onnx; names that cannot be a model or version are passed over."""
        found: dict[str, list[str]] = {}
        for path in self._root.glob(f"*/*/{MODEL_FILE}"):
            model, version = path.parts[-3:-1]
            if NAME_PATTERN.fullmatch(model) and VERSION_PATTERN.fullmatch(version):
                found.setdefault(model, []).append(version)
        return {model: sorted(found[model], key=version_order) for model in sorted(found)}

    def stamp(self, model: str, version: str) -> Stamp:
        if not NAME_PATTERN.fullmatch(model) or not VERSION_PATTERN.fullmatch(version):
            return (None,)
        directory = self._root / model / version
        return tuple(_stamp(directory / name) for name in (MODEL_FILE, MANIFEST_FILE, GOLDEN_FILE))

    def open(self, model: str, version: str) -> Package:
        if not NAME_PATTERN.fullmatch(model) or not VERSION_PATTERN.fullmatch(version):
            raise PackageInvalid(f"{model}/{version} cannot be the name of a package")
        directory = self._root / model / version
        where = f"{model}/{version}"
        try:
            model_bytes = _read(directory / MODEL_FILE)
            manifest_bytes = _read(directory / MANIFEST_FILE) if (directory / MANIFEST_FILE).exists() else None
            if manifest_bytes is None:
                # The name is part of it, as it is of a manifest: answers say it, so equal files under two names must
                # not share them.
                digest = hashlib.sha256(f"{where}\n".encode() + model_bytes).hexdigest()
                return Package(model, version, model_bytes, None, None, digest)
            manifest = parse(manifest_bytes, where=f"{where}/{MANIFEST_FILE}")
            if (manifest.name, manifest.version) != (model, version):
                raise PackageInvalid(f"{where} holds the manifest of {manifest.name}/{manifest.version}")
            _check_files(directory, where, manifest, model_bytes)
            golden = json.loads(_read(directory / GOLDEN_FILE)) if GOLDEN_FILE in manifest.files else None
        except FileNotFoundError as error:
            raise PackageInvalid(f"{where}: {Path(error.filename or '').name or 'a file'} is missing") from error
        except OSError as error:
            raise PackageInvalid(f"{where}: cannot be read: {error}") from error
        except ValueError as error:
            raise PackageInvalid(f"{where}/{GOLDEN_FILE} is not valid JSON: {error}") from error
        return Package(model, version, model_bytes, manifest, golden, hashlib.sha256(manifest_bytes).hexdigest())


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return (status.st_size, status.st_mtime_ns)


def _read(path: Path) -> bytes:
    """The bytes of a regular file; a pipe or device would make the reader wait for ever."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise PackageInvalid(f"{path.name} is not a regular file")
    return path.read_bytes()


def _check_files(directory: Path, where: str, manifest: Manifest, model_bytes: bytes) -> None:
    for name, expected in manifest.files.items():
        if "/" in name or name.startswith("."):
            raise PackageInvalid(f"{where}: file name {name!r} leads out of the package")
        # The model's bytes are hashed as they were read: what was checked is what is run.
        found = hashlib.sha256(model_bytes).hexdigest() if name == MODEL_FILE else sha256_of(directory / name)
        if found != expected:
            raise PackageInvalid(f"{where}/{name}: sha256 is {found[:12]}…, the manifest says {expected[:12]}…")
