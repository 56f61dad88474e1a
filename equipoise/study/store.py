"""A study on disk: a durable memo of what was computed.

A road walks deterministically and takes every costly step through `Store.once`. A step whose result is already here is
not run again, so that resuming a killed run is walking the same road a second time, with hits.

A study has a folder: its record is in the ``study.db`` there (`sqlite`), or in the database that the file ``database`` there
names (`postgres`), which many machines may share. ``scratch/`` (recovery checkpoints) is of this machine in either case. A
result is acknowledged only once it is on the disk; a killed owner never blocks the next.
"""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from equipoise.errors import StoreError, must_be
from equipoise.records import dumps
from equipoise.study.files import Files, told
from equipoise.study.place import DATABASE, NAMES, address_in, is_address, located

SCHEMA = 2
"""Version of what is stored. History: 1 = first; 2 = typed records, the space in the identity."""

RESERVE_BYTES = 32_000_000
"""Free space without which no new step is begun."""


PRUNED = "pruned"
"""Kind of the record of files that were freed, see `pruning`."""


class Store(ABC):
    """The durable record of one study; make one with `Store.open`, close it or use it in a ``with`` block.

    Attributes:
        path: The study's folder on this machine.
        name: The study as its user knows it: its folder, or the address of the database with the study's name.
        address: Of its database; empty where the folder holds the record.
        readonly: Whether nothing can be recorded.

    Limits:
        One walking process at a time. A step killed midway is not recorded and neither is its time.
    """

    path: Path
    name: str
    address: str = ""
    readonly: bool
    files: Files
    _inner_s = 0.0  # time of the steps nested in the one that is being computed

    @staticmethod
    def open(path: str | Path, *, create: bool = True, readonly: bool = False) -> Store:
        """Open the study in folder `path`, or at an address ``postgresql://HOST/DATABASE#NAME``.

        Args:
            path: The study's folder; made when absent and `create`.
            create: Whether a new study may be started here.
            readonly: Look on without the lock, as report and export do while a run goes on.
        Raises:
            InputError: `path` is something else than a study.
            StoreError: In use by another process, unwritable, damaged, out of reach, or written by a newer Equipoise.
        """
        folder, address = located(path)
        if address:
            from equipoise.study.postgres import PostgresStore

            return PostgresStore.opened(folder, address, create=create, readonly=readonly)
        check_place(folder, create=create and not readonly)
        from equipoise.study.sqlite import SqliteStore

        return SqliteStore.opened(folder, readonly=readonly)

    @abstractmethod
    def close(self) -> None:
        """Close the database and give the lock back."""

    @abstractmethod
    def forget(self) -> None:
        """Take the study away, its folder and what is recorded; it is closed then."""

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- what a database does -------------------------------------------------------------------------------------------

    @abstractmethod
    def _one(self, kind: str, key: str) -> Row | None: ...

    @abstractmethod
    def _every(self, kind: str) -> list[Row]: ...

    @abstractmethod
    def count(self, kind: str) -> int:
        """Return how many results of one kind there are."""

    @abstractmethod
    def _add(self, row: Row, seconds: float) -> str:
        """Commit a row durably unless one of its name is there; return the text that stands under the name then."""

    @abstractmethod
    def spent(self) -> float:
        """Return the seconds of all recorded steps together, over every resume."""

    @abstractmethod
    def walker(self) -> str:
        """Return who walks the study now, in words; empty where nobody does."""

    # ---- files ---------------------------------------------------------------------------------------------------------------

    def blob(self, data: bytes) -> str:
        """See `Files.blob`."""
        return self.files.blob(data)

    def read_blob(self, sha: str) -> bytes:
        """See `Files.read_blob`."""
        try:
            return self.files.read_blob(sha)
        except StoreError:
            if any(sha in row["freed"] for row in self.all(PRUNED)):
                said = f"the files of this point of {self.name} were freed by prune-store"
                raise StoreError(f"{said}. Pick one of the front.") from None
            raise

    def scratch(self, name: str) -> Path:
        """See `Files.scratch`."""
        return self.files.scratch(name)

    def tidy(self) -> None:
        """Remove what is left of checkpoints: what they were for is recorded."""
        for file in (self.path / "scratch").glob("*"):
            file.unlink(missing_ok=True)

    # ---- the record ----------------------------------------------------------------------------------------------------------

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
            remedy = "Use another --store (--fork begins it with what this one found), or repeat the first command."
            raise must_be("store", f"a study of the same thing ({lines})", self.name, remedy)

    def once(self, kind: str, key: str, compute: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        """Return the recorded result of a step, or compute it, commit it and return it.

        The result comes back as JSON gives it (tuples are lists) the first time too, so that a resumed walk sees exactly
        what the first one saw. When `compute` raises, nothing is written. Steps may nest; each counts its own time only.
        """
        found = self.get(kind, key)
        if found is not None:
            return found
        with told(self.path, "write to"):
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
        row = self._one(kind, key)
        return None if row is None else self._checked(row)

    def all(self, kind: str) -> list[dict[str, Any]]:
        """Return every result of one kind, in the order in which they were recorded."""
        return [self._checked(row) for row in self._every(kind)]

    def put(self, kind: str, key: str, data: Mapping[str, Any], *, seconds: float) -> dict[str, Any]:
        """Commit one result durably and return it as read back; write its blobs first.

        Args:
            seconds: Wall time it took, counted by `spent`.
        Raises:
            StoreError: Another result stands under this name, the disk is full, or `data` is not finite JSON.
        """
        if self.readonly:
            raise StoreError(f"the study {self.name} was opened read-only; nothing can be recorded in it")
        text = _canonical(kind, key, data)
        if self._add((kind, key, text, _row_hash(kind, key, text)), seconds) != text:
            raise StoreError(f"{kind} {key!r} is already recorded in {self.name} with another result")
        result: dict[str, Any] = json.loads(text)
        return result

    def _checked(self, row: Row) -> dict[str, Any]:
        kind, key, text, sha = row
        if _row_hash(kind, key, text) != sha:
            raise StoreError(f"{kind} {key!r} in {self.name} is damaged. Restore it from a copy, or use another --store.")
        data: dict[str, Any] = json.loads(text)
        return data


def is_study(place: str | Path) -> bool:
    """Whether a study has begun there.

    Raises:
        StoreError: The database of an address is out of reach.
    """
    folder, address = located(place)
    if not address:
        return (folder / "study.db").is_file()
    from equipoise.study.postgres import begun

    return begun(address)


def files_of(folder: Path) -> Files:
    """Return the files of the study in a folder, which is there."""
    if not (folder / DATABASE).is_file():
        return Files(folder)
    from equipoise.study.postgres import Connection, DatabaseFiles

    return DatabaseFiles(folder, Connection(address_in(folder)))


def folder_at(place: str | Path) -> Path:
    """Return the folder of a study; that of an address once the study was found there.

    Raises:
        InputError, StoreError: As `Store.open`, of an address.
    """
    if not is_address(place):
        return Path(place)
    with Store.open(place, create=False, readonly=True) as store:
        return store.path


Row = tuple[str, str, str, str]
"""Kind, key, the result as JSON, and the SHA-256 of the three."""


def check_place(folder: Path, *, create: bool) -> None:
    """Refuse what is neither a study nor, with `create`, a place for one; change nothing."""
    with told(folder, "open"):
        here = {p.name for p in folder.iterdir()} if folder.is_dir() else set()
    if folder.exists() and not folder.is_dir():
        raise must_be("store", "a folder", str(folder), "Name another folder.")
    if here & {"study.db", DATABASE}:
        return
    if "blobs" in here and here <= NAMES:
        raise StoreError(f"{folder} is a damaged study: study.db is missing. Restore it, or use another --store.")
    if here - NAMES or not create:
        raise must_be("store", "a study folder" + (" or an empty one" if create else ""), str(folder), "No study.db is there.")


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
