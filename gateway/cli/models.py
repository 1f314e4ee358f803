"""``sluicegate models``: list, show and verify the packages of a models directory, and what is quarantined."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gateway.cli import quarantine
from gateway.errors import GatewayError, PackageInvalid

if TYPE_CHECKING:
    from gateway.cli import Subparsers
    from gateway.models.manifest import Manifest


def add_parser(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser("models", help="list, show or verify model packages; what is quarantined")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    for name, run, text in (
        ("list", _list, "list the packages: estimator, quantization, quality"),
        ("show", _show, "show signature, parity, quantization, quality and lineage"),
        (
            "verify",
            _verify,
            "check all checksums, replay the golden predictions, and ask the reference rows again on this machine",
        ),
    ):
        verb = verbs.add_parser(name, help=text, description=text.capitalize() + ".")
        verb.add_argument("directory", metavar="DIR", type=Path, help="a models directory, a model's or one package's")
        verb.add_argument("--json", action="store_true", help="print as JSON")
        verb.set_defaults(run=run)
    quarantine.add_parser(verbs)


def _list(options: argparse.Namespace) -> int:
    rows = [_summary(package) for package in _packages(options.directory)]
    code = 1 if any(row["problem"] for row in rows) else 0
    if options.json:
        print(json.dumps(rows, indent=1))
        return code
    from rich.table import Table

    from gateway.cli.package_view import console

    table = Table()
    shown = [column for column in rows[0] if column != "problem"]
    for column in shown:
        table.add_column(column.replace("_", " "), overflow="fold")
    for row in rows:
        if not row["problem"]:
            table.add_row(*("" if row[column] is None else _short(column, row[column]) for column in shown))
    screen = console()
    if table.row_count:
        screen.print(table)
    for row in rows:
        if row["problem"]:
            print(f"{row['model']} {row['version']}: {row['problem']}", file=sys.stderr)
    return code


def _short(column: str, value: str) -> str:
    return value.partition("T")[0] if column == "created" else value


def _show(options: argparse.Namespace) -> int:
    packages = _packages(options.directory)
    found = [(package, _manifest(package)) for package in packages]
    if options.json:
        plain = [None if manifest is None else dataclasses.asdict(manifest) for _, manifest in found]
        print(json.dumps(plain, indent=1))
        return 0
    from gateway.cli.package_view import console, print_manifest, say

    screen = console()
    for package, manifest in found:
        if manifest is None:
            say(screen, f"{package.parent.name} {package.name}: only model.onnx, no manifest")
        else:
            print_manifest(screen, manifest)
    return 0


def _verify(options: argparse.Namespace) -> int:
    found = [_verified(package) for package in _packages(options.directory)]
    if options.json:
        print(json.dumps(found, indent=1))
    else:
        for row in found:
            print(f"{row['model']} {row['version']}: {_told(row)}")
    return 0 if all(row["ok"] for row in found) else 1


def _told(row: Mapping[str, Any]) -> str:
    if not row["ok"]:
        return str(row["problem"])
    rows = row["reference_rows"]
    asked = "" if rows is None else f", {rows} reference rows answered as when it was converted"
    asked += f" (not checked: {row['unchecked']})" if row["unchecked"] else ""
    return f"ok: {row['files']} files, {row['golden_pairs']} golden pairs{asked}"


def _packages(directory: Path) -> list[Path]:
    """The packages at or below *directory*, by model and version; broken ones too. Raises PackageInvalid if none."""
    from gateway.models.manifest import MANIFEST_FILE, MODEL_FILE, NAME_PATTERN, VERSION_PATTERN, version_order

    root = directory.resolve()
    found = {path.parent for depth in ("", "*/", "*/*/") for path in root.glob(f"{depth}{MODEL_FILE}")}
    found |= {path.parent for depth in ("", "*/", "*/*/") for path in root.glob(f"{depth}{MANIFEST_FILE}")}
    named = [
        path for path in found if NAME_PATTERN.fullmatch(path.parent.name) and VERSION_PATTERN.fullmatch(path.name)
    ]
    for path in sorted(found - set(named)):
        if not any(part.startswith(".") for part in (path.parent.name, path.name)):  # left by a killed conversion
            told = "is passed over, here and by the gateway: names hold letters, digits, - and _; versions dots, too"
            print(f"{path.parent.name}/{path.name} {told}", file=sys.stderr)
    if not named:
        raise PackageInvalid(f"no model packages in {directory}; `sluicegate convert ... --out {directory}` writes one")
    return sorted(named, key=lambda path: (path.parent.name, version_order(path.name)))


def _manifest(package: Path) -> Manifest | None:
    from gateway.models.manifest import MANIFEST_FILE, parse

    path = package / MANIFEST_FILE
    try:
        return parse(path.read_bytes(), where=str(path)) if path.exists() else None
    except OSError as error:
        raise PackageInvalid(f"{path}: {error.strerror}") from error


def _summary(package: Path) -> Mapping[str, Any]:
    columns = ("model", "version", "estimator", "served_as", "quality", "created", "problem")
    row: dict[str, Any] = dict.fromkeys(columns)
    row |= {"model": package.parent.name, "version": package.name}
    try:
        manifest = _manifest(package)
    except PackageInvalid as error:
        return {**row, "problem": str(error)}
    if manifest is not None:
        row |= {
            "estimator": manifest.framework.get("estimator"),
            "served_as": manifest.quantization.get("chosen"),
            "created": manifest.created or None,
        }
        if manifest.metrics:
            primary = manifest.metrics["primary"]
            row["quality"] = f"{primary} {manifest.metrics['served'][primary]:.4f}"
    return row


def _verified(package: Path) -> Mapping[str, Any]:
    """Bring the package up just as a worker does before it gives it traffic, then ask what it was converted with."""
    from gateway.cli.replay import replay
    from gateway.models.manifest import MANIFEST_FILE, MODEL_FILE
    from gateway.models.source import DirectorySource
    from gateway.serving.loading import load

    source = DirectorySource(package.parent.parent)
    model, version = package.parent.name, package.name
    row: dict[str, Any] = {
        "model": model,
        "version": version,
        "ok": False,
        "files": 0,
        "golden_pairs": 0,
        "reference_rows": None,
        "unchecked": "",
        "problem": "",
    }
    wrong: list[str] = []
    asked = None
    try:
        read = source.open(model, version)
        load(source, model, version, intra_op_threads=1, on_runtime=lambda _runtime: None)
        try:  # a machine that only serves has no such libraries
            from converters.schema import faults

            asked = replay(package, read)
            wrong = [] if read.manifest is None else faults((package / MANIFEST_FILE).read_bytes())
        except ImportError as error:
            row["unchecked"] = f"manifest's schema and reference rows: {error.name} is not installed"
    except GatewayError as error:
        return {**row, "problem": str(error)}
    if wrong:
        return {**row, "problem": f"{MANIFEST_FILE}: {wrong[0]}"}
    listed = {MODEL_FILE, MANIFEST_FILE, *(read.manifest.files if read.manifest else ())}
    if strange := sorted(path.name for path in package.iterdir() if path.name not in listed):
        return {**row, "problem": f"files that the manifest does not list: {', '.join(strange)}"}
    if asked is not None and asked.wrong:
        told = f"{asked.wrong} of {asked.rows} reference rows are answered otherwise than when it was converted"
        return {**row, "problem": f"{told} (by at most {asked.most:.2g})"}
    row["reference_rows"] = None if asked is None else asked.rows
    row["files"] = 1 if read.manifest is None else len(read.manifest.files)
    row["golden_pairs"] = len(read.golden["pairs"]) if read.golden else 0
    return {**row, "ok": True}
