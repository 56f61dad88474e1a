"""The record of a study in a PostgreSQL database, which many machines share: one of them walks, the others are given orders.

Everything is in the namespace ``equipoise`` of the database: ``studies``, ``records`` as SQLite holds them, ``blobs`` by hash
for all studies together, and ``orders`` (see `orders`). The walker holds an advisory lock, which the server gives back when its
connection ends, and each of its commits checks its *epoch*: one that lost its place to another, unnoticed, writes nothing more.
A broken connection is made again, for up to `PATIENCE_S`; every transaction here may be run twice.
"""

from __future__ import annotations

import os
import random
import secrets
import shutil
import socket
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

from equipoise.errors import InputError, StoreError, missing_extra, must_be
from equipoise.study.files import Files, checked_name, full, make_rooms
from equipoise.study.place import address_in, keep
from equipoise.study.store import SCHEMA, Row, Store

try:
    import psycopg
except ImportError as error:
    raise missing_extra("psycopg", "postgres") from error

T = TypeVar("T")
Db = psycopg.Connection[tuple[Any, ...]]
PATIENCE_S = 60.0
"""How long a server that was reached once is tried for again."""
LONGEST_S = 2.0
"""Most seconds between two tries."""
_WATCHED: dict[str, Any] = {"connect_timeout": 10, "keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3}
_WATCHED["tcp_user_timeout"] = 25_000  # ms: while something sent is not acknowledged, no keepalive is sent
_MAKING = 0x45515550  # "EQUP": lock under which the tables are made
_TABLES = """
CREATE SCHEMA IF NOT EXISTS equipoise;
CREATE TABLE IF NOT EXISTS equipoise.meta (schema int NOT NULL);
CREATE TABLE IF NOT EXISTS equipoise.studies (
    name text PRIMARY KEY, epoch bigint NOT NULL DEFAULT 0, walker text NOT NULL DEFAULT '',
    walking bool NOT NULL DEFAULT false, recipe text NOT NULL DEFAULT '', begun timestamptz NOT NULL DEFAULT clock_timestamp());
CREATE TABLE IF NOT EXISTS equipoise.records (
    study text NOT NULL REFERENCES equipoise.studies ON DELETE CASCADE, seq bigint NOT NULL, kind text NOT NULL,
    key text NOT NULL, data text NOT NULL, sha256 text NOT NULL, seconds float8 NOT NULL,
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (study, seq), UNIQUE (study, kind, key));
CREATE TABLE IF NOT EXISTS equipoise.blobs (
    sha256 text PRIMARY KEY, data bytea NOT NULL, at timestamptz NOT NULL DEFAULT clock_timestamp());
CREATE TABLE IF NOT EXISTS equipoise.orders (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, study text NOT NULL REFERENCES equipoise.studies ON DELETE CASCADE,
    kind text NOT NULL, key text NOT NULL, args text NOT NULL, expected_s float8 NOT NULL,
    worker text NOT NULL DEFAULT '', epoch bigint NOT NULL DEFAULT 0, tries int NOT NULL DEFAULT 0, until timestamptz,
    died text NOT NULL DEFAULT '', result text, UNIQUE (study, kind, key));
CREATE INDEX IF NOT EXISTS orders_open ON equipoise.orders (study, id) WHERE result IS NULL;
"""
_END_OLD = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name=%s AND pid<>pg_backend_pid()"""
_WALKER = """
SELECT walker FROM equipoise.studies WHERE name=%s AND EXISTS (
    SELECT 1 FROM pg_locks WHERE locktype='advisory' AND (classid::bigint << 32) | objid::bigint = hashtextextended(%s, 0))"""
_SELECT = "SELECT kind, key, data, sha256 FROM equipoise.records WHERE study=%s AND kind=%s"


class Connection:
    """A connection to one database, made when it is first needed and again when it breaks.

    Args:
        address: As libpq reads it, ``#NAME`` left out or not.
        patience_s: How long a server that was never reached is tried for.

    Attributes:
        on_connect: Called with each new connection before it is used.
    """

    def __init__(
        self,
        address: str,
        *,
        readonly: bool = False,
        patience_s: float = 0.0,
    ) -> None:
        self.address = address.partition("#")[0]
        self._readonly, self._patience_s = readonly, patience_s
        self.on_connect: Callable[[Db], None] = lambda _: None
        self._name = f"equipoise {secrets.token_hex(8)}"
        self._random = random.Random(self._name)
        self._db: Db | None = None

    def run(self, work: Callable[[Db], T]) -> T:
        """Do `work` in a transaction and return what it returns; where the connection breaks, do it again on another.

        Raises:
            StoreError: The server refuses, or could not be reached in time.
        """
        until = time.monotonic() + self._patience_s
        wait = 0.05
        while True:
            try:
                db = self._connected()
                with db.transaction():
                    return work(db)
            except (psycopg.OperationalError, psycopg.InterfaceError) as error:
                self.close()
                if isinstance(error, psycopg.errors.DiskFull):
                    raise full(self.address, error) from error
                if time.monotonic() > until:
                    said = " ".join(str(error).split())
                    remedy = "Check the address, PGPASSWORD or ~/.pgpass, and that the server runs; the same command goes on."
                    raise StoreError(f"cannot reach the database {self.address}: {said}. {remedy}") from error
                time.sleep(wait * self._random.uniform(0.5, 1.0))
                wait = min(LONGEST_S, 2 * wait)
            except psycopg.Error as error:
                raise StoreError(f"the database {self.address} refused: {' '.join(str(error).split())}") from error

    def close(self) -> None:
        """Close the connection; `run` makes another."""
        if self._db is not None:
            self._db.close()
        self._db = None

    def _connected(self) -> Db:
        if self._db is None or self._db.closed:
            db = psycopg.connect(self.address, autocommit=True, application_name=self._name, **_WATCHED)
            try:
                if self._readonly:
                    db.execute("SET default_transaction_read_only = on")
                else:  # what the server still holds of a connection that broke, its locks included, is ended
                    db.execute(_END_OLD, (self._name,))
                self.on_connect(db)
            except BaseException:
                db.close()
                raise
            self._db, self._patience_s = db, PATIENCE_S
        return self._db


class DatabaseFiles(Files):
    """Blobs in the database, checkpoints in the folder of this machine."""

    def __init__(self, path: Path, connection: Connection) -> None:
        super().__init__(path)
        self._connection = connection

    def blob(self, data: bytes) -> str:
        """See `Files.blob`."""
        sha = sha256(data).hexdigest()
        known = self._connection.run(lambda db: db.execute("SELECT 1 FROM equipoise.blobs WHERE sha256=%s", (sha,)).fetchone())
        if known is None:
            insert = "INSERT INTO equipoise.blobs (sha256, data) VALUES (%s, %s) ON CONFLICT DO NOTHING"
            self._connection.run(lambda db: db.execute(insert, (sha, data)))
        return sha

    def read_blob(self, sha: str) -> bytes:
        """See `Files.read_blob`."""
        query = "SELECT data FROM equipoise.blobs WHERE sha256=%s"
        row = self._connection.run(lambda db: db.execute(query, (checked_name(sha),), binary=True).fetchone())
        place = self._connection.address
        if row is None:
            raise StoreError(f"the study is damaged: blob {sha} is missing in {place}. Restore it, or use another --store.")
        data = bytes(row[0])
        if sha256(data).hexdigest() != sha:
            raise StoreError(f"blob {sha} of {place} is damaged (its hash differs). Restore it, or use another --store.")
        return data

    def held(self) -> dict[str, int]:
        """See `Files.held`; of a database, the blobs that only this study names."""
        said = """
            SELECT sha256, length(data) FROM equipoise.blobs b WHERE EXISTS (
                SELECT 1 FROM equipoise.records WHERE study=%s AND position(b.sha256 IN data) > 0)
            AND NOT EXISTS (SELECT 1 FROM equipoise.records WHERE study<>%s AND position(b.sha256 IN data) > 0)
            ORDER BY sha256"""
        study = address_in(self.path).partition("#")[2]
        return dict(self._connection.run(lambda db: db.execute(said, (study, study)).fetchall()))

    def free(self, shas: Iterable[str]) -> None:
        """See `Files.free`."""
        said = "DELETE FROM equipoise.blobs WHERE sha256 = ANY(%s)"
        self._connection.run(lambda db: db.execute(said, ([checked_name(sha) for sha in shas],)))


class PostgresStore(Store):
    """The record of a study in a database; see `Store`."""

    def __init__(self, folder: Path, address: str, *, readonly: bool) -> None:
        self.path, self.name, self.address, self.readonly = folder, address, address, readonly
        self.study = address.partition("#")[2]
        self.connection = Connection(address, readonly=readonly)
        self.files = DatabaseFiles(folder, self.connection)
        self.epoch = 0

    @classmethod
    def opened(cls, folder: Path, address: str, *, create: bool, readonly: bool) -> PostgresStore:
        """Open the study that a checked folder names, see `Store.open`."""
        store = cls(folder, address, readonly=readonly)
        try:
            prepare(store.connection, create=create and not readonly)
            if create and not readonly:
                insert = "INSERT INTO equipoise.studies (name) VALUES (%s) ON CONFLICT DO NOTHING"
                store.connection.run(lambda db: db.execute(insert, (store.study,)))
            query = "SELECT epoch FROM equipoise.studies WHERE name=%s"
            if store.connection.run(lambda db: db.execute(query, (store.study,)).fetchone()) is None:
                raise must_be("store", "a study that has begun", address, "`equipoise studies` lists those of the database.")
            keep(folder, address)
            if not readonly:
                store._begin()
                make_rooms(folder)
        except BaseException:
            store.connection.close()
            raise
        return store

    def close(self) -> None:
        """See `Store.close`."""
        if self.epoch:
            done = "UPDATE equipoise.studies SET walking=false WHERE name=%s AND epoch=%s"
            with suppress(StoreError):  # out of reach: the next walker begins a new epoch
                self.connection.run(lambda db: db.execute(done, (self.study, self.epoch)))
        self.connection.close()

    def forget(self) -> None:
        """See `Store.forget`; blobs stay, as other studies may hold them."""
        self.connection.run(lambda db: db.execute("DELETE FROM equipoise.studies WHERE name=%s", (self.study,)))
        self.close()
        shutil.rmtree(self.path)

    def walker(self) -> str:
        """See `Store.walker`."""
        row = self.connection.run(lambda db: db.execute(_WALKER, (self.study, f"equipoise {self.study}")).fetchone())
        return row[0] if row else ""

    def _begin(self) -> None:
        """Take the walker's place: the lock, then a new epoch, by which what an earlier walker still writes is refused."""
        take = "UPDATE equipoise.studies SET epoch=epoch+1, walker=%s, walking=true WHERE name=%s RETURNING epoch"
        who = f"{socket.gethostname()}, process {os.getpid()}"
        self.connection.run(self._lock)
        self.connection.on_connect = self._lock
        row = self.connection.run(lambda db: db.execute(take, (who, self.study)).fetchone())
        assert row is not None, "the study was found or made before"
        self.epoch = row[0]

    def _lock(self, db: Db) -> None:
        """Take the lock of the study on this connection."""
        query = "SELECT pg_try_advisory_lock(hashtextextended(%s, 0))"
        if db.execute(query, (f"equipoise {self.study}",)).fetchone() != (True,):
            row = db.execute("SELECT walker FROM equipoise.studies WHERE name=%s", (self.study,)).fetchone()
            owner = row[0] if row and row[0] else "another process"
            raise StoreError(f"the study {self.name} is in use by {owner}. Wait for it, stop it, or give another name.")

    def _one(self, kind: str, key: str) -> Row | None:
        row: Any = self.connection.run(lambda db: db.execute(f"{_SELECT} AND key=%s", (self.study, kind, key)).fetchone())
        return row  # type: ignore[no-any-return]

    def _every(self, kind: str) -> list[Row]:
        rows: Any = self.connection.run(lambda db: db.execute(f"{_SELECT} ORDER BY seq", (self.study, kind)).fetchall())
        return rows  # type: ignore[no-any-return]

    def count(self, kind: str) -> int:
        """See `Store.count`."""
        query = "SELECT COUNT(*) FROM equipoise.records WHERE study=%s AND kind=%s"
        row = self.connection.run(lambda db: db.execute(query, (self.study, kind)).fetchone())
        return int(row[0]) if row else 0

    def _add(self, row: Row, seconds: float) -> str:
        kind, key, text, sha = row

        def add(db: Db) -> str:
            held = db.execute("SELECT epoch FROM equipoise.studies WHERE name=%s FOR UPDATE", (self.study,)).fetchone()
            if held != (self.epoch,):
                raise StoreError(f"the study {self.name} was taken over by another process. Stop this one; nothing is lost.")
            found = db.execute(f"{_SELECT} AND key=%s", (self.study, kind, key)).fetchone()
            if found is not None:
                stands: str = found[2]
                return stands
            db.execute(
                "INSERT INTO equipoise.records (study, seq, kind, key, data, sha256, seconds) "
                "SELECT %s, COALESCE(MAX(seq), 0) + 1, %s, %s, %s, %s, %s FROM equipoise.records WHERE study=%s",
                (self.study, kind, key, text, sha, seconds, self.study),
            )
            return text

        return self.connection.run(add)

    def spent(self) -> float:
        """See `Store.spent`."""
        query = "SELECT COALESCE(SUM(seconds), 0.0) FROM equipoise.records WHERE study=%s"
        row = self.connection.run(lambda db: db.execute(query, (self.study,)).fetchone())
        return float(row[0]) if row else 0.0


def begun(address: str) -> bool:
    """Whether a database holds the study of an address."""
    connection = Connection(address, readonly=True)
    query = "SELECT 1 FROM equipoise.studies WHERE name=%s"

    def look(db: Db) -> bool:
        there = db.execute("SELECT to_regclass('equipoise.studies')").fetchone() != (None,)
        return there and db.execute(query, (address.partition("#")[2],)).fetchone() is not None

    try:
        return connection.run(look)
    finally:
        connection.close()


def names(address: str) -> list[str]:
    """Return the names of the studies of a database, in order."""
    connection = Connection(address, readonly=True)
    try:
        prepare(connection, create=False)
        rows = connection.run(lambda db: db.execute("SELECT name FROM equipoise.studies ORDER BY name").fetchall())
    finally:
        connection.close()
    return [name for (name,) in rows]


def prepare(connection: Connection, *, create: bool) -> None:
    """Check that a database holds studies of this version; with `create`, make its tables where they are missing.

    Raises:
        InputError: It holds none.
        StoreError: They are of another version.
    """

    def look(db: Db) -> tuple[Any, ...] | None:
        if db.execute("SELECT to_regclass('equipoise.meta')").fetchone() == (None,):
            if not create:
                return None
            db.execute("SELECT pg_advisory_xact_lock(%s)", (_MAKING,))
            db.execute(_TABLES)
            db.execute("INSERT INTO equipoise.meta SELECT %s WHERE NOT EXISTS (SELECT 1 FROM equipoise.meta)", (SCHEMA,))
        return db.execute("SELECT schema FROM equipoise.meta").fetchone()

    found = connection.run(look)
    if found is None:
        raise InputError(f"store must be a database that holds studies; got {connection.address}. None was begun there.")
    if found[0] != SCHEMA:
        which = "a newer" if found[0] > SCHEMA else "an earlier"
        said = f"{connection.address} was written by {which} Equipoise (schema {found[0]}, here {SCHEMA})"
        raise StoreError(f"{said}. Use the same version on every machine, or another database.")
