"""The flag document as last committed, in a file of its own: what starts a gateway whose store cannot be read."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import orjson

from gateway.flags.database import troubles
from gateway.flags.document import FlagDocument, dump, parse


def write_last_known_good(path: Path, document: FlagDocument) -> None:
    """Write *document* as flagd JSON; a reader sees the old file or the new one. Raises StoreUnavailable."""
    with troubles(path):
        replace_file(path, orjson.dumps(dump(document), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))


def read_last_known_good(path: Path) -> FlagDocument | None:
    """The document as last written; None if there is no such file. Raises StoreUnavailable."""
    with troubles(path):
        try:
            raw = path.read_bytes()
        except FileNotFoundError:
            return None
        return parse(orjson.loads(raw))


def replace_file(path: Path, content: bytes, *, mode: int = 0o644) -> None:
    """Put a file in place so that a crash at any moment leaves the old one or the new one. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
