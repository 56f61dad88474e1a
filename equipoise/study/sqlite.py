"""The record of a study in its own folder: SQLite, with the rollback journal and ``synchronous=FULL``.

The folder holds ``study.db``, ``blobs/<sha256>`` (model files), ``scratch/`` and ``lock``. It must be of a local file system.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import sqlite3
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from equipoise.errors import StoreError, must_be
from equipoise.study.files import Files, failing, full, make_folder, make_rooms, told
from equipoise.study.store import SCHEMA, Row, Store

_APPLICATION_ID = 0x45515550  # "EQUP"
_TABLE = """
CREATE TABLE records (
    seq INTEGER PRIMARY KEY, kind TEXT NOT NULL, key TEXT NOT NULL, data TEXT NOT NULL, sha256 TEXT NOT NULL,
    seconds REAL NOT NULL, at REAL NOT NULL, UNIQUE (kind, key)
)"""
_SELECT = "SELECT kind, key, data, sha256 FROM records"
_INSERT = """
INSERT INTO records SELECT COALESCE(MAX(seq), 0) + 1, ?, ?, ?, ?, ?, ? FROM records"""


class SqliteStore(Store):
    """The record of a study in its own folder; see `Store`."""

    def __init__(self, path: Path, db: sqlite3.Connection, lock: int | None) -> None:
        self.path, self.name, self.files = path, str(path), Files(path)
        self.readonly = lock is None
        self._db = db
        self._failed: sqlite3.Error | None = None
        self._release = weakref.finalize(self, os.close, lock) if lock is not None else None
        if self._release is not None:
            _drop_in_forks(self._release)

    @classmethod
    def opened(cls, folder: Path, *, readonly: bool) -> SqliteStore:
        """Open the study in a folder that was checked, see `Store.open`."""
        lock: int | None = None
        try:
            with _told(folder, "open"):
                if not readonly:
                    make_folder(folder)
                    lock = _lock(folder / "lock")
                db = _connect(folder, readonly=readonly)
                if not readonly:
                    make_rooms(folder)
        except BaseException:
            if lock is not None:
                os.close(lock)
            raise
        return cls(folder, db, lock)

    def close(self) -> None:
        """See `Store.close`."""
        self._db.close()
        if self._release is not None and self._release.alive:
            with contextlib.suppress(OSError):
                (self.path / "lock").write_text("")  # nobody walks it
            self._release()

    def walker(self) -> str:
        """See `Store.walker`."""
        with _told(self.path, "read"):
            owner = (self.path / "lock").read_text().strip() if (self.path / "lock").is_file() else ""
        return f"process {owner}" if owner.isdigit() and _lives(int(owner)) else ""

    def forget(self) -> None:
        """See `Store.forget`."""
        self.close()
        shutil.rmtree(self.path)

    def _one(self, kind: str, key: str) -> Row | None:
        with _told(self.path, "read"):
            row: Row | None = self._db.execute(f"{_SELECT} WHERE kind=? AND key=?", (kind, key)).fetchone()
        return row

    def _every(self, kind: str) -> list[Row]:
        with _told(self.path, "read"):
            return self._db.execute(f"{_SELECT} WHERE kind=? ORDER BY seq", (kind,)).fetchall()

    def count(self, kind: str) -> int:
        """See `Store.count`."""
        with _told(self.path, "read"):
            return int(self._db.execute("SELECT COUNT(*) FROM records WHERE kind=?", (kind,)).fetchone()[0])

    def _add(self, row: Row, seconds: float) -> str:
        with _told(self.path, "write to"), self._once_failed(), self._transaction():
            found = self._db.execute("SELECT data FROM records WHERE kind=? AND key=?", row[:2]).fetchone()
            if found is None:
                self._db.execute(_INSERT, (*row, seconds, time.time()))
                return row[2]
            stands: str = found[0]
            return stands

    def spent(self) -> float:
        """See `Store.spent`."""
        with _told(self.path, "read"):
            return float(self._db.execute("SELECT COALESCE(SUM(seconds), 0.0) FROM records").fetchone()[0])

    @contextlib.contextmanager
    def _once_failed(self) -> Iterator[None]:
        """Write nothing more once the disk failed: what one sync dropped, a second that succeeds does not bring back."""
        if self._failed is not None:
            raise self._failed
        try:
            yield
        except sqlite3.Error as error:
            self._failed = error if _of_the_disk(error) else None
            raise

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise


def _connect(folder: Path, *, readonly: bool) -> sqlite3.Connection:
    """Open the database, roll back what a crash left, check it, and make the table in a new one."""
    # rw in both cases: a reader too must be able to roll back the journal of a killed writer
    uri = (folder / "study.db").resolve().as_uri() + ("?mode=rw" if readonly else "?mode=rwc")
    db = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=30.0)
    try:
        db.execute("PRAGMA synchronous=FULL")
        verdict = db.execute("PRAGMA integrity_check").fetchone()[0]
        if verdict != "ok":
            raise sqlite3.DatabaseError(verdict)
        if not db.execute("SELECT 1 FROM sqlite_master").fetchone():
            _make_table(db, folder, readonly=readonly)
        if db.execute("PRAGMA application_id").fetchone()[0] != _APPLICATION_ID:
            raise must_be("store", "a study folder", str(folder), "Its study.db belongs to another program.")
        schema = db.execute("PRAGMA user_version").fetchone()[0]
        if schema > SCHEMA:
            raise StoreError(f"{folder} was written by a newer Equipoise (schema {schema}, here {SCHEMA}). Upgrade equipoise.")
        if schema < SCHEMA:
            earlier = f"an earlier Equipoise (schema {schema}, here {SCHEMA}), which recorded less"
            raise StoreError(f"{folder} was written by {earlier}. Run it anew with another --store; this one stays as it is.")
        if readonly:
            db.execute("PRAGMA query_only=ON")
    except BaseException:
        db.close()
        raise
    return db


def _make_table(db: sqlite3.Connection, folder: Path, *, readonly: bool) -> None:
    if (folder / "blobs").exists():  # made only after the table: the file was emptied by someone
        raise sqlite3.DatabaseError("it is empty")
    if readonly:
        raise must_be("store", "a study that has begun", str(folder), "Wait for the run's first step.")
    db.execute("BEGIN IMMEDIATE")
    db.execute(_TABLE)
    db.execute(f"PRAGMA application_id={_APPLICATION_ID}")
    db.execute(f"PRAGMA user_version={SCHEMA}")
    db.execute("COMMIT")


def _lock(path: Path) -> int:
    """Take the study's lock, which the system gives back when its owner dies, and return its descriptor."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.read(descriptor, 32).decode(errors="replace").strip() or "unknown"
        os.close(descriptor)
        raise StoreError(
            f"the study {path.parent} is in use by process {owner}. Wait for it, stop it, or use another --store."
        ) from None
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"{os.getpid()}\n".encode())
    return descriptor


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # another user's
    return True


def _drop_in_forks(release: weakref.finalize[Any, Any]) -> None:
    """Close the lock in forked children: a worker that outlives its killed parent must not hold the study."""

    def drop() -> None:
        release()

    os.register_at_fork(after_in_child=drop)


def _of_the_disk(error: sqlite3.Error) -> bool:
    return getattr(error, "sqlite_errorname", "").startswith("SQLITE_IOERR")


@contextlib.contextmanager
def _told(folder: Path, action: str) -> Iterator[None]:
    """Turn what SQLite and the system raise into one `StoreError` with its remedy."""
    try:
        with told(folder, action):
            yield
    except sqlite3.Error as error:
        if getattr(error, "sqlite_errorname", "") == "SQLITE_FULL":
            raise full(folder, error) from error
        if _of_the_disk(error):
            raise failing(folder, error) from error
        if isinstance(error, sqlite3.OperationalError):
            raise StoreError(f"cannot {action} the study {folder}: {error}. Check the folder and its permissions.") from error
        raise StoreError(
            f"{folder / 'study.db'} is damaged: {error}. Restore the folder from a copy, or use another --store."
        ) from error
