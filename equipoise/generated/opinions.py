"""Short opinions of films: friendly where more of the words are, in a table of texts and labels."""

from __future__ import annotations

import random
from pathlib import Path

FRIENDLY = ("fine", "warm", "clever", "moving", "bright", "funny")
UNFRIENDLY = ("dull", "cold", "silly", "tired", "loud", "empty")
OTHER = ("film", "story", "actor", "scene", "music", "ending", "a", "the", "this", "very")
SIZES = {"train": 400, "dev": 100, "test": 100}
"""Role -> opinions; the file of a role is called so."""


def write(folder: Path) -> Path:
    """Write ``train.tsv``, ``dev.tsv`` and ``test.tsv`` (text, tab, 0 or 1) and return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed, (role, count) in enumerate(SIZES.items()):
        draw = random.Random(seed)
        lines = []
        for number in range(count):
            side, against = (FRIENDLY, UNFRIENDLY) if number % 2 else (UNFRIENDLY, FRIENDLY)
            words = [*draw.sample(side, 2), *draw.sample(against, 1), *draw.sample(OTHER, 5)]
            draw.shuffle(words)
            lines.append(f"{' '.join(words)}\t{number % 2}")
        draw.shuffle(lines)
        (folder / f"{role}.tsv").write_text("\n".join(lines) + "\n")
    return folder
