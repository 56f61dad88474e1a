"""A shop of forty things: users of five tastes, each of whom takes mostly what is of the own taste, the best of it first."""

from __future__ import annotations

import random
from pathlib import Path

FILE = "shop.csv"
TASTES, EACH, USERS = 5, 8, 400
DAY = 86_400


def write(folder: Path) -> Path:
    """Write a file of users, items and times (seconds) into a folder, and return the file.

    A user takes 5 to 9 things, nine in ten of the own taste.
    """
    folder.mkdir(parents=True, exist_ok=True)
    draw, lines = random.Random(0), ["user,item,time"]
    for user in range(USERS):
        own, taken = draw.randrange(TASTES), list[str]()
        for day in range(draw.randint(5, 9)):
            taste = own if draw.random() < 0.9 else draw.randrange(TASTES)
            left = [f"{taste}-{n}" for n in range(EACH) if f"{taste}-{n}" not in taken]
            if left:
                taken.append(draw.choices(left, [1 / (n + 1) for n in range(len(left))])[0])
                lines.append(f"u{user},{taken[-1]},{DAY * day + user}")
    (folder / FILE).write_text("\n".join(lines) + "\n")
    return folder / FILE
