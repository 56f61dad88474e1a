"""A generated shop: users with tastes, so that what they take next can be told from what they took."""

from __future__ import annotations

import random
from pathlib import Path

TASTES, EACH = 5, 8
"""Tastes, and items of each; of two items of a taste the one of the lower number is taken more often."""


def tastes(users: int = 300, *, seed: int = 0) -> list[tuple[str, str, int]]:
    """Return (user, item, time) rows: each user takes 5 to 9 different items, nine in ten of the own taste."""
    draw, rows = random.Random(seed), []
    for user in range(users):
        own, taken = draw.randrange(TASTES), []
        for _ in range(draw.randint(5, 9)):
            taste = own if draw.random() < 0.9 else draw.randrange(TASTES)
            left = [n for n in range(EACH) if f"{taste}-{n}" not in taken]
            if left:
                taken.append(f"{taste}-{draw.choices(left, [1 / (n + 1) for n in left])[0]}")
        start = draw.randrange(10**6)
        rows += [(f"u{user}", item, start + 86_400 * day) for day, item in enumerate(taken)]
    return rows


def write_tastes(file: Path, users: int = 300, *, seed: int = 0) -> Path:
    """Write the rows as CSV with a header."""
    lines = ["user,item,time", *(",".join(map(str, row)) for row in tastes(users, seed=seed))]
    file.write_text("\n".join(lines) + "\n")
    return file
