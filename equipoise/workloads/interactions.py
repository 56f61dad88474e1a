"""Who took what and when, from a CSV file: users with their items in the order of time."""

from __future__ import annotations

import csv
import gzip
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

import numpy as np
import numpy.typing as npt

from equipoise.errors import must_be

Whole = npt.NDArray[np.int64]
Real = npt.NDArray[np.float64]

USERS = ("user_id", "user", "userid", "customer_id", "customer", "customerid", "visitor_id", "session_id", "session")
ITEMS = (
    "item_id",
    "item",
    "itemid",
    "product_id",
    "product",
    "movie_id",
    "movieid",
    "wine_id",
    "article_id",
    "sku",
    "stockcode",
)
TIMES = ("timestamp", "time", "date", "datetime", "created_at", "invoicedate")
LAYOUT = "Give a .csv or .csv.gz file with a header line and columns for the user, the item and the time."
DAY_S = 86_400
LATEST_S = 1e11
"""Seconds since 1970 that no interaction has: such times are milliseconds, which have been more since 1973."""


@dataclass(frozen=True, eq=False)
class Interactions:
    """Rows sorted by user, then by time, then as they stood in the file.

    Attributes:
        user: Number of the user of each row (R,).
        item: Number of its item (R,).
        time: Seconds since 1970, UTC (R,).
        users, items: Their names by number.
        notes: What was left out.

    Example:
        >>> few = Interactions.of(["a", "b", "a"], ["tea", "tea", "jam"], [3.0, 1.0, 2.0])
        >>> few.users, few.items, few.user.tolist(), few.item.tolist()
        (('b', 'a'), ('tea', 'jam'), [0, 1, 1], [0, 1, 0])
    """

    user: Whole
    item: Whole
    time: Real
    users: tuple[str, ...]
    items: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.user)

    @classmethod
    def of(cls, users: Sequence[str], items: Sequence[str], times: Sequence[float]) -> Interactions:
        """Number and sort rows; one that repeats another in all three is left out and told.

        Who and what came first has the lower number, so that newer rows change no number that there was.
        """
        time = np.asarray(times, np.float64)
        known = _by_first_time(users, time), _by_first_time(items, time)
        user, item = (np.array([k[name] for name in names], np.int64) for k, names in zip(known, (users, items), strict=True))
        _, first = np.unique(np.stack([user, item, time]), axis=1, return_index=True)
        kept = np.sort(first)
        order = kept[np.lexsort((kept, time[kept], user[kept]))]
        same = len(user) - len(order)
        told = (f"{same} {'row repeats' if same == 1 else 'rows repeat'} another and {'is' if same == 1 else 'are'} left out",)
        return cls(user[order], item[order], time[order], tuple(known[0]), tuple(known[1]), told if same else ())

    def until(self, time: float) -> Interactions:
        """Return the rows before `time`, with the items that these name."""
        rows = self.time < time
        user, item = self.user[rows], self.item[rows]
        known = int(item.max()) + 1 if len(item) else 0  # those that came later have the higher numbers
        return Interactions(user, item, self.time[rows], self.users, self.items[:known], self.notes)


def read_interactions(path: Path, *, user: str = "", item: str = "", time: str = "") -> Interactions:
    """Return the interactions of a file.

    Args:
        path: ``.csv`` or ``.csv.gz``, UTF-8, with a header line.
        user, item, time: Names of the columns; empty: seen from the names in the header (`USERS`, `ITEMS`, `TIMES`). A time is
            a number of seconds, or a date in the form of ISO 8601, which is UTC where it has no zone.
    Raises:
        InputError: No such file, no such columns, an empty cell, a time that is none, or fewer than two items.
    """
    if not path.is_file() or not path.name.lower().endswith((".csv", ".csv.gz")):
        raise must_be("interactions", "an existing .csv or .csv.gz file", str(path), LAYOUT)
    users: list[str] = []
    items: list[str] = []
    times: list[float] = []
    try:
        with _opened(path) as file:
            lines = csv.reader(file, strict=True)
            head = [cell.strip() for cell in next(lines, [])]
            places = _places(path, head, {"user": (user, USERS), "item": (item, ITEMS), "time": (time, TIMES)})
            for number, cells in _rows(path, lines, places):
                users.append(cells[0])
                items.append(cells[1])
                times.append(_seconds(path, number, cells[2]))
        if not items:
            raise must_be(f"interactions {path}", "rows below the header", "none", LAYOUT)
    except UnicodeDecodeError as error:
        raise must_be(f"interactions {path}", "UTF-8", f"byte {error.start} that is not", "Convert it by iconv.") from error
    except (csv.Error, OSError, EOFError) as error:
        raise must_be(f"interactions {path}", "a readable table", str(error), "Save it anew.") from error
    if len(kinds := set(items)) < 2:
        found = sorted(kinds)
        raise must_be(
            f"items of {path}", "at least two different ones", found, "There is nothing to choose from: look at item=."
        )
    return Interactions.of(users, items, times)


def _by_first_time(names: Sequence[str], time: Real) -> dict[str, int]:
    """Number names in the order in which they first came; of one moment, in that of the alphabet."""
    first: dict[str, float] = {}
    for name, moment in zip(names, time.tolist(), strict=True):
        first[name] = min(moment, first.get(name, math.inf))
    return {name: number for number, name in enumerate(sorted(first, key=lambda name: (first[name], name)))}


def _opened(path: Path) -> TextIO:
    if path.suffix.lower() == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    return path.open(encoding="utf-8-sig", newline="")


def _places(path: Path, head: list[str], wanted: dict[str, tuple[str, tuple[str, ...]]]) -> list[int]:
    """Return where the three columns stand."""
    lower, places = [name.lower() for name in head], []
    for role, (given, usual) in wanted.items():
        if given and given not in head:
            raise must_be(f"{role} column of {path}", f"one of {', '.join(head)}", given, "Look at its first line.")
        place = head.index(given) if given else next((lower.index(name) for name in usual if name in lower), None)
        if place is None:
            remedy = f"Say which by ?{role}=NAME." if head else LAYOUT
            raise must_be(f"{role} column of {path}", f"one of {', '.join(usual)}", head, remedy)
        places.append(place)
    for place in places:
        if lower.count(lower[place]) > 1:
            raise must_be(
                f"column {head[place]} of {path}", "there once", f"{lower.count(lower[place])} of it", "Rename the others."
            )
    if len(set(places)) < 3:
        raise must_be(f"columns of {path}", "three different ones", [head[place] for place in places], "Give each its own.")
    return places


def _rows(path: Path, lines: Iterator[list[str]], places: list[int]) -> Iterator[tuple[int, list[str]]]:
    """Yield the number of each line that holds anything, with its user, item and time."""
    for number, cells in enumerate(lines, start=2):
        if not any(cell.strip() for cell in cells):
            continue
        found = [cells[place].strip() if place < len(cells) else "" for place in places]
        if not all(found):
            missing = [role for role, cell in zip(("user", "item", "time"), found, strict=True) if not cell]
            raise must_be(f"{missing[0]} in line {number} of {path}", "given", "nothing", "Fill it in, or take the line out.")
        yield number, found


def _seconds(path: Path, number: int, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        try:
            moment = datetime.fromisoformat(text)
        except ValueError:
            value = math.nan
        else:
            value = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    if value >= LATEST_S:
        remedy = "Milliseconds, divided by 1000, are seconds."
        raise must_be(f"time in line {number} of {path}", "seconds since 1970, before the year 5000", text, remedy)
    if not math.isfinite(value):
        remedy = "Write seconds since 1970, or a date as 2021-12-31 or 2021-12-31T10:00:00."
        raise must_be(f"time in line {number} of {path}", "a number of seconds or an ISO date", text, remedy)
    return value
