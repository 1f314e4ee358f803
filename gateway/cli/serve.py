"""``sluicegate serve``: read the settings and hand them to the supervisor."""

from __future__ import annotations

import argparse
import importlib.util
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gateway.cli import Subparsers
    from gateway.settings import Settings

_log = logging.getLogger(__name__)

DEFAULT_CONFIG = Path("sluicegate.toml")

# Option -> the setting that it overrides.
_OVERRIDES = {
    "models": "paths.models",
    "state": "paths.state",
    "host": "server.host",
    "port": "server.port",
    "workers": "server.workers",
    "door": "server.door",
    "control_host": "control.host",
    "control_port": "control.port",
    "store": "flags.store",
}


def add_parser(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "serve",
        help="serve the models of a directory",
        description="Serve the models of a directory until SIGTERM or Ctrl-C. Every option that is left out comes from "
        "SLUICEGATE_SECTION__KEY in the environment, then from the settings file, then from the defaults.",
    )
    add = parser.add_argument
    add("--models", metavar="DIR", help="model packages, as DIR/<model>/<version>/ (default: models)")
    add("--state", metavar="DIR", help="flags, tokens, samples and drift reports (default: state)")
    add("--host", metavar="H", help="address of the data plane (default: 0.0.0.0)")
    add("--port", metavar="N", type=int, help="port of the data plane; 0 picks a free one (default: 8080)")
    add("--control-host", metavar="H", help="address of the control plane (default: 127.0.0.1)")
    add("--control-port", metavar="N", type=int, help="port of the control plane; 0 picks a free one (default: 8081)")
    add("--workers", metavar="N", type=int, help="worker processes (default: 1)")
    add(
        "--door",
        choices=("fast", "asgi"),
        help="answer predictions in the protocol, or in the ASGI app (default: fast)",
    )
    add("--role", choices=("all", "serving", "control", "monitor"), default="all", help="which parts to run here")
    add(
        "--store",
        metavar="URL",
        help="where the flags are kept: sqlite:///PATH, or postgresql://... for many hosts (default: in --state)",
    )
    add("--config", metavar="FILE", type=Path, help=f"settings in TOML (default: ./{DEFAULT_CONFIG} if present)")
    add("--ready-file", metavar="FILE", type=Path, help="write addresses and pids there as JSON once ready")
    add("--print-config", action="store_true", help="print the effective settings as TOML and exit")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from gateway import logs, settings, supervisor

    def read() -> settings.Settings:
        config = options.config
        if config is None and DEFAULT_CONFIG.exists():
            config = DEFAULT_CONFIG
        overrides = {setting: getattr(options, option) for option, setting in _OVERRIDES.items()}
        return settings.load(config, os.environ, overrides)

    effective = read()
    if options.print_config:
        print(settings.to_toml(effective), end="")
        return 0
    _check_models(effective)
    if options.role in ("all", "monitor"):
        _check_detectors(effective)
    logs.set_up("supervisor", level=effective.log.level)
    models = effective.paths.models
    if not any(path.is_dir() for path in models.glob("*/*")):
        _log.warning("no model packages yet: not ready until one arrives", extra={"models": str(models)})
    return supervisor.run(
        effective, role=options.role, ready_file=options.ready_file, environment=os.environ, reread=read
    )


def _check_models(settings: Settings) -> None:
    """Raise CannotStart unless the models directory can be listed. It may be empty: models may come later."""
    from gateway.errors import CannotStart

    models = settings.paths.models
    if not models.is_dir():
        raise CannotStart(
            f"there is no models directory {models}; name one with --models DIR, or create it: "
            f"`sluicegate convert ... --out {models}` writes packages there, and an empty one will do for a start"
        )
    if not os.access(models, os.R_OK | os.X_OK):
        raise CannotStart(f"the models directory {models} cannot be read by this user; change its permissions")


def _check_detectors(settings: Settings) -> None:
    """Raise CannotStart if detectors are wanted and the library that has them is not there."""
    from gateway.errors import CannotStart

    if settings.labels.detectors and importlib.util.find_spec("river") is None:
        raise CannotStart("labels.detectors needs the library river; pip install 'sluicegate[detectors]'")
