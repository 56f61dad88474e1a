"""Wherever the record is kept, a walk that is stopped again and again decides what one that never was decides."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from databases import Server
from planted_road import ONE, TWO, Formula, asked, facts, road, walked

from equipoise.road.jobs import Job
from equipoise.study.store import Store

EVERY = 5
"""Rows after which the walker is gone, and another comes."""


@pytest.fixture(params=["folder", pytest.param("database", marks=pytest.mark.slow)])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    if request.param == "folder":
        return str(tmp_path / "study")
    server: Server = request.getfixturevalue("server")
    return server.address("resumed")


class Kept:
    """What `planted_road` calls a record, kept in a store."""

    def __init__(self, store: Store) -> None:
        self.get, self.all, self._store = store.get, store.all, store

    def put(self, job: Job, data: Mapping[str, Any]) -> None:
        self._store.put(job.kind, job.key, data, seconds=data["seconds"])


def rows_of(store: Store, kinds: set[str]) -> dict[str, list[dict[str, Any]]]:
    return {kind: store.all(kind) for kind in kinds}


def test_a_walk_that_is_stopped_at_every_fifth_row_decides_the_same(place: str) -> None:
    what = asked("drop<=1", 600.0, targets=(ONE, TWO))
    whole = walked(what).record
    count = 0
    while True:
        with closing(Store.open(place)) as store:
            record: Any = Kept(store)
            here = road(what)
            formula = Formula(record, here, facts(*what.targets))
            jobs = here.next(record)
            before = count
            while jobs and count - before < EVERY:
                record.put(jobs[0], formula.run(jobs[0]))
                count += 1
                jobs = jobs[1:] or here.next(record)
            if not jobs and not here.next(record):
                break
    assert count == len(whole.rows) > 70
    with Store.open(place, readonly=True) as store:
        found = rows_of(store, {kind for kind, _, _ in whole.rows})
    for kind, rows in found.items():
        assert rows == [json.loads(text) for k, _, text in whole.rows if k == kind], kind
