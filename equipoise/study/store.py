"""A study on disk: a durable memo of what was computed.

A road walks deterministically and takes every costly step through `Store.once`. A step whose result is already here is
not run again, so that resuming a killed run is walking the same road a second time, with hits.

The folder holds ``study.db`` (SQLite, rollback journal, ``synchronous=FULL``), ``blobs/<sha256>`` (model files), ``scratch/``
(recovery checkpoints) and ``lock``. A result is acknowledged only once it is on the disk; a killed owner never blocks the next.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import sqlite3
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from equipoise.errors import InputError, StoreError, must_be
from equipoise.records import dumps

SCHEMA = 2
"""Version of what is stored (SQLite's ``user_version``). History: 1 = first; 2 = typed records, the space in the identity."""

RESERVE_BYTES = 32_000_000
"""Free space without which no new step is begun."""

_APPLICATION_ID = 0x45515550  # "EQUP"
_OWN_NAMES = frozenset({"study.db", "study.db-journal", "blobs", "scratch", "lock"})
_TABLE = """
CREATE TABLE records (
    seq INTEGER PRIMARY KEY, kind TEXT NOT NULL, key TEXT NOT NULL, data TEXT NOT NULL, sha256 TEXT NOT NULL,
    seconds REAL NOT NULL, at REAL NOT NULL, UNIQUE (kind, key)
)"""
_INSERT = """
INSERT INTO records SELECT COALESCE(MAX(seq), 0) + 1, ?, ?, ?, ?, ?, ? FROM records"""


class Files:
    """The files of a study, blobs by hash and checkpoints: they need no lock, for what is written is whole or not there."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def blob(self, data: bytes) -> str:
        """Store bytes under their SHA-256 and return it; storing the same bytes again changes nothing."""
        sha = hashlib.sha256(data).hexdigest()
        path = self.path / "blobs" / sha
        with _told(self.path, "read"):
            kept = path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == sha
        if not kept:
            write_atomic(path, data)
        return sha

    def read_blob(self, sha: str) -> bytes:
        """Return the bytes stored under `sha`, hashed again.

        Raises:
            StoreError: Absent, or its bytes changed on the disk.
        """
        if not re.fullmatch(r"[0-9a-f]{64}", sha):
            raise StoreError(f"a blob's name must be 64 hex digits; got {sha!r}. The record that names it is damaged.")
        path = self.path / "blobs" / sha
        if not path.is_file():
            raise StoreError(
                f"the study {self.path} is damaged: its file {path} is missing. Restore it, or use another --store."
            )
        with _told(self.path, "read"):
            data = path.read_bytes()
        if hashlib.sha256(data).hexdigest() != sha:
            raise StoreError(f"the file {path} changed on the disk (its hash differs). Restore it, or use another --store.")
        return data

    def scratch(self, name: str) -> Path:
        """Return the path of a checkpoint that may vanish between runs; write it with `write_atomic`."""
        if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}", name):
            raise must_be("scratch name", "letters, digits, dot, dash or underscore", name, "Use the evaluation's digest.")
        return self.path / "scratch" / name


class Store(Files):
    """The durable record of one study; make one with `Store.open`, close it or use it in a ``with`` block.

    Limits:
        One walking process at a time, on a local file system. A step killed midway is not recorded and neither is its time.
    """

    def __init__(self, path: Path, db: sqlite3.Connection, lock: int | None) -> None:
        super().__init__(path)
        self.readonly = lock is None
        self._db = db
        self._inner_s = 0.0  # time of the steps nested in the one that is being computed
        self._release = weakref.finalize(self, os.close, lock) if lock is not None else None
        if self._release is not None:
            _drop_in_forks(self._release)

    @classmethod
    def open(cls, path: str | Path, *, create: bool = True, readonly: bool = False) -> Store:
        """Open the study in folder `path`.

        Args:
            path: The study's folder; made when absent and `create`.
            create: Whether a new study may be started here.
            readonly: Look on without the lock, as report and export do while a run goes on.
        Raises:
            InputError: `path` is something else than a study.
            StoreError: In use by another process, unwritable, damaged, or written by a newer Equipoise.
        """
        folder = Path(path)
        check_place(folder, create=create and not readonly)
        lock: int | None = None
        try:
            with _told(folder, "open"):
                if not readonly:
                    _make_folder(folder)
                    lock = _lock(folder / "lock")
                db = _connect(folder, readonly=readonly)
                if not readonly:
                    for room in (folder / "blobs", folder / "scratch"):
                        room.mkdir(exist_ok=True)
                        for torn in room.glob(".torn-*"):
                            torn.unlink()
        except BaseException:
            if lock is not None:
                os.close(lock)
            raise
        return cls(folder, db, lock)

    def close(self) -> None:
        """Close the database and give the lock back."""
        self._db.close()
        if self._release is not None:
            self._release()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def identity(self, data: Mapping[str, Any], *, part: str = "study") -> None:
        """Tie the study to what it is about (workload, target, space, seed): the first call records, later calls compare.

        A field may be a mapping of parts (of a workload: its weights, its code, each split); each part is then compared.

        Raises:
            InputError: The study on disk is about something else; the message names every field and part that differs.
        """
        wanted: dict[str, Any] = json.loads(_canonical("identity", part, data))
        found = self.get("identity", part)
        if found is None:
            self.put("identity", part, wanted, seconds=0.0)
            return
        lines = "; ".join(_differences(found, wanted))
        if lines:
            remedy = "Use another --store, or repeat the first command."
            raise must_be("store", f"a study of the same thing ({lines})", str(self.path), remedy)

    def once(self, kind: str, key: str, compute: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        """Return the recorded result of a step, or compute it, commit it and return it.

        The result comes back as JSON gives it (tuples are lists) the first time too, so that a resumed walk sees exactly
        what the first one saw. When `compute` raises, nothing is written. Steps may nest; each counts its own time only.
        """
        found = self.get(kind, key)
        if found is not None:
            return found
        with _told(self.path, "write to"):
            if shutil.disk_usage(self.path).free < RESERVE_BYTES:
                raise OSError(errno.ENOSPC, f"less than {RESERVE_BYTES // 1_000_000} MB free")
        outer_s, self._inner_s, start = self._inner_s, 0.0, time.perf_counter()
        try:
            data = compute()
        finally:
            elapsed = time.perf_counter() - start
            own_s, self._inner_s = elapsed - self._inner_s, outer_s + elapsed
        return self.put(kind, key, data, seconds=max(0.0, own_s))

    def get(self, kind: str, key: str) -> dict[str, Any] | None:
        """Return the recorded result, or None."""
        with _told(self.path, "read"):
            row = self._db.execute("SELECT kind, key, data, sha256 FROM records WHERE kind=? AND key=?", (kind, key)).fetchone()
        return None if row is None else self._checked(*row)

    def all(self, kind: str) -> list[dict[str, Any]]:
        """Return every result of one kind, in the order in which they were recorded."""
        with _told(self.path, "read"):
            rows = self._db.execute("SELECT kind, key, data, sha256 FROM records WHERE kind=? ORDER BY seq", (kind,)).fetchall()
        return [self._checked(*row) for row in rows]

    def put(self, kind: str, key: str, data: Mapping[str, Any], *, seconds: float) -> dict[str, Any]:
        """Commit one result durably and return it as read back; write its blobs first.

        Args:
            seconds: Wall time it took, counted by `spent`.
        Raises:
            StoreError: Another result stands under this name, the disk is full, or `data` is not finite JSON.
        """
        if self.readonly:
            raise StoreError(f"the study {self.path} was opened read-only; nothing can be recorded in it")
        text = _canonical(kind, key, data)
        with _told(self.path, "write to"), self._transaction():
            row = self._db.execute("SELECT data FROM records WHERE kind=? AND key=?", (kind, key)).fetchone()
            if row is None:
                self._db.execute(_INSERT, (kind, key, text, _row_hash(kind, key, text), seconds, time.time()))
            elif row[0] != text:
                raise StoreError(f"{kind} {key!r} is already recorded in {self.path} with another result")
        result: dict[str, Any] = json.loads(text)
        return result

    def spent(self) -> float:
        """Return the seconds of all recorded steps together, over every resume."""
        with _told(self.path, "read"):
            return float(self._db.execute("SELECT COALESCE(SUM(seconds), 0.0) FROM records").fetchone()[0])

    def tidy(self) -> None:
        """Remove what is left of checkpoints: what they were for is recorded."""
        for file in (self.path / "scratch").glob("*"):
            file.unlink(missing_ok=True)

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

    def _checked(self, kind: str, key: str, text: str, sha: str) -> dict[str, Any]:
        if _row_hash(kind, key, text) != sha:
            raise StoreError(f"{kind} {key!r} in {self.path} is damaged. Restore the folder, or use another --store.")
        data: dict[str, Any] = json.loads(text)
        return data


def write_atomic(path: Path, data: bytes) -> None:
    """Replace the file `path` by `data`: after a crash it holds the old bytes or the new ones, never a part.

    Raises:
        StoreError: The disk is full or refuses; `path` is as it was.
    """
    torn = path.with_name(f".torn-{os.getpid()}-{path.name}")
    with _told(path.parent, "write to"):
        try:
            with torn.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            torn.replace(path)
        except BaseException:
            torn.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)


def check_place(folder: Path, *, create: bool) -> None:
    """Refuse what is neither a study nor, with `create`, a place for one; change nothing."""
    with _told(folder, "open"):
        here = {p.name for p in folder.iterdir()} if folder.is_dir() else set()
    if folder.exists() and not folder.is_dir():
        raise must_be("store", "a folder", str(folder), "Name another folder.")
    if "study.db" in here:
        return
    if "blobs" in here and here <= _OWN_NAMES:
        raise StoreError(f"{folder} is a damaged study: study.db is missing. Restore it, or use another --store.")
    if here - _OWN_NAMES or not create:
        raise must_be("store", "a study folder" + (" or an empty one" if create else ""), str(folder), "No study.db is there.")


def _make_folder(folder: Path) -> None:
    missing = [p for p in (folder, *folder.parents) if not p.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for made in missing:
        _sync_folder(made.parent)


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


def _drop_in_forks(release: weakref.finalize[Any, Any]) -> None:
    """Close the lock in forked children: a worker that outlives its killed parent must not hold the study."""

    def drop() -> None:
        release()

    os.register_at_fork(after_in_child=drop)


@contextlib.contextmanager
def _told(folder: Path, action: str) -> Iterator[None]:
    """Turn what SQLite and the system raise into one `StoreError` with its remedy."""
    try:
        yield
    except (StoreError, InputError):
        raise
    except sqlite3.Error as error:
        full = getattr(error, "sqlite_errorname", "") in ("SQLITE_FULL", "SQLITE_IOERR_WRITE", "SQLITE_IOERR_FSYNC")
        if full:
            raise _full(folder, error) from error
        if isinstance(error, sqlite3.OperationalError):
            raise StoreError(f"cannot {action} the study {folder}: {error}. Check the folder and its permissions.") from error
        raise StoreError(
            f"{folder / 'study.db'} is damaged: {error}. Restore the folder from a copy, or use another --store."
        ) from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise _full(folder, error) from error
        raise StoreError(f"cannot {action} {folder}: {error}. Check that it is there and its permissions.") from error


def _full(folder: Path, error: Exception) -> StoreError:
    return StoreError(
        f"no space left for {folder} ({error}). Free some space and run the same command again: nothing recorded is lost."
    )


def _canonical(kind: str, key: str, data: Mapping[str, Any]) -> str:
    try:
        return dumps(data)
    except (TypeError, ValueError) as error:
        remedy = "Use unavailable(reason) for unknown numbers."
        raise StoreError(f"{kind} {key!r} must be finite JSON data; {error}. {remedy}") from error


def _row_hash(kind: str, key: str, text: str) -> str:
    return hashlib.sha256(f"{kind}\0{key}\0{text}".encode()).hexdigest()


def _differences(recorded: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """Yield what differs between two identities: fields with both values, and the parts of fields that have some."""
    for field in sorted({*recorded, *now}):
        old, new = recorded.get(field), now.get(field)
        if old == new:
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            changed = [part for part in sorted({*old, *new}) if old.get(part) != new.get(part)]
            yield f"{field}: another {', '.join(changed)}"
        elif old is None and isinstance(new, dict):
            yield f"{field}: not recorded in full by the earlier version of Equipoise that began it"
        else:
            yield f"{field}: recorded {_short(old)}, now {_short(new)}"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
