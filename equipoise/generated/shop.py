"""A shop of forty things: users of five tastes, so that what they take next can be told from what they took."""

from __future__ import annotations

import random
from pathlib import Path

FILE = "shop.csv"
TASTES, EACH = 5, 8
"""Tastes, and items of each; of two items of a taste the one of the lower number is taken more often."""
DAY = 86_400


def taken(users: int = 400, *, seed: int = 0) -> list[tuple[str, str, int]]:
    """Return (user, item, time in seconds) rows: each user takes 5 to 9 different items, nine in ten of the own taste."""
    draw, rows = random.Random(seed), []
    for user in range(users):
        own, items = draw.randrange(TASTES), list[str]()
        for _ in range(draw.randint(5, 9)):
            taste = own if draw.random() < 0.9 else draw.randrange(TASTES)
            left = [n for n in range(EACH) if f"{taste}-{n}" not in items]
            if left:
                items.append(f"{taste}-{draw.choices(left, [1 / (n + 1) for n in left])[0]}")
        start = draw.randrange(10**6)
        rows += [(f"u{user}", item, start + DAY * day) for day, item in enumerate(items)]
    return rows


def write_rows(file: Path, users: int = 400, *, seed: int = 0) -> Path:
    """Write what is `taken` as CSV with a header, and return the file."""
    lines = ["user,item,time", *(",".join(map(str, row)) for row in taken(users, seed=seed))]
    file.write_text("\n".join(lines) + "\n")
    return file


def write(folder: Path) -> Path:
    """Write the shop into a folder, and return its file."""
    folder.mkdir(parents=True, exist_ok=True)
    return write_rows(folder / FILE)
