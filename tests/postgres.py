"""A real PostgreSQL server for the tests: Debian's, in a directory of its own, started once per session."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path
from typing import Literal

import psycopg
import pytest

USER = "sluicegate"
PASSWORD = "s3cret/of the:tests"  # what a URL must spell %2F, %20 and %3A
PASSWORD_IN_URL = "s3cret%2Fof%20the%3Atests"
INSTALL_IT = "PostgreSQL is not installed; on Debian: apt-get install postgresql"
# It is killed, but the machine is not: what the kernel has is as good as on disk.
_OPTIONS = {
    "fsync": "off",
    "listen_addresses": "127.0.0.1",
    "shared_buffers": "16MB",
    "max_connections": "60",
    "max_wal_senders": "0",
    "wal_level": "minimal",
}


def programs() -> Path | None:
    """Where initdb and pg_ctl of the newest version are; None if they are not installed."""
    found = Path("/usr/lib/postgresql").glob("*/bin/pg_ctl")
    newest = max(found, key=lambda path: int(re.sub(r"\D", "", path.parent.parent.name)), default=None)
    return None if newest is None else newest.parent


def require() -> Path:
    """The same, or the test is skipped; where everything is built (CI is set) that is a failure."""
    found = programs()
    if found is None:
        if os.environ.get("CI"):
            pytest.fail(INSTALL_IT)
        pytest.skip(INSTALL_IT)
    return found


def database_of(url: str) -> str:
    """The name of the database that an address ends in."""
    return url.rpartition("/")[2].partition("?")[0]


class PostgresServer:
    """One server on a free port, with a user that must give a password. It refuses to run as root, so that root has it
    run as the user that Debian's package made."""

    def __init__(self, bin_dir: Path) -> None:
        self._bin_dir = bin_dir
        self._root = Path(tempfile.mkdtemp(prefix="sluicegate-postgres-"))  # pytest's own directories are root's alone
        self._data_dir = self._root / "cluster"
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]
        self._databases = 0
        if os.geteuid() == 0:
            shutil.chown(self._root, "postgres", "postgres")
        password_file = self._root / "password"
        password_file.write_text(PASSWORD)
        password_file.chmod(0o644)
        self._run("initdb", "-U", USER, "-A", "scram-sha-256", f"--pwfile={password_file}", "-E", "UTF8", "--no-sync")

    def _run(self, program: str, *arguments: str) -> None:
        command = [str(self._bin_dir / program), "-D", str(self._data_dir), *arguments]
        if os.geteuid() == 0:
            command = ["runuser", "-u", "postgres", "--", *command]
        done = subprocess.run(command, capture_output=True, text=True, cwd=self._root, timeout=60)
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}{self.log}"

    @property
    def log(self) -> str:
        path = self._root / "server.log"
        return path.read_text() if path.exists() else ""

    def start(self) -> None:
        """Start it and wait until it takes connections."""
        options = {**_OPTIONS, "port": str(self.port), "unix_socket_directories": str(self._root)}
        said = " ".join(f"-c {name}={value}" for name, value in options.items())
        self._run("pg_ctl", "start", "-w", "-t", "30", "-l", str(self._root / "server.log"), "-o", said)

    def stop(self, mode: Literal["fast", "immediate"] = "fast") -> None:
        """Stop it: fast ends all connections in order, immediate is what a crash does."""
        self._run("pg_ctl", "stop", "-w", "-t", "30", "-m", mode)

    def remove(self) -> None:
        shutil.rmtree(self._root, ignore_errors=True)

    def url(self, database: str, *, port: int | None = None, user: str = USER, password: str = PASSWORD_IN_URL) -> str:
        """The address of a database. port: of what stands in front of the server."""
        return f"postgresql://{user}:{password}@127.0.0.1:{port or self.port}/{database}"

    def patient_url(self, database: str, *, port: int | None = None) -> str:
        """The same for tests that are about something else than time: the machine may be very busy."""
        return f"{self.url(database, port=port)}?connect_timeout=15"

    def new_database(self) -> str:
        """Make an empty database and return its name."""
        self._databases += 1
        name = f"test_{self._databases}"
        self.execute("postgres", f"CREATE DATABASE {name}")
        return name

    def execute(self, database: str, *statements: str) -> None:
        """Run statements as the owner."""
        with psycopg.connect(self.patient_url(database), autocommit=True) as connection:
            for statement in statements:
                connection.execute(statement.encode())
