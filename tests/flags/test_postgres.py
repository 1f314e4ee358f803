"""The PostgreSQL store where it is more than a store: its tables, its outages, its rights; against a real server."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from gateway.errors import AuditBroken, InvalidSetting, StoreUnavailable
from gateway.flags import store as writes
from gateway.flags.audit import SYSTEM
from gateway.flags.document import FlagDocument, parse_flag
from gateway.flags.postgres import PostgresStore
from tests.gate import Gate
from tests.live import eventually
from tests.postgres import PASSWORD, PASSWORD_IN_URL, PostgresServer, database_of


def put(store: PostgresStore, step: int = 0) -> FlagDocument:
    plain: dict[str, Any] = {"state": "ENABLED", "variants": {"a": "1"}, "defaultVariant": "a"}
    flag = parse_flag("iris.route", {**plain, "metadata": {"step": step}})
    return writes.put(store, flag.key, flag, expected_revision=None, author=SYSTEM, verb="put", reason="because")


def is_back(store: PostgresStore) -> bool:
    try:
        return store.load() is not None
    except StoreUnavailable:
        return False


@pytest.fixture
def store(database: str) -> Iterator[PostgresStore]:
    with contextlib.closing(PostgresStore(database)) as opened:
        yield opened


@pytest.fixture
def gate(postgres: PostgresServer) -> Iterator[Gate]:
    with Gate(postgres.port) as opened:
        yield opened


@pytest.fixture
def behind(postgres: PostgresServer, gate: Gate, database: str) -> Iterator[PostgresStore]:
    """A store that reaches the database through the gate."""
    with contextlib.closing(PostgresStore(postgres.patient_url(database_of(database), port=gate.port))) as opened:
        yield opened


# -- tables and rights -----------------------------------------------------------------------------


def test_of_many_first_users_at_once_one_makes_the_tables(database: str) -> None:
    start = threading.Barrier(4)
    documents: list[FlagDocument] = []

    def use(step: int) -> None:
        with contextlib.closing(PostgresStore(database)) as mine:
            start.wait()
            documents.append(put(mine, step))

    threads = [threading.Thread(target=use, args=(step,)) for step in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(document.revision for document in documents) == [1, 2, 3, 4]
    with contextlib.closing(PostgresStore(database)) as store:
        assert writes.verify_trail(store).seq == 4


def test_tables_of_a_newer_gateway_are_left_alone(store: PostgresStore, postgres: PostgresServer) -> None:
    put(store)
    store.close()
    postgres.execute(database_of(store.shown), "UPDATE sluicegate.version SET schema = 9")
    with pytest.raises(StoreUnavailable, match="schema 9"):
        store.load()


def test_a_database_that_cannot_hold_any_text_is_refused(postgres: PostgresServer) -> None:
    postgres.execute("postgres", "CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")
    with (
        contextlib.closing(PostgresStore(postgres.url("latin"))) as store,
        pytest.raises(StoreUnavailable, match="ENCODING 'UTF8'"),
    ):
        store.load()


@pytest.mark.parametrize(
    "statement",
    ["DELETE FROM sluicegate.audit", "UPDATE sluicegate.audit SET hash = ''", "TRUNCATE sluicegate.audit"],
)
def test_audit_rows_cannot_be_changed_by_accident(
    store: PostgresStore, postgres: PostgresServer, statement: str
) -> None:
    put(store)
    with pytest.raises(psycopg.errors.RaiseException, match="never changed or deleted"):
        postgres.execute(database_of(store.shown), "SET session_replication_role = replica", statement)
    assert writes.verify_trail(store).seq == 1


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE sluicegate.audit SET body = replace(body, 'because', 'whim') WHERE seq = 2",
        "UPDATE sluicegate.audit SET target = 'wine.route' WHERE seq = 2",
        "DELETE FROM sluicegate.audit WHERE seq = 2",
        "DELETE FROM sluicegate.audit WHERE seq = 3",
        "UPDATE sluicegate.document SET body = replace(body, '\"ENABLED\"', '\"DISABLED\"')",
        "DELETE FROM sluicegate.document",
    ],
)
def test_verify_finds_what_was_done_behind_the_gateways_back(
    store: PostgresStore, postgres: PostgresServer, statement: str
) -> None:
    for step in range(3):
        put(store, step)
    assert writes.verify_trail(store).seq == 3
    off = "ALTER TABLE sluicegate.audit DISABLE TRIGGER ALL"
    postgres.execute(database_of(store.shown), off, statement)
    with pytest.raises(AuditBroken):
        writes.verify_trail(store)


def test_a_user_without_rights_is_told_of_them(store: PostgresStore, postgres: PostgresServer) -> None:
    put(store)
    name = database_of(store.shown)
    postgres.execute(name, "CREATE ROLE stranger LOGIN PASSWORD 'x'")
    with (
        contextlib.closing(PostgresStore(postgres.url(name, user="stranger", password="x"))) as other,
        pytest.raises(StoreUnavailable, match="grant the rights"),
    ):
        other.load()
    with contextlib.closing(PostgresStore(postgres.url(name, user="stranger", password="wrong-one"))) as other:
        with pytest.raises(StoreUnavailable, match=r"flags\.store") as refused:
            other.load()
        assert "wrong-one" not in str(refused.value)


@pytest.mark.parametrize(
    "url", ["postgresql://ada:hid/den@h/d", "postgresql://ada:hidden@h:port/d?a=b", "postgresql://h/d?x"]
)
def test_a_url_that_cannot_be_read_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(InvalidSetting, match=r"flags\.store") as refused:
        PostgresStore(url)
    assert "hid" not in str(refused.value)
    assert "den" not in str(refused.value)


# -- outages ---------------------------------------------------------------------------------------


def test_a_connection_that_ended_while_idle_is_nobodys_trouble(store: PostgresStore, postgres: PostgresServer) -> None:
    assert put(store, 1).revision == 1
    ours = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{}' AND pid <> pg_backend_pid()"
    for revision in (2, 3):
        postgres.execute("postgres", ours.format(database_of(store.shown)))
        assert put(store, revision).revision == revision
    postgres.execute("postgres", ours.format(database_of(store.shown)))
    assert store.load() is not None


def test_an_outage_is_told_without_the_password_and_is_over_when_the_server_is_back(
    behind: PostgresStore, gate: Gate
) -> None:
    put(behind, 1)
    gate.close()
    for _ in range(2):
        with pytest.raises(StoreUnavailable, match="see that the server runs") as refused:
            put(behind, 2)
        assert PASSWORD not in str(refused.value)
        assert PASSWORD_IN_URL not in str(refused.value)
    gate.open()
    eventually(lambda: is_back(behind), "the store is used again")
    assert put(behind, 3).revision == 2
    assert writes.verify_trail(behind).seq == 2


def test_a_server_that_falls_silent_costs_a_call_its_deadline_and_the_next_ones_nothing(
    behind: PostgresStore, gate: Gate
) -> None:
    put(behind, 1)
    gate.freeze()
    refused: list[StoreUnavailable] = []

    def load() -> None:
        try:
            behind.load()
        except StoreUnavailable as error:
            refused.append(error)

    # Each would take its seconds, one after the other, if it had to find out for itself: more than a test may.
    threads = [threading.Thread(target=load) for _ in range(100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for _ in range(100):
        load()
    assert len(refused) == 200
    gate.thaw()
    eventually(lambda: is_back(behind), "the store is used again")


def test_a_change_whose_commit_was_not_answered_is_not_acknowledged_and_not_repeated(
    behind: PostgresStore, gate: Gate
) -> None:
    put(behind, 1)
    gate.freeze_at(b"COMMIT")
    with pytest.raises(StoreUnavailable, match="written or not"):
        put(behind, 2)
    gate.thaw()
    eventually(lambda: is_back(behind), "the store is used again")
    document = behind.load()
    assert document is not None
    assert (document.revision, document.flags["iris.route"].metadata["step"]) == (2, 2), "the server had heard it"
    assert writes.verify_trail(behind).seq == 2


def test_a_writer_that_does_not_come_to_an_end_is_told_of_and_keeps_no_reader_waiting(
    store: PostgresStore, database: str
) -> None:
    put(store, 1)
    with psycopg.connect(database) as other:
        other.execute("UPDATE sluicegate.version SET commits = commits")
        with pytest.raises(StoreUnavailable, match="another control is writing"):
            put(store, 2)
        assert store.load() is not None, "readers do not wait for it"
        other.rollback()
    assert put(store, 3).revision == 2


def test_a_write_is_on_disk_also_where_the_server_would_rather_not_wait(
    database: str, postgres: PostgresServer
) -> None:
    name = database_of(database)
    postgres.execute(name, f"ALTER DATABASE {name} SET synchronous_commit = off")
    postgres.execute(name, f"ALTER DATABASE {name} SET default_transaction_isolation = 'serializable'")
    with contextlib.closing(PostgresStore(database)) as store:
        put(store)
        with psycopg.connect(database, autocommit=True) as other:
            other.execute("SELECT pg_stat_clear_snapshot()")
            lsn = other.execute("SELECT pg_current_wal_flush_lsn() = pg_current_wal_insert_lsn()").fetchone()
        assert lsn == (True,)


# -- workers ---------------------------------------------------------------------------------------


def test_the_age_of_a_status_is_what_it_was_on_its_host_and_what_has_passed_in_the_database(
    store: PostgresStore, postgres: PostgresServer
) -> None:
    assert store.statuses() == ([], 0.0)
    insert = (
        "INSERT INTO sluicegate.worker_status"
        " SELECT host, 'b', slot, '{\"slot\": ' || slot || '}', age, clock_timestamp() - make_interval(secs => since)"
        " FROM (VALUES ('west', 1, 0.5, 0), ('east', 0, 0.5, 10), ('east', 1, 0, -5), ('gone', 0, 0, 100))"
        " AS v (host, slot, age, since)"
    )
    postgres.execute(database_of(store.shown), insert)
    found, since_s = store.statuses()
    assert since_s < 60
    assert [(status.host, status.document["slot"], int(status.age_s)) for status in found] == [
        ("east", 0, 10),
        ("east", 1, 0),  # the clock was set back meanwhile
        ("west", 1, 0),
    ]


def test_a_table_of_workers_that_a_crash_has_emptied_says_so(store: PostgresStore, postgres: PostgresServer) -> None:
    store.statuses()
    eventually(lambda: store.statuses()[1] > 0.2, "it is filled for a while")
    postgres.execute(database_of(store.shown), "TRUNCATE sluicegate.worker_status")
    assert store.statuses() == ([], 0.0)
    assert store.statuses()[1] < 0.2
