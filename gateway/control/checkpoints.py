"""Signed checkpoints of the audit trail: what a later reader can hold the trail against."""

from __future__ import annotations

import base64
import binascii
import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from gateway.errors import AuditBroken, StoreUnavailable
from gateway.flags.audit import Head
from gateway.flags.lastgood import replace_file

SCHEMA = 1
# In the state directory.
KEY_FILE = "audit.key"
PUBLIC_KEY_FILE = "audit.pub"
CHECKPOINT_FILE = "audit.checkpoints.jsonl"
_DOMAIN = b"sluicegate audit checkpoint\n"  # so that nothing else signed with this key can pass for a checkpoint

Keys = Mapping[str, Ed25519PublicKey]  # by key id


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """ "The trail's row *seq* had this hash": everything up to that row is fixed by it.

    ts: UTC, when it was signed. revision: of the flag document at that row. signature: Ed25519, base64, over all else.
    """

    seq: int
    hash: str
    ts: str
    revision: int
    key_id: str
    signature: str = ""

    @property
    def head(self) -> Head:
        return Head(self.seq, self.hash)

    def signed_bytes(self) -> bytes:
        """What the signature is made over."""
        fields = self.to_json()
        del fields["signature"]
        return _DOMAIN + json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()

    def to_json(self) -> dict[str, Any]:
        return {"schema": SCHEMA, **dataclasses.asdict(self)}


def from_json(plain: Any) -> Checkpoint:
    """Read one. Raises AuditBroken if it has not exactly the fields of a checkpoint."""
    fields = {f.name: int if f.type == "int" else str for f in dataclasses.fields(Checkpoint)}
    if (
        not isinstance(plain, dict)
        or plain.keys() != fields.keys() | {"schema"}
        or plain["schema"] != SCHEMA
        or any(type(plain[name]) is not kind for name, kind in fields.items())
    ):
        raise AuditBroken(f"{str(plain)[:80]} is no checkpoint of schema {SCHEMA}")
    return Checkpoint(**{name: plain[name] for name in fields})


# -- keys -----------------------------------------------------------------------------------------


class Signer:
    """Signs with the private key of one gateway. Thread-safe."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.public_key = key.public_key()
        self.key_id = key_id(self.public_key)

    def sign(self, head: Head, *, revision: int, ts: str) -> Checkpoint:
        """The checkpoint of *head*. ts: now, UTC."""
        draft = Checkpoint(head.seq, head.hash, ts, revision, self.key_id)
        signature = base64.b64encode(self._key.sign(draft.signed_bytes())).decode()
        return dataclasses.replace(draft, signature=signature)


def open_signer(key_path: Path, public_path: Path) -> tuple[Signer, bool]:
    """The key in *key_path*, and whether it was made just now; the public half is in *public_path* thereafter.

    A public key of before is kept beside it, under its id: what was signed with it can still be checked. Raises
    StoreUnavailable if a file cannot be read or written, or holds no such key.
    """
    try:
        pem = key_path.read_bytes() if key_path.exists() else None
        key = Ed25519PrivateKey.generate() if pem is None else _private_key(pem, key_path)
        if pem is None:
            replace_file(key_path, _private_pem(key), mode=0o600)
        public_pem = to_pem(key.public_key())
        kept = public_path.read_bytes() if public_path.exists() else None
        if kept != public_pem:
            for old_id in {} if kept is None else read_public_keys([public_path]):
                replace_file(public_path.with_name(f"{public_path.stem}.{old_id}{public_path.suffix}"), kept or b"")
            replace_file(public_path, public_pem)
    except (OSError, AuditBroken) as error:
        raise StoreUnavailable(f"the key of the audit cannot be used: {error}") from error
    return Signer(key), pem is None


def read_public_keys(paths: Iterable[Path]) -> dict[str, Ed25519PublicKey]:
    """The Ed25519 public keys in PEM files. Raises AuditBroken for what is none; OSError."""
    found: dict[str, Ed25519PublicKey] = {}
    for path in paths:
        key = public_key(path.read_bytes(), str(path))
        found[key_id(key)] = key
    return found


def public_keys_in(state: Path) -> dict[str, Ed25519PublicKey]:
    """The public keys of a state directory, those of before too. Raises AuditBroken, OSError."""
    name, ending = PUBLIC_KEY_FILE.split(".")
    return read_public_keys(sorted({*state.glob(PUBLIC_KEY_FILE), *state.glob(f"{name}.*.{ending}")}))


def public_key(pem: bytes, where: str) -> Ed25519PublicKey:
    """The key in a PEM text. Raises AuditBroken naming *where*."""
    try:
        key = serialization.load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise AuditBroken(f"{where} is no public key in PEM: {error}") from error
    if not isinstance(key, Ed25519PublicKey):
        raise AuditBroken(f"{where} holds no Ed25519 key")
    return key


def key_id(key: Ed25519PublicKey) -> str:
    """A short name of a key: the first 16 digits of its SHA-256."""
    raw = key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    return hashlib.sha256(raw).hexdigest()[:16]


def to_pem(key: Ed25519PublicKey) -> bytes:
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def check_signature(checkpoint: Checkpoint, keys: Keys) -> None:
    """Raises AuditBroken unless one of *keys* signed exactly this."""
    named = f"the checkpoint of row {checkpoint.seq}, {checkpoint.ts},"
    key = keys.get(checkpoint.key_id)
    if key is None:
        known = ", ".join(sorted(keys)) or "none"
        raise AuditBroken(f"{named} is signed with the key {checkpoint.key_id}; known keys: {known}")
    try:
        key.verify(base64.b64decode(checkpoint.signature, validate=True), checkpoint.signed_bytes())
    except (InvalidSignature, binascii.Error, ValueError) as error:
        raise AuditBroken(f"{named} was changed: its signature does not fit") from error


def _private_key(pem: bytes, path: Path) -> Ed25519PrivateKey:
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise AuditBroken(f"{path} is no private key in PEM without a passphrase: {error}") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise AuditBroken(f"{path} holds no Ed25519 key")
    return key


def _private_pem(key: Ed25519PrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


# -- the file -------------------------------------------------------------------------------------


def read_checkpoints(path: Path) -> list[Checkpoint]:
    """All checkpoints of a file, oldest first. Raises AuditBroken naming the line, OSError.

    A last line without its end is left out: its writer was stopped in the middle, and had not told anybody of it.
    """
    whole, _, _torn = path.read_bytes().rpartition(b"\n")
    found = []
    for number, line in enumerate(whole.split(b"\n") if whole else (), 1):
        try:
            found.append(from_json(json.loads(line)))
        except (ValueError, AuditBroken) as error:
            raise AuditBroken(f"{path}, line {number}: {error}") from error
    return found


def append(path: Path, checkpoint: Checkpoint) -> None:
    """Add a line, on the disk when this returns; a torn line that a crash left at the end is cut off first.

    The file is opened anew each time, so it may be moved away at any time. Raises OSError; the file is then as before,
    but for a torn end.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    is_new = not path.exists()
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        end = _end_of_whole_lines(descriptor)
        os.ftruncate(descriptor, end)
        line = json.dumps(checkpoint.to_json(), ensure_ascii=False).encode() + b"\n"
        try:
            written = 0
            while written < len(line):  # a full disk may take a part of it
                written += os.pwrite(descriptor, line[written:], end + written)
            os.fsync(descriptor)
        except OSError:
            os.ftruncate(descriptor, end)
            raise
    finally:
        os.close(descriptor)
    if is_new:
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def _end_of_whole_lines(descriptor: int) -> int:
    """The offset after the last line end."""
    end = os.fstat(descriptor).st_size
    while end:
        start = max(0, end - 4096)
        found = os.pread(descriptor, end - start, start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0
