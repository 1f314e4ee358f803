"""Whatever is done to a trail, its signed checkpoints show it; and whatever is done to them shows too."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from gateway.control.checkpoints import Checkpoint, Signer, append, from_json, open_signer, read_checkpoints
from gateway.control.trail import TrailCheck, Verified
from gateway.errors import AuditBroken, StoreUnavailable
from gateway.flags.audit import GENESIS, AuditRow, Author, Head, next_row

SIGNER = Signer(Ed25519PrivateKey.generate())
KEYS = {SIGNER.key_id: SIGNER.public_key}
ROWS = 12
ADA = Author("ada", token_id="t1", ip="127.0.0.1", request_id="r1")


def chain(length: int, *, reason: str = "step") -> list[AuditRow]:
    rows: list[AuditRow] = []
    head = GENESIS
    for i in range(length):
        row = next_row(
            head,
            ADA,
            now_s=1_800_000_000.0 + i,
            verb="flag.put",
            target="iris.route",
            revision=i + 1,
            before={"weight": i},
            after={"weight": i + 1},
            reason=f"{reason} {i}",
        )
        rows.append(row)
        head = Head(row.seq, row.hash)
    return rows


def signed(rows: list[AuditRow], *seqs: int) -> list[Checkpoint]:
    return [
        SIGNER.sign(Head(seq, rows[seq - 1].hash), revision=rows[seq - 1].revision, ts="2027-01-15T08:00:00.000000Z")
        for seq in seqs
    ]


def checked(rows: list[AuditRow], checkpoints: list[Checkpoint]) -> Verified:
    check = TrailCheck(checkpoints, KEYS)
    check.add(rows)
    return check.finish()


def resealed(rows: list[AuditRow]) -> list[AuditRow]:
    """The same rows as a chain of their own, as whoever knows how to hash would make it."""
    head, found = GENESIS, []
    for row in rows:
        new = dataclasses.replace(row, seq=head.seq + 1, prev=head.hash).sealed()
        found.append(new)
        head = Head(new.seq, new.hash)
    return found


GOOD = chain(ROWS)
SIGNED = signed(GOOD, 4, 8, ROWS)


def test_a_trail_that_nobody_touched_holds() -> None:
    found = checked(GOOD, SIGNED)
    assert (found.head.seq, found.checkpoints, found.newest) == (ROWS, 3, SIGNED[-1])
    assert checked([*chain(ROWS + 3)], SIGNED).newest == SIGNED[-1]  # rows that came after the last checkpoint


@st.composite
def tampered(draw: st.DrawFn) -> list[AuditRow]:
    """The good rows after one thing that somebody may do to them, with the chain computed anew or not."""
    rows = list(GOOD)
    at = draw(st.integers(0, ROWS - 1))
    kind = draw(st.sampled_from(["edit", "delete", "insert", "swap", "cut", "make anew"]))
    if kind == "edit":
        name = draw(st.sampled_from(["ts", "actor", "token_id", "ip", "request_id", "verb", "target", "reason"]))
        edited: dict[str, Any] = {name: draw(st.text().filter(lambda t: t != getattr(rows[at], name)))}
        rows[at] = dataclasses.replace(rows[at], **edited)
    elif kind == "delete":
        del rows[at]
    elif kind == "insert":
        rows.insert(at, draw(st.sampled_from([*GOOD, *chain(ROWS, reason="other")])))
    elif kind == "swap":
        other = draw(st.integers(0, ROWS - 1).filter(lambda i: i != at))
        rows[at], rows[other] = rows[other], rows[at]
    elif kind == "cut":
        del rows[at:]
    else:
        return chain(draw(st.integers(0, 2 * ROWS)), reason="other")
    if kind != "cut" and draw(st.booleans()):
        return resealed(rows)
    return rows


@given(tampered())
def test_any_edit_deletion_insertion_swap_cut_and_chain_made_anew_is_found(rows: list[AuditRow]) -> None:
    with pytest.raises(AuditBroken, match="row"):
        checked(rows, SIGNED)


def test_what_is_wrong_is_told_by_row_and_by_what_was_expected() -> None:
    rows = list(GOOD)
    rows[5] = dataclasses.replace(rows[5], reason="another")
    with pytest.raises(AuditBroken, match=f"row 6 was changed: its fields give the hash .*, it has {GOOD[5].hash}"):
        checked(rows, SIGNED)
    with pytest.raises(AuditBroken, match=f"from a row in 5 to 8: row 8 has the hash .* says {GOOD[7].hash}"):
        checked(resealed(rows), SIGNED)
    with pytest.raises(AuditBroken, match=f"rows after 9 were cut off: .* a row 12, with the hash {GOOD[11].hash}"):
        checked(GOOD[:9], SIGNED)
    with pytest.raises(AuditBroken, match="row 3 is missing: the next one is 4"):
        checked(GOOD[:2] + GOOD[3:], SIGNED)


@given(st.sampled_from([f.name for f in dataclasses.fields(Checkpoint)]), st.integers(0, 2))
def test_any_edit_of_a_checkpoint_is_found(name: str, index: int) -> None:
    checkpoints = list(SIGNED)
    old = getattr(checkpoints[index], name)
    edited: dict[str, Any] = {name: old + 1 if isinstance(old, int) else f"{old}x"}
    checkpoints[index] = dataclasses.replace(checkpoints[index], **edited)
    with pytest.raises(AuditBroken, match="checkpoint"):
        checked(GOOD, checkpoints)


def test_a_checkpoint_of_another_key_is_refused() -> None:
    other = Signer(Ed25519PrivateKey.generate())
    forged = other.sign(Head(4, GOOD[3].hash), revision=4, ts="2027-01-15T08:00:00.000000Z")
    with pytest.raises(AuditBroken, match=f"signed with the key {other.key_id}; known keys: {SIGNER.key_id}"):
        checked(GOOD, [forged])
    with pytest.raises(AuditBroken, match="its signature does not fit"):
        checked(GOOD, [dataclasses.replace(forged, key_id=SIGNER.key_id)])


def test_rows_from_the_middle_on_are_held_against_the_checkpoints_that_come() -> None:
    check = TrailCheck(SIGNED, KEYS, Head(8, GOOD[8].prev))
    check.add(GOOD[8:])
    assert check.finish().newest == SIGNED[-1]
    with pytest.raises(AuditBroken, match="row 8 has the hash"):
        TrailCheck(SIGNED, KEYS, Head(8, "0" * 64))


# -- the file and the keys --------------------------------------------------------------------------


def test_a_torn_line_at_the_end_is_cut_off_and_never_one_in_the_middle(tmp_path: Path) -> None:
    path = tmp_path / "on" / "another" / "disk.jsonl"
    append(path, SIGNED[0])
    whole = path.read_bytes()
    for torn in (b"{", whole[:-1], b"x" * 10_000):
        path.write_bytes(whole + torn)
        assert read_checkpoints(path) == SIGNED[:1]
        append(path, SIGNED[1])
        assert read_checkpoints(path) == SIGNED[:2]
        assert len(path.read_bytes().splitlines()) == 2
    path.write_bytes(whole[: len(whole) // 2])
    assert read_checkpoints(path) == []
    append(path, SIGNED[1])
    assert read_checkpoints(path) == SIGNED[1:2]
    path.write_bytes(b"nonsense\n" + whole)
    with pytest.raises(AuditBroken, match="line 1"):
        read_checkpoints(path)


def test_a_checkpoint_survives_json_and_nothing_else_is_taken_for_one() -> None:
    plain = SIGNED[0].to_json()
    assert from_json(json.loads(json.dumps(plain))) == SIGNED[0]
    changed: list[Any] = [
        {**plain, name: value} for name, value in (("more", 1), ("schema", 2), ("seq", "4"), ("seq", True))
    ]
    for wrong in (*changed, {}, [], None):
        with pytest.raises(AuditBroken, match="no checkpoint"):
            from_json(wrong)


def test_the_key_is_made_once_readable_by_its_owner_only_and_an_old_public_one_is_kept(tmp_path: Path) -> None:
    key, public = tmp_path / "audit.key", tmp_path / "audit.pub"
    first, made = open_signer(key, public)
    assert made
    assert key.stat().st_mode & 0o777 == 0o600
    again, made = open_signer(key, public)
    assert (again.key_id, made) == (first.key_id, False)
    key.unlink()
    second, made = open_signer(key, public)
    assert made
    assert second.key_id != first.key_id
    assert (tmp_path / f"audit.{first.key_id}.pub").exists()
    key.write_text("nonsense")
    with pytest.raises(StoreUnavailable, match="no private key"):
        open_signer(key, public)
