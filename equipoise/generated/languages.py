"""Two small languages: each word of one is a word of the other, and the second says its verb last."""

from __future__ import annotations

import gzip
import random
from pathlib import Path

WORDS = {"dogs": "Hunde", "cats": "Katzen", "men": "Männer", "birds": "Vögel", "girls": "Mädchen"}
VERBS = {"see": "sehen", "like": "mögen", "hear": "hören"}
SIZES = {"train": 240, "val": 40, "test": 40}
"""Role -> sentences; the file of a role is called so."""


def sentences(count: int, seed: int) -> list[tuple[str, str]]:
    """Return that many pairs, drawn from `seed`."""
    draw = random.Random(seed)
    found = []
    for _ in range(count):
        one, other, verb = draw.choice([*WORDS]), draw.choice([*WORDS]), draw.choice([*VERBS])
        found.append((f"{one} {verb} {other}.", f"{WORDS[one]} {WORDS[other]} {VERBS[verb]}."))
    return found


def write(folder: Path, *, packed: bool = False) -> Path:
    """Write ``train``, ``val`` and ``test`` in both languages (en, de), gzipped if `packed`, and return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed, (role, count) in enumerate(SIZES.items()):
        pairs = sentences(count, seed)
        for tag, lines in (("en", [a for a, _ in pairs]), ("de", [b for _, b in pairs])):
            content = ("\n".join(lines) + "\n").encode()
            name = f"{role}.{tag}"
            (folder / (f"{name}.gz" if packed else name)).write_bytes(gzip.compress(content) if packed else content)
    return folder
