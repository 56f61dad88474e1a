"""A study made small: the files of points that nobody would pick are freed, every figure stays."""

from __future__ import annotations

import re
from dataclasses import dataclass

from equipoise.errors import must_be
from equipoise.records import as_data, dumps
from equipoise.study.record import Study
from equipoise.study.store import PRUNED, Store

_BLOB = re.compile(r"\b[0-9a-f]{64}\b")


@dataclass(frozen=True)
class Pruned:
    """What a pruning freed, or would free.

    Attributes:
        files: How many.
        freed_bytes, kept_bytes: Their bytes, and those of the others.
    """

    files: int
    freed_bytes: int
    kept_bytes: int


def check_whole(store: Store) -> None:
    """Refuse to search on in a study whose files were freed.

    Raises:
        InputError: It was pruned.
    """
    if store.count(PRUNED):
        raise must_be("store", "a study that was not pruned", store.name, "It is read and exported; search on in another.")


def prune_store(store: Store, *, dry: bool = False) -> Pruned:
    """Free the model files of all evaluations but the untouched model, the front, the knee and the best within the budget.

    The study can be read, reported, and exported from as before, but not be searched on.

    Args:
        store: Open for writing; read-only will do for `dry`.
        dry: Only say what would be freed.
    Raises:
        StoreError: The study has no baseline yet.
    """
    study = Study.read(store).made
    rows = [as_data(e) for e in (study.baseline, study.knee, study.best, *study.front)]
    rows += [row for kind in ("study", "final") for row in store.all(kind)]
    wanted = {name for row in rows for name in _BLOB.findall(dumps(row))}
    held = store.files.held()
    freed = [sha for sha in held if sha not in wanted]
    if freed and not dry:
        store.put(PRUNED, str(len(store.all(PRUNED))), {"freed": freed}, seconds=0.0)  # first: what is gone is told
        store.files.free(freed)
    gone = sum(held[sha] for sha in freed)
    return Pruned(len(freed), gone, sum(held.values()) - gone)
