"""The studies of a folder or a database, a few words each."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from equipoise.errors import EquipoiseError, must_be
from equipoise.study.place import is_address
from equipoise.study.record import Study
from equipoise.study.store import Store, is_study


@dataclass(frozen=True)
class Listed:
    """One study.

    Attributes:
        place: Its folder, or its address.
        workload: As the command line names it; empty before its baseline is measured.
        budget: As its user wrote it.
        evaluations, failed: Counts.
        spent_s: Seconds, over every resume.
        says: Its pick in a sentence; or why there is none.
    """

    place: str
    workload: str = ""
    budget: str = ""
    evaluations: int = 0
    failed: int = 0
    spent_s: float = 0.0
    says: str = ""


def studies(place: str | Path) -> list[Listed]:
    """Return the studies of a folder (itself one, or its subfolders) or of a database ``postgresql://HOST/DATABASE``, by name.

    Raises:
        InputError: No such folder.
        StoreError: The database is out of reach.
    """
    if is_address(place):
        from equipoise.study.postgres import names

        address = str(place).partition("#")[0]
        return [_listed(f"{address}#{name}") for name in names(address)]
    folder = Path(place)
    if not folder.is_dir():
        raise must_be("place", "a folder, or the address of a database", str(place), "Name the folder that holds the studies.")
    return [_listed(found) for found in [folder, *sorted(folder.iterdir())] if found.is_dir() and _is_study(found)]


def _is_study(folder: Path) -> bool:
    try:
        return is_study(folder)
    except EquipoiseError:
        return True  # one whose database is out of reach: listed, with the reason


def _listed(place: str | Path) -> Listed:
    try:
        with Store.open(place, create=False, readonly=True) as store:
            spent_s = store.spent()
            study = Study.read(store)
    except EquipoiseError as error:
        return Listed(str(place), says=str(error))
    rows, failed = len(study.evaluations), len(study.failures)
    return Listed(str(place), study.header.workload, study.header.budget, rows, failed, spent_s, study.sentence(study.best))
