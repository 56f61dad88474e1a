"""The files of a study: blobs by hash, checkpoints, and how a file is replaced whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from equipoise.errors import InputError, StoreError, must_be


class Files:
    """Blobs and checkpoints in a study's folder: they need no lock, for what is written is whole or not there."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def blob(self, data: bytes) -> str:
        """Store bytes under their SHA-256 and return it; storing the same bytes again changes nothing."""
        sha = hashlib.sha256(data).hexdigest()
        path = self.path / "blobs" / sha
        with told(self.path, "read"):
            kept = path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == sha
        if not kept:
            write_atomic(path, data)
        return sha

    def read_blob(self, sha: str) -> bytes:
        """Return the bytes stored under `sha`, hashed again.

        Raises:
            StoreError: Absent, or its bytes changed.
        """
        path = self.path / "blobs" / checked_name(sha)
        if not path.is_file():
            raise StoreError(
                f"the study {self.path} is damaged: its file {path} is missing. Restore it, or use another --store."
            )
        with told(self.path, "read"):
            data = path.read_bytes()
        if hashlib.sha256(data).hexdigest() != sha:
            raise StoreError(f"the file {path} changed on the disk (its hash differs). Restore it, or use another --store.")
        return data

    def held(self) -> dict[str, int]:
        """Return the blobs that are stored, each with its bytes."""
        with told(self.path, "read"):
            return {path.name: path.stat().st_size for path in sorted((self.path / "blobs").iterdir())}

    def free(self, shas: Iterable[str]) -> None:
        """Remove blobs."""
        with told(self.path, "write to"):
            for sha in shas:
                (self.path / "blobs" / checked_name(sha)).unlink(missing_ok=True)

    def scratch(self, name: str) -> Path:
        """Return the path of a checkpoint that may vanish between runs; write it with `write_atomic`."""
        if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}", name):
            raise must_be("scratch name", "letters, digits, dot, dash or underscore", name, "Use the evaluation's digest.")
        return self.path / "scratch" / name


def checked_name(sha: str) -> str:
    """Return the name of a blob, or raise."""
    if not re.fullmatch(r"[0-9a-f]{64}", sha):
        raise StoreError(f"a blob's name must be 64 hex digits; got {sha!r}. The record that names it is damaged.")
    return sha


def make_folder(folder: Path) -> None:
    """Make a folder and what is missing above it, durably."""
    missing = [p for p in (folder, *folder.parents) if not p.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for made in missing:
        _sync_folder(made.parent)


def make_rooms(folder: Path) -> None:
    """Make the rooms of a study's folder, and take away what a crash left half written in them."""
    for room in (folder / "blobs", folder / "scratch"):
        room.mkdir(exist_ok=True)
        for torn in room.glob(".torn-*"):
            torn.unlink()


def write_atomic(path: Path, data: bytes) -> None:
    """Replace the file `path` by `data`: after a crash it holds the old bytes or the new ones, never a part.

    Raises:
        StoreError: The disk is full or refuses; `path` is as it was.
    """
    torn = path.with_name(f".torn-{os.getpid()}-{path.name}")
    with told(path.parent, "write to"):
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


@contextlib.contextmanager
def told(folder: Path, action: str) -> Iterator[None]:
    """Turn what the system raises into one `StoreError` with its remedy."""
    try:
        yield
    except (StoreError, InputError):
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise full(folder, error) from error
        if error.errno == errno.EIO:
            raise failing(folder, error) from error
        raise StoreError(f"cannot {action} {folder}: {error}. Check that it is there and its permissions.") from error


def full(place: object, error: Exception) -> StoreError:
    """What is said where there is no space left."""
    return StoreError(
        f"no space left for {place} ({error}). Free some space and run the same command again: nothing recorded is lost."
    )


def failing(place: object, error: Exception) -> StoreError:
    """What is said where the disk did not take what was written."""
    return StoreError(
        f"the disk did not take what was written to {place} ({error}): it is full, a quota is used up, or it fails. "
        "See to it and run the same command again: nothing recorded is lost."
    )


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
