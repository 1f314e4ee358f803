"""The command line: finds the verb that was named, runs it, and turns what it raises into an exit code."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from typing import TYPE_CHECKING

from gateway import __version__
from gateway.errors import GatewayError

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

EXIT_FAILED = 1
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as a shell reports it
EXIT_BROKEN_PIPE = 141  # 128 + SIGPIPE

# Verb -> the module in this package whose add_parser() adds it. Only the named verb's module is imported, so that no
# verb pays for the imports of another.
_VERBS = {
    "serve": "serve",
    "restart": "restart",
    "demo": "demo",
    "convert": "convert",
    "models": "models",
    "flags": "flags",
    "rollout": "rollout",
    "cache": "cache",
    "shadow": "shadow",
    "drift": "drift",
    "samples": "samples",
    "changes": "changes",
    "audit": "audit",
    "token": "tokens",
    "keys": "keys",
    "webhooks": "webhooks",
    "loadtest": "loadtest",
}


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code: 0 done, 1 failed, 130 interrupted.

    argv: the arguments after the program's name; None reads them from the process. Raises SystemExit(2) with a message
    on stderr if they make no sense.
    """
    arguments = sys.argv[1:] if argv is None else argv
    # Official builds of ONNX Runtime since 1.29 tell its maker about every model that they load. It looks when it is
    # imported, and children inherit it.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        options = _parse(arguments)
        code: int = options.run(options)
        sys.stdout.flush()
    except GatewayError as error:
        print(f"sluicegate: {error}", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader left (as `head` does). Python would complain when it flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE
    return code


def _parse(arguments: list[str]) -> argparse.Namespace:
    """Like parse_args, which takes no last positional argument behind an option: `flags set iris --default a b=5`."""
    parser = _parser(arguments)
    options, rest = parser.parse_known_args(arguments)
    late = getattr(options, "late", None)
    if rest and late is not None and not any(word.startswith("-") for word in rest):
        given = getattr(options, late)
        if isinstance(given, list):
            given += rest
            rest = []
        elif given is None:
            setattr(options, late, rest.pop(0))
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    return options


def _parser(arguments: list[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sluicegate",
        description="Serve tabular ONNX models over HTTP, release them by flags, and watch them for drift.",
    )
    parser.add_argument("--version", action="version", version=f"sluicegate {__version__}")
    subparsers = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    named = arguments[0] if arguments else ""
    modules = [_VERBS[named]] if named in _VERBS else list(_VERBS.values())
    for module in modules:
        importlib.import_module(f"gateway.cli.{module}").add_parser(subparsers)
    version = subparsers.add_parser("version", help="print the version")
    version.set_defaults(run=_print_version)
    return parser


def _print_version(_options: argparse.Namespace) -> int:
    print(f"sluicegate {__version__}")
    return 0
