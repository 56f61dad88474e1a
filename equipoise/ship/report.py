"""``equipoise.report``: what a record holds, as one self-contained HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from equipoise.errors import must_be
from equipoise.pages import finite, render, render_scale
from equipoise.records import as_data, dumps
from equipoise.road.explain import explained
from equipoise.ship.export import folder_of
from equipoise.study.files import write_atomic
from equipoise.study.record import Study
from equipoise.study.store import Store
from equipoise.study.summary import summarize


def report(study: Study | str | Path, *, out: str | Path | None = None) -> Path:
    """Write a study as one HTML page that needs no network, and return the page's path.

    Args:
        study: A study, or its folder; the folder of `scale`'s record gives the page of its recommendation.
        out: The file to write; None takes ``report.html`` in the folder. A name that ends with ``.json`` gets the data behind
            the page, with ``.csv`` or ``.parquet`` a row for each evaluation.
    Raises:
        InputError: `out` is no file in a folder that exists.
        StoreError: No record there, or nothing in it yet.
    """
    folder = folder_of(study)
    page = folder / "report.html" if out is None else Path(out)
    if folder.is_dir() and (not page.parent.is_dir() or page.is_dir()):
        raise must_be("out", "a file in a folder that exists", str(page), "Create the folder first, or name a file.")
    if page.suffix in (".csv", ".parquet"):
        return Study.load(folder).write_table(page)
    summary, advised = told(folder)
    if page.suffix == ".json":
        write_atomic(page, dumps(finite(summary)).encode())
        return page
    write_atomic(page, (render_scale if advised else render)(summary).encode())
    return page


def told(folder: Path) -> tuple[dict[str, Any], bool]:
    """Return the data behind the page of the record in `folder`, and whether it is of the road before training."""
    with Store.open(folder, create=False, readonly=True) as store:
        if not store.all("asked"):
            study = Study.read(store)
            found = explained(store, study=study)
            return {**summarize(store, study), "explained": None if found is None else as_data(found)}, False
        from equipoise.sizing.advice import read

        return read(store).summary(), True
